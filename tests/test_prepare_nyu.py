"""prepare_nyu: from the .mat, downloaded or brought, to the folder."""

import errno
import hashlib
import re
from pathlib import Path
from typing import BinaryIO

import pytest

import download
from datasets import prepare_nyu
from datasets.prepare_nyu import MAT_NAME, main
from download import write_whole
from tests.conftest import SCENES, SHA256, SIZE, TEN_MINUTES, Server, write_mat


@pytest.fixture(scope="module")
def mat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mat(tmp_path_factory.mktemp("mat") / MAT_NAME, SCENES)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if there were only the first 15 images: 0, 1, 8, 13, 14 of the test split, of the others some unusable."""
    monkeypatch.setattr(prepare_nyu, "NUM_IMAGES", 15)


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_places_of_files(mat: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    flags = ["--output", str(tmp_path), "--dense", "--mat", str(mat), "--no_verify"]
    assert main(flags) == 0
    assert capsys.readouterr().err == f"{tmp_path / 'official_splits'}: complete, 15 files written now\n"
    names = ("rgb_{:05d}.jpg", "sync_depth_{:05d}.png", "dense/sync_depth_dense_{:05d}.png")
    assert sorted(files_below(tmp_path)) == sorted(
        f"official_splits/test/{SCENES[index]}/{name.format(index)}" for index in (0, 1, 8, 13, 14) for name in names
    )


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), 1, r".*\.jpg: No space left on device; make room"),
        (KeyboardInterrupt(), 130, "interrupted; run the same command again"),
    ],
)
def test_stopped_extraction_says_so_and_goes_on(mat, tmp_path, monkeypatch, capsys, error, code, text) -> None:
    flags = ["--mat", str(mat), "--no_verify", "--output"]
    assert main([*flags, str(tmp_path / "whole")]) == 0

    def stop(file: BinaryIO) -> None:
        file.write(b"half")
        raise error

    writers = iter([None] * 6 + [stop])
    with monkeypatch.context() as patched:
        patched.setattr(prepare_nyu, "write_whole", lambda path, write: write_whole(path, next(writers) or write))
        assert main([*flags, str(tmp_path / "stopped")]) == code
    assert re.search(f"python -m datasets.prepare_nyu: {text}", capsys.readouterr().err)
    assert len(files_below(tmp_path / "stopped")) == 6
    assert main([*flags, str(tmp_path / "stopped")]) == 0
    assert "complete, 4 files written now" in capsys.readouterr().err
    assert files_below(tmp_path / "stopped") == files_below(tmp_path / "whole")


def test_own_mat_is_verified(mat, tmp_path, monkeypatch, capsys) -> None:
    flags = ["--output", str(tmp_path / "nyu"), "--download_only", "--mat"]
    assert main([*flags, str(mat)]) == 2
    assert f"{mat}: SHA-256 is not 2d724b0c" in capsys.readouterr().err
    monkeypatch.setattr(prepare_nyu, "MAT_SHA256", hashlib.sha256(mat.read_bytes()).hexdigest())
    assert main([*flags, str(mat)]) == 0
    assert f"{mat}: complete" in capsys.readouterr().err
    assert main([*flags, str(tmp_path / "none.mat")]) == 2
    assert "none.mat: no such file" in capsys.readouterr().err
    assert not (tmp_path / "nyu").exists()


def test_the_mat_is_downloaded_or_it_is_said_how_to_bring_it(tmp_path, monkeypatch, capsys) -> None:
    flags = ["--output", str(tmp_path), "--download_only", "--url"]
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "TIMEOUT", TEN_MINUTES)
    with Server() as server:
        assert main([*flags, server.url("missing"), server.url("longer"), "--verbose"]) == 1
        verbose = capsys.readouterr().err
        for text in (f"{server.url('missing')}: HTTP 404", f"{server.url('longer')}: offers", "expected 2,972,037,809"):
            assert text in verbose
        assert main([*flags, server.url("missing")]) == 1
        error = capsys.readouterr().err
        assert f"{tmp_path / MAT_NAME}: no address gave it: HTTP 404 Not Found; " in error
        assert error.endswith("or bring the file (docs/data.md)\n")
        assert files_below(tmp_path) == {}
        monkeypatch.setattr(prepare_nyu, "MAT_SIZE", SIZE)
        monkeypatch.setattr(prepare_nyu, "MAT_SHA256", SHA256)
        (tmp_path / MAT_NAME).write_bytes(b"half of it, from a browser")
        assert main([*flags, server.url("good")]) == 0
        assert capsys.readouterr().err.endswith(f"{MAT_NAME}: complete\n")
        hits = len(server.hits)
        assert main([*flags, server.url("good")]) == 0
        assert len(server.hits) == hits
