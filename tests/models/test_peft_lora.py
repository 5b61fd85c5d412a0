"""LoRA in PEFT's layout: PEFT computes the same logits from it, and reading it back gives the same tensors."""

from __future__ import annotations

import json
from pathlib import Path

import peft
import pytest
import tiny
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import LlavaForConditionalGeneration

from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.lmms.lora.peft_folder import CONFIG, TENSORS, read_adapter, write_adapter
from flmm_detseg.models.checkpoint import read_checkpoint
from flmm_detseg.models.from_config import model_from_config, read_config
from flmm_detseg.models.peft_lora import export_lora, import_lora
from flmm_detseg.utils.paths import find

LMM = find("data/models/tiny_llava")
CONFIG_NAME = "tiny/detseg_lora_on_tiny"


@pytest.fixture(autouse=True)
def _without_bitsandbytes(monkeypatch):
    """PEFT imports every kernel package that it finds, and this environment's bitsandbytes needs another triton."""
    monkeypatch.setattr("peft.tuners.lora.model.is_bnb_available", lambda: False)
    monkeypatch.setattr("peft.tuners.lora.model.is_bnb_4bit_available", lambda: False)


def randomise(module: torch.nn.Module) -> None:
    """LoRA begins with B = 0, where everything agrees."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if ".lora_B." in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


def logits(model: torch.nn.Module) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randn(1, 3, 112, 112, generator=generator)
    image = model.config.image_token_index
    tokens = torch.tensor([[1, *[image] * 196, 20, 30, 40]])
    with torch.inference_mode():
        return model(input_ids=tokens, pixel_values=pixels).logits


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> tuple[Path, torch.nn.Module]:
    """A checkpoint with LoRA in tower, projector and language model, and its model."""
    model = model_from_config(CONFIG_NAME, untrained=True, device="cpu")
    randomise(model)
    file = tmp_path_factory.mktemp("run") / "iter_1.pth"
    torch.save({"state_dict": dict(model.trainable_state_dict())}, file)
    return file, model


def test_peft_computes_the_same_logits(run, tmp_path):
    file, model = run
    figures = export_lora(CONFIG_NAME, file, tmp_path / "adapter")
    assert len(figures["ranks"]) > 1  # one adapter with patterns, not one a rank
    stock = LlavaForConditionalGeneration.from_pretrained(LMM, dtype=torch.float32).eval()
    before = logits(stock)
    adapted = logits(PeftModel.from_pretrained(stock, tmp_path / "adapter").eval())
    assert not torch.allclose(before, adapted, atol=1e-2)
    torch.testing.assert_close(adapted, logits(model.lmm.model), rtol=0, atol=0)


def test_groups_on_one_linear_become_one(tmp_path):
    lora = dict(llm=dict(r=2, alpha=8), more=dict(part="llm", r=3, alpha=3, target=["q_proj"]))
    lmm = tiny.tiny_llava(lora=lora)
    randomise(lmm)
    write_adapter(lmm.model, "none", tmp_path / "adapter")
    plain = tiny.tiny_llava().model
    side = lmm.model.config.vision_config.image_size
    tokens = torch.tensor([[1, *[lmm.model.config.image_token_index] * 16, 20, 30]])
    pixels = torch.randn(1, 3, side, side, generator=torch.Generator().manual_seed(0))
    adapted = PeftModel.from_pretrained(plain, tmp_path / "adapter").eval()
    with torch.inference_mode():
        theirs = adapted(input_ids=tokens, pixel_values=pixels).logits
        ours = lmm.model(input_ids=tokens, pixel_values=pixels).logits
    torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-5)
    with pytest.raises(ConfigError, match="llm, more share it"):
        read_adapter(lmm.model, tmp_path / "adapter")


def test_there_and_back(run, tmp_path):
    file, model = run
    export_lora(CONFIG_NAME, file, tmp_path / "adapter")
    figures = import_lora(tmp_path / "adapter", CONFIG_NAME, tmp_path / "lora.pth")
    assert figures["complete"] is False  # the heads are in no adapter
    tensors, trained = read_checkpoint(tmp_path / "lora.pth").tensors, model.trainable_state_dict()
    assert set(tensors) == {name for name in trained if ".lora_" in name}
    assert all(torch.equal(value, trained[name]) for name, value in tensors.items())
    config = read_config(CONFIG_NAME)
    config.model.init_from, config.model.new_parts = [str(tmp_path / "lora.pth")], ["heads.", "balancer."]
    config.model.new_parts = [p for p in config.model.new_parts if any(n.startswith(p) for n in trained)]
    started = model_from_config(config, untrained=True, device="cpu").trainable_state_dict()
    assert all(torch.equal(value, started[name]) for name, value in tensors.items())


def test_an_adapter_that_peft_made_is_read(tmp_path):
    torch.manual_seed(0)
    stock = tiny.tiny_llava().model
    settings = peft.LoraConfig(
        r=4, lora_alpha=8, target_modules=r".*language_model.*\.(q|v)_proj", use_rslora=True
    )
    theirs = peft.get_peft_model(stock, settings)
    randomise(theirs)
    theirs.save_pretrained(tmp_path)
    ours = tiny.tiny_llava(
        lora=dict(llm=dict(r=4, alpha=16, target=["q_proj", "v_proj"]))
    )  # 8 / sqrt(4) = 16 / 4
    found = read_adapter(ours.model, tmp_path)
    with torch.no_grad():
        for name, value in found.items():
            ours.model.get_parameter(name).copy_(value)
    tokens = torch.tensor([[1, 20, 30, 40]])
    with torch.inference_mode():
        torch.testing.assert_close(
            ours.model(input_ids=tokens).logits, theirs.eval()(input_ids=tokens).logits, rtol=0, atol=0
        )


_TOWER, _LANGUAGE = "model.vision_tower.", "model.language_model."


@pytest.mark.parametrize(
    "places",
    [
        {_TOWER: "model.vision_tower.vision_model."},  # transformers 4
        {_TOWER: "model.vision_tower."},  # 5
        {_TOWER: "vision_tower.vision_model.", _LANGUAGE: "language_model.model."},  # before 4.52
    ],
)
def test_an_adapter_of_another_release_is_read(places, tmp_path):
    lora = dict(vision=dict(r=2, alpha=8, target=["q_proj"]), llm=dict(r=3, alpha=3, target=["q_proj"]))
    model = tiny.tiny_llava(lora=lora).model
    randomise(model)
    write_adapter(model, "none", tmp_path / "adapter")

    def there(name: str) -> str:
        name = name.replace("vision_model.", "")
        for here, place in places.items():
            name = name.replace(here, place)
        return name

    tensors, config = tmp_path / "adapter" / TENSORS, tmp_path / "adapter" / CONFIG
    renamed = {there(name): value for name, value in load_file(tensors).items()}
    assert sum(any(place in name for place in places.values()) for name in renamed) >= 2 * len(places)
    save_file(renamed, tensors)
    config.write_text(there(config.read_text()))
    found = read_adapter(model, tmp_path / "adapter")
    trained = {name: value for name, value in model.named_parameters() if ".lora_" in name}
    assert found.keys() == trained.keys()
    assert all(torch.equal(value, trained[name]) for name, value in found.items())


@pytest.mark.parametrize(
    ("lora", "message"),
    [
        (dict(llm=dict(r=3, alpha=8, target=["q_proj"])), "of another rank or scale"),
        (dict(llm=dict(r=2, alpha=9, target=["q_proj"])), "scale 4, here 4.5"),
        (dict(llm=dict(r=2, alpha=8, target=["q_proj", "v_proj"])), "LoRA layers are not in it"),
        (dict(llm=dict(r=2, alpha=8, target=["v_proj"])), "for no LoRA layer here"),
    ],
)
def test_an_adapter_that_does_not_fit_is_refused(lora, message, tmp_path):
    made = tiny.tiny_llava(lora=dict(llm=dict(r=2, alpha=8, target=["q_proj"])))
    write_adapter(made.model, "none", tmp_path / "adapter")
    with pytest.raises(CheckpointError, match=f"{message}.*r=2, lora_alpha=8"):
        read_adapter(tiny.tiny_llava(lora=lora).model, tmp_path / "adapter")


def test_what_is_no_plain_lora_is_refused(tmp_path):
    made = tiny.tiny_llava(lora=dict(llm=dict(r=2, alpha=8, target=["q_proj"])))
    folder = tmp_path / "adapter"
    write_adapter(made.model, "none", folder)
    content = json.loads((folder / CONFIG).read_text())
    for change, message in (
        ({"use_dora": True}, "use_dora=True.*merge_and_unload"),
        ({"peft_type": "IA3"}, "IA3"),
    ):
        (folder / CONFIG).write_text(json.dumps(content | change))
        with pytest.raises(CheckpointError, match=message):
            read_adapter(made.model, folder)
    (folder / CONFIG).write_text(json.dumps(content))
    tensors = load_file(folder / TENSORS)
    save_file({**tensors, "base_model.model.lm_head.weight": torch.zeros(2)}, folder / TENSORS)
    with pytest.raises(
        CheckpointError, match=r"1 tensors for no LoRA layer here: base_model\.model\.lm_head"
    ):
        read_adapter(made.model, folder)
    (folder / TENSORS).write_bytes(b"damaged")
    with pytest.raises(CheckpointError, match="damaged"):
        read_adapter(made.model, folder)
    (folder / TENSORS).unlink()
    with pytest.raises(CheckpointError, match="no adapter_model.safetensors"):
        read_adapter(made.model, folder)


def test_without_lora_there_is_nothing_to_store(tmp_path):
    with pytest.raises(ConfigError, match="no LoRA"):
        write_adapter(tiny.tiny_llava().model, "none", tmp_path / "adapter")
    conv = dict(vision=dict(kind="conv_lora", num_experts=2))
    with pytest.raises(ConfigError, match="Conv-LoRA"):
        write_adapter(tiny.tiny_llava(lora=conv).model, "none", tmp_path / "adapter")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "file").write_text("")
    with pytest.raises(ConfigError, match="exists already"):
        export_lora(CONFIG_NAME, None, tmp_path / "there")
