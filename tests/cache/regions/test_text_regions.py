"""Texts as objects, with a stand-in for RapidOCR: coordinates, choices, what is missing, and several sources as one."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from fake_ocr import install, text_image

from flmm_detseg.cache import FrameDifference, GivenRegions, Partitioner, TextRegions, UnitedRegions
from flmm_detseg.cache.regions.text_reader import TextReader
from flmm_detseg.errors import ConfigError, MissingDependencyError
from flmm_detseg.registry import MODELS
from flmm_detseg.structures import GridLevel, PatchGrid, Sample

GRID = PatchGrid((80, 80), (56, 56), 0, 0, (56, 56), (GridLevel(4, 4),))


@pytest.fixture
def engine(monkeypatch, tmp_path):
    return install(monkeypatch, tmp_path, ["09:41", "Sign in", "Menu"])


def sample(image: np.ndarray, **meta) -> Sample:
    return Sample("one", image, "", (), meta=meta)


def test_boxes_are_those_of_the_original_image_at_every_scale(engine):
    image = text_image((90, 160), (10, 20, 60, 40), (100, 50, 150, 70))
    for scale in (0.5, 1.0, 3.0):
        found = TextRegions(scale=scale).find(sample(image))
        np.testing.assert_allclose(
            found.boxes_xyxy, [[10, 20, 60, 40], [100, 50, 150, 70]], atol=1.01 / min(scale, 1)
        )
        assert found.boxes_xyxy.dtype == np.float32
        np.testing.assert_allclose(found.scores, 0.8, atol=0.01)
        assert found.labels == ["text", "text"]
        assert engine.made[-1].shapes == [(round(90 * scale), round(160 * scale))]


def test_a_large_image_is_made_smaller_for_the_detector(engine):
    image = text_image((200, 400), (100, 40, 300, 80))
    found = TextRegions(scale=2.0, max_pixels=20_000).find(sample(image))
    ((height, width),) = engine.made[-1].shapes
    assert (height, width) == (100, 200)
    np.testing.assert_allclose(found.boxes_xyxy, [[100, 40, 300, 80]], atol=2)


@pytest.mark.parametrize(
    ("arguments", "kept"),
    [
        (dict(), [True, True]),
        (dict(min_height=15), [True, False]),
        (dict(min_height=21), [False, False]),
        (dict(min_score=0.85), [False, False]),
        (dict(min_score=0.79, min_height=10), [True, True]),
    ],
)
def test_low_scores_and_low_lines_are_left_out(engine, arguments, kept):
    image = text_image((90, 160), (10, 20, 60, 40), (100, 50, 150, 60))
    found = TextRegions(**arguments).find(sample(image))
    wanted = np.array([[10, 20, 60, 40], [100, 50, 150, 60]])[kept]
    np.testing.assert_array_equal(found.boxes_xyxy, wanted)


def test_padding_stays_in_the_image(engine):
    image = text_image((90, 160), (2, 0, 60, 40), (100, 50, 160, 88))
    found = TextRegions(padding=5).find(sample(image))
    np.testing.assert_array_equal(found.boxes_xyxy, [[0, 0, 65, 45], [95, 45, 160, 90]])


def test_an_image_without_text_is_background(engine):
    found = TextRegions().find(sample(text_image((40, 40))))
    assert found.boxes_xyxy.shape == (0, 4)
    partition = Partitioner(TextRegions(), labels=["text"], min_score=0.6)(sample(text_image((80, 80))), GRID)
    assert (partition.group == 0).all()


def test_the_detector_is_set_up_by_the_arguments(engine, tmp_path):
    TextRegions(min_score=0.3, num_threads=1)
    params = engine.made[-1].params
    assert params["Det.box_thresh"] == 0.3
    assert params["Det.model_path"] == str(tmp_path / "rapidocr/models/PP-OCRv6_det_small.onnx")
    assert (params["Global.use_rec"], params["Global.use_cls"]) == (False, False)
    assert params["EngineConfig.onnxruntime.intra_op_num_threads"] == 1
    TextRegions(min_score=0.3, read=True, num_threads=10_000)
    params = engine.made[-1].params
    assert params["Global.use_rec"] is True
    assert params["Rec.model_path"].endswith("PP-OCRv6_rec_small.onnx")
    assert params["Det.box_thresh"] == 0.5  # the score is that of reading
    assert 1 <= params["EngineConfig.onnxruntime.intra_op_num_threads"] < 10_000


def test_lines_that_were_read(engine):
    reader = TextReader()
    images = [text_image((90, 160), (10, 20, 60, 40), (100, 50, 150, 70)), text_image((20, 20))]
    first, second = reader.find(images)
    assert [line.text for line in first] == ["09:41", "Sign in"]
    assert first[1].box_xyxy == (100, 50, 150, 70)
    assert second == []
    assert TextReader(read=False).find(images)[0][0].text is None
    assert set(reader.facts["models"]) == {"PP-OCRv6_det_small.onnx", "PP-OCRv6_rec_small.onnx"}


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (dict(min_score=1.5), "`min_score`"),
        (dict(min_height=-1), "`min_height`"),
        (dict(padding=-1), "`padding`"),
        (dict(padding=float("nan")), "`padding`"),
        (dict(scale=0), "`scale`"),
        (dict(scale=float("inf")), "`scale`"),
        (dict(max_pixels=100), "max_pixels"),
        (dict(num_threads=0), "num_threads"),
    ],
)
def test_numbers_that_cannot_be_used(engine, arguments, match):
    with pytest.raises(ConfigError, match=match):
        TextRegions(**arguments)


def test_missing_packages_and_models_are_named_with_the_remedy(engine, tmp_path, monkeypatch):
    (tmp_path / "rapidocr/models/PP-OCRv6_rec_small.onnx").unlink()
    TextRegions()  # finding needs the detector alone
    with pytest.raises(
        MissingDependencyError, match="PP-OCRv6_rec_small.onnx is not in .*requirements/ocr.txt"
    ):
        TextRegions(read=True)
    for name in ("onnxruntime", "rapidocr"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, name, None)
            with pytest.raises(
                MissingDependencyError, match=f"{name}.*pip install rapidocr==3.10.0 onnxruntime"
            ):
                MODELS.build(dict(type="TextRegions"))


def test_united_sources_mark_what_any_of_them_marks(engine):
    """Rows of patches are 20 pixels: text in row 0, a change in row 2, given boxes in row 3."""
    sources = [dict(type=FrameDifference), dict(type=TextRegions)]
    partitioner = Partitioner(dict(type=UnitedRegions, sources=sources), dilate=0)
    first, second = text_image((80, 80), (0, 0, 80, 20)), text_image((80, 80), (0, 0, 80, 20))
    second[45] = 9

    def rows(image, **meta):
        partition = partitioner(sample(image, **meta), GRID)
        assert partition.source == "difference + texts"
        return np.flatnonzero(partition.group.reshape(4, 4).all(1)).tolist()

    assert rows(first, session="a") == [0]
    assert rows(second, session="a") == [0, 2]
    given = UnitedRegions([GivenRegions("meta"), TextRegions()])
    found = given.find(sample(first, objects_xyxy=[[0, 60, 80, 80]]))
    np.testing.assert_array_equal(found.boxes_xyxy, [[0, 60, 80, 80], [0, 0, 80, 20]])
    assert found.mask is None


def test_a_policy_needs_what_all_united_sources_give(engine):
    texts = [TextRegions(), TextRegions(scale=2.0)]
    partitioner = Partitioner(UnitedRegions(texts), labels=["text"], min_score=0.7, dilate=0)
    partition = partitioner(sample(text_image((80, 80), (0, 40, 80, 60))), GRID)
    assert np.flatnonzero(partition.group.reshape(4, 4).all(1)).tolist() == [2]
    assert partition.boxes.shape == (2, 4)
    with pytest.raises(ConfigError, match="'given \\+ texts' gives no scores"):
        Partitioner(UnitedRegions([GivenRegions("boxes"), TextRegions()]), min_score=0.5)
    with pytest.raises(ConfigError, match="two or more"):
        UnitedRegions([TextRegions()])
