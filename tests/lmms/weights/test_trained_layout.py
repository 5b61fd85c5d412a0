"""What a file records of a layout, compared with the model's."""

from __future__ import annotations

import logging

import pytest
from tiny import tiny_llava

from flmm_detseg.errors import CheckpointError
from flmm_detseg.lmms.weights import trained_layout
from flmm_detseg.lmms.weights.trained_layout import check_layout, layout_text

LAYOUT = {"positions": "raster", "compressed": 0}
FUSED = {**LAYOUT, "prefusion": {"num_layers": 2, "compressed_side": None}}
COMPRESSED = {**LAYOUT, "compressed": 9, "prefusion": {"num_layers": 2, "compressed_side": 3}}


@pytest.fixture
def logged(monkeypatch) -> list[tuple]:
    found: list[tuple] = []
    monkeypatch.setattr(trained_layout, "print_log", lambda *arguments: found.append(arguments))
    return found


def test_a_plain_llava_has_none():
    assert tiny_llava().trained_layout is None


@pytest.mark.parametrize("layout", [None, LAYOUT, FUSED, COMPRESSED])
def test_the_same_layout_fits(layout, logged):
    recorded = None if layout is None else layout_text(layout)
    for start in (False, True):
        check_layout(layout, recorded, "file.pth", start=start)
    assert not logged


@pytest.mark.parametrize(
    ("recorded", "layout", "facts"),
    [
        (LAYOUT, {**LAYOUT, "positions": "packed"}, "positions 'raster' (model: 'packed')"),
        (LAYOUT, None, "positions 'raster' (model: None)"),
        (COMPRESSED, FUSED, "compressed 9 (model: 0), prefusion.compressed_side 3 (model: None)"),
    ],
)
def test_every_fact_that_differs_is_named_also_for_a_start(recorded, layout, facts):
    for start, remedy in ((False, "Use the config the"), (True, "Start from a checkpoint of the")):
        with pytest.raises(CheckpointError) as error:
            check_layout(layout, layout_text(recorded), "file.pth", start=start)
        assert str(error.value).startswith(
            f"file.pth was trained for another layout than the model's: {facts}. {remedy}"
        )


@pytest.mark.parametrize(("recorded", "layout"), [(LAYOUT, FUSED), (LAYOUT, COMPRESSED), (FUSED, COMPRESSED)])
def test_only_a_start_may_add_parts(recorded, layout):
    check_layout(layout, layout_text(recorded), "file.pth", start=True)
    with pytest.raises(CheckpointError, match="prefusion"):
        check_layout(layout, layout_text(recorded), "file.pth")


def test_a_file_that_does_not_say_is_accepted_with_one_warning(logged):
    check_layout(LAYOUT, None, "old.pth")
    ((text, _, level),) = logged
    assert text.startswith("old.pth does not say")
    assert "\n" not in text
    assert level == logging.WARNING


@pytest.mark.parametrize("damaged", ["{", "7", '["a"]', 7])
def test_what_is_no_layout_is_refused(damaged):
    with pytest.raises(CheckpointError, match=r"file\.pth is damaged"):
        check_layout(LAYOUT, damaged, "file.pth")
