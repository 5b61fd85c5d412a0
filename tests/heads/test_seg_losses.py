from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from flmm_detseg.heads.seg_losses import SegmentationLoss, boundary_loss, boundary_maps, dice_loss

C, H, W = 4, 7, 9


def make_case(seed=0):
    """Logits and labels; class 3 does not occur, two pixels are unknown."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(C, H, W, generator=generator)
    labels = torch.randint(0, 3, (H, W), generator=generator).to(torch.uint8)
    labels[0, :2] = 255
    return logits, labels


def known_pixels(logits, labels):
    """Lists of (probabilities, label) as plain numbers."""
    probability = logits.softmax(0)
    for y in range(H):
        for x in range(W):
            if labels[y, x] != 255:
                yield [float(value) for value in probability[:, y, x]], int(labels[y, x]), (y, x)


def test_dice_formula():
    logits, labels = make_case()
    pixels = list(known_pixels(logits, labels))
    terms = []
    for index in range(3):
        overlap = sum(p[index] for p, label, _ in pixels if label == index)
        mass = sum(p[index] for p, _, _ in pixels)
        size = sum(label == index for _, label, _ in pixels)
        terms.append(1 - (2 * overlap + 1) / (mass + size + 1))
    assert dice_loss(logits, labels).item() == pytest.approx(sum(terms) / 3, rel=1e-5)


def jaccard_loss(wrong: set[int], truth: set[int]) -> float:
    """1 - |truth without wrong| / |truth and wrong|: the set function Lovasz extends."""
    return 1 - len(truth - wrong) / len(truth | wrong) if truth | wrong else 0.0


def test_lovasz_is_the_extension_of_the_jaccard_loss():
    logits, labels = make_case()
    pixels = list(known_pixels(logits, labels))
    terms = []
    for index in range(3):
        truth = {i for i, (_, label, _) in enumerate(pixels) if label == index}
        errors = [1 - p[index] if i in truth else p[index] for i, (p, _, _) in enumerate(pixels)]
        order = sorted(range(len(pixels)), key=lambda i: -errors[i])
        loss = 0.0
        for position, pixel in enumerate(order):
            step = jaccard_loss(set(order[: position + 1]), truth) - jaccard_loss(
                set(order[:position]), truth
            )
            loss += errors[pixel] * step
        terms.append(loss)
    figures = SegmentationLoss(dice_weight=0, lovasz_weight=2)(logits[None], labels[None])
    assert set(figures) == {"loss_lovasz", "accuracy"}
    assert figures["loss_lovasz"].item() == pytest.approx(2 * sum(terms) / 3, rel=1e-4)


def signed_distance(labels, index, y, x) -> float:
    """Nearest pixel on the other side of the boundary, by search."""
    inside = labels[y, x] == index
    others = [
        math.hypot(y - v, x - u)
        for v in range(H)
        for u in range(W)
        if labels[v, u] != 255 and (labels[v, u] == index) != inside
    ]
    return (-1 if inside else 1) * (min(others) - 0.5) / max(H, W)


def test_boundary_formula():
    logits, labels = make_case()
    pixels = list(known_pixels(logits, labels))
    expected = sum(p[i] * signed_distance(labels, i, *place) for p, _, place in pixels for i in range(3))
    assert boundary_loss(logits, labels).item() == pytest.approx(expected / (3 * len(pixels)), rel=1e-4)


def test_boundary_lies_between_pixels():
    labels = np.array([[0, 0, 1, 1, 1, 255]], dtype=np.uint8)
    maps = boundary_maps(labels, [0, 1]) * 6
    np.testing.assert_allclose(maps[0, 0, :5], [-1.5, -0.5, 0.5, 1.5, 2.5])
    np.testing.assert_allclose(maps[1, 0, :5], [1.5, 0.5, -0.5, -1.5, -2.5])
    assert not boundary_maps(np.zeros((3, 3), np.uint8), [0]).any()


def test_boundary_loss_prefers_the_truth():
    _, labels = make_case()
    good = 6 * torch.nn.functional.one_hot(labels.long().clamp(max=3), C).permute(2, 0, 1).float()
    assert (
        boundary_loss(good, labels)
        < boundary_loss(torch.zeros(C, H, W), labels)
        < boundary_loss(-good, labels)
    )


def test_cross_entropy_and_accuracy():
    logits, labels = make_case()
    pixels = list(known_pixels(logits, labels))
    figures = SegmentationLoss(0, 0, ce_weight=0.5)(logits[None], labels[None])
    expected = -sum(math.log(p[label]) for p, label, _ in pixels) / len(pixels)
    assert figures["loss_ce"].item() == pytest.approx(0.5 * expected, rel=1e-5)
    hits = sum(max(range(C), key=p.__getitem__) == label for p, label, _ in pixels)
    assert figures["accuracy"].item() == pytest.approx(hits / len(pixels))


def test_perfect_predictions_cost_nothing():
    _, labels = make_case()
    perfect = 50 * torch.nn.functional.one_hot(labels.long().clamp(max=3), C).permute(2, 0, 1).float()
    figures = SegmentationLoss(ce_weight=1)(perfect[None], labels[None])
    for name in ("loss_dice", "loss_lovasz", "loss_ce"):
        assert figures[name].item() == pytest.approx(0, abs=1e-5)
    assert figures["accuracy"] == 1


def test_unknown_pixels_do_not_matter():
    logits, labels = make_case()
    changed = logits.clone()
    changed[:, 0, :2] += torch.tensor([9.0, -9, 3, 5])[:, None]
    loss = SegmentationLoss(1, 1, 1, 1)
    torch.testing.assert_close(loss(logits[None], labels[None]), loss(changed[None], labels[None]))


@pytest.mark.parametrize("count", [0, 1, 2])
def test_hardly_any_known_pixel(count):
    logits, _ = make_case()
    labels = torch.full((H, W), 255, dtype=torch.uint8)
    labels[3, :count] = 1
    figures = SegmentationLoss(1, 1, 1, 1)(logits[None].requires_grad_(), labels[None])
    assert all(torch.isfinite(value) for value in figures.values())
    assert (figures["loss_ce"] > 0) == (count == 2)
    sum(value for name, value in figures.items() if "loss" in name).backward()


def test_gradients_agree_with_finite_differences():
    logits, labels = make_case()
    logits = logits.double().requires_grad_()
    for part in (dice_loss, boundary_loss):
        loss = part(logits, labels)
        (gradient,) = torch.autograd.grad(loss, logits)
        step = torch.zeros_like(logits)
        step[1, 3, 4] = 1e-2
        slope = (part(logits + step, labels) - part(logits - step, labels)) / 2e-2
        assert slope.item() == pytest.approx(gradient[1, 3, 4].item(), rel=0.05, abs=1e-5)
