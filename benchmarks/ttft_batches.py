"""Batches for ``ttft.py``: L2 hits of one entry in one pass, against one unmodified batch of the same questions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import cycle, islice
from statistics import median
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm
from ttft_ways import Clocks, named
from ttft_wide import QUESTION, SETTINGS, Case, language_flops, show_before

from flmm_detseg.cache import BackgroundCache, CachedLMM, CacheSettings
from flmm_detseg.cache.reading.prompt_parts import image_span
from flmm_detseg.cache.serving.batch import prefill_together
from flmm_detseg.cache.serving.prefill import CacheUse, prefill
from flmm_detseg.datasets.tinyworld.streams import STREAM_KINDS, make_stream
from flmm_detseg.lmms.parts.isolated_tower import gathered_batch
from flmm_detseg.structures import Sample

HIT, UNMODIFIED = "hit L2", "stock"
# Last hidden states [B, 1, d] of some prompts, and per prompt the tokens that the language model read, and had.
_Prompts = tuple[Tensor, list[tuple[int, int]]]


@dataclass
class Batch:
    """One measured batch.

    Attributes:
        case: Kind of the stream, or background share.
        turn: Batches of one turn read the same questions.
        label: ``HIT`` or ``UNMODIFIED``.
        wall: Milliseconds by part, all questions together.
        processor: The same by the processor's clock.
        first_tokens: Milliseconds until all first tokens are known.
        tokens: Per question, without padding: tokens read, tokens whose keys and values were there.
    """

    case: str
    turn: int
    label: str
    wall: dict[str, float]
    processor: dict[str, float]
    first_tokens: float
    tokens: list[tuple[int, int]]


@torch.no_grad()
def unmodified_together(model: CachedLMM, samples: Sequence[Sample], watch: Clocks) -> _Prompts:
    """LLaVA as it is: images in one pass of the tower, prompts padded on the right in one of the language model."""
    with watch("prepare"):
        items = [model.prepare_text(sample) for sample in samples]
    parts, layer = model.model.model, model.feature_layer
    spans = [image_span(item) for item in items]
    with watch("vision"):
        pixels = torch.stack([model.pixels(item) for item in items])
        everything = torch.arange(spans[0][1] - spans[0][0])
        states = gathered_batch(parts.vision_tower, pixels, everything, (layer,))[layer]
        images = parts.multi_modal_projector(states)
    with watch("language"):
        words = model.model.get_input_embeddings()
        rows = []
        for item, image, (start, end) in zip(items, images, spans, strict=True):
            ids = item.input_ids.to(model.device)
            rows.append(torch.cat([words(ids[:start]), image, words(ids[end:])]))
        embeds = pad_sequence(rows, batch_first=True)
        states = model.lmm.prefix_decoder().feed(embeds, torch.arange(embeds.shape[1]))
        last = torch.stack([state[len(row) - 1 : len(row)] for state, row in zip(states, rows, strict=True)])
    return last, [(len(row), 0) for row in rows]


def hits_together(model: CachedLMM, samples: Sequence[Sample], use: CacheUse, watch: Clocks) -> _Prompts:
    """The background cache; every question is matched for itself."""
    found = prefill_together(model, samples, watch, use)
    assert {done.level for done in found} == {"L2"}
    assert len({done.entry_id for done in found}) == 1
    plans = [done.parts.plan for done in found]
    tokens = [(plan.length - plan.prefix_length, plan.prefix_length) for plan in plans]
    return torch.cat([done.last_state for done in found]), tokens


@torch.no_grad()
def measure(model: CachedLMM, run: Callable[[Clocks], _Prompts], case: str, turn: int, label: str) -> Batch:
    """Runs a batch until all first tokens are known."""
    watch = Clocks(model.device)
    last, tokens = run(watch)
    with watch("sample"):
        model.model.get_output_embeddings()(last)[:, 0].argmax(-1).tolist()
    first = watch.since_start()
    return Batch(case, turn, label, named(watch.milliseconds), named(watch.processor), first, tokens)


def both(
    model: CachedLMM, use: CacheUse, batches: Sequence[Sequence[Sample]], case: str, bar: tqdm
) -> list[Batch]:
    """Hits and the unmodified model alternate on the same questions; before that, each runs once unmeasured."""
    found: list[Batch] = []
    for turn, samples in [(-1, batches[0]), *enumerate(batches)]:
        for label, run in (
            (HIT, partial(hits_together, model, samples, use)),
            (UNMODIFIED, partial(unmodified_together, model, samples)),
        ):
            done = measure(model, run, case, turn, label)
            bar.set_postfix_str(f"{case} {label} x {len(samples)}: {done.first_tokens / 1e3:.2f} s")
            if turn >= 0:
                found.append(done)
        bar.update(turn >= 0)
    return found


def tiny_batches(model: CachedLMM, sizes: Sequence[int], turns: int, num_frames: int) -> list[Batch]:
    """Frames of a stream that hit the same entry, each with its own question, in rotation where there are fewer.

    Streams in which nothing hits are left out.
    """
    found: list[Batch] = []
    with tqdm(total=len(STREAM_KINDS) * len(sizes) * turns, desc="ttft tiny, batches") as bar:
        for kind in STREAM_KINDS:
            use = CacheUse(BackgroundCache(CacheSettings(min_tiles=20)), session=kind)
            samples = _same_entry(model, use, kind, num_frames)
            if not samples:
                bar.update(len(sizes) * turns)
                continue
            endless = cycle(samples)
            for size in sizes:
                batches = [list(islice(endless, size)) for _ in range(turns)]
                found += both(model, use, batches, kind, bar)
    return found


def _same_entry(model: CachedLMM, use: CacheUse, kind: str, num_frames: int) -> list[Sample]:
    """Shows a stream to the cache; the largest set of its frames that then hit one entry."""
    samples = []
    for item in make_stream(kind, 1, 0, num_frames):
        meta = {"objects_xyxy": item.objects_xyxy, "session": kind}
        sample = Sample(item.stream, item.image, "", (), prompt=item.question, meta=meta)
        prefill(model, sample, Clocks(model.device), use)
        if not item.exact_repeat:
            samples.append(sample)
    entries: dict[str, list[Sample]] = {}
    for sample in samples:
        done = prefill(model, sample, Clocks(model.device), use)
        # Frames without objects are the stored ones themselves.
        if done.level == "L2" and done.entry_id is not None and len(done.parts.objects):
            entries.setdefault(done.entry_id, []).append(sample)
    return max(entries.values(), key=len, default=[])


def wide_batches(model: CachedLMM, cases: Sequence[Case], sizes: Sequence[int], turns: int) -> list[Batch]:
    """At LLaVA-7B's width: another content and a longer or shorter question each time."""
    words = QUESTION.split()
    found: list[Batch] = []
    with tqdm(total=len(cases) * len(sizes) * turns, desc="ttft 7b width, batches") as bar:
        for case in cases:
            use = CacheUse(BackgroundCache(SETTINGS), session=case.name)
            show_before(model, case, 0)
            prefill(model, case.sample(0, 0), Clocks(model.device), use)
            for size in sizes:
                batches = [
                    [
                        replace(
                            case.sample(0, 1 + turn * size + row), prompt=" ".join(words[3 * (row % 4) :])
                        )
                        for row in range(size)
                    ]
                    for turn in range(turns)
                ]
                found += both(model, use, batches, case.name, bar)
    return found


def batch_table(model: CachedLMM, found: Sequence[Batch]) -> list[dict[str, Any]]:
    """A row per case and size; ratios are medians over the turns of the ratio within a turn."""
    rows = []
    for case, size in dict.fromkeys((done.case, len(done.tokens)) for done in found):
        mine = [done for done in found if (done.case, len(done.tokens)) == (case, size)]
        plain, hits = ([done for done in mine if done.label == label] for label in (UNMODIFIED, HIT))
        pairs = list(zip(plain, hits, strict=True))
        work = [sum(language_flops(model, *tokens) for tokens in side[0].tokens) for side in (plain, hits)]
        row = {
            "case": case,
            "batch": size,
            "turns": len(pairs),
            "stock_ms": round(median(done.first_tokens for done in plain), 2),
            "hit_ms": round(median(done.first_tokens for done in hits), 2),
            "stock_ms_each": round(median(done.first_tokens for done in plain) / size, 2),
            "hit_ms_each": round(median(done.first_tokens for done in hits) / size, 2),
            "speed_up": round(median(a.first_tokens / b.first_tokens for a, b in pairs), 3),
            "speed_up_processor": round(
                median(sum(a.processor.values()) / sum(b.processor.values()) for a, b in pairs), 3
            ),
            "ideal_prefill": round(work[0] / work[1], 3),
        }
        for clock in ("wall", "processor"):
            ratios = [getattr(a, clock)["language"] / getattr(b, clock)["language"] for a, b in pairs]
            row[f"prefill_{clock}"] = round(median(ratios), 3)
        for name, side in (("stock", plain), ("hit", hits)):
            for clock in ("wall", "processor"):
                times = [getattr(done, clock) for done in side]
                parts = {part: round(median(one[part] for one in times), 2) for part in times[0]}
                row[f"parts_{name}_{clock}_ms"] = parts
        rows.append(row)
    return rows
