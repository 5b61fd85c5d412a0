"""The stored tiny LLaVA answers held-out questions, through the public classes only."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from transformers import AutoProcessor, LlavaForConditionalGeneration

from flmm_detseg.datasets.tinyworld import make_questions, make_scene, parse_box
from flmm_detseg.pretrain.eval_llava import answer, evaluate
from flmm_detseg.pretrain.llava_chunks import QUESTION_KINDS
from flmm_detseg.pretrain.probe_llava import groundability
from flmm_detseg.pretrain.tiny_llava import CAPTION_PROMPT, load_tiny_llava, make_control_lmm

STORED = Path(__file__).resolve().parents[2] / "data" / "models" / "tiny_llava"


@pytest.fixture(scope="module")
def stored():
    return load_tiny_llava(STORED)


def test_stored_weights_answer_unseen_questions(stored):
    figures = evaluate(*stored, seed=0, items=12, num_captions=4)
    assert set(figures["accuracy"]) == set(QUESTION_KINDS)
    # Guessing the most frequent answer of each kind gives about 0.3 on average.
    assert figures["mean"] >= 0.80  # the model's acceptance; these 84 questions give 0.93
    assert figures["box_mean_iou"] > 0.6
    assert figures["caption_word_accuracy"] > 0.75


def test_stored_weights_generate_through_the_processor():
    model = LlavaForConditionalGeneration.from_pretrained(STORED, dtype=torch.float32).eval()
    processor = AutoProcessor.from_pretrained(STORED)
    right = asked = 0
    for index in range(8):
        scene = make_scene(3, index, "val")
        for question in make_questions(scene, 1):
            if question.kind not in ("colour", "box"):
                continue
            prompt = f"USER: <image>\n{question.text} ASSISTANT:"
            inputs = processor(images=Image.fromarray(scene.image), text=prompt, return_tensors="pt")
            ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
            text = processor.decode(ids[0, inputs.input_ids.shape[1] :], skip_special_tokens=True).strip()
            asked += 1
            right += (
                parse_box(text, (112, 112)) is not None if question.kind == "box" else text == question.answer
            )
    assert asked >= 8
    assert right >= 0.8 * asked


def test_description_is_a_caption(stored):
    model, tokenizer = stored
    scenes = [make_scene(0, index, "val") for index in range(4)]
    for text in answer(model, tokenizer, [scene.image for scene in scenes], [CAPTION_PROMPT] * 4, 90):
        assert "the background is" in text
        assert not any(word.isdigit() for word in text.split())


def test_attention_grounds_phrases_better_than_the_control(stored, tmp_path):
    control = load_tiny_llava(make_control_lmm(STORED, tmp_path / "control", seed=0))
    trained, random_lm = (
        groundability(*pair, seed=0, source="refer", num_scenes=16) for pair in (stored, control)
    )
    assert trained["probe_iou"] > random_lm["probe_iou"] + 0.1
