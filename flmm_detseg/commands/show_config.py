"""Prints a config with everything it inherits, or only what it changes against the configs it imports."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from flmm_detseg.utils.configs import config_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares the arguments of :func:`run`."""
    parser.add_argument("config", help="config file, or the name of a shipped one")
    parser.add_argument(
        "--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="overrides to apply"
    )
    parser.add_argument(
        "--diff-base", action="store_true", help="only what differs from the imported configs"
    )


def run(args: argparse.Namespace) -> dict[str, Any]:
    """Prints the config; XTuner, which trains it, is not needed.

    Args:
        args: As declared by :func:`add_arguments`.

    Returns:
        Figures for the last line: its name, and its keys or what it changes.

    Raises:
        ConfigError: The config or an override cannot be used.
    """
    config_file(args.config)
    from flmm_detseg.engine.checks.config_check import check_config, parse_overrides, training_error
    from flmm_detseg.engine.checks.config_diff import diff_to_base
    from flmm_detseg.models.from_config import read_config

    config = read_config(args.config)
    config.merge_from_dict(parse_overrides(args.cfg_options, config))
    reason = training_error()
    check_config(config, args.config, skip=() if reason is None else ("train_cfg",))
    if reason is not None:
        print(f"`train_cfg` was not checked, training does not work here: {reason}", file=sys.stderr)
    if not args.diff_base:
        print(config.pretty_text)
        return {"config": args.config, "keys": list(config.to_dict())}
    changed = diff_to_base(args.config, config)
    for key, (before, after) in changed.items():
        print(f"{key}: {before!r} -> {after!r}")
    return {"config": args.config, "changed": {key: str(after) for key, (_, after) in changed.items()}}
