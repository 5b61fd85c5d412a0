"""TextVQA's published file as JSONL for :class:`~flmm_detseg.datasets.QuestionDataset`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flmm_detseg.datasets.files import (
    existing_file,
    list_of,
    load_json,
    require_dir,
    require_keys,
    require_list,
)
from flmm_detseg.datasets.policy import ProblemLog, as_record_error, record_error
from flmm_detseg.datasets.vqav2 import answer_texts
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.utils.values import FieldError, check_text, check_words, identifier

_REMEDY = "Mend the file, or leave such questions out (policy='skip', --skip)."
# As LLaVA's evaluation writes the words that another program has read, between question and instruction.
_HINT = "Reference OCR token: "


def convert_textvqa(
    file: str | Path,
    *,
    ocr_file: str | Path | None = None,
    image_name: str = "{}.jpg",
    image_dir: str | Path | None = None,
    policy: str = "raise",
) -> tuple[list[dict[str, Any]], ProblemLog]:
    """Questions with the answers of ten people.

    Args:
        file: ``TextVQA_0.5.1_val.json`` (or train's; the answers of test are not published).
        ocr_file: ``TextVQA_Rosetta_OCR_v0.2_val.json``: the words that it has of an image go with each question, as in
            LLaVA's evaluation; an image without words gets none. None: questions alone.
        image_name: Name of an image's file by its id.
        image_dir: Folder of the images (``train_images`` for val too): an image that is not in it is a problem of its
            question. None: not looked for.
        policy: ``"raise"`` | ``"skip"`` for questions that cannot be used.

    Returns:
        One entry a question, in the file's order: ``question_id``, ``image``, ``text``, ``answers`` (of all people);
        and what was skipped.

    Raises:
        DataError: A file is missing or of another kind, or has no answers, or no question can be used.
        ConfigError: ``image_name`` has no place for the id.

    Source: Singh et al., Towards VQA Models That Can Read, CVPR 2019 (arXiv 1904.08920); textvqa.org/dataset.
    """
    if image_name.format("a") == image_name.format("b"):
        raise ConfigError(f"`image_name` {image_name!r} has no place for the image id; for example {{}}.jpg")
    content = load_json(file, "TextVQA file")
    require_keys(content, ("data",), file)
    entries = require_list(content["data"], "questions", file)
    if entries and not any(isinstance(entry, dict) and "answers" in entry for entry in entries):
        raise DataError(
            f"{file}: no question has `answers`. Give train or val (those of test are not published)."
        )
    words = None if ocr_file is None else _ocr_words(ocr_file)
    root = None if image_dir is None else require_dir(image_dir, "image folder")
    log = ProblemLog(policy)
    lines: list[dict[str, Any]] = []
    seen: set[int | str] = set()
    for position, entry in enumerate(entries):
        record = f"data[{position}]"
        try:
            line, image_id = _line(entry, str(file), record, image_name)
            if line["question_id"] in seen:
                message = f"question {line['question_id']} occurs twice"
                raise record_error(str(file), record, message, _REMEDY, "repeated id")
            if words:
                line["text"] += _hint(words.get(image_id, []))
            if root is not None:
                existing_file(root, line["image"], "image")
        except (FieldError, DataError) as error:
            log.handle(as_record_error(error, str(file), record, _REMEDY))
            continue
        seen.add(line["question_id"])
        lines.append(line)
    if not lines:
        first = f" First problem: {log.problems[0]}" if log.problems else ""
        raise DataError(f"{file}: none of its {len(entries)} questions can be used.{first}")
    return lines, log


def _line(entry: Any, file: str, record: str, image_name: str) -> tuple[dict[str, Any], int | str]:
    require_keys(entry, ("question_id", "image_id", "question", "answers"), file, record)
    image_id = identifier(entry["image_id"], "image_id")
    line = {
        "question_id": identifier(entry["question_id"], "question_id"),
        "image": image_name.format(image_id),
        "text": check_words(check_text(entry["question"], "question", empty=False), "question"),
        "answers": answer_texts(entry["answers"]),
    }
    return line, image_id


def _ocr_words(file: str | Path) -> dict[int | str, list[str]]:
    """Words by image id."""
    content = load_json(file, "OCR file of TextVQA")
    require_keys(content, ("data",), file)
    found: dict[int | str, list[str]] = {}
    for position, entry in enumerate(require_list(content["data"], "images", file)):
        record = f"data[{position}]"
        require_keys(entry, ("image_id", "ocr_tokens"), file, record)
        try:
            tokens = list_of(entry["ocr_tokens"], "ocr_tokens")
            words = [check_text(token, "ocr_tokens") for token in tokens]
            found[identifier(entry["image_id"], "image_id")] = words
        except FieldError as error:
            raise as_record_error(error, str(file), record, "Mend the file.") from error
    return found


def _hint(words: list[str]) -> str:
    """The words of an image as a line of the question, without those that would end a model's turn."""
    plain = []
    for word in words:
        try:
            plain.append(check_words(word, "ocr_tokens"))
        except FieldError:
            continue
    return f"\n{_HINT}{', '.join(plain)}" if plain else ""
