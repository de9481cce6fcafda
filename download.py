"""Downloads, and files that are there whole or not at all; any number of processes may fetch one file at once."""

import errno
import hashlib
import http.client
import json
import os
import secrets
import shutil
import socket
import sys
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from time import sleep
from typing import Any, BinaryIO

from tqdm import tqdm

TIMEOUT = 30.0  # [s] to connect, and for every read
RETRIES = 3  # more tries of one address, after 1, 2 and 4 s, as long as none of them brings the file further
Check = Callable[[Path], None] | None


class DownloadError(Exception):
    """No address gave the file; `failures` says of each, in order, "address: what it did"."""

    def __init__(self, failures: list[str]) -> None:
        self.failures = failures
        reasons = dict.fromkeys(failure.partition(": ")[2] for failure in failures)
        super().__init__(f"no address gave it: {', '.join(reasons)}")


class _RefusedError(Exception):
    """This address does not give the file; another one may."""


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal. Raises OSError: it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Makes `path` of what `write(file)` writes, when all of it is on the disk. Raises OSError: `path` is as it was."""
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


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all."""
    write_whole(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


@contextmanager
def new_results(folder: Path, names: Sequence[str]) -> Iterator[Path]:
    """A folder for a run's files, which take the place of an earlier run's together, the last of `names` at the end.

    If the run fails, what it wrote stays there, in unfinished-PID, and the earlier run's files as they were.
    """
    fresh = folder / f"unfinished-{os.getpid()}"
    fresh.mkdir(parents=True, exist_ok=True)
    try:
        yield fresh
        (folder / names[-1]).unlink(missing_ok=True)
        for name in names:
            if (fresh / name).is_file():
                (fresh / name).replace(folder / name)
            else:
                (folder / name).unlink(missing_ok=True)
    finally:
        with suppress(OSError):  # something is left
            fresh.rmdir()


def download(urls: Sequence[str], target: Path, sha256: str, size: int | None = None, check: Check = None) -> Path:
    """`target`, fetched from the first http or https address that gives the right bytes.

    They are received under another name in its folder, verified, and only then renamed. `sha256` is the first digits or
    all, in hexadecimal; with it, what has arrived when a call fails is kept as `<target>.part`, where the next goes on.
    `size` is in bytes. `check` raises ValueError, with the reason, if the file that it is given cannot be used.

    Raises DownloadError: no address gave the file; OSError: it cannot be stored, and the error names `target`.
    """
    received = target.with_name(f"{target.name}.{os.getpid()}-{secrets.token_hex(8)}.part")
    failures = []
    try:
        if target.exists() and not target.is_file():
            raise OSError(errno.EEXIST, "it is not a regular file; move it away")
        target.parent.mkdir(parents=True, exist_ok=True)
        take_over(target, received)
        received.open("ab" if sha256 else "wb").close()  # without a hash, nothing would notice a mixture of two files
        needed, free = (size or 0) - received.stat().st_size, shutil.disk_usage(target.parent).free
        if needed > free:
            raise OSError(errno.ENOSPC, f"{needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free")
        for url in urls:
            try:
                _fetch(url, received, sha256, size, check)
                received.replace(target)
                return target
            except _RefusedError as error:
                failures.append(f"{url}: {error}")
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(target)) from error
    finally:
        with suppress(OSError):  # it is gone if all went well
            if sha256 and received.stat().st_size:
                received.replace(target.with_name(f"{target.name}.part"))
            received.unlink()
    raise DownloadError(failures)


def take_over(target: Path, received: Path) -> None:
    """Renames to `received` the most that calls that failed, or were killed on this machine, left; the rest goes."""
    left = [*target.parent.glob(f"{target.name}.part")]
    for part in target.parent.glob(f"{target.name}.*-*.part"):
        try:
            os.kill(int(part.suffixes[-2][1:].partition("-")[0]), 0)
        except ProcessLookupError:
            left.append(part)
        except (PermissionError, ValueError):  # another person's process writes it; not ours
            pass
    with suppress(FileNotFoundError):  # another process takes it over
        for part in sorted(left, key=os.path.getsize):
            part.replace(received)


def _fetch(url: str, received: Path, sha256: str, size: int | None, check: Check) -> None:
    """Completes and verifies `received` from one address, over as many requests as it takes.

    Wrong bytes are dropped, and if some were there before, the address is asked once more, for all of them.
    """
    failed, again = 0, True
    while True:
        start = received.stat().st_size
        try:
            if start != size:
                with received.open("ab") as file:
                    file.writelines(_blocks(url, received, start, size))
                    file.flush()
                    os.fsync(file.fileno())
            if sha256 and not (found := file_sha256(received)).startswith(sha256):
                raise ValueError(f"sent a file with sha256 {found}, expected {sha256}")
            if check:
                check(received)
            return
        except ConnectionError as error:
            failed = 1 if received.stat().st_size > start else failed + 1
            if failed > RETRIES:
                raise _RefusedError(f"{error}, after {RETRIES} more tries") from error
            sleep(2.0 ** (failed - 1))
        except ValueError as error:
            os.truncate(received, 0)
            if not start or not again:
                raise _RefusedError(str(error)) from error
            again = False


def _blocks(url: str, received: Path, start: int, size: int | None) -> Iterator[bytes]:
    """Yields the bytes from `start` on, from one request. A server without ranges sends all: `received` is emptied.

    Raises ConnectionError: try again; _RefusedError: do not; ValueError: `received` is longer than the file.
    """
    if not url.startswith(("http://", "https://")):
        raise _RefusedError("is not an http or https address")
    headers = {"User-Agent": "depthclip"} | ({"Range": f"bytes={start}-"} if start else {})
    try:
        opener = urllib.request.build_opener(_StayOnHttps)  # with urllib's handlers for proxies and certificates
        with opener.open(urllib.request.Request(url, headers=headers), timeout=TIMEOUT) as response:
            if response.headers.get_content_type() == "text/html":
                raise _RefusedError("sent a web page")
            sent = response.headers.get("Content-Range", "")
            if response.status != 206:
                os.truncate(received, start := 0)
                sent = response.headers.get("Content-Length", "")
            elif not sent.startswith(f"bytes {start}-"):
                raise _RefusedError(f"was asked for the bytes from {start} on and sent others ({sent})")
            offered = sent.rpartition("/")[2]
            total = int(offered) if offered.isdecimal() else size
            if size and total != size:
                raise _RefusedError(f"offers {total:,} bytes, expected {size:,}")
            shown = {"unit": "B", "unit_scale": True, "disable": None if sys.stderr else True}  # None: if no terminal
            with tqdm(desc=Path(url).name, initial=start, total=total, **shown) as bar:
                while block := response.read1(2**20):
                    yield block
                    start += len(block)
                    if total and start > total:
                        raise _RefusedError(f"sent more than {total:,} bytes")
                    bar.update(len(block))
    except urllib.error.HTTPError as error:
        error.close()
        passing = error.code in (408, 425, 429) or error.code >= 500
        kind = ValueError if error.code == 416 and start else ConnectionError if passing else _RefusedError
        raise kind(f"HTTP {error.code} {error.reason}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)  # what is inside a URLError
        # What is no address, does not resolve or has no trusted certificate (a ValueError) stays so.
        final = isinstance(reason, (ValueError, http.client.InvalidURL, socket.gaierror))
        problem = f"the connection failed ({type(reason).__name__}: {reason})"
        raise (_RefusedError if final else ConnectionError)(problem) from error
    if total and start < total:
        raise ConnectionError(f"the connection ended after {start:,} of {total:,} bytes")


class _StayOnHttps(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: urllib.request.Request, *answer: Any) -> urllib.request.Request | None:
        if req.full_url.startswith("https:") and not answer[-1].startswith("https:"):
            raise _RefusedError(f"leads from https to {answer[-1]}")
        return super().redirect_request(req, *answer)
