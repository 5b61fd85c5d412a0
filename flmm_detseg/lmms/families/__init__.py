"""One module a family of LMMs."""
