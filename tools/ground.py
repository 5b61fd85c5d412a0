"""The same as `flmm-detseg ground`: arguments, output, exit codes."""

from flmm_detseg.commands import ground
from flmm_detseg.utils.cli import run_as_tool

if __name__ == "__main__":
    run_as_tool(ground)
