"""Modules that are added to an LMM."""
