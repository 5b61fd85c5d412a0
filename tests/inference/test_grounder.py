"""The Python API on tiny models with random weights: shapes, coordinates, batching, errors."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from PIL import Image
from pycocotools import mask as rle
from sam_parts import SIZES

from flmm_detseg import Grounder, GroundingResult
from flmm_detseg.errors import ConfigError, DataError, PhraseNotFoundError, RunError
from flmm_detseg.heads import PhraseGroundingHead, UNetHead
from flmm_detseg.models import GroundingLMM
from flmm_detseg.refiners import SAMRefiner, build_sam

CAPTION = "the small red star near a blue ring ."
PHRASES = ["the small red star", "a blue ring"]
REAL_IMAGES = Path(__file__).parents[3] / "shared" / "data" / "coco_panoptic_sample" / "input_images"


def _model(*, sam: bool = True, rows: dict | None = None, kind=tiny.tiny_llava) -> GroundingLMM:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        lmm = kind(rows=rows)
        unet = UNetHead(lmm.attention_channels, base_channels=8, num_stages=3, upsample_input=16)
        refiner = SAMRefiner(build_sam(SIZES)) if sam else None
        head = PhraseGroundingHead(unet, refiner, lmm.num_layers, lmm.hidden_size, text_dim=16)
        # Random heads answer one sign everywhere; this makes some masks neither empty nor full.
        for name, parameter in head.named_parameters():
            if parameter.ndim > 1 and "image_encoder" not in name:
                parameter.data.mul_(2)
        return GroundingLMM(lmm=lmm, heads={"phrase": head})


@pytest.fixture(scope="module")
def grounder() -> Grounder:
    return Grounder(_model())


def _image(seed: int = 0, size: tuple[int, int] = (50, 70)) -> np.ndarray:
    coarse = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse).resize(size[::-1], Image.Resampling.BICUBIC))


def _assert_equal(a: GroundingResult, b: GroundingResult) -> None:
    assert a.phrases == b.phrases
    for name in ("coarse_logits", "refined_logits", "scores", "boxes_xyxy"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), rtol=1e-4, atol=1e-4, err_msg=name)
    np.testing.assert_array_equal(a.masks, b.masks)


def test_result_is_numpy_at_original_size(grounder):
    result = grounder.ground(_image(), CAPTION, PHRASES)
    assert (result.masks.shape, result.masks.dtype) == ((2, 50, 70), np.bool_)
    assert (result.boxes_xyxy.shape, result.scores.shape) == ((2, 4), (2,))
    assert result.refined_logits.shape == (2, 50, 70)
    assert result.coarse_logits.shape[0] == 2
    np.testing.assert_array_equal(result.masks, result.refined_logits > 0)
    assert result.phrases == tuple(PHRASES)
    assert result.attention is None
    assert len(result) == 2


def test_path_pil_and_array_are_the_same(grounder, tmp_path):
    image = _image()
    Image.fromarray(image).save(tmp_path / "image.png")
    expected = grounder.ground(image, CAPTION, PHRASES)
    for other in (tmp_path / "image.png", str(tmp_path / "image.png"), Image.fromarray(image)):
        _assert_equal(grounder.ground(other, CAPTION, PHRASES), expected)


def test_pil_images_are_seen_as_viewers_show_them(grounder):
    """EXIF orientation 6: stored lying, shown upright."""
    upright = Image.fromarray(_image())
    lying = upright.rotate(90, expand=True)
    lying.getexif()[0x0112] = 6
    assert grounder.ground(lying, CAPTION, PHRASES).masks.shape == (2, 50, 70)
    assert grounder.ground(upright.convert("L"), CAPTION, PHRASES).image.shape == (50, 70, 3)


def test_spans_and_phrases_are_the_same(grounder):
    spans = [(0, 18), (24, 35)]
    _assert_equal(
        grounder.ground(_image(), CAPTION, spans=spans), grounder.ground(_image(), CAPTION, phrases=PHRASES)
    )


@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_lists_equal_single_calls(grounder, batch_size):
    images = [_image(0), _image(1, (64, 40)), _image(0), _image(2, (56, 56))]
    captions = [CAPTION, "a large circle .", "a blue ring on the green square .", CAPTION]
    phrases = [PHRASES, ["a large circle"], ["the green square"], PHRASES[1:]]
    together = grounder.ground(images, captions, phrases, batch_size=batch_size)
    assert [len(result) for result in together] == [2, 1, 1, 1]
    for result, *arguments in zip(together, images, captions, phrases):
        _assert_equal(result, grounder.ground(*arguments))
    assert grounder.ground([], [], []) == []


def _differences(many: list[GroundingResult], one: list[GroundingResult]) -> tuple[int, float]:
    """Mask pixels, and the largest difference of a logit."""
    pairs = list(zip(many, one, strict=True))
    pixels = sum(int((a.masks != b.masks).sum()) for a, b in pairs)
    return pixels, max(float(np.abs(a.coarse_logits - b.coarse_logits).max()) for a, b in pairs)


@pytest.mark.case("security/exact")
@pytest.mark.parametrize(("dtype", "allowed"), [("float32", 1e-5), ("bfloat16", 0.25)])
def test_batches_are_single_calls_to_rounding(dtype, allowed):
    """As docs/python_api.md says. Whether float32 is equal to the bit depends on the processor."""
    model = _model()
    model.lmm.model.to(getattr(torch, dtype))
    grounder = Grounder(model)
    images = [_image(seed) for seed in range(4)]

    def together(chosen: list[np.ndarray]) -> list[GroundingResult]:
        return grounder.ground(chosen, [CAPTION] * 4, [PHRASES] * 4)

    one = [grounder.ground(image, CAPTION, PHRASES) for image in images]
    many = together(images)
    spread = max(float(np.ptp(result.coarse_logits)) for result in one)
    pixels, difference = _differences(many, one)
    assert difference <= allowed * spread
    if dtype == "float32":
        assert pixels == 0
    # Neither the order within a batch nor asking again changes a bit.
    assert _differences(together(images[::-1])[::-1], many) == (0, 0.0)
    assert _differences(together(images), many) == (0, 0.0)
    assert _differences([grounder.ground(image, CAPTION, PHRASES) for image in images], one) == (0, 0.0)
    page = " ".join(
        (Path(__file__).parents[2] / "docs" / "python_api.md").read_text(encoding="utf-8").split()
    )
    assert "single calls up to rounding: in float32 no mask pixel of the tiny models differs" in page
    assert "in bfloat16 (the 7B recipes) a batch rounds differently from a single call" in page


@pytest.mark.case("model/thin_image")
@pytest.mark.case("data/15_elongated_picture_crashes_the_refiner")
def test_thin_pictures_get_masks_of_their_size(grounder):
    sizes = [(50, 70), (1, 400), (3000, 4), (2, 5000), (1, 1)]
    images = [np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8) for size in sizes]
    results = grounder.ground(images, [CAPTION] * 5, [PHRASES] * 5)
    assert [result.masks.shape for result in results] == [(2, *size) for size in sizes]
    assert all(np.isfinite(result.refined_logits).all() for result in results)
    _assert_equal(results[0], grounder.ground(images[0], CAPTION, PHRASES))


@pytest.mark.case("model/thin_image")
def test_a_picture_that_is_too_thin_is_named():
    grounder = Grounder(_model(sam=False, kind=tiny.tiny_llava_next))
    thin = np.zeros((1, 2000, 3), dtype=np.uint8)
    with pytest.raises(DataError, match=r"image 1: .*\(1, 2000\).*too narrow"):
        grounder.ground([_image(), thin], [CAPTION] * 2, [PHRASES] * 2)


def test_many_phrases_are_the_same_as_few(grounder):
    spans = [(start, end) for end in (18, 23, 35) for start in (0, 2, 6)] * 20
    many = grounder.ground(_image(), CAPTION, spans=spans)
    few = grounder.ground(_image(), CAPTION, spans=spans[:9])
    assert (len(many), many.packed.bits.shape) == (180, (180, 438))
    np.testing.assert_array_equal(many.masks, np.tile(few.masks, (20, 1, 1)))
    np.testing.assert_allclose(many.scores, np.tile(few.scores, 20), rtol=1e-5)
    np.testing.assert_array_equal(many.mask(11), few.masks[2])
    np.testing.assert_array_equal(many.mask(-1), few.masks[8])
    assert many.to_coco()[10]["area"] == few.masks[1].sum()


def test_prompt_changes_what_the_model_reads(grounder):
    default = grounder.ground(_image(), CAPTION, PHRASES)
    asked = grounder.ground(_image(), CAPTION, PHRASES, prompt="is the star red ?")
    assert np.abs(default.coarse_logits - asked.coarse_logits).max() > 1e-4


def test_attention_is_kept_only_on_demand_and_can_be_drawn(grounder, tmp_path):
    result = grounder.ground(_image(), CAPTION, PHRASES, keep_attention=True)
    assert result.attention.shape == (2, 12, 4, 4)
    assert result.attention_pairs == tuple((layer, head) for layer in range(3) for head in range(4))
    assert result.grid.output_grid == (4, 4)
    with Image.open(result.save_attention(tmp_path / "new" / "heads.png", 0)) as picture:
        assert picture.size[0] > 400
    assert grounder.ground(_image(), CAPTION, PHRASES).attention is None
    with pytest.raises(DataError, match="keep_attention=True"):
        grounder.ground(_image(), CAPTION, PHRASES).attention_picture(0)


def test_a_heat_map_is_the_phrase_against_all_phrases_and_can_be_animated(grounder, tmp_path):
    result = grounder.ground(_image(), CAPTION, PHRASES, keep_attention=True)
    maps = np.stack([result.heat_map(index) for index in range(2)])
    assert maps.shape == (2, 50, 70)
    window = result.grid.crop_window((4, 4))
    cells = result.attention.mean(axis=1)[(slice(None), *window)]
    relative = cells / cells.mean(axis=0)
    # Enlarging keeps the means of the cells roughly, and their sum over the phrases exactly.
    np.testing.assert_allclose(maps.sum(axis=0), 2, rtol=1e-4)
    assert [m.mean() > 1 for m in maps] == [r.mean() > 1 for r in relative]
    with Image.open(result.save_animation(tmp_path / "new" / "words.gif")) as picture:
        assert picture.n_frames == 2
    alone = grounder.ground(_image(), CAPTION, PHRASES[:1], keep_attention=True)
    assert alone.heat_map(0).max() <= alone.attention.max()
    with pytest.raises(DataError, match="keep_attention=True"):
        grounder.ground(_image(), CAPTION, PHRASES).save_animation(tmp_path / "a.gif")


def test_attention_of_a_subset_names_its_layers():
    grounder = Grounder(_model(sam=False, rows={"layers": [2], "heads": [1, 3]}))
    result = grounder.ground(_image(), CAPTION, PHRASES, keep_attention=True)
    assert result.attention_pairs == ((2, 1), (2, 3))
    assert result.attention.shape == (2, 2, 4, 4)
    assert result.refined_logits is None
    assert result.masks.shape == (2, 50, 70)
    assert result.attention_picture(1).dtype == np.uint8


def test_overlay_is_written(grounder, tmp_path):
    result = grounder.ground(_image(), CAPTION, PHRASES)
    with Image.open(result.save_overlay(tmp_path / "new" / "overlay.png", boxes=True)) as picture:
        assert picture.size[0] == 448
    with pytest.raises(DataError, match=r"overlay\.xyz"):
        result.save_overlay(tmp_path / "overlay.xyz")


def test_coco_annotations_hold_the_same_masks(grounder):
    result = grounder.ground(_image(), CAPTION, PHRASES)
    annotations = json.loads(json.dumps(result.to_coco(7, category_id=3, first_id=10)))
    assert [entry["id"] for entry in annotations] == [10, 11]
    for index, entry in enumerate(annotations):
        assert (entry["image_id"], entry["category_id"], entry["phrase"]) == (7, 3, PHRASES[index])
        code = entry["segmentation"]
        np.testing.assert_array_equal(rle.decode(code).astype(bool), result.masks[index])
        assert entry["area"] == result.masks[index].sum() == rle.area(code)
        if entry["area"]:
            np.testing.assert_allclose(entry["bbox"], rle.toBbox(code))


@pytest.mark.case("model/nan_prediction")
@pytest.mark.parametrize("part", ["scores", "boxes_xyxy"])
def test_a_score_or_box_that_is_no_number_gets_into_no_annotations(grounder, part):
    result = grounder.ground(_image(), CAPTION, PHRASES)
    broken = getattr(result, part).copy()
    broken[1] = np.nan
    with pytest.raises(RunError, match="are no numbers, which JSON cannot hold"):
        replace(result, **{part: broken}).to_coco()


def test_answers_are_the_models_own(grounder):
    image = _image()
    answer = grounder.answer(image, "is the star red ?", max_new_tokens=8)
    lmm = tiny.tiny_llava()
    sample = tiny.make_sample(prompt="is the star red ?")
    sample = type(sample)(**{**vars(sample), "image": image})
    assert answer == lmm.generate(sample, max_new_tokens=8)
    assert isinstance(grounder.answer(image, max_new_tokens=4), str)


def test_absent_phrase_is_an_error_that_names_it(grounder):
    with pytest.raises(PhraseNotFoundError, match=r"(?s)'the moon'.*the small red star near a blue ring"):
        grounder.ground(_image(), CAPTION, ["the moon"])
    with pytest.raises(PhraseNotFoundError, match="image 1"):
        grounder.ground([_image(), _image()], [CAPTION, CAPTION], [PHRASES, ["the moon"]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (dict(image=_image(), caption=CAPTION), "either phrases or spans"),
        (dict(image=_image(), caption=CAPTION, phrases=PHRASES, spans=[(0, 3)]), "either phrases or spans"),
        (dict(image=_image(), caption=CAPTION, phrases="a blue ring"), "pass a list of texts"),
        (dict(image=_image(), caption=CAPTION, phrases=[]), "no phrase to ground"),
        (dict(image=_image() / 255, caption=CAPTION, phrases=PHRASES), "float64"),
        (dict(image=_image()[..., :1], caption=CAPTION, phrases=PHRASES), r"\[50, 70, 1\]"),
        (dict(image="nowhere.png", caption=CAPTION, phrases=PHRASES), "nowhere.png"),
        (dict(image=[_image()], caption=CAPTION, phrases=[PHRASES]), "captions has one text"),
        (dict(image=[_image()], caption=[CAPTION], phrases=[PHRASES, PHRASES]), "phrases has 2 entries"),
        (dict(image=_image(), caption=CAPTION, phrases=PHRASES, batch_size=0), "batch_size is 0"),
    ],
)
def test_wrong_arguments_are_named(grounder, arguments, message):
    with pytest.raises(DataError, match=message):
        grounder.ground(**arguments)


def test_a_missing_config_or_checkpoint_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"nowhere\.py does not exist"):
        Grounder.from_config("nowhere.py")
    broken = tmp_path / "broken.py"
    broken.write_text("model = dict(\n")
    with pytest.raises(ConfigError, match=r"broken\.py cannot be read"):
        Grounder.from_config(broken)
    empty = tmp_path / "empty.py"
    empty.write_text("x = 1\n")
    with pytest.raises(ConfigError, match="has no `model`"):
        Grounder.from_config(empty)


@pytest.mark.skipif(not REAL_IMAGES.is_dir(), reason=f"{REAL_IMAGES} is not there")
def test_real_photographs_need_no_special_case(grounder, tmp_path):
    images = sorted(REAL_IMAGES.glob("*.jpg"))
    assert len(images) == 2
    captions = ["people play on the green grass near a goal .", "a street with a sign ."]
    phrases = [["people", "the green grass"], ["a street"]]
    results = grounder.ground(images, captions, phrases, keep_attention=True)
    for path, result in zip(images, results):
        with Image.open(path) as photograph:
            assert result.masks.shape[1:] == photograph.size[::-1]
        _assert_equal(result, grounder.ground(path, result.caption, list(result.phrases)))
        result.save_overlay(tmp_path / f"{path.stem}.png")
        result.save_attention(tmp_path / f"{path.stem}_heads.png", 0)
    assert len(list(tmp_path.iterdir())) == 4
