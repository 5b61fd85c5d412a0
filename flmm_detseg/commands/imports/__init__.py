"""Takes over what others trained."""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.commands.imports import flmm, lisa, lora
from flmm_detseg.commands.parts import add_parts


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the parts."""
    add_parts(parser, {"flmm": flmm, "lisa": lisa, "lora": lora})


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Runs the part that was chosen."""
    return args.run(args)
