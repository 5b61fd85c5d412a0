"""The same as `flmm-detseg export lmm`: arguments, output, exit codes."""

from flmm_detseg.commands.export import lmm
from flmm_detseg.utils.cli import run_as_tool

if __name__ == "__main__":
    run_as_tool(lmm)
