"""Mutated files: what every reader makes of valid files that something happened to."""
