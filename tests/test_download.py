"""download: whole and right files from a local server that misbehaves in every way that users have met."""

import errno
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
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path

import pytest

import download as download_module
from download import DownloadError, download, file_sha256, write_whole
from tests.conftest import CONTENT, FLIPPED, HALF, SHA256, SIZE, TEN_MINUTES, Server


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []  # [s], that `download` would have slept
    monkeypatch.setattr(download_module, "sleep", slept.append)
    return slept


@pytest.fixture
def server(slept: list[float], monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download_module, "TIMEOUT", TEN_MINUTES)
    monkeypatch.setenv("no_proxy", "*")
    with Server() as server:
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
    def run(*modes: str, size: int | None = SIZE) -> None:
        assert download([server.url(mode) for mode in modes], target, SHA256, size) == target
        assert files_in(target.parent) == {"w.bin": CONTENT}

    return run


def files_in(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


WRONG = rf"sent a file with sha256 [0-9a-f]{{64}}, expected {SHA256}"


@pytest.mark.parametrize(
    ("modes", "hits", "waits", "reason"),  # hits of modes, by their first letters; + : from the middle on
    [
        ("good", "g", [], ""),
        ("no_length", "n", [], ""),
        ("moved", "m h m+ h+", [1], ""),
        ("busy_then_good", "b b", [1], ""),
        ("half_then_good", "h h+", [1], ""),
        ("half_then_all", "h h+", [1], ""),
        ("missing page good", "m p g", [], ""),
        ("flipped good half", "f g", [], ""),
        ("half_then_elsewhere good", "h h+ g+", [1], ""),
        ("half_then_flipped_then_good", "h h+ h", [1], ""),  # once more, from the start
        ("half", "h h+ h+ h+", [1, 2, 4], f"connection ended after .* of {SIZE:,} bytes, after 3 more tries"),
        ("flipped", "f", [], WRONG),
        ("half_no_length", "h", [], WRONG),
        ("page", "p", [], "sent a web page"),
        ("missing", "m", [], "HTTP 404 Not Found"),
        ("half_then_elsewhere", "h h+", [1], rf"from {HALF} on and sent others \(bytes {HALF - 100}-.*\)"),
    ],
)
def test_only_the_right_bytes_get_the_final_name(server, fetch, target, slept, modes, hits, waits, reason) -> None:
    target.parent.mkdir()
    target.write_bytes(b"old")
    with pytest.raises(DownloadError, match=f"^no address gave it: .*{reason}$") if reason else nullcontext():
        fetch(*modes.split(), size=None)
    assert slept == waits
    assert [(mode[0], start) for mode, start in server.hits] == [(hit[0], HALF * ("+" in hit)) for hit in hits.split()]
    kept = {"w.bin.part": CONTENT[:HALF]} if "+" in hits else {}
    assert files_in(target.parent) == ({"w.bin": b"old"} | kept if reason else {"w.bin": CONTENT})


def test_the_size_is_compared_if_it_is_known_and_progress_is_no_failure(server, fetch, slept) -> None:
    fetch("sixths")
    assert slept == [1] * 5  # more than RETRIES
    with pytest.raises(DownloadError, match=f"offers {SIZE + 10:,} bytes"):
        fetch("longer")
    with pytest.raises(DownloadError, match="more than 10 bytes"):
        fetch("no_length", size=10)


LIVING, DEAD = f".{os.getppid()}-01", ".PID-01"


@pytest.mark.parametrize(
    ("left", "mode", "starts"),  # what stands between the target's name and .part, and the content
    [
        ({"": CONTENT[:1000]}, "good", [1000]),
        ({"": CONTENT}, "good", []),
        ({"": FLIPPED}, "good", [0]),
        ({"": CONTENT + b"more"}, "good", [SIZE + 4, 0]),
        ({"": CONTENT[:1000]}, "flipped", [1000, 0]),
        ({"": CONTENT[:1000]}, "half", [0, HALF, HALF, HALF]),  # without a hash, which would notice a mixture
        ({"": CONTENT[:8], DEAD: CONTENT[:HALF], f"{DEAD}2": CONTENT[:9], LIVING: CONTENT[:-1]}, "good", [HALF]),
    ],
)
def test_what_an_earlier_run_left_is_continued_if_it_is_right(server, target, left, mode, starts) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    target.parent.mkdir()
    for name, content in left.items():
        target.with_name(f"w.bin{name.replace('PID', str(dead.pid))}.part").write_bytes(content)
    with nullcontext() if mode == "good" else pytest.raises(DownloadError, match=f"{WRONG}|ended after"):
        download([server.url(mode)], target, "" if mode == "half" else SHA256, SIZE)
    assert [start for _, start in server.hits] == starts
    stays = {f"w.bin{name}.part": content for name, content in left.items() if name == LIVING}
    assert files_in(target.parent) == stays | ({"w.bin": CONTENT} if mode == "good" else {})


@pytest.mark.parametrize("problem", [TimeoutError("timed out"), KeyboardInterrupt()])
def test_stopped_in_the_middle_and_continued_from_there(server, fetch, target, slept, monkeypatch, problem) -> None:
    answers = [HALF, problem, SIZE, SIZE]  # as if the server stalled, or somebody pressed Ctrl-C

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


def test_every_address_is_listed_and_only_what_may_get_better_is_tried_again(
    server, refusing, target, slept, monkeypatch
) -> None:
    def getaddrinfo(host: str, *arguments: object, **keywords: object) -> object:
        if host == "nowhere":
            raise socket.gaierror("Name or service not known")
        return resolve(host, *arguments, **keywords)

    resolve = socket.getaddrinfo
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
    request = urllib.request.Request("https://a.org/w", headers={"Range": "x"})
    redirect = partial(download_module._StayOnHttps().redirect_request, request, io.BytesIO(), 302, "Found", {})
    with pytest.raises(download_module._RefusedError, match=r"from https to http://example\.org"):
        redirect("http://example.org/w")
    assert redirect("https://example.com/w").get_header("Range") == "x"


def test_four_at_once(server: Server, target: Path) -> None:
    target.parent.mkdir()
    target.with_name("w.bin.part").write_bytes(CONTENT[:1000])  # one of them takes it
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


def test_too_little_space_is_found_before_the_first_request(server, fetch, target, monkeypatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(SIZE, 1001, SIZE - 1001))
    with pytest.raises(OSError, match="0 MB are needed and 0 MB are free") as caught:
        fetch("good")
    assert (caught.value.errno, caught.value.filename, server.hits) == (errno.ENOSPC, str(target), [])
    target.with_name("w.bin.part").write_bytes(CONTENT[:1001])
    fetch("good")


def test_a_disk_that_fills_up_ends_it_and_keeps_what_arrived(server: Server, target: Path) -> None:
    urls = [server.url("good"), server.url("no_length")]  # a second address would not help
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    with ExitStack() as stack:
        stack.callback(resource.setrlimit, resource.RLIMIT_FSIZE, limit)
        resource.setrlimit(resource.RLIMIT_FSIZE, (150_000, limit[1]))
        with pytest.raises(OSError, match="File too large") as caught:
            download(urls, target, SHA256)
    assert (caught.value.filename, server.hits) == (str(target), [("good", 0)])
    assert CONTENT.startswith(files_in(target.parent).pop("w.bin.part"))


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def fail(file: io.BufferedIOBase) -> None:
        file.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    write_whole(path := tmp_path / "x", lambda file: file.write(CONTENT))
    with pytest.raises(OSError, match="No space left on device") as caught:
        write_whole(path, fail)
    assert caught.value.filename == str(path)
    assert files_in(tmp_path) == {"x": CONTENT}
    assert file_sha256(path) == SHA256
