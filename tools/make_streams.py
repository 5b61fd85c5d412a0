"""The same as `flmm-detseg data streams`: arguments, output, exit codes."""

from flmm_detseg.commands.data import streams
from flmm_detseg.utils.cli import run_as_tool

if __name__ == "__main__":
    run_as_tool(streams)
