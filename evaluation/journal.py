"""The rows of a run, kept as they come, so that a run that stopped can go on: `<folder>/per_image.jsonl`.

The first line is the fingerprint of everything that the rows depend on; then one line for each image, flushed and
synced to the disk. A line without its end was being written when the run died, and is discarded. While a run writes
into a folder, `<folder>/.lock` names its process.
"""

import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

JOURNAL_FILE, LOCK_FILE = "per_image.jsonl", ".lock"

Record = dict[str, Any]


class JournalError(Exception):
    """The folder cannot be used for this run; the message is one sentence for the user."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds `folder` for this process; makes it where there is none.

    The lock of a process of this machine that has ended is taken over.

    Raises:
        JournalError: another process holds it, or may hold it.
        OSError: the folder cannot be made or written to.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path, host = folder / LOCK_FILE, socket.gethostname()
    while True:
        try:
            handle = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
            break
        except FileExistsError:
            holder = read_lock(path)
            if holder is None or holder[1] != host or alive(holder[0]):
                who = f"process {holder[0]} on {holder[1]}" if holder else "another process"
                raise JournalError(
                    f"{folder}: {who} is writing here; choose another --output, or, if that process has ended, "
                    f"delete {path}"
                ) from None
            path.unlink(missing_ok=True)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump({"pid": os.getpid(), "host": host}, file)
        yield
    finally:
        path.unlink(missing_ok=True)


def read_lock(path: Path) -> tuple[int, str] | None:
    """Process id and host of a lock file; None if it does not tell."""
    try:
        holder = json.loads(path.read_text(encoding="utf-8"))
        return int(holder["pid"]), str(holder["host"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def alive(pid: int) -> bool:
    """Whether this machine has such a process."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return True


class Journal:
    """The open journal of a run in a locked folder.

    Args:
        folder: where it lies.
        fingerprint: what the rows depend on, as JSON can hold it.
        resume: go on from the rows that are there, instead of starting anew.
        batch_size: whole batches are kept only, so that every image is computed in the batch it would have been in.
        names: of all images, in their order.

    Attributes:
        records: what is there already.

    Raises:
        JournalError: `resume`, and the rows were made with other weights, data or settings, or are damaged.
        OSError: it cannot be written.
    """

    def __init__(
        self, folder: Path, fingerprint: Mapping[str, Any], resume: bool, batch_size: int, names: Sequence[str]
    ) -> None:
        self.path = folder / JOURNAL_FILE
        header = encode({"fingerprint": fingerprint})
        lines = whole_lines(self.path) if resume else []
        if lines:
            self._check(lines[0], json.loads(header)["fingerprint"])
        self.records = self._records(lines[1:], names)
        if len(self.records) < len(names):
            del self.records[len(self.records) // batch_size * batch_size :]
        kept = b"".join(lines[: 1 + len(self.records)]) if lines else header
        self.file: BinaryIO = self.path.open("r+b" if lines else "wb", buffering=0)
        if not lines:
            self._write(kept)
        self.file.truncate(len(kept))
        self.file.seek(len(kept))

    def _check(self, line: bytes, fingerprint: Mapping[str, Any]) -> None:
        try:
            made_with = json.loads(line)["fingerprint"]
            changed = [
                key for key in {**made_with, **fingerprint} if made_with.get(key, self) != fingerprint.get(key, self)
            ]
        except (ValueError, KeyError, TypeError):
            raise JournalError(f"{self.path}: not the rows of a run; choose another --output") from None
        if changed:
            raise JournalError(
                f"{self.path}: its rows were made with another {', '.join(changed)}, so --resume cannot go on from "
                "them; repeat what they were made with, choose another --output, or start anew without --resume"
            )

    def _records(self, lines: Sequence[bytes], names: Sequence[str]) -> list[Record]:
        try:
            records = [json.loads(line) for line in lines]
            good = [record["image"] for record in records] == list(names[: len(records)])
        except (ValueError, KeyError, TypeError):
            good = False
        if not good:
            raise JournalError(f"{self.path}: damaged; delete it, or start anew without --resume")
        return records

    def write(self, records: Sequence[Record]) -> None:
        """Appends records, one line each, and waits until the disk has them."""
        self._write(b"".join(map(encode, records)))

    def _write(self, data: bytes) -> None:
        try:
            while data:
                data = data[self.file.write(data) :]
            os.fsync(self.file.fileno())
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def close(self) -> None:
        """Closes the file."""
        self.file.close()


def encode(record: Mapping[str, Any]) -> bytes:
    """One line of JSON; floats in full precision, NaN not allowed."""
    return json.dumps(record, separators=(",", ":"), allow_nan=False).encode() + b"\n"


def whole_lines(path: Path) -> list[bytes]:
    """Lines of a file that end in a newline; none if there is no file."""
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return lines[:-1] if lines and not lines[-1].endswith(b"\n") else lines
