"""Pretrains the tiny SAM on TinyWorld's masks and stores it in hub layout; prints its figures as one JSON
line."""

from __future__ import annotations

import argparse
from dataclasses import fields

from flmm_detseg.pretrain.settings import SamTrainSettings
from flmm_detseg.utils.cli import run_tool

HELP = {
    "steps": "optimizer steps (about 0.8 s each on one thread)",
    "threads": "compute threads",
    "eval_scenes": "held-out scenes of the evaluation",
    "save_every": "steps between state files",
    "resume": "continue from the state file in --work-dir",
}


def main() -> dict[str, object]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", dest="out_dir", default="data/models/tiny_sam", help="hub-layout folder")
    parser.add_argument("--work-dir", default="work_dirs/tiny_sam", help="state file and log")
    for field in fields(SamTrainSettings):
        if field.name in ("out_dir", "work_dir"):
            continue
        flag = f"--{field.name.replace('_', '-')}"
        if field.name == "resume":
            parser.add_argument(flag, action="store_true", help=HELP["resume"])
        else:
            parser.add_argument(
                flag, type=type(field.default), default=field.default, help=HELP.get(field.name)
            )
    settings = SamTrainSettings(**vars(parser.parse_args()))

    from flmm_detseg.pretrain.sam_card import write_sam_card
    from flmm_detseg.pretrain.train_sam import train_tiny_sam

    figures = train_tiny_sam(settings)
    write_sam_card(figures["settings"]["out_dir"], figures)
    return {key: figures[key] for key in ("minutes", "parameters", "iou", "random_iou")}


if __name__ == "__main__":
    run_tool(main)
