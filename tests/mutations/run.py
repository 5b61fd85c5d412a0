"""Changes the package in one small place at a time and runs the nearest tests: each change must make one fail.

``mutations.json`` lists the changes: a text that occurs once in a file, another one in its place, and the tests that
should notice. A change that no test can notice carries the argument why (``equivalent``); it is not run. The work is
done in copies of the tree; the tree itself is never touched. First the tests run on an unchanged copy: a test that
fails anyway would kill everything.

An entry with a ``case`` takes back what mended that public kind of fault (``tests/test_cases.py`` lists them), and only
tests marked with the case run: they have to notice it, not some other test of the file.

Example: ``python tests/mutations/run.py --only unet_norm rows_gqa``, or ``--cases`` for those with a case; all of them
take about an hour on 2 cores.
Exits with 1 when a change survives, or cannot be made any more.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any

from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[2]
LIST = Path(__file__).with_name("mutations.json")
COPIED = (
    "flmm_detseg",
    "tests",
    "tools",
    "benchmarks",
    "configs",
    "docs",
    "pyproject.toml",
    "setup.py",
    "README.md",
)


@dataclass(frozen=True)
class Mutation:
    """One change.

    Attributes:
        id: Short name.
        what: The change in words.
        file: Path in the repository.
        old: Text that occurs once in the file.
        new: What takes its place.
        tests: Test files that should notice.
        equivalent: Why none can.
        case: Kind of fault whose mend the change takes back, as in ``pytest.mark.case``: ``"data/04_..."``; only tests
            with this mark are run. None: it belongs to no case.
    """

    id: str
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    equivalent: str = ""
    case: str | None = None

    def applied(self, root: Path) -> str:
        """The file's changed text.

        Raises:
            ValueError: The text to change does not occur exactly once.
        """
        text = (root / self.file).read_text(encoding="utf-8")
        if text.count(self.old) != 1:
            raise ValueError(
                f"{self.id}: its text occurs {text.count(self.old)} times in {self.file}; adapt {LIST.name}"
            )
        return text.replace(self.old, self.new)


def read_list() -> list[Mutation]:
    """All changes, in order."""
    entries = json.loads(LIST.read_text(encoding="utf-8"))
    return [Mutation(**{**entry, "tests": tuple(entry["tests"])}) for entry in entries]


def copy_tree(target: Path) -> Path:
    """A copy of what tests need; models and data sets are linked."""
    ignore = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, target / name, ignore=ignore)
        elif source.exists():
            shutil.copy2(source, target / name)
    (target / "data").symlink_to(ROOT / "data")
    return target


def run_tests(root: Path, tests: Sequence[str], timeout: float, cases: Iterable[str] = ()) -> tuple[str, str]:
    """Runs test files in a copy, until the first failure.

    Args:
        root: The copy.
        tests: The files.
        timeout: Seconds.
        cases: Run only tests that are marked with one of them; none: all tests.

    Returns:
        ``"passed"``, ``"failed"``, ``"timeout"`` or ``"error"`` (nothing was tested), and the failing test or
        the end of the output.
    """
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "--durations=0", *tests]
    command += [f"--case={case}" for case in sorted(set(cases))]
    environment = os.environ | {
        "PYTHONPATH": str(root),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
    }
    try:
        done = subprocess.run(
            command, cwd=root, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )
    except subprocess.TimeoutExpired:
        return "timeout", f"more than {timeout:.0f} s"
    found = re.search(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    # 1: a test failed; 2: a file could not be imported any more, which no user would miss either.
    state = {0: "passed", 1: "failed", 2: "failed"}.get(done.returncode, "error")
    return state, found[1] if found else (done.stdout + done.stderr)[-300:]


def try_mutation(root: Path, mutation: Mutation, timeout: float) -> dict[str, Any]:
    """Makes a change in a copy, runs its tests and takes it back."""
    path = root / mutation.file
    before = path.read_text(encoding="utf-8")
    path.write_text(mutation.applied(root), encoding="utf-8")
    try:
        state, detail = run_tests(root, mutation.tests, timeout, filter(None, [mutation.case]))
    finally:
        path.write_text(before, encoding="utf-8")
    outcome = {"passed": "survived", "failed": "killed", "timeout": "killed"}.get(state, "error")
    return {"id": mutation.id, "outcome": outcome, "by": detail}


def run(mutations: Sequence[Mutation], jobs: int, timeout: float) -> dict[str, Any]:
    """Tries changes, ``jobs`` at a time.

    Returns:
        Figures, ready for JSON.
    """
    chosen = [mutation for mutation in mutations if not mutation.equivalent]
    results: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory(prefix="mutations-") as folder, ThreadPoolExecutor(jobs) as pool:
        copies: SimpleQueue[Path] = SimpleQueue()
        for number in range(jobs):
            copies.put(copy_tree(Path(folder) / str(number)))

        def in_a_copy(work: Any) -> Any:
            root = copies.get()
            try:
                return work(root)
            finally:
                copies.put(root)

        wanted: dict[str, list[str | None]] = {}
        for mutation in chosen:
            for name in mutation.tests:
                wanted.setdefault(name, []).append(mutation.case)
        # Of a file that is wanted for its cases only, the other tests may take long.
        files = {name: [] if None in cases else cases for name, cases in sorted(wanted.items())}
        checks = [
            (lambda root, name=name, cases=cases: (name, *run_tests(root, [name], timeout, cases)))
            for name, cases in files.items()
        ]
        broken = {}
        for name, state, detail in tqdm(pool.map(in_a_copy, checks), total=len(files), desc="unchanged"):
            if state != "passed":
                broken[name] = detail
        if broken:
            return {"passed": False, "failing_without_a_change": broken}
        changes = [(lambda root, change=change: try_mutation(root, change, timeout)) for change in chosen]
        bar = tqdm(pool.map(in_a_copy, changes), total=len(chosen), desc="mutations")
        for mutation, result in zip(chosen, bar):
            results.append(result)
            tqdm.write(f"{result['outcome']:9} {mutation.id:22} {mutation.what}  [{result['by']}]")
    names = {
        outcome: [result["id"] for result in results if result["outcome"] == outcome]
        for outcome in ("killed", "survived", "error")
    }
    return {
        "passed": not names["survived"] and not names["error"],
        "tried": len(results),
        "killed": len(names["killed"]),
        "survived": names["survived"],
        "errors": names["error"],
        "equivalent": {mutation.id: mutation.equivalent for mutation in mutations if mutation.equivalent},
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", nargs="+", metavar="ID", help="these changes only")
    parser.add_argument("--cases", action="store_true", help="only changes that take back the mend of a case")
    parser.add_argument("--jobs", type=int, default=1, help="changes tried at the same time")
    parser.add_argument("--timeout", type=float, default=900, help="seconds for the tests of a change")
    arguments = parser.parse_args()
    mutations = read_list()
    if arguments.only:
        if unknown := set(arguments.only) - {mutation.id for mutation in mutations}:
            parser.error(f"no such change: {', '.join(sorted(unknown))}")
        mutations = [mutation for mutation in mutations if mutation.id in arguments.only]
    if arguments.cases:
        mutations = [mutation for mutation in mutations if mutation.case is not None]
    problems = []
    for mutation in mutations:
        try:
            mutation.applied(ROOT)
        except ValueError as error:
            problems.append(str(error))
    figures = (
        {"passed": False, "cannot_be_made": problems}
        if problems
        else run(mutations, max(1, arguments.jobs), arguments.timeout)
    )
    print(json.dumps({"mutations": len(mutations), **figures}, ensure_ascii=False))
    sys.exit(0 if figures["passed"] else 1)


if __name__ == "__main__":
    main()
