"""Checks of configs, classes and data before a run."""
