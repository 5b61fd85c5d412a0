"""The assembly: modes, prefixes, freezing, building from config, batches against single samples."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import tiny
import torch
from sam_parts import make_refiner
from tiny import make_sample, mixed_samples

from flmm_detseg.errors import CheckpointError, ConfigError, RunError
from flmm_detseg.evaluation.records import phrase_records
from flmm_detseg.heads import DetectionHead, PhraseGroundingHead, SemanticSegHead, UNetHead, VisionNeck
from flmm_detseg.models import GroundingLMM
from flmm_detseg.structures import LMMStates

UNET = dict(type=UNetHead, base_channels=8, num_stages=3, upsample_input=16)


def head(**changes) -> dict:
    return dict(type=PhraseGroundingHead, mask_head=UNET, sam=dict(type=make_refiner), text_dim=16) | changes


def build(**changes) -> GroundingLMM:
    torch.manual_seed(0)
    arguments = dict(lmm=dict(type=tiny.tiny_llava), heads=dict(phrase=head())) | changes
    return GroundingLMM(**arguments)


@pytest.fixture(scope="module")
def model() -> GroundingLMM:
    return build().eval()


def test_three_modes(model):
    samples = [make_sample(0), make_sample(1)]
    losses = model(samples, mode="loss")
    assert {name for name in losses if "loss" in name} == {
        "phrase.loss_mask", "phrase.loss_dice", "phrase.sam_loss_mask", "phrase.sam_loss_dice",
        "objective.loss_phrase", "objective.loss_reach",
    }  # fmt: skip
    predictions = model(samples, mode="predict")
    assert [p.record_id for p in predictions] == ["tiny/0", "tiny/1"]
    assert isinstance(model(samples, mode="tensor"), LMMStates)
    with pytest.raises(ConfigError, match="'train' is none of loss, predict, tensor"):
        model(samples, mode="train")


def test_mmengine_steps_take_collated_batches(model):
    batch = {"samples": [make_sample(0)]}
    assert len(model.val_step(batch)) == 1
    loss, logged = model.parse_losses(model(**model.data_preprocessor(batch, True), mode="loss"))
    terms = [value for name, value in logged.items() if "loss_" in name]
    assert len(terms) == 4
    torch.testing.assert_close(loss, sum(terms))


def test_a_mixed_batch_equals_single_samples(model):
    samples = mixed_samples()
    together = model.predict(samples)
    for sample, prediction in zip(samples, together):
        (alone,) = model.predict([sample])
        torch.testing.assert_close(prediction.coarse_logits, alone.coarse_logits, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(prediction.refined_logits, alone.refined_logits, rtol=1e-5, atol=1e-5)


@pytest.mark.case("model/nan_prediction")
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_predictions_that_are_no_numbers_name_the_sample(value, model, monkeypatch):
    whole = model.heads["phrase"].mask_head.forward_grouped

    def broken(stacks, maps_per_call=None):
        maps = whole(stacks)
        maps[1] = maps[1].clone()
        maps[1][0, maps[1].shape[1] // 2, maps[1].shape[2] // 2] = value
        return maps

    monkeypatch.setattr(model.heads["phrase"].mask_head, "forward_grouped", broken)
    with pytest.raises(RunError, match=r"^tiny/1: the phrases' masks hold NaN or infinities"):
        model.predict([make_sample(0), make_sample(1)])


def test_more_phrases_than_a_pass_takes_are_read_in_parts():
    samples = [make_sample(0), make_sample(1, num_phrases=5), make_sample(2, num_phrases=1)]
    whole = build().eval().predict(samples, keep_attention=True)
    model = build(heads=dict(phrase=head(phrases_per_pass=2, phrases_per_call=3))).eval()
    passes = []
    encode = model.lmm.encode
    model.lmm.encode = lambda inputs, *rest: (
        passes.append([i.num_phrases for i in inputs]) or encode(inputs, *rest)
    )
    for ours, expected in zip(model.predict(samples, keep_attention=True), whole, strict=True):
        assert ours.record_id == expected.record_id
        for name in ("coarse_logits", "refined_logits", "scores", "boxes_xyxy", "attention"):
            found, wanted = getattr(ours, name), getattr(expected, name)
            torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        assert torch.equal(ours.masks, expected.masks)
    assert passes == [[2, 1], [2], [2], [1]]
    model.loss(samples)
    assert passes[4:] == [[2, 5, 1]], "training reads a sample once"


@pytest.mark.case("model/thin_image")
@pytest.mark.case("data/15_elongated_picture_crashes_the_refiner")
@pytest.mark.parametrize("size", [(1, 400), (3000, 4), (2, 5000), (1, 1)])
def test_thin_images_are_learned_from_and_measured(model, size):
    samples = [make_sample(0), make_sample(1, image_size=size)]
    losses = model(samples, mode="loss")
    assert all(value.isfinite() for value in losses.values())
    prediction = model.predict(samples)[1]
    assert prediction.masks.shape == (2, *size)
    records = phrase_records(samples[1], prediction, sweep=True)
    assert [record["target_area"] for record in records] == samples[1].masks.sum((1, 2)).tolist()


def test_attention_is_kept_when_asked(model):
    assert model.predict([make_sample(0)])[0].attention is None
    assert model.predict([make_sample(0)], keep_attention=True)[0].attention.shape == (2, 12, 4, 4)


def test_training_keeps_the_frozen_parts_still():
    model = build()
    model.train()
    assert not model.lmm.model.training
    assert model.heads["phrase"].mask_head.training
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    assert trained
    assert all(name.startswith("heads.phrase.") and "image_encoder" not in name for name in trained)
    before = model.frozen_fingerprint()
    optimizer = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=1e-2)
    weights = {name: p.detach().clone() for name, p in model.named_parameters()}
    for _ in range(2):
        losses = model([make_sample(0)], mode="loss")
        model.parse_losses(losses)[0].backward()
        optimizer.step()
        optimizer.zero_grad()
    assert model.frozen_fingerprint() == before
    changed = {name for name, p in model.named_parameters() if not torch.equal(p, weights[name])}
    assert changed <= trained
    assert {"heads.phrase.text_layer_weights", "heads.phrase.mask_head.conv_seg.weight"} <= changed


def test_the_fingerprint_sees_a_single_bit():
    model = build()
    before = model.frozen_fingerprint()
    next(model.lmm.parameters()).data.view(-1)[0].mul_(1 + 1e-6)
    assert model.frozen_fingerprint() != before


def test_a_checkpoint_carries_everything_that_was_trained(model):
    other = build(lmm=model.lmm)
    with torch.no_grad():
        for parameter in other.heads.parameters():
            if parameter.requires_grad:
                parameter.add_(0.05 * torch.randn_like(parameter))
    (expected,) = model.predict([make_sample(0)])
    other.load_trainable(model.trainable_state_dict(), source="memory")
    (found,) = other.eval().predict([make_sample(0)])
    torch.testing.assert_close(found.refined_logits, expected.refined_logits)
    with pytest.raises(CheckpointError, match="missing"):
        other.load_trainable({}, source="memory")


def test_sizes_follow_from_the_lmm_and_are_checked_when_stated():
    model = build(
        heads=dict(phrase=head(num_layers=3, hidden_size=32, mask_head=UNET | dict(in_channels=12)))
    )
    assert model.heads["phrase"].text_layer_weights.shape == (3,)
    with pytest.raises(
        ConfigError, match=r"`model\.heads\.phrase\.mask_head\.in_channels` is 1024.*LMM gives 12"
    ):
        build(heads=dict(phrase=head(mask_head=UNET | dict(in_channels=1024))))
    with pytest.raises(ConfigError, match=r"`model\.heads\.phrase\.num_layers` is 32.*LMM gives 3"):
        build(heads=dict(phrase=head(num_layers=32)))


def test_a_config_may_name_a_list_of_classes():
    neck = dict(type=VisionNeck, vision_layers=(1, 2), channels=8, scales=(2, 1))
    heads = dict(
        detection=dict(type=DetectionHead, neck=neck, class_names="tinyworld_things", feat_channels=8),
        segmentation=dict(type=SemanticSegHead, neck=neck, class_names="tinyworld", channels=8),
    )
    model = build(heads=heads)
    things, everything = (model.heads[name].class_names for name in heads)
    assert things == everything[: len(things)]
    assert (len(things), len(everything)) == (12, 18)
    heads["detection"]["class_names"] = "no_such_list"
    with pytest.raises(ConfigError, match="'no_such_list': no list of that name"):
        build(heads=heads)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(heads=dict(phrase=head(text_dimm=16))), r"`model\.heads\.phrase`.*`text_dimm`; did you mean `text_dim`"),
        (dict(heads=dict(phrase=head(mask_head=dict(base_channels=8)))), r"phrase\.mask_head` has no `type`"),
        (dict(heads=dict(phrase=head(type="PhraseGroundingHed"))), r"'PhraseGroundingHed'.*`PhraseGroundingHead`"),
        (dict(heads=dict(phrase=head(target_resolution="ful"))), r"`model\.heads\.phrase`: target_resolution 'ful'"),
        (dict(heads=dict(phrase=head(text_dim=99))), r"`model\.heads\.phrase`: text_dim=99"),
        (dict(heads={}), "`model.heads` is empty"),
        (dict(lmm=dict(type=UNetHead, in_channels=3)), r"`model\.lmm` is a UNetHead"),
        (dict(lmm=dict(type=tiny.tiny_llava, row={})), r"`model\.lmm` has no argument `row`; did you mean `rows`"),
        (dict(freeze=["phrase.maskhead"]), "no head parameter starts with 'phrase.maskhead'"),
    ],
)  # fmt: skip
def test_a_wrong_config_is_an_error_that_names_the_key(changes, message):
    with pytest.raises(ConfigError, match=message):
        build(**changes)


@pytest.mark.case("model/resume_head_order")
def test_heads_take_the_order_of_a_checkpoint_with_their_names():
    model = build(heads=dict(zeta=head(sam=None), phrase=head(sam=None)))
    before = dict(model.named_parameters())
    model.order_heads(["phrase", "zeta"])
    assert list(model.heads) == ["phrase", "zeta"]
    after = dict(model.named_parameters())
    assert [name for name in after if name.startswith("heads.")][0].startswith("heads.phrase.")
    assert after.keys() == before.keys()
    assert all(after[name] is parameter and parameter.flmm_name == name for name, parameter in before.items())


@pytest.mark.case("model/accumulation")
def test_accumulated_parts_count_alike_whatever_they_hold(model):
    """What docs/architecture.md and the configs say of `accumulative_counts`."""
    from mmengine.optim import OptimWrapper

    trainable = [p for p in model.parameters() if p.requires_grad]

    def gradient(*parts) -> torch.Tensor:
        wrapper = OptimWrapper(torch.optim.SGD(trainable, lr=0.0), accumulative_counts=len(parts))
        wrapper.zero_grad()
        for part in parts:
            wrapper.backward(wrapper.scale_loss(model.parse_losses(model.loss(part))[0]))
        return torch.cat([p.grad.flatten() for p in trainable])

    def distance(a: torch.Tensor, b: torch.Tensor) -> float:
        return float((a - b).norm() / b.norm())

    few, many, alike = (
        make_sample(0, num_phrases=1),
        make_sample(1, num_phrases=5),
        make_sample(2, num_phrases=1),
    )
    assert distance(gradient([few], [alike]), gradient([few, alike])) < 1e-4
    parts = gradient([few], [many])
    assert distance(parts, (gradient([few]) + gradient([many])) / 2) < 1e-4
    assert distance(parts, (gradient([few]) + 5 * gradient([many])) / 6) > 0.05
    assert distance(gradient([few, many]), (gradient([few]) + 5 * gradient([many])) / 6) < 1e-4
    text = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
    assert "so parts count alike" in " ".join(text.split())


def test_shares_of_processes_average_to_the_whole_batch(model, monkeypatch):
    """Two processes with unequal numbers of phrases: the mean of their losses is the loss of the joint batch."""
    samples = [make_sample(0, num_phrases=1), make_sample(1, num_phrases=4)]
    whole = model(samples, mode="loss")
    module = "flmm_detseg.models.objective"
    monkeypatch.setattr(f"{module}.get_world_size", lambda: 2)
    # The only head's targets come first.
    monkeypatch.setattr(f"{module}.all_reduce", lambda tensor, op: tensor[0].fill_((1 + 4) / 2))
    parts = [model([sample], mode="loss") for sample in samples]
    for name, value in whole.items():
        torch.testing.assert_close(
            (parts[0][name] + parts[1][name]) / 2, value, rtol=1e-4, atol=1e-5, msg=name
        )
