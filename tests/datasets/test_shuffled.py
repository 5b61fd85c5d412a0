from __future__ import annotations

import numpy as np
import pytest
from dataset_files import write_png, write_refcoco

from flmm_detseg.datasets import ConcatMix, PNGDataset, RefCOCODataset, ShuffledPhrases
from flmm_detseg.errors import DataError


def test_phrases_come_from_other_images_and_masks_stay(tmp_path):
    dataset = RefCOCODataset(**write_refcoco(tmp_path), split="val", sentences="first")
    shuffled = ShuffledPhrases(dataset)
    assert len(shuffled) == len(dataset)
    for index in range(len(dataset)):
        own, wrong = dataset[index], shuffled[index]
        assert wrong.record_id == own.record_id == shuffled.record_id(index)
        assert np.array_equal(wrong.masks, own.masks)
        texts = [wrong.phrase_text(k) for k in range(2)]
        assert all(f"of image {index} " not in text for text in texts)
        assert wrong.text == " . ".join(texts) + " ."
    assert [shuffled[i].text for i in range(3)] == [ShuffledPhrases(dataset)[i].text for i in range(3)]
    assert [shuffled[i].text for i in range(3)] != [
        ShuffledPhrases(dataset, seed=1)[i].text for i in range(3)
    ]


def test_categories_belong_to_the_masks(tmp_path):
    png = PNGDataset(**write_png(tmp_path))
    refcoco = RefCOCODataset(**write_refcoco(tmp_path), split="val", sentences="first")
    sample = ShuffledPhrases(ConcatMix([png, refcoco]))[0]
    assert [phrase.is_thing for phrase in sample.phrases] == [False, True, True]
    assert [phrase.is_plural for phrase in sample.phrases] == [False, False, True]


def test_one_image_is_not_enough(tmp_path):
    dataset = RefCOCODataset(**write_refcoco(tmp_path), split="testA", sentences="first")
    with pytest.raises(DataError, match="This control needs several images"):
        ShuffledPhrases(dataset)[0]
