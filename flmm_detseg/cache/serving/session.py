"""A stream of images and the questions about them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from flmm_detseg.cache.reading.reader import GroupReader
from flmm_detseg.cache.regions.sources import SESSION
from flmm_detseg.cache.serving.answer import Answer, answer, answer_stream
from flmm_detseg.cache.serving.prefill import CacheUse
from flmm_detseg.datasets.images import ImageLike, read_image
from flmm_detseg.errors import ConfigError
from flmm_detseg.store.background_cache import BackgroundCache
from flmm_detseg.structures import CaptureSpec, Region, Sample
from flmm_detseg.structures.partition import PatchPartition

CACHE_MODES = ("on", "exact", "off")


class StreamSession:
    """Answers questions about a stream of images, computing no background twice.

    Requests of one session run one after the other. Several sessions may share model and cache in threads: one request
    at a time computes (a prompt, or the next token), in the order of asking, and ``model.base_mode()``,
    ``model.train()`` and merging of LoRA wait for it. Change weights between requests only: what was computed while
    they changed is not stored, but the answer is returned.

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
        model: GroupReader,
        cache: BackgroundCache | None,
        *,
        tenant: str = "default",
        session_id: str | None = None,
    ) -> None:
        self.model = model.eval()
        self.cache = cache
        self.tenant = tenant
        self.session_id = session_id or uuid.uuid4().hex
        self._static = False

    def declare_static(self) -> None:
        """The stream repeats its background (fixed camera, kiosk): it is stored at first sight, with any weights."""
        self._static = True

    def ask(
        self,
        image: ImageLike,
        text: str | None = None,
        *,
        cache: str = "on",
        partition: PatchPartition | None = None,
        capture: CaptureSpec | None = None,
        max_new_tokens: int = 128,
        on_text: Callable[[str], None] | None = None,
        meta: Mapping[str, Any] | None = None,
        regions: Sequence[object] = (),
    ) -> Answer:
        """Answers a question about the stream's next image.

        Args:
            image: Path, PIL image, or RGB uint8 array ``[H, W, 3]``; see
                :func:`~flmm_detseg.datasets.images.read_image`.
            text: The question; None asks for a description.
            cache: ``"off"``: neither reads nor writes the cache; ``"exact"``: no nearly equal background (L3), whatever
                the cache's settings.
            partition: Groups to use instead of the partitioner's, e.g. ``Answer.partition``; with ``cache="off"`` only.
            capture: Rows of the answer's tokens to keep: ``Answer.generation`` then serves
                :meth:`CachedLMM.states_of_phrases`.
            max_new_tokens: Longest answer.
            on_text: Called with each further piece of the text.
            meta: What the partitioner may read (``Sample.meta``); ``"session"`` is the session's own.
            regions: What the question points at, one for each of its places (``<region>``): points ``(x, y)``, boxes
                ``(x0, y0, x1, y1)`` or bool masks ``[H, W]`` in pixels of the image.

        Returns:
            Text, tokens, where the background came from, and times in milliseconds.

        Raises:
            ConfigError: Unknown cache mode, given groups with a cache, ``max_new_tokens`` below 1, or a cache and a
                model that was set to training mode meanwhile.
            DataError: The image cannot be used, or the prompt is too long.
        """
        return answer(
            self.model,
            self._sample(image, text, meta, regions),
            use=self._use(cache),
            partition=partition,
            capture=capture,
            max_new_tokens=max_new_tokens,
            on_text=on_text,
        )

    def stream(
        self,
        image: ImageLike,
        text: str | None = None,
        *,
        cache: str = "on",
        capture: CaptureSpec | None = None,
        max_new_tokens: int = 128,
        meta: Mapping[str, Any] | None = None,
        regions: Sequence[object] = (),
    ) -> Generator[str, None, Answer]:
        """As :meth:`ask`; yields the text piece by piece, ``StopIteration.value`` is the answer."""
        return answer_stream(
            self.model,
            self._sample(image, text, meta, regions),
            use=self._use(cache),
            capture=capture,
            max_new_tokens=max_new_tokens,
        )

    def _sample(
        self, image: ImageLike, text: str | None, meta: Mapping[str, Any] | None, regions: Sequence[object]
    ) -> Sample:
        # Without the cache the stream is another one, also for partitioners that remember images: a request that is
        # not to write must not change what the next one with the cache finds.
        meta = {**(meta or {}), SESSION: (self.tenant, self.session_id, "off")}
        name = f"session/{self.session_id}"
        pointed = tuple(Region.of(region) for region in regions)
        return Sample(name, read_image(image, name), "", (), prompt=text, meta=meta, regions=pointed)

    def _use(self, mode: str) -> CacheUse | None:
        if mode not in CACHE_MODES:
            raise ConfigError(f"`cache` is {mode!r}; allowed: {', '.join(CACHE_MODES)}")
        if mode == "off" or self.cache is None:
            return None
        return CacheUse(self.cache, self.tenant, self.session_id, self._static, exact=mode == "exact")
