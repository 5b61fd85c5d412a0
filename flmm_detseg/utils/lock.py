"""One program at a time for files that a run writes: a lock that the system releases when its holder dies."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from flmm_detseg.errors import RunError

_TAKEN = (errno.EACCES, errno.EAGAIN)
# Open files of the locks of this process. Closing any file of a lock drops it, so nothing else opens them.
_locked: dict[Path, int] = {}
os.register_at_fork(after_in_child=_locked.clear)  # record locks are not handed on


def hold(file: Path, what: str) -> None:
    """Takes a lock until :func:`release` or the end of the process; taking it again in the same process does nothing.

    A POSIX record lock: it goes with the process, not with its children (workers that outlive a killed run hold
    nothing), and works on file systems that are shared by machines where these support it. Where they do not, a line on
    stderr says that other programs are not kept out, and the program goes on.

    Args:
        file: Made if it is not there; it stays there, empty of meaning.
        what: What it guards, for the error, such as ``"training in work_dirs/x"``.

    Raises:
        RunError: Another process holds it; says which.
    """
    file = file.absolute()
    if file in _locked:
        return
    file.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(descriptor, 300, 0).decode("utf-8", errors="replace").strip()
        os.close(descriptor)
        if error.errno in _TAKEN:
            raise RunError(
                f"{what}: another program does this now ({holder or 'name unknown'}). Wait for it or stop it, or "
                "choose another folder; two at once would overwrite each other's files"
            ) from None
        print(
            f"{file} cannot be locked on this file system ({error.strerror}): see to it yourself that no second "
            f"program does the same ({what})",
            file=sys.stderr,
        )
        return
    os.ftruncate(descriptor, 0)
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    os.pwrite(descriptor, f"process {os.getpid()} on {socket.gethostname()} since {started}\n".encode(), 0)
    _locked[file] = descriptor


def release(file: Path) -> None:
    """Gives a lock of this process back; one that it does not hold is left alone."""
    descriptor = _locked.pop(file.absolute(), None)
    if descriptor is not None:
        os.close(descriptor)


@contextmanager
def holding(file: Path, what: str) -> Iterator[None]:
    """:func:`hold` for a block; a lock that the process had before is not released."""
    before = file.absolute() in _locked
    hold(file, what)
    try:
        yield
    finally:
        if not before:
            release(file)
