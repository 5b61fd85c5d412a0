"""What boxes as text before a question change: questions of count and position on TinyWorld's validation scenes.

Each question is asked four times: alone; after the boxes of a detection head (``--config`` and ``--checkpoint``); after
the true boxes, what a perfect detector could say; after the true boxes of another scene, which say nothing about this
one. Boxes are written as ``Instructor(answer_with_detections="tinyworld")`` writes them: kinds and places, without
colours and sizes. The share of right answers has a 95 % interval over questions, and so has its difference from the
question alone.

Example: ``python benchmarks/answer_with_detections.py --config tiny/detseg_detection --checkpoint FILE``
"""

from __future__ import annotations

import argparse
from collections import defaultdict
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from tqdm import tqdm

from flmm_detseg.datasets.tinyworld import Question, Scene, make_questions, make_scene
from flmm_detseg.evaluation.bootstrap import bootstrap_interval
from flmm_detseg.inference import Instructor
from flmm_detseg.inference.boxes_as_text import boxes_as_text
from flmm_detseg.inference.regions import Region
from flmm_detseg.models import model_from_config
from flmm_detseg.structures import Sample
from flmm_detseg.utils.cli import run_tool
from flmm_detseg.utils.configs import TINY_CONFIG, TINY_HEADS

KINDS = ("count", "position")
WORDS = "tinyworld"
SPLIT = "val"


def asked(number: int, seed: int) -> Iterator[tuple[Scene, Scene, Question]]:
    """Scenes, each with the one before it and one question, kind after kind.

    Several questions about one picture would be no independent samples.
    """
    before, index, found = make_scene(seed, 0, SPLIT), 1, 0
    while found < number:
        scene = make_scene(seed, index, SPLIT)
        kind = KINDS[found % len(KINDS)]
        question = next((one for one in make_questions(scene, seed) if one.kind == kind), None)
        if question is not None:
            found += 1
            yield scene, before, question
        before, index = scene, index + 1


def true_boxes(scene: Scene, size: tuple[int, int]) -> str:
    """What a perfect detector of kinds says of a scene."""
    regions = [Region("detect", item.kind, 1.0, item.box_xyxy) for item in scene.objects]
    return boxes_as_text(regions, size, WORDS)


def measure(
    answer: Callable[[np.ndarray, str], str],
    questions: list[tuple[Scene, Scene, Question]],
    detected: Callable[[np.ndarray], str] | None = None,
) -> dict[str, dict[str, Any]]:
    """Right answers by kind and by what stood before the question.

    Args:
        answer: An image and a prompt to the LMM's words.
        questions: Of :func:`asked`.
        detected: What a detector says of an image, in words; None: there is none.

    Returns:
        By kind, ``"all"`` too, and by way: ``accuracy`` with interval, ``n``, and ``change`` from the question alone.
    """
    right: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for scene, other, question in tqdm(questions, desc="questions"):
        size = (scene.image.shape[0], scene.image.shape[1])
        given = {
            "alone": "", "true boxes": true_boxes(scene, size), "boxes of another scene": true_boxes(other, size),
        }  # fmt: skip
        if detected is not None:
            given["detections"] = detected(scene.image)
        for way, text in given.items():
            is_right = float(answer(scene.image, text + question.text).strip() == question.answer)
            for kind in (question.kind, "all"):
                right[kind][way].append(is_right)
    return {
        kind: {way: _figures(values, ways["alone"]) for way, values in ways.items()}
        for kind, ways in right.items()
    }


def _figures(values: list[float], alone: list[float]) -> dict[str, Any]:
    own, difference = np.array(values), np.array(values) - np.array(alone)
    return {
        "accuracy": float(own.mean()),
        "interval": bootstrap_interval(own),
        "change": float(difference.mean()),
        "change_interval": bootstrap_interval(difference),
        "n": len(own),
    }


def main() -> dict[str, Any]:
    """Asks, prints a table; returns the figures."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--questions", type=int, default=200, help="half of each kind (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the world")
    parser.add_argument("--config", default=TINY_CONFIG, help="whose LMM answers (default %(default)s)")
    parser.add_argument("--checkpoint", help="its trained parts; a model with a detection head detects, too")
    parser.add_argument("--score-threshold", type=float, default=0.3, help="least score of a detection")
    args = parser.parse_args()
    torch.set_num_threads(1)
    own = TINY_HEADS if args.config == TINY_CONFIG and args.checkpoint is None else args.checkpoint
    model = model_from_config(args.config, own, device="cpu").eval()
    detected = None
    if "detection" in model.heads:
        given = Instructor(model, score_threshold=args.score_threshold, answer_with_detections=WORDS)
        detected = partial(given.with_detections, question="")

    def answer(image: np.ndarray, prompt: str) -> str:
        with torch.inference_mode():
            return model.answer(
                Sample("question", image, "", (), prompt=prompt, task="vqa"), max_new_tokens=6
            )

    figures = measure(answer, list(asked(args.questions, args.seed)), detected)
    for kind, ways in figures.items():
        for way, found in ways.items():
            low, high = found["interval"]
            change, (least, most) = found["change"], found["change_interval"]
            print(
                f"{kind:10} {way:24} {found['accuracy']:.3f} ({low:.3f} to {high:.3f}), "
                f"change {change:+.3f} ({least:+.3f} to {most:+.3f}), n = {found['n']}"
            )
    return {"figures": figures, "detector": detected is not None}


if __name__ == "__main__":
    run_tool(main)
