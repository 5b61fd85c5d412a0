"""The same as `flmm-detseg data voc`: arguments, output, exit codes."""

from flmm_detseg.commands.data import voc
from flmm_detseg.utils.cli import run_as_tool

if __name__ == "__main__":
    run_as_tool(voc)
