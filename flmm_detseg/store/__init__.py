"""The background cache's store: tiers, keys, look-up, eviction. It knows no LMM."""
