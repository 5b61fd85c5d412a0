"""One LMM, four heads: who reads what, who may change what, and what is remembered."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from multi_task_parts import HEADS, batch, dense_sample, make_model, move_lora, objective, question
from tiny import make_sample, tiny_llava

from flmm_detseg.engine.evaluation.answers import FORGETTING
from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.models import GradNormWeighting, GroundingLMM, TaskBalancer, UncertaintyWeighting
from flmm_detseg.models.balancer import flat_gradient, order_generator, pcgrad_coefficients
from flmm_detseg.refiners import SAMRefiner
from flmm_detseg.structures import Sample


def test_a_mixed_batch_is_the_sum_of_its_tasks() -> None:
    model = make_model().eval()
    whole = model.loss(batch())
    parts: dict[str, torch.Tensor] = {}
    for task in ("phrase", "detection", "vqa", "segmentation"):
        parts |= model.loss([sample for sample in batch() if sample.task == task])
    assert set(whole) == set(parts)
    assert not any(value.requires_grad for name, value in whole.items() if not name.startswith("objective."))
    for name, value in whole.items():
        torch.testing.assert_close(value, parts[name], rtol=1e-4, atol=1e-5, msg=name)
    assert {name.split(".")[0] for name in whole} == {*HEADS, "objective"}


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
    # No object is large enough for the coarsest level.
    missing = [
        name
        for name, p in model.named_parameters()
        if p.requires_grad
        and (p.grad is None or not p.grad.abs().sum() > 0)
        and name != "heads.detection.fcos.scales.1.scale"
    ]
    assert not missing
    # LLaVA takes the last but one layer of the tower, the heads layers 1 and 2.
    unread = [p for name, p in model.named_parameters() if "encoder.layers.2." in name and "lora_" in name]
    assert unread
    assert not any(p.requires_grad for p in unread)
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
    learning = {n for n, p in model.lmm.named_parameters() if p.requires_grad}
    assert learning == {
        n for n, p in model.lmm.named_parameters() if "lora_" in n and "encoder.layers.2." not in n
    }, "not restored"


def test_heads_that_share_a_pass_must_agree_on_isolation() -> None:
    model = make_model(isolate={"detection": ["vision"], "segmentation": ["llm"]})
    with pytest.raises(ConfigError, match="same groups"):
        model.loss([replace(dense_sample(0, "joint"), text="a red star .")])
    with pytest.raises(ConfigError, match="tail"):
        make_model(isolate={"detection": ["tail"]})


def test_retention_modes() -> None:
    plain = make_model(lmm=tiny_llava(), heads={"phrase": HEADS["phrase"]})
    assert plain.retention.mode == "frozen"
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
    assert not switched.retention.plain(joint), "instructions for boxes need the adapters"


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"retention": "frozen"}, "lora"),
        ({"retention": "sometimes"}, "sometimes"),
        ({"balancer": {"type": UncertaintyWeighting}}, "UncertaintyWeighting; a TaskBalancer is needed"),
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
    assert model.retention.mode == "always"
    assert not model.retention.keeps_base
    for changes in (
        {"retention": "switched"},
        {"heads": {"language": HEADS["language"]}},
        {"retention": "frozen"},
    ):
        with pytest.raises(ConfigError, match="frozen"):
            make_model(**{**full, **changes})
    with pytest.raises(ConfigError, match="original LMM is lost.*divergence"):
        model.answer_kl([question()])
    with pytest.raises(ConfigError, match="forgetting"):
        FORGETTING.facts(model, [question()], None, None)


def test_merged_lora_leaves_no_base_to_return_to() -> None:
    model = make_model(heads={"detection": HEADS["detection"]})
    assert model.retention.keeps_base
    model.lmm.merge_lora()
    with pytest.raises(ConfigError, match="merged"):
        model.answer_kl([question()])


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


def test_a_decoder_adapted_by_lora_is_whole_in_its_checkpoint(tmp_path: Path) -> None:
    heads = {name: HEADS[name] for name in ("detection", "segmentation")}
    alone = make_model(heads=heads).eval()
    with torch.no_grad():
        for parameter in alone.heads.parameters():
            parameter.add_(0.1)
    stage1 = save(alone, tmp_path / "stage1.pth")
    adapted = {"heads": heads, "head_lora": {"segmentation": dict(r=2, alpha=4)}}
    model = make_model(**adapted, init_from=[stage1], new_parts=["heads.segmentation.*.lora_"]).eval()
    sample = dense_sample(0, "segmentation")
    assert torch.equal(model.segment([sample])[0], alone.segment([sample])[0])
    with pytest.raises(CheckpointError, match=r"heads\.segmentation.*lora_A"):
        make_model(**adapted, init_from=[stage1])
    with pytest.raises(CheckpointError, match=r"in none of .*base_layer"):
        make_model(
            **adapted,
            init_from=[save(alone, tmp_path / "part.pth", drop="decoder.lateral.0.conv")],
            new_parts=["heads.segmentation.*.lora_"],
        )
    before = {name: value.clone() for name, value in model.state_dict().items() if "heads." in name}
    objective(model, [sample]).backward()
    torch.optim.SGD([p for p in model.heads.parameters() if p.requires_grad], lr=1.0).step()
    moved = {name for name, value in before.items() if not torch.equal(model.state_dict()[name], value)}
    assert any("lora_B" in name for name in moved)
    assert not any(".base_layer." in name for name in moved)
    # The next stage, and a model that knows no other file.
    stage2 = save(model, tmp_path / "stage2.pth")
    for again in (make_model(**adapted, init_from=[stage2]), make_model(**adapted)):
        again.load_trainable(torch.load(stage2, weights_only=True)["state_dict"], stage2)
        for name, value in model.trainable_state_dict().items():
            assert torch.equal(again.trainable_state_dict()[name], value), name
        assert torch.equal(again.eval().segment([sample])[0], model.segment([sample])[0])


def test_training_for_phrases_does_not_touch_the_masks_of_boxes() -> None:
    folder = Path(__file__).resolve().parents[2] / "data" / "models" / "tiny_sam"
    sam = {"type": SAMRefiner.from_pretrained, "checkpoint": str(folder)}
    model = make_model(
        heads={"phrase": {**HEADS["phrase"], "sam": sam, "text_dim": 64}}, instance_masks=True
    ).eval()
    sample, boxes = make_sample(0), [torch.tensor([[4.0, 4.0, 30.0, 40.0]])]
    sam = model.heads["phrase"].sam
    before = sam.masks_from_boxes([sample.image], boxes)[0]
    optimizer = torch.optim.SGD([p for p in sam.parameters() if p.requires_grad], lr=1.0)
    objective(model, [sample]).backward()
    optimizer.step()
    assert torch.equal(sam.masks_from_boxes([sample.image], boxes)[0], before)
    assert not any("box_parts" in name for name in model.trainable_state_dict())
    sam.box_parts = None
    assert not torch.equal(sam.masks_from_boxes([sample.image], boxes)[0], before), "nothing was trained"


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


def test_pcgrad_projects_the_gradients_of_the_whole_model() -> None:
    model = make_model(balancer={"type": TaskBalancer, "gradients": "pcgrad", "seed": 3}).eval()
    move_lora(model)
    total, log = model.parse_losses(model.loss(batch()))
    total.backward()
    plain = make_model(balancer={"type": TaskBalancer}).eval()
    move_lora(plain)
    terms = plain.loss(batch())
    shared = [p for p in plain.lmm.parameters() if p.requires_grad]
    gradients = [flat_gradient(terms[f"objective.loss_{name}"], shared) for name in HEADS]
    gram = torch.stack([torch.stack([a @ b for b in gradients]) for a in gradients]).double()
    assert (gram < 0).any(), "no conflict: the test shows nothing"
    scales = pcgrad_coefficients(gram, order_generator(3, 0)).tolist()
    wanted = sum(scale * gradient for scale, gradient in zip(scales, gradients))
    found = torch.cat([p.grad.reshape(-1) for p in model.lmm.parameters() if p.requires_grad])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))
    assert (found - sum(gradients)).abs().max() > 1e-3 * wanted.abs().max(), "the plain sum"
    assert [float(log[f"balancer.pcgrad_{name}"]) for name in HEADS] == pytest.approx(scales, rel=1e-3)
    plain.parse_losses(terms)[0].backward()
    for (name, mine), theirs in zip(model.heads.named_parameters(), plain.heads.parameters(), strict=True):
        torch.testing.assert_close(mine.grad, theirs.grad, rtol=1e-4, atol=1e-6, msg=name)


def test_heads_of_other_tasks_get_gradient_zero_and_not_none() -> None:
    model = make_model()
    objective(model, [dense_sample(0, "detection")]).backward()
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, name
            assert parameter.grad.shape == parameter.shape
    storages = [p.grad.data_ptr() for p in model.parameters() if p.requires_grad]
    assert len(set(storages)) == len(storages), "gradients share memory"
    assert sum(float(p.grad.abs().sum()) for p in model.heads["segmentation"].parameters()) == 0
    assert sum(float(p.grad.abs().sum()) for p in model.heads["detection"].parameters()) > 0


def test_what_a_balancer_remembers_is_in_the_checkpoint() -> None:
    def build() -> GroundingLMM:
        weighting = {"type": GradNormWeighting}
        return make_model(
            balancer={"type": TaskBalancer, "gradients": "pcgrad", "weighting": weighting}
        ).eval()

    model = build()
    move_lora(model)
    for _ in range(2):
        objective(model, batch())
    stored = {name: value.clone() for name, value in model.trainable_state_dict().items()}
    assert stored["balancer.num_steps"] == 2
    assert (stored["balancer.weighting.first_losses"] > 0).all()
    assert "balancer.weighting.first_losses" not in dict(model.named_parameters()), "ZeRO would write over it"
    resumed = build()
    resumed.load_trainable(stored, "memory")
    resumed_losses = resumed.loss(batch())
    for name, value in model.loss(batch()).items():
        assert name in resumed_losses
        torch.testing.assert_close(resumed_losses[name], value, msg=name)
    with pytest.raises(CheckpointError, match=r"balancer\.num_steps"):
        build().load_trainable({k: v for k, v in stored.items() if "num_steps" not in k}, "memory")


def test_auxiliary_losses_count_once_however_the_batch_is_cut() -> None:
    model = make_model()
    seen = []
    model.lmm.auxiliary_losses = lambda: seen.append(1) or {"x_loss": torch.tensor(3.0)}
    mixed = model.loss(batch())
    assert len(seen) == 4
    assert float(mixed["lmm.x_loss"]) == pytest.approx(3.0)
    assert float(mixed["objective.loss_lmm"]) == pytest.approx(3.0)
    assert float(model.loss([question()])["lmm.x_loss"]) == pytest.approx(3.0)


def read(losses: dict[str, torch.Tensor]) -> set[str]:
    """Heads that gave a loss."""
    return {key.split(".")[0] for key in losses} - {"objective"}


def test_a_joint_sample_is_read_by_the_heads_it_has_something_for() -> None:
    model = make_model().eval()
    joint = replace(dense_sample(0, "joint"), text="a red star .")
    assert read(model.loss([joint])) == {"detection", "segmentation", "language"}
    boxes_only = replace(joint, dense=replace(joint.dense, semantic=None))
    mixed = model.loss([joint, boxes_only])
    torch.testing.assert_close(
        mixed["segmentation.loss_dice"], model.loss([joint])["segmentation.loss_dice"], rtol=1e-4, atol=1e-5
    )
    assert read(model.loss([boxes_only])) == {"detection", "language"}
