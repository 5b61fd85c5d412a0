"""Rankings of attention heads: what is kept in a file, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from flmm_detseg.errors import ConfigError
from flmm_detseg.structures import HeadRanking

RANKING = HeadRanking("tiny", 2, 4, "contrast", 50, ((1, 3), (0, 2), (1, 0)), (0.9, 0.5, 0.1))


def test_a_file_holds_all_of_it():
    assert HeadRanking.from_dict(json.loads(json.dumps(RANKING.to_dict())), "f.json") == RANKING
    assert RANKING.top(2) == ((1, 3), (0, 2))
    RANKING.check(2, 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(heads=((1, 3), (0, 4), (1, 0))), "layer 0, head 4 does not exist; the model has 2 layers of 4"),
        (dict(heads=((1, 3), (2, 0), (1, 0))), "layer 2, head 0 does not exist"),
        (dict(heads=((1, 3), (1, 3), (1, 0))), "twice"),
        (dict(scores=(0.9,)), "3 heads and 1 scores"),
        (dict(heads=(), scores=()), "at least one head"),
    ],
)
def test_heads_that_cannot_be(change, message):
    with pytest.raises(ConfigError, match=message):
        replace(RANKING, **change)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"heads": []},
        {**RANKING.to_dict(), "more": 1},
        {**RANKING.to_dict(), "heads": [[1.5, 3], [0, 2], [1, 0]]},
        {**RANKING.to_dict(), "heads": [[1], [0, 2], [1, 0]]},
        {**RANKING.to_dict(), "scores": ["a", 1, 2]},
        {**RANKING.to_dict(), "num_layers": True},
    ],
)
def test_other_files_are_refused_with_their_name(content):
    with pytest.raises(ConfigError, match=r"f\.json.*write it anew"):
        HeadRanking.from_dict(content, "f.json")


def test_of_another_model_or_too_many():
    with pytest.raises(ConfigError, match="this model has 3 of 4"):
        RANKING.check(3, 4)
    for count in (0, 4):
        with pytest.raises(ConfigError, match=f"best {count} heads"):
            RANKING.top(count)
