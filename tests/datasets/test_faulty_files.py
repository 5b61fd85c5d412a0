"""Faults that any file may hold, through every reader: each is a problem of its record, and the others are read."""

from __future__ import annotations

import json
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from dataset_files import SIZE, edit_refs, own_line, write_image, write_jsonl, write_png, write_refcoco
from PIL import Image
from reasoning_files import reason_files, write_grandf, write_grefcoco

from flmm_detseg.datasets import (
    GranDfDataset,
    GRefCOCODataset,
    GroundingDataset,
    JSONLDataset,
    LLaVAInstructDataset,
    PNGDataset,
    QuestionDataset,
    ReasonSegDataset,
    RefCOCODataset,
    SemanticMapsDataset,
)
from flmm_detseg.datasets.files import load_json, parse_json, read_lines
from flmm_detseg.datasets.safe_pickle import load_plain_pickle
from flmm_detseg.errors import ConfigError, DataError, FlmmError
from flmm_detseg.utils.values import CONTROL_WORDS

URI = "data:image/png;base64," + "A" * 6000
HALF = "a \ud83d cat"


def llava_file(root: Path, **changes: Any) -> Path:
    write_image(root / "a.png", 1)
    turns = [{"from": "human", "value": "<image>\nWhat?"}, {"from": "gpt", "value": "A cat."}]
    entry = {"id": "x", "image": "a.png", "conversations": turns}
    path = root / "llava.json"
    path.write_text(json.dumps([entry | changes, entry]))
    return path


def question_file(root: Path, **changes: Any) -> Path:
    write_image(root / "a.png", 1)
    line = {"image": "a.png", "text": "What?", "question_id": 1, "answers": ["cat"]}
    path = root / "questions.jsonl"
    path.write_text("\n".join(json.dumps(entry) for entry in (line | changes, line | {"question_id": 2})))
    return path


def jsonl(root: Path, **changes: Any) -> Callable[..., GroundingDataset]:
    path = write_jsonl(root, [own_line(**changes), own_line()])
    return lambda **settings: JSONLDataset(str(path), **settings)


def llava(root: Path, **changes: Any) -> Callable[..., GroundingDataset]:
    path = llava_file(root, **changes)
    return lambda **settings: LLaVAInstructDataset(str(path), str(root), **settings)


def questions(root: Path, **changes: Any) -> Callable[..., GroundingDataset]:
    path = question_file(root, **changes)
    return lambda **settings: QuestionDataset(str(path), str(root), **settings)


def refcoco(root: Path, **changes: Any) -> Callable[..., GroundingDataset]:
    """Changes: of the first ref (``ref``), the first image, the first annotation."""
    arguments = write_refcoco(root)

    def edit(refs: list[Any], instances: dict[str, Any]) -> None:
        refs[0].update(changes.get("ref", {}))
        instances["images"][0].update(changes.get("image", {}))
        instances["annotations"][0].update(changes.get("annotation", {}))

    edit_refs(arguments, edit)
    return lambda **settings: RefCOCODataset(**arguments, split="val", **settings)


def png(root: Path, **changes: Any) -> Callable[..., GroundingDataset]:
    """Changes: of the first narrative, its second segment, the first image, annotation or category."""
    arguments = write_png(root)
    narratives = json.loads(Path(arguments["narratives_file"]).read_text())
    narratives[0].update(changes.get("narrative", {}))
    if isinstance(narratives[0]["segments"], list):
        narratives[0]["segments"][1].update(changes.get("segment", {}))
    panoptic = json.loads(Path(arguments["panoptic_json"]).read_text())
    panoptic["images"][0].update(changes.get("image", {}))
    panoptic["annotations"][0].update(changes.get("annotation", {}))
    Path(arguments["narratives_file"]).write_text(json.dumps(narratives))
    Path(arguments["panoptic_json"]).write_text(json.dumps(panoptic))
    return lambda **settings: PNGDataset(**arguments, **settings)


def grefcoco(root: Path) -> Callable[..., GroundingDataset]:
    arguments = write_grefcoco(root)
    return lambda **settings: GRefCOCODataset(**arguments, split="val", **settings)


def grandf(root: Path) -> Callable[..., GroundingDataset]:
    arguments = write_grandf(root)
    return lambda **settings: GranDfDataset(**arguments, **settings)


def reason_seg(root: Path) -> Callable[..., GroundingDataset]:
    reason_files(root)
    return lambda **settings: ReasonSegDataset(str(root), **settings)


def read_all(dataset: GroundingDataset) -> list[Any]:
    return [dataset[index] for index in range(len(dataset))]


def refused(build: Callable[..., GroundingDataset], match: str) -> GroundingDataset:
    """The fault is an error that names it, can be printed and is short; with ``skip`` the other records are read."""
    with pytest.raises(DataError, match=match) as caught:
        read_all(build())
    str(caught.value).encode("utf-8")
    assert len(str(caught.value)) < 2500
    dataset = build(policy="skip", verify_images=True)
    assert dataset.problems
    assert [dataset[index] for index in range(len(dataset))]
    return dataset


POLYGON = [[0, 0, 10**400, 0, 5, 5]]
NUMBERS = {
    "refcoco height": (refcoco, dict(image=dict(height=float("inf"))), r"images\[0\]: .*`height` is inf"),
    "refcoco width": (refcoco, dict(image=dict(width=10**400)), r"images\[0\]: .*`width` is 1000"),
    "refcoco half": (refcoco, dict(image=dict(width=60.5)), r"images\[0\]: .*`width` is 60.5, not an int"),
    "refcoco polygon": (refcoco, dict(annotation=dict(segmentation=POLYGON)), "mask of annotation 1000"),
    "refcoco far": (refcoco, dict(annotation=dict(segmentation=[[0, 0, 2e8, 2e8, 5, 9]])), "the coordinate 2e"),
    "refcoco id": (refcoco, dict(ref=dict(ref_id=float("nan"))), "`ref_id` is nan"),
    "png image id": (png, dict(narrative=dict(image_id=float("inf"))), "`image_id` is inf"),
    "png segment id": (png, dict(segment=dict(segment_ids=[10**400])), "`segment_ids` is 1000"),
    "png height": (png, dict(image=dict(height=float("inf"))), r"images\[0\]: .*`height` is inf"),
    "png annotation": (png, dict(annotation=dict(image_id=float("inf"))), r"annotations\[0\]: .*`image_id`"),
    "jsonl polygon": (
        jsonl, dict(phrases=[{"span": [0, 5], "mask": {"polygon": POLYGON}}]), "line 1: phrase 0: a polygon",
    ),
    "jsonl box": (
        jsonl,
        dict(phrases=[{"span": [0, 5], "box": [0, 0, 10**400, 5], "mask": {"polygon": [[0, 0, 9, 0, 9, 9]]}}]),
        "line 1: phrase 0: `box` .* is not",
    ),
    "question id": (questions, dict(question_id=float("inf")), "line 1: .*`question_id` is inf"),
    "question box": (questions, dict(boxes=[[0, 0, 10**400, 5]]), "line 1: .*`boxes` must be"),
}  # fmt: skip


@pytest.mark.case("data/07_infinity_and_long_integers")
@pytest.mark.case("data/01_polygon_far_outside_kills_process")
@pytest.mark.parametrize("name", NUMBERS)
def test_numbers_of_no_use(tmp_path, name):
    write, changes, match = NUMBERS[name]
    refused(write(tmp_path, **changes), match)


@pytest.mark.case("data/07_infinity_and_long_integers")
@pytest.mark.case("security/readers")
def test_integers_that_python_does_not_read_are_reported_with_their_field(tmp_path):
    """int() refuses more than 4,300 digits, which would end the reading of a whole file."""
    build = refcoco(tmp_path)
    path = tmp_path / "instances.json"
    path.write_text(path.read_text().replace('"height": 40', '"height": ' + "9" * 5000, 1))
    refused(build, r"images\[0\]: .*`height` is inf")
    assert parse_json("[-" + "9" * 5000 + ", 7]") == [float("-inf"), 7]


PATHS = {
    "jsonl image": (jsonl, dict(image=URI), "line 1: `image` holds the data itself"),
    "jsonl mask": (
        jsonl,
        dict(phrases=[{"span": [0, 5], "mask": {"png": URI}}]),
        "`mask file` holds the data",
    ),
    "jsonl long": (jsonl, dict(image="b" * 5000), "line 1: image .* not found"),
    "jsonl NUL": (jsonl, dict(image="a\0.png"), "line 1: image .* not found"),
    "jsonl escapes": (jsonl, dict(image="\x1b[2J.png"), r"line 1: image .*\\x1b\[2J.png not found"),
    "jsonl surrogate": (jsonl, dict(image="\ud83d.png"), r"line 1: image .*\\ud83d.png not found"),
    "jsonl list": (
        jsonl,
        dict(phrases=[{"span": [0, 5], "mask": {"png": ["a.png"]}}]),
        "not the name of a file",
    ),
    "llava": (llava, dict(image=URI), r"entry 0 \(id x\): `image` holds the data itself"),
    "llava long": (llava, dict(image="b" * 5000), r"entry 0 \(id x\): image .* not found"),
    "llava web": (llava, dict(image="https://a.b/c.png"), "is a web address .* download it first"),
    "questions": (questions, dict(image=URI), "line 1: `image` holds the data itself"),
    "refcoco": (refcoco, dict(image=dict(file_name=URI)), "ref-6000: `image` holds the data itself"),
    "png image": (png, dict(image=dict(file_name=URI)), "narrative 0 .*`image` holds the data itself"),
    "png map": (png, dict(annotation=dict(file_name=URI)), "narrative 0 .*`panoptic map` holds the data"),
}


@pytest.mark.case("data/08_image_field_holds_a_data_uri")
@pytest.mark.parametrize("name", PATHS)
def test_path_fields_that_hold_no_path(tmp_path, name):
    write, changes, match = PATHS[name]
    dataset = refused(write(tmp_path, **changes), match)
    assert all(len(str(problem)) < 1500 for problem in dataset.problems)


TEXTS = {
    "caption": (jsonl, dict(caption="a cat \ud83d near a dog"), "line 1: `caption` holds half a character"),
    "prompt number": (jsonl, dict(prompt=5), "line 1: `prompt` is 5, not a text"),
    "prompt list": (jsonl, dict(prompt=["x"]), r"line 1: `prompt` is \['x'\], not a text"),
    "prompt half": (jsonl, dict(prompt=HALF), "line 1: `prompt` holds half a character"),
    "id": (jsonl, dict(id=HALF), "line 1: `id` holds half a character"),
    "llava": (
        llava,
        dict(conversations=[{"from": "human", "value": HALF}, {"from": "gpt", "value": "x"}]),
        r"entry 0 \(id x\): conversations\[0\]: `value` holds half",
    ),
    "question": (questions, dict(text=HALF), "line 1: `text` holds half a character"),
    "answer": (questions, dict(answers=["x", HALF]), "line 1: .* holds half a character"),
    "reference": (
        refcoco,
        dict(ref=dict(sentences=[{"raw": HALF}])),
        "ref-6000: `raw` holds half a character",
    ),
    "reference number": (refcoco, dict(ref=dict(sentences=[{"raw": 5}])), "ref-6000: `raw` is 5, not a text"),
    "utterance": (png, dict(segment=dict(utterance=HALF)), "narrative 0 .* holds half a character"),
}


@pytest.mark.case("data/16_check_passes_what_training_cannot_read")
@pytest.mark.case("security/text")
@pytest.mark.parametrize("name", TEXTS)
def test_texts_that_no_tokenizer_reads(tmp_path, name):
    write, changes, match = TEXTS[name]
    refused(write(tmp_path, **changes), match)


@pytest.mark.case("data/12_null_becomes_the_word_none")
def test_null_is_no_text(tmp_path):
    build = refcoco(tmp_path, ref=dict(sentences=[{"raw": None, "sent": "left mug", "sent_id": 1}]))
    assert build(sentences="first", layout="split")[0].text.startswith("left mug")
    for number, sentences in enumerate(([{"raw": None}], [{"raw": None, "sent": None}], [{}], [])):
        refused(
            refcoco(tmp_path / str(number), ref=dict(sentences=sentences)), "no sentence, or an empty one"
        )
    refused(
        png(tmp_path / "png", segment=dict(utterance=None)), r"`segments\[1\].utterance` is None, not a text"
    )


def test_flags_of_panoptic_files_are_no_texts(tmp_path):
    refused(png(tmp_path, segment=dict(plural="0")), "`plural` is '0'; it must be 0 or 1")


@pytest.mark.case("data/19_python2_pickle_with_bytes")
def test_python_2_pickles(tmp_path):
    """Byte strings as Python 2 writes them: UTF-8, else Latin-1."""
    path = tmp_path / "refs.p"
    texts = [b"plain", "café".encode(), "café".encode("latin-1")]
    rows = b"".join(b"U" + bytes([len(text)]) + text for text in texts)  # SHORT_BINSTRING
    path.write_bytes(b"\x80\x02](" + rows + b"e.")
    assert load_plain_pickle(path) == ["plain", "café", "café"]
    refused(refcoco(tmp_path, ref=dict(ann_id=[1, 2])), "ref-6000: its ann_id is a list, as in gRefCOCO")


@pytest.mark.case("security/readers")
def test_pickles_that_ask_for_memory(tmp_path):
    path = tmp_path / "bomb.p"
    numbered = b"\x80\x02]r" + (2**31 - 1).to_bytes(4, "little") + b"."  # an entry of the memo, 16 GB away
    path.write_bytes(numbered)
    assert load_plain_pickle(path) == []
    for content in (
        b"\x80\x05\x96" + (2**36).to_bytes(8, "little") + b".",  # a bytearray of 64 GB
        b"\x80\x02cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x10\x85R.",
        b"\x80\x02X" + (2**32 - 1).to_bytes(4, "little") + b"a.",
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match="pickle file (refused|is not a complete pickle)"):
            load_plain_pickle(path)


@pytest.mark.case("data/18_encodings")
def test_encodings(tmp_path):
    content = {"name": "Müller"}
    text = json.dumps(content, ensure_ascii=False)
    path = tmp_path / "a.json"
    path.write_text(text, encoding="utf-8-sig")
    assert load_json(path, "file") == content
    for encoding, match in (
        ("cp1252", r"not UTF-8 text \(byte 0xfc\); save it as UTF-8"),
        ("utf-16", "UTF-16"),
    ):
        path.write_text(text, encoding=encoding)
        with pytest.raises(DataError, match=match) as caught:
            load_json(path, "file")
        assert "download" not in str(caught.value)
    names = tmp_path / "list.txt"
    names.write_text("my photo 1\n\nb\r\n", encoding="utf-8-sig")
    assert read_lines(names, "list") == ["my photo 1", "b"]
    own = write_jsonl(tmp_path, [own_line()])
    own.write_text(own.read_text(), encoding="utf-8-sig")
    assert len(JSONLDataset(str(own))) == 1


@pytest.mark.case("data/21_jpeg_masks")
@pytest.mark.case("data/23_pictures_with_a_huge_header")
def test_label_pictures(tmp_path):
    mask = np.zeros(SIZE, np.uint8)
    mask[10:20, 10:20] = 255
    phrases = [{"span": [0, 5], "mask": {"png": "m.jpg"}}]
    Image.fromarray(mask).save(tmp_path / "m.jpg", quality=75)
    refused(jsonl(tmp_path, phrases=phrases), "line 1: phrase 0: mask is a JPEG picture, .*Save it as PNG")
    Image.new("1", (30_000, 30_000)).save(tmp_path / "m.jpg", format="PNG")
    refused(jsonl(tmp_path, phrases=phrases), "line 1: phrase 0: mask (is|cannot)")
    for name in ("maps", "images"):
        for stem in "ab":
            write_image(tmp_path / name / f"{stem}.png", 1)
            if name == "maps":
                Image.fromarray(mask % 2).save(tmp_path / name / f"{stem}.png")
    folders = dict(label_dir=str(tmp_path / "maps"), image_dir=str(tmp_path / "images"), classes=["x", "y"])
    for side, match in (
        (30_000, "label map (is too large|cannot)"),
        (9_000, "label map is 9000 x 9000, its image"),
    ):
        Image.new("1", (side, side)).save(tmp_path / "maps/a.png")
        refused(lambda **settings: SemanticMapsDataset(**folders, **settings), match)
    Image.fromarray(mask % 2).save(tmp_path / "maps/a.png", format="JPEG")
    refused(lambda **settings: SemanticMapsDataset(**folders, **settings), "label map is a JPEG picture")
    arguments = write_png(tmp_path / "png")
    Image.new("RGB", (9000, 9000)).save(next((tmp_path / "png/panoptic").glob("*0.png")))
    refused(lambda **settings: PNGDataset(**arguments, **settings), "panoptic map is 9000 x 9000, its image")


VALUES = (
    None, [], {}, "x", "", -1, float("inf"), float("nan"), 10**400, True, 1.5, "\ud83d", "a\0b", URI, [[]] * 3,
    {"a": 1}, 1e308, 2**63, ["x"], 2e8,
)  # fmt: skip


@pytest.mark.case("security/readers")
@pytest.mark.parametrize(
    "write",
    [jsonl, llava, questions, refcoco, png, grefcoco, grandf, reason_seg],
    ids=lambda write: write.__name__,
)
def test_any_value_anywhere_gives_records_or_errors_of_our_own(tmp_path, write):
    """A value of every place of the first record is replaced by one that does not belong there."""
    rng = random.Random(0)
    build = write(tmp_path)
    (file,) = {
        jsonl: tmp_path.glob("*.jsonl"), llava: tmp_path.glob("llava.json"),
        questions: tmp_path.glob("questions.jsonl"), refcoco: tmp_path.glob("refs*.p"),
        png: tmp_path.glob("png_coco*.json"), grefcoco: tmp_path.glob("grefs*.json"),
        grandf: tmp_path.glob("gcg.json"), reason_seg: tmp_path.glob("a.json"),
    }[write]  # fmt: skip
    whole = file.read_bytes()
    read = pickle.loads if file.suffix == ".p" else json.loads
    for _ in range(40):
        first, _, rest = whole.partition(b"\n") if file.suffix == ".jsonl" else (whole, b"", b"")
        content = read(first)
        place = content if isinstance(content, dict) else content[0]
        key = rng.choice(list(place))
        while isinstance(place[key], (list, dict)) and place[key] and rng.random() < 0.7:
            place = place[key]
            key = rng.choice(list(place) if isinstance(place, dict) else range(len(place)))
        place[key] = rng.choice(VALUES)
        file.write_bytes(
            pickle.dumps(content, protocol=2)
            if file.suffix == ".p"
            else json.dumps(content).encode() + b"\n" + rest
        )
        for policy in ("raise", "skip"):
            try:
                dataset = build(policy=policy, verify_images=policy == "skip")
                [dataset[index] for index in range(len(dataset))]
            except FlmmError:
                assert policy == "raise", "the second record is sound"


def _turns(question: str, answer: str) -> dict[str, Any]:
    return dict(conversations=[{"from": "human", "value": question}, {"from": "gpt", "value": answer}])


def _sentences(text: str) -> dict[str, Any]:
    return dict(ref=dict(sentences=[{"raw": text, "sent_id": 1}]))


WORDS = {
    "jsonl caption": (jsonl, lambda text: dict(caption=f"a cat near {text}"), "`caption`"),
    "jsonl prompt": (jsonl, lambda text: dict(prompt=text), "`prompt`"),
    "question": (questions, lambda text: dict(text=f"<image> {text} ?"), "`text`"),
    "reference": (questions, lambda text: dict(answers=[text]), "`answer`"),
    "llava question": (
        llava,
        lambda text: _turns(f"<image> {text} ?", "A cat."),
        r"`conversations\[0\]: value`",
    ),
    "llava answer": (llava, lambda text: _turns("What?", text), r"`conversations\[1\]: value`"),
    "refcoco": (refcoco, _sentences, "`sentences`"),
    "png": (png, lambda text: dict(segment=dict(utterance=f"a star {text}")), r"`segments\[1\].utterance`"),
}


@pytest.mark.parametrize("case", WORDS)
def test_control_words_are_found_before_a_training(tmp_path, case):
    make, changes, field = WORDS[case]
    (tmp_path / "bad").mkdir()
    build = make(tmp_path / "bad", **changes("<s>a</s> cup"))
    with pytest.raises(DataError, match=f"{field} holds the control word '</s>'.*remove it"):
        build()
    dataset = build(policy="skip")
    assert [problem.kind for problem in dataset.problems] == ["control word"]
    assert len(dataset)
    # What ends no turn and brings no image is text.
    (tmp_path / "good").mkdir()
    assert not make(tmp_path / "good", **changes("<s> <unk> a"))(policy="skip").problems


def test_control_words_that_a_reader_makes(tmp_path):
    """Lower case, and what is left where a placeholder was taken out."""
    (tmp_path / "other").mkdir()
    build = refcoco(tmp_path, **_sentences("an </S> cup"))
    with pytest.raises(DataError, match="control word '</s>'"):
        build()
    assert not build(lower=False, policy="skip").problems
    with pytest.raises(DataError, match="control word '<image>'"):
        questions(tmp_path / "other", text="<ima<image>ge> ?")()


@pytest.mark.parametrize(
    ("make", "argument"), [(jsonl, "prompt"), (questions, "prompt_suffix"), (png, "prompt")]
)
def test_control_words_of_arguments(tmp_path, make, argument):
    with pytest.raises(ConfigError, match=f"`{argument}` holds the control word '<image>'"):
        make(tmp_path)(**{argument: "<image> what?"})


def test_the_control_words_are_documented():
    page = (Path(__file__).resolve().parents[2] / "docs" / "own_data.md").read_text(encoding="utf-8")
    assert all(f"`{word}`".replace("|", "\\|") in page for word in CONTROL_WORDS)
