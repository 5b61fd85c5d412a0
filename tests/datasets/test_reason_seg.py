"""ReasonSeg's files: masks, regions to ignore, wordings per epoch, explanations, and what is refused."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from reasoning_files import SIZE, entry, polygon, shape, write_reason_seg

from flmm_detseg.cli import main
from flmm_detseg.datasets import ReasonSegDataset
from flmm_detseg.datasets.tinyworld.reason.draw import draw_items
from flmm_detseg.datasets.tinyworld.reason.files import write_reason
from flmm_detseg.datasets.tinyworld.reason.spec import ReasonSpec
from flmm_detseg.datasets.tinyworld.reason_seg import reason_seg_record
from flmm_detseg.datasets.tinyworld.render import make_scene
from flmm_detseg.errors import ConfigError, DataError
from flmm_detseg.language.mask_wording import (
    NOTHING_THERE,
    PHRASE_QUESTIONS,
    REASON_REQUESTS,
    SENTENCE_QUESTIONS,
)

TEXTS = ["where would rain gather ?", "what holds water ?", "which thing could drown a mouse ?"]


def box(x0: int, y0: int, x1: int, y1: int) -> np.ndarray:
    """What ``polygon`` covers, sides included."""
    mask = np.zeros(SIZE, dtype=bool)
    mask[y0 : y1 + 1, x0 : x1 + 1] = True
    return mask


def spans(sample) -> list[str]:
    assert all(len(phrase.spans) == 1 for phrase in sample.phrases)
    return [sample.phrase_text(k) for k in range(len(sample.phrases))]


def test_the_largest_polygon_is_painted_first(tmp_path):
    # Listed in another order: a small target in a region to ignore, a small region to ignore in a large target.
    shapes = [
        shape("target", polygon(3, 3, 6, 6)),
        shape("Ignore this", polygon(1, 1, 12, 12)),
        shape("flag", polygon(0, 0, 59, 39)),
        shape("ignore", polygon(32, 12, 35, 14)),
        shape("target", polygon(30, 10, 50, 30)),
    ]
    sample = ReasonSegDataset(str(write_reason_seg(tmp_path, {"a": entry(TEXTS, shapes)})), queries="first")[
        0
    ]
    ignored = (box(1, 1, 12, 12) & ~box(3, 3, 6, 6)) | box(32, 12, 35, 14)
    assert np.array_equal(sample.masks, [(box(3, 3, 6, 6) | box(30, 10, 50, 30)) & ~box(32, 12, 35, 14)])
    assert np.array_equal(sample.meta["ignore"], ignored)
    assert sample.meta["ignore"].dtype == sample.masks.dtype == bool
    assert sample.task == "reasoning"
    assert spans(sample) == ["[SEG]"]
    assert sample.text.count("[SEG]") == 1


def test_a_world_s_polygons_are_its_masks(tmp_path):
    found = 0
    for index in range(8):
        scene = make_scene(0, index, "train")
        record = reason_seg_record(scene)
        if record is None:
            continue
        folder = write_reason_seg(tmp_path / str(index), {"a": record})
        Image.fromarray(scene.image).save(folder / "a.jpg")
        sample = ReasonSegDataset(str(folder))[0]
        assert "ignore" not in sample.meta
        assert any(np.array_equal(sample.masks[0], obj.mask) for obj in scene.objects)
        found += 1
    assert found


def test_tinyworld_s_second_set_is_read_as_it_was_drawn(tmp_path):
    spec = ReasonSpec(train_images=1, val_images=1, test_images=4, seed=4)
    write_reason(tmp_path / "set", spec, progress=False)
    dataset = ReasonSegDataset(str(tmp_path / "set/test"), queries="first", explained_share=1)
    items = list(draw_items(spec, "test"))
    assert len(dataset) == len(items)
    for sample, item in zip(dataset, items):
        assert np.array_equal(sample.masks, [obj.mask for obj in item.query.targets] or sample.masks[:0])
        assert len(spans(sample)) == len(item.query.targets)
        named = " and ".join(f"{name} [SEG]" for name in item.names[-2:])
        assert sample.text.startswith(named if len(item.names) < 3 else f"{item.names[0]} [SEG] , ")
        assert sample.text.endswith(f" . {sample.meta['explanation']}")
        assert (sample.meta["query"], sample.meta["family"]) == (item.texts[0], item.query.family)
        assert (sample.meta["held_out"], sample.meta["absent"]) == (item.held_out, item.query.absent)
    assert {len(item.query.targets) for item in items} >= {0, 1, 2}
    # The number of a wording is that of a file's first text.
    every = ReasonSegDataset(str(tmp_path / "set/test"), queries="all")
    assert [s.meta["wording"] for s in every if "wording" in s.meta] == [item.wording for item in items]


def test_one_mask_token_a_group(tmp_path):
    shapes = [
        shape("target", polygon(1, 1, 5, 5), group_id=7),
        shape("target", polygon(20, 20, 30, 30), group_id=3),
        shape("target", polygon(8, 1, 9, 5), group_id=7),
    ]
    facts = {"names": ["the red ring", "the star"], "family": "odd", "held_out": None}
    named = entry(TEXTS, shapes, wording=["a", "b", "c"], **facts)
    files = {"named": named, "nameless": entry(TEXTS, shapes)}
    sample, nameless = ReasonSegDataset(str(write_reason_seg(tmp_path, files)), queries="first")
    assert sample.text == "the red ring [SEG] and the star [SEG] ."
    assert np.array_equal(sample.masks, [box(1, 1, 5, 5) | box(8, 1, 9, 5), box(20, 20, 30, 30)])
    assert [sample.text[slice(*phrase.spans[0])] for phrase in sample.phrases] == ["[SEG]"] * 2
    assert sample.phrases[0].spans[0][1] < sample.phrases[1].spans[0][0]
    assert sample.meta == {"query": TEXTS[0], "is_sentence": True, "form": "masks", "wording": "a"} | facts
    assert nameless.text == "this is it : [SEG] and [SEG] ."
    assert np.array_equal(nameless.masks, sample.masks)


def test_nothing_there(tmp_path):
    shapes = [shape("flag", [])]
    sample = ReasonSegDataset(str(write_reason_seg(tmp_path, {"a": entry(TEXTS, shapes, absent="kind")})))[0]
    assert (sample.text, sample.phrases, sample.masks.shape) == (NOTHING_THERE, (), (0, *SIZE))
    assert sample.meta["absent"] == "kind"


def test_wordings_are_drawn_per_epoch(tmp_path):
    shapes = [shape("target", polygon(1, 1, 5, 5))]
    folder = str(write_reason_seg(tmp_path, {name: entry(TEXTS, shapes) for name in "abcd"}))
    dataset = ReasonSegDataset(folder)
    seen = []
    for epoch in range(12):
        dataset.set_epoch(epoch)
        seen.append([(s.meta["query"], s.prompt, s.text) for s in (dataset[k] for k in (3, 1, 0, 2))])
    dataset.set_epoch(5)
    assert [(s.meta["query"], s.prompt, s.text) for s in (dataset[k] for k in (3, 1, 0, 2))] == seen[5]
    flat = [words for epoch in seen for words in epoch]
    assert {query for query, _, _ in flat} == set(TEXTS)
    assert len({text for _, _, text in flat}) == 5
    assert {prompt for _, prompt, _ in flat} == {
        form.format(text) for form in SENTENCE_QUESTIONS for text in TEXTS
    }
    assert len({tuple(epoch) for epoch in seen}) > 6
    assert [s.prompt for s in ReasonSegDataset(folder, queries="first")] == [
        SENTENCE_QUESTIONS[0].format(TEXTS[0])
    ] * 4
    every = ReasonSegDataset(folder, queries="all")
    assert [s.meta["query"] for s in every] == TEXTS * 4
    assert len({every.record_id(k) for k in range(12)}) == 12


def test_phrases_and_sentences_are_asked_for_in_their_own_way(tmp_path):
    shapes = [shape("target", polygon(1, 1, 5, 5))]
    files = {"a": entry(["a place for {rain}"], shapes) | {"is_sentence": False}}
    folder = str(write_reason_seg(tmp_path, files))
    dataset = ReasonSegDataset(folder)
    prompts = set()
    for epoch in range(40):
        dataset.set_epoch(epoch)
        prompts.add(dataset[0].prompt)
    assert prompts == {form.replace("{}", "a place for {rain}") for form in PHRASE_QUESTIONS}
    assert ReasonSegDataset(folder, request=False)[0].prompt == "a place for {rain}"


def test_explanations(tmp_path):
    shapes = [shape("target", polygon(1, 1, 5, 5))]
    folder = write_reason_seg(tmp_path / "train", {"a": entry(TEXTS, shapes), "b": entry(TEXTS, shapes)})
    explanations = tmp_path / "train.json"
    texts = [
        {"image": "a.jpg", "query": "why ?", "outputs": "the bowl\nholds water ."},
        {"image": "z.jpg", "query": "why ?", "outputs": "it is not here ."},
    ]
    explanations.write_text(json.dumps(texts))

    def read(**shares):
        return ReasonSegDataset(str(folder), explanations_file=str(explanations), queries="first", **shares)

    assert read().dropped == {"explanation of another image": ["z.jpg"]}
    assert read()[0].text == read()[1].text == "this is it : [SEG] ."
    explained, plain = read(explained_share=1)
    assert explained.text == "this is it : [SEG] . the bowl holds water ."
    assert explained.prompt == f"{plain.prompt} {REASON_REQUESTS[0]}"
    assert plain.text == "this is it : [SEG] ."
    words, plain = read(text_share=1, explained_share=1)
    assert (words.prompt, words.text, words.phrases, len(words.masks)) == (
        "why ?",
        "the bowl holds water .",
        (),
        0,
    )
    assert len(plain.masks) == 1
    dataset = read(text_share=0.1, explained_share=0.5)
    forms = []
    for epoch in range(600):
        dataset.set_epoch(epoch)
        forms.append(dataset[0].meta["form"])
    # Three standard deviations.
    for form, share in (("text", 0.1), ("explained", 0.45), ("masks", 0.45)):
        assert abs(forms.count(form) / 600 - share) < 3 * (share * (1 - share) / 600) ** 0.5, form


def test_explanations_of_the_files_themselves(tmp_path):
    shapes = [shape("target", polygon(1, 1, 5, 5))]
    content = entry(TEXTS, shapes, names=["the ring"], explanation="the ring is round .")
    folder = str(write_reason_seg(tmp_path, {"a": content}))
    sample = ReasonSegDataset(folder, queries="first", explained_share=1)[0]
    assert sample.text == "the ring [SEG] . the ring is round ."
    assert sample.meta["explanation"] == "the ring is round ."
    assert ReasonSegDataset(folder).count()["with_explanation"] == 1


def test_old_encodings(tmp_path):
    content = json.dumps(
        entry(["the café’s sign"], [shape("target", polygon(1, 1, 5, 5))]), ensure_ascii=False
    )
    files = {"a": content.encode("cp1252"), "b": content.encode("utf-8"), "c": content.encode("utf-8-sig")}
    dataset = ReasonSegDataset(str(write_reason_seg(tmp_path, files)))
    assert [sample.meta["query"] for sample in dataset] == ["the café’s sign"] * 3


def test_several_questions_about_one_image(tmp_path):
    shapes = [shape("target", polygon(1, 1, 5, 5))]
    folder = write_reason_seg(tmp_path, {"a": entry(["one ?"], shapes)})
    (folder / "a-2.json").write_text(json.dumps(entry(["two ?"], shapes, imagePath="a.jpg")))
    dataset = ReasonSegDataset(str(folder))
    assert {(s.meta["query"], Path(s.image_id).name) for s in dataset} == {
        ("one ?", "a.jpg"),
        ("two ?", "a.jpg"),
    }


GOOD = entry(["what ?"], [shape("target", polygon(1, 1, 5, 5))])
BAD = [
    (b"{", "line 1 column 2", "broken JSON"),
    (b'{"text": ["\x81"]}', "not UTF-8", "bad encoding"),
    ([], "expected an object", "malformed"),
    ({"text": ["a"], "shapes": []}, "`is_sentence` is missing", "malformed"),
    (GOOD | {"text": "what ?"}, "`text` is 'what \\?', not a list", "malformed"),
    (GOOD | {"text": []}, "no question", "malformed"),
    (GOOD | {"text": ["a", " "]}, r"`text\[1\]` is empty", "bad text"),
    (GOOD | {"text": ["where is [SEG] ?"]}, r"\[SEG\]", "control word"),
    (GOOD | {"is_sentence": "yes"}, "`is_sentence`", "malformed"),
    (GOOD | {"shapes": {}}, "`shapes`", "malformed"),
    (GOOD | {"shapes": []}, "no shape is a target", "no target"),
    (GOOD | {"shapes": [5]}, r"shapes\[0\] is 5", "bad shape"),
    (GOOD | {"shapes": [shape("target", polygon(1, 1, 5, 5), shape_type="circle")]}, "'circle'", "bad shape"),
    (GOOD | {"shapes": [shape("target", [[1, 2, 3]])]}, r"shapes\[0\]: `points`", "bad mask"),
    (GOOD | {"shapes": [shape("target", [[1, None], [2, 3], [4, 4]])]}, "None", "bad mask"),
    (GOOD | {"shapes": [shape("target", [[1, 1], [2, 3], [9e9, 4]])]}, "9e\\+09", "bad mask"),
    (GOOD | {"shapes": [shape("target", polygon(1, 1, 5, 5), group_id=0.5)]}, "group_id", "malformed"),
    (GOOD | {"names": ["a", "b"]}, "2 `names` for 1 targets", "malformed"),
    (GOOD | {"wording": [1, 2]}, "2 values of `wording` for 1 texts", "malformed"),
    (GOOD | {"imageHeight": 400, "imageWidth": 600}, "40 x 60|400", None),
    (GOOD | {"shapes": [shape("target", polygon(70, 1, 75, 5))]}, "target 0 has no pixel", "empty mask"),
]


@pytest.mark.parametrize(("content", "match", "kind"), BAD)
def test_a_faulty_file_is_named_or_skipped_and_counted(tmp_path, content, match, kind):
    folder = write_reason_seg(tmp_path, {"good": GOOD, "bad": content})
    with pytest.raises(DataError, match=match) as caught:
        list(ReasonSegDataset(str(folder)))
    assert "bad" in str(caught.value)
    dataset = ReasonSegDataset(str(folder), policy="skip", verify_images=True)
    assert [dataset.record_id(k) for k in range(len(dataset))] == ["reasonseg/good"]
    assert len(dataset.problems) == 1
    assert kind is None or dataset.report()["skipped"] == {kind: 1}


def test_what_is_refused(tmp_path):
    folder = write_reason_seg(tmp_path, {"a": GOOD})
    with pytest.raises(ConfigError, match="`queries` is 'some'"):
        ReasonSegDataset(str(folder), queries="some")
    with pytest.raises(ConfigError, match="`text_share` is 2"):
        ReasonSegDataset(str(folder), text_share=2)
    with pytest.raises(ConfigError, match="no file has an explanation"):
        ReasonSegDataset(str(folder), explained_share=0.5)
    (folder / "alone.json").write_text(json.dumps(GOOD))
    with pytest.raises(DataError, match=r"alone.jpg not found"):
        ReasonSegDataset(str(folder))
    with pytest.raises(DataError, match="no usable record"):
        ReasonSegDataset(str(tmp_path.parent), policy="skip")


def test_the_command_checks_a_folder(tmp_path, monkeypatch, capsys):
    folder = write_reason_seg(tmp_path, {"a": GOOD, "b": GOOD | {"text": []}})
    preview = tmp_path / "preview" / "p.png"
    words = ["flmm-detseg", "data", "check", "reasonseg", str(folder), "--preview", str(preview)]
    monkeypatch.setattr(sys, "argv", words)
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    printed = capsys.readouterr().out.splitlines()
    assert any("b.json" in line and "no question" in line for line in printed)
    figures = json.loads(printed[-1])["data_sets"][str(folder)]
    assert (figures["records"], figures["targets"], figures["problems"]) == (1, 1, 1)
    assert preview.is_file()
