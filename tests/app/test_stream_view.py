"""A user's stream, with the tiny cached LLaVA."""

from __future__ import annotations

import shutil

import numpy as np
import pytest
from app_parts import SCENE, tiny_grounder
from PIL import Image

from flmm_detseg.app.frames import drawn_screen
from flmm_detseg.app.limits import Limits
from flmm_detseg.app.service import About, Service
from flmm_detseg.app.stream_view import object_pixels
from flmm_detseg.cache.regions.partition import box_tiles, partition_tiles
from flmm_detseg.errors import DataError
from flmm_detseg.inference.streaming import stream_from_config
from flmm_detseg.structures import GridLevel, PatchGrid

QUESTION = "what time is it ?"


@pytest.fixture(scope="module")
def app():
    def stream():
        return stream_from_config("configs/cache/tiny_stream_screens.py", untrained=True, device="cpu")[0]

    made = Service(tiny_grounder(), stream, drawn_screen(4), Limits(new_tokens=3, frames=4), About("tiny"))
    yield made
    made.close()


def test_a_background_that_stays_is_used_again_and_each_user_has_a_cache_of_its_own(app):
    levels, frame = [], "screen 1"
    for _ in range(4):
        user, request = app.ask_stream("a", frame, QUESTION)
        levels.append(request.level)
        frame = user.stream.after(frame)
    assert frame == "screen 1"
    assert levels[0] == "miss"
    assert levels[-1] == "L2"
    assert 0 < request.first_token_ms <= request.total_ms
    assert 0 < request.background < request.patches
    other, request = app.ask_stream("b", "screen 4", QUESTION)
    assert request.level == "miss"
    assert app.file(other.token, "stream/1.png")[1] == "image/png"
    assert app.file(other.token, "stream/2.png") is None
    shown = user.stream.html(f"flmm/{user.token}")
    assert shown.count("<tr") == 5
    assert "keys and values of the background came from the cache" in shown


def test_own_frames_are_checked_and_gone_and_replace_the_list(app):
    paths = []
    for index in range(2):
        paths.append(app.uploads.folder / f"frame{index}.png")
        shutil.copy(SCENE, paths[-1])
    stream = app.send_frames("c", [str(path) for path in paths])
    assert stream.names == ["yours: 1. frame0.png", "yours: 2. frame1.png"]
    assert list(app.uploads.folder.iterdir()) == []
    assert app.ask_stream("c", stream.names[1], QUESTION)[1].frame == "frame1.png"
    bad = app.uploads.folder / "bad.png"
    bad.write_bytes(b"no picture")
    last = app.uploads.folder / "last.png"
    Image.new("RGB", (8, 8)).save(last)
    with pytest.raises(DataError, match="cannot be decoded"):
        app.send_frames("c", [str(bad), str(last)])
    assert list(app.uploads.folder.iterdir()) == []
    for paths, words in (
        ([], "no frame came"),
        ("x", "no frame came"),
        (["/etc/passwd"], "choose a picture"),
    ):
        with pytest.raises(DataError, match=words):
            app.send_frames("c", paths)


def test_a_frame_that_is_not_in_the_list_is_refused(app):
    for name in ("../../etc/passwd", "screen 99", None, 3, ["screen 1"]):
        with pytest.raises(DataError, match="there is no frame"):
            app.ask_stream("d", name, QUESTION)


@pytest.mark.parametrize("box", [(0, 0, 20, 20), (40, 10, 79, 100), (0, 100, 80, 112)])
def test_object_pixels_are_those_of_the_patches_that_a_box_touches(box):
    # 112 x 80 pixels, padded on the left and right to a square, 14 x 14 patches of 8 pixels.
    grid = PatchGrid((112, 80), (112, 80), 0, 16, (112, 112), (GridLevel(14, 14),))
    pixels = object_pixels(partition_tiles(grid, box_tiles(grid, np.array([box]))), grid)
    x0, y0, x1, y1 = box
    wanted = np.zeros((112, 80), dtype=bool)
    wanted[y0 // 8 * 8 : -(-y1 // 8) * 8, x0 // 8 * 8 : -(-x1 // 8) * 8] = True
    np.testing.assert_array_equal(pixels, wanted)
