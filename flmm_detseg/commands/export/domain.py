"""Learns which pictures a model knows from those it was trained on, so that it warns of others.

flmm-detseg export domain data/tinyworld/coco/train2017 --beside work_dirs/NAME/iter_N.pth --source "TinyWorld"

The file lies beside the checkpoint, is read with it, and goes where the model goes (`export pretrained`).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flmm_detseg.errors import CheckpointError
from flmm_detseg.utils.hub import MODEL_FILE
from flmm_detseg.utils.paths import find, places


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("images", nargs="+", help="folders with pictures of the training")
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument(
        "--beside", metavar="CHECKPOINT", help="what was trained on them; the file goes beside it"
    )
    where.add_argument("--out", help="file to write, for `export pretrained --domain`")
    parser.add_argument("--source", help="what the pictures are, for people (default: the folders' names)")
    parser.add_argument(
        "--max-images", type=int, default=2000, help="of more, so many are read (default 2000)"
    )
    parser.add_argument(
        "--false-alarms",
        type=float,
        default=0.0025,
        help="share of such pictures that may be taken for others (default 0.0025)",
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Fits and writes.

    Args:
        args: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line.

    Raises:
        FlmmError: Whatever the user can mend.
    """
    if args.beside is not None and not find(args.beside).exists():
        raise CheckpointError(f"checkpoint {args.beside} does not exist ({places(args.beside)})")
    if args.beside is not None and (find(args.beside).parent / MODEL_FILE).is_file():
        raise CheckpointError(
            f"--beside {args.beside} is in the folder of a stored model, which takes no further file: write it "
            "elsewhere (--out) and store the model anew (flmm-detseg export pretrained ... --domain FILE)"
        )
    from flmm_detseg.models.domain import DOMAIN_FILE
    from flmm_detseg.models.fit_domain import fit_domain

    out = Path(args.out) if args.out is not None else find(args.beside).parent / DOMAIN_FILE
    return fit_domain(
        args.images,
        out,
        source=args.source,
        max_pictures=args.max_images,
        false_alarms=args.false_alarms,
    )
