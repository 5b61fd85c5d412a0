"""ScienceQA's published file as JSONL for :class:`~flmm_detseg.datasets.QuestionDataset`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from flmm_detseg.datasets.files import existing_file, list_of, load_json, require_dir
from flmm_detseg.datasets.policy import ProblemLog, as_record_error
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.utils.values import FieldError, check_text, check_words, integer, shown

SPLITS = ("train", "val", "test")
_REMEDY = "Mend the file, or leave such problems out (policy='skip', --skip)."
_LETTERS = "ABCDEFGHIJ"
_KEYS = ("question", "choices", "answer", "image", "split")


def convert_scienceqa(
    file: str | Path,
    split: str = "test",
    *,
    hints: bool = True,
    image_dir: str | Path | None = None,
    policy: str = "raise",
) -> tuple[list[dict[str, Any]], ProblemLog]:
    """Questions with choices about images. Those without an image are left out (``log.dropped["no image"]``).

    Args:
        file: ``problems.json``.
        split: One of :data:`SPLITS`.
        hints: Put the text that belongs to a question before it, as a line ``Context: ...``.
        image_dir: Folder of the images (``SPLIT/ID/image.png`` in it): an image that is not there is a problem of its
            question. None: not looked for.
        policy: ``"raise"`` | ``"skip"`` for problems that cannot be used.

    Returns:
        One entry a question, in the file's order: ``question_id``, ``image``, ``text`` (which lists the choices as
        ``A. ...``), ``choices``, ``answer`` (number of the right one, from 0), ``category`` (the subject); and what was
        skipped or dropped.

    Raises:
        DataError: The file is missing or of another kind, or no question of the split can be used.
        ConfigError: Unknown split.

    Source: Lu et al., Learn to Explain: Multimodal Reasoning via Thought Chains, NeurIPS 2022 (arXiv 2209.09513).
    """
    if split not in SPLITS:
        raise ConfigError(f"`split` is {split!r}; allowed: {', '.join(SPLITS)}")
    content = load_json(file, "ScienceQA file")
    if not isinstance(content, dict):
        raise DataError(
            f"{file}: expected an object of problems by id, got {type(content).__name__}. Is it problems.json?"
        )
    root = None if image_dir is None else require_dir(image_dir, "image folder")
    log = ProblemLog(policy)
    lines: list[dict[str, Any]] = []
    for number, entry in content.items():
        try:
            if not isinstance(entry, dict):
                raise FieldError(f"a problem is {shown(entry)}, not an object")
            for key in _KEYS:
                if key not in entry:
                    raise FieldError(f"key `{key}` is missing", "missing key")
            if check_text(entry["split"], "split") not in SPLITS:
                raise FieldError(f"`split` is {shown(entry['split'])}; known: {', '.join(SPLITS)}")
            if entry["split"] != split:
                continue
            if entry["image"] is None:
                log.drop("no image", check_text(number, "id"))
                continue
            line = _line(number, entry, hints)
            if root is not None:
                existing_file(root, line["image"], "image")
        except (FieldError, DataError) as error:
            log.handle(as_record_error(error, str(file), f"problem {number}", _REMEDY))
        else:
            lines.append(line)
    if not lines:
        first = f" First problem: {log.problems[0]}" if log.problems else ""
        raise DataError(
            f"{file}: no question about an image in the split {split!r} among its {len(content)} problems.{first}"
            " Give another split, or the whole file."
        )
    return lines, log


def _line(number: str, entry: dict[str, Any], hints: bool) -> dict[str, Any]:
    choices = [
        check_words(check_text(choice, f"choices[{k}]", empty=False), "choices")
        for k, choice in enumerate(list_of(entry["choices"], "choices"))
    ]
    if not 2 <= len(choices) <= len(_LETTERS):
        raise FieldError(f"{len(choices)} choices; 2 to {len(_LETTERS)} are possible")
    question = check_words(check_text(entry["question"], "question", empty=False), "question")
    hint = check_words(entry.get("hint") or "", "hint").strip()
    text = [f"Context: {hint}"] if hint and hints else []
    text += [question, *(f"{letter}. {choice}" for letter, choice in zip(_LETTERS, choices))]
    line = {
        "question_id": check_text(number, "id", empty=False),
        "image": f"{entry['split']}/{number}/{check_text(entry['image'], 'image', empty=False)}",
        "text": "\n".join(text),
        "choices": choices,
        "answer": integer(entry["answer"], "answer", 0, len(choices) - 1),
    }
    if entry.get("subject") is not None:
        line["category"] = check_text(entry["subject"], "subject")
    return line
