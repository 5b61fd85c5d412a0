"""Sharded evaluation runs, one module a kind of task."""
