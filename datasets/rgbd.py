"""One's own pairs of picture and depth, of any size, as a data set.

Either a list, or a folder with `rgb/NAME.jpg` and `depth/NAME.png`, any depth of folders below them; `color` or `image`
stand for `rgb`. Every measured pixel nearer than the scope's cap counts. Pictures have `pictures.working_size`, and
predictions are resized to the depth map's. The folder of a picture is its cluster.
"""

import os
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets import DataError, counted, folder_name, printable
from datasets.pairs import DEPTHS, PICTURES, DepthPairs, Form, Pair, check_files, inside, read_list, refuse

DEPTH_SCALE = 1000.0  # units in a metre, unless told otherwise
FEW = 0.05  # share of measured pixels beyond the largest depth, above which a run warns
FOLDERS = ("rgb", "color", "image")  # of pictures, beside depth/
ELSE = "name your files with --list_file"


def open_rgbd(
    root: Path, scope: Any, depth_scale: float = DEPTH_SCALE, list_file: Path | None = None, limit: int | None = None
) -> DepthPairs:
    """The pairs of a folder or a list, checked without a model. Raises DataError: all that is wrong is listed."""
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; name that of your pairs with --data_path")

    def listed(rgb: str, depth: str, where: str) -> Pair:
        return pair_of(inside(rgb, root), inside(depth, root), root, where)

    pairs = (read_list(list_file, listed) if list_file else folder_pairs(root))[:limit]
    several = len({pair.cluster for pair in pairs}) > 1  # one says nothing of which images belong together
    pairs = [replace(pair, index=i, cluster=pair.cluster if several else "") for i, pair in enumerate(pairs)]
    form, title = Form(depth_scale), f"{counted(len(pairs))} of {folder_name(root)}"
    by = "folders" if several else "images, as if independent; frames of a video are not: a folder for each scene"
    dataset = DepthPairs(pairs, form, scope, title, clustered_by=by, checked=check_files(pairs, form, scope))
    dataset.remarks += spans(dataset)
    return dataset


def spans(dataset: DepthPairs) -> list[str]:
    """The span of the true depth, and a warning if much of it does not count."""
    near, middle, far = np.percentile(np.concatenate([one.sample for one in dataset.checked]), (5, 50, 95))
    beyond, measured = (sum(getattr(one, part) for one in dataset.checked) for part in ("beyond", "measured"))
    line = f"true depth: 5 % nearer than {near:.2f} m, half than {middle:.2f} m, 95 % than {far:.2f} m; {beyond:,} of "
    line += f"{measured:,} measured pixels lie beyond --max_depth {dataset.scope.cap:g} m and do not count"
    warning = f"warning: {beyond / measured:.0%} of the measured depth does not count; is --depth_scale right?"
    return [line, warning] if beyond > FEW * measured else [line]


def pair_of(rgb: Path, depth: Path, base: Path, origin: str = "") -> Pair:
    """A pair whose scene and cluster are the picture's folder, from `base` on."""
    below = os.path.relpath(rgb.parent, base)
    scene = below if below != "." else base.name or "pairs"
    return Pair(rgb, depth, scene, 0, printable(scene), origin)


def folder_pairs(root: Path) -> list[Pair]:
    """All pairs of `rgb/` and `depth/` in a folder, sorted by name. Raises DataError: one has no partner."""
    rgb, *others = [root / name for name in FOLDERS if (root / name).is_dir()] or [root / FOLDERS[0]]
    if others:
        raise DataError(f"{root}: {rgb.name}/ and {others[0].name}/ stand beside one depth/; {ELSE}")
    pictures, depths = files_by_stem(rgb, PICTURES), files_by_stem(root / "depth", DEPTHS)
    if not pictures and not depths:
        raise DataError(f"{root}: no rgb/NAME.jpg with depth/NAME.png, but {few_of(root)}; {ELSE}")
    no_depth = f"its depth map is missing in depth/, which has {few_of(root / 'depth')}"
    no_picture = f"its picture is missing in {rgb.name}/, which has {few_of(rgb)}"
    problems = [(str(paths[0]), no_depth) for stem, paths in pictures.items() if stem not in depths]
    problems += [(str(paths[0]), no_picture) for stem, paths in depths.items() if stem not in pictures]
    for paths in (*pictures.values(), *depths.values()):
        problems += [(str(path), "a second file of this name") for path in paths[1:]]
    refuse(problems, ELSE)
    return [pair_of(paths[0], depths[stem][0], rgb) for stem, paths in pictures.items()]


def few_of(folder: Path) -> str:
    """What a folder has, in a sentence."""
    names = sorted(map(printable, os.listdir(folder))) if folder.is_dir() else []
    return ", ".join([*names[:3], "..."][: len(names)]) or "nothing"


def files_by_stem(folder: Path, named: re.Pattern[str]) -> dict[str, list[Path]]:
    """The files below a folder whose names match, sorted, by their path in it without suffix; links are followed."""

    def unreadable(error: OSError) -> object:
        raise DataError(f"{printable(error.filename)}: cannot be read ({error.strerror}); {ELSE}")

    found: dict[str, list[Path]] = {}
    seen: set[str] = set()  # real names: what links lead to a second time does not count again
    for parent, folders, names in os.walk(folder, onerror=unreadable, followlinks=True) if folder.exists() else ():
        folders[:] = sorted(name for name in folders if os.path.realpath(Path(parent, name)) not in seen)
        seen.update(os.path.realpath(Path(parent, name)) for name in folders)
        for path in (Path(parent, name) for name in sorted(names) if named.search(name)):
            if (real := os.path.realpath(path)) not in seen:
                seen.add(real)
                found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    return dict(sorted(found.items()))
