"""Regions read from points, and by their mean: where they look, what they compute, what they refuse."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.added import spatial_sampler
from flmm_detseg.lmms.added.region_tokens import RegionTokens
from flmm_detseg.lmms.added.spatial_sampler import SpatialSampler
from flmm_detseg.structures import GridLevel, PatchGrid, Region

SMALL = dict(points=48, stages=(16, 6), neighbours=5)
WIDTH = 20


def attached(part, channels: int = 8, device: str = "cpu", width: int = WIDTH):
    """A part of a tower with three layers, whose norms do not hide what they do nor biases that they are there."""
    facts = SimpleNamespace(vision=SimpleNamespace(num_layers=3, channels=channels), hidden_size=width)
    torch.manual_seed(0)
    part.attach(SimpleNamespace(device=torch.device(device)), facts)
    if device == "cpu":
        with torch.no_grad():
            for weight in part.parameters():
                weight.add_(0.1 * torch.randn(weight.shape))
    return part.eval()


def image(rows: int, cols: int, seed: int = 0, channels: int = 8):
    generator = torch.Generator().manual_seed(seed)
    return {layer: torch.randn(channels, rows, cols, generator=generator) for layer in range(4)}


# A letterboxed image and one that fills its view, of other grids; two regions of each, read in mixed order.
WIDE = PatchGrid((40, 70), (40, 70), 15, 0, (70, 70), (GridLevel(7, 7),))
WHOLE = PatchGrid((33, 57), (60, 60), 0, 0, (60, 60), (GridLevel(4, 5),))


def pointing(part):
    mask = np.zeros((33, 57), bool)
    mask[20, 50] = True
    maps = [image(7, 7), image(4, 5, 1)]
    shown = [
        (0, Region(box_xyxy=(3, 5, 40, 20)), WIDE),
        (1, Region(mask=mask), WHOLE),
        (0, Region(point_xy=(69.5, 2)), WIDE),
        (1, Region.stroke([(4, 4), (30, 12), (50, 30)], 3, (33, 57)), WHOLE),
    ]
    return [maps[k] for k, _, _ in shown], [part.locate(region, grid) for _, region, grid in shown]


def parts():
    return [attached(SpatialSampler(layers=(-1, 1), **SMALL)), attached(RegionTokens(layers=(-1, 1)))]


PARTS = pytest.mark.parametrize("part", parts(), ids=["sampler", "mean"])


def any_grid(kind: str, rng: np.random.Generator) -> PatchGrid:
    """As LLaVA (padded to a square), LLaVA-NeXT (squeezed into one) and Qwen (in its own shape) see an image."""
    height, width = map(int, rng.integers(40, 400, 2))
    if kind == "letterbox":
        side = max(height, width)
        top, left = (side - height) // 2, (side - width) // 2
        return PatchGrid((height, width), (height, width), top, left, (side, side), (GridLevel(24, 24),))
    if kind == "tiles":
        fine = GridLevel(30, 40, newline_cols=1)
        return PatchGrid((height, width), (90, 120), 0, 0, (90, 120), (GridLevel(24, 24), fine))
    rows, cols = max(3, round(height / 14)), max(3, round(width / 14))
    resized = (rows * 14, cols * 14)
    return PatchGrid((height, width), resized, 0, 0, resized, (GridLevel(rows, cols),))


class _AsItIs(nn.LayerNorm):
    def forward(self, values):
        return values


@pytest.mark.parametrize("kind", ["letterbox", "tiles", "native"])
def test_features_are_read_where_the_user_points(kind):
    """Channels of the map say their own row and column."""
    sampler, mean = (attached(kind(layers=(1,)), channels=2) for kind in (SpatialSampler, RegionTokens))
    flipped = attached(SpatialSampler(layers=(1,), legacy_xy_flip=True), channels=2)
    mean.norm, mean.project = _AsItIs(2), nn.Identity()
    rng = np.random.default_rng(0)
    wrong = 0
    for index in range(200):
        grid = any_grid(kind, rng)
        (height, width), (rows, cols) = grid.image_size, grid.view_grid
        x, y = rng.uniform(0, width - 20), rng.uniform(0, height - 20)
        box = (x, y, x + rng.uniform(1, width - x), y + rng.uniform(1, height - y))
        region = Region(box_xyxy=box)
        if index % 2:  # a single pixel
            mask = np.zeros((height, width), bool)
            mask[int(y), int(x)] = True
            region, box = Region(mask=mask), (int(x), int(y), int(x) + 1, int(y) + 1)
        down, across = torch.meshgrid(
            (torch.arange(rows) + 0.5) / rows, (torch.arange(cols) + 0.5) / cols, indexing="ij"
        )
        maps = [{1: torch.stack([down, across])}]
        (full_h, full_w), (pad_h, pad_w) = grid.resized_size, grid.padded_size
        expected = torch.tensor(
            [
                (grid.pad_top + (box[1] + box[3]) / 2 / height * full_h) / pad_h,
                (grid.pad_left + (box[0] + box[2]) / 2 / width * full_w) / pad_w,
            ]
        )
        # Beyond the middle of the outer cells it is as there; of a mean nothing is known within a cell.
        half = torch.tensor([0.5 / rows, 0.5 / cols])
        seen = sampler.locate(region, grid)[None, 1]
        away = (sampler.look_up(maps, seen).mean((0, 1)) - expected.clamp(half, 1 - half)).abs()
        assert (away < (0.004 if index % 2 else half + 0.005)).all()
        assert ((mean.fill(maps, [mean.locate(region, grid)])[0] - expected).abs() < half + 0.005).all()
        wrong += bool(((flipped.look_up(maps, seen).mean((0, 1)) - expected).abs() > half + 0.005).any())
    assert wrong > 100, "swapped axes would be noticed"


def test_released_weights_read_at_swapped_axes():
    part = attached(SpatialSampler(layers=(1,), legacy_xy_flip=True, **SMALL), channels=2)
    rows, cols = 5, 9
    down, across = torch.meshgrid(torch.arange(5.0), torch.arange(9.0), indexing="ij")
    seen = torch.rand(1, 48, 2, generator=torch.Generator().manual_seed(0))
    read = part.look_up([{1: torch.stack([down, across])}], seen)[0]
    torch.testing.assert_close(read[:, 0], seen[0, :, 0] * (rows - 1))
    torch.testing.assert_close(read[:, 1], seen[0, :, 1] * (cols - 1))


def test_a_stage_is_the_linear_layers_one_after_the_other():
    part = attached(SpatialSampler(layers=(1,), **SMALL))
    stage = part.stages[0]
    generator = torch.Generator().manual_seed(3)
    features, positions = (torch.randn(2, 48, size, generator=generator) for size in (8, 2))
    ours, kept = stage(features, positions)
    points = torch.cat([features, positions], -1)
    for row in range(2):
        for place, index in enumerate(spatial_sampler.farthest_points(positions, 16)[row].tolist()):
            assert torch.equal(kept[row, place], positions[row, index])
            near = (positions[row] - positions[row, index]).norm(dim=-1).argsort()[:5]
            own = points[row, index].expand(5, -1)
            joined = torch.cat([stage.difference(points[row, near] - own), own], -1)
            naive = stage.norm(torch.relu(stage.fuse(joined))).amax(0)
            torch.testing.assert_close(ours[row, place], naive, rtol=1e-4, atol=1e-5)


@torch.no_grad()
@PARTS
def test_a_batch_is_its_regions_one_by_one_in_any_order(part):
    maps, located = pointing(part)
    together = part.fill(maps, located)
    assert together.shape == (4, WIDTH)
    assert (together[:, None] - together[None]).abs().amax(-1).fill_diagonal_(1).min() > 1e-3, "they differ"
    for place in range(4):
        alone = part.fill(maps[place : place + 1], located[place : place + 1])[0]
        torch.testing.assert_close(together[place], alone, rtol=1e-4, atol=1e-5)
    order = [2, 3, 0, 1]
    other = part.fill([maps[place] for place in order], [located[place] for place in order])
    torch.testing.assert_close(other, together[order], rtol=1e-4, atol=1e-5)


@PARTS
def test_gradients_reach_every_tensor(part):
    part.zero_grad()
    maps, located = pointing(part)
    part.fill(maps, located).square().sum().backward()
    assert all(weight.grad.abs().sum() > 0 for weight in part.parameters())


@PARTS
def test_without_regions_there_is_nothing_but_the_parameters_in_the_graph(part):
    """So that processes with and without regions in their batch can be trained together."""
    part.zero_grad()
    filled = part.fill([], [])
    assert filled.shape == (0, WIDTH)
    filled.sum().backward()
    assert all(weight.grad is not None and not weight.grad.any() for weight in part.parameters())


def test_weights_are_stored_and_read():
    part, other = (attached(SpatialSampler(layers=(-1, 1), **SMALL)) for _ in range(2))
    with torch.no_grad():
        for weight in other.parameters():
            weight.mul_(-0.5)
        maps, located = pointing(part)
        assert not torch.equal(part.fill(maps, located), other.fill(maps, located))
        other.load_state_dict(part.state_dict())
        assert torch.equal(part.fill(maps, located), other.fill(maps, located))


def test_points_are_the_same_in_evaluation_and_drawn_in_training():
    part = attached(SpatialSampler(layers=(1,), **SMALL))
    mask = np.zeros((33, 57), bool)
    mask[5:30, 10:12] = True
    for region in (Region(mask=mask), Region(box_xyxy=(10, 5, 12, 30))):
        fixed = part.locate(region, WHOLE)
        assert fixed.dtype == torch.float32
        assert torch.equal(fixed, part.locate(region, WHOLE))
        part.train()
        drawn = [part.locate(region, WHOLE) for _ in range(2)]
        part.eval()
        assert not torch.equal(*drawn)
        for found in (fixed, *drawn):
            x, y = (found[0] * torch.tensor([57, 33])).unbind(-1)
            assert ((x >= 10 - 1e-4) & (x <= 12 + 1e-4) & (y >= 5 - 1e-4) & (y <= 30 + 1e-4)).all()


@torch.no_grad()
@pytest.mark.parametrize("cast", [False, True], ids=["autocast", "weights"])
def test_positions_stay_float32_in_half_precision(cast, monkeypatch):
    part = attached(SpatialSampler(layers=(-1, 1), **SMALL))
    maps, located = pointing(part)
    seen, gathered = [], []
    part.stages[-1].register_forward_hook(lambda _, __, output: gathered.append(output[0]))
    expected = part.fill(maps, located)
    chosen = spatial_sampler.farthest_points
    monkeypatch.setattr(
        spatial_sampler, "farthest_points", lambda points, count: seen.append(points) or chosen(points, count)
    )
    if cast:
        part, maps = part.bfloat16(), [{k: m.bfloat16() for k, m in found.items()} for found in maps]
    with torch.autocast("cpu", torch.bfloat16, enabled=not cast):
        ours = part.fill(maps, located)
    assert ours.dtype == torch.bfloat16
    assert (ours - expected).norm() < 0.05 * expected.norm()
    assert [points.dtype for points in seen] == [torch.float32] * 2
    assert gathered[1].dtype == torch.float32
    assert cast or torch.equal(*gathered), "neighbours differ by little: autocast begins after the stages"
    assert torch.equal(seen[0], torch.stack(located)[:, 0])


def test_of_the_size_of_ferrets():
    """2.11 M and 4.21 M in the stages, 33.56 M for the flattened points, 4.20 M to the language model."""
    part = attached(SpatialSampler(), channels=1024, device="meta", width=4096)
    assert round(sum(weight.numel() for weight in part.parameters()) / 1e6, 2) == 44.07


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(points=0), "`points` is 0"),
        (dict(points=128), "numbers that fall"),
        (dict(stages=()), "numbers that fall"),
        (dict(stages=32), "`stages` is 32"),
        (dict(stages=(32, 128)), "numbers that fall"),
        (dict(stages=(128, 0)), "numbers that fall"),
        (dict(points=512.0), "numbers that fall"),
        (dict(neighbours=129), "1 to 128"),
        (dict(neighbours=0), "`neighbours` is 0"),
        (dict(hidden=0), "`hidden` is 0"),
        (dict(legacy_xy_flip="yes"), "`legacy_xy_flip` is 'yes'"),
        (dict(layers=[]), "SpatialSampler: `layers` is empty"),
        (dict(token="zebra"), "a word that texts may have"),
    ],
    ids=str,
)
def test_sizes_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        SpatialSampler(**arguments)
    with pytest.raises(ConfigError, match=r"SpatialSampler: `layers` names \[9\]"):
        attached(SpatialSampler(layers=(9,)))
