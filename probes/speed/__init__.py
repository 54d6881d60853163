"""How fast steps, probes and batches are, as ratios."""
