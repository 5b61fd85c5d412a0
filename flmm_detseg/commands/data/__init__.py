"""Checks, converts and makes data sets."""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.commands.data import check, ocrvqa, pope, presence, scienceqa, streams, textvqa, tinyworld, voc, vqav2
from flmm_detseg.commands.parts import add_parts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the parts."""
    add_parts(
        parser,
        {
            "check": check,
            "voc": voc,
            "vqav2": vqav2,
            "textvqa": textvqa,
            "ocrvqa": ocrvqa,
            "scienceqa": scienceqa,
            "pope": pope,
            "tinyworld": tinyworld,
            "streams": streams,
            "presence": presence,
        },
    )


def run(args: argparse.Namespace) -> dict[str, Any] | None:
    """Runs the part that was chosen."""
    return args.run(args)
