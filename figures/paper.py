"""Numbers printed in the paper (arXiv 2509.15185v1), quoted for comparison; nothing here is measured.

Figures 1(b) and 4 have no number table, so none of their points is here.
"""

# Linear probing top-1 (%) of LlamaGen-B on ImageNet, layer 6, from the text and Table 3:
# (epochs, without ST-AR, with it)
LINEAR_PROBE = ((50, 18.68, 45.27), (300, 21.00, 55.23))
