"""NYU Depth V2 (Silberman et al., ECCV 2012), its official test split, as a data set of tensors.

Either the published .mat (`nyu_mat.py`), or the field's `<root>/official_splits/test/<scene>/rgb_{i:05d}.jpg` (or .png)
with `sync_depth_{i:05d}.png`, i the 0-based index into the labelled data set. RGB is 640x480; depth is a 16-bit PNG in
millimetres, 0 = no measurement.
"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from datasets import DataError, counted, folder_name, printable
from datasets.nyu_mat import FRAME, MAT_NAME, UNITS_PER_METRE, LabelledMat
from datasets.pairs import DepthPairs, Form, Pair, Problem, check_files, choose_pairs, inside, read_list, refuse

FORM = Form(UNITS_PER_METRE, (FRAME,), largest_sane=65.0)
SPLIT = Path("official_splits") / "test"
SEE = "name other data with --dataset, or see it work now: sh test.sh --demo"  # what who has no data can do

# The 654 test images, 0-based (splits.mat of the data set, less one).
TEST_RANGES = """
    0-1 8 13-17 20 27-42 45-46 55-56 58-62 75-78 83-90 116-118 124-128 130-133 136 152-154 166-168 170-175 179-201
    206-211 219-221 249 263 270-272 278-284 295-301 309-311 314-316 324-334 350-351 354-363 383-389 394-396 410-413
    429-434 440-447 461-465 468-476 507-512 514-525 530-532 536-538 548-550 554-570 578-582 590-593 602-606 611-612
    616-620 632-637 643-644 649-650 655-657 662-663 667-672 675-680 685-689 692-693 696-698 705-712 716-717 723-727
    730-733 742-743 758-786 799-803 809-813 820-822 832-845 849-851 856-861 868-870 905-907 916-918 925-927 931-934
    944-946 958-961 964-966 969-976 990-994 1000-1003 1009-1011 1020-1022 1031-1033 1037-1038 1047-1048 1051-1052
    1056-1057 1074-1083 1087-1095 1097-1103 1105-1108 1116-1118 1122-1130 1134-1135 1143-1157 1161-1166 1169-1170
    1173-1175 1178-1183 1191-1195 1200-1211 1215-1219 1225-1229 1232-1234 1246-1249 1253-1264 1274-1279 1284-1294
    1296-1298 1301-1307 1313-1314 1328-1331 1334-1339 1346-1348 1352-1355 1363-1364 1367-1368 1383-1390 1393-1400
    1406-1413 1420-1423 1429-1432 1440-1448
"""
_BOUNDS = [tuple(map(int, part.split("-"))) for part in TEST_RANGES.split()]
TEST_INDICES = tuple(i for bound in _BOUNDS for i in range(bound[0], bound[-1] + 1))


def open_nyu(
    path: Path, scope: Any, list_file: Path | None = None, scenes: Sequence[str] | None = None, limit: int | None = None
) -> DepthPairs:
    """The first `limit` images of some scenes, checked without a model. Raises DataError: all that is wrong is listed.

    `path` is a folder in the field's layout, whose pairs `list_file` may name; the .mat; or a folder that holds the
    .mat and no official_splits. The .mat knows the capture of each image, some 215 for the 654 of the split, and these
    are its clusters. A folder does not: there, images of one room type with consecutive indices are one cluster, which
    may hold more than one capture (the split's indices form 124 runs, and room types part some).
    """
    if path.is_dir() and not (path / SPLIT).is_dir() and (path / MAT_NAME).is_file():
        path /= MAT_NAME
    mat = path if path.suffix == ".mat" and not path.is_dir() else None
    if mat and list_file:
        raise DataError(f"--list_file names files of a folder, but --data_path is {path}; drop one")
    files = [] if mat else sorted_list(list_file, path) if list_file else scan_folder(path)
    pairs = choose_pairs(mat_pairs(LabelledMat(mat)) if mat else with_runs(files), scenes, limit)
    checked = [] if mat else check_files(pairs, FORM, scope)
    official = sorted(pair.index for pair in pairs) == sorted(TEST_INDICES)
    title = f"all {len(TEST_INDICES)} images of the official test split of NYU Depth V2"
    title = title if official else f"{counted(len(pairs))} of {'NYU Depth V2' if mat else folder_name(path)}"
    by = "captures" if mat else "runs of consecutive indices of one room type"
    return DepthPairs(pairs, FORM, scope, title, official, by, checked, mat)


def mat_pairs(mat: LabelledMat) -> list[Pair]:
    """The test images of the .mat, as the files that `prepare_nyu` would write."""
    scenes, captures, pairs = mat.names("sceneTypes"), mat.names("scenes"), list[Pair]()
    for i in TEST_INDICES:
        rgb, depth = Path(scenes[i], f"rgb_{i:05d}.jpg"), Path(scenes[i], f"sync_depth_{i:05d}.png")
        pairs.append(Pair(rgb, depth, scenes[i], i, captures[i], read=mat.read))
    return sorted(pairs, key=lambda pair: pair.name)


def with_runs(pairs: Sequence[Pair]) -> list[Pair]:
    """The pairs, in their order, with clusters: runs of consecutive indices of one scene."""
    clusters: dict[tuple[str, int], str] = {}
    for pair in sorted(pairs, key=lambda pair: pair.index):
        start = f"{printable(pair.scene)} from {pair.index}"
        clusters[pair.scene, pair.index] = clusters.get((pair.scene, pair.index - 1), start)
    return [replace(pair, cluster=clusters[pair.scene, pair.index]) for pair in pairs]


def test_split_folder(root: Path) -> Path:
    """The folder of the scenes: `<root>/official_splits/test`, or else `root`. Raises DataError: there is none."""
    if not root.is_dir():
        how = f"bring {MAT_NAME} there (docs/data.md), name yours with --data_path, {SEE}"
        raise DataError(f"{root}: no such folder; {how}")
    return root / SPLIT if (root / SPLIT).is_dir() else root


def scan_folder(root: Path) -> list[Pair]:
    """All pairs below the test split of `root`, sorted by scene and file name. Raises DataError; OSError: a folder."""
    folder = test_split_folder(root)
    files = sorted(path for scene in folder.iterdir() if scene.is_dir() for path in scene.iterdir())
    rgb, depth = (dict.fromkeys(p for p in files if p.name.startswith(kind)) for kind in ("rgb_", "sync_depth_"))
    if not rgb and not depth:
        how = f"write them with python -m datasets.prepare_nyu, give another folder, {SEE}"
        raise DataError(f"{folder}: no <scene>/rgb_*.jpg with sync_depth_*.png in it; {how}")
    pairs, problems = list[Pair](), list[Problem]()
    for path in rgb:
        if match := re.fullmatch(r"rgb_(\d+)\.(jpg|png)", path.name):
            pairs.append(Pair(path, path.with_name(f"sync_depth_{match[1]}.png"), path.parent.name, int(match[1])))
        else:
            problems.append((str(path), "expected a name like rgb_00045.jpg"))
    problems += [(str(pair.rgb), f"has no {pair.depth.name} beside it") for pair in pairs if pair.depth not in depth]
    lone = depth.keys() - {pair.depth for pair in pairs}
    problems += [(str(path), "has no image rgb_*.jpg of its index beside it") for path in lone]
    often = Counter(pair.index for pair in pairs)
    problems += [(str(pair.rgb), "another image has this index, too") for pair in pairs if often[pair.index] > 1]
    refuse(sorted(problems))
    return pairs


def sorted_list(list_file: Path, root: Path) -> list[Pair]:
    """The pairs that a list names below the test split, sorted by RGB path, as the release does. Raises DataError."""
    folder = test_split_folder(root)

    def pair_of(rgb: str, depth: str, where: str) -> Pair:
        paths = inside(rgb, folder), inside(depth, folder)
        indices = [int(match[1]) for path in paths if (match := re.search(r"(\d{1,9})$", path.stem))]
        if len(indices) < 2 or indices[0] != indices[1]:
            raise ValueError(f"{paths[0].name} and {paths[1].name} do not carry the same index")
        return Pair(*paths, paths[0].parent.name, indices[0], origin=where)

    return sorted(read_list(list_file, pair_of), key=lambda pair: str(pair.rgb))
