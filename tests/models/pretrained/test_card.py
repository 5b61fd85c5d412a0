"""Cards: the header is what a hub reads, and scores have their number of samples and interval."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard

from flmm_detseg import Grounder
from flmm_detseg.errors import DataError
from flmm_detseg.evaluation.bootstrap import bootstrap_interval
from flmm_detseg.evaluation.results import weights_hash
from flmm_detseg.evaluation.stored_figures import read_figures
from flmm_detseg.utils.configs import TINY_CONFIG


@pytest.fixture(scope="module")
def grounder() -> Grounder:
    torch.manual_seed(5)
    return Grounder.from_config(TINY_CONFIG, device="cpu", untrained=True)


@pytest.fixture
def results(grounder, tmp_path):
    """A results file as an evaluation writes it, with its records."""
    areas = [(10, 10, 20), (5, 10, 5), (0, 4, 4), (7, 9, 8)]
    facts = [
        {"record_id": str(i), "target_area": target, "refined": {"intersection": both, "area": area}}
        for i, (both, target, area) in enumerate(areas)
    ]
    ious = [both / (target + area - both) for both, target, area in areas]
    folder = tmp_path / "refcoco_val-1"
    folder.mkdir()
    (folder / "records.jsonl").write_text(
        "".join(json.dumps({"record_id": f["record_id"], "facts": [f]}) + "\n" for f in facts)
    )
    content = {
        "task": "refcoco",
        "metrics": {
            "refcoco_val": {
                "num_phrases": 4,
                "refined_gIoU": float(np.mean(ious)),
                "refined_cIoU": 0.5,
                "refined_P@0.5": 0.75,
            }
        },
        "data_sets": {"refcoco_val": {"num_samples": 4, "records_file": str(folder / "records.jsonl")}},
        "weights_sha256": weights_hash(grounder.model),
    }
    file = tmp_path / "refcoco.json"
    file.write_text(json.dumps(content))
    return file, ious


def test_a_hub_reads_the_header(grounder, results, tmp_path):
    file, ious = results
    grounder.save_pretrained(
        tmp_path / "model", base="owner/tiny-llava", licence="apache-2.0", command="train it", results=[file]
    )
    card = ModelCard.load(tmp_path / "model" / "README.md")
    header = card.data.to_dict()
    assert header["license"] == "apache-2.0"
    assert header["library_name"] == "flmm_detseg"
    assert header["base_model"] == "owner/tiny-llava"
    stored = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert stored == {
        "num_phrases": 4,
        "refined_gIoU": np.mean(ious),
        "refined_cIoU": 0.5,
        "refined_P@0.5": 0.75,
    }
    share = bootstrap_interval(np.array([1.0, 1.0, 0.0, 1.0]))
    low, high = bootstrap_interval(np.array(ious))
    assert f"| refcoco_val | 4 | refined_gIoU | {np.mean(ious):.6g} | {low:.4f} to {high:.4f} |" in card.text
    assert "| refined_cIoU | 0.5 | - |" in card.text
    assert f"| refined_P@0.5 | 0.75 | {share[0]:.4f} to {share[1]:.4f} |" in card.text
    assert "with these very weights" in card.text
    assert "train it" in card.text
    assert 'Grounder.from_pretrained("model")' in card.text
    assert "RefCOCODataset: " in card.text


def test_without_results_and_licence_the_card_says_so(grounder, tmp_path):
    grounder.save_pretrained(tmp_path / "model")
    card = ModelCard.load(tmp_path / "model" / "README.md")
    assert card.data.license == "other"
    assert card.data.base_model is None  # a folder is no name on the hub
    assert "No evaluation results" in card.text
    assert "not stated" in card.text
    assert "does not say which pictures it knows" in card.text


def test_figures_of_other_weights_are_called_so(grounder, results, tmp_path):
    file, _ = results
    content = json.loads(file.read_text())
    file.write_text(json.dumps(content | {"weights_sha256": "0" * 64}))
    grounder.save_pretrained(tmp_path / "model", results=[file])
    assert "other weights" in (tmp_path / "model" / "README.md").read_text()


def test_intervals_need_the_records_and_a_mean_over_them(results):
    file, _ = results
    content = json.loads(file.read_text())
    content["metrics"]["refcoco_val"]["refined_gIoU"] = 0.9  # of something else than these records
    file.write_text(json.dumps(content))
    assert [figure.interval for figure in read_figures(file)][:3] == [None, None, None]


def test_other_files_are_refused(tmp_path):
    (tmp_path / "other.json").write_text("[]")
    with pytest.raises(DataError, match="no results file"):
        read_figures(tmp_path / "other.json")
    with pytest.raises(DataError, match="no such results file"):
        read_figures(tmp_path / "gone.json")
