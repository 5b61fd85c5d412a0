"""Training runs: trainer, loop, hooks, optimizer, resuming."""
