"""The VQ tokenizer: images to code indices and back, its files and its training."""
