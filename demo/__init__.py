"""The embedded default: rendered rooms, a small CLIP trained on them, a held-out sample. Nothing else imports it."""

import datasets.packages  # noqa: F401  # before its commands import torch
