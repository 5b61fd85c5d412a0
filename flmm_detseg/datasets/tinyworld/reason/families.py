"""Every query of every family that a scene answers without doubt. Wordings are in ``wordings.py``."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from flmm_detseg.datasets.tinyworld.questions import article
from flmm_detseg.datasets.tinyworld.reason import geometry
from flmm_detseg.datasets.tinyworld.reason.properties import PROPERTIES
from flmm_detseg.datasets.tinyworld.reason.query import (
    MOST_TARGETS,
    ObjectClass,
    Query,
    View,
)
from flmm_detseg.datasets.tinyworld.reason.wordings import AREAS, DIRECTIONS, DISTANCES, SIDES
from flmm_detseg.datasets.tinyworld.relations import RELATIONS, extreme
from flmm_detseg.datasets.tinyworld.scene import COLOURS, KINDS, SIZES, TEXTURES
from flmm_detseg.datasets.tinyworld.word_list import COUNT_WORDS, PLURALS

_ATTRIBUTES = ("kind", "colour", "texture", "size")


def queries(view: View, family: str) -> list[Query]:
    """All queries of a family with a clear answer of at most three objects that can be named, or a clear "none".

    Args:
        view: A scene.
        family: Key of :data:`~flmm_detseg.datasets.tinyworld.reason.wordings.WORDINGS`.

    Returns:
        Queries in a fixed order; empty for scenes of fewer than three objects.
    """
    if len(view.objects) < 3:
        return []
    return [
        query
        for query in _MAKERS[family](view)
        if len(query.targets) <= MOST_TARGETS
        and all(view.names[obj.object_id] for obj in query.targets)
        and bool(query.targets) == (query.absent is None)
    ]


def _odd(view: View) -> Iterator[Query]:
    for attribute in _ATTRIBUTES:
        alone = [members[0] for members in view.groups(attribute) if len(members) == 1]
        if len(alone) == 1:
            yield Query("odd", attribute, {"a": attribute}, (alone[0],))


def _extreme(view: View) -> Iterator[Query]:
    for group in view.several:
        for side, (place, further) in SIDES.items():
            found = extreme(list(group.members), place)
            if found is not None:
                slots = {**_named_class(group), "side": side, "further": further}
                yield Query("extreme", f"{side} {group.by}", slots, (found,))


def _area(view: View) -> Iterator[Query]:
    for group in view.several:
        for largest, (word, (comparative, most)) in zip((True, False), AREAS.items(), strict=True):
            found = geometry.by_area(group.members, largest)
            if found is not None and group.by != "size":
                slots = {**_named_class(group), "sup": word, "comp": comparative, "most": most}
                yield Query("area", f"{word} {group.by}", slots, (found,))


def _centre(view: View) -> Iterator[Query]:
    height, width = view.scene.image.shape[:2]
    for group in view.several:
        for near, (short, _) in DISTANCES.items():
            found = geometry.by_distance(group.members, (width / 2, height / 2), near == "nearest to")
            if found is not None:
                slots = {**_named_class(group), "near": near, "short": short}
                yield Query("centre", f"{near} {group.by}", slots, (found,))


def _corner(view: View) -> Iterator[Query]:
    for group in view.several:
        for corner, point in geometry.corner_points(view.scene.image.shape[:2]).items():
            found = geometry.by_distance(group.members, point, True)
            if found is not None:
                slots = {**_named_class(group), "corner": corner}
                yield Query("corner", f"{corner} {group.by}", slots, (found,))


def _between(view: View) -> Iterator[Query]:
    for first, x in view.anchors():
        for second, y in view.anchors():
            if first is second:
                continue
            found = geometry.between(view.scene, first, second)
            if found is not None and len(found) <= 1:
                yield Query("between", "between", {"x": x, "y": y}, found, None if found else "relation")


def _same(view: View) -> Iterator[Query]:
    for attribute in _ATTRIBUTES:
        for anchor, x in view.anchors(attribute):
            found = view.sharing(anchor, attribute)
            yield Query("same", attribute, {"a": attribute, "x": x}, found, None if found else "attribute")


def _counted(view: View) -> Iterator[Query]:
    for attribute in ("kind", "colour"):
        groups = view.groups(attribute)
        for number in (2, 3):
            found = [members for members in groups if len(members) == number]
            if len(found) == 1 and all(len(members) <= number for members in groups):
                word = COUNT_WORDS[number]
                yield Query("counted", f"{word} {attribute}", {"a": attribute, "n": word}, found[0])


def _negated(view: View) -> Iterator[Query]:
    for group in view.classes:
        if group.by == "object":
            continue
        for attribute in _ATTRIBUTES:
            if attribute == group.by:
                continue
            for value in sorted({getattr(obj, attribute) for obj in group.members}):
                found = tuple(obj for obj in group.members if getattr(obj, attribute) != value)
                slots = {**_named_class(group), **_negation(attribute, value)}
                absent = None if found else "attribute"
                yield Query("negated", f"{group.by} {attribute}", slots, found, absent)


def _relation(view: View) -> Iterator[Query]:
    for anchor, x in view.anchors():
        for relation in RELATIONS:
            for group in view.classes:
                if group.by in ("texture", "size") or group.members == (anchor,):
                    continue
                found = geometry.related(group.members, relation, anchor)
                if found is not None:
                    slots = {**_named_class(group), "rel": relation, "dir": DIRECTIONS[relation], "x": x}
                    absent = None if found else "relation"
                    yield Query("relation", f"{relation} {group.by}", slots, found, absent)


def _two_relations(view: View) -> Iterator[Query]:
    for first, x in view.anchors():
        for second, y in view.anchors():
            for relation in RELATIONS:
                for other in RELATIONS:
                    across = (relation in RELATIONS[:2]) != (other in RELATIONS[:2])
                    if first is second or not across:
                        continue
                    one = geometry.related(view.objects, relation, first)
                    two = geometry.related(view.objects, other, second)
                    if one is None or two is None:
                        continue
                    found = tuple(obj for obj in one if obj in two and obj is not second)
                    # Either relation alone must not be enough.
                    if len(found) < min(len(one), len(two)):
                        slots = {"rel": relation, "dir": DIRECTIONS[relation], "x": x, "rel2": other, "y": y}
                        absent = None if found else "relation"
                        yield Query("two_relations", f"{relation} {other}", slots, found, absent)


def _nearest(view: View) -> Iterator[Query]:
    for anchor, x in view.anchors():
        for group in view.classes:
            others = [obj for obj in group.members if obj is not anchor]
            if anchor in group.members and group.by != "object":
                continue  # "the red object nearest to the red ring" might be itself
            for near, (short, first) in DISTANCES.items():
                found = geometry.by_distance(others, anchor.centre_xy, near == "nearest to")
                if found is not None:
                    named = _named_class(group)
                    if group.by == "object":
                        named = {"c": "other object", "cs": "other objects"}
                    slots = {**named, "near": near, "short": short, "first": first, "x": x}
                    yield Query("nearest", f"{near} {group.by}", slots, (found,))


def _property(view: View) -> Iterator[Query]:
    for name, known in PROPERTIES.items():
        found = tuple(obj for obj in view.objects if obj.kind in known.kinds)
        slots = {"p": known.predicate, "ps": known.plural}
        yield Query("property", name, slots, found, None if found else "kind")


def _property_with(view: View) -> Iterator[Query]:
    for known in PROPERTIES.values():
        having = [obj for obj in view.objects if obj.kind in known.kinds]
        for group in view.classes:
            if group.by in ("object", "kind"):
                continue
            found = tuple(obj for obj in group.members if obj in having)
            # Neither the property nor the class alone is enough.
            if len(found) < min(len(having), len(group.members)):
                slots = {**_named_class(group), "p": known.predicate, "ps": known.plural}
                yield Query("property_with", group.by, slots, found, None if found else "attribute")


def _chain(view: View) -> Iterator[Query]:
    for side, (place, _) in SIDES.items():
        end = extreme(list(view.objects), place)
        for attribute in _ATTRIBUTES if end is not None else ():
            assert end is not None
            found = view.sharing(end, attribute)
            slots = {"a": attribute, "side": side}
            yield Query("chain", f"{side} {attribute}", slots, found, None if found else "attribute")


def _named(view: View) -> Iterator[Query]:
    for obj in view.objects:
        name = view.names[obj.object_id]
        words = name.removeprefix("the ") if name else ""
        if len(words.split()) in (2, 3) and words.endswith(obj.kind) and words.split()[0] not in _PLACES:
            yield Query("named", "there", _description(words), (obj,))
    shown = {value for obj in view.objects for value in (obj.kind, obj.colour)}
    for kind in KINDS:
        if kind not in shown:
            for colour in COLOURS:
                if colour in shown:
                    yield Query("named", "no kind", _description(f"{colour} {kind}"), (), "kind")
            continue
        present = [obj for obj in view.objects if obj.kind == kind]
        for attribute, values in (("colour", tuple(COLOURS)), ("size", SIZES), ("texture", TEXTURES)):
            for value in values:
                elsewhere = any(getattr(obj, attribute) == value for obj in view.objects)
                if elsewhere and not any(getattr(obj, attribute) == value for obj in present):
                    slots = _description(f"{value} {kind}")
                    yield Query("named", f"no {attribute}", slots, (), "attribute")


_PLACES = ("left", "right", "top", "bottom")
_MAKERS: dict[str, Callable[[View], Iterator[Query]]] = {
    "odd": _odd,
    "extreme": _extreme,
    "area": _area,
    "centre": _centre,
    "corner": _corner,
    "between": _between,
    "same": _same,
    "counted": _counted,
    "negated": _negated,
    "relation": _relation,
    "two_relations": _two_relations,
    "nearest": _nearest,
    "property": _property,
    "property_with": _property_with,
    "chain": _chain,
    "named": _named,
}


def _named_class(group: ObjectClass) -> dict[str, str]:
    return {"c": group.singular, "cs": group.plural, "ac": f"{article(group.singular)} {group.singular}"}


def _description(words: str) -> dict[str, str]:
    return {"d": words, "ad": f"{article(words)} {words}"}


def _negation(attribute: str, value: str) -> dict[str, str]:
    """Words after "not", of one thing and of several, and after "except"."""
    if attribute == "kind":
        return {"not": f"{article(value)} {value}", "nots": PLURALS[value], "except": f"the {PLURALS[value]}"}
    return {"not": value, "nots": value, "except": f"the {value} ones"}
