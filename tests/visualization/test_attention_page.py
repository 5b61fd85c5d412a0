"""Pages of attention: what is in them, and what a pointer does."""

from __future__ import annotations

import base64
import json
import re

import numpy as np
import pytest
from browser import browser, needs_browser

from flmm_detseg.visualization.attention_page import attention_page

IMAGE = np.full((60, 90, 3), 128, np.uint8)
TEXT = 'a "red" ring & <b>stars</b>'


def page(shape: tuple[int, int] = (4, 6)) -> tuple[str, np.ndarray]:
    """Three words over two layers; word k looks at column k alone."""
    maps = np.full((3, 2, *shape), 0.01)
    for piece in range(3):
        maps[piece, :, :, piece] += 0.5
    maps[2, 1] = np.flipud(np.arange(shape[0] * shape[1]).reshape(shape)) / 100
    spans = [[(2, 7)], [(8, 12)], [(18, 23)]]
    return attention_page(IMAGE, TEXT, spans, maps, [3, 7], title="<what> ?", notes=["a & b"]), maps


def content(text: str) -> dict:
    found = re.search(r'id="maps">(.*?)</script>', text, re.DOTALL)
    assert found is not None
    return json.loads(found[1].replace("<\\/", "</"))


def decoded(data: dict, name: str) -> np.ndarray:
    rows, cols = data["size"]
    values = [np.frombuffer(base64.b64decode(text), np.uint8) for text in data[name]]
    return np.stack(values).reshape(len(values), -1, rows, cols)


def test_maps_of_a_page_are_the_attention_each_scaled_to_its_own_range():
    text, maps = page()
    data = content(text)
    assert data["layers"] == [3, 7]
    for ours, expected in (
        (decoded(data, "absolute")[:, 1:], maps),
        (decoded(data, "absolute")[:, 0], maps.mean(1)),
        (decoded(data, "relative")[:, 1:], maps / maps.mean(0)),
    ):
        low = expected.min(axis=(-2, -1), keepdims=True)
        scaled = (expected - low) / (expected.max(axis=(-2, -1), keepdims=True) - low) * 255
        assert np.abs(ours - scaled).max() <= 0.51


def test_texts_are_texts_and_nothing_comes_from_elsewhere():
    text, _ = page()
    assert "&lt;what&gt; ?" in text
    assert re.sub(r"<[^>]*>", "", text[text.index('<p id="text">') : text.index("</p><p><label>")]) == (
        "a &quot;red&quot; ring &amp; &lt;b&gt;stars&lt;/b&gt;"
    )
    assert re.findall(r'<button data-piece="(\d)">(.*?)</button>', text) == [
        ("0", "&quot;red&quot;"),
        ("1", "ring"),
        ("2", "stars"),
    ]
    assert not re.findall(r"https?://|src=\"(?!data:)", text)


def test_large_maps_are_made_smaller_by_area_and_one_word_has_no_others():
    large = np.zeros((1, 1, 64, 96))
    large[0, 0, :2, :3] = 1.0
    data = content(attention_page(IMAGE, "a", [[(0, 1)]], large, [0], title="t"))
    assert data["size"] == [21, 32]
    assert data["relative"] == data["absolute"]
    assert decoded(data, "absolute")[0, 0].argmax() == 0


@pytest.mark.long
@needs_browser
def test_pointing_at_a_word_changes_the_picture(tmp_path):
    text, _ = page()
    file = tmp_path / "page.html"
    file.write_text(text)
    with browser(tmp_path / "profile") as opened:
        opened.open(file.as_uri())
        plain = opened.picture("#stage")
        shown = []
        for piece in range(3):
            opened.point(f'[data-piece="{piece}"]')
            assert opened.value("document.body.dataset.shown") == str(piece)
            shown.append(opened.picture("#stage"))
        # Where the word looked is where the picture changed most.
        for piece in range(2):
            change = np.abs(shown[piece].astype(int) - plain).sum(axis=(0, 2))
            assert change.argmax() * 6 // len(change) == piece
        assert not np.array_equal(shown[0], shown[1])
        # The layer and the way of comparing are followed; a click keeps the word.
        opened.click('[data-piece="2"]')
        opened.point("h1")
        assert opened.value("document.body.dataset.shown") == "2"
        before = opened.picture("#stage")
        opened.value("slider.value = 2; slider.dispatchEvent(new Event('input')); 1")
        assert not np.array_equal(opened.picture("#stage"), before)
        layer = opened.picture("#stage")
        opened.click("#relative")
        assert not np.array_equal(opened.picture("#stage"), layer)
        assert opened.value("document.getElementById('which').textContent") == "layer 7"
        assert [address for address in opened.requests if not address.startswith(("file:", "data:"))] == []
        assert opened.errors == []
