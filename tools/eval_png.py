"""The same as `flmm-detseg evaluate png`: arguments, output, exit codes."""

from flmm_detseg.commands.evaluate import png
from flmm_detseg.utils.cli import run_as_tool

if __name__ == "__main__":
    run_as_tool(png)
