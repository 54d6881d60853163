"""What a training run is watched by."""
