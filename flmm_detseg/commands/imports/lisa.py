"""Turns a published LISA model (merged, v1) into an LMM, a SAM, a head's checkpoint and a config that loads them.

flmm-detseg import lisa FOLDER --out data/models/lisa_v1_7b
"""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.utils.choices import SAM_VARIANTS


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("folder", help="merged model: config.json, tokenizer, weights with the SAM inside")
    parser.add_argument("--out", required=True, help="folder to make; its lisa.py is the config")
    parser.add_argument(
        "--vision-tower", metavar="NAME", help="folder or hub name of its CLIP tower; default: what its config names"
    )  # fmt: skip
    parser.add_argument(
        "--sam", choices=SAM_VARIANTS, default="vit_h", help="the SAM inside (default: vit_h)"
    )
    parser.add_argument(
        "--prompt-template", choices=("llava_v1", "llava_llama_2"), default="llava_v1",
        help="how it was trained to be asked (LISA's conv_type; default: llava_v1)",
    )  # fmt: skip
    parser.add_argument(
        "--dry-run", action="store_true", help="print where each tensor would go, and write nothing"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Checks the model, and stores it.

    Args:
        args: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line.

    Raises:
        FlmmError: Whatever the user can mend.
    """
    from flmm_detseg.lmms.weights.export import check_free
    from flmm_detseg.models.import_lisa import import_lisa, plan_lisa

    check_free(args.out)
    plan = plan_lisa(args.folder, args.vision_tower, args.sam)
    if args.dry_run:
        for line in plan.table():
            print(line)
        return {"dry_run": True, **plan.figures(args.prompt_template)}
    return import_lisa(plan, args.out, args.prompt_template, source=args.folder)
