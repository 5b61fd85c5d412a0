"""Opens a page in the browser: talk about a picture, point at it, watch a stream.

flmm-detseg app
flmm-detseg app CONFIG --checkpoint FILE
flmm-detseg app --lmm Qwen/Qwen3-VL-2B-Instruct

Without a model it takes the repository's tiny one. The page is for this machine alone unless --host says otherwise;
it ends with Ctrl-C. See docs/app.md.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flmm_detseg.errors import DataError
from flmm_detseg.utils.cli import add_lmm_argument, print_figures, stop_children_at_sigterm
from flmm_detseg.utils.configs import TINY_CONFIG, TINY_HEADS, config_file
from flmm_detseg.utils.paths import find

if TYPE_CHECKING:
    from flmm_detseg.app.service import About, Service, StreamMaker
    from flmm_detseg.inference.grounder import Grounder

_STREAM = "configs/cache/tiny_stream_screens.py"
_SCENE = "data/models/tiny_heads/scene.png"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument(
        "model", nargs="?", metavar="CONFIG",
        help=f"config of the model; without one and without --lmm: {TINY_CONFIG}, {TINY_HEADS}",
    )  # fmt: skip
    parser.add_argument("--checkpoint", help="what training wrote; default: load_from of the config")
    parser.add_argument(
        "--lmm", metavar="ID",
        help="in a config's place: a supported LMM, folder or name on the hub, with heads chosen without training",
    )  # fmt: skip
    parser.add_argument(
        "--ranking", metavar="FILE",
        help="with --lmm: its heads as rank-heads wrote them; default: head_ranking.json in its folder, else all heads",
    )  # fmt: skip
    parser.add_argument(
        "--refiner", metavar="SAM",
        help="with --lmm: SAM file, or folder or hub name of a SAM 2.1; without one pointing outlines nothing",
    )  # fmt: skip
    add_lmm_argument(parser)
    parser.add_argument(
        "--stream", metavar="CONFIG",
        help=f"config of a model with a background cache, for the tab of streams; without any model: {_STREAM}",
    )  # fmt: skip
    parser.add_argument(
        "--stream-checkpoint", metavar="FILE",
        help="what training wrote for --stream; without it the model was never trained to read in groups",
    )  # fmt: skip
    parser.add_argument(
        "--frames",
        type=Path,
        metavar="DIR",
        help="pictures of the stream to choose from; default: a drawn screen",
    )
    parser.add_argument("--port", type=int, default=7860, help="default: 7860; 0 takes a free one")
    parser.add_argument(
        "--host", default="127.0.0.1",
        help="address to listen on; default: 127.0.0.1, this machine alone. Any other lets everybody in who reaches it",
    )  # fmt: skip
    parser.add_argument("--device", help='for example "cuda:0"; default: the GPU when there is one')


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Loads the model and serves the page until Ctrl-C.

    Args:
        arguments: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line: address, seconds until the page could be opened, requests.

    Raises:
        FlmmError: Whatever the user can mend.
    """
    start = time.monotonic()
    _check(arguments)
    from flmm_detseg.app import require_gradio

    require_gradio()
    from flmm_detseg.app.server import bind, serve

    listening = bind(arguments.host, arguments.port)
    port = listening.getsockname()[1]
    address = f"http://{'localhost' if arguments.host in ('127.0.0.1', '::1') else arguments.host}:{port}"
    stop_children_at_sigterm()
    figures: dict[str, Any] = {"address": address}

    def ready() -> None:
        figures["seconds_to_start"] = round(time.monotonic() - start, 1)
        print_figures(figures)

    with listening:
        service = _service(arguments)
        serve(service, listening, ready)
    return figures | {"requests": service.requests}


def _check(arguments: argparse.Namespace) -> None:
    """What contradicts itself, or is not there."""
    if arguments.lmm is not None and (arguments.model is not None or arguments.checkpoint is not None):
        raise DataError("--lmm is the whole model: it takes neither a config nor --checkpoint")
    if arguments.lmm is None and (arguments.ranking is not None or arguments.refiner is not None):
        raise DataError("--ranking and --refiner belong to --lmm; a config names its own")
    if arguments.checkpoint is not None and arguments.model is None:
        raise DataError(
            "--checkpoint needs the config of its model (flmm-detseg app CONFIG --checkpoint FILE)"
        )
    if arguments.stream_checkpoint is not None and arguments.stream is None:
        raise DataError("--stream-checkpoint needs the config of its model (--stream CONFIG)")
    if not 0 <= arguments.port <= 65535:
        raise DataError(f"--port {arguments.port}: give 0 to 65535")
    for config in (arguments.model, arguments.stream):
        if config is not None:
            config_file(config)


def _service(arguments: argparse.Namespace) -> Service:
    """The models, in the order of what a user waits for."""
    from flmm_detseg.app.frames import drawn_screen, frames_of_folder
    from flmm_detseg.app.limits import Limits
    from flmm_detseg.app.service import Service

    limits = Limits()
    frames = drawn_screen() if arguments.frames is None else frames_of_folder(arguments.frames, limits)
    return Service(_grounder(arguments), _stream(arguments), frames, limits, _about(arguments, limits))


def _tiny(arguments: argparse.Namespace) -> bool:
    return arguments.model is None and arguments.lmm is None


def _grounder(arguments: argparse.Namespace) -> Grounder:
    from flmm_detseg.inference.grounder import Grounder

    if arguments.lmm is not None:
        return Grounder.from_lmm(
            arguments.lmm, ranking=arguments.ranking, refiner=arguments.refiner, device=arguments.device
        )
    config, checkpoint = (
        (TINY_CONFIG, TINY_HEADS) if _tiny(arguments) else (arguments.model, arguments.checkpoint)
    )
    return Grounder.from_config(
        config, checkpoint, arguments.device, allow_other_lmm=arguments.allow_other_lmm
    )


def _stream(arguments: argparse.Namespace) -> StreamMaker | None:
    config = arguments.stream or (_STREAM if _tiny(arguments) else None)
    if config is None:
        return None

    def make() -> Any:
        from flmm_detseg.inference.streaming import stream_from_config

        session, _ = stream_from_config(
            config,
            arguments.stream_checkpoint,
            untrained=arguments.stream_checkpoint is None,
            device=arguments.device,
            allow_other_lmm=arguments.allow_other_lmm,
        )
        return session

    return make


def _about(arguments: argparse.Namespace, limits: Any) -> About:
    from flmm_detseg.app.service import About
    from flmm_detseg.app.uploads import read_picture

    untrained = (
        ""
        if arguments.stream_checkpoint is not None
        else "The model here was **never trained to read in two groups**: levels and milliseconds are real, answers "
        "are those of the same model without the cache, and worse than those of the LMM as it is."
    )
    clock = "what time is it ?"
    if not _tiny(arguments):
        return About(str(arguments.lmm or arguments.model), stream=untrained, stream_question=clock)
    return About(
        "The repository's tiny LLaVA",
        "It knows the pictures of TinyWorld, a synthetic world, and nothing else: **on a photo it draws nonsense**.",
        read_picture(find(_SCENE), limits),
        "segment the white ring and the orange ring",
        untrained,
        clock,
    )
