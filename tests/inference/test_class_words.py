"""Which classes of a model a word means."""

from __future__ import annotations

import re

import pytest

from flmm_detseg.datasets.class_names import named_classes
from flmm_detseg.inference.chinese_classes import CHINESE, CHINESE_GROUPS
from flmm_detseg.inference.class_words import GROUPS, match_class, match_group

COCO = named_classes("coco")
VOC = (
    "aeroplane bicycle bird boat bottle bus car cat chair cow diningtable dog horse motorbike person pottedplant sheep "
    "sofa train tvmonitor"
).split()
THINGS = named_classes("tinyworld_things")


def names(words: str, classes=COCO, match=match_class) -> list[str] | None:
    found = match(words, classes)
    return None if found is None else [classes[label] for label in found]


def test_class_words() -> None:
    classes = ("person", "knife", "bus", "traffic light", "cherry")
    assert match_class("people", classes) == [0]
    assert match_class("Knives", classes) == [1]
    assert match_class("buses", classes) == [2]
    assert match_class("traffic  lights", classes) == [3]
    assert match_class("cherries", classes) == [4]
    assert match_class("everything", classes) == [0, 1, 2, 3, 4]
    assert match_class("unicorns", classes) is None
    assert match_class("buses in the image", classes) == [2]
    assert match_class("objects in this picture", classes) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("traffic lights", ["traffic_light"]),  # mmdet's names have underscores
        ("sofas", ["couch"]),
        ("bikes", ["bicycle"]),
        ("phones", ["cell_phone"]),
        ("mice", ["mouse"]),
        ("children", None),
        ("汽车", ["car"]),
        ("图中的红绿灯", ["traffic_light"]),
        ("小狗", ["dog"]),
        ("沙发", ["couch"]),
        ("手机", ["cell_phone"]),
        ("红色的汽车", None),
        ("独角兽", None),
    ],
)
def test_a_thing_has_several_names(words: str, wanted: list[str] | None) -> None:
    assert names(words) == wanted


def test_words_lead_to_the_names_that_a_model_uses() -> None:
    assert names("sofas", VOC) == names("沙发", VOC) == ["sofa"]
    assert names("planes", VOC) == ["aeroplane"]
    assert names("television", VOC) == ["tvmonitor"]
    assert match_class("couch", ("sofa", "couch")) == [1], "the exact name first"
    assert match_class("汽车", ("树", "汽车")) == [1], "a model's classes may be Chinese"
    assert names("星星", THINGS) == ["star"]


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        ("animals", "bird cat dog horse sheep cow elephant bear zebra giraffe"),
        ("the animals", "bird cat dog horse sheep cow elephant bear zebra giraffe"),
        ("动物", "bird cat dog horse sheep cow elephant bear zebra giraffe"),
        ("图中的所有动物", "bird cat dog horse sheep cow elephant bear zebra giraffe"),
        ("vehicles", "bicycle car motorcycle airplane bus train truck boat"),
        ("all the vehicles in the image", "bicycle car motorcycle airplane bus train truck boat"),
        ("车辆", "bicycle car motorcycle airplane bus train truck boat"),
        ("pets", "cat dog"),
        ("people", "person"),
        ("人们", "person"),
        ("furniture", "bench chair couch bed dining_table"),
        ("food", "banana apple sandwich orange broccoli carrot hot_dog pizza donut cake"),
        ("fruits", "banana apple orange"),
        ("水果", "banana apple orange"),
        ("kitchenware", "bottle wine_glass cup fork knife spoon bowl"),
        ("electronics", "tv laptop mouse remote keyboard cell_phone"),
        ("bags", "backpack handbag suitcase"),
        ("toys", "frisbee kite teddy_bear"),
    ],
)
def test_groups_of_coco(words: str, wanted: str) -> None:
    assert names(words) == names(words, match=match_group) == wanted.split()


def test_groups_of_other_models() -> None:
    assert names("vehicles", VOC) == "aeroplane bicycle boat bus car motorbike train".split()
    assert names("furniture", VOC) == "chair diningtable sofa".split()
    assert names("shapes", THINGS) == names("图形", THINGS) == list(THINGS)
    assert names("round shapes", THINGS) == ["circle", "ring"]
    assert names("polygons", THINGS) == "square triangle star cross diamond arrow hexagon".split()
    assert names("animals", THINGS) is None, "a group that no class belongs to"
    # Open heads: a class by its last word, unless its whole name says something else.
    opened = ("red car", "hot dog", "guide dog", "teddy bear", "fire truck", "sky")
    assert names("vehicles", opened) == ["red car", "fire truck"]
    assert names("animals", opened) == ["guide dog"]
    assert match_class("animals", ("animal", "dog")) == [0], "a class of that name first"
    assert match_group("dogs", COCO) is None
    assert match_group("everything", COCO) is None


def test_the_tables_are_sound() -> None:
    words = [word for group, _ in GROUPS for word in group.split("|")]
    assert len(words) == len(set(words)), "a word for two groups"
    assert set(CHINESE_GROUPS.values()) == {group.split("|")[0] for group, _ in GROUPS} - {"building"}
    han = re.compile(r"[\u4e00-\u9fff]+")
    assert all(han.fullmatch(word) for word in (*CHINESE, *CHINESE_GROUPS))
    assert not CHINESE.keys() & CHINESE_GROUPS.keys()
    known = {word.replace("_", " ") for word in (*COCO, *named_classes("tinyworld"))}
    assert known <= set(CHINESE.values()), "every class of COCO and TinyWorld has a Chinese word"
