"""Faults of the machine end a tool with one line that says what to do, whichever library met them."""

from __future__ import annotations

import errno
import io
import sqlite3
import sys

import pytest
from safetensors import SafetensorError

from flmm_detseg.errors import DataError
from flmm_detseg.utils import cli
from flmm_detseg.utils.cli import run_tool
from flmm_detseg.utils.faults import explain

WORKER = "Caught {0} in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File x\n{1}: {2}"


def ended(error: BaseException, capsys) -> tuple[int, str]:
    """Exit code and stderr of a tool that raises."""

    def main() -> None:
        raise error

    with pytest.raises(SystemExit) as end:
        run_tool(main)
    return end.value.code, capsys.readouterr().err.strip()


@pytest.mark.case("security/diskfull")
@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "run/iter_3.pth"), "the disk is full: make room"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "your quota"),
        (PermissionError(errno.EACCES, "Permission denied", "work_dirs/x"), "Name a folder that you may write"),
        (OSError(errno.EROFS, "Read-only file system", "work_dirs"), "read-only. Name a folder"),
        (OSError(errno.EMFILE, "Too many open files"), "ulimit -n"),
        (RuntimeError("unable to write to file </torch_29602_2933094498_1>: No space left on device (28)"), "/dev/shm"),
        (RuntimeError("DataLoader worker (pid 7) is killed by signal: Bus error. It is possible ..."), "num_workers=0"),
        (OSError(WORKER.format("OSError", "OSError", "[Errno 28] No space left on device: 'x'")), "the disk is full"),
        (RuntimeError("[enforce fail at inline_container.cc:664] No space left on device"), "the disk is full"),
        (SafetensorError('I/O error: Os { code: 28, kind: StorageFull, message: "No space" }'), "the disk is full"),
        (sqlite3.OperationalError("database or disk is full"), "the disk is full"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."), "not enough memory"),
        (UnicodeEncodeError("utf-8", "w\udcc3", 1, 2, "surrogates not allowed"), "PYTHONUTF8=1"),
    ],
    ids=lambda value: value[:20] if isinstance(value, str) else type(value).__name__,
)  # fmt: skip
def test_one_line_with_the_remedy(error, words, capsys):
    code, text = ended(error, capsys)
    assert code == 3
    assert words in text
    assert len(text.splitlines()) == 1, text
    assert "Traceback" not in text


@pytest.mark.case("security/diskfull")
def test_a_full_disk_is_seen_within_another_error(capsys):
    error = ValueError("saving failed")
    error.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert ended(error, capsys)[0] == 3


@pytest.mark.case("security/diskfull")
def test_ctrl_c_ends_in_one_line_whatever_a_library_made_of_it(capsys):
    assert ended(KeyboardInterrupt(), capsys)[0] == 130
    # As MMEngine makes it of an interruption while yapf formats the config.
    error = SyntaxError("Failed to format the config file" + "\nwork_dir='x'" * 300)
    error.__context__ = KeyboardInterrupt()
    code, text = ended(error, capsys)
    assert code == 130
    assert text.startswith("interrupted:")
    assert len(text.splitlines()) == 1


def test_a_worker_s_data_error_comes_without_the_worker_s_traceback(capsys):
    error = DataError(
        WORKER.format("DataError", "flmm_detseg.errors.DataError", "a.json: record 3 has no image")
    )
    assert ended(error, capsys) == (2, "DataError: a.json: record 3 has no image")


@pytest.mark.parametrize(
    "error", [ValueError("a bug"), RuntimeError("shapes differ"), FileNotFoundError(2, "gone")]
)
def test_what_may_be_a_bug_keeps_its_traceback(error):
    assert explain(error) is None

    def main() -> None:
        raise error

    with pytest.raises(type(error)):
        run_tool(main)


@pytest.mark.case("security/diskfull")
def test_figures_are_printed_whatever_the_terminal_can_show(monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", out)
    cli.print_figures({"work_dir": "Läufe"})
    out.flush()
    assert out.buffer.getvalue() == b'{"work_dir": "L\\u00e4ufe"}\n'
