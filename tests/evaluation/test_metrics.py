from __future__ import annotations

import numpy as np
import pytest
import torch
from fake_predictions import make_pairs, make_prediction

from flmm_detseg.errors import ConfigError, DataError, RunError
from flmm_detseg.evaluation import PNGMetric, RefSegMetric, phrase_records, png_figures
from flmm_detseg.evaluation.records import SWEEP_THRESHOLDS
from flmm_detseg.ops.masks import resize_maps
from flmm_detseg.structures import Phrase, Sample


def evaluate(metric, samples, predictions, batch_size: int = 3) -> dict[str, float]:
    for start in range(0, len(samples), batch_size):
        chunk = slice(start, start + batch_size)
        metric.process({"samples": samples[chunk]}, predictions[chunk])
    return metric.evaluate(len(samples))


def brute_force(samples, predictions, kind: str) -> list[tuple[np.ndarray, np.ndarray]]:
    """Pairs (predicted, target) of all phrases, as numpy masks."""
    pairs = []
    for sample, prediction in zip(samples, predictions):
        logits = (
            prediction.refined_logits
            if kind == "refined"
            else resize_maps(prediction.coarse_logits, prediction.image_size)
        )
        for mask, target in zip(logits.numpy() > 0, sample.masks):
            pairs.append((mask, target))
    return pairs


@pytest.mark.parametrize("kind", ["refined", "coarse"])
def test_ref_seg_equals_brute_force(kind):
    samples, predictions = make_pairs(20)
    got = evaluate(RefSegMetric(), samples, predictions)
    pairs = brute_force(samples, predictions, kind)
    ious = np.array([(p & t).sum() / (p | t).sum() for p, t in pairs])
    cumulative = sum((p & t).sum() for p, t in pairs) / sum((p | t).sum() for p, t in pairs)
    assert got[f"refseg/{kind}_cIoU"] == pytest.approx(cumulative, abs=1e-12)
    assert got[f"refseg/{kind}_gIoU"] == pytest.approx(ious.mean(), abs=1e-12)
    for limit in (0.5, 0.6, 0.7, 0.8, 0.9):
        assert got[f"refseg/{kind}_P@{limit}"] == (ious >= limit).mean()
    assert 0 < got[f"refseg/{kind}_P@0.5"] < 1
    assert got["refseg/num_phrases"] == len(pairs)


def test_box_accuracy_equals_brute_force():
    samples, predictions = make_pairs(30, seed=2)

    def box(mask):
        rows, columns = np.nonzero(mask)
        return (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if len(rows) else (0, 0, 0, 0)

    def iou(a, b):
        inter = max(0, min(a[2], b[2]) - max(a[0], b[0])) * max(0, min(a[3], b[3]) - max(a[1], b[1]))
        union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - inter
        return inter / union

    got = evaluate(RefSegMetric(), samples, predictions)
    for kind in ("coarse", "refined"):
        hits = [iou(box(p), box(t)) >= 0.5 for p, t in brute_force(samples, predictions, kind)]
        assert got[f"refseg/{kind}_box_acc@0.5"] == np.mean(hits)
        assert 0 < np.mean(hits) < 1


def test_same_figures_as_mmdet():
    from flmm_detseg import compat

    compat.install()
    from mmdet.evaluation import RefSegMetric as TheirMetric
    from mmdet.structures.mask import BitmapMasks

    samples, predictions = make_pairs(15, seed=5, empty_every=7)
    theirs = TheirMetric()
    for sample, prediction in zip(samples, predictions):
        target = BitmapMasks(sample.masks.astype(np.uint8), *sample.image_size)
        theirs.process({}, [{"pred_instances": {"masks": prediction.masks}, "gt_masks": target}])
    expected = theirs.evaluate(len(samples))
    got = evaluate(RefSegMetric(empty="count_as_zero"), samples, predictions)
    assert got["refseg/num_empty_targets"] > 2
    assert 100 * got["refseg/refined_cIoU"] == pytest.approx(float(expected["cIoU"]), abs=1e-4)
    assert 100 * got["refseg/refined_gIoU"] == pytest.approx(float(expected["mIoU"]), abs=1e-4)


@pytest.mark.parametrize("metric", [RefSegMetric, PNGMetric])
def test_figures_do_not_depend_on_order_batches_or_padding(metric):
    samples, predictions = make_pairs(17, seed=1)
    expected = evaluate(metric(), samples, predictions, batch_size=1)
    order = np.random.default_rng(0).permutation(17).tolist()
    order += order[:3]  # distributed samplers repeat some records
    shuffled = evaluate(metric(), [samples[i] for i in order], [predictions[i] for i in order], batch_size=5)
    assert shuffled == expected


def test_threshold_sweep_equals_brute_force():
    samples, predictions = make_pairs(12, seed=3)
    for prediction in predictions:
        prediction.coarse_logits -= 1.0  # the best threshold is not 0.5
    got = evaluate(RefSegMetric(threshold_sweep=True), samples, predictions)
    by_threshold = {}
    for threshold in SWEEP_THRESHOLDS:
        intersection = union = 0
        for sample, prediction in zip(samples, predictions):
            masks = (
                resize_maps(prediction.coarse_logits, prediction.image_size).double().sigmoid().numpy()
                > threshold
            )
            intersection += (masks & sample.masks).sum()
            union += (masks | sample.masks).sum()
        by_threshold[threshold] = intersection / union
    best = max(by_threshold, key=by_threshold.get)
    assert got["refseg/coarse_best_threshold"] == best
    assert got["refseg/coarse_best_threshold_cIoU"] == pytest.approx(by_threshold[best], abs=1e-12)
    assert got["refseg/coarse_cIoU"] == pytest.approx(by_threshold[0.5], abs=1e-12)
    assert got["refseg/coarse_best_threshold_cIoU"] > got["refseg/coarse_cIoU"]


def pair(target_empty: bool, predicted_empty: bool, record_id: str):
    masks = np.zeros((1, 10, 10), dtype=bool)
    masks[:, :5] = not target_empty
    logits = torch.full((1, 10, 10), -3.0)
    if not predicted_empty:
        logits[:, :4] = 3.0  # 40 pixels: IoU 0.8 with the 50 of the target
    sample = Sample(record_id, np.zeros((10, 10, 3), np.uint8), "x", (Phrase(((0, 1),)),), masks)
    return sample, make_prediction(record_id, logits, logits.clone(), (10, 10))


@pytest.mark.parametrize(
    ("empty", "expected"),
    [
        ("skip", {"cIoU": 40 / 100, "gIoU": 0.4, "P@0.8": 0.5, "box_acc@0.5": 0.5}),
        ("count_as_zero", {"cIoU": 40 / 140, "gIoU": 0.2, "P@0.8": 0.25, "box_acc@0.5": 0.25}),
        ("grefcoco", {"cIoU": 40 / 140, "gIoU": 0.45, "P@0.8": 0.5, "N_acc": 0.5, "T_acc": 0.5}),
    ],
)  # fmt: skip
def test_conventions_for_empty_targets(empty, expected):
    cases = [(False, False), (False, True), (True, False), (True, True)]
    pairs = [pair(*case, record_id=str(number)) for number, case in enumerate(cases)]
    got = evaluate(RefSegMetric(empty=empty), [sample for sample, _ in pairs], [p for _, p in pairs])
    figures = {name: value for name, value in got.items() if name.startswith("refseg/refined")}
    for name, value in expected.items():
        assert figures[f"refseg/refined_{name}"] == pytest.approx(value), name
    assert ("refseg/refined_N_acc" in figures) == (empty == "grefcoco")
    assert got["refseg/num_empty_targets"] == 2


def test_unknown_convention():
    with pytest.raises(ConfigError, match="`empty` is 'ignore'; allowed: skip, count_as_zero, grefcoco"):
        RefSegMetric(empty="ignore")


def test_without_refiner_only_coarse_figures():
    samples, predictions = make_pairs(4, refiner=False)
    got = evaluate(RefSegMetric(), samples, predictions)
    assert not any("refined" in name for name in got)
    assert "refseg/coarse_cIoU" in got


def test_average_recall_equals_its_definition():
    """Integral over thresholds of the share of phrases above the threshold, by category."""
    samples, predictions = make_pairs(40, seed=4)
    got = evaluate(PNGMetric(), samples, predictions)
    phrases = [phrase for sample in samples for phrase in sample.phrases]
    groups = {
        "all": phrases,
        "thing": [p for p in phrases if p.is_thing],
        "stuff": [p for p in phrases if not p.is_thing],
        "singular": [p for p in phrases if not p.is_plural],
        "plural": [p for p in phrases if p.is_plural],
    }
    thresholds = np.arange(0, 1, 1e-5)
    for kind in ("coarse", "refined"):
        ious = {
            id(phrase): (p & t).sum() / (p | t).sum()
            for phrase, (p, t) in zip(phrases, brute_force(samples, predictions, kind))
        }
        for name, members in groups.items():
            values = np.array([ious[id(phrase)] for phrase in members])
            integral = (values[:, None] > thresholds).mean(0).sum() * 1e-5
            assert got[f"png/{kind}_average_recall_{name}"] == pytest.approx(integral, abs=1.1e-5)
            assert 0.1 < integral < 0.9
        assert got[f"png/{kind}_acc@0.5"] == np.mean([iou >= 0.5 for iou in ious.values()])


def test_groups_without_phrases_are_absent():
    sample, prediction = pair(False, False, "a")
    figures = png_figures(phrase_records(sample, prediction))
    assert figures["refined_average_recall_all"] == pytest.approx(0.8)
    assert not any(name.endswith(("thing", "stuff", "singular", "plural")) for name in figures)


def test_predictions_that_do_not_belong():
    sample, prediction = pair(False, False, "a")
    other, _ = pair(False, False, "b")
    with pytest.raises(DataError, match="b: the prediction is of record 'a'"):
        phrase_records(other, prediction)
    bare = Sample("a", sample.image, "x", sample.phrases)
    with pytest.raises(DataError, match="a: it has no masks"):
        phrase_records(bare, prediction)
    prediction.refined_logits[0, 0, 0] = float("nan")
    with pytest.raises(RunError, match="a: the refined mask logits contain NaN"):
        phrase_records(sample, prediction)
