"""Stores what was learned: the heads, or the adapted LMM."""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.commands.export import domain, heads, lmm, lora, pretrained
from flmm_detseg.commands.parts import add_parts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the parts."""
    add_parts(parser, {"domain": domain, "heads": heads, "lmm": lmm, "lora": lora, "pretrained": pretrained})


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the part that was chosen."""
    return args.run(args)
