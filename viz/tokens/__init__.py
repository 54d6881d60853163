"""Drawings of token indices and codebooks."""
