"""What all readers share: a problem policy, epochs that reach worker processes, and checked reading."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset
from tqdm import tqdm

from flmm_detseg.datasets.files import require_list
from flmm_detseg.datasets.images import load_image
from flmm_detseg.datasets.policy import Problem, ProblemLog, RecordError, as_record_error
from flmm_detseg.errors import DataError
from flmm_detseg.structures import Sample
from flmm_detseg.utils.values import FieldError


class SharedInt:
    """An integer in shared memory: persistent workers hold a copy of the dataset, yet must see the epoch
    that the main process sets later, and the main process what they count.
    """

    def __init__(self, value: int = 0) -> None:
        self._tensor = torch.tensor(value, dtype=torch.int64).share_memory_()

    @property
    def value(self) -> int:
        """The number."""
        return int(self._tensor)

    @value.setter
    def value(self, value: int) -> None:
        self._tensor.fill_(value)

    def __deepcopy__(self, memo: dict[int, Any]) -> SharedInt:
        # Copying the tensor would leave shared memory; MMEngine copies the datasets handed to its loader
        # builder.
        return SharedInt(self.value)


class GroundingDataset(Dataset[Sample], ABC):
    """Base of the readers: ``dataset[i]`` is always the same record, read when asked for.

    A subclass fills :attr:`records` in its constructor (cheap checks only) and then calls :meth:`_finish`.

    Args:
        policy: ``"raise"`` | ``"skip"``, see :class:`~flmm_detseg.datasets.policy.ProblemLog`.

    Attributes:
        records: The usable records, in the subclass's own form.
        annotation_files: Files that define the data; evaluation reports hash them.
    """

    records: list[Any]
    annotation_files: tuple[Path, ...]

    def __init__(self, policy: str) -> None:
        self._log = ProblemLog(policy)
        self._epoch = SharedInt()
        self._last_image: tuple[str, np.ndarray] | None = None

    @property
    def problems(self) -> list[Problem]:
        """Records skipped as unusable (policy ``"skip"``), in file order."""
        return self._log.problems

    @property
    def dropped(self) -> dict[str, list[str]]:
        """Well-formed records without anything to learn from, by reason."""
        return self._log.dropped

    @property
    def metainfo(self) -> dict[str, Any]:
        """Facts MMEngine passes to metrics and visualisers."""
        return {"num_skipped": len(self.problems), "num_dropped": sum(map(len, self.dropped.values()))}

    @property
    def epoch(self) -> int:
        """The epoch that random choices belong to."""
        return self._epoch.value

    def set_epoch(self, epoch: int) -> None:
        """Selects the epoch of random choices; also seen by running worker processes."""
        self._epoch.value = epoch

    def report(self) -> dict[str, Any]:
        """Counts of what is used, skipped and dropped (plain containers)."""
        return {
            "records": len(self),
            "skipped": self._log.counts(),
            "dropped": {reason: len(records) for reason, records in self.dropped.items()},
            **self.count(),
        }

    def count(self, indices: Iterable[int] | None = None) -> dict[str, Any]:
        """What some records (None: all) hold to learn from, and what is left out of them; reads no image."""
        return {}

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        """Reads one record.

        Args:
            index: 0 to ``len(self) - 1``.

        Returns:
            The sample: RGB image, text, phrases and targets in original pixels.

        Raises:
            DataError: Its image or masks turn out to be unusable. With ``policy="skip"`` this can only
                happen when the dataset was built without ``verify_images``: leaving a record out here would
                shift or replace others.
        """
        return self._checked(self.records[range(len(self.records))[index]])

    def _checked(self, record: Any) -> Sample:
        """:meth:`_read`; whatever it raises is an error of this record."""
        try:
            return self._read(record)
        except Exception as error:
            files = self.annotation_files
            place = str(getattr(record, "record_id", record))
            remedy = "Mend the record, or use policy='skip' with verify_images=True."
            problem = as_record_error(error, str(files[0] if files else type(self).__name__), place, remedy)
            if problem is error:
                raise
            raise problem from error

    @abstractmethod
    def _read(self, record: Any) -> Sample:
        """Makes the sample of one entry of :attr:`records`; raises :class:`RecordError` where it cannot."""

    @abstractmethod
    def phrase_texts(self, index: int) -> tuple[str, list[str]]:
        """Image id and phrase texts of a record, without reading its image."""

    def mentions(self, index: int) -> list[str]:
        """All that is said of a record's phrases, in whatever epoch; their texts, unless a reader knows more."""
        return self.phrase_texts(index)[1]

    def record_id(self, index: int) -> str:
        """Record id of a record, without reading its image."""
        return self.records[index].record_id

    def _load_image(self, path: Path, record: str) -> np.ndarray:
        """Reads an image; neighbouring records often share one, so the last is kept."""
        if self._last_image is None or self._last_image[0] != str(path):
            self._last_image = (str(path), load_image(path, record))
        return self._last_image[1]

    def _load_more(self, paths: Sequence[Path], record: str) -> tuple[np.ndarray, ...]:
        """Reads further images of a record."""
        return tuple(load_image(path, record) for path in paths)

    @contextmanager
    def _reading(self, file: Path, record: str, remedy: str) -> Iterator[None]:
        """Reading of one record inside a ``with`` block: whatever it raises goes to the policy as its problem."""
        try:
            yield
        except Exception as error:
            problem = as_record_error(error, str(file), record, remedy)
            if self._log.policy == "raise" and problem is not error:
                raise problem from error
            self._log.handle(problem)

    def _read_entries(self, file: Path, key: str, entries: Any, add: Callable[[Any, str], None]) -> None:
        """Yields every entry of a list of an annotation file; the policy decides about faulty ones.

        Args:
            file: Where the list is from.
            key: Its name there.
            entries: The list.
            add: Takes an entry and its place (``"images[3]"``); what it raises is the entry's problem.
        """
        remedy = "Mend the annotation, or use policy='skip' to leave what belongs to it out."
        for position, entry in enumerate(require_list(entries, key, file)):
            place = f"{key}[{position}]"
            with self._reading(file, place, remedy):
                add(entry, place)

    def _read_lines(self, file: Path, remedy: str, read: Callable[[int, bytes], Any]) -> list[Any]:
        """Records of a JSONL file, one a line that is not blank; the policy decides about faulty ones.

        Args:
            file: The file.
            remedy: What to do about a faulty line, for the error.
            read: Makes a record (with ``record_id``, which no other has) of a line's number, from 1, and its bytes;
                what it raises is the line's problem.
        """
        records: list[Any] = []
        seen: dict[str, int] = {}
        with file.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                with self._reading(file, f"line {number}", remedy):
                    record = read(number, line)
                    if record.record_id in seen:
                        message = f"id {record.record_id!r} was used in line {seen[record.record_id]}"
                        raise FieldError(message, "duplicate id")
                    seen[record.record_id] = number
                    records.append(record)
        return records

    def _finish(self, verify_images: bool, what: str) -> None:
        """Decodes every record once if asked, applies the policy, and refuses an empty dataset."""
        if verify_images:
            usable = []
            for record in tqdm(self.records, desc=f"verifying {what}", leave=False):
                try:
                    self._checked(record)
                except RecordError as error:
                    self._log.handle(error)
                else:
                    usable.append(record)
            self.records = usable
            self._last_image = None
        if not self.records:
            first = f" First problem: {self.problems[0]}" if self.problems else ""
            nothing = DataError(
                f"{what}: no usable record ({len(self.problems)} skipped, "
                f"{sum(map(len, self.dropped.values()))} dropped).{first}"
            )
            nothing.problems = list(self.problems)
            raise nothing


def join_sentences(sentences: Sequence[str]) -> tuple[str, list[tuple[int, int]]]:
    """Joins sentences into one text, each followed by an un-grounded ``"."`` of its own.

    Args:
        sentences: Texts without surrounding blanks.

    Returns:
        The text ``"a . b ."`` and the half-open span of each sentence in it.

    Source: F-LMM, arXiv 2406.05821 (training format of RefCOCO).
    """
    spans, start = [], 0
    for sentence in sentences:
        spans.append((start, start + len(sentence)))
        start += len(sentence) + 3
    return " ".join(f"{sentence} ." for sentence in sentences), spans
