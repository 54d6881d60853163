"""Measurements of a checkpoint, a tokenizer or samples: tables with provenance, no drawing."""
