"""Errors a user can meet. Each message says what is wrong, where (file, record, key) and what to do about it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


class FlmmError(Exception):
    """Base of every error that the user can fix (config, data, checkpoint, environment)."""


class ConfigError(FlmmError, ValueError):
    """A config key or value cannot be used."""


class DataError(FlmmError, ValueError):
    """A record, annotation file or image cannot be used; names the file and the record.

    Attributes:
        problems: Where many records are at fault: what is wrong with each.
    """

    problems: Sequence[Any] = ()


class PhraseNotFoundError(DataError):
    """A phrase or span does not occur in the text it is said to be part of."""


class PhraseWithoutTokensError(DataError):
    """A phrase ended up with no token (for example cut off by truncation)."""


class CheckpointError(FlmmError, ValueError):
    """A checkpoint is unreadable, unsafe, or does not fit the model; names the keys."""


class MissingDependencyError(FlmmError, ImportError):
    """An optional compiled operator or package is needed and absent; names it and the remedy."""


class RunError(FlmmError, RuntimeError):
    """A tool step failed (training, evaluation); names the step."""
