"""The repository's scripts as programs to start, from an installed package too."""

from __future__ import annotations

import sys
from pathlib import Path

from flmm_detseg.utils.paths import REPOSITORY, is_checkout

# Script in tools/ -> the command that it is an alias of.
COMMANDS = {
    "ablation_table.py": ("table",),
    "check_data.py": ("data", "check"),
    "eval_coco.py": ("evaluate", "detection"),
    "eval_forgetting.py": ("evaluate", "forgetting"),
    "eval_png.py": ("evaluate", "png"),
    "eval_reason.py": ("evaluate", "reason"),
    "eval_refcoco.py": ("evaluate", "refcoco"),
    "eval_semseg.py": ("evaluate", "segmentation"),
    "eval_vqa.py": ("evaluate", "answers"),
    "export_heads.py": ("export", "heads"),
    "ground.py": ("ground",),
    "import_flmm_checkpoint.py": ("import", "flmm"),
    "infer.py": ("infer",),
    "make_streams.py": ("data", "streams"),
    "make_tinyworld.py": ("data", "tinyworld"),
    "merge_lora.py": ("export", "lmm"),
    "print_config.py": ("show-config",),
    "pseudo_label.py": ("label",),
    "stream.py": ("stream",),
    "train.py": ("train",),
    "train_stages.py": ("stages",),
    "voc_to_coco.py": ("data", "voc"),
    "vqav2_to_jsonl.py": ("data", "vqav2"),
}


def is_script(name: str) -> bool:
    """Whether :func:`start_script` can start it."""
    return name in COMMANDS or (is_checkout() and _file(name).is_file())


def start_script(name: str) -> list[str]:
    """The beginning of the command line that runs a script with this Python.

    Args:
        name: In ``tools/``; an installed package has no such folder, there it is the same command of `flmm-detseg`.

    Returns:
        Words for :mod:`subprocess`; the script's arguments follow them.
    """
    if is_checkout():
        return [sys.executable, str(_file(name))]
    return [sys.executable, "-m", "flmm_detseg.cli", *COMMANDS[name]]


def _file(name: str) -> Path:
    return REPOSITORY / "tools" / name
