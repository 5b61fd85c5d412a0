"""Opens a page in the browser: talk about a picture, point at it, watch a stream.

flmm-detseg app
flmm-detseg app CONFIG --checkpoint FILE
flmm-detseg app --lmm Qwen/Qwen3-VL-2B-Instruct

Without a model it takes the repository's tiny one. The page is for this machine alone unless --host says otherwise;
it ends with Ctrl-C. See docs/app.md.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from flmm_detseg.commands.chosen_model import ChosenModel, add_model_arguments, choose_model
from flmm_detseg.errors import DataError
from flmm_detseg.utils.cli import (
    add_presence_argument,
    print_figures,
    refuse_unread,
    stop_children_at_sigterm,
)
from flmm_detseg.utils.configs import TINY_CONFIG, config_file, config_name
from flmm_detseg.utils.paths import find

if TYPE_CHECKING:
    from flmm_detseg.app.limits import Limits
    from flmm_detseg.app.service import About, Service, StreamMaker
    from flmm_detseg.inference.grounder import Grounder

_STREAM = "configs/cache/tiny_stream_screens.py"
_SCENE = "data/models/tiny_heads/scene.png"
# Characters of what a model says of its training.
_LONGEST = 500


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    add_model_arguments(parser)
    add_presence_argument(parser)
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
    model = _check(arguments)
    from flmm_detseg.app import require_gradio

    require_gradio()
    from flmm_detseg.app.server import bind, serve

    listening = bind(arguments.host, arguments.port)
    port = listening.getsockname()[1]
    address = _address(arguments.host, port)
    stop_children_at_sigterm()
    figures: dict[str, Any] = {"address": address}

    def ready() -> None:
        figures["seconds_to_start"] = round(time.monotonic() - start, 1)
        print_figures(figures)

    with listening:
        service = _service(arguments, model)
        serve(service, listening, ready)
    return figures | {"requests": service.requests}


def _address(host: str, port: int) -> str:
    if host in ("127.0.0.1", "::1"):
        host = "localhost"
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _check(arguments: argparse.Namespace) -> ChosenModel:
    """The model that is meant; nothing contradicts itself or is not there."""
    model = choose_model(arguments)
    if arguments.stream_checkpoint is not None and arguments.stream is None:
        raise DataError("--stream-checkpoint needs the config of its model (--stream CONFIG)")
    if arguments.stream is None and model.config != TINY_CONFIG:
        refuse_unread(
            {"--frames": arguments.frames},
            "there is no tab of streams without its model; add --stream CONFIG",
        )
    if not 0 <= arguments.port <= 65535:
        raise DataError(f"--port {arguments.port}: give 0 to 65535")
    for config in (model.config, arguments.stream):
        if config is not None:
            config_file(config)
    return model


def _service(arguments: argparse.Namespace, model: ChosenModel) -> Service:
    """What is quick first: a folder without frames, or with too many, is said before the model is loaded."""
    from flmm_detseg.app.frames import drawn_screen, frames_of_folder
    from flmm_detseg.app.limits import Limits
    from flmm_detseg.app.service import Service

    limits = Limits()
    frames = drawn_screen() if arguments.frames is None else frames_of_folder(find(arguments.frames), limits)
    if frames.note:
        print(f"--frames: {frames.note}", file=sys.stderr)
    tiny = model.config == TINY_CONFIG
    grounder = model.load()
    about = _about(arguments, model, grounder, limits, tiny=tiny)
    return Service(grounder, _stream(arguments, tiny=tiny), frames, limits, about, arguments.min_presence)


def _stream(arguments: argparse.Namespace, *, tiny: bool) -> StreamMaker | None:
    config = arguments.stream or (_STREAM if tiny else None)
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


def _lmm_name(lmm: str) -> str:
    """The name on the hub, or the last part of a folder's."""
    folder = find(lmm)
    return folder.resolve().name if folder.is_dir() else lmm


def _knows(arguments: argparse.Namespace, grounder: Grounder) -> str:
    """What the model was trained on, as far as it says so; in Markdown that nobody else's text can change."""
    from flmm_detseg.app.service import plain_markdown
    from flmm_detseg.models.trained_on import trained_on

    if arguments.lmm is not None:
        return (
            "Nothing of it was trained to point: masks are where its own attention is, and nothing warns of pictures "
            "that it does not know."
        )
    model = grounder.model
    lines = [] if model.built_from is None else trained_on(model.built_from)
    data = "; ".join(map(_without_folders, dict.fromkeys(lines)))
    said = [f"Trained on: {plain_markdown(_cut(data))}." if data else "What it was trained on is not known."]
    if model.domain is None:
        said.append("It does not say which pictures it knows, so nothing warns of others.")
    else:
        said.append(
            f"It knows pictures like these, and warns of others: {plain_markdown(_cut(model.domain.source))}."
        )
    return " ".join(said)


def _without_folders(line: str) -> str:
    """A line of :func:`~flmm_detseg.models.trained_on.trained_on`; folders of this machine are nobody's business."""
    kind, _, files = line.rpartition(": ")
    names = ", ".join(PurePosixPath(file).name for file in files.split(", "))
    return f"{kind}: {names}" if kind else names


def _cut(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]} ..."


def _about(
    arguments: argparse.Namespace, model: ChosenModel, grounder: Grounder, limits: Limits, *, tiny: bool
) -> About:
    from flmm_detseg.app.service import About
    from flmm_detseg.app.uploads import read_picture

    untrained = (
        ""
        if arguments.stream_checkpoint is not None
        else "The model here was **never trained to read in two groups**: levels and milliseconds are real, answers "
        "are those of the same model without the cache, and worse than those of the LMM as it is."
    )
    clock = "what time is it ?"
    if not tiny:
        # A folder of this machine is nobody's business.
        name = config_name(model.config or "") if arguments.lmm is None else _lmm_name(arguments.lmm)
        return About(name, _knows(arguments, grounder), stream=untrained, stream_question=clock)
    return About(
        "The repository's tiny LLaVA",
        "It knows the pictures of TinyWorld, a synthetic world, and nothing else: **on a photo it draws nonsense**. "
        "It was trained on single questions, never on several turns.",
        read_picture(find(_SCENE), limits),
        "segment the white ring and the orange ring",
        untrained,
        clock,
    )
