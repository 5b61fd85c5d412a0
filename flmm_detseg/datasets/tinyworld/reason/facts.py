"""Facts about kinds as questions with short answers: what the queries about properties take for granted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from flmm_detseg.datasets.tinyworld.questions import article
from flmm_detseg.datasets.tinyworld.reason.properties import PROPERTIES
from flmm_detseg.datasets.tinyworld.reason.query import joined
from flmm_detseg.datasets.tinyworld.reason.wordings import FACT_WORDINGS, LIST_WORDINGS, NUM_HELD_OUT
from flmm_detseg.datasets.tinyworld.scene import KINDS


@dataclass(frozen=True)
class Fact:
    """One question about kinds.

    Attributes:
        text: The question.
        answer: ``yes``, ``no``, or the kinds that have the property ("circle and ring").
        name: Key of :data:`~flmm_detseg.datasets.tinyworld.reason.properties.PROPERTIES`.
    """

    text: str
    answer: str
    name: str


def facts(held_out: bool = False) -> Iterator[Fact]:
    """All facts in all wordings of training, or in the held-out wordings.

    Args:
        held_out: Which wordings; the facts are the same.

    Yields:
        Every kind with every property; of training also the kinds of every property.
    """
    wordings = FACT_WORDINGS[-NUM_HELD_OUT:] if held_out else FACT_WORDINGS[:-NUM_HELD_OUT]
    for name, known in PROPERTIES.items():
        for kind in KINDS:
            thing = f"{article(kind)} {kind}"
            for wording in wordings:
                text = wording.format(q=known.question.format(thing), x=thing, p=known.predicate)
                yield Fact(text, "yes" if kind in known.kinds else "no", name)
        if not held_out:
            for wording in LIST_WORDINGS:
                yield Fact(wording.format(ps=known.plural), joined(known.kinds), name)
