from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
import transformers
from tiny import (
    IMAGE_SIDE,
    PINPOINTS,
    make_sample,
    tiny_llava,
    tiny_llava_config,
    tiny_llava_next,
    tiny_tokenizer,
)
from transformers import CLIPImageProcessor

from flmm_detseg.errors import ConfigError, DataError, PhraseNotFoundError, PhraseWithoutTokensError
from flmm_detseg.lmms import LlavaAdapter, LlavaNextProcessor, LlavaProcessor, ProcessorSettings
from flmm_detseg.structures import CaptureSpec, LMMInputs, Phrase, Sample, Turn

IMAGE_TOKEN = tiny_tokenizer().convert_tokens_to_ids("<image>")


@pytest.fixture(scope="module")
def processor() -> LlavaProcessor:
    return tiny_llava().processor


@pytest.fixture(scope="module")
def next_processor() -> LlavaNextProcessor:
    return tiny_llava_next().processor


def tokens(item: LMMInputs, keep: torch.Tensor) -> list[str]:
    return tiny_tokenizer().convert_ids_to_tokens(item.input_ids[keep].tolist())


def sample_of(text: str, *spans: tuple[tuple[int, int], ...], prompt: str | None = None) -> Sample:
    return replace(make_sample(), text=text, phrases=tuple(Phrase(part) for part in spans), prompt=prompt)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("vicuna", "<s> USER : <image> red ? ASSISTANT :"),
        ("mistral", "<s> [ I ##N ##S ##T ] <image> red ? [ / I ##N ##S ##T ]"),
    ],
)
def test_sequence_is_prompt_image_and_text(template, expected):
    item = tiny_llava(prompt_template=template).prepare(sample_of("a star .", prompt="red ?"))
    first_image = int(item.image_mask.nonzero()[0])
    keep = ~item.image_mask
    keep[first_image] = True
    assert tokens(item, keep) == [*expected.split(), "a", "star", "."]
    assert item.image_mask.sum() == item.grid.num_tokens == 16
    assert torch.equal(item.image_mask, item.input_ids == IMAGE_TOKEN)
    assert item.prefix_length == len(item.input_ids) - 3
    assert tokens(item, item.labels != -100) == ["a", "star", "."]
    assert torch.equal(item.labels[item.prefix_length :], item.input_ids[item.prefix_length :])


def test_earlier_turns_and_further_images_stand_before_the_question(processor):
    sample = replace(
        sample_of("a star .", ((2, 6),), prompt="blue ?"),
        turns=(Turn("red ?", "a ring"), Turn("green ?", "a square")),
        more_images=(make_sample(3, image_size=(30, 90)).image,),
    )
    item = processor(sample)
    words = tokens(item, torch.ones(len(item.input_ids), dtype=torch.bool))
    shown = " ".join(
        word for place, word in enumerate(words) if word != "<image>" or words[place - 1] != "<image>"
    )
    assert shown == (
        "<s> USER : <image> red ? ASSISTANT : a ring </s> USER : green ? ASSISTANT : a square </s> "
        "USER : blue ? ASSISTANT : a star ."
    )
    assert len(item.images) == 2
    assert item.image_mask.sum() == sum(image.grid.num_tokens for image in item.images)
    assert torch.equal(item.pixel_values, processor(replace(sample, turns=(), more_images=())).pixel_values)
    assert tokens(item, item.phrase_tokens[0]) == ["star"]
    assert tokens(item, item.labels != -100) == ["a", "star", "."]


def test_description_prompt_is_the_default(processor):
    text = tiny_tokenizer().decode(processor(make_sample(prompt=None)).input_ids)
    assert "P ##l ##e ##a ##s ##e" in text
    assert "P ##l" not in tiny_tokenizer().decode(processor(make_sample(prompt="where ?")).input_ids)


def test_phrases_of_the_text_and_not_of_the_prompt(processor):
    text = "the red star near the red ring"
    sample = sample_of(text, ((4, 12),), ((4, 7), (23, 30)), prompt="the red star ?")
    item = processor(sample)
    assert tokens(item, item.phrase_tokens[0]) == ["red", "star"]
    assert tokens(item, item.phrase_tokens[1]) == ["red", "red", "ring"]
    assert not item.phrase_tokens[:, : item.prefix_length].any()
    assert item.num_phrases == 2


def test_question_ends_where_the_answer_starts(processor):
    sample = make_sample(2, num_phrases=3)
    question, full = processor.question(sample), processor(sample)
    assert torch.equal(question.input_ids, full.input_ids[: full.prefix_length])
    assert question.prefix_length == len(question.input_ids)
    assert question.num_phrases == 0


@pytest.mark.parametrize("span", [(-1, 2), (3, 3), (5, 2), (0, 100)])
def test_span_outside_of_the_text_is_an_error_with_the_record(processor, span):
    with pytest.raises(PhraseNotFoundError, match=r"tiny/0: span .* of phrase 1"):
        processor(sample_of("a star .", ((0, 1),), (span,)))


def test_phrase_of_white_space_is_an_error_with_the_record(processor):
    with pytest.raises(PhraseWithoutTokensError, match="tiny/0: phrase 0 ' ' has no token"):
        processor(sample_of("a star .", ((1, 2),)))
    with pytest.raises(PhraseWithoutTokensError, match="tiny/0: phrase 0"):
        processor(sample_of("a star .", ()))


def test_truncation_that_cuts_a_phrase_is_an_error():
    sample = sample_of("a star near the ring", ((0, 6),), ((12, 20),), prompt="red ?")
    length = len(tiny_llava().prepare(sample).input_ids)
    whole = tiny_llava(max_length=length).prepare(sample)
    assert len(whole.input_ids) == length
    with pytest.raises(PhraseWithoutTokensError, match="phrase 1 'the ring' keeps 1 of its 2 tokens"):
        tiny_llava(max_length=length - 1).prepare(sample)
    with pytest.raises(PhraseWithoutTokensError, match="keeps 0 of its 2 tokens"):
        tiny_llava(max_length=length - 2).prepare(sample)
    first_only = replace(sample, phrases=sample.phrases[:1])
    cut = tiny_llava(max_length=length - 3).prepare(first_only)
    assert (
        len(cut.input_ids)
        == len(cut.labels)
        == len(cut.image_mask)
        == cut.phrase_tokens.shape[1]
        == length - 3
    )
    with pytest.raises(DataError, match=r"tiny/0: image and prompt need 23 tokens, `max_length` is 10"):
        tiny_llava(max_length=10).prepare(first_only)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3)),
        np.zeros((0, 4, 3), np.uint8),
    ],
)
def test_an_image_that_is_no_rgb_is_an_error(processor, image):
    with pytest.raises(DataError, match="tiny/0: image is"):
        processor(replace(make_sample(), image=image))


def test_image_token_in_the_text_is_an_error(processor):
    with pytest.raises(DataError, match="tiny/0: .*<image>"):
        processor(sample_of("a <image> ."))
    with pytest.raises(DataError, match="tiny/0: .*<image>"):
        processor(sample_of("a star .", prompt="<image>\nred ?"))


def test_settings_are_checked():
    with pytest.raises(ConfigError, match="'alpaca'.*mistral.*vicuna"):
        ProcessorSettings(prompt_template="alpaca")
    with pytest.raises(ConfigError, match="max_length"):
        ProcessorSettings(max_length=0)
    with pytest.raises(ConfigError, match="image token with the model's id 7"):
        LlavaProcessor(tiny_tokenizer(), image_token_id=7, image_side=56, patch_size=14)
    with pytest.raises(ConfigError, match="image token with the model's id 99999"):
        LlavaProcessor(tiny_tokenizer(), image_token_id=99999, image_side=56, patch_size=14)
    with pytest.raises(ConfigError, match="multiples of the tile side 56"):
        LlavaNextProcessor(
            tiny_tokenizer(), pinpoints=[[56, 100]], image_token_id=IMAGE_TOKEN, image_side=56, patch_size=14
        )


def test_llava_pixels_are_the_image_in_a_square_of_the_mean_colour(processor):
    image = np.full((20, 40, 3), 200, np.uint8)
    pixels, grid = processor.process_image(image)
    assert (grid.resized_size, grid.pad_top, grid.pad_left, grid.padded_size) == ((28, 56), 14, 0, (56, 56))
    mean, std = np.array(processor.settings.image_mean), np.array(processor.settings.image_std)
    raw = np.rint((pixels.permute(1, 2, 0).numpy() * std + mean) * 255)
    assert (raw[14:42] == 200).all()
    assert (raw[:14] == [122, 116, 104]).all()
    assert (raw[42:] == [122, 116, 104]).all()


# Squares, flat, tall, odd paddings, up- and downscaling.
NEXT_SIZES = [
    (56, 56),
    (48, 72),
    (90, 30),
    (31, 97),
    (200, 199),
    (333, 500),
    (64, 61),
    (13, 300),
    (300, 17),
    (57, 113),
]


@pytest.mark.parametrize("image_size", NEXT_SIZES)
def test_next_pixels_equal_transformers(next_processor, image_size):
    image = np.random.default_rng(0).integers(0, 256, (*image_size, 3), dtype=np.uint8)
    # The one that resizes with Pillow, as LLaVA-NeXT's own code does; transformers 5 resizes with torch otherwise.
    pillow = getattr(transformers, "LlavaNextImageProcessorPil", transformers.LlavaNextImageProcessor)
    theirs = pillow(
        size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, image_grid_pinpoints=PINPOINTS
    )(image, return_tensors="pt").pixel_values[0]
    ours, grid = next_processor.process_image(image)
    torch.testing.assert_close(ours, theirs.float(), rtol=0, atol=1e-5)
    assert grid.image_size == image_size
    assert grid.padded_size == grid.resized_size
    window = grid.crop_window((40, 40))
    assert window == (slice(0, 40), slice(0, 40))


def test_next_refuses_an_image_of_which_nothing_is_left(next_processor):
    with pytest.raises(DataError, match="tiny/0: .*too narrow"):
        next_processor(replace(make_sample(num_phrases=1), image=np.zeros((1, 900, 3), np.uint8), masks=None))


@pytest.fixture(scope="module")
def square() -> LlavaAdapter:
    """LLaVA-v1's images, as a folder's config says it."""
    config = tiny_llava_config()
    config.image_aspect_ratio = "square"
    return LlavaAdapter.from_config(config, tokenizer=tiny_tokenizer(), prompt_template="llava_v1_marked")


@pytest.mark.parametrize("image_size", [(60, 91), (90, 61), (56, 56), (20, 33), (130, 57)])
def test_the_middle_of_an_image_is_what_clips_processor_takes(square, image_size):
    image = np.random.default_rng(1).integers(0, 256, (*image_size, 3), dtype=np.uint8)
    clip = CLIPImageProcessor(
        size={"shortest_edge": IMAGE_SIDE}, crop_size={"height": IMAGE_SIDE, "width": IMAGE_SIDE}
    )
    expected = clip(image, return_tensors="pt").pixel_values[0]
    pixels, grid = square.processor.process_image(image)
    torch.testing.assert_close(pixels, expected, rtol=0, atol=1e-6)
    assert grid.num_tokens == 16
    assert grid.cropped == (image_size != (56, 56))


def test_each_of_several_images_stands_between_its_marks(square):
    prompt = square.processor.template.prefix("<image>", 2, ["red ?"], [])
    assert "USER: <im_start><image><im_end>\n<im_start><image><im_end>\nred ? ASSISTANT:" in prompt
    later = square.processor.template.prefix("<image>", 1, ["red ?", "blue ?"], ["no</s>"])
    assert later.endswith("red ? ASSISTANT: no</s>USER: blue ? ASSISTANT:")


def test_what_reads_maps_over_the_whole_image_refuses_the_middle_of_one(square):
    item = square.prepare(make_sample(image_size=(60, 90)))
    states = square.encode([item], CaptureSpec(answer=True))
    assert torch.isfinite(states.answer[0]).all()
    with pytest.raises(ConfigError, match="sees the middle of an image only"):
        item.grid.crop_window(item.grid.output_grid)
    with pytest.raises(ConfigError, match="the background cache divides whole images"):
        square.grouped_tower()
