"""Dense heads on batches whose images have different patch grids (LMMs of native resolution)."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from dense_parts import PADDED, TALL, WIDE, make_dense_case, make_neck, select, total, with_dense

from flmm_detseg.heads import DetectionHead, PixelStem, SemanticSegHead
from flmm_detseg.heads.grids import by_grid, same_grid
from flmm_detseg.structures import GroundingBatch, LMMStates

NAMES = ("star", "ring", "square")
RAGGED = (PADDED, WIDE, TALL, WIDE, PADDED)


def make_head(kind):
    neck = make_neck(scales=(4, 2, 1), gate="spatial", project_channels=8, side=PixelStem(4, 8))
    torch.manual_seed(0)
    sizes = dict(feat_channels=16, stacked_convs=1) if kind is DetectionHead else dict(channels=16)
    return kind(neck, NAMES, **sizes).eval()


def ragged_case() -> tuple[LMMStates, GroundingBatch]:
    """The second image of the rarer grid has no object."""
    states, batch = make_dense_case(RAGGED)
    nothing = batch.samples[3].dense
    nothing = replace(nothing, boxes_xyxy=nothing.boxes_xyxy[:0], labels=nothing.labels[:0])
    return states, with_dense(batch, 3, nothing)


def test_a_batch_is_divided_by_grid_and_one_of_one_grid_is_left_alone():
    states, batch = ragged_case()
    assert same_grid(batch) == [[0, 2, 4], [1, 3]]
    first, second = by_grid(states, batch)
    assert [sample.record_id for sample in second.batch.samples] == ["case/1", "case/3"]
    assert second.states.vision[1] is states.vision[3]
    assert first.batch.inputs[1] is batch.inputs[2]
    states, batch = make_dense_case()
    (whole,) = by_grid(states, batch)
    assert whole.states is states
    assert whole.batch is batch


def test_losses_of_different_grids_are_divided_by_all_positives():
    head = make_head(DetectionHead)
    states, batch = ragged_case()
    alone = [select(states, batch, index) for index in range(5)]
    counts = [head.num_targets(case[1]) for case in alone]
    together = head.loss(states, batch)
    positives = sum(counts) - counts[3]  # that image has none: its own losses are divided by 1
    assert head.num_targets(batch) == positives
    for name in ("loss_cls", "loss_bbox", "loss_centerness"):
        expected = sum(head.loss(*case)[name] * count for case, count in zip(alone, counts)) / positives
        torch.testing.assert_close(together[name], expected, rtol=1e-4, atol=1e-5)
    shares = torch.stack([head.loss(*case)["gate_entropy"] for case in alone]).mean()
    torch.testing.assert_close(together["gate_entropy"], shares, rtol=1e-4, atol=1e-6)


def test_label_maps_of_different_grids_count_alike():
    head = make_head(SemanticSegHead)
    states, batch = ragged_case()
    together = head.loss(states, batch)
    for name, value in together.items():
        expected = torch.stack([head.loss(*select(states, batch, i))[name] for i in range(5)]).mean()
        torch.testing.assert_close(value, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", [DetectionHead, SemanticSegHead])
def test_every_tensor_learns_and_predictions_are_those_of_images_alone(kind):
    head = make_head(kind)
    states, batch = ragged_case()
    total(head.train().loss(states, batch)).backward()
    # A level that no object has the size for keeps its scale.
    own = [(name, p.grad) for name, p in head.named_parameters() if ".scales." not in name]
    assert [name for name, gradient in own if gradient is None or not gradient.any()] == []
    head.eval()
    if kind is DetectionHead:
        torch.nn.init.normal_(head.fcos.conv_cls.bias, generator=torch.Generator().manual_seed(2))
    found = head.predict(states, batch)
    for index, ours in enumerate(found):
        (alone,) = head.predict(*select(states, batch, index))
        if kind is SemanticSegHead:
            assert torch.equal(ours, alone)
            continue
        assert len(ours) > 0
        torch.testing.assert_close(ours.bboxes, alone.bboxes, rtol=1e-4, atol=1e-3)
        assert torch.equal(ours.labels, alone.labels)
