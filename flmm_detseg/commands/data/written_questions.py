"""How the converters of question files end: problems are printed, the lines written and counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flmm_detseg.datasets.policy import ProblemLog


def write_questions(
    lines: Sequence[Mapping[str, Any]], out: str, log: ProblemLog | None = None, split: str | None = None
) -> dict[str, Any]:
    """Writes the questions of a converter.

    Args:
        lines: A question each, with its ``image``.
        out: JSONL to write.
        log: What could not be used, which is printed; None where the converter leaves nothing out.
        split: Of the file, where it has several.

    Returns:
        Figures for the last line: file, questions, images, with a log what was skipped, and the split.
    """
    from flmm_detseg.datasets.vqav2 import write_jsonl

    for problem in () if log is None else log.problems:
        print(f"{problem.kind}: {problem}", flush=True)
    write_jsonl(lines, out)
    figures: dict[str, Any] = {"out": out, "questions": len(lines), "images": len({line["image"] for line in lines})}
    if log is not None:
        figures["skipped"] = log.counts()
    if split is not None:
        figures["split"] = split
    return figures
