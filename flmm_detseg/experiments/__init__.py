"""Several runs as one: training stages that chain by checkpoint, tables of ablations."""
