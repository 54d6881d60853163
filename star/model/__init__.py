"""The transformer, its attention and caches, sampling, and the files that hold its weights."""
