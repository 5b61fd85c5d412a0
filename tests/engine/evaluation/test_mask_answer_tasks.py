"""Evaluation of answers with masks: a stand-in for the model answers from what is in the picture alone."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from dataset_files import write_refcoco
from fake_predictions import make_prediction
from mmengine.config import Config
from seg_parts import make_model, reasoning_sample, speak
from torch import nn

from flmm_detseg.commands.evaluate import refcoco
from flmm_detseg.datasets import RefCOCODataset
from flmm_detseg.engine.evaluation import evaluate
from flmm_detseg.engine.evaluation.answers import VQA
from flmm_detseg.engine.evaluation.dense import COCO_BOXES, SEMANTIC_MAPS
from flmm_detseg.engine.evaluation.evaluate import build_datasets, evaluate_model
from flmm_detseg.engine.evaluation.mask_answers import (
    GCG,
    GREFCOCO,
    REASON,
    REFCOCO_ANSWERS,
    MaskAnswerOptions,
    MaskAnswerTask,
)
from flmm_detseg.engine.evaluation.phrases import PNG, REFCOCO
from flmm_detseg.engine.evaluation.presence import PRESENCE
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.evaluation import gcg_figures, mask_answer_record, reason_figures
from flmm_detseg.heads import AnswerPresenceHead
from flmm_detseg.language.mask_wording import ask_for_mask
from flmm_detseg.language.segment_names import mask_token_spans
from flmm_detseg.structures import Phrase, Prediction, Sample

SIZE = (20, 24)
NUMBERS = ("first", "second", "third")


class Squares:
    """Pictures of 0 to 2 bright squares, two queries about each; the second asks for what is not there."""

    def __init__(
        self, file: str, queries: str = "first", text_share: float = 0.0, task: str = "reasoning"
    ) -> None:
        self.annotation_files = (Path(file),)
        self.queries, self.text_share, self.task = queries, text_share, task
        self.records = list(range(10))

    def __len__(self) -> int:
        return len(self.records)

    def record_id(self, index: int) -> str:
        return f"squares/{index}"

    def phrase_texts(self, index: int) -> tuple[str, list[str]]:
        return f"image-{index // 2}", []

    def report(self) -> dict:
        return {}

    def __getitem__(self, index: int) -> Sample:
        image = np.zeros((*SIZE, 3), np.uint8)
        image[..., 1] = index // 2
        masks = np.zeros((index // 2 % 3, *SIZE), dtype=bool)
        for number, mask in enumerate(masks):
            mask[3:9, 2 + 9 * number : 9 + 9 * number] = True
        image[masks.any(0), 0] = 255
        absent = index % 2 == 1
        if absent:
            masks = masks[:0]
        names = [f"the {NUMBERS[number]} square" for number in range(len(masks))]
        text = " and ".join(f"{name} [SEG]" for name in names) or "there is none ."
        phrases = tuple(Phrase((span,)) for span in mask_token_spans(text))
        meta = {"family": "odd" if absent else "plain", "names": names}
        return Sample(
            self.record_id(index), image, text, phrases, masks, "the circles ?" if absent else "the squares ?",
            f"image-{index // 2}", self.task, meta=meta,
        )  # fmt: skip


class Mixed(Squares):
    """A mix of two mixes; the second one's member has the arguments."""

    def __init__(self, file: str, turns: str = "all", **arguments) -> None:
        super().__init__(file)
        member = Squares(file, **arguments)
        member.turns = turns
        inner = SimpleNamespace(datasets=[SimpleNamespace(dataset=member)])
        self.datasets = [Squares(file), inner]


@pytest.mark.parametrize("task", [REASON, GCG, PRESENCE, REFCOCO, PNG, VQA, COCO_BOXES, SEMANTIC_MAPS])
def test_random_wordings_are_refused_by_every_evaluation_however_deep_they_are(tmp_path, task):
    file = tmp_path / "squares.json"
    file.write_text("{}")
    options = SimpleNamespace(splits=(), sentences=None, layout=None, questions=None)
    for key in ("queries", "turns"):
        entry = {"type": Mixed, "file": str(file), key: "random"}
        with pytest.raises(ConfigError, match=rf"'own': evaluation needs {key} .*not 'random' \(Squares\)"):
            build_datasets(
                Config({task.config_key: {"own": entry}}),
                options,
                task,
            )


class StandIn(nn.Module):
    """Outlines the bright columns of each half; one mask too many in image 2; no circle but in image 4."""

    def __init__(self, tasks: tuple[str, ...] = ("reasoning",)) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.asked: list[Sample] = []
        self.heads = {"seg": SimpleNamespace(result_of=frozenset(tasks), tasks=frozenset(tasks))}

    def answers_with_masks(self, samples: list[Sample], *, max_new_tokens: int) -> list[SimpleNamespace]:
        self.asked += samples
        assert max_new_tokens == 32
        return [self._answer(sample) for sample in samples]

    def _answer(self, sample: Sample) -> SimpleNamespace:
        number = int(sample.image[0, 0, 1])
        bright = sample.image[..., 0] > 0
        halves = [bright & (np.arange(SIZE[1]) // 10 == half)[None] for half in range(2)]
        masks = [half for half in halves if half.any()]
        if number == 2:
            masks.append(~bright)
        if "circles" in sample.prompt and number != 4:
            masks = []
        names = tuple(f"the {NUMBERS[k]} square" for k in range(len(masks)))
        text = " , ".join(f"{name} [SEG]" for name in names) or "there is none <seg> ."
        return SimpleNamespace(text=text, names=names, prediction=self._prediction(sample, masks))

    def results(self, task: str, samples: list[Sample]) -> list[Prediction]:
        assert task == "reasoning"
        return [self._prediction(sample, list(sample.masks)) for sample in samples]

    @staticmethod
    def _prediction(sample: Sample, masks: list[np.ndarray]) -> Prediction:
        stack = np.array(masks, dtype=bool).reshape(-1, *SIZE)
        logits = torch.from_numpy(np.where(stack, 2.0, -2.0)).float()
        return make_prediction(sample.record_id, logits, None, SIZE)


def run(
    work_dir: Path,
    task: MaskAnswerTask = REASON,
    model: StandIn | None = None,
    dataset: dict | None = None,
    **options,
) -> dict:
    file = work_dir.parent / "squares.json"
    file.write_text("{}")
    entry = {"type": Squares, "file": str(file), **(dataset or {})}
    chosen = MaskAnswerOptions(config="own.py", work_dir=str(work_dir), max_new_tokens=32, **options)
    datasets = build_datasets(Config({task.config_key: {"own": entry}}), chosen, task)
    return evaluate_model(model or StandIn(), datasets, chosen, task, {"config": "own"})


def expected_records(tmp_path: Path) -> list[dict]:
    dataset, model = Squares(str(tmp_path)), StandIn()
    samples = [dataset[index] for index in range(len(dataset))]
    answers = model.answers_with_masks(samples, max_new_tokens=32)
    return [
        mask_answer_record(sample, answer.text, answer.prediction, answer.names)
        for sample, answer in zip(samples, answers)
    ]


@pytest.mark.parametrize("task", [REASON, GREFCOCO])
def test_the_model_answers_without_seeing_the_reference(tmp_path, task):
    model = StandIn()
    result = run(tmp_path / "work", task, model, convention="gsva")
    content = json.loads(Path(result["results"]).read_text())
    figures = content["metrics"]["own"]
    assert figures == reason_figures(expected_records(tmp_path), convention="gsva")
    assert any("/" in name for name in figures)
    # The command's last line has the figures of all records, the file those of groups as well.
    assert result["metrics"]["own"] == {name: value for name, value in figures.items() if "/" not in name}
    assert [(s.text, s.phrases, s.masks, s.dense) for s in model.asked] == [("", (), None, None)] * 10
    assert figures["num_superfluous"] == 2, "one mask too many in image 2, a square for a circle in image 4"
    assert figures["num_unparsable"] > 0
    assert figures["N_acc"] == 6 / 7
    report = content["data_sets"]["own"]
    assert Path(result["results"]).name == f"{task.name}.json"
    assert (report["convention"], report["teacher_forced"]) == ("gsva", False)
    lines = [json.loads(line) for line in Path(report["exported"][0]).read_text().splitlines()]
    assert [line["record_id"] for line in lines] == [f"squares/{index}" for index in range(10)]
    assert np.mean([line["iou"] for line in lines]) == pytest.approx(figures["gIoU"], abs=1e-5)


def test_another_convention_counts_the_same_answers_anew(tmp_path):
    first, model = run(tmp_path / "work"), StandIn()
    other = run(tmp_path / "work", model=model, convention="rela")
    assert (other["num_resumed"], model.asked) == (10, [])
    assert other["metrics"]["own"] != first["metrics"]["own"]


def test_teacher_forced_reads_the_reference_and_leaves_out_what_has_nothing_to_read(tmp_path):
    model = StandIn()
    result = run(tmp_path / "work", model=model, teacher_forced=True)
    figures = result["metrics"]["own"]
    assert model.asked == []
    assert (figures["gIoU"], figures["num_records"], figures["num_superfluous"]) == (1, 3, 0)
    assert "N_acc" not in figures
    assert Path(result["results"]).name == "reason-teacher-forced.json"
    free = run(tmp_path / "work")
    assert free["num_resumed"] == 0
    assert free["metrics"]["own"]["gIoU"] < 1


def test_grounded_captions(tmp_path):
    result = run(tmp_path / "work", GCG, convention=None)
    figures = result["metrics"]["own"]
    assert figures == gcg_figures(expected_records(tmp_path))
    assert 0 < figures["phrase_recall"] <= 1
    content = json.loads(Path(result["results"]).read_text())
    report = content["data_sets"]["own"]
    assert "convention" not in report
    assert content["options"]["convention"] is None
    line = json.loads(Path(report["exported"][0]).read_text().splitlines()[2])
    assert (line["names"], line["target_names"]) == (["the first square"], ["the first square"])
    assert "iou" not in line


def test_what_cannot_be_measured_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="no head for task 'reasoning'"):
        run(tmp_path / "work", model=StandIn(tasks=("phrase",)))
    with pytest.raises(ConfigError, match="squares/0: task 'phrase'"):
        run(tmp_path / "work", dataset={"task": "phrase"})
    with pytest.raises(ConfigError, match="not 'random'"):
        run(tmp_path / "work", dataset={"queries": "random"})
    with pytest.raises(ConfigError, match="`text_share` is 0.1"):
        run(tmp_path / "work", dataset={"text_share": 0.1})
    with pytest.raises(ConfigError, match="`text_share` is 0.2"):
        run(tmp_path / "work", dataset={"type": Mixed, "text_share": 0.2})
    with pytest.raises(ConfigError, match="`convention` is 'gres'"):
        MaskAnswerOptions(config="own.py", convention="gres")
    with pytest.raises(ConfigError, match="`max_new_tokens` is 0"):
        MaskAnswerOptions(config="own.py", max_new_tokens=0)


class Everything(StandIn):
    """One mask, of the whole image, whatever is asked."""

    def answers_with_masks(self, samples: list[Sample], *, max_new_tokens: int) -> list[SimpleNamespace]:
        self.asked += samples
        logits = torch.ones(1, *samples[0].image_size)
        return [
            SimpleNamespace(
                text="it is [SEG] .",
                names=("",),
                prediction=make_prediction(sample.record_id, logits, None, sample.image_size),
            )
            for sample in samples
        ]


@pytest.mark.parametrize("layout", ["split", "concat"])
def test_expressions_of_refcoco_are_asked_one_by_one(tmp_path, layout):
    files = write_refcoco(tmp_path, num_images=3)
    entry = {"type": RefCOCODataset, "split": "val", "layout": layout, "sentences": "first", **files}
    model = Everything()

    def measure(**options) -> dict:
        chosen = MaskAnswerOptions(config="own.py", work_dir=str(tmp_path / "work"), **options)
        datasets = build_datasets(Config({"refcoco_eval": {"val": entry}}), chosen, REFCOCO_ANSWERS)
        return evaluate_model(model, datasets, chosen, REFCOCO_ANSWERS, {"config": "own"})

    result = measure(sentences="all")
    expressions = RefCOCODataset(split="val", layout="split", sentences="all", **files)
    shares = [sample.masks[0].mean() for sample in expressions]
    figures = result["metrics"]["val"]
    assert figures["gIoU"] == pytest.approx(np.mean(shares), abs=1e-12)
    assert (figures["num_records"], figures["right_number"]) == (len(shares), 1)
    prompts = [ask_for_mask(sample.phrase_text(0), None) for sample in expressions]
    assert sorted(sample.prompt for sample in model.asked) == sorted(prompts)
    assert Path(result["results"]).name == "refcoco-generated.json"
    assert measure()["metrics"]["val"]["num_records"] < len(shares)
    with pytest.raises(ConfigError, match="sentences 'first' or 'all', not 'random'"):
        measure(sentences="random")


def test_the_command_asks_for_expressions_alone():
    words = ["evaluate", "refcoco", "tiny/frozen_tiny_llava_refcoco_png", "--generate"]
    for more in (
        ["--mode", "split"],
        ["--empty", "grefcoco"],
        ["--phrases", "shuffled"],
        ["--threshold-sweep"],
    ):
        parser = argparse.ArgumentParser()
        refcoco.add_arguments(parser)
        args = parser.parse_args([*words[2:], *more])
        with pytest.raises(ConfigError, match=f"leave {more[0]} out"):
            refcoco.run(args)


def test_a_prediction_of_another_record_is_refused(tmp_path):
    class Other(StandIn):
        def _answer(self, sample: Sample) -> SimpleNamespace:
            answer = super()._answer(sample)
            return SimpleNamespace(
                **{**vars(answer), "prediction": replace(answer.prediction, record_id="other")}
            )

    with pytest.raises(DataError, match="of record 'other'"):
        run(tmp_path / "work", model=Other())


def test_a_model_is_measured_by_its_own_answers_and_by_the_reference():
    model = make_model("pointer")
    speak(model, "the red star [SEG] and a blue ring [SEG]")
    samples = [reasoning_sample(0, count) for count in (2, 1, 0)]
    samples = [replace(sample, record_id=f"r/{k}", image_id="one") for k, sample in enumerate(samples)]
    free = REASON.facts(model, samples, None, MaskAnswerOptions(config="own.py", max_new_tokens=24))
    for sample, (record,) in zip(samples, free, strict=True):
        answer = model.answer_with_masks(sample, max_new_tokens=24)
        expected = mask_answer_record(sample, answer.text, answer.prediction, answer.names)
        assert (record["num_masks"], record["num_unparsable"]) == (2, 0)
        assert record.pop("scores") == pytest.approx(expected.pop("scores"), abs=1e-5)
        assert record == expected
    figures = reason_figures([record for (record,) in free])
    assert (figures["num_superfluous"], figures["N_acc"]) == (3, 0)
    forced = REASON.facts(model, samples, None, MaskAnswerOptions(config="own.py", teacher_forced=True))
    assert [len(records) for records in forced] == [1, 1, 0]
    for sample, (record,) in zip(samples[:2], forced):
        (prediction,) = model.results("reasoning", [sample])
        assert record["areas"] == mask_answer_record(sample, sample.text, prediction)["areas"]
        assert record["answer"] == sample.text


def test_below_the_threshold_an_answer_counts_as_one_without_masks():
    model = make_model("pointer", presence=dict(type=AnswerPresenceHead, width=8)).eval()
    speak(model, "the red star [SEG] and a blue ring [SEG]")
    samples = [replace(reasoning_sample(k, k), record_id=f"r/{k}") for k in (0, 1, 2)]
    presence = sorted(model.answer_with_masks(sample).presence for sample in samples)
    limit = (presence[0] + presence[1]) / 2
    options = MaskAnswerOptions(config="own.py", max_new_tokens=24)
    every = [record for (record,) in REASON.facts(model, samples, None, options)]
    some = REASON.facts(model, samples, None, replace(options, min_presence=limit))
    for sample, record, (kept,) in zip(samples, every, some, strict=True):
        if model.answer_with_masks(sample).presence >= limit:
            assert kept == record
            continue
        nothing = {"num_masks": 0, "area": 0, "intersection": 0, "areas": [], "intersections": []}
        assert kept == {**record, **nothing, "scores": [], "names": []}
        assert (record["num_masks"], kept["num_unparsable"]) == (2, 0), "what is withheld could be read"
        assert reason_figures([kept], convention="gsva")["num_superfluous"] == 0
    assert sum(kept["num_masks"] == 0 for (kept,) in some) == 1
    none = REASON.facts(model, samples, None, replace(options, min_presence=1.0, teacher_forced=True))
    assert [record["num_masks"] for records in none for record in records] == [0, 0]
    REASON.check(model, None, replace(options, min_presence=0.5))
    with pytest.raises(ConfigError, match="never calibrated"):
        REASON.check(model, None, replace(options, min_presence="stored"))
    with pytest.raises(ConfigError, match="no presence head"):
        REASON.check(make_model("pointer"), None, replace(options, min_presence=0.5))


def test_generated_expressions_take_a_threshold(monkeypatch):
    """It was read and did nothing."""
    parser = argparse.ArgumentParser()
    refcoco.add_arguments(parser)
    words = ["tiny/seg_token", "--generate", "--min-presence", "stored"]
    asked = []
    monkeypatch.setattr(evaluate, "evaluate", lambda options, task: asked.append((options, task)))
    refcoco.run(parser.parse_args(words))
    ((options, task),) = asked
    assert (options.min_presence, task) == ("stored", REFCOCO_ANSWERS)
    assert task.settings(options) != task.settings(replace(options, min_presence=None))
