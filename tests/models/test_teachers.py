"""Heads of an earlier stage as teachers: what they say, in which units, and that they stay as they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from multi_task_parts import HEADS, dense_sample, make_model, move_lora, objective
from tiny import tiny_llava

from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.models import GroundingLMM
from flmm_detseg.structures import DenseTargets, Sample

DENSE = {name: HEADS[name] for name in ("detection", "segmentation")}
SOFT = ("loss_soft_cls", "loss_soft_bbox", "loss_soft_centerness")


@pytest.fixture(scope="module")
def stage1() -> GroundingLMM:
    """Heads alone on the LMM as it was; its boxes are sure enough to be labels."""
    torch.manual_seed(7)
    model = GroundingLMM(lmm=tiny_llava(), heads=DENSE).eval()
    with torch.no_grad():
        model.heads["detection"].fcos.conv_cls.bias.fill_(0.5)
        model.heads["segmentation"].decoder.classify.weight.mul_(30)
    return model


@pytest.fixture(scope="module")
def file(stage1: GroundingLMM, tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("teacher") / "stage1.pth"
    torch.save({"state_dict": stage1.trainable_state_dict()}, path)
    return str(path)


def taught(file: str, **changes: Any) -> GroundingLMM:
    settings = {"checkpoint": file, **changes}
    model = make_model(teachers={"detection": settings, "segmentation": settings}).eval()
    move_lora(model)
    return model


def test_a_head_that_is_its_teacher_has_nothing_to_learn(file: str) -> None:
    settings = {name: {"checkpoint": file} for name in DENSE}
    model = make_model(teachers=settings, init_from=[file], new_parts=["lmm.", "heads.phrase."]).eval()
    losses = model.loss([dense_sample(0, "detection"), dense_sample(1, "segmentation")])
    for name in SOFT:
        assert abs(float(losses[f"detection.{name}"])) < 1e-5, name
    assert float(losses["segmentation.loss_soft_classes"]) < 1e-5
    move_lora(model)
    moved = model.loss([dense_sample(0, "detection"), dense_sample(1, "segmentation")])
    for name in ("detection.loss_soft_cls", "segmentation.loss_soft_classes"):
        assert float(moved[name]) > 3e-5, name


def test_soft_losses_of_boxes_are_those_of_the_formulas(file: str, stage1: GroundingLMM) -> None:
    model, sample = taught(file, weight=2.0), dense_sample(0, "detection")
    losses = model.loss([sample])
    head: Any = model.heads["detection"]
    batch = model.prepare([sample])

    def rows(source: GroundingLMM) -> list[np.ndarray]:
        part: Any = source.heads["detection"]
        with torch.no_grad():
            maps = part.fcos(part.neck(source.encode(source.prepare([sample])), batch))
        return [np.concatenate([m[0].flatten(1).T.double().numpy() for m in levels]) for levels in maps]

    (cls, dist, centre), (t_cls, t_dist, t_centre) = rows(model), rows(stage1)
    count = head.num_targets(batch)

    def sigmoid(x: np.ndarray) -> np.ndarray:
        return 1 / (1 + np.exp(-x))

    def entropy(target: np.ndarray, probability: np.ndarray) -> np.ndarray:
        return -target * np.log(probability) - (1 - target) * np.log(1 - probability)

    p, q = sigmoid(cls), sigmoid(t_cls)
    wanted = (entropy(q, p) * (p - q) ** 2).sum() / count
    assert float(losses["detection.loss_soft_cls"]) == pytest.approx(2 * wanted, rel=1e-4)
    c, d = sigmoid(centre[:, 0]), sigmoid(t_centre[:, 0])
    trust = q.max(1) * d
    wanted = (trust * (entropy(d, c) - entropy(d, d))).sum() / count
    assert float(losses["detection.loss_soft_centerness"]) == pytest.approx(2 * wanted, rel=1e-3, abs=1e-6)
    # Left, top, right, bottom around one point: widths add, overlaps are the smaller of each side.
    inside = np.minimum(dist, t_dist)
    around = np.maximum(dist, t_dist)

    def area(sides: np.ndarray) -> np.ndarray:
        return (sides[:, 0] + sides[:, 2]) * (sides[:, 1] + sides[:, 3])

    union = area(dist) + area(t_dist) - area(inside)
    giou = area(inside) / union - (area(around) - union) / area(around)
    wanted = (trust * (1 - giou)).sum() / count
    assert float(losses["detection.loss_soft_bbox"]) == pytest.approx(2 * wanted, rel=1e-3)


def test_soft_classes_are_the_divergence_over_the_image(file: str, stage1: GroundingLMM) -> None:
    model, sample = taught(file), dense_sample(1, "segmentation")
    found = float(model.loss([sample])["segmentation.loss_soft_classes"])

    def maps(source: GroundingLMM) -> torch.Tensor:
        batch = source.prepare([sample])
        with torch.no_grad():
            return source.heads["segmentation"].logits(source.encode(batch), batch)[0]

    own, theirs = maps(model), maps(stage1)
    # Cells whose centre is on the image: the head's own targets are unknown elsewhere.
    head: Any = model.heads["segmentation"]
    shown = head.targets(model.prepare([sample]), own.shape[-2:])[0] != 255
    pairs = [(theirs[:, y, x], own[:, y, x]) for y, x in shown.nonzero().tolist()]
    each = [F.kl_div(s.log_softmax(0), t.softmax(0), reduction="sum") for t, s in pairs]
    assert found == pytest.approx(float(torch.stack(each).mean()), rel=1e-4)
    assert 0 < len(pairs) < shown.numel()


def relabelled(stage1: GroundingLMM, sample: Sample, threshold: float) -> Sample:
    """By the earlier stage's own predictions, as a user would make pseudo-labels."""
    if sample.task == "detection":
        found = stage1.detect([sample])[0]
        keep = found.scores >= threshold
        dense = DenseTargets(
            boxes_xyxy=found.bboxes[keep].numpy(),
            labels=found.labels[keep].numpy(),
            weights=found.scores[keep].numpy(),
        )
        assert keep.any()
        assert not keep.all()
    else:
        dense = DenseTargets(semantic=stage1.segment([sample])[0].to(torch.uint8).numpy())
    return replace(sample, dense=dense)


@pytest.mark.parametrize(("task", "threshold"), [("detection", 0.31), ("segmentation", 0.2)])
def test_pseudo_labels_are_what_the_earlier_stage_finds(
    file: str, stage1: GroundingLMM, task: str, threshold: float
) -> None:
    model = taught(file, form="labels", threshold=threshold)
    sample = dense_sample(0, task)
    other = relabelled(stage1, sample, threshold)
    losses, wanted = model.loss([sample]), make_plain(model).loss([other])
    head: Any = model.heads[task]
    share = head.num_targets(model.prepare([other])) / head.num_targets(model.prepare([sample]))
    names = [name for name in wanted if name.startswith(f"{task}.loss_")]
    assert len(names) >= 2
    for name in names:
        torch.testing.assert_close(
            losses[name.replace("loss_", "loss_teacher_")],
            share * wanted[name],
            rtol=1e-4,
            atol=1e-5,
            msg=name,
        )


def make_plain(model: GroundingLMM) -> GroundingLMM:
    plain = make_model().eval()
    plain.load_trainable(model.trainable_state_dict(), "the taught model")
    return plain


@pytest.mark.parametrize("form", ["soft", "labels"])
@pytest.mark.parametrize("task", ["detection", "segmentation"])
def test_a_batch_is_the_mean_of_its_samples(file: str, form: str, task: str) -> None:
    model = taught(file, form=form, **({"threshold": 0.31} if form == "labels" else {}))
    samples = [dense_sample(index, task) for index in range(3)]
    together = model.loss(samples)
    count = [model.heads[task].num_targets(model.prepare([sample])) for sample in samples]
    alone = [model.loss([sample]) for sample in samples]
    names = [name for name in together if "soft" in name or "teacher" in name]
    # Lovasz-Softmax and Dice are means over images, FCOS's terms sums over points.
    assert names
    for name in names:
        wanted = sum(n * losses[name] for n, losses in zip(count, alone)) / sum(count)
        torch.testing.assert_close(together[name], wanted, rtol=1e-3, atol=1e-5, msg=name)


def test_the_student_learns_and_the_teacher_stays(file: str) -> None:
    model = taught(file)
    plain = make_model()
    assert model.trainable_state_dict().keys() == plain.trainable_state_dict().keys()
    samples = [dense_sample(0, "detection"), dense_sample(1, "segmentation")]
    before = [t.clone() for teacher in teachers(model) for t in teacher.state_dict().values()]
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=1e-2)
    losses = model.loss(samples)
    first = {name: float(value) for name, value in losses.items() if "soft" in name}
    for _ in range(8):
        optimizer.zero_grad()
        objective(model, samples).backward()
        optimizer.step()
    last = model.loss(samples)
    assert float(last["segmentation.loss_soft_classes"]) < first["segmentation.loss_soft_classes"]
    assert float(last["detection.loss_soft_cls"]) < first["detection.loss_soft_cls"]
    after = [t for teacher in teachers(model) for t in teacher.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


def teachers(model: GroundingLMM) -> list[Any]:
    return [teacher.head for teacher in model.teachers.values()]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"boxes": {}}, "'boxes' is none of the heads detection, segmentation"),
        ({"detection": {}}, "needs `checkpoint`"),
        ({"detection": "stage1.pth"}, r"is 'stage1.pth'; give dict\(checkpoint=...\)"),
        ({"detection": {"checkpoint": "FILE", "form": "hard"}}, "`form` is 'hard'; allowed: soft, labels"),
        ({"detection": {"checkpoint": "FILE", "weigth": 1}}, "no key weigth"),
        ({"detection": {"checkpoint": "FILE", "weight": 0}}, "`weight` is 0"),
        (
            {"detection": {"checkpoint": "FILE", "form": "labels", "threshold": 50}},
            "no probability is above 1",
        ),
        ({"detection": {"checkpoint": "FILE", "threshold": 0.3}}, "soft targets have none"),
        ({"phrase": {"checkpoint": "FILE"}}, "a PhraseGroundingHead learns from no teacher"),
    ],
)
def test_wrong_settings_are_named(file: str, settings: dict, said: str) -> None:
    given = {
        name: {key: file if value == "FILE" else value for key, value in own.items()}
        if isinstance(own, dict)
        else own
        for name, own in settings.items()
    }
    with pytest.raises(ConfigError, match=said):
        make_model(teachers=given)


def test_wrong_files_are_named(file: str, stage1: GroundingLMM, tmp_path: Path) -> None:
    tensors = stage1.trainable_state_dict()

    def refused(content: dict, said: str) -> None:
        path = tmp_path / "wrong.pth"
        torch.save({"state_dict": content}, path)
        with pytest.raises(CheckpointError, match=said):
            make_model(teachers={"detection": {"checkpoint": str(path)}})

    name = "heads.detection.fcos.conv_cls.bias"
    refused({key: value for key, value in tensors.items() if key != name}, "fcos.conv_cls.bias")
    refused({**tensors, name: torch.zeros(5)}, "fcos.conv_cls.bias")
    refused({**tensors, "heads.detection.more": torch.zeros(5)}, "more")
    refused({**tensors, name: tensors[name] * float("nan")}, "NaN")
    adapted = taught(file)
    refused(adapted.trainable_state_dict(), "adapted LMM")
    with pytest.raises(ConfigError, match="the original LMM is lost"):
        make_model(lmm=tiny_llava(frozen=False), teachers={"detection": {"checkpoint": file}})
