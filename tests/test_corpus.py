"""Mutated files of every kind are read unchanged, refused or counted by name, or hold another legal value."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
from corpus.operators import EQUAL, OPERATORS, Operator
from corpus.run import _child, pairs, plan, run
from corpus.sources import IllegalValue, Reading, Source, make_sources

from flmm_detseg.errors import DataError


def _lines(results) -> list[str]:
    return [
        f"{r.outcome}: {r.source}, {r.operator}, file {r.index}: {r.detail}" for r in results if r.is_fault
    ]


def test_two_hundred_mutated_files(tmp_path):
    results = run(7, 200, tmp_path / "valid")
    assert len(results) == 200
    assert len({result.operator for result in results}) >= 30
    assert _lines(results) == []


@pytest.mark.long
@pytest.mark.timeout(3000)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_two_thousand_mutated_files(tmp_path, seed):
    results = run(seed, 667, tmp_path / "valid")
    assert len({result.source for result in results}) == 23
    assert _lines(results) == []


def test_a_corpus_is_a_function_of_its_seed(tmp_path):
    first, second = (
        [(s.name, o.name, data) for _, s, o, data in plan(make_sources(tmp_path / k), 3, 12)] for k in "ab"
    )
    assert first == second
    assert first != [(s.name, o.name, data) for _, s, o, data in plan(make_sources(tmp_path / "c"), 4, 12)]
    assert len(OPERATORS) >= 60
    assert len({item.name for _, item in pairs(make_sources(tmp_path / "d"))}) == len(OPERATORS)


def _dies(folder: Path) -> Reading:
    os.kill(os.getpid(), signal.SIGSEGV)
    return Reading()


def _raises(error: Exception):
    def read(folder: Path) -> Reading:
        if (folder / "x.json").read_bytes() == b"valid":
            return Reading({"a": "b"})
        raise error

    return read


@pytest.mark.parametrize(
    ("read", "outcome"),
    [
        (_raises(KeyError("id")), "traceback"),
        (_raises(DataError("malformed")), "nameless"),
        (_raises(DataError("x.json: entry 3 is malformed")), "unexpected"),
        (_raises(IllegalValue("text 5")), "illegal"),
        (lambda folder: Reading({"a": (folder / "x.json").read_text()}), "unexpected"),
        (lambda folder: Reading({"a": "b"}), "same"),
        (_dies, "killed"),
    ],
)
def test_faults_are_found(tmp_path, read, outcome):
    (tmp_path / "x.json").write_bytes(b"valid")
    source = Source("own", "json", tmp_path, "x.json", read)
    item = Operator("changed", ("json",), lambda data, rng: b"other", EQUAL)
    [(number, found, _, _)] = _child([(0, source, item, b"other")])
    assert (number, found) == (0, outcome)
