"""``xtuner train`` as a user runs it: XTuner starts another interpreter and ignores its exit code.

XTuner asks a config for its ``framework`` before anything else. The shipped runtime answers with ``framework`` of this
module, which is found when it is asked for; so this is the first code of ours in that interpreter.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from flmm_detseg.errors import ConfigError
from flmm_detseg.utils.cli import in_one_line

# In the work folder, after a training that XTuner's own command ran and that failed.
FAILED = "FAILED"


def __getattr__(name: str) -> Any:
    """``framework``: "mmengine", as XTuner's default; looked up once per process, by XTuner."""
    if name != "framework":
        raise AttributeError(name)
    if Path(sys.argv[0]).parts[-3:] == ("xtuner", "tools", "train.py"):
        watch(sys.argv)
    return "mmengine"


def watch(arguments: list[str]) -> None:
    """Makes a failure of this process visible, and refuses what cannot work on this machine.

    Args:
        arguments: Command line of ``xtuner/tools/train.py``.

    Raises:
        ConfigError: ``--deepspeed`` without a GPU.
    """
    marker = _work_dir(arguments) / FAILED
    if os.environ.get("RANK", "0") == "0":
        marker.unlink(missing_ok=True)

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        ended = in_one_line(error)
        if ended is None:
            traceback.print_exception(kind, error, trace)
        text = f"{kind.__name__}: {error}" if ended is None else ended[0]
        line = f"TRAINING FAILED: {text}"
        print(line, file=sys.stderr)
        try:
            marker.parent.mkdir(parents=True, exist_ok=True)
            marker.write_text(line + "\n", encoding="utf-8", errors="replace")
            noted = f"; noted in {marker}"
        except OSError:
            noted = ""
        print(
            f"(xtuner itself ends with exit code 0 all the same{noted}; `python tools/train.py` reports it)",
            file=sys.stderr,
        )

    sys.excepthook = show
    check_gpu("--deepspeed" in arguments)


def check_gpu(deepspeed: bool) -> None:
    """Refuses XTuner's own use of DeepSpeed on a machine without a GPU, where it would fail without a message.

    Args:
        deepspeed: Whether DeepSpeed was asked for.

    Raises:
        ConfigError: There is none; says which command to use.
    """
    if deepspeed and not torch.cuda.is_available():
        raise ConfigError(
            "`xtuner train --deepspeed` needs a GPU, and this machine has none that torch can see. On a CPU: `python "
            "tools/train.py CONFIG --deepspeed configs/deepspeed/zero2_cpu.json`, or leave --deepspeed out; the "
            "recipes of configs/tiny train in minutes, those of 7 B need a GPU"
        )


def _work_dir(arguments: list[str]) -> Path:
    for position, word in enumerate(arguments):
        if word == "--work-dir" and position + 1 < len(arguments):
            return Path(arguments[position + 1])
        if word.startswith("--work-dir="):
            return Path(word.partition("=")[2])
    return Path("work_dirs") / (Path(arguments[1]).stem if len(arguments) > 1 else "")
