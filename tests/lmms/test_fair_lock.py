"""The fair lock: one thread at a time, in the order of asking; hooks see the passes of their own thread only."""

from __future__ import annotations

import copy
from threading import Event, Thread

import pytest
import torch
from tiny import make_sample, tiny_llava

from flmm_detseg.lmms.capture.per_sample import hidden_rows
from flmm_detseg.lmms.fair_lock import FairLock, exclusive
from flmm_detseg.lmms.lora.layers import lora_off
from flmm_detseg.structures import CaptureSpec

LORA = dict(frozen=False, lora=dict(llm=dict(r=2, alpha=4)))


def started(work) -> Thread:
    thread = Thread(target=work, daemon=True)
    thread.start()
    return thread


def waiting(lock: FairLock, count: int) -> None:
    """Returns once so many threads have the lock or wait for it."""
    with lock._condition:
        pass
    for _ in range(6000):
        if len(lock._queue) >= count:
            return
        Event().wait(0.01)
    raise AssertionError(f"{len(lock._queue)} in the queue, wanted {count}")


def test_threads_are_served_in_order():
    lock, order, threads = FairLock(), [], []

    def work(name: int) -> None:
        with lock:
            order.append(name)

    with lock as first, lock as again:
        assert first == again == 1
        for name in range(5):
            threads.append(started(lambda name=name: work(name)))
            waiting(lock, name + 2)
        assert order == []
    for thread in threads:
        thread.join(60)
    assert order == list(range(5))
    with lock as last:
        assert last == 7


def test_a_thread_that_takes_it_again_and_again_does_not_keep_others_waiting():
    lock, entered = FairLock(), Event()

    def wants() -> None:
        with lock:
            entered.set()

    with lock:
        thread = started(wants)
        waiting(lock, 2)
    # Asked for after the other one has asked.
    with lock:
        assert entered.is_set()
    thread.join(60)


def test_an_interrupted_wait_leaves_the_queue(monkeypatch):
    lock, outcome = FairLock(), []

    def interrupted() -> None:
        def wait_for(_) -> None:
            raise KeyboardInterrupt

        monkeypatch.setattr(lock._condition, "wait_for", wait_for)
        with pytest.raises(KeyboardInterrupt), lock:
            outcome.append("entered")
        monkeypatch.undo()
        outcome.append("left")

    with lock:
        started(interrupted).join(60)
    assert outcome == ["left"]
    with lock as number:
        assert number == 2


def test_a_model_has_one_lock_and_can_be_copied():
    lmm = tiny_llava(**LORA)
    assert exclusive(lmm.model) is exclusive(lmm.model)
    assert exclusive(copy.deepcopy(lmm).model) is not exclusive(lmm.model)


@pytest.mark.parametrize("switch", ["base_mode", "lora_off", "merge_lora"])
def test_switches_wait_for_the_lock(switch):
    lmm = tiny_llava(**LORA)
    switched = Event()

    def work() -> None:
        if switch == "merge_lora":
            lmm.merge_lora()
        else:
            with lmm.base_mode() if switch == "base_mode" else lora_off(lmm.model):
                # Re-entrant: a model in base mode is used there.
                with exclusive(lmm.model):
                    pass
        switched.set()

    with exclusive(lmm.model):
        thread = started(work)
        waiting(exclusive(lmm.model), 2)
        assert not switched.is_set()
        assert lmm.model.config.text_config._attn_implementation != "sdpa"
        assert lmm.lora_groups
    thread.join(60)
    assert switched.is_set()


@torch.no_grad()
def test_hidden_rows_are_those_of_the_own_thread():
    decoder = tiny_llava().model.model.language_model
    ours, theirs = torch.rand(1, 3, 32), torch.rand(1, 5, 32)
    positions = torch.tensor([[0, 2]])

    def run(embeds: torch.Tensor) -> None:
        with torch.no_grad():
            decoder(inputs_embeds=embeds, use_cache=False)

    layers = range(1, len(decoder.layers) + 1)
    with hidden_rows(decoder, positions, layers) as alone:
        run(ours)
    with hidden_rows(decoder, positions, layers) as beside:
        started(lambda: run(theirs)).join(60)
        run(ours)
        started(lambda: run(theirs)).join(60)
    assert len(alone) == len(beside) == len(decoder.layers)
    assert all(torch.equal(*pair) for pair in zip(alone, beside, strict=True))


@torch.no_grad()
def test_vision_maps_are_those_of_the_own_thread(monkeypatch):
    lmm = tiny_llava()
    ours, theirs = (lmm.prepare(make_sample(index, image_size=(56, 56))) for index in (0, 1))
    capture = CaptureSpec(vision_layers=(1,))
    alone = [lmm.encode([item], capture).vision[0][1] for item in (ours, theirs)]
    assert not torch.equal(*alone)
    entered, go_on, features = Event(), Event(), lmm.family.features

    def slow(*arguments):
        if not entered.is_set():
            entered.set()
            assert go_on.wait(60)
        return features(*arguments)

    monkeypatch.setattr(lmm.family, "features", slow)
    found = []

    def work() -> None:
        with torch.no_grad():
            found.append(lmm.encode([ours], capture).vision[0][1])

    # Its hook is on the tower while this thread's pass goes through.
    thread = started(work)
    assert entered.wait(60)
    assert torch.equal(lmm.encode([theirs], capture).vision[0][1], alone[1])
    go_on.set()
    thread.join(60)
    assert torch.equal(found[0], alone[0])
