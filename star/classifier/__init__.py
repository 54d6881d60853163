"""The image classifier that samples are judged by: its network, its files and its training."""
