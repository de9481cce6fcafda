"""KITTI's Eigen test split (Eigen et al., NIPS 2014), with the ground truth of the annotated set (Uhrig et al., 2017).

Of its 697 frames, 652 have annotated depth; these are evaluated. `kitti_eigen_test.csv` has them, so that no list is
needed; the field's list (`rgb depth|None focal` in each line) may be given instead. Below the root lie

    DATE/DRIVE_sync/image_02/data/%010d.png or .jpg                          raw pictures of the left colour camera
    [train/ or val/]DRIVE_sync/proj_depth/groundtruth/image_02/%010d.png     depth, 16 bit, 1/256 m, 0 = no measurement
"""

import csv
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from calculate_error import Protocol
from datasets import DataError, counted, name_of, printable
from datasets.pairs import DepthPairs, FilePair, check_files, lines_of, raise_problems

SPLIT_FILE = Path(__file__).parent / "kitti_eigen_test.csv"
# The drive and the frame in paths of pictures and of depth maps, zero-padded or not, whatever is before.
_DRIVE, _FRAME = r"(?:^|/)(\d{4}_\d\d_\d\d_drive_\d{4}_sync)", r"/([0-9]{1,10})"
PICTURE = re.compile(rf"{_DRIVE}/image_02/data{_FRAME}\.(?:png|jpg)$")
DEPTH = re.compile(rf"{_DRIVE}/proj_depth/groundtruth/image_02{_FRAME}\.png$")
FORM = "DATE/DRIVE_sync/image_02/data/FRAME.png and DRIVE_sync/proj_depth/groundtruth/image_02/FRAME.png, or None"
LAYOUT = "in the layout of KITTI"
# Words and bins for outdoors, where the paper's own bins are published nowhere: Auty and Mikolajczyk's (ICCV-W 2023),
# and ours, declared as such: the paper's words, with bins spread evenly in log depth over 5 to 60 m.
PRESETS: dict[str, dict[str, Any]] = {
    "auty": {
        "depth_templates": ("This object appears to be {}",),
        "depth_classes": (
            "very close",
            "close",
            "slightly close",
            "neither close nor distant",
            "slightly distant",
            "distant",
            "very distant",
        ),
        "bin_list": (5.715, 17.144, 28.572, 40.0, 51.429, 62.857, 74.286),
    },
    "log": {"bin_list": tuple(round(5 * 12 ** (i / 6), 2) for i in range(7))},
}
MANY = 20  # missing files are not listed one by one


class Frame(NamedTuple):
    """A frame of a drive, and the line of a list that names it."""

    drive: str
    number: int
    origin: str = ""


class KITTI(DepthPairs):
    """KITTI's images; `official` if they are all frames of the Eigen test split that have depth, and nothing else."""

    def __init__(
        self,
        pairs: Sequence[FilePair],
        protocol: Protocol,
        normalised: Callable[[np.ndarray], Tensor],
        kind: str = LAYOUT,
    ) -> None:
        split = sorted((frame.drive, frame.number) for frame in split_frames())
        official = kind == LAYOUT and sorted((pair.scene, pair.index) for pair in pairs) == split
        title = f"all {len(split)} images with depth of the Eigen test split of KITTI"
        said = title if official else f"{counted(len(pairs))} {kind}"
        super().__init__(pairs, protocol, normalised, f"{said} ({protocol.name})", official)

    def clusters(self) -> tuple[list[str], str]:
        """Of each image its drive."""
        return self.scenes, "drives"


def open_kitti(
    root: Path,
    protocol: Protocol,
    normalised: Callable[[np.ndarray], Tensor],
    list_file: Path | None = None,
    scenes: Sequence[str] | None = None,
    limit: int | None = None,
) -> KITTI:
    """The frames with depth of the Eigen test split, or of a list, checked as far as is possible without a model.

    Args:
        root: the folder above the dates and the annotated set.
        protocol: `KITTI_BTS` or `KITTI_ADABINS`.
        normalised: as for `DepthPairs`.
        list_file: a text file of `rgb depth|None [focal]` lines.
        scenes: only the frames of these drives.
        limit: only the first so many frames.

    Raises DataError: the data cannot be used; all that is wrong is listed.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; name KITTI's with --data_path (docs/data.md)")
    frames = list(split_frames() if list_file is None else listed_frames(list_file))
    if unknown := sorted(set(scenes or ()) - {frame.drive for frame in frames}):
        raise DataError(f"--scene {' '.join(map(printable, unknown))}: no such drive among the frames")
    frames = [frame for frame in frames if not scenes or frame.drive in scenes][:limit]
    pairs = [FilePair(*files_of(root, frame), frame.drive, frame.number, frame.origin) for frame in frames]
    missing = [
        [path for path in kind if not path.exists()] for kind in ([p.rgb for p in pairs], [p.depth for p in pairs])
    ]
    if sum(map(len, missing)) > MANY:
        kinds = zip(("pictures (or .jpg)", "depth maps (in train/, val/ or here)"), missing, strict=True)
        said = " and ".join(f"{len(paths)} {kind}, {paths[0]} the first" for kind, paths in kinds if paths)
        how = "docs/data.md has the layout; --list_file and --scene take some frames"
        raise DataError(f"{root}: of {len(pairs)} frames it lacks {said}; {how}")
    check_files(pairs, protocol)
    name = name_of(root)
    return KITTI(pairs, protocol, normalised, f"of {name}" if name else LAYOUT)


def split_frames() -> Iterator[Frame]:
    """The 652 frames of the Eigen test split that have depth, in the order of the field's list."""
    with SPLIT_FILE.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["depth"] == "1":
                yield Frame(row["drive"], int(row["frame"]))


def listed_frames(list_file: Path) -> list[Frame]:
    """The frames with depth that a list names. Raises DataError: all lines that are wrong, with their numbers."""
    frames: list[Frame] = []
    problems: list[str] = []
    seen: dict[tuple[str, int], int] = {}
    expected = "RGB path, depth path or None, and focal length"
    for number, where, columns in lines_of(list_file, (2, 3), expected, problems):
        picture, depth = frame_in(columns[0], PICTURE), frame_in(columns[1], DEPTH)
        if not picture or not (depth or columns[1] == "None"):
            problems.append(f"{where}: expected {FORM}")
        elif depth and depth != picture:
            problems.append(f"{where}: picture and depth are of different frames")
        elif depth and depth in seen:
            problems.append(f"{where}: this frame stands in line {seen[depth]} already")
        elif depth:
            seen[depth] = number
            frames.append(Frame(*depth, where))
    if not frames and not problems:
        problems.append(f"{list_file}: names no frame that has depth")
    raise_problems(problems)
    return frames


def frame_in(path: str, form: re.Pattern[str]) -> tuple[str, int] | None:
    """The drive and the number in a path of this form, `PICTURE` or `DEPTH`; None if it has another."""
    found = form.search(path)
    return (found[1], int(found[2])) if found else None


def files_of(root: Path, frame: Frame) -> tuple[Path, Path]:
    """Where a frame's picture and depth are; where they should be, in the half that has its drive, if they are not."""
    date, stem = frame.drive[: len("2011_09_26")], f"{frame.number:010d}"
    pictures = [root / date / frame.drive / "image_02" / "data" / f"{stem}{suffix}" for suffix in (".png", ".jpg")]
    depth = Path(frame.drive) / "proj_depth" / "groundtruth" / "image_02" / f"{stem}.png"
    halves = sorted(("train", "val", ""), key=lambda half: not (root / half / depth).parent.is_dir())
    depths = [root / half / depth for half in halves]
    return tuple(next((path for path in paths if path.exists()), paths[0]) for paths in (pictures, depths))  # type: ignore[return-value]
