"""The same as `flmm-detseg data check`: arguments, output, exit codes."""

from flmm_detseg.commands.data import check
from flmm_detseg.utils.cli import run_as_tool

if __name__ == "__main__":
    run_as_tool(check)
