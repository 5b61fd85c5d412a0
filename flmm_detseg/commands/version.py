"""Prints the version."""

from __future__ import annotations

import argparse

from flmm_detseg import __version__


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declares no arguments."""


def run(args: argparse.Namespace) -> None:
    """Prints the version."""
    print(__version__)
