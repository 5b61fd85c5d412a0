"""Chooses scenes and queries of the reasoning set: all families and absences, in the test split held-out parts too."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count

import numpy as np

from flmm_detseg.datasets.tinyworld.reason.families import queries
from flmm_detseg.datasets.tinyworld.reason.query import Query, View
from flmm_detseg.datasets.tinyworld.reason.spec import QUERIES_PER_IMAGE, ReasonSpec
from flmm_detseg.datasets.tinyworld.reason.wordings import (
    NUM_HELD_OUT,
    WORDINGS,
    known_wordings,
)
from flmm_detseg.datasets.tinyworld.render import make_scene
from flmm_detseg.datasets.tinyworld.scene import Scene, scene_rng

# Combinations of the test split alone.
HELD_OUT_COMBINATIONS: dict[str, frozenset[str]] = {
    "odd": frozenset({"texture"}),
    "extreme": frozenset({"lowest colour", "leftmost kind"}),
    "area": frozenset({"smallest colour"}),
    "centre": frozenset({"farthest from kind"}),
    "corner": frozenset({"bottom right colour"}),
    "same": frozenset({"texture"}),
    "counted": frozenset({"three colour"}),
    "negated": frozenset({"kind size", "colour texture"}),
    "relation": frozenset({"below colour"}),
    "two_relations": frozenset({"above right of"}),
    "nearest": frozenset({"farthest from kind"}),
    "property_with": frozenset({"texture"}),
    "chain": frozenset({"highest kind"}),
}
# World split and first number of the scenes: no other set of TinyWorld draws them, nor do two of these.
_FIRST_SCENE = {"train": ("train", 1_000_000), "val": ("val", 1_000_000), "test": ("val", 2_000_000)}
# Share of the queries that nothing answers, in equal parts for want of a kind, an attribute and a relation.
_ANSWERS = {None: 0.8, "kind": 0.2 / 3, "attribute": 0.2 / 3, "relation": 0.2 / 3}
# Shares of the test split's queries: known, in held-out wordings, of held-out combinations.
_TESTED = {None: 0.45, "wording": 0.4, "combination": 0.15}
_CHOOSE = 41


@dataclass(frozen=True)
class ReasonItem:
    """One record before it is written.

    Attributes:
        image: Number of the image within its split.
        scene: The scene.
        query: What is asked.
        names: Words that name each target, in order.
        texts: Wordings, the chosen one first; of the training split all known ones.
        wording: Number of the first one within its family.
        held_out: ``"wording"``, ``"combination"``, or None.
    """

    image: int
    scene: Scene
    query: Query
    names: tuple[str, ...]
    texts: tuple[str, ...]
    wording: int
    held_out: str | None


def is_held_out(query: Query) -> bool:
    """Whether its combination is of the test split alone."""
    return query.combination in HELD_OUT_COMBINATIONS.get(query.family, frozenset())


def reason_scene(seed: int, split: str, number: int) -> Scene:
    """The scene that a split's image was drawn from.

    Args:
        seed: Of the world.
        split: ``train``, ``val`` or ``test``.
        number: ``Scene.scene_id`` less the split's first one.

    Returns:
        The scene.
    """
    world_split, first = _FIRST_SCENE[split]
    return make_scene(seed, first + number, world_split)


def draw_items(spec: ReasonSpec, split: str) -> Iterator[ReasonItem]:
    """Draws the records of a split, image by image.

    Args:
        spec: How many images, and the seed.
        split: ``train``, ``val`` or ``test``.

    Yields:
        Three items an image: of three families, with three different answers, one of them at most being "nothing".
    """
    chooser = _Chooser(split == "test")
    image = 0
    for number in count():
        if image == spec.counts()[split]:
            return
        scene = reason_scene(spec.seed, split, number)
        view = View(scene)
        chosen = chooser.choose(view, scene_rng(spec.seed, scene.scene_id, scene.split, _CHOOSE))
        for query, held_out, wording in chosen:
            names = tuple(str(view.names[obj.object_id]) for obj in query.targets)
            texts = _texts(query, wording, every=split == "train")
            yield ReasonItem(image, scene, query, names, texts, wording, held_out)
        image += bool(chosen)


def _texts(query: Query, wording: int, every: bool) -> tuple[str, ...]:
    """The chosen wording, and all other known ones if ``every``."""
    known = range(len(known_wordings(query.family)))
    numbers = [wording, *(number for number in known if every and number != wording)]
    return tuple(WORDINGS[query.family][number].format(**query.slots) for number in numbers)


class _Chooser:
    """Chooses the queries of one image after the other so that the shares come true.

    Args:
        test: Whether held-out wordings and combinations are asked as well.
    """

    def __init__(self, test: bool) -> None:
        self.test = test
        self.answers: Counter[str | None] = Counter()
        self.tested: Counter[str | None] = Counter()
        self.asked: Counter[tuple[str, str | None]] = Counter()

    def choose(self, view: View, rng: np.random.Generator) -> list[tuple[Query, str | None, int]]:
        """The queries of an image as (query, ``held_out``, number of the wording); none if there are too few."""
        found: list[tuple[Query, str | None, int]] = []
        for _ in range(QUERIES_PER_IMAGE):
            chosen = self._one(view, rng, [query for query, _, _ in found])
            if chosen is None:
                return []
            found.append(chosen)
        for query, held_out, _ in found:
            self.answers[query.absent] += 1
            self.tested[held_out] += 1
            self.asked[query.family, query.absent] += 1
        return found

    def _one(
        self, view: View, rng: np.random.Generator, before: list[Query]
    ) -> tuple[Query, str | None, int] | None:
        tested = _most_wanted(_TESTED, self.tested) if self.test else [None]
        for answer in _most_wanted(_ANSWERS, self.answers):
            if answer is not None and any(query.absent for query in before):
                continue
            for held_out in tested:
                query = self._query(view, rng, before, answer, held_out == "combination")
                if query is not None:
                    known = len(known_wordings(query.family))
                    number = int(rng.integers(known if held_out != "wording" else NUM_HELD_OUT))
                    return query, held_out, number + (known if held_out == "wording" else 0)
        return None

    def _query(
        self, view: View, rng: np.random.Generator, before: list[Query], answer: str | None, new: bool
    ) -> Query | None:
        """A query of the family that was asked least so far."""
        families = [name for name in WORDINGS if all(query.family != name for query in before)]
        order = rng.permutation(len(families))
        ranked = sorted(order, key=lambda number: self.asked[families[number], answer])
        answers = [_answer(query) for query in before]
        for number in ranked:
            by_combination: dict[str, list[Query]] = defaultdict(list)
            for query in queries(view, families[number]):
                if query.absent == answer and is_held_out(query) == new and _answer(query) not in answers:
                    by_combination[query.combination].append(query)
            if by_combination:
                combinations = sorted(by_combination)
                among = by_combination[combinations[int(rng.integers(len(combinations)))]]
                return among[int(rng.integers(len(among)))]
        return None


def _answer(query: Query) -> frozenset[int]:
    return frozenset(obj.object_id for obj in query.targets)


def _most_wanted(shares: dict[str | None, float], seen: Counter[str | None]) -> list[str | None]:
    """Keys by how far they are from their share, the furthest first."""
    total = sum(seen.values()) + 1
    return sorted(shares, key=lambda key: seen[key] - shares[key] * total)
