"""Parts shared by name: built once, trained once, stored once, whatever heads hold them."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from mmengine.config import Config
from multi_task_parts import HEADS, NECK, dense_sample, make_model, objective
from sam_parts import make_refiner
from seg_parts import reasoning_sample
from tiny import make_sample, tiny_llava
from torch import Tensor

from flmm_detseg.engine import GroupedAdamW
from flmm_detseg.engine.training import optimizer
from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.heads import PixelStem, SegTokenHead, VisionNeck
from flmm_detseg.language.segment_names import MASK_TOKEN
from flmm_detseg.lmms.weights.parameters import parameter_report
from flmm_detseg.models import GroundingLMM
from flmm_detseg.models.checkpoint import load_file

SAM = {"type": make_refiner}
PHRASE = {**HEADS["phrase"], "sam": "sam", "text_dim": 16}
DETECTION = {**HEADS["detection"], "score_threshold": 0.0, "sam": "sam"}
TWO = {"phrase": PHRASE, "second": {**PHRASE, "loss_mask_weight": 2.0}}


def build(heads: dict[str, Any], **changes) -> GroundingLMM:
    return make_model(lmm=tiny_llava(), heads=heads, **changes).eval()


def shared(heads: dict[str, Any] = TWO, **changes) -> GroundingLMM:
    return build(heads, parts={"sam": SAM}, **changes)


def apart(heads: dict[str, Any] = TWO) -> GroundingLMM:
    return build({name: {**head, "sam": SAM} for name, head in heads.items()})


def save(tensors: dict[str, Tensor], path: Path) -> str:
    torch.save({"state_dict": {name: value.clone() for name, value in tensors.items()}}, path)
    return str(path)


def move(model: GroundingLMM, by: float = 0.05) -> None:
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(by * torch.randn(parameter.shape, generator=generator))


def masks(model: GroundingLMM, task: str = "phrase") -> Tensor:
    return (
        model.heads[task]
        .run(lambda batch: model.encode(batch), model.prepare([make_sample(0)]))[0]
        .mask_logits
    )


def test_two_heads_hold_one_sam_that_is_stored_and_trained_once() -> None:
    model = shared()
    sam = model.heads["phrase"].sam
    assert sam is model.heads["second"].sam is model.parts["sam"]
    own = {f"parts.sam.{name}" for name, _ in sam.named_parameters()}
    for names in (
        {name for name, _ in model.named_parameters()},
        set(model.state_dict()),
        set(copy.deepcopy(model).state_dict()),
    ):
        assert own <= names
        assert not any(".sam." in name for name in names - own if name.startswith("heads."))
    trained = {f"parts.sam.{name}" for name, p in sam.named_parameters() if p.requires_grad}
    assert trained
    assert {name for name in model.trainable_state_dict() if ".sam." in name} == trained
    optimizer = GroupedAdamW(model.parameters(), lr=1e-3, groups={"parts.sam.": {"lr_mult": 0.1}})
    members = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    assert len({id(parameter) for parameter in members}) == len(members)
    (group,) = [group for group in optimizer.param_groups if group.get("group_name") == "parts.sam."]
    assert {p.flmm_name for p in group["params"]} == trained
    figures = {group.name: group for group in parameter_report(model).groups}
    assert figures["parts.sam"].total == sum(p.numel() for p in sam.parameters())


def test_its_gradient_is_the_sum_of_both_heads() -> None:
    model, single = shared(), apart()
    start = {}
    for name, value in model.trainable_state_dict().items():
        places = [name.replace("parts.", f"heads.{head}.") for head in TWO] if "parts." in name else [name]
        start.update({place: value for place in places})
    single.load_trainable(start, "memory")
    samples = [make_sample(0), make_sample(1)]
    for each in (model, single):
        objective(each, samples).backward()
    for name, parameter in model.parts["sam"].named_parameters():
        if parameter.requires_grad:
            wanted = sum(single.heads[head].sam.get_parameter(name).grad for head in TWO)
            torch.testing.assert_close(parameter.grad, wanted, rtol=1e-4, atol=1e-6, msg=name)


def test_save_and_load_give_the_same_model(tmp_path: Path) -> None:
    model = shared()
    move(model)
    file = save(model.trainable_state_dict(), tmp_path / "shared.pth")
    again, whole = shared(), shared()
    assert not torch.equal(masks(again), masks(model))
    load_file(again, file)
    whole.load_state_dict(model.state_dict())
    start = shared(init_from=[file])
    for other in (again, whole, start):
        for task in TWO:
            assert torch.equal(masks(other, task), masks(model, task))
        assert other.heads["phrase"].sam is other.heads["second"].sam
    kept = {name: value for name, value in model.trainable_state_dict().items() if "parts." not in name}
    without = save(kept, tmp_path / "without.pth")
    with pytest.raises(CheckpointError, match=r"missing: parts\.sam\."):
        load_file(shared(), without)


def test_what_was_trained_before_it_was_shared_loads(tmp_path: Path) -> None:
    before = apart({"phrase": PHRASE})
    move(before)
    file = save(before.trainable_state_dict(), tmp_path / "apart.pth")
    assert any(name.startswith("heads.phrase.sam.") for name in before.trainable_state_dict())
    model = shared({"phrase": PHRASE})
    load_file(model, file)
    assert torch.equal(masks(model), masks(before))
    stage = shared(init_from=[file], new_parts=["heads.second."])
    assert torch.equal(masks(stage), masks(before))
    published = {name.removeprefix("heads.phrase."): v for name, v in before.trainable_state_dict().items()}
    bare = shared({"phrase": PHRASE})
    load_file(bare, save(published, tmp_path / "published.pth"))
    assert torch.equal(masks(bare), masks(before))


def test_two_parts_that_became_different_are_not_taken_for_one(tmp_path: Path) -> None:
    both = apart()
    alike = shared()
    load_file(alike, save(both.trainable_state_dict(), tmp_path / "alike.pth"))
    assert torch.equal(masks(alike), masks(both))
    move(both)
    with pytest.raises(
        CheckpointError, match=r"heads\.phrase\.sam\.\S+ and heads\.second\.sam\.\S+, which differ"
    ):
        load_file(shared(), save(both.trainable_state_dict(), tmp_path / "different.pth"))


def test_two_files_that_hold_different_parts_are_not_taken_for_one(tmp_path: Path) -> None:
    first, second = apart({"phrase": PHRASE}), apart({"phrase": PHRASE})
    move(second)
    files = [
        save(model.trainable_state_dict(), tmp_path / f"{index}.pth")
        for index, model in enumerate((first, second))
    ]
    with pytest.raises(CheckpointError, match=r"share here, and they differ \(parts\.sam\."):
        shared({"phrase": PHRASE}, init_from=files)
    shared({"phrase": PHRASE}, init_from=[files[1], files[1]])


def test_lora_on_a_head_leaves_shared_parts_alone() -> None:
    arguments = necks()
    with pytest.raises(ConfigError, match="would change the part 'neck', which heads share"):
        make_model(**arguments, head_lora={"segmentation": {"r": 2}})


@pytest.mark.parametrize("order", [("detection", "phrase"), ("phrase", "detection")])
def test_a_head_that_only_uses_a_sam_does_not_freeze_it_for_others(order: tuple[str, ...]) -> None:
    heads = {"phrase": PHRASE, "detection": DETECTION}
    model = shared({name: heads[name] for name in order})
    alone = {name: p.requires_grad for name, p in make_refiner().named_parameters()}
    sam = model.parts["sam"]
    assert {name: p.requires_grad for name, p in sam.named_parameters() if "box_parts" not in name} == alone
    sample = dense_sample(0, "detection")
    before = model.detect([sample])[0].masks
    assert before.any()
    assert not before.all()
    objective(model, [make_sample(0)]).backward()
    optimizer = torch.optim.SGD([p for p in sam.parameters() if p.requires_grad], lr=1.0)
    optimizer.step()
    assert torch.equal(model.detect([sample])[0].masks, before), "boxes keep the decoder they began with"
    assert not any("box_parts" in name for name in model.trainable_state_dict())


@pytest.mark.parametrize("order", [("detection", "reasoning"), ("reasoning", "detection")])
def test_of_a_shared_sam_only_what_a_mask_token_reaches_is_trained(order: tuple[str, ...]) -> None:
    heads = {"reasoning": {"type": SegTokenHead, "sam": "sam"}, "detection": DETECTION}
    lmm = tiny_llava(added_tokens=[MASK_TOKEN])
    alone = make_model(lmm=lmm, heads={"reasoning": {"type": SegTokenHead, "sam": SAM}})
    wanted = {name for name, p in alone.heads["reasoning"].sam.named_parameters() if p.requires_grad}
    assert wanted
    model = make_model(lmm=lmm, heads={name: heads[name] for name in order}, parts={"sam": SAM})
    assert {name for name, p in model.parts["sam"].named_parameters() if p.requires_grad} == wanted
    objective(model.train(), [reasoning_sample(0)]).backward()
    for name in wanted:
        assert model.parts["sam"].get_parameter(name).grad.abs().sum() > 0, name
    # A phrase head prompts SAM in every way, and so trains all of it.
    both = make_model(lmm=lmm, heads={"reasoning": heads["reasoning"], "phrase": PHRASE}, parts={"sam": SAM})
    everything = {name for name, p in make_refiner().named_parameters() if p.requires_grad}
    trained = {name for name, p in both.parts["sam"].named_parameters() if p.requires_grad}
    assert trained == everything > wanted


def test_a_part_that_no_head_trains_is_frozen() -> None:
    model = shared({"detection": DETECTION})
    assert not any(p.requires_grad for p in model.parts["sam"].parameters())
    assert not any(".sam." in name for name in model.trainable_state_dict())
    frozen = shared(freeze=["parts.sam"])
    assert not any(p.requires_grad for p in frozen.parts["sam"].parameters())
    by_head = shared(freeze=["second.sam"])
    assert not any(p.requires_grad for p in by_head.parts["sam"].parameters()), "one part, one answer"


def necks(**changes) -> dict[str, Any]:
    heads = {name: {**HEADS[name], "neck": "neck"} for name in ("detection", "segmentation")}
    stem = {"type": PixelStem, "stride": 4, "channels": 8}
    neck = {**NECK, "type": VisionNeck, "gate": "task", "side": "view", **changes}
    return {"heads": heads, "parts": {"neck": neck, "view": stem}, "lmm": tiny_llava()}


def test_parts_of_parts_and_a_neck_whose_gate_distinguishes_tasks() -> None:
    model = make_model(**necks())
    neck = model.parts["neck"]
    assert model.heads["detection"].neck is model.heads["segmentation"].neck is neck
    assert neck.side is model.parts["view"]
    assert neck.patch_size == model.lmm.patch_size, "sizes follow from the LMM here too"
    names = list(model.state_dict())
    assert not any(".neck." in name for name in names if name.startswith("heads."))
    assert any(name.startswith("parts.view.stem.") for name in names)
    assert not any(".side." in name for name in names)
    rows = neck.gate.task_embedding.weight
    for index, task in ((1, "detection"), (2, "segmentation")):
        objective(model.eval(), [dense_sample(0, task)]).backward()
        assert rows.grad.abs().sum(1).nonzero().flatten().tolist() == [index]
        model.zero_grad()
    again = make_model(**necks())
    move(model)
    again.load_state_dict(model.state_dict())
    for name, value in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name


def test_a_learning_rate_that_misses_a_shared_part_is_reported(monkeypatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(optimizer, "print_log", lambda text, *_: said.append(text))
    parameters = list(shared().parameters())
    GroupedAdamW(parameters, groups={"heads.second.": {"lr_mult": 0.1}})
    assert len(said) == 1
    assert said[0].startswith("`optimizer.groups.heads.second.` does not reach parts.sam.")
    GroupedAdamW(parameters, groups={"heads.second.": {}, "parts.sam.": {"lr_mult": 0.1}})
    GroupedAdamW(list(apart().parameters()), groups={"heads.second.": {}})
    assert len(said) == 1


def test_two_heads_for_one_task_are_refused_when_the_model_is_built() -> None:
    with pytest.raises(ConfigError, match="heads first, second all predict for task 'phrase'"):
        shared({"first": PHRASE, "second": PHRASE})


def test_the_order_of_a_config_does_not_matter() -> None:
    """MMEngine sorts the keys of configs that it writes."""
    settings = necks()
    turned = {**settings, "parts": dict(reversed(settings["parts"].items()))}
    assert list(make_model(**settings).state_dict()) == list(make_model(**turned).state_dict())
    config = Config({"model": {"type": "GroundingLMM", "heads": TWO, "parts": {"sam": SAM}}})
    assert list(shared(config.model.heads).state_dict()) == list(shared().state_dict())


@pytest.mark.parametrize(
    ("heads", "parts", "said"),
    [
        (
            TWO,
            {},
            r"`model\.heads\.phrase\.sam` is 'sam': a text names a shared part, and there is no `model\.parts`",
        ),
        (TWO, {"sams": SAM}, r"`model\.parts` has sams.*did you mean `sams`"),
        (TWO, {"sam": SAM, "other": SAM}, r"`model\.parts\.other` is in no head"),
        (
            TWO,
            {"sam": {"type": "SAMRefinr"}},
            r"`model\.parts\.sam\.type` is 'SAMRefinr', which is not registered",
        ),
        (TWO, {"sam": 3}, r"`model\.parts\.sam` is a int; a part is a module"),
        (TWO, {"sam": "sam"}, r"`model\.parts\.sam` is a str; a part is a module"),
        (TWO, {"sam": {**NECK, "side": "sam"}}, r"sam -> sam: a part cannot be made of itself"),
        (TWO, {"a.b": SAM}, r"'a\.b' cannot be the name of a part"),
        (TWO, {"values": SAM}, r"'values' cannot be the name of a part"),
        (TWO, {"training": SAM}, r"'training' cannot be the name of a part"),
    ],
)
def test_parts_that_cannot_be(heads: dict[str, Any], parts: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        build(heads, parts=parts)


def test_without_shared_parts_names_are_what_they_were() -> None:
    model = apart({"phrase": PHRASE})
    names = list(model.state_dict())
    heads = [name for name in names if not name.startswith("lmm.")]
    assert {".".join(name.split(".")[:3]) for name in heads} == {
        "heads.phrase.mask_head", "heads.phrase.sam", "heads.phrase.text_layer_weights", "heads.phrase.text_proj",
    }  # fmt: skip
    assert not model._state_dict_hooks
    assert not model._load_state_dict_pre_hooks
