"""A process that serves a stream is killed; another one goes on from its folder, with the same model or another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parents[1]
# What of the first process' entries each model may use: everything, vision features, nothing.
EXPECTED = {
    "same": "L2",
    "fused": "L2",
    "separators": "L1",
    "llm_weight": "L1",
    "packed": "L1",
    "drop": "L1",
    "separate": "L1",
    "fused_heads": "L1",
    "vision_weight": "miss",
    "lora_off": "miss",
    "autocast": "miss",
    "bfloat16": "miss",
}


def start(*arguments: str) -> subprocess.Popen:
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(TESTS / "stream_process.py"), *arguments]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.fixture(scope="module")
def outcome(tmp_path_factory) -> tuple[dict, dict, dict]:
    """What the first process answered before it was killed, what the second did, and at last with the first model."""
    folder = str(tmp_path_factory.mktemp("cache"))
    first = start(folder, "fill")
    # It goes on inserting: the kill meets it somewhere in a request.
    lines = [first.stdout.readline() for _ in range(5)]
    first.send_signal(signal.SIGKILL)
    _, errors = first.communicate()
    assert first.returncode == -signal.SIGKILL, errors
    before = {case["case"]: case for case in map(json.loads, lines[:2])}
    second = start(folder, "ask", *EXPECTED, "same")
    out, errors = second.communicate(timeout=300)
    assert second.returncode == 0, errors
    *cases, again = map(json.loads, out.splitlines())
    return before, {case["case"]: case for case in cases}, again


@pytest.mark.parametrize("case", EXPECTED)
def test_tokens_are_those_without_a_cache_whatever_was_found(outcome, case):
    before, after, _ = outcome
    assert after[case]["tokens"] == after[case]["cold"]
    # The first request finds what the killed process left, and nothing that was made by another model.
    assert after[case]["levels"][0] == EXPECTED[case]
    assert set(after[case]["levels"][1:]) == {"L2"}
    if case in before:
        assert after[case]["tokens"] == before[case]["tokens"]


def test_the_models_differ(outcome):
    """Else equal tokens would prove nothing."""
    _, after, _ = outcome
    answers = {case: json.dumps(found["tokens"]) for case, found in after.items()}
    # Square images have no padding to drop.
    others = [case for case in EXPECTED if case not in ("same", "drop")]
    assert [case for case in others if answers[case] == answers["same"]] == []
    assert answers["fused_heads"] != answers["fused"]


def test_the_first_model_still_finds_its_own(outcome):
    before, _, again = outcome
    assert set(again["levels"]) == {"L2"}
    assert again["tokens"] == again["cold"] == before["same"]["tokens"]
