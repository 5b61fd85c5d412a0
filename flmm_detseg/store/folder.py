"""The folder of a cache on disk: whose it is, what in it is the cache's own, and its secret.

Nothing in a folder is used, changed or removed before this is known: a user's files must not be touched, and whoever
may write to the folder could forge what is served from it.
"""

from __future__ import annotations

import os
import re
import secrets
import stat
import uuid
from collections.abc import Iterator
from pathlib import Path

from flmm_detseg.errors import ConfigError
from flmm_detseg.store.disk_index import INDEX_NAME, has_rows, is_index, signed_by
from flmm_detseg.store.keys import KeyMaker

# Backup programs leave folders out that carry it (https://bford.info/cachedir/).
_MARKER, _SIGNATURE = "CACHEDIR.TAG", "Signature: 8a477f597d28d172789f06886806bc55"
_OURS = "# A background cache of flmm_detseg. It can be deleted: everything in it is computed again.\n# key "
_HEX = "[0-9a-f]{32}"
_NAMES = re.compile(
    rf"{re.escape(_MARKER)}(\.{_HEX})?|secret(\.{_HEX})?|lock|entries|index-\d+\.sqlite(-wal|-shm|-journal)?"
)
# Values and what a crash leaves of them.
ENTRY_NAME = re.compile(rf"{_HEX}\.safetensors|{_HEX}\.{_HEX}\.tmp")


def unusable_folder(folder: Path, error: OSError) -> ConfigError:
    """The error to raise when a cache folder cannot be made, read or written."""
    return ConfigError(
        f"the cache folder {folder} cannot be used ({error}): give a writable folder on a local disk as `folder`"
    )


def claim_folder(folder: Path) -> None:
    """Makes a cache folder, or checks that one is the cache's and nobody else's; only its owner may look in then.

    Args:
        folder: May be absent, empty, or a cache folder (of an earlier version of this package, too).

    Raises:
        ConfigError: It holds other files, it or something in it is another user's or may be written by others, or it
            cannot be written. Nothing was changed.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _check_owner(folder, folder)
        found = [name for name in os.listdir(folder) if name != "lost+found"]
        if found:
            _check_writers(folder, folder)
        else:
            # Before anybody puts something there.
            _narrow(folder, 0o700)
            found = os.listdir(folder)
        # Asked again at the end: another process may have marked the folder while it was looked through.
        unmarked = _marked_key(folder) is None
        if unmarked and (foreign := _foreign(folder)) is not None and _marked_key(folder) is None:
            raise ConfigError(
                f"the cache folder {folder} holds {foreign!r}, which is no file of a cache: give a new or an empty "
                f"folder as `folder`, for example {folder / 'background_cache'}"
            )
        for name in filter(_NAMES.fullmatch, found):
            _check_file(folder, folder / name)
        (folder / "entries").mkdir(exist_ok=True, mode=0o700)
        os.close(os.open(folder / "lock", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW, 0o600))
        _narrow(folder, 0o700)
        for name in filter(_NAMES.fullmatch, os.listdir(folder)):
            # Files of other processes come and go.
            if os.path.lexists(folder / name):
                _narrow(folder / name, 0o700 if name == "entries" else 0o600)
    except OSError as error:
        raise unusable_folder(folder, error) from error


def folder_secret(folder: Path) -> bytes:
    """The folder's own secret: made by the first process, the same for all that come after it.

    Args:
        folder: Of the cache.

    Returns:
        The secret; random, never logged.

    Raises:
        ConfigError: As :func:`claim_folder`; or the secret of a used folder is gone.
    """
    claim_folder(folder)
    path = folder / "secret"
    try:
        for _ in range(2):
            found = _read(path)
            if found is not None and len(found) == 32:
                return found
            if _marked_key(folder) is not None and any(map(has_rows, _indexes(folder))):
                raise ConfigError(
                    f"the file {path} is missing or damaged, without it nothing in the cache folder can be trusted: "
                    f"give `secret` if it was set before, or delete {folder} (everything is computed again)"
                )
            path.unlink(missing_ok=True)
            draft = folder / f"secret.{uuid.uuid4().hex}"
            _write(draft, secrets.token_bytes(32))
            _settle(draft, path)
        return path.read_bytes()
    except OSError as error:
        raise unusable_folder(folder, error) from error


def mark_folder(folder: Path, maker: KeyMaker) -> None:
    """Marks a claimed folder as a cache's with this secret.

    Args:
        folder: See :func:`claim_folder`.
        maker: Has the secret; a keyed hash of it is written.

    Raises:
        ConfigError: The folder was written with another secret: its rows would look damaged, and be removed.
    """
    key = maker.digest("folder")
    try:
        known = _marked_key(folder)
        if known is None:
            # Of an earlier version, or new.
            fits = [signed_by(maker, path) for path in _indexes(folder)]
            if False in fits and True not in fits:
                known = "another"
            else:
                path = folder / _MARKER
                if path.exists():
                    path.unlink()
                draft = folder / f"{_MARKER}.{uuid.uuid4().hex}"
                _write(draft, f"{_SIGNATURE}\n{_OURS}{key}\n".encode())
                _settle(draft, path)
                known = _marked_key(folder)
    except OSError as error:
        raise unusable_folder(folder, error) from error
    if known != key:
        raise ConfigError(
            f"the cache folder {folder} was written with another secret: give the same `secret` (or none, where none "
            "was given), or another `folder`; what is in it is left as it is"
        )


def _settle(draft: Path, path: Path) -> None:
    """Gives a written file its name, unless another process was first: no process ever sees half a file."""
    try:
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def _write(path: Path, data: bytes) -> None:
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _read(path: Path) -> bytes | None:
    """A small file; None when there is none, or something that is no file."""
    try:
        # Not through a link; and a pipe must not be waited for.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except FileNotFoundError:
        return None
    with open(descriptor, "rb") as file:
        return file.read(4096) if stat.S_ISREG(os.fstat(descriptor).st_mode) else None


def _marked_key(folder: Path) -> str | None:
    """What the marker says of the secret; None without a whole marker of ours."""
    path = folder / _MARKER
    if path.is_symlink() or not path.is_file():
        return None
    text = (_read(path) or b"").decode("ascii", "replace")
    found = re.fullmatch(rf"{_SIGNATURE}\n{re.escape(_OURS)}({_HEX})\n", text)
    return found[1] if found else None


def _indexes(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if INDEX_NAME.fullmatch(path.name) and not path.is_symlink() and path.is_file():
            yield path


def _foreign(folder: Path) -> str | None:
    """The first thing in a folder without a marker that no cache has written; None when it is a cache's or empty."""
    known = [is_index(path) for path in _indexes(folder)]
    if any(known):
        # Of an earlier version: what else lies there is left alone.
        return None
    for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
        if entry.name == "lost+found":
            continue
        if not _NAMES.fullmatch(entry.name):
            return entry.name
        if entry.name == "entries":
            if entry.is_dir(follow_symlinks=False):
                others = [name for name in os.listdir(entry.path) if not ENTRY_NAME.fullmatch(name)]
                if others:
                    return f"entries/{min(others)}"
        elif INDEX_NAME.fullmatch(entry.name) and is_index(Path(entry.path)) is False:
            return entry.name
        elif entry.name in ("secret", _MARKER) and entry.is_file(follow_symlinks=False):
            # What a crash left is empty; a marker of ours was whole.
            if entry.stat().st_size not in ((0, 32) if entry.name == "secret" else (0,)):
                return entry.name
    return None


def _check_owner(folder: Path, path: Path) -> None:
    owner, own = os.lstat(path).st_uid if path != folder else os.stat(path).st_uid, os.geteuid()
    if owner != own:
        raise ConfigError(
            f"{path} of the cache folder {folder} belongs to user {owner}, this process runs as user {own}: who owns "
            "it could put forged answers there. Give a folder of your own as `folder`, or change the owner (chown)"
        )


def _check_writers(folder: Path, path: Path) -> None:
    mode = stat.S_IMODE(os.stat(path).st_mode)
    if mode & 0o022:
        raise ConfigError(
            f"{path} of the cache folder {folder} may be written by other users (mode {mode:04o}): they could put "
            f"forged answers there. Delete it and begin anew, or, if nobody did: chmod go-w '{path}'; on a file system "
            "without permissions give another folder as `folder`"
        )


def _check_file(folder: Path, path: Path) -> None:
    """One of the cache's own names: the right kind of file, of the same owner."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return
    wanted = stat.S_ISDIR if path.name == "entries" else stat.S_ISREG
    if not wanted(found.st_mode):
        raise ConfigError(
            f"{path} of the cache folder {folder} is no {'folder' if path.name == 'entries' else 'file'} of the "
            "cache's (links are not followed): move it away, or give another folder as `folder`"
        )
    _check_owner(folder, path)
    if path.name in ("secret", "entries", _MARKER):
        _check_writers(folder, path)


def _narrow(path: Path, mode: int) -> None:
    """Takes other users' rights away."""
    try:
        if stat.S_IMODE(os.stat(path).st_mode) != mode:
            os.chmod(path, mode)
    except FileNotFoundError:
        pass
