"""Recipes for the figures and tables of the paper, and the chain that makes them all."""
