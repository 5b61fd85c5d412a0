"""Accuracy of answers with its interval, beside the rule that needs no picture: the most frequent answer.

The rule looks at the first two words of a question ("what colour", "is there", "how many") and gives the answer that
most training questions beginning with them have. Intervals: 95 %, bootstrap over images, because the questions about
one image are not independent.

Example, after ``flmm-detseg evaluate answers``: ``python benchmarks/answer_rules.py TRAIN.jsonl VAL.jsonl --images DIR
--answers work_dirs/NAME/eval/*-answers.jsonl``
"""

from __future__ import annotations

import argparse
import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from flmm_detseg.datasets import LLaVAInstructDataset, QuestionDataset
from flmm_detseg.evaluation import answer_record
from flmm_detseg.utils.cli import run_tool

# (question id, image, question, reference answers)
Asked = tuple[str, str, str, tuple[str, ...]]


def read_questions(file: Path, images: Path) -> list[Asked]:
    """Questions of a JSONL file, or of all turns of LLaVA conversations (``.json``); reads no image."""
    if file.suffix == ".json":
        talks = LLaVAInstructDataset(file=str(file), image_dir=str(images), turns="all")
        turns = [
            (talks.record_id(i), talks.phrase_texts(i)[0], talks.question_and_answer(i))
            for i in range(len(talks))
        ]
        return [(name, image, question, (answer,)) for name, image, (question, answer) in turns]
    records = QuestionDataset(file=str(file), image_dir=str(images)).records
    return [(str(item.question_id), str(item.images.path), item.text, item.references) for item in records]


def beginning(question: str) -> str:
    """What the rule looks at."""
    return " ".join(question.split()[:2])


def most_frequent(train: Iterable[Asked]) -> dict[str, str]:
    """The rule: by the first two words of a question, the most frequent answer."""
    answers: dict[str, Counter[str]] = defaultdict(Counter)
    for _, _, question, references in train:
        answers[beginning(question)][references[0]] += 1
    # Ties go to the first in the alphabet, so that the order of the file does not matter.
    return {key: min(found, key=lambda text: (-found[text], text)) for key, found in answers.items()}


def accuracy(scores: Mapping[str, list[float]], num_resamples: int = 10_000, seed: int = 0) -> dict[str, Any]:
    """Mean of the scores of all images' questions, and its interval over images.

    Args:
        scores: By image.
        num_resamples: Of the bootstrap.
        seed: Of the bootstrap.

    Returns:
        ``accuracy``, ``low``, ``high``, ``num_questions``, ``num_images``.
    """
    sums = np.array([sum(scores[image]) for image in sorted(scores)])
    counts = np.array([len(scores[image]) for image in sorted(scores)])
    draws = np.random.default_rng(seed).multinomial(
        len(sums), np.full(len(sums), 1 / len(sums)), size=num_resamples
    )
    low, high = np.quantile(draws @ sums / (draws @ counts), [0.025, 0.975])
    return {
        "accuracy": round(float(sums.sum() / counts.sum()), 4),
        "low": round(float(low), 4),
        "high": round(float(high), 4),
        "num_questions": int(counts.sum()),
        "num_images": len(sums),
    }


def main() -> dict[str, Any]:
    """Reads files, scores, prints; returns the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("train", type=Path, help="training questions, which the rule learns from")
    parser.add_argument("questions", type=Path, help="evaluated questions")
    parser.add_argument("--images", type=Path, required=True, help="folder of the images of both")
    parser.add_argument(
        "--answers", type=Path, nargs="*", default=(), help="answer files of `flmm-detseg evaluate answers`"
    )
    args = parser.parse_args()
    rule = most_frequent(read_questions(args.train, args.images))
    asked = read_questions(args.questions, args.images)
    images = {name: image for name, image, _, _ in asked}
    scores: dict[str, dict[str, list[float]]] = {"most frequent answer": defaultdict(list)}
    for name, image, question, references in asked:
        record = answer_record(name, question, rule.get(beginning(question), ""), references)
        if record["score"] is not None:
            scores["most frequent answer"][image].append(record["score"])
    for file in args.answers:
        found = scores[str(file)] = defaultdict(list)
        for line in map(json.loads, file.read_text().splitlines()):
            if line["metadata"]["score"] is not None:
                found[images[str(line["question_id"])]].append(line["metadata"]["score"])
    figures = {name: accuracy(found) for name, found in scores.items()}
    for name, row in figures.items():
        print(
            f"{row['accuracy']:.4f}  [{row['low']:.4f}, {row['high']:.4f}]  n = {row['num_questions']}  {name}"
        )
    return {"figures": figures}


if __name__ == "__main__":
    run_tool(main)
