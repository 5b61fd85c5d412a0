"""Measures a model on the data sets that its config names."""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.commands.evaluate import (
    answers,
    detection,
    forgetting,
    joint,
    png,
    presence,
    refcoco,
    segmentation,
)
from flmm_detseg.commands.evaluate.mask_answers import gcg, grefcoco, reason
from flmm_detseg.commands.parts import add_parts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the parts."""
    add_parts(
        parser,
        {
            "refcoco": refcoco,
            "png": png,
            "presence": presence,
            "detection": detection,
            "segmentation": segmentation,
            "answers": answers,
            "forgetting": forgetting,
            "reason": reason,
            "grefcoco": grefcoco,
            "gcg": gcg,
            "joint": joint,
        },
    )


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Runs the part that was chosen."""
    return args.run(args)
