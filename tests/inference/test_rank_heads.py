"""Ranking attention heads without masks: planted heads are found, and the tiny LLaVA's own point at things."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny import make_sample, tiny_llava

from flmm_detseg.commands import rank_heads as command
from flmm_detseg.datasets.phrase_list import PhraseList
from flmm_detseg.datasets.tinyworld import make_scene, referring_expressions
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.heads import AttentionMaskHead
from flmm_detseg.inference.rank_heads import (
    agreement_scores,
    attention_of,
    contrast_scores,
    elbow,
    localisation_scores,
    one_phrase_each,
    rank_heads,
    spatial_entropy,
    with_wrong_phrases,
)
from flmm_detseg.lmms.load_lmm import load_lmm
from flmm_detseg.structures import HeadRanking, Phrase, Sample

ROOT = Path(__file__).resolve().parents[2]
RNG = np.random.default_rng(0)


def blob(row: int, col: int) -> np.ndarray:
    """A map of 12 x 12 with one bright place of 9 cells."""
    values = np.full((12, 12), 0.001)
    values[row : row + 3, col : col + 3] = 0.1
    return values


def stacks(places: list[tuple[int, int]]) -> list[np.ndarray]:
    """Heads: 0 points at the place, 1 looks at a corner whatever is said, 2 is noise, 3 gives the image nothing."""
    found = []
    for place in places:
        noise = RNG.random((12, 12)) * 0.01
        found.append(np.stack([blob(*place), blob(0, 0), noise, blob(*place) * 1e-4]).astype(np.float32))
    return found


PLACES = [(2, 7), (6, 1), (8, 8), (4, 4)]


def test_a_head_that_follows_the_phrase_leads_the_contrast():
    right, wrong = stacks(PLACES), stacks(PLACES[1:] + PLACES[:1])
    scores = contrast_scores(right, wrong)
    assert scores.argmax() == 0
    assert scores[1] < 1e-9  # the same wherever the phrase is
    assert scores[0] > 20 * scores[3]  # attention that the image does not get counts little


def test_agreement_is_iou_with_the_common_mask():
    right = stacks(PLACES)
    scores = agreement_scores(right, [0])
    assert scores[0] == scores[3] == 1.0
    assert scores[1] < 0.1 > scores[2]


def test_each_head_has_one_vote_in_the_common_mask():
    """Two heads cover the thing; a third gives one cell beside it all its attention, which in a mean would decide."""
    whole, peak = blob(2, 2), np.full((12, 12), 1e-6)
    peak[5, 5] = 1.0
    stack = np.stack([whole, whole * 0.5, peak]).astype(np.float32)
    scores = agreement_scores([stack], [0, 1, 2])
    assert scores[0] == scores[1] == 1.0
    assert scores[2] == 0
    # A cell that half of the voters have is not in it where another has all of them.
    narrow = np.full((12, 12), 0.001)
    narrow[2:5, 2:4] = 0.1
    half = agreement_scores([np.stack([whole, narrow]).astype(np.float32)], [0, 1])
    assert half[1] == 1.0 > half[0] > 0.5


def test_localisation_prefers_one_place_among_heads_that_look_at_the_image():
    scores = localisation_scores(stacks(PLACES))
    assert set(np.argsort(-scores)[:2]) == {0, 1}  # one place each; 2 has many, 3 none of the attention


def test_a_head_that_gives_one_image_nothing_has_a_score_too():
    given = stacks(PLACES)
    expected = localisation_scores(given)
    given[1][3] = 0  # its softmax underflowed
    scores = localisation_scores(given)
    assert np.isfinite(scores).all()
    assert set(np.argsort(-scores)[:2]) == set(np.argsort(-expected)[:2]) == {0, 1}
    assert scores.argmin() == 3


def test_spatial_entropy_and_elbow_by_hand():
    assert spatial_entropy(blob(2, 2)) == 0
    two = np.maximum(blob(1, 1), blob(8, 8))
    assert spatial_entropy(two) == pytest.approx(np.log(2))
    assert spatial_entropy(np.ones((3, 3))) == float("inf")
    touching = np.zeros((4, 4))
    touching[0, 0] = touching[1, 1] = 1  # by a corner: one place
    assert spatial_entropy(touching) == 0
    assert elbow(np.array([0.0, 0.01, 0.02, 0.5, 1.0])) == 0.02
    assert elbow(np.array([0.3, 0.3])) == 0.3


def test_samples_are_a_phrase_each_about_other_images():
    records = [replace(make_sample(index), image_id=str(index // 2)) for index in range(6)]
    chosen = one_phrase_each(iter(records), 2)
    assert [sample.image_id for sample in chosen] == ["0", "1"]
    for sample in chosen:
        assert sample.phrases == (Phrase(((0, len(sample.text)),)),)
        assert sample.masks is None
    assert len(one_phrase_each(records, 9)) == 3
    assert len(one_phrase_each([replace(record, image_id=None) for record in records], 9)) == 6
    named = [
        replace(sample, text=text, phrases=(Phrase(((0, 1),)),)) for sample, text in zip(chosen * 2, "aabc")
    ]
    assert [sample.text for sample in with_wrong_phrases(named)] == ["b", "b", "c", "a"]
    with pytest.raises(DataError, match="all phrases are 'a'"):
        with_wrong_phrases(named[:2])


def scene_samples(split: str, count: int) -> tuple[list[Sample], list[np.ndarray]]:
    """A referring expression and its object's mask, of each of some scenes that no training has used."""
    samples, masks = [], []
    for index in range(count):
        scene = make_scene(1, index, split)
        said = referring_expressions(scene, 1)[0]
        phrase = Phrase(((0, len(said.text)),))
        samples.append(Sample(f"{split}/{index}", scene.image, said.text, (phrase,)))
        masks.append(next(thing.mask for thing in scene.objects if thing.object_id == said.object_id))
    return samples, masks


def test_the_tiny_llavas_best_heads_are_found_without_masks():
    """At least 0.8 of the IoU of the best head, which is chosen with the masks."""
    lmm = load_lmm(str(ROOT / "data" / "models" / "tiny_llava"), device="cpu")
    ranking = rank_heads(lmm, scene_samples("train", 50)[0], "tiny")
    samples, masks = scene_samples("val", 40)
    maps = attention_of(lmm, samples, 8)

    def mean_iou(pairs) -> float:
        channels = [lmm.attention_pairs.index(pair) for pair in pairs]
        found = []
        for stack, mask in zip(maps, masks, strict=True):
            logits = AttentionMaskHead(len(pairs))(torch.from_numpy(stack[None, channels]))
            ours = F.interpolate(logits[None], mask.shape, mode="bilinear")[0, 0].numpy() > 0
            found.append((ours & mask).sum() / (ours | mask).sum())
        return float(np.mean(found))

    best = max(mean_iou([pair]) for pair in lmm.attention_pairs)
    found = [mean_iou(ranking.top(count)) for count in (1, 3, 10)]
    assert min(found) >= 0.8 * best
    assert mean_iou(ranking.heads[-3:]) < 0.5 * best


def test_batches_change_nothing_and_the_file_holds_it():
    lmm = tiny_llava()
    samples = one_phrase_each((replace(make_sample(i), image_id=str(i)) for i in range(5)), 5)
    alone, together = (attention_of(lmm, samples, size) for size in (1, 5))
    for a, b in zip(alone, together, strict=True):
        np.testing.assert_allclose(a, b, atol=2e-6)
        assert a.shape[0] == len(lmm.attention_pairs)
    for method in ("contrast", "localisation"):
        ranking = rank_heads(lmm, samples, "tiny", method)
        assert HeadRanking.from_dict(json.loads(json.dumps(ranking.to_dict())), "f") == ranking
        assert set(ranking.heads) == set(lmm.attention_pairs)
        assert list(ranking.scores) == sorted(ranking.scores, reverse=True)
    with pytest.raises(ConfigError, match="'best'; known: contrast, localisation"):
        rank_heads(lmm, samples, "tiny", "best")
    with pytest.raises(DataError, match="on 1 phrases"):
        rank_heads(lmm, samples[:1], "tiny")


def arguments(*words: str):
    import argparse

    parser = argparse.ArgumentParser()
    command.add_arguments(parser)
    return parser.parse_args([*words, "--device", "cpu"])


def test_the_command_ranks_on_images_and_phrases(tmp_path):
    lines = []
    for index in range(6):
        sample = make_sample(index)
        Image.fromarray(sample.image).save(tmp_path / f"{index}.png")
        lines.append(json.dumps({"image": f"{index}.png", "phrase": sample.phrase_text(0)}))
    (tmp_path / "phrases.jsonl").write_text("\n".join(lines))
    files = ["--phrases", str(tmp_path / "phrases.jsonl"), "--image-dir", str(tmp_path)]
    lmm = ["--lmm", str(ROOT / "data" / "models" / "tiny_llava")]
    out = tmp_path / "new" / "ranking.json"
    figures = command.run(arguments(*lmm, *files, "--images", "4", "--out", str(out)))
    ranking = HeadRanking.from_dict(json.loads(out.read_text()), str(out))
    assert figures["phrases"] == ranking.num_phrases == 4
    assert figures["best"] == [list(pair) for pair in ranking.heads[:10]]
    for words, message in (
        ([*lmm, "--out", "a.json"], "either a config, or"),
        (["c", *lmm, "--out", "a.json"], "either a config, or"),
        (["--out", "a.json"], "either a config, or"),
        ([*lmm, *files, "--images", "1", "--out", "a.json"], "--images is 1"),
        ([*lmm, *files, "--out", files[1]], "is an input"),
        ([*lmm, *files, "--out", str(tmp_path)], "is a folder"),
        (["tiny/training_free", "--dtype", "bfloat16", "--out", "a.json"], "--dtype would.*belongs to --lmm"),
    ):
        with pytest.raises(ConfigError, match=message):
            command.run(arguments(*words))
    (tmp_path / "phrases.jsonl").write_text(lines[0] + '\n{"image": "gone.png", "phrase": "a"}')
    with pytest.raises(DataError, match=r"line 2: .*gone\.png"):
        PhraseList(files[1], files[3])
    assert len(PhraseList(files[1], files[3], policy="skip")) == 1
