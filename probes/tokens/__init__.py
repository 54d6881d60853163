"""What a tokenizer's indices are worth: invariance, codebook, reconstruction."""
