"""What layers know of the class: the probing atlas, its protocols, controls and comparisons."""
