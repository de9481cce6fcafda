"""Data as tensors and pixels: NYU Depth V2, KITTI, one's own pairs, and pictures of any kind."""

import os
import stat
from pathlib import Path

# tqdm's own, but always images a second, also where an image takes longer than one.
PROGRESS = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"


class DataError(ValueError):
    """The data cannot be used as they are; the message says which file, what is wrong and what to do."""


def printable(name: object) -> str:
    r"""A name as text that any file and any terminal can hold: controls, and bytes that are no UTF-8, as `\x1b`."""

    def shown(c: str) -> str:
        byte = "\udc80" <= c <= "\udcff"  # as Python reads what is no UTF-8 from a file system
        return c if c.isprintable() else (chr(ord(c) - 0xDC00) if byte else c).encode("unicode_escape").decode()

    return "".join(map(shown, str(name)))


def folder_name(path: Path) -> str:
    """The name of a data folder, for titles: its last part, or that of the folder above official_splits/test."""
    parts = Path(os.path.abspath(path)).parts
    return printable(parts[-3] if parts[-2:] == ("official_splits", "test") and len(parts) > 2 else parts[-1])


def csv_text(text: str) -> str:
    """Text for a cell of a CSV file: a spreadsheet must not take it for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "'")) else text


def counted(images: int) -> str:
    """`1 image`, `2 images`."""
    return f"{images} image{'s' * (images != 1)}"


def check_regular(path: str | Path) -> None:
    """Raises DataError: no file that is sure to end, as pipes and the pseudo-files of /proc are not; OSError."""
    about = os.stat(path)
    if not stat.S_ISREG(about.st_mode) or not about.st_size:
        kinds = {stat.S_IFREG: "is empty", stat.S_IFDIR: "a folder, which cannot be read"}
        raise DataError(kinds.get(stat.S_IFMT(about.st_mode), "not a regular file"))


def content_of(path: Path) -> bytes:
    """The bytes of a file. Raises DataError: it is no regular one, empty, or cannot be read."""
    try:
        check_regular(path)
        return path.read_bytes()
    except (DataError, OSError) as error:
        problem = f"cannot be read ({error.strerror})" if isinstance(error, OSError) else error
        raise DataError(f"{printable(path)}: {problem}") from error


def text_of(path: Path) -> str:
    """The text of a list that a user wrote: UTF-8, with or without a byte-order mark; other bytes as surrogates."""
    return content_of(path).decode("utf-8-sig", "surrogateescape").replace("\r\n", "\n").replace("\r", "\n")
