"""Code stores: images tokenised once, read many times."""
