"""Weights in files and in memory: loading, export, precision, identity, counts."""
