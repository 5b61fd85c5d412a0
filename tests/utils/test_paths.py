"""Relative paths of configs and commands work from any folder."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from PIL import Image

from flmm_detseg.datasets import COCOInstancesDataset, QuestionDataset
from flmm_detseg.datasets.files import require_dir, require_file
from flmm_detseg.errors import CheckpointError, ConfigError, DataError
from flmm_detseg.experiments.plan import read_plan
from flmm_detseg.models.checkpoint import read_checkpoint
from flmm_detseg.models.from_config import model_from_config, read_config
from flmm_detseg.refiners import build_sam
from flmm_detseg.utils.outputs import refuse_folder_of_inputs, refuse_overwrite
from flmm_detseg.utils.paths import REPOSITORY, find, places
from flmm_detseg.utils.provenance import file_hash, named_paths

TINY = "configs/tiny/frozen_tiny_llava_refcoco_png.py"


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_current_folder_before_repository(elsewhere):
    assert find("data/models/tiny_sam") == REPOSITORY / "data" / "models" / "tiny_sam"
    (elsewhere / "data" / "models" / "tiny_sam").mkdir(parents=True)
    assert find("data/models/tiny_sam") == Path("data/models/tiny_sam")
    assert find("data/models/none") == Path("data/models/none")
    assert find(elsewhere) == elsewhere


def test_a_wheel_has_no_repository(elsewhere, monkeypatch):
    (elsewhere / "site-packages" / "data").mkdir(parents=True)
    monkeypatch.setattr("flmm_detseg.utils.paths.REPOSITORY", elsewhere / "site-packages")
    assert find("data") == Path("data")
    assert places("data") == f"looked from {elsewhere}"


def test_the_shipped_models_build_from_another_folder(elsewhere):
    model_from_config(TINY, untrained=True, device="cpu")
    build_sam(checkpoint="data/models/tiny_sam")
    assert REPOSITORY / "data" / "models" / "tiny_llava" in named_paths(read_config(TINY).model.to_dict())


@pytest.mark.parametrize("plan", ["configs/tiny/detseg_stages.py", "configs/cache/tiny_ladder_stages.py"])
def test_plans_from_another_folder(elsewhere, plan):
    assert read_plan(plan).stages


@pytest.mark.parametrize("folder", ["tiny_llava", "tiny_llava_reason", "tiny_llava_streams"])
def test_every_config_finds_its_model(elsewhere, folder):
    users = [
        file for file in (REPOSITORY / "configs").rglob("*.py") if f"data/models/{folder}" in file.read_text()
    ]
    assert users
    assert (find(f"data/models/{folder}") / "config.json").is_file()


def test_data_sets_of_the_repository(elsewhere, monkeypatch):
    other = elsewhere / "checkout"
    (other / "data" / "world").mkdir(parents=True)
    (other / "configs").mkdir()
    shutil.copy(REPOSITORY / "pyproject.toml", other)
    Image.new("RGB", (8, 6)).save(other / "data" / "world" / "a.png")
    line = {"question_id": 1, "image": "a.png", "text": "what ?", "answer": "a star"}
    (other / "data" / "world.jsonl").write_text(json.dumps(line) + "\n")
    monkeypatch.setattr("flmm_detseg.utils.paths.REPOSITORY", other)
    dataset = QuestionDataset(file="data/world.jsonl", image_dir="data/world")
    assert dataset[0].image.shape == (6, 8, 3)
    # What evaluations hash, and what no tool writes over.
    content = {
        "images": [{"id": 1, "file_name": "a.png", "height": 6, "width": 8}],
        "annotations": [],
        "categories": [{"id": 1, "name": "star"}],
    }
    (other / "data" / "coco.json").write_text(json.dumps(content))
    coco = COCOInstancesDataset(ann_file="data/coco.json", image_dir="data/world")
    assert coco.annotation_files == (other / "data" / "coco.json",)
    assert file_hash("data/coco.json") == file_hash(other / "data" / "coco.json")
    with pytest.raises(ConfigError, match="is an input"):
        refuse_overwrite(other / "data" / "coco.json", ["data/coco.json"])
    with pytest.raises(ConfigError, match="holds images that are read"):
        refuse_folder_of_inputs(other / "data" / "world", ["data/world/a.png"])


@pytest.mark.parametrize(
    ("read", "kind"),
    [
        (lambda: read_config("configs/none.py"), ConfigError),
        (lambda: read_plan("configs/none.py"), ConfigError),
        (lambda: read_checkpoint("work_dirs/none.pth"), CheckpointError),
        (lambda: build_sam("tiny", "data/models/none.pth"), CheckpointError),
        (lambda: require_file("data/none.json", "annotation file"), DataError),
        (lambda: require_dir("data/none", "image folder"), DataError),
    ],
)
def test_errors_name_both_places(elsewhere, read, kind):
    with pytest.raises(kind) as caught:
        read()
    assert str(elsewhere) in str(caught.value)
    assert str(REPOSITORY) in str(caught.value)


def test_model_folder_error_names_both_places(elsewhere):
    config = read_config(TINY)
    config.model.lmm.pretrained = "data/models/none"
    with pytest.raises(ConfigError, match="no such folder") as caught:
        model_from_config(config, untrained=True)
    assert str(elsewhere) in str(caught.value)
    assert str(REPOSITORY) in str(caught.value)
