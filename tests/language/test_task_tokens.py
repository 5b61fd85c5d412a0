import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from flmm_detseg.errors import ConfigError
from flmm_detseg.language import (
    SEG_TOKEN,
    TASK_TOKENS,
    build_prompt,
    remove_special_tokens,
)


def test_prompt_tokens_and_the_answer_token_cannot_be_confused():
    for token in TASK_TOKENS.values():
        assert token not in SEG_TOKEN
        assert SEG_TOKEN not in token


def test_tokens_stand_before_the_question_in_a_fixed_order():
    prompt = build_prompt("Where are the cars?", ["segmentations", "detections"])
    assert prompt == "<TASK_DET><TASK_SEG> Where are the cars?"
    assert build_prompt("Plain?", []) == "Plain?"


@settings(deadline=None)
@given(st.lists(st.sampled_from(["<SEG>", "<TASK_", "DET>", "<TASK_SEG>", "VQA>", "a", " "])).map("".join))
def test_a_typed_question_brings_no_special_token_along(question):
    prompt = build_prompt(question, ["answer"])
    assert prompt.startswith("<TASK_VQA> ")
    rest = prompt.removeprefix("<TASK_VQA>")
    assert remove_special_tokens(rest) == rest


def test_unknown_sections_are_refused():
    with pytest.raises(ConfigError, match="keypoints"):
        build_prompt("x", ["keypoints"])
