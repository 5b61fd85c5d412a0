"""Which patches of an image are objects: detectors and other sources, and the partition made of them."""
