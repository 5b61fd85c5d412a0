from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from sam_parts import SIZES, make_refiner
from tiny import one_image

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.heads import PhraseGroundingHead, UNetHead
from flmm_detseg.heads.losses import MaskLoss
from flmm_detseg.heads.phrase_head import PhraseReading
from flmm_detseg.refiners import SAMRefiner, build_sam
from flmm_detseg.structures import (
    CaptureSpec,
    GridLevel,
    GroundingBatch,
    HiddenRows,
    LMMInputs,
    LMMStates,
    PatchGrid,
    Phrase,
    Sample,
)

CHANNELS, LAYERS, HIDDEN = 6, 3, 8
LANDSCAPE = PatchGrid((30, 60), (28, 56), 14, 0, (56, 56), (GridLevel(4, 4),))
PORTRAIT = PatchGrid((80, 40), (56, 28), 0, 14, (56, 56), (GridLevel(4, 4),))
UNPADDED = PatchGrid((50, 50), (60, 40), 0, 0, (60, 40), (GridLevel(4, 4), GridLevel(6, 4, newline_cols=1)))


def make_head(sam=True, **changes) -> PhraseGroundingHead:
    torch.manual_seed(0)
    mask_head = UNetHead(CHANNELS, base_channels=4, upsample_input=16)
    refiner = make_refiner() if sam is True else sam
    return PhraseGroundingHead(mask_head, refiner, LAYERS, HIDDEN, SIZES.prompt_dim, **changes).eval()


def make_case(grids_and_counts=((LANDSCAPE, 2), (PORTRAIT, 3), (UNPADDED, 1)), seed=0):
    """States and batch without an LMM: random attention, hidden rows, images; rectangles as targets."""
    generator, rng = torch.Generator().manual_seed(seed), np.random.default_rng(seed)
    samples, inputs, attention, hidden = [], [], [], []
    for index, (grid, count) in enumerate(grids_and_counts):
        height, width = grid.image_size
        masks = np.zeros((count, height, width), dtype=bool)
        for phrase in range(count):
            masks[phrase, height // 4 : height // 2 + phrase, width // 4 : width // 2] = True
        samples.append(
            Sample(
                record_id=f"case/{index}",
                image=rng.integers(0, 256, (height, width, 3), dtype=np.uint8),
                text="x",
                phrases=tuple(Phrase(spans=((0, 1),)) for _ in range(count)),
                masks=masks,
            )
        )
        no_tokens = torch.zeros(0, dtype=torch.long)
        inputs.append(
            LMMInputs(
                input_ids=no_tokens,
                phrase_tokens=torch.zeros(count, 0, dtype=torch.bool),
                labels=no_tokens,
                image_mask=no_tokens.bool(),
                prefix_length=0,
                images=one_image(torch.zeros(0), grid),
                record_id=f"case/{index}",
            )
        )
        attention.append(torch.rand(count, CHANNELS, *grid.output_grid, generator=generator) / 20)
        ids = torch.arange(count).repeat_interleave(2)
        hidden.append(HiddenRows(torch.randn(LAYERS, 2 * count, HIDDEN, generator=generator), ids))
    return LMMStates(attention=attention, hidden=hidden), GroundingBatch(samples, inputs)


def select(states: LMMStates, batch: GroundingBatch, index: int):
    one = LMMStates(attention=[states.attention[index]], hidden=[states.hidden[index]])
    return one, GroundingBatch([batch.samples[index]], [batch.inputs[index]])


def test_predictions_lie_in_the_original_image():
    head = make_head(keep_attention=True)
    states, batch = make_case()
    for prediction, sample, stack in zip(
        head.predict(states, batch), batch.samples, states.attention, strict=True
    ):
        count = len(sample.phrases)
        assert prediction.record_id == sample.record_id
        assert prediction.mask_logits.shape == (count, *sample.image_size)
        assert prediction.mask_logits is prediction.refined_logits
        assert torch.equal(prediction.masks, prediction.mask_logits > 0)
        assert prediction.boxes_xyxy.shape == (count, 4)
        assert prediction.attention is stack
        pairs = zip(prediction.mask_logits.sigmoid(), prediction.masks)
        inside = [float(probability[mask].mean()) if mask.any() else 0.0 for probability, mask in pairs]
        torch.testing.assert_close(prediction.scores, torch.tensor(inside))
        assert not prediction.mask_logits.requires_grad


def test_padding_is_cut_off_the_coarse_masks():
    states, batch = make_case()
    sizes = [tuple(p.coarse_logits.shape[-2:]) for p in make_head().predict(states, batch)]
    assert sizes == [(8, 16), (16, 8), (16, 10)]


def test_without_refiner_the_coarse_mask_is_resized():
    head = make_head(sam=None)
    assert head.capture == CaptureSpec(attention=True)
    assert {name.split(".")[0] for name, _ in head.named_parameters()} == {"mask_head"}
    states, batch = make_case()
    states = replace(states, hidden=None)
    prediction = head.predict(states, batch)[0]
    assert prediction.refined_logits is None
    assert prediction.attention is None
    assert prediction.mask_logits.shape == (2, 30, 60)
    assert head.loss(states, batch).keys() == {"loss_mask", "loss_dice", "accuracy", "aiou"}


def test_refiner_without_text_needs_no_hidden_rows():
    head = make_head(sam=make_refiner(use_text=False))
    assert not head.capture.hidden
    assert not any(name.startswith("text_") for name, _ in head.named_parameters())
    states, batch = make_case()
    assert "sam_loss_mask" in head.loss(replace(states, hidden=None), batch)
    assert make_head().capture == CaptureSpec(attention=True, hidden="all")


def test_batch_equals_single_samples():
    head = make_head()
    states, batch = make_case()
    for index, together in enumerate(head.predict(states, batch)):
        (alone,) = head.predict(*select(states, batch, index))
        torch.testing.assert_close(together.coarse_logits, alone.coarse_logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(together.refined_logits, alone.refined_logits, rtol=1e-5, atol=1e-5)


def test_loss_of_a_batch_weighs_every_mask_equally():
    head = make_head()
    states, batch = make_case()
    together = head.loss(states, batch)
    counts = torch.tensor([2.0, 3.0, 1.0])
    alone = [head.loss(*select(states, batch, index)) for index in range(3)]
    for name, value in together.items():
        expected = (counts / 6 * torch.stack([figures[name].detach() for figures in alone])).sum()
        torch.testing.assert_close(value.detach(), expected, rtol=1e-5, atol=1e-6)
        assert value.requires_grad == ("loss" in name)


def test_samples_without_phrases_count_nothing():
    head = make_head()
    some = make_case(((LANDSCAPE, 2), (PORTRAIT, 0)))
    expected = head.loss(*select(*some, 0))
    for name, value in head.loss(*some).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6)
    nothing = head.loss(*make_case(((LANDSCAPE, 0),)))
    assert all(value == 0 for value in nothing.values())
    sum(value for name, value in nothing.items() if "loss" in name).backward()
    assert head.predict(*some)[1].masks.shape == (0, 80, 40)


def test_target_resolution():
    states, batch = make_case(((LANDSCAPE, 1),))
    targets = {}
    for resolution in ("processor", "full"):
        head = make_head(target_resolution=resolution)
        (targets[resolution],) = head._targets(batch, [torch.zeros(1, 30, 60)])
    assert torch.equal(targets["full"], torch.from_numpy(batch.samples[0].masks))
    # Through 28 x 56 pixels and back, nearest: rows 0, 14 of 30 are doubled or lost.
    assert not torch.equal(targets["processor"], targets["full"])
    rows = (torch.arange(30) * 28 // 30) * 30 // 28
    cols = (torch.arange(60) * 56 // 60) * 60 // 56
    assert torch.equal(targets["processor"], targets["full"][:, rows][:, :, cols])


def test_missing_targets_name_the_record():
    states, batch = make_case()
    first, second, third = batch.samples
    bad = GroundingBatch([first, replace(second, masks=None), third], batch.inputs)
    with pytest.raises(DataError, match="case/1: no target masks, 3 phrases"):
        make_head().loss(states, bad)


def test_every_trainable_tensor_but_ten_gets_a_gradient():
    head = make_head().train()
    figures = head.loss(*make_case())
    sum(value for name, value in figures.items() if "loss" in name).backward()
    without = {name for name, p in head.named_parameters() if p.requires_grad and p.grad is None}
    assert len(without) == 10
    assert all(name.startswith("sam.model.") for name in without)
    assert head.text_layer_weights.grad.abs().sum() > 0


def test_loss_falls_in_training():
    head = make_head().train()
    states, batch = make_case()
    optimizer = torch.optim.AdamW([p for p in head.parameters() if p.requires_grad], lr=5e-3)
    totals = []
    for _ in range(12):
        figures = head.loss(states, batch)
        total = sum(value for name, value in figures.items() if "loss" in name)
        optimizer.zero_grad()
        total.backward()
        optimizer.step()
        totals.append(total.item())
    assert totals[-1] < 0.9 * totals[0]


def test_half_precision_head_runs():
    head = make_head()
    states, batch = make_case()
    expected = head.loss(states, batch)
    for name, value in head.to(torch.bfloat16).loss(states, batch).items():
        assert value.dtype == torch.float32
        if "loss" in name:
            torch.testing.assert_close(value, expected[name], rtol=0.05, atol=0)


def test_layers_are_mixed_in_float32_under_autocast():
    head = make_head()
    states, _ = make_case()
    mixtures = []
    head.text_proj.register_forward_pre_hook(lambda _, args: mixtures.append(args[0]))
    exact = head.text_prompt(states.hidden[1]).tokens
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under_autocast = head.text_prompt(states.hidden[1]).tokens
    assert mixtures[1].dtype == torch.float32
    assert torch.equal(mixtures[0], mixtures[1])
    assert under_autocast.dtype == torch.bfloat16  # the projection itself does follow autocast
    torch.testing.assert_close(under_autocast.float(), exact, rtol=0.02, atol=0.02)


def test_settings_that_cannot_be():
    with pytest.raises(ConfigError, match="text_dim=256.*16 channels"):
        PhraseGroundingHead(UNetHead(4, 4), make_refiner(), LAYERS, HIDDEN)
    with pytest.raises(ConfigError, match="processor, full"):
        make_head(target_resolution="original")


def test_mask_loss_formula():
    logits, targets = torch.tensor([[[2.0, -1.0]]]), torch.tensor([[[True, True]]])
    figures = MaskLoss(mask_weight=2.0, dice_weight=0.5)([logits], [targets])
    probability = logits.sigmoid()
    torch.testing.assert_close(figures["loss_mask"], 2 * -probability.log().mean())
    dice = 1 - (2 * probability.sum() + 1) / (probability.sum() + 3)
    torch.testing.assert_close(figures["loss_dice"], 0.5 * dice)
    assert figures["accuracy"] == 0.5
    assert figures["aiou"] == 0.5


def expected_mask_head(channels: int) -> dict[str, tuple[int, ...]]:
    """Shapes of reference/flmm.md, section 3."""
    shapes: dict[str, tuple[int, ...]] = {"conv_seg.weight": (1, 64, 1, 1), "conv_seg.bias": (1,)}

    def conv(name: str, inside: int, outside: int, kernel: int = 3) -> None:
        shapes[f"{name}.conv.weight"] = (outside, inside, kernel, kernel)
        shapes[f"{name}.gn.weight"] = shapes[f"{name}.gn.bias"] = (outside,)

    widths = (64, 128, 256, 512)
    for stage, width in enumerate(widths):
        name = f"encoder.{stage}.{min(stage, 1)}.convs"
        conv(f"{name}.0", widths[stage - 1] if stage else channels, width)
        conv(f"{name}.1", width, width)
    for stage, width in enumerate(widths[:-1]):
        conv(f"decoder.{stage}.conv_block.convs.0", 2 * width, width)
        conv(f"decoder.{stage}.conv_block.convs.1", width, width)
        conv(f"decoder.{stage}.upsample.interp_upsample.1", 2 * width, width, 1)
    return {f"mask_head.{name}": shape for name, shape in shapes.items()}


def test_trainable_tensors_of_the_7b_shapes_are_those_of_published_checkpoints():
    with torch.device("meta"):
        sam = SAMRefiner(build_sam("vit_l"))
        head = PhraseGroundingHead(UNetHead(1024), sam, num_layers=32, hidden_size=4096)
    ours = {name: tuple(p.shape) for name, p in head.named_parameters() if p.requires_grad}
    groups = {
        prefix: {name: shape for name, shape in ours.items() if name.startswith(prefix)}
        for prefix in ("mask_head.", "text_", "sam.model.prompt_encoder.", "sam.model.mask_decoder.")
    }
    assert [len(group) for group in groups.values()] == [53, 3, 16, 120]
    assert len(ours) == 192
    assert groups["mask_head."] == expected_mask_head(1024)
    assert groups["text_"] == {
        "text_layer_weights": (32,),
        "text_proj.weight": (256, 4096),
        "text_proj.bias": (256,),
    }
    prompt = groups["sam.model.prompt_encoder."]
    single = [*(f"point_embeddings.{index}" for index in range(4)), "not_a_point_embed", "no_mask_embed"]
    assert all(prompt.pop(f"sam.model.prompt_encoder.{name}.weight") == (1, 256) for name in single)
    downscaling = {0: (4, 1, 2, 2), 1: (4,), 3: (16, 4, 2, 2), 4: (16,), 6: (256, 16, 1, 1)}
    for index, shape in downscaling.items():
        name = f"sam.model.prompt_encoder.mask_downscaling.{index}"
        assert (prompt.pop(f"{name}.weight"), prompt.pop(f"{name}.bias")) == (shape, shape[:1])
    assert not prompt
    # 4.06 M parameters of segment-anything's own decoder.
    assert sum(torch.Size(shape).numel() for shape in groups["sam.model.mask_decoder."].values()) == 4_058_340
    (buffer,) = dict(head.sam.model.prompt_encoder.named_buffers()).items()
    assert (buffer[0], tuple(buffer[1].shape)) == ("pe_layer.positional_encoding_gaussian_matrix", (2, 128))


def test_calls_of_a_few_phrases_equal_one_call():
    states, batch = make_case()
    whole = make_head().predict(states, batch)
    head = make_head(phrases_per_call=2)
    calls = []
    head.mask_head.conv_seg.register_forward_hook(lambda _, __, output: calls.append(len(output)))
    for ours, expected in zip(head.predict(states, batch), whole, strict=True):
        torch.testing.assert_close(ours.coarse_logits, expected.coarse_logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.refined_logits, expected.refined_logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.scores, expected.scores, rtol=1e-5, atol=1e-5)
    assert calls == [2, 2, 1, 1]  # five stacks of one size, one of another
    calls.clear()
    head.loss(states, batch)
    assert calls == [5, 1], "training is one call a size"
    assert PhraseGroundingHead(head.mask_head, None, LAYERS, HIDDEN).phrases_per_call == 32


def test_readings_in_parts_are_one_reading():
    head = make_head(phrases_per_call=3)
    states, batch = make_case(((LANDSCAPE, 5),))
    (whole,) = head.read(states, batch, keep_attention=True)
    parts = []
    for part in (slice(0, 2), slice(2, 5)):
        rows = states.hidden[0]
        inside = (rows.phrase_ids >= part.start) & (rows.phrase_ids < part.stop)
        some = LMMStates(
            attention=[states.attention[0][part]],
            hidden=[HiddenRows(rows.states[:, inside], rows.phrase_ids[inside] - part.start)],
        )
        parts += head.read(some, batch, keep_attention=True)
    joined = PhraseReading.join(parts, torch.cat([part.coarse_logits for part in parts]))
    assert torch.equal(joined.text.phrase_ids, whole.text.phrase_ids)
    torch.testing.assert_close(joined.text.tokens, whole.text.tokens)
    torch.testing.assert_close(joined.coarse_logits, whole.coarse_logits)
    assert torch.equal(joined.attention, states.attention[0])


@pytest.mark.parametrize("name", ["phrases_per_call", "phrases_per_pass"])
def test_numbers_of_phrases_are_positive(name):
    with pytest.raises(ConfigError, match=name):
        make_head(**{name: 0})


def test_weights_of_the_losses_are_those_of_their_names():
    states, batch = make_case()
    plain = make_head().loss(states, batch)
    weighted = make_head(loss_mask_weight=2.0, loss_dice_weight=5.0).loss(states, batch)
    for prefix in ("", "sam_"):
        torch.testing.assert_close(weighted[f"{prefix}loss_mask"], 2 * plain[f"{prefix}loss_mask"])
        torch.testing.assert_close(weighted[f"{prefix}loss_dice"], 5 * plain[f"{prefix}loss_dice"])


def test_text_prompt_mixes_layers_by_the_softmax_of_their_weights():
    head = make_head()
    states, _ = make_case()
    with torch.no_grad():
        head.text_layer_weights.copy_(torch.tensor([0.3, -1.0, 2.0]))
        prompt = head.text_prompt(states.hidden[0])
        shares = torch.tensor([0.3, -1.0, 2.0]).exp()
        mixture = sum(share * layer for share, layer in zip(shares / shares.sum(), states.hidden[0].states))
        torch.testing.assert_close(prompt.tokens, head.text_proj(mixture))
