"""The whole paper and its controls from one pass over the images: `python -m experiments`."""
