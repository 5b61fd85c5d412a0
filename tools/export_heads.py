"""Stores what a training learned without the state of the training: a file to use and to pass on.

python tools/export_heads.py CONFIG --checkpoint work_dirs/NAME/iter_N.pth --out heads.pth
"""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.utils.cli import add_lmm_argument, run_tool


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("config", help="config of the model")
    parser.add_argument("--checkpoint", required=True, help="what training wrote")
    add_lmm_argument(parser)
    parser.add_argument("--out", required=True, help="file to write")
    args = parser.parse_args()

    from flmm_detseg.models.export_heads import export_heads

    return export_heads(args.config, args.checkpoint, args.out, allow_other_lmm=args.allow_other_lmm)


if __name__ == "__main__":
    run_tool(main)
