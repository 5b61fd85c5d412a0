"""Grounding with a folder of an unmodified LMM: masks are those made by hand of the rows that AttentionReader gives."""

from __future__ import annotations

import numpy as np
import pytest
from head_rankings import ranking_file
from scipy import ndimage
from tiny_families import build

from flmm_detseg import AttentionReader, Grounder
from flmm_detseg.errors import ConfigError

IMAGE = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
TEXT = "a red circle left of a blue square"
PHRASES = ["a red circle", "square"]


# Ragged grids, tiles beside the whole image, windows in the language model.
@pytest.mark.parametrize("family", ["qwen3_vl", "smolvlm", "gemma3"])
def test_a_folder_of_any_family_grounds(family, tmp_path):
    lmm = build(family)
    lmm.model.save_pretrained(tmp_path)
    lmm.processor.hub.save_pretrained(tmp_path)
    layer = lmm.attention_pairs[-1][0]
    pairs = [(layer, 2), (layer, 0), (layer, 1)]
    ranking = ranking_file(tmp_path / "mine.json", lmm.facts.num_layers, lmm.facts.num_heads, pairs)
    maps = AttentionReader.from_pretrained(str(tmp_path), device="cpu").read(IMAGE, TEXT, PHRASES)
    window = maps.grid.crop_window(maps.grid.output_grid)
    for given, chosen in (
        (dict(ranking=ranking, heads=2), [(layer, 2), (layer, 0)]),
        ({}, lmm.attention_pairs),
    ):
        grounder = Grounder.from_lmm(str(tmp_path), device="cpu", **given)
        result = grounder.ground(IMAGE, TEXT, PHRASES)
        assert result.masks.shape == (2, 90, 120)
        for index in range(2):
            # [levels, heads, rows, cols]
            rows = np.stack([maps.rows(index, layer=one, head=head) for one, head in chosen], 1)[..., *window]
            mean = (rows / rows.sum((-2, -1), keepdims=True)).mean((0, 1))
            smooth = ndimage.gaussian_filter(mean, 0.7, mode="nearest", radius=3)
            half = (smooth.min() + smooth.max()) / 2
            np.testing.assert_array_equal(result.coarse_logits[index] > 0, smooth > half)
            assert 0 < (smooth > half).mean() < 1
    with pytest.raises(ConfigError, match=r"'vicuna' \(--prompt-template\).*a template of its own"):
        Grounder.from_lmm(str(tmp_path), device="cpu", prompt_template="vicuna")
