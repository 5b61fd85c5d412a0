"""The prompt of one request: match, compute what is missing, leave a decoder ready to answer."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from flmm_detseg.cache.reading.layout import NUM_SEPARATORS
from flmm_detseg.cache.reading.prompt_parts import PartitionedInputs, PromptParts, image_span, with_partition
from flmm_detseg.cache.reading.reader import GroupReader
from flmm_detseg.cache.regions.partition import letterbox_tiles, partition_like, patch_grid
from flmm_detseg.cache.regions.sources import SESSION
from flmm_detseg.errors import ConfigError
from flmm_detseg.lmms.capture.decoder import PrefixDecoder
from flmm_detseg.store.keys import cut_tiles
from flmm_detseg.store.records import BackgroundKey, Match, PrefixKV
from flmm_detseg.structures import Sample
from flmm_detseg.structures.partition import PatchPartition

if TYPE_CHECKING:
    from flmm_detseg.store.background_cache import BackgroundCache


class Stopwatch:
    """Milliseconds per part of a request; waits for the device, so that a part's work counts for that part.

    Args:
        device: Of the model.

    Attributes:
        milliseconds: By part, in order of first use.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._start = time.perf_counter()
        self.milliseconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Adds the time until the context is left to a part."""
        start = self._now()
        try:
            yield
        finally:
            elapsed = 1e3 * (self._now() - start)
            self.milliseconds[part] = self.milliseconds.get(part, 0.0) + elapsed

    def since_start(self) -> float:
        """Milliseconds since the stopwatch was made."""
        return 1e3 * (self._now() - self._start)

    def _now(self) -> float:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        return time.perf_counter()


@dataclass(frozen=True)
class CacheUse:
    """A cache as one caller uses it.

    Attributes:
        cache: The store.
        tenant: Owner of the images; nothing is shared between tenants.
        session: Stream the images belong to; its latest backgrounds are tried first.
        static: The stream repeats its background: it is stored at first sight.
        exact: Nearly equal backgrounds (L3) are not served, whatever the store's settings.
    """

    cache: BackgroundCache
    tenant: str = "default"
    session: str | None = None
    static: bool = False
    exact: bool = False


@dataclass
class Prefill:
    """A prompt that has run.

    Attributes:
        item: Prepared question, with its partition.
        parts: Its parts.
        decoder: Ready to continue after the prompt.
        last_state: ``[1, 1, d]``.
        level: ``"L2"`` (prefix found), ``"L1"`` (vision features found), ``"L3"`` (nearly equal background found),
            ``"miss"``, or ``"off"``.
        entry_id: Of the background, None where it has none.
        stored: Whether the request put something into the cache.
        match: What was found.
    """

    item: PartitionedInputs
    parts: PromptParts
    decoder: PrefixDecoder
    last_state: Tensor
    level: str
    entry_id: str | None
    stored: bool
    match: Match | None


@torch.no_grad()
def prefill(
    model: GroupReader,
    sample: Sample,
    watch: Stopwatch,
    use: CacheUse | None = None,
    partition: PatchPartition | None = None,
) -> Prefill:
    """Runs a prompt, with what a cache has of it.

    Thread-safe: of all requests to one model, one at a time computes
    (:func:`~flmm_detseg.lmms.fair_lock.exclusive`); matching, detectors and the store run in parallel. A thread that
    switches the model meanwhile waits, and a request that finds it switched since it began uses and stores nothing.

    Args:
        model: In eval mode (with a cache this is checked).
        sample: Image and question (``text`` is ignored).
        watch: Takes the times.
        use: The cache; None computes everything and stores nothing.
        partition: Groups to use whatever the partitioner says; not together with a cache.

    Returns:
        The prompt, and a decoder right after it.

    Raises:
        ConfigError: ``partition`` together with a cache, a cache for a model in training mode, or a model without a
            tokenizer.
        DataError: The sample cannot be used, or the prompt is too long.
    """
    if partition is not None and use is not None:
        raise ConfigError("a given partition is for runs without a cache, where matching does not choose one")
    request = Request(model, sample, watch, use)
    if use is not None:
        return request.cached(use, request.match(use))
    if partition is None:
        partition = request.detect()
    return request.computed(partition, "off")


class Request:
    """One request: match, then compute what is missing.

    Args:
        model: See :func:`prefill`.
        sample: See :func:`prefill`.
        watch: See :func:`prefill`.
        use: See :func:`prefill`.

    Attributes:
        prefix_key: Names everything of the prefix but its background; with a cache only.

    Raises:
        ConfigError: A cache, but a model in training mode or one whose sequences have no prefix to keep; or a model
            without a tokenizer.
        DataError: The sample cannot be used.
    """

    def __init__(self, model: GroupReader, sample: Sample, watch: Stopwatch, use: CacheUse | None) -> None:
        if use is not None and model.layout.order == "image":
            raise ConfigError("`order`='image' has no prefix to keep; use order='background' with a cache")
        with watch("prepare"):
            item = model.prepare_text(replace(sample, text="", phrases=(), sections=()))
            patch_grid(item.grid)
        self.model, self.sample, self.item, self.watch = model, sample, item, watch
        if use is None:
            return
        # Not within another thread's `base_mode`: the namespace would be that of the base model.
        with model.exclusive() as self._entry, watch("match"):
            self.namespace = model.fingerprints.namespace(use.tenant)
        with watch("match"):
            assert model.processor is not None  # it has prepared the sample
            self.tiles = cut_tiles(model.processor.denormalise(item.pixel_values), model.patch_size)
            system_ids = item.input_ids[: image_span(item)[0]]
            self.prefix_key = model.layout.prefix_key(system_ids, model.separators)
            self.grid = patch_grid(item.grid)
            self.live = ~letterbox_tiles(item.grid).ravel()
        if use.static and use.session is not None:
            # With every request: other weights have another namespace.
            use.cache.declare_static(use.session, self.namespace)

    def cached(self, use: CacheUse, found: Match | None) -> Prefill:
        """With what :meth:`match` found, or computed and stored; counted as a request."""
        done = self._with_features(use, found) if found is not None else self._missed(use)
        use.cache.count(done.match)
        return done

    def _missed(self, use: CacheUse) -> Prefill:
        partition = self.detect(use)
        mask = np.zeros(len(partition.group), dtype=bool)
        mask[self.model.layout.background(partition).numpy()] = True
        if not mask.any():
            return self.computed(partition, "miss")
        with self.watch("match"):
            key = use.cache.key(self.tiles, mask, self.namespace, grid=self.grid)
            shared = use.cache.would_store(key, self.namespace, session=use.session, live=self.live)
        if not shared:
            # Not stored, so no other request should wait for it.
            return self.computed(partition, "miss", use, key)
        with use.cache.single_flight(f"{key.entry_id}/{self.prefix_key}") as flight:
            found = None if flight.leader else self.match(use)
            if found is None:
                return self.computed(partition, "miss", use, key)
        return self._from_match(use, found)

    def _with_features(self, use: CacheUse, found: Match) -> Prefill:
        """A hit; where the prefix has to be computed from stored features, once for all who wait for it."""
        if found.served == "L1" and "L2" in use.cache.settings.levels:
            with use.cache.single_flight(f"{found.key.entry_id}/{self.prefix_key}") as flight:
                if not flight.leader:
                    found = self.match(use) or found
                if found.prefix is None:
                    return self._from_match(use, found)
        return self._from_match(use, found)

    def match(self, use: CacheUse) -> Match | None:
        """Asks the cache."""
        # Changed patches are recomputed as object tokens, where there is room for them.
        room = self.model.layout.max_length - len(self.item.input_ids) - NUM_SEPARATORS
        with self.watch("match"):
            return use.cache.match(
                self.tiles,
                self.namespace,
                session=use.session,
                prefix_key=self.prefix_key,
                grid=self.grid,
                live=self.live,
                max_stale=max(0, room),
                exact=use.exact,
            )

    def laid_out(self, match: Match) -> tuple[PartitionedInputs, PromptParts]:
        """The prompt, with the groups of a stored background.

        Args:
            match: The stored background.

        Returns:
            The sample with its groups; the prompt, with the changed patches once more among the objects.

        Raises:
            DataError: It is too long.
        """
        drop = self.model.layout.letterbox == "drop"
        partition = partition_like(self.item.grid, match.key.mask, drop_letterbox=drop)
        item = with_partition(self.item, partition)
        changed = torch.from_numpy(match.stale) if len(match.stale) else None
        return item, self.model.prompt_parts(item, changed=changed)

    def _from_match(self, use: CacheUse, match: Match) -> Prefill:
        item, parts = self.laid_out(match)
        level, prefix, saved = match.served, match.prefix, None
        with self.model.exclusive() as entry:
            # If this is the next use after the namespace was taken, no other thread can have switched anything.
            if entry > self._entry + 1 and self._switched(use):
                return self.computed(item.partition, "miss")
            if prefix is None:
                assert match.features is not None, match.key.entry_id
                prefix = self._prefix(parts, match.features.to(self.model.device))
                if level == "L1" and not self._switched(use):
                    # A hit of the prefix will save the features' time as well.
                    saved = {"L2": match.saved_ms + self._spent("prefix")}
            done = self._after_prefix(item, parts, prefix, level, match=match)
        if saved is not None:
            done.stored = self._insert(use, match.key, None, prefix, saved)
        return done

    def computed(
        self,
        partition: PatchPartition,
        level: str,
        use: CacheUse | None = None,
        key: BackgroundKey | None = None,
    ) -> Prefill:
        """Computes everything. Background and objects run one after the other, in the shapes in which they run when one
        of them comes from the cache: the outcome has the same bits.
        """
        item = with_partition(self.item, partition)
        parts = self.model.prompt_parts(item)
        with self.model.exclusive():
            if self.model.layout.order == "image":
                return self._in_image_order(item, parts, level)
            with self.watch("vision"):
                features = self.model.group_features(item, parts.background)
            vision_ms = self._spent("vision")
            prefix = self._prefix(parts, features)
            saved = {"L1": vision_ms, "L2": vision_ms + self._spent("prefix")}
            # While the detector ran and the flight was waited for, the model may have been switched.
            sound = use is not None and not self._switched(use)
            done = self._after_prefix(item, parts, prefix, level, key=key)
        if use is not None and key is not None and sound:
            # Outside the lock: other requests need not wait for the store.
            done.stored = self._insert(use, key, features, prefix, saved)
        return done

    def _switched(self, use: CacheUse) -> bool:
        """Whether weights or settings of the model differ from those at the beginning of the request."""
        with self.watch("match"):
            return self.model.fingerprints.namespace(use.tenant) != self.namespace

    def detect(self, use: CacheUse | None = None) -> PatchPartition:
        """Asks the partitioner; with a cache, streams are distinguished by tenant, too."""
        with self.watch("detect"):
            sample = self.sample
            if use is not None:
                session = sample.meta.get(SESSION) if use.session is None else use.session
                stream = None if session is None else (use.tenant, session)
                # Set last: `meta` comes from the caller, and must not name another tenant's stream.
                sample = replace(sample, meta={**sample.meta, SESSION: stream})
            return self.model.partitioner(sample, self.item.grid)

    def _prefix(self, parts: PromptParts, features: Tensor) -> PrefixKV:
        with self.watch("prefix"):
            model, decoder = self.model, self.model.lmm.prefix_decoder()
            sent = model.sent_features(features, parts.background)
            embeds = model.prefix_embeds(parts.system_ids, sent)
            decoder.feed(embeds[None], parts.plan.position_ids[: parts.plan.prefix_length])
            prefix = PrefixKV(*decoder.snapshot())
            if model.prefusion is None:
                return prefix
            return model.prefusion.with_background(prefix, model.background_tokens(features), parts)

    def _in_image_order(self, item: PartitionedInputs, parts: PromptParts, level: str) -> Prefill:
        """One pass over a sequence of which nothing can be cached."""
        with self.watch("vision"):
            features = self.model.isolated_features(item)
        with self.watch("suffix"):
            decoder = self.model.lmm.prefix_decoder()
            embeds = self.model.with_regions(self.model.image_order_embeds(features, parts), item)
            last = decoder.feed(embeds[None], parts.plan.position_ids)
        return Prefill(item, parts, decoder, last[:, -1:], level, None, False, None)

    def _insert(
        self,
        use: CacheUse,
        key: BackgroundKey,
        features: Tensor | None,
        prefix: PrefixKV,
        saved_ms: dict[str, float],
    ) -> bool:
        with self.watch("insert"):
            return use.cache.insert(
                key,
                self.namespace,
                features=features,
                prefix=prefix,
                prefix_key=self.prefix_key,
                saved_ms=saved_ms,
                session=use.session,
                live=self.live,
            )

    def _after_prefix(
        self,
        item: PartitionedInputs,
        parts: PromptParts,
        prefix: PrefixKV,
        level: str,
        *,
        key: BackgroundKey | None = None,
        match: Match | None = None,
    ) -> Prefill:
        assert prefix.length == parts.plan.prefix_length, (prefix.length, parts.plan.prefix_length)
        key = match.key if match is not None else key
        with self.watch("vision"):
            features = self.model.group_features(item, parts.objects)
        with self.watch("suffix"):
            count = self.model.num_layers
            decoder = self.model.lmm.prefix_decoder(prefix.keys[:count], prefix.values[:count])
            embeds = self.model.with_regions(self.model.suffix_embeds(features, parts.text_ids), item)
            if self.model.prefusion is not None:
                embeds = self.model.prefusion.fuse_suffix(prefix, embeds, parts)
            last = decoder.feed(embeds[None], parts.plan.position_ids[parts.plan.prefix_length :])
        return Prefill(
            item, parts, decoder, last[:, -1:], level, None if key is None else key.entry_id, False, match
        )

    def _spent(self, part: str) -> float:
        return self.watch.milliseconds.get(part, 0.0)
