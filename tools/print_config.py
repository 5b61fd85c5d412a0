"""The same as `flmm-detseg show-config`: arguments, output, exit codes."""

from flmm_detseg.commands import show_config
from flmm_detseg.utils.cli import run_as_tool

if __name__ == "__main__":
    run_as_tool(show_config)
