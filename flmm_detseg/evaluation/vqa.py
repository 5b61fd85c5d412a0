"""Scores of answers to questions: VQAv2, exact match, ScienceQA, POPE and yes/no."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.evaluation.box_records import ordered_images
from flmm_detseg.evaluation.vqa_text import normalise_answer

VQA_METRICS = ("vqav2", "exact", "scienceqa", "pope", "yes_no", "open")
# Longer references are descriptions: equality with them has no meaning.
MAX_SHORT_WORDS = 8
# VQAv2's formula wants three others who gave the answer: of fewer people, the right answer could never score 1.
MIN_VOTERS = 4
_LETTERS = "ABCDEFGHIJ"
_ANSWER_IS = re.compile(r"The answer is ([A-Z])\.")


@dataclass(frozen=True)
class Score:
    """The score of an answer.

    Attributes:
        score: In [0, 1]; None for ``open``, which nothing here can judge.
        parsed: What was understood (normalised answer, option letter, yes or no); None if nothing.
    """

    score: float | None
    parsed: str | None


def choose_metric(references: Sequence[str], choices: Sequence[str] = ()) -> str:
    """The metric a question's data ask for.

    ``scienceqa`` where there are choices, ``vqav2`` where :data:`MIN_VOTERS` people or more answered, ``yes_no`` where
    the answer is yes or no, ``open`` where it has more than :data:`MAX_SHORT_WORDS` words (not scored), else ``exact``:
    two or three references are alternatives, each of them right. POPE's own rule has to be asked for by name, and so
    has ``exact`` for a longer list of alternatives.
    """
    if choices:
        return "scienceqa"
    if len(references) >= MIN_VOTERS:
        return "vqav2"
    known = {normalise_answer(text) for text in references if text.strip()}
    if known in ({"yes"}, {"no"}):
        return "yes_no"
    return "open" if any(len(text.split()) > MAX_SHORT_WORDS for text in known) else "exact"


def score_answer(answer: str, references: Sequence[str], metric: str, num_choices: int = 5) -> Score:
    """Scores one answer.

    Args:
        answer: Of the model.
        references: Right answers: those of all annotators for ``vqav2`` (:data:`MIN_VOTERS` or more, or one); the
            option's letter for ``scienceqa``; for the others one, or several that are all right. Empty ones match
            nothing.
        metric: One of :data:`VQA_METRICS`.
        num_choices: ``scienceqa``: number of options.

    Returns:
        A score in [0, 1], none for ``open``, and the answer as it was compared, see :class:`Score`.

    Raises:
        ConfigError: Unknown metric.
        DataError: No reference, or one that does not fit the metric.
    """
    if metric not in VQA_METRICS:
        raise ConfigError(f"`metric` is {metric!r}; allowed: {', '.join(VQA_METRICS)}")
    if not references:
        raise DataError(f"a question has no reference answer; metric {metric!r} needs one")
    if metric == "open":
        return Score(None, None)
    if not any(reference.strip() for reference in references):
        raise DataError("every reference answer is empty")
    if metric == "vqav2":
        if 1 < len(references) < MIN_VOTERS:
            raise DataError(
                f"metric 'vqav2' is for the answers of {MIN_VOTERS} people or more (ten, in VQAv2); of "
                f"{len(references)}, a right one would score less than 1. Use 'exact' for alternatives"
            )
        return Score(vqav2_accuracy(answer, references), normalise_answer(answer))
    if metric == "scienceqa":
        parsed = option_letter(answer, num_choices)
        wanted = {reference.strip().upper() for reference in references if reference.strip()}
        if not wanted <= set(_LETTERS[:num_choices]):
            raise DataError(f"reference {references[0]!r} is not the letter of one of {num_choices} options")
        return Score(float(parsed in wanted), parsed)
    known = {normalise_answer(reference) for reference in references if reference.strip()}
    if metric == "exact":
        parsed = normalise_answer(answer)
        return Score(float(parsed in known), parsed)
    if not known <= {"yes", "no"}:
        raise DataError(
            f"reference {references[0]!r} is neither yes nor no; metric {metric!r} needs one of them"
        )
    parsed = pope_answer(answer) if metric == "pope" else yes_or_no(answer)
    return Score(float(parsed in known), parsed)


def vqav2_accuracy(answer: str, references: Sequence[str]) -> float:
    """Accuracy against the answers of several people (VQAv2: ten).

    The mean, over leaving each person out, of ``min(1, number of the others who gave this answer / 3)``: for ten people
    0, 0.3, 0.6, 0.9, 1 for 0, 1, 2, 3, 4 or more equal answers.

    Args:
        answer: Of the model.
        references: Answers of all people; a single one is compared for equality. One that is empty counts as a person,
            and matches nothing.

    Returns:
        In [0, 1].

    Source: Antol et al., VQA (arXiv 1505.00468); visualqa.org/evaluation.html.
    """
    wanted = normalise_answer(answer)
    matches = [bool(reference.strip()) and normalise_answer(reference) == wanted for reference in references]
    if len(matches) == 1:
        return float(matches[0])
    return sum(min(3, sum(matches) - match) for match in matches) / (3 * len(matches))


def option_letter(answer: str, num_choices: int = 5) -> str | None:
    """The option an answer names: ``"B"``, ``"B. text"`` or one ``"The answer is B."`` in it; None for all else.

    Source: ScienceQA as LLaVA evaluates it (arXiv 2304.08485, section 5.2); an answer that names none is wrong.
    """
    letters = _LETTERS[:num_choices]
    answer = answer.strip()
    if len(answer) == 1 and answer in letters:
        return answer
    if answer[1:3] == ". " and answer[0] in letters:
        return answer[0]
    found = _ANSWER_IS.findall(answer)
    return found[0] if len(found) == 1 and found[0] in letters else None


def pope_answer(answer: str) -> str:
    """POPE's reading of a free answer: ``"no"`` if the first sentence has the word no or not, else ``"yes"``.

    Source: Li et al., Evaluating Object Hallucination in LVLMs (POPE, arXiv 2305.10355), published evaluation.
    """
    words = answer.split(".")[0].replace(",", "").lower().split()
    return "no" if "no" in words or "not" in words else "yes"


def yes_or_no(answer: str) -> str | None:
    """``"yes"`` or ``"no"`` if the answer begins with that word, else None (which is always wrong)."""
    words = re.findall(r"[a-z]+", answer.lower())
    return words[0] if words and words[0] in ("yes", "no") else None


def answer_record(
    record_id: str,
    question: str,
    answer: str,
    references: Sequence[str],
    *,
    metric: str | None = None,
    choices: Sequence[str] = (),
    kind: str | None = None,
) -> dict[str, Any]:
    """Facts of one answered question, JSON-ready.

    Args:
        record_id: Of the question.
        question: Its text.
        answer: Of the model.
        references: See :func:`score_answer`.
        metric: One of :data:`VQA_METRICS`; None: :func:`choose_metric`.
        choices: Options to choose from.
        kind: Category, for figures by category.

    Returns:
        ``record_id``, ``question``, ``answer``, ``references``, ``metric``, ``score``, ``parsed``, ``kind``.

    Raises:
        ConfigError: Unknown metric.
        DataError: Unusable references; names the record.
    """
    metric = metric or choose_metric(references, choices)
    try:
        result = score_answer(answer, references, metric, len(choices) or 5)
    except DataError as error:
        raise DataError(f"{record_id}: {error}") from error
    return {
        "record_id": record_id, "question": question, "answer": answer, "references": list(references),
        "metric": metric, "score": result.score, "parsed": result.parsed, "kind": kind,
    }  # fmt: skip


def vqa_figures(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Figures of answered questions, as fractions.

    Args:
        records: Of :func:`answer_record`, in any order.

    Returns:
        ``num_questions``; ``num_scored`` (those that are not ``open``) and their ``accuracy`` (mean score);
        ``accuracy/KIND`` by category; per metric in use ``METRIC_accuracy`` and ``METRIC_num``; for ``scienceqa`` and
        ``yes_no`` the share ``METRIC_unparsed`` of
        answers without an option; for ``pope`` and ``yes_no`` ``METRIC_precision``, ``METRIC_recall``, ``METRIC_F1``
        of the answer yes and its share ``METRIC_yes_ratio`` among all answers.
    """
    records = ordered_images(records)
    figures: dict[str, float] = {"num_questions": len(records)}
    records = scored(records)
    figures["num_scored"] = len(records)
    if not records:
        return figures
    figures["accuracy"] = mean_score(records)
    by_metric, by_kind = defaultdict(list), defaultdict(list)
    for record in records:
        by_metric[record["metric"]].append(record)
        if record["kind"] is not None:
            by_kind[record["kind"]].append(record)
    for metric in sorted(by_metric):
        group = by_metric[metric]
        figures[f"{metric}_num"] = len(group)
        figures[f"{metric}_accuracy"] = mean_score(group)
        if metric in ("scienceqa", "yes_no"):
            figures[f"{metric}_unparsed"] = sum(record["parsed"] is None for record in group) / len(group)
        if metric in ("pope", "yes_no"):
            figures.update({f"{metric}_{name}": value for name, value in _yes_figures(group).items()})
    figures.update({f"accuracy/{kind}": mean_score(by_kind[kind]) for kind in sorted(by_kind)})
    return figures


def scored(records: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Records that have a score."""
    return [record for record in records if record["score"] is not None]


def mean_score(records: Sequence[Mapping[str, Any]]) -> float:
    """Mean of the records' scores, independent of their order."""
    return math.fsum(record["score"] for record in records) / len(records)


def _yes_figures(records: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Precision, recall and F1 of yes; 0 where nothing was (to be) answered with yes."""
    said = [record["parsed"] == "yes" for record in records]
    right = ["yes" in map(normalise_answer, record["references"]) for record in records]
    hits = sum(a and b for a, b in zip(said, right, strict=True))
    return {
        "precision": hits / sum(said) if any(said) else 0.0,
        "recall": hits / sum(right) if any(right) else 0.0,
        "F1": 2 * hits / (sum(said) + sum(right)) if any(said) or any(right) else 0.0,
        "yes_ratio": sum(said) / len(said),
    }
