"""What heads ask for and what they get."""

from __future__ import annotations

import pytest
import torch

from flmm_detseg.errors import ConfigError
from flmm_detseg.structures import CaptureSpec, HiddenRows


def test_hidden_layers_of_a_union_are_those_of_both() -> None:
    first, last = CaptureSpec(attention=True, hidden=(2, 1, 2)), CaptureSpec(hidden=(7,))
    assert first.hidden == (1, 2)
    assert first.union(last) == CaptureSpec(attention=True, hidden=(1, 2, 7))
    assert CaptureSpec().union(last).hidden == (7,)
    for both in (first.union(CaptureSpec(hidden="all")), CaptureSpec(hidden="all").union(first)):
        assert both.hidden == "all"
        assert both.hidden_layers(4) == (1, 2, 3, 4)
    assert CaptureSpec().union(CaptureSpec()).hidden == ()
    assert CaptureSpec(hidden=[3]) == CaptureSpec(hidden=(3,)), "configs make lists"


@pytest.mark.parametrize("wrong", [None, 3, True, False, "first", (0,), (-1,), (1.5,), (True,)])
def test_hidden_layers_that_cannot_be(wrong) -> None:
    with pytest.raises(ConfigError, match="counted from 1, or 'all'"):
        CaptureSpec(hidden=wrong)


def test_layers_that_a_model_does_not_have() -> None:
    assert CaptureSpec(hidden=(1, 3)).hidden_layers(3) == (1, 3)
    with pytest.raises(ConfigError, match=r"layers \[4\] do not exist; the language model has layers 1\.\.3"):
        CaptureSpec(hidden=(1, 4)).hidden_layers(3)


def test_rows_of_chosen_layers() -> None:
    states = torch.randn(3, 5, 2)
    every = HiddenRows(states, torch.zeros(5, dtype=torch.long))
    assert every.layers == (1, 2, 3)
    assert every.of((1, 2, 3)) is states, "no copy where a head takes all"
    some = HiddenRows(states, every.phrase_ids, (2, 5, 9))
    assert torch.equal(some.of((9, 2)), states[[2, 0]])
    with pytest.raises(AssertionError, match=r"layers \[1\] were not captured"):
        some.of((1,))
