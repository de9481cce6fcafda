"""datasets.nyu: what it reads, in which order, and everything it refuses."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torch.testing import assert_close

from calculate_error import NYU
from datasets import DataError, folder_name, nyu
from datasets.nyu import FORM, TEST_INDICES, open_nyu, scan_folder, sorted_list, with_runs
from datasets.pairs import Pair, check_files, metres_of
from monoclip import PAPER
from tests.conftest import spoil, write_pair


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_sample_by_hand(tmp_path, suffix):
    rgb, depth = write_pair(tmp_path / "official_splits" / "test" / "kitchen", 45)
    rgb = rgb.rename(rgb.with_suffix(f".{suffix}"))
    pixels = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(rgb, quality=95)
    millimetres = np.zeros((480, 640), dtype=np.uint16)
    millimetres[7, 11], millimetres[8, 12], millimetres[300, 300] = 1234, 12000, 2000  # the last counts
    Image.fromarray(millimetres).save(depth)
    dataset = open_nyu(tmp_path, NYU)
    assert (dataset.names, dataset.scenes, dataset.indices) == ([f"kitchen/rgb_00045.{suffix}"], ["kitchen"], [45])
    ((items, image, (gt,)),) = dataset.batches([[0]], PAPER.normalised)
    assert (items, gt.shape, image.shape) == ([0], (1, 480, 640), (1, 3, 416, 544))
    assert (gt[0, 7, 11].item(), gt[0, 8, 12].item()) == (pytest.approx(1.234), 10)  # the latter clipped
    assert gt.count_nonzero() == 3
    pixels = np.asarray(Image.open(rgb))[56:472, 60:604]
    assert np.array_equal(dataset.pixels(0), pixels)
    expected = ((pixels.astype(float) / 255 - PAPER.image_mean) / PAPER.image_std).transpose(2, 0, 1)
    assert np.abs(image[0].numpy() - expected).max() < 1e-5


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
    names = ["bathroom/rgb_00000", "bathroom/rgb_00008", "bathroom/rgb_00014", "kitchen/rgb_00001", "kitchen/rgb_00013"]
    for path in (nyu_folder(5), nyu_folder(5) / "official_splits" / "test"):
        dataset = open_nyu(path, NYU)
        assert (dataset.names, dataset.title) == ([f"{name}.jpg" for name in names], "5 images of nyu")
    assert folder_name(Path("/a\nb")) == r"a\nb"


def test_only_all_images_of_the_official_split_are_called_so(tmp_path, monkeypatch):
    assert len(TEST_INDICES) == len(set(TEST_INDICES)) == 654
    assert (*TEST_INDICES[:5], TEST_INDICES[-1]) == (0, 1, 8, 13, 14, 1448)
    monkeypatch.setattr(nyu, "check_files", lambda *_: [])
    for indices, title in (
        (TEST_INDICES[::-1], "all 654 images of the official test split of NYU Depth V2"),
        (TEST_INDICES[1:], "653 images of rooms"),
        ([*TEST_INDICES[1:], 1], "654 images of rooms"),
    ):
        pairs = [Pair(Path(), Path(), "kitchen", index) for index in indices]
        monkeypatch.setattr(nyu, "scan_folder", lambda _, pairs=pairs: pairs)
        dataset = open_nyu(tmp_path / "rooms", NYU)
        assert (dataset.title, dataset.official) == (title, title.startswith("all 654"))


def test_images_of_one_run_are_clusters():
    def clusters(places: list[tuple[str, int]]) -> list[str]:
        return [pair.cluster for pair in with_runs([Pair(Path(), Path(), *place) for place in places])]

    places = [("attic", 7), ("attic", 5), ("attic", 6), ("den", 12), ("den", 8), ("den", 11), ("den", 10), ("attic", 9)]
    runs = ["attic from 5"] * 3 + ["den from 10", "den from 8", "den from 10", "den from 10", "attic from 9"]
    assert clusters(places) == runs
    assert len(set(clusters([("den", index) for index in TEST_INDICES[::-1]]))) == 124


def test_the_hash_of_the_data_is_of_all_files_in_their_order(nyu_folder):
    root = nyu_folder(3)
    dataset = open_nyu(root, NYU)
    files = [path for pair in dataset.pairs for path in (pair.rgb, pair.depth)]
    digests = b"".join(hashlib.sha256(path.read_bytes()).digest() for path in files)
    assert dataset.sha256 == open_nyu(root, NYU).sha256 == hashlib.sha256(digests).hexdigest()
    assert open_nyu(root, NYU, limit=2).sha256 != dataset.sha256
    files[-1].write_bytes(files[1].read_bytes())
    assert open_nyu(root, NYU).sha256 != dataset.sha256


def test_a_list_gives_the_folders_pairs_in_its_order_through_a_linked_root(nyu_folder, tmp_path):
    scanned = scan_folder(nyu_folder(3))
    (root := tmp_path / "link").symlink_to(nyu_folder(3))
    lines = [f"{pair.name} {pair.scene}/{pair.depth.name} 518.86\r" for pair in reversed(scanned)]
    (root / "list.txt").write_text("\n".join([f"\ufeff./{lines[0]}", "", *lines[1:], "  "]))
    pairs = sorted_list(root / "list.txt", root)
    assert [(p.rgb.resolve(), p.depth.resolve()) for p in pairs] == [(p.rgb, p.depth) for p in scanned]
    assert [(p.name, p.index) for p in pairs] == [(p.name, p.index) for p in scanned]
    assert [pair.origin for pair in pairs] == [f"{root / 'list.txt'}, line {n}" for n in (4, 3, 1)]
    for rgb, depth in (("rgb_00001.jpg", "sync_depth_00002.png"), ("rgb.jpg", "sync_depth.png")):
        (root / "list.txt").write_text(f"kitchen/{rgb} kitchen/{depth}")  # other lines: test_rgbd.py
        with pytest.raises(DataError, match=rf"list.txt, line 1: {rgb} and {depth} do not carry the same index"):
            sorted_list(root / "list.txt", root)


def test_every_problem_of_a_folder_is_listed(nyu_folder, tmp_path):
    with pytest.raises(DataError, match=r"no <scene>/rgb_\*\.jpg with sync_depth_\*\.png in it; write them with"):
        scan_folder(tmp_path)
    root = nyu_folder(5)
    scenes = root / "official_splits" / "test"
    (scenes / "bathroom" / "sync_depth_00000.png").unlink()
    (scenes / "kitchen" / "rgb_00001.jpg").unlink()
    write_pair(scenes / "study", 8)
    (scenes / "kitchen" / "rgb_final.jpg").write_bytes(b"")
    (scenes / "bathroom" / "rgb_00014.png").write_bytes(b"")
    with pytest.raises(DataError, match=r"^7 problems in the data:\n") as error:
        scan_folder(root)
    assert "rgb_00000.jpg: has no sync_depth_00000.png beside it\n" in str(error.value)
    assert "sync_depth_00001.png: has no image rgb_*.jpg of its index beside it" in str(error.value)
    assert "another image has this index, too: 4 times, first " in str(error.value)
    assert "rgb_final.jpg: expected a name like rgb_00045.jpg" in str(error.value)


FAULTS = {
    "half JPEG": r"rgb_\d+\.jpg: cannot be read as a picture \(.*truncated",
    "half PNG": r"sync_depth_\d+\.png: no depth map, or truncated or damaged; write",
    "8-bit depth": r"png: has mode L, expected 16 bits of one channel",
    "small picture": r"jpg: is 64x48, expected 640x480; do not resize the images",
    "small depth": r"png: is 320x240, expected 640x480; do not resize the images",
    "no depth": r"png: no valid pixel, no depth of up to 10 m in the region that counts, its depths end at 0 m; remove",
    "not a file": r"jpg: not a regular file",
}


@pytest.mark.parametrize("kind", FAULTS)
def test_spoiled_files_are_refused(nyu_folder, kind, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)  # as some packages do at import
    (pair,) = scan_folder(nyu_folder(1))
    spoil(kind, pair.rgb, pair.depth)
    with pytest.raises(DataError, match=FAULTS[kind]):
        check_files([pair], FORM, NYU)


def test_the_largest_depth_tells_another_unit():
    for millimetres, plausible in ((0, True), (100, False), (101, True), (64_999, True), (65_000, False)):
        Image.fromarray(np.full((4, 4), millimetres, np.uint16)).save(file := io.BytesIO(), "PNG")
        if plausible:
            assert metres_of(file.getvalue(), Path("a.png"), FORM)[3, 3] == pytest.approx(millimetres / 1000)
        else:
            with pytest.raises(DataError, match=r"a\.png: its largest depth is .* does not hold millimetres"):
                metres_of(file.getvalue(), Path("a.png"), FORM)
