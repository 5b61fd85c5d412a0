"""Our numbers against those of the original F-LMM, stage by stage (tolerances of the reference's README)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import oracle as reference
import oracle_heads
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from flmm_detseg.heads import PhraseGroundingHead
from flmm_detseg.lmms.lmm import LMM
from flmm_detseg.structures import CaptureSpec, GroundingBatch, LMMStates

PATHS = reference.oracle_paths()
pytestmark = pytest.mark.skipif(not reference.ORACLE_DIR.is_dir(), reason=reference.SKIP_REASON)


@pytest.fixture(scope="module", params=PATHS, ids=lambda path: path.stem)
def oracle(request: pytest.FixtureRequest) -> reference.Oracle:
    return reference.load_oracle(request.param)


@pytest.fixture(scope="module")
def adapter(oracle: reference.Oracle) -> LMM:
    return reference.build_adapter(oracle)


@pytest.fixture(scope="module")
def batch(oracle: reference.Oracle, adapter: LMM) -> GroundingBatch:
    return reference.build_batch(oracle, adapter)


@pytest.fixture
def head(oracle: reference.Oracle) -> PhraseGroundingHead:
    return oracle_heads.build_head(oracle)


@pytest.fixture(scope="module")
def states(adapter: LMM, batch: GroundingBatch) -> LMMStates:
    """Attention and hidden rows of all samples, from our own adapter."""
    with torch.no_grad():
        return adapter.encode(batch.inputs, CaptureSpec(attention=True, hidden="all"))


@contextmanager
def language_model_calls(adapter: LMM) -> Iterator[list[dict[str, Any]]]:
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


def test_a_folder_that_is_there_holds_reference_files():
    """Without this, an empty folder would pass: nothing to parametrize the other tests with."""
    assert PATHS, f"{reference.ORACLE_DIR} holds no *.pt file"


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
        assert grid.padded_size == tuple(
            sample["meta_data"]["padded_shape"][side] for side in ("height", "width")
        )


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
            adapter.encode([item], CaptureSpec(hidden="all"))
        (call,) = calls
        close(
            call["inputs_embeds"][0], outputs["inputs_embeds"].reshape(call["inputs_embeds"].shape[1:]), 1e-4
        )
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
    states = adapter.encode(batch.inputs, CaptureSpec(hidden="all", logits=True))
    for index, (item, outputs) in enumerate(zip(batch.inputs, oracle.data["outputs"], strict=True)):
        rows = states.hidden[index]
        mixture = torch.einsum("l,lpd->pd", weights, rows.states)
        tokens, phrases = item.phrase_tokens.T.nonzero().unbind(1)
        assert torch.equal(rows.phrase_ids, phrases)
        theirs = outputs["hidden_states_mixture"].reshape(len(item.input_ids), -1)
        close(mixture, theirs[tokens], 1e-4)
        close(states.logits[index][-1], outputs["logits_last"].flatten(), 1e-4)
        assert states.logits_start[index] + len(states.logits[index]) == len(item.input_ids)


def test_head_has_the_reference_parameters(oracle, head):
    trainable = {name for name, parameter in head.named_parameters() if parameter.requires_grad}
    assert trainable == set(oracle.data["trainable_keys"])


@torch.no_grad()
def test_coarse_masks(oracle, head, batch, states):
    stored = [outputs["attention_stack"] for outputs in oracle.data["outputs"]]
    for stacks in (stored, states.attention):
        for ours, outputs in zip(head.coarse_logits(stacks, batch), oracle.data["outputs"], strict=True):
            close(ours, outputs["pred_masks"], 3e-4)


@torch.no_grad()
def test_text_tokens(oracle, head, states):
    for rows, outputs in zip(states.hidden, oracle.data["outputs"], strict=True):
        ours = head.text_prompt(rows)
        for phrase, theirs in enumerate(outputs["text_embeds"]):
            close(ours.tokens[ours.phrase_ids == phrase], theirs, 1e-4)


@torch.no_grad()
def test_sam_image_embeddings(oracle, head, batch):
    ours, index = head.sam.encode_images([sample.image for sample in batch.samples])
    for row, outputs in zip(index, oracle.data["outputs"], strict=True):
        close(ours[row], outputs["sam_image_embedding"].reshape(ours[row].shape), 1e-4)


@torch.no_grad()
def test_sam_prompts(oracle, head, batch, states):
    for coarse, sample, outputs in zip(
        head.coarse_logits(states.attention, batch), batch.samples, oracle.data["outputs"], strict=True
    ):
        assert sample.image_size == tuple(outputs["sam_original_size"])
        assert head.sam.input_size(sample.image_size) == tuple(outputs["sam_input_size"])
        prompt = head.sam.make_prompt(coarse, sample.image_size)
        close(prompt.mask_logits, outputs["sam_prompt_masks"].reshape(prompt.mask_logits.shape), 3e-4)
        close(prompt.boxes_xyxy, outputs["sam_boxes"].reshape(-1, 4), 1e-4)


def test_refined_masks(oracle, head, batch, states):
    together = head.predict(states, batch)
    stored = LMMStates(
        attention=[outputs["attention_stack"] for outputs in oracle.data["outputs"]], hidden=states.hidden
    )
    from_stored = head.predict(stored, batch)
    for ours, other, outputs in zip(together, from_stored, oracle.data["outputs"], strict=True):
        close(ours.refined_logits, outputs["sam_pred_masks"], 5e-4)
        close(other.refined_logits, outputs["sam_pred_masks"], 5e-4)


def test_refined_masks_from_the_reference_text(oracle, head, batch, states):
    images = [sample.image for sample in batch.samples]
    text = [oracle_heads.reference_text(oracle, index) for index in range(len(images))]
    coarse = [outputs["pred_masks"] for outputs in oracle.data["outputs"]]
    with torch.no_grad():
        refined = head.sam(images, coarse, text)
    for ours, outputs in zip(refined, oracle.data["outputs"], strict=True):
        close(ours, outputs["sam_pred_masks"], 5e-4)


@pytest.mark.parametrize(
    ("variant", "switch", "value"),
    [
        ("no_text", "use_text", False),
        ("no_box", "use_box", False),
        ("no_mask", "use_mask", False),
        ("multimask", "multimask_output", True),
    ],
)
def test_prompt_variants(oracle, head, batch, states, variant, switch, value):
    setattr(head.sam, switch, value)
    compared = 0
    for ours, outputs in zip(head.predict(states, batch), oracle.data["outputs"], strict=True):
        theirs = outputs["variants"][variant]
        # The choice among candidates is only defined where their IoUs differ by more than rounding (0: all
        # equal).
        margins = torch.tensor(theirs.get("iou_margins", [0.0] * len(ours.refined_logits))).flatten()
        decided = (margins == 0) | (margins > 1e-4)
        close(ours.refined_logits[decided], theirs["sam_pred_masks"][decided], 5e-4)
        compared += int(decided.sum())
    assert compared > 0


def test_empty_coarse_masks(oracle, head, batch, states):
    variants = [outputs["variants"]["empty_mask"] for outputs in oracle.data["outputs"]]
    with torch.no_grad():
        head.mask_head.conv_seg.bias += variants[0]["conv_seg_bias_shift"]
    for ours, theirs in zip(head.predict(states, batch), variants, strict=True):
        close(ours.coarse_logits, theirs["pred_masks"], 3e-4)
        close(ours.refined_logits, theirs["sam_pred_masks"], 5e-4)


def test_max_merge_reaches_the_masks(oracle, head, batch):
    adapter = reference.build_adapter(oracle, merge="max")
    for ours, outputs in zip(
        head.predict(adapter.encode(batch.inputs, head.capture), batch), oracle.data["outputs"], strict=True
    ):
        close(ours.coarse_logits, outputs["variants"]["merge_max"]["pred_masks"], 3e-4)
        close(ours.refined_logits, outputs["variants"]["merge_max"]["sam_pred_masks"], 5e-4)


def assert_same_figures(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        rtol, atol = (1e-5, 1e-6) if "loss" in name else (0, 1e-4)
        torch.testing.assert_close(value.detach(), theirs[name].float(), rtol=rtol, atol=atol)


def test_losses(oracle, head, batch, states):
    # The reference's targets are at processor size already: from there they go straight to the prediction's
    # size.
    head.train().target_resolution = "full"
    targets = oracle_heads.with_reference_targets(oracle, batch)
    figures = head.loss(states, targets)
    assert_same_figures(figures, oracle.data["loss"])
    total = sum(value for name, value in figures.items() if "loss" in name)
    torch.testing.assert_close(total.detach(), oracle.data["loss_total"].float(), rtol=1e-5, atol=1e-6)
    for index, theirs in enumerate(oracle.data["loss_per_sample"]):
        alone = LMMStates(attention=[states.attention[index]], hidden=[states.hidden[index]])
        assert_same_figures(
            head.loss(alone, GroundingBatch([targets.samples[index]], [targets.inputs[index]])), theirs
        )


def test_losses_from_original_masks(oracle, head, batch, states):
    if oracle.kind != "llava":
        pytest.skip("the reference's LLaVA-NeXT targets are compared as they are")
    assert head.target_resolution == "processor"
    assert_same_figures(head.train().loss(states, batch), oracle.data["loss"])


def test_gradients(oracle, head, batch, states):
    head.train().target_resolution = "full"
    figures = head.loss(states, oracle_heads.with_reference_targets(oracle, batch))
    sum(value for name, value in figures.items() if "loss" in name).backward()
    reference_grads, without = oracle.data["grads"], set(oracle.data["no_grad_keys"])
    for name, parameter in head.named_parameters():
        if not parameter.requires_grad or name in without:
            assert parameter.grad is None, name
            continue
        theirs = reference_grads[name]
        if theirs.norm() < 1e-6:  # key biases: softmax does not see them, only rounding remains
            assert parameter.grad.norm() < 1e-4, name
            continue
        exact = name.startswith(("text_", "mask_head.conv_seg"))
        assert oracle_heads.relative_error(parameter.grad, theirs) < (1e-3 if exact else 2e-2), name
