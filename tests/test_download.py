"""clip.checkpoint: downloads from a local server that misbehaves in every way that users have met.

The server's address decides how it behaves: `{address}/{mode}/w.pt`.
"""

import errno
import hashlib
import os
import re
import shutil
import socket
import struct
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from safetensors.torch import save

import clip.checkpoint
from clip.checkpoint import Checkpoint, DownloadError, HubFile, download, locate_checkpoint
from clip.model import CLIP
from tests.test_checkpoint import TINY

CONTENT = bytes(range(256)) * 1500  # 384,000 bytes
HALF = len(CONTENT) // 2
SHA256 = hashlib.sha256(CONTENT).hexdigest()


class Handler(BaseHTTPRequestHandler):
    server: "Server"

    def do_GET(self) -> None:
        mode = self.path.split("/")[1]
        with self.server.lock:
            self.server.hits.append((mode, self.headers.get("Range")))
            self.first = sum(hit[0] == mode for hit in self.server.hits) == 1
        getattr(self, mode)()

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
            return
        start = int(asked.removeprefix("bytes=").removesuffix("-")) + shift
        where = f"bytes {start}-{len(content) - 1}/{len(content)}"
        self.answer(206, content[start:], len(content) - start, Content_Range=where)

    def good(self) -> None:
        self.rest()

    def no_length(self) -> None:
        self.answer(200, CONTENT, None)

    def half(self) -> None:
        self.answer(200, CONTENT[:HALF], len(CONTENT))

    def half_no_length(self) -> None:
        self.answer(200, CONTENT[:HALF], None)

    def flipped(self) -> None:
        self.answer(200, CONTENT[:HALF] + bytes([CONTENT[HALF] ^ 1]) + CONTENT[HALF + 1 :], len(CONTENT))

    def longer(self) -> None:
        self.answer(200, CONTENT + bytes(10), len(CONTENT) + 10)

    def longer_no_length(self) -> None:
        self.answer(200, CONTENT + bytes(10), None)

    def page(self) -> None:
        self.answer(200, b"<html>please log in</html>", 26)

    def empty(self) -> None:
        self.answer(200, b"", 0)

    def missing(self) -> None:
        self.answer(404, b"<html>not found</html>", 22)

    def busy(self) -> None:
        self.answer(503, b"", 0)

    def busy_once(self) -> None:
        self.busy() if self.first else self.good()

    def half_then_rest(self) -> None:
        self.half() if self.first else self.rest()

    def half_then_all(self) -> None:
        self.half() if self.first else self.answer(200, CONTENT, len(CONTENT))

    def half_then_elsewhere(self) -> None:
        self.half() if self.first else self.rest(shift=-100)

    def half_then_nowhere(self) -> None:
        self.half() if self.first else self.answer(206, CONTENT[HALF:], HALF)

    def half_then_changed(self) -> None:
        """The file changes in the middle, so that the condition `If-Range` does not hold."""
        if self.first:
            self.answer(200, bytes(HALF), len(CONTENT), ETag='"old"')
        elif self.headers.get("If-Range") == '"old"':
            self.answer(200, CONTENT, len(CONTENT), ETag='"new"')

    def reset_then_rest(self) -> None:
        if not self.first:
            self.rest()
            return
        self.half()
        self.server.received.wait(10)
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # close sends a reset

    def stall(self) -> None:
        self.half()
        self.server.received.wait(20)

    def stall_once(self) -> None:
        self.stall() if self.first else self.rest()

    def slow(self) -> None:
        self.answer(200, b"", len(CONTENT))
        for start in range(0, len(CONTENT), 16_000):
            self.wfile.write(CONTENT[start : start + 16_000])
            time.sleep(0.005)

    def together(self) -> None:
        """Half the file at once, the rest when four clients are there."""
        self.half()
        self.server.four.wait(30)
        self.wfile.write(CONTENT[HALF:])

    def moved(self) -> None:
        self.answer(302, b"", 0, Location="/half_then_rest/w.pt")

    def hub(self) -> None:
        self.rest(self.server.hub_file)


class Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hits: list[tuple[str, str | None]] = []
        self.lock = threading.Lock()
        self.received = threading.Event()  # the test has seen what it waits for
        self.four = threading.Barrier(4)
        self.hub_file = b""

    def url(self, mode: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{mode}/w.pt"

    def handle_error(self, request: object, client_address: object) -> None:
        """A client that hangs up is what several tests are about."""


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.received.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in list(os.environ):
        if name.lower().endswith("_proxy") or name.startswith("CLIP_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "cache" / "clip"


def checkpoint(*urls: str, size: int | None = len(CONTENT), hub: HubFile | None = None) -> Checkpoint:
    return Checkpoint("w.pt", SHA256, urls, size, hub)


class Sleeps(list[float]):
    """Stands for `time.sleep`: remembers, and does not wait."""

    def __call__(self, seconds: float) -> None:
        self.append(seconds)


def is_good(path: Path) -> bool:
    return path.read_bytes() == CONTENT and os.listdir(path.parent) == [path.name]


# --- one source


@pytest.mark.parametrize("mode", ["good", "no_length", "moved"])
@pytest.mark.parametrize("size", [None, len(CONTENT)])
def test_a_good_source(server: Server, folder: Path, mode: str, size: int | None) -> None:
    path = download(checkpoint(server.url(mode), size=size), folder, sleep=Sleeps())
    assert path == folder / "w.pt"
    assert is_good(path)


@pytest.mark.parametrize(
    ("mode", "reason"),
    [
        ("half", "ended after 192,000 of 384,000 bytes, after 3 more tries"),
        ("half_no_length", "ended after 192,000 of 384,000 bytes, after 3 more tries"),
        ("page", "offers 26 bytes, expected 384,000"),
        ("empty", "ended after 0 of 384,000"),
        ("flipped", f"sha256 [0-9a-f]{{64}}, expected {SHA256}"),
        ("longer", "offers 384,010 bytes, expected 384,000"),
        ("longer_no_length", "more than the expected 384,000 bytes"),
        ("missing", "404 Not Found"),
        ("busy", "503 Service Unavailable, after 3 more tries"),
        ("half_then_elsewhere", r"asked for the bytes from 192000, it sent others \(bytes 191900-383999/384000\)"),
        ("half_then_nowhere", "no Content-Range"),
    ],
)
def test_wrong_bytes_never_get_the_final_name(server: Server, folder: Path, mode: str, reason: str) -> None:
    with pytest.raises(DownloadError, match=reason) as caught:
        download(checkpoint(server.url(mode)), folder, sleep=Sleeps())
    assert os.listdir(folder) == []
    for part in (server.url(mode), str(folder / "w.pt"), SHA256, "--clip_path"):
        assert part in str(caught.value)


@pytest.mark.parametrize("mode", ["half_no_length", "page", "longer", "flipped", "empty"])
def test_the_sha_decides_where_the_size_is_not_known(server: Server, folder: Path, mode: str) -> None:
    with pytest.raises(DownloadError, match=f"sha256 [0-9a-f]{{64}}, expected {SHA256}"):
        download(checkpoint(server.url(mode), size=None), folder, sleep=Sleeps())
    assert os.listdir(folder) == []


def test_only_what_may_get_better_is_tried_again(server: Server, folder: Path) -> None:
    sleeps = Sleeps()
    assert is_good(download(checkpoint(server.url("busy_once")), folder, sleep=sleeps))
    assert sleeps == [1]
    with pytest.raises(DownloadError):
        download(checkpoint(server.url("missing"), server.url("busy")), folder, sleep=sleeps)
    assert sleeps == [1, 1, 2, 4]
    assert [mode for mode, _ in server.hits] == ["busy_once"] * 2 + ["missing"] + ["busy"] * 4


def test_a_broken_download_is_resumed(server: Server, folder: Path) -> None:
    assert is_good(download(checkpoint(server.url("half_then_rest")), folder, sleep=Sleeps()))
    assert server.hits == [("half_then_rest", None), ("half_then_rest", f"bytes={HALF}-")]


def test_a_reset_connection_is_resumed(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    append = clip.checkpoint._Part.append

    def append_and_tell(part: clip.checkpoint._Part, chunk: bytes) -> None:
        append(part, chunk)
        if part.length == HALF:
            server.received.set()

    monkeypatch.setattr(clip.checkpoint._Part, "append", append_and_tell)
    assert is_good(download(checkpoint(server.url("reset_then_rest")), folder, sleep=Sleeps()))
    assert server.hits[1] == ("reset_then_rest", f"bytes={HALF}-")


@pytest.mark.parametrize("mode", ["half_then_all", "half_then_changed"])
def test_a_server_that_starts_again_is_followed(server: Server, folder: Path, mode: str) -> None:
    assert is_good(download(checkpoint(server.url(mode)), folder, sleep=Sleeps()))
    assert server.hits == [(mode, None), (mode, f"bytes={HALF}-")]


def test_a_stalled_connection_times_out_and_is_resumed(server: Server, folder: Path) -> None:
    assert is_good(download(checkpoint(server.url("stall_once")), folder, timeout=0.3, sleep=Sleeps()))
    with pytest.raises(DownloadError, match=r"timed out.*after 3 more tries"):
        download(checkpoint(server.url("stall"), size=None), folder / "other", timeout=0.1, sleep=Sleeps())
    assert os.listdir(folder / "other") == []


def test_a_refused_connection_and_bad_addresses(folder: Path) -> None:
    with socket.socket() as unused:  # bound but not listening
        unused.bind(("127.0.0.1", 0))
        refused = f"http://127.0.0.1:{unused.getsockname()[1]}/w.pt"
        with pytest.raises(DownloadError) as caught:
            download(checkpoint(refused, "file:///etc/passwd", "http://[half/w.pt"), folder, sleep=Sleeps())
    assert f"{refused}: no connection ([Errno {errno.ECONNREFUSED}]" in str(caught.value)
    assert "file:///etc/passwd: it is not an http or https address" in str(caught.value)
    assert "http://[half/w.pt: it is no valid address" in str(caught.value)


def test_redirects_never_leave_https() -> None:
    class Response:
        closed = False

        def close(self) -> None:
            self.closed = True

    handler, response = clip.checkpoint._NoDowngrade(), Response()
    request = urllib.request.Request("https://example.org/w.pt", headers={"Range": "bytes=5-"})
    with pytest.raises(clip.checkpoint._SourceError, match=r"from https to http://example\.org"):
        handler.redirect_request(request, response, 302, "Found", {}, "http://example.org/w.pt")
    assert response.closed
    followed = handler.redirect_request(request, response, 302, "Found", {}, "https://example.com/w.pt")
    assert followed is not None
    assert followed.get_header("Range") == "bytes=5-"


# --- several sources


def test_sources_are_tried_in_order_and_all_are_listed(server: Server, folder: Path) -> None:
    urls = [server.url(mode) for mode in ("missing", "page", "flipped")]
    with pytest.raises(DownloadError) as caught:
        download(checkpoint(*urls), folder, sleep=Sleeps())
    assert [mode for mode, _ in server.hits] == ["missing", "page", "flipped"]
    assert re.findall(r"\n  (http\S+): ", str(caught.value)) == urls
    assert is_good(download(checkpoint(*urls, server.url("good"), server.url("half")), folder, sleep=Sleeps()))
    assert server.hits[-1][0] == "good"


def test_mirrors_of_the_user_come_first(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip.checkpoint, "CHECKPOINTS", {"W": checkpoint(server.url("half"))})
    prefix = server.url("missing").removesuffix("/w.pt")
    monkeypatch.setenv("CLIP_MIRRORS", f"{prefix} {server.url('good')}")
    monkeypatch.setenv("CLIP_CACHE", str(folder))
    assert is_good(locate_checkpoint("W"))
    assert [mode for mode, _ in server.hits] == ["missing", "good"]
    assert is_good(locate_checkpoint("W", folder / "other", mirrors=[server.url("no_length")]))
    assert server.hits[-1][0] == "no_length"


@pytest.fixture
def hub(server: Server) -> HubFile:
    torch.manual_seed(0)
    server.hub_file = save(CLIP(TINY).state_dict())
    return HubFile(server.url("hub"), TINY)


def test_the_hubs_file_is_the_last_source_and_has_its_own_name(
    server: Server, folder: Path, hub: HubFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip.checkpoint, "CHECKPOINTS", {"W": checkpoint(server.url("missing"), hub=hub)})
    path = locate_checkpoint("W", folder)
    assert path == folder / "w.safetensors"
    assert os.listdir(folder) == ["w.safetensors"]
    model, _ = clip.load(path, device="cpu")
    assert model.visual.input_resolution == 32
    assert [mode for mode, _ in server.hits] == ["missing", "hub"]
    assert locate_checkpoint("W", folder) == path
    assert len(server.hits) == 2


def test_the_hubs_file_in_the_cache_is_looked_at_and_remembered(
    server: Server, folder: Path, hub: HubFile, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip.checkpoint, "CHECKPOINTS", {"W": checkpoint(server.url("missing"), hub=hub)})
    target = locate_checkpoint("W", folder, mirrors=())
    assert locate_checkpoint("W", folder) == target
    record = folder / "w.safetensors.sha256"
    assert record.read_text().strip() == hashlib.sha256(server.hub_file).hexdigest()
    content = bytearray(target.read_bytes())
    content[-1] ^= 1  # a weight that stays finite
    target.write_bytes(content)
    monkeypatch.setenv("CLIP_OFFLINE", "1")
    with pytest.raises(DownloadError, match="CLIP_OFFLINE"):
        locate_checkpoint("W", folder)
    record.unlink()
    target.write_bytes(b"no weights")  # brought by hand, under the right name
    with pytest.raises(DownloadError, match="CLIP_OFFLINE"):
        locate_checkpoint("W", folder)
    target.write_bytes(server.hub_file)
    assert locate_checkpoint("W", folder) == target


def test_a_hub_file_with_other_weights_is_refused(server: Server, folder: Path, hub: HubFile) -> None:
    state_dict = CLIP(TINY).state_dict()
    name = "visual.conv1.weight"
    for changed, reason in (
        ({k: v for k, v in state_dict.items() if k != name}, f"1 entries are missing: {name}"),
        (state_dict | {name: torch.full_like(state_dict[name], float("nan"))}, f"{name} holds values that are not"),
        (state_dict | {name: torch.zeros(3, 3, 3, 3)}, rf"{name} has shape \(3, 3, 3, 3\)"),
    ):
        server.hub_file = save(changed)
        with pytest.raises(DownloadError, match=reason):
            download(checkpoint(server.url("missing"), hub=hub), folder, sleep=Sleeps())
    server.hub_file = save(state_dict)[:-4]
    with pytest.raises(DownloadError, match="bytes of tensors where its header says"):
        download(checkpoint(server.url("missing"), hub=hub), folder, sleep=Sleeps())
    assert os.listdir(folder) == []


# --- the cache


def test_a_good_file_in_the_cache_is_used_without_a_request_or_a_write(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(clip.checkpoint, "CHECKPOINTS", {"W": checkpoint(server.url("good"))})
    path = locate_checkpoint("W", folder)
    server.hits.clear()
    before = os.stat(folder).st_mtime_ns

    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "mkdir", refuse)
    monkeypatch.setattr(socket, "socket", refuse)
    assert locate_checkpoint("W", folder) == path
    assert server.hits == []
    assert os.stat(folder).st_mtime_ns == before


def test_a_damaged_file_in_the_cache_is_kept_until_it_is_replaced(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder.mkdir(parents=True)
    (folder / "w.pt").write_bytes(b"junk")
    monkeypatch.setattr(clip.checkpoint, "CHECKPOINTS", {"W": checkpoint(server.url("missing"))})
    with pytest.raises(DownloadError) as caught:
        locate_checkpoint("W", folder)
    assert caught.value.sha256 == hashlib.sha256(b"junk").hexdigest()
    assert (folder / "w.pt").read_bytes() == b"junk"
    monkeypatch.setattr(clip.checkpoint, "CHECKPOINTS", {"W": checkpoint(server.url("good"))})
    assert is_good(locate_checkpoint("W", folder))


def test_something_else_under_the_final_name(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "w.pt").mkdir(parents=True)
    monkeypatch.setattr(clip.checkpoint, "CHECKPOINTS", {"W": checkpoint(server.url("good"))})
    with pytest.raises(clip.CheckpointError, match="not a regular file"):
        locate_checkpoint("W", folder)
    assert server.hits == []


def test_where_the_cache_is(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(clip.checkpoint, "CHECKPOINTS", {"W": checkpoint(server.url("good"))})
    assert locate_checkpoint("W") == tmp_path / "home" / ".cache" / "clip" / "w.pt"
    monkeypatch.setenv("CLIP_CACHE", "~/weights")
    assert locate_checkpoint("W") == tmp_path / "home" / "weights" / "w.pt"
    assert locate_checkpoint("W", tmp_path / "root") == tmp_path / "root" / "w.pt"


def test_offline_no_socket_is_opened(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setenv("CLIP_OFFLINE", "1")
    monkeypatch.setattr(clip.checkpoint, "CHECKPOINTS", {"W": checkpoint(server.url("good"))})
    with pytest.raises(DownloadError, match="it is not there, and CLIP_OFFLINE") as caught:
        locate_checkpoint("W", folder)
    for part in (server.url("good"), str(folder / "w.pt"), SHA256, "--clip_path"):
        assert part in str(caught.value)
    assert not folder.exists()
    folder.mkdir(parents=True)
    (folder / "w.pt").write_bytes(b"junk")
    with pytest.raises(DownloadError, match="other bytes") as caught:
        locate_checkpoint("W", folder)
    assert caught.value.sha256 == hashlib.sha256(b"junk").hexdigest()
    (folder / "w.pt").write_bytes(CONTENT)
    assert locate_checkpoint("W", folder) == folder / "w.pt"


@pytest.mark.parametrize("name", ["RN50", "ViT-L/14@336px"])
def test_offline_message_of_a_real_model(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP_OFFLINE", "1")
    with pytest.raises(DownloadError) as caught:
        clip.load(name, device="cpu", download_root=folder)
    known = clip.checkpoint.CHECKPOINTS[name]
    assert f"https://openaipublic.azureedge.net/clip/models/{known.sha256}/{known.file}" in str(caught.value)
    assert str(folder / known.file) in str(caught.value)


# --- the environment


def test_proxies_come_from_the_environment(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        monkeypatch.setenv("http_proxy", f"http://127.0.0.1:{unused.getsockname()[1]}")
        with pytest.raises(DownloadError, match="no connection"):
            download(checkpoint(server.url("good")), folder, sleep=Sleeps())
        assert server.hits == []
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert is_good(download(checkpoint(server.url("good")), folder, sleep=Sleeps()))


def test_too_little_space_is_found_before_the_first_request(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = type("Usage", (), {"free": len(CONTENT) - 1})
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)
    with pytest.raises(DownloadError, match=r"cannot be stored .*make room there.*--clip_path"):
        download(checkpoint(server.url("good")), folder, sleep=Sleeps())
    assert server.hits == []
    with pytest.raises(DownloadError, match="cannot be stored"):  # the size is known from the answer only
        download(checkpoint(server.url("good"), server.url("good"), size=None), folder, sleep=Sleeps())
    assert len(server.hits) == 1


def test_a_disk_that_fills_up_ends_it(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(part: clip.checkpoint._Part, chunk: bytes) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(clip.checkpoint._Part, "append", full)
    with pytest.raises(DownloadError, match=f"{re.escape(str(folder))} .No space left on device.; make room"):
        download(checkpoint(server.url("good"), server.url("no_length")), folder, sleep=Sleeps())
    assert [mode for mode, _ in server.hits] == ["good"]
    assert os.listdir(folder) == []


def test_a_cache_that_cannot_be_written(server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setattr(clip.checkpoint, "CHECKPOINTS", {"W": checkpoint(server.url("good"))})
    with pytest.raises(DownloadError, match=r"cannot be stored in .*file.clip .*CLIP_CACHE"):
        locate_checkpoint("W", tmp_path / "file" / "clip")

    def read_only(path: Path, mode: str = "r") -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(Path, "open", read_only)
    with pytest.raises(DownloadError, match=r"Read-only file system.*CLIP_CACHE"):
        locate_checkpoint("W", tmp_path / "cache")
    assert server.hits == []


# --- several processes, and one that dies


def child(url: str, folder: Path) -> subprocess.Popen[bytes]:
    """A process of its own that downloads `w.pt`."""
    code = (
        "import sys; from pathlib import Path; from clip.checkpoint import Checkpoint, download\n"
        "url, sha256, size, folder = sys.argv[1:]\n"
        "download(Checkpoint('w.pt', sha256, (url,), int(size)), Path(folder))"
    )
    command = [sys.executable, "-W", "error", "-c", code, url, SHA256, str(len(CONTENT)), str(folder)]
    return subprocess.Popen(command, cwd=Path(clip.__file__).parents[1], stderr=subprocess.PIPE)


def test_the_final_name_never_has_unfinished_content(server: Server, folder: Path) -> None:
    seen: list[bool] = []
    done = threading.Event()

    def poll() -> None:
        while not done.wait(0.001):
            seen.append((folder / "w.pt").exists())
            if seen[-1]:
                seen[-1] = is_good(folder / "w.pt")
                return

    thread = threading.Thread(target=poll)
    thread.start()
    try:
        download(checkpoint(server.url("slow")), folder, sleep=Sleeps())
        thread.join(5)
    finally:
        done.set()
        thread.join()
    assert len(seen) > 10
    assert seen == [False] * (len(seen) - 1) + [True]


def test_killed_in_the_middle_and_started_again(server: Server, folder: Path) -> None:
    process = child(server.url("stall"), folder)
    try:
        deadline = time.monotonic() + 60
        while not any(part.stat().st_size for part in folder.glob("*.part")):
            assert process.poll() is None, process.stderr and process.stderr.read().decode()
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        process.kill()
        process.communicate()
    assert not (folder / "w.pt").exists()
    (left,) = folder.glob("w.pt.*.part")
    assert download(checkpoint(server.url("good")), folder, sleep=Sleeps()).read_bytes() == CONTENT
    assert left.exists()  # it might be that of a living process
    os.utime(left, (0, 0))
    assert is_good(download(checkpoint(server.url("good")), folder, sleep=Sleeps()))


def test_four_processes_at_once(server: Server, folder: Path) -> None:
    processes = [child(server.url("together"), folder) for _ in range(4)]
    try:
        for process in processes:
            _, stderr = process.communicate(timeout=120)
            assert process.returncode == 0, stderr.decode()
    finally:
        for process in processes:
            process.kill()
    assert is_good(folder / "w.pt")
    assert server.hits == [("together", None)] * 4
