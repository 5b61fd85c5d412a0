"""Questions for the classes of label maps and of COCO files, answered by masks; classes that are not there, too."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from flmm_detseg.datasets.base import GroundingDataset
from flmm_detseg.datasets.coco_instances import COCOInstancesDataset
from flmm_detseg.datasets.derived import DerivedDataset
from flmm_detseg.datasets.mask_answers import REASONING, check_query, check_wordings, mask_phrases
from flmm_detseg.datasets.semantic_maps import IGNORE
from flmm_detseg.errors import ConfigError
from flmm_detseg.language.mask_wording import answer_with_masks, ask_for_mask
from flmm_detseg.registry import DATASETS
from flmm_detseg.structures import DenseTargets, Sample
from flmm_detseg.utils.values import FieldError


@dataclass(frozen=True, slots=True)
class _Record:
    record_id: str
    index: int  # of the reader
    slot: int


@DATASETS.register_module()
class ClassPrompts(DerivedDataset):
    """Turns the samples of a dense reader into samples of the task ``reasoning`` that ask for a class by its name.

    An image gives ``per_image`` samples, each about one class: which ones are drawn per epoch, without repetition until
    all classes of the image came once. The mask is all that the class has in the image (of objects: their union, crowds
    too). ``meta`` holds ``class`` (its name in the data set), ``query`` (its words) and, of classes that are not there,
    ``absent="class"``.

    Words of a class are those of its name: ``traffic_light`` is "traffic light", what follows ``_(`` is left out
    (``mouse_(computer_equipment)``), and of a part, ``dog:ear`` (PACO, PASCAL-Part), one of "the ear of the dog" and
    "dog ear" is drawn.

    Args:
        dataset: A reader of label maps, or of COCO files with masks (``with_masks=True``); or its config.
        per_image: Samples an image.
        absent_share: Share of the samples that ask for a class which the image does not have, and whose answer says so.
            Of files that are not complete (LVIS, PACO) only classes are taken that ``neg_category_ids`` of the image
            names; an image without any asks for one that is there. Label maps are taken as complete. An image
            without a class to ask for asks for one that is not there, whatever the share; where none is known either,
            it is left out (``dropped["no class to ask for"]``).
        leave_out: Classes whose name holds this text are never asked for: ``"-"`` for COCO-Stuff, whose
            ``wall-other`` no one says. Empty: none.
        wordings: ``"random"`` | ``"first"``, as in :class:`~flmm_detseg.datasets.SegAnswers`; both draw the
            classes.
        seed: Of all draws.

    Raises:
        ConfigError: The reader gives neither label maps nor masks, a number is out of range, or no class is left.

    Source: Lai et al., LISA, CVPR 2024 (arXiv 2308.00692), section 3.3 (semantic segmentation data).
    """

    def __init__(
        self,
        dataset: GroundingDataset | Mapping[str, Any],
        per_image: int = 3,
        absent_share: float = 0.0,
        leave_out: str = "",
        wordings: str = "random",
        seed: int = 0,
    ) -> None:
        super().__init__(dataset)
        if per_image < 1:
            raise ConfigError(f"`per_image` is {per_image}; it must be at least 1")
        if not 0 <= absent_share <= 1:
            raise ConfigError(f"`absent_share` is {absent_share}; a share is 0 to 1")
        info = self.dataset.metainfo
        if "semantic_classes" not in info and not getattr(self.dataset, "with_masks", False):
            raise ConfigError(
                f"{type(self.dataset).__name__} gives neither label maps nor masks of objects (with_masks=True)"
            )
        self.classes: tuple[str, ...] = info.get("semantic_classes") or info["classes"]
        kept = [not leave_out or leave_out not in name for name in self.classes]
        if not any(kept):
            raise ConfigError(f"`leave_out` is {leave_out!r}, which every class has in its name")
        for name in self.classes:
            try:
                check_query(class_words(name), "class name")
            except FieldError as error:
                raise ConfigError(f"class {name!r}: {error}") from error
        self._asked = np.asarray(kept)
        self.absent_share, self.wordings, self.seed = absent_share, check_wordings(wordings), seed
        self._last: tuple[tuple[int, int], Sample] | None = None
        self.records = [
            _Record(f"class/{self.dataset.record_id(index)}/{slot}", index, slot)
            for index in range(len(self.dataset))
            if self._can_ask(index)
            for slot in range(per_image)
        ]
        self._finish(False, f"class prompts of {type(self.dataset).__name__}")

    def phrase_texts(self, index: int) -> tuple[str, list[str]]:
        """Image id of a record; its phrases are mask tokens, which have no words."""
        return self.dataset.phrase_texts(self.records[index].index)[0], []

    def _can_ask(self, index: int) -> bool:
        """Whether an image has a class to ask for, or one that is known not to be there; reads no image."""
        if not isinstance(self.dataset, COCOInstancesDataset):
            return (
                True  # a label map is known when it is decoded; it says of all classes whether they are there
            )
        labels, absent = self.dataset.labels_of(index)
        known = self._asked[list(labels)].any() or absent is None or self._asked[list(absent)].any()
        if not known:
            self._log.drop("no class to ask for", self.dataset.record_id(index))
        return bool(known)

    def _read(self, record: _Record) -> Sample:
        sample = self._sample(record.index)
        dense = sample.dense
        assert dense is not None
        there = np.zeros(len(self.classes), dtype=bool)
        there[_labels(dense)] = True
        listed = sample.meta.get("absent_labels")
        absent = ~there
        if listed is not None:
            absent &= np.isin(np.arange(len(self.classes)), listed)
        order = np.random.default_rng((self.seed, self.epoch, record.index))
        # Both are drawn whatever is asked for, so that neither depends on the other.
        present_labels = order.permutation(np.flatnonzero(there & self._asked))
        absent_labels = order.permutation(np.flatnonzero(absent & self._asked))
        draw = np.random.default_rng((self.seed, self.epoch, record.index, record.slot + 1))
        wants_absent = draw.random() < self.absent_share or not len(present_labels)
        labels = absent_labels if wants_absent and len(absent_labels) else present_labels
        if not len(labels):
            raise FieldError("the image has no class that can be asked for", "no class")
        label = int(labels[record.slot % len(labels)])
        wording = draw if self.wordings == "random" else None
        words = class_words(self.classes[label], wording)
        text = answer_with_masks(int(there[label]), (), wording)
        meta = {"class": self.classes[label], "query": words}
        return replace(
            sample,
            record_id=record.record_id,
            text=text,
            phrases=mask_phrases(text),
            masks=_mask(dense, label)[None]
            if there[label]
            else np.zeros((0, *sample.image_size), dtype=bool),
            prompt=ask_for_mask(words, wording),
            task=REASONING,
            dense=None,
            meta={**sample.meta, **meta, **({} if there[label] else {"absent": "class"})},
        )

    def _sample(self, index: int) -> Sample:
        """A sample of the reader; neighbouring records share one, so the last is kept."""
        key = (index, self.epoch)
        if self._last is None or self._last[0] != key:
            self._last = (key, self.dataset[index])
        return self._last[1]


def class_words(name: str, draw: np.random.Generator | None = None) -> str:
    """The words of a class name, see :class:`ClassPrompts`.

    Args:
        name: As a data set writes it.
        draw: Chooses between the two forms of a part's name; None: the first.

    Returns:
        Words.
    """
    parts = [" ".join(part.split("_(")[0].replace("_", " ").split()) for part in name.split(":")]
    if len(parts) != 2 or not all(parts):
        return " ".join(parts)
    whole, part = parts
    forms = (f"the {part} of the {whole}", f"{whole} {part}")
    return forms[0 if draw is None else int(draw.integers(2))]


def _labels(dense: DenseTargets) -> np.ndarray:
    """Labels of the classes that are there."""
    if dense.semantic is not None:
        values = np.unique(dense.semantic)
        return values[values != IGNORE]
    assert dense.labels is not None
    return np.unique(dense.labels)


def _mask(dense: DenseTargets, label: int) -> np.ndarray:
    """All that a class has in the image; bool ``[H, W]``."""
    if dense.semantic is not None:
        return dense.semantic == label
    assert dense.masks is not None
    assert dense.labels is not None
    return dense.masks[dense.labels == label].any(axis=0)
