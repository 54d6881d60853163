"""From files to labelled RGB images: sources, splits, decoding, views."""
