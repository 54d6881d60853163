"""How probable a model finds images: held-out likelihood, calibration, and its own continuations."""
