"""Reads mutated files in processes of their own and says what became of them (benchmarks/mutated_corpus.py)."""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import json
import os
import resource
import select
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from corpus.operators import COUNT, ERROR, OPERATORS, SAME, VALUE, Operator
from corpus.sources import IllegalValue, Reading, Source, make_sources
from flmm_detseg.errors import FlmmError

MAX_MEMORY = (
    700 << 20
)  # bytes above what the process had before: a picture of 100 Mpx may take 3 bytes a pixel twice
MAX_SECONDS = 60.0
_SPACE = 3 << 30  # limit of a child's address space beyond what it begins with


@dataclass(frozen=True)
class Result:
    """What became of one file.

    Attributes:
        seed: Of the corpus.
        index: Of the file in it.
        source: Which valid file it comes from.
        operator: What happened to it.
        outcome: ``same``, ``error``, ``count``, ``value``; or what must not be: ``traceback``, ``killed``, ``slow``,
            ``memory``, ``illegal``, ``nameless`` (an error that names no file), ``unexpected`` (an outcome that the
            operator does not allow).
        detail: The message, or what differs.
        memory: Peak memory of the reading process above its start, bytes.
    """

    seed: int
    index: int
    source: str
    operator: str
    outcome: str
    detail: str = ""
    memory: int = 0

    @property
    def is_fault(self) -> bool:
        return self.outcome not in (SAME, ERROR, COUNT, VALUE)


def pairs(sources: Sequence[Source]) -> list[tuple[Source, Operator]]:
    """Every source with every operator that fits it."""
    return [(source, item) for source in sources for item in OPERATORS if source.form in item.forms]


def mutate(source: Source, item: Operator, seed: int, index: int) -> bytes | None:
    """The changed bytes; None where the operator finds nothing to change."""
    number = int.from_bytes(hashlib.sha256(f"{source.name}/{item.name}".encode()).digest()[:4], "little")
    rng = np.random.default_rng((seed, index, number))
    return item.change((source.folder / source.file).read_bytes(), rng)


def plan(sources: Sequence[Source], seed: int, count: int) -> Iterator[tuple[int, Source, Operator, bytes]]:
    """The files of one seed: all pairs in a random order, again and again, until there are enough."""
    rng = np.random.default_rng(seed)
    every = pairs(sources)
    index = made = 0
    while made < count:
        for place in rng.permutation(len(every)):
            source, item = every[place]
            data = mutate(source, item, seed, index)
            index += 1
            if data is None:
                continue
            yield index - 1, source, item, data
            made += 1
            if made == count:
                return


def judge(source: Source, item: Operator, data: bytes, valid: Reading, folder: Path) -> tuple[str, str]:
    """Reads one mutated file.

    Returns:
        Outcome and detail, see :class:`Result`.
    """
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source.folder, folder)
    (folder / source.file).write_bytes(data)
    try:
        found = source.read(folder)
    except FlmmError as error:
        message = str(error)
        if len(message) < 20 or not any(
            name in message for name in (folder.name, *(p.name for p in folder.rglob("*")))
        ):
            return "nameless", f"{type(error).__name__}: {message}"
        outcome, detail = ERROR, message
    except IllegalValue as error:
        return "illegal", str(error)
    except BaseException:
        return "traceback", traceback.format_exc()
    else:
        outcome, detail = SAME, ""
        if found.counts != valid.counts:
            outcome, detail = COUNT, json.dumps(found.counts, default=str)
        elif found.content != valid.content:
            changed = [key for key in valid.content if found.content.get(key) != valid.content[key]]
            outcome, detail = (
                VALUE,
                f"changed: {changed[:3]}, {len(found.content)} of {len(valid.content)} facts",
            )
    if outcome not in item.outcomes:
        return "unexpected", f"{outcome} ({detail})"
    return outcome, detail


def _peak() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) << 10
    return 0


def _address_space() -> int:
    return int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()


def _work(jobs: Sequence[tuple[int, Source, Operator, bytes]], out: int) -> None:
    """Of a child: judges files one after the other; the parent sees where it ends."""
    limit = _address_space() + _SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    faulthandler.disable()  # the parent reports what ended a child
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    scratch = Path(tempfile.mkdtemp(prefix="corpus-"))
    valid: dict[str, Reading] = {}
    with os.fdopen(out, "w") as answers:
        for number, (_, source, item, data) in enumerate(jobs):
            answers.write(json.dumps({"begin": number}) + "\n")
            answers.flush()
            if source.name not in valid:
                valid[source.name] = source.read(source.folder)
            try:
                Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
            except OSError:
                pass
            before, started = _peak(), time.process_time()
            outcome, detail = judge(source, item, data, valid[source.name], scratch / source.folder.name)
            memory, seconds = max(0, _peak() - before), time.process_time() - started
            if outcome in (SAME, ERROR, COUNT, VALUE) and memory > MAX_MEMORY:
                outcome, detail = "memory", f"{memory >> 20} MB; {detail}"
            if outcome in (SAME, ERROR, COUNT, VALUE) and seconds > MAX_SECONDS / 2:
                outcome, detail = "slow", f"{seconds:.0f} s; {detail}"
            answers.write(json.dumps([number, outcome, detail[-1500:], memory]) + "\n")
            answers.flush()
    shutil.rmtree(scratch, ignore_errors=True)


def _child(jobs: Sequence[Any]) -> Iterator[tuple[int, str, str, int]]:
    """Answers of one child process, which reads everything: threads of libraries would not survive a fork. After its
    death the file that it died of comes last."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        status = 1
        try:
            _work(jobs, writer)
            status = 0
        finally:
            os._exit(status)
    os.close(writer)
    begun, rest, slow = 0, b"", False
    while True:
        ready, _, _ = select.select([reader], [], [], MAX_SECONDS * 3)
        if not ready:
            slow = True
            os.kill(child, signal.SIGKILL)
        chunk = os.read(reader, 1 << 16)
        if not chunk:
            break
        *lines, rest = (rest + chunk).split(b"\n")
        for line in map(json.loads, lines):
            if isinstance(line, dict):
                begun = line["begin"]
            else:
                begun = line[0] + 1
                yield tuple(line)
    os.close(reader)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code != 0 or begun < len(jobs):
        yield begun, "slow" if slow else "killed", f"exit status {code}", 0


def run(seed: int, count: int, root: Path, progress: bool = False) -> list[Result]:
    """Makes and reads the files of one seed.

    Args:
        seed: Draws operators, places and values.
        count: Number of files.
        root: Folder for the valid files.
        progress: Say how far it is, with an ETA from the files read so far.

    Returns:
        One result a file.
    """
    sources = make_sources(root)
    jobs = list(plan(sources, seed, count))
    results: list[Result] = []
    started = time.monotonic()
    while len(results) < len(jobs):
        start = len(results)
        for number, outcome, detail, memory in _child(jobs[start:]):
            index, source, item, _ = jobs[start + number]
            results.append(Result(seed, index, source.name, item.name, outcome, detail, memory))
            if progress and len(results) % 100 == 0:
                left = (time.monotonic() - started) / len(results) * (len(jobs) - len(results))
                print(
                    f"seed {seed}: {len(results)} of {len(jobs)}, about {left:.0f} s left",
                    file=sys.stderr,
                    flush=True,
                )
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--files", type=int, default=2000, help="in all, over the seeds")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", help="write every result as a JSON line")
    options = parser.parse_args(arguments)
    ends = [options.files * k // len(options.seeds) for k in range(len(options.seeds) + 1)]
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as root:
        for seed, start, end in zip(options.seeds, ends, ends[1:]):
            results += run(seed, end - start, Path(root) / "valid", progress=True)
    if options.out:
        Path(options.out).write_text(
            "".join(json.dumps(vars(result)) + "\n" for result in results), encoding="utf-8"
        )
    for result in filter(lambda result: result.is_fault, results):
        where = f"{result.source}, {result.operator} (seed {result.seed}, file {result.index})"
        print(f"{result.outcome}: {where}: {ascii(result.detail)}")
    figures = {
        "files": len(results),
        "seeds": options.seeds,
        "operators": len({result.operator for result in results}),
        "sources": len({result.source for result in results}),
        "outcomes": dict(Counter(result.outcome for result in results).most_common()),
        "faults": sum(result.is_fault for result in results),
        "peak_memory_mb": max(result.memory for result in results) >> 20,
    }
    print(json.dumps(figures))
    return 1 if figures["faults"] else 0


if __name__ == "__main__":
    sys.exit(main())
