"""Which patches of an image are objects, and who says so."""
