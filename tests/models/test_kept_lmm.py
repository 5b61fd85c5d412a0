"""Heads on an LMM that an earlier run trained: it stays as it is, and checkpoints hold it all the same."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from cached_parts import boxed_sample, cached_llava
from mmengine._strategy.deepspeed import DeepSpeedOptimWrapper
from multi_task_parts import HEADS, LORA
from tiny import make_sample, tiny_llava
from train_parts import MODEL, ROOT, environment, train_command, write_config

from flmm_detseg.engine.training.hooks import DeepSpeedHook
from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.experiments.plan import read_plan
from flmm_detseg.models import GroundingLMM
from flmm_detseg.models.checkpoint import load_checkpoint, load_parts
from flmm_detseg.models.from_config import model_from_config, read_config
from flmm_detseg.registry import MODELS

CACHE = ROOT / "configs" / "cache"
LANGUAGE = dict(language=dict(type="flmm_detseg.heads.LanguageHead"))
PHRASE = dict(phrase=HEADS["phrase"])
# As configs/cache trains it: everything that a step can train.
CACHED = dict(
    type="cached_parts.cached_llava",
    frozen=False,
    lora=dict(vision=dict(r=2, alpha=4), llm=dict(r=2, alpha=4)),
    train=["separators", "projectors"],
    partitioner=dict(
        type="flmm_detseg.cache.Partitioner", source=dict(type="flmm_detseg.cache.RandomRegions"), dilate=0
    ),
)
BUILDERS = {
    "lora": lambda: tiny_llava(lora=LORA, frozen=False),
    "cached": lambda: cached_llava(lora=LORA, frozen=False, train=("separators", "projectors")),
    "cached, last layer": lambda: cached_llava(
        lora=dict(vision=LORA["vision"]), frozen=False, train_layers=1, projectors="separate"
    ),
}


@torch.no_grad()
def earlier_run(model: GroundingLMM, path: Path) -> dict[str, torch.Tensor]:
    """Writes what a training of the LMM might have left."""
    generator = torch.Generator().manual_seed(5)
    found = {
        name: torch.randn(tensor.shape, generator=generator) * 0.05
        for name, tensor in model.trainable_state_dict().items()
    }
    torch.save({"state_dict": found}, path)
    return found


def trained(model: GroundingLMM) -> set[str]:
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


@pytest.mark.parametrize("name", BUILDERS)
def test_only_heads_are_trained_and_the_checkpoint_holds_the_lmm(name, tmp_path):
    start = earlier_run(GroundingLMM(BUILDERS[name](), LANGUAGE), tmp_path / "lmm.pth")
    model = GroundingLMM(
        BUILDERS[name](),
        LANGUAGE | PHRASE,
        train_lmm=False,
        init_from=[str(tmp_path / "lmm.pth")],
        new_parts=["heads.phrase."],
    )
    head = trained(model)
    assert head
    assert all(part.startswith("heads.phrase.") for part in head)
    stored = model.trainable_state_dict()
    assert set(stored) == head | set(start)
    assert all(torch.equal(stored[part], start[part]) for part in start)

    sample = boxed_sample(0) if name != "lora" else make_sample(0)
    model.train()
    assert not any(module.training for module in model.lmm.model.modules())
    before = {part: tensor.clone() for part, tensor in model.state_dict().items()}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.1)
    loss, _ = model.parse_losses(model.loss([sample]))
    loss.backward()
    optimizer.step()
    changed = {part for part, tensor in model.state_dict().items() if not torch.equal(tensor, before[part])}
    assert {part for part in changed if part.startswith("lmm.")} == set()
    assert changed & head

    other = GroundingLMM(BUILDERS[name](), LANGUAGE | PHRASE, train_lmm=False).eval()
    other.load_trainable(model.trainable_state_dict(), "the checkpoint")
    ours, theirs = (each.predict([sample])[0] for each in (model.eval(), other))
    assert torch.equal(ours.coarse_logits, theirs.coarse_logits)


def test_what_checkpoints_keep_must_be_in_the_files(tmp_path):
    model = GroundingLMM(BUILDERS["cached"](), LANGUAGE | PHRASE, train_lmm=False)
    rung3 = GroundingLMM(cached_llava(train=("separators", "projectors")), LANGUAGE)
    earlier_run(rung3, tmp_path / "rung3.pth")
    with pytest.raises(CheckpointError, match=r"in none of .*rung3.pth: lmm\.model\..*lora_A"):
        load_parts(model, [str(tmp_path / "rung3.pth")], ["heads.phrase."])
    head = {k: v for k, v in model.trainable_state_dict().items() if k.startswith("heads.")}
    with pytest.raises(CheckpointError, match=r"missing: lmm\.separators"):
        model.load_trainable(head, "a head alone")


def test_an_lmm_is_not_its_former_self_because_it_is_no_longer_trained():
    keeps = {}
    for name, build in BUILDERS.items():
        lmm = build()
        keeps[name] = lmm.keeps_base
        lmm.freeze_trained()
        assert (lmm.keeps_base, lmm.adapted) == (keeps[name], True)
    # Separators and LoRA can be left out; the projector and the last layer of the LLaVA's own cannot.
    assert keeps == {"lora": True, "cached": False, "cached, last layer": False}
    full = tiny_llava(frozen=False)
    full.freeze_trained()
    assert not full.keeps_base
    with pytest.raises(ConfigError, match="the original LMM is lost"):
        GroundingLMM(BUILDERS["cached"](), PHRASE, train_lmm=False, retention="switched")


def test_an_lmm_used_as_it_is_can_be_merged():
    lmm = BUILDERS["cached"]()
    lmm.freeze_trained()
    assert lmm.merge_lora() > 0
    assert "separators" in lmm.checkpoint_buffers
    assert not any("lora_" in name for name in lmm.checkpoint_buffers)
    GroundingLMM(lmm, PHRASE).trainable_state_dict()


def test_deepspeed_would_lose_what_checkpoints_keep():
    runner = SimpleNamespace(
        optim_wrapper=object.__new__(DeepSpeedOptimWrapper),
        model=GroundingLMM(BUILDERS["cached"](), PHRASE, train_lmm=False),
    )
    with pytest.raises(ConfigError, match="train without --deepspeed"):
        DeepSpeedHook().before_train(runner)


# The repository's configs, and a run.


@pytest.fixture
def at_root():
    before = os.getcwd()
    os.chdir(ROOT)  # weights of the tiny models are named relative to it
    yield
    os.chdir(before)


def test_the_tiny_config_trains_the_head_alone_on_step_5(at_root, tmp_path):
    config = read_config(CACHE / "tiny_cached_grounding.py")
    assert config.model.init_from == ["work_dirs/tiny_ladder_stages/rung5_lora/iter_600.pth"]
    rung5 = read_plan(CACHE / "tiny_ladder_stages.py").runs["rung5_lora"]
    start = earlier_run(MODELS.build(read_config(rung5.config).model), tmp_path / "iter_600.pth")
    config.model.init_from = [str(tmp_path / "iter_600.pth")]
    model = MODELS.build(config.model)
    alone = MODELS.build(read_config(ROOT / "configs" / "tiny" / "frozen_tiny_llava_refcoco_png.py").model)
    assert trained(model) == trained(alone)
    stored = model.trainable_state_dict()
    assert set(stored) == trained(model) | set(start)
    assert all(torch.equal(stored[name], start[name]) for name in start)
    # Training data is F-LMM's, as on the frozen LLaVA.
    theirs = read_config(ROOT / "configs" / "tiny" / "frozen_tiny_llava_refcoco_png.py")
    for key in ("train_dataloader", "optim_wrapper", "train_cfg", "refcoco_eval", "png_eval"):
        assert config[key] == theirs[key], key
    # Serving needs the new checkpoint and nothing else.
    torch.save({"state_dict": stored}, tmp_path / "iter_1600.pth")
    served = model_from_config(CACHE / "tiny_stream_grounding.py", tmp_path / "iter_1600.pth", device="cpu")
    assert served.frozen_fingerprint() == model.frozen_fingerprint()
    for name, tensor in served.trainable_state_dict().items():
        assert torch.equal(tensor, stored[name]), name


@pytest.mark.long
def test_a_run_changes_the_head_and_is_served_without_the_files_it_began_with(tmp_path):
    lmm_only = dict(MODEL, lmm=CACHED, heads=LANGUAGE)
    start = earlier_run(MODELS.build(copy.deepcopy(lmm_only)), tmp_path / "rung5.pth")
    path = write_config(
        tmp_path,
        max_iters=3,
        model__lmm=CACHED,
        model__heads__language=LANGUAGE["language"],
        model__train_lmm=False,
        model__init_from=[str(tmp_path / "rung5.pth")],
        model__new_parts=["heads.phrase."],
    )
    # Not in this process: MMEngine's runner does not remove launcher variables.
    run = subprocess.run(
        train_command(path, tmp_path / "run"), cwd=ROOT, env=environment(), capture_output=True, text=True
    )
    assert run.returncode == 0, run.stderr[-3000:]
    figures = json.loads(run.stdout.splitlines()[-1])
    assert figures["lmm_sha256_before"] == figures["lmm_sha256_after"]
    left = load_checkpoint(figures["checkpoint"])
    assert all(torch.equal(left[name], start[name]) for name in start)
    assert {name for name in left if not name.startswith("heads.phrase.")} == set(start)
    untrained = model_from_config(path, untrained=True, device="cpu").trainable_state_dict()
    assert any(not torch.equal(left[name], untrained[name]) for name in left if name.startswith("heads."))
    (tmp_path / "rung5.pth").unlink()
    served = model_from_config(path, figures["checkpoint"], device="cpu")
    assert all(torch.equal(tensor, left[name]) for name, tensor in served.trainable_state_dict().items())
