"""OCR-VQA's published file as JSONL for :class:`~flmm_detseg.datasets.QuestionDataset`."""

from __future__ import annotations

from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from flmm_detseg.datasets.files import existing_file, list_of, load_json, require_dir
from flmm_detseg.datasets.policy import ProblemLog, as_record_error
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.utils.values import FieldError, check_text, check_words, integer, shown

# The file's codes.
SPLITS = {"train": 1, "val": 2, "test": 3}
_REMEDY = "Mend the file, or leave such books out (policy='skip', --skip)."


def convert_ocrvqa(
    file: str | Path,
    split: str = "test",
    *,
    image_name: str = "{id}{ext}",
    image_dir: str | Path | None = None,
    policy: str = "raise",
) -> tuple[list[dict[str, Any]], ProblemLog]:
    """Questions about book covers, each with one answer.

    Args:
        file: ``dataset.json``.
        split: One of :data:`SPLITS`.
        image_name: Name of an image's file by the book's id and the ending in its web address, as the authors' script
            stores them; LLaVA's files are all ``"{id}.jpg"``.
        image_dir: Folder of the images: a book whose cover is not in it is a problem (some are no longer on the web).
            None: not looked for.
        policy: ``"raise"`` | ``"skip"`` for books that cannot be used.

    Returns:
        One entry a question, in the file's order: ``question_id`` (book and number of the question, from 0), ``image``,
        ``text``, ``answer``; and which books were skipped.

    Raises:
        DataError: The file is missing or of another kind, or no book of the split can be used.
        ConfigError: Unknown split, or ``image_name`` has no place for the id.

    Source: Mishra et al., OCR-VQA: Visual Question Answering by Reading Text in Images, ICDAR 2019; ocr-vqa.github.io.
    """
    if split not in SPLITS:
        raise ConfigError(f"`split` is {split!r}; allowed: {', '.join(SPLITS)}")
    try:
        names = {image_name.format(id=book, ext=".jpg") for book in "ab"}
    except (LookupError, ValueError) as error:
        raise ConfigError(f"`image_name` {image_name!r} may hold {{id}} and {{ext}} only") from error
    if len(names) == 1:
        raise ConfigError(f"`image_name` {image_name!r} has no place for the id; for example {{id}}.jpg")
    content = load_json(file, "OCR-VQA file")
    if not isinstance(content, dict):
        raise DataError(
            f"{file}: expected an object of books by id, got {type(content).__name__}. Is it dataset.json?"
        )
    root = None if image_dir is None else require_dir(image_dir, "image folder")
    log = ProblemLog(policy)
    lines: list[dict[str, Any]] = []
    for book, entry in content.items():
        try:
            found = _lines(book, entry, split, image_name)
            if found and root is not None:
                existing_file(root, found[0]["image"], "image")
        except (FieldError, DataError) as error:
            log.handle(as_record_error(error, str(file), f"book {book}", _REMEDY))
            continue
        lines += found
    if not lines:
        first = f" First problem: {log.problems[0]}" if log.problems else ""
        raise DataError(
            f"{file}: no question of the split {split!r} among its {len(content)} books.{first}"
            " Give another split, or the whole file."
        )
    return lines, log


def _lines(book: str, entry: Any, split: str, image_name: str) -> list[dict[str, Any]]:
    if not isinstance(entry, dict):
        raise FieldError(f"a book is {shown(entry)}, not an object")
    for key in ("imageURL", "questions", "answers", "split"):
        if key not in entry:
            raise FieldError(f"key `{key}` is missing", "missing key")
    if integer(entry["split"], "split", 1, 3) != SPLITS[split]:
        return []
    questions, answers = list_of(entry["questions"], "questions"), list_of(entry["answers"], "answers")
    if len(questions) != len(answers):
        raise FieldError(f"{len(questions)} questions and {len(answers)} answers belong together")
    address = check_text(entry["imageURL"], "imageURL")
    try:
        ending = PurePosixPath(urlsplit(address).path).suffix
    except ValueError as error:
        raise FieldError(f"`imageURL` {shown(address)} is no web address ({error})") from error
    name = image_name.format(id=check_text(book, "id", empty=False), ext=ending)
    return [
        {
            "question_id": f"{book}-{number}",
            "image": name,
            "text": check_words(check_text(question, f"questions[{number}]", empty=False), "question"),
            "answer": check_words(check_text(answer, f"answers[{number}]", empty=False), "answer"),
        }
        for number, (question, answer) in enumerate(zip(questions, answers, strict=True))
    ]
