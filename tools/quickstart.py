"""Draws TinyWorld, trains heads on a frozen tiny LLaVA by XTuner, evaluates, writes a report with pictures.

Writes data/tinyworld and work_dirs/quickstart (results.json, report.html, pictures/, logs/). About 18
minutes on two CPU cores.
"""

from __future__ import annotations

import argparse

from flmm_detseg.utils.cli import run_tool, stop_children_at_sigterm


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--fast", action="store_true", help="a trial: few iterations and images, figures mean nothing"
    )
    arguments = parser.parse_args()
    stop_children_at_sigterm()
    from flmm_detseg.quickstart import quickstart

    run_tool(lambda: quickstart(fast=arguments.fast))


if __name__ == "__main__":
    main()
