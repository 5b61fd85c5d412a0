"""Faults of the machine in one sentence each: what stopped a program, and what to do before running it again."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator

_AGAIN = "What was finished is whole: the same command again (training: with --resume) goes on from it"
_ELSEWHERE = "Name a folder that you may write (--work-dir, --out)"
_SHARED_MEMORY = (
    "the memory that data workers share (/dev/shm) is full: enlarge it (docker: --shm-size), or read without workers "
    f"(train_dataloader.num_workers=0, train_dataloader.persistent_workers=False). {_AGAIN}"
)
_LOCALE = (
    "the locale has no such letters: set PYTHONUTF8=1 or LANG=C.UTF-8, or use names of plain ASCII letters"
)
_BY_NUMBER = {
    errno.ENOSPC: f"the disk is full: make room. {_AGAIN}",
    errno.EDQUOT: f"your quota on this disk is used up: make room. {_AGAIN}",
    errno.EFBIG: f"the file would be larger than is allowed (ulimit -f, file system). {_AGAIN}",
    errno.EROFS: f"the file system is read-only. {_ELSEWHERE}",
    errno.EACCES: f"permission denied. {_ELSEWHERE}, or give yourself the right",
    errno.EPERM: f"the operation is not permitted. {_ELSEWHERE}, or give yourself the right",
    errno.EMFILE: "too many open files: raise the limit (ulimit -n), or use fewer workers",
    errno.ENFILE: "too many open files on this machine: close programs, or use fewer workers",
    errno.ENOMEM: "not enough memory: use a smaller batch or fewer workers",
    errno.EIO: f"the disk reports an error in reading or writing: check it (dmesg). {_AGAIN}",
    errno.ESTALE: f"the network file system lost the file. {_AGAIN}",
    errno.ENAMETOOLONG: "a file name is too long for this file system: choose shorter folders",
}
# Messages of libraries that do not pass the error number on.
_BY_TEXT = (
    (r"/torch_\d+|out of shared memory|Bus error", _SHARED_MEMORY),
    (r"No space left on device|disk is full|StorageFull", _BY_NUMBER[errno.ENOSPC]),
    (r"Disk quota exceeded", _BY_NUMBER[errno.EDQUOT]),
    (r"Read-only file system", _BY_NUMBER[errno.EROFS]),
    (r"can't allocate memory|Cannot allocate memory", _BY_NUMBER[errno.ENOMEM]),
    (r"CUDA out of memory", "the GPU's memory is full: use a smaller batch, or free it from other programs"),
)
# Of safetensors and sqlite3, which are not imported for their names.
_OF_LIBRARIES = ("SafetensorError", "OperationalError")
_NUMBER = re.compile(r"\[Errno (\d+)\]")
# How torch repeats an error of a data worker: its traceback as text, the error itself in the last lines.
_OF_WORKER = re.compile(r"\ACaught .*Original Traceback.*\n[\w.]+: (.*)\Z", re.DOTALL)


def explain(error: BaseException) -> str | None:
    """A sentence about a fault of the machine with its remedy; None for any other error."""
    for cause in _causes(error):
        text = _explain(cause)
        if text is not None:
            return text
    return None


def interrupted(error: BaseException) -> bool:
    """Whether an error comes from Ctrl-C, also where a library made another one of it (yapf: a SyntaxError)."""
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        cause = waiting.pop()
        if cause is None or id(cause) in seen:
            continue
        if isinstance(cause, KeyboardInterrupt):
            return True
        seen.add(id(cause))
        waiting += [cause.__cause__, cause.__context__]
    return False


def last_words(error: BaseException) -> str:
    """The message of an error; of one from a data worker without the worker's traceback."""
    text = str(error)
    found = _OF_WORKER.match(text)
    return found[1].strip() if found else text


def _causes(error: BaseException) -> Iterator[BaseException]:
    cause: BaseException | None = error
    for _ in range(20):
        if cause is None:
            return
        yield cause
        cause = cause.__cause__


def _explain(error: BaseException) -> str | None:
    if isinstance(error, MemoryError):
        return _BY_NUMBER[errno.ENOMEM]
    text = last_words(error)
    if isinstance(error, UnicodeError):
        return f"{text}: {_LOCALE}" if "surrogates" in text or "ascii" in text else None
    if not isinstance(error, (OSError, RuntimeError)) and type(error).__name__ not in _OF_LIBRARIES:
        return None
    shown = text.splitlines()[0] if text else type(error).__name__
    number = getattr(error, "errno", None) or (int(found[1]) if (found := _NUMBER.search(text)) else None)
    if re.search(_BY_TEXT[0][0], text):
        return f"{shown}: {_SHARED_MEMORY}"
    if isinstance(number, int) and number in _BY_NUMBER:
        return f"{shown}: {_BY_NUMBER[number]}"
    return next((f"{shown}: {remedy}" for pattern, remedy in _BY_TEXT if re.search(pattern, text)), None)
