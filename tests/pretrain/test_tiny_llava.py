"""Tokenizer, hub layout and control of the tiny LLaVA, on small random models."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoProcessor, AutoTokenizer, LlavaForConditionalGeneration
from transformers_version import TRANSFORMERS_5

from flmm_detseg.datasets.tinyworld import vocabulary
from flmm_detseg.errors import CheckpointError
from flmm_detseg.pretrain.tiny_llava import (
    CAPTION_PROMPT,
    TinyLlavaSizes,
    build_model,
    build_tokenizer,
    image_features,
    load_tiny_llava,
    make_control_lmm,
    save_hub_layout,
)

ROOT = Path(__file__).resolve().parents[2]
SMALL = TinyLlavaSizes(
    vision_hidden=32, vision_layers=2, vision_heads=2, text_hidden=32, text_layers=2, text_heads=4
)


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer(vocabulary())


@pytest.fixture(scope="module")
def stored(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("tiny_llava")
    model = build_model(tokenizer, SMALL, seed=3).eval()
    save_hub_layout(model, tokenizer, folder)
    return folder, model


def test_every_world_word_is_one_token(tokenizer):
    words = [word for word in vocabulary() if word.isalnum()]
    assert len(words) > 100
    for word in words:
        assert tokenizer(word, add_special_tokens=False).input_ids == [tokenizer.get_vocab()[word]], word


def test_round_trip_and_offsets_of_world_text(tokenizer):
    text = "a small red star is above the large blue ring . 120 340 560 990"
    encoded = tokenizer(text, return_offsets_mapping=True)
    assert encoded.input_ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(encoded.input_ids, skip_special_tokens=True) == text
    assert [text[start:end] for start, end in encoded.offset_mapping[1:]] == text.split()


def test_foreign_text_falls_apart_into_characters(tokenizer):
    text = "Zebra-42%, isn't it?\n\tRing."
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    assert tokenizer.unk_token_id not in encoded.input_ids
    covered = "".join(text[start:end] for start, end in encoded.offset_mapping)
    assert covered == "".join(text.split())
    pieces = tokenizer.convert_ids_to_tokens(encoded.input_ids)
    assert [p.removeprefix("##") for p in pieces] == [
        text[start:end] for start, end in encoded.offset_mapping
    ]


def test_special_tokens_inside_a_conversation(tokenizer):
    ids = tokenizer(f"USER: <image>\n{CAPTION_PROMPT} ASSISTANT: a ring .</s>").input_ids
    assert ids.count(tokenizer.convert_tokens_to_ids("<image>")) == 1
    assert ids[-1] == tokenizer.eos_token_id
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.convert_tokens_to_ids("USER") in ids


def test_folder_is_what_the_hub_has(stored):
    folder, _ = stored
    names = {path.name for path in folder.iterdir()}
    assert names >= {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "processor_config.json",
    }
    # Transformers 5 writes the former into the tokenizer's file, the latter into the processor's.
    assert TRANSFORMERS_5 or names >= {"special_tokens_map.json", "preprocessor_config.json"}
    config = json.loads((folder / "config.json").read_text())
    assert config["architectures"] == ["LlavaForConditionalGeneration"]
    assert config["vision_feature_layer"] == -2
    assert all(tensor.dtype == torch.float16 for tensor in load_file(folder / "model.safetensors").values())


def test_export_gives_the_same_logits(stored, tokenizer):
    folder, model = stored
    processor = AutoProcessor.from_pretrained(folder)
    image = Image.new("RGB", (112, 112), (200, 30, 30))
    prompt = f"USER: <image>\n{CAPTION_PROMPT} ASSISTANT: a ring"
    inputs = processor(images=image, text=prompt, return_tensors="pt")
    assert inputs.input_ids.shape[1] == len(tokenizer(prompt).input_ids) - 1 + 196
    loaded = LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
    # The stored weights are rounded to half precision; rounding the original gives the same numbers exactly.
    rounded = build_model(tokenizer, SMALL, seed=3).eval()
    rounded.load_state_dict({name: value.half() for name, value in model.state_dict().items()})
    with torch.no_grad():
        assert torch.equal(loaded(**inputs).logits, rounded(**inputs).logits)
        assert torch.allclose(loaded(**inputs).logits, model(**inputs).logits, atol=2e-2)
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == tokenizer.get_vocab()


def test_chat_template_writes_the_prompt_of_training(stored):
    processor = AutoProcessor.from_pretrained(stored[0])
    content = [{"type": "image"}, {"type": "text", "text": CAPTION_PROMPT}]
    text = processor.apply_chat_template([{"role": "user", "content": content}], add_generation_prompt=True)
    assert text == f"USER: <image>\n{CAPTION_PROMPT} ASSISTANT:"


def test_image_features_equal_the_public_ones(tokenizer):
    model = build_model(tokenizer, SMALL, seed=1).eval()
    pixels = torch.randn(2, 3, 112, 112)
    with torch.no_grad():
        found = model.get_image_features(pixels)
        public = torch.stack(found.pooler_output if TRANSFORMERS_5 else found)
        assert torch.allclose(image_features(model, pixels), public, atol=1e-6)


def test_control_differs_only_in_the_language_model(stored, tmp_path):
    folder, _ = stored
    make_control_lmm(folder, tmp_path / "control", seed=11)
    before, after = (load_file(path / "model.safetensors") for path in (folder, tmp_path / "control"))
    assert before.keys() == after.keys()
    for name in before:
        same = torch.equal(before[name], after[name])
        # RMSNorm weights start at one and are not random.
        is_language = "language_model" in name or "lm_head" in name
        assert same == (not is_language or name.endswith("norm.weight")), name
    make_control_lmm(folder, tmp_path / "again", seed=11)
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (
        tmp_path / "control" / "model.safetensors"
    ).read_bytes()


def test_control_tool_prints_figures_and_names_a_missing_folder(stored, tmp_path):
    tool = [sys.executable, str(ROOT / "tools" / "make_control_lmm.py"), "--out", str(tmp_path / "c")]
    bad = subprocess.run(
        [*tool, "--src", str(tmp_path / "nowhere")], capture_output=True, text=True, cwd=ROOT
    )
    assert bad.returncode == 2
    assert "nowhere" in bad.stderr
    assert "Traceback" not in bad.stderr


def test_missing_weights_are_named(stored, tmp_path, tokenizer):
    from safetensors.torch import save_file

    save_hub_layout(stored[1], tokenizer, tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    name = sorted(tensors)[0]
    del tensors[name]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match="missing_keys"):
        load_tiny_llava(tmp_path)
