"""What every measurement reads: hidden states at steps, chosen images, what fits a model."""
