from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from dataset_files import box_polygon, edit_refs, own_line, write_jsonl, write_png, write_refcoco
from PIL import Image

from flmm_detseg.datasets import ConcatMix, JSONLDataset, PNGDataset, RefCOCODataset
from flmm_detseg.datasets.checks import check_dataset, find_datasets
from flmm_detseg.engine.checks.data_check import check_data, datasets_of_config
from flmm_detseg.errors import ConfigError

ROOT = Path(__file__).parents[3]


def test_good_data_has_no_problem_and_a_picture(tmp_path):
    datasets = {
        "own": dict(type=JSONLDataset, file=str(write_jsonl(tmp_path, [own_line(), own_line()]))),
        "png": dict(type=PNGDataset, **write_png(tmp_path)),
    }
    figures, num_problems = check_data(datasets, str(tmp_path / "pictures" / "preview.png"), 3)
    assert num_problems == 0
    assert figures["data_sets"]["own"] == {
        "records": 2, "phrases": 2, "problems": 0, "problems_by_kind": {}, "dropped": {},
    }  # fmt: skip
    assert figures["data_sets"]["png"]["dropped"] == {"no grounded phrase": 1}
    with Image.open(figures["preview"]) as picture:
        assert picture.size == (3 * 380, 2 * 360)
        assert len(set(picture.convert("RGB").resize((60, 60)).getdata())) > 50


def test_every_problem_is_listed(tmp_path, capsys):
    """Cheap faults, faults that need decoding, and several of one image, all in one pass."""
    empty = own_line(phrases=[{"span": [0, 5], "mask": {"polygon": [box_polygon(200, 200, 220, 220)]}}])
    path = write_jsonl(tmp_path, [own_line(), "{", own_line(image="gone.png"), empty])
    figures, num_problems = check_data({"own": dict(type=JSONLDataset, file=str(path))})
    lines = capsys.readouterr().out.splitlines()
    assert num_problems == len(lines) == 3
    assert [line.split(":")[0] for line in lines] == ["broken JSON", "missing image", "empty mask"]
    for line, number in zip(lines, (2, 3, 4)):
        assert f"own.jsonl: line {number}: " in line
    assert figures["data_sets"]["own"]["problems_by_kind"] == {
        "broken JSON": 1, "missing image": 1, "empty mask": 1,
    }  # fmt: skip


def test_faults_of_one_image_are_listed_one_by_one(tmp_path):
    files = write_refcoco(tmp_path)

    def empty_both(refs, instances):
        for annotation in instances["annotations"][:2]:
            annotation["segmentation"] = [box_polygon(300, 300, 320, 320)]

    edit_refs(files, empty_both)
    check = check_dataset("refs", dict(type="RefCOCODataset", split="val", **files))
    assert [problem.record.split()[1] for problem in check.problems] == ["1000", "1001"]
    assert check.num_records == 4


def test_unreadable_file_is_a_problem_not_a_crash(tmp_path):
    files = write_png(tmp_path)
    Path(files["panoptic_json"]).write_text('{"images": [')
    check = check_dataset("png", dict(type=PNGDataset, **files))
    assert [problem.kind for problem in check.problems] == ["unusable data set"]
    assert "panoptic_val2017.json" in str(check.problems[0])


def test_data_sets_of_a_config(tmp_path):
    files, png = write_refcoco(tmp_path), write_png(tmp_path)
    config = tmp_path / "config.py"
    config.write_text(
        "from flmm_detseg.datasets import ConcatMix, PNGDataset, RefCOCODataset\n"
        f"refcoco = dict(type=RefCOCODataset, **{files!r})\n"
        f"val = dict(type=RefCOCODataset, split='val', **{files!r})\n"
        f"png = dict(type=PNGDataset, **{png!r})\n"
        "model = dict()\n"
        "train_dataloader = dict(dataset=dict(type=ConcatMix, datasets=[refcoco, png]))\n"
        "val_dataloader = dict(dataset=val)\n"
        "refcoco_eval = dict(val=val)\n"
        "test_dataloader = None\n"
    )
    found = datasets_of_config(str(config))
    members = [f"train_dataloader.dataset.datasets[{number}]" for number in range(2)]
    assert list(found) == [*members, "val_dataloader.dataset"]
    figures, _ = check_data({"val": found["val_dataloader.dataset"]})
    assert figures["data_sets"]["val"]["records"] == 6
    config.write_text("from flmm_detseg.datasets import ConcatMix\nmodel = dict()\n")
    with pytest.raises(ConfigError, match="it has no `.*_dataloader`"):
        datasets_of_config(str(config))


def test_nested_mixes():
    leaf = dict(type=RefCOCODataset)
    mix = dict(type=ConcatMix, datasets=[dict(type=ConcatMix, datasets=[leaf]), dict(type=PNGDataset)])
    names = [name for name, _ in find_datasets(dict(train_dataloader=dict(dataset=mix)))]
    assert names == [
        "train_dataloader.dataset.datasets[0].datasets[0]",
        "train_dataloader.dataset.datasets[1]",
    ]


@pytest.mark.e2e
def test_tool_tells_the_truth_by_its_status(tmp_path):
    path = write_jsonl(tmp_path, [own_line(), own_line(caption=3)])
    command = [sys.executable, str(ROOT / "tools" / "check_data.py"), "jsonl", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 2
    assert json.loads(done.stdout.splitlines()[-1])["problems"] == 1
    assert done.stderr.splitlines()[-1] == "DataError: 1 problems, listed above"
