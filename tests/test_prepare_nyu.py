"""From the .mat to the folder and to tensors: download, extraction, check, and the data set over the .mat.

The .mat of these tests has the published structure (1449 entries, transposed arrays, object references, MATLAB's user
block) and a few images with content; all others are HDF5's fill value. Tests that need few files call `extract` with
those files only, which is what the command line does with whole splits.
"""

import csv
import hashlib
import io
import os
import pickle
import random
import shutil
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image, JpegImagePlugin
from torch.utils.data import DataLoader

import eval as evaluation
from datasets import download as download_module
from datasets import prepare_nyu
from datasets.download import download, file_sha256, locked
from datasets.nyu import TEST_INDICES, DataError, NYUDepthV2, NYUMat, check_files, scan_folder
from datasets.nyu_mat import LabelledMat
from datasets.prepare_nyu import TEST_SCENES, check, extract, main, wanted_files

REPOSITORY = Path(__file__).parents[1]
NYU_CROP = (slice(56, 472), slice(60, 604))
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
WITH_CONTENT = (0, 1, 2, 8)  # 2 belongs to the train split
TOO_FAR, NOT_A_NUMBER, NEGATIVE, LARGEST = 3, 4, 5, 6  # train images with such a depth
FILLS = {"images": 120, "rawDepths": 2.5, "depths": 2.625}


def scene_names() -> list[str]:
    """A scene for each of the 1449 images, with the official numbers in the test split."""
    test = [scene for scene, count in TEST_SCENES.items() for _ in range(count)]
    random.Random(0).shuffle(test)
    scenes = ["furniture_store"] * 1449
    for index, scene in zip(TEST_INDICES, test, strict=True):
        scenes[index] = scene
    return scenes


def content(index: int) -> dict[str, np.ndarray]:
    """Arrays of one image as they stand in the .mat: images (3, 640, 480), rawDepths and depths (640, 480)."""
    rng = np.random.default_rng(index)
    blocks = np.ones((1, 40, 40), dtype=np.uint8)
    dense = rng.uniform(0.6, 9.9, (640, 480)).astype(np.float32)
    raw = np.where(rng.random((640, 480)) < 0.1, np.float32(0), dense)
    return {
        "images": np.kron(rng.integers(0, 256, (3, 16, 12), dtype=np.uint8), blocks),
        "rawDepths": raw,
        "depths": dense,
    }


def write_mat(path: Path, scenes: list[str], leave_out: str = "", **replaced: tuple[tuple[int, ...], str]) -> None:
    """Writes a .mat; `replaced` gives arrays another (shape, dtype), `leave_out` names one that is not written."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, fill in FILLS.items():
            shape, dtype = replaced.get(
                name, ((1449, 3, 640, 480), "uint8") if name == "images" else ((1449, 640, 480), "float32")
            )
            if name == leave_out:
                continue
            array = file.create_dataset(
                name, shape, dtype, chunks=(1, *shape[1:]), compression="gzip", compression_opts=1, fillvalue=fill
            )
            if name not in replaced:
                for index in WITH_CONTENT:
                    array[index] = content(index)[name]
        if not replaced and not leave_out:
            for index, depth in ((TOO_FAR, 70.0), (NOT_A_NUMBER, np.nan), (NEGATIVE, -0.5), (LARGEST, 65.535)):
                file["rawDepths"][index] = np.where(np.arange(480) == 479, np.float32(depth), np.float32(1))
        texts = file.create_group("#refs#")
        types = file.create_dataset("sceneTypes", (1, len(scenes)), h5py.ref_dtype)
        references = []
        for index, scene in enumerate(scenes):
            text = texts.create_dataset(f"s{index}", data=np.array([[ord(c)] for c in scene], dtype=np.uint16))
            references.append(text.ref)
        types[0] = np.array(references, dtype=h5py.ref_dtype)
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file")


@pytest.fixture(scope="module")
def mat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("mat") / "nyu_depth_v2_labeled.mat"
    write_mat(path, scene_names())
    return path


@pytest.fixture(scope="module")
def tree(mat: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The whole test split, written by one run of the command. Tests leave it as it is."""
    root = tmp_path_factory.mktemp("nyu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)  # 1308 of them take longer than everything else
        assert main(["--output", str(root), "--mat", str(mat), "--no_verify"]) == 0
    return root


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def copy_of(tree: Path, target: Path) -> Path:
    """A copy by hard links: write new files into it, never into its files."""
    return Path(shutil.copytree(tree, target, copy_function=os.link))


# What is written, by hand and against loops


def test_splits_are_disjoint_and_complete() -> None:
    test, train = wanted_files(["test"], dense=False), wanted_files(["train"], dense=False)
    assert len(test) == 2 * 654
    assert len(train) == 2 * 795
    assert not test & train
    assert {index for index, _ in test | train} == set(range(1449))
    assert len(wanted_files(["test", "train"], dense=True)) == 3 * 1449
    assert sum(TEST_SCENES.values()) == 654


def test_depth_is_raw_and_truncated_to_millimetres(tree: Path, mat: Path) -> None:
    scenes = scene_names()
    for index in (0, 8):
        raw = content(index)["rawDepths"]
        path = tree / "official_splits" / "test" / scenes[index] / f"sync_depth_{index:05d}.png"
        with Image.open(path) as image:
            assert image.mode == "I;16"
            written = np.array(image).tolist()
        thousand = np.float32(1000)
        for row in range(0, 480, 7):
            assert written[row] == [int(raw[column, row] * thousand) for column in range(640)]
    with LabelledMat(mat) as reader:
        assert reader.millimetres(LARGEST).max() == 65535
        assert (reader.millimetres(9) == 2500).all()  # a fill value


def test_rgb_is_black_outside_and_a_jpeg_of_quality_95(tree: Path) -> None:
    scenes = scene_names()
    for index in (0, 1):
        images = content(index)["images"]
        expected = np.zeros((480, 640, 3), dtype=np.uint8)
        for row in range(7, 474):
            for column in range(7, 632):
                expected[row, column] = images[:, column, row]
        buffer = io.BytesIO()
        Image.fromarray(expected).save(buffer, "JPEG", quality=95, subsampling=2)
        path = tree / "official_splits" / "test" / scenes[index] / f"rgb_{index:05d}.jpg"
        with Image.open(path) as image, Image.open(buffer) as reference:
            assert JpegImagePlugin.get_sampling(image) == 2  # 4:2:0
            # The standard's first luminance steps 16, 11, 10 at quality 95, which divides them by ten.
            assert image.quantization[0][:3] == [2, 1, 1]
            pixels = np.array(image)
            np.testing.assert_array_equal(pixels, np.array(reference))
        assert pixels[:, 640 - 1].max() < 40
        assert np.abs(pixels[7:474, 7:632].astype(int) - expected[7:474, 7:632]).mean() < 8


def test_train_and_dense_have_their_places(mat: Path, tmp_path: Path) -> None:
    wanted = [(index, kind) for index in (1, 2) for kind in ("rgb", "sync_depth", "sync_depth_dense")]
    assert extract(mat, tmp_path, wanted, "0") == 6
    scene = scene_names()[1]
    assert sorted(files_below(tmp_path)) == sorted(
        [
            "manifest.json",
            "train/furniture_store/rgb_00002.jpg",
            "train/furniture_store/sync_depth_00002.png",
            "train/furniture_store/dense/sync_depth_dense_00002.png",
            f"test/{scene}/rgb_00001.jpg",
            f"test/{scene}/sync_depth_00001.png",
            f"test/{scene}/dense/sync_depth_dense_00001.png",
        ]
    )
    with Image.open(tmp_path / "train/furniture_store/dense/sync_depth_dense_00002.png") as image:
        expected = (content(2)["depths"].T * np.float32(1000)).astype(np.uint16)
        np.testing.assert_array_equal(np.array(image), expected)
    assert len(scan_folder(tmp_path / "test")) == 1  # dense maps are not taken for raw ones


def test_manifest_records_every_file(tree: Path) -> None:
    folder = tree / "official_splits"
    files = files_below(folder)
    recorded = {path: sha256 for path, sha256, _ in prepare_nyu.read_manifests(folder)}
    assert len(recorded) == 1308
    assert recorded == {
        path: hashlib.sha256(data).hexdigest() for path, data in files.items() if path != "manifest.json"
    }


@pytest.mark.parametrize(("index", "text"), [(TOO_FAR, "1 to 70 m"), (NOT_A_NUMBER, "nan"), (NEGATIVE, "-0.5 to 1 m")])
def test_depth_that_16_bits_do_not_hold_is_refused(mat: Path, tmp_path: Path, index: int, text: str) -> None:
    with pytest.raises(DataError, match=rf"rawDepths of image {index} spans .*0 to 65\.535 m") as error:
        extract(mat, tmp_path, [(index, "sync_depth")], "0")
    assert text in str(error.value)
    assert not list(tmp_path.rglob("sync_depth*"))


# Interrupted, repeated, concurrent


def test_killed_and_continued_extraction_gives_the_same_bytes(mat: Path, tmp_path: Path) -> None:
    wanted = [(index, kind) for index in TEST_INDICES[:60] for kind in ("rgb", "sync_depth")]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    assert extract(mat, whole, wanted, "0") == 120
    code = (
        "import sys; from pathlib import Path; from datasets.prepare_nyu import TEST_INDICES, extract\n"
        "wanted = [(index, kind) for index in TEST_INDICES[:60] for kind in ('rgb', 'sync_depth')]\n"
        "extract(Path(sys.argv[1]), Path(sys.argv[2]), wanted, '0')"
    )
    child = subprocess.Popen([sys.executable, "-c", code, str(mat), str(killed)], cwd=REPOSITORY)
    try:
        wait_until(lambda: len(list(killed.rglob("*.png"))) >= 3)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL
    assert not (killed / "manifest.json").exists()
    done = len([path for path in files_below(killed / "test") if not Path(path).name.startswith(".")])
    assert 6 <= done < 120
    written = extract(mat, killed, wanted, "0")
    assert 120 - done <= written <= 120 - done + 1  # the last file may not have been recorded yet
    assert files_below(killed) == files_below(whole)


def test_second_run_needs_no_mat(tree: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    _, _, source = next(prepare_nyu.read_manifests(tree / "official_splits"))
    monkeypatch.setattr(prepare_nyu, "MAT_SHA256", source)
    monkeypatch.setattr(prepare_nyu, "download", None)
    assert main(["--output", str(tree), "--url", "http://127.0.0.1:9/x"]) == 0
    assert "complete already, 1308 files of 654 images" in capsys.readouterr().out


def test_only_missing_and_changed_files_are_written_again(
    tree: Path, mat: Path, tmp_path: Path, capsys: pytest.CaptureFixture
) -> None:
    root = copy_of(tree, tmp_path / "nyu")
    test = root / "official_splits" / "test"
    paths = sorted(test.rglob("*.jpg"))
    paths[0].unlink()
    half = paths[1].read_bytes()[:2000]
    paths[1].unlink()
    paths[1].write_bytes(half)
    assert main(["--output", str(root), "--mat", str(mat), "--no_verify"]) == 0
    assert "1308 files of 654 images, 2 of them written now" in capsys.readouterr().out
    assert files_below(root) == files_below(tree)


def test_files_of_another_mat_are_not_trusted(mat: Path, tmp_path: Path) -> None:
    assert extract(mat, tmp_path, [(0, "rgb")], "0") == 1
    assert extract(mat, tmp_path, [(0, "rgb")], "0") == 0
    assert extract(mat, tmp_path, [(0, "rgb")], "1") == 1


def test_half_a_journal_line_is_ignored(mat: Path, tmp_path: Path) -> None:
    (tmp_path / "manifest.part").write_bytes(b'{"path": "test/bedroom/rgb_00000.jpg", "sha')
    with pytest.raises(DataError, match=f"image {TOO_FAR}"):
        extract(mat, tmp_path, [(0, "rgb"), (TOO_FAR, "sync_depth")], "0")
    assert extract(mat, tmp_path, [(0, "rgb"), (1, "rgb")], "0") == 1  # image 0 was recorded after the half line
    assert not (tmp_path / "manifest.part").exists()


def test_second_process_is_refused(mat: Path, tmp_path: Path) -> None:
    with (
        locked(tmp_path / "manifest.part"),
        pytest.raises(DataError, match=r"manifest\.part: another process is writing it"),
    ):
        extract(mat, tmp_path, [(0, "rgb")], "0")


def test_lock_of_a_file_that_was_moved_meanwhile_is_not_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part, target = tmp_path / "x.part", tmp_path / "x"
    real, calls = download_module.fcntl.flock, []

    def finish_first(file: io.BufferedRandom, operation: int) -> None:
        if not calls:
            part.rename(target)  # the other process ends between our open and our lock
        calls.append(operation)
        real(file, operation)

    monkeypatch.setattr(download_module.fcntl, "flock", finish_first)
    with locked(part) as file:
        file.write(b"new")
    assert len(calls) == 2
    assert target.read_bytes() == b""
    assert part.read_bytes() == b"new"


def test_full_disk_is_one_sentence(
    mat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def full(_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    assert main(["--output", str(tmp_path / "nyu"), "--mat", str(mat), "--no_verify"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("error: ")
    assert "No space left on device" in error
    assert not list(tmp_path.rglob("rgb_*"))


# A .mat that is not what it should be


def test_truncated_mat(mat: Path, tmp_path: Path) -> None:
    data = mat.read_bytes()
    (tmp_path / "half.mat").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match=r"half\.mat: truncated"):
        NYUMat(tmp_path / "half.mat", NYU_CROP, MEAN, STD)


@pytest.mark.parametrize("data", [b"", b"<html>not found</html>", b"MATLAB 5.0 MAT-file" + bytes(600)])
def test_file_that_is_not_hdf5(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "x.mat").write_bytes(data)
    with pytest.raises(DataError, match=r"x\.mat: not a readable MATLAB v7\.3"):
        LabelledMat(tmp_path / "x.mat")
    with pytest.raises(DataError, match="no such file"):
        LabelledMat(tmp_path / "y.mat")


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("images", (1449, 640, 480, 3), "uint8"),
        ("images", (1448, 3, 640, 480), "uint8"),
        ("rawDepths", (1449, 480, 640), "float32"),
        ("rawDepths", (1449, 640, 480), "float64"),
        ("depths", (1449, 640, 480), "uint16"),
    ],
)
def test_other_shape_or_dtype(tmp_path: Path, name: str, shape: tuple[int, ...], dtype: str) -> None:
    write_mat(tmp_path / "x.mat", ["study"], **{name: (shape, dtype)})
    with pytest.raises(DataError, match=rf"x\.mat: {name} is \(1.*\) {dtype}, expected \(1449, "):
        LabelledMat(tmp_path / "x.mat")


def test_missing_array_and_wrong_scene_types(tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    write_mat(path, ["study"], leave_out="rawDepths")
    with pytest.raises(DataError, match="holds no array rawDepths"):
        LabelledMat(path)

    def scenes_of(path: Path) -> list[str]:
        with LabelledMat(path) as reader:
            return reader.scenes()

    plain = {"depths": ((1449, 640, 480), "float32")}  # the published layout, without content
    write_mat(path, ["study"] * 1448, **plain)
    with pytest.raises(DataError, match=r"sceneTypes is \(1, 1448\)"):
        scenes_of(path)
    scenes = ["study"] * 1449
    for wrong in ("../x", "a b", ""):
        scenes[7] = wrong
        write_mat(path, [*scenes[:7], wrong or "\0", *scenes[8:]], **plain)
        with pytest.raises(DataError, match="scene type of image 7 is"):
            scenes_of(path)
    with h5py.File(path, "r+") as file:
        file["sceneTypes"][0, 7] = h5py.Reference()
    with pytest.raises(DataError, match="scene type of image 7 cannot be read"):
        scenes_of(path)
    with h5py.File(path, "r+") as file:
        del file["sceneTypes"]
        file["sceneTypes"] = np.zeros((1, 1449))
    with pytest.raises(DataError, match=r"sceneTypes is \(1, 1449\) float64, expected 1449 object references"):
        scenes_of(path)


def test_damaged_chunk_names_the_image(mat: Path, tmp_path: Path) -> None:
    path = Path(shutil.copy(mat, tmp_path))
    with h5py.File(path) as file:
        chunk = file["images"].id.get_chunk_info_by_coord((8, 0, 0, 0))
    with path.open("r+b") as file:
        file.seek(512 + chunk.byte_offset + chunk.size // 2)
        byte = file.read(1)[0]
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte ^ 16]))
    with pytest.raises(DataError, match="images of image 8 is damaged"):
        extract(path, tmp_path / "out", [(0, "rgb"), (8, "rgb")], "0")


def test_own_mat_is_verified(
    mat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    arguments = ["--output", str(tmp_path / "nyu"), "--mat", str(mat)]
    assert main(arguments) == 1
    assert "expected 2,972,037,809 bytes" in capsys.readouterr().err
    monkeypatch.setattr(prepare_nyu, "MAT_SIZE", mat.stat().st_size)
    assert main(arguments) == 1
    assert f"SHA-256 {file_sha256(mat)}, expected SHA-256 2d724b0c" in capsys.readouterr().err
    assert main(["--output", str(tmp_path / "nyu"), "--mat", str(tmp_path / "none.mat")]) == 1
    assert "none.mat: no such file" in capsys.readouterr().err
    assert not (tmp_path / "nyu").exists()
    monkeypatch.setattr(prepare_nyu, "MAT_SHA256", file_sha256(mat))
    assert prepare_nyu.obtain(mat, ["http://127.0.0.1:9/x"]) == mat  # in place and right: no connection


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--output", "x", "--check", "y"],
        ["--output", "x", "--no_verify"],
        ["--check", "x", "--dense"],
        ["--output", "x", "--url", "file:///etc/passwd"],
        ["--output", "x", "--splits", "val"],
    ],
)
def test_wrong_arguments(arguments: list[str], capsys: pytest.CaptureFixture) -> None:
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "usage: python -m datasets.prepare_nyu" in capsys.readouterr().err


# --check


def test_check_accepts_a_whole_folder(tree: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--check", str(tree)]) == 0
    assert "all 654 images of the official test split, 1308 files, all decoded" in capsys.readouterr().out


def test_check_lists_everything_missing_or_odd(mat: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    indices = (0, 1, 8, 13, 14, 15)
    folder = tmp_path / "official_splits"
    extract(mat, folder, [(index, kind) for index in indices for kind in ("rgb", "sync_depth")], "0")
    scenes = scene_names()
    rgb, depth = (
        {index: folder / "test" / scenes[index] / name.format(index) for index in indices}
        for name in ("rgb_{:05d}.jpg", "sync_depth_{:05d}.png")
    )
    rgb[0].write_bytes(rgb[0].read_bytes()[:5000])
    Image.fromarray(np.full((480, 640), 200, dtype=np.uint8)).save(depth[1])
    Image.fromarray(np.zeros((480, 640), dtype=np.uint16)).save(depth[8])
    depth[13].unlink()
    rgb[14].rename(rgb[14].with_name("rgb_00002.jpg"))
    depth[14].rename(depth[14].with_name("sync_depth_00002.png"))
    (folder / "test" / "garage").mkdir()
    for path in (rgb[15], depth[15]):
        path.rename(folder / "test" / "garage" / path.name)
    bedrooms = [scenes[index] for index in (0, 1, 8, 13, 14)].count("bedroom")
    assert main(["--check", str(tmp_path)]) == 1
    error = capsys.readouterr().err
    for text in (
        f"{rgb[0]}: truncated or damaged",
        f"{depth[1]}: has mode L",
        f"{depth[8]}: all its pixels are 0",
        f"{rgb[13]}: its depth map sync_depth_00013.png is missing",
        "649 of the 654 test images are missing: 14, 16, 17, 20, 27,",
        "1 images are not of the test split: 2\n",
        f"{folder / 'test' / 'garage'}: 1 images, expected 0",
        f"{folder / 'test' / 'bedroom'}: {bedrooms} images, expected 191",
        f"{depth[8]}: missing or changed since manifest.json was written",
    ):
        assert text in error


def test_check_of_no_folder(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["--check", str(tmp_path / "none")]) == 1
    assert "no such folder" in capsys.readouterr().err
    with pytest.raises(DataError, match="654 of the 654 test images are missing"):
        check(tmp_path)


# The data set over the .mat


def test_mat_and_folder_give_the_same_samples(tree: Path, mat: Path) -> None:
    pairs = scan_folder(tree)
    check_files(pairs)
    folder = NYUDepthV2(pairs, NYU_CROP, MEAN, STD)
    straight = NYUMat(mat, NYU_CROP, MEAN, STD)
    assert len(straight) == len(folder) == 654
    assert straight.names == [pair.name for pair in pairs]
    assert straight.scenes == [pair.scene for pair in pairs]
    assert straight.indices == [pair.index for pair in pairs]
    for item in [straight.indices.index(index) for index in (0, 1, 8, 13)] + [0, 653]:
        expected, found = folder[item], straight[item]
        assert found.image.shape == (3, 416, 544)
        assert found.depth.shape == (1, 480, 640)
        assert torch.equal(found.image, expected.image)
        assert torch.equal(found.depth, expected.depth)
        assert found[2:] == expected[2:]
    assert straight[-1].index == straight.indices[-1]


@pytest.mark.parametrize(("method", "workers"), [("fork", 2), ("spawn", 1)])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_workers_read_the_mat(mat: Path, method: str, workers: int) -> None:
    dataset = NYUMat(mat, NYU_CROP, MEAN, STD, indices=(0, 1, 8, 13))
    alone = [dataset[item] for item in range(4)]  # the parent's handle is open when the workers start
    loader = DataLoader(dataset, batch_size=1, num_workers=workers, multiprocessing_context=method)
    for expected, found in zip(alone, loader, strict=True):
        assert torch.equal(found.image[0], expected.image)
        assert torch.equal(found.depth[0], expected.depth)
        assert list(found.name) == [expected.name]
    assert torch.equal(dataset[0].image, alone[0].image)


def test_mat_and_folder_are_evaluated_to_the_same_figures(
    tree: Path, mat: Path, tiny_checkpoint: Path, tmp_path: Path
) -> None:
    assert NYUMat(mat, NYU_CROP, MEAN, STD).indices[0] in WITH_CONTENT  # so that --limit 2 sees more than fill values
    for data, output in ((tree, "folder"), (mat, "mat")):
        flags = ["--data_path", str(data), "--clip_path", str(tiny_checkpoint), "--limit", "2"]
        assert evaluation.main([*flags, "--device", "cpu", "--output", str(tmp_path / output)]) == 0
    folder, single = ((tmp_path / output / "per_image.csv").read_text() for output in ("folder", "mat"))
    assert folder == single
    assert len({row["image"] for row in csv.DictReader(folder.splitlines())}) == 2


def test_pickle_leaves_the_handle_behind(mat: Path) -> None:
    dataset = NYUMat(mat, NYU_CROP, MEAN, STD, indices=(0,))
    sample = dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))
    assert torch.equal(copy[0].image, sample.image)
    assert len(pickle.dumps(dataset)) < 10_000


# Download, from a server that misbehaves


PAYLOAD = random.Random(1).randbytes(3 * 2**18)
PAYLOAD_SHA256 = hashlib.sha256(PAYLOAD).hexdigest()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.requests: list[tuple[str, str | None]] = []  # path, Range
        self.release = threading.Event()

    def url(self, mode: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{mode}"

    def handle_error(self, request: object, client_address: object) -> None:
        """Clients that leave early are part of the tests."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, format: str, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        mode, asked = self.path[1:], self.headers["Range"]
        first_time = mode not in [path for path, _ in self.server.requests]
        self.server.requests.append((mode, asked))
        start = int(asked.removeprefix("bytes=").rstrip("-")) if asked and mode != "norange" else 0
        body = PAYLOAD
        if mode == "missing" or (mode == "busy" and first_time):
            self.send_error(404 if mode == "missing" else 503)
            return
        if mode == "wrong":
            body = body[:1000] + bytes([body[1000] ^ 1]) + body[1001:]
        if mode == "short":
            body = body[:-10]
        if mode == "redirect":
            self.send_response(302)
            self.send_header("Location", self.server.url("good"))
            self.end_headers()
            return
        if mode == "html":
            self.send_response(200)
            self.send_header("Content-Type", "text/html; charset=utf-8")
            self.end_headers()
            self.wfile.write(b"<html>moved</html>")
            return
        self.send_response(206 if asked and mode != "norange" else 200)
        if asked and mode != "norange":
            shown = start + 5 if mode == "badrange" else start
            self.send_header("Content-Range", f"bytes {shown}-{len(body) - 1}/{len(body)}")
        if mode != "nolength":
            self.send_header("Content-Length", str(len(body) - start))
        self.end_headers()
        rest = body[start:]
        if mode == "slow":
            for position in range(0, len(rest), 2**14):
                self.wfile.write(rest[position : position + 2**14])
                if self.server.release.wait(0.05):
                    return
            return
        cut = mode in ("cut", "always_cut", "stall", "reset", "badrange") and (first_time or mode == "always_cut")
        self.wfile.write(rest[: len(rest) // 2] if cut else rest)
        if cut and mode == "stall":
            self.server.release.wait(10)
        if cut and mode == "reset":
            self.wfile.flush()
            time.sleep(0.1)  # so that what was sent arrives before the reset drops it
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.release.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def fetch(server: Server, tmp_path: Path) -> Callable[..., list[float]]:
    """`fetch("cut", "good")` downloads `tmp_path`/x from these modes and returns the seconds it would have slept."""

    def run(*modes: str, timeout: float = 5) -> list[float]:
        slept: list[float] = []
        urls = [server.url(mode) for mode in modes]
        download(urls, tmp_path / "x", len(PAYLOAD), PAYLOAD_SHA256, timeout=timeout, sleep=slept.append)
        assert files_below(tmp_path) == {"x": PAYLOAD}
        return slept

    return run


def wait_until(reached: Callable[[], bool], seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not reached():
        assert time.monotonic() < end, "not reached in time"
        time.sleep(0.01)


HALF = f"bytes={len(PAYLOAD) // 2}-"


@pytest.mark.parametrize(
    ("modes", "requests", "slept"),
    [
        (["good"], [("good", None)], []),
        (["nolength"], [("nolength", None)], []),
        (["redirect"], [("redirect", None), ("good", None)], []),
        (["missing", "good"], [("missing", None), ("good", None)], []),
        (["busy"], [("busy", None), ("busy", None)], [1.0]),
        (["cut"], [("cut", None), ("cut", HALF)], [1.0]),
        (["reset"], [("reset", None), ("reset", HALF)], [1.0]),
        (["wrong", "good"], [("wrong", None), ("good", None)], []),
        (["short", "html", "good"], [("short", None), ("html", None), ("good", None)], []),
        (["badrange", "good"], [("badrange", None), ("badrange", HALF), ("good", HALF)], [1.0]),
    ],
)
def test_download_ends_with_the_right_bytes(
    server: Server, fetch: Callable[..., list[float]], modes: list[str], requests: list, slept: list[float]
) -> None:
    assert fetch(*modes) == slept
    assert server.requests == requests


def test_stalled_download_goes_on(server: Server, fetch: Callable[..., list[float]]) -> None:
    assert fetch("stall", timeout=0.3) == [1.0]
    assert server.requests == [("stall", None), ("stall", HALF)]


@pytest.mark.parametrize(
    ("mode", "requests"),
    [
        ("good", [("good", "bytes=1000-")]),
        ("norange", [("norange", "bytes=1000-")]),
        ("wrong", [("wrong", "bytes=1000-"), ("wrong", None), ("good", None)]),
    ],
)
def test_download_continues_what_an_earlier_run_left(
    server: Server, fetch: Callable[..., list[float]], tmp_path: Path, mode: str, requests: list
) -> None:
    (tmp_path / "x.part").write_bytes(PAYLOAD[:1000])
    fetch(mode, "good")
    assert server.requests == requests


@pytest.mark.parametrize("left", [b"junk" * 10, PAYLOAD + b"more", PAYLOAD[:-1] + b"?"])
def test_wrong_bytes_of_an_earlier_run_are_dropped(
    server: Server, fetch: Callable[..., list[float]], tmp_path: Path, left: bytes
) -> None:
    (tmp_path / "x.part").write_bytes(left)
    fetch("good")
    assert server.requests[-1] == ("good", None)
    assert len(server.requests) <= 2


def test_whole_part_needs_no_request(server: Server, fetch: Callable[..., list[float]], tmp_path: Path) -> None:
    (tmp_path / "x.part").write_bytes(PAYLOAD)
    fetch("good")
    assert server.requests == []


def test_failure_lists_every_address_and_keeps_what_arrived(
    server: Server, fetch: Callable[..., list[float]], tmp_path: Path
) -> None:
    (tmp_path / "x").write_bytes(b"old")
    with pytest.raises(DataError) as error:
        fetch("missing", "wrong", "short", "html", "always_cut")
    lines = str(error.value).splitlines()
    assert lines[0] == f"{tmp_path / 'x'}: not downloaded"
    assert [line.split(": ", 1)[1] for line in lines[1:]] == [
        "HTTP 404 Not Found",
        f"sent other bytes: SHA-256 {lines[2].split()[5].rstrip(',')}, expected {PAYLOAD_SHA256}",
        f"offers {len(PAYLOAD) - 10} bytes, expected {len(PAYLOAD)}: another file",
        "sent a web page",
        f"ended after {len(PAYLOAD) * 15 // 16:,} of {len(PAYLOAD):,} bytes",
    ]
    assert files_below(tmp_path) == {"x": b"old", "x.part": PAYLOAD[: len(PAYLOAD) * 15 // 16]}
    with pytest.raises(DataError):
        fetch("missing")
    assert [path for path, _ in server.requests].count("missing") == 2  # once in each call


def test_refused_connection(tmp_path: Path, server: Server) -> None:
    slept: list[float] = []
    with pytest.raises(DataError, match="Connection refused"):
        download(["http://127.0.0.1:1/x"], tmp_path / "x", 10, "0", sleep=slept.append)
    assert slept == [1.0, 2.0, 4.0]
    assert files_below(tmp_path) == {}


def test_killed_download_is_continued_and_leaves_no_lock(server: Server, tmp_path: Path) -> None:
    part = tmp_path / "x.part"
    code = (
        "import sys; from pathlib import Path; from datasets.download import download\n"
        "download([sys.argv[1]], Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4])"
    )
    arguments = [server.url("slow"), str(tmp_path / "x"), str(len(PAYLOAD)), PAYLOAD_SHA256]
    child = subprocess.Popen([sys.executable, "-c", code, *arguments], cwd=REPOSITORY)
    try:
        wait_until(lambda: part.exists() and part.stat().st_size > 0)
        with pytest.raises(DataError, match=r"x\.part: another process is writing it"):
            download([server.url("good")], tmp_path / "x", len(PAYLOAD), PAYLOAD_SHA256)
    finally:
        child.kill()
    assert child.wait() == -signal.SIGKILL
    assert not (tmp_path / "x").exists()
    left = part.stat().st_size
    assert 0 < left < len(PAYLOAD)
    download([server.url("good")], tmp_path / "x", len(PAYLOAD), PAYLOAD_SHA256)
    assert server.requests[-1] == ("good", f"bytes={left}-")
    assert files_below(tmp_path) == {"x": PAYLOAD}


def test_disk_space_is_looked_at_first(
    server: Server, fetch: Callable[..., list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10, 5, 5))
    with pytest.raises(DataError, match="more bytes are needed, 5 are free"):
        fetch("good")
    assert server.requests == []


def test_disk_that_fills_up_ends_the_download(
    server: Server, fetch: Callable[..., list[float]], monkeypatch: pytest.MonkeyPatch
) -> None:
    real = download_module.write

    def write_to_full_disk(file: io.BufferedRandom, block: bytes) -> None:
        with open("/dev/full", "r+b", buffering=0) as full:
            real(full, block)

    monkeypatch.setattr(download_module, "write", write_to_full_disk)
    with pytest.raises(DataError, match="No space left on device"):
        fetch("good", "good")
    assert len(server.requests) == 1  # another address would not help


def test_https_does_not_lead_to_http() -> None:
    class Response:
        url, status, headers = "http://host/x", 200, None

    with pytest.raises(download_module.AddressError, match="which is not https"):
        download_module.first_byte(Response(), "https://host/x", 0, 10)


def test_folder_and_part_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(DataError, match="cannot be written"):
        download([], tmp_path / "file" / "x", 10, "0")
    (tmp_path / "y").mkdir()
    with pytest.raises(DataError, match="not a file"):
        download([], tmp_path / "y", 10, "0")


def test_command_downloads_the_mat_and_says_how_to_bring_it(
    server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    assert main(["--output", str(tmp_path), "--url", server.url("missing"), server.url("short")]) == 1
    error = capsys.readouterr().err
    for text in ("HTTP 404", "another file", "down at times", "--mat", "--url", "2,972,037,809", "2d724b0c0ab358aa"):
        assert text in error
    assert files_below(tmp_path) == {}
    monkeypatch.setattr(prepare_nyu, "MAT_SIZE", len(PAYLOAD))
    monkeypatch.setattr(prepare_nyu, "MAT_SHA256", PAYLOAD_SHA256)
    (tmp_path / "nyu_depth_v2_labeled.mat").write_bytes(b"half of it, from a browser")
    assert main(["--output", str(tmp_path), "--url", server.url("missing"), server.url("good")]) == 1
    captured = capsys.readouterr()
    assert "It is replaced once the right file has been downloaded" in captured.out
    assert "Downloading nyu_depth_v2_labeled.mat (0.00 GB)" in captured.out
    assert "not a readable MATLAB v7.3" in captured.err  # the payload of these tests is no .mat
    assert (tmp_path / "nyu_depth_v2_labeled.mat").read_bytes() == PAYLOAD
