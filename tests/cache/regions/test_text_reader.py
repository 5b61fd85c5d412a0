"""RapidOCR itself, on a drawn picture: where the words are and what they say."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from flmm_detseg.cache import TextRegions
from flmm_detseg.cache.regions.text_reader import TextReader
from flmm_detseg.datasets.tinyworld.streams import make_stream
from flmm_detseg.structures import Sample

pytestmark = pytest.mark.long
# Text, its lower left corner, height of the capital letters in pixels, colour.
WORDS = (
    ("Invoice 2041", (40, 60), 22, (20, 20, 20)),
    ("Total", (40, 130), 16, (160, 20, 20)),
    ("12.50 EUR", (330, 130), 16, (20, 20, 160)),
)


def picture() -> tuple[np.ndarray, list[tuple[int, int, int, int]]]:
    """White, with words and a disc; RGB uint8 [200, 520, 3], and the words' boxes (xyxy)."""
    image = np.full((200, 520, 3), 255, np.uint8)
    cv2.circle(image, (460, 50), 25, (40, 160, 60), -1)
    boxes = []
    for text, corner, height, colour in WORDS:
        before = image.copy()
        scale = cv2.getFontScaleFromHeight(cv2.FONT_HERSHEY_SIMPLEX, height, 2)
        cv2.putText(image, text, corner, cv2.FONT_HERSHEY_SIMPLEX, scale, colour, 2, cv2.LINE_AA)
        ys, xs = np.nonzero((image != before).any(-1))
        boxes.append((int(xs.min()), int(ys.min()), int(xs.max()) + 1, int(ys.max()) + 1))
    return image, boxes


def iou(one, other) -> float:
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0) * max(height, 0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared)


@pytest.fixture(scope="module")
def reader() -> TextReader:
    pytest.importorskip("rapidocr", reason="requirements/ocr.txt is not installed")
    return TextReader(num_threads=1)


def test_words_are_read_where_they_are(reader):
    image, boxes = picture()
    (lines,) = reader.find([image])
    assert [line.text for line in lines] == [text for text, *_ in WORDS]
    for line, box in zip(lines, boxes, strict=True):
        x0, y0, x1, y1 = line.box_xyxy
        assert max(x0 - box[0], y0 - box[1], box[2] - x1, box[3] - y1) <= 2  # the whole word
        assert iou(line.box_xyxy, box) > 0.5
        assert line.score > 0.9


def test_words_are_found_at_other_scales_and_without_reading(reader):
    image, boxes = picture()
    for scale in (1.0, 2.0):
        found = TextRegions(scale=scale).find(Sample("a", image, "", ()))
        assert len(found.boxes_xyxy) <= 4  # the disc may be taken for a letter where nothing is read
        assert all(max(iou(one, box) for one in found.boxes_xyxy.tolist()) > 0.5 for box in boxes)


def test_lines_depend_on_their_image_alone(reader):
    image, _ = picture()
    other = np.ascontiguousarray(image[::-1])
    alone, together = reader.find([image])[0], reader.find([other, image, image[:150]])[1]
    again = TextReader(num_threads=2).find([image])[0]
    for lines in (together, again):
        assert [(line.text, line.score, line.box_xyxy) for line in lines] == [
            (line.text, line.score, line.box_xyxy) for line in alone
        ]


@pytest.mark.parametrize("size", [(1, 1), (8, 300), (2000, 5)])
def test_images_of_odd_sizes_have_no_text(reader, size):
    assert reader.find([np.full((*size, 3), 200, np.uint8)]) == [[]]


def test_the_clock_and_the_score_of_tinyworld_s_screens_are_found_at_twice_the_size():
    pytest.importorskip("rapidocr", reason="requirements/ocr.txt is not installed")
    source = TextRegions(scale=2.0)
    items = [item for index in range(3) for item in make_stream("screen", 3, index, 4)]
    for item in items:
        found = source.find(Sample("a", item.image, "", ())).boxes_xyxy.tolist()
        clock, _, score = item.objects_xyxy
        for x0, y0, x1, y1 in (clock, score):
            assert any(a <= x0 and b <= y0 and c >= x1 and d >= y1 for a, b, c, d in found)
