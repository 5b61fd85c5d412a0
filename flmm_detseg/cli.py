"""The `flmm-detseg` command."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from flmm_detseg import __version__
from flmm_detseg.commands import (
    app,
    chat,
    copy_config,
    cost,
    data,
    doctor,
    evaluate,
    explain,
    export,
    ground,
    imports,
    infer,
    label,
    list_configs,
    rank_heads,
    show_config,
    stages,
    stream,
    table,
    train,
    version,
)
from flmm_detseg.commands.parts import add_parts
from flmm_detseg.utils.cli import run_tool

COMMANDS = {
    "ground": ground,
    "chat": chat,
    "explain": explain,
    "infer": infer,
    "app": app,
    "stream": stream,
    "train": train,
    "stages": stages,
    "table": table,
    "evaluate": evaluate,
    "export": export,
    "import": imports,
    "data": data,
    "label": label,
    "rank-heads": rank_heads,
    "list-configs": list_configs,
    "show-config": show_config,
    "copy-config": copy_config,
    "cost": cost,
    "doctor": doctor,
    "version": version,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point; exits with the status of the command."""
    parser = argparse.ArgumentParser(prog="flmm-detseg", description="Large multimodal models that point.")
    parser.add_argument("--version", action="version", version=__version__)
    add_parts(parser, COMMANDS)
    arguments = parser.parse_args(argv)
    run_tool(lambda: arguments.run(arguments))


if __name__ == "__main__":
    main()
