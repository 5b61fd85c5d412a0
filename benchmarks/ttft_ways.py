"""Ways from an image and a question to the first token, all on the same weights, for ``ttft.py``."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import torch
from torch import Tensor
from ttft_report import PARTS, Request

from flmm_detseg.cache import BackgroundCache, CachedLMM, PrefixKV
from flmm_detseg.cache.reading.prompt_parts import image_span
from flmm_detseg.cache.regions.partition import letterbox_tiles
from flmm_detseg.cache.serving.prefill import CacheUse, Stopwatch, prefill
from flmm_detseg.lmms.capture.decoder import PrefixDecoder
from flmm_detseg.lmms.parts.isolated_tower import gathered_batch
from flmm_detseg.store.keys import cut_tiles
from flmm_detseg.structures import LMMInputs, Sample

# Images whose keys and values the baselines keep.
_DEPTH = 8
FULL = {"L2": "hit L2", "miss": "miss"}
L1_ONLY = {"L1": "hit L1", "miss": "miss, L1 only"}
NO_CACHE = {"off": "split, no cache"}


class Clocks(Stopwatch):
    """Wall clock and processor clock of this process; the second one does not count time that others had."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(device)
        self.processor: dict[str, float] = {}

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        start = time.process_time()
        with super().__call__(part):
            yield
        self.processor[part] = self.processor.get(part, 0.0) + 1e3 * (time.process_time() - start)


@dataclass
class Prompted:
    """A prompt that has run.

    Attributes:
        label: Row of the table.
        decoder: Ready to continue after the prompt.
        last_state: ``[1, 1, d]``.
        next_position: Rotary position of the first token of the answer.
        new_tokens: Tokens that the language model read for it.
        past_tokens: Tokens whose keys and values were there before.
    """

    label: str
    decoder: PrefixDecoder
    last_state: Tensor
    next_position: int
    new_tokens: int
    past_tokens: int


class Way(ABC):
    """One way to serve a stream.

    Args:
        model: In eval mode. Ways that are not split use its wrapped LLaVA: own order, one group.
    """

    def __init__(self, model: CachedLMM) -> None:
        self.model = model

    @abstractmethod
    def __call__(self, sample: Sample, watch: Clocks, session: str) -> Prompted:
        """Runs the prompt of one item of a stream."""

    # Parts of ways that are not split.

    def _item(self, sample: Sample, watch: Clocks) -> LMMInputs:
        with watch("prepare"):
            return self.model.prepare_text(sample)

    def _tiles(self, item: LMMInputs) -> np.ndarray:
        return cut_tiles(self.model.processor.denormalise(item.pixel_values), self.model.patch_size)

    def _image(self, item: LMMInputs, sent: Tensor) -> Tensor:
        """Tower (up to the layer that LLaVA reads) and projector: embeddings ``[n, d]`` of the sent patches."""
        parts, layer = self.model.model.model, self.model.feature_layer
        states = gathered_batch(parts.vision_tower, self.model.pixels(item)[None], sent, (layer,))
        return parts.multi_modal_projector(states[layer][0])

    def _prompted(self, label: str, item: LMMInputs, image: Tensor, sent: Tensor, watch: Clocks) -> Prompted:
        """Reads a prompt with the image tokens of some patches, all tokens at their own positions."""
        start, end = image_span(item)
        with watch("language"):
            ids = item.input_ids
            embeds = torch.cat([self._text(ids[:start]), image, self._text(ids[end:])])
            positions = torch.cat([torch.arange(start), start + sent, torch.arange(end, len(ids))])
            decoder = self.model.lmm.prefix_decoder()
            last = decoder.feed(embeds[None], positions)[:, -1:]
        return Prompted(label, decoder, last, len(ids), len(embeds), 0)

    def _text(self, ids: Tensor) -> Tensor:
        return self.model.model.get_input_embeddings()(ids.to(self.model.device))


class Split(Way):
    """The background cache.

    Args:
        model: See :class:`Way`.
        cache: Its store; None: split, but nothing is kept.
        labels: Rows of the table by level of the request.
    """

    def __init__(self, model: CachedLMM, cache: BackgroundCache | None, labels: Mapping[str, str]) -> None:
        super().__init__(model)
        self.cache, self.labels = cache, labels
        self._last: tuple[Sample, Tensor] | None = None

    def sent_anew(self, sample: Sample) -> Tensor:
        """Patches of the object group, int64 ``[m]``.

        Args:
            sample: The last one that was read.
        """
        assert self._last is not None
        assert self._last[0] is sample
        return self._last[1]

    def __call__(self, sample: Sample, watch: Clocks, session: str) -> Prompted:
        """See :class:`Way`."""
        use = None if self.cache is None else CacheUse(self.cache, session=session)
        done = prefill(self.model, sample, watch, use)
        self._last = sample, done.parts.objects
        plan = done.parts.plan
        past = plan.prefix_length if done.level == "L2" else 0
        label = self.labels.get(done.level, done.level)
        position = int(plan.position_ids[-1]) + 1
        return Prompted(label, done.decoder, done.last_state, position, plan.length - past, past)


class Unmodified(Way):
    """LLaVA as it is.

    Args:
        model: See :class:`Way`.
        drop_letterbox: Padding is neither encoded nor sent; all other tokens keep their positions.
    """

    def __init__(self, model: CachedLMM, drop_letterbox: bool = False) -> None:
        super().__init__(model)
        self.drop_letterbox = drop_letterbox

    def __call__(self, sample: Sample, watch: Clocks, session: str) -> Prompted:
        """See :class:`Way`."""
        item = self._item(sample, watch)
        start, end = image_span(item)
        sent = torch.arange(end - start)
        if self.drop_letterbox:
            sent = torch.from_numpy(np.flatnonzero(~letterbox_tiles(item.grid)))
        with watch("vision"):
            image = self._image(item, sent)
        label = "stock, no letterbox" if self.drop_letterbox else "stock"
        return self._prompted(label, item, image, sent, watch)


class Pruned(Way):
    """EVS-style pruning: the tower reads the whole frame, the language model only image tokens that are not static.

    A patch is static when it has the pixels that it had in the stream's frame before and the cached way does not send
    it anew either: both hand on equally many image tokens unless more than the cached way's objects changed. (EVS drops
    the patches that changed least, a share chosen beforehand, and reads all frames of a video in one prompt, so what it
    drops stands in an earlier frame; requests that come one by one have no earlier frame.) The first frame of a stream
    is sent whole. All tokens keep their positions.

    Source: Efficient Video Sampling (arXiv 2510.14624).

    Args:
        model: See :class:`Way`.
        follows: The cached way; it has just read the same sample.
    """

    def __init__(self, model: CachedLMM, follows: Split) -> None:
        super().__init__(model)
        self._follows = follows
        self._before: OrderedDict[str, np.ndarray] = OrderedDict()

    def __call__(self, sample: Sample, watch: Clocks, session: str) -> Prompted:
        """See :class:`Way`."""
        item = self._item(sample, watch)
        with watch("match"):
            tiles = self._tiles(item)
            before = self._before.pop(session, None)
            self._before[session] = tiles
            while len(self._before) > _DEPTH:
                self._before.popitem(last=False)
            first = before is None
            kept = np.ones(len(tiles), dtype=bool) if first else (tiles != before).any(1)
            kept[self._follows.sent_anew(sample)] = True
            sent = torch.from_numpy(np.flatnonzero(kept))
        with watch("vision"):
            image = self._image(item, torch.arange(len(tiles)))[sent]
        label = "EVS-style pruning, first frame" if first else "EVS-style pruning"
        return self._prompted(label, item, image, sent, watch)


class ExactImage(Way):
    """A prefix cache as servers have it: keys and values of system text and image, for the very same pixels only."""

    def __init__(self, model: CachedLMM) -> None:
        super().__init__(model)
        self._stored: OrderedDict[bytes, PrefixKV] = OrderedDict()

    def __call__(self, sample: Sample, watch: Clocks, session: str) -> Prompted:
        """See :class:`Way`."""
        item = self._item(sample, watch)
        start, end = image_span(item)
        with watch("match"):
            name = blake2b(self._tiles(item), digest_size=16)
            name.update(item.input_ids[:start].numpy())
            prefix = self._stored.get(name.digest())
        found = prefix is not None
        if prefix is None:
            prefix = self._read(item, watch)
            self._stored[name.digest()] = prefix
            while len(self._stored) > _DEPTH:
                self._stored.popitem(last=False)
        with watch("language"):
            decoder = self.model.lmm.prefix_decoder(prefix.keys, prefix.values)
            ids = item.input_ids
            last = decoder.feed(self._text(ids[end:])[None], torch.arange(end, len(ids)))[:, -1:]
        new, past = (len(ids) - end, end) if found else (len(ids), 0)
        label = f"exact-image cache, {'hit' if found else 'miss'}"
        return Prompted(label, decoder, last, len(ids), new, past)

    def _read(self, item: LMMInputs, watch: Clocks) -> PrefixKV:
        start, end = image_span(item)
        with watch("vision"):
            image = self._image(item, torch.arange(end - start))
        with watch("language"):
            decoder = self.model.lmm.prefix_decoder()
            decoder.feed(torch.cat([self._text(item.input_ids[:start]), image])[None], torch.arange(end))
            return PrefixKV(*decoder.snapshot())


class FirstK(ExactImage):
    """Position-dependent reuse as in MPIC or EPIC: a similar image's keys and values, the first k tokens read anew.

    Approximate: what changed after the first k patches is not seen by the language model. The tower has to run over
    the whole new image, because its patches see each other.

    Args:
        model: See :class:`Way`.
        num_tokens: k.
        min_equal: Least share of equal tiles at which an image is similar.
    """

    def __init__(self, model: CachedLMM, num_tokens: int = 32, min_equal: float = 0.4) -> None:
        super().__init__(model)
        self.num_tokens, self.min_equal = num_tokens, min_equal
        self._images: OrderedDict[str, tuple[np.ndarray, PrefixKV]] = OrderedDict()

    def __call__(self, sample: Sample, watch: Clocks, session: str) -> Prompted:
        """See :class:`Way`; what is reused is the session's last image that was read in full."""
        item = self._item(sample, watch)
        start, end = image_span(item)
        k, ids = min(self.num_tokens, end - start), item.input_ids
        with watch("match"):
            tiles = self._tiles(item)
            reused = self._images.get(session)
            if reused is not None and (reused[0] == tiles).all(1).mean() < self.min_equal:
                reused = None
        if reused is None:
            prefix, new, past = self._read(item, watch), len(ids), 0
            self._images[session] = tiles, prefix
            while len(self._images) > _DEPTH:
                self._images.popitem(last=False)
        else:
            new, past = k + len(ids) - end, end - k
            with watch("vision"):
                image = self._image(item, torch.arange(end - start))[:k]
            with watch("language"):
                prefix = self._patched(reused[1], image, start)
        with watch("language"):
            decoder = self.model.lmm.prefix_decoder(prefix.keys, prefix.values)
            last = decoder.feed(self._text(ids[end:])[None], torch.arange(end, len(ids)))[:, -1:]
        label = "first-k recompute, miss" if reused is None else "first-k recompute, reuse"
        return Prompted(label, decoder, last, len(ids), new, past)

    def _patched(self, reused: PrefixKV, image: Tensor, start: int) -> PrefixKV:
        """The reused keys and values with those of the first image tokens replaced."""
        cut = [[tensor[:, :, :start] for tensor in side] for side in (reused.keys, reused.values)]
        decoder = self.model.lmm.prefix_decoder(*cut)
        decoder.feed(image[None], start + torch.arange(len(image)))
        recomputed = decoder.snapshot()
        return PrefixKV(
            *(
                [
                    torch.cat([new, old[:, :, start + len(image) :]], dim=2)
                    for new, old in zip(*pair, strict=True)
                ]
                for pair in zip(recomputed, (reused.keys, reused.values), strict=True)
            )
        )


@torch.no_grad()
def request(
    way: Way, sample: Sample, case: str, turn: int, *, session: str = "", repeat: bool = False,
    answer: str | None = None, max_new_tokens: int = 12,
) -> Request:  # fmt: skip
    """Runs one request; the answer's further tokens are not in the time."""
    watch = Clocks(way.model.device)
    done: Prompted = way(sample, watch, session)
    head = way.model.model
    ends = torch.tensor(head.generation_config.eos_token_id or []).flatten().tolist()
    tokens = done.decoder.decode(
        done.last_state, done.next_position, end_ids=ends, max_new_tokens=max_new_tokens
    )
    with watch("sample"):
        ids = [next(tokens).token_id]
    first_token = watch.since_start()
    ids += [token.token_id for token in tokens]
    text = way.model.processor.tokenizer.decode(ids, skip_special_tokens=True).strip()
    return Request(
        case, turn, done.label, repeat, named(watch.milliseconds), named(watch.processor), first_token,
        done.new_tokens, done.past_tokens, ids, None if answer is None else text == answer,
    )  # fmt: skip


def named(parts: Mapping[str, float]) -> dict[str, float]:
    """Prefix and suffix of the split prompt are both work of the language model."""
    named = dict.fromkeys(PARTS, 0.0)
    for part, milliseconds in parts.items():
        named["language" if part in ("prefix", "suffix") else part] += milliseconds
    return named
