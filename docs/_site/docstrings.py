"""What docstrings write and the site's renderer knows otherwise: roles of Sphinx, and `Example:` with a session."""

from __future__ import annotations

import re
from typing import Any

import griffe

_ROLE = re.compile(r":(?:meth|class|func|data|attr|mod):`~?([^`]+)`")


class PlainDocstrings(griffe.Extension):
    """Makes roles plain code, and a section `Example:` one of `Examples:`, whose sessions are highlighted."""

    def on_object(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Changes an object's docstring before it is parsed."""
        if obj.docstring is not None:
            text = _ROLE.sub(lambda found: f"`{found[1].rpartition('flmm_detseg.')[2]}`", obj.docstring.value)
            obj.docstring.value = re.sub(r"^( *)Example:$", r"\1Examples:", text, flags=re.MULTILINE)
