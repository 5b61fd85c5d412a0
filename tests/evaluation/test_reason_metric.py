from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
from mask_answer_parts import SIZE, masks_of, query, rows
from mmengine.config import Config

from flmm_detseg.datasets.tinyworld.reason.draw import draw_items
from flmm_detseg.datasets.tinyworld.reason.spec import ReasonSpec
from flmm_detseg.errors import ConfigError
from flmm_detseg.evaluation import ReasonMetric, mask_answer_record, reason_figures
from flmm_detseg.evaluation.instance_matches import instance_ious


def answers(num: int, seed: int = 0) -> list[dict]:
    rng = np.random.default_rng(seed)
    records = []
    for number in range(num):
        targets = rng.random((int(rng.integers(0, 4)), *SIZE)) < 0.5
        masks = [mask ^ (rng.random(SIZE) < rng.choice([0.0, 0.3])) for mask in targets if rng.random() < 0.8]
        masks += list(rng.random((int(rng.random() < 0.2), *SIZE)) < 0.3)
        family = str(rng.choice(["extremes", "negated"]))
        sample = query(f"{number:03d}", list(targets), family=family)
        records.append(mask_answer_record(sample, "[SEG]" * len(masks), masks_of(sample.record_id, masks)))
    return records


def test_counts_of_tokens():
    records = [
        mask_answer_record(query("a", [rows(0), rows(1)]), "[SEG]", masks_of("a", [rows(0)])),
        mask_answer_record(query("b", []), "[SEG] [SEG] <seg>", masks_of("b", [rows(0), rows(1)])),
        mask_answer_record(query("c", [rows(0)]), "[SEG]", masks_of("c", [rows(0)])),
    ]
    figures = reason_figures(records)
    assert figures["num_records"] == 3
    assert figures["num_no_target"] == 1
    assert figures["num_missing"] == 1
    assert figures["num_superfluous"] == 2
    assert figures["num_unparsable"] == 1
    assert figures["right_number"] == 1 / 3


def test_an_unparsable_answer_is_no_clean_none():
    texts = {
        "a": "there is none .",
        "b": "it is [ SEG ] .",
        "c": "it is <seg>",
        "d": "none",
        "e": "the ring [SEG]",
    }
    records = [
        mask_answer_record(query(name, []), text, masks_of(name, [rows(0)] if name == "e" else []))
        for name, text in texts.items()
    ]
    records.append(mask_answer_record(query("f", [rows(0)]), "[ SEG ]", masks_of("f", [])))
    figures = reason_figures(records)
    assert (figures["N_acc"], figures["num_none_unparsable"], figures["num_unparsable"]) == (4 / 5, 2, 3)
    assert figures["N_acc_parsed"] == 2 / 3
    assert figures["N_acc_parsed_low"] <= 2 / 3 <= figures["N_acc_parsed_high"]


def test_queries_about_one_image_are_no_independent_cases():
    records = answers(30)
    shared = [{**record, "image_id": f"image {k // 6}"} for k, record in enumerate(records)]
    figures, wide = reason_figures(records), reason_figures(shared)
    assert wide["gIoU"] == figures["gIoU"]
    assert (wide["gIoU_low"], wide["gIoU_high"]) != (figures["gIoU_low"], figures["gIoU_high"])
    doubled = [{**record, "record_id": f"{record['record_id']}{k}"} for record in records for k in "ab"]
    assert reason_figures(doubled)["gIoU_low"] == pytest.approx(figures["gIoU_low"])


def test_single_masks_equal_the_best_of_all_matchings():
    records = answers(40)
    hits, ious, num_masks, num_targets = 0, 0.0, 0, 0
    for record in records:
        pairs = instance_ious(record)
        pairs = pairs if pairs.shape[0] >= pairs.shape[1] else pairs.T
        ways = [[pairs[row, column] for column, row in enumerate(way)]
                for way in itertools.permutations(range(pairs.shape[0]), pairs.shape[1])]  # fmt: skip
        hits += max(sum(iou >= 0.5 for iou in way) for way in ways)
        ious += max(sum(way) for way in ways)
        num_masks, num_targets = num_masks + record["num_masks"], num_targets + record["num_targets"]
    figures = reason_figures(records)
    assert figures["instance_F1@0.5"] == pytest.approx(2 * hits / (num_masks + num_targets), abs=1e-12)
    assert figures["instance_mIoU"] == pytest.approx(ious / num_targets, abs=1e-12)
    assert 0.2 < figures["instance_F1@0.5"] < 0.99


def test_figures_do_not_depend_on_order_or_padding():
    records = answers(60)
    order = np.random.default_rng(1).permutation(60).tolist()
    assert reason_figures([records[i] for i in [*order, *order[:7]]]) == reason_figures(records)


def test_groups_have_the_figures_of_their_records():
    records = answers(60)
    figures = reason_figures(records)
    for value in ("extremes", "negated"):
        alone = reason_figures([record for record in records if record["groups"]["family"] == value])
        for name in ("num_records", "gIoU", "gIoU_low", "gIoU_high", "cIoU", "N_acc", "T_acc"):
            assert figures[f"family={value}/{name}"] == alone[name]
    assert "targets=none/gIoU" in figures
    assert "targets=none/T_acc" not in figures  # nothing to count
    assert not any("=" in name for name in reason_figures(records[:1])), "one group has nothing to tell apart"


def test_the_columns_of_the_ablations_are_figures_of_tinyworlds_questions():
    """All of them are sentences: those of LISA's short and long would be missing after hours of training."""
    plan = Config.fromfile(Path(__file__).parents[2] / "configs/ablations/seg_token_ablation_stages.py")
    records = []
    for number, item in enumerate(draw_items(ReasonSpec(1, 1, 8), "test")):
        targets = [rows(target) for target in range(len(item.query.targets))]
        sample = query(f"{number}", targets, is_sentence=True, query=item.texts[0])
        records.append(
            mask_answer_record(sample, "[SEG]" * len(targets), masks_of(sample.record_id, targets))
        )
    assert set(plan.columns) <= {f"reason.{name}" for name in reason_figures(records)}


def test_intervals_lie_around_their_figures_and_follow_the_seed():
    figures, other = reason_figures(answers(60)), reason_figures(answers(60), seed=1)
    for name in ("gIoU", "cIoU", "N_acc", "T_acc", "instance_F1@0.5", "instance_mIoU"):
        low, value, high = (figures[f"{name}{end}"] for end in ("_low", "", "_high"))
        assert low < value < high
        assert other[name] == value
    assert other["gIoU_low"] != figures["gIoU_low"]
    assert reason_figures([]) == {"num_records": 0, "num_no_target": 0}


def test_the_metric_of_the_loop_gives_the_figures_of_the_reference_answers():
    samples = [query("a", [rows(0, 1)]), query("b", []), query("c", [rows(4), rows(5)])]
    predictions = [masks_of("a", [rows(0)]), masks_of("b", []), masks_of("c", [rows(4), rows(5)])]
    metric = ReasonMetric(convention="gsva")
    metric.process({"samples": samples}, predictions)
    figures = metric.evaluate(3)
    assert figures["reason/gIoU"] == 0.75
    assert figures["reason/num_records"] == 2, "nothing to read in an answer without a token"
    with pytest.raises(ConfigError, match="convention"):
        ReasonMetric(convention="none")
