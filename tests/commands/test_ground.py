"""`flmm-detseg ground`: what it refuses before a model is loaded, and the files it writes."""

from __future__ import annotations

import json
import runpy
import sys
from argparse import ArgumentParser
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools.coco import COCO

from flmm_detseg import Grounder, GroundingResult
from flmm_detseg.commands import ground as command
from flmm_detseg.datasets import COCOInstancesDataset
from flmm_detseg.errors import ConfigError, DataError, RunError
from flmm_detseg.inference.export.coco import CocoFile
from flmm_detseg.structures import PackedMasks

ROOT = Path(__file__).resolve().parents[2]
SIZE = (20, 30)


def _result(*phrases: str, empty: int | None = None) -> GroundingResult:
    masks = np.zeros((len(phrases), *SIZE), dtype=bool)
    boxes = np.zeros((len(phrases), 4), dtype=np.float32)
    for index in range(len(phrases)):
        if index != empty:
            masks[index, 2 : 6 + index, 3:9] = True
            boxes[index] = (3, 2, 9, 6 + index)
    return GroundingResult(
        image=np.zeros((*SIZE, 3), np.uint8),
        caption=" and ".join(phrases),
        phrases=phrases,
        spans=tuple(((0, len(phrase)),) for phrase in phrases),
        packed=PackedMasks.pack(torch.from_numpy(masks)),
        boxes_xyxy=boxes,
        scores=np.linspace(0.9, 0.5, len(phrases), dtype=np.float32),
        coarse_logits=np.zeros((len(phrases), 4, 4), np.float32),
    )


def _arguments(*words: str):
    parser = ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([*words])


@pytest.fixture
def no_model(monkeypatch):
    def load(*_: object, **__: object) -> None:
        pytest.fail("the model was loaded first")

    monkeypatch.setattr(Grounder, "from_config", load)
    monkeypatch.setattr("flmm_detseg.models.model_from_config", load)


@pytest.mark.parametrize("kind", ["missing", "folder", "broken"])
def test_an_image_that_cannot_be_read_is_reported_before_the_model_is_loaded(
    kind, no_model, tmp_path, monkeypatch
):
    file = tmp_path / "image.png"
    if kind == "folder":
        file.mkdir()
    elif kind == "broken":
        file.write_bytes(b"no picture")
    monkeypatch.chdir(tmp_path)
    Path("config.py").touch()
    words = ["config.py", "--image", str(file), "--caption", "a", "--phrase", "a", "--out", "o.png"]
    with pytest.raises(DataError, match=r"image\.png"):
        command.run(_arguments(*words))
    monkeypatch.setattr(
        sys, "argv", ["infer", "config.py", "--image", str(file), "--instruction", "find stars"]
    )
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "tools" / "infer.py"), run_name="__main__")
    assert ended.value.code == 2


def test_the_remedy_for_a_missing_image_is_about_its_path(no_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    words = ["config.py", "--image", "my.png", "--caption", "a", "--phrase", "a", "--out", "o.png"]
    with pytest.raises(DataError) as caught:
        command.run(_arguments(*words))
    message = str(caught.value)
    assert message.startswith("--image: my.png does not exist")
    assert str(tmp_path) in message
    assert "config" not in message


def test_an_animation_of_another_kind_is_refused_before_the_model_is_loaded(no_model, tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "i.png")
    words = ["--image", str(tmp_path / "i.png"), "--caption", "a", "--phrase", "a", "--out", "o.png"]
    with pytest.raises(DataError, match=r"a\.mp4: no moving picture"):
        command.run(_arguments(*words, "--animation", "a.mp4"))


def test_checkpoint_without_config(no_model):
    with pytest.raises(DataError, match="need the config"):
        command.run(
            _arguments("--checkpoint", "a.pth", "--image", "i.png", "--question", "what ?", "--out", "o.png")
        )


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--ranking", "r.json"], "--ranking goes with --lmm"),
        (["c.py", "--heads", "3", "--dtype", "float16"], "--heads, --dtype goes with --lmm"),
        (["--lmm", "a/b", "c.py"], "CONFIG is of a trained model"),
        (["--lmm", "a/b", "--checkpoint", "c.pth", "--untrained"], "--checkpoint, --untrained is of a trained model"),
    ],
)  # fmt: skip
def test_a_trained_model_or_an_lmm_as_it_is(words, message, no_model):
    with pytest.raises(DataError, match=message):
        command.run(_arguments(*words, "--image", "i.png", "--question", "what ?", "--out", "o.png"))


def test_an_lmm_without_a_config(tmp_path, capsys):
    """The shipped tiny LLaVA; its folder has a ranking."""
    models = ROOT / "data" / "models"
    lmm = ["--lmm", str(models / "tiny_llava"), "--device", "cpu"]
    scene = ["--image", str(models / "tiny_heads" / "scene.png")]
    asked = ["--caption", "a white ring is left of the orange ring .", "--phrase", "a white ring"]
    out = ["--out", str(tmp_path / "o.png")]
    figures = command.run(_arguments(*lmm, *scene, *asked, *out))
    assert figures["phrases"][0]["phrase"] == "a white ring"
    assert Image.open(tmp_path / "o.png").size
    more = ["--refiner", str(models / "tiny_sam"), "--heads", "1", "--dtype", "float32"]
    refined = command.run(_arguments(*lmm, *scene, *asked, *out, *more))
    assert refined["phrases"][0]["bbox"] != figures["phrases"][0]["bbox"]
    ranking = ["--ranking", str(tmp_path / "o.png")]
    with pytest.raises(ConfigError, match="is an input"):
        command.run(_arguments(*lmm, *scene, *asked, *out, *ranking))


def _ground(monkeypatch, tmp_path: Path, result: GroundingResult, *words: str) -> dict:
    class Fake:
        def ground(self, *_: object, **__: object) -> GroundingResult:
            return result

        ask = ground

    monkeypatch.setattr(Grounder, "from_config", classmethod(lambda cls, *_, **__: Fake()))
    Image.fromarray(result.image).save(tmp_path / "image.png")
    config = tmp_path / "config.py"
    config.touch()
    words = [str(config), "--image", str(tmp_path / "image.png"), "--out", str(tmp_path / "o.png"), *words]
    return command.run(_arguments(*words))


def test_coco_is_a_file_that_coco_tools_load(monkeypatch, tmp_path, capsys):
    result = _result("a star", "a ring", "a star", "a moon", empty=3)
    file = tmp_path / "new" / "masks.json"
    words = ["--caption", "a", "--phrase", "a", "--coco", str(file)]
    figures = _ground(monkeypatch, tmp_path, result, *words)
    assert len(figures["phrases"]) == 4
    content = json.loads(file.read_text(), parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    coco = COCO(str(file))
    capsys.readouterr()
    (image,) = coco.loadImgs(coco.getImgIds())
    assert (image["file_name"], image["height"], image["width"]) == ("image.png", *SIZE)
    assert {c["id"]: c["name"] for c in content["categories"]} == {1: "a star", 2: "a ring", 3: "a moon"}
    found = coco.loadAnns(coco.getAnnIds())
    assert [entry["category_id"] for entry in found] == [1, 2, 1]
    assert [entry["id"] for entry in found] == [1, 2, 3]
    for entry, mask, score in zip(found, result.masks, result.scores, strict=False):
        np.testing.assert_array_equal(coco.annToMask(entry).astype(bool), mask)
        assert entry["score"] == pytest.approx(score)
    dataset = COCOInstancesDataset(str(file), str(tmp_path), with_masks=True)
    assert dataset.classes == ("a star", "a ring", "a moon")
    assert dataset.report()["objects_by_class"] == {"a star": 2, "a ring": 1, "a moon": 0}


def test_an_image_that_comes_again_keeps_its_id():
    coco = CocoFile()
    coco.add(_result("a star"), "a/1.png")
    coco.add(_result("a ring"), "b/1.png")
    coco.add(_result("a star", "a moon"), "a/1.png")
    content = coco.content()
    assert [image["file_name"] for image in content["images"]] == ["a/1.png", "b/1.png"]
    assert [(a["id"], a["image_id"], a["category_id"]) for a in content["annotations"]] == [
        (1, 1, 1),
        (2, 2, 2),
        (3, 1, 1),
        (4, 1, 3),
    ]


def test_scores_that_are_no_numbers_write_no_file(monkeypatch, tmp_path):
    result = replace(_result("a star"), scores=np.array([np.nan], np.float32))
    file = tmp_path / "masks.json"
    with pytest.raises(RunError):
        _ground(monkeypatch, tmp_path, result, "--caption", "a", "--phrase", "a", "--coco", str(file))
    assert not file.exists()


def test_an_answer_without_phrases_says_so(monkeypatch, tmp_path, capsys):
    figures = _ground(monkeypatch, tmp_path, replace(_result(), caption="left"), "--question", "where ?")
    assert figures["phrases"] == []
    assert "no phrase to ground in the answer 'left'" in capsys.readouterr().err


def test_beside_shows_the_image_as_it_is(monkeypatch, tmp_path):
    words = ["--caption", "a", "--phrase", "a"]
    _ground(monkeypatch, tmp_path, _result("a star"), *words)
    alone = Image.open(tmp_path / "o.png").size
    _ground(monkeypatch, tmp_path, _result("a star"), *words, "--beside")
    both = Image.open(tmp_path / "o.png")
    assert both.width > alone[0]
    assert np.asarray(both)[:200, :400].max() == 0  # the black image, no mask on it


def test_several_images_and_formats_go_to_a_folder(monkeypatch, tmp_path, capsys):
    result = _result("a star", "a ring")
    words = ["--caption", "a", "--phrase", "a", "--format", "coco", "yolo"]
    Image.fromarray(result.image).save(tmp_path / "other.png")
    more = ["--image", str(tmp_path / "image.png"), str(tmp_path / "other.png")]
    with pytest.raises(DataError, match="name a folder"):
        _ground(monkeypatch, tmp_path, result, *words, *more)
    with pytest.raises(ConfigError, match="holds images that are read"):
        _ground(monkeypatch, tmp_path, result, *words, *more, "--out", str(tmp_path))
    out = tmp_path / "out"
    figures = _ground(
        monkeypatch, tmp_path, result, *words, *more, "--out", str(out), "--coco", str(out / "c.json")
    )
    assert [Path(entry["overlay"]).name for entry in figures["results"]] == ["image.png", "other.png"]
    assert all(Path(entry["overlay"]).is_file() for entry in figures["results"])
    assert figures["exports"]["yolo"]["objects"] == 4
    content = json.loads((out / "coco" / "annotations.json").read_text())
    assert content == json.loads((out / "c.json").read_text())
    assert len(content["images"]) == 2
    one = _ground(monkeypatch, tmp_path, result, *words, "--out", str(tmp_path / "one"))
    assert one["overlay"] == str(tmp_path / "one" / "image.png")
    assert one["exports"]["coco"]["images"] == 1
