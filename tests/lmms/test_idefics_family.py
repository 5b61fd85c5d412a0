"""What Idefics3 and SmolVLM share: wrong positions of patches that transformers gives are counted and named."""

from __future__ import annotations

import pytest
import torch
from transformers.models.idefics3.configuration_idefics3 import Idefics3Config, Idefics3VisionConfig
from transformers.models.idefics3.modeling_idefics3 import Idefics3VisionEmbeddings

from flmm_detseg.lmms import idefics_family
from flmm_detseg.lmms.families.idefics3 import Idefics3Adapter
from flmm_detseg.lmms.idefics_family import wrong_rows

DTYPES = [torch.float32, torch.bfloat16, torch.float16]
# Transformers 5.24 computes positions in float32, whatever the dtype, and gets them right.
MENDED = wrong_rows(Idefics3VisionEmbeddings, 4, torch.float32) == 0


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("side", [4, 26, 27, 32])
def test_wrong_rows_are_those_that_the_tower_reads(side, dtype):
    config = Idefics3VisionConfig(image_size=2 * side, patch_size=2, hidden_size=4)
    embeddings = Idefics3VisionEmbeddings(config).to(dtype)
    read = []
    embeddings.position_embedding.register_forward_hook(lambda _, given, __: read.append(given[0]))
    pixels, mask = torch.zeros(1, 3, 2 * side, 2 * side, dtype=dtype), torch.ones(1, side, side)
    embeddings(pixels, mask.bool())
    rows, columns = read[0].view(side, side)[:, 0] // side, read[0].view(side, side)[0] % side
    wrong = int((rows != torch.arange(side)).sum())
    assert (
        wrong_rows(Idefics3VisionEmbeddings, side, dtype)
        == wrong
        == int((columns != torch.arange(side)).sum())
    )
    assert (wrong > 0) == (not MENDED and (dtype == torch.float32 or side in (26, 27)))


@pytest.mark.skipif(MENDED, reason="this transformers gives the right positions")
@pytest.mark.parametrize(
    ("side", "dtype", "named"),
    [
        (4, "float32", "float32: 3 of 4 rows"),
        (26, "bfloat16", "bfloat16: 10 of 26 rows"),
        (4, "bfloat16", None),
    ],
)
@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_a_model_with_wrong_positions_is_named_when_it_is_built(side, dtype, named, device, monkeypatch):
    said = []
    monkeypatch.setattr(idefics_family, "print_log", lambda text, **_: said.append(text))
    text = dict(
        model_type="llama", vocab_size=8, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, pad_token_id=0,
    )  # fmt: skip
    vision = dict(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, patch_size=2,
        image_size=2 * side,
    )  # fmt: skip
    config = Idefics3Config(text_config=text, vision_config=vision, scale_factor=2, pad_token_id=0)
    with torch.device(device):
        Idefics3Adapter.from_config(config, dtype=dtype)
    assert [named in line for line in said] == ([] if named is None else [True])
