"""From groups of patches to the sequence that the language model reads."""
