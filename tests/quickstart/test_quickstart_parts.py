"""The quickstart's own machinery: child processes, acceptance lines, report."""

from __future__ import annotations

import argparse
import io
import json
import os
import re
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from flmm_detseg.commands import app
from flmm_detseg.errors import RunError
from flmm_detseg.quickstart.steps import CONFIGS, figures_line
from flmm_detseg.quickstart.summary import Summary, write_report
from flmm_detseg.utils.configs import config_file
from flmm_detseg.utils.process import Command, Progress, run_commands

ROOT = Path(__file__).resolve().parents[2]


def _python(name: str, code: str) -> Command:
    return Command(name, [sys.executable, "-c", code])


def _progress() -> Progress:
    progress = Progress([10.0], io.StringIO())
    progress.start("step")
    return progress


def test_figures_are_the_last_json_line_and_logs_are_kept(tmp_path):
    code = "import sys, json; print('working'); print(json.dumps({'a': 1})); print('bye', file=sys.stderr)"
    figures = run_commands([_python("one", code)], tmp_path, _progress(), slots=1, threads=1)
    assert figures == {"one": {"a": 1}}
    assert "working" in (tmp_path / "one.log").read_text()


def test_commands_run_side_by_side_with_their_share_of_threads(tmp_path):
    """Each waits until it sees the other's file: possible only when both run at once."""
    code = (
        "import json, os, pathlib, time\n"
        "here = pathlib.Path({here!r}); (here / {own!r}).touch(); end = time.time() + 20\n"
        "while not (here / {other!r}).exists() and time.time() < end: time.sleep(0.05)\n"
        "print(json.dumps(dict(met=(here / {other!r}).exists(), threads=os.environ['OMP_NUM_THREADS'])))"
    )
    commands = [
        _python(own, code.format(here=str(tmp_path), own=own, other=other)) for own, other in ("ab", "ba")
    ]
    figures = run_commands(commands, tmp_path / "logs", _progress(), slots=2, threads=3)
    assert figures == {name: {"met": True, "threads": "3"} for name in "ab"}


def test_a_failure_names_command_and_log_and_stops_the_others(tmp_path):
    pid_file = tmp_path / "pid"
    sleeper = _python(
        "sleeper", f"import os, time; open({str(pid_file)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    )
    wait = f"import os, time\nwhile not os.path.exists({str(pid_file)!r}): time.sleep(0.05)\n"
    failing = _python("failing", wait + "raise SystemExit('no such thing')")
    started = time.monotonic()
    with pytest.raises(
        RunError, match=r"failing failed with status 1(.|\n)*no such thing(.|\n)*failing\.log"
    ):
        run_commands([sleeper, failing], tmp_path, _progress(), slots=2, threads=1)
    assert time.monotonic() - started < 30
    time.sleep(0.1)
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid_file.read_text()), 0)


def test_success_without_figures_is_a_failure(tmp_path):
    with pytest.raises(RunError, match="without its line of figures"):
        run_commands([_python("silent", "print('done')")], tmp_path, _progress(), slots=1, threads=1)


def _summary(fast: bool = False) -> Summary:
    def figures(value: float, best: float | None = None) -> dict[str, float]:
        found = {f"{kind}_cIoU": value for kind in ("coarse", "refined")}
        if best is not None:
            for kind in ("coarse", "refined"):
                found |= {f"{kind}_best_threshold": 0.2, f"{kind}_best_threshold_cIoU": best}
        return found

    return Summary(
        fast,
        refcoco={
            "trained": {"val": figures(0.8), "testA": figures(0.79)},
            "control": {"val": figures(0.1, best=0.3)},
            "wrong phrases": {"val": figures(0.2)},
        },
        png={"trained": {"coarse_average_recall_all": 0.7, "refined_average_recall_all": 0.75}},
        trainings={"trained": {"lmm_sha256_before": "a", "lmm_sha256_after": "a"}},
        seconds={"TinyWorld": 12.0},
        commands=["python tools/train.py X"],
    )


def test_good_figures_pass():
    summary = _summary()
    assert summary.failures() == []
    assert summary.to_json()["passed"] is True


@pytest.mark.parametrize(
    ("run", "key", "value", "named"),
    [
        ("trained", "coarse_cIoU", 0.67, "coarse cIoU is 0.670, at least 0.68"),
        ("trained", "refined_cIoU", 0.74, "refined cIoU is 0.740, at least 0.75"),
        ("control", "coarse_best_threshold_cIoU", 0.6, "coarse cIoU above the control"),
        ("control", "refined_best_threshold_cIoU", 0.6, "refined cIoU above the control"),
        ("wrong phrases", "coarse_cIoU", 0.7, "coarse cIoU above wrong phrases"),
    ],
)
def test_each_acceptance_line_is_checked_and_named(run, key, value, named):
    summary = _summary()
    summary.refcoco[run]["val"][key] = value
    assert any(named in failure for failure in summary.failures())
    assert summary.to_json()["passed"] is False
    fast = _summary(fast=True)
    fast.refcoco[run]["val"][key] = value
    assert fast.failures() == []


def test_a_changed_lmm_fails_even_a_trial():
    summary = _summary(fast=True)
    summary.trainings["trained"]["lmm_sha256_after"] = "b"
    assert any("LMM weights" in failure for failure in summary.failures())


def test_the_last_line_ends_with_the_command_that_opens_the_app():
    summary = _summary()
    summary.trainings["trained"]["checkpoint"] = "work_dirs/quickstart/tiny/iter_1600.pth"
    line = figures_line(summary, Path("report.html"))
    assert list(line)[-1] == "app"
    install, _, command = line["app"].partition(" && ")
    assert re.search(rf"^{install.removeprefix('make ')}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
    parser = argparse.ArgumentParser()
    app.add_arguments(parser)
    program, name, *words = command.split()
    assert (Path(program).name, name) == ("flmm-detseg", "app")
    arguments = parser.parse_args(words)
    assert config_file(arguments.config).resolve() == ROOT / CONFIGS["trained"]
    assert arguments.checkpoint == "work_dirs/quickstart/tiny/iter_1600.pth"


def test_report_holds_tables_pictures_and_versions(tmp_path):
    summary = _summary()
    picture = np.zeros((8, 8, 3), np.uint8)
    path = write_report(summary, tmp_path / "report.html", {"Overlays": {"a": picture}}, {"trained": "x = 1"})
    page = path.read_text()
    for expected in (
        "wrong phrases",
        "testA",
        "0.300",
        "Overlays",
        "x = 1",
        "python tools/train.py X",
        "torch",
    ):
        assert expected in page
    header, _ = summary.table()
    explained = " ".join(re.findall(r"<dt>(.*?)</dt>", page))
    assert not [name for name in header if name not in ("run", "split") and name not in explained]
    # The first thing on the page is a picture.
    assert page.index("data:image/png") < page.index("<table")
    summary.write_json(tmp_path / "results.json")
    assert (
        json.loads((tmp_path / "results.json").read_text())["refcoco"]["control"]["val"]["coarse_cIoU"] == 0.1
    )
