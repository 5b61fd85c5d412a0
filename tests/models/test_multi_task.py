"""One LMM, four heads: who reads what, who may change what, and what is remembered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import make_sample, tiny_llava

from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.heads import (
    DetectionHead,
    LanguageHead,
    PhraseGroundingHead,
    SemanticSegHead,
    UNetHead,
    VisionNeck,
)
from flmm_detseg.models import GroundingLMM, TaskBalancer, UncertaintyWeighting
from flmm_detseg.structures import DenseTargets, Sample

LORA = {
    "vision": {"r": 2, "alpha": 4, "target": "qkv"},
    "llm": {"r": 2, "alpha": 4, "target": "attention"},
    "projector": {"r": 2, "alpha": 4, "target": "all-linear"},
}
NECK = {"type": VisionNeck, "vision_layers": (1, 2), "channels": 8, "scales": (2, 1)}
HEADS = {
    "detection": {
        "type": DetectionHead, "neck": NECK, "class_names": ["a", "b"], "feat_channels": 8, "stacked_convs": 1,
    },
    "segmentation": {
        "type": SemanticSegHead, "neck": NECK, "class_names": ["a", "b", "c"], "channels": 8, "rates": (1, 2),
    },
    "phrase": {
        "type": PhraseGroundingHead,
        "mask_head": {"type": UNetHead, "base_channels": 2, "num_stages": 2, "upsample_input": 8},
        "sam": None,
    },
    "language": {"type": LanguageHead, "distill_weight": 0.5},
}  # fmt: skip


def make_model(**changes) -> GroundingLMM:
    settings = {"lmm": tiny_llava(lora=LORA, frozen=False), "heads": HEADS, **changes}
    torch.manual_seed(0)
    return GroundingLMM(**settings)


def dense_sample(index: int, task: str) -> Sample:
    base = make_sample(index, num_phrases=0)
    height, width = base.image_size
    semantic = np.zeros((height, width), dtype=np.uint8)
    semantic[: height // 2] = 1 + index % 2
    dense = DenseTargets(
        boxes_xyxy=np.array([[4, 4, width * 0.6, height * 0.7]], dtype=np.float32),
        labels=np.array([index % 2]),
        semantic=semantic,
    )
    return replace(base, text="", task=task, dense=dense)


def question(index: int = 0) -> Sample:
    return replace(make_sample(index, num_phrases=0), prompt="the star ?", text="red star", task="vqa")


def batch() -> list[Sample]:
    return [
        make_sample(0),
        dense_sample(1, "detection"),
        question(2),
        dense_sample(3, "segmentation"),
        dense_sample(4, "detection"),
        make_sample(5),
    ]


def objective(model: GroundingLMM, samples: list[Sample]) -> torch.Tensor:
    return model.parse_losses(model.loss(samples))[0]


def move_lora(model: GroundingLMM, seed: int = 1) -> None:
    """B starts at zero: move it, so that LoRA does something and A gets a gradient."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.lmm.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))


def test_a_mixed_batch_is_the_sum_of_its_tasks() -> None:
    model = make_model().eval()
    whole = model.loss(batch())
    parts: dict[str, torch.Tensor] = {}
    for task in ("phrase", "detection", "vqa", "segmentation"):
        parts |= model.loss([sample for sample in batch() if sample.task == task])
    assert set(whole) == set(parts)
    for name, value in whole.items():
        torch.testing.assert_close(value, parts[name], rtol=1e-4, atol=1e-5, msg=name)
    assert {name.split(".")[0] for name in whole} == set(HEADS)


def test_a_head_that_reads_two_tasks_averages_over_all_its_targets() -> None:
    model = make_model().eval()
    plain, joint = dense_sample(0, "segmentation"), replace(dense_sample(1, "joint"), text="a red star .")
    together = model.loss([plain, joint])["segmentation.loss_dice"]
    alone = [model.loss([s])["segmentation.loss_dice"] for s in (plain, joint)]
    torch.testing.assert_close(together, sum(alone) / 2, rtol=1e-4, atol=1e-5)


def test_every_trainable_tensor_gets_a_gradient_and_the_rest_stays() -> None:
    model = make_model(
        balancer={"type": TaskBalancer, "weighting": {"type": UncertaintyWeighting}}, l2sp=1e-3
    )
    move_lora(model)
    before = model.frozen_fingerprint()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-3)
    objective(model, batch()).backward()
    # The tower's last layer is not read (LLaVA takes the last but one, the heads layers 1 and 2), and no object is
    # large enough for the coarsest level.
    missing = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad
        and (p.grad is None or not p.grad.abs().sum() > 0)
        and "encoder.layers.2." not in name
        and name != "heads.detection.fcos.scales.1.scale"
    ]
    assert not missing
    assert sum("lora_" in name for name, p in model.named_parameters() if p.requires_grad) > 20
    optimizer.step()
    assert model.frozen_fingerprint() == before


def test_isolated_tasks_leave_other_groups_alone() -> None:
    model = make_model(isolate={"detection": ["vision"], "language": ["llm", "projector"]})
    move_lora(model)

    def touched(samples: list[Sample]) -> set[str]:
        model.zero_grad()
        objective(model, samples).backward()
        groups = {"vision": "vision_tower", "llm": "language_model", "projector": "projector"}
        return {
            group
            for group, part in groups.items()
            for name, p in model.lmm.named_parameters()
            if part in name and p.grad is not None and p.grad.abs().sum() > 0
        }

    assert touched([dense_sample(0, "detection")]) == {"vision"}
    assert touched([question()]) == {"llm", "projector"}
    assert touched([make_sample(0)]) == {"vision", "llm", "projector"}
    assert all(p.requires_grad for n, p in model.lmm.named_parameters() if "lora_" in n), "not restored"


def test_heads_that_share_a_pass_must_agree_on_isolation() -> None:
    model = make_model(isolate={"detection": ["vision"], "segmentation": ["llm"]})
    with pytest.raises(ConfigError, match="same groups"):
        model.loss([replace(dense_sample(0, "joint"), text="a red star .")])
    with pytest.raises(ConfigError, match="tail"):
        make_model(isolate={"detection": ["tail"]})


def test_retention_modes() -> None:
    plain = make_model(lmm=tiny_llava(), heads={"phrase": HEADS["phrase"]})
    assert plain.retention == "frozen"
    wanted = plain.answer(question(), max_new_tokens=6)
    switched = make_model(retention="switched")
    move_lora(switched)
    assert switched.answer(question(), max_new_tokens=6) == wanted
    assert switched.answer_kl([question()]) == [0.0]
    always = make_model(retention="always")
    assert always.answer(question(), max_new_tokens=6) == wanted, "LoRA starts as nothing"
    assert always.answer_kl([question(0), question(1)]) == [0.0, 0.0]
    move_lora(always)
    assert min(always.answer_kl([question(0), question(1)])) > 1e-3
    joint = replace(question(), task="joint")
    assert not switched.plain(joint), "instructions for boxes need the adapters"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"retention": "frozen"}, "lora"),
        ({"retention": "sometimes"}, "sometimes"),
        ({"lmm": None, "l2sp": 0.1}, "l2sp"),
    ],
)
def test_contradictions_are_named(changes: dict, named: str) -> None:
    if "lmm" in changes:
        changes = {**changes, "lmm": tiny_llava(), "heads": {"phrase": HEADS["phrase"]}}
    with pytest.raises(ConfigError, match=named):
        make_model(**changes)


def test_full_fine_tuning_leaves_no_base_to_return_to() -> None:
    full = {"lmm": tiny_llava(frozen=False), "heads": {"detection": HEADS["detection"]}}
    model = make_model(**full)
    assert model.retention == "always"
    assert not model.keeps_base
    for changes in (
        {"retention": "switched"},
        {"heads": {"language": HEADS["language"]}},
        {"retention": "frozen"},
    ):
        with pytest.raises(ConfigError, match="frozen"):
            make_model(**{**full, **changes})


def test_a_task_nobody_reads_is_named() -> None:
    model = make_model(heads={"detection": HEADS["detection"]})
    with pytest.raises(ConfigError, match=r"tiny/0: no head reads task 'phrase'.*detection, joint"):
        model.loss([make_sample(0)])


def test_the_open_classifier_gets_the_lmms_own_words() -> None:
    head = {**HEADS["detection"], "class_names": ["star", "blue ring"], "classifier": "open"}
    model = make_model(heads={"detection": head})
    wanted = model.lmm.class_embeddings(["star", "blue ring"])
    stored = [b for b in model.heads["detection"].buffers() if b.shape == wanted.shape]
    assert any(torch.equal(buffer, wanted) for buffer in stored)
    assert len(model.detect([dense_sample(0, "detection")])) == 1


def save(model: GroundingLMM, path: Path, drop: str = "?") -> str:
    kept = {name: value for name, value in model.trainable_state_dict().items() if drop not in name}
    torch.save({"state_dict": kept}, path)
    return str(path)


def test_stages_chain_by_checkpoint(tmp_path: Path) -> None:
    alone = make_model(lmm=tiny_llava(), heads={"detection": HEADS["detection"]})
    other = make_model(lmm=tiny_llava(), heads={"segmentation": HEADS["segmentation"]})
    with torch.no_grad():
        for parameter in [*alone.heads.parameters(), *other.heads.parameters()]:
            parameter.add_(0.25)
    files = [save(alone, tmp_path / "a.pth"), save(other, tmp_path / "b.pth")]
    heads = {name: HEADS[name] for name in ("detection", "segmentation", "language")}
    model = make_model(heads=heads, init_from=files, new_parts=["lmm."])
    for name, value in {**alone.trainable_state_dict(), **other.trainable_state_dict()}.items():
        assert torch.equal(model.state_dict()[name], value), name
    with pytest.raises(CheckpointError, match=r"in none of .*lora_"):
        make_model(heads=heads, init_from=files)
    with pytest.raises(CheckpointError, match=r"heads\.segmentation\."):
        make_model(heads=heads, init_from=files[:1], new_parts=["lmm."])
    with pytest.raises(CheckpointError, match=r"b\.pth does not fit.*heads\.segmentation"):
        make_model(heads={"detection": HEADS["detection"]}, init_from=files, new_parts=["lmm."])
    with pytest.raises(ConfigError, match="nothing_of_ours"):
        make_model(heads=heads, init_from=files, new_parts=["lmm.", "nothing_of_ours"])


def test_a_saved_joint_model_predicts_the_same(tmp_path: Path) -> None:
    model = make_model().eval()
    move_lora(model)
    file = save(model, tmp_path / "joint.pth")
    again = make_model().eval()
    again.load_trainable(torch.load(file, weights_only=True)["state_dict"], file)
    sample = dense_sample(0, "segmentation")
    assert torch.equal(model.segment([sample])[0], again.segment([sample])[0])
    first, second = model.detect([sample])[0], again.detect([sample])[0]
    assert torch.equal(first.bboxes, second.bboxes)
    assert torch.equal(
        model.predict([make_sample(0)])[0].mask_logits, again.predict([make_sample(0)])[0].mask_logits
    )


def test_pcgrad_runs_on_the_whole_model() -> None:
    model = make_model(balancer={"type": TaskBalancer, "gradients": "pcgrad"})
    move_lora(model)
    total, log = model.parse_losses(model.loss(batch()))
    total.backward()
    assert {f"balancer.pcgrad_{name}" for name in HEADS} <= set(log)
    plain = make_model(balancer={"type": TaskBalancer})
    move_lora(plain)
    objective(plain, batch()).backward()
    for (name, mine), theirs in zip(model.heads.named_parameters(), plain.heads.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_a_joint_sample_is_read_by_the_heads_it_has_something_for() -> None:
    model = make_model().eval()
    joint = replace(dense_sample(0, "joint"), text="a red star .")
    assert {key.split(".")[0] for key in model.loss([joint])} == {"detection", "segmentation", "language"}
    boxes_only = replace(joint, dense=replace(joint.dense, semantic=None))
    mixed = model.loss([joint, boxes_only])
    torch.testing.assert_close(
        mixed["segmentation.loss_dice"], model.loss([joint])["segmentation.loss_dice"], rtol=1e-4, atol=1e-5
    )
    assert {key.split(".")[0] for key in model.loss([boxes_only])} == {"detection", "language"}
