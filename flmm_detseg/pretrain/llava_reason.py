"""What the tiny LLaVA reads of the reasoning set: facts about kinds, what is there, and queries answered in words.

No scene is one of the reasoning set's. Held-out wordings and combinations are left out, and so are queries about
properties: what kinds are good for is learned from facts alone.
"""

from __future__ import annotations

import random
from functools import cache

from flmm_detseg.datasets.tinyworld import Scene
from flmm_detseg.datasets.tinyworld.reason.draw import is_held_out
from flmm_detseg.datasets.tinyworld.reason.facts import Fact, facts
from flmm_detseg.datasets.tinyworld.reason.families import queries
from flmm_detseg.datasets.tinyworld.reason.query import Query, View, joined
from flmm_detseg.datasets.tinyworld.reason.wordings import WORDINGS, known_wordings
from flmm_detseg.language.mask_wording import NOTHING_THERE, SENTENCE_QUESTIONS

REASON_KINDS = ("fact", "there", "reason")
# Of each kind, how many are read at one visit of a scene.
TURNS_A_VISIT = {"fact": 4, "there": 3, "reason": 8}
TEXT_ONLY = ("property", "property_with")
SEEN_FAMILIES = tuple(family for family in WORDINGS if family not in TEXT_ONLY)
# How many of the queries are put as requests for a mask, whose words are learned so.
_REQUESTED = 0.3
_FACTS, _THERE, _REASON = 8, 6, 10


def reason_turns(scene: Scene, seed: int) -> list[tuple[str, str, str]]:
    """Texts about a scene, and about kinds, as (turn kind, prompt, answer).

    Args:
        scene: Any scene.
        seed: Same seed, same texts.

    Returns:
        Facts, half of them true; yes/no questions about what is there; queries of different families whose answer is
        the targets' names or that there is no such object.
    """
    rng = random.Random(seed)
    yes, no, lists = _facts()
    chosen = [*rng.sample(yes, _FACTS // 2), *rng.sample(no, _FACTS // 2), rng.choice(lists)]
    turns = [("fact", fact.text, fact.answer) for fact in chosen]
    view = View(scene)
    turns += [("there", text, answer) for text, answer in _there(view, rng)]
    for family in rng.sample(SEEN_FAMILIES, min(_REASON, len(SEEN_FAMILIES))):
        query = _pick([query for query in queries(view, family) if not is_held_out(query)], rng)
        if query is not None:
            text = rng.choice(known_wordings(family)).format(**query.slots)
            if rng.random() < _REQUESTED:
                text = rng.choice(SENTENCE_QUESTIONS).format(text)
            turns.append(("reason", text, answer_words(view, query)))
    return turns


def answer_words(view: View, query: Query) -> str:
    """The answer to a query in words, as the reader of ReasonSeg writes it around its mask tokens."""
    names = [str(view.names[obj.object_id]) for obj in query.targets]
    return f"{joined(names)} ." if names else NOTHING_THERE


def there_questions(view: View) -> dict[str, list[str]]:
    """Questions whether something is there, by their answer, ``yes`` or ``no``."""
    found: dict[str, list[str]] = {"yes": [], "no": []}
    for query in queries(view, "named"):
        found["yes" if query.targets else "no"].append(f"is there {query.slots['ad']} ?")
    for query in queries(view, "relation"):
        if not is_held_out(query):
            text = "is there {ac} {rel} {x} ?".format(**query.slots)
            found["yes" if query.targets else "no"].append(text)
    return found


def _there(view: View, rng: random.Random) -> list[tuple[str, str]]:
    chosen = []
    for answer, texts in there_questions(view).items():
        chosen += [(text, answer) for text in rng.sample(texts, min(_THERE // 2, len(texts)))]
    return chosen


def _pick(found: list[Query], rng: random.Random) -> Query | None:
    """One with targets, four times of five, where there are both."""
    present = [query for query in found if query.targets]
    absent = [query for query in found if not query.targets]
    among = absent if absent and (not present or rng.random() < 0.2) else present
    return rng.choice(among) if among else None


@cache
def _facts() -> tuple[list[Fact], list[Fact], list[Fact]]:
    """Facts of training: those that are true, those that are not, and lists of kinds."""
    every = list(facts())
    return (
        [fact for fact in every if fact.answer == "yes"],
        [fact for fact in every if fact.answer == "no"],
        [fact for fact in every if fact.answer not in ("yes", "no")],
    )
