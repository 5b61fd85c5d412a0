"""Heads that know classes, and whether others may take their place."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

from torch import Tensor

from flmm_detseg.errors import ConfigError
from flmm_detseg.heads.base import Head, checked_names
from flmm_detseg.heads.open_classifier import OpenClassifier

P = TypeVar("P")
CLASSIFIERS = ("closed", "open")


class ClassHead(Head[P]):
    """A head whose classes are fixed (``classifier="closed"``), or found by text embeddings (``"open"``).

    Args:
        class_names: Classes in the order of the labels.
        classifier: One of :data:`CLASSIFIERS`.
        hidden_size: Width of the text embeddings, that of the LMM; of an open classifier only.

    Raises:
        ConfigError: No classes, a class twice, an unknown classifier, or an open one without ``hidden_size``.
    """

    def __init__(self, class_names: Sequence[str], classifier: str, hidden_size: int | None) -> None:
        super().__init__()
        if classifier not in CLASSIFIERS:
            raise ConfigError(f"classifier {classifier!r} is none of {', '.join(CLASSIFIERS)}")
        if classifier == "open" and hidden_size is None:
            raise ConfigError("an open classifier needs `hidden_size`, the width of the text embeddings")
        self.class_names = checked_names(class_names)
        self.classifier = classifier
        self.text_channels = hidden_size if classifier == "open" else None

    @property
    @abstractmethod
    def open_classifier(self) -> OpenClassifier:
        """What compares with the classes' embeddings; asked for where the classifier is open."""

    def classes_changed(self) -> None:
        """Called with new :attr:`class_names`, for parts that know their number."""

    @property
    def wants_class_embeddings(self) -> bool:
        """Whether the classifier is open."""
        return self.classifier == "open"

    def set_class_embeddings(self, embeddings: Tensor, class_names: Sequence[str] | None = None) -> None:
        """See :class:`Head`; a closed classifier's classes are fixed."""
        if not self.wants_class_embeddings:
            raise ConfigError("class embeddings are for `classifier='open'`; this head's classes are fixed")
        names = self.class_names if class_names is None else checked_names(class_names)
        if len(embeddings) != len(names):
            raise ConfigError(f"{len(embeddings)} class embeddings for {len(names)} class names")
        self.open_classifier.set_embeddings(embeddings)
        self.class_names = names
        self.classes_changed()

    @contextmanager
    def other_classes(self, embeddings: Tensor, class_names: Sequence[str]) -> Iterator[None]:
        """See :class:`Head`."""
        names = self.class_names
        before: Any = self.open_classifier.embeddings if self.wants_class_embeddings else None
        self.set_class_embeddings(embeddings, class_names)
        try:
            yield
        finally:
            self.open_classifier.embeddings, self.class_names = before, names
            self.classes_changed()
