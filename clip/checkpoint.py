"""Where CLIP's weights come from: the names of the models, the cache folder, and the download into it.

A file has its final name in the cache only after it was checked: it is received under a name of its own process, its
SHA-256 is computed on the way and compared with the one pinned here, and then it is renamed. So any number of processes
may start at once without a lock, one that is killed leaves nothing that could be mistaken for weights, and a mirror
needs no trust. A cached file is hashed whenever it is used: for RN50 that is 0.16 s beside seconds of imports, and
there is no record of earlier checks that could be out of date.

The one exception is the last source of RN50, the hub's `open_clip_model.safetensors`: the same weights in fp32, so
other bytes, whose SHA-256 is not known here. It is stored as `RN50.safetensors`. What vouches for it is https to the
hub, a header that accounts for every byte, and a check, before it gets its name, that its entries are exactly RN50's
in name and shape, and finite. A changed weight would pass: whoever minds brings OpenAI's own file (`--clip_path`).
After that look its SHA-256 is recorded beside it, so that later changes are noticed.

Environment: `CLIP_CACHE` (folder), `CLIP_MIRRORS` (addresses separated by spaces, tried first), `CLIP_OFFLINE=1` (open
no connection), and urllib's own `https_proxy`, `no_proxy` and `SSL_CERT_FILE`. How a file is read: `archive.py`.
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
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import torch
from tqdm import tqdm

from clip.archive import CheckpointError, file_sha256, read_state_dict
from clip.model import CLIP, Architecture, check_state_dict

__all__ = [
    "CHECKPOINTS",
    "Checkpoint",
    "CheckpointError",
    "DownloadError",
    "download",
    "file_sha256",
    "locate_checkpoint",
    "read_state_dict",
]

OPENAI = ("https://openaipublic.azureedge.net/clip/models", "https://openaipublic.blob.core.windows.net/clip/models")
TIMEOUT = 30.0  # seconds without a byte, while connecting or receiving
RETRIES = 3  # for each source, after 1, 2 and 4 s
RETRIED_STATUS = frozenset({408, 425, 429})  # and 500 to 599: the server asks for patience, not for another request
CHUNK = 256 * 1024  # bytes
ABANDONED = 24 * 3600  # seconds after which an unfinished file of another process is taken to be that of a dead one


@dataclass(frozen=True)
class HubFile:
    """The same weights in a `.safetensors` file whose SHA-256 is not known; they must fit `architecture`."""

    url: str
    architecture: Architecture


@dataclass(frozen=True)
class Checkpoint:
    """One file of weights: its name, its SHA-256, the addresses that have it, its size in bytes if known."""

    file: str
    sha256: str
    urls: tuple[str, ...]
    size: int | None = None
    hub: HubFile | None = None


def _openai(file: str, sha256: str, **more: Any) -> Checkpoint:
    return Checkpoint(file, sha256, tuple(f"{prefix}/{sha256}/{file}" for prefix in OPENAI), **more)


CHECKPOINTS: Mapping[str, Checkpoint] = MappingProxyType(
    {
        "RN50": _openai(
            "RN50.pt",
            "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
            size=255_827_503,
            hub=HubFile(
                "https://huggingface.co/timm/resnet50_clip.openai/resolve/main/open_clip_model.safetensors",
                Architecture(
                    embed_dim=1024,
                    image_resolution=224,
                    vision_layers=(3, 4, 6, 3),
                    vision_width=64,
                    vision_patch_size=None,
                    context_length=77,
                    vocab_size=49408,
                    transformer_width=512,
                    transformer_layers=12,
                ),
            ),
        ),
        "RN101": _openai("RN101.pt", "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599"),
        "RN50x4": _openai("RN50x4.pt", "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd"),
        "RN50x16": _openai("RN50x16.pt", "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa"),
        "RN50x64": _openai("RN50x64.pt", "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c"),
        "ViT-B/32": _openai("ViT-B-32.pt", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
        "ViT-B/16": _openai("ViT-B-16.pt", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
        "ViT-L/14": _openai("ViT-L-14.pt", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
        "ViT-L/14@336px": _openai(
            "ViT-L-14-336px.pt", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"
        ),
    }
)


class DownloadError(CheckpointError):
    """A checkpoint could not be fetched; the message says what was tried and how to bring the file by hand."""


def locate_checkpoint(
    name_or_path: str | Path, download_root: str | Path | None = None, mirrors: Sequence[str] | None = None
) -> Path:
    """The file of a checkpoint: a local file as it is, or that of a known model, fetched into the cache if need be.

    Args:
        name_or_path: a key of `CHECKPOINTS`, or a local file, for which the network is never used.
        download_root: the cache folder; None takes `$CLIP_CACHE`, else `~/.cache/clip`.
        mirrors: addresses to try first, each that of the file or that of a folder with it; None takes `$CLIP_MIRRORS`.

    Raises:
        CheckpointError: no such file and no such model.
        DownloadError: the file is not in the cache (or damaged there) and could not be fetched.
    """
    if name_or_path not in CHECKPOINTS:
        path = Path(name_or_path).expanduser()
        if path.is_dir():
            raise CheckpointError(path, "it is a directory; name the file in it")
        if not path.is_file():
            known = ", ".join(CHECKPOINTS)
            raise CheckpointError(path, f"there is no such file, nor is it one of the available models ({known})")
        return path
    checkpoint = CHECKPOINTS[str(name_or_path)]
    folder = Path(download_root or os.environ.get("CLIP_CACHE") or "~/.cache/clip").expanduser()
    if mirrors is None:
        mirrors = os.environ.get("CLIP_MIRRORS", "").split()
    target = folder / checkpoint.file
    found = None
    try:
        if target.exists():
            if not target.is_file():
                raise CheckpointError(target, "it is not a regular file; move it away, or use --clip_path")
            found = file_sha256(target)
            if found == checkpoint.sha256:
                return target
        if checkpoint.hub and _is_verified(_hub_target(checkpoint, folder), checkpoint.hub.architecture):
            return _hub_target(checkpoint, folder)
    except OSError as error:
        raise CheckpointError(target, f"it cannot be read: {error.strerror}") from error
    if os.environ.get("CLIP_OFFLINE", "0") not in ("", "0"):
        state = "the file there has other bytes" if found else "it is not there"
        raise DownloadError(
            target, f"{state}, and CLIP_OFFLINE forbids fetching it; {_by_hand(checkpoint, folder)}", found
        )
    return download(checkpoint, folder, mirrors)


def download(
    checkpoint: Checkpoint,
    folder: Path,
    mirrors: Sequence[str] = (),
    timeout: float = TIMEOUT,
    sleep: Callable[[float], None] = time.sleep,
) -> Path:
    """Fetches a checkpoint into `folder` from the first source that has it: mirrors, its own addresses, the hub.

    A file of that name is replaced once the new one is complete and verified, and not touched otherwise.

    Returns:
        The new file.

    Raises:
        DownloadError: no source had it, or the disk could not take it.
    """
    target = folder / checkpoint.file
    own = [url if url.endswith("/" + checkpoint.file) else f"{url.rstrip('/')}/{checkpoint.file}" for url in mirrors]
    failures: list[str] = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _remove_abandoned(folder, checkpoint)
        _check_space(folder, checkpoint.size)
        for url in (*own, *checkpoint.urls):
            try:
                return _fetch(url, target, checkpoint.size, checkpoint.sha256, timeout, sleep)
            except _SourceError as error:
                failures.append(f"{url}: {error}")
        if hub := checkpoint.hub:
            try:
                return _fetch(hub.url, _hub_target(checkpoint, folder), None, hub.architecture, timeout, sleep)
            except _SourceError as error:
                failures.append(f"{hub.url}: {error}")
    except OSError as error:  # from the disk, since the network's are _SourceError: no other source would help
        what = f"it cannot be stored in {folder} ({error.strerror or error})"
        how = "make room there or choose another folder with $CLIP_CACHE"
        raise DownloadError(target, f"{what}; {how}, or {_by_hand(checkpoint, folder)}") from error
    tried = "".join(f"\n  {failure}" for failure in failures)
    found = file_sha256(target) if target.is_file() else None
    raise DownloadError(target, f"no source had it; tried{tried}\n{_by_hand(checkpoint, folder)}", found)


def _hub_target(checkpoint: Checkpoint, folder: Path) -> Path:
    return (folder / checkpoint.file).with_suffix(".safetensors")


def _is_verified(path: Path, architecture: Architecture) -> bool:
    """Whether the hub's file is there and holds such weights: looked at once, then told by its recorded SHA-256."""
    if not path.is_file():
        return False
    record, found = _record(path), file_sha256(path)
    if record.is_file():
        return record.read_text().strip() == found
    try:
        _check_weights(path, architecture)
    except _SourceError:
        return False
    with suppress(OSError):  # a cache that cannot be written is looked at again next time
        record.write_text(found + "\n")
    return True


def _record(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")


def _by_hand(checkpoint: Checkpoint, folder: Path) -> str:
    """What a user without a connection has to do."""
    return (
        f"fetch {checkpoint.urls[0]} by other means and put it at {folder / checkpoint.file} "
        f"(sha256 {checkpoint.sha256}), or name a checkpoint that you have with --clip_path "
        "(from Python: its path instead of the name)"
    )


def _remove_abandoned(folder: Path, checkpoint: Checkpoint) -> None:
    """Removes what killed processes left unfinished; a download that lives writes to its file all the time."""
    for part in folder.glob(f"{Path(checkpoint.file).stem}.*.part"):
        try:
            if time.time() - part.stat().st_mtime > ABANDONED:
                part.unlink(missing_ok=True)
        except FileNotFoundError:  # another process was faster
            continue


def _check_space(folder: Path, needed: int | None) -> None:
    """Raises OSError if `folder` has no room for so many bytes more."""
    if needed is not None and (free := shutil.disk_usage(folder).free) < needed:
        raise OSError(errno.ENOSPC, f"{needed / 1e6:.0f} MB are needed and {free / 1e6:.0f} MB are free")


class _SourceError(Exception):
    """This source will not do; the next one may."""


class _InterruptError(Exception):
    """This request broke off or the server is busy; another one may do."""


class _NoDowngrade(urllib.request.HTTPRedirectHandler):
    """Follows redirects as urllib does, except from https to anything else."""

    def redirect_request(
        self, req: urllib.request.Request, fp: Any, code: int, msg: str, headers: Any, newurl: str
    ) -> urllib.request.Request | None:
        if req.type == "https" and not newurl.startswith("https://"):
            fp.close()
            raise _SourceError(f"it redirects from https to {newurl}")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


class _Part:
    """The unfinished file: what has been received so far, and its SHA-256."""

    def __init__(self, file: IO[bytes], bar: tqdm) -> None:
        self.file, self.bar = file, bar
        self.length = 0
        self.digest = hashlib.sha256()
        self.etag: str | None = None  # of the server's file, so that a changed one is not continued

    def restart(self) -> None:
        self.file.seek(0)
        self.file.truncate()
        self.bar.reset()
        self.length = 0
        self.digest = hashlib.sha256()

    def append(self, chunk: bytes) -> None:
        self.file.write(chunk)
        self.digest.update(chunk)
        self.length += len(chunk)
        self.bar.update(len(chunk))


def _fetch(
    url: str,
    target: Path,
    size: int | None,
    expected: str | Architecture,
    timeout: float,
    sleep: Callable[[float], None],
) -> Path:
    """Brings `url` to `target`, which appears only when its SHA-256, or its weights, have been found as `expected`."""
    path = target.with_name(f"{target.name}.{os.getpid()}.{secrets.token_hex(4)}.part")
    try:
        with path.open("xb") as file:
            sha256 = _receive(url, file, size, timeout, sleep)
            file.flush()
            os.fsync(file.fileno())
        if isinstance(expected, Architecture):
            _check_weights(path, expected)
        elif sha256 != expected:
            raise _SourceError(f"it sent a file with sha256 {sha256}, expected {expected}")
        _record(target).unlink(missing_ok=True)
        os.replace(path, target)
    finally:
        path.unlink(missing_ok=True)
    return target


def _check_weights(path: Path, architecture: Architecture) -> None:
    """Raises _SourceError unless the file holds exactly the weights of such a CLIP, all finite."""
    with torch.device("meta"):
        expected = CLIP(architecture).state_dict()
    try:
        check_state_dict(read_state_dict(path), expected)
    except CheckpointError as error:
        raise _SourceError(f"it sent a file that cannot be used: {error.reason}") from error
    except ValueError as error:
        raise _SourceError(f"it sent the weights of another model: {error}") from error


def _receive(url: str, file: IO[bytes], size: int | None, timeout: float, sleep: Callable[[float], None]) -> str:
    """Writes what `url` sends to `file`, over as many requests as it takes, and returns its SHA-256."""
    if not url.startswith(("https://", "http://")):
        raise _SourceError("it is not an http or https address")
    opener = urllib.request.build_opener(_NoDowngrade)  # with urllib's handlers for proxies and certificates
    name = Path(file.name).name.split(".")[0]
    with tqdm(total=size, desc=f"downloading {name}", unit="B", unit_scale=True, disable=None) as bar:
        part = _Part(file, bar)
        attempt = 0
        while True:
            try:
                _request(opener, url, part, size, timeout)
                return part.digest.hexdigest()
            except _InterruptError as error:
                if attempt == RETRIES:
                    raise _SourceError(f"{error}, after {RETRIES} more tries") from error
                sleep(2.0**attempt)
                attempt += 1


def _request(opener: urllib.request.OpenerDirector, url: str, part: _Part, size: int | None, timeout: float) -> None:
    """One request for the rest of the file (or all of it); returns when the file is complete."""
    headers = {"User-Agent": "clip-checkpoint"}
    if part.length:
        headers["Range"] = f"bytes={part.length}-"
        if part.etag:
            headers["If-Range"] = part.etag
    with _open(opener, url, headers, timeout) as response:
        remaining = response.headers.get("Content-Length")
        if response.status == 206:
            _check_content_range(response.headers.get("Content-Range", ""), part.length)
        elif part.length:
            part.restart()
        etag = response.headers.get("ETag", "")
        part.etag = None if etag.startswith("W/") else etag
        total = part.length + int(remaining) if remaining and remaining.isdecimal() else None
        if size and total and total != size:
            raise _SourceError(f"it offers {total:,} bytes, expected {size:,}")
        total = size or total
        part.bar.total = total
        if total:
            _check_space(Path(part.file.name).parent, total - part.length)
        while chunk := _read(response):
            part.append(chunk)
            if total and part.length > total:
                raise _SourceError(f"it sent more than the expected {total:,} bytes")
    if total and part.length < total:
        raise _InterruptError(f"the connection ended after {part.length:,} of {total:,} bytes")


def _check_content_range(content_range: str, offset: int) -> None:
    match = re.fullmatch(r"bytes (\d+)-\d+/(?:\d+|\*)", content_range)
    if match is None or int(match[1]) != offset:
        raise _SourceError(f"asked for the bytes from {offset}, it sent others ({content_range or 'no Content-Range'})")


def _open(opener: urllib.request.OpenerDirector, url: str, headers: dict[str, str], timeout: float) -> Any:
    """The response, with the network's errors sorted into those worth another try and the others."""
    try:
        return opener.open(urllib.request.Request(url, headers=headers), timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        worth_a_try = error.code in RETRIED_STATUS or error.code >= 500
        raise (_InterruptError if worth_a_try else _SourceError)(f"{error.code} {error.reason}") from error
    except urllib.error.URLError as error:
        # A name that does not resolve and a certificate that is not trusted stay so for the next seconds.
        final = isinstance(error.reason, (socket.gaierror, ssl.SSLCertVerificationError))
        raise (_SourceError if final else _InterruptError)(f"no connection ({error.reason})") from error
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptError(f"no connection ({str(error) or type(error).__name__})") from error
    except ValueError as error:
        raise _SourceError(f"it is no valid address ({error})") from error


def _read(response: Any) -> bytes:
    """What has arrived, b"" at the end."""
    try:
        return response.read1(CHUNK)
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptError(f"the connection broke ({str(error) or type(error).__name__})") from error
