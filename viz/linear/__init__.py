"""Drawings of probing results."""
