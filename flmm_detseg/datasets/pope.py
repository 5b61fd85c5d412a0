"""POPE's published files as one JSONL for :class:`~flmm_detseg.datasets.QuestionDataset`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from flmm_detseg.datasets.files import existing_file, parse_line, require_dir, require_file
from flmm_detseg.datasets.policy import ProblemLog, as_record_error
from flmm_detseg.errors import DataError
from flmm_detseg.utils.values import FieldError, check_text, check_words, identifier, shown

_REMEDY = "Mend the line, or leave such lines out (policy='skip', --skip)."


def convert_pope(
    files: Sequence[str | Path], *, image_dir: str | Path | None = None, policy: str = "raise"
) -> tuple[list[dict[str, Any]], ProblemLog]:
    """Questions whether an object is there, to be answered with yes or no.

    Args:
        files: ``coco_pope_random.json``, ``coco_pope_popular.json``, ``coco_pope_adversarial.json`` (one JSON object a
            line). What stands after the last ``_`` of a name is the questions' category; ids count anew in each file.
        image_dir: Folder of the images (COCO ``val2014``): an image that is not in it is a problem of its question.
            None: not looked for.
        policy: ``"raise"`` | ``"skip"`` for lines that cannot be used.

    Returns:
        One entry a question, in the files' order: ``question_id`` (category and the file's id), ``image``, ``text``,
        ``label``, ``category``; and what was skipped.

    Raises:
        DataError: A file is missing, or no line can be used.

    Source: Li et al., Evaluating Object Hallucination in Large Vision-Language Models, EMNLP 2023 (arXiv 2305.10355).
    """
    root = None if image_dir is None else require_dir(image_dir, "image folder")
    log = ProblemLog(policy)
    lines: list[dict[str, Any]] = []
    seen: set[str] = set()
    for name in files:
        file = require_file(name, "POPE file")
        kind = check_text(file.stem.rsplit("_", 1)[-1], "file name")
        for number, content in enumerate(file.read_bytes().splitlines(), start=1):
            if not content.strip():
                continue
            try:
                line = _line(parse_line(content), kind)
                if line["question_id"] in seen:
                    raise FieldError(f"question {line['question_id']} occurs twice", "repeated id")
                if root is not None:
                    existing_file(root, line["image"], "image")
            except (FieldError, DataError) as error:
                log.handle(as_record_error(error, str(file), f"line {number}", _REMEDY))
                continue
            seen.add(line["question_id"])
            lines.append(line)
    if not lines:
        first = f" First problem: {log.problems[0]}" if log.problems else ""
        raise DataError(f"{', '.join(map(str, files))}: no question that can be used.{first}")
    return lines, log


def _line(entry: dict[str, Any], kind: str) -> dict[str, Any]:
    for key in ("question_id", "image", "text", "label"):
        if key not in entry:
            raise FieldError(f"key `{key}` is missing", "missing key")
    label = check_text(entry["label"], "label").strip().lower()
    if label not in ("yes", "no"):
        raise FieldError(f"`label` is {shown(entry['label'])}, neither yes nor no")
    return {
        "question_id": f"{kind}-{identifier(entry['question_id'], 'question_id')}",
        "image": check_text(entry["image"], "image", empty=False),
        "text": check_words(check_text(entry["text"], "text", empty=False), "text"),
        "label": label,
        "category": kind,
    }
