"""Answers, token by token, after a prompt that has run."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace

import torch

from flmm_detseg.cache.reading.layout import only_sent
from flmm_detseg.cache.reading.reader import GroupReader
from flmm_detseg.cache.serving.prefill import CacheUse, Prefill, Stopwatch, prefill
from flmm_detseg.lmms.capture.decoder import DecodedToken
from flmm_detseg.lmms.capture.greedy_answer import GreedyAnswer
from flmm_detseg.lmms.capture.token_rules import check_max_new_tokens
from flmm_detseg.structures import CaptureSpec, Generation, Sample
from flmm_detseg.structures.partition import PatchPartition


@dataclass(frozen=True)
class Answer:
    """A greedy answer and how it was computed.

    Attributes:
        text: Special tokens left out, no white space around it.
        token_ids: Generated tokens, the end token included.
        level: See :class:`Prefill`.
        partition: Groups of the image's patches.
        entry_id: See :class:`Prefill`.
        num_stale: Changed patches of the background that were recomputed (L3).
        stored: See :class:`Prefill`.
        milliseconds: By part (``prepare``, ``match``, ``detect``, ``vision``, ``prefix``, ``insert``, ``suffix``), and
            ``first_token`` and ``total`` since the request began.
        generation: The answer with its rows, where rows were asked for.
    """

    text: str
    token_ids: tuple[int, ...]
    level: str
    partition: PatchPartition
    entry_id: str | None
    num_stale: int
    stored: bool
    milliseconds: dict[str, float] = field(default_factory=dict)
    generation: Generation | None = None


def answer(
    model: GroupReader,
    sample: Sample,
    *,
    use: CacheUse | None = None,
    partition: PatchPartition | None = None,
    capture: CaptureSpec | None = None,
    max_new_tokens: int = 128,
    on_text: Callable[[str], None] | None = None,
) -> Answer:
    """Answers a question, greedily.

    Args:
        model: In eval mode.
        sample: See :func:`~flmm_detseg.cache.serving.prefill.prefill`, as ``use`` and ``partition``.
        use: The cache.
        partition: Given groups.
        capture: Rows of the answer's tokens to keep, for phrase grounding.
        max_new_tokens: Longest answer.
        on_text: Called with each further piece of the text as soon as it cannot change any more.

    Returns:
        Text, tokens, where the background came from, and times in milliseconds.

    Raises:
        ConfigError: See :func:`answer_stream`.
        DataError: See :func:`~flmm_detseg.cache.serving.prefill.prefill`.
    """
    stream = answer_stream(
        model, sample, use=use, partition=partition, capture=capture, max_new_tokens=max_new_tokens
    )
    while True:
        try:
            piece = next(stream)
        except StopIteration as end:
            return end.value
        if on_text is not None:
            on_text(piece)


@torch.no_grad()
def answer_stream(
    model: GroupReader,
    sample: Sample,
    *,
    use: CacheUse | None = None,
    partition: PatchPartition | None = None,
    capture: CaptureSpec | None = None,
    max_new_tokens: int = 128,
) -> Generator[str, None, Answer]:
    """As :func:`answer`; yields the text piece by piece and returns the answer.

    The pieces joined are the answer's text but for white space around it.

    Args:
        model: Reads the prompt in two groups.
        sample: Image and question.
        use: The cache and how to use it; None computes everything.
        partition: Groups of the image's patches; None asks the model's partitioner.
        capture: States to keep of the answer's tokens; None keeps none.
        max_new_tokens: Longest answer.

    Returns:
        What :func:`answer` returns, as the value of the generator (``StopIteration.value``).

    Raises:
        ConfigError: ``max_new_tokens`` is below 1.
    """
    check_max_new_tokens(max_new_tokens)
    watch = Stopwatch(model.device)
    done = prefill(model, sample, watch, use, partition)
    plan, spec = done.parts.plan, capture or CaptureSpec()
    position = int(plan.position_ids[-1]) + 1
    columns = plan.columns.clamp(min=0)
    assert model.processor is not None  # it has prepared the sample
    run = model.lmm.greedy_answer(
        model.processor.tokenizer, done.item, columns, spec, position, max_new_tokens
    )
    text = _Text(run)
    try:
        for _ in _one_token_at_a_time(model, run.run(done.decoder, done.last_state)):
            if len(run.tokens) == 1:
                watch.milliseconds["first_token"] = watch.since_start()
            if piece := text.settled():
                yield piece
        if piece := text.rest():
            yield piece
    except GeneratorExit:
        # A caller that stops reading early has read an answer, too.
        _spot_check(model, sample, done, use, run.token_ids)
        raise
    watch.milliseconds["total"] = watch.since_start()
    _spot_check(model, sample, done, use, run.token_ids)
    generation = None
    if capture is not None:
        layers = spec.vision_layers
        generation = run.generation(model.vision_states(done.item, layers) if layers else None)
        if generation.attention is not None:
            generation = replace(generation, attention=only_sent(generation.attention, plan))
    return Answer(
        text=run.text.strip(),
        token_ids=tuple(run.token_ids),
        level=done.level,
        partition=done.item.partition,
        entry_id=done.entry_id,
        num_stale=0 if done.match is None else len(done.match.stale),
        stored=done.stored,
        milliseconds=watch.milliseconds,
        generation=generation,
    )


def _one_token_at_a_time(model: GroupReader, tokens: Iterator[DecodedToken]) -> Iterator[DecodedToken]:
    """Takes the model for one token at a time: it is not switched within a token, and other requests run in between."""
    while True:
        with model.exclusive():
            token = next(tokens, None)
        if token is None:
            return
        yield token


class _Text:
    """The text of an answer in pieces; a character of several tokens is withheld until it is complete."""

    def __init__(self, run: GreedyAnswer) -> None:
        self._run = run
        self._emitted = ""

    def settled(self) -> str:
        """New text that further tokens cannot change."""
        found = self._run.text
        return "" if found.endswith("\ufffd") else self._further(found)

    def rest(self) -> str:
        """Text that was withheld."""
        return self._further(self._run.text)

    def _further(self, found: str) -> str:
        if not found.startswith(self._emitted):
            return ""
        piece = found[len(self._emitted) :]
        self._emitted = found
        return piece


def _spot_check(
    model: GroupReader, sample: Sample, done: Prefill, use: CacheUse | None, token_ids: list[int]
) -> None:
    """Compares some approximate answers, chosen at random, with those of the same groups without the cache."""
    if use is None or done.match is None or not token_ids:
        return

    def agrees() -> bool:
        full = answer(model, sample, partition=done.item.partition, max_new_tokens=len(token_ids))
        return list(full.token_ids) == token_ids

    use.cache.spot_check(done.match, agrees)
