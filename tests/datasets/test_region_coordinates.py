"""Coordinates before the places of regions, in questions and conversations."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from flmm_detseg.datasets import LLaVAInstructDataset, QuestionDataset
from flmm_detseg.datasets.region_coordinates import RegionCoordinates
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.structures import Region

TENS = dict(values=list(range(0, 1000, 10)), padded=True)


def regions():
    mask = np.zeros((100, 200), bool)
    mask[20:40, 50:60] = mask[30:50, 100:150] = True
    return [Region(box_xyxy=(20, 10, 100, 50)), Region(point_xy=(200, 0)), Region(mask=mask)]


@pytest.mark.parametrize(
    ("arguments", "written"),
    [
        ({}, "is [100, 100, 500, 500] <region> at [999, 0] <region> or [250, 200, 749, 500] <region>?"),
        (
            dict(numbers=TENS),
            "is [100, 100, 500, 500] <region> at [990, 000] <region> or [250, 200, 750, 500] <region>?",
        ),
        (
            dict(numbers=TENS, words=True),
            "is 100 100 500 500 <region> at 990 000 <region> or 250 200 750 500 <region>?",
        ),
    ],
    ids=["as they are", "number words", "words only"],
)
def test_coordinates_stand_before_each_place(arguments, written):
    question = "is <region> at <region> or <region>?"
    coordinates = RegionCoordinates(**arguments)
    assert coordinates.write(question, regions(), [(100, 200)]) == written
    assert coordinates.write("what is it ?", [], [(100, 200)]) == "what is it ?"
    with pytest.raises(DataError, match="3 times <region> in the question, but 2 regions"):
        coordinates.write(question, regions()[:2], [(100, 200)])


def test_of_another_image_they_are_in_its_size():
    region = Region(box_xyxy=(20, 10, 100, 50), image=1)
    written = RegionCoordinates().write("<spot> ?", [region], [(5, 5), (50, 100)], token="<spot>")
    assert written == "[200, 200, 999, 999] <spot> ?"


def test_number_words_are_those_of_the_lmm():
    coordinates = RegionCoordinates(numbers="data/models/tiny_llava", words=True)
    assert coordinates.write("<region>", regions()[:1], [(98, 199)]) == "100 100 500 510 <region>"


def test_data_sets_write_them_where_the_config_says_so(tmp_path):
    Image.fromarray(np.zeros((100, 200, 3), np.uint8)).save(tmp_path / "a.png")
    asked = dict(
        image="a.png", text="what is <region> ?", answer="x", question_id=1, regions=[[20, 10, 100, 50]]
    )
    (tmp_path / "q.jsonl").write_text(json.dumps(asked))
    turns = [
        {"from": "human", "value": asked["text"], "regions": asked["regions"]},
        {"from": "gpt", "value": "x"},
    ]
    (tmp_path / "c.json").write_text(json.dumps([dict(id=1, image="a.png", conversations=turns)]))
    for kind, file in ((QuestionDataset, "q.jsonl"), (LLaVAInstructDataset, "c.json")):
        for given, prompt in (
            (None, "what is <region> ?"),
            ({}, "what is [100, 100, 500, 500] <region> ?"),
            (dict(words=True), "what is 100 100 500 500 <region> ?"),
        ):
            (sample,) = kind(str(tmp_path / file), str(tmp_path), region_coordinates=given)
            assert sample.prompt == prompt
            assert sample.regions == (Region(box_xyxy=(20, 10, 100, 50)),)
        for wrong, message in ((True, "is True; None, or dict"), (dict(word=1), "no argument `word`")):
            with pytest.raises(ConfigError, match=f"`region_coordinates` .*{message}"):
                kind(str(tmp_path / file), str(tmp_path), region_coordinates=wrong)
