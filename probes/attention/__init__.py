"""Where a model looks: maps, statistics over images, comparisons."""
