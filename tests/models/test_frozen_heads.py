"""Heads that an earlier run trained and this one keeps as they are: they begin, train, and come back as they were."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from mmengine._strategy.deepspeed import DeepSpeedOptimWrapper
from sam_parts import make_refiner
from tiny import make_sample

from flmm_detseg.engine.training.hooks import DeepSpeedHook
from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.heads import PhraseGroundingHead, UNetHead
from flmm_detseg.models import GroundingLMM
from flmm_detseg.models.checkpoint import load_file
from flmm_detseg.structures import Sample

UNET = dict(type=UNetHead, base_channels=8, num_stages=3, upsample_input=16)
FROZEN = ["phrase.mask_head", "phrase.sam"]


def build(seed: int, *, shared: bool = False, **changes) -> GroundingLMM:
    torch.manual_seed(0)  # the LMM, which is published
    lmm, sam = tiny.tiny_llava(), make_refiner()
    torch.manual_seed(seed)
    head = dict(type=PhraseGroundingHead, mask_head=UNET, sam="sam" if shared else sam, text_dim=16)
    parts = dict(parts=dict(sam=sam)) if shared else {}
    return GroundingLMM(lmm=lmm, heads=dict(phrase=head), **parts, **changes).eval()


def trained_names(model: GroundingLMM) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


def write(model: GroundingLMM, path: Path, leave_out: str = "nothing") -> str:
    kept = {name: value for name, value in model.trainable_state_dict().items() if leave_out not in name}
    torch.save({"state_dict": kept}, path)
    return str(path)


def assert_same(first: GroundingLMM, second: GroundingLMM, sample: Sample, **tolerance: float) -> None:
    ours, theirs = (model.predict([sample])[0] for model in (first, second))
    assert torch.equal(ours.coarse_logits, theirs.coarse_logits)
    torch.testing.assert_close(
        ours.refined_logits, theirs.refined_logits, **{"rtol": 0, "atol": 0} | tolerance
    )


@pytest.fixture
def stage(tmp_path) -> str:
    """What a training of all left: no value is that of a new model."""
    model = build(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in trained_names(model):
                parameter.add_(0.05 * torch.randn_like(parameter))
    return write(model, tmp_path / "stage.pth")


@pytest.mark.parametrize("shared", [False, True])
def test_frozen_heads_begin_train_and_come_back_as_they_were(stage, tmp_path, shared):
    freeze = ["phrase.mask_head", "parts.sam"] if shared else FROZEN
    model = build(2, shared=shared, freeze=freeze, init_from=[stage])
    sample = make_sample(0)
    whole = build(3)
    load_file(whole, stage)
    # torch folds a product of matrices another way where one of them requires a gradient: other roundings.
    assert_same(model, whole, sample, atol=1e-5)

    trained = trained_names(model)
    assert trained
    assert not any("mask_head" in name or ".sam." in name for name in trained)
    before = {name: value.clone() for name, value in model.trainable_state_dict().items()}
    assert set(before) > trained, "the checkpoint holds what is frozen too"
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=1.0)
    loss, _ = model.parse_losses(model.loss([sample]))
    loss.backward()
    optimizer.step()
    moved = {name for name, v in model.trainable_state_dict().items() if not torch.equal(v, before[name])}
    assert moved
    assert moved <= trained

    # As a command builds it: without the files that the stage began with.
    again = build(4, shared=shared, freeze=freeze)
    load_file(again, write(model, tmp_path / "next.pth"))
    assert_same(model, again, sample)


def test_only_a_refiner_that_no_training_changed_may_be_left_out_of_a_file(stage, tmp_path):
    published = build(5, freeze=FROZEN)
    before = {n: v.clone() for n, v in published.trainable_state_dict().items() if ".sam." in n}
    assert before
    file = write(published, tmp_path / "without_sam.pth", leave_out=".sam.")
    load_file(published, file)  # as those were that an earlier version wrote
    assert all(torch.equal(published.trainable_state_dict()[name], value) for name, value in before.items())
    build(6, freeze=FROZEN, init_from=[file])
    with pytest.raises(CheckpointError, match=r"missing: heads\.phrase\.mask_head"):
        load_file(published, write(published, tmp_path / "without_unet.pth", leave_out="mask_head"))
    with pytest.raises(CheckpointError, match=r"in none of .*: heads\.phrase\.mask_head"):
        build(6, freeze=FROZEN, init_from=[str(tmp_path / "without_unet.pth")])
    begun = build(7, freeze=FROZEN, init_from=[stage])
    with pytest.raises(CheckpointError, match=r"missing: heads\.phrase\.sam"):
        load_file(begun, file)


def test_deepspeed_would_lose_what_is_frozen(stage):
    def begin(model: GroundingLMM) -> None:
        wrapper = DeepSpeedOptimWrapper(torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))]))
        wrapper.model = SimpleNamespace(model=SimpleNamespace(config={}))
        DeepSpeedHook().before_train(SimpleNamespace(optim_wrapper=wrapper, model=model))

    for model in (build(8, freeze=["phrase.mask_head"]), build(8, freeze=["phrase.sam"], init_from=[stage])):
        with pytest.raises(ConfigError, match=r"`model\.freeze` .*train without --deepspeed"):
            begin(model)
    published = build(8, freeze=["phrase.sam"])
    begin(published)
    assert published.same_groups
