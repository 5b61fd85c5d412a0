"""Says once a picture that a model was not made for it."""

from __future__ import annotations

import hashlib
import logging
from collections import OrderedDict

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
            print_log(
                f"this picture is far from all that the model knows ({self.domain.source}): distance "
                f"{score.score:.1f}, such pictures stay below {score.threshold:.1f}. Its masks and scores mean "
                "nothing here; take a model that was trained on such pictures",
                "current",
                logging.WARNING,
            )
        return score
