"""Pictures that go through the phrases: a frame each, of its own attention and mask, in every format."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from flmm_detseg.errors import DataError
from flmm_detseg.visualization.animation import draw_frames, save_animation
from flmm_detseg.visualization.canvas import phrase_colour

IMAGE = np.full((60, 80, 3), 128, dtype=np.uint8)
CAPTION, SPANS = "a ring and a star", [[(0, 6)], [(11, 17)]]


def _frames() -> list[np.ndarray]:
    masks = np.zeros((2, 60, 80), dtype=bool)
    heat = np.zeros((2, 60, 80), dtype=np.float32)
    for index, left in enumerate((0, 40)):
        masks[index, 10:50, left + 5 : left + 35] = True
        heat[index, 10:50, left + 5 : left + 35] = 1 + index
    return draw_frames(IMAGE, CAPTION, SPANS, masks, heat)


def test_a_frame_shows_its_own_phrase_alone():
    frames = _frames()
    assert {frame.shape for frame in frames} == {frames[0].shape}
    for index, frame in enumerate(frames):
        shown = [(frame == phrase_colour(other)).all(axis=2).any() for other in range(2)]
        assert shown == [other == index for other in range(2)]
    # The attention is on the left: bright where the phrase's own heat is.
    height, width = 240, 320
    for index, frame in enumerate(frames):
        heated = frame[22 : 22 + height, :width].astype(float).sum(axis=2)
        left, right = heated[:, : width // 2].mean(), heated[:, width // 2 :].mean()
        assert (left > right) == (index == 0)


@pytest.mark.parametrize("name", ["a.gif", "b.webp", "c.png"])
def test_every_format_has_all_frames_and_the_same_bytes_again(name, tmp_path):
    frames = _frames()
    path = save_animation(frames, tmp_path / "new" / name)
    with Image.open(path) as picture:
        assert picture.n_frames == len(frames)
        picture.seek(1)
        if name.endswith("png"):
            np.testing.assert_array_equal(np.asarray(picture.convert("RGB")), frames[1])
    assert path.read_bytes() == save_animation(frames, tmp_path / name).read_bytes()


def test_no_frame_and_other_endings_are_named(tmp_path):
    with pytest.raises(DataError, match="no moving picture has this ending"):
        save_animation(_frames(), tmp_path / "a.jpg")
    with pytest.raises(DataError, match="nothing to go through"):
        save_animation([], tmp_path / "a.gif")
