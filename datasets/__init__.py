"""Data as tensors and pixels: NYU Depth V2, and pictures of any kind."""

import os
from pathlib import Path

# tqdm's own, but always images a second, also where an image takes longer than one.
PROGRESS = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"
NAME_FILE, MAX_NAME = "name.txt", 100  # what the images of a data set are, where its layout would say something else


class DataError(ValueError):
    """The data cannot be used as they are; the message says which file, what is wrong and what to do."""


def printable(name: str) -> str:
    r"""A name as text that any file and any terminal can hold: controls, and bytes that are no UTF-8, as `\x1b`."""

    def shown(c: str) -> str:
        byte = "\udc80" <= c <= "\udcff"  # as Python reads what is no UTF-8 from a file system
        return c if c.isprintable() else (chr(ord(c) - 0xDC00) if byte else c).encode("unicode_escape").decode()

    return "".join(map(shown, name))


def name_of(path: Path) -> str:
    """What the images at `path` are called: the first line of a name.txt there or beside the official_splits above it.

    Empty if there is none. Raises DataError: it cannot be read.
    """
    for whole in map(Path, (os.path.abspath(path), os.path.realpath(path))):  # as it is named, and behind links
        for folder in (whole, *whole.parents):
            above = folder == whole or whole.is_relative_to(folder / "official_splits")
            if above and os.path.isfile(folder / NAME_FILE):  # False also where it cannot be told
                return printable(text_of(folder / NAME_FILE).partition("\n")[0].strip())[:MAX_NAME]
    return ""


def counted(images: int) -> str:
    """`1 image`, `2 images`."""
    return f"{images} image{'s' * (images != 1)}"


def text_of(path: Path) -> str:
    """The text of a list that a user wrote: UTF-8, with or without a byte-order mark; other bytes as surrogates.

    Raises DataError: it is no regular file (a pipe would wait for ever), or cannot be read.
    """
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{printable(str(path))}: not a regular file; name a text file")
        return path.read_text(encoding="utf-8-sig", errors="surrogateescape")
    except OSError as error:
        raise DataError(f"{printable(str(path))}: cannot be read ({error.strerror}); name a text file") from error
