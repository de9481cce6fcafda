"""The reader of the .mat, the data set over it, and prepare_nyu, which downloads it and writes files."""

import errno
import io
import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, JpegImagePlugin

import download
from calculate_error import NYU
from datasets import DataError, prepare_nyu
from datasets.nyu import open_nyu
from datasets.nyu_mat import MAT_NAME, LabelledMat
from datasets.prepare_nyu import main
from download import file_sha256, write_whole
from tests import conftest
from tests.conftest import SCENES, SHA256, SIZE, Server, child, mat_content, write_mat


@pytest.fixture(scope="module")
def mat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mat(tmp_path_factory.mktemp("mat") / MAT_NAME, SCENES)


def test_depth_is_raw_and_truncated_to_millimetres(mat):
    def millimetres(index: int, *name: str) -> np.ndarray:
        with Image.open(io.BytesIO(reader.png(index, *name))) as image:
            assert image.mode == "I;16"
            return np.array(image)

    with LabelledMat(mat) as reader:
        raw = mat_content(8)["rawDepths"]
        assert millimetres(8)[7].tolist() == [int(raw[column, 7] * np.float32(1000)) for column in range(640)]
        dense = mat_content(2)["depths"].T * np.float32(1000)
        np.testing.assert_array_equal(millimetres(2, "depths"), dense.astype(np.uint16))
        assert millimetres(conftest.LARGEST).max() == 65535
        assert (millimetres(9) == 2500).all()  # a fill value


def test_rgb_is_black_outside_and_a_jpeg_of_quality_95(mat):
    expected = np.zeros((480, 640, 3), dtype=np.uint8)
    expected[7:474, 7:632] = mat_content(1)["images"].transpose(2, 1, 0)[7:474, 7:632]
    Image.fromarray(expected).save(buffer := io.BytesIO(), "JPEG", quality=95, subsampling=2)
    with LabelledMat(mat) as reader, Image.open(io.BytesIO(reader.jpeg(1))) as image, Image.open(buffer) as reference:
        assert JpegImagePlugin.get_sampling(image) == 2  # 4:2:0
        # The standard's first luminance steps 16, 11, 10 at quality 95, which divides them by ten.
        assert image.quantization[0][:3] == [2, 1, 1]
        np.testing.assert_array_equal(np.array(image), np.array(reference))


def test_mat_and_folder_give_the_same_samples(mat, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_nyu, "NUM_IMAGES", 15)  # of these, 0, 1, 8, 13, 14 are of the test split
    assert prepare_nyu.extract(mat, tmp_path, ["test"], dense=False) == 10
    folder, straight = (open_nyu(path, NYU) for path in (tmp_path, mat.parent))
    assert (len(straight), straight.official, straight.clustered_by) == (654, True, "captures")
    assert straight.clusters == [conftest.CAPTURES[index] for index in straight.indices] != sorted(straight.clusters)
    assert straight.sha256 == file_sha256(mat) != folder.sha256
    assert sorted(folder.indices) == [0, 1, 8, 13, 14]
    for item, index in enumerate(folder.indices):
        place = straight.indices.index(index)
        assert straight.names[place] == folder.names[item]
        assert straight.image_sha256(place) == folder.image_sha256(item)
        np.testing.assert_array_equal(straight.pixels(place), folder.pixels(item))
        assert torch.equal(straight.depth(place), folder.depth(item))


def test_depth_that_16_bits_do_not_hold_is_refused(mat):
    with LabelledMat(mat) as reader:
        for kind, text in (("TOO_FAR", "1 to 70 m"), ("NOT_A_NUMBER", "nan"), ("NEGATIVE", "-0.5 to 1 m")):
            index = getattr(conftest, kind)
            with pytest.raises(DataError, match=rf"rawDepths of image {index} .* spans .*{text}.*0 to 65\.535 m"):
                reader.png(index)


def test_what_is_no_mat_is_refused(mat, tmp_path):
    path = tmp_path / "x.mat"
    os.mkfifo(path)
    with pytest.raises(DataError, match=r"x\.mat: its HDF5 cannot be used \(not a regular file\)"):
        open_nyu(path, NYU)
    path.unlink()
    for content, problem in (
        (b"<html>not found</html>", "signature"),
        (mat.read_bytes()[: mat.stat().st_size // 2], "truncated"),
        (b"", "is empty"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"x\.mat: its HDF5 cannot be used .*{problem}"):
            open_nyu(path, NYU)
    with pytest.raises(DataError, match=r"--list_file names files of a folder, but --data_path is .*x\.mat; drop one"):
        open_nyu(path, NYU, tmp_path / "list.txt")


def test_another_layout_and_wrong_names_are_refused(tmp_path):
    path = tmp_path / "x.mat"
    for name, shape, dtype in (
        ("images", (1449, 640, 480, 3), "uint8"),
        ("depths", (1448, 640, 480), "float32"),
        ("rawDepths", (1449, 640, 480), "float64"),
    ):
        write_mat(path, ["study"], **{name: (shape, dtype)})
        with pytest.raises(
            DataError, match=rf"x\.mat: {name} cannot be used .{re.escape(f'{shape} {dtype}')}, expected"
        ):
            LabelledMat(path)
        path.unlink()
    names = ["study"] * 7 + ["../x"] + ["study"] * 1441
    write_mat(path, names, names[1:], depths=((1449, 640, 480), "float32"))  # without content
    with LabelledMat(path) as reader:
        for array, problem in (("sceneTypes", r"\['../x'\] among them"), ("scenes", "1448 names")):
            with pytest.raises(DataError, match=f"{array} cannot be used .*{problem}"):
                reader.names(array)


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_stopped_extraction_says_so_and_goes_on(mat, tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(prepare_nyu, "NUM_IMAGES", 15)
    flags = ["--mat", str(mat), "--no_verify", "--dense", "--output"]
    assert main([*flags, str(tmp_path / "whole")]) == 0
    whole = files_below(tmp_path / "whole")
    names = ("rgb_{:05d}.jpg", "sync_depth_{:05d}.png", "dense/sync_depth_dense_{:05d}.png")
    places = [(f"official_splits/test/{SCENES[i]}", i) for i in (0, 1, 8, 13, 14)]
    assert whole.keys() == {f"{folder}/{name.format(i)}" for folder, i in places for name in names}

    def write_some(path: Path, write: Callable) -> None:
        if error := stops.pop(len(files_below(tmp_path / "stopped")), None):
            raise error
        write_whole(path, write)

    monkeypatch.setattr(prepare_nyu, "write_whole", write_some)
    stops = {6: OSError(errno.ENOSPC, "No space left on device", "x.jpg"), 8: KeyboardInterrupt()}
    for there, code, text in (
        (6, 1, "x.jpg: No space left on device; make room or choose another folder\n"),
        (8, 130, "interrupted; run the same command again to go on\n"),
        (15, 0, "complete, 7 files written now\n"),
    ):
        assert main([*flags, str(tmp_path / "stopped")]) == code
        assert capsys.readouterr().err.endswith(text)
        assert len(files_below(tmp_path / "stopped")) == there
    assert files_below(tmp_path / "stopped") == whole


def test_where_nothing_is_installed_it_ends_with_a_sentence() -> None:
    done = child("-S", "-m", "datasets.prepare_nyu", "--help")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert done.stderr.startswith("torch is not installed in this Python; activate the environment")


def test_the_mat_is_verified_and_downloaded_or_it_is_said_how_to_bring_it(mat, tmp_path, monkeypatch, capsys) -> None:
    flags = ["--output", str(tmp_path), "--download_only", "--verbose"]
    assert main([*flags, "--mat", str(tmp_path / "none.mat")]) == main([*flags, "--mat", str(mat)]) == 2
    err = capsys.readouterr().err
    assert "none.mat: no such file" in err
    assert f"{mat}: is not {MAT_NAME} as published, of SHA-256 2d724b0c" in err
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "TIMEOUT", conftest.TEN_MINUTES)
    with Server() as server:
        assert main([*flags, "--url", server.url("missing"), server.url("longer")]) == 1
        first, *tried = capsys.readouterr().err.splitlines()[1:]
        assert f"{tmp_path / MAT_NAME}: no address gave it: HTTP 404 Not Found" in first
        assert first.endswith("or bring the file (docs/data.md)")
        assert tried[0] == f"  {server.url('missing')}: HTTP 404 Not Found"
        assert re.search(rf"{server.url('longer')}: offers .*expected 2,972,037,809", tried[1])
        assert files_below(tmp_path) == {}
        monkeypatch.setattr(prepare_nyu, "MAT_SIZE", SIZE)
        monkeypatch.setattr(prepare_nyu, "MAT_SHA256", SHA256)
        (tmp_path / MAT_NAME).write_bytes(b"half of it, from a browser")
        for _ in range(2):
            assert main([*flags, "--url", server.url("good")]) == 0
            assert capsys.readouterr().err.endswith(f"{MAT_NAME}: complete\n")
        assert len(server.hits) == 3
