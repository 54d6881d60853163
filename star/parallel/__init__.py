"""Several processes: what training and measuring need from each other, and weights cut over them."""
