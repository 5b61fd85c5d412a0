"""The `flmm-detseg` command: `doctor`, `ground`, `version`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from flmm_detseg import __version__, doctor
from flmm_detseg.inference import command as ground
from flmm_detseg.utils.cli import run_tool


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits with the status of the command."""
    parser = argparse.ArgumentParser(prog="flmm-detseg", description="Large multimodal models that point.")
    parser.add_argument("--version", action="version", version=__version__)
    commands = parser.add_subparsers(dest="command", required=True)
    doctor.add_arguments(commands.add_parser("doctor", help="what works on this machine, and what to do"))
    ground.add_arguments(commands.add_parser("ground", help="ground phrases in your own image"))
    commands.add_parser("version", help="print the version")
    arguments = parser.parse_args(argv)
    if arguments.command == "doctor":
        doctor.run(arguments)
    elif arguments.command == "ground":
        run_tool(lambda: ground.run(arguments))
    else:
        print(__version__)


if __name__ == "__main__":
    main()
