"""Ends a command with a sentence where its packages are missing or too old; commands import it before torch."""

import sys
from importlib import metadata

NEEDED = (2, 10)  # of torch, as requirements.txt says
HOW = "activate the environment (. .venv/bin/activate), or run sh test.sh --demo, which sets one up"

try:
    found = metadata.version("torch")
except metadata.PackageNotFoundError:
    sys.exit(f"torch is not installed in this Python; {HOW}")
if tuple(map(int, found.split(".")[:2])) < NEEDED:
    sys.exit(f"torch {found} is installed, but {'.'.join(map(str, NEEDED))} or newer is needed; {HOW}")
