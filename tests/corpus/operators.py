"""What happens to files: named operators that change the bytes of a valid file."""

from __future__ import annotations

import copy
import io
import json
import pickle
import re
import struct
import unicodedata
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageCms

# A file may be read as before, refused or skipped by name, read with a count of what was left out, or hold another
# legal value that is reported as it stands.
SAME, ERROR, COUNT, VALUE = "same", "error", "count", "value"
ANY = frozenset({SAME, ERROR, COUNT, VALUE})
REFUSED = frozenset({SAME, ERROR, COUNT})  # the new value is none: nothing may be read from it
EQUAL = frozenset({SAME})
BYTES = ("json", "jsonl", "pickle", "xml", "picture", "label", "tensors")
TREES = ("json", "jsonl", "pickle")
# Keys whose absence, or null, means a default or that there is no such fact.
OPTIONAL = {
    "prompt", "iscrowd", "area", "supercategory", "box", "id", "text", "category", "session", "boxes", "sent_id",
    "choices", "answer_type", "plural", "noun", "file_name", "category_id", "isthing", "categories", "segments_info",
    "segment_ids", "caption", "answer_id", "annotator_id", "raw",
}  # fmt: skip


@dataclass(frozen=True)
class Operator:
    """A way in which files change.

    Attributes:
        name: For the report.
        forms: Of files that it fits.
        change: Takes the bytes and a random generator; None where there is nothing to change.
        outcomes: What a reader may make of it.
    """

    name: str
    forms: tuple[str, ...]
    change: Callable[[bytes, np.random.Generator], bytes | None]
    outcomes: frozenset[str] = ANY


OPERATORS: list[Operator] = []
_LAB = (ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"))


def operator(forms: tuple[str, ...] | str, outcomes: frozenset[str] = ANY) -> Callable[[Any], Any]:
    def add(change: Any) -> Any:
        OPERATORS.append(
            Operator(change.__name__, (forms,) if isinstance(forms, str) else forms, change, outcomes)
        )
        return change

    return add


# --- bytes ---


@operator(BYTES, frozenset({ERROR, COUNT, SAME}))
def truncate(data: bytes, rng: np.random.Generator) -> bytes:
    return data[: int(rng.integers(1, max(2, len(data) - 3)))]


@operator(BYTES, frozenset({ERROR, COUNT}))
def empty_file(data: bytes, rng: np.random.Generator) -> bytes:
    return b""


@operator(BYTES)
def flip_bytes(data: bytes, rng: np.random.Generator) -> bytes:
    array = np.frombuffer(data, dtype=np.uint8).copy()
    for place in rng.integers(0, len(array), int(rng.integers(1, 8))):
        array[place] ^= 1 << int(rng.integers(0, 8))
    return array.tobytes()


@operator(BYTES)
def zero_block(data: bytes, rng: np.random.Generator) -> bytes:
    start = int(rng.integers(0, len(data)))
    return data[:start] + bytes(min(64, len(data) - start)) + data[start + 64 :]


@operator(BYTES)
def insert_garbage(data: bytes, rng: np.random.Generator) -> bytes:
    place = int(rng.integers(0, len(data)))
    return data[:place] + rng.bytes(16) + data[place:]


@operator(BYTES, frozenset({ERROR, COUNT, SAME}))
def other_kind_of_file(data: bytes, rng: np.random.Generator) -> bytes:
    return [b"<html><body>404 Not Found</body></html>", b"GIF89a", rng.bytes(300), b"version https://git-lfs.github.com/spec/v1\n"][
        int(rng.integers(0, 4))
    ]  # fmt: skip


@operator(("json", "jsonl", "xml"), EQUAL)
def crlf(data: bytes, rng: np.random.Generator) -> bytes:
    return data.replace(b"\n", b"\r\n") if b"\n" in data else data + b"\r\n"


@operator(("json", "jsonl", "xml"), EQUAL)
def byte_order_mark(data: bytes, rng: np.random.Generator) -> bytes:
    return b"\xef\xbb\xbf" + data


@operator(("json", "jsonl"), frozenset({ERROR, COUNT}))
def utf16(data: bytes, rng: np.random.Generator) -> bytes:
    return data.decode().encode("utf-16")


@operator(("json", "jsonl"))
def windows_1252(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _text(data, rng, lambda text: text + " é", ascii_only=False, encoding="cp1252")


# --- trees of JSON, JSON lines and pickles ---


@dataclass(frozen=True)
class _Raw:
    literal: str


def _load(data: bytes) -> tuple[str, Any]:
    if data[:1] == b"\x80":
        return "pickle", pickle.loads(data)
    try:
        return "json", json.loads(data)
    except ValueError:
        return "jsonl", [json.loads(line) for line in data.splitlines() if line.strip()]


def _dump(form: str, tree: Any, ascii_only: bool = True, encoding: str = "utf-8") -> bytes:
    if form == "pickle":
        return pickle.dumps(_plain(tree), protocol=2)
    raws: list[str] = []

    def mark(value: Any) -> Any:
        if isinstance(value, _Raw):
            raws.append(value.literal)
            return f"@raw{len(raws) - 1}@"
        if isinstance(value, dict):
            return {key: mark(item) for key, item in value.items()}
        return [mark(item) for item in value] if isinstance(value, list) else value

    tree = mark(tree)
    parts = [json.dumps(item, ensure_ascii=ascii_only) for item in (tree if form == "jsonl" else [tree])]
    text = re.sub(r'"@raw(\d+)@"', lambda match: raws[int(match[1])], "\n".join(parts))
    return text.encode(encoding, errors="replace")


def _plain(tree: Any) -> Any:
    if isinstance(tree, _Raw):
        return (
            float(tree.literal) if not tree.literal.lstrip("-").isdigit() else 10 ** (len(tree.literal) - 1)
        )
    if isinstance(tree, dict):
        return {key: _plain(item) for key, item in tree.items()}
    return [_plain(item) for item in tree] if isinstance(tree, list) else tree


def _places(tree: Any, kind: Any, path: tuple = ()) -> list[tuple]:
    found = []
    if (
        isinstance(tree, kind)
        and path
        and not (isinstance(tree, bool) and kind is not bool and kind is not object)
    ):
        found.append(path)
    items = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for key, value in items:
        found += _places(value, kind, (*path, key))
    return found


def _edit(
    data: bytes,
    rng: np.random.Generator,
    kind: Any,
    change: Callable[[Any], Any],
    where: Callable[[tuple], bool] | None = None,
    **dump: Any,
) -> bytes | None:
    form, tree = _load(data)
    places = [path for path in _places(tree, kind) if where is None or where(path)]
    if not places:
        return None
    # Half of the time a key is drawn first: coordinates are many, flags are few.
    by_key: dict[str, list[tuple]] = {}
    for path in places:
        by_key.setdefault(str([part for part in path if isinstance(part, str)][-1:]), []).append(path)
    if rng.random() < 0.5:
        keys = sorted(by_key)
        places = by_key[keys[int(rng.integers(len(keys)))]]
    path = places[int(rng.integers(len(places)))]
    tree = copy.deepcopy(tree)
    parent = tree
    for part in path[:-1]:
        parent = parent[part]
    parent[path[-1]] = change(parent[path[-1]])
    return _dump(form, tree, **dump)


def _last_key(path: tuple) -> str:
    return next((part for part in reversed(path) if isinstance(part, str)), "")


def _required(path: tuple) -> bool:
    return _last_key(path) not in OPTIONAL


def _no_id(path: tuple) -> bool:
    """Ids are names: any text is one."""
    return not _last_key(path).endswith("id")


def _text(data: bytes, rng: np.random.Generator, change: Callable[[str], Any], **dump: Any) -> bytes | None:
    return _edit(data, rng, str, change, **dump)


def _number(data: bytes, rng: np.random.Generator, change: Callable[[Any], Any]) -> bytes | None:
    return _edit(data, rng, (int, float), change)


@operator(TREES, REFUSED)
def null_for_what_is_needed(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _edit(data, rng, object, lambda value: None, _required)


@operator(TREES)
def null_value(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _edit(data, rng, object, lambda value: None)


@operator(TREES)
def delete_key(data: bytes, rng: np.random.Generator) -> bytes | None:
    form, tree = _load(data)
    places = [path for path in _places(tree, object) if isinstance(path[-1], str)]
    if not places:
        return None
    path = places[int(rng.integers(len(places)))]
    parent = tree
    for part in path[:-1]:
        parent = parent[part]
    del parent[path[-1]]
    return _dump(form, tree)


@operator(TREES, REFUSED)
def number_as_text(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _edit(data, rng, (int, float), str, _no_id)


@operator(TREES)
def id_as_text(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _edit(data, rng, (int, float), str, lambda path: _last_key(path).endswith("id"))


@operator(TREES, REFUSED)
def word_for_number(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _edit(data, rng, (int, float), lambda value: "many", _no_id)


@operator(TREES)
def number_for_text(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _text(data, rng, lambda text: 5)


@operator(TREES, EQUAL | frozenset({ERROR, COUNT}))
def whole_number_as_float(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _edit(data, rng, int, float)


@operator(TREES)
def negative_number(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _number(data, rng, lambda value: -abs(value) - 1)


@operator(TREES)
def zero_number(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _number(data, rng, lambda value: 0)


@operator(TREES)
def fraction(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _number(data, rng, lambda value: value + 0.37)


@operator(TREES)
def far_number(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _number(
        data, rng, lambda value: 10.0 ** float(rng.uniform(3, 15)) * (1 if rng.random() < 0.5 else -1)
    )


@operator(TREES, REFUSED)
def infinity(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _number(data, rng, lambda value: _Raw("1e999" if rng.random() < 0.5 else "-1e999"))


@operator(TREES, REFUSED)
def not_a_number(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _number(data, rng, lambda value: _Raw("NaN"))


@operator(TREES)
def digits_400(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _number(data, rng, lambda value: _Raw("1" + "0" * 399))


@operator(("json", "jsonl"), REFUSED)
def digits_5000(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _number(data, rng, lambda value: _Raw("1" + "0" * 4999))


@operator(TREES)
def truth_value(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _edit(data, rng, object, lambda value: bool(rng.random() < 0.5))


@operator(TREES)
def empty_text(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _text(data, rng, lambda text: "")


@operator(TREES)
def blanks(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _text(data, rng, lambda text: " \t\u00a0")


@operator(TREES, REFUSED)
def lone_surrogate(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _edit(data, rng, str, lambda text: text + "\ud83d", _no_id)


@operator(TREES)
def nul_character(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _text(data, rng, lambda text: text + "\x00")


@operator(TREES)
def long_text(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _text(data, rng, lambda text: (text or "a") * (20000 // max(1, len(text))))


@operator(TREES)
def data_uri(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _text(data, rng, lambda text: "data:image/png;base64," + "iVBORw0KGgo" * 600)


@operator(TREES)
def decomposed_characters(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _text(data, rng, lambda text: unicodedata.normalize("NFD", text + " é"), ascii_only=False)


@operator(TREES)
def windows_path(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _text(data, rng, lambda text: "images\\" + text)


@operator(TREES)
def path_outside(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _text(data, rng, lambda text: "../" * 3 + text)


@operator(TREES)
def list_around(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _edit(data, rng, object, lambda value: [value])


@operator(TREES)
def object_for_value(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _edit(data, rng, object, lambda value: {"value": 1})


@operator(TREES)
def emptied(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _edit(data, rng, (list, dict), lambda value: type(value)())


@operator(TREES)
def entry_twice(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _edit(data, rng, list, lambda value: [*value, *value[:1]])


@operator(TREES)
def entry_missing(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _edit(data, rng, list, lambda value: value[1:])


@operator(TREES)
def value_of_another(data: bytes, rng: np.random.Generator) -> bytes | None:
    form, tree = _load(data)
    places = _places(tree, (int, float, str))
    if len(places) < 2:
        return None
    first, second = (places[int(place)] for place in rng.choice(len(places), 2, replace=False))
    other: Any = tree
    for part in second:
        other = other[part]
    parent = tree
    for part in first[:-1]:
        parent = parent[part]
    parent[first[-1]] = other
    return _dump(form, tree)


@operator(TREES)
def unknown_key(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _edit(data, rng, dict, lambda value: {**value, "licence_of_a_tool": {"id": 1}})


@operator(TREES, EQUAL)
def keys_in_another_order(data: bytes, rng: np.random.Generator) -> bytes | None:
    form, tree = _load(data)

    def reverse(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: reverse(value[key]) for key in reversed(value)}
        return [reverse(item) for item in value] if isinstance(value, list) else value

    return _dump(form, reverse(tree))


@operator(("json", "jsonl"), frozenset({ERROR, COUNT}))
def deep_nesting(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _edit(data, rng, object, lambda value: _Raw("[" * 100000 + "]" * 100000), _required)


@operator("jsonl", EQUAL)
def blank_lines(data: bytes, rng: np.random.Generator) -> bytes:
    return data.replace(b"\n", b"\n\n \n")


@operator(TREES, frozenset({ERROR, COUNT, SAME}))
def another_top_level(data: bytes, rng: np.random.Generator) -> bytes:
    form, tree = _load(data)
    return _dump(
        "pickle" if form == "pickle" else "json",
        [None, 5, "x", {}, [[]], {"a": tree}][int(rng.integers(0, 6))],
    )


# --- pickles ---


@operator("pickle", EQUAL)
def pickle_protocol(data: bytes, rng: np.random.Generator) -> bytes:
    return pickle.dumps(pickle.loads(data), protocol=int(rng.integers(0, 6)))


@operator("pickle", EQUAL)
def python2_strings(data: bytes, rng: np.random.Generator) -> bytes:
    """As Python 2 wrote them: byte strings (``SHORT_BINSTRING``), ASCII here."""
    return re.sub(
        rb"X(....)", lambda match: b"U" + match[1][:1] if match[1][1:] == b"\0\0\0" else match[0], data, flags=re.DOTALL
    )  # fmt: skip


@operator("pickle", frozenset({ERROR}))
def pickled_code(data: bytes, rng: np.random.Generator) -> bytes:
    return b"cos\nsystem\n(S'exit 3'\ntR."


# --- XML ---


def _element(data: bytes, rng: np.random.Generator, pattern: bytes, new: bytes) -> bytes | None:
    found = list(re.finditer(pattern, data))
    if not found:
        return None
    match = found[int(rng.integers(len(found)))]
    return data[: match.start(1)] + new + data[match.end(1) :]


@operator("xml")
def xml_number(data: bytes, rng: np.random.Generator) -> bytes | None:
    values = [
        b"nan",
        b"1e999",
        b"-5",
        b"",
        b"9" * 400,
        b"10.5",
        b" 12 ",
        b"0x10",
        b"\xd9\xa3",
        b"many",
        b"99999999",
    ]
    return _element(
        data, rng, rb"<(?:[xy]m\w+|width|height|difficult)>([^<]*)<", values[int(rng.integers(len(values)))]
    )


@operator("xml")
def xml_text(data: bytes, rng: np.random.Generator) -> bytes | None:
    values = [
        b"",
        b"   ",
        b"x" * 400,
        b"c.jpg",
        b"../a.jpg",
        b"images\\b.jpg",
        b"b.JPG",
        b"data:image/png;base64,AAAA",
    ]
    return _element(data, rng, rb"<(?:name|filename)>([^<]*)<", values[int(rng.integers(len(values)))])


@operator("xml")
def xml_without_element(data: bytes, rng: np.random.Generator) -> bytes | None:
    return _element(data, rng, rb"(<(xmin|ymax|name|filename|width|bndbox|size|object)>.*?</\2>)", b"")


@operator("xml", frozenset({ERROR, COUNT, SAME}))
def xml_entities(data: bytes, rng: np.random.Generator) -> bytes:
    names = "abcdefghij"
    entities = '<!ENTITY a "haha">' + "".join(
        f'<!ENTITY {b} "{f"&{a};" * 10}">' for a, b in zip(names, names[1:])
    )
    return f"<!DOCTYPE annotation [{entities}]>".encode() + data.replace(b"dog", b"&j;", 1)


# --- pictures ---


def _image(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def _encode(image: Image.Image, kind: str, **options: Any) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **options)
    return out.getvalue()


def _exif(value_type: int, payload: bytes) -> bytes:
    """An EXIF block: orientation 6 and a resolution of some type and value."""
    head = b"Exif\0\0MM\0*\0\0\0\x08" + struct.pack(">H", 2)
    orientation = struct.pack(">HHIHH", 0x0112, 3, 1, 6, 0)
    resolution = struct.pack(">HHII", 0x011A, value_type, 1, 38)
    return head + orientation + resolution + b"\0\0\0\0" + payload


@operator("picture", frozenset({SAME, VALUE, COUNT}))
def exif_broken_rational(data: bytes, rng: np.random.Generator) -> bytes:
    payloads = [struct.pack(">ii", -1, 0), struct.pack(">II", 2**32 - 1, 1), b"", rng.bytes(3)]
    return _encode(
        _image(data).convert("RGB"), "JPEG", exif=_exif(10, payloads[int(rng.integers(4))]), quality=95
    )


@operator("picture", frozenset({SAME, VALUE, COUNT}))
def exif_garbage(data: bytes, rng: np.random.Generator) -> bytes:
    kind = ["JPEG", "PNG"][int(rng.integers(2))]
    return _encode(_image(data).convert("RGB"), kind, exif=b"Exif\0\0" + rng.bytes(30))


@operator("picture")
def picture_mode(data: bytes, rng: np.random.Generator) -> bytes:
    mode, kind = [
        ("L", "PNG"), ("LA", "PNG"), ("P", "PNG"), ("RGBA", "PNG"), ("1", "PNG"), ("CMYK", "JPEG"), ("YCbCr", "TIFF"),
        ("LAB", "TIFF"), ("RGBA", "WEBP"), ("L", "JPEG"),
    ][int(rng.integers(10))]  # fmt: skip
    image = _image(data).convert("RGB")
    return _encode(
        ImageCms.profileToProfile(image, *_LAB, outputMode="LAB") if mode == "LAB" else image.convert(mode),
        kind,
    )


@operator("picture", frozenset({ERROR, COUNT}))
def deep_picture(data: bytes, rng: np.random.Generator) -> bytes:
    grey = np.asarray(_image(data).convert("L"))
    kinds = [
        (grey.astype(np.uint16) * 257, "PNG"),
        (grey.astype(np.int32) * 1000, "TIFF"),
        (grey / np.float32(255), "TIFF"),
    ]
    array, kind = kinds[int(rng.integers(3))]
    return _encode(Image.fromarray(array), kind)


@operator(("picture", "label"))
def another_size(data: bytes, rng: np.random.Generator) -> bytes:
    image = _image(data)
    sizes = [(image.height, image.width), (image.width + 1, image.height), (1, 1), (1, 500), (3000, 2)]
    return _encode(image.resize(sizes[int(rng.integers(5))]), "PNG")


@operator("picture")
def another_container(data: bytes, rng: np.random.Generator) -> bytes:
    return _encode(
        _image(data).convert("RGB"),
        ["GIF", "BMP", "WEBP", "TIFF", "PPM", "ICO", "TGA", "JPEG2000"][int(rng.integers(8))],
    )


@operator("label", frozenset({ERROR, COUNT}))
def lossy_label(data: bytes, rng: np.random.Generator) -> bytes:
    return _encode(_image(data).convert("RGB"), "JPEG", quality=75)


@operator("label")
def label_mode(data: bytes, rng: np.random.Generator) -> bytes:
    image = _image(data)
    grey = image.convert("L")
    change = int(rng.integers(7))
    if change == 0:
        return _encode(Image.merge("LA", (grey, Image.new("L", grey.size, 255))), "PNG")
    if change == 1:
        return _encode(image.convert("RGBA"), "PNG")
    if change == 2:
        return _encode(Image.fromarray(np.asarray(grey).astype(np.uint16) * 257), "PNG")
    if change == 3:
        return _encode(grey.convert("1"), "PNG")
    if change == 4:
        white = Image.new("L", grey.size, 255)
        return _encode(Image.merge("RGBA", (white, white, white, grey)), "PNG")
    if change == 5:
        return _encode(grey.convert("P"), "PNG")
    return _encode(Image.fromarray(np.asarray(grey).astype(np.float32)), "TIFF")


@operator(("picture", "label"), frozenset({ERROR, COUNT}))
def huge_header(data: bytes, rng: np.random.Generator) -> bytes:
    side = int([30000, 100000, 2**31 - 1][int(rng.integers(3))])
    png = _encode(_image(data), "PNG")
    head = b"IHDR" + struct.pack(">II", side, side) + png[24:29]
    return png[:12] + head + struct.pack(">I", zlib.crc32(head)) + png[33:]


@operator(("picture", "label"), frozenset({ERROR, COUNT}))
def huge_picture(data: bytes, rng: np.random.Generator) -> bytes:
    return _encode(Image.new("1", (13300, 13300)), "PNG")


@operator(("picture", "label"))
def huge_text_chunk(data: bytes, rng: np.random.Generator) -> bytes:
    png = _encode(_image(data), "PNG")
    body = b"zTXtComment\0\0" + zlib.compress(b"a" * 30_000_000)
    return png[:33] + struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)) + png[33:]


# --- tensors ---


def _tensors(data: bytes, change: Callable[[dict[str, Any]], None]) -> bytes:
    content = torch.load(io.BytesIO(data), weights_only=True)
    change(content["state_dict"])
    out = io.BytesIO()
    torch.save(content, out)
    return out.getvalue()


def _some(state: dict[str, Any], rng: np.random.Generator) -> str:
    return sorted(state)[int(rng.integers(len(state)))]


@operator("tensors", frozenset({ERROR}))
def tensor_not_finite(data: bytes, rng: np.random.Generator) -> bytes:
    def change(state: dict[str, Any]) -> None:
        name = _some(state, rng)
        state[name] = state[name].clone()
        state[name].view(-1)[0] = [float("nan"), float("inf")][int(rng.integers(2))]

    return _tensors(data, change)


@operator("tensors", frozenset({ERROR}))
def tensor_of_another_shape(data: bytes, rng: np.random.Generator) -> bytes:
    return _tensors(data, lambda state: state.update({_some(state, rng): torch.zeros(5, 5)}))


@operator("tensors", frozenset({ERROR}))
def tensor_missing(data: bytes, rng: np.random.Generator) -> bytes:
    return _tensors(data, lambda state: state.pop(_some(state, rng)))


@operator("tensors", frozenset({ERROR}))
def tensor_too_many(data: bytes, rng: np.random.Generator) -> bytes:
    return _tensors(data, lambda state: state.update({"heads.phrase.other": torch.zeros(2)}))


@operator("tensors", frozenset({ERROR}))
def no_tensor(data: bytes, rng: np.random.Generator) -> bytes:
    return _tensors(data, lambda state: state.update({_some(state, rng): [1.0, 2.0]}))


@operator("tensors")
def tensor_of_another_dtype(data: bytes, rng: np.random.Generator) -> bytes:
    kind = [torch.float64, torch.float16, torch.int64, torch.complex64][int(rng.integers(4))]

    def change(state: dict[str, Any]) -> None:
        name = _some(state, rng)
        state[name] = state[name].to(kind)

    return _tensors(data, change)


# --- configs (programs: only changes that a person makes) ---


@operator("config", frozenset({ERROR, VALUE}))
def config_edit(data: bytes, rng: np.random.Generator) -> bytes:
    base, rate = b"with read_base():\n    from .base import *", b"rate = 1e-4"
    edits = [
        (rate, b"import os\nrate = os.getpid()"),
        (b"from .base", b"from .missing"),
        (b"read_base():", b"read_base()"),
        (b"model.update", b"modle.update"),
        (b"from .base import *", b"from ..base import *"),
        (b"size=8", b"size=open('x')"),
        (b"['a', 'b']", b"['a', 'b'"),
        (base, b"from .base import *"),
        (rate, b"rate = 1e-"),
        (rate, b"rate = undefined"),
        (rate, b"rate = 1 / 0"),
        (rate, b"import json\nrate = json.loads('1')"),
    ]
    old, new = edits[int(rng.integers(len(edits)))]
    return data.replace(old, new)


@operator("config", frozenset({ERROR, VALUE}))
def config_emptied(data: bytes, rng: np.random.Generator) -> bytes:
    return [b"", b"\xff\xfe", b"a = 'caf\xe9'\n", b"\0"][int(rng.integers(4))]


@operator("config", EQUAL)
def config_crlf(data: bytes, rng: np.random.Generator) -> bytes:
    return data.replace(b"\n", b"\r\n")
