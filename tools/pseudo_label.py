"""The same as `flmm-detseg label`: arguments, output, exit codes."""

from flmm_detseg.commands import label
from flmm_detseg.utils.cli import run_as_tool

if __name__ == "__main__":
    run_as_tool(label)
