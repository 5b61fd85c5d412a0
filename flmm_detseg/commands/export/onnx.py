"""Stores the heads as ONNX files, each compared with the model by onnxruntime, with a JSON that says how to use it.

flmm-detseg export onnx CONFIG --checkpoint FILE --out FOLDER
"""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.utils.cli import add_lmm_argument
from flmm_detseg.utils.configs import config_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("config", help="config of the model")
    parser.add_argument("--checkpoint", help="what training wrote; default: load_from of the config")
    add_lmm_argument(parser)
    parser.add_argument("--out", required=True, help="folder to make")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Writes the folder.

    Args:
        args: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line: per file its size and the largest difference from the model.

    Raises:
        FlmmError: Whatever the user can mend.
    """
    config_file(args.config)
    from flmm_detseg.models.export_onnx import export_onnx

    return export_onnx(args.config, args.checkpoint, args.out, allow_other_lmm=args.allow_other_lmm)
