"""What a model loses when its attention is cut."""
