"""Finds which attention heads of an LMM point at what a phrase names, from images and phrases without masks.

flmm-detseg rank-heads --lmm Qwen/Qwen3-VL-2B-Instruct --phrases phrases.jsonl --image-dir photos --out ranking.json
flmm-detseg rank-heads tiny/frozen_tiny_llava_refcoco_png --out ranking.json

A line of the phrases is {"image": "cat.jpg", "phrase": "the cat on the mat"}. A config brings its LMM and its training
data, of whose images one phrase each is taken.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flmm_detseg.commands.chosen_model import add_prompt_template_argument
from flmm_detseg.utils.choices import RANKING_METHODS
from flmm_detseg.utils.cli import refuse_unread
from flmm_detseg.utils.configs import config_file
from flmm_detseg.utils.outputs import refuse_overwrite
from flmm_detseg.utils.whole_files import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("config", nargs="?", help="config whose LMM and training data are taken")
    parser.add_argument("--lmm", help="in place of a config: folder in hub layout, or hub name")
    parser.add_argument("--phrases", help="with --lmm: JSONL of images and phrases")
    parser.add_argument("--image-dir", help="with --lmm: folder that image names start from")
    parser.add_argument("--images", type=int, default=50, help="images to look at (default 50)")
    parser.add_argument("--method", choices=RANKING_METHODS, default=RANKING_METHODS[0])
    parser.add_argument("--out", type=Path, required=True, help="JSON to write")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), help="with --lmm")
    add_prompt_template_argument(parser)
    parser.add_argument("--device", help='for example "cuda:0"; default: the GPU when there is one')


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Ranks the heads and writes the ranking.

    Args:
        arguments: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line: the file, how many heads and phrases, the best ten, seconds.

    Raises:
        FlmmError: Whatever the user can mend.
    """
    import time

    from flmm_detseg.errors import ConfigError

    given = [arguments.lmm, arguments.phrases, arguments.image_dir]
    if (arguments.config is None) == (None in given) or (arguments.config is not None and any(given)):
        raise ConfigError("give either a config, or --lmm, --phrases and --image-dir")
    if arguments.config is not None:
        refuse_unread(
            {"--dtype": arguments.dtype, "--prompt-template": arguments.prompt_template},
            "the config says it of its LMM; it belongs to --lmm",
        )
    if arguments.images < 2:
        raise ConfigError(f"--images is {arguments.images}; at least 2 are needed, better 50")
    read = [arguments.phrases] if arguments.config is None else [config_file(arguments.config)]
    refuse_overwrite(arguments.out, read)
    # Late, so that a wrong argument is reported before torch is loaded.
    from flmm_detseg.inference.rank_heads import one_phrase_each, rank_heads

    lmm, name, records = _from_config(arguments) if arguments.lmm is None else _from_files(arguments)
    start = time.perf_counter()
    samples = one_phrase_each(records, arguments.images)
    ranking = rank_heads(lmm, samples, name, arguments.method)
    write_json(arguments.out, ranking.to_dict())
    return {
        "ranking": str(arguments.out),
        "lmm": name,
        "method": ranking.method,
        "phrases": ranking.num_phrases,
        "heads": len(ranking.heads),
        "best": [list(pair) for pair in ranking.heads[:10]],
        "seconds": round(time.perf_counter() - start, 1),
    }


def _from_config(arguments: argparse.Namespace) -> tuple[Any, str, Any]:
    import torch

    from flmm_detseg.errors import ConfigError
    from flmm_detseg.models.build import build_lmm
    from flmm_detseg.models.from_config import read_config
    from flmm_detseg.registry import DATASETS

    config = read_config(arguments.config)
    if "train_dataloader" not in config:
        raise ConfigError(f"{arguments.config} has no `train_dataloader`: no images to rank heads on")
    settings = config.model.lmm.copy()
    # All heads are read, whatever an earlier ranking chose.
    rows = {key: value for key, value in settings.get("rows", {}).items() if key not in ("heads", "ranking")}
    settings["rows"] = rows
    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    lmm = build_lmm(settings).to(device).eval()
    records = DATASETS.build(config.train_dataloader.dataset)
    return (
        lmm,
        str(config.model.lmm.get("pretrained", arguments.config)),
        (records[i] for i in range(len(records))),
    )


def _from_files(arguments: argparse.Namespace) -> tuple[Any, str, Any]:
    from flmm_detseg.datasets.phrase_list import PhraseList
    from flmm_detseg.lmms.load_lmm import load_lmm

    records = PhraseList(arguments.phrases, arguments.image_dir)  # before the model, which may take minutes
    lmm = load_lmm(
        arguments.lmm,
        dtype=arguments.dtype,
        device=arguments.device,
        prompt_template=arguments.prompt_template,
    )
    return lmm, arguments.lmm, (records[i] for i in range(len(records)))
