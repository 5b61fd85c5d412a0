"""Suggestions for unknown names that a user wrote."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

_FEW = 16


def suggest(name: str, known: Iterable[str]) -> str:
    """End of an error message: the nearest known names, up to three; else all of them, where they are few."""
    known = list(known)
    close = difflib.get_close_matches(name, known, n=3)
    if close:
        return f"; did you mean {' or '.join(f'`{other}`' for other in close)}?"
    if len(known) <= _FEW:
        return f" (known: {', '.join(known)})"
    return f" (known are {len(known)} names, none of them like it)"
