"""The same as `flmm-detseg evaluate reason`: arguments, output, exit codes."""

from flmm_detseg.commands.evaluate import reason
from flmm_detseg.utils.cli import run_as_tool

if __name__ == "__main__":
    run_as_tool(reason)
