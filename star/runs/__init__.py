"""A run's folder, its checkpoints and its rows of metrics."""
