"""Runs code on a cache folder in real processes, and kills them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import textwrap
from pathlib import Path

# Imports once, then forks a process per job.
SERVER = """
import json, os, resource, signal, sys, time, traceback
import numpy as np, torch
torch.set_num_threads(1)
from store_parts import *
for line in sys.stdin:
    job = json.loads(line)
    children = []
    for number in range(job["count"]):
        children.append(os.fork())
        if not children[-1]:
            try:
                exec(job["code"], globals() | {"folder": job["folder"], "number": number})
                os._exit(0)
            except BaseException:
                traceback.print_exc()
                os._exit(1)
    if job["kill_after_s"] is not None:
        while not os.path.exists(job["folder"] + "/entered"):
            time.sleep(0.005)
        time.sleep(job["kill_after_s"])
        for child in children:
            os.kill(child, signal.SIGKILL)
    statuses = [os.waitpid(child, 0)[1] for child in children]
    print(json.dumps([os.waitstatus_to_exitcode(status) for status in statuses]), flush=True)
"""


class Processes:
    """Runs code in processes of their own."""

    def __init__(self) -> None:
        self._server = subprocess.Popen(
            [sys.executable, "-c", SERVER],
            env=os.environ | {"OMP_NUM_THREADS": "1"},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def start(self, code: str, folder: Path, count: int = 1, kill_after_s: float | None = None) -> None:
        job = {
            "code": textwrap.dedent(code),
            "folder": str(folder),
            "count": count,
            "kill_after_s": kill_after_s,
        }
        assert self._server.stdin is not None
        self._server.stdin.write(json.dumps(job) + "\n")
        self._server.stdin.flush()

    def wait(self) -> list[int]:
        """Exit codes."""
        assert self._server.stdout is not None
        return json.loads(self._server.stdout.readline())

    def close(self) -> None:
        self._server.communicate(timeout=60)
