from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from same_states import EVERYTHING, assert_same
from tiny import make_batch, make_sample, mixed_samples, one_image, tiny_llava, tiny_llava_next
from transformers import LlavaConfig, LlavaNextConfig, MistralConfig, Qwen2Config

from flmm_detseg.lmms import LlavaAdapter, LlavaNextAdapter
from flmm_detseg.lmms.capture.packing import distinct_images, image_columns, pack
from flmm_detseg.structures import CaptureSpec, GridLevel

BUILDERS = pytest.mark.parametrize("build", [tiny_llava, tiny_llava_next])


def counted(adapter) -> dict[str, list]:
    """Records what the tower and the language model were given."""
    seen: dict[str, list] = {"tower": [], "text": []}
    adapter.model.model.vision_tower.register_forward_pre_hook(
        lambda _, args: seen["tower"].append(len(args[0]))
    )
    adapter.model.model.language_model.register_forward_pre_hook(
        lambda _, __, kwargs: seen["text"].append(tuple(kwargs["inputs_embeds"].shape[:2])), with_kwargs=True
    )
    return seen


@BUILDERS
def test_shared_prefix_equals_no_sharing(build):
    adapter = build()
    batch = make_batch(adapter, mixed_samples())
    keys = [sample.image_id for sample in batch.samples]
    alone = adapter.encode(batch.inputs, EVERYTHING)
    seen = counted(adapter)
    shared = adapter.encode(batch.inputs, EVERYTHING, keys)
    assert_same(shared, alone)
    # Five samples of three images: three rows, one of them with three answers.
    rows, length = seen["text"][0]
    assert rows == 3
    prefix = batch.inputs[0].prefix_length
    packed = prefix + sum(len(batch.inputs[i].input_ids) - prefix for i in (0, 2, 4))
    assert length == max(packed, *(len(item.input_ids) for item in batch.inputs))
    images = [batch.inputs[i].pixel_values for i in (0, 1, 3)]
    assert seen["tower"] == [sum(len(image) if image.ndim == 4 else 1 for image in images)]


def test_sharing_can_be_switched_off_and_then_only_the_tower_is_shared():
    adapter = tiny_llava(share_prefix=False)
    batch = make_batch(adapter, mixed_samples())
    keys = [sample.image_id for sample in batch.samples]
    alone = adapter.encode(batch.inputs, EVERYTHING)
    seen = counted(adapter)
    assert_same(adapter.encode(batch.inputs, EVERYTHING, keys), alone)
    assert seen["tower"] == [3]
    assert seen["text"][0][0] == 5


def test_samples_that_share_nothing_take_the_plain_path():
    adapter = tiny_llava()
    batch = make_batch(adapter, [make_sample(i, image_id=f"image {i}") for i in range(3)])
    packed = pack(batch.inputs, distinct_images(batch.inputs, ["a", "b", "c"]))
    assert packed.visible is None
    assert packed.position_ids is None
    assert packed.members == [[0], [1], [2]]


@BUILDERS
def test_only_a_shared_prefix_needs_a_mask(build):
    """Right-padded batches keep sdpa's mask-free causal kernel."""
    adapter = build()
    batch = make_batch(adapter, mixed_samples())
    masks = []
    first_layer = adapter.model.model.language_model.layers[0]
    first_layer.register_forward_pre_hook(
        lambda _, __, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
    )
    adapter.encode(batch.inputs, CaptureSpec(attention=True))
    adapter.encode(batch.inputs[:1], CaptureSpec(attention=True), ["alone"])
    adapter.encode(batch.inputs, CaptureSpec(attention=True), [sample.image_id for sample in batch.samples])
    assert masks[:2] == [None, None]
    assert masks[2].shape[:2] == (3, 1)


def test_other_prompts_share_the_image_and_other_pixels_nothing():
    adapter = tiny_llava()
    first = make_sample(0, image_id="x")
    other_prompt = replace(first, prompt="where ?")
    other_pixels = replace(first, image=first.image[:, ::-1].copy())
    batch = make_batch(adapter, [first, other_prompt, other_pixels, first])
    owners = distinct_images(batch.inputs, ["x"] * 4)
    assert owners == [0, 0, 2, 0]
    assert pack(batch.inputs, owners).members == [[0, 1, 3], [2]]
    assert distinct_images(batch.inputs, [None] * 4) == [0, 1, 2, 3]
    assert distinct_images(batch.inputs, None) == [0, 1, 2, 3]
    keys = ["x"] * 4
    assert_same(adapter.encode(batch.inputs, EVERYTHING, keys), adapter.encode(batch.inputs, EVERYTHING))


def test_answers_see_the_prefix_and_themselves_only():
    adapter = tiny_llava()
    batch = make_batch(adapter, [make_sample(i, image_id="x") for i in (0, 1)])
    packed = pack(batch.inputs, [0, 0])
    prefix = batch.inputs[0].prefix_length
    first, second = (len(item.input_ids) - prefix for item in batch.inputs)
    visible = packed.visible[0, 0]
    assert visible.shape[0] == prefix + first + second
    assert not visible.triu(1).any()
    start = prefix + first
    assert visible[start, :prefix].all()
    assert not visible[start:, prefix:start].any()
    assert torch.equal(visible[start:, start:], torch.ones(second, second, dtype=torch.bool).tril())
    assert packed.position_ids[0, start] == packed.position_ids[0, prefix] == prefix
    for item, places in zip(batch.inputs, packed.token_index):
        assert torch.equal(packed.input_ids[0, places], item.input_ids)
        assert torch.equal(packed.position_ids[0, places], torch.arange(len(item.input_ids)))


def test_newline_columns_are_left_out():
    item = tiny_llava().prepare(make_sample())
    grid = replace(item.grid, levels=(GridLevel(2, 2), GridLevel(4, 2, newline_cols=1)))
    start = int(item.image_mask.nonzero()[0])
    columns = image_columns(replace(item, images=one_image(item.pixel_values, grid))) - start
    assert columns.tolist() == [0, 1, 2, 3, 4, 5, 7, 8, 10, 11, 13, 14]


def mistral_next(sliding_window: int | None) -> LlavaNextAdapter:
    reference = tiny_llava_next()
    fields = reference.model.config.to_dict()
    text = {key: fields["text_config"][key] for key in ("vocab_size", "hidden_size", "intermediate_size")}
    config = LlavaNextConfig(
        vision_config=reference.model.config.vision_config,
        text_config=MistralConfig(
            **text,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.2,
            sliding_window=sliding_window,
        ),
        image_grid_pinpoints=reference.model.config.image_grid_pinpoints,
        image_token_index=reference.model.config.image_token_index,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    return LlavaNextAdapter.from_config(
        config, tokenizer=reference.processor.tokenizer, prompt_template="mistral", max_length=512
    )


def test_layers_with_windows_of_their_own():
    """One decoder, three kinds of layers: each kind has its mask, packed as alone."""
    reference = tiny_llava()
    fields = reference.model.config.to_dict()
    text = {key: fields["text_config"][key] for key in ("vocab_size", "hidden_size", "intermediate_size")}
    config = LlavaConfig(
        vision_config=reference.model.config.vision_config,
        text_config=Qwen2Config(
            **text,
            num_hidden_layers=3,
            num_attention_heads=4,
            num_key_value_heads=2,
            initializer_range=0.2,
            use_sliding_window=True,
            sliding_window=12,
            max_window_layers=1,
        ),
        image_token_index=reference.model.config.image_token_index,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    adapter = LlavaAdapter.from_config(config, tokenizer=reference.processor.tokenizer, max_length=512)
    assert adapter.facts.windows == {"full_attention": None, "sliding_attention": 12}
    batch = make_batch(adapter, mixed_samples())
    keys = [sample.image_id for sample in batch.samples]
    alone = adapter.encode(batch.inputs, EVERYTHING)
    assert_same(adapter.encode(batch.inputs, EVERYTHING, keys), alone)
    item = batch.inputs[0]
    own = deepcopy(adapter.model)
    own.set_attn_implementation("sdpa")
    with torch.no_grad():
        logits = own(input_ids=item.input_ids[None], **adapter.own_inputs(item)).logits[0]
    torch.testing.assert_close(alone.logits[0], logits[alone.logits_start[0] :], rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("sliding_window", [None, 24, 4096])
def test_mistral_with_and_without_a_window(sliding_window):
    adapter = mistral_next(sliding_window)
    batch = make_batch(adapter, mixed_samples())
    keys = [sample.image_id for sample in batch.samples]
    alone = adapter.encode(batch.inputs, EVERYTHING)
    seen = counted(adapter)
    assert_same(adapter.encode(batch.inputs, EVERYTHING, keys), alone)
    # Also where the packed row outgrows the window: the mask goes by positions.
    assert seen["text"][0][0] == 3
    eager = mistral_next(sliding_window)
    eager.rows = replace(eager.rows, attention="eager")
    theirs = eager.encode(batch.inputs, CaptureSpec(attention=True))
    for ours, their in zip(alone.attention, theirs.attention):
        torch.testing.assert_close(ours, their, rtol=0, atol=1e-5)
