"""A file from a list of addresses, and files that are there whole or not at all.

`download` serves weights and data alike. Proxies and certificates are those of the environment (urllib's defaults). No
lock: any number of processes may fetch one file at once, and the worst case is wasted bandwidth.
"""

import errno
import hashlib
import http.client
import os
import re
import secrets
import shutil
import socket
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, BinaryIO

from tqdm import tqdm

TIMEOUT = 30.0  # [s] to connect, and for every read
RETRIES = 3  # more tries of one address, after 1, 2 and 4 s, as long as none of them brings the file further
BLOCK = 2**20  # [bytes] at most for one read
PASSING_CODES = (408, 416, 425, 429)  # and 500 to 599: worth another try; any other error code is final


class DownloadError(Exception):
    """No address gave the file; the message says why, `failures` of each in order, "address: what it did"."""

    def __init__(self, failures: Sequence[str]) -> None:
        self.failures = list(failures)
        reasons = dict.fromkeys(failure.partition(": ")[2] for failure in failures)
        super().__init__(f"no address gave it: {', '.join(reasons)}")


class _RefusedError(Exception):
    """This address does not give the file; another one may."""


def file_sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hexadecimal (0.16 s for RN50's 256 MB). Raises OSError: it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_sha256(found: str, known: str) -> bool:
    """Whether a file's SHA-256 is the known one, of which perhaps only the first digits are known."""
    return found.startswith(known)


def write_whole(path: Path, write: Callable[[BinaryIO], Any]) -> None:
    """Calls `write(file)` on a file that gets the name `path` when all of it is on the disk.

    Until then it has a random name in the same folder, so any number of processes may write the same file at once.

    Raises OSError: it cannot be written; the error names `path`, which is as it was.
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


def download(
    urls: Sequence[str],
    target: Path,
    sha256: str | None,
    size: int | None = None,
    check: Callable[[Path], None] | None = None,
    timeout: float = TIMEOUT,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """`target`, fetched from the first address that gives the right bytes.

    They are received under a random name in the target's folder, verified there, and only then renamed. What has
    arrived when a call fails is kept as `<target>.part`, where the next call goes on.

    Args:
        urls: http or https addresses, tried in this order. An https address never leads to an http one.
        target: the file.
        sha256: of the whole file, in hexadecimal, or its first digits; None if it is not known, and then nothing is
            kept for a next call.
        size: number of bytes, if known.
        check: raises ValueError, with the reason, if the file that it is given cannot be used.
        timeout: [s] to connect, and for every read.
        sleep: waits so many seconds before another try.

    Raises:
        DownloadError: no address gave the file.
        OSError: it cannot be stored, where another address would not help; the error names `target`.
    """
    received = target.with_name(f"{target.name}.{secrets.token_hex(8)}.part")
    unfinished = target.with_name(f"{target.name}.part")

    def verify() -> None:
        if sha256 and not is_sha256(found := file_sha256(received), sha256):
            raise ValueError(f"sent a file with sha256 {found}, expected {sha256}")
        if check:
            check(received)

    failures, new_folder = [], not target.parent.exists()
    try:
        if target.exists() and not target.is_file():
            raise OSError(errno.EEXIST, "it is not a regular file; move it away")
        target.parent.mkdir(parents=True, exist_ok=True)
        if sha256 and unfinished.is_file():
            with suppress(FileNotFoundError):  # another process has just taken it
                unfinished.rename(received)
        with received.open("a+b") as file:
            needed, free = (size or 0) - _length(file), shutil.disk_usage(target.parent).free
            if needed > free:
                raise OSError(errno.ENOSPC, f"{needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free")
            for url in urls:
                try:
                    _fetch(url, file, size, verify, timeout, sleep)
                except _RefusedError as error:
                    failures.append(f"{url}: {error}")
                else:
                    received.replace(target)
                    return target
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(target)) from error
    finally:
        with suppress(OSError):  # it is gone if all went well
            if sha256 and received.stat().st_size:
                received.replace(unfinished)
            else:
                received.unlink()
                if new_folder:
                    target.parent.rmdir()  # unless another process has put something there
    raise DownloadError(failures)


def _length(file: IO[bytes]) -> int:
    """Number of bytes in a file that is open for appending; all of them are on their way to the disk."""
    return file.seek(0, os.SEEK_END)


def _fetch(
    url: str, file: IO[bytes], size: int | None, verify: Callable[[], None], timeout: float, sleep: Callable[..., None]
) -> None:
    """Completes `file` from one address, over as many requests as it takes, until `verify` accepts it.

    Bytes that are wrong as a whole are dropped. If some were there before, the address is asked once more, for all of
    them. Raises _RefusedError: it does not give the file, for good or after `RETRIES` more tries; OSError: of the disk.
    """
    all_from_here, failed = _length(file) == 0, 0
    while True:
        start = _length(file)
        try:
            _receive(url, file, size, timeout)
            file.flush()
            os.fsync(file.fileno())
            return verify()
        except ConnectionError as error:
            failed = 1 if _length(file) > start else failed + 1
            if failed > RETRIES:
                raise _RefusedError(f"{error}, after {RETRIES} more tries") from error
            sleep(2.0 ** (failed - 1))
        except ValueError as error:
            file.truncate(0)
            if all_from_here:
                raise _RefusedError(str(error)) from error
            all_from_here = True


def _receive(url: str, file: IO[bytes], size: int | None, timeout: float) -> None:
    """One request for the bytes that `file` lacks; all that arrive are kept, whatever happens then.

    Raises ConnectionError: another try may go on from there; _RefusedError: it would not help; OSError: of the disk.
    """
    start = _length(file)
    if start == size:
        return
    with _open(url, file, start, timeout) as response:
        if start and response.status != 206:  # a server without ranges, which sends all of it
            file.truncate(0)
            start = 0
        total = _total(response, start, size)
        quiet = True if sys.stderr is None else None  # None: where it is no terminal
        with tqdm(desc=Path(url).name, initial=start, total=total, unit="B", unit_scale=True, disable=quiet) as bar:
            while block := _read(response):
                file.write(block)
                bar.update(len(block))
    if total and (length := _length(file)) < total:
        raise ConnectionError(f"the connection ended after {length:,} of {total:,} bytes")


class _StayOnHttps(urllib.request.HTTPRedirectHandler):
    """Follows redirections, but never from https to something else."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        """The request to follow with. Raises _RefusedError."""
        if req.full_url.startswith("https:") and not newurl.startswith("https:"):
            fp.close()
            raise _RefusedError(f"leads from https to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _open(url: str, file: IO[bytes], start: int, timeout: float) -> http.client.HTTPResponse:
    """The response to a request for the bytes from `start` on; errors as in `_receive`."""
    if not re.match("https?://", url):
        raise _RefusedError("is not an http or https address")
    headers = {"User-Agent": "depthclip"} | ({"Range": f"bytes={start}-"} if start else {})
    opener = urllib.request.build_opener(_StayOnHttps)  # with urllib's handlers for proxies and certificates
    try:
        return opener.open(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416:  # the file there is not longer than what is here, which therefore is not a part of it
            file.truncate(0)
        kind = ConnectionError if error.code in PASSING_CODES or error.code >= 500 else _RefusedError
        raise kind(f"HTTP {error.code} {error.reason}") from error
    except (http.client.InvalidURL, ValueError) as error:
        raise _RefusedError(f"is no valid address ({error})") from error
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)  # what is inside a URLError
        # A name that does not resolve and a certificate that is not trusted stay so for the next seconds.
        final = isinstance(reason, (socket.gaierror, ssl.SSLCertVerificationError))
        raise (_RefusedError if final else ConnectionError)(
            f"no connection ({type(reason).__name__}: {reason})"
        ) from error


def _total(response: http.client.HTTPResponse, start: int, size: int | None) -> int | None:
    """Number of bytes of the whole file, if `size` or the response tells it. Raises _RefusedError: another file."""
    if response.headers.get_content_type() == "text/html":
        raise _RefusedError("sent a web page")
    if response.status == 206:
        sent = response.headers.get("Content-Range", "")
        match = re.fullmatch(r"bytes (\d+)-\d+/(\d+|\*)", sent)
        if match is None or int(match[1]) != start:
            raise _RefusedError(f"was asked for the bytes from {start} on and sent others ({sent or 'no range'})")
        offered = match[2]
    else:
        offered = response.headers.get("Content-Length", "")
    if size and offered.isdecimal() and int(offered) != size:
        raise _RefusedError(f"offers {int(offered):,} bytes, expected {size:,}")
    return size or (int(offered) if offered.isdecimal() else None)


def _read(response: http.client.HTTPResponse) -> bytes:
    """What has arrived, b"" at the end. Raises ConnectionError."""
    try:
        return response.read1(BLOCK)
    except (OSError, http.client.HTTPException) as error:
        raise ConnectionError(f"the connection broke ({type(error).__name__}: {error})") from error
