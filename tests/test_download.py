"""download: whole and right files from a local server that misbehaves in every way that users have met."""

import errno
import hashlib
import http.client
import io
import os
import resource
import shutil
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest

import download as download_module
from download import DownloadError, download, file_sha256, write_whole
from tests.conftest import CONTENT, FLIPPED, HALF, SHA256, SIZE, TEN_MINUTES, Server, serving


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that `download` would have slept."""
    slept: list[float] = []
    monkeypatch.setattr(download_module, "sleep", slept.append)
    return slept


@pytest.fixture
def server(slept: list[float], monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download_module, "TIMEOUT", TEN_MINUTES)
    monkeypatch.setenv("no_proxy", "*")
    with serving() as server:
        yield server


@pytest.fixture
def refusing() -> Iterator[str]:
    """An address where nobody listens."""
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{unused.getsockname()[1]}/w"


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "w.bin"


@pytest.fixture
def fetch(server: Server, target: Path) -> Callable[..., None]:
    """`fetch("half", "good")` downloads from these modes."""

    def run(*modes: str, size: int | None = SIZE) -> None:
        assert download([server.url(mode) for mode in modes], target, SHA256, size) == target
        assert files_in(target.parent) == {"w.bin": CONTENT}

    return run


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def left(target: Path, **files: bytes) -> None:
    """Makes the target's folder with these files, by what stands between the target's name and .part."""
    target.parent.mkdir()
    for name, content in files.items():
        target.with_name(f"w.bin{name}.part").write_bytes(content)


@pytest.mark.parametrize("size", [None, SIZE])
@pytest.mark.parametrize(
    ("modes", "hits", "waits"),  # + : from the middle on
    [
        ("good", "good", []),
        ("no_length", "no_length", []),
        ("moved", "moved half_then_good moved+ half_then_good+", [1]),
        ("busy_then_good", "busy_then_good busy_then_good", [1]),
        ("half_then_good", "half_then_good half_then_good+", [1]),
        ("half_then_all", "half_then_all half_then_all+", [1]),
        ("missing page good", "missing page good", []),
        ("flipped good half", "flipped good", []),
        ("half_then_elsewhere good", "half_then_elsewhere half_then_elsewhere+ good+", [1]),
        ("half_then_flipped_then_good", "half_then_flipped_then_good half_then_flipped_then_good+ again", [1]),
    ],
)
def test_download_ends_with_the_right_bytes(server, fetch, slept, size, modes, hits, waits) -> None:
    fetch(*modes.split(), size=size)
    assert slept == waits
    hits = hits.replace("again", modes)  # another content in the middle is asked for once more, from the start
    assert server.hits == [(hit.rstrip("+"), HALF if "+" in hit else 0) for hit in hits.split()]


def test_what_brings_the_file_further_is_tried_as_often_as_it_takes(server, fetch, slept) -> None:
    fetch("sixths")
    assert slept == [1] * 5  # more than RETRIES


def test_what_a_killed_process_left_is_continued_and_what_a_living_one_has_is_not(server, target) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    more, fewer, living = (f".{pid}-0{i}" for i, pid in enumerate((dead.pid, dead.pid, os.getppid())))
    left(target, **{more: CONTENT[:HALF], fewer: CONTENT[:9], "": CONTENT[:8], living: CONTENT[:10]})
    assert download([server.url("good")], target, SHA256, SIZE) == target
    assert server.hits == [("good", HALF)]
    assert files_in(target.parent) == {"w.bin": CONTENT, f"w.bin{living}.part": CONTENT[:10]}


@pytest.mark.parametrize("problem", [TimeoutError("timed out"), KeyboardInterrupt()])
def test_stopped_in_the_middle_and_continued_from_there(server, fetch, target, slept, monkeypatch, problem) -> None:
    """As if the server stalled, or somebody pressed Ctrl-C."""
    answers = [HALF, problem, SIZE, SIZE]

    def read(response: http.client.HTTPResponse, size: int) -> bytes:
        if isinstance(answer := answers.pop(0), BaseException):
            assert response.fp.raw._sock.gettimeout() == TEN_MINUTES
            raise answer
        return response.read(answer)

    monkeypatch.setattr(http.client.HTTPResponse, "read1", read)
    if isinstance(problem, KeyboardInterrupt):
        with pytest.raises(KeyboardInterrupt):
            fetch("good")
        assert files_in(target.parent) == {"w.bin.part": CONTENT[:HALF]}
    fetch("good")
    assert server.hits == [("good", 0), ("good", HALF)]
    assert slept == ([1] if isinstance(problem, TimeoutError) else [])


@pytest.mark.parametrize(
    ("mode", "size", "reason", "kept"),
    [
        ("half", SIZE, f"connection ended after .* of {SIZE:,} bytes, after 3 more tries", True),
        ("half_no_length", None, f"sent a file with sha256 [0-9a-f]{{64}}, expected {SHA256}", False),
        ("flipped", SIZE, f"sent a file with sha256 [0-9a-f]{{64}}, expected {SHA256}", False),
        ("longer", SIZE, f"offers {SIZE + 10:,} bytes, expected {SIZE:,}", False),
        ("page", SIZE, "sent a web page", False),
        ("missing", SIZE, "HTTP 404 Not Found", False),
        ("half_then_elsewhere", SIZE, rf"from {HALF} on and sent others \(bytes {HALF - 100}-.*\)", True),
    ],
)
def test_wrong_bytes_never_get_the_final_name(server, fetch, target, mode, size, reason, kept) -> None:
    target.parent.mkdir()
    target.write_bytes(b"old")
    with pytest.raises(DownloadError, match=f"^no address gave it: .*{reason}$"):
        fetch(mode, size=size)
    assert files_in(target.parent) == {"w.bin": b"old"} | ({"w.bin.part": CONTENT[:HALF]} if kept else {})


def test_every_address_is_listed_and_only_what_may_get_better_is_tried_again(
    server, refusing, target, slept, monkeypatch
) -> None:
    resolve = socket.getaddrinfo

    def getaddrinfo(host: str, *arguments: object, **keywords: object) -> object:
        if host == "nowhere":
            raise socket.gaierror("Name or service not known")
        return resolve(host, *arguments, **keywords)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    reasons = {
        server.url("missing"): "HTTP 404",
        refusing: "the connection failed (ConnectionRefusedError",
        "file:///etc/passwd": "is not an http",
        "http://nowhere/w": "the connection failed (gaierror",
        "http://[half/w": "the connection failed (ValueError",
        "http://a b/w": "the connection failed (InvalidURL",
    }
    with pytest.raises(DownloadError) as caught:
        download([*reasons], target, SHA256, SIZE)
    for failure, (url, reason) in zip(caught.value.failures, reasons.items(), strict=True):
        assert failure.startswith(f"{url}: {reason}")
    assert "//" not in str(caught.value)  # what they did, without the addresses
    assert slept == [1, 2, 4]
    assert files_in(target.parent) == {}
    with pytest.raises(OSError, match="not a regular file"):
        download([*reasons], target.parent.parent, SHA256)


def test_redirections_never_leave_https() -> None:
    handler, response = download_module._StayOnHttps(), io.BytesIO()
    request = urllib.request.Request("https://example.org/w", headers={"Range": "bytes=5-"})
    with pytest.raises(download_module._RefusedError, match=r"from https to http://example\.org"):
        handler.redirect_request(request, response, 302, "Found", {}, "http://example.org/w")
    followed = handler.redirect_request(request, response, 302, "Found", {}, "https://example.com/w")
    assert followed is not None
    assert followed.get_header("Range") == "bytes=5-"


def test_without_a_hash_nothing_is_kept(server: Server, target: Path) -> None:
    left(target, **{"": CONTENT[:9]})
    with pytest.raises(DownloadError, match="ended after"):
        download([server.url("half")], target, None)
    assert files_in(target.parent) == {}  # nothing would notice that the next call mixes two files


@pytest.mark.parametrize(
    ("before", "mode", "starts"),
    [
        (CONTENT[:1000], "good", [1000]),
        (CONTENT, "good", []),
        (FLIPPED, "good", [0]),
        (CONTENT + b"more", "good", [SIZE + 4, 0]),
        (CONTENT[:1000], "flipped", [1000, 0]),
    ],
)
def test_what_an_earlier_run_left_is_continued_if_it_is_right(server, fetch, target, before, mode, starts) -> None:
    left(target, **{"": before})
    with nullcontext() if mode == "good" else pytest.raises(DownloadError, match="sent a file with sha256"):
        fetch(mode)
    assert [start for _, start in server.hits] == starts
    assert files_in(target.parent) == ({"w.bin": CONTENT} if mode == "good" else {})


def test_four_at_once(server: Server, target: Path) -> None:
    left(target, **{"": CONTENT[:1000]})  # one of them takes it
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(lambda _: download([server.url("together")], target, SHA256), range(4))) == [target] * 4
    assert files_in(target.parent) == {"w.bin": CONTENT}
    assert sorted(start for _, start in server.hits) == [0, 0, 0, 1000]


def test_proxies_come_from_the_environment(server, refusing, fetch, monkeypatch) -> None:
    monkeypatch.setenv("http_proxy", refusing)
    monkeypatch.setenv("no_proxy", "")
    with pytest.raises(DownloadError, match="the connection failed"):
        fetch("good")
    assert server.hits == []
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    fetch("good")


def test_too_little_space_is_found_before_the_first_request(server, fetch, target, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(SIZE, 1001, SIZE - 1001))
    with pytest.raises(OSError, match="0 MB are needed and 0 MB are free") as caught:
        fetch("good")
    assert caught.value.errno == errno.ENOSPC
    assert caught.value.filename == str(target)
    assert server.hits == []
    target.with_name("w.bin.part").write_bytes(CONTENT[:1001])
    fetch("good")


def test_a_disk_that_fills_up_ends_it_and_keeps_what_arrived(server: Server, target: Path) -> None:
    urls = [server.url("good"), server.url("no_length")]  # a second address would not help
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, limit[1]))
    try:
        with pytest.raises(OSError, match="File too large") as caught:
            download(urls, target, SHA256)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert caught.value.filename == str(target)
    assert [mode for mode, _ in server.hits] == ["good"]
    assert CONTENT.startswith(files_in(target.parent).pop("w.bin.part"))


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x"
    write_whole(path, lambda file: file.write(b"first"))
    assert file_sha256(path) == hashlib.sha256(b"first").hexdigest()

    def fail(file: io.BufferedIOBase) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(OSError, match="No space left on device") as caught:
        write_whole(path, fail)
    assert caught.value.filename == str(path)
    assert files_in(tmp_path) == {"x": b"first"}
