"""Checks every key and shape of a published F-LMM checkpoint (file or DeepSpeed folder) and stores it in our form."""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.utils.cli import run_tool


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("source", help="plain file or DeepSpeed folder (iter_N.pth/)")
    parser.add_argument("config", help="config it belongs to")
    parser.add_argument("--out", required=True, help="file to write")
    parser.add_argument(
        "--lmm-config",
        help="config.json of the LMM, or its folder (default: where the config's `pretrained` points)",
    )
    args = parser.parse_args()

    from flmm_detseg.models.shapes import import_flmm_checkpoint
    from flmm_detseg.utils.outputs import refuse_overwrite

    refuse_overwrite(args.out, [args.source, args.config, args.lmm_config])
    return import_flmm_checkpoint(args.source, args.config, args.out, args.lmm_config)


if __name__ == "__main__":
    run_tool(main)
