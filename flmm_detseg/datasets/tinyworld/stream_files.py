"""TinyWorld's streams as files: frames, and questions with the boxes of what changes, one JSON object a line.

Read by :class:`~flmm_detseg.datasets.QuestionDataset`; what the background cache is trained and evaluated on.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from flmm_detseg.datasets.tinyworld.scene import scene_rng
from flmm_detseg.datasets.tinyworld.stream_questions import pick_question
from flmm_detseg.datasets.tinyworld.stream_spec import StreamSpec
from flmm_detseg.datasets.tinyworld.streams import CLOCK_QUESTION, SCORE_QUESTION, StreamItem, make_stream
from flmm_detseg.errors import ConfigError
from flmm_detseg.utils.whole_files import new_folder

MANIFEST = "streams.json"
# The chat that scrolls has no background: nothing of it can be cached, and all of it is one group.
STREAM_FILE_KINDS = ("screen", "camera", "slides")
# Encodings of the frames by split: training sees PNG and JPEG, evaluation PNG.
_ENCODINGS = {"train": "mixed", "val": "png"}
_TEXT_CATEGORIES = {CLOCK_QUESTION: "clock", SCORE_QUESTION: "score"}
_CHOICE = 9


def write_streams(out: Path, spec: StreamSpec, progress: bool = True) -> dict[str, Any]:
    """Writes ``train.jsonl``, ``val.jsonl`` and their frames.

    Args:
        out: Folder to write; new, empty, or holding these very streams (then nothing is done).
        spec: How many, and the seed.
        progress: Show a progress bar.

    Returns:
        The specification, the number of frames and of questions by split and category, and ``"written"``.

    Raises:
        ConfigError: The folder holds something else.
    """
    manifest = out / MANIFEST
    if manifest.is_file():
        found = json.loads(manifest.read_text())
        if found.get("spec") != asdict(spec):
            raise ConfigError(
                f"{out} holds other streams ({found.get('spec')}); remove it or name another --out"
            )
        return {**found, "written": False}
    if out.exists() and any(out.iterdir()):
        raise ConfigError(
            f"{out} is not empty and holds no finished streams (no {MANIFEST}); remove it first"
        )
    with new_folder(out) as folder:
        facts = _write_streams(folder, spec, progress)
    return {**facts, "written": True}


def _write_streams(out: Path, spec: StreamSpec, progress: bool) -> dict[str, Any]:
    facts: dict[str, Any] = {"spec": asdict(spec)}
    for split, num_streams in (("train", spec.train_streams), ("val", spec.val_streams)):
        lines, frames = [], 0
        jobs = [(kind, index) for index in range(num_streams) for kind in STREAM_FILE_KINDS]
        for kind, index in tqdm(jobs, desc=f"streams, {split}", unit="stream", disable=not progress):
            items = make_stream(
                kind, spec.seed, index, spec.num_frames, encoding=_ENCODINGS[split], split=split
            )
            count = spec.train_questions if split == "train" else spec.num_questions
            rng = scene_rng(spec.seed, index, split, _CHOICE + 10 * STREAM_FILE_KINDS.index(kind))
            folder = f"{split}/{kind}_{index:04d}"
            (out / folder).mkdir(parents=True)
            for item in items:
                name = f"{folder}/{item.frame:03d}.png"
                Image.fromarray(item.image).save(out / name)
                lines += [
                    {"question_id": f"{name}#{number}", "image": name, **line}
                    for number, line in enumerate(_lines(item, rng, count))
                ]
            frames += len(items)
        (out / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        facts[split] = {
            "frames": frames, "questions": dict(sorted(Counter(line["category"] for line in lines).items()))
        }  # fmt: skip
    # Last: a folder without it was not finished.
    (out / MANIFEST).write_text(json.dumps(facts, indent=1))
    return facts


def _lines(item: StreamItem, rng: np.random.Generator, count: int) -> Iterator[dict[str, Any]]:
    """Questions of a frame: those about its texts, then others, two of five across groups."""
    texts = [question for question in item.questions if question[0] in _TEXT_CATEGORIES]
    others = [question for question in item.questions if question not in texts]
    chosen = texts[:count]
    while others and len(chosen) < count:
        chosen.append(pick_question(others, rng))
        others.remove(chosen[-1])
    for question, answer, group in chosen:
        yield {
            "text": question,
            "answer": answer,
            "category": _TEXT_CATEGORIES.get(question, group),
            "session": item.stream,
            "boxes": [list(map(int, box)) for box in item.objects_xyxy],
        }
