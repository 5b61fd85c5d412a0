"""Prints the version."""

from __future__ import annotations

import argparse

from flmm_detseg import __version__


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are none."""


def run(args: argparse.Namespace) -> None:
    """Prints it."""
    print(__version__)
