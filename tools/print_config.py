"""Prints a config with everything it inherits, or only what it changes against the configs it imports."""

from __future__ import annotations

import argparse
from typing import Any

from flmm_detseg.utils.cli import run_tool


def main() -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("config", help="config file")
    parser.add_argument(
        "--cfg-options", nargs="+", default=[], metavar="KEY=VALUE", help="overrides to apply"
    )
    parser.add_argument(
        "--diff-base", action="store_true", help="only what differs from the imported configs"
    )
    args = parser.parse_args()

    from flmm_detseg.engine.checks.config_check import check_config, parse_overrides
    from flmm_detseg.engine.checks.config_diff import diff_to_base
    from flmm_detseg.models.from_config import read_config

    config = read_config(args.config)
    config.merge_from_dict(parse_overrides(args.cfg_options, config))
    check_config(config, args.config)
    if not args.diff_base:
        print(config.pretty_text)
        return {"config": args.config, "keys": list(config.to_dict())}
    changed = diff_to_base(args.config, config)
    for key, (before, after) in changed.items():
        print(f"{key}: {before!r} -> {after!r}")
    return {"config": args.config, "changed": {key: str(after) for key, (_, after) in changed.items()}}


if __name__ == "__main__":
    run_tool(main)
