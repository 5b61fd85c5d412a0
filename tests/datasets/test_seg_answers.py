"""Phrases and masks of other readers as answers with mask tokens."""

from __future__ import annotations

import json

import numpy as np
import pytest
from dataset_files import SIZE, own_line, write_image, write_jsonl, write_png, write_refcoco
from PIL import Image
from reasoning_files import reason_files
from torch.utils.data import DataLoader

from flmm_detseg.datasets import (
    JSONLDataset,
    MultiTaskMix,
    PNGDataset,
    RefCOCODataset,
    SegAnswers,
    collate_samples,
)
from flmm_detseg.datasets.checks import check_dataset, find_datasets
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.language.mask_wording import (
    ANSWERS,
    CAPTION_QUESTIONS,
    NOTHING_THERE,
    PHRASE_QUESTIONS,
    answer_with_masks,
)
from flmm_detseg.language.segment_names import mask_token_spans, segment_names
from flmm_detseg.structures import Phrase, Sample


def tokens(sample) -> list[str]:
    return [sample.phrase_text(k) for k in range(len(sample.phrases))]


def test_a_question_for_each_phrase(tmp_path):
    reader = dict(type="RefCOCODataset", **write_refcoco(tmp_path), split="val", sentences="first")
    dataset = SegAnswers(reader, wordings="first")
    phrases = RefCOCODataset(**{key: value for key, value in reader.items() if key != "type"})
    assert len(dataset) == 2 * len(phrases)
    for index, sample in enumerate(dataset):
        source, k = phrases[index // 2], index % 2
        words = source.phrase_text(k)
        assert (sample.task, sample.prompt) == ("reasoning", PHRASE_QUESTIONS[0].format(words))
        assert (sample.text, tokens(sample)) == ("this is it : [SEG] .", ["[SEG]"])
        assert np.array_equal(sample.masks, source.masks[k : k + 1])
        assert (sample.meta["query"], sample.meta["names"]) == (words, [words])
        assert sample.meta["ann_ids"] == source.meta["ann_ids"]
        assert sample.image_id == source.image_id
        assert dataset.phrase_texts(index) == (source.image_id, [])
    assert len({dataset.record_id(k) for k in range(len(dataset))}) == len(dataset)
    assert dataset.annotation_files == phrases.annotation_files


def test_wordings_and_sentences_are_drawn_per_epoch(tmp_path):
    dataset = SegAnswers(RefCOCODataset(**write_refcoco(tmp_path), split="val", layout="split"))
    seen = []
    for epoch in range(30):
        dataset.set_epoch(epoch)
        seen.append([(s.prompt, s.text) for s in dataset])
    dataset.set_epoch(7)
    assert [(s.prompt, s.text) for s in dataset] == seen[7]
    flat = [pair for epoch in seen for pair in epoch]
    assert {text for _, text in flat} == {form.format("[SEG]") for form in ANSWERS}
    assert {prompt.split(" object ")[0].split(" ")[0] for prompt, _ in flat} == {
        form.split(" ")[0] for form in PHRASE_QUESTIONS
    }
    # The reader's sentences follow the epoch, too.
    assert {prompt[prompt.index(" way ") + 5] for prompt, _ in flat} == {"0", "1", "2"}


def test_wordings_give_masks_no_names():
    """What a mask is of is read from the words before its token: those of an answer without names say nothing."""
    rng = np.random.default_rng(0)
    for _ in range(60):
        text = answer_with_masks(2, (), rng)
        assert segment_names(text, mask_token_spans(text)) == ["", ""]
    named = answer_with_masks(3, ("the red ring", "a star", "the sky"), rng)
    assert named == "the red ring [SEG] , a star [SEG] and the sky [SEG] ."
    assert segment_names(named, mask_token_spans(named)) == ["the red ring", "a star", "the sky"]


def test_captions_get_a_token_behind_each_phrase(tmp_path):
    dataset = SegAnswers(PNGDataset(**write_png(tmp_path)), form="captions", wordings="first")
    sample, source = dataset[0], PNGDataset(**write_png(tmp_path))[0]
    expected = "In front of the sky [SEG] there is a star [SEG] ; two stars [SEG] ."
    assert (sample.text, sample.prompt) == (expected, CAPTION_QUESTIONS[0])
    assert tokens(sample) == ["[SEG]"] * 3
    assert sample.meta["names"] == ["the sky", "a star", "two stars"]
    assert np.array_equal(sample.masks, source.masks)


class Fixed(JSONLDataset):
    """One record with phrases that overlap."""

    def _read(self, record) -> Sample:
        sample = super()._read(record)
        text = "a man with a hat and a cat"
        phrases = [((0, 16),), ((11, 16),), ((0, 5), (21, 26)), ((21, 26),)]
        masks = np.zeros((4, *sample.image_size), dtype=bool)
        for k in (0, 1, 2):
            masks[k, k, : k + 2] = True
        return Sample(
            "r",
            sample.image,
            text,
            tuple(Phrase(spans) for spans in phrases),
            masks,
            image_id=sample.image_id,
        )

    def phrase_texts(self, index):
        return super().phrase_texts(index)[0], ["", "", "", ""]


def test_phrases_that_end_together_and_phrases_without_a_mask(tmp_path):
    reader = Fixed(str(write_jsonl(tmp_path, [own_line()])))
    sample = SegAnswers(reader, form="captions")[0]
    # "a hat" before "a man with a hat"; "a man .. a cat" ends with the text; "a cat" has no mask.
    assert sample.text == "a man with a hat [SEG] [SEG] and a cat [SEG]"
    assert sample.meta["names"] == ["a hat", "a man with a hat", "a man a cat"]
    assert np.array_equal(sample.masks, reader[0].masks[[1, 0, 2]])
    nothing = SegAnswers(reader)[3]
    assert (nothing.text, nothing.phrases, len(nothing.masks)) == (NOTHING_THERE, (), 0)
    assert nothing.meta["query"] == "a cat"


def test_a_question_has_its_own_reason_of_absence(tmp_path):
    """Readers have a list, with an entry for each phrase; a question is about one."""
    line = {"image": own_line()["image"], "caption": "a red dog and a cat and a cow"}
    line["phrases"] = [
        {"text": "a red dog", "mask": None, "absent": "attribute"},
        {"text": "a cat", "mask": own_line()["phrases"][0]["mask"]},
        {"text": "a cow", "mask": None},
    ]
    reader = JSONLDataset(str(write_jsonl(tmp_path, [line])), allow_empty=True)
    samples = list(SegAnswers(reader))
    assert [sample.meta.get("absent") for sample in samples] == ["attribute", None, "other"]
    assert [sample.meta["line"] for sample in samples] == [1, 1, 1], "what else the reader says stays"
    assert "absent" not in SegAnswers(reader, form="captions")[0].meta


def test_what_is_refused(tmp_path):
    files = write_refcoco(tmp_path)
    with pytest.raises(ConfigError, match="`form` is 'both'"):
        SegAnswers(RefCOCODataset(**files, split="val"), form="both")
    with pytest.raises(ConfigError, match="`wordings` is 'all'"):
        SegAnswers(RefCOCODataset(**files, split="val"), wordings="all")
    line = own_line()
    line["caption"], line["phrases"] = (
        "a [SEG] dog",
        [{"text": "a [SEG] dog", "mask": line["phrases"][0]["mask"]}],
    )
    for form in ("questions", "captions"):
        with pytest.raises(DataError, match=r"\[SEG\]"):
            SegAnswers(JSONLDataset(str(write_jsonl(tmp_path, [line]))), form=form)[0]


def test_the_check_reads_what_is_inside(tmp_path):
    reader = dict(type="RefCOCODataset", **write_refcoco(tmp_path), split="val")
    config = {"train_dataloader": {"dataset": dict(type="SegAnswers", dataset=reader)}}
    ((name, found),) = find_datasets(config)
    assert (name, found) == ("train_dataloader.dataset.dataset", reader)
    check = check_dataset("all", config["train_dataloader"]["dataset"])
    assert (check.num_records, check.num_phrases, check.problems) == (6, 6, [])
    assert json.dumps(check.figures())


def test_a_mix_as_lisa_s_gives_one_kind_of_sample(tmp_path):
    """Classes, phrases and reasoning from configs, in worker processes, as ``configs/_base_/datasets/lisa.py``."""
    write_image(tmp_path / "images/a.jpg", 1)
    (tmp_path / "maps").mkdir()
    Image.fromarray(np.repeat(np.arange(SIZE[0], dtype=np.uint8)[:, None] // 20, SIZE[1], 1)).save(
        tmp_path / "maps/a.png"
    )
    maps = dict(
        label_dir=str(tmp_path / "maps"), image_dir=str(tmp_path / "images"), classes=["sky", "road", "cat"]
    )
    classes = dict(type="ClassPrompts", dataset=dict(type="SemanticMapsDataset", **maps), absent_share=0.5)
    refer = dict(type="RefCOCODataset", **write_refcoco(tmp_path / "ref"), split="val", layout="split")
    mix = MultiTaskMix(
        dict(
            classes=dict(type="WeightedMix", datasets=[classes], weights=[1]),
            refer=dict(type="WeightedMix", datasets=[dict(type="SegAnswers", dataset=refer)], weights=[1]),
            reason=dict(type="ReasonSegDataset", folder=str(reason_files(tmp_path / "reason"))),
        ),
        ratios=dict(classes=9, refer=3, reason=1),
    )
    loader = DataLoader(mix, batch_size=3, num_workers=1, collate_fn=collate_samples)
    mix.set_epoch(2)
    samples = [sample for batch in loader for sample in batch["samples"]]
    assert len(samples) == len(mix) == 3 + 6 + 2
    for sample, alone in zip(samples, (mix[k] for k in range(len(mix)))):
        assert (sample.task, sample.text, sample.prompt) == ("reasoning", alone.text, alone.prompt)
        assert np.array_equal(sample.masks, alone.masks)
        assert sample.masks.shape == (sample.text.count("[SEG]"), *sample.image_size)
        assert tokens(sample) == ["[SEG]"] * len(sample.masks)
