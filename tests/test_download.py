"""download: whole and right files from a local server that misbehaves in every way that users have met.

The server's address decides how it behaves: `{address}/{mode}/w.bin`.
"""

import errno
import hashlib
import http.client
import io
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

import download as download_module
from download import DownloadError, download, file_sha256, write_whole
from tests.conftest import TEN_MINUTES

CONTENT = random.Random(1).randbytes(3 * 2**17)  # 393,216 bytes
SIZE, HALF = len(CONTENT), len(CONTENT) // 2
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FLIPPED = CONTENT[:HALF] + bytes([CONTENT[HALF] ^ 1]) + CONTENT[HALF + 1 :]
CONTINUED = f"bytes={HALF}-"


class Handler(BaseHTTPRequestHandler):
    server: "Server"

    def do_GET(self) -> None:
        mode = self.path.split("/")[1]
        with self.server.lock:
            self.first = mode not in [path for path, _ in self.server.hits]
            self.server.hits.append((mode, self.headers.get("Range")))
        ANSWERS[mode](self)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing is printed."""

    def answer(self, status: int, body: bytes, length: int | None, **headers: str) -> None:
        self.send_response(status)
        if length is not None:
            self.send_header("Content-Length", str(length))
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def rest(self, content: bytes = CONTENT, shift: int = 0) -> None:
        """What a server with ranges sends: all, or what was asked for (`shift` bytes off)."""
        asked = self.headers.get("Range")
        if asked is None:
            self.answer(200, content, len(content))
        elif (start := int(asked.removeprefix("bytes=").removesuffix("-")) + shift) >= len(content):
            self.answer(416, b"", 0)
        else:
            where = f"bytes {start}-{len(content) - 1}/{len(content)}"
            self.answer(206, content[start:], len(content) - start, Content_Range=where)

    def next_part(self) -> None:
        """A sixth of the file from where it was asked for, and the end of the connection."""
        start = int((self.headers.get("Range") or "bytes=0-").removeprefix("bytes=").removesuffix("-"))
        where = f"bytes {start}-{SIZE - 1}/{SIZE}"
        self.answer(206 if start else 200, CONTENT[start:][: SIZE // 6], SIZE - start, Content_Range=where)

    def half(self) -> None:
        self.answer(200, CONTENT[:HALF], SIZE)

    def stall(self) -> None:
        self.half()
        self.server.done.wait()

    def together(self) -> None:
        """Half the file at once, the rest when four clients are there."""
        self.half()
        self.server.four.wait()
        self.wfile.write(CONTENT[HALF:])


PAGE = b"<html>please log in</html>"
ANSWERS: dict[str, Callable[[Handler], None]] = {
    "good": lambda to: to.rest(),
    "flipped": lambda to: to.rest(FLIPPED),
    "no_length": lambda to: to.answer(200, CONTENT, None),
    "half": lambda to: to.half(),
    "half_no_length": lambda to: to.answer(200, CONTENT[:HALF], None),
    "longer": lambda to: to.answer(200, CONTENT + bytes(10), SIZE + 10),
    "page": lambda to: to.answer(200, PAGE, None, Content_Type="text/html; charset=utf-8"),
    "missing": lambda to: to.answer(404, PAGE, len(PAGE)),
    "busy_once": lambda to: to.answer(503, b"", 0) if to.first else to.rest(),
    "half_then_rest": lambda to: to.half() if to.first else to.rest(),
    "half_then_all": lambda to: to.half() if to.first else to.answer(200, CONTENT, SIZE),
    "half_then_elsewhere": lambda to: to.half() if to.first else to.rest(shift=-100),
    "sixths": lambda to: to.next_part(),
    "stall": lambda to: to.stall(),
    "together": lambda to: to.together(),
    "moved": lambda to: to.answer(302, b"", 0, Location="/half_then_rest/w.bin"),
}


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hits: list[tuple[str, str | None]] = []  # mode, Range
        self.lock = threading.Lock()
        self.done = threading.Event()
        self.four = threading.Barrier(4)

    def url(self, mode: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{mode}/w.bin"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what several tests are about."""


@contextmanager
def serving() -> Iterator[Server]:
    with Server() as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}).start()
        try:
            yield server
        finally:
            server.done.set()
            server.four.abort()
            server.shutdown()


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that `download` would have slept."""
    slept: list[float] = []
    monkeypatch.setattr(download_module, "sleep", slept.append)
    return slept


@pytest.fixture
def server(slept: list[float], monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setattr(download_module, "TIMEOUT", TEN_MINUTES)
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    with serving() as server:
        yield server


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


@pytest.mark.parametrize("size", [None, SIZE])
@pytest.mark.parametrize(
    ("modes", "hits", "waits"),  # + : from the middle on
    [
        ("good", "good", []),
        ("no_length", "no_length", []),
        ("moved", "moved half_then_rest moved+ half_then_rest+", [1]),
        ("busy_once", "busy_once busy_once", [1]),
        ("half_then_rest", "half_then_rest half_then_rest+", [1]),
        ("half_then_all", "half_then_all half_then_all+", [1]),
        ("missing page good", "missing page good", []),
        ("flipped good half", "flipped good", []),
        ("half_then_elsewhere good", "half_then_elsewhere half_then_elsewhere+ good+", [1]),
    ],
)
def test_download_ends_with_the_right_bytes(server, fetch, slept, size, modes, hits, waits) -> None:
    fetch(*modes.split(), size=size)
    assert slept == waits
    assert server.hits == [(hit.rstrip("+"), CONTINUED if "+" in hit else None) for hit in hits.split()]


def test_what_brings_the_file_further_is_tried_as_often_as_it_takes(server, fetch, slept) -> None:
    fetch("sixths")
    assert slept == [1] * 5  # more than RETRIES


def test_a_read_that_takes_too_long_is_tried_again_from_there(server, fetch, slept, monkeypatch) -> None:
    """As if the server stalled in the middle, once: no clock is waited for."""
    answers, timeouts = [HALF, TimeoutError("timed out"), SIZE, SIZE], []
    real_open = urllib.request.OpenerDirector.open

    def read(response: http.client.HTTPResponse, size: int) -> bytes:
        if isinstance(answer := answers.pop(0), TimeoutError):
            raise answer
        return response.read(answer)

    def opened(*arguments: object, timeout: float) -> object:
        timeouts.append(timeout)
        return real_open(*arguments, timeout=timeout)

    monkeypatch.setattr(http.client.HTTPResponse, "read1", read)
    monkeypatch.setattr(urllib.request.OpenerDirector, "open", opened)
    fetch("good")
    assert slept == [1]
    assert server.hits == [("good", None), ("good", CONTINUED)]
    assert timeouts == [TEN_MINUTES, TEN_MINUTES]


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
    left = {"w.bin": b"old"}
    assert files_in(target.parent) == (left | {"w.bin.part": CONTENT[:HALF]} if kept else left)


def test_every_address_is_listed_and_only_what_may_get_better_is_tried_again(
    server, target, slept, monkeypatch
) -> None:
    resolve = socket.getaddrinfo

    def getaddrinfo(host: str, *arguments: object, **keywords: object) -> object:
        if host == "nowhere":
            raise socket.gaierror("Name or service not known")
        return resolve(host, *arguments, **keywords)

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    with socket.socket() as unused:  # bound but not listening
        unused.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{unused.getsockname()[1]}/w"
        urls = [
            server.url("missing"),
            refused,
            "file:///etc/passwd",
            "http://nowhere/w",
            "http://[half/w",
            "http://a b/w",
        ]
        with pytest.raises(DownloadError) as caught:
            download(urls, target, SHA256, SIZE)
    expected = [
        "HTTP 404",
        "the connection failed (ConnectionRefusedError",
        "is not an http",
        "the connection failed (gaierror",
        *["is no valid address"] * 2,
    ]
    assert len(caught.value.failures) == 6
    for failure, url, reason in zip(caught.value.failures, urls, expected, strict=True):
        assert failure.startswith(f"{url}: {reason}")
    assert "//" not in str(caught.value)  # what they did, without the addresses
    assert slept == [1, 2, 4]
    assert not target.parent.exists()
    with pytest.raises(OSError, match="not a regular file"):
        download(urls, target.parent.parent, SHA256)


def test_a_name_that_does_not_resolve_is_not_tried_again(slept, target: Path, monkeypatch) -> None:
    asked: list[object] = []

    def getaddrinfo(host: str, *_: object, **__: object) -> None:
        asked.append(host)
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    for name in list(os.environ):
        if name.lower().endswith("_proxy"):
            monkeypatch.delenv(name)
    with pytest.raises(DownloadError, match=r"the connection failed \(gaierror: .*Name or service not known\)"):
        download(["http://no-such-host.example/w"], target, SHA256)
    assert (asked, slept) == (["no-such-host.example"], [])


def test_redirections_never_leave_https() -> None:
    handler, response = download_module._StayOnHttps(), io.BytesIO()
    request = urllib.request.Request("https://example.org/w", headers={"Range": "bytes=5-"})
    with pytest.raises(download_module._RefusedError, match=r"from https to http://example\.org"):
        handler.redirect_request(request, response, 302, "Found", {}, "http://example.org/w")
    followed = handler.redirect_request(request, response, 302, "Found", {}, "https://example.com/w")
    assert followed is not None
    assert followed.get_header("Range") == "bytes=5-"


def test_a_file_without_known_hash_is_checked_by_the_caller(server: Server, target: Path) -> None:
    def check(path: Path) -> None:
        if path.read_bytes() != CONTENT:
            raise ValueError("holds something else")

    for mode, reason in (("flipped", "holds something else"), ("half", "ended after")):
        with pytest.raises(DownloadError, match=reason):
            download([server.url(mode)], target, None, check=check)
    assert not target.parent.exists()  # nothing would notice that the next call mixes two files
    assert download([server.url("good")], target, None, check=check).read_bytes() == CONTENT


def test_of_a_hash_the_first_digits_may_be_known(server: Server, target: Path) -> None:
    for mode, digits in (("good", SHA256[1:9]), ("flipped", SHA256[:8])):
        with pytest.raises(DownloadError, match=f"sent a file with sha256 [0-9a-f]{{64}}, expected {digits}"):
            download([server.url(mode)], target, digits)
    assert download([server.url("good")], target, SHA256[:8]).read_bytes() == CONTENT


@pytest.mark.parametrize(
    ("left", "starts"),
    [
        (CONTENT[:1000], ["bytes=1000-"]),
        (CONTENT, []),
        (FLIPPED, [None]),
        (CONTENT + b"more", [f"bytes={SIZE + 4}-", None]),
    ],
)
def test_what_an_earlier_run_left_is_continued_if_it_is_right(server, fetch, target, left, starts) -> None:
    target.parent.mkdir()
    (target.parent / "w.bin.part").write_bytes(left)
    fetch("good")
    assert [start for _, start in server.hits] == starts


def test_what_an_earlier_run_left_is_dropped_if_the_whole_is_wrong(server, fetch, target) -> None:
    target.parent.mkdir()
    (target.parent / "w.bin.part").write_bytes(CONTENT[:1000])
    with pytest.raises(DownloadError, match="sent a file with sha256"):
        fetch("flipped")
    assert [start for _, start in server.hits] == ["bytes=1000-", None]
    assert files_in(target.parent) == {}


CHILD = (
    f"import download, signal, sys; from pathlib import Path; download.TIMEOUT = {TEN_MINUTES}\n"
    "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell's background job would ignore it
    "try: download.download([sys.argv[1]], Path(sys.argv[2]), sys.argv[3], int(sys.argv[4]))\n"
    "except KeyboardInterrupt: sys.exit(130)"
)


def child(url: str, target: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-W", "error", "-c", CHILD, url, str(target), SHA256, str(SIZE)]
    return subprocess.Popen(command, cwd=Path(download_module.__file__).parent, stderr=subprocess.PIPE)


@pytest.mark.parametrize(("how", "code"), [(signal.SIGINT, 130), (signal.SIGKILL, -signal.SIGKILL)])
def test_stopped_in_the_middle_and_started_again(server, target, how, code) -> None:
    process, deadline = child(server.url("stall"), target), time.monotonic() + TEN_MINUTES
    try:
        while not any(part.stat().st_size for part in target.parent.glob("w.bin.*.part")):
            assert process.poll() is None  # it cannot end: the server keeps the rest
            assert time.monotonic() < deadline
            time.sleep(0.02)
        process.send_signal(how)
        process.communicate(timeout=TEN_MINUTES)
    finally:
        process.kill()
    assert process.returncode == code
    assert not target.exists()
    kept = files_in(target.parent).get("w.bin.part")  # what arrived until then, perhaps not yet all of the half
    assert (kept is not None) == (how == signal.SIGINT)
    start = None if kept is None else f"bytes={len(kept)}-"
    assert kept is None or CONTENT[:HALF].startswith(kept)
    assert download([server.url("good")], target, SHA256, SIZE).read_bytes() == CONTENT
    assert server.hits == [("stall", None), ("good", start)]


def test_four_processes_at_once(server: Server, target: Path) -> None:
    target.parent.mkdir()
    (target.parent / "w.bin.part").write_bytes(CONTENT[:1000])  # one of them takes it
    processes = [child(server.url("together"), target) for _ in range(4)]
    try:
        for process in processes:
            _, stderr = process.communicate(timeout=TEN_MINUTES)
            assert process.returncode == 0, stderr.decode()
    finally:
        for process in processes:
            process.kill()
    assert files_in(target.parent) == {"w.bin": CONTENT}
    assert sorted(asked or "" for _, asked in server.hits) == ["", "", "", "bytes=1000-"]


def test_proxies_come_from_the_environment(server: Server, fetch: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{unused.getsockname()[1]}")
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
    assert not target.parent.exists()
    target.parent.mkdir()
    (target.parent / "w.bin.part").write_bytes(CONTENT[:1001])
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
