"""The geometry of features, and how alike two sides' features are."""
