"""Requests: match, compute what is missing, answer."""
