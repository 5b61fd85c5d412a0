from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sam2_parts import FIELDS, SIDE, make_sam2, make_sam2_refiner
from sam_parts import COUNTS, IMAGE_SIZES, make_inputs
from transformers import Sam2ImageProcessorFast, Sam2Processor
from transformers_version import TRANSFORMERS_5

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.ops.masks import resize_maps
from flmm_detseg.refiners import SAM2Refiner, TextPrompt
from flmm_detseg.refiners.prompts import coarse_masks

SWITCHES = [
    {},
    {"use_text": False},
    {"use_mask": False},
    {"use_box": False},
    {"use_text": False, "use_box": False},
    {"use_text": False, "multimask_output": True},
    {"multimask_output": True},
]
BOXES = [
    torch.tensor([[2.0, 3.0, 40.5, 30.0], [10.0, 0.0, 64.0, 40.0]]),
    torch.zeros(0, 4),
    torch.tensor([[1.0, 4.0, 12.0, 30.0], [0.0, 0.0, 17.0, 31.0], [5.0, 9.0, 9.0, 20.0]]),
]


def processor() -> Sam2Processor:
    return Sam2Processor(Sam2ImageProcessorFast(size={"height": SIDE, "width": SIDE}))


def own_model(refiner: SAM2Refiner):
    """The model, with the mask of the first token where one mask is asked for."""
    model = copy.deepcopy(refiner.model)
    model.mask_decoder.dynamic_multimask_via_stability = False
    return model


@torch.no_grad()
def loop_with_the_models_own_forward(refiner, images, coarse, text):
    """One call of transformers' forward per phrase; text tokens go into the decoder's forward beside the prompts."""
    model, results = own_model(refiner), []
    for image, logits, prompt in zip(images, coarse, text, strict=True):
        size, rows = image.shape[:2], []
        for phrase, map_ in enumerate(logits):
            box = refiner.make_prompt(map_[None], size).boxes_xyxy
            words = prompt.tokens[prompt.phrase_ids == phrase]

            def with_text(_, args, given, words=words):
                sparse = torch.cat([given["sparse_prompt_embeddings"], words[None, None]], dim=2)
                return args, {**given, "sparse_prompt_embeddings": sparse}

            hook = model.mask_decoder.register_forward_pre_hook(with_text, with_kwargs=True)
            hook.remove() if not refiner.use_text else None
            found = model(
                pixel_values=processor()(images=image, return_tensors="pt")["pixel_values"],
                input_boxes=box[None].clone() if refiner.use_box else None,
                input_masks=map_[None, None] if refiner.use_mask else None,
                multimask_output=refiner.multimask_output,
            ).pred_masks
            hook.remove()
            candidates = processor().post_process_masks([found[0]], [list(size)], binarize=False)[0][0]
            mask = coarse_masks(map_[None], size)[0]
            overlap = [float((mask & (c > 0)).sum() / (mask | (c > 0)).sum()) for c in candidates]
            rows.append(candidates[int(np.argmax(overlap))])
        results.append(torch.stack(rows))
    return results


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_batch_equals_the_loop_of_the_models_own_forward(switches):
    refiner = make_sam2_refiner(**switches)
    images, coarse, text = make_inputs()
    coarse[0] = resize_maps(coarse[0], (50, 70)).round()  # finer than the prompt encoder's input
    with torch.no_grad():
        batched = refiner(images, coarse, text)
        calls = refiner.refine(images, coarse, text, phrases_per_call=2)
    looped = loop_with_the_models_own_forward(refiner, images, coarse, text)
    for ours, maps, expected, size, count in zip(batched, calls, looped, IMAGE_SIZES, COUNTS, strict=True):
        assert ours.shape == (count, *size)
        # Sums of other numbers of rows: on one of three machines two of 5,120 logits differed by 1.6e-4.
        torch.testing.assert_close(ours, expected, rtol=5e-4, atol=5e-4)
        torch.testing.assert_close(maps.enlarge(), expected, rtol=5e-4, atol=5e-4)
    assert batched[1].std() > 0.1  # the comparison is about something
    assert not torch.allclose(batched[1][0], batched[1][1], atol=1e-2)


@torch.no_grad()
def test_every_prompt_changes_the_result():
    images, coarse, text = make_inputs()
    everything = make_sam2_refiner()(images, coarse, text)[0]
    for switches in SWITCHES[1:4]:
        assert not torch.allclose(
            everything, make_sam2_refiner(**switches)(images, coarse, text)[0], atol=1e-2
        )


@torch.no_grad()
@pytest.mark.parametrize(("threshold", "chosen"), [(0.0, {False}), (0.68, {False, True}), (1.0, {True})])
def test_masks_of_boxes_are_the_models_own_choice(threshold, chosen):
    """Stable masks stay, others give way to the best candidate: all, some, and none of them are stable."""
    refiner = make_sam2_refiner(use_box=False, multimask_output=True)
    refiner.model.mask_decoder.dynamic_multimask_stability_delta = 0.5
    refiner.model.mask_decoder.dynamic_multimask_stability_thresh = threshold
    images, _, _ = make_inputs()
    is_candidate = []
    for image, boxes, logits in zip(images, BOXES, refiner.masks_from_boxes(images, BOXES), strict=True):
        assert logits.shape == (len(boxes), *image.shape[:2])
        if len(boxes) == 0:
            continue
        inputs = processor()(images=image, input_boxes=[boxes.tolist()], return_tensors="pt")
        prompts = {name: inputs[name] for name in ("pixel_values", "input_boxes")}
        candidates = refiner.model(**copy.deepcopy(prompts)).pred_masks[0]
        found = refiner.model(**prompts, multimask_output=False).pred_masks[0]
        is_candidate += (candidates == found).flatten(2).all(2).any(1).tolist()
        sizes = [list(image.shape[:2])]
        expected = processor().post_process_masks([found], sizes, binarize=False)[0][:, 0]
        torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    assert len(is_candidate) == 5
    assert set(is_candidate) == chosen


def test_each_image_is_encoded_once_and_keys_are_not_trusted():
    refiner = make_sam2_refiner(images_per_call=2)
    images, coarse, text = make_inputs()
    images, coarse, text = [*images, images[0]], [*coarse, coarse[0]], [*text, text[0]]
    sizes = []
    hook = refiner.image_encoder.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    with torch.no_grad():
        shared = refiner(images, coarse, text, ["a", None, "b", "a"])
        hook.remove()
        separate = refiner(images, coarse, text)
    assert sizes == [2, 1]
    for ours, expected in zip(shared, separate, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(DataError, match="two different images share the image id 'a'"):
        refiner(images[:2], coarse[:2], text[:2], ["a", "a"])


def test_gradients_reach_what_is_trained_and_nothing_else():
    for switches in ({}, {"use_text": False}, {"use_mask": False}, {"use_box": False}):
        refiner = make_sam2_refiner(**switches).train()
        images, coarse, text = make_inputs()
        coarse = [logits.requires_grad_() for logits in coarse]
        text = [TextPrompt(prompt.tokens.requires_grad_(), prompt.phrase_ids) for prompt in text]
        sum(logits.square().mean() for logits in refiner(images, coarse, text)).backward()
        if refiner.use_mask:
            assert all(logits.grad.abs().sum() > 0 for logits in coarse)
        if refiner.use_text:
            assert all(prompt.tokens.grad.abs().sum() > 0 for prompt in text)
        assert not refiner.image_encoder.training
        trained = {name for name, p in refiner.named_parameters() if p.requires_grad}
        assert trained == {name for name, p in refiner.named_parameters() if p.grad is not None}
        assert {name.split(".")[1] for name in trained} == {"prompt_encoder", "mask_decoder"}
        assert {"model.mask_decoder.conv_s0.weight", "model.mask_decoder.conv_s1.weight"} <= trained
        frozen = {name for name, p in refiner.named_parameters() if not p.requires_grad}
        frozen = {name for name in frozen if ".vision_encoder." not in name}
        parts = ["no_memory_embedding", "iou_prediction_head", "pred_obj_score_head"]
        parts.append("no_mask_embed" if refiner.use_mask else "mask_embed")
        parts += [] if refiner.use_box else ["point_embed"]
        for part in parts:
            found = {name for name in frozen if f".{part}" in name}
            assert found, part
            frozen -= found
        assert not frozen


def test_a_kept_box_decoder_does_not_learn():
    refiner = make_sam2_refiner()
    images, _, _ = make_inputs()
    before = refiner.masks_from_boxes(images, BOXES)
    refiner.keep_box_decoder()
    assert not any(p.requires_grad for p in refiner.box_parts.parameters())
    assert refiner.box_parts["prompt_encoder"].shared_embedding is refiner.positions
    with torch.no_grad():
        for parameter in refiner.parameters():
            if parameter.requires_grad:
                parameter.add_(0.3)
    for ours, expected in zip(refiner.masks_from_boxes(images, BOXES), before, strict=True):
        assert torch.equal(ours, expected)
    refiner.box_parts = None
    assert not torch.allclose(refiner.masks_from_boxes(images, BOXES)[0], before[0], atol=1e-2)


def test_half_precision_keeps_the_positional_frequencies():
    refiner = make_sam2_refiner()
    refiner.keep_box_decoder()
    images, coarse, text = make_inputs()
    frequencies = [getattr(owner, name).clone() for owner, name in refiner.exact_buffers]
    # A random model of transformers 5 draws them twice.
    assert TRANSFORMERS_5 or torch.equal(*frequencies)
    with torch.no_grad():
        expected = refiner(images, coarse, text)
        boxes = refiner.masks_from_boxes(images, BOXES)
        with torch.autocast("cpu", torch.bfloat16):
            cast = refiner(images, coarse, text)
        low = refiner.to(torch.bfloat16)(images, coarse, text)
        low_boxes = refiner.masks_from_boxes(images, BOXES)
    for (owner, name), before in zip(refiner.exact_buffers, frequencies, strict=True):
        assert torch.equal(getattr(owner, name), before)
    assert refiner.model.mask_decoder.mask_tokens.weight.dtype == torch.bfloat16
    for found, references in ((low, expected), (cast, expected), (low_boxes, boxes)):
        for ours, reference in zip(found, references, strict=True):
            assert ours.dtype == torch.float32
            assert (ours - reference).norm() <= 0.2 * reference.norm()


def test_dtype_and_attention_are_the_frozen_encoders():
    images, coarse, text = make_inputs()
    reference = make_sam2_refiner()
    with torch.no_grad():
        expected = reference(images, coarse, text)
    for settings, limit in ({"attention": "eager"}, 1e-4), ({"dtype": "bfloat16"}, 0.2):
        other = make_sam2_refiner(**settings)
        assert list(other.state_dict()) == list(reference.state_dict())
        used = {block.attn.config._attn_implementation for block in other.image_encoder.backbone.blocks}
        assert used == {settings.get("attention", "sdpa")}
        rest = {p.dtype for n, p in other.named_parameters() if "vision_encoder" not in n}
        assert rest == {torch.float32}
        assert {p.dtype for p in other.image_encoder.parameters()} == {
            torch.bfloat16 if "dtype" in settings else torch.float32
        }
        with torch.no_grad():
            for ours, theirs in zip(other(images, coarse, text), expected, strict=True):
                assert ours.dtype == torch.float32
                assert 0 < (ours - theirs).norm() < limit * theirs.norm()
    other.train()
    sum(logits.square().mean() for logits in other(images, coarse, text)).backward()
    assert all(p.grad.isfinite().all() for p in other.parameters() if p.requires_grad)


@pytest.mark.case("model/thin_image")
@pytest.mark.parametrize("size", [(1, 400), (3, 50), (700, 1), (1, 1), (45, 77)])
def test_pixels_are_the_processors_and_thin_images_work(size):
    refiner = make_sam2_refiner()
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    own = processor()(images=image, input_data_format="channels_last", return_tensors="pt")
    assert torch.equal(refiner.preprocess(image), own["pixel_values"][0])
    assert refiner.preprocess(image).shape == (3, SIDE, SIDE)
    text = [TextPrompt(torch.zeros(1, 16), torch.tensor([0]))]
    with torch.no_grad():
        (logits,) = refiner([image], [torch.randn(1, max(1, size[0] // 9), max(1, size[1] // 9))], text)
    assert logits.shape == (1, *size)
    assert logits.isfinite().all()


def test_samples_without_phrases_and_boxes():
    refiner = make_sam2_refiner()
    counts = [0, 2, 0]
    images, coarse, text = make_inputs(counts)
    results = refiner(images, coarse, text)
    assert [tuple(result.shape) for result in results] == [(k, *s) for k, s in zip(counts, IMAGE_SIZES)]
    refiner.image_encoder.register_forward_pre_hook(lambda *_: pytest.fail("the image was encoded"))
    assert [tuple(maps.shape) for maps in refiner(*make_inputs([0, 0, 0]))] == [(0, *s) for s in IMAGE_SIZES]
    nothing = refiner.masks_from_boxes(images, [torch.zeros(0, 4)] * 3)
    assert [tuple(maps.shape) for maps in nothing] == [(0, *size) for size in IMAGE_SIZES]


def test_a_box_is_not_changed_and_lies_in_the_squeezed_frame():
    refiner = make_sam2_refiner()
    boxes = BOXES[0].clone()
    first = [refiner.encode_prompts(refiner.model.prompt_encoder, boxes, None)[0] for _ in range(2)]
    assert torch.equal(*first)
    assert torch.equal(boxes, BOXES[0])
    prompt = refiner.make_prompt(torch.full((1, 10, 16), -9.0), (40, 64))  # an empty mask: the whole image
    assert prompt.boxes_xyxy.tolist() == [[0, 0, SIDE, SIDE]]
    assert prompt.mask_logits.shape == (1, 1, SIDE // 4, SIDE // 4)


def test_wrong_settings_are_refused():
    for settings in ({"dtype": "float16"}, {"attention": "flash_attention_2"}):
        with pytest.raises(ConfigError, match="SAM2Refiner: .*choose one of"):
            SAM2Refiner(make_sam2(), **settings)
    with pytest.raises(ConfigError, match="SAM2Refiner needs at least one of"):
        SAM2Refiner(make_sam2(), use_text=False, use_mask=False, use_box=False)
    with pytest.raises(ConfigError, match="gives .*1024.*takes .*64.*preprocessor_config"):
        SAM2Refiner(make_sam2(), image_processor=Sam2ImageProcessorFast())
    assert FIELDS["vision_config"]["backbone_config"].get("model_type") is None, (
        "the fields given stay as they are"
    )
