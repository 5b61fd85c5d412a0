"""Says once a picture that a model was not made for it."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict
from weakref import WeakKeyDictionary

import numpy as np
from mmengine.logging import print_log

from flmm_detseg.models.domain import Domain, DomainScore

# Pictures that are remembered: a server sees any number of them.
_REMEMBERED = 1024


class DomainWatch:
    """Measures the pictures that a model is shown.

    Args:
        domain: Of the model; None: it does not say what it was trained on, and nothing is measured.
    """

    def __init__(self, domain: Domain | None) -> None:
        self.domain = domain
        self._known: OrderedDict[bytes, DomainScore] = OrderedDict()

    def look(self, picture: np.ndarray) -> DomainScore | None:
        """Measures a picture, and warns where it is far; both once, however often it is shown.

        Args:
            picture: RGB uint8 ``[H, W, 3]``.

        Returns:
            Distance and threshold; None without a domain.
        """
        if self.domain is None:
            return None
        pixels = np.ascontiguousarray(picture)
        key = hashlib.sha256(repr(pixels.shape).encode() + pixels.tobytes()).digest()
        if key in self._known:
            self._known.move_to_end(key)
            return self._known[key]
        score = self.domain.score(pixels)
        self._known[key] = score
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)
        if score.far:
            print_log(self._sentence(score), "current", logging.WARNING)
        return score

    def warning(self, picture: np.ndarray) -> str:
        """What is to be said of a picture.

        Args:
            picture: RGB uint8 ``[H, W, 3]``.

        Returns:
            A sentence where it is far; else empty.
        """
        score = self.look(picture)
        return self._sentence(score) if score is not None and score.far else ""

    def _sentence(self, score: DomainScore) -> str:
        assert self.domain is not None  # else there is no score
        return (
            f"this picture is far from all that the model knows ({self.domain.source}): distance {score.score:.1f}, "
            f"such pictures stay below {score.threshold:.1f}. Its masks and scores mean nothing here; take a model "
            "that was trained on such pictures"
        )


_watches: WeakKeyDictionary[Domain, DomainWatch] = WeakKeyDictionary()


def watch_of(domain: Domain | None) -> DomainWatch:
    """The watch of a model's domain: one for all that use the model, so that each picture is spoken of once.

    Args:
        domain: Of the model.

    Returns:
        The watch.
    """
    if domain is None:
        return DomainWatch(None)
    return _watches.setdefault(domain, DomainWatch(domain))
