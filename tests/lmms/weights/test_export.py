"""Exported LMMs are ordinary folders of transformers, whatever the source's processor files leave out."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import tiny_llava_next
from transformers import (
    AutoProcessor,
    CLIPImageProcessor,
    LlavaForConditionalGeneration,
    LlavaNextForConditionalGeneration,
)

from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms import LlavaAdapter, LlavaNextAdapter
from flmm_detseg.lmms.weights.export import save_hub_model
from flmm_detseg.structures import CaptureSpec, Sample

SHIPPED = Path(__file__).resolve().parents[3] / "data" / "models" / "tiny_llava"
LEFT_OUT = ("patch_size", "vision_feature_select_strategy", "num_additional_image_tokens")
QUESTION = "what is left of the ring ?"


def without(folder: Path, name: str) -> None:
    file = folder / "processor_config.json"
    fields = json.loads(file.read_text())
    if name == "missing":
        file.unlink()
    elif name == "old":
        file.write_text(json.dumps({key: value for key, value in fields.items() if key not in LEFT_OUT}))
    elif name == "wrong":
        file.write_text(json.dumps({**fields, "patch_size": 7, "vision_feature_select_strategy": "full"}))
        preprocessor = folder / "preprocessor_config.json"
        sizes = dict(size={"shortest_edge": 224}, crop_size={"height": 224, "width": 224})
        preprocessor.write_text(json.dumps({**json.loads(preprocessor.read_text()), **sizes}))


def tokens_of_transformers(
    model_class, out: Path, image: np.ndarray, count: int
) -> tuple[list[int], torch.Tensor]:
    model, processor = model_class.from_pretrained(out), AutoProcessor.from_pretrained(out)
    prompt = f"USER: <image>\n{QUESTION} ASSISTANT:"
    inputs = processor(images=Image.fromarray(image), text=prompt, return_tensors="pt")
    inputs.pop("token_type_ids", None)
    ids = model.generate(**inputs, max_new_tokens=count, do_sample=False)
    return ids[0, inputs.input_ids.shape[1] :].tolist(), inputs


@pytest.mark.case("model/export_processor")
@pytest.mark.parametrize("name", ["whole", "missing", "old", "wrong"])
def test_transformers_alone_gives_the_tokens_of_the_adapter(name, tmp_path):
    folder = Path(shutil.copytree(SHIPPED, tmp_path / "model"))
    without(folder, name)
    lmm = LlavaAdapter.from_pretrained(str(folder))
    out = save_hub_model(lmm.family, lmm.model, str(folder), tmp_path / "out")
    # Of the tower's size: whole images are padded here and cut there.
    side = lmm.model.config.vision_config.image_size
    image = np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)
    sample = Sample("a", image, "", (), prompt=QUESTION)
    wanted = lmm.generate_with_states(sample, CaptureSpec(), max_new_tokens=8)
    found, inputs = tokens_of_transformers(LlavaForConditionalGeneration, out, image, 8)
    item = lmm.processor.question(sample)
    assert torch.equal(inputs.input_ids[0], item.input_ids)
    torch.testing.assert_close(inputs.pixel_values[0], item.pixel_values, rtol=0, atol=1e-5)
    assert found == wanted.token_ids.tolist()
    # and it can be the source of another export
    loaded = LlavaAdapter.from_pretrained(str(out))
    again = save_hub_model(loaded.family, loaded.model, str(out), tmp_path / "again")
    assert (again / "processor_config.json").read_text() == (out / "processor_config.json").read_text()


@pytest.mark.case("model/export_processor")
def test_llava_next_too(tmp_path):
    adapter = tiny_llava_next()
    adapter.model.save_pretrained(tmp_path / "model")
    adapter.processor.tokenizer.save_pretrained(tmp_path / "model")
    CLIPImageProcessor().save_pretrained(tmp_path / "model")
    fields = dict(processor_class="LlavaNextProcessor", image_token="<image>")
    (tmp_path / "model" / "processor_config.json").write_text(json.dumps(fields))
    file = tmp_path / "model" / "preprocessor_config.json"
    file.write_text(
        json.dumps({**json.loads(file.read_text()), "image_processor_type": "LlavaNextImageProcessor"})
    )
    lmm = LlavaNextAdapter.from_pretrained(str(tmp_path / "model"))
    out = save_hub_model(lmm.family, lmm.model, str(tmp_path / "model"), tmp_path / "out")
    image = np.random.default_rng(0).integers(0, 256, (90, 56, 3), dtype=np.uint8)
    sample = Sample("a", image, "", (), prompt=QUESTION)
    found, inputs = tokens_of_transformers(LlavaNextForConditionalGeneration, out, image, 6)
    assert torch.equal(inputs.input_ids[0], lmm.processor.question(sample).input_ids)
    assert found == lmm.generate_with_states(sample, CaptureSpec(), max_new_tokens=6).token_ids.tolist()


@pytest.mark.case("model/export_processor")
def test_what_does_not_fit_is_refused_before_anything_is_written(tmp_path):
    folder = Path(shutil.copytree(SHIPPED, tmp_path / "model"))
    lmm = LlavaAdapter.from_pretrained(str(folder))
    lmm.model.config.image_token_index = 7
    with pytest.raises(ConfigError, match=r"makes 0 image tokens \(id 7\)"):
        save_hub_model(lmm.family, lmm.model, str(folder), tmp_path / "out")
    lmm.model.config.image_token_index = 4
    shutil.copy(folder / "config.json", tmp_path / "config.json")
    for file in folder.glob("*processor_config.json"):
        file.unlink()
    with pytest.raises(ConfigError, match="processor"):
        save_hub_model(lmm.family, lmm.model, str(folder), tmp_path / "out")
    assert {path.name for path in tmp_path.iterdir()} == {"model", "config.json"}


@pytest.mark.case("model/export_processor")
def test_nothing_is_left_of_an_export_that_transformers_refuses(tmp_path):
    lmm = LlavaAdapter.from_pretrained(str(SHIPPED))
    lmm.model.generation_config.temperature = 0.3
    lmm.model.generation_config.do_sample = False
    with pytest.raises(ConfigError, match="transformers refuses to write it"):
        save_hub_model(lmm.family, lmm.model, str(SHIPPED), tmp_path / "out")
    assert list(tmp_path.iterdir()) == []
