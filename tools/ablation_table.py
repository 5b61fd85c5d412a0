"""The same as `flmm-detseg table`: arguments, output, exit codes."""

from flmm_detseg.commands import table
from flmm_detseg.utils.cli import run_as_tool

if __name__ == "__main__":
    run_as_tool(table)
