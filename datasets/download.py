"""One large file from the network, whole or not at all.

What has arrived stands in `<file>.part` beside the target; the next attempt, the next address and the next run go on
from there. The SHA-256 of the whole decides, and the target's name appears only after it. Proxies and certificates are
those of the environment (urllib's defaults).
"""

import fcntl
import hashlib
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from http.client import HTTPException, HTTPResponse
from io import BufferedRandom
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from tqdm import tqdm

from datasets.nyu_files import DataError

TIMEOUT = 30.0  # [s] to connect, and for every read
ATTEMPTS = 4  # in a row that bring less than PROGRESS; then the next address
PROGRESS = 2**20  # [bytes]
BLOCK = 2**20  # [bytes]
PASSING_CODES = (408, 425, 429, 500, 502, 503, 504)  # worth another attempt; any other error code is final


class AddressError(Exception):
    """This address does not give the file; another one may."""


class PassingError(Exception):
    """This attempt failed; the same address may go on from where it stopped."""


@contextmanager
def locked(path: Path) -> Iterator[BufferedRandom]:
    """The file `path`, created if need be and open for appending and reading, that no other process holds meanwhile.

    The lock belongs to the open file, so the end of a process, whatever its cause, frees it.

    Raises:
        DataError: another process holds it, or it cannot be opened or locked.
    """
    while True:
        try:
            file = path.open("a+b")
        except OSError as error:
            raise DataError(f"{path}: cannot be written ({error.strerror}); choose another folder") from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.close()
            raise DataError(f"{path}: another process is writing it; wait for that one or end it") from error
        except OSError as error:
            file.close()
            raise DataError(f"{path}: cannot be locked ({error.strerror}); choose a folder on a local disk") from error
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                break
        file.close()  # its last holder moved or removed it before the lock was ours
    with file:
        yield file


def file_sha256(path: Path) -> str:
    """The SHA-256 of the file, in hexadecimal.

    Raises:
        DataError: it cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); name an existing file") from error


def download(
    urls: Sequence[str],
    target: Path,
    size: int,
    sha256: str,
    timeout: float = TIMEOUT,
    sleep: Callable[[float], None] = time.sleep,
) -> None:
    """Brings `target`, of `size` bytes and of this SHA-256, from the first address that gives it.

    Args:
        urls: http or https addresses, tried in this order. An https address never leads to an http one.
        target: the file; what stands there already is replaced, but only by the right bytes.
        size: number of bytes.
        sha256: in hexadecimal.
        timeout: [s] to connect and for every read.
        sleep: waits so many seconds between two attempts.

    Raises:
        DataError: every address failed (each with its reason), another process is downloading the same file, or the
            disk is full or not writable.
    """
    part = target.with_name(target.name + ".part")
    failures = []
    if target.exists() and not target.is_file():
        raise DataError(f"{target}: not a file; move it away or choose another folder")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(part) as file:
            needed, free = size - length(file), shutil.disk_usage(part.parent).free
            if free < needed:
                raise DataError(f"{part}: {needed:,} more bytes are needed, {free:,} are free; make room on the disk")
            for url in urls:
                try:
                    fetch(url, file, size, sha256, timeout, sleep)
                except AddressError as error:
                    failures.append(f"  {url}: {error}")
                else:
                    os.replace(part, target)
                    return
            if length(file) == 0:
                part.unlink()
    except OSError as error:
        raise DataError(f"{part}: cannot be written ({error.strerror}); make room or choose another folder") from error
    raise DataError(f"{target}: not downloaded\n" + "\n".join(failures))


def length(file: BufferedRandom) -> int:
    """Number of bytes in the open file."""
    return os.fstat(file.fileno()).st_size


def fetch(
    url: str, file: BufferedRandom, size: int, sha256: str, timeout: float, sleep: Callable[[float], None]
) -> None:
    """Completes `file`, open for appending and reading, from one address; returns once its SHA-256 is right.

    Bytes that are wrong as a whole are dropped. If some of them were there before, the address is asked once more, for
    all of them.

    Raises:
        AddressError: the address does not give the file, for good or after `ATTEMPTS` attempts.
        DataError: the disk is full or not writable.
    """
    all_from_here = length(file) == 0
    failed = 0
    while True:
        start = length(file)
        try:
            append(url, file, size, timeout)
        except PassingError as error:
            failed = 1 if length(file) - start >= PROGRESS else failed + 1
            if failed == ATTEMPTS:
                raise AddressError(str(error)) from error
            sleep(2.0 ** (failed - 1))
            continue
        os.fsync(file.fileno())
        file.seek(0)
        found = hashlib.file_digest(file, "sha256").hexdigest()
        if found == sha256:
            return
        file.truncate(0)
        if all_from_here:
            raise AddressError(f"sent other bytes: SHA-256 {found}, expected {sha256}")
        all_from_here = True


def append(url: str, file: BufferedRandom, size: int, timeout: float) -> None:
    """Appends the bytes that `file` lacks of `size`; all that arrive are kept, whatever happens then.

    Raises:
        PassingError, AddressError, DataError: as in `fetch`.
    """
    start = length(file)
    if start > size:
        file.truncate(0)
        start = 0
    if start == size:
        return
    request = Request(url, headers={"Range": f"bytes={start}-"} if start else {})
    try:
        with (
            urlopen(request, timeout=timeout) as response,
            tqdm(desc=Path(file.name).stem, initial=start, total=size, unit="B", unit_scale=True, disable=None) as bar,
        ):
            to_skip = start - first_byte(response, url, start, size)
            while start < size and (block := response.read1(min(BLOCK, to_skip or size - start))):
                if to_skip:
                    to_skip -= len(block)
                    continue
                write(file, block)
                start += len(block)
                bar.update(len(block))
    except HTTPError as error:
        error.close()
        failure = PassingError if error.code in PASSING_CODES else AddressError
        raise failure(f"HTTP {error.code} {error.reason}") from error
    except (OSError, HTTPException) as error:
        raise PassingError(f"{getattr(error, 'reason', error) or type(error).__name__}") from error
    if start < size:
        raise PassingError(f"ended after {start:,} of {size:,} bytes")


def first_byte(response: HTTPResponse, url: str, start: int, size: int) -> int:
    """The position in the file of the first byte that `response` sends: `start`, or 0 from a server without ranges.

    Raises:
        AddressError: it does not send this file, or an https address led to http.
    """
    headers = response.headers
    if url.startswith("https:") and not response.url.startswith("https:"):
        raise AddressError(f"leads to {response.url}, which is not https")
    if headers.get_content_type() == "text/html":
        raise AddressError("sent a web page")
    if response.status == 206:
        sent = headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", sent)
        if match is None or int(match[1]) != start or match[2] not in ("*", str(size)):
            raise AddressError(f"sent the range {sent!r}, expected bytes from {start} of {size}")
        return start
    length = headers.get("Content-Length", str(size))
    if length != str(size):
        raise AddressError(f"offers {length} bytes, expected {size}: another file")
    return 0


def write(file: BufferedRandom, block: bytes) -> None:
    """Writes and flushes `block`, so that a process that is killed has lost nothing.

    Raises:
        DataError: the disk is full or not writable; no other address would help.
    """
    try:
        file.write(block)
        file.flush()
    except OSError as error:
        raise DataError(f"{file.name}: cannot be written ({error.strerror}); make room and run this again") from error
