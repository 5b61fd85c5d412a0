"""What the app does with the repository's tiny model, without its page."""

from __future__ import annotations

import io
import json
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from app_parts import SCENE, service, tiny_grounder
from PIL import Image
from pycocotools import mask as rle

from flmm_detseg.app.board import board
from flmm_detseg.app.limits import Limits
from flmm_detseg.app.server import reply_of
from flmm_detseg.app.uploads import Picture
from flmm_detseg.app.user import User
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.inference.chat import Chat
from flmm_detseg.inference.outline import Outliner

REQUEST = "segment the white ring and the orange ring"


@pytest.fixture(scope="module")
def app():
    made = service()
    yield made
    made.close()


def send(app, session: str, file=SCENE):
    target = app.uploads.folder / f"{session}.png"
    shutil.copy(file, target)
    return app.open(session, str(target))


def test_a_turn_is_that_of_the_chat_and_its_layers_are_its_masks(app):
    user = send(app, "a")
    assert list(app.uploads.folder.iterdir()) == []
    _, entry = app.say("a", REQUEST)
    wanted = Chat(tiny_grounder(), SCENE, keep_attention=True).say(REQUEST)
    assert entry.turn.text == wanted.text
    assert len(entry.turn.phrases) == 2
    for found, other in zip(entry.turn.phrases, wanted.phrases, strict=True):
        assert found.label == other.label
        np.testing.assert_array_equal(found.mask, other.mask)
        assert found.attention is None
        assert other.attention is not None
    content, kind, name = app.file(user.token, f"{entry.key}/0/mask.png")
    alpha = np.asarray(Image.open(io.BytesIO(content)).convert("RGBA"))[..., 3]
    inside = wanted.phrases[0].mask
    shown = alpha[2::4, 2::4] > 0
    assert (kind, name) == ("image/png", "")
    assert (shown & inside).sum() / inside.sum() > 0.99
    assert (shown & ~inside).sum() / (~inside).sum() < 0.03
    assert app.file(user.token, f"{entry.key}/1/attention.png") is not None


def test_a_new_picture_begins_a_new_conversation(app):
    user = send(app, "again")
    app.say("again", "what is in the image ?")
    assert send(app, "again") is user
    assert user.entries == []
    app.say("again", "what is in the image ?")
    assert len(user._chat.turns) == 1


def test_downloads_are_the_overlay_and_a_coco_file_of_the_users_own_picture(app):
    user = send(app, "b")
    _, entry = app.say("b", REQUEST)
    content, kind, name = app.file(user.token, f"{entry.key}/coco.json")
    coco = json.loads(content)
    assert (kind, name) == ("application/json", f"coco_{entry.key}.json")
    assert coco["images"][0]["file_name"] == "b.png"
    decoded = rle.decode(coco["annotations"][0]["segmentation"]).astype(bool)
    np.testing.assert_array_equal(decoded, entry.turn.phrases[0].mask)
    content, kind, name = app.file(user.token, f"{entry.key}/overlay.png")
    np.testing.assert_array_equal(np.asarray(Image.open(io.BytesIO(content))), entry.turn.overlay())


def test_a_download_that_cannot_be_made_is_a_sentence(app):
    user = send(app, "nan")
    _, entry = app.say("nan", REQUEST)
    path = f"{entry.key}/coco.json"
    good = reply_of(app, user.token, path, 0.0)
    assert (good.status, good.kind) == (200, "application/json")
    assert good.headers["Content-Disposition"] == f'attachment; filename="coco_{entry.key}.json"'
    first, *others = entry.turn.phrases
    entry.turn = replace(entry.turn, phrases=(replace(first, score=float("nan")), *others))
    bad = reply_of(app, user.token, path, 0.0)
    assert (bad.status, bad.headers) == (422, {"Cache-Control": "no-store"})
    assert bad.content.decode().startswith("'the white ring': score nan or box [")
    for threshold in (float("nan"), -1.0):
        assert b"threshold" in reply_of(app, user.token, path, threshold).content
    assert reply_of(app, "unknown", path, 0.0).status == 404


def test_the_tab_of_the_stream_says_what_is_to_be_known_of_its_frames(app):
    assert app.stream_text.endswith("is used again.")
    app.frames.note = "3 are left out."
    assert app.stream_text.endswith("is used again. 3 are left out.")
    app.frames.note = ""


def test_masks_of_a_reduced_picture_are_downloaded_at_the_files_size(app):
    pixels = np.asarray(Image.open(SCENE).convert("RGB"))
    user = app.users.get("reduced")
    user.open(Picture("large.png", pixels, (336, 336)))
    _, entry = app.say("reduced", REQUEST)
    coco = json.loads(app.file(user.token, f"{entry.key}/coco.json")[0])
    assert (coco["images"][0]["height"], coco["images"][0]["width"]) == (336, 336)
    found = rle.decode(coco["annotations"][0]["segmentation"]).astype(bool)
    wanted = entry.turn.phrases[0].mask.repeat(3, 0).repeat(3, 1)
    assert found.shape == (336, 336)
    assert (found & wanted).sum() / (found | wanted).sum() > 0.95
    left, top, width, height = coco["annotations"][0]["bbox"]
    rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
    assert (left, top) == (columns[0], rows[0])
    assert (left + width, top + height) == (columns[-1] + 1, rows[-1] + 1)


def test_later_turns_know_the_earlier_ones_and_no_others(app):
    send(app, "c")
    app.say("c", "what is at the bottom ?")
    _, entry = app.say("c", "what is above the orange ring ?")
    chat = Chat(tiny_grounder(), SCENE)
    chat.say("what is at the bottom ?")
    assert entry.turn.text == chat.say("what is above the orange ring ?").text
    send(app, "c")
    assert app.users.get("c").entries == []
    _, entry = app.say("c", "what is above the orange ring ?")
    assert entry.turn.text == Chat(tiny_grounder(), SCENE).say("what is above the orange ring ?").text


def test_pointing_outlines_what_the_outliner_outlines_and_further_marks_replace_it(app):
    send(app, "d")
    _, entry = app.outline("d", {"box": [2, 26, 42, 66]})
    wanted = Outliner(tiny_grounder(), SCENE).outline(box=(2, 26, 42, 66))
    np.testing.assert_array_equal(entry.turn.phrases[0].mask, wanted.mask)
    assert entry.turn.phrases[0].score == wanted.score
    _, other = app.outline("d", {"box": [2, 26, 42, 66], "points": [[22, 46, 0]], "again": True})
    user = app.users.get("d")
    assert [one.key for one in user.entries] == [other.key]
    app.outline("d", {"strokes": [[[20, 30], [30, 33]]]})
    assert len(user.entries) == 2


def test_nobody_sees_the_pictures_of_another(app):
    first, second = send(app, "e"), send(app, "f")
    assert first.token != second.token
    assert app.file(first.token, first.picture_key) is not None
    for token in ("", "x", "e", first.token[:-1]):
        assert app.file(token, first.picture_key) is None
    for path in ("", "..", "picture99", "t1/0/mask.png", "../../etc/passwd", "stream/1.png", "t1/9/mask.png"):
        assert app.file(second.token, path) is None
    app.users.forget("e")
    assert app.file(first.token, first.picture_key) is None


def test_what_cannot_be_done_is_a_sentence(app):
    with pytest.raises(DataError, match="choose one first"):
        app.say("new", "what is it ?")
    with pytest.raises(DataError, match="choose one first"):
        app.outline("new", {"box": [0, 0, 5, 5]})
    send(app, "g")
    for text, words in (("  ", "no question"), (None, "no question"), ("a" * 3000, "at most 2000")):
        with pytest.raises(DataError, match=words):
            app.say("g", text)
    for threshold in ("high", 2, float("nan"), None):
        with pytest.raises(DataError, match="threshold"):
            app.say("g", "what is it ?", threshold)
    with pytest.raises(ConfigError, match="without a stream"):
        app.ask_stream("g", "screen 1", "what time is it ?")
    with pytest.raises(DataError, match="no session"):
        app.say(None, "what is it ?")


def test_requests_are_on_the_model_one_after_the_other(app, monkeypatch):
    at_once, most, lock = 0, 0, threading.Lock()

    def slow(user, *_):
        nonlocal at_once, most
        with lock:
            at_once += 1
            most = max(most, at_once)
        time.sleep(0.05)
        with lock:
            at_once -= 1

    monkeypatch.setattr(User, "say", slow)
    monkeypatch.setattr(User, "outline", slow)
    before = app.requests
    with ThreadPoolExecutor(6) as pool:
        for number in range(6):
            if number % 2:
                pool.submit(app.say, f"thread {number}", "what ?")
            else:
                pool.submit(app.outline, f"thread {number}", {})
    assert (most, app.requests - before) == (1, 6)


def test_what_was_sent_is_gone_when_the_app_ends():
    app = service()
    file = app.uploads.folder / "waits.png"
    file.write_bytes(b"1")
    app.close()
    assert not app.uploads.folder.exists()


def test_a_conversation_is_bounded():
    app = service(Limits(turns=2, phrases=1, new_tokens=4))
    try:
        send(app, "a")
        for _ in range(3):
            user, entry = app.say("a", REQUEST)
        assert len(user.entries) == 2
        assert (len(entry.turn.phrases), entry.left_out) == (1, 1)
        assert "1 further regions are left out" in board(user)
        assert user._chat is not None
        assert len(user._chat.turns) == 2, "what later questions are asked with"
        assert app.file(user.token, "t2/0/mask.png") is None
    finally:
        app.close()


def test_the_board_escapes_what_users_and_models_write(app):
    user = send(app, "h")
    app.say("h", 'segment the <script>alert("x")</script> ring')
    shown = board(user)
    assert "<script" not in shown
    assert "&lt;script&gt;" in shown
    user.picture = Picture('"><img src=x onerror=alert(1)>.png', user.picture.pixels, user.picture.size)
    assert "<img src=x" not in board(user)


def test_words_and_buttons_name_the_same_phrases_and_say_what_a_score_is(app):
    user = send(app, "i")
    _, entry = app.say("i", REQUEST)
    shown = board(user)
    words = re.findall(r'data-keys="([^"]+)"[^>]*>([^<]+)<', shown)
    assert words == [(f"{entry.key}p0", "the white ring"), (f"{entry.key}p1", "the orange ring")]
    assert re.findall(r'data-key="([^"]+)"', shown) == [f"{entry.key}p0", f"{entry.key}p1"]
    assert "not whether the thing is in the picture" in shown
    for address in re.findall(r'(?:src|href|data-(?:mask|outline|attention))="([^"]+)"', shown):
        _, token, path = address.split("/", 2)
        assert app.file(token, path) is not None, address


def test_a_photo_has_a_warning_and_a_picture_of_the_models_own_world_has_none(app):
    assert "flmm-warning" not in board(send(app, "j"))
    user = app.users.get("j")
    rows, columns = np.mgrid[:200, :300]
    photo = np.stack([rows, columns // 2, (rows + columns) // 3], axis=2).astype(np.uint8)
    photo = photo + np.random.default_rng(0).integers(0, 40, photo.shape, dtype=np.uint8)
    user.open(Picture("photo.png", photo, (200, 300)))
    assert "far from all that the model knows" in board(user)
    send(app, "j")
    assert "flmm-warning" not in board(user)
