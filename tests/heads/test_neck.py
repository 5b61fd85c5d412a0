from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from dense_parts import (
    LAYERS,
    PADDED,
    PATCH,
    ROWS,
    SIDE,
    SQUEEZED,
    VISION_CHANNELS,
    make_dense_case,
    make_neck,
    select,
    total,
)
from tiny import one_image
from torch import nn

from flmm_detseg.errors import ConfigError
from flmm_detseg.heads import DetectionHead, PixelStem, SemanticSegHead
from flmm_detseg.heads.frame import Frame
from flmm_detseg.heads.gates import GATES
from flmm_detseg.heads.neck import nearest
from flmm_detseg.heads.task_rows import TASKS
from flmm_detseg.structures import GridLevel, GroundingBatch, LMMStates, PatchGrid


@pytest.mark.parametrize(("patch", "scales", "strides"), [
    (14, (4, 2, 1, 0.5, 0.25), (3.5, 7, 14, 28, 56)),
    (14, (2, 1, 0.5), (7, 14, 28)),
    (16, (4, 1), (4, 16)),
])  # fmt: skip
def test_strides_follow_the_patch_and_the_scales(patch, scales, strides):
    neck = make_neck(patch_size=patch, scales=scales)
    assert neck.strides == strides
    states, batch = make_dense_case()
    pyramid = neck(states, batch)
    frame = Frame.of(PADDED, patch)
    assert [tuple(maps.shape[-2:]) for maps in pyramid] == neck.map_sizes(frame)
    for maps, scale, stride in zip(pyramid, scales, strides):
        assert maps.shape == (3, 16, ROWS * scale, ROWS * scale)
        assert maps.shape[-1] * stride == ROWS * patch


def test_odd_grids_are_covered_to_the_last_cell():
    neck = make_neck(scales=(2, 1, 0.5, 0.25))
    grid = PatchGrid((70, 70), (70, 70), 0, 0, (70, 70), (GridLevel(5, 5),))
    states, batch = make_dense_case((grid,))
    states = LMMStates(vision=[{layer: torch.randn(VISION_CHANNELS, 5, 5) for layer in LAYERS}])
    sizes = [tuple(maps.shape[-2:]) for maps in neck(states, batch)]
    assert sizes == neck.map_sizes(Frame.of(grid, PATCH)) == [(10, 10), (5, 5), (3, 3), (2, 2)]


def test_gate_none_reads_the_last_layer_only():
    neck = make_neck(gate="none")
    assert neck.vision_layers == (3,)
    states, batch = make_dense_case()
    only_last = LMMStates(vision=[{3: maps[3]} for maps in states.vision])
    assert all(torch.equal(a, b) for a, b in zip(neck(states, batch), neck(only_last, batch)))
    assert make_neck(gate="static").vision_layers == LAYERS


@pytest.mark.parametrize("gate", sorted(set(GATES) - {"none"}))
@pytest.mark.parametrize("project", [None, 8])
def test_every_gate_starts_where_none_does(gate, project):
    plain, gated = make_neck(project_channels=project), make_neck(gate=gate, project_channels=project)
    if project:
        gated.project[-1].load_state_dict(plain.project[0].state_dict())
    gated.levels.load_state_dict(plain.levels.state_dict())
    states, batch = make_dense_case()
    for first, second in zip(plain(states, batch), gated(states, batch)):
        torch.testing.assert_close(first, second, rtol=0, atol=5e-3)
    assert set(gated.statistics()) == {"gate_layer1", "gate_layer2", "gate_layer3", "gate_entropy"}
    assert gated.statistics()["gate_layer3"] > 0.999


@pytest.mark.parametrize("gate", sorted(GATES))
@pytest.mark.parametrize("project", [None, 8])
def test_every_tensor_gets_a_gradient(gate, project):
    neck = make_neck(gate=gate, project_channels=project, side=PixelStem(4, 8))
    states, batch = make_dense_case()
    pyramid = neck(states, batch)
    generator = torch.Generator().manual_seed(5)
    sum((maps * torch.randn(maps.shape, generator=generator)).sum() for maps in pyramid).backward()
    assert [name for name, p in neck.named_parameters() if p.grad is None or not p.grad.any()] == []


def test_batch_equals_single_samples():
    neck = make_neck(gate="dynamic", side=PixelStem(8, 8)).eval()
    states, batch = make_dense_case()
    together = neck(states, batch)
    for index in range(3):
        for maps, alone in zip(together, neck(*select(states, batch, index))):
            torch.testing.assert_close(maps[index : index + 1], alone, rtol=1e-5, atol=1e-5)


def test_one_grid_a_call():
    states, batch = make_dense_case()
    other = {layer: maps[:, :-1] for layer, maps in states.vision[0].items()}
    mixed = LMMStates(vision=[other, *states.vision[1:]])
    with pytest.raises(ConfigError, match="one grid a call"):
        make_neck()(mixed, batch)


def test_side_stream_joins_the_level_of_its_stride():
    assert nearest((3.5, 7, 14, 28), 4) == 0
    assert nearest((3.5, 7, 14, 28), 8) == 1
    neck = make_neck(side=PixelStem(8, 8))
    assert neck.side_level == 0  # strides 7, 14, 28
    states, batch = make_dense_case()
    before = neck(states, batch)
    changed = [item.pixel_values + 1 * torch.randn(()) for item in batch.inputs]
    changed[0] = torch.randn(3, SIDE, SIDE)
    inputs = [replace(item, images=one_image(new, item.grid)) for item, new in zip(batch.inputs, changed)]
    after = neck(states, GroundingBatch(batch.samples, inputs))
    assert not torch.equal(before[0], after[0])
    assert all(torch.equal(a, b) for a, b in zip(before[1:], after[1:]))


def test_pixel_stem_takes_the_squared_view_of_both_layouts():
    stem = PixelStem(stride=4, channels=8)
    _, batch = make_dense_case((PADDED, SQUEEZED))
    maps = stem(batch)
    assert maps.shape == (2, 8, SIDE // 4, SIDE // 4)
    view = batch.inputs[1].pixel_values
    assert view.shape == (3, 3, SIDE, SIDE)
    changed = view.clone()
    changed[1:] += 1  # other tiles are not looked at
    first, other = batch.inputs
    same = [first, replace(other, images=one_image(changed, other.grid))]
    assert torch.equal(stem(GroundingBatch(batch.samples, same)), maps)


def test_pyramid_runs_in_half_precision():
    neck = make_neck(gate="spatial", project_channels=8, side=PixelStem(4, 8))
    states, batch = make_dense_case()
    expected = neck(states, batch)
    for maps, exact in zip(neck.to(torch.bfloat16)(states, batch), expected):
        assert maps.dtype == torch.bfloat16
        torch.testing.assert_close(maps.float(), exact, rtol=0.1, atol=0.15)


@pytest.mark.parametrize(("changes", "message"), [
    (dict(vision_layers=()), "vision_layers"),
    (dict(vision_layers=(1, 1)), "different"),
    (dict(vision_layers=(-2,)), "0 or larger"),
    (dict(scales=(1, 2)), "descending"),
    (dict(scales=(3,)), "some of"),
    (dict(gate="softmax"), "gate"),
])  # fmt: skip
def test_settings_that_cannot_be(changes, message):
    with pytest.raises(ConfigError, match=message):
        make_neck(**changes)


def test_stem_settings_that_cannot_be():
    with pytest.raises(ConfigError, match="power of two"):
        PixelStem(stride=6)
    with pytest.raises(ConfigError, match="power of two"):
        PixelStem(stride=1)


def test_a_shared_neck_lets_tasks_choose_their_layers():
    """The `task` gate has something to choose only where heads of different tasks share a neck."""
    neck = make_neck(scales=(2, 1), gate="task", gate_initial_share=0.5)
    heads = nn.ModuleDict(
        dict(
            detection=DetectionHead(neck, ("a", "b", "c"), feat_channels=16, stacked_convs=1),
            segmentation=SemanticSegHead(neck, ("a", "b", "c"), channels=16),
        )
    )
    names = [name for name, _ in heads.named_parameters() if "gate" in name]
    assert names
    assert all(name.startswith("detection.neck.gate") for name in names), "once, under the first head"
    rows = neck.gate.task_embedding.weight
    cases = {name: make_dense_case(task=name) for name in heads}
    for name, head in heads.items():
        (gradient,) = torch.autograd.grad(total(head.loss(*cases[name])), rows)
        assert {TASKS[index] for index in gradient.abs().sum(1).nonzero().flatten().tolist()} == {name}

    optimizer = torch.optim.Adam(neck.gate.parameters(), lr=0.05)
    for _ in range(20):
        shares = {name: neck.gate.shares(torch.zeros(1, 3, 1, 1, 1), [name]).flatten() for name in heads}
        optimizer.zero_grad()
        # What a task's loss would ask for: another layer than the other task's.
        (-shares["detection"][0].log() - shares["segmentation"][2].log()).backward()
        optimizer.step()
    assert shares["detection"].argmax() == 0
    assert shares["segmentation"].argmax() == 2
