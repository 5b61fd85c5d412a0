"""Which pictures a model knows: a distance from those it was trained on, and how far is far.

A model that has seen one kind of pictures gives every other kind confident nonsense. So what was trained may carry the
distribution of its pictures' statistics (:mod:`flmm_detseg.ops.picture_statistics`): their mean, their covariance, and
the distance that all but a few of them keep. The file lies beside the trained tensors and is read with them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from flmm_detseg.errors import CheckpointError, ConfigError
from flmm_detseg.ops.picture_statistics import picture_statistics
from flmm_detseg.utils.values import printable
from flmm_detseg.utils.whole_files import dump_json, write_bytes

# Its name beside a checkpoint.
DOMAIN_FILE = "domain.safetensors"
MIN_PICTURES = 100
# Share of a covariance that is replaced by independent statistics.
_SHRINKAGE = 0.05
_FOLDS = 5
# How much further than the quantile a picture may be: one that was stored as JPEG or cut out is a little further, and
# those of another kind are a good deal further.
_MARGIN = 1.25
_FORMAT = "flmm_detseg.domain/1"
_LONGEST_SOURCE = 500
# A statistic that is the same in all training pictures may differ by this much.
_LEAST_DEVIATION = 1e-3


@dataclass(frozen=True)
class DomainScore:
    """How far a picture is from those of the training.

    Attributes:
        score: Mahalanobis distance of its statistics; no unit.
        threshold: The distance that all but a few training pictures keep.
    """

    score: float
    threshold: float

    @property
    def far(self) -> bool:
        """Whether the picture is none like those of the training."""
        return self.score > self.threshold


@dataclass(frozen=True, eq=False)
class Domain:
    """The pictures of a training.

    Attributes:
        mean: float64 ``[D]``, of the statistics.
        whitening: float64 ``[D, D]``: differences from the mean, times it, have the distance as their length.
        threshold: Distance beyond which a picture is far.
        num_pictures: It was fitted on so many.
        source: What they are, for people.
        false_alarms: At most this share of training pictures, left out of the fit, is beyond the threshold.
    """

    mean: np.ndarray
    whitening: np.ndarray
    threshold: float
    num_pictures: int
    source: str
    false_alarms: float

    @classmethod
    def fit(cls, pictures: Iterable[np.ndarray], source: str, *, false_alarms: float = 0.0025) -> Self:
        """Learns what pictures look like.

        The threshold comes from pictures that the fit has not seen: each fifth of them is measured by a fit of the
        others. It is 1.25 times the distance that all but ``false_alarms`` of them keep. The stored fit is that of all.

        Args:
            pictures: RGB uint8 ``[H, W, 3]``, of any sizes.
            source: What they are, for people: ``"TinyWorld, seed 0, training split"``.
            false_alarms: Largest share of pictures of this kind to be taken for others, above 0 and at most 0.1.

        Returns:
            The domain.

        Raises:
            ConfigError: Fewer than :data:`MIN_PICTURES`, or a share that is none.
        """
        if not 0 < false_alarms <= 0.1:
            raise ConfigError(f"`false_alarms` is {false_alarms}; a share above 0 and at most 0.1 is needed")
        found = [picture_statistics(picture) for picture in pictures]
        if len(found) < MIN_PICTURES:
            raise ConfigError(
                f"{source}: {len(found)} pictures; at least {MIN_PICTURES} are needed to say what is usual among them"
            )
        statistics = np.stack(found)
        fold = np.random.default_rng(0).permutation(len(statistics)) % _FOLDS
        distances = np.empty(len(statistics))
        for number in range(_FOLDS):
            mean, whitening = _fitted(statistics[fold != number])
            distances[fold == number] = _distances(statistics[fold == number], mean, whitening)
        threshold = _MARGIN * float(np.quantile(distances, 1 - false_alarms))
        return cls(*_fitted(statistics), threshold, len(statistics), source, false_alarms)

    def score(self, picture: np.ndarray) -> DomainScore:
        """Measures a picture.

        Args:
            picture: RGB uint8 ``[H, W, 3]``.

        Returns:
            Distance and threshold.
        """
        distance = _distances(picture_statistics(picture)[None], self.mean, self.whitening)[0]
        return DomainScore(float(distance), self.threshold)

    def save(self, path: Path) -> Path:
        """Writes the domain (float32 tensors and facts in safetensors; no code).

        Args:
            path: The file; its folder is made.

        Returns:
            ``path``.
        """
        facts = {
            "threshold": self.threshold,
            "num_pictures": self.num_pictures,
            "source": self.source,
            "false_alarms": self.false_alarms,
        }
        tensors = {
            "mean": self.mean.astype(np.float32),
            "whitening": np.ascontiguousarray(self.whitening, dtype=np.float32),
        }
        # One entry: safetensors writes several in any order, and equal domains are to be equal files.
        write_bytes(path, save(tensors, {"facts": dump_json({"format": _FORMAT, **facts})}))
        return path

    @classmethod
    def load(cls, path: Path) -> Self:
        """Reads what :meth:`save` wrote.

        Args:
            path: The file.

        Returns:
            The domain.

        Raises:
            CheckpointError: It is damaged, or no such file.
        """
        again = "make it again with `flmm-detseg export domain`, or remove it (then no picture is measured)"
        try:
            with safe_open(path, "numpy") as content:
                facts = json.loads((content.metadata() or {})["facts"])
                if facts["format"] != _FORMAT:
                    raise CheckpointError(
                        f"{path}: its format is {facts['format']!r}, {_FORMAT!r} is needed; {again}"
                    )
                mean, whitening = (
                    content.get_tensor(name).astype(np.float64) for name in ("mean", "whitening")
                )
            domain = cls(
                mean,
                whitening,
                float(facts["threshold"]),
                int(facts["num_pictures"]),
                printable(
                    str(facts["source"]), _LONGEST_SOURCE
                ),  # somebody else's text goes to terminals and pages
                float(facts["false_alarms"]),
            )
        except (OSError, SafetensorError, ValueError, OverflowError, KeyError, TypeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{path} is damaged ({type(error).__name__}: {error}); {again}") from error
        size = len(picture_statistics(np.zeros((1, 1, 3), np.uint8)))
        if mean.shape != (size,) or whitening.shape != (size, size):
            raise CheckpointError(
                f"{path}: statistics of shape {mean.shape} and {whitening.shape}, this version measures {size}; {again}"
            )
        if not (np.isfinite(mean).all() and np.isfinite(whitening).all() and math.isfinite(domain.threshold)):
            raise CheckpointError(f"{path}: a number is NaN or infinite; {again}")
        return domain


def domain_beside(checkpoint: Path) -> Domain | None:
    """The domain that lies beside trained tensors.

    Args:
        checkpoint: File or folder with the trained tensors.

    Returns:
        The domain; None where there is none.

    Raises:
        CheckpointError: It is damaged.
    """
    path = checkpoint.parent / DOMAIN_FILE
    return Domain.load(path) if path.is_file() else None


def _fitted(statistics: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Mean, and whitening by a covariance that is drawn towards a diagonal one."""
    mean = statistics.mean(0)
    deviation = statistics.std(0) + _LEAST_DEVIATION
    standard = (statistics - mean) / deviation
    covariance = (1 - _SHRINKAGE) * np.cov(standard.T) + _SHRINKAGE * np.eye(len(mean))
    values, vectors = np.linalg.eigh(covariance)
    return mean, vectors / np.sqrt(values) / deviation[:, None]


def _distances(statistics: np.ndarray, mean: np.ndarray, whitening: np.ndarray) -> np.ndarray:
    return np.linalg.norm((statistics - mean) @ whitening, axis=1)
