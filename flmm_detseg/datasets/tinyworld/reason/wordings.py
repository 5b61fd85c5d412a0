"""How the queries of the reasoning set are put into words, and the words that this takes."""

from __future__ import annotations

import re
from collections.abc import Iterator

from flmm_detseg.datasets.tinyworld.reason.properties import PROPERTIES
from flmm_detseg.datasets.tinyworld.word_list import vocabulary

# Family -> wordings, each with the same places to fill.
WORDINGS: dict[str, tuple[str, ...]] = {
    "odd": (
        "which object has a {a} that no other object has ?",
        "one object differs from all others in {a} . which one ?",
        "find the object that shares its {a} with nothing .",
        "show me the odd one out by {a} .",
        "if you sort all objects by {a} , which one stays alone ?",
        "which one stays alone if you sort all objects by {a} ?",
        "show me the object that shares its {a} with no other .",
    ),
    "extreme": (
        "which {c} is the {side} one ?",
        "show me the {side} {c} .",
        "of all {cs} , find the {side} .",
        "no other {c} lies {further} . which one is it ?",
        "which {c} lies {further} than all others ?",
        "find the {c} that lies {further} than each other .",
        "which one of the {cs} is the {side} ?",
    ),
    "area": (
        "which {c} covers the {most} of the image ?",
        "show me the {sup} {c} .",
        "which {c} is {comp} than all others ?",
        "find the {c} that would need the {most} paint .",
        "no other {c} is {comp} . which one is it ?",
        "of all {cs} , which is the {sup} one ?",
        "which {c} would need the {most} paint ?",
    ),
    "centre": (
        "which {c} is {near} the centre of the image ?",
        "show me the {c} {near} the centre .",
        "fold the image twice . which {c} lies {near} the crossing of the folds ?",
        "find the {c} with the {short} way to the centre .",
        "if you look at the centre , which {c} is {near} it ?",
        "which {c} has the {short} way to the centre of the image ?",
        "look at the crossing of the folds . which {c} is {near} it ?",
    ),
    "corner": (
        "which {c} is nearest to the {corner} corner ?",
        "show me the {c} nearest to the {corner} corner .",
        "find the {c} with the shortest way to the {corner} corner .",
        "if you look at the {corner} corner , which {c} is nearest to it ?",
        "a bug sits in the {corner} corner . which {c} does it reach first ?",
        "which {c} does a bug in the {corner} corner reach first ?",
        "look at the {corner} corner . which {c} is nearest to it ?",
    ),
    "between": (
        "what lies between {x} and {y} ?",
        "which object is on the way from {x} to {y} ?",
        "draw a line from {x} to {y} . which object does it meet ?",
        "find the object with {x} on one side and {y} on the other .",
        "show me what is between {x} and {y} .",
        "which object does a line from {x} to {y} meet ?",
        "find what lies on the way from {x} to {y} .",
    ),
    "same": (
        "what else has the same {a} as {x} ?",
        "which other objects share the {a} of {x} ?",
        "look at {x} . what else has its {a} ?",
        "show me everything with the {a} of {x} , but not {x} .",
        "find all other objects whose {a} is that of {x} .",
        "show me what else shares the {a} of {x} .",
        "which other objects have the same {a} as {x} ?",
    ),
    "counted": (
        "which objects have a {a} that occurs exactly {n} times ?",
        "find the {a} that there are exactly {n} of .",
        "show me the {n} objects of the same {a} .",
        "exactly {n} objects share their {a} . which are they ?",
        "count the objects of each {a} . where do you get {n} ?",
        "which {n} objects have the same {a} ?",
        "count the objects of each {a} and show me where you get {n} .",
    ),
    "negated": (
        "find each {c} that is not {not} .",
        "which {cs} are not {nots} ?",
        "show me all {cs} except {except} .",
        "leave out {except} and show me each other {c} .",
        "all {cs} but not {except} , please .",
        "show me each {c} that is not {not} .",
        "find all {cs} but leave out {except} .",
    ),
    "relation": (
        "which {c} is {rel} {x} ?",
        "find each {c} that is {rel} {x} .",
        "go {dir} from {x} . which {cs} do you find ?",
        "show me all {cs} {rel} {x} .",
        "is there {ac} {rel} {x} ? show it to me .",
        "which {cs} do you find if you go {dir} from {x} ?",
        "show me each {c} that is {rel} {x} .",
    ),
    "two_relations": (
        "which object is {rel} {x} and {rel2} {y} ?",
        "find what lies {rel} {x} but {rel2} {y} .",
        "show me everything that is both {rel} {x} and {rel2} {y} .",
        "go {dir} from {x} . which of these objects are {rel2} {y} ?",
        "all objects {rel} {x} and also {rel2} {y} , please .",
        "which of the objects {rel} {x} are also {rel2} {y} ?",
        "find everything that is {rel} {x} and {rel2} {y} .",
    ),
    "nearest": (
        "which {c} is {near} {x} ?",
        "show me the {c} that lies {near} {x} .",
        "find the {c} with the {short} way to {x} .",
        "look at {x} . which {c} is {near} it ?",
        "a bug sits on {x} . which {c} does it reach {first} ?",
        "which {c} does a bug on {x} reach {first} ?",
        "which {c} has the {short} way to {x} ?",
    ),
    "property": (
        "what {p} ?",
        "find everything that {p} .",
        "which object here {p} ?",
        "show me each object of a kind that {p} .",
        "i need something that {p} . what could i take ?",
        "show me everything here that {p} .",
        "is there something that {p} ? find it .",
    ),
    "property_with": (
        "which {c} {p} ?",
        "find each {c} that {p} .",
        "i need {ac} that {p} . which could i take ?",
        "show me all {cs} of a kind that {p} .",
        "is there {ac} that {p} ? show it to me .",
        "show me each {c} that {p} .",
        "i need something that {p} . which {c} could i take ?",
    ),
    "chain": (
        "what else has the same {a} as the {side} object ?",
        "find the {side} object . what else has its {a} ?",
        "which other objects share the {a} of the {side} one ?",
        "look at the {side} object . show me everything else of its {a} .",
        "take the {a} of the {side} object and find all others with it .",
        "show me what else shares the {a} of the {side} object .",
        "which other objects have the {a} of the {side} one ?",
    ),
    "named": (
        "where is the {d} ?",
        "can you find the {d} ?",
        "show me the {d} .",
        "is there {ad} ? show it to me .",
        "i look for {ad} . where is it ?",
        "find the {d} , please .",
        "i look for the {d} . can you show it to me ?",
    ),
}
# The last ones of every family are asked in the test split only.
NUM_HELD_OUT = 2
# Family -> what is said after the names of one target, of several, and when there is none.
EXPLANATIONS: dict[str, tuple[str, str, str]] = {
    "odd": ("is the only object of its {a}", "", ""),
    "extreme": ("is the {side} {c}", "", ""),
    "area": ("is the {sup} {c}", "", ""),
    "centre": ("is {near} the centre", "", ""),
    "corner": ("is nearest to the {corner} corner", "", ""),
    "between": ("is between {x} and {y}", "", "there is nothing between {x} and {y}"),
    "same": ("has the {a} of {x}", "have the {a} of {x}", "nothing else has the {a} of {x}"),
    "counted": ("", "are the {n} objects of the same {a}", ""),
    "negated": ("is not {not}", "are not {nots}", "there is no {c} that is not {not}"),
    "relation": ("is {rel} {x}", "are {rel} {x}", "there is no {c} {rel} {x}"),
    "two_relations": (
        "is {rel} {x} and {rel2} {y}",
        "are {rel} {x} and {rel2} {y}",
        "nothing is {rel} {x} and {rel2} {y}",
    ),
    "nearest": ("is {near} {x}", "", ""),
    "property": ("{p}", "{ps}", "nothing here {p}"),
    "property_with": ("{p}", "{ps}", "there is no {c} that {p}"),
    "chain": (
        "has the {a} of the {side} object",
        "have the {a} of the {side} object",
        "nothing else has the {a} of the {side} object",
    ),
    "named": ("is the only {d}", "", "there is no {d}"),
}
# Word of an extreme place -> side, and words of comparison.
SIDES: dict[str, tuple[str, str]] = {
    "leftmost": ("left", "further left"),
    "rightmost": ("right", "further right"),
    "highest": ("top", "higher"),
    "lowest": ("bottom", "lower"),
}
# Largest or smallest -> comparative, and "which covers the ... of the image".
AREAS: dict[str, tuple[str, str]] = {"largest": ("larger", "most"), "smallest": ("smaller", "least")}
# Nearest or farthest -> which way to it is that, and when a bug arrives there.
DISTANCES: dict[str, tuple[str, str]] = {
    "nearest to": ("shortest", "first"),
    "farthest from": ("longest", "last"),
}
DIRECTIONS: dict[str, str] = {"left of": "left", "right of": "right", "above": "up", "below": "down"}
_PLACE = re.compile(r"\{\w+\}")
# Facts about kinds: {q} is a property's question, {x} a kind with its article, {p} the predicate.
FACT_WORDINGS: tuple[str, ...] = (
    "{q} ?",
    "is it true that {x} {p} ?",
    "would you say that {x} {p} ?",
    "tell me if {x} {p} .",
    "do you know whether {x} {p} ?",
    "tell me whether {x} {p} .",
    "do you know if {x} {p} ?",
)
# {ps}: the predicate of several.
LIST_WORDINGS: tuple[str, ...] = ("which kinds {ps} ?", "name all kinds that {ps} .")
_ANSWER_WORDS = "the , and nothing yes no ones"
# Of the sentences that ask for masks and answer with them (flmm_detseg/language/mask_wording.py).
_MASK_WORDS = (
    "there is no such object here the answer it sure segment segmentation mask masks result output respond explain say "
    "because why thing reason too pixels outline show in this image"
)


def known_wordings(family: str) -> tuple[str, ...]:
    """Wordings that the training split uses."""
    return WORDINGS[family][:-NUM_HELD_OUT]


def held_out_wordings(family: str) -> tuple[str, ...]:
    """Wordings of the test split alone."""
    return WORDINGS[family][-NUM_HELD_OUT:]


def reason_words() -> list[str]:
    """Words of queries, explanations and facts that :func:`vocabulary` lacks, without duplicates, in a fixed order."""
    known = set(vocabulary())
    return [word for word in dict.fromkeys(_all_words()) if word not in known]


def _all_words() -> Iterator[str]:
    texts = [text for family in WORDINGS.values() for text in family]
    texts += [text for family in EXPLANATIONS.values() for text in family]
    texts += [word for side, (place, further) in SIDES.items() for word in (side, place, further)]
    texts += [word for table in (AREAS, DISTANCES) for key, pair in table.items() for word in (key, *pair)]
    texts += list(DIRECTIONS.values())
    texts += [*FACT_WORDINGS, *LIST_WORDINGS, _ANSWER_WORDS, _MASK_WORDS]
    for known in PROPERTIES.values():
        texts += [known.predicate, known.plural, known.question.replace("{}", "a")]
    for text in texts:
        yield from _PLACE.sub(" ", text).split()
