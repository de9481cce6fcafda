"""KITTI's Eigen test split (Eigen et al., NIPS 2014), with the ground truth of the annotated set (Uhrig et al., 2017).

Those 652 of its 697 frames that have annotated depth, by `kitti_eigen_test.csv`, or the field's list (`rgb depth|None
focal` in each line). Below the root lie, in `RAW` and `TRUTH`, DRIVE/image_02/data/%010d.png or .jpg, and
DRIVE/proj_depth/groundtruth/image_02/%010d.png, depth of 16 bits in 1/256 m, 0 = no measurement.
"""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datasets import DataError, counted, folder_name
from datasets.pairs import DepthPairs, Form, Pair, check_files, choose_pairs, read_list

SPLIT_FILE = Path(__file__).parent / "kitti_eigen_test.csv"
# The drive and the frame in paths of pictures and of depth maps, zero-padded or not, whatever is before.
_DRIVE, _FRAME = r"(?:^|/)(\d{4}_\d\d_\d\d_drive_\d{4}_sync)", r"/0*([0-9]{1,10})"
PICTURE = re.compile(rf"{_DRIVE}/image_02/data{_FRAME}\.(?:png|jpg)$")
DEPTH = re.compile(rf"{_DRIVE}/proj_depth/groundtruth/image_02{_FRAME}\.png$")
# Where drives have pictures (as unzipped, as in BTS) and depth (in halves, as unzipped, as in BTS, merged into raw).
RAW = ("{date}", "raw/{date}")
TRUTH = ("train", "val", "", "data_depth_annotated/train", "data_depth_annotated/val", "gts", "{date}", "raw/{date}")
PATHS = "DATE/DRIVE_sync/image_02/data/FRAME.png and DRIVE_sync/proj_depth/groundtruth/image_02/FRAME.png, or None"
DEPTH_FORM = Form(256, ((370, 1224), (370, 1226), (374, 1238), (375, 1242), (376, 1241)))


def open_kitti(
    root: Path, scope: Any, list_file: Path | None = None, scenes: Sequence[str] | None = None, limit: int | None = None
) -> DepthPairs:
    """The first `limit` frames of some drives, of the split or a list, checked. Raises DataError: all that is wrong."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; name KITTI's with --data_path (docs/data.md)")

    def listed(rgb: str, depth: str, where: str) -> Pair:
        picture, truth = PICTURE.search(rgb), DEPTH.search(depth)
        if not picture or not truth:
            raise ValueError(f"expected {PATHS}")
        if picture.groups() != truth.groups():
            raise ValueError("picture and depth are of different frames")
        return located(root, picture[1], int(picture[2]), where)

    split = list(split_frames())
    pairs = read_list(list_file, listed) if list_file else [located(root, *frame) for frame in split]
    pairs = choose_pairs(pairs, scenes, limit)
    advice = f"link KITTI's folders into {root}, the --data_path (docs/data.md), or take some with --scene"
    checked = check_files(pairs, DEPTH_FORM, scope, advice)
    official = sorted((pair.scene, pair.index) for pair in pairs) == sorted(split)
    title = f"all {len(split)} images with depth of the Eigen test split of KITTI"
    title = title if official else f"{counted(len(pairs))} of {folder_name(root)}"
    return DepthPairs(pairs, DEPTH_FORM, scope, f"{title} ({scope.name})", official, "drives", checked)


def split_frames() -> list[tuple[str, int]]:
    """Drive and number of the 652 frames of the Eigen test split that have depth, in the order of the field's list."""
    with SPLIT_FILE.open(newline="", encoding="utf-8") as file:
        return [(row["drive"], int(row["frame"])) for row in csv.DictReader(file) if row["depth"] == "1"]


def located(root: Path, drive: str, number: int, origin: str = "") -> Pair:
    """A frame's files where they are; else where they should be."""

    def first(layouts: Sequence[str], inner: str, *suffixes: str) -> Path:
        folders = [root / layout.format(date=drive[: len("2011_09_26")]) / drive / inner for layout in layouts]
        paths = [folder / f"{number:010d}{suffix}" for folder in folders for suffix in suffixes]
        return next((path for path in paths if path.exists()), paths[0])

    picture = first(RAW, "image_02/data", ".png", ".jpg")
    depth = first(TRUTH, "proj_depth/groundtruth/image_02", ".png")
    return Pair(picture, depth, drive, number, drive, origin)
