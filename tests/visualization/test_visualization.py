"""Pictures: what is drawn where, not how pretty it is."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from flmm_detseg.errors import DataError
from flmm_detseg.structures import GridLevel, PatchGrid
from flmm_detseg.visualization import (
    Report,
    canvas,
    draw_attention_heads,
    draw_comparison,
    draw_grounding,
    draw_loss_curves,
    rank_heads,
    read_scalars,
)
from flmm_detseg.visualization.attention import _score_table
from flmm_detseg.visualization.canvas import outline, phrase_colour, resize_mask
from flmm_detseg.visualization.overlay import find_spans

GREY = np.full((60, 80, 3), 128, dtype=np.uint8)


def _masks(*boxes: tuple[int, int, int, int]) -> np.ndarray:
    masks = np.zeros((len(boxes), 60, 80), dtype=bool)
    for mask, (left, top, right, bottom) in zip(masks, boxes):
        mask[top:bottom, left:right] = True
    return masks


def test_overlay_paints_masks_in_their_colours_and_nothing_else():
    masks = _masks((5, 5, 25, 25), (40, 30, 70, 55))
    picture = draw_grounding(GREY, masks, ["a ring", "a star"], alpha=1.0, min_side=80)
    assert tuple(picture[8, 8]) == phrase_colour(0)
    assert tuple(picture[52, 66]) == phrase_colour(1)
    assert tuple(picture[2, 78]) == (128, 128, 128)


def test_a_contour_leaves_the_colours_of_the_object():
    masks = _masks((5, 5, 45, 45))
    picture = draw_grounding(GREY, masks, ["a ring"], style="contour", min_side=80)[:60]
    assert tuple(picture[10, 40]) == (128, 128, 128)
    assert tuple(picture[20, 5]) == phrase_colour(0)
    inside = picture[8:42, 8:42].reshape(-1, 3)
    assert (inside == 128).all(axis=1).mean() > 0.7  # the number's chip covers a part
    with pytest.raises(ValueError, match="'fill'; there are tint, contour"):
        draw_grounding(GREY, masks, ["a ring"], style="fill")


def test_overlay_enlarges_small_images_and_adds_a_legend():
    plain = draw_grounding(GREY, _masks((5, 5, 25, 25)), ["a ring"], min_side=320)
    assert plain.shape[1] == 320
    assert plain.shape[0] > 240
    text = "a ring " * 40
    long = draw_grounding(GREY, _masks((5, 5, 25, 25)), ["a ring"], caption=text, min_side=320)
    assert long.shape[0] > plain.shape[0] + 100, "a long caption wraps into more lines"
    assert draw_grounding(GREY, _masks((5, 5, 25, 25)), ["a ring"], min_side=10, max_side=40).shape[1] == 40


def test_small_mask_stays_visible_on_a_large_one():
    masks = _masks((30, 20, 45, 35), (0, 0, 80, 60))
    picture = draw_grounding(GREY, masks, ["a star", "sky"], alpha=1.0, min_side=80)
    assert tuple(picture[22, 32]) == phrase_colour(0)


def test_overlay_takes_no_phrase_empty_masks_and_many_phrases():
    nothing = draw_grounding(GREY, np.zeros((0, 60, 80), bool), [], caption="a picture of nothing")
    assert nothing.dtype == np.uint8
    draw_grounding(GREY, np.zeros((1, 60, 80), bool), ["absent"], scores=[0.0], boxes_xyxy=np.zeros((1, 4)))
    assert len({phrase_colour(index) for index in range(40)}) == 40


@pytest.mark.parametrize("masks", [np.zeros((2, 60, 80), bool), np.zeros((1, 80, 60), bool)])
def test_overlay_refuses_masks_that_do_not_fit(masks):
    with pytest.raises(ValueError, match="do not fit 1 phrases"):
        draw_grounding(GREY, masks, ["a ring"])


def test_overlay_refuses_float_images():
    with pytest.raises(ValueError, match="float64"):
        draw_grounding(GREY / 255, _masks((5, 5, 25, 25)), ["a ring"])


def test_repeated_phrases_are_found_one_after_the_other():
    assert find_spans("a ring and a ring", ["a ring", "a ring", "a star"]) == [[(0, 6)], [(11, 17)], []]


def test_masks_are_resized_without_a_shift():
    mask = np.zeros((10, 10), bool)
    mask[2:5, 3:8] = True
    large = resize_mask(mask, (40, 40))
    rows, columns = np.flatnonzero(large.any(1)), np.flatnonzero(large.any(0))
    assert abs(rows.mean() - (3.5 * 4 - 0.5)) < 0.6
    assert abs(columns.mean() - (5.5 * 4 - 0.5)) < 0.6
    assert (outline(mask, 1).sum(), outline(np.ones((4, 4), bool), 1).sum()) == (12, 12)


def _stack_with_one_good_head(mask: np.ndarray, good: int) -> np.ndarray:
    rng = np.random.default_rng(0)
    stack = rng.random((6, 6, 8)).astype(np.float32) / 48
    stack[good] = np.asarray(Image.fromarray(mask.astype(np.float32)).resize((8, 6), Image.Resampling.BOX))
    return stack


def test_heads_are_ranked_by_iou_and_by_concentration():
    mask = _masks((20, 10, 50, 40))[0]
    stack = _stack_with_one_good_head(mask, good=4)
    scores = rank_heads(stack, mask)
    assert scores.argmax() == 4
    assert scores[4] == 1.0
    stack[2] = 0
    stack[2, 3, 3] = 0.5
    concentration = rank_heads(stack)
    assert concentration.argmax() == 2
    assert concentration[2] == pytest.approx(1.0)
    assert rank_heads(np.ones((1, 6, 8)))[0] == pytest.approx(0.0)


def test_head_iou_is_the_best_over_all_thresholds():
    rng = np.random.default_rng(1)
    stack, target = rng.random((3, 6, 8)), rng.random((6, 8)) > 0.7
    mask = target.repeat(10, 0).repeat(10, 1)
    expected = [
        max(
            (target & (values >= level)).sum() / (target | (values >= level)).sum()
            for level in np.unique(values)
        )
        for values in stack
    ]
    np.testing.assert_allclose(rank_heads(stack, mask), expected)


def test_a_mask_smaller_than_a_cell_and_an_empty_one_can_be_ranked():
    stack = np.random.default_rng(0).random((6, 6, 8))
    assert rank_heads(stack, _masks((3, 3, 5, 5))[0]).max() > 0
    assert rank_heads(stack, np.zeros((60, 80), bool)).max() == 0


def test_attention_picture_cuts_the_padding_away():
    """An 80 x 60 image in an 80 x 80 frame: the padded rows must not count as image."""
    grid = PatchGrid((60, 80), (60, 80), 10, 0, (80, 80), (GridLevel(8, 8),))
    stack = np.zeros((2, 8, 8), dtype=np.float32)
    stack[0, 0] = 1.0  # looks at the padding only
    stack[1, 3, 3] = 1.0
    mask = _masks((30, 20, 40, 30))[0]
    picture = draw_attention_heads(GREY, stack, [(0, 0), (0, 1)], mask, grid=grid, phrase="a ring", top=2)
    assert picture.dtype == np.uint8
    cropped = stack[(slice(None), *grid.crop_window((8, 8)))]
    assert cropped.shape == (2, 6, 8)
    assert rank_heads(cropped, mask).tolist() == [pytest.approx(1 / 48), 1.0]


def test_attention_picture_names_subsets_and_levels(monkeypatch):
    stack = np.random.default_rng(0).random((8, 6, 8)).astype(np.float32)
    titles = []
    with_title = canvas.with_title
    monkeypatch.setattr(
        canvas,
        "with_title",
        lambda picture, title, **size: [titles.append(title), with_title(picture, title, **size)][1],
    )
    pairs = [(2, 3), (5, 0), (5, 3), (7, 1)]  # no product of layers and heads
    picture = draw_attention_heads(GREY, stack, pairs, top=8)
    assert picture.shape[2] == 3
    scores = rank_heads(stack)
    names = [f"{level}: layer {layer} head {head}" for level in ("coarse", "fine") for layer, head in pairs]
    wanted = [f"{names[channel]}  concentration {scores[channel]:.2f}" for channel in np.argsort(-scores)]
    assert titles[1:-1] == wanted
    with pytest.raises(ValueError, match="the maps of 3 heads"):
        draw_attention_heads(GREY, stack, pairs[:3])


def test_the_table_of_scores_leaves_heads_that_are_not_in_the_stack_blank():
    """Two rows (layers 2 and 5), two columns (heads 0 and 3), and no layer 2 head 0."""
    side = 26
    table = _score_table(np.array([0.2, 0.9, 0.5]), [(2, 3), (5, 0), (5, 3)], "IoU")
    cells = table[40 + side // 2 :: side, 64 + side // 2 : 64 + 2 * side : side][:2]
    colours = canvas.heat(np.array([[0.2, 0.9, 0.5]]), high=0.9)[0]
    np.testing.assert_array_equal(cells, [[np.asarray(canvas.PAPER), colours[0]], [colours[1], colours[2]]])


def test_comparison_has_a_column_per_kind_and_a_row_per_phrase():
    masks = _masks((5, 5, 25, 25), (40, 30, 70, 55))
    coarse = np.where(masks[:, ::2, ::2], 4.0, -4.0)
    refined = np.where(masks, 4.0, -4.0)
    full = draw_comparison(GREY, ["a ring", "a star"], coarse, refined, masks, cell=100)
    assert full.shape[1] == 4 * 100 + 3 * 8
    assert draw_comparison(GREY, ["a ring", "a star"], coarse, cell=100).shape[1] == 208
    assert draw_comparison(GREY, ["a ring"], coarse[:1], cell=100).shape[0] < full.shape[0] / 1.9
    with pytest.raises(ValueError, match="2 phrases"):
        draw_comparison(GREY, ["a ring", "a star"], coarse[:1])


def _log(work_dir, start: str, records: list[dict], tail: str = "") -> None:
    folder = work_dir / start / "vis_data"
    folder.mkdir(parents=True)
    lines = [json.dumps(record) for record in records]
    (folder / "scalars.json").write_text("\n".join(lines) + "\n" + tail)


def test_curves_of_a_resumed_run_are_joined(tmp_path):
    _log(tmp_path, "20260101_000000", [{"loss": 3.0, "lr": 0.1, "step": 1}, {"loss": 2.5, "step": 2}], '{"lo')
    _log(tmp_path, "20260101_000500", [{"loss": 2.0, "step": 2}, {"loss": 1.0, "step": 3, "mode": "train"}])
    scalars = read_scalars(tmp_path)
    assert scalars["loss"] == ([1, 2, 3], [3.0, 2.0, 1.0])
    assert "mode" not in scalars
    picture = draw_loss_curves({"run": tmp_path})
    assert picture.dtype == np.uint8
    assert picture.shape[2] == 3
    assert (picture < 200).any(), "something is drawn"


def test_curves_say_what_is_missing_or_broken(tmp_path):
    with pytest.raises(DataError, match="has the training run"):
        read_scalars(tmp_path)
    tail = "{broken\n" + json.dumps({"loss": 2, "step": 2})
    _log(tmp_path, "20260101_000000", [{"loss": 3.0, "step": 1}], tail)
    with pytest.raises(DataError, match=r"scalars.json, line 2"):
        read_scalars(tmp_path)


def test_report_is_self_contained_and_escapes_text(tmp_path):
    report = Report("A <run>", "subtitle")
    report.section("Numbers & more", "first\n\nsecond <b>")
    report.table(["run", "cIoU", "holds"], [["trained", 0.81234, True], ["control", None, False]], "note")
    report.pictures({"one": GREY, "two": GREY})
    report.picture(GREY, "wide")
    report.code("a < b", "config")
    page = report.write(tmp_path / "deep" / "report.html").read_text()
    assert page.count("data:image/png;base64,") == 3
    assert "http" not in page
    assert "<script" not in page
    for expected in (
        "A &lt;run&gt;",
        "second &lt;b&gt;",
        "a &lt; b",
        "0.812",
        "<td>-</td>",
        "FAIL",
        'href="#s0"',
    ):
        assert expected in page
    assert [path.name for path in (tmp_path / "deep").iterdir()] == ["report.html"]
