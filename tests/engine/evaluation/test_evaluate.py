from __future__ import annotations

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from dataset_files import write_png, write_refcoco
from fake_evaluation import StandIn, run
from mmengine.config import Config
from tiny import tiny_llava

from flmm_detseg.datasets import PNGDataset, RefCOCODataset
from flmm_detseg.engine.evaluation.evaluate import build_datasets, evaluate, evaluate_model
from flmm_detseg.engine.evaluation.phrases import PNG, REFCOCO, PhraseOptions
from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.evaluation.results import RecordStore
from flmm_detseg.heads import PhraseGroundingHead, UNetHead
from flmm_detseg.models import GroundingLMM
from flmm_detseg.utils.provenance import file_hash

TESTS = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("refcoco")
    write_refcoco(root, num_images=8, num_test=2)
    return root


@pytest.fixture(scope="module")
def expected(folder, tmp_path_factory) -> dict:
    return run(folder, tmp_path_factory.mktemp("expected"), batch_size=1)["metrics"]


def launch(*arguments: str) -> subprocess.CompletedProcess:
    """Two processes, as ``accelerate launch`` and ``torchrun`` start them."""
    starter = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node=2"]
    starter += ["--rdzv_backend=c10d", "--rdzv_endpoint=localhost:0"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*starter, str(TESTS / "fake_evaluation.py"), *arguments]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=900, check=False)


@pytest.mark.parametrize("batch_size", [2, 5, 100])
def test_figures_do_not_depend_on_the_batch_size(folder, expected, tmp_path, batch_size):
    assert run(folder, tmp_path, batch_size=batch_size)["metrics"] == expected
    assert 0.2 < expected["refcoco_val"]["refined_cIoU"] < 0.95


@pytest.mark.parametrize(
    "options", [dict(batch_size=2), dict(batch_size=7), dict(batch_size=100), dict(limit=8)]
)
def test_model_calls_hold_one_image_whatever_the_options(folder, tmp_path, options):
    model = StandIn()
    run(folder, tmp_path, model, splits=("val",), **options)
    assert [len(batch) for batch in model.batches] == [6] * (2 if "limit" in options else 6)
    for number, batch in enumerate(model.batches):
        assert {record_id.split("-")[1][:3] for record_id in batch} == {f"60{number}"}


def test_images_with_many_expressions_are_divided(tmp_path):
    write_refcoco(tmp_path, num_images=2, num_sentences=20)
    model = StandIn()
    run(tmp_path, tmp_path / "work", model, splits=("val",))
    assert [len(batch) for batch in model.batches] == [16, 16, 8]


@pytest.mark.e2e
def test_two_processes_give_the_same_figures(folder, expected, tmp_path):
    done = launch(str(folder), str(tmp_path), "--batch-size=3")
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    assert len(lines) == 1
    last = json.loads(lines[0])
    assert last["metrics"] == expected
    assert last["num_processes"] == 2


def test_killed_run_resumes_with_the_same_figures(folder, expected, tmp_path):
    def work() -> None:
        torch.set_num_threads(1)
        run(folder, tmp_path, StandIn(kill_after=4), batch_size=3)

    process = multiprocessing.get_context("fork").Process(target=work)
    process.start()
    process.join(timeout=300)
    assert process.exitcode == -signal.SIGKILL
    (part,) = tmp_path.glob("refcoco_val-*/part-0.jsonl")
    assert len(part.read_text().splitlines()) == 24  # four images of six samples
    with part.open("a") as file:
        file.write('{"record_id": "refcoco/val/ref-60')  # a line cut off by the kill
    model = StandIn()
    again = run(folder, tmp_path, model, batch_size=3)
    assert again["num_resumed"] == 24
    assert again["metrics"] == expected
    seen = [record_id for batch in model.batches for record_id in batch]
    assert len(seen) == len(set(seen)) == 48 - 24


def test_a_finished_run_is_not_repeated_unless_asked(folder, tmp_path):
    first = run(folder, tmp_path)
    model = StandIn()
    second = run(folder, tmp_path, model)
    assert model.batches == []
    assert second["num_resumed"] == 48
    assert second["metrics"] == first["metrics"]
    assert run(folder, tmp_path, model, fresh=True)["num_resumed"] == 0
    assert len(model.batches) == 8


def test_records_of_another_model_or_protocol_are_not_used(folder, tmp_path):
    run(folder, tmp_path)
    assert run(folder, tmp_path, StandIn(weight=1.0001))["num_resumed"] == 0
    assert run(folder, tmp_path, sentences="first")["num_resumed"] == 0
    assert run(folder, tmp_path, phrases="shuffled")["num_resumed"] == 0
    assert run(folder, tmp_path)["num_resumed"] == 48


def test_limit_then_everything(folder, expected, tmp_path):
    limited = run(folder, tmp_path, limit=7)
    assert limited["metrics"]["refcoco_val"]["num_phrases"] == 7
    complete = run(folder, tmp_path)
    assert complete["metrics"] == expected
    assert complete["num_resumed"] == 12 + 12  # whole images


def test_wrong_phrases_do_worse(folder, expected, tmp_path):
    control = run(folder, tmp_path, phrases="shuffled")
    assert Path(control["results"]).name == "refcoco-shuffled.json"
    shuffled = control["metrics"]
    for name in expected:
        assert shuffled[name]["refined_cIoU"] < expected[name]["refined_cIoU"] - 0.1


def test_results_file_says_where_the_numbers_come_from(folder, tmp_path):
    figures = run(folder, tmp_path, splits=("testA",), threshold_sweep=True, out=str(tmp_path / "r.json"))
    content = json.loads((tmp_path / "r.json").read_text())
    assert content["metrics"] == figures["metrics"]
    assert list(content["metrics"]) == ["refcoco_testA"]
    assert "coarse_best_threshold_cIoU" in content["metrics"]["refcoco_testA"]
    report = content["data_sets"]["refcoco_testA"]
    assert report["protocol"] == {"sentences": "all", "layout": "split", "phrases": "own"}
    assert report["empty_targets"] == "skip"
    assert report["data_sha256"][str(folder / "refs(unc).p")] == file_hash(folder / "refs(unc).p")
    assert report["num_samples"] == 12
    records = [json.loads(line) for line in Path(report["records_file"]).read_text().splitlines()]
    assert sorted(r["record_id"] for r in records) == [r["record_id"] for r in records]
    assert records[0]["facts"][0]["text"].startswith("object")
    assert {"torch", "transformers", "flmm_detseg"} <= content["versions"].keys()
    assert content["options"]["threshold_sweep"] is True
    assert len(content["weights_sha256"]) == len(content["source_sha256"]) == 64


def test_png_figures_by_category(tmp_path):
    config = Config({"png_eval": {"png_val": dict(type=PNGDataset, **write_png(tmp_path))}})
    options = PhraseOptions(config="fake.py", work_dir=str(tmp_path / "work"))
    datasets = build_datasets(config, options, PNG)
    metrics = evaluate_model(StandIn(), datasets, options, PNG, {})["metrics"]["png_val"]
    assert metrics["num_phrases"] == 9
    groups = ("all", "thing", "stuff", "singular", "plural")
    assert all(0 < metrics[f"refined_average_recall_{group}"] < 1 for group in groups)


@pytest.mark.parametrize(
    ("options", "match"),
    [
        (dict(splits=("test",)), "no data set or split 'test'; it has refcoco_val, refcoco_testA"),
        (dict(phrases="none"), "`phrases` is 'none'; allowed: own, shuffled"),
        (dict(batch_size=0), "`batch_size` is 0"),
        (dict(limit=-1), "`limit` is -1"),
        (dict(sentences="random"), "data set 'refcoco_val': evaluation needs sentences 'first' or 'all'"),
    ],
)
def test_wrong_options(folder, tmp_path, options, match):
    with pytest.raises(ConfigError, match=match):
        run(folder, tmp_path, **options)


def test_configs_without_the_data_sets_or_the_protocol(tmp_path):
    options = PhraseOptions(config="fake.py", sentences="all")
    with pytest.raises(ConfigError, match="fake.py: it has no `refcoco_eval`"):
        build_datasets(Config({"model": 1}), options, REFCOCO)
    config = Config({"refcoco_eval": {"own": dict(type="PNGDataset", **write_png(tmp_path))}})
    with pytest.raises(ConfigError, match=r"data set 'own' \(PNGDataset\) has no `sentences`"):
        build_datasets(config, options, REFCOCO)
    files = write_refcoco(tmp_path)
    config = Config({"refcoco_eval": {"val": dict(type=RefCOCODataset, split="val", **files)}})
    with pytest.raises(ConfigError, match="data set 'val': evaluation needs sentences 'first' or 'all'"):
        build_datasets(config, PhraseOptions(config="fake.py"), REFCOCO)


def test_record_store_unites_parts_of_several_processes(tmp_path):
    stores = [RecordStore(tmp_path, rank) for rank in range(2)]
    stores[0].merge()
    stores[1].append([("b", [{"record_id": "b", "phrase": 0}])])
    stores[0].append([("a", [{"record_id": "a", "phrase": 0}])])
    assert set(stores[0].merge()) == {"a", "b"}
    assert stores[1].done() == {"a", "b"}
    assert [file.name for file in tmp_path.iterdir()] == ["records.jsonl"]
    stores[0].clear()
    assert stores[0].done() == set()


def test_a_line_that_is_no_record_is_done_again(tmp_path):
    store = RecordStore(tmp_path, 0)
    store.merge()
    store.append([("a", [{"record_id": "a"}]), ("caf\udce9", [])])  # a file name of the disk that is no UTF-8
    with (tmp_path / "records.jsonl").open("a") as file:
        for line in (
            "5",
            "null",
            "[]",
            '{"record_id": "b"}',
            '{"record_id": 7, "facts": []}',
            '{"record_id": "c", "facts": 5}',
        ):
            file.write(line + "\n")
        file.write('{"record_id": "d", "facts": [5]}\n' + "[" * 5000 + '\n{"record_id": "e", "fa')
    assert store.merge() == {"a": [{"record_id": "a"}], "caf\udce9": []}
    assert store.done() == {"a", "caf\udce9"}
    assert len((tmp_path / "records.jsonl").read_text().splitlines()) == 2


def test_real_model_gives_equal_records_for_any_batch_size(folder, tmp_path):
    torch.manual_seed(0)
    adapter = tiny_llava()
    head = PhraseGroundingHead(
        UNetHead(in_channels=adapter.attention_channels, base_channels=4, upsample_input=16),
        None,
        num_layers=adapter.num_layers,
        hidden_size=adapter.hidden_size,
    )
    model = GroundingLMM(adapter, {"phrase": head}).eval()
    results = [
        run(folder, tmp_path / str(size), model, splits=("val",), sentences="first", batch_size=size)
        for size in (1, 100)
    ]
    assert results[0]["metrics"] == results[1]["metrics"]
    assert results[0]["metrics"]["refcoco_val"]["num_phrases"] == 12
    files = [next((tmp_path / size).glob("refcoco_val-*/records.jsonl")) for size in ("1", "100")]
    assert files[0].read_text() == files[1].read_text()
    assert files[0].parent.name == files[1].parent.name


def test_untrained_heads_only_when_asked_for(folder, tmp_path):
    files = {"refs_file": "refs(unc).p", "instances_file": "instances.json", "image_dir": "images"}
    arguments = {key: str(folder / value) for key, value in files.items()}
    config = tmp_path / "config.py"
    config.write_text(
        "from flmm_detseg.datasets import RefCOCODataset\n"
        "model = dict()\n"
        f"refcoco_eval = dict(val=dict(type=RefCOCODataset, split='val', sentences='first', **{arguments!r}))\n"
    )
    with pytest.raises(CheckpointError, match="no checkpoint for .*config.py"):
        evaluate(PhraseOptions(config=str(config), work_dir=str(tmp_path)), REFCOCO)
    missing = PhraseOptions(config=str(config), checkpoint=str(tmp_path / "gone.pth"), work_dir=str(tmp_path))
    with pytest.raises(CheckpointError, match="gone.pth does not exist"):
        evaluate(missing, REFCOCO)


def test_overrides_reach_the_model_and_records_depend_on_the_files_it_names(folder, tmp_path, monkeypatch):
    files = {"refs_file": "refs(unc).p", "instances_file": "instances.json", "image_dir": "images"}
    arguments = {key: str(folder / value) for key, value in files.items()}
    config, weights, seen = tmp_path / "config.py", tmp_path / "detector.pth", []
    config.write_text(
        "from flmm_detseg.datasets import RefCOCODataset\n"
        "model = dict(source=dict(checkpoint=None))\n"
        f"refcoco_eval = dict(val=dict(type=RefCOCODataset, split='val', sentences='first', **{arguments!r}))\n"
    )

    def build(read, *_, **__) -> StandIn:
        seen.append(read.model.source.checkpoint)
        return StandIn()

    monkeypatch.setattr("flmm_detseg.engine.evaluation.evaluate.model_from_config", build)
    options = PhraseOptions(
        config=str(config), work_dir=str(tmp_path), cfg_options=(f"model.source.checkpoint={weights}",)
    )
    resumed = []
    for content in (b"one", b"one", b"other"):
        weights.write_bytes(content)
        resumed.append(evaluate(options, REFCOCO)["num_resumed"])
    assert seen == [str(weights)] * 3
    # Of six samples.
    assert resumed == [0, 6, 0]
    every = PhraseOptions(
        config=str(config), work_dir=str(tmp_path), cfg_options=("refcoco_eval.val.sentences=all",)
    )
    first, found = (evaluate(item, REFCOCO)["metrics"]["val"]["num_phrases"] for item in (options, every))
    assert found > first
    wrong = PhraseOptions(config=str(config), work_dir=str(tmp_path), cfg_options=("png_eval.val.x=1",))
    with pytest.raises(ConfigError, match="png_eval"):
        evaluate(wrong, REFCOCO)
