"""NYU Depth V2 (Silberman et al., ECCV 2012), its official test split, as a data set of tensors.

`open_nyu` finds and checks the images of a folder in the field's layout, or of the published .mat (`nyu_mat.py`), and
gives one `NYUDepthV2`. Layout: `<root>/official_splits/test/<scene>/rgb_{i:05d}.jpg` with `sync_depth_{i:05d}.png`, i
the 0-based index into the labelled data set. RGB is 640x480; depth is a 16-bit PNG in millimetres, 0 = no measurement.
What it has in common with other data sets is in `pairs.py`.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath

import numpy as np
from torch import Tensor

from calculate_error import NYU, Size
from datasets import DataError, counted, name_of, printable
from datasets.nyu_mat import MAT_NAME, NUM_IMAGES, LabelledMat
from datasets.pairs import (
    DepthPairs,
    FilePair,
    check_files,
    content_of,
    decode,
    depth_in_metres,
    lines_of,
    raise_problems,
    unsafe_path,
)

SPLIT = Path("official_splits") / "test"
SEE = "name other data with --dataset, or see it work now: sh test.sh --demo"  # what who has no data can do
# What images are called: those of the .mat are NYU's, those of a folder may be anything in its layout.
OF_NYU, LAYOUT = "of NYU Depth V2", "in the layout of NYU Depth V2"


# The 654 test images, 0-based (splits.mat of the data set, less one).
TEST_RANGES = """
    0-1 8 13-17 20 27-42 45-46 55-56 58-62 75-78 83-90 116-118 124-128 130-133 136 152-154 166-168 170-175
    179-201 206-211 219-221 249 263 270-272 278-284 295-301 309-311 314-316 324-334 350-351 354-363 383-389
    394-396 410-413 429-434 440-447 461-465 468-476 507-512 514-525 530-532 536-538 548-550 554-570 578-582
    590-593 602-606 611-612 616-620 632-637 643-644 649-650 655-657 662-663 667-672 675-680 685-689 692-693
    696-698 705-712 716-717 723-727 730-733 742-743 758-786 799-803 809-813 820-822 832-845 849-851 856-861
    868-870 905-907 916-918 925-927 931-934 944-946 958-961 964-966 969-976 990-994 1000-1003 1009-1011
    1020-1022 1031-1033 1037-1038 1047-1048 1051-1052 1056-1057 1074-1083 1087-1095 1097-1103 1105-1108
    1116-1118 1122-1130 1134-1135 1143-1157 1161-1166 1169-1170 1173-1175 1178-1183 1191-1195 1200-1211
    1215-1219 1225-1229 1232-1234 1246-1249 1253-1264 1274-1279 1284-1294 1296-1298 1301-1307 1313-1314
    1328-1331 1334-1339 1346-1348 1352-1355 1363-1364 1367-1368 1383-1390 1393-1400 1406-1413 1420-1423
    1429-1432 1440-1448
"""


def _expand(ranges: str) -> tuple[int, ...]:
    bounds = [tuple(map(int, part.split("-"))) for part in ranges.split()]
    return tuple(i for bound in bounds for i in range(bound[0], bound[-1] + 1))


TEST_INDICES = _expand(TEST_RANGES)


@dataclass(frozen=True)
class MatPair:
    """A test image in the .mat: as a `FilePair` that `prepare_nyu` would write."""

    mat: LabelledMat
    scene: str
    index: int

    @property
    def name(self) -> str:
        """`<scene>/<file name of the RGB image>`."""
        return f"{self.scene}/rgb_{self.index:05d}.jpg"

    def picture(self) -> bytes:
        """The RGB image as the bytes of a JPEG file. Raises DataError."""
        return self.mat.jpeg(self.index)

    def units(self, frames: Sequence[Size]) -> np.ndarray:
        """The raw depth map, (480, 640) uint16 [mm]. Raises DataError."""
        return self.mat.millimetres(self.index)


class NYUDepthV2(DepthPairs):
    """NYU's images; `official` if they are the test split, all of it and nothing else.

    `kind` is what follows the number of images in the title; images with a name of their own are never the split.
    """

    def __init__(
        self, pairs: Sequence[FilePair | MatPair], normalised: Callable[[np.ndarray], Tensor], kind: str = LAYOUT
    ) -> None:
        official = kind in (OF_NYU, LAYOUT) and sorted(pair.index for pair in pairs) == sorted(TEST_INDICES)
        split = f"all {len(TEST_INDICES)} images of the official test split of NYU Depth V2"
        super().__init__(pairs, NYU, normalised, split if official else f"{counted(len(pairs))} {kind}", official)
        self.kind = kind

    def clusters(self) -> tuple[list[str], str]:
        """What images have in common that keeps them from being independent: a label of each, and it in words.

        The .mat knows the capture of each image, some 215 for the 654 of the split. A folder in its layout does not:
        there, images of one room type with consecutive indices are one cluster, which may hold more than one capture
        (the split's indices form 124 runs, and room types part some). Images with a name of their own are clusters of
        one. Raises DataError: the .mat is damaged.
        """
        captures = next((pair.mat.names("scenes") for pair in self.pairs if isinstance(pair, MatPair)), None)
        if captures:
            return [captures[index] for index in self.indices], "captures"
        if self.kind != LAYOUT:
            return self.names, "images"
        places = sorted(range(len(self)), key=self.indices.__getitem__)
        labels = [f"{scene} from {index}" for scene, index in zip(self.scenes, self.indices, strict=True)]
        for before, place in pairwise(places):
            if self.scenes[place] == self.scenes[before] and self.indices[place] == self.indices[before] + 1:
                labels[place] = labels[before]
        return labels, "runs of consecutive indices of one room type"


def open_nyu(
    path: Path,
    normalised: Callable[[np.ndarray], Tensor],
    list_file: Path | None = None,
    scenes: Sequence[str] | None = None,
    limit: int | None = None,
) -> NYUDepthV2:
    """The images that the arguments name, checked as far as that is possible without a model.

    Args:
        path: a folder in the field's layout; the .mat; or a folder that holds the .mat and no official_splits.
        normalised: as for `DepthPairs`.
        list_file: a text file that names the pairs of a folder.
        scenes: only the images of these.
        limit: only the first so many images.

    Raises DataError: the data cannot be used; all that is wrong is listed.
    """
    path = source_of(path)
    pairs: Sequence[FilePair | MatPair]
    if path.suffix == ".mat" and not path.is_dir():
        if list_file is not None:
            raise DataError(f"--list_file names files of a folder, but --data_path is {path}; drop one")
        mat = LabelledMat(path)
        types = mat.names("sceneTypes")
        pairs = sorted((MatPair(mat, types[index], index) for index in TEST_INDICES), key=lambda pair: pair.name)
        kind = OF_NYU
    else:
        pairs = scan_folder(path) if list_file is None else read_list(list_file, path)
        name = name_of(test_split_folder(path))
        kind = f"of {name}" if name else LAYOUT
    there = sorted({printable(pair.scene) for pair in pairs})
    if unknown := [scene for scene in scenes or () if scene not in there]:
        raise DataError(f"--scene {' '.join(unknown)}: no such scene here; there are {', '.join(there)}")
    pairs = [pair for pair in pairs if not scenes or printable(pair.scene) in scenes][:limit]
    check_files([pair for pair in pairs if isinstance(pair, FilePair)], NYU)
    return NYUDepthV2(pairs, normalised, kind)


def source_of(path: Path) -> Path:
    """What `--data_path` means: the .mat in a folder that has no official_splits, else the path itself."""
    inside = path.is_dir() and not (path / SPLIT).is_dir() and (path / MAT_NAME).is_file()
    return path / MAT_NAME if inside else path


def test_split_folder(root: Path) -> Path:
    """The folder of the scenes: `<root>/official_splits/test`, or else `root`. Raises DataError: there is none."""
    if not root.is_dir():
        how = f"bring {MAT_NAME} there (docs/data.md), name yours with --data_path, {SEE}"
        raise DataError(f"{root}: no such folder; {how}")
    inner = root / SPLIT
    return inner if inner.is_dir() else root


def scan_folder(root: Path) -> list[FilePair]:
    """All pairs below the test split of `root`, sorted by scene and file name.

    Raises:
        DataError: no image at all; an RGB image without depth or the reverse; a name without an index; an index that
            occurs twice. All of them are listed.
    """
    folder = test_split_folder(root)
    found: dict[str, dict[tuple[str, int], Path]] = {"rgb": {}, "sync_depth": {}}
    problems = []
    for kind, suffix in (("rgb", ".jpg"), ("sync_depth", ".png")):
        for path in sorted(folder.glob(f"*/{kind}_*")):
            match = re.fullmatch(rf"{kind}_(\d+){re.escape(suffix)}", path.name)
            if match is None:
                problems.append(f"{path}: expected a name like {kind}_00045{suffix}")
            elif (other := found[kind].setdefault((path.parent.name, int(match[1])), path)) is not path:
                problems.append(f"{path}: a second file of index {int(match[1])}, beside {other.name}")
    rgb, depth = found.values()
    if not rgb and not depth and not problems:
        how = f"write them with python -m datasets.prepare_nyu, give another folder, {SEE}"
        raise DataError(f"{folder}: no <scene>/rgb_*.jpg with sync_depth_*.png in it; {how}")
    problems += [f"{rgb[key]}: its depth map sync_depth_{key[1]:05d}.png is missing" for key in rgb.keys() - depth]
    problems += [f"{depth[key]}: its image rgb_{key[1]:05d}.jpg is missing" for key in depth.keys() - rgb]
    for index, count in Counter(index for _, index in rgb).items():
        if count > 1:
            scenes = ", ".join(scene for scene, i in rgb if i == index)
            problems.append(f"{folder}: index {index} occurs {count} times, in {scenes}")
    raise_problems(sorted(problems))
    return [FilePair(path, depth[key], *key) for key, path in sorted(rgb.items(), key=lambda e: (e[0][0], e[1].name))]


def read_list(list_file: Path, root: Path) -> list[FilePair]:
    """The pairs that a text file names, sorted by RGB path.

    Each line holds the RGB path and the depth path relative to the test split, then optionally the focal length, which
    is not used; blank lines are skipped.

    Raises DataError: all lines that are wrong, with their numbers.
    """
    folder = test_split_folder(root)
    pairs: list[FilePair] = []
    problems: list[str] = []
    seen: dict[PurePosixPath, str] = {}
    expected = "RGB path, depth path and optionally focal length"
    for number, where, columns in lines_of(list_file, (2, 3), expected, problems):
        wrong = [reason for column in columns[:2] if (reason := unsafe_path(column, folder))]
        rgb, depth = paths = [PurePosixPath(column) for column in columns[:2]]
        wrong += [f"{path} stands in {seen[path]} already" for path in paths if path in seen]
        seen |= dict.fromkeys(paths, f"line {number}")
        indices = [int(match[1]) for path in paths if (match := re.search(r"(\d{1,9})$", path.stem))]
        if not wrong and (len(indices) < 2 or indices[0] != indices[1]):
            wrong.append(f"{rgb.name} and {depth.name} do not carry the same index")
        problems += [f"{where}: {reason}" for reason in wrong]
        if not wrong:
            pairs.append(FilePair(folder / rgb, folder / depth, rgb.parent.name, indices[0], where))
    if not pairs and not problems:
        problems.append(f"{list_file}: names no image")
    raise_problems(problems)
    return sorted(pairs, key=lambda pair: str(pair.rgb))


def training_depths(path: Path) -> Iterator[Tensor]:
    """The ground truth of the training split, (1, 480, 640) [m] each: all other images of the .mat, or a folder's
    `<path>/official_splits/train/<scene>/sync_depth_*.png`, of which there may be none.

    Raises DataError: a depth map is damaged or no depth map.
    """
    path = source_of(path)
    if path.suffix == ".mat" and not path.is_dir():
        with LabelledMat(path) as mat:
            for index in sorted(set(range(NUM_IMAGES)) - set(TEST_INDICES)):
                yield depth_in_metres(mat.millimetres(index), f"{path}, image {index}", NYU)
    for file in sorted((path / SPLIT.parent / "train").glob("*/sync_depth_*.png")):
        yield depth_in_metres(decode(content_of(file), str(file), "I;16", NYU.frames), str(file), NYU)
