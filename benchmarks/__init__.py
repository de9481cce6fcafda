"""Measurements of speed beside a plain implementation; nothing of the suite imports them."""
