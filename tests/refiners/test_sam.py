from __future__ import annotations

import numpy as np
import pytest
import torch
from sam_parts import COUNTS, IMAGE_SIZES, SIZES, make_inputs, make_refiner
from segment_anything.utils.transforms import ResizeLongestSide

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.ops.boxes import masks_to_boxes
from flmm_detseg.refiners import SAMRefiner, TextPrompt, build_sam
from flmm_detseg.refiners.prompts import coarse_masks, pad_text
from flmm_detseg.refiners.sam_decoder import decode_masks

SWITCHES = [
    {},
    {"use_text": False},
    {"use_mask": False},
    {"use_box": False},
    {"use_box": False, "use_mask": False},
    {"use_text": False, "use_box": False},
    {"multimask_output": True},
]


def one_phrase(text: TextPrompt, phrase: int) -> TextPrompt:
    tokens = text.tokens[text.phrase_ids == phrase]
    return TextPrompt(tokens, torch.zeros(len(tokens), dtype=torch.long))


@torch.no_grad()
def loop_with_sams_own_decoder(refiner, images, coarse, text):
    """One decoder call per phrase, through segment-anything's own forward."""
    sam, results = refiner.model, []
    for image, logits, prompt in zip(images, coarse, text):
        size = image.shape[:2]
        embedding, _ = refiner.encode_images([image])
        made, masks = refiner.make_prompt(logits, size), coarse_masks(logits, size)
        rows = []
        for phrase in range(len(logits)):
            sparse, dense = sam.prompt_encoder(
                points=None,
                boxes=made.boxes_xyxy[phrase : phrase + 1] if refiner.use_box else None,
                masks=made.mask_logits[phrase : phrase + 1] if refiner.use_mask else None,
            )
            if refiner.use_text:
                sparse = torch.cat([sparse, one_phrase(prompt, phrase).tokens[None]], dim=1)
            low_res, _ = sam.mask_decoder(
                embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, refiner.multimask_output
            )
            candidates = sam.postprocess_masks(low_res, refiner.input_size(size), size)[0]
            overlap = [
                float((masks[phrase] & (c > 0)).sum() / (masks[phrase] | (c > 0)).sum()) for c in candidates
            ]
            rows.append(candidates[int(np.argmax(overlap))])
        results.append(torch.stack(rows))
    return results


@pytest.mark.parametrize("switches", SWITCHES, ids=str)
def test_batch_equals_the_loop_over_phrases(switches):
    refiner = make_refiner(**switches)
    images, coarse, text = make_inputs()
    with torch.no_grad():
        batched = refiner(images, coarse, text)
    looped = loop_with_sams_own_decoder(refiner, images, coarse, text)
    for ours, expected, size, count in zip(batched, looped, IMAGE_SIZES, COUNTS, strict=True):
        assert ours.shape == (count, *size)
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)
    assert batched[1].std() > 0.01  # the comparison is about something


@torch.no_grad()
def test_every_prompt_changes_the_result():
    images, coarse, text = make_inputs()
    everything = make_refiner()(images, coarse, text)[0]
    for switches in SWITCHES[1:4]:
        assert not torch.allclose(everything, make_refiner(**switches)(images, coarse, text)[0], atol=1e-3)


@torch.no_grad()
def test_quality_estimates_equal_sams_own():
    refiner = make_refiner()
    sam = refiner.model
    generator = torch.Generator().manual_seed(0)
    embedding = torch.randn(1, 16, 8, 8, generator=generator)
    sparse, dense = torch.randn(2, 3, 16, generator=generator), torch.randn(2, 16, 8, 8, generator=generator)
    masks, quality = sam.mask_decoder.predict_masks(embedding, refiner.dense_pe(), sparse, dense)
    ours = decode_masks(
        sam.mask_decoder,
        embedding.expand(2, -1, -1, -1),
        refiner.dense_pe(),
        sparse,
        torch.ones(2, 3, dtype=torch.bool),
        dense,
    )
    torch.testing.assert_close(ours[0], masks, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(ours[1], quality, rtol=1e-5, atol=1e-5)


def test_each_image_is_encoded_once():
    refiner = make_refiner(images_per_call=2)
    images, coarse, text = make_inputs()
    images, coarse, text = [*images, images[0]], [*coarse, coarse[0]], [*text, text[0]]
    sizes = []
    refiner.model.image_encoder.register_forward_pre_hook(lambda _, args: sizes.append(len(args[0])))
    keys = ["a", None, "b", "a"]
    embeddings, index = refiner.encode_images(images, keys)
    assert (len(embeddings), index, sizes) == (3, [0, 1, 2, 0], [2, 1])
    with torch.no_grad():
        shared = refiner(images, coarse, text, keys)
        separate = refiner(images, coarse, text)
    for ours, expected in zip(shared, separate, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_samples_without_phrases():
    refiner = make_refiner()
    counts = [0, 2, 0]
    images, coarse, text = make_inputs(counts)
    results = refiner(images, coarse, text)
    assert [tuple(result.shape) for result in results] == [(k, *s) for k, s in zip(counts, IMAGE_SIZES)]
    nothing = refiner(*make_inputs([0, 0, 0]))
    assert [tuple(result.shape) for result in nothing] == [(0, *size) for size in IMAGE_SIZES]


def test_prompt_of_an_empty_mask_is_the_whole_image():
    prompt = make_refiner().make_prompt(torch.full((1, 10, 16), -9.0), (40, 64))
    assert prompt.boxes_xyxy.tolist() == [[0, 0, 64, 40]]


def test_prompt_padding_is_the_lowest_logit_of_the_image():
    refiner = make_refiner()
    logits = torch.zeros(2, 10, 16)
    assert refiner.make_prompt(logits, (40, 64)).mask_logits.min() == -1
    logits[1, 0, 0] = -7
    padded = refiner.make_prompt(logits, (40, 64)).mask_logits
    assert padded.shape == (2, 1, 32, 32)
    # Rows 40..63 of the 64-pixel square are padding: also for the mask that has no low logit itself.
    torch.testing.assert_close(padded[0, 0, 21:], torch.full((11, 32), -7.0))


def test_box_is_in_sams_frame():
    refiner = make_refiner()
    logits = torch.full((1, 20, 32), -5.0)
    logits[0, 5:10, 8:16] = 5.0
    prompt = refiner.make_prompt(logits, (80, 128))  # SAM sees it at half size
    torch.testing.assert_close(prompt.boxes_xyxy, masks_to_boxes(coarse_masks(logits, (80, 128))) / 2)


def test_gradients_reach_prompts_and_decoder_but_not_the_encoder():
    refiner = make_refiner().train()
    images, coarse, text = make_inputs()
    coarse = [logits.requires_grad_() for logits in coarse]
    text = [TextPrompt(prompt.tokens.requires_grad_(), prompt.phrase_ids) for prompt in text]
    sum(logits.square().mean() for logits in refiner(images, coarse, text)).backward()
    assert all(logits.grad.abs().sum() > 0 for logits in coarse)
    assert all(prompt.tokens.grad.abs().sum() > 0 for prompt in text)
    assert not refiner.model.image_encoder.training
    encoder = [p for name, p in refiner.named_parameters() if "image_encoder" in name]
    assert not any(p.requires_grad for p in encoder)
    without = {name for name, p in refiner.named_parameters() if p.requires_grad and p.grad is None}
    unused = ("point_embeddings.0", "point_embeddings.1", "not_a_point", "no_mask", "iou_prediction_head")
    assert len(without) == 10
    assert all(any(part in name for part in unused) for name in without)


def test_half_precision_keeps_the_positional_frequencies():
    refiner = make_refiner()
    frequencies = refiner.model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix.clone()
    images, coarse, text = make_inputs()
    with torch.no_grad():
        expected = refiner(images, coarse, text)
        low = refiner.to(torch.bfloat16)(images, coarse, text)
    kept = refiner.model.prompt_encoder.pe_layer.positional_encoding_gaussian_matrix
    assert torch.equal(kept, frequencies)
    assert refiner.model.mask_decoder.mask_tokens.weight.dtype == torch.bfloat16
    for ours, reference in zip(low, expected, strict=True):
        assert ours.dtype == torch.float32
        assert (ours - reference).norm() < 0.1 * reference.norm()


def test_different_images_under_one_id_are_refused():
    refiner = make_refiner()
    images, coarse, text = make_inputs()
    other = images[0].copy()
    other[0, 0, 0] ^= 1
    with pytest.raises(DataError, match="two different images share the image id 'a'"):
        refiner(images[:1] + [other], [coarse[0]] * 2, [text[0]] * 2, ["a", "a"])
    with pytest.raises(DataError, match="two different images share the image id 'a'"):
        refiner(images[:2], coarse[:2], text[:2], ["a", "a"])  # another size
    # Images without an id are never compared.
    assert refiner.encode_images([images[0], other], [None, None])[1] == [0, 1]


def test_autocast_runs():
    refiner = make_refiner()
    images, coarse, text = make_inputs()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        low = refiner(images, coarse, text)
    with torch.no_grad():
        expected = refiner(images, coarse, text)
    for ours, reference in zip(low, expected, strict=True):
        assert (ours - reference).norm() < 0.1 * reference.norm()


def test_pad_text_keeps_order_and_marks_padding():
    tokens = torch.arange(5.0)[:, None]
    first = TextPrompt(tokens, torch.tensor([1, 0, 1, 1, 0]))
    padded, mask = pad_text([first, TextPrompt(tokens[:1] + 10, torch.tensor([0]))], [2, 1])
    assert padded[..., 0].tolist() == [[1, 4, 0], [0, 2, 3], [10, 0, 0]]
    assert mask.tolist() == [[True, True, False], [True, True, True], [True, False, False]]


def test_at_least_one_prompt():
    with pytest.raises(ConfigError, match="at least one"):
        SAMRefiner(build_sam(SIZES), use_text=False, use_mask=False, use_box=False)


def many_phrases(refiner, count=11):
    """One image, phrases with different numbers of text tokens, two of them without a mask."""
    images, _, _ = make_inputs()
    generator = torch.Generator().manual_seed(3)
    coarse = 4 * torch.randn(count, 10, 16, generator=generator)
    coarse[:2] = -9 - torch.rand(2, 10, 16, generator=generator)
    ids = torch.tensor([phrase for step in range(3) for phrase in range(count) if phrase % 3 >= step])
    text = TextPrompt(torch.randn(len(ids), SIZES.prompt_dim, generator=generator), ids)
    return images[:1], [coarse], [text]


@pytest.mark.parametrize(
    "switches", [{}, {"multimask_output": True}, {"use_text": False, "use_box": False}], ids=str
)
def test_calls_of_a_few_phrases_equal_one_call(switches):
    refiner = make_refiner(**switches)
    one = many_phrases(refiner)
    several = make_inputs()
    sizes = []
    refiner.model.prompt_encoder.register_forward_hook(lambda _, __, output: sizes.append(len(output[1])))
    with torch.no_grad():
        for images, coarse, text in (one, several):
            whole = refiner(images, coarse, text)
            for maps, expected in zip(
                refiner.refine(images, coarse, text, phrases_per_call=4), whole, strict=True
            ):
                torch.testing.assert_close(maps.enlarge(), expected, rtol=1e-5, atol=1e-5)
    if refiner.use_mask and refiner.use_box:
        assert sizes == [11, 4, 4, 3, 6, 4, 2]


def test_with_autograd_a_batch_is_one_call():
    refiner = make_refiner().train()
    images, coarse, text = many_phrases(refiner)
    calls = []
    refiner.model.prompt_encoder.register_forward_hook(lambda *_: calls.append(1))
    (maps,) = refiner.refine(images, coarse, text, phrases_per_call=2)
    assert calls == [1]
    assert maps.enlarge().requires_grad


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@torch.no_grad()
@pytest.mark.parametrize("multimask", [False, True])
def test_enlarged_maps_are_sams_own_bit_for_bit(multimask, one_thread):
    # One thread and a large image: there torch's kernel rounds one channel and three channels differently.
    refiner = make_refiner(multimask_output=multimask)
    images, coarse, text = make_inputs()
    images[0] = np.random.default_rng(0).integers(0, 256, (301, 427, 3), dtype=np.uint8)
    for maps, image in zip(refiner.refine(images, coarse, text), images, strict=True):
        size = image.shape[:2]
        candidates = maps.maps[:, None].repeat(1, 3 if multimask else 1, 1, 1)
        expected = refiner.model.postprocess_masks(candidates, refiner.input_size(size), size)[:, 0]
        assert torch.equal(maps.enlarge(), expected)
        assert torch.equal(maps.enlarge(slice(0, 1)), expected[:1])


def test_box_of_a_prompt_follows_the_probabilities():
    # Enlarged probabilities cut at a half are not enlarged logits cut at zero: the crossing lies elsewhere.
    logits = torch.tensor([[[-1.0, 9.0, 9.0, -1.0]] * 4])
    image_size = (64, 64)
    enlarged = (
        torch.nn.functional.interpolate(logits[None].sigmoid(), size=image_size, mode="bilinear")[0] > 0.5
    )
    other = torch.nn.functional.interpolate(logits[None], size=image_size, mode="bilinear")[0] > 0
    assert masks_to_boxes(enlarged).tolist() != masks_to_boxes(other).tolist()
    box = make_refiner().make_prompt(logits, image_size).boxes_xyxy
    torch.testing.assert_close(box, masks_to_boxes(enlarged))


@pytest.mark.case("model/thin_image")
@pytest.mark.parametrize("size", [(1, 400), (3000, 4), (2, 5000), (1, 1), (1, 129), (700, 1)])
def test_thin_images_keep_a_pixel(size):
    refiner = make_refiner()
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    text = [TextPrompt(torch.zeros(1, SIZES.prompt_dim), torch.tensor([0]))]
    assert min(refiner.input_size(size)) >= 1
    assert max(refiner.input_size(size)) == SIZES.image_size
    coarse = torch.randn(1, max(1, size[0] // 100), max(1, size[1] // 100), requires_grad=True)
    (logits,) = refiner([image], [coarse], text)
    assert logits.shape == (1, *size)
    assert logits.isfinite().all()
    logits.sum().backward()
    (of_box,) = refiner.masks_from_boxes([image], [torch.tensor([[0.0, 0.0, size[1], size[0]]])])
    assert of_box.shape == (1, *size)


def test_sizes_of_ordinary_images_are_sams_own():
    refiner = make_refiner()
    own = ResizeLongestSide(SIZES.image_size)
    rng = np.random.default_rng(0)
    for size in [(1, 1), (64, 64), (33, 64), *rng.integers(40, 3000, (200, 2)).tolist()]:
        assert refiner.input_size(tuple(size)) == own.get_preprocess_shape(*size, SIZES.image_size)
    image = rng.integers(0, 256, (45, 77, 3), dtype=np.uint8)
    expected = refiner.model.preprocess(torch.from_numpy(own.apply_image(image)).permute(2, 0, 1).float())
    assert torch.equal(refiner.preprocess(image), expected)


def settings_refiner(**settings) -> SAMRefiner:
    """As make_refiner, with weights that make relative positions matter."""
    torch.manual_seed(0)
    refiner = SAMRefiner(build_sam(SIZES), **settings).eval()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for name, parameter in refiner.named_parameters():
            scale = 0.5 if "rel_pos" in name or parameter.ndim < 2 else 0.2
            if parameter.ndim > 1:
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator))
    return refiner


def test_sdpa_equals_eager_up_to_rounding_and_keeps_the_names():
    eager, fused = settings_refiner(), settings_refiner(attention="sdpa")
    assert list(eager.state_dict()) == list(fused.state_dict())
    fused.load_state_dict(eager.state_dict())
    images, coarse, text = make_inputs()
    with torch.no_grad():
        expected, found = eager.encode_images(images)[0], fused.encode_images(images)[0]
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(fused(images, coarse, text), eager(images, coarse, text), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
        for block in fused.model.image_encoder.blocks:  # the positions matter, in windows and without
            block.attn.rel_pos_h.zero_()
        assert (fused.encode_images(images)[0] - expected).abs().max() > 1e-3


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_bfloat16_is_for_the_frozen_encoder_only(attention):
    exact, low = settings_refiner(), settings_refiner(dtype="bfloat16", attention=attention)
    encoder = {p.dtype for p in low.model.image_encoder.parameters()}
    rest = {p.dtype for n, p in low.named_parameters() if "image_encoder" not in n}
    assert (encoder, rest) == ({torch.bfloat16}, {torch.float32})
    images, coarse, text = make_inputs()
    with torch.no_grad():
        reference = exact(images, coarse, text)
        for ours, expected in zip(low(images, coarse, text), reference, strict=True):
            assert ours.dtype == torch.float32
            assert 0 < (ours - expected).norm() < 0.1 * expected.norm()
    low.train()
    sum(logits.square().mean() for logits in low(images, coarse, text)).backward()
    trained = [p for n, p in low.named_parameters() if "image_encoder" not in n and p.grad is not None]
    assert len(trained) > 30
    assert all(p.grad.dtype == torch.float32 and p.grad.isfinite().all() for p in trained)
    assert not any(p.requires_grad for p in low.model.image_encoder.parameters())
    exact.load_state_dict(
        {n: v for n, v in low.state_dict().items() if "image_encoder" not in n}, strict=False
    )


def test_unknown_settings_are_refused():
    for settings in ({"dtype": "float16"}, {"attention": "flash"}):
        with pytest.raises(ConfigError, match="choose one of"):
            SAMRefiner(build_sam(SIZES), **settings)
