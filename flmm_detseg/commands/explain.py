"""Shows where an LMM looked while it wrote each word of its answer: a page to point at, made without training.

flmm-detseg explain cat.jpg --lmm Qwen/Qwen3-VL-2B-Instruct --question "what is on the mat?" --out page.html

With --caption the model reads that text as its own answer; --phrase picks parts of the text instead of single words.

flmm-detseg explain cat.jpg --features CONFIG --checkpoint FILE --caption "a cat" --phrase "a cat" --out page.html

With --features the page shows what the heads of a trained model read: maps of the vision tower and feature pyramids as
colours (their first three principal components), what gates take of each layer for each task, and the attention heads
of each phrase.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from flmm_detseg.commands.chosen_model import add_prompt_template_argument
from flmm_detseg.utils.cli import add_lmm_argument, refuse_unread
from flmm_detseg.utils.configs import TINY_LMM
from flmm_detseg.utils.outputs import refuse_overwrite
from flmm_detseg.utils.paths import image_file
from flmm_detseg.utils.whole_files import write_text

_LONGEST = 128


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("image", help="image file")
    parser.add_argument(
        "--lmm",
        help=f"folder in hub layout, or hub name, of a model of any supported family; default: {TINY_LMM}",
    )  # fmt: skip
    parser.add_argument(
        "--features", metavar="CONFIG", help="show what the heads of this config's model read"
    )
    parser.add_argument(
        "--checkpoint", help="with --features: what training wrote; default: load_from of the config"
    )
    parser.add_argument("--untrained", action="store_true", help="with --features: accept random heads")
    add_lmm_argument(parser)
    text = parser.add_mutually_exclusive_group()
    text.add_argument("--question", help="what the model answers; default: it describes the image")
    text.add_argument("--caption", help="text that the model reads as its own answer")
    parser.add_argument("--prompt", help="with --caption: the question before it")
    parser.add_argument(
        "--phrase",
        action="append",
        default=[],
        help="with --caption: part of it; repeatable; default: every word",
    )
    parser.add_argument("--out", type=Path, required=True, help="page to write (.html)")
    parser.add_argument(
        "--layers", type=int, nargs="+", help="decoder layers to read; default: all that see the image"
    )
    parser.add_argument("--max-new-tokens", type=int, help="longest answer (default 128)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16", "float16"), help="default: bfloat16 on a GPU"
    )
    add_prompt_template_argument(parser)
    parser.add_argument("--device", help='for example "cuda:0"; default: the GPU when there is one')


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Asks or reads, and writes the page.

    Args:
        arguments: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line: the page, the text, its pieces, the layers, seconds for reading.

    Raises:
        FlmmError: Whatever the user can mend.
    """
    import time

    from flmm_detseg.errors import ConfigError

    if arguments.caption is None and (arguments.phrase or arguments.prompt is not None):
        raise ConfigError("--phrase and --prompt belong to --caption; an answer is shown word by word")
    if arguments.caption is not None:
        refuse_unread(
            {"--max-new-tokens": arguments.max_new_tokens},
            "with --caption there is no answer; leave one of them out",
        )
    longest = _LONGEST if arguments.max_new_tokens is None else arguments.max_new_tokens
    if longest < 1:
        raise ConfigError(f"--max-new-tokens is {longest}; at least 1 is needed")
    file = image_file(arguments.image, "IMAGE")
    refuse_overwrite(arguments.out, [arguments.image, arguments.checkpoint])
    if arguments.features is not None:
        return _features(arguments, file, longest)
    if arguments.checkpoint is not None or arguments.untrained or arguments.allow_other_lmm:
        raise ConfigError("--checkpoint, --untrained and --allow-other-lmm belong to --features CONFIG")
    # Late, so that a wrong argument is reported before torch is loaded.
    from flmm_detseg.datasets.images import read_image
    from flmm_detseg.inference.attention_reader import AttentionReader
    from flmm_detseg.visualization.attention_page import attention_page

    image = read_image(file, "IMAGE")  # before the model, which may take minutes
    lmm = arguments.lmm or TINY_LMM
    reader = AttentionReader.from_pretrained(
        lmm,
        dtype=arguments.dtype,
        device=arguments.device,
        layers=arguments.layers,
        prompt_template=arguments.prompt_template,
    )
    start = time.perf_counter()
    if arguments.caption is None:
        maps = reader.answer(image, arguments.question, max_new_tokens=longest)
        title = arguments.question or "Description"
    else:
        maps = reader.read(image, arguments.caption, arguments.phrase or None, prompt=arguments.prompt)
        title = arguments.prompt or "Caption"
    if len(maps) == 0:
        raise ConfigError("the model answered nothing: there is no word to show; ask another question")
    seconds = time.perf_counter() - start
    page = attention_page(
        maps.image,
        maps.text,
        maps.spans,
        maps.by_layer(),
        maps.layers,
        title=title,
        notes=[f"{lmm}: where each word looked; mean of {len(maps.heads)} heads of a layer."],
    )
    arguments.out.parent.mkdir(parents=True, exist_ok=True)
    write_text(arguments.out, page)
    return {
        "page": str(arguments.out),
        "text": maps.text,
        "pieces": len(maps),
        "layers": len(maps.layers),
        "heads": len(maps.heads),
        "grid": list(maps.size),
        "reading_seconds": round(seconds, 3),
    }


def _features(arguments: argparse.Namespace, file: Path, longest: int) -> dict[str, Any]:
    """The page of a trained model's features."""
    from flmm_detseg.errors import ConfigError
    from flmm_detseg.utils.configs import config_file

    refuse_unread(
        {
            "--lmm": arguments.lmm,
            "--layers": arguments.layers,
            "--dtype": arguments.dtype,
            "--prompt-template": arguments.prompt_template,
        },
        "the config of --features says it; leave one of them out",
    )
    if arguments.caption is not None and not arguments.phrase:
        raise ConfigError(
            "--features with --caption needs the phrases whose attention is shown: --phrase TEXT"
        )
    refuse_overwrite(arguments.out, [config_file(arguments.features)])
    from flmm_detseg.datasets.images import read_image
    from flmm_detseg.inference.feature_page import feature_page
    from flmm_detseg.models.from_config import model_from_config

    image = read_image(file, "IMAGE")
    model = model_from_config(
        arguments.features,
        arguments.checkpoint,
        untrained=arguments.untrained,
        device=arguments.device,
        allow_other_lmm=arguments.allow_other_lmm,
    )
    return feature_page(
        model,
        image,
        arguments.out,
        title=f"{arguments.features}: features of {file.name}",
        caption=arguments.caption,
        phrases=arguments.phrase or None,
        question=arguments.question,
        prompt=arguments.prompt,
        max_new_tokens=longest,
    )
