from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from sam2_parts import FIELDS, SIDE, make_sam2
from sam_parts import make_inputs
from transformers import PreTrainedModel, Sam2ImageProcessorFast, Sam2VideoConfig, Sam2VideoModel

from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.refiners import SAM2_VARIANTS, SAM2Refiner, build_sam2


@pytest.fixture
def folder(tmp_path):
    make_sam2().save_pretrained(tmp_path)
    Sam2ImageProcessorFast(size={"height": SIDE, "width": SIDE}).save_pretrained(tmp_path)
    return tmp_path


def change_config(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


@pytest.mark.parametrize(
    ("variant", "millions"),
    [("hiera_tiny", 38.9), ("hiera_small", 46.0), ("hiera_base_plus", 80.8), ("hiera_large", 224.4)],
)
def test_variants_have_the_published_sizes(variant, millions, monkeypatch):
    """SAM 2's authors publish the sizes of the video models: ours are these without the memory."""
    monkeypatch.setattr(
        PreTrainedModel, "initialize_weights", lambda _: None
    )  # takes seconds on the meta device too
    fields = copy.deepcopy(SAM2_VARIANTS[variant])
    fields["vision_config"]["backbone_config"]["model_type"] = "sam2_hiera_det_model"
    with torch.device("meta"):
        whole, image = Sam2VideoModel(Sam2VideoConfig(**fields)), build_sam2(variant)
    shapes = {name: tensor.shape for name, tensor in whole.state_dict().items()}
    assert sum(p.numel() for p in whole.parameters()) // 100_000 == round(millions * 10)
    assert {name: tensor.shape for name, tensor in image.state_dict().items()}.items() <= shapes.items()


def test_a_folder_gives_the_same_masks(folder):
    before = SAM2Refiner(make_sam2()).eval()
    images, coarse, text = make_inputs()
    for loaded in (
        SAM2Refiner.from_pretrained(checkpoint=str(folder)),
        SAM2Refiner.from_pretrained(FIELDS, str(folder)),
    ):
        assert not loaded.model.training
        with torch.no_grad():
            for ours, expected in zip(
                loaded.eval()(images, coarse, text), before(images, coarse, text), strict=True
            ):
                assert torch.equal(ours, expected)


def test_the_video_models_folder_is_read_without_its_memory_and_without_a_warning(folder, caplog, capfd):
    """As published: one folder for images and videos, which says that it is the video model's."""
    weights = load_file(folder / "model.safetensors")
    weights["memory_encoder.mask_downsampler.layers.0.conv.weight"] = torch.zeros(4, 1, 3, 3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    change_config(folder, model_type="sam2_video", num_maskmem=7)
    model = build_sam2(checkpoint=str(folder))
    for name, value in make_sam2().state_dict().items():
        assert torch.equal(model.state_dict()[name], value), name
    assert "sam2_video" not in caplog.text + capfd.readouterr().err


def test_the_folders_own_pixel_settings_are_used(folder):
    image = make_inputs()[0][0]
    expected = SAM2Refiner(make_sam2()).preprocess(image)
    assert torch.equal(SAM2Refiner.from_pretrained(checkpoint=str(folder)).preprocess(image), expected)
    images = Sam2ImageProcessorFast(size={"height": SIDE, "width": SIDE}, image_mean=[0.0, 0.0, 0.0])
    images.save_pretrained(folder)
    assert (SAM2Refiner.from_pretrained(checkpoint=str(folder)).preprocess(image) - expected).min() > 1
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(ConfigError, match=r"preprocessor_config\.json cannot be read"):
        SAM2Refiner.from_pretrained(checkpoint=str(folder))


def test_another_variant_family_or_none_is_named(folder, tmp_path):
    for variant in (None, "hiera_huge"):
        with pytest.raises(ConfigError, match="hiera_tiny, hiera_small, hiera_base_plus, hiera_large"):
            build_sam2(variant)
    for wrong, message in (
        ({"vision": {}}, "`vision` is no field of a Sam2Config"),
        (
            {"vision_config": {"backbone_config": {"hiden_size": 8}}},
            "`vision_config.backbone_config.hiden_size`.*`hidden_size`",
        ),
        ({"vision_config": 8}, "`vision_config` is 8; give its fields"),
    ):
        with pytest.raises(ConfigError, match=message):
            build_sam2(wrong)
    with pytest.raises(ConfigError, match=r"differs from.*hidden_size 8 instead of 96.*drop `variant`"):
        build_sam2("hiera_tiny", str(folder))
    change_config(folder, model_type="sam")
    with pytest.raises(ConfigError, match=r"model_type is 'sam'; one of sam2, sam2_video"):
        build_sam2(checkpoint=str(folder))
    with pytest.raises(ConfigError, match="no such folder"):
        build_sam2(checkpoint=str(tmp_path / "none"))


def test_weights_that_do_not_fit_are_named(folder):
    weights = load_file(folder / "model.safetensors")
    lost = weights.pop("mask_decoder.iou_token.weight")
    for change, message in (
        ({}, r"missing_keys.*mask_decoder\.iou_token\.weight"),
        ({"mask_decoder.iou_token.weight": lost[:, :3].clone()}, r"mismatched_keys.*iou_token"),
        ({"mask_decoder.iou_token.weight": lost * float("nan")}, r"not_finite.*iou_token"),
        ({"mask_decoder.iou_token.weight": lost, "other": lost.clone()}, r"unexpected_keys.*other"),
    ):
        save_file({**weights, **change}, folder / "model.safetensors", metadata={"format": "pt"})
        with pytest.raises(CheckpointError, match=message):
            build_sam2(checkpoint=str(folder))
    (folder / "model.safetensors").write_bytes(b"not a checkpoint at all")
    with pytest.raises(CheckpointError, match="weights cannot be read"):
        build_sam2(checkpoint=str(folder))


@pytest.mark.parametrize(
    ("part", "fields", "message"),
    [
        ("prompt_encoder_config", {"image_size": 128}, r"image_size` is \[64, 64\].*need \[128, 128\]"),
        ("prompt_encoder_config", {"patch_size": 8}, r"patch_size` is 8.*need 16"),
        ("mask_decoder_config", {"hidden_size": 8}, r"mask_decoder_config\.hidden_size` is 8.*need 16"),
        ("vision_config", {"num_feature_levels": 2}, r"num_feature_levels` is 2.*need 3"),
        ("vision_config", {"fpn_hidden_size": 8}, r"fpn_hidden_size` is 8.*need 16"),
    ],
)
def test_sizes_that_contradict_each_other_are_refused(part, fields, message):
    with pytest.raises(ConfigError, match=message):
        build_sam2({**FIELDS, part: {**FIELDS[part], **fields}})
