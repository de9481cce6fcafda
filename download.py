"""A file from a list of addresses, and files that are there whole or not at all."""

import hashlib
import os
import secrets
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal (0.16 s for RN50's 256 MB). Raises OSError: it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Calls `write(file)` on a file that gets the name `path` when all of it is on the disk.

    Until then it has a random name in the same folder, so any number of processes may write the same file at once.

    Raises:
        OSError: it cannot be written; the error names `path`, which is as it was.
    """
    temporary = path.with_name(f".{secrets.token_hex(8)}.part")
    try:
        with temporary.open("xb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
