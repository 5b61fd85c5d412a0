"""Remaining time, from the counters that child processes print, not from earlier runs."""

from __future__ import annotations

import re
import time
from collections import deque
from collections.abc import Callable, Sequence

# `Iter(train) [ 750/1600]` of MMEngine, ` 60%|### | 457/762 [00:51<` of tqdm; the second has its text before it.
_MMENGINE = re.compile(r"Iter\(train\) \[\s*(?P<done>\d+)/(?P<total>\d+)\]")
_TQDM = re.compile(r"^(?P<text>.*?):? +\d+%\|[^|]*\| *(?P<done>\d+)/(?P<total>\d+) \[")
# Several bars of one program, one after the other: `refcoco_testA (2 of 3)`.
_BARS = re.compile(r"\((\d+) of (\d+)\)$")
# What MMEngine itself expects: all there is to go by at its first line.
_ETA = re.compile(r" eta: (?:(?P<days>\d+) days?, )?(?P<hours>\d+):(?P<minutes>\d\d):(?P<seconds>\d\d)")
_LOSS = re.compile(r" loss: (\d+\.\d+)")
# Speed is that of the last two minutes: machines become busy and idle again.
_WINDOW_S = 120.0


class Meter:
    """Speed and rest of one child process.

    Args:
        clock: Seconds that only grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._started = clock()
        self._bar = ""
        self._total = 0
        self._seen: deque[tuple[float, int]] = deque()
        self._loss = ""
        self._ends: float | None = None

    @property
    def elapsed_s(self) -> float:
        """Seconds since the child was started."""
        return self._clock() - self._started

    @property
    def note(self) -> str:
        """Its progress, for a display."""
        if not self._seen:
            return "starting"
        bar = f"{self._bar}: " if self._bar else ""
        return f"{bar}{self._seen[-1][1]} of {self._total}{self._loss}"

    def read(self, tail: str) -> None:
        """Takes in the end of the child's output; lines without a counter (warnings, banners) are nothing."""
        for line in reversed(tail.replace("\r", "\n").splitlines()):
            found = _MMENGINE.search(line) or _TQDM.match(line)
            if found is None:
                continue
            loss = _LOSS.search(line)
            self._loss = f", loss {float(loss[1]):.3f}" if loss else ""
            counted = self._count(
                found.groupdict().get("text") or "", int(found["done"]), int(found["total"])
            )
            if counted:
                own = _ETA.search(line)
                self._ends = self._clock() + _eta_s(own) if own else None
            return

    def left_s(self) -> float | None:
        """Seconds until the child's counter ends, and its further bars; None: not yet known.

        After the child's first count that is its own estimate, where it prints one.
        """
        if len(self._seen) < 2:
            return None if self._ends is None or not self._seen else max(0.0, self._ends - self._clock())
        (first, begin), (last, done) = self._seen[0], self._seen[-1]
        step = done - self._seen[-2][1]
        now, pace = self._clock(), (last - first) / (done - begin)
        # If the next count is late, the speed is at most what it would be if that count came now.
        late = (now - first) / (done + step - begin) * max(0, self._total - done - step)
        here = max(pace * (self._total - done) - (now - last), late)
        bars = _BARS.search(self._bar)
        return here + ((int(bars[2]) - int(bars[1])) * pace * self._total if bars else 0.0)

    def _count(self, bar: str, done: int, total: int) -> bool:
        """Takes in a count; returns whether it is a new one."""
        if (bar, total) != (self._bar, self._total) or (self._seen and done < self._seen[-1][1]):
            self._seen.clear()
            self._bar, self._total = bar, total
        new = not self._seen or done > self._seen[-1][1]
        if new:
            self._seen.append((self._clock(), done))
        while len(self._seen) > 3 and self._seen[-1][0] - self._seen[1][0] > _WINDOW_S:
            self._seen.popleft()
        return new


def _eta_s(found: re.Match[str]) -> float:
    days, hours, minutes, seconds = (float(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds


def step_left_s(
    running: Sequence[Meter], waiting: int, finished_s: Sequence[float], slots: int
) -> float | None:
    """Seconds until commands that run in parallel have all ended.

    Args:
        running: Those that run.
        waiting: Number of those that wait for a slot; each is taken to last as long as the others on average.
        finished_s: Seconds that each finished one took.
        slots: Commands at a time.

    Returns:
        None: one that runs has not said yet how far it is.
    """
    ends = []
    for meter in running:
        left = meter.left_s()
        if left is None and finished_s:
            left = max(0.0, sum(finished_s) / len(finished_s) - meter.elapsed_s) or None
        if left is None:
            return None
        ends.append(left)
    whole = [*finished_s, *(meter.elapsed_s + left for meter, left in zip(running, ends, strict=True))]
    ends = sorted(ends) + [0.0] * (slots - len(ends))
    for _ in range(waiting):
        soonest = min(range(slots), key=ends.__getitem__)
        ends[soonest] += sum(whole) / len(whole)
    return max(ends)
