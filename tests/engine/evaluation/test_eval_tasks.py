"""The kinds of evaluation beside phrases: real readers, a stand-in for the model."""

from __future__ import annotations

import json
import runpy
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from fake_dense import CLASSES, disturbed_map, disturbed_objects, make_dense_samples
from mmengine.config import Config
from mmengine.structures import InstanceData
from PIL import Image
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval
from tiny import tiny_llava
from torch import nn

import flmm_detseg.engine.evaluation.evaluate
from flmm_detseg.datasets import (
    COCOInstancesDataset,
    LLaVAInstructDataset,
    QuestionDataset,
    SemanticMapsDataset,
)
from flmm_detseg.engine.evaluation.answers import FORGETTING, VQA, AnswerOptions
from flmm_detseg.engine.evaluation.dense import COCO_BOXES, SEMANTIC_MAPS, BoxOptions, MapOptions
from flmm_detseg.engine.evaluation.evaluate import build_datasets, evaluate_model
from flmm_detseg.engine.evaluation.task import EvaluationOptions, Task
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.evaluation import box_record, coco_figures, semseg_figures, semseg_record
from flmm_detseg.language import BoxItem, JointAnswer, quantise_boxes, serialise
from flmm_detseg.structures import CaptureSpec, Sample
from flmm_detseg.utils.rle import encode_rle

TOOLS = Path(__file__).parents[3] / "tools"
NAMES = (*CLASSES, "ground")


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """COCO instances, label maps, questions and conversations about the same images."""
    root = tmp_path_factory.mktemp("dense")
    (root / "images").mkdir()
    (root / "labels").mkdir()
    images, annotations, questions, conversations = [], [], [], []
    for number, sample in enumerate(make_dense_samples(6)):
        name = f"{number:012d}.png"
        Image.fromarray(np.full((150, 200, 3), 20 * number, np.uint8)).save(root / "images" / name)
        Image.fromarray(sample.dense.semantic).save(root / "labels" / name)
        images.append({"id": 50 + number, "file_name": name, "height": 150, "width": 200})
        dense = sample.dense
        for (x0, y0, x1, y1), label, mask, crowd in zip(
            dense.boxes_xyxy.tolist(), dense.labels, dense.masks, dense.crowd
        ):
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": 50 + number, "category_id": 10 * int(label) + 10,
                    "bbox": [x0, y0, x1 - x0, y1 - y0], "area": int(mask.sum()), "iscrowd": int(crowd),
                    "segmentation": encode_rle(mask),
                }
            )  # fmt: skip
        question = {"image": name, "category": "count"}
        questions += [
            {
                **question,
                "question_id": 2 * number,
                "text": f"how many ? {number}",
                "answers": ["two"] * 3 + ["3"] * 7,
            },
            {**question, "question_id": f"q{number}", "text": "is there a star ?", "label": "yes"},
        ]
        turns = [
            ("<image>\ndescribe", "a long description of all that there is to see here"),
            ("colour ?", "red"),
        ]
        turns = [{"from": who, "value": text} for turn in turns for who, text in zip(("human", "gpt"), turn)]
        conversations.append({"id": str(number), "image": name, "conversations": turns})
    categories = [{"id": 10 * n + 10, "name": name} for n, name in enumerate(CLASSES)]
    coco = {"images": images, "annotations": annotations, "categories": categories}
    (root / "instances.json").write_text(json.dumps(coco))
    (root / "questions.jsonl").write_text("\n".join(map(json.dumps, questions)))
    (root / "talk.json").write_text(json.dumps(conversations))
    return root


class StandIn(nn.Module):
    """Disturbs the targets; answers according to whether it is adapted."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        self.adapted, self.calls = True, 0
        self.lmm = SimpleNamespace(base_mode=self.base_mode, needs_parts=lambda sample: bool(sample.regions))
        self.heads = nn.ModuleDict()

    @contextmanager
    def base_mode(self) -> Iterator[None]:
        self.adapted = False
        yield
        self.adapted = True

    def detect(self, samples: list[Sample]) -> list[InstanceData]:
        self.calls += 1
        return [disturbed_objects(sample) for sample in samples]

    def segment(self, samples: list[Sample]) -> list[torch.Tensor]:
        return [disturbed_map(sample, len(NAMES)) for sample in samples]

    def answer(self, sample: Sample, *, max_new_tokens: int) -> str:
        self.calls += 1
        if sample.task == "joint":
            return self.boxes_in_words(sample)
        if "how many" in sample.prompt:
            return "two" if self.adapted else "3"
        return "yes" if self.adapted or "star" in sample.prompt else "red"

    def boxes_in_words(self, sample: Sample) -> str:
        assert sample.prompt == "<TASK_DET> List the objects in the image."
        boxes = quantise_boxes(sample.dense.boxes_xyxy, sample.image_size).tolist()
        named = zip(boxes, sample.dense.labels, strict=True)
        items = tuple(BoxItem(CLASSES[label].upper(), tuple(box)) for box, label in named)
        items += (BoxItem("zebra", (0, 0, 9, 9)),)
        return serialise(JointAnswer(detections=items)).text + "; star [1, 2"

    @property
    def retention(self) -> SimpleNamespace:
        return SimpleNamespace(require_base=self.require_base)

    @staticmethod
    def require_base(what: str) -> None:
        assert what == "forgetting"

    def answer_kl(self, samples: list[Sample]) -> list[float]:
        return [0.25] * len(samples)


def run(
    folder: Path,
    work_dir: Path,
    task: Task,
    options: type[EvaluationOptions],
    model: nn.Module | None = None,
    **settings,
) -> dict:
    images = str(folder / "images")
    config = Config(
        {
            "coco_eval": {
                "own": dict(
                    type=COCOInstancesDataset,
                    ann_file=str(folder / "instances.json"),
                    image_dir=images,
                    with_masks=True,
                )
            },
            "semseg_eval": {
                "own": dict(
                    type=SemanticMapsDataset,
                    label_dir=str(folder / "labels"),
                    image_dir=images,
                    classes=NAMES,
                )
            },
            "vqa_eval": {
                "asked": dict(type=QuestionDataset, file=str(folder / "questions.jsonl"), image_dir=images),
                "talk": dict(
                    type=LLaVAInstructDataset, file=str(folder / "talk.json"), image_dir=images, turns="all"
                ),
            },
        }
    )
    chosen = options(config="own.py", work_dir=str(work_dir), **settings)
    datasets = build_datasets(config, chosen, task)
    return evaluate_model(model or StandIn(), datasets, chosen, task, {"config": "own"})


@pytest.mark.case("data/03_annotation_file_without_area_or_iscrowd")
def test_faults_of_the_annotation_file_are_reported_before_anything_is_predicted(folder, tmp_path):
    def dies(change, match: str) -> None:
        content = json.loads((folder / "instances.json").read_text())
        change(content)
        (tmp_path / "foreign.json").write_text(json.dumps(content))
        model = StandIn()
        with pytest.raises((ConfigError, DataError), match=match):
            run(
                folder,
                tmp_path,
                COCO_BOXES,
                BoxOptions,
                model,
                annotation_file=str(tmp_path / "foreign.json"),
            )
        assert model.calls == 0

    dies(lambda content: content["annotations"][-1].update(area="9"), "`area` is '9'")
    dies(
        lambda content: content["images"].clear() or content["annotations"].clear(),
        "image .* is not in .*foreign.json",
    )
    dies(lambda content: content["categories"][0].update(name="other"), "foreign.json: it has no category")


def coco_samples(folder: Path) -> list[Sample]:
    dataset = COCOInstancesDataset(str(folder / "instances.json"), str(folder / "images"), with_masks=True)
    return [dataset[index] for index in range(len(dataset))]


def test_boxes_of_the_head(folder, tmp_path):
    result = run(folder, tmp_path, COCO_BOXES, BoxOptions, classwise=True)
    samples = coco_samples(folder)
    records = [box_record(sample, disturbed_objects(sample)) for sample in samples]
    figures = result["metrics"]["own"]
    assert figures == coco_figures(records, CLASSES, classwise=True)
    assert 0 < figures["mask_AP"] < figures["AP50"] < 1
    official = {"annotation_file": str(folder / "instances.json"), "backend": "faster"}
    other = run(folder, tmp_path, COCO_BOXES, BoxOptions, **official)
    assert other["num_resumed"] == len(samples)  # only counted anew
    assert other["metrics"]["own"]["AP"] == pytest.approx(figures["AP"])


def test_exported_boxes_give_the_same_figures(folder, tmp_path):
    result = run(folder, tmp_path, COCO_BOXES, BoxOptions)
    content = json.loads(Path(result["results"]).read_text())
    (file,) = content["data_sets"]["own"]["exported"]
    coco = COCO(str(folder / "instances.json"))
    found = json.loads(Path(file).read_text())
    for entry in found:
        entry.pop("segmentation")
    evaluation = COCOeval(coco, coco.loadRes(found), "bbox")
    evaluation.evaluate()
    evaluation.accumulate()
    evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(result["metrics"]["own"]["AP"])


def test_boxes_in_words(folder, tmp_path):
    result = run(folder, tmp_path, COCO_BOXES, BoxOptions, boxes="text")
    assert Path(result["results"]).name == "coco-text.json"
    figures = result["metrics"]["own"]
    assert figures["recall@0.5"] == 1
    assert (figures["num_unknown_names"], figures["num_bad"]) == (6, 6)
    assert figures["num_parsed"] == figures["num_boxes"]
    assert figures["parse_rate"] == figures["num_parsed"] / (figures["num_parsed"] + 6)
    crowds = sum(int(sample.dense.crowd.sum()) for sample in coco_samples(folder))
    objects = figures["num_boxes"] - 6 - crowds
    assert figures["precision@0.5"] == pytest.approx(objects / (objects + 6))
    assert run(folder, tmp_path, COCO_BOXES, BoxOptions, boxes="text", max_new_tokens=5)["num_resumed"] == 0


class Surest(StandIn):
    """Writes as the stand-in does, character by character: the first two images' numbers are surer than others'."""

    def __init__(self) -> None:
        super().__init__()
        self.lmm.generate_with_states = self.generate_with_states

    def generate_with_states(self, sample: Sample, capture: CaptureSpec, *, max_new_tokens: int):
        assert (sample.task, capture) == ("joint", CaptureSpec())
        text = self.boxes_in_words(sample)
        sure = 0.9 if sample.meta["coco_image_id"] < 52 else 0.4
        chance = torch.tensor([sure if character.isdigit() else 0.001 for character in text])
        offsets = [(place, place + 1) for place in range(len(text))]
        return SimpleNamespace(text=text, log_probs=chance.log(), token_offsets=offsets)


def test_boxes_in_words_are_scored_by_their_tokens(folder, tmp_path):
    plain = run(folder, tmp_path / "plain", COCO_BOXES, BoxOptions, boxes="text")["metrics"]["own"]
    result = run(folder, tmp_path / "scored", COCO_BOXES, BoxOptions, Surest(), boxes="text")
    figures = result["metrics"]["own"]
    assert "AP" not in plain
    assert {key: figures[key] for key in plain} == plain
    assert figures["AP50"] == 1, "names that are no class are no false positives of a class"
    assert figures["AP"] > 0.9
    (file,) = json.loads(Path(result["results"]).read_text())["data_sets"]["own"]["exported"]
    exported = json.loads(Path(file).read_text())
    assert {entry["score"] > 0.5 for entry in exported} == {True, False}
    for entry in exported:
        assert entry["score"] == pytest.approx(0.9 if entry["image_id"] < 52 else 0.4)


def test_answers_with_states_are_the_answers(folder):
    sample = coco_samples(folder)[0]
    dataset = COCOInstancesDataset(str(folder / "instances.json"), str(folder / "images"))
    lmm = tiny_llava()
    asked = replace(sample, task="joint", prompt="<TASK_DET> List the objects in the image.")
    options = BoxOptions("c.py", boxes="text", max_new_tokens=9)
    ((record,),) = COCO_BOXES.facts(SimpleNamespace(lmm=lmm), [sample], dataset, options)
    assert record["answer"] == lmm.generate(asked, max_new_tokens=9)
    assert record["scores"] == []


def test_label_maps(folder, tmp_path):
    result = run(folder, tmp_path, SEMANTIC_MAPS, MapOptions, classwise=True)
    dataset = SemanticMapsDataset(str(folder / "labels"), str(folder / "images"), NAMES)
    samples = [dataset[index] for index in range(len(dataset))]
    records = [semseg_record(sample, disturbed_map(sample, 4), 4) for sample in samples]
    assert result["metrics"]["own"] == semseg_figures(records, 4, NAMES)
    report = json.loads(Path(result["results"]).read_text())["data_sets"]["own"]
    assert (report["tolerance"], report["band"], len(report["data_sha256"])) == (0.0075, 0.02, 6)
    wider = run(folder, tmp_path, SEMANTIC_MAPS, MapOptions, tolerance=3)
    assert wider["num_resumed"] == 0
    assert wider["metrics"]["own"]["boundary_F1"] > result["metrics"]["own"]["boundary_F1"]


def test_many_annotation_files_have_one_hash(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(flmm_detseg.engine.evaluation.evaluate, "_MAX_LISTED_FILES", 5)
    first = run(folder, tmp_path, SEMANTIC_MAPS, MapOptions)
    (key,) = json.loads(Path(first["results"]).read_text())["data_sets"]["own"]["data_sha256"]
    assert key == f"{folder / 'labels'} (6 files)"
    assert run(folder, tmp_path, SEMANTIC_MAPS, MapOptions)["num_resumed"] == 6
    label = folder / "labels" / "000000000000.png"
    before = label.read_bytes()
    Image.fromarray(np.zeros((150, 200), np.uint8)).save(label)
    assert run(folder, tmp_path, SEMANTIC_MAPS, MapOptions)["num_resumed"] == 0
    label.write_bytes(before)


def test_answers(folder, tmp_path):
    result = run(folder, tmp_path, VQA, AnswerOptions)
    asked = result["metrics"]["asked"]
    assert asked["num_questions"] == 12
    assert asked["vqav2_accuracy"] == pytest.approx(0.9)
    assert asked["yes_no_accuracy"] == asked["yes_no_yes_ratio"] == 1
    assert asked["accuracy/count"] == asked["accuracy"] == pytest.approx(0.95)
    talk = result["metrics"]["talk"]  # descriptions are not scored
    assert (talk["num_questions"], talk["num_scored"], talk["accuracy"]) == (12, 6, 0)
    content = json.loads(Path(result["results"]).read_text())
    (file,) = content["data_sets"]["asked"]["exported"]
    lines = [json.loads(line) for line in Path(file).read_text().splitlines()]
    assert {line["question_id"] for line in lines} == {*range(0, 12, 2), *(f"q{n}" for n in range(6))}
    assert all(len(line["answer_id"]) == 22 and line["model_id"] == "own" for line in lines)
    assert {(line["prompt"], line["text"]) for line in lines} >= {
        ("how many ? 3", "two"),
        ("is there a star ?", "yes"),
    }


def test_a_question_file_of_the_command_line(folder, tmp_path):
    images = str(folder / "images")
    options = {"questions": str(folder / "questions.jsonl"), "images": images}
    result = run(folder, tmp_path, VQA, AnswerOptions, **options, limit=4, metric="exact")
    assert result["metrics"]["questions"]["exact_num"] == 4
    model = StandIn()
    again = run(folder, tmp_path, VQA, AnswerOptions, model, **options, metric="exact")
    assert (again["num_resumed"], model.calls) == (4, 8)
    talk = run(folder, tmp_path, VQA, AnswerOptions, questions=str(folder / "talk.json"), images=images)
    assert talk["metrics"]["talk"]["num_questions"] == 12


def test_forgetting(folder, tmp_path):
    result = run(folder, tmp_path, FORGETTING, AnswerOptions)
    asked = result["metrics"]["asked"]
    assert asked["base_accuracy"] == 1
    assert asked["adapted_accuracy"] == pytest.approx(0.95)
    assert asked["forgetting_points"] == pytest.approx(5)
    assert 0 < asked["forgetting_low"] < 5 < asked["forgetting_high"] < 10.1
    assert (asked["identical"], asked["unwanted"], asked["kl_mean"]) == (0.5, 0, 0.25)
    talk = result["metrics"]["talk"]
    assert (talk["base_accuracy"], talk["adapted_accuracy"], talk["num_scored"]) == (1, 0, 6)
    assert result["mean_forgetting_points"] == pytest.approx(52.5)
    assert result["worst_forgetting_points"] == 100
    quick = run(folder, tmp_path, FORGETTING, AnswerOptions, kl=False)
    assert quick["num_resumed"] == 0
    assert "kl_mean" not in quick["metrics"]["asked"]


@pytest.mark.parametrize(
    ("task", "options", "settings", "match"),
    [
        (COCO_BOXES, BoxOptions, dict(boxes="both"), "`boxes` is 'both'; allowed: head, text"),
        (COCO_BOXES, BoxOptions, dict(backend="torch"), "`backend` is 'torch'"),
        (VQA, AnswerOptions, dict(questions="a.jsonl"), "`questions` and `images` belong together"),
        (VQA, AnswerOptions, dict(metric="bleu"), "`metric` is 'bleu'; allowed: vqav2"),
        (VQA, AnswerOptions, dict(max_new_tokens=0), "`max_new_tokens` is 0"),
        (VQA, AnswerOptions, dict(batch_size=0), "`batch_size` is 0"),
        (VQA, AnswerOptions, dict(splits=("other",)), "no data set or split 'other'; it has asked, talk"),
    ],
)
def test_wrong_options(folder, tmp_path, task, options, settings, match):
    with pytest.raises(ConfigError, match=match):
        run(folder, tmp_path, task, options, **settings)


def test_data_sets_that_do_not_fit(folder, tmp_path):
    images = str(folder / "images")
    talk = dict(type=LLaVAInstructDataset, file=str(folder / "talk.json"), image_dir=images)
    with pytest.raises(ConfigError, match="data set 'talk': evaluation needs turns 'first' or 'all'"):
        build_datasets(Config({"vqa_eval": {"talk": talk}}), AnswerOptions(config="own.py"), VQA)
    config = Config({"semseg_eval": {"talk": {**talk, "turns": "all"}}})
    options = MapOptions(config="own.py", work_dir=str(tmp_path))
    datasets = build_datasets(config, options, SEMANTIC_MAPS)
    with pytest.raises(ConfigError, match="LLaVAInstructDataset names no classes"):
        evaluate_model(StandIn(), datasets, options, SEMANTIC_MAPS, {})


@pytest.mark.parametrize(
    ("tool", "arguments", "expected"),
    [
        ("eval_coco", ["--boxes", "text", "--classwise"], BoxOptions("c.py", boxes="text", classwise=True)),
        ("eval_semseg", ["--tolerance", "2", "--limit", "3"], MapOptions("c.py", tolerance=2.0, limit=3)),
        ("eval_vqa", ["--metric", "pope"], AnswerOptions("c.py", metric="pope")),
        ("eval_forgetting", ["--no-kl", "--splits", "a"], AnswerOptions("c.py", kl=False, splits=("a",))),
    ],
)
def test_tools_hand_their_arguments_on(monkeypatch, capsys, tmp_path, tool, arguments, expected):
    monkeypatch.chdir(tmp_path)
    Path("c.py").touch()
    seen = []

    def evaluate(options: EvaluationOptions, task: Task) -> dict:
        seen.append((options, task.name))
        return {"task": task.name}

    monkeypatch.setattr(flmm_detseg.engine.evaluation.evaluate, "evaluate", evaluate)
    monkeypatch.setattr(sys, "argv", [tool, "c.py", *arguments])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(TOOLS / f"{tool}.py"), run_name="__main__")
    assert exit_.value.code == 0
    assert seen == [(expected, tool.removeprefix("eval_"))]
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == {"task": tool.removeprefix("eval_")}


def test_tools_end_with_one_error_line(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(sys, "argv", ["eval_vqa", str(tmp_path / "gone.py")])
    with pytest.raises(SystemExit) as exit_:
        runpy.run_path(str(TOOLS / "eval_vqa.py"), run_name="__main__")
    assert exit_.value.code == 2
    assert "gone.py does not exist" in capsys.readouterr().err


def test_text_boxes_ask_in_the_samples_own_words(folder):
    sample = replace(coco_samples(folder)[0], prompt="<TASK_DET> Where are the stars?", text="secret")
    dataset = COCOInstancesDataset(str(folder / "instances.json"), str(folder / "images"))
    prompts = []

    def answer(asked: Sample, *, max_new_tokens: int) -> str:
        prompts.append((asked.prompt, asked.text, max_new_tokens))
        return "Detections: none"

    options = BoxOptions("c.py", boxes="text", max_new_tokens=7)
    ((record,),) = COCO_BOXES.facts(SimpleNamespace(answer=answer), [sample], dataset, options)
    assert prompts == [("<TASK_DET> Where are the stars?", "", 7)]
    assert record["boxes_xyxy"] == []


def test_a_data_set_says_how_its_answers_are_scored(folder, tmp_path):
    questions = dict(
        type=QuestionDataset, file=str(folder / "questions.jsonl"), image_dir=str(folder / "images")
    )

    def metrics(of_data: str, **settings) -> dict[str, float]:
        config = Config({"vqa_eval": {"asked": {**questions, "metric": of_data}}})
        options = AnswerOptions(config="own.py", work_dir=str(tmp_path), **settings)
        datasets = build_datasets(config, options, VQA)
        return evaluate_model(StandIn(), datasets, options, VQA, {"config": "own"})["metrics"]["asked"]

    figures = metrics("exact")
    assert figures["exact_num"] == figures["num_questions"] == 12
    assert metrics("exact", metric="open")["num_scored"] == 0  # the command line goes first
    with pytest.raises(ConfigError, match="data set 'asked': `metric` is 'bleu'; allowed: vqav2"):
        metrics("bleu")
