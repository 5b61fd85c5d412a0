"""A conversation line by line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from chat_parts import speaking_grounder
from PIL import Image
from pycocotools.coco import COCO

from flmm_detseg import Grounder
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.inference import Chat, Outliner
from flmm_detseg.inference.terminal_chat import TerminalChat, read_places

IMAGE = np.random.default_rng(0).integers(0, 256, (50, 70, 3), dtype=np.uint8)
QUESTION = "is the star red ?"


@pytest.fixture(scope="module")
def grounder() -> Grounder:
    return speaking_grounder()


@pytest.fixture
def image(tmp_path: Path) -> Path:
    file = tmp_path / "photos" / "scene.png"
    file.parent.mkdir()
    Image.fromarray(IMAGE).save(file)
    return file


class Talk:
    """A conversation in a folder, with what it printed."""

    def __init__(self, grounder: Grounder, image: Path, out: Path, **given: object) -> None:
        self.printed: list[str] = []
        self.chat = TerminalChat(grounder, image, out, say=self.printed.append, max_new_tokens=12, **given)

    def __call__(self, *lines: str, echo: bool = False) -> dict:
        return json.loads(json.dumps(self.chat.talk(lines, echo=echo)))

    @property
    def text(self) -> str:
        return "\n".join(self.printed)


def test_every_turn_is_answered_with_a_picture(grounder, image, tmp_path) -> None:
    talk = Talk(grounder, image, tmp_path / "out")
    figures = talk(QUESTION + "\n", "\n", "in the image, segment the red star")
    alone = Chat(grounder, IMAGE, max_new_tokens=12)
    turns = [alone.say(QUESTION), alone.say("in the image, segment the red star")]
    for turn in turns:
        assert turn.text in talk.printed
    assert "  not understood: in the image" in talk.printed
    phrase = turns[1].phrases[0]
    assert f"  1 the red star  mask {phrase.score:.2f}  box " in talk.text
    files = [tmp_path / "out" / f"scene_00{number}.png" for number in (1, 2)]
    assert figures == {
        "turns": 2,
        "phrases": sum(len(turn.phrases) for turn in turns),
        "files": [str(file) for file in files],
    }
    for turn, file in zip(turns, files, strict=True):
        np.testing.assert_array_equal(np.asarray(Image.open(file)), turn.overlay())
    assert sorted((tmp_path / "out").iterdir()) == files, "nothing unfinished is left"


def test_an_error_is_a_sentence_and_the_conversation_goes_on(grounder, image, tmp_path) -> None:
    talk = Talk(grounder, image, tmp_path / "out")
    wrong = {
        ":foo": "':foo' is no command",
        ":image": ":image needs an image file",
        ":image gone.png": ":image: gone.png does not exist",
        f":image {tmp_path}": "is a folder",
        ":outline": "needs a place",
        ":outline 500,1": "lies outside of the image",
        ":save": "nothing to save",
        "find": "names nothing",
        "what is <image> ?": "control word",
        "a \udcff": "half a character",
    }
    figures = talk(*wrong, QUESTION, ":quit", "never asked")
    printed = talk.printed[1:]
    for sentence, part in zip(printed, wrong.values(), strict=False):
        assert part in sentence
        assert not sentence.startswith(("DataError", "FieldError"))
    assert figures["turns"] == 1
    assert Chat(grounder, IMAGE, max_new_tokens=12).say(QUESTION).text in printed


def test_a_fault_of_the_program_is_not_hidden(grounder, image, tmp_path, monkeypatch) -> None:
    def broken(*_: object) -> None:
        raise AssertionError("ours")

    monkeypatch.setattr(Chat, "say", broken)
    with pytest.raises(AssertionError, match="ours"):
        Talk(grounder, image, tmp_path / "out")(QUESTION)

    def stopped(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Chat, "say", stopped)
    with pytest.raises(KeyboardInterrupt):
        Talk(grounder, image, tmp_path / "out")(QUESTION)


def test_outlines(grounder, image, tmp_path) -> None:
    talk = Talk(grounder, image, tmp_path / "out")
    figures = talk(":outline 20,30 !60,5", ":outline 5,5,40,40", QUESTION)
    assert figures["turns"] == 3
    found = Outliner(grounder, IMAGE).outline(points=[(20, 30), (60, 5)], labels=[True, False])
    assert f"  1 20,30 !60,5  SAM's estimate {found.score:.2f}  box " in talk.text
    # Outlines are no turns that the LMM reads.
    assert Chat(grounder, IMAGE, max_new_tokens=12).say(QUESTION).text in talk.printed


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1,2", ([(1, 2)], [True], None)),
        ("1.5,2 !3,4", ([(1.5, 2), (3, 4)], [True, False], None)),
        (" 1,2,3,4 ", ([], [], (1, 2, 3, 4))),
        ("9,9 1,2,3,4", ([(9, 9)], [True], (1, 2, 3, 4))),
    ],
)
def test_places(text, expected) -> None:
    assert read_places(text) == expected


@pytest.mark.parametrize("text", ["", "1", "1,2,3", "a,b", "1,2,3,4 1,2,3,4", "!1,2,3,4", "1, 2"])
def test_what_is_no_place(text) -> None:
    with pytest.raises(DataError, match="x,y"):
        read_places(text)


def test_saved_files_and_a_folder_that_is_used_again(grounder, image, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    other = tmp_path / "photos" / "other.png"
    Image.fromarray(IMAGE[:, ::-1]).save(other)
    talk = Talk(grounder, image, out)
    figures = talk("segment the red star", ":outline 20,30", f":image {other}", QUESTION, ":save", ":save")
    names = [Path(file).name for file in figures["files"]]
    assert names == ["scene_001.png", "scene_002.png", "other_003.png", "masks_001.json", "turns_001.json"]
    coco = COCO(str(out / "masks_001.json"))
    assert [entry["file_name"] for entry in coco.loadImgs(coco.getImgIds())] == ["scene.png", "other.png"]
    star = Chat(grounder, IMAGE).say("segment the red star").phrases[0]
    first = coco.loadAnns(coco.getAnnIds())[0]
    np.testing.assert_array_equal(coco.annToMask(first).astype(bool), star.mask)
    said = json.loads((out / "turns_001.json").read_text())
    assert [turn["request"] for turn in said] == ["segment the red star", ":outline 20,30", QUESTION]
    assert said[0]["phrases"][0]["score_of"] == "mask"
    before = {file.name: file.read_bytes() for file in out.iterdir()}
    again = Talk(grounder, image, out)(QUESTION, ":save")
    assert [Path(file).name for file in again["files"]] == [
        "scene_004.png",
        "masks_004.json",
        "turns_004.json",
    ]
    assert all((out / name).read_bytes() == content for name, content in before.items())


def test_pictures_are_not_written_among_photos(grounder, image) -> None:
    with pytest.raises(ConfigError, match="holds images that are read"):
        TerminalChat(grounder, image, image.parent)


def test_echo_is_for_pipes(grounder, image, tmp_path) -> None:
    talk = Talk(grounder, image, tmp_path / "out")
    talk(":help", echo=True)
    assert talk.printed[1] == "> :help"
    assert ":outline" in talk.printed[2]
