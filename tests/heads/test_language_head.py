"""Language losses against plain formulas."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tiny import one_image

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.heads import LanguageHead
from flmm_detseg.heads.language_head import distillation
from flmm_detseg.structures import GridLevel, GroundingBatch, LMMInputs, LMMStates, PatchGrid, Sample

VOCABULARY = 11


def make_batch(tasks: tuple[str, ...] = ("vqa", "joint")) -> tuple[LMMStates, GroundingBatch]:
    """Two samples of different length, prefix of 3 tokens."""
    generator = torch.Generator().manual_seed(0)
    grid = PatchGrid((4, 4), (4, 4), 0, 0, (4, 4), (GridLevel(1, 1),))
    samples, inputs, logits, base = [], [], [], []
    for index, task in enumerate(tasks):
        length = 6 + index
        ids = torch.randint(1, VOCABULARY, (length,), generator=generator)
        labels = ids.clone()
        labels[:3] = -100
        item = LMMInputs(
            ids, torch.zeros(0, length, dtype=torch.bool), labels, torch.zeros(length, dtype=torch.bool), 3,
            one_image(torch.zeros(3, 4, 4), grid), f"r{index}",
        )  # fmt: skip
        inputs.append(item)
        samples.append(Sample(f"r{index}", np.zeros((4, 4, 3), np.uint8), "text", (), task=task))
        logits.append(torch.randn(length - 2, VOCABULARY, generator=generator, requires_grad=True))
        base.append(torch.randn(length - 2, VOCABULARY, generator=generator))
    states = LMMStates(logits=logits, logits_start=[2] * len(tasks), base_logits=base)
    return states, GroundingBatch(samples, inputs)


def test_answer_loss_is_the_mean_over_tokens() -> None:
    states, batch = make_batch()
    head = LanguageHead(answer_weight=0.5)
    assert head.num_targets(batch) == 7
    rows = torch.cat([states.logits[0][:3], states.logits[1][:4]])
    labels = torch.cat([inputs.labels[3:] for inputs in batch.inputs])
    found = head.loss(states, batch)
    torch.testing.assert_close(found["loss_answer"], 0.5 * F.cross_entropy(rows, labels))
    assert "loss_distill" not in found
    predicted = torch.cat(head.predict(states, batch))
    assert float(found["answer_accuracy"]) == pytest.approx(float((predicted == labels).float().mean()))


def test_sections_count_alike() -> None:
    states, batch = make_batch(("joint",))
    weights = torch.tensor([1.0, 1.0, 1.0, 1.5, 0.75, 0.75])
    batch.inputs[0] = replace(batch.inputs[0], label_weights=weights)
    nll = F.cross_entropy(states.logits[0][:3], batch.inputs[0].labels[3:], reduction="none")
    wanted = (nll[0] + (nll[1] + nll[2]) / 2) / 2
    torch.testing.assert_close(LanguageHead().loss(states, batch)["loss_answer"], wanted)


@pytest.mark.parametrize("edges", [(0, 1, 3), (0, 2, 3), (0, 1, 2, 3)])
def test_parts_of_a_batch_weighed_by_their_targets_are_the_batch(edges: tuple[int, ...]) -> None:
    """Sections give tokens different weights: shares must count those and not tokens."""
    states, batch = make_batch(("vqa", "joint", "vqa"))
    for index, scale in ((0, 1.0), (1, 4.0)):
        weights = scale * torch.rand(
            len(batch.inputs[index].labels), generator=torch.Generator().manual_seed(7)
        )
        batch.inputs[index] = replace(batch.inputs[index], label_weights=weights)
    head = LanguageHead(distill_weight=0.5, distill_tasks=("vqa", "joint"))
    whole, total = head.loss(states, batch), head.num_targets(batch)
    sums = dict.fromkeys(whole, 0.0)
    for first, last in zip(edges, edges[1:]):
        part = GroundingBatch(batch.samples[first:last], batch.inputs[first:last])
        own = LMMStates(
            logits=states.logits[first:last],
            logits_start=states.logits_start[first:last],
            base_logits=states.base_logits[first:last],
        )
        for name, value in head.loss(own, part).items():
            sums[name] += head.num_targets(part) / total * float(value.detach())
    assert sums == pytest.approx({name: float(value.detach()) for name, value in whole.items()}, rel=1e-5)


def test_distillation_is_the_divergence_of_plain_answers() -> None:
    states, batch = make_batch()
    found = LanguageHead(distill_weight=2.0, temperature=2.0).loss(states, batch)["loss_distill"]
    teacher, student = states.base_logits[0][:3], states.logits[0][:3]
    wanted = F.kl_div(
        F.log_softmax(student / 2, -1), F.log_softmax(teacher / 2, -1), log_target=True, reduction="sum"
    )
    torch.testing.assert_close(found, 2.0 * 4.0 * wanted / 7)
    found.backward()
    assert states.logits[0].grad.abs().sum() > 0
    assert states.logits[1].grad is None, "joint answers are not distilled"


def test_added_words_are_left_out_of_the_distillation() -> None:
    student, teacher = torch.randn(4, 9), torch.randn(4, 7)
    torch.testing.assert_close(
        distillation(student, teacher, 1.0), distillation(student[:, :7], teacher, 1.0)
    )
    assert distillation(teacher, teacher, 3.0).abs().max() < 1e-6
    # In rows that the table had to spare the untouched LMM has logits, too.
    other = teacher.clone()
    other[:, [2, 5]] += 9
    words = [0, 1, 3, 4, 6]
    assert distillation(other, teacher, 3.0, (2, 5)).abs().max() < 1e-6
    torch.testing.assert_close(
        distillation(student, teacher, 2.0, (2, 5, 7, 8)),
        distillation(student[:, words], teacher[:, words], 2.0),
    )


def test_capture_asks_for_the_base_only_where_it_is_used() -> None:
    assert not LanguageHead().capture.base_logits
    assert LanguageHead(distill_weight=0.1).capture.base_logits


def test_an_empty_answer_is_named() -> None:
    states, batch = make_batch(("vqa",))
    batch.inputs[0] = replace(batch.inputs[0], labels=torch.full((6,), -100))
    with pytest.raises(DataError, match="r0"):
        LanguageHead().loss(states, batch)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"temperature": 0.0}, "temperature"),
        ({"answer_weight": -1.0}, "answer_weight"),
        ({"answer_weight": 0.0}, "both 0"),
        ({"distill_tasks": ("phrase",)}, "phrase"),
    ],
)
def test_wrong_settings_are_named(arguments: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        LanguageHead(**arguments)
