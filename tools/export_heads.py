"""The same as `flmm-detseg export heads`: arguments, output, exit codes."""

from flmm_detseg.commands.export import heads
from flmm_detseg.utils.cli import run_as_tool

if __name__ == "__main__":
    run_as_tool(heads)
