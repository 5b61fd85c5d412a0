"""Answers questions about a stream of images, computing no background twice (docs/background_cache.md).

flmm-detseg stream CONFIG --checkpoint FILE --images FRAMES --question "what time is it ?"

A line per request says what served it and how long that took; then come the cache's statistics. --compare asks
everything again without the cache and fails when an answer differs.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tqdm import tqdm

from flmm_detseg.errors import DataError, RunError
from flmm_detseg.utils.cli import add_lmm_argument, refuse_unread
from flmm_detseg.utils.configs import config_file
from flmm_detseg.utils.outputs import refuse_folder_of_inputs, refuse_overwrite
from flmm_detseg.utils.paths import find, places
from flmm_detseg.utils.whole_files import dump_json

if TYPE_CHECKING:
    from flmm_detseg.cache import Answer, BackgroundCache, RegionSource, StreamSession
    from flmm_detseg.inference.stream_grounding import StreamGrounding

_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp")


@dataclass(frozen=True)
class Request:
    """One question about one image.

    Attributes:
        image: File.
        text: The question.
        session: Name of its stream; None for the command's own.
        boxes: Objects ``[[x0, y0, x1, y1], ...]`` in the image's pixels, where they are known.
    """

    image: Path
    text: str
    session: str | None = None
    boxes: tuple[tuple[float, ...], ...] | None = None


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("config", help="config of the model, e.g. configs/cache/tiny_stream_screens.py")
    parser.add_argument("--checkpoint", help="what training wrote; default: load_from of the config")
    parser.add_argument(
        "--untrained", action="store_true", help="accept a model that was never trained on groups"
    )
    add_lmm_argument(parser)
    parser.add_argument(
        "--images", nargs="+", type=Path, required=True, metavar="DIR_OR_FILES",
        help="image files in their order, or a folder of them (in the order of their names)",
    )  # fmt: skip
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--question", help="asked about every image")
    asked.add_argument(
        "--questions", type=Path, metavar="FILE",
        help='JSON lines {"image", "text"}, optionally "session" and "boxes"; images are looked for in --images DIR',
    )  # fmt: skip
    parser.add_argument("--session", help="name of the stream; default: a new one")
    parser.add_argument(
        "--static", action="store_true", help="the background repeats (fixed camera): store it at first sight"
    )
    parser.add_argument(
        "--cache",
        choices=("on", "exact", "off"),
        default="on",
        help="exact: no nearly equal backgrounds (L3)",
    )
    parser.add_argument("--tenant", help="owner of the images; nothing is shared with others")
    parser.add_argument(
        "--compare", action="store_true",
        help="ask everything again without the cache, with the same groups; another answer is a failure",
    )  # fmt: skip
    parser.add_argument(
        "--prometheus", type=Path, metavar="FILE", help="write the cache's figures here at the end"
    )
    parser.add_argument(
        "--ground", type=Path, metavar="DIR",
        help="ground the answers' noun phrases: a picture per answer and all masks (masks.json) go here",
    )  # fmt: skip
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument(
        "--cfg-options", nargs="+", default=[], metavar="KEY=VALUE",
        help="overrides of config values, e.g. stream_cache.folder=CACHE",
    )  # fmt: skip
    parser.add_argument("--device", help='for example "cuda:0"; default: the GPU when there is one')


def run(arguments: argparse.Namespace) -> dict[str, Any]:
    """Answers the stream; prints a line per request, the loaded parts and the cache's statistics.

    Args:
        arguments: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line: requests, levels, hit rate, median milliseconds, and what ``--ground`` and
        ``--compare`` found.

    Raises:
        FlmmError: Whatever the user can mend; :class:`RunError` when an answer differs (the figures are printed then).
    """
    if arguments.cache == "off":
        names = ("static", "session", "tenant", "compare", "prometheus")
        refuse_unread(
            {f"--{name}": getattr(arguments, name) for name in names},
            "it is about the cache; leave out --cache off",
        )
    config = config_file(arguments.config)
    requests = read_requests(arguments.images, arguments.question, arguments.questions)
    if arguments.ground is not None:
        refuse_folder_of_inputs(arguments.ground, [request.image for request in requests])
    if arguments.prometheus is not None:
        refuse_overwrite(arguments.prometheus, [config, arguments.checkpoint, arguments.questions])
    # Late, so that a wrong argument is reported before torch is loaded.
    from flmm_detseg.cache.cached_lmm import CachedLMM
    from flmm_detseg.cache.own_tensors import format_part_reports, part_reports
    from flmm_detseg.engine.checks.config_check import parse_overrides
    from flmm_detseg.inference.stream_grounding import StreamGrounding
    from flmm_detseg.inference.streaming import stream_from_config
    from flmm_detseg.models.from_config import read_config

    config = read_config(arguments.config)
    config.merge_from_dict(parse_overrides(arguments.cfg_options, config, also=("stream_cache",)))
    first, model = stream_from_config(
        config,
        arguments.checkpoint,
        untrained=arguments.untrained,
        device=arguments.device,
        tenant=arguments.tenant or "default",
        session_id=arguments.session,
        static=arguments.static,
        allow_other_lmm=arguments.allow_other_lmm,
    )
    print("parts that differ from the unmodified LLaVA:")
    lmm = model.lmm
    assert isinstance(lmm, CachedLMM)  # of a session
    source: Any = lmm.partitioner.source
    print(format_part_reports(part_reports(lmm)))
    if any(request.boxes for request in requests) and not _reads_boxes(source):
        print(
            f"the `boxes` of {arguments.questions} are not used: groups come from "
            f"{type(source).__name__} (boxes need GivenRegions(kind='meta') in the config)"
        )
    assert first.cache is not None
    sessions = _Sessions(first, arguments.static)
    grounding = None if arguments.ground is None else StreamGrounding(model, arguments.ground)
    with _closing(first.cache, arguments.prometheus):
        answers = _ask(sessions, requests, arguments.cache, arguments.max_new_tokens, grounding)
        if arguments.cache != "off":
            print(first.cache.stats_table())
        figures = _figures(answers)
        if grounding is not None:
            figures |= grounding.write()
        if arguments.compare:
            figures |= _compare(sessions, requests, answers, arguments.max_new_tokens)
    if figures.get("different"):
        print(dump_json(figures), flush=True)
        raise RunError(
            f"{figures['different']} of {figures['compared']} answers differ from those without the cache "
            f"(first: {figures['first_different']}); do not use this cache, and report it"
        )
    return figures


def _reads_boxes(source: RegionSource) -> bool:
    """Whether boxes that come with an image can reach the groups."""
    from flmm_detseg.cache import GivenRegions, UnitedRegions

    if isinstance(source, UnitedRegions):
        return any(map(_reads_boxes, source.sources))
    if isinstance(source, GivenRegions):
        return source.kind == "meta" or (source.otherwise is not None and _reads_boxes(source.otherwise))
    # A source of the user's own may read what it likes.
    return not type(source).__module__.startswith("flmm_detseg.")


def read_requests(images: Sequence[Path], question: str | None, questions: Path | None) -> list[Request]:
    """What to ask, in order.

    Args:
        images: Files, or one folder.
        question: Asked about every image.
        questions: JSON lines; names in them count from the folder.

    Returns:
        A request per image, or per line of the file.

    Raises:
        DataError: No image, a file that does not exist, or a line that cannot be used; names file and line.
    """
    images = [find(path) for path in images]
    if missing := [str(path) for path in images if not path.exists()]:
        raise DataError(f"--images: {', '.join(missing)} not found ({places(missing[0])}); check the path")
    if questions is not None:
        if len(images) != 1 or not images[0].is_dir():
            raise DataError("--questions names its images itself: give --images the one folder they are in")
        return _read_lines(questions, images[0])
    files = [file for path in images for file in _files(path)]
    if not files:
        raise DataError(f"{', '.join(map(str, images))} holds no image ({', '.join(_SUFFIXES)})")
    assert question is not None
    return [Request(file, question) for file in files]


def _files(path: Path) -> list[Path]:
    if not path.is_dir():
        return [path]
    return sorted(file for file in path.iterdir() if file.suffix.lower() in _SUFFIXES)


def _read_lines(path: Path, folder: Path) -> list[Request]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"--questions {path} cannot be read: {error}") from error
    found = [
        _read_line(line, f"{path}, line {number}", folder)
        for number, line in enumerate(lines, 1)
        if line.strip()
    ]
    if not found:
        raise DataError(
            f'{path} holds no questions; write lines like {{"image": "1.png", "text": "what time is it ?"}}'
        )
    return found


def _read_line(line: str, where: str, folder: Path) -> Request:
    try:
        entry = json.loads(line)
    except ValueError as error:
        raise DataError(f"{where}: no JSON object ({error}); write one object a line") from error
    if not isinstance(entry, dict):
        raise DataError(f"{where}: a JSON object is wanted, got {type(entry).__name__}")
    for key in ("image", "text"):
        if not isinstance(entry.get(key), str) or not entry[key].strip():
            raise DataError(f"{where}: `{key}` is missing or no text; every line needs image and text")
    image = folder / entry["image"]
    if not image.is_file():
        raise DataError(f"{where}: image {image} not found; names count from --images")
    boxes = entry.get("boxes")
    try:
        boxes = None if boxes is None else tuple(tuple(float(x) for x in box) for box in boxes)
    except (TypeError, ValueError) as error:
        raise DataError(f"{where}: `boxes` is no list of boxes ({error})") from error
    if boxes is not None and any(len(box) != 4 for box in boxes):
        raise DataError(f"{where}: every box of `boxes` has four numbers, x0 y0 x1 y1")
    session = entry.get("session")
    return Request(image, entry["text"], None if session is None else str(session), boxes)


class _Sessions:
    """A session per stream, all on one model and one cache."""

    def __init__(self, first: StreamSession, static: bool) -> None:
        self._first, self._static = first, static
        self._others: dict[str, StreamSession] = {}

    def ask(self, request: Request, **arguments: Any) -> Answer:
        """Asks in the request's stream."""
        from flmm_detseg.datasets.images import load_image

        meta = {} if request.boxes is None else {"objects_xyxy": [list(box) for box in request.boxes]}
        image = load_image(request.image, str(request.image))
        return self._of(request.session).ask(image, request.text, meta=meta, **arguments)

    def _of(self, name: str | None) -> StreamSession:
        from flmm_detseg.cache import StreamSession

        if name is None:
            return self._first
        if name not in self._others:
            session = StreamSession(
                self._first.model, self._first.cache, tenant=self._first.tenant, session_id=name
            )
            if self._static:
                session.declare_static()
            self._others[name] = session
        return self._others[name]


@contextmanager
def _closing(cache: BackgroundCache, prometheus: Path | None) -> Iterator[None]:
    """On every exit, writes the figures and flushes what waits for the disk."""
    try:
        yield
    finally:
        if prometheus is not None:
            prometheus.parent.mkdir(parents=True, exist_ok=True)
            part = prometheus.with_name(prometheus.name + ".part")
            part.write_text(cache.prometheus(), encoding="utf-8")
            os.replace(part, prometheus)
        cache.close()


def _ask(
    sessions: _Sessions,
    requests: Sequence[Request],
    cache: str,
    max_new_tokens: int,
    grounding: StreamGrounding | None = None,
) -> list[Answer]:
    alone = len(requests) == 1
    capture = None if grounding is None else grounding.capture
    on_text: Callable[[str], None] | None = (
        (lambda piece: print(piece, end="", flush=True)) if alone else None
    )
    answers: list[Answer] = []
    with tqdm(requests, desc="stream", unit="question", disable=alone) as bar:
        for request in bar:
            found = sessions.ask(
                request, cache=cache, capture=capture, max_new_tokens=max_new_tokens, on_text=on_text
            )
            if alone:
                print()
            spent = found.milliseconds
            tqdm.write(
                f"{request.image.name}  {found.level:<4} {spent['first_token']:8.1f} ms to the first token, "
                f"{spent['total']:8.1f} in all  {request.text} -> {found.text}"
            )
            if grounding is not None:
                grounding.add(request.image, request.text, found.generation)
                # The rows of all answers of a stream would fill the memory.
                found = replace(found, generation=None)
            answers.append(found)
    return answers


def _compare(
    sessions: _Sessions, requests: Sequence[Request], answers: Sequence[Answer], max_new_tokens: int
) -> dict[str, Any]:
    """Asks again without the cache. Approximate answers (L3) may differ: they are counted separately."""
    exact, near = [], 0
    pairs = list(zip(requests, answers, strict=True))
    for request, found in tqdm(pairs, desc="without the cache", unit="question"):
        cold = sessions.ask(request, cache="off", partition=found.partition, max_new_tokens=max_new_tokens)
        if cold.token_ids != found.token_ids:
            if found.level == "L3":
                near += 1
            else:
                exact.append(f"{request.image}, {request.text!r}: {found.text!r}, not {cold.text!r}")
    figures: dict[str, Any] = {"compared": len(pairs), "different": len(exact), "different_l3": near}
    return figures | ({"first_different": exact[0]} if exact else {})


def _figures(answers: Sequence[Answer]) -> dict[str, Any]:
    levels = Counter(answer.level for answer in answers)
    asked = len(answers) - levels["off"]
    times = {
        level: round(statistics.median(a.milliseconds["first_token"] for a in answers if a.level == level), 2)
        for level in levels
    }
    return {
        "requests": len(answers),
        "levels": dict(levels),
        "hit_rate": round((asked - levels["miss"]) / asked, 3) if asked else None,
        "stored": sum(answer.stored for answer in answers),
        "median_first_token_ms": times,
    }
