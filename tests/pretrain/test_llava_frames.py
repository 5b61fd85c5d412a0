"""Frames of streams as data of the tiny LLaVA: padded with their masks, asked for their texts, read after training."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from flmm_detseg.datasets.tinyworld import KINDS, vocabulary
from flmm_detseg.datasets.tinyworld.streams import CLOCK_QUESTION, SCORE_QUESTION, make_stream
from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms import LlavaProcessor
from flmm_detseg.pretrain.eval_frames import evaluate_frames
from flmm_detseg.pretrain.llava_chunks import TURN_KINDS, build_chunk, cache_folder, patch_labels
from flmm_detseg.pretrain.llava_data import pick_turns
from flmm_detseg.pretrain.llava_frames import FRAME_KINDS, as_frame, frame_turns, stream_frames
from flmm_detseg.pretrain.llava_reason import REASON_KINDS
from flmm_detseg.pretrain.tiny_llava import (
    TinyLlavaSizes,
    build_model,
    build_tokenizer,
    load_tiny_llava,
)

MODELS = Path(__file__).resolve().parents[2] / "data" / "models"
SMALL = TinyLlavaSizes(
    vision_hidden=32, vision_layers=2, vision_heads=2, text_hidden=32, text_layers=2, text_heads=4
)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(vocabulary())


def test_a_frame_is_padded_as_the_processor_pads(tokenizer):
    item = make_stream("screen", 0, 0, 1)[0]
    frame = as_frame(item, 112)
    processor = LlavaProcessor(
        tokenizer,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_side=112,
        patch_size=8,
    )
    pixels, _ = processor.process_image(item.image)
    assert np.array_equal(processor.denormalise(pixels), frame.scene.image)
    for before, after in zip(item.scene.objects, frame.scene.objects, strict=True):
        x0, y0, x1, y1 = after.box_xyxy
        assert after.mask.sum() == before.mask.sum()
        assert after.mask[y0:y1, x0:x1].sum() == after.mask.sum()
        assert np.array_equal(after.mask[:, 16:96], before.mask)


def test_labels_of_a_screen_name_its_icons_and_leave_the_wallpaper_out():
    frame = as_frame(make_stream("screen", 0, 1, 1)[0], 112)
    labels = patch_labels(frame.scene, 8)
    named = labels[:, 0] >= 0
    assert named.sum() > 6
    assert set(labels[named, 0]) <= {KINDS.index(item.kind) for item in frame.scene.objects}
    assert labels[:, -1].sum() == len(frame.scene.objects)


def test_turns_are_both_texts_and_some_questions(tokenizer):
    frame = as_frame(make_stream("screen", 0, 2, 1)[0], 112)
    turns = list(frame_turns(frame, 0))
    kinds = [kind for kind, _, _ in turns]
    assert kinds[:2] == ["clock", "score"]
    assert set(kinds[2:]) == {"frame"}
    assert [prompt for _, prompt, _ in turns[:2]] == [CLOCK_QUESTION, SCORE_QUESTION]
    # As the tokenizer writes it back, so that an answer can equal the reference.
    for _, prompt, text in turns:
        for words in (prompt, text):
            assert tokenizer.decode(tokenizer(words, add_special_tokens=False).input_ids) == words
    assert list(frame_turns(frame, 0)) == turns != list(frame_turns(frame, 1))


def test_a_chunk_has_its_share_of_frames_and_a_visit_asks_for_their_texts(tokenizer, tmp_path):
    chunk = build_chunk(tokenizer, 0, 0, 20, SMALL, stream_share=0.5)
    again = build_chunk(tokenizer, 0, 0, 20, SMALL, stream_share=0.5)
    assert all(np.array_equal(value, getattr(again, name)) for name, value in vars(chunk).items())
    plain = build_chunk(tokenizer, 0, 0, 20, SMALL)
    assert np.array_equal(chunk.images[:10], plain.images[:10])
    rng = np.random.default_rng(0)
    for image in range(20):
        kinds = chunk.kinds[chunk.turns[:, 0] == image]
        names = [TURN_KINDS[kind] for kind in kinds[pick_turns(kinds, rng, ())]]
        assert (set(names) <= set(FRAME_KINDS)) == (image >= 10)
    others = {*FRAME_KINDS, *REASON_KINDS}
    assert {TURN_KINDS[kind] for kind in plain.kinds} == set(TURN_KINDS) - others
    folders = {cache_folder(tmp_path, tokenizer, 0, SMALL, share) for share in (0.0, 0.5)}
    assert len(folders) == 2


def test_streams_of_all_kinds_alternate():
    frames = stream_frames(0, 0, 22, 112)
    assert len(frames) == 22
    with_clock = [any(kind == "clock" for kind, _, _ in frame.questions) for frame in frames]
    assert 0 < sum(with_clock) < 22
    with pytest.raises(ConfigError, match="112"):
        stream_frames(0, 0, 1, 96)


def test_stored_weights_read_clocks_and_random_ones_do_not(tokenizer):
    reads = evaluate_frames(*load_tiny_llava(MODELS / "tiny_llava_streams"), seed=5, items=20)
    assert set(reads) == set(FRAME_KINDS)
    assert min(reads["clock"], reads["score"]) >= 0.9
    assert reads["frame"] >= 0.8
    cannot = evaluate_frames(build_model(tokenizer, SMALL, seed=0), tokenizer, seed=5, items=4)
    assert cannot == dict.fromkeys(FRAME_KINDS, 0.0)
