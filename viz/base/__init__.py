"""One look for every drawing: style, checks, names, the attention panel."""
