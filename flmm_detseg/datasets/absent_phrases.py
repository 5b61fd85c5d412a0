"""Phrases of other images that name nothing in this one, beside a data set's own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from flmm_detseg.datasets.base import GroundingDataset, join_sentences
from flmm_detseg.datasets.coco_file import CocoFile, CocoObject, name_key
from flmm_detseg.datasets.mix import ConcatMix
from flmm_detseg.errors import DataError
from flmm_detseg.language.words import find_words
from flmm_detseg.registry import DATASETS
from flmm_detseg.structures import Phrase, Sample
from flmm_detseg.utils.paths import find

ABSENT = "class"
_MAX_DRAWS = 200
# Class names that are also other words: "the orange shirt", "a tie dye bag", "the truck bed", "the apple laptop".
_DOUBTFUL = frozenset(("apple", "bed", "mouse", "orange", "remote", "tie"))
_PLURALS = {"person": "people", "mouse": "mice", "knife": "knives", "sheep": "sheep", "skis": "ski"}


@DATASETS.register_module()
class AbsentPhrases(ConcatMix):
    """A data set of phrases, and after each of its records another whose phrases name nothing in that image.

    A phrase of another image names a class. It is taken for this image where none of the classes that it names is
    annotated here, or named by any sentence about an object of this image, also one that is not read in this epoch
    ("dog" or "dogs"): annotations alone leave things out. Where a "teddy bear" is, a "bear" may be. A phrase is not
    taken for a word that means other things as well and is all that it names ("the orange shirt").
    Its record has the image, these phrases (each followed by "."), and empty masks. Deterministic by (``seed``, index).

    This makes absent *classes*. They do not teach a model absent attributes or relations ("the red ring" where the ring
    is blue): those need data that says them.

    Args:
        dataset: A data set of phrases, or its config.
        instances_file: COCO annotations of its images: the classes, and which are in which image. Images are found by
            the end of their path.
        phrases_per_record: Absent phrases of a record.
        seed: Of the draw.

    Raises:
        DataError: The file cannot be read, lacks an image of the data set, or no phrase names a class.
    """

    def __init__(
        self,
        dataset: GroundingDataset | Mapping[str, Any],
        instances_file: str,
        phrases_per_record: int = 1,
        seed: int = 0,
    ) -> None:
        super().__init__([dataset])
        own: Any = self.datasets[0]
        super().__init__([own, own])
        self.phrases_per_record, self.seed = phrases_per_record, seed
        self.instances_file = find(instances_file)
        annotated, names = _annotated(self.instances_file)
        # By image: classes that are in it, by annotation or by word.
        self._present: dict[str, set[str]] = {}
        self._pool: list[tuple[str, frozenset[str]]] = []
        for index in range(len(own)):
            image_id = own.phrase_texts(index)[0]
            if image_id not in self._present:
                classes = _of_image(annotated, image_id, self.instances_file)
                self._present[image_id] = set().union(*(_named(text, names) for text in classes), classes)
            for text in own.mentions(index):
                named = _named(text, names)
                self._present[image_id] |= named
                if any(_is_surely_named(text, name) for name in named):
                    self._pool.append((text, named))
        self._pool = list(dict.fromkeys(self._pool))
        if not self._pool:
            raise DataError(
                f"{self.instances_file}: no phrase of the data set names one of its classes "
                f"({', '.join(names[:5])}, ...); absent phrases cannot be drawn"
            )

    @property
    def annotation_files(self) -> tuple[Path, ...]:
        """Those of the data set, and the COCO file."""
        return (*self.datasets[0].annotation_files, self.instances_file)

    @property
    def metainfo(self) -> dict[str, Any]:
        """That of the data set."""
        return self.datasets[0].metainfo

    def report(self) -> dict[str, Any]:
        """Report of the data set, and how many phrases there are to draw from."""
        own = self.datasets[0].report()
        return {"records": len(self), "phrases_to_draw": len(self._pool), "members": [own]}

    def _locate(self, index: int) -> tuple[int, int]:
        """A record and the one made of it are neighbours: any number of first records holds both kinds."""
        return index % 2, index // 2

    def __getitem__(self, index: int) -> Sample:
        member, inner = self._locate(range(len(self))[index])
        sample: Sample = self.datasets[member][inner]
        if member == 0:
            return sample
        texts = self.absent_texts(inner)
        text, spans = join_sentences(texts)
        masks = np.zeros((len(texts), *sample.image_size), dtype=bool)
        phrases = tuple(Phrase((span,)) for span in spans)
        meta = {"absent": [ABSENT] * len(texts)}
        record_id = f"{sample.record_id}/absent"
        return replace(sample, record_id=record_id, text=text, phrases=phrases, masks=masks, meta=meta)

    def record_id(self, index: int) -> str:
        """That of the data set; of absent phrases with ``/absent`` after it."""
        member, inner = self._locate(range(len(self))[index])
        own = self.datasets[member].record_id(inner)
        return f"{own}/absent" if member else own

    def phrase_texts(self, index: int) -> tuple[str, list[str]]:
        """Image id and phrases of a record, without reading its image."""
        member, inner = self._locate(range(len(self))[index])
        image_id, texts = self.datasets[member].phrase_texts(inner)
        return image_id, self.absent_texts(inner) if member else texts

    def absent_texts(self, index: int) -> list[str]:
        """Phrases that name nothing in the image of a record of the data set.

        Args:
            index: Of the record.

        Returns:
            Different ones.

        Raises:
            DataError: There are too few.
        """
        image_id, _ = self.datasets[0].phrase_texts(index)
        present = self._present[image_id]
        rng = np.random.default_rng((self.seed, index))
        found: list[str] = []
        for _ in range(_MAX_DRAWS * self.phrases_per_record):
            text, named = self._pool[int(rng.integers(len(self._pool)))]
            if not named & present and text not in found:
                found.append(text)
                if len(found) == self.phrases_per_record:
                    return found
        raise DataError(
            f"{image_id}: fewer than {self.phrases_per_record} phrases of other images name classes that it lacks; "
            "lower `phrases_per_record`, or use more images"
        )


def _named(text: str, names: Sequence[str]) -> frozenset[str]:
    """Classes that a text may name: by their own word, or by its plural."""
    return frozenset(
        name for name in names if find_words(text, name) or any(find_words(text, p) for p in _plurals(name))
    )


def _is_surely_named(text: str, name: str) -> bool:
    """Whether a class that a text names is meant there: "orange" may be a colour, "oranges" are fruit."""
    return name.lower() not in _DOUBTFUL or any(find_words(text, plural) for plural in _plurals(name))


def _plurals(name: str) -> tuple[str, ...]:
    return (f"{name}s", f"{name}es", *([_PLURALS[name.lower()]] if name.lower() in _PLURALS else ()))


def _annotated(file: Path) -> tuple[dict[str, set[str]], Sequence[str]]:
    """Names of the classes by the name of the image file, and all names."""
    coco = CocoFile(file, "instances file")
    coco.read_images()
    found: dict[str, set[str]] = {name_key(image.file_name): set() for image in coco.images.values()}

    def add(item: CocoObject, place: str) -> None:
        found[name_key(item.image.file_name)].add(coco.categories[item.category_id])

    coco.read_objects(add)
    return found, list(coco.categories.values())


def _of_image(annotated: Mapping[str, set[str]], image_id: str, file: Path) -> set[str]:
    """Classes of an image by its path, whose end the file has."""
    parts = name_key(image_id).split("/")
    for start in range(len(parts)):
        if (name := "/".join(parts[start:])) in annotated:
            return annotated[name]
    raise DataError(f"{file}: it has no image {image_id!r}; use the annotations of the data set's images")
