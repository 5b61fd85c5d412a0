from __future__ import annotations

import json

import pytest
import torch
from sam_parts import SIZES
from segment_anything import sam_model_registry

from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.refiners import SAMRefiner, build_sam, save_sam


class Payload:
    """Would run code when unpickled."""

    def __reduce__(self):
        return print, ("unpickled",)


@pytest.mark.parametrize("variant", ["vit_b", "vit_l", "vit_h"])
def test_official_variants_have_the_official_tensors(variant):
    with torch.device("meta"):
        ours, official = build_sam(variant), sam_model_registry[variant]()
    shapes = {name: value.shape for name, value in official.state_dict().items()}
    assert {name: value.shape for name, value in ours.state_dict().items()} == shapes


def test_official_file_round_trip(tmp_path):
    torch.manual_seed(0)
    model = build_sam(SIZES)
    torch.save(model.state_dict(), tmp_path / "sam.pth")
    loaded = build_sam(SIZES, tmp_path / "sam.pth")
    for name, value in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    assert not loaded.training


def test_hub_folder_round_trip_in_half_precision(tmp_path):
    torch.manual_seed(0)
    model = build_sam(SIZES)
    save_sam(model, SIZES, tmp_path)
    refiner = SAMRefiner.from_pretrained(checkpoint=str(tmp_path), use_text=False)
    assert json.loads((tmp_path / "config.json").read_text())["embed_dim"] == SIZES.embed_dim
    for name, value in model.state_dict().items():
        loaded = refiner.model.state_dict()[name]
        assert loaded.dtype == torch.float32
        assert torch.equal(loaded, value.half().float()), name


def test_hub_folder_must_agree_with_a_given_variant(tmp_path):
    save_sam(build_sam(SIZES), SIZES, tmp_path)
    build_sam(SIZES, tmp_path)
    with pytest.raises(ConfigError, match="differs from the sizes"):
        build_sam("tiny", tmp_path)


def test_keys_that_do_not_fit_are_named(tmp_path):
    weights = build_sam(SIZES).state_dict()
    weights["mask_decoder.extra"] = weights.pop("mask_decoder.iou_token.weight")
    weights["image_encoder.pos_embed"] = torch.zeros(1, 2, 2, 16)
    weights["mask_decoder.mask_tokens.weight"][0, 0] = float("nan")
    torch.save(weights, tmp_path / "sam.pth")
    with pytest.raises(CheckpointError) as error:
        build_sam(SIZES, tmp_path / "sam.pth")
    message = str(error.value)
    assert "missing (1): mask_decoder.iou_token.weight" in message
    assert "unexpected (1): mask_decoder.extra" in message
    assert "image_encoder.pos_embed (1, 2, 2, 16) instead of (1, 8, 8, 16)" in message
    assert "not finite (1): mask_decoder.mask_tokens.weight" in message


def test_code_in_a_checkpoint_is_refused(tmp_path, capsys):
    torch.save({"weight": Payload()}, tmp_path / "sam.pth")
    with pytest.raises(CheckpointError, match=r"sam\.pth"):
        build_sam(SIZES, tmp_path / "sam.pth")
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["sam.pth", "sam.safetensors"])
def test_damaged_and_missing_files(tmp_path, name):
    with pytest.raises(CheckpointError, match="no SAM weights at"):
        build_sam(SIZES, tmp_path / name)
    (tmp_path / name).write_bytes(b"not a checkpoint at all")
    with pytest.raises(CheckpointError, match="damaged or unsafe"):
        build_sam(SIZES, tmp_path / name)


def test_a_training_checkpoint_is_no_sam_file(tmp_path):
    torch.save({"state_dict": build_sam(SIZES).state_dict(), "epoch": 3}, tmp_path / "sam.pth")
    with pytest.raises(CheckpointError, match="flat dictionary"):
        build_sam(SIZES, tmp_path / "sam.pth")


@pytest.mark.parametrize("text", ["{", "[]", '{"embed_dim": 16}'])
def test_damaged_config(tmp_path, text):
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        build_sam(checkpoint=tmp_path)


@pytest.mark.parametrize("variant", [None, "vit_xl"])
def test_unknown_variant(variant):
    with pytest.raises(ConfigError, match="vit_b, vit_l, vit_h, tiny"):
        build_sam(variant)
