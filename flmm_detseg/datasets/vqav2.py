"""VQAv2's two published files as one JSONL for :class:`~flmm_detseg.datasets.QuestionDataset`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tqdm import tqdm

from flmm_detseg.datasets.coco_file import id_key
from flmm_detseg.datasets.files import list_of, load_json, require_keys, require_list
from flmm_detseg.datasets.image_ids import ImageIds
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.utils.values import FieldError, check_text, identifier, integer, is_number


def convert_vqav2(
    questions_file: str | Path,
    annotations_file: str | Path,
    *,
    images: ImageIds | None = None,
    image_name: str = "{:012d}.jpg",
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Joins questions and annotations.

    Args:
        questions_file: ``v2_OpenEnded_mscoco_val2014_questions.json``.
        annotations_file: ``v2_mscoco_val2014_annotations.json``.
        images: The images to keep (:func:`~flmm_detseg.datasets.image_ids.read_images`); None keeps all.
        image_name: Name of an image's file by its COCO id; ``"COCO_val2014_{:012d}.jpg"`` for the folder ``val2014``.
        progress: Show a progress bar.

    Returns:
        One entry a question, in the file's order: ``question_id``, ``image``, ``text``, ``answers`` (those of all
        people, in the file's order), ``category`` (the answer type, by which the official evaluation reports too).

    Raises:
        DataError: A file is missing or of another kind, a question has no annotation, or none is left.
        ConfigError: ``image_name`` has no place for the id.

    Source: Goyal et al., VQA v2.0, CVPR 2017 (arXiv 1612.00837); visualqa.org/download.html.
    """
    if image_name.format(1) == image_name.format(2):
        raise ConfigError(
            f"`image_name` {image_name!r} has no place for the image id; for example {{:012d}}.jpg"
        )
    questions = _entries(questions_file, "questions", ("question_id", "image_id", "question"))
    annotations = _entries(annotations_file, "annotations", ("question_id", "answers"))
    by_id: dict[int | str, dict[str, Any]] = {}
    for entry in annotations:
        number = _id(entry, "question_id", annotations_file)
        if by_id.setdefault(number, entry) is not entry:
            raise DataError(f"{annotations_file}: question {number} is annotated twice. Mend the file.")
    lines, seen = [], set()
    for question in tqdm(questions, desc="VQAv2", unit="question", disable=not progress):
        number = _id(question, "question_id", questions_file)
        if number in seen:
            raise DataError(f"{questions_file}: question {number} occurs twice. Mend the file.")
        seen.add(number)
        try:
            image_id = integer(question["image_id"], "image_id", 0, text=True)
            text = check_text(question["question"], "question", empty=False)
        except FieldError as error:
            raise DataError(f"{questions_file}: question {number}: {error}. Mend the file.") from error
        if images is not None and not images.holds(image_id, None):
            continue
        if number not in by_id:
            raise DataError(
                f"{questions_file}: question {number} has no annotation in {annotations_file}. Give the annotations of "
                "the same split (those of test are not published)."
            )
        try:
            answers = answer_texts(by_id[number]["answers"])
        except FieldError as error:
            raise DataError(f"{annotations_file}: question {number}: {error}. Mend the file.") from error
        lines.append(
            {
                "question_id": number,
                "image": image_name.format(image_id),
                "text": text,
                "answers": answers,
                "category": by_id[number].get("answer_type"),
            }
        )
    if not lines:
        raise DataError(
            f"{questions_file}: none of its {len(questions)} questions is about the images to keep."
        )
    return lines


def write_jsonl(lines: Iterable[Mapping[str, Any]], out: str | Path) -> None:
    """Writes one JSON object a line; the file appears only when it is complete."""
    path = Path(out)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    os.replace(part, path)


def _entries(file: str | Path, key: str, keys: tuple[str, ...]) -> list[dict[str, Any]]:
    content = load_json(file, f"VQAv2 {key} file")
    require_keys(content, (key,), file)
    entries = require_list(content[key], key, file)
    for position, entry in enumerate(entries):
        require_keys(entry, keys, file, f"{key}[{position}]")
    return entries


def _id(entry: dict[str, Any], key: str, file: str | Path) -> int | str:
    try:
        return id_key(identifier(entry[key], key))
    except FieldError as error:
        raise DataError(f"{file}: {error}. Mend the file.") from error


def answer_texts(values: Any) -> list[str]:
    """Answers of several people to a question; one may be empty (no answer given), not all.

    Args:
        values: As in the file: a list of texts, numbers or ``{"answer": ...}``.

    Returns:
        Texts, in its order.

    Raises:
        FieldError: Something else, or no answer.
    """
    found: list[str] = []
    for number, value in enumerate(list_of(values, "answers")):
        what = f"answers[{number}]"
        answer = value.get("answer") if isinstance(value, dict) else value
        found.append(check_text(f"{answer}" if is_number(answer) else answer, what))
    if not any(answer.strip() for answer in found):
        raise FieldError("no answer: every one of `answers` is empty")
    return found
