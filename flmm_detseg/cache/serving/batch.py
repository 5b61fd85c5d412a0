"""Several questions at once: those that hit the same stored prefix go through the models in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from flmm_detseg.cache.reading.prompt_parts import PartitionedInputs, PromptParts
from flmm_detseg.cache.reading.reader import GroupReader
from flmm_detseg.cache.serving.prefill import CacheUse, Prefill, Request, Stopwatch
from flmm_detseg.store.records import Match, Namespace
from flmm_detseg.structures import Sample

_Hit = tuple[PartitionedInputs, PromptParts, Match]


@torch.no_grad()
def prefill_together(
    model: GroupReader, samples: Sequence[Sample], watch: Stopwatch, use: CacheUse
) -> list[Prefill]:
    """As :func:`~flmm_detseg.cache.serving.prefill.prefill` of each sample, equal to it up to rounding.

    L2 hits of one entry show the same object patches, so only their texts differ in length: they run padded on the
    right, after the entry's expanded prefix. Everything else is served at once, in order, so a sample may hit what an
    earlier one stored. With pre-fusion its layers still run prompt by prompt. Nearly equal backgrounds (L3) are not
    served: their spot checks compare answers, and here are none yet.

    Args:
        model: In eval mode.
        samples: Images and questions.
        watch: Measures all of them together.
        use: The cache.

    Returns:
        A prompt per sample, each with a decoder of its own.

    Raises:
        ConfigError: See :func:`~flmm_detseg.cache.serving.prefill.prefill`.
        DataError: A sample cannot be used, or its prompt is too long.
    """
    use = replace(use, exact=True)
    done: dict[int, Prefill] = {}
    waiting: dict[tuple[Namespace, str, str, bytes], dict[int, _Hit]] = {}
    for place, sample in enumerate(samples):
        request = Request(model, sample, watch, use)
        match = request.match(use)
        if match is None or match.prefix is None:
            done[place] = request.cached(use, match)
            continue
        item, parts = request.laid_out(match)
        # Without letterbox patches, images of two sizes may show the same background and different objects.
        objects = parts.objects.numpy().tobytes()
        name = request.namespace, match.key.entry_id, request.prefix_key, objects
        waiting.setdefault(name, {})[place] = item, parts, match
    for (namespace, *_), hits in waiting.items():
        with model.exclusive():
            if model.fingerprints.namespace(use.tenant) == namespace:
                done.update(zip(hits, _run(model, list(hits.values()), watch), strict=True))
                for *_, match in hits.values():
                    use.cache.count(match)
                continue
        # The model was switched since: the matches belong to its former state.
        for place, (item, *_) in hits.items():
            done[place] = Request(model, samples[place], watch, None).computed(item.partition, "miss")
            use.cache.count(None)
    return [done[place] for place in range(len(samples))]


def _run(model: GroupReader, hits: Sequence[_Hit], watch: Stopwatch) -> list[Prefill]:
    """Hits of one entry, equal but for the pixels of their objects and their texts."""
    items, parts, matches = zip(*hits, strict=True)
    prefix, start = matches[0].prefix, parts[0].plan.prefix_length
    assert prefix is not None
    assert prefix.length == start, (prefix.length, start)
    with watch("vision"):
        features = _features(model, items, parts[0].objects)
    with watch("suffix"):
        rows = [
            model.with_regions(model.suffix_embeds(found, part.text_ids), item)
            for found, part, item in zip(features, parts, items, strict=True)
        ]
        if model.prefusion is not None:
            rows = [
                model.prefusion.fuse_suffix(prefix, row, part) for row, part in zip(rows, parts, strict=True)
            ]
        count = model.num_layers
        decoder = model.lmm.prefix_decoder(
            *(
                [tensor.expand(len(hits), -1, -1, -1) for tensor in side[:count]]
                for side in (prefix.keys, prefix.values)
            )
        )
        positions = [part.plan.position_ids[start:] for part in parts]
        states = decoder.feed(pad_sequence(rows, batch_first=True), pad_sequence(positions, batch_first=True))
        decoders = decoder.split([part.plan.length for part in parts])
    return [
        Prefill(
            item, part, decoders[row], states[row : row + 1, len(rows[row]) - 1 : len(rows[row])], "L2",
            match.key.entry_id, False, match,
        )
        for row, (item, part, match) in enumerate(hits)
    ]  # fmt: skip


def _features(model: GroupReader, items: Sequence[PartitionedInputs], indices: Tensor) -> Tensor:
    """Vision features of the same patches of several images, ``[B, m, D]``."""
    return model.tower.features_of(torch.stack([model.pixels(item) for item in items]), indices)
