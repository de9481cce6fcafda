"""The embedded default: rendered rooms, a small CLIP trained on them, a held-out sample. Nothing else imports it."""
