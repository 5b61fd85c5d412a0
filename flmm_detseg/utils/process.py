"""Steps as child processes: several at once, a log each, failures reported, progress shown."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from flmm_detseg.errors import RunError
from flmm_detseg.utils.eta import Meter, step_left_s

# glibc gives large tensors back to the system and asks for them again at every step: a tenth of a CPU training's time.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(32 * 2**20), "MALLOC_TRIM_THRESHOLD_": str(4 * 2**30)}
# How often the display changes, on a terminal and in a log file.
_TERMINAL_SECONDS, _LOG_SECONDS = 0.5, 30.0


@dataclass(frozen=True)
class Command:
    """One child process.

    Attributes:
        name: For the display and the log's file name.
        arguments: Command line, the program first.
    """

    name: str
    arguments: Sequence[str]

    def __str__(self) -> str:
        shown = [Path(part).name if part == sys.executable else part for part in self.arguments]
        return " ".join(shown)


class Progress:
    """Numbered steps with the time they took and an estimate of the remaining time.

    The running step's rest is what its processes' counters say; what steps once took only tells the later ones apart.

    Args:
        expected_s: Seconds each step takes on two idle cores, in order; None where unknown.
        stream: Where to write.
        clock: Seconds that only grow.
    """

    def __init__(
        self,
        expected_s: Sequence[float | None],
        stream: TextIO = sys.stderr,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._expected = list(expected_s)
        self._stream = stream
        self.clock = clock
        self._step = -1
        self._title = ""
        self._spent: list[float] = []
        self._began = self._shown = 0.0
        self.seconds: dict[str, float] = {}

    def start(self, title: str) -> None:
        """Begins the next step."""
        self._step += 1
        self._title, self._began = title, self.clock()
        self._write(f"[{self._step + 1}/{len(self._expected)}] {title}", final=True)
        self._shown = self._began

    def tick(self, note: str, measured_s: float | None = None) -> None:
        """Shows that the step runs; may be called at any rate.

        Args:
            note: What goes on.
            measured_s: Seconds left of the step by its processes' counters; None: they have not counted yet.
        """
        now = self.clock()
        terminal = self._stream.isatty()
        if now - self._shown < (_TERMINAL_SECONDS if terminal else _LOG_SECONDS):
            return
        self._shown = now
        left = self.left(now - self._began, measured_s)
        self._write(f"      {_clock(now - self._began)}, {left} | {note}", final=not terminal)

    def done(self) -> None:
        """Ends the step."""
        spent = self.clock() - self._began
        self._spent.append(spent)
        self.seconds[self._title] = round(spent, 1)
        self._write(f"      done in {_clock(spent)}", final=True)

    def left(self, elapsed_s: float, measured_s: float | None) -> str:
        """The estimate in words: of everything where all later steps have an expectation, else of this step.

        Args:
            elapsed_s: Seconds since the step began.
            measured_s: See :meth:`tick`.

        Returns:
            For example "about 2 min left in this step".
        """
        known = self._expected[: self._step + 1]
        expected = known[-1]
        if measured_s is None and expected is not None:
            over = sum(seconds or 0.0 for seconds in known[:-1])
            # Not faster than expected: a step that was over at once may have found its work done.
            slower = max(1.0, sum(self._spent) / over) if over else 1.0
            measured_s = max(0.0, expected * slower - elapsed_s) or None
        if measured_s is None:
            return "no estimate yet"
        steps = [seconds for seconds in self._expected if seconds is not None]
        if len(steps) < len(self._expected):
            return f"about {_clock(measured_s)} left in this step"
        slower = (sum(self._spent) + elapsed_s + measured_s) / sum(steps[: self._step + 1])
        return f"about {_clock(measured_s + slower * sum(steps[self._step + 1 :]))} left in all"

    def _write(self, text: str, *, final: bool) -> None:
        if self._stream.isatty():
            columns = os.get_terminal_size(self._stream.fileno()).columns
            self._stream.write("\r\x1b[K" + text[: columns - 1] + ("\n" if final else ""))
        else:
            self._stream.write(text + "\n")
        self._stream.flush()


def run_commands(
    commands: Sequence[Command],
    log_dir: Path,
    progress: Progress,
    *,
    slots: int,
    threads: int,
    on_done: Callable[[str, dict[str, Any]], None] | None = None,
) -> dict[str, dict[str, Any]]:
    """Runs commands, at most ``slots`` at a time; each must end with one line of JSON.

    Args:
        commands: With distinct names.
        log_dir: ``NAME.log`` of each command goes here.
        progress: Display.
        slots: Processes at a time.
        threads: Compute threads of each process.
        on_done: Called with name and figures of each command as it ends. With it, a failure does not stop the
            others: they are run to their end before the error is raised.

    Returns:
        Per name the figures of the last line.

    Raises:
        RunError: A command failed or ended without figures (the others are stopped, unless ``on_done``); names command
            and log.
    """
    log_dir.mkdir(parents=True, exist_ok=True)
    environment = {
        **_ALLOCATOR,
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "TOKENIZERS_PARALLELISM": "false",
    }
    waiting, running = list(commands), dict[str, tuple[Command, subprocess.Popen[bytes]]]()
    meters: dict[str, Meter] = {}
    finished_s: list[float] = []
    figures: dict[str, dict[str, Any]] = {}
    failures: list[RunError] = []
    try:
        while waiting or running:
            while waiting and len(running) < slots:
                command = waiting.pop(0)
                running[command.name] = (command, _start(command, _log(log_dir, command), environment))
                meters[command.name] = Meter(progress.clock)
            time.sleep(0.1)
            for name, (command, process) in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    finished_s.append(meters.pop(name).elapsed_s)
                    try:
                        figures[name] = _result(command, process.returncode, _log(log_dir, command))
                    except RunError as error:
                        if on_done is None:
                            raise
                        failures.append(error)
                        continue
                    if on_done is not None:
                        on_done(name, figures[name])
            for name, (command, _) in running.items():
                meters[name].read(_tail(_log(log_dir, command)))
            notes = [f"{name}: {meter.note}" for name, meter in meters.items()]
            left_s = step_left_s(list(meters.values()), len(waiting), finished_s, slots)
            progress.tick(" | ".join(notes), left_s)
    finally:
        _stop([process for _, process in running.values()])
    if failures:
        raise RunError("\n\n".join(map(str, failures)))
    return figures


def _log(log_dir: Path, command: Command) -> Path:
    return log_dir / f"{command.name}.log"


def _start(command: Command, log: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with log.open("wb") as stream:
        stream.write(f"$ {command}\n".encode())
        stream.flush()
        return subprocess.Popen(
            list(command.arguments), stdout=stream, stderr=subprocess.STDOUT, env=dict(environment)
        )


def _result(command: Command, status: int, log: Path) -> dict[str, Any]:
    lines = log.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    tail = "\n".join(line for line in lines[-12:] if line.strip())
    if status != 0:
        raise RunError(f"{command.name} failed with status {status}: {command}\n{tail}\n(all of it: {log})")
    # Libraries may still write to stderr at exit, after the figures.
    for line in reversed(lines[-30:]):
        if line.startswith("{"):
            try:
                return json.loads(line)
            except json.JSONDecodeError:
                continue
    raise RunError(f"{command.name} ended without its line of figures: {command}\n{tail}\n(all of it: {log})")


def _tail(log: Path, size: int = 4000) -> str:
    with log.open("rb") as stream:
        stream.seek(max(0, log.stat().st_size - size))
        return stream.read().decode("utf-8", errors="replace")


def _stop(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    for process in processes:
        process.terminate()
    for process in processes:
        try:
            process.wait(timeout=10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}" if minutes >= 60 else f"{minutes}:{rest:02d}"
