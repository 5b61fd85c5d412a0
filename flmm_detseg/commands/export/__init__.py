"""Stores what was learned: the heads (as a checkpoint or as ONNX), or the adapted LMM."""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.commands.export import domain, heads, lmm, lora, onnx, pretrained
from flmm_detseg.commands.parts import add_parts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the parts."""
    parts = {
        "domain": domain,
        "heads": heads,
        "lmm": lmm,
        "lora": lora,
        "onnx": onnx,
        "pretrained": pretrained,
    }
    add_parts(parser, parts)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the part that was chosen."""
    return args.run(args)
