"""Models, hooks and tools know heads by their contract: names are free, a new head needs no other code."""

from __future__ import annotations

import copy
import re
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
import torch
from multi_task_parts import HEADS, dense_sample, make_model
from sam_parts import make_refiner
from tiny import make_sample, tiny_llava
from torch import Tensor, nn

from flmm_detseg.engine.training.hooks import _picture
from flmm_detseg.errors import ConfigError
from flmm_detseg.heads import Head
from flmm_detseg.inference import Grounder, Instructor
from flmm_detseg.inference.streaming import HeadRegions
from flmm_detseg.models import GroundingLMM
from flmm_detseg.structures import CaptureSpec, GroundingBatch, LMMStates

OTHER_NAMES = {"boxes": "detection", "maps": "segmentation", "words": "phrase", "answers": "language"}
PHRASE = {**HEADS["phrase"], "sam": {"type": make_refiner}, "text_dim": 16}


def build(names: dict[str, str], **changes) -> GroundingLMM:
    heads = {name: {**HEADS, "phrase": PHRASE}[kind] for name, kind in names.items()}
    heads = {
        name: {**head, "score_threshold": 0.0} if "stacked_convs" in head else head
        for name, head in heads.items()
    }
    return make_model(lmm=tiny_llava(), heads=heads, **{"retention": "frozen", **changes}).eval()


@pytest.fixture(scope="module")
def pair() -> tuple[GroundingLMM, GroundingLMM]:
    """Heads of other names, and of those that configs use."""
    own = {kind: kind for kind in OTHER_NAMES.values()}
    return build(OTHER_NAMES, instance_masks=True), build(own, instance_masks=True)


def test_predictions_do_not_depend_on_names(pair) -> None:
    renamed, usual = pair
    samples = [dense_sample(0, "detection"), dense_sample(1, "segmentation"), make_sample(2)]
    for ours, theirs in zip(renamed(samples, mode="predict"), usual(samples, mode="predict"), strict=True):
        if isinstance(ours, Tensor):
            assert torch.equal(ours, theirs)
        elif hasattr(ours, "bboxes"):
            assert torch.equal(ours.bboxes, theirs.bboxes)
            assert torch.equal(ours.masks, theirs.masks), "by the lent SAM"
        else:
            assert torch.equal(ours.mask_logits, theirs.mask_logits)
    losses, expected = renamed.loss(samples), usual.loss(samples)
    assert float(losses["words.loss_mask"]) == float(expected["phrase.loss_mask"])


def test_pictures_regions_and_instructions_do_not_depend_on_names(pair) -> None:
    for sample in (dense_sample(0, "detection"), dense_sample(1, "segmentation"), make_sample(2)):
        ours, theirs = (_picture(model, sample) for model in pair)
        np.testing.assert_array_equal(ours, theirs)
        assert ours.shape[2] == 3
    assert _picture(pair[0], dense_sample(0, "vqa")) is None
    image = dense_sample(0, "detection")
    found = [HeadRegions(model, threshold=0.0).find(image) for model in pair]
    np.testing.assert_array_equal(found[0].boxes_xyxy, found[1].boxes_xyxy)
    results = [
        Instructor(model, score_threshold=0.0).follow(image.image, "detect a and segment the star")
        for model in pair
    ]
    assert results[0].text == results[1].text
    assert [r.box_xyxy for r in results[0].regions] == [r.box_xyxy for r in results[1].regions]
    assert Grounder(pair[0]).capture == Grounder(pair[1]).capture


def test_a_lent_sam_has_one_owner(pair) -> None:
    renamed, _ = pair
    sam = renamed.heads["words"].sam
    assert renamed.heads["boxes"].refiner is sam
    assert not any(".boxes.sam" in name for name in renamed.state_dict())
    again = copy.deepcopy(renamed)
    assert again.heads["boxes"].refiner is again.heads["words"].sam
    with pytest.raises(ConfigError, match=r"`model\.instance_masks` needs a head that lends.*heads: boxes"):
        build({"boxes": "detection"}, instance_masks=True)


class CountingHead(Head[int]):
    """Reads a task that nobody else knows, from two layers of the language model."""

    tasks: ClassVar[frozenset[str]] = frozenset({"counting"})
    result_of: ClassVar[frozenset[str]] = frozenset({"counting"})

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.count = nn.Linear(hidden_size, 1)

    @property
    def capture(self) -> CaptureSpec:
        return CaptureSpec(hidden=(1, 3))

    def loss(self, states: LMMStates, batch: GroundingBatch) -> dict[str, Tensor]:
        return {"loss_count": sum(self.count(rows.of((1, 3))).square().mean() for rows in states.hidden)}

    def predict(self, states: LMMStates, batch: GroundingBatch) -> list[int]:
        return [len(rows.of((3,))[0]) for rows in states.hidden]


def test_a_new_head_for_a_new_task_needs_no_other_code() -> None:
    heads = {"count": {"type": CountingHead}, "phrase": PHRASE}
    model = make_model(lmm=tiny_llava(), heads=heads).eval()
    assert model.heads["count"].capture.union(model.heads["phrase"].capture).hidden == "all"
    samples = [make_sample(0), replace(make_sample(1), task="counting")]
    phrases, count = model(samples, mode="predict")
    assert count == int(model.lmm.prepare(samples[1]).phrase_tokens.sum())
    assert phrases.record_id == samples[0].record_id
    losses = model.loss(samples)
    assert {"objective.loss_count", "objective.loss_phrase"} <= set(losses)
    assert _picture(model, make_sample(0)) is not None
    assert _picture(model, samples[1]) is None, "nothing to draw"


def test_what_is_no_head_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"`model\.heads\.phrase` is a Linear; a head fulfils"):
        make_model(heads={"phrase": nn.Linear(1, 1)})


def test_no_head_is_known_by_name_outside_of_the_files_format() -> None:
    """Names of heads are a config's; only published F-LMM checkpoints fix one (models/checkpoint.py)."""
    root = Path(__file__).resolve().parents[2] / "flmm_detseg"
    files = [*root.glob("models/*.py"), *root.glob("engine/**/*.py"), *root.glob("inference/*.py")]
    by_name = re.compile(r"""heads\[["']|["'] (not )?in [a-z_.]*\.heads\b""")
    assert len(files) > 30
    assert [file.name for file in files if by_name.search(file.read_text(encoding="utf-8"))] == []
