"""KITTI's Eigen test split (Eigen et al., NIPS 2014), with the ground truth of the annotated set (Uhrig et al., 2017).

Of its 697 frames, 652 have annotated depth; these are evaluated. `kitti_eigen_test.csv` has them, so that no list is
needed; the field's list (`rgb depth|None focal` in each line) may be given instead. Below the root lie, as in `RAW` and
`ANNOTATED`, DRIVE/image_02/data/%010d.png or .jpg, raw pictures of the left colour camera, and
DRIVE/proj_depth/groundtruth/image_02/%010d.png, depth of 16 bits in 1/256 m, 0 = no measurement.
"""

import csv
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from datasets import DataError, counted, folder_name, printable
from datasets.pairs import DepthPairs, Form, Pair, Scope, check_files, read_list

SPLIT_FILE = Path(__file__).parent / "kitti_eigen_test.csv"
# The drive and the frame in paths of pictures and of depth maps, zero-padded or not, whatever is before.
_DRIVE, _FRAME = r"(?:^|/)(\d{4}_\d\d_\d\d_drive_\d{4}_sync)", r"/([0-9]{1,10})"
PICTURE = re.compile(rf"{_DRIVE}/image_02/data{_FRAME}\.(?:png|jpg)$")
DEPTH = re.compile(rf"{_DRIVE}/proj_depth/groundtruth/image_02{_FRAME}\.png$")
RAW = ("{date}/{drive}", "raw/{date}/{drive}")  # where drives have pictures: as unzipped; as in BTS
ANNOTATED = (  # where they have depth: in the two halves of the benchmark; as unzipped; as in BTS; merged into raw
    *("train/{drive}", "val/{drive}", "{drive}"),
    *("data_depth_annotated/train/{drive}", "data_depth_annotated/val/{drive}"),
    *("gts/{drive}", "{date}/{drive}", "raw/{date}/{drive}"),
)
PATHS = "DATE/DRIVE_sync/image_02/data/FRAME.png and DRIVE_sync/proj_depth/groundtruth/image_02/FRAME.png, or None"
DEPTH_FORM = Form(256, ((370, 1224), (370, 1226), (374, 1238), (375, 1242), (376, 1241)))


def open_kitti(
    root: Path,
    scope: Scope,
    list_file: Path | None = None,
    scenes: Sequence[str] | None = None,
    limit: int | None = None,
) -> DepthPairs:
    """The frames with depth of the Eigen test split, or of a list, checked as far as is possible without a model.

    Args:
        root: the folder above the dates and the annotated set.
        scope: what is evaluated of a frame.
        list_file: a text file that names pictures and depth maps.
        scenes: only the frames of these drives, which are the clusters.
        limit: only the first so many frames.

    Raises DataError: the data cannot be used; all that is wrong is listed.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; name KITTI's with --data_path (docs/data.md)")

    def listed(rgb: str, depth: str, where: str) -> Pair:
        picture, frame = frame_in(rgb, PICTURE), frame_in(depth, DEPTH)
        if not picture or not frame:
            raise ValueError(f"expected {PATHS}")
        if picture != frame:
            raise ValueError("picture and depth are of different frames")
        return located(root, *frame, where)

    split = list(split_frames())
    pairs = [located(root, *frame) for frame in split] if list_file is None else read_list(list_file, listed)
    if unknown := sorted(set(scenes or ()) - {pair.scene for pair in pairs}):
        raise DataError(f"--scene {' '.join(map(printable, unknown))}: no such drive among the frames")
    pairs = [pair for pair in pairs if not scenes or pair.scene in scenes][:limit]
    check_files(pairs, DEPTH_FORM, scope, f"link KITTI's folders into {root} (docs/data.md), or take some with --scene")
    official = sorted((pair.scene, pair.index) for pair in pairs) == sorted(split)
    title = f"all {len(split)} images with depth of the Eigen test split of KITTI"
    title = title if official else f"{counted(len(pairs))} of {folder_name(root)}"
    return DepthPairs(pairs, DEPTH_FORM, scope, f"{title} ({scope.name})", official, "drives")


def split_frames() -> Iterator[tuple[str, int]]:
    """Drive and number of the 652 frames of the Eigen test split that have depth, in the order of the field's list."""
    with SPLIT_FILE.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["depth"] == "1":
                yield row["drive"], int(row["frame"])


def frame_in(path: str, form: re.Pattern[str]) -> tuple[str, int] | None:
    """The drive and the number in a path of this form, `PICTURE` or `DEPTH`; None if it has another."""
    found = form.search(path)
    return (found[1], int(found[2])) if found else None


def located(root: Path, drive: str, number: int, origin: str = "") -> Pair:
    """A frame's files where they are; else where they should be."""
    date, stem = drive[: len("2011_09_26")], f"{number:010d}"
    pictures = [raw.format(date=date, drive=drive) + f"/image_02/data/{stem}" for raw in RAW]
    depths = [
        f"{annotated.format(date=date, drive=drive)}/proj_depth/groundtruth/image_02/{stem}" for annotated in ANNOTATED
    ]
    rgb = [root / f"{picture}{suffix}" for picture in pictures for suffix in (".png", ".jpg")]
    depth = [root / f"{path}.png" for path in depths]
    picture, ground_truth = (next((path for path in paths if path.exists()), paths[0]) for paths in (rgb, depth))
    return Pair(picture, ground_truth, drive, number, drive, origin)
