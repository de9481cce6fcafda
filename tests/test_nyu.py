"""datasets.nyu: what it reads, in which order, and everything it refuses."""

import os
import shutil
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torch.testing import assert_close

from calculate_error import NYU
from datasets import DataError, name_of
from datasets.nyu import (
    LAYOUT,
    TEST_INDICES,
    NYUDepthV2,
    open_nyu,
    read_list,
    scan_folder,
    training_depths,
)
from datasets.pairs import FilePair, check_files, depth_in_metres
from monoclip import PAPER
from tests.conftest import ROOT, write_pair


def test_official_indices():
    assert len(TEST_INDICES) == len(set(TEST_INDICES)) == 654
    assert TEST_INDICES[:9] == (0, 1, 8, 13, 14, 15, 16, 17, 20)
    assert TEST_INDICES[-1] == 1448


def test_a_sample_by_hand(tmp_path):
    folder = tmp_path / "official_splits" / "test" / "kitchen"
    rgb, depth = write_pair(folder, 45)
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    Image.fromarray(noise).save(rgb, quality=95)
    millimetres = np.zeros((480, 640), dtype=np.uint16)
    millimetres[7, 11], millimetres[8, 12], millimetres[300, 300] = 1234, 12000, 2000  # the last counts
    Image.fromarray(millimetres).save(depth)
    dataset = open_nyu(tmp_path, PAPER.normalised)
    assert (dataset.names, dataset.scenes, dataset.indices) == (["kitchen/rgb_00045.jpg"], ["kitchen"], [45])
    image, gt = dataset[0]
    assert gt.shape == (1, 480, 640)
    assert gt[0, 7, 11].item() == pytest.approx(1.234)
    assert gt[0, 8, 12].item() == 10.0  # clipped
    assert gt.count_nonzero() == 3
    pixels = np.asarray(Image.open(rgb), dtype=np.float64)[56:472, 60:604] / 255
    expected = ((pixels - PAPER.image_mean) / PAPER.image_std).transpose(2, 0, 1)
    assert image.shape == (3, 416, 544)
    assert np.abs(image.numpy() - expected).max() < 1e-5


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (2, 3), (9, 2)])
def test_batches_are_the_images_in_order(nyu_folder, batch_size, workers):
    dataset = open_nyu(nyu_folder(5), PAPER.normalised)
    items = [4, 0, 3, 1]
    parts = list(dataset.batches(dataset.parts(items, batch_size), workers))
    assert [part.items for part in parts] == [items[i : i + batch_size] for i in range(0, 4, batch_size)]
    assert_close(torch.cat([part.image for part in parts]), torch.stack([dataset[i][0] for i in items]))
    assert_close(torch.stack([gt for part in parts for gt in part.depth]), torch.stack([dataset[i][1] for i in items]))
    assert list(dataset.batches([], workers)) == dataset.parts([], batch_size) == []


def test_order_is_scene_then_file_name_and_the_root_may_be_the_split(nyu_folder):
    root = nyu_folder(5)
    names = [pair.name for pair in scan_folder(root)]
    expected = ("bathroom/rgb_00000", "bathroom/rgb_00008", "bathroom/rgb_00014", "kitchen/rgb_00001")
    assert names == [f"{name}.jpg" for name in (*expected, "kitchen/rgb_00013")]
    assert [pair.name for pair in scan_folder(root / "official_splits" / "test")] == names


@pytest.mark.parametrize(
    ("indices", "kind", "title"),
    [
        (
            TEST_INDICES[::-1],
            "in the layout of NYU Depth V2",
            "all 654 images of the official test split of NYU Depth V2",
        ),
        (TEST_INDICES, "of NYU Depth V2", "all 654 images of the official test split of NYU Depth V2"),
        (TEST_INDICES, "of rooms", "654 images of rooms"),
        (TEST_INDICES[1:], "in the layout of NYU Depth V2", "653 images in the layout of NYU Depth V2"),
        ([*TEST_INDICES[1:], 1], "of NYU Depth V2", "654 images of NYU Depth V2"),
        ([0], "of NYU Depth V2", "1 image of NYU Depth V2"),
    ],
)
def test_only_all_images_of_the_official_split_are_called_so(indices, kind, title):
    pairs = [FilePair(Path(), Path(), "kitchen", index) for index in indices]
    dataset = NYUDepthV2(pairs, PAPER.normalised, kind)
    assert (dataset.title, dataset.official) == (title, title.startswith("all 654"))


def test_images_of_one_run_or_with_a_name_of_their_own_are_clusters():
    def clusters(places: list[tuple[str, int]], kind: str = LAYOUT) -> tuple[list[str], str]:
        pairs = [FilePair(Path(f"rgb_{index:05d}.jpg"), Path(), scene, index) for scene, index in places]
        return NYUDepthV2(pairs, PAPER.normalised, kind).clusters()

    places = [("attic", 7), ("attic", 5), ("attic", 6), ("den", 12), ("den", 8), ("den", 11), ("den", 10), ("attic", 9)]
    labels, what = clusters(places)
    runs = ["attic from 5"] * 3 + ["den from 10", "den from 8", "den from 10", "den from 10", "attic from 9"]
    assert (labels, what) == (runs, "runs of consecutive indices of one room type")
    assert len(set(clusters([("den", index) for index in TEST_INDICES[::-1]])[0])) == 124
    names = [f"{scene}/rgb_{index:05d}.jpg" for scene, index in places]
    assert clusters(places, "of rooms") == (names, "images")


def test_a_folder_may_say_what_its_images_are(nyu_folder, tmp_path):
    root = shutil.copytree(nyu_folder(1), tmp_path / "copy")

    def title(path: Path = root) -> str:
        return open_nyu(path, PAPER.normalised).title

    for text, expected in (
        (None, "in the layout of NYU Depth V2"),
        ("", "in the layout of NYU Depth V2"),
        ("\ufeffrooms\x1b[31m of mine \r\nand more", r"of rooms\x1b[31m of mine"),
        ("x" * 5000, "of " + "x" * 100),
    ):
        if text is not None:
            (root / "name.txt").write_bytes(text.encode())
        assert title() == title(root / "official_splits" / "test") == f"1 image {expected}"
    (root / "official_splits").rename(tmp_path / "elsewhere")
    (root / "official_splits").symlink_to(tmp_path / "elsewhere")
    assert title() == "1 image of " + "x" * 100
    (tmp_path / "link").symlink_to(ROOT / "demo" / "sample" / "official_splits" / "test")
    assert title(tmp_path / "link") == "16 images of the demo's rendered rooms, not NYU Depth V2"
    assert name_of(root / "mine" / "x.png") == ""  # beside the split, not in it


def test_no_folder_and_empty_folder(tmp_path):
    with pytest.raises(
        DataError, match=r"nowhere: no such folder; bring nyu_depth_v2_labeled\.mat there .* test\.sh --demo"
    ):
        scan_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no <scene>/rgb_\*\.jpg with sync_depth_\*\.png in it; write them with"):
        scan_folder(tmp_path)


def test_every_problem_of_a_folder_is_listed(nyu_folder):
    root = nyu_folder(5)
    scenes = root / "official_splits" / "test"
    (scenes / "bathroom" / "sync_depth_00000.png").unlink()
    (scenes / "kitchen" / "rgb_00001.jpg").unlink()
    write_pair(scenes / "study", 8)
    (scenes / "kitchen" / "rgb_final.jpg").write_bytes(b"")
    (scenes / "bathroom" / "rgb_14.jpg").write_bytes(b"")
    with pytest.raises(DataError) as error:
        scan_folder(root)
    text = str(error.value)
    assert text.startswith("5 problems in the data:\n")
    assert "rgb_00000.jpg: its depth map sync_depth_00000.png is missing" in text
    assert "sync_depth_00001.png: its image rgb_00001.jpg is missing" in text
    assert "index 8 occurs 2 times, in bathroom, study" in text
    assert "rgb_final.jpg: expected a name like rgb_00045.jpg" in text
    assert "rgb_14.jpg: a second file of index 14, beside rgb_00014.jpg" in text


def huge_png(path: Path, side: int) -> None:
    """A grey 16-bit PNG that claims side x side pixels; a few bytes of them follow."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 16, 0, 0, 0, 0)
    data = zlib.compress(bytes(100_000))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b""))


def spoil(kind: str, rgb: Path, depth: Path) -> None:
    """Does to a pair what `kind` says."""
    millimetres = np.asarray(Image.open(depth)).copy()
    if kind == "half JPEG":
        rgb.write_bytes(rgb.read_bytes()[: rgb.stat().st_size // 2])
    elif kind == "half PNG":
        depth.write_bytes(depth.read_bytes()[: depth.stat().st_size // 2])
    elif kind == "no image":
        rgb.write_text("<html>404</html>")
    elif kind == "8-bit depth":
        Image.fromarray((millimetres // 256).astype(np.uint8)).save(depth)
    elif kind == "small depth":
        Image.fromarray(millimetres[::2, ::2].copy()).save(depth)
    elif kind == "depth in metres":
        Image.fromarray((millimetres // 1000).astype(np.uint16)).save(depth)
    elif kind == "no depth":
        Image.fromarray(np.zeros((480, 640), dtype=np.uint16)).save(depth)
    elif kind == "grey RGB":
        Image.open(rgb).convert("L").save(rgb)
    elif kind == "not a file":
        rgb.unlink()
        os.mkfifo(rgb)
    elif kind == "9 megapixels":
        huge_png(depth, 3_000)
    elif kind == "400 megapixels":
        huge_png(depth, 20_000)


FAULTS = {
    "half JPEG": r"rgb_\d+\.jpg: truncated or damaged \(",
    "half PNG": r"sync_depth_\d+\.png: truncated or damaged \(",
    "no image": r"rgb_\d+\.jpg: not a readable image",
    "8-bit depth": r"png: has mode L and format PNG, expected a 16-bit PNG of one channel",
    "small depth": r"png: is 320x240, expected 640x480",
    "depth in metres": r"g: its largest depth is 0.00\d m, so it does not hold millimetres",
    "no depth": r"png: no valid pixel, no depth of 0\.001 to 10 m in the region that counts; remove the image",
    "grey RGB": r"jpg: has mode L and format JPEG, expected an RGB JPEG",
    "not a file": r"jpg: not a regular file",
    "9 megapixels": r"png: claims 3000x3000 pixels, so it is not decoded",
    "400 megapixels": r"png: claims too many pixels, so it is not decoded",
}


@pytest.mark.parametrize("kind", FAULTS)
def test_spoiled_files_are_refused_before_and_while_reading(nyu_folder, kind, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as some packages do at import
    pairs = scan_folder(nyu_folder(3))
    spoil(kind, pairs[1].rgb, pairs[1].depth)
    with pytest.raises(DataError, match=FAULTS[kind]):
        check_files(pairs, NYU)
    dataset = NYUDepthV2(pairs, PAPER.normalised)  # whatever is wrong with their files
    assert dataset[0][1].any()
    if kind == "no depth":  # the metrics name it; nothing is wrong with the file
        assert not dataset[1][1].any()
    else:
        with pytest.raises(DataError, match=FAULTS[kind]):
            dataset[1]


@pytest.mark.parametrize(
    ("millimetres", "plausible"), [(0, True), (100, False), (101, True), (64_999, True), (65_000, False)]
)
def test_the_largest_depth_tells_another_unit(millimetres, plausible):
    units = np.array([[0, millimetres]], dtype=np.uint16)
    if plausible:
        expected = min(millimetres / 1000, 10)
        assert depth_in_metres(units, "a.png", NYU).flatten().tolist() == pytest.approx([0, expected])
    else:
        with pytest.raises(DataError, match=r"a\.png: its largest depth is .* does not hold millimetres"):
            depth_in_metres(units, "a.png", NYU)


def list_of(root: Path, lines: list[str]) -> Path:
    path = root / "list.txt"
    path.write_bytes(os.fsencode("\n".join(lines)))
    return path


def test_a_list_gives_the_folders_pairs_in_its_order(nyu_folder):
    root = nyu_folder(4)
    scanned = scan_folder(root)
    lines = [f"{pair.name} {pair.scene}/{pair.depth.name} 518.86\r" for pair in reversed(scanned)]
    pairs = read_list(list_of(root, ["", *lines, "  "]), root)
    assert [(p.rgb, p.depth, p.scene, p.index) for p in pairs] == [(p.rgb, p.depth, p.scene, p.index) for p in scanned]
    assert [pair.origin for pair in pairs] == [f"{root / 'list.txt'}, line {n}" for n in (5, 4, 3, 2)]
    check_files(pairs, NYU)


def test_every_wrong_line_is_named(nyu_folder):
    root = nyu_folder(2)
    lines = [
        "bathroom/rgb_00000.jpg bathroom/sync_depth_00000.png",
        "bathroom/rgb_00000.jpg",
        "bathroom/rgb_00000.jpg bathroom/sync_depth_00008.png",
        "kitchen/rgb_00001.jpg kitchen/sync_depth_00002.png",
        "kitchen/rgb_00001.jpg kitchen/sync_depth_00001.png 1 2",
        "/etc/rgb_00001.jpg kitchen/sync_depth_00001.png",
    ]
    with pytest.raises(DataError) as error:
        read_list(list_of(root, lines), root)
    text = str(error.value)
    assert text.startswith("5 problems in the data:")
    assert "line 2: 1 columns, expected" in text
    assert "line 3: bathroom/rgb_00000.jpg stands in line 1 already" in text
    assert "line 4: rgb_00001.jpg and sync_depth_00002.png do not carry the same index" in text
    assert "line 5: 4 columns, expected" in text
    assert "line 6: '/etc/rgb_00001.jpg' is not a plain relative path" in text


@pytest.mark.parametrize(
    "path",
    ["/a/rgb_1.jpg", "s/../../x/rgb_1.jpg", "C:a/rgb_1.jpg", "\\a\\rgb_1.jpg", "a\0b/rgb_1.jpg", "out/rgb_1.jpg"],
)
def test_paths_that_leave_the_folder_are_refused(tmp_path, path):
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "elsewhere").mkdir()
    (root / "out").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(DataError, match=r"list\.txt, line 1: .* (is not a plain relative path|leads out of)"):
        read_list(list_of(root, [f"{path} a/sync_depth_1.png"]), root)


def test_a_byte_order_mark_plain_paths_and_a_symlinked_root_are_accepted(nyu_folder, tmp_path):
    root = nyu_folder(1)
    (tmp_path / "link").symlink_to(root)
    lines = ["\ufeff./bathroom/./rgb_00000.jpg bathroom/sync_depth_00000.png"]
    pairs = read_list(list_of(root, lines), tmp_path / "link")
    check_files(pairs, NYU)
    assert pairs[0].name == "bathroom/rgb_00000.jpg"
    with pytest.raises(DataError, match="names no image"):
        read_list(list_of(root, ["", ""]), root)


@pytest.mark.parametrize("folder", ["x" * 300, "loop", "caf\udcff"])
def test_a_name_that_leads_nowhere_is_named_with_its_line(nyu_folder, folder):
    root = nyu_folder(1)
    (root / "official_splits" / "test" / "loop").symlink_to("loop")
    with pytest.raises(DataError, match=r"list\.txt, line 2: "):
        check_files(read_list(list_of(root, ["", f"{folder}/rgb_1.jpg a/sync_depth_1.png"]), root), NYU)


def test_training_depths_of_a_folder(nyu_folder):
    root = nyu_folder(2)
    assert list(training_depths(root)) == []
    train = root / "official_splits" / "train"
    expected = [np.asarray(Image.open(write_pair(train / scene, index)[1])) for scene, index in (("a", 3), ("b", 2))]
    found = list(training_depths(root))
    assert_close(torch.cat(found), torch.from_numpy(np.stack(expected) / np.float32(1000)))
    assert found[0].shape == (1, 480, 640)
    spoil("half PNG", train / "b" / "rgb_00002.jpg", train / "b" / "sync_depth_00002.png")
    with pytest.raises(DataError, match=r"b/sync_depth_00002\.png: truncated or damaged"):
        list(training_depths(root))
