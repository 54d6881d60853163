"""The whole chain on one source: what it does, measures, draws and compares."""
