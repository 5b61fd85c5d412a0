"""Makes the control LMM: the trained tower and projector with a newly initialised language model."""

from __future__ import annotations

import argparse

from flmm_detseg.utils.cli import run_tool


def main() -> dict[str, object]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--src", default="data/models/tiny_llava", help="trained tiny LLaVA, hub layout")
    parser.add_argument("--out", required=True, help="folder of the control, hub layout")
    parser.add_argument("--seed", type=int, default=0, help="seed of the new language model")
    args = parser.parse_args()

    from flmm_detseg.pretrain.tiny_llava import make_control_lmm

    return {"out": str(make_control_lmm(args.src, args.out, args.seed)), "seed": args.seed}


if __name__ == "__main__":
    run_tool(main)
