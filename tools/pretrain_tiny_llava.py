"""Pretrains the tiny LLaVA on TinyWorld and stores it in hub layout; prints its figures as one JSON line."""

from __future__ import annotations

import argparse
from dataclasses import fields

from flmm_detseg.pretrain.settings import LlavaTrainSettings
from flmm_detseg.utils.cli import run_tool

HELP = {
    "minutes": "length of the run in minutes of training (evaluation comes on top)",
    "warmup_minutes": "minutes of patch-label warm-up of the vision tower",
    "threads": "single-threaded processes that share the batch",
    "reason": "learn the words of the reasoning set too, from facts, presence and queries answered in words",
    "resume": "continue from the state file in --work-dir",
    "stream_share": "share of the images that are frames of streams (screens, cameras, slides, chats)",
    "start": "hub-layout folder to start from instead of random weights",
    "status_file": "text file that gets a line per export",
}


def main() -> dict[str, object]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", dest="out_dir", default="data/models/tiny_llava", help="hub-layout folder")
    parser.add_argument("--work-dir", default="work_dirs/tiny_llava", help="state, log and scene cache")
    for field in fields(LlavaTrainSettings):
        if field.name in ("out_dir", "work_dir", "sizes"):
            continue
        flag = f"--{field.name.replace('_', '-')}"
        if field.name in ("reason", "resume"):
            parser.add_argument(flag, action="store_true", help=HELP[field.name])
        elif field.name == "minutes":
            parser.add_argument(flag, type=float, default=75.0, help=HELP["minutes"])
        else:
            kind = type(field.default)
            parser.add_argument(flag, type=kind, default=field.default, help=HELP.get(field.name))
    parser.add_argument("--report-only", action="store_true", help="score a finished run and write its card")
    parser.add_argument(
        "--history", default="", help="sentence for the card, such as what a resumed run was before"
    )
    args = vars(parser.parse_args())

    from flmm_detseg.pretrain.model_card import report_tiny_llava
    from flmm_detseg.pretrain.train_llava import train_tiny_llava

    history = args.pop("history")
    if not args.pop("report_only"):
        train_tiny_llava(LlavaTrainSettings(**args))
    return report_tiny_llava(args["out_dir"], args["work_dir"], history)


if __name__ == "__main__":
    run_tool(main)
