"""Which classes of a model a word means: by name, by other words for it, in Chinese, or as a group."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

from flmm_detseg.inference.chinese_classes import CHINESE, CHINESE_GROUPS

EVERYTHING = frozenset(
    "everything|anything|all|objects|object|all objects|things|所有|全部|一切|东西|物体|目标|对象".split("|")
)
# One thing under several names, as in COCO, Pascal VOC and ADE20K.
_SYNONYMS = (
    ("person", "human", "pedestrian"),
    ("bicycle", "bike", "cycle"),
    ("motorcycle", "motorbike", "minibike"),
    ("airplane", "aeroplane", "plane", "aircraft"),
    ("car", "automobile"),
    ("truck", "lorry"),
    ("boat", "ship"),
    ("couch", "sofa", "settee"),
    ("tv", "television", "tvmonitor", "television receiver"),
    ("potted plant", "pottedplant", "houseplant"),
    ("dining table", "diningtable"),
    ("cell phone", "mobile phone", "phone", "smartphone"),
    ("refrigerator", "fridge"),
    ("donut", "doughnut"),
    ("hair drier", "hair dryer"),
    ("remote", "remote control"),
    ("skis", "ski"),
)
# Groups by the words for them (the first is the name that Chinese words lead to), and what belongs to them.
GROUPS: tuple[tuple[str, str], ...] = (
    (
        "animal|creature|beast",
        "bird|cat|dog|horse|sheep|cow|elephant|bear|zebra|giraffe|lion|tiger|monkey|rabbit|rat|squirrel|fox"
        "|wolf|deer|goat|pig|chicken|duck|goose|fish|turtle|frog|snake|insect|butterfly|bee|camel|kangaroo|panda|whale"
        "|dolphin|shark|penguin|owl|eagle|parrot|donkey|hamster|seal|crab|animal",
    ),
    ("pet", "cat|dog|rabbit|hamster|parrot"),
    ("farm animal|livestock", "horse|sheep|cow|goat|pig|chicken|duck|goose|donkey"),
    ("people|persons|human being", "person|man|woman|boy|girl|child|kid|baby|rider|worker|player|driver"),
    (
        "vehicle|means of transport",
        "bicycle|car|motorcycle|airplane|bus|train|truck|boat|van|taxi|tram|scooter|tractor|helicopter|jeep|trailer"
        "|caravan|vehicle",
    ),
    ("road vehicle|motor vehicle", "car|motorcycle|bus|truck|van|taxi|scooter|tractor|jeep"),
    (
        "furniture|piece of furniture",
        "bench|chair|couch|bed|dining table|table|desk|cabinet|wardrobe|shelf|bookcase|armchair|stool|ottoman|cushion"
        "|chest of drawers|seat|coffee table|swivel chair|cradle|buffet",
    ),
    (
        "food|something to eat",
        "banana|apple|sandwich|orange|broccoli|carrot|hot dog|pizza|donut|cake|bread|cheese|egg|rice|noodle|salad|soup"
        "|burger|hamburger|fries|cookie|tomato|potato|lemon|pear|grape|strawberry|food",
    ),
    ("fruit", "banana|apple|orange|lemon|pear|grape|strawberry|peach|pineapple|watermelon|mango|cherry"),
    ("vegetable", "broccoli|carrot|tomato|potato|onion|cucumber|pepper|lettuce|cabbage"),
    (
        "kitchenware|tableware|dish|cutlery|crockery",
        "bottle|wine glass|cup|fork|knife|spoon|bowl|plate|glass|mug|pot|pan|tray|chopsticks",
    ),
    (
        "electronics|electronic device|gadget",
        "tv|laptop|mouse|remote|keyboard|cell phone|computer|monitor|screen|crt screen|camera|printer|tablet|speaker"
        "|radio",
    ),
    (
        "appliance|household appliance",
        "microwave|oven|toaster|refrigerator|stove|dishwasher|washer|washing machine|hair drier|fan|radiator",
    ),
    (
        "sports equipment|sports gear|sporting goods",
        "frisbee|skis|snowboard|sports ball|kite|baseball bat|baseball glove|skateboard|surfboard|tennis racket|ball",
    ),
    ("bag|luggage", "backpack|handbag|suitcase|bag|briefcase"),
    ("accessory|accessories", "backpack|umbrella|handbag|tie|suitcase|hat|scarf|glove|belt|glasses|watch"),
    ("toy", "teddy bear|kite|frisbee|doll|plaything|toy"),
    ("plant", "potted plant|tree|flower|grass|bush|palm|plant"),
    (
        "street furniture|traffic sign",
        "traffic light|fire hydrant|stop sign|parking meter|streetlight|signboard",
    ),
    ("building", "house|skyscraper|tower|hovel|church|building"),
    # TinyWorld's things.
    (
        "shape|figure|geometric shape",
        "circle|square|triangle|star|ring|cross|heart|diamond|crescent|arrow|hexagon|flower|rectangle|oval|ellipse|pentagon",
    ),
    ("polygon|shape with corners", "square|triangle|star|cross|diamond|arrow|hexagon|rectangle|pentagon"),
    ("round shape|round thing|round object", "circle|ring|oval|ellipse"),
)
_ARTICLE = re.compile(r"^(?:all(?:\s+of)?(?:\s+the)?|every|each|any|the|a|an|some)\s+", re.IGNORECASE)
_PLACE = re.compile(r"\s+(?:in|on|of)\s+(?:the|this)\s+(?:image|picture|photo|scene)$", re.IGNORECASE)
_CHINESE_PLACE = re.compile(r"^(?:这|那)?[张幅]?(?:图片|图像|照片|相片|画面|图)(?:中|里面|里|内|上)?的")
_CHINESE_QUANTITY = re.compile(r"^(?:所有的?|全部的?|一切|每一?[个只辆棵条位匹头张把朵颗])(?=.)")
_IRREGULAR = {
    "people": "person", "men": "man", "women": "woman", "mice": "mouse", "geese": "goose", "children": "child",
    "sheep": "sheep", "fish": "fish",
}  # fmt: skip


def match_class(words: str, class_names: Sequence[str]) -> list[int] | None:
    """Labels that a class word asks for; None where there is none.

    ``"everything"`` and the like ask for all of them; "in the image" says nothing. Else the class of that name is meant
    (singular or plural), or one that has another name for the thing (``"sofa"``: ``"couch"``; ``"汽车"``: ``"car"``),
    or the classes of a group (:func:`match_group`).

    Args:
        words: One name, without article.
        class_names: In the order of the labels; ``_`` stands for a blank.

    Returns:
        Labels, ascending.
    """
    name = _plain(words)
    if name in EVERYTHING:
        return list(range(len(class_names)))
    wanted = _names(name)
    known = [_plain(own) for own in class_names]
    # An exact name first: a model may have the classes "couch" and "sofa".
    exact = [index for index, own in enumerate(known) if own in {name, *_singulars(name)}]
    found = exact or [index for index, own in enumerate(known) if wanted & _names(own)]
    return found or match_group(words, class_names)


def match_group(words: str, class_names: Sequence[str]) -> list[int] | None:
    """Labels of a group of classes; None where the words name no group, or no class belongs to it.

    A class belongs to a group by its whole name ("hot dog" is food), else by its last word ("red car" is a vehicle).

    Args:
        words: For example ``"animals"``, ``"the vehicles"`` or ``"动物"``.
        class_names: In the order of the labels; ``_`` stands for a blank.

    Returns:
        Labels, ascending.
    """
    name = _plain(words)
    asked = {CHINESE_GROUPS.get(name, name)}
    asked |= {form for one in asked for form in _singulars(one)}
    members = next(
        (set(things.split("|")) for names, things in GROUPS if asked & set(names.split("|"))), None
    )
    if members is None:
        return None
    members = set().union(*(_names(member) for member in members))
    found = [index for index, own in enumerate(class_names) if _belongs(_plain(own), members)]
    return found or None


def _belongs(name: str, members: set[str]) -> bool:
    if names := _names(name) & _ALL_MEMBERS:
        return bool(names & members)
    return bool(_names(name.rpartition(" ")[2]) & members)


def _plain(words: str) -> str:
    """Lower case, single blanks, without article, quantity and "in the image"."""
    name = " ".join(words.replace("_", " ").lower().split())
    name = _CHINESE_QUANTITY.sub("", _CHINESE_PLACE.sub("", _PLACE.sub("", name)))
    return _ARTICLE.sub("", name)


@lru_cache(maxsize=4096)
def _names(name: str) -> frozenset[str]:
    """All that a thing may be called: singulars of its name, other words for it, English for Chinese."""
    forms = {name, *_singulars(name)}
    if (english := CHINESE.get(name)) is not None:
        forms.add(english)
    return frozenset(forms.union(*(names for names in _SYNONYMS if not forms.isdisjoint(names))))


def _singulars(word: str) -> set[str]:
    forms = set()
    if word.endswith("ies"):
        forms.add(word[:-3] + "y")
    if word.endswith("es"):
        forms.add(word[:-2])
    if word.endswith("ves"):
        forms |= {word[:-3] + "f", word[:-3] + "fe"}
    if word.endswith("s") and not word.endswith("ss"):
        forms.add(word[:-1])
    head, _, last = word.rpartition(" ")
    if last in _IRREGULAR:
        forms.add(f"{head} {_IRREGULAR[last]}".strip())
    return forms


def _members(things: str) -> frozenset[str]:
    return frozenset(name for member in things.split("|") for name in _names(member))


# By each word for a group, all names of what belongs to it.
_MEMBERS = {word: _members(things) for words, things in GROUPS for word in words.split("|")}
_ALL_MEMBERS = frozenset().union(*_MEMBERS.values())
