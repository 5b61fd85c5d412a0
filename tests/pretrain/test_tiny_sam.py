from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from flmm_detseg.errors import CheckpointError
from flmm_detseg.pretrain.sam_card import write_sam_card
from flmm_detseg.pretrain.tiny_sam import (
    NUM_POINTS,
    PROMPT_KINDS,
    degrade,
    encode_prompts,
    prompted_scene,
)
from flmm_detseg.pretrain.train_sam import (
    SamTrainer,
    SamTrainSettings,
    evaluate_sam,
    sam_loss,
    square_targets,
    train_tiny_sam,
)
from flmm_detseg.refiners import SAMRefiner, build_sam

STORED = Path(__file__).parents[2] / "data" / "models" / "tiny_sam"


@pytest.fixture
def settings(tmp_path):
    return SamTrainSettings(
        out_dir=str(tmp_path / "model"),
        work_dir=str(tmp_path / "work"),
        steps=2,
        batch_size=1,
        max_masks=2,
        warmup_steps=1,
        eval_scenes=1,
        save_every=1,
    )


@pytest.fixture(scope="module")
def refiner():
    torch.manual_seed(0)
    return SAMRefiner(build_sam("tiny"), use_text=False).eval()


def scene_of(refiner, index, **changes):
    return prompted_scene(refiner, 0, index, "train", torch.Generator().manual_seed(5), **changes)


def test_prompts_are_reproducible_and_lie_on_their_masks(refiner):
    first, again = scene_of(refiner, 3), scene_of(refiner, 3)
    assert torch.equal(first.coarse_logits, again.coarse_logits)
    assert torch.equal(first.points, again.points)
    height, width = first.image.shape[:2]
    assert (height, width) == (112, 84)
    for mask, points, box in zip(first.masks, first.points, first.boxes):
        x, y = (points * height / 128).long().unbind(-1)
        assert mask[y, x].all()
        x0, y0, x1, y1 = box.tolist()
        assert 0 <= x0 < x1 <= 96.001
        assert 0 <= y0 < y1 <= 128.001
    assert len(scene_of(refiner, 3, max_masks=2).masks) == 2


def test_degraded_masks_still_show_the_mask():
    masks = torch.zeros(2, 112, 112, dtype=torch.bool)
    masks[0, 10:60, 10:60] = True
    masks[1, 70:110, 30:110] = True
    coarse = degrade(masks, torch.Generator().manual_seed(0))
    assert coarse.shape == (2, 64, 64)
    small = masks[:, ::7, ::7]
    inside = [coarse[k, ::4, ::4][small[k]].mean() - coarse[k, ::4, ::4][~small[k]].mean() for k in range(2)]
    assert min(inside) > 1


@torch.no_grad()
def test_mixed_prompts_equal_sams_own_encoding(refiner):
    scene = scene_of(refiner, 0, max_masks=4)
    kinds = [PROMPT_KINDS[i % len(PROMPT_KINDS)] for i in range(len(scene.masks))]
    sparse, mask, dense = encode_prompts(refiner, [scene], kinds)
    for row, kind in enumerate(kinds):
        one = slice(row, row + 1)
        boxes = {"box": scene.boxes, "box+mask": scene.coarse_boxes}.get(kind)
        tokens, maps = refiner.model.prompt_encoder(
            points=(scene.points[one], torch.ones(1, NUM_POINTS)) if kind == "point" else None,
            boxes=None if boxes is None else boxes[one],
            masks=scene.mask_logits[one] if "mask" in kind else None,
        )
        torch.testing.assert_close(sparse[row][mask[row]], tokens[0])
        torch.testing.assert_close(dense[row], maps[0])


def test_loss_prefers_the_truth_and_ignores_padding(refiner):
    scene = scene_of(refiner, 3)
    targets, valid = square_targets(refiner, [scene])
    assert valid.float().mean() == pytest.approx(84 / 112)
    logits = (20 * targets - 10)[:, None].repeat(1, 4, 1, 1)
    quality = torch.ones(len(targets), 4)
    right = sam_loss(logits, quality, targets, valid)
    assert right["iou"] == 1
    assert sam_loss(-logits, quality, targets, valid)["loss"] > 3 * right["loss"]
    garbage = logits.masked_fill(~valid[:, None], 50.0)
    torch.testing.assert_close(sam_loss(garbage, quality, targets, valid)["loss"], right["loss"])


def test_resumed_training_equals_uninterrupted(settings):
    Path(settings.work_dir).mkdir()
    whole = SamTrainer(settings)
    figures = [whole.train_step() for _ in range(2)]
    first = SamTrainer(settings)
    assert first.train_step() == figures[0]
    first.save_state()
    second = SamTrainer(replace(settings, resume=True))
    assert second.train_step() == figures[1]
    for name, value in whole.average.items():
        assert torch.equal(second.average[name], value), name


def test_nothing_to_resume(settings):
    with pytest.raises(CheckpointError, match="nothing to resume"):
        SamTrainer(replace(settings, resume=True))


def test_run_stores_model_card_and_figures(settings):
    figures = train_tiny_sam(settings)
    write_sam_card(settings.out_dir, figures)
    assert figures["iou"].keys() == {*PROMPT_KINDS, "coarse"}
    stored = json.loads((Path(settings.out_dir) / "figures.json").read_text())
    assert stored["iou"] == figures["iou"]
    assert settings.out_dir not in json.dumps(stored)  # no path of this machine
    card = (Path(settings.out_dir) / "README.md").read_text()
    assert "--steps 2 --seed 0" in card
    assert SAMRefiner.from_pretrained(checkpoint=settings.out_dir).prompt_dim == 64


def test_stored_model_is_as_good_as_its_card_says():
    claimed = json.loads((STORED / "figures.json").read_text())["iou"]
    refiner = SAMRefiner.from_pretrained(checkpoint=str(STORED), use_text=False).eval()
    measured = evaluate_sam(refiner, seed=0, num_scenes=15)
    assert measured["box+mask"] > measured["coarse"] + 0.05
    for kind in PROMPT_KINDS:
        assert measured[kind] > claimed[kind] - 0.06, kind
