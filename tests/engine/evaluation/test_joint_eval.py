"""The evaluation of whole answers: the model sees the question alone, and each of its sections is measured."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from flmm_detseg.datasets import COCOInstancesDataset, JointDataset, LLaVAInstructDataset
from flmm_detseg.datasets.tinyworld.world import WorldSpec, write_world
from flmm_detseg.engine.evaluation.evaluate import EvaluationSet, evaluate_model
from flmm_detseg.engine.evaluation.joint import JOINT, JointOptions
from flmm_detseg.errors import ConfigError
from flmm_detseg.language import JointTemplate
from flmm_detseg.language.segment_names import mask_token_spans
from flmm_detseg.structures import AnswerWithMasks, Sample
from flmm_detseg.structures.maps import PackedMasks


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("world")
    write_world(out, WorldSpec(num_images=20, seed=3), progress=False)
    return out


def dataset(world: Path, **changes) -> JointDataset:
    settings = dict(
        dataset=COCOInstancesDataset(
            ann_file=str(world / "coco/annotations/instances_val2017.json"),
            image_dir=str(world / "coco/val2017"),
            with_masks=True,
        ),
        answers=LLaVAInstructDataset(
            file=str(world / "llava/val.json"), image_dir=str(world / "coco"), turns="all"
        ),
        sections=("answer", "detections", "segmentations"),
        mask_form="seg",
        text_format=dict(type=JointTemplate, words=True, mask_token="[SEG]"),
    )
    return JointDataset(**{**settings, **changes})


class Head(nn.Module):
    tasks = result_of = frozenset({"reasoning"})


class StandIn(nn.Module):
    """Answers with the reference, changed by ``say``; draws the reference's masks, in order."""

    def __init__(self, own: JointDataset, say) -> None:
        super().__init__()
        self.reference = {own.record_id(k): own[k] for k in range(len(own))}
        self.say, self.adapted = say, True
        self.heads = nn.ModuleDict({"reasoning": Head()})
        self.retention = SimpleNamespace(require_base=lambda what: None)
        self.lmm = SimpleNamespace(
            base_mode=self.base_mode, generate=self.generate, generate_with_states=self.generate_with_states
        )

    @contextmanager
    def base_mode(self):
        self.adapted = False
        yield
        self.adapted = True

    def generate(self, sample: Sample, *, max_new_tokens: int) -> str:
        assert not self.adapted
        assert sample.prompt == "with boxes ?"
        return "a ring 000 000 990 990 ."

    def generate_with_states(self, sample: Sample, spec, *, max_new_tokens: int) -> SimpleNamespace:
        assert (sample.text, sample.dense, sample.sections) == ("", None, ())
        text = self.say(self.reference[sample.record_id].text)
        return SimpleNamespace(text=text, token_offsets=((len(text), len(text)),))

    def answer_with_masks(self, sample: Sample, *, max_new_tokens: int) -> AnswerWithMasks:
        assert self.adapted
        assert (sample.text, sample.phrases, sample.masks, sample.dense, sample.sections) == (
            "",
            (),
            None,
            None,
            (),
        )
        known = self.reference[sample.record_id]
        assert sample.prompt == known.prompt
        text = self.say(known.text)
        spans = tuple(mask_token_spans(text))
        masks = PackedMasks.pack(torch.from_numpy(known.masks[: len(spans)]))
        end = (len(text), len(text)) if text == known.text else (0, len(text))
        return AnswerWithMasks(
            text,
            spans,
            spans,
            SimpleNamespace(packed=masks),
            SimpleNamespace(text=text, token_offsets=(end,)),
        )

    def results(self, task: str, samples: list[Sample]) -> list:
        assert task == "reasoning"
        return [
            SimpleNamespace(packed=PackedMasks.pack(torch.from_numpy(sample.masks))) for sample in samples
        ]


def run(own: JointDataset, folder: Path, say, **settings) -> dict:
    options = JointOptions(config="own.py", work_dir=str(folder), **settings)
    JOINT.check_data(own, options)
    result = evaluate_model(
        StandIn(own, say), {"own": EvaluationSet(own, {}, {})}, options, JOINT, {"config": "own"}
    )
    return result["metrics"]["own"]


def test_the_reference_answer_is_worth_everything(world, tmp_path):
    figures = run(dataset(world), tmp_path, lambda text: text, base_prompt="with boxes ?")
    assert figures["F1@0.5"] == figures["gIoU"] == figures["mask_F1@0.5"] == figures["answer_accuracy"] == 1.0
    assert figures["num_unparsable"] == figures["num_bad"] == figures["num_truncated"] == 0
    assert figures["base_F1@0.5"] < 0.5
    lines = (tmp_path / "own.joint-answers.jsonl").read_text().splitlines()
    assert len(lines) == figures["num_records"] == len(dataset(world))


def test_each_loss_is_seen_where_it_is(world, tmp_path):
    def cut(text: str) -> str:
        """Without masks, the last box without all of its numbers, another answer."""
        _, boxes, _ = text.split("\n")
        return f"answer: nothing known\n{boxes[:-6]}"

    own = dataset(world)
    figures = run(own, tmp_path, cut)
    assert figures["num_unparsable"] == figures["num_truncated"] == figures["num_bad"] == len(own)
    assert figures["answer_accuracy"] == figures["gIoU"] == figures["mask_F1@0.5"] == 0.0
    boxes = sum(len(own[k].masks) for k in range(len(own)))
    assert figures["recall@0.5"] == pytest.approx((boxes - len(own)) / boxes)
    assert figures["precision@0.5"] == 1.0
    swapped = run(own, tmp_path / "b", lambda text: text.replace("[SEG]", "<SEG>", 1))
    assert swapped["num_unparsable"] == 0
    assert 0 < swapped["mask_F1@0.5"] < 1


@pytest.mark.parametrize("masks", ["outlines", "runs", "places"])
def test_masks_in_the_text_are_drawn_and_measured(world, tmp_path, masks):
    own = dataset(world, mask_form="text", text_format=dict(type=JointTemplate, masks=masks, side=0))
    figures = run(own, tmp_path / "whole", lambda text: text)
    assert figures["num_unparsable"] == figures["num_bad"] == figures["num_unread_masks"] == 0
    if masks == "runs":
        assert figures["gIoU"] == figures["mask_F1@0.5"] == 1.0
    elif masks == "outlines":
        assert figures["gIoU"] > 0.9
    else:
        expected = []
        for sample in map(own.__getitem__, range(len(own))):
            for label in np.unique(sample.dense.labels):
                shown = sample.dense.masks[sample.dense.labels == label]
                drawn = np.any([ninth(mask) for mask in shown], 0)
                expected.append((drawn & shown.any(0)).sum() / (drawn | shown.any(0)).sum())
        assert figures["gIoU"] == pytest.approx(np.mean(expected))
    cut = run(own, tmp_path / "cut", lambda text: text[:-3])
    assert cut["num_bad"] == len(own)
    assert cut["gIoU"] < figures["gIoU"]


def ninth(mask: np.ndarray) -> np.ndarray:
    """The third of the rows and of the columns in which the middle of a mask's box lies."""
    axes = []
    for length, found in zip(mask.shape, np.nonzero(mask), strict=True):
        thirds = ((np.arange(length) + 0.5) / length * 3).astype(int)
        axes.append(thirds == int((found.min() + found.max() + 1) / 2 / length * 3))
    return np.outer(*axes)


def test_teacher_forced_measures_masks_alone(world, tmp_path):
    figures = run(dataset(world), tmp_path, None, teacher_forced=True)
    assert figures["gIoU"] == 1.0
    assert "F1@0.5" not in figures
    assert "answer_accuracy" not in figures


def test_what_cannot_be_measured_is_refused(world, tmp_path):
    own = dataset(world)
    with pytest.raises(ConfigError, match="`joint_eval` has a COCOInstancesDataset"):
        JOINT.check_data(own.dataset, JointOptions("own.py"))
    outlines = dataset(world, mask_form="text")
    with pytest.raises(ConfigError, match="needs the section 'segmentations' and mask_form='seg'"):
        JOINT.check_data(outlines, JointOptions("own.py", teacher_forced=True))
    model = StandIn(own, None)
    model.heads = nn.ModuleDict()
    with pytest.raises(ConfigError, match=r"the answers hold \[SEG\], but the model has no head"):
        JOINT.check(model, own, JointOptions("own.py"))
    for wrong in (dict(max_new_tokens=0), dict(base_format="json")):
        with pytest.raises(ConfigError):
            JointOptions("own.py", **wrong)


def test_mask_tokens_are_phrases_of_joint_samples(world):
    sample = dataset(world)[0]
    assert {sample.phrase_text(k) for k in range(len(sample.phrases))} == {"[SEG]"}
    assert len(sample.phrases) == len(sample.masks) == sample.text.count("[SEG]") > 0
    names = dataset(world, text_format=dict(type=JointTemplate, words=True))[0]
    assert [names.phrase_text(k) for k in range(len(names.phrases))] == [
        part.split(" [SEG]")[0] for part in sample.text.split("segmentations: ")[1].split("; ")
    ]
