"""A stream of images and the questions about them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator, Mapping
from typing import Any

import numpy as np

from flmm_detseg.cache.answering import Answer, answer, answer_stream
from flmm_detseg.cache.model import CachedLMM
from flmm_detseg.cache.serving import CacheUse
from flmm_detseg.cache.store import BackgroundCache
from flmm_detseg.errors import ConfigError
from flmm_detseg.structures import CaptureSpec, Sample

CACHE_MODES = ("on", "off")


class StreamSession:
    """Answers questions about a stream of images, computing no background twice.

    Requests of one session run one after the other; several sessions may share model and cache in threads.

    Example:
        >>> session = StreamSession(model, BackgroundCache(CacheSettings()))
        >>> session.ask(screen, "What time is it?").text

    Args:
        model: Set to eval mode.
        cache: The store; None for none at all.
        tenant: Owner of the images; nothing is shared between tenants.
        session_id: Name of the stream; None makes one.
    """

    def __init__(
        self,
        model: CachedLMM,
        cache: BackgroundCache | None,
        *,
        tenant: str = "default",
        session_id: str | None = None,
    ) -> None:
        self.model = model.eval()
        self.cache = cache
        self.tenant = tenant
        self.session_id = session_id or uuid.uuid4().hex

    def ask(
        self,
        image: np.ndarray,
        text: str | None = None,
        *,
        cache: str = "on",
        capture: CaptureSpec | None = None,
        max_new_tokens: int = 128,
        on_text: Callable[[str], None] | None = None,
        meta: Mapping[str, Any] | None = None,
    ) -> Answer:
        """Answers a question about the stream's next image.

        Args:
            image: RGB uint8 ``[H, W, 3]``.
            text: The question; None asks for a description.
            cache: ``"off"``: neither reads nor writes the cache.
            capture: Rows of the answer's tokens to keep: ``Answer.generation`` then serves
                :meth:`CachedLMM.states_of_phrases`.
            max_new_tokens: Longest answer.
            on_text: Called with each further piece of the text.
            meta: What the partitioner may read (``Sample.meta``).

        Raises:
            ConfigError: Unknown cache mode, or ``max_new_tokens`` below 1.
            DataError: The image cannot be used, or the prompt is too long.
        """
        return answer(
            self.model,
            self._sample(image, text, meta),
            use=self._use(cache),
            capture=capture,
            max_new_tokens=max_new_tokens,
            on_text=on_text,
        )

    def stream(
        self,
        image: np.ndarray,
        text: str | None = None,
        *,
        cache: str = "on",
        capture: CaptureSpec | None = None,
        max_new_tokens: int = 128,
        meta: Mapping[str, Any] | None = None,
    ) -> Generator[str, None, Answer]:
        """As :meth:`ask`; yields the text piece by piece, ``StopIteration.value`` is the answer."""
        return answer_stream(
            self.model,
            self._sample(image, text, meta),
            use=self._use(cache),
            capture=capture,
            max_new_tokens=max_new_tokens,
        )

    def _sample(self, image: np.ndarray, text: str | None, meta: Mapping[str, Any] | None) -> Sample:
        meta = {"session": self.session_id, **(meta or {})}
        return Sample(f"session/{self.session_id}", image, "", (), prompt=text, meta=meta)

    def _use(self, mode: str) -> CacheUse | None:
        if mode not in CACHE_MODES:
            raise ConfigError(f"`cache` is {mode!r}; allowed: {', '.join(CACHE_MODES)}")
        if mode == "off" or self.cache is None:
            return None
        return CacheUse(self.cache, self.tenant, self.session_id)
