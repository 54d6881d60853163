"""Drawings of attention."""
