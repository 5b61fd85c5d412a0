from __future__ import annotations

import json

import pytest
import torch
from label_parts import tiny_bert_tokenizer

from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.labelling.classes import as_words, read_categories, read_ground_truth, resolve_classes
from flmm_detseg.labelling.prompts import build_prompts, match_classes

CATEGORIES = ({"id": 3, "name": "cat", "supercategory": "animal"}, {"id": 9, "name": "traffic_light"})


def prompts_of(*names, max_tokens=64):
    classes, _ = resolve_classes(names, ())
    return build_prompts(classes, tiny_bert_tokenizer(), max_tokens)


def match(prompt, scores, text_threshold=0.25):
    """Label and score of one box from the scores of tokens by position."""
    probabilities = torch.zeros(1, 64)
    for position, score in scores.items():
        probabilities[0, position] = score
    labels, best = match_classes(probabilities, prompt, text_threshold)
    return labels.item(), pytest.approx(best.item())


def test_ids_come_from_the_ground_truth_then_from_the_listed_file():
    classes, categories = resolve_classes(None, CATEGORIES)
    assert [(c.name, c.category_id, c.wordings) for c in classes] == [
        ("cat", 3, ("cat",)),
        ("traffic_light", 9, ("traffic light",)),
    ]
    assert categories == list(CATEGORIES)
    classes, categories = resolve_classes(["dog|a dog", "cat"], CATEGORIES)
    assert [(c.name, c.category_id, c.wordings) for c in classes] == [
        ("dog", 10, ("dog", "a dog")),
        ("cat", 3, ("cat",)),
    ]
    assert categories == [*CATEGORIES, {"id": 10, "name": "dog"}]
    listed = [{"id": 5, "name": "cup"}, {"id": 3, "name": "cat"}]
    assert [c.category_id for c in resolve_classes(None, CATEGORIES, listed)[0]] == [10, 3]
    assert [c.category_id for c in resolve_classes(None, (), listed)[0]] == [5, 3]
    assert [c.category_id for c in resolve_classes(["cat", "cup"], ())[0]] == [1, 2]


@pytest.mark.parametrize(
    ("names", "match"),
    [
        ([], "no class"),
        (["cat", "Cat"], "both the words 'cat'"),
        (["cup|cat", "cat"], "both the words 'cat'"),
        (["._"], "no words"),
    ],
)
def test_classes_that_cannot_be_distinguished_are_errors(names, match):
    with pytest.raises(ConfigError, match=match):
        resolve_classes(names, ())


def test_words_hold_no_mark_that_ends_a_class():
    assert as_words("Stop_Sign (U.S.)?") == "stop sign (u s )"
    (prompt,) = prompts_of("stop_sign.", "teapot")
    assert prompt.text == "stop sign. teapot."
    assert [phrase.tokens for phrase in prompt.phrases] == [(1, 2), (4, 5)]


def test_many_classes_become_several_prompts_and_none_is_cut_off():
    names = ["cat", "traffic light", "coffee cup", "dog", "teapot"]
    prompts = prompts_of(*names, max_tokens=8)
    assert [prompt.text for prompt in prompts] == ["cat. traffic light.", "coffee cup. dog.", "teapot."]
    assert [[phrase.label for phrase in prompt.phrases] for prompt in prompts] == [[0, 1], [2, 3], [4]]
    tokenizer = tiny_bert_tokenizer()
    assert all(len(tokenizer(prompt.text).input_ids) <= 8 for prompt in prompts)
    with pytest.raises(ConfigError, match="'red traffic light' has 3 tokens, of 2 at most"):
        prompts_of("red traffic light", max_tokens=5)


def test_unknown_words_are_left_to_a_synonym_or_an_error():
    (prompt,) = prompts_of("tasse|cup", "cat")
    assert prompt.text == "cup. cat."
    assert [phrase.label for phrase in prompt.phrases] == [0, 1]
    with pytest.raises(ConfigError, match="knows no token.*tasse|SYNONYM"):
        prompts_of("tasse")


def test_a_box_goes_to_the_class_of_its_best_phrase():
    (prompt,) = prompts_of("cat", "traffic light", "dog|red dog")
    # [CLS] cat . traffic light . dog . red dog . [SEP]
    assert match(prompt, {1: 0.6, 4: 0.5}) == (0, 0.6)
    assert match(prompt, {1: 0.3, 3: 0.4, 4: 0.7}) == (1, 0.7)
    assert match(prompt, {4: 0.9, 1: 0.3}) == (1, 0.9)  # part of a class is enough
    assert match(prompt, {6: 0.5, 8: 0.3, 9: 0.55}) == (2, 0.55)  # a synonym is its class


def test_shared_words_go_to_the_longest_class_that_is_all_there():
    (prompt,) = prompts_of("cup", "coffee cup", "red coffee cup", "cat")
    # [CLS] cup . coffee cup . red coffee cup . cat . [SEP]
    cup = {1: 0.7, 4: 0.6, 8: 0.5}
    assert match(prompt, cup) == (0, 0.7)
    assert match(prompt, cup | {3: 0.4, 7: 0.4}) == (1, 0.6)
    assert match(prompt, cup | {3: 0.4, 7: 0.4, 6: 0.3}) == (2, 0.5)
    # longer, and all there, but about something else
    assert match(prompt, {10: 0.9, 3: 0.3, 4: 0.3}) == (3, 0.9)


def test_boxes_without_a_phrase_have_no_class():
    (prompt,) = prompts_of("cat", "dog")
    probabilities = torch.zeros(2, 64)
    probabilities[0, 2] = 0.9  # the full stop between them
    probabilities[1, 3] = 0.3
    assert match_classes(probabilities, prompt, 0.25)[0].tolist() == [-1, -1 + 2]
    assert match_classes(probabilities, prompt, 0.35)[0].tolist() == [-1, -1]
    assert match_classes(probabilities[:0], prompt, 0.25)[0].shape == (0,)


def coco(**changes):
    image = {"id": 1, "file_name": "a.png", "height": 4, "width": 5}
    annotation = {"id": 1, "image_id": 1, "category_id": 3, "bbox": [0, 0, 2, 2]}
    content = {"images": [image], "annotations": [annotation], "categories": list(CATEGORIES)}
    for key, change in changes.items():
        content[key] = [{**content[key][0], **change}] if isinstance(change, dict) else change
    return content


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (coco(images={"height": "4"}), r"image 1: .*`height` is '4'"),
        (coco(images=coco()["images"] * 2), "occurs twice"),
        (coco(annotations={"image_id": 7}), "image 7 is not in `images`"),
        (coco(annotations={"bbox": [1, 2]}), r"annotation 1: `bbox`"),
        (coco(categories=[*CATEGORIES, {"id": 3, "name": "cow"}]), "category 'cow' .id 3. occurs twice"),
        (coco(categories=[]), "`categories` is empty"),
        ({"images": []}, "key `annotations` is missing"),
    ],
)
def test_faulty_ground_truth_is_named(tmp_path, content, match):
    file = tmp_path / "truth.json"
    file.write_text(json.dumps(content))
    with pytest.raises(DataError, match=match) as caught:
        read_ground_truth(str(file))
    assert "truth.json" in str(caught.value)


def test_categories_are_in_the_order_of_their_ids(tmp_path):
    file = tmp_path / "classes.json"
    file.write_text(json.dumps({"categories": CATEGORIES[::-1]}))
    assert read_categories(str(file)) == CATEGORIES
