"""Depth for the eye: maps in colours, the strip of an evaluation, and the page to look into a run."""
