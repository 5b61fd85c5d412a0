"""Estimates of what is left come from counters of the processes, whatever the steps once took."""

from __future__ import annotations

import io
import sys

import pytest

from flmm_detseg.utils.eta import Meter, step_left_s
from flmm_detseg.utils.process import Command, Progress, run_commands

NOISE = """The installed version of bitsandbytes was compiled without GPU support. 8-bit optimizers are unavailable.
[2026-11-28 21:23:15,025] [WARNING] [real_accelerator.py:183:get_accelerator] Setting accelerator to CPU.
"""


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def _iteration(done: int, total: int = 1600, loss: float = 0.5458) -> str:
    head = "11/28 21:42:45 - mmengine - INFO - Iter(train)"
    return f"{head} [{done:4d}/{total}]  lr: 5.8224e-04  eta: 0:21:54  time: 4.4  loss: {loss}  loss_mask: 0.07\n"


def _bar(text: str, done: int, total: int) -> str:
    return f"{text}:  {100 * done // total}%|{'█' * 3}   | {done}/{total} [00:51<00:33,  9.02sample/s]\r"


def _feed(meter: Meter, clock: Clock, seconds: float, *counts: int, make=_iteration) -> None:
    for count in counts:
        clock.now += seconds
        meter.read(make(count))


def test_noise_is_no_note_and_no_estimate():
    meter = Meter(Clock())
    meter.read(NOISE)
    assert (meter.note, meter.left_s()) == ("starting", None)


def test_iterations_of_a_training():
    clock = Clock()
    meter = Meter(clock)
    _feed(meter, clock, 5.0, 10, 20, 30)
    meter.read(_iteration(30) + NOISE)  # printed again after it
    assert meter.note == "30 of 1600, loss 0.546"
    assert meter.left_s() == pytest.approx(1570 * 0.5)
    clock.now += 4.0  # between two lines the rest shrinks
    assert meter.left_s() == pytest.approx(1570 * 0.5 - 4)


def test_the_first_line_of_a_training_has_its_own_estimate():
    clock = Clock()
    meter = Meter(clock)
    meter.read(_iteration(10))
    assert meter.left_s() == pytest.approx(21 * 60 + 54)
    clock.now += 20.0
    meter.read(_iteration(10))  # read again: nothing is new
    assert meter.left_s() == pytest.approx(21 * 60 + 34)
    days = Meter(clock)
    days.read(_iteration(10).replace("eta: 0:21:54", "eta: 2 days, 1:00:00"))
    assert days.left_s() == pytest.approx(49 * 3600)
    _feed(meter, clock, 5.0, 20)
    assert meter.left_s() == pytest.approx(1580 * 2.5)  # now its speed is known


def test_a_resumed_training_is_measured_from_where_it_goes_on():
    clock = Clock()
    meter = Meter(clock)
    _feed(meter, clock, 20.0, 1010, 1020)
    assert meter.left_s() == pytest.approx(580 * 2.0)


def test_a_machine_that_becomes_busy_shows_within_two_minutes():
    clock = Clock()
    meter = Meter(clock)
    _feed(meter, clock, 7.0, *range(10, 510, 10))
    assert meter.left_s() == pytest.approx(1100 * 0.7)
    _feed(meter, clock, 40.0, *range(510, 560, 10))
    assert meter.left_s() == pytest.approx(1050 * 4.0)


def test_a_stalled_process_does_not_come_to_an_end():
    clock = Clock()
    meter = Meter(clock)
    _feed(meter, clock, 5.0, 10, 20, 30)
    rests = []
    for _ in range(20):
        clock.now += 60.0
        rests.append(meter.left_s())
    assert rests == sorted(rests)
    assert rests[-1] > 30000


def test_bars_that_follow_count_too():
    clock = Clock()
    meter = Meter(clock)
    _feed(meter, clock, 1.0, 100, 200, make=lambda done: _bar("refcoco_val (1 of 3)", done, 400))
    assert meter.note == "refcoco_val (1 of 3): 200 of 400"
    assert meter.left_s() == pytest.approx(2.0 + 2 * 4.0)
    _feed(meter, clock, 1.0, 100, make=lambda done: _bar("refcoco_testA (2 of 3)", done, 300))
    assert meter.left_s() is None  # another bar begins
    _feed(meter, clock, 1.0, 200, make=lambda done: _bar("refcoco_testA (2 of 3)", done, 300))
    assert meter.left_s() == pytest.approx(1.0 + 3.0)


def test_commands_that_wait_take_as_long_as_the_others():
    clock = Clock()
    one, two = Meter(clock), Meter(clock)
    assert step_left_s([one, two], 0, [], slots=2) is None
    for done in (10, 20):
        clock.now += 5.0
        one.read(_iteration(done, 60))
        two.read(_iteration(done, 100))
    assert (one.left_s(), two.left_s()) == pytest.approx((20.0, 40.0))
    assert step_left_s([one, two], 0, [], slots=2) == pytest.approx(40.0)
    whole = ((10 + 20) + (10 + 40)) / 2
    assert step_left_s([one, two], 1, [], slots=2) == pytest.approx(20 + whole)
    silent = Meter(clock)
    assert step_left_s([silent], 0, [30.0, 50.0], slots=1) == pytest.approx(40.0)
    clock.now += 100.0
    assert step_left_s([silent], 0, [30.0, 50.0], slots=1) is None


def _progress(clock: Clock, *expected_s: float | None) -> tuple[Progress, io.StringIO]:
    stream = io.StringIO()
    return Progress(list(expected_s), stream, clock), stream


def test_the_line_says_what_was_measured_not_what_was_expected():
    clock = Clock()
    progress, stream = _progress(clock, 10.0, 100.0, 30.0)
    progress.start("one")
    clock.now += 20.0
    progress.done()
    progress.start("two")
    clock.now += 60.0
    progress.tick("note", 440.0)
    # 20 + 60 + 440 s where 110 were expected: the last step's 30 become 142.
    assert stream.getvalue().splitlines()[-1] == "      1:00, about 9:41 left in all | note"


def test_an_expectation_that_is_over_is_no_estimate():
    clock = Clock()
    progress, stream = _progress(clock, 100.0, 30.0)
    progress.start("one")
    for _ in range(2):
        clock.now += 60.0
        progress.tick("note")
    lines = stream.getvalue().splitlines()
    assert lines[1] == "      1:00, about 1:10 left in all | note"
    assert lines[2] == "      2:00, no estimate yet | note"


def test_steps_without_an_expectation():
    clock = Clock()
    progress, stream = _progress(clock, None, None)
    progress.start("one")
    clock.now += 60.0
    progress.tick("note")
    clock.now += 60.0
    progress.tick("note", 4000.0)
    lines = stream.getvalue().splitlines()
    assert lines[1:] == [
        "      1:00, no estimate yet | note",
        "      2:00, about 1:06:40 left in this step | note",
    ]


def test_a_run_shows_the_counters_of_its_processes(tmp_path, monkeypatch):
    monkeypatch.setattr("flmm_detseg.utils.process._LOG_SECONDS", 0.0)
    code = (
        "import sys, time\n"
        "sys.stderr.write('The installed version of bitsandbytes was compiled without GPU support.\\n')\n"
        "for done in (10, 20, 30):\n"
        f"    print({_iteration(0)!r}.replace('[   0/', f'[{{done:4d}}/'), flush=True); time.sleep(0.3)\n"
        "print('{}')\n"
    )
    stream = io.StringIO()
    progress = Progress([100.0], stream)
    progress.start("training")
    run_commands([Command("train", [sys.executable, "-c", code])], tmp_path, progress, slots=1, threads=1)
    lines = stream.getvalue()
    assert "bitsandbytes" not in lines
    assert "| train: 20 of 1600, loss 0.546" in lines
