"""ReasonSeg: questions that need thinking, each answered by masks (LISA's files, and TinyWorld's)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from flmm_detseg.datasets.base import GroundingDataset
from flmm_detseg.datasets.files import (
    decode_text,
    existing_file,
    image_beside,
    list_of,
    load_json,
    parse_json,
    require_dir,
    require_keys,
)
from flmm_detseg.datasets.images import check_image_size
from flmm_detseg.datasets.mask_answers import IGNORE_KEY, REASONING, check_query, mask_phrases
from flmm_detseg.datasets.masks import check_polygons
from flmm_detseg.datasets.policy import record_error
from flmm_detseg.errors import ConfigError
from flmm_detseg.language.mask_wording import answer_with_masks, ask_for_mask, ask_for_reason
from flmm_detseg.registry import DATASETS
from flmm_detseg.structures import Sample
from flmm_detseg.utils.paths import find
from flmm_detseg.utils.values import FieldError, check_text, flag, identifier, picture_size, shown

QUERIES = ("random", "first", "all")
# Some of the published files are in the encoding of old Windows.
_OLD_ENCODING = "cp1252"
_IGNORED = -1
# What TinyWorld's files say beside LISA's keys; the rest of a file is for the tool that drew it.
_FACTS = ("family", "combination", "wording", "held_out", "absent")
_REMEDY = "Mend the file, or use policy='skip' to leave such files out."


@dataclass(frozen=True, slots=True)
class _Shape:
    """A polygon: of which target, from 0 (:data:`_IGNORED`: of a region to ignore), and its points."""

    target: int
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True, slots=True)
class _Explanation:
    query: str
    text: str


@dataclass(frozen=True, slots=True)
class _Query:
    """One annotation file."""

    number: int
    stem: str
    file: Path
    image_path: Path
    size: tuple[int, int] | None  # (H, W), where the file says it
    texts: tuple[str, ...]
    is_sentence: bool
    shapes: tuple[_Shape, ...]
    num_targets: int
    names: tuple[str, ...]
    explanation: _Explanation | None
    facts: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Record:
    record_id: str
    query: _Query
    text: int | None  # which of its texts; None: drawn per epoch


@DATASETS.register_module()
class ReasonSegDataset(GroundingDataset):
    """A folder of images, each with a JSON file of its name: a question in several wordings, and polygons.

    Several questions about one image are files of other names that have it as ``imagePath``.

    Samples have ``task="reasoning"``: the question as ``prompt``, as ``text`` an answer with a ``[SEG]`` for each
    target, one phrase and one mask for each ``[SEG]``. ``meta`` holds ``query`` (the words of the file),
    ``is_sentence``, ``form`` (``"masks"``, ``"explained"`` or ``"text"``) and, where the file has them, ``names``,
    ``explanation``, ``family``, ``combination``, ``wording``, ``held_out``, ``absent``; and ``ignore``, bool
    ``[H, W]``, of images with regions that count neither way (training takes them as background).

    Of a file's ``shapes`` those labelled ``flag`` are not used, those whose label has "ignore" in it are the regions to
    ignore, all others are targets: one for each ``group_id``, and one of those without. Polygons are painted, outlines
    too, the largest first, so that a small one is not lost under a large one. A file without a target needs ``absent``,
    which says what it asks for in vain; its answer says that nothing is there.

    Args:
        folder: Images and JSON files. Files that are not UTF-8 are read as Windows' cp1252.
        queries: ``"random"``: one sample a file, its wording and those of prompt and answer drawn per epoch, a function
            of (``seed``, epoch, file) alone; ``"first"``: the first wording (ReasonSeg's evaluation); ``"all"``: one
            sample a wording. Prompts and answers of the last two have always the same form.
        request: Put a request for a mask around the question, another one around sentences than around phrases
            (``is_sentence``); False: the question alone is the prompt.
        explanations_file: LISA's ``explanatory/train.json``: ``[{"image", "query", "outputs"}, ...]``. Images that the
            folder does not have are counted (``dropped["explanation of another image"]``). None: ``explanation`` of the
            files themselves, where they have one.
        text_share: Of the samples with an explanation this share answers in words alone, without a mask.
        explained_share: Of the other samples with an explanation this share gives it after the masks.
        seed: Of all draws.
        policy: ``"raise"`` | ``"skip"`` for files that cannot be used.
        verify_images: Decode every image and paint every mask at construction, so that ``policy="skip"`` covers them
            too.
        name: First part of record ids.

    Raises:
        DataError: The folder or a file is missing, or (``policy="raise"``) a file is unusable; names it.
        ConfigError: An argument has a value that is not allowed, or explanations are wanted and there is none.

    Source: Lai et al., LISA: Reasoning Segmentation via Large Language Model, CVPR 2024 (arXiv 2308.00692); its shares
    of explained answers are ``text_share=0.1, explained_share=0.5``.
    """

    def __init__(
        self,
        folder: str,
        queries: str = "random",
        request: bool = True,
        explanations_file: str | None = None,
        text_share: float = 0.0,
        explained_share: float = 0.0,
        seed: int = 0,
        policy: str = "raise",
        verify_images: bool = False,
        name: str = "reasonseg",
    ) -> None:
        super().__init__(policy)
        if queries not in QUERIES:
            raise ConfigError(f"`queries` is {queries!r}; allowed: {', '.join(QUERIES)}")
        for what, share in (("text_share", text_share), ("explained_share", explained_share)):
            if not 0 <= share <= 1:
                raise ConfigError(f"`{what}` is {share}; a share is 0 to 1")
        self.folder = require_dir(folder, "ReasonSeg folder")
        self.queries, self.request, self.seed, self.name = queries, request, seed, name
        self.text_share, self.explained_share = text_share, explained_share
        self._explanations_file = None if explanations_file is None else find(explanations_file)
        self.records = self._read_files()
        explained = any(record.query.explanation for record in self.records)
        if self.records and not explained and (text_share or explained_share):
            raise ConfigError(
                f"{self.folder}: no file has an explanation, which `text_share` and `explained_share` are about; "
                "give `explanations_file`"
            )
        self._finish(verify_images, str(self.folder))

    @property
    def annotation_files(self) -> tuple[Path, ...]:  # type: ignore[override]  # not to be set from outside
        """The JSON files in use, and the one of explanations."""
        more = () if self._explanations_file is None else (self._explanations_file,)
        return (*dict.fromkeys(record.query.file for record in self.records), *more)

    def phrase_texts(self, index: int) -> tuple[str, list[str]]:
        """Image id of a record; its phrases are mask tokens, which have no words."""
        return str(self.records[index].query.image_path), []

    def count(self, indices: Iterable[int] | None = None) -> dict[str, Any]:
        """Targets, records without one, with regions to ignore, with an explanation."""
        records = self.records if indices is None else [self.records[index] for index in indices]
        queries = [record.query for record in records]
        return {
            "targets": sum(query.num_targets for query in queries),
            "without_target": sum(not query.num_targets for query in queries),
            "with_regions_to_ignore": sum(any(s.target == _IGNORED for s in q.shapes) for q in queries),
            "with_explanation": sum(query.explanation is not None for query in queries),
        }

    def _read_files(self) -> list[_Record]:
        explanations = {} if self._explanations_file is None else self._read_explanations()
        records: list[_Record] = []
        number = 0
        # Sorted by name: the order of a folder differs between file systems.
        for file in sorted(self.folder.glob("*.json")):
            with self._reading(file, "", _REMEDY):
                query = self._read_query(number, file, explanations)
                number += 1
                record_id = f"{self.name}/{query.stem}"
                if self.queries == "all":
                    records += [_Record(f"{record_id}/text-{k}", query, k) for k in range(len(query.texts))]
                else:
                    records.append(_Record(record_id, query, None if self.queries == "random" else 0))
        return records

    def _read_explanations(self) -> dict[str, _Explanation]:
        """By the image's name, without its folder."""
        file = self._explanations_file
        assert file is not None
        found: dict[str, _Explanation] = {}

        def add(entry: Any, place: str) -> None:
            require_keys(entry, ("image", "query", "outputs"), file, place)
            name = Path(check_text(entry["image"], "image", empty=False)).name
            explanation = _Explanation(
                check_query(entry["query"], "query"), check_query(entry["outputs"], "outputs")
            )
            if image_beside(self.folder, Path(name).stem) is None:
                self._log.drop("explanation of another image", name)
            else:
                found[Path(name).stem] = explanation

        self._read_entries(file, "explanations", load_json(file, "file of explanations"), add)
        return found

    def _read_query(self, number: int, file: Path, explanations: dict[str, _Explanation]) -> _Query:
        entry = parse_json(decode_text(file.read_bytes(), _OLD_ENCODING))
        require_keys(entry, ("text", "is_sentence", "shapes"), file)
        image_path = image_beside(self.folder, file.stem) or existing_file(
            self.folder, entry.get("imagePath", f"{file.stem}.jpg"), "image"
        )
        texts = [check_query(text, f"text[{k}]") for k, text in enumerate(list_of(entry["text"], "text"))]
        if not texts:
            raise FieldError("`text` holds no question")
        size = [entry.get(key) for key in ("imageHeight", "imageWidth")]
        shapes, num_targets = _read_shapes(entry["shapes"])
        names = [
            check_query(name, f"names[{k}]")
            for k, name in enumerate(list_of(entry.get("names", []), "names"))
        ]
        if names and len(names) != num_targets:
            raise FieldError(f"{len(names)} `names` for {num_targets} targets")
        if not num_targets and entry.get("absent") is None:
            raise FieldError(
                "no shape is a target, and no `absent` says that there is none to find", "no target"
            )
        explanation = explanations.get(file.stem)
        if explanation is None and entry.get("explanation") is not None:
            explanation = _Explanation(texts[0], check_query(entry["explanation"], "explanation"))
        return _Query(
            number=number,
            stem=check_text(file.stem, "file name"),
            file=file,
            image_path=image_path,
            size=None if None in size else picture_size(*size),
            texts=tuple(texts),
            is_sentence=flag(entry["is_sentence"], "is_sentence"),
            shapes=shapes,
            num_targets=num_targets,
            names=tuple(names),
            explanation=explanation,
            facts={key: _fact(entry[key], key, len(texts)) for key in _FACTS if key in entry},
        )

    def _read(self, record: _Record) -> Sample:
        query = record.query
        image = self._load_image(query.image_path, record.record_id)
        if query.size is not None:
            check_image_size(image, query.size, query.image_path, record.record_id)
        canvas = paint_shapes(query.shapes, (image.shape[0], image.shape[1]))
        masks = canvas[None] == np.arange(1, query.num_targets + 1)[:, None, None]
        if not masks.any(axis=(1, 2)).all():
            lost = int(np.flatnonzero(~masks.any(axis=(1, 2)))[0])
            message = f"target {lost} has no pixel: outside of the image, or under others"
            raise record_error(str(query.file), record.record_id, message, _REMEDY, "empty mask")
        key = (self.seed, self.epoch, query.number, record.text or 0)
        draw = np.random.default_rng(key)
        text = int(draw.integers(len(query.texts))) if record.text is None else record.text
        form = self._form(query, draw)
        prompt, answer = self._words(query, text, form, draw if self.queries == "random" else None)
        meta = {"query": query.texts[text], "is_sentence": query.is_sentence, "form": form}
        meta |= {key: value[text] if isinstance(value, list) else value for key, value in query.facts.items()}
        if text and not isinstance(query.facts.get("wording"), list):
            meta.pop("wording", None)  # the number of the first text's
        if query.names:
            meta["names"] = list(query.names)
        if query.explanation is not None:
            meta["explanation"] = query.explanation.text
        if (ignore := canvas == _IGNORED).any():
            meta[IGNORE_KEY] = ignore
        return Sample(
            record_id=record.record_id,
            image=image,
            text=answer,
            phrases=mask_phrases(answer),
            masks=masks if form != "text" else masks[:0],
            prompt=prompt,
            image_id=str(query.image_path),
            task=REASONING,
            meta=meta,
        )

    def _form(self, query: _Query, draw: np.random.Generator) -> str:
        """``"masks"``, ``"explained"`` or ``"text"``; always the same number of draws."""
        for_text, for_reason = draw.random(2)
        if query.explanation is None:
            return "masks"
        if for_text < self.text_share:
            return "text"
        return "explained" if for_reason < self.explained_share else "masks"

    def _words(
        self, query: _Query, text: int, form: str, draw: np.random.Generator | None
    ) -> tuple[str, str]:
        """Prompt and answer."""
        if form == "text":
            assert query.explanation is not None
            return query.explanation.query, query.explanation.text
        words = query.texts[text]
        prompt = ask_for_mask(words, draw, sentence=query.is_sentence) if self.request else words
        answer = answer_with_masks(query.num_targets, query.names, draw)
        if form == "masks":
            return prompt, answer
        assert query.explanation is not None
        return ask_for_reason(prompt, draw), f"{answer} {query.explanation.text}"


def paint_shapes(shapes: Sequence[_Shape], image_size: tuple[int, int]) -> np.ndarray:
    """Paints polygons over each other, the largest first; their outlines too.

    Args:
        shapes: Polygons in pixels.
        image_size: ``(H, W)``.

    Returns:
        int32 ``[H, W]``: the target of the last polygon over each pixel, from 1; 0: none; -1: to ignore.
    """
    # Coordinates are cut to whole pixels, as where these files come from.
    polygons = [np.asarray(shape.points, dtype=np.int64).astype(np.int32)[:, None] for shape in shapes]

    # fillPoly paints outlines, too; also those of a dot and a line.
    areas = [
        np.count_nonzero(cv2.fillPoly(np.zeros(image_size, np.uint8), [polygon], 1)) for polygon in polygons
    ]
    canvas = np.zeros(image_size, dtype=np.int32)
    for place in sorted(range(len(shapes)), key=lambda k: -areas[k]):
        target = shapes[place].target
        cv2.fillPoly(canvas, [polygons[place]], _IGNORED if target == _IGNORED else target + 1)
    return canvas


def _read_shapes(entries: Any) -> tuple[tuple[_Shape, ...], int]:
    """Targets and regions to ignore, and the number of targets (in the order of their first shapes)."""
    shapes: list[_Shape] = []
    targets: dict[int | str | None, int] = {}
    for position, entry in enumerate(list_of(entries, "shapes")):
        what = f"shapes[{position}]"
        if not isinstance(entry, dict) or "points" not in entry:
            raise FieldError(
                f"{what} is {shown(entry)}, not an object with `label` and `points`", "bad shape"
            )
        label = check_text(entry.get("label"), f"{what}: label").strip().lower()
        if label == "flag":
            continue
        if entry.get("shape_type") not in (None, "polygon"):
            raise FieldError(
                f"{what}: `shape_type` is {shown(entry['shape_type'])}, not 'polygon'", "bad shape"
            )
        points = _read_points(entry["points"], what)
        if "ignore" in label:
            shapes.append(_Shape(_IGNORED, points))
            continue
        group = entry.get("group_id")
        group = None if group is None else identifier(group, f"{what}: group_id")
        shapes.append(_Shape(targets.setdefault(group, len(targets)), points))
    return tuple(shapes), len(targets)


def _read_points(points: Any, what: str) -> tuple[tuple[float, float], ...]:
    """Points of a polygon; one or two are painted as a dot or a line."""
    pairs = isinstance(points, list) and points and all(isinstance(p, list) and len(p) == 2 for p in points)
    if not pairs:
        raise FieldError(f"{what}: `points` is {shown(points)}, not [[x, y], ...]", "bad mask")
    padded = points + points[-1:] * (3 - len(points))
    try:
        check_polygons([[value for point in padded for value in point]])
    except FieldError as error:
        raise FieldError(f"{what}: {error}", error.kind) from error
    return tuple((float(x), float(y)) for x, y in padded)


def _fact(value: Any, key: str, num_texts: int) -> Any:
    """A fact about the file, or (a list) about each of its texts."""
    if isinstance(value, list):
        if len(value) != num_texts:
            raise FieldError(f"{len(value)} values of `{key}` for {num_texts} texts")
        return [_fact(part, key, num_texts) for part in value]
    return value if value is None or isinstance(value, bool) else identifier(value, key)
