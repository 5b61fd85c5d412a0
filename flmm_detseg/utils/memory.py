"""Memory of the process."""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from functools import cache


def give_back_memory() -> None:
    """Returns freed memory to the operating system, where the C library can (glibc); does nothing elsewhere.

    Rounds of large and small tensors leave holes in the heap that the next round does not fit into: without this, the
    resident set of many rounds is twice that of one. It takes some milliseconds.
    """
    trim = _trim()
    if trim is not None:
        trim(0)


@cache
def _trim() -> Callable[[int], int] | None:
    try:
        return ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
