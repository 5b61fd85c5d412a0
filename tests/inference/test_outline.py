"""What is outlined where somebody points: equal to SAM's and SAM 2's own predictors on the same prompts."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sam2_parts import SIDE, make_sam2_refiner
from sam_parts import make_inputs, make_refiner
from segment_anything import SamPredictor
from transformers import Sam2ImageProcessorFast, Sam2Processor

from flmm_detseg.errors import ConfigError, DataError, RunError
from flmm_detseg.inference import Outliner
from flmm_detseg.inference.scribble import MOST_POINTS, points_along

IMAGE = make_inputs()[0][0]  # 40 x 64
BOX = (10.0, 4.0, 50.0, 33.0)
PROMPTS = [
    {"points": [(20, 11)]},
    {"points": [(20.5, 11), (40, 30)], "labels": [True, False]},
    {"box": BOX},
    {"points": [(20, 11), (33, 20)], "box": BOX},
]
IDS = ["click", "clicks", "box", "both"]


def _outliner(refiner, image: np.ndarray = IMAGE) -> Outliner:
    head = SimpleNamespace(refiner=refiner)
    return Outliner(SimpleNamespace(model=SimpleNamespace(heads={"phrase": head})), image)


def _sam(prompt: dict, refiner) -> tuple[np.ndarray, float]:
    predictor = SamPredictor(refiner.model)
    predictor.set_image(IMAGE)
    points = np.array(prompt["points"], dtype=np.float64) if "points" in prompt else None
    labels = None if points is None else np.array(prompt.get("labels", [True] * len(points))).astype(int)
    box = np.array(prompt["box"]) if "box" in prompt else None
    single_click = box is None and len(points) == 1
    masks, quality, _ = predictor.predict(points, labels, box, multimask_output=single_click)
    best = int(quality.argmax())
    return masks[best], float(quality[best])


def _sam2(prompt: dict, refiner) -> tuple[np.ndarray, float]:
    processor = Sam2Processor(Sam2ImageProcessorFast(size={"height": SIDE, "width": SIDE}))
    given = {}
    if "points" in prompt:
        points = [list(map(float, point)) for point in prompt["points"]]
        labels = [int(label) for label in prompt.get("labels", [True] * len(points))]
        given |= {"input_points": [[points]], "input_labels": [[labels]]}
    if "box" in prompt:
        given["input_boxes"] = [[list(prompt["box"])]]
    single_click = "box" not in prompt and len(prompt["points"]) == 1
    inputs = processor(images=IMAGE, return_tensors="pt", **given)
    with torch.no_grad():
        found = refiner.model(
            **{name: inputs[name] for name in ("pixel_values", *given)}, multimask_output=single_click
        )
    best = int(found.iou_scores[0, 0].argmax())
    masks = processor.post_process_masks([found.pred_masks[0]], [list(IMAGE.shape[:2])])[0][0]
    return masks[best].numpy(), float(found.iou_scores[0, 0, best])


@pytest.mark.parametrize("prompt", PROMPTS, ids=IDS)
@pytest.mark.parametrize(("build", "theirs"), [(make_refiner, _sam), (make_sam2_refiner, _sam2)])
def test_an_outline_is_what_the_sams_own_predictor_gives(build, theirs, prompt) -> None:
    refiner = build()
    expected, quality = theirs(prompt, refiner)
    found = _outliner(refiner).outline(**prompt)
    assert (found.mask.shape, found.mask.dtype) == (IMAGE.shape[:2], np.bool_)
    # A logit at the threshold may round to either side.
    assert (found.mask != expected).mean() < 0.002
    assert 0 < expected.mean() < 1
    assert found.score == pytest.approx(np.clip(quality, 0, 1), abs=1e-4)
    assert found.score_of == "quality"
    rows, columns = np.nonzero(found.mask)
    assert found.box_xyxy == (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)


@pytest.mark.parametrize("build", [make_refiner, make_sam2_refiner])
def test_the_image_is_encoded_once_and_every_prompt_counts(build) -> None:
    refiner = build()
    seen = []
    refiner.image_encoder.register_forward_pre_hook(lambda *_: seen.append(1))
    outliner = _outliner(refiner)
    assert not seen
    masks = [outliner.outline(**prompt).mask for prompt in PROMPTS]
    masks.append(outliner.outline(points=[(20.5, 11), (40, 30)]).mask)
    assert len(seen) == 1
    assert len({mask.tobytes() for mask in masks}) == len(masks)
    again = outliner.outline(**PROMPTS[0])
    np.testing.assert_array_equal(again.mask, masks[0])


def test_a_sam_that_knows_its_single_mask_alone_gives_that() -> None:
    refiner = make_refiner()
    outliner = _outliner(refiner)
    candidate = outliner.outline(points=[(20, 11)])
    refiner.model.trained_candidates = False
    single = outliner.outline(points=[(20, 11)])
    assert not np.array_equal(single.mask, candidate.mask)
    assert single.score_of == "mask"
    predictor = SamPredictor(refiner.model)
    predictor.set_image(IMAGE)
    logits, _, _ = predictor.predict(
        np.array([[20, 11]]), np.array([1]), multimask_output=False, return_logits=True
    )
    assert (single.mask != (logits[0] > 0)).mean() < 0.002
    probability = 1 / (1 + np.exp(-logits[0][single.mask]))
    assert single.score == pytest.approx(probability.mean(), abs=1e-3)


def test_sam_outlines_as_it_was_before_training_for_phrases() -> None:
    refiner = make_refiner()
    before = _outliner(refiner).outline(points=[(20, 11)])
    refiner.keep_box_decoder()
    with torch.no_grad():
        for parameter in refiner.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3)
    after = _outliner(refiner).outline(points=[(20, 11)])
    np.testing.assert_array_equal(after.mask, before.mask)
    refiner.box_parts = None
    assert not np.array_equal(_outliner(refiner).outline(points=[(20, 11)]).mask, before.mask)


def test_a_scribble_is_points_along_it() -> None:
    drawn = np.zeros(IMAGE.shape[:2], dtype=bool)
    drawn[18:23, 8:50] = True
    points = points_along(drawn)
    assert 2 < len(points) <= MOST_POINTS
    assert all(y == 20 for _, y in points), "in the middle of the stroke"
    across = sorted(x for x, _ in points)
    assert across[0] < 13
    assert across[-1] > 45
    assert np.diff(across).min() >= 3, "spread"
    assert points_along(drawn) == points
    outliner = _outliner(make_refiner())
    np.testing.assert_array_equal(outliner.outline(scribble=drawn).mask, outliner.outline(points=points).mask)
    both = outliner.outline(scribble=drawn, points=[(60, 5)], labels=[False])
    assert not np.array_equal(both.mask, outliner.outline(scribble=drawn).mask)


@pytest.mark.parametrize("where", [(0, 0), (39, 63), (20, 20)])
def test_a_dot_is_one_point(where) -> None:
    drawn = np.zeros(IMAGE.shape[:2], dtype=bool)
    drawn[where] = True
    assert points_along(drawn) == [(float(where[1]), float(where[0]))]


def test_two_strokes_both_have_points() -> None:
    drawn = np.zeros((100, 100), dtype=bool)
    drawn[10:13, 10:30] = drawn[80:83, 60:90] = True
    assert {y > 50 for _, y in points_along(drawn)} == {False, True}
    everywhere = points_along(np.ones((300, 200), dtype=bool))
    assert len(everywhere) >= 1


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ({}, "give points, a box or a scribble"),
        ({"points": [(20, 11)], "labels": [False]}, "only where it is not"),
        ({"points": [(65, 11)]}, r"\(65.0, 11.0\) lies outside of the image, which is 64 wide and 40 high"),
        ({"points": [(-1, 11)]}, "lies outside"),
        ({"points": [(20, 41)]}, "lies outside"),
        ({"points": [(float("nan"), 11)]}, "point"),
        ({"points": [(1, 2, 3, 4)]}, "point"),
        ({"points": "3,4"}, "a list of"),
        ({"points": [(20, 11)], "labels": [True, False]}, "1 points and 2 labels"),
        ({"points": [(20, 11)], "labels": [2]}, "True .* or False"),
        ({"box": (5, 5, 5, 9)}, "x0 < x1"),
        ({"box": (70, 5, 90, 9)}, "lies outside"),
        ({"box": (1, 2)}, "x0, y0, x1, y1"),
        ({"scribble": np.zeros((40, 64), bool)}, "empty"),
        ({"scribble": np.ones((64, 40), bool)}, "of the image's size"),
        ({"scribble": np.ones((40, 64), np.uint8)}, "bool"),
    ],
)
def test_prompts_that_mean_nothing_are_named(prompt, message) -> None:
    with pytest.raises(DataError, match=message):
        _outliner(make_refiner()).outline(**prompt)


def test_what_is_outside_of_the_image_is_cut_off_a_box() -> None:
    outliner = _outliner(make_refiner())
    larger = outliner.outline(box=(-5, 4, 50, 90))
    np.testing.assert_array_equal(larger.mask, outliner.outline(box=(0, 4, 50, 40)).mask)


def test_a_model_without_a_refiner_is_named_with_the_remedy() -> None:
    with pytest.raises(ConfigError, match="nothing that outlines.*heads: phrase.*sam=dict"):
        _outliner(None)


def test_numbers_that_are_none_are_an_error() -> None:
    refiner = make_refiner()
    with torch.no_grad():
        refiner.model.mask_decoder.mask_tokens.weight.fill_(float("nan"))
    with pytest.raises(RunError, match="NaN"):
        _outliner(refiner).outline(points=[(20, 11)])
