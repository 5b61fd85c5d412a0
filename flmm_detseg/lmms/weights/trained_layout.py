"""What the trained parts of an LMM were made for, where neither names nor shapes of tensors show it."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from typing import Any

from mmengine.logging import print_log

from flmm_detseg.errors import CheckpointError


def layout_text(layout: Mapping[str, Any]) -> str:
    """A layout as files record it."""
    return json.dumps(layout, sort_keys=True)


def check_layout(
    layout: Mapping[str, Any] | None, recorded: str | None, source: str, *, start: bool = False
) -> None:
    """Compares a layout with the one that a file records; a file without one is accepted with a warning.

    Args:
        layout: The model's, see :attr:`~flmm_detseg.lmms.base.LMMAdapter.trained_layout`.
        recorded: The file's, of :func:`layout_text`; None: it records none.
        source: Named in messages.
        start: A run begins here, and may add parts: facts about what the file's LMM did not have are not compared.

    Raises:
        CheckpointError: Facts differ; lists them with both values.
    """
    if recorded is None:
        if layout is not None:
            print_log(
                f"{source} does not say for which layout it was trained (this model: {layout_text(layout)}); it fits "
                "only if it was the same",
                "current",
                logging.WARNING,
            )
        return
    theirs, ours = _facts(recorded, source), _facts(layout_text(layout or {}), source)
    # A part that is not there is None or 0, or has no facts.
    differences = [
        f"{name} {theirs.get(name)!r} (model: {ours.get(name)!r})"
        for name in {**theirs, **ours}
        if (theirs.get(name) or None) != (ours.get(name) or None) and (theirs.get(name) or not start)
    ]
    if differences:
        remedy = (
            "Start from a checkpoint of the model's layout, or set `model.lmm` as it was there"
            if start
            else "Use the config the checkpoint was trained with"
        )
        raise CheckpointError(
            f"{source} was trained for another layout than the model's: {', '.join(differences)}. {remedy}."
        )


def _facts(text: str, source: str) -> dict[str, Any]:
    """A layout's facts; settings of a part are called ``PART.SETTING``."""
    try:
        layout = dict(json.loads(text))
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{source} is damaged: it records {text!r} as a layout") from error
    facts: dict[str, Any] = {}
    for name, value in layout.items():
        settings = value.items() if isinstance(value, dict) else ()
        facts.update({f"{name}.{key}": item for key, item in settings} or {name: value})
    return facts
