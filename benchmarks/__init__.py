"""Measurements of speed beside a plain implementation; nothing of the suite imports them."""

import datasets.packages  # noqa: F401  # before its commands import torch
