"""The same as `flmm-detseg import flmm`: arguments, output, exit codes."""

from flmm_detseg.commands.imports import flmm
from flmm_detseg.utils.cli import run_as_tool

if __name__ == "__main__":
    run_as_tool(flmm)
