"""Data sets as files on disk. This file exists so that an installed package called `datasets` does not shadow them."""
