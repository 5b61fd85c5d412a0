"""Models as folders that a hub can hold: trained tensors, config without code, card, hashes."""
