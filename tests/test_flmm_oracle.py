"""Our numbers against those of the original F-LMM, stage by stage (tolerances of the reference's README)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import oracle as reference
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flmm_detseg.lmms.hf_adapter import HFLlavaAdapter
from flmm_detseg.structures import CaptureSpec, GroundingBatch

PATHS = reference.oracle_paths()
pytestmark = pytest.mark.skipif(not PATHS, reason=reference.SKIP_REASON)


@pytest.fixture(scope="module", params=PATHS, ids=lambda path: path.stem)
def oracle(request: pytest.FixtureRequest) -> reference.Oracle:
    return reference.load_oracle(request.param)


@pytest.fixture(scope="module")
def adapter(oracle: reference.Oracle) -> HFLlavaAdapter:
    return reference.build_adapter(oracle)


@pytest.fixture(scope="module")
def batch(oracle: reference.Oracle, adapter: HFLlavaAdapter) -> GroundingBatch:
    return reference.build_batch(oracle, adapter)


@contextmanager
def language_model_calls(adapter: HFLlavaAdapter) -> Iterator[list[dict[str, Any]]]:
    """Records the keyword arguments of the language model."""
    calls: list[dict[str, Any]] = []
    hook = adapter.model.model.language_model.register_forward_pre_hook(
        lambda _, __, kwargs: calls.append(kwargs), with_kwargs=True
    )
    try:
        yield calls
    finally:
        hook.remove()


def close(ours: Tensor, theirs: Tensor, atol: float) -> None:
    assert ours.shape == theirs.shape
    torch.testing.assert_close(ours, theirs, rtol=0, atol=atol)


def test_processor_gives_the_reference_pixels(oracle, adapter):
    std = adapter.processor._std
    for index, sample in enumerate(oracle.data["samples"]):
        ours, grid = adapter.processor.process_image(sample["image"].numpy())
        theirs = sample["pixel_values"].reshape(ours.shape)
        # One grey level: Pillow versions round bicubic weights differently.
        assert ((ours - theirs).abs() * std).max() <= 1 / 255 + 1e-5, index
        assert grid.image_size == tuple(sample["image_sizes"].flatten().tolist())
        assert grid.resized_size == tuple(sample["masks"].shape[-2:])


def test_llava_padding_is_the_reference_padding(oracle, adapter):
    if oracle.kind != "llava":
        pytest.skip("only LLaVA-1.5 maps are un-padded")
    for sample in oracle.data["samples"]:
        _, grid = adapter.processor.process_image(sample["image"].numpy())
        padding = sample["meta_data"]["padding"]
        assert (grid.pad_top, grid.pad_left) == (padding["before_height"], padding["before_width"])
        assert grid.padded_size == tuple(sample["meta_data"]["padded_shape"][side] for side in ("height", "width"))


def test_expanded_sequence_and_grid(oracle, batch):
    for item, outputs in zip(batch.inputs, oracle.data["outputs"], strict=True):
        expanded = outputs["mask_ids_expanded"].flatten()
        assert torch.equal(item.image_mask, outputs["image_positions"].flatten())
        assert torch.equal(item.phrase_tokens, expanded == torch.arange(item.num_phrases)[:, None])
        assert torch.equal(item.labels, outputs["labels_expanded"].flatten())
        assert item.grid.output_grid == tuple(outputs["attention_stack"].shape[-2:])


def test_embeddings_and_positions(oracle, adapter, batch):
    for item, outputs in zip(batch.inputs, oracle.data["outputs"], strict=True):
        with language_model_calls(adapter) as calls:
            adapter.encode([item], CaptureSpec(hidden=True))
        (call,) = calls
        close(call["inputs_embeds"][0], outputs["inputs_embeds"].reshape(call["inputs_embeds"].shape[1:]), 1e-4)
        # The language model counts from 0 when it is given no positions.
        assert call.get("position_ids") is None
        assert torch.equal(outputs["position_ids"].flatten(), torch.arange(len(item.input_ids)))


def test_layer0_rows_of_every_token(oracle, batch):
    first_layer = reference.build_adapter(oracle, layers=[0])
    for item, outputs in zip(batch.inputs, oracle.data["outputs"], strict=True):
        length = len(item.input_ids)
        every_token = replace(item, phrase_tokens=torch.eye(length, dtype=torch.bool))
        (ours,) = first_layer.encode([every_token], CaptureSpec(attention=True)).attention
        full = outputs["layer0_attention"].reshape(-1, length, length)
        levels = full[:, :, item.image_mask].split([level.num_tokens for level in item.grid.levels], dim=-1)
        maps = [
            values.unflatten(-1, (level.rows, -1))[..., : level.cols].transpose(0, 1)
            for values, level in zip(levels, item.grid.levels, strict=True)
        ]
        size = item.grid.output_grid
        coarse = [F.interpolate(values, size=size, mode="bilinear") for values in maps[:-1]]
        close(ours, torch.cat([*coarse, maps[-1]], dim=1), 1e-5)


@pytest.mark.parametrize("attention", ["rows", "eager"])
@pytest.mark.parametrize("merge", ["mean", "max"])
def test_attention_stack(oracle, batch, merge, attention):
    adapter = reference.build_adapter(oracle, merge=merge, attention=attention)
    one_by_one = [adapter.encode([item], CaptureSpec(attention=True)).attention[0] for item in batch.inputs]
    together = adapter.encode(batch.inputs, CaptureSpec(attention=True)).attention
    for outputs, alone, batched in zip(oracle.data["outputs"], one_by_one, together, strict=True):
        theirs = (outputs if merge == "mean" else outputs["variants"]["merge_max"])["attention_stack"]
        assert adapter.attention_channels == theirs.shape[1] == oracle.data["config"]["in_channels"]
        close(alone, theirs, 1e-5)
        close(batched, theirs, 1e-5)


def test_hidden_mixture_and_logits(oracle, adapter, batch):
    weights = oracle.data["state_dict"]["text_layer_weights"].softmax(0)
    states = adapter.encode(batch.inputs, CaptureSpec(hidden=True, logits=True))
    for index, (item, outputs) in enumerate(zip(batch.inputs, oracle.data["outputs"], strict=True)):
        rows = states.hidden[index]
        mixture = torch.einsum("l,lpd->pd", weights, rows.states)
        tokens, phrases = item.phrase_tokens.T.nonzero().unbind(1)
        assert torch.equal(rows.phrase_ids, phrases)
        theirs = outputs["hidden_states_mixture"].reshape(len(item.input_ids), -1)
        close(mixture, theirs[tokens], 1e-4)
        close(states.logits[index][-1], outputs["logits_last"].flatten(), 1e-4)
        assert states.logits_start[index] + len(states.logits[index]) == len(item.input_ids)
