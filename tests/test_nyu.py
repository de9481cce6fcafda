"""datasets.nyu: what it reads, in which order, and everything it refuses."""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torch.testing import assert_close

from calculate_error import NYU
from datasets import DataError, folder_name, nyu
from datasets.nyu import FORM, TEST_INDICES, open_nyu, scan_folder, sorted_list, with_runs
from datasets.pairs import DepthPairs, Pair, check_files, metres_of
from monoclip import PAPER
from tests.conftest import spoil, write_pair


def listed(root: Path, *lines: str) -> list[Pair]:
    (root / "list.txt").write_bytes(os.fsencode("\n".join(lines)))
    return sorted_list(root / "list.txt", root)


def test_official_indices():
    assert len(TEST_INDICES) == len(set(TEST_INDICES)) == 654
    assert TEST_INDICES[:9] == (0, 1, 8, 13, 14, 15, 16, 17, 20)
    assert TEST_INDICES[-1] == 1448


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_sample_by_hand(tmp_path, suffix):
    rgb, depth = write_pair(tmp_path / "official_splits" / "test" / "kitchen", 45)
    rgb.unlink()
    noise = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    Image.fromarray(noise).save(rgb.with_suffix(f".{suffix}"), quality=95)
    millimetres = np.zeros((480, 640), dtype=np.uint16)
    millimetres[7, 11], millimetres[8, 12], millimetres[300, 300] = 1234, 12000, 2000  # the last counts
    Image.fromarray(millimetres).save(depth)
    dataset = open_nyu(tmp_path, NYU)
    assert (dataset.names, dataset.scenes, dataset.indices) == ([f"kitchen/rgb_00045.{suffix}"], ["kitchen"], [45])
    ((items, image, (gt,)),) = dataset.batches([[0]], PAPER.normalised)
    assert (items, gt.shape, image.shape) == ([0], (1, 480, 640), (1, 3, 416, 544))
    assert gt[0, 7, 11].item() == pytest.approx(1.234)
    assert gt[0, 8, 12].item() == 10.0  # clipped
    assert gt.count_nonzero() == 3
    pixels = np.asarray(Image.open(rgb.with_suffix(f".{suffix}")), dtype=np.float64)[56:472, 60:604] / 255
    expected = ((pixels - PAPER.image_mean) / PAPER.image_std).transpose(2, 0, 1)
    assert np.abs(image[0].numpy() - expected).max() < 1e-5
    assert suffix == "jpg" or np.array_equal(dataset.pixels(0), noise[56:472, 60:604])


@pytest.mark.parametrize(("batch_size", "workers"), [(1, 1), (2, 3), (9, 2)])
def test_batches_are_the_images_in_order(nyu_folder, batch_size, workers):
    dataset = open_nyu(nyu_folder(5), NYU)
    items = [4, 0, 3, 1]
    parts = list(dataset.batches(dataset.parts(items, batch_size), PAPER.normalised, workers))
    assert [part.items for part in parts] == [items[i : i + batch_size] for i in range(0, 4, batch_size)]
    images = torch.stack([PAPER.normalised(dataset.pixels(i)) for i in items])
    assert_close(torch.cat([part.image for part in parts]), images)
    assert_close(torch.stack([gt for part in parts for gt in part.depth]), torch.stack(list(map(dataset.depth, items))))
    assert list(dataset.batches([], PAPER.normalised, workers)) == dataset.parts([], batch_size) == []


def test_order_is_scene_then_file_name_and_the_root_may_be_the_split(nyu_folder):
    root = nyu_folder(5)
    names = [pair.name for pair in scan_folder(root)]
    expected = ("bathroom/rgb_00000", "bathroom/rgb_00008", "bathroom/rgb_00014", "kitchen/rgb_00001")
    assert names == [f"{name}.jpg" for name in (*expected, "kitchen/rgb_00013")]
    assert [pair.name for pair in scan_folder(root / "official_splits" / "test")] == names
    for path in (root, root / "official_splits" / "test"):
        assert open_nyu(path, NYU).title == "5 images of nyu"
    assert folder_name(Path("/a\nb")) == r"a\nb"


@pytest.mark.parametrize(
    ("indices", "title"),
    [
        (TEST_INDICES[::-1], "all 654 images of the official test split of NYU Depth V2"),
        (TEST_INDICES[1:], "653 images of rooms"),
        ([*TEST_INDICES[1:], 1], "654 images of rooms"),
        ([0], "1 image of rooms"),
    ],
)
def test_only_all_images_of_the_official_split_are_called_so(indices, title, tmp_path, monkeypatch):
    pairs = [Pair(Path(), Path(), "kitchen", index) for index in indices]
    monkeypatch.setattr(nyu, "scan_folder", lambda _: pairs)
    monkeypatch.setattr(nyu, "check_files", lambda *_: [])
    dataset = open_nyu(tmp_path / "rooms", NYU)
    assert (dataset.title, dataset.official) == (title, title.startswith("all 654"))


def test_images_of_one_run_are_clusters():
    def clusters(places: list[tuple[str, int]]) -> list[str]:
        return [pair.cluster for pair in with_runs([Pair(Path(), Path(), *place) for place in places])]

    places = [("attic", 7), ("attic", 5), ("attic", 6), ("den", 12), ("den", 8), ("den", 11), ("den", 10), ("attic", 9)]
    runs = ["attic from 5"] * 3 + ["den from 10", "den from 8", "den from 10", "den from 10", "attic from 9"]
    assert clusters(places) == runs
    assert len(set(clusters([("den", index) for index in TEST_INDICES[::-1]]))) == 124


# ---- lists


def test_a_list_gives_the_folders_pairs_in_its_order_through_a_linked_root(nyu_folder, tmp_path):
    scanned = scan_folder(nyu_folder(4))
    (tmp_path / "link").symlink_to(nyu_folder(4))
    lines = [f"{pair.name} {pair.scene}/{pair.depth.name} 518.86\r" for pair in reversed(scanned)]
    lines[0] = f"\ufeff./{lines[0]}"
    pairs = listed(tmp_path / "link", *lines[:1], "", *lines[1:], "  ")
    assert [(p.rgb.resolve(), p.depth.resolve()) for p in pairs] == [(p.rgb, p.depth) for p in scanned]
    assert [(p.name, p.index) for p in pairs] == [(p.name, p.index) for p in scanned]
    assert [pair.origin for pair in pairs] == [f"{tmp_path / 'link' / 'list.txt'}, line {n}" for n in (5, 4, 3, 1)]
    assert len(check_files(pairs, FORM, NYU)) == 4


def test_both_files_of_a_line_carry_the_same_index(nyu_folder):
    lines = "kitchen/rgb_00001.jpg kitchen/sync_depth_00002.png", "a/rgb.jpg a/sync_depth.png"  # others: test_rgbd.py
    with pytest.raises(DataError, match=r"^2 problems in the data:") as error:
        listed(nyu_folder(2), *lines)
    assert "list.txt, line 1: rgb_00001.jpg and sync_depth_00002.png do not carry the same index" in str(error.value)
    assert "list.txt, line 2: rgb.jpg and sync_depth.png do not carry the same index" in str(error.value)
    with pytest.raises(DataError, match=r"list\.txt: names no pair"):
        listed(nyu_folder(2), "", "# nothing")


# ---- what is refused


def test_every_problem_of_a_folder_is_listed(nyu_folder, tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder; bring nyu_depth_v2_labeled\.mat .* test\.sh --demo"):
        scan_folder(tmp_path / "nowhere")
    with pytest.raises(DataError, match=r"no <scene>/rgb_\*\.jpg with sync_depth_\*\.png in it; write them with"):
        scan_folder(tmp_path)
    root = nyu_folder(5)
    scenes = root / "official_splits" / "test"
    (scenes / "bathroom" / "sync_depth_00000.png").unlink()
    (scenes / "kitchen" / "rgb_00001.jpg").unlink()
    write_pair(scenes / "study", 8)
    (scenes / "kitchen" / "rgb_final.jpg").write_bytes(b"")
    (scenes / "bathroom" / "rgb_00014.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"^5 problems in the data:\n") as error:
        scan_folder(root)
    for text in (
        "rgb_00000.jpg: its depth map sync_depth_*.png is missing",
        "sync_depth_00001.png: its image rgb_*.jpg is missing",
        "index 8 occurs 2 times, in bathroom, study",
        "rgb_final.jpg: expected a name like rgb_00045.jpg",
        "rgb_00014.png: a second file of index 14, beside rgb_00014.jpg",
    ):
        assert text in str(error.value)


FAULTS = {
    "half JPEG": r"rgb_\d+\.jpg: cannot be read as a picture \(.*truncated",
    "half PNG": r"sync_depth_\d+\.png: no depth map, or truncated or damaged; write",
    "no image": r"rgb_\d+\.jpg: not a picture",
    "8-bit depth": r"png: has mode L, expected 16 bits of one channel",
    "small picture": r"jpg: is 64x48, expected 640x480; do not resize the images",
    "small depth": r"png: is 320x240, expected 640x480; do not resize the images",
    "depth in metres": r"g: its largest depth is 0.00\d m, so it does not hold millimetres",
    "no depth": r"png: no valid pixel, no depth of up to 10 m in the region that counts, its depths end at 0 m; remove",
    "not a file": r"jpg: not a regular file",
    "9 megapixels": r"png: no depth map, or truncated or damaged",
    "400 megapixels": r"png: no depth map, or truncated",
}


@pytest.mark.parametrize("kind", FAULTS)
def test_spoiled_files_are_refused_before_and_while_reading(nyu_folder, kind, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as some packages do at import
    pairs = scan_folder(nyu_folder(3))
    spoil(kind, pairs[1].rgb, pairs[1].depth)
    with pytest.raises(DataError, match=FAULTS[kind]):
        check_files(pairs, FORM, NYU)
    dataset = DepthPairs(pairs, FORM, NYU, "rooms")  # whatever is wrong with their files
    assert dataset.depth(0).any()
    if kind == "no depth":  # the metrics name it; nothing is wrong with the file
        assert not dataset.depth(1).any()
    else:
        with pytest.raises(DataError, match=FAULTS[kind]):
            list(dataset.batches([[1]], PAPER.normalised))


@pytest.mark.parametrize(
    ("millimetres", "plausible"), [(0, True), (100, False), (101, True), (64_999, True), (65_000, False)]
)
def test_the_largest_depth_tells_another_unit(tmp_path, millimetres, plausible):
    rgb, depth = write_pair(tmp_path, 0)
    units = np.zeros((480, 640), np.uint16)
    units[3, 4] = millimetres
    Image.fromarray(units).save(depth)
    if plausible:
        assert metres_of(Pair(rgb, depth, "den", 0), FORM)[3, 4] == pytest.approx(millimetres / 1000)
    else:
        with pytest.raises(DataError, match=r"00\.png: its largest depth is .* does not hold millimetres"):
            metres_of(Pair(rgb, depth, "den", 0), FORM)
