"""Measurements of speed and memory; nothing of the suite imports them."""
