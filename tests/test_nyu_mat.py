"""The reader of the .mat, and the data set over it."""

import io
import os
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image, JpegImagePlugin

from calculate_error import NYU
from datasets import DataError, prepare_nyu
from datasets.nyu import open_nyu
from datasets.nyu_mat import MAT_NAME, LabelledMat
from monoclip import PAPER
from tests.conftest import CAPTURES, LARGEST, NEGATIVE, NOT_A_NUMBER, SCENES, TOO_FAR, mat_content, write_mat


@pytest.fixture(scope="module")
def mat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mat(tmp_path_factory.mktemp("mat") / MAT_NAME, SCENES)


def test_depth_is_raw_and_truncated_to_millimetres(mat):
    with LabelledMat(mat) as reader:
        for index in (0, 8):
            raw, found = mat_content(index)["rawDepths"], reader.millimetres(index).tolist()
            assert found[7] == [int(raw[column, 7] * np.float32(1000)) for column in range(640)]
            with Image.open(io.BytesIO(reader.png(index))) as image:
                assert image.mode == "I;16"
                assert np.array(image).tolist() == found
        expected = (mat_content(2)["depths"].T * np.float32(1000)).astype(np.uint16)
        np.testing.assert_array_equal(reader.millimetres(2, "depths"), expected)
        assert reader.millimetres(LARGEST).max() == 65535
        assert (reader.millimetres(9) == 2500).all()  # a fill value


def test_rgb_is_black_outside_and_a_jpeg_of_quality_95(mat):
    images = mat_content(1)["images"]
    expected = np.zeros((480, 640, 3), dtype=np.uint8)
    expected[7:474, 7:632] = images.transpose(2, 1, 0)[7:474, 7:632]
    buffer = io.BytesIO()
    Image.fromarray(expected).save(buffer, "JPEG", quality=95, subsampling=2)
    with LabelledMat(mat) as reader, Image.open(io.BytesIO(reader.jpeg(1))) as image, Image.open(buffer) as reference:
        assert JpegImagePlugin.get_sampling(image) == 2  # 4:2:0
        # The standard's first luminance steps 16, 11, 10 at quality 95, which divides them by ten.
        assert image.quantization[0][:3] == [2, 1, 1]
        np.testing.assert_array_equal(np.array(image), np.array(reference))


def test_mat_and_folder_give_the_same_samples(mat, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare_nyu, "NUM_IMAGES", 15)
    assert prepare_nyu.extract(mat, tmp_path, ["test"], dense=False) == 10
    folder, straight = (open_nyu(path, NYU) for path in (tmp_path, mat.parent))
    assert (len(straight), straight.official, straight.clustered_by) == (654, True, "captures")
    assert straight.clusters == [CAPTURES[index] for index in straight.indices] != sorted(straight.clusters)
    assert sorted(folder.indices) == [0, 1, 8, 13, 14]
    for item, index in enumerate(folder.indices):
        place = straight.indices.index(index)
        assert straight.names[place] == folder.names[item]
        assert straight.image_sha256(place) == folder.image_sha256(item)
        np.testing.assert_array_equal(straight.pixels(place), folder.pixels(item))
        assert torch.equal(straight.depth(place), folder.depth(item))


def test_threads_read_one_mat(mat):
    dataset, alone = (open_nyu(mat, NYU, limit=12) for _ in range(2))
    batches = list(dataset.batches(dataset.parts(range(12), 5), PAPER.normalised, workers=4))
    assert [batch.items for batch in batches] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    for item in range(12):
        batch = batches[item // 5]
        assert torch.equal(batch.image[item % 5], PAPER.normalised(alone.pixels(item)))
        assert torch.equal(batch.depth[item % 5], alone.depth(item))


# ---- what is refused


@pytest.mark.parametrize(("index", "text"), [(TOO_FAR, "1 to 70 m"), (NOT_A_NUMBER, "nan"), (NEGATIVE, "-0.5 to 1 m")])
def test_depth_that_16_bits_do_not_hold_is_refused(mat, index, text):
    message = rf"rawDepths of image {index} .* spans .*{text}.*0 to 65\.535 m"
    with LabelledMat(mat) as reader, pytest.raises(DataError, match=message):
        reader.png(index)


def test_what_is_no_mat_is_refused(mat, tmp_path):
    path = tmp_path / "x.mat"
    for content, problem in (
        (b"<html>not found</html>", r"not a readable MATLAB v7\.3"),
        (mat.read_bytes()[: mat.stat().st_size // 2], "truncated"),
    ):
        path.write_bytes(content)
        with pytest.raises(DataError, match=rf"x\.mat: {problem}"):
            open_nyu(path, NYU)
    with pytest.raises(DataError, match=r"--list_file names files of a folder, but --data_path is .*x\.mat; drop one"):
        open_nyu(path, NYU, tmp_path / "list.txt")
    path.unlink()
    with pytest.raises(DataError, match="no such file"):
        LabelledMat(path)
    os.mkfifo(path)
    with pytest.raises(DataError, match="not a regular file"):
        LabelledMat(path)


@pytest.mark.parametrize(
    ("name", "shape", "dtype"),
    [
        ("images", (1449, 640, 480, 3), "uint8"),
        ("depths", (1448, 640, 480), "float32"),
        ("rawDepths", (1449, 640, 480), "float64"),
    ],
)
def test_another_layout_is_refused(tmp_path, name, shape, dtype):
    path = write_mat(tmp_path / "x.mat", ["study"], **{name: (shape, dtype)})
    expected = rf"x\.mat: {name} cannot be used .{re.escape(f'{shape} {dtype}')}, expected"
    with pytest.raises(DataError, match=expected) as _:  # which keeps the error, and all that it holds
        LabelledMat(path)
    with h5py.File(path, "r+") as file:
        del file[name]
    with pytest.raises(DataError, match=rf"{name} cannot be used .*doesn't exist"):
        LabelledMat(path)


@pytest.mark.parametrize("array", ["sceneTypes", "scenes"])
@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["study"] * 1448, "1448 names"),
        (["study"] * 7 + ["../x"] + ["study"] * 1441, r"\['../x'\] among them"),
    ],
)
def test_wrong_names_are_refused(tmp_path, array, names, problem):
    given = {"types": SCENES, {"sceneTypes": "types", "scenes": "captures"}[array]: names}
    path = write_mat(tmp_path / "x.mat", **given, depths=((1449, 640, 480), "float32"))  # without content
    with LabelledMat(path) as reader, pytest.raises(DataError, match=f"{array} cannot be used .*{problem}"):
        reader.names(array)
