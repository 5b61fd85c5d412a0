"""Isolated encoding: equal paths, no leak, and the unmodified tower's features where there is one group."""

from __future__ import annotations

import pytest
import torch
from tiny import tiny_llava

from flmm_detseg.compat.transformers5 import tower_body
from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.parts.isolated_tower import IsolatedTower, gathered_batch, isolated_states

LAYERS = (0, 1, 2, 3)


@pytest.fixture(scope="module")
def tower():
    model = tiny_llava().model
    with torch.no_grad():
        # Random attention is nearly uniform and features nearly equal: make patches differ.
        tower_body(model.model.vision_tower).embeddings.position_embedding.weight.normal_(
            generator=torch.Generator().manual_seed(2)
        )
        for layer in tower_body(model.model.vision_tower).encoder.layers:
            layer.self_attn.q_proj.weight.mul_(20)
    return model.model.vision_tower


def pixels(batch: int = 2) -> torch.Tensor:
    return torch.randn(batch, 3, 56, 56, generator=torch.Generator().manual_seed(0))


def some_groups(batch: int = 2, num_groups: int = 2) -> torch.Tensor:
    return torch.randint(0, num_groups, (batch, 16), generator=torch.Generator().manual_seed(1))


@torch.no_grad()
@pytest.mark.parametrize("num_groups", [1, 2, 3])
def test_one_group_is_the_unmodified_tower(tower, num_groups):
    plain = tower(pixels(), output_hidden_states=True).hidden_states
    ours = isolated_states(tower, pixels(), torch.zeros(2, 16, dtype=torch.int64), num_groups, LAYERS)
    for layer in LAYERS:
        torch.testing.assert_close(ours[layer], plain[layer][:, 1:], rtol=1e-6, atol=1e-6)


@torch.no_grad()
@pytest.mark.parametrize("num_groups", [2, 3])
def test_gather_path_equals_full_path(tower, num_groups):
    groups = some_groups(num_groups=num_groups)
    full = isolated_states(tower, pixels(), groups, num_groups, LAYERS)
    for image in range(2):
        for group in range(num_groups):
            indices = (groups[image] == group).nonzero().flatten()
            gathered = gathered_batch(tower, pixels()[[image]], indices, LAYERS)
            for layer in LAYERS:
                torch.testing.assert_close(
                    gathered[layer][0], full[layer][image, indices], rtol=1e-6, atol=1e-6
                )


@torch.no_grad()
def test_nothing_leaks_between_groups(tower):
    groups = some_groups()
    image = pixels()
    before = isolated_states(tower, image, groups, 2, LAYERS)
    changed = image.clone()
    for index in range(2):
        for patch in (groups[index] == 1).nonzero().flatten().tolist():
            y, x = patch // 4 * 14, patch % 4 * 14
            changed[index, :, y : y + 14, x : x + 14] += 3
    after = isolated_states(tower, changed, groups, 2, LAYERS)
    for layer in LAYERS:
        assert torch.equal(before[layer][groups == 0], after[layer][groups == 0])
        assert not torch.equal(before[layer][groups == 1], after[layer][groups == 1])
    # The unmodified tower does leak: the test can detect it.
    plain = [tower(value, output_hidden_states=True).hidden_states[2][:, 1:] for value in (image, changed)]
    assert (plain[0][groups == 0] - plain[1][groups == 0]).abs().max() > 1e-3


def test_no_gradient_crosses_groups(tower):
    image = pixels(1).requires_grad_()
    groups = some_groups(1)
    isolated_states(tower, image, groups, 2, (2,))[2][groups == 0].square().sum().backward()
    tiles = image.grad.view(1, 3, 4, 14, 4, 14).abs().amax((1, 3, 5)).view(1, 16)
    assert (tiles[groups == 1] == 0).all()
    assert (tiles[groups == 0] > 0).all()


def test_reading_layer_counts_from_the_embeddings(tower):
    assert IsolatedTower.of(tower, -2).feature_layer == 2
    assert IsolatedTower.of(tower, 1).feature_layer == 1
    with pytest.raises(ConfigError, match="one vision layer"):
        IsolatedTower.of(tower, [-2, -1])
    with pytest.raises(ConfigError, match="CLIP"):
        IsolatedTower.of(torch.nn.Linear(1, 1), -2)
