"""The same as `flmm-detseg data vqav2`: arguments, output, exit codes."""

from flmm_detseg.commands.data import vqav2
from flmm_detseg.utils.cli import run_as_tool

if __name__ == "__main__":
    run_as_tool(vqav2)
