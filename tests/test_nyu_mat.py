"""The reader of the .mat, and the data set over it.

The .mat of these tests has the published structure (1449 entries, transposed arrays, object references, MATLAB's user
block) and a few images with content; all others are HDF5's fill value.
"""

import io
import os
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from PIL import Image, JpegImagePlugin

from datasets import DataError, prepare_nyu
from datasets.nyu import TEST_INDICES, open_nyu, training_depths
from datasets.nyu_mat import LabelledMat

WITH_CONTENT = (0, 1, 2, 8)  # 2 belongs to the train split
TOO_FAR, NOT_A_NUMBER, NEGATIVE, LARGEST = 3, 4, 5, 6  # train images with such a depth
FILLS = {"images": 120, "rawDepths": 2.5, "depths": 2.625}
SCENES = [("bedroom", "living_room", "study")[index % 3] for index in range(1449)]
CAPTURES = [f"walk_{index // 5:04d}" for index in range(1449)]


def content(index: int) -> dict[str, np.ndarray]:
    """Arrays of one image as they stand in the .mat: images (3, 640, 480), rawDepths and depths (640, 480)."""
    rng = np.random.default_rng(index)
    blocks = np.ones((1, 40, 40), dtype=np.uint8)
    dense = rng.uniform(0.6, 9.9, (640, 480)).astype(np.float32)
    raw = np.where(rng.random((640, 480)) < 0.1, np.float32(0), dense)
    images = np.kron(rng.integers(0, 256, (3, 16, 12), dtype=np.uint8), blocks)
    return {"images": images, "rawDepths": raw, "depths": dense}


def write_mat(
    path: Path, types: list[str], captures: list[str] | None = CAPTURES, **replaced: tuple[tuple[int, ...], str]
) -> Path:
    """Writes a .mat, without `scenes` if there are no captures; `replaced` gives arrays another (shape, dtype)."""
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, fill in FILLS.items():
            usual = ((1449, 3, 640, 480), "uint8") if name == "images" else ((1449, 640, 480), "float32")
            shape, dtype = replaced.get(name, usual)
            array = file.create_dataset(
                name, shape, dtype, chunks=(1, *shape[1:]), compression="gzip", compression_opts=1, fillvalue=fill
            )
            if name not in replaced:
                for index in WITH_CONTENT:
                    array[index] = content(index)[name]
        if not replaced:
            for index, depth in ((TOO_FAR, 70.0), (NOT_A_NUMBER, np.nan), (NEGATIVE, -0.5), (LARGEST, 65.535)):
                file["rawDepths"][index] = np.where(np.arange(480) == 479, np.float32(depth), np.float32(1))
        texts = file.create_group("#refs#")
        for array, names in (("sceneTypes", types), ("scenes", captures)):
            codes = {name: np.array([[ord(c)] for c in name], dtype=np.uint16) for name in names or ()}
            refs = {name: texts.create_dataset(f"{array} {i}", data=codes[name]).ref for i, name in enumerate(codes)}
            if names is not None:
                file.create_dataset(array, data=np.array([[refs[name] for name in names]], h5py.ref_dtype))
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file")
    return path


@pytest.fixture(scope="module")
def mat(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_mat(tmp_path_factory.mktemp("mat") / "nyu_depth_v2_labeled.mat", SCENES)


def test_depth_is_raw_and_truncated_to_millimetres(mat: Path) -> None:
    with LabelledMat(mat) as reader:
        for index in (0, 8):
            raw, found = content(index)["rawDepths"], reader.millimetres(index).tolist()
            assert found[7] == [int(raw[column, 7] * np.float32(1000)) for column in range(640)]
            with Image.open(io.BytesIO(reader.png(index))) as image:
                assert image.mode == "I;16"
                assert np.array(image).tolist() == found
        expected = (content(2)["depths"].T * np.float32(1000)).astype(np.uint16)
        np.testing.assert_array_equal(reader.millimetres(2, "depths"), expected)
        assert reader.millimetres(LARGEST).max() == 65535
        assert (reader.millimetres(9) == 2500).all()  # a fill value


def test_rgb_is_black_outside_and_a_jpeg_of_quality_95(mat: Path) -> None:
    images = content(1)["images"]
    expected = np.zeros((480, 640, 3), dtype=np.uint8)
    expected[7:474, 7:632] = images.transpose(2, 1, 0)[7:474, 7:632]
    buffer = io.BytesIO()
    Image.fromarray(expected).save(buffer, "JPEG", quality=95, subsampling=2)
    with LabelledMat(mat) as reader, Image.open(io.BytesIO(reader.jpeg(1))) as image, Image.open(buffer) as reference:
        assert JpegImagePlugin.get_sampling(image) == 2  # 4:2:0
        # The standard's first luminance steps 16, 11, 10 at quality 95, which divides them by ten.
        assert image.quantization[0][:3] == [2, 1, 1]
        np.testing.assert_array_equal(np.array(image), np.array(reference))


@pytest.mark.parametrize(("index", "text"), [(TOO_FAR, "1 to 70 m"), (NOT_A_NUMBER, "nan"), (NEGATIVE, "-0.5 to 1 m")])
def test_depth_that_16_bits_do_not_hold_is_refused(mat: Path, index: int, text: str) -> None:
    with (
        LabelledMat(mat) as reader,
        pytest.raises(DataError, match=rf"rawDepths of image {index} .* spans .*{text}.*0 to 65\.535 m"),
    ):
        reader.png(index)


def test_truncated_mat_and_what_is_no_hdf5_file(mat: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.mat"
    for found, problem in (
        (b"<html>not found</html>", r"not a readable MATLAB v7\.3"),
        (mat.read_bytes()[: mat.stat().st_size // 2], "truncated"),
    ):
        path.write_bytes(found)
        with pytest.raises(DataError, match=rf"x\.mat: {problem}"):
            LabelledMat(path)
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
def test_another_layout(tmp_path: Path, name: str, shape: tuple[int, ...], dtype: str) -> None:
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
def test_wrong_names(tmp_path: Path, array: str, names: list[str], problem: str) -> None:
    given = {"types": SCENES, {"sceneTypes": "types", "scenes": "captures"}[array]: names}
    path = write_mat(tmp_path / "x.mat", **given, depths=((1449, 640, 480), "float32"))  # without content
    with LabelledMat(path) as reader, pytest.raises(DataError, match=f"{array} cannot be used .*{problem}"):
        reader.names(array)


def test_clusters_are_captures_which_are_read_only_when_they_are_asked_for(mat: Path, tmp_path: Path) -> None:
    dataset = open_nyu(mat, as_tensor)
    assert dataset.indices != sorted(dataset.indices)
    assert dataset.clusters() == ([CAPTURES[index] for index in dataset.indices], "captures")
    dataset = open_nyu(write_mat(tmp_path / "x.mat", SCENES, None), as_tensor, limit=1)
    assert dataset[0][1].any()
    with pytest.raises(DataError, match=r"x\.mat: scenes cannot be used .*doesn't exist"):
        dataset.clusters()


def test_training_depths_are_those_of_all_other_images(mat: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    depths = training_depths(mat.parent)
    raw = np.floor(content(2)["rawDepths"].T * np.float32(1000)).astype(np.float32) / 1000
    assert torch.equal(next(depths), torch.from_numpy(raw)[None])
    with pytest.raises(DataError, match=f"rawDepths of image {TOO_FAR} cannot be used"):
        next(depths)
    monkeypatch.setattr(LabelledMat, "millimetres", lambda reader, index: np.full((1, 1), 1000 + index, np.uint16))
    indices = [round(1000 * depth.item()) - 1000 for depth in training_depths(mat)]
    assert len(indices) == 795
    assert sorted([*indices, *TEST_INDICES]) == list(range(1449))


def as_tensor(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels.transpose(2, 0, 1).astype(np.float32))


def test_mat_and_folder_give_the_same_samples(mat: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare_nyu, "NUM_IMAGES", 15)
    assert prepare_nyu.extract(mat, tmp_path, ["test"], dense=False) == 10
    folder, straight = (open_nyu(path, as_tensor) for path in (tmp_path, mat))
    assert len(straight.names) == 654
    assert sorted(folder.indices) == [0, 1, 8, 13, 14]
    for item, index in enumerate(folder.indices):
        place = straight.indices.index(index)
        assert straight.names[place] == folder.names[item]
        assert straight.image_sha256(place) == folder.image_sha256(item)
        for ours, theirs, shape in zip(straight[place], folder[item], ((3, 416, 544), (1, 480, 640)), strict=True):
            assert ours.shape == shape
            assert torch.equal(ours, theirs)


def test_threads_read_one_mat(mat: Path) -> None:
    dataset, alone = (open_nyu(mat, as_tensor, limit=12) for _ in range(2))
    batches = list(dataset.batches(dataset.parts(range(12), 5), workers=4))
    assert [batch.items for batch in batches] == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    images, depths = torch.cat([b.image for b in batches]), torch.stack([gt for b in batches for gt in b.depth])
    for part, singles in ((images, 0), (depths, 1)):
        assert torch.equal(part, torch.stack([alone[item][singles] for item in range(12)]))
