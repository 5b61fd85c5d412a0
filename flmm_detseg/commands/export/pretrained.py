"""Stores a trained model as a folder that a hub can hold, and that takes a config's place in every command.

flmm-detseg export pretrained CONFIG --checkpoint work_dirs/NAME/iter_N.pth --out FOLDER --licence apache-2.0
--results work_dirs/NAME/eval/refcoco.json
"""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.utils.cli import add_lmm_argument
from flmm_detseg.utils.configs import config_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("config", help="config of the model")
    parser.add_argument("--checkpoint", help="what training wrote (default: load_from of the config)")
    add_lmm_argument(parser)
    parser.add_argument("--out", required=True, help="folder to make")
    parser.add_argument("--base", help="name of the LMM on the hub, where the config names a folder")
    parser.add_argument(
        "--inside", action="store_true", help="also store the LMM's and SAM's weights that are files here"
    )
    parser.add_argument("--licence", help='of what was trained, as the hub has it, for example "apache-2.0"')
    parser.add_argument("--command", dest="trained_by", help="that trained it, for the card")
    parser.add_argument(
        "--results", nargs="+", default=[], help="files of `flmm-detseg evaluate`, for the card's scores"
    )
    parser.add_argument("--domain", help="file of `export domain` (default: the one beside the checkpoint)")


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Writes the folder.

    Args:
        args: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line.

    Raises:
        FlmmError: Whatever the user can mend.
    """
    config_file(args.config)
    from flmm_detseg.models.from_config import model_from_config
    from flmm_detseg.models.pretrained.writing import save_pretrained

    model = model_from_config(
        args.config, args.checkpoint, device="cpu", allow_other_lmm=args.allow_other_lmm
    )
    return save_pretrained(
        model,
        args.out,
        base=args.base,
        inside=args.inside,
        licence=args.licence,
        command=args.trained_by,
        results=args.results,
        domain=args.domain,
    )
