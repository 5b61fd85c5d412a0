from __future__ import annotations

import pytest
import torch
from sam_parts import IMAGE_SIZES, make_inputs, make_refiner
from segment_anything import SamPredictor

BOXES = [
    torch.tensor([[2.0, 3.0, 40.5, 30.0], [10.0, 0.0, 64.0, 40.0]]),
    torch.zeros(0, 4),
    torch.tensor([[1.0, 4.0, 12.0, 30.0]]),
]


@pytest.mark.parametrize("switches", [dict(), dict(use_box=False), dict(multimask_output=True)])
def test_masks_of_boxes_are_those_of_segment_anything(switches):
    refiner = make_refiner(**switches)
    images, _, _ = make_inputs()
    predictor = SamPredictor(refiner.model)
    for image, boxes, logits in zip(images, BOXES, refiner.masks_from_boxes(images, BOXES), strict=True):
        assert logits.shape == (len(boxes), *image.shape[:2])
        assert logits.dtype == torch.float32
        assert not logits.requires_grad
        if len(boxes) == 0:
            continue
        predictor.set_image(image)
        scaled = predictor.transform.apply_boxes_torch(boxes, image.shape[:2])
        expected, _, _ = predictor.predict_torch(
            None, None, boxes=scaled, multimask_output=False, return_logits=True
        )
        torch.testing.assert_close(logits, expected[:, 0], rtol=1e-4, atol=1e-4)


def test_one_image_is_encoded_once():
    refiner = make_refiner()
    (image, *_), _, _ = make_inputs()
    seen = []
    refiner.model.image_encoder.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    first, second = refiner.masks_from_boxes([image, image], [BOXES[0][:1], BOXES[0][1:]], ["a", "a"])
    assert seen == [1]
    (both,) = refiner.masks_from_boxes([image], [BOXES[0]])
    torch.testing.assert_close(torch.cat([first, second]), both, rtol=1e-4, atol=1e-4)


def test_no_boxes_cost_nothing():
    refiner = make_refiner()
    images, _, _ = make_inputs()
    refiner.model.image_encoder.register_forward_pre_hook(lambda *_: pytest.fail("the image was encoded"))
    logits = refiner.masks_from_boxes(images, [torch.zeros(0, 4)] * 3)
    assert [maps.shape for maps in logits] == [(0, *size) for size in IMAGE_SIZES]
