"""One's own pairs of picture and depth, of any size, as a data set.

Either a list (`pairs.read_list`), or a folder with `rgb/NAME.jpg` and `depth/NAME.png`, any depth of folders below
them; `color` or `image` stand for `rgb`. Every measured pixel nearer than the scope's cap counts. Pictures are resized
as `pictures.working_size` says, and predictions to the depth map's size. The folder of a picture is its cluster.
"""

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from datasets import DataError, counted, folder_name, printable
from datasets.pairs import (
    DEPTHS,
    PICTURES,
    Checked,
    DepthPairs,
    Form,
    Pair,
    Problem,
    Scope,
    check_files,
    inside,
    raise_problems,
    read_list,
)

DEPTH_SCALE = 1000.0  # units in a metre, unless told otherwise
FEW = 0.05  # share of measured pixels beyond the largest depth, above which a run warns
FOLDERS = ("rgb", "color", "image")  # of pictures, beside depth/
ELSE = "name your files with --list_file"


def open_rgbd(
    root: Path, scope: Scope, depth_scale: float = DEPTH_SCALE, list_file: Path | None = None, limit: int | None = None
) -> DepthPairs:
    """The pairs of a folder or a list, checked as far as is possible without a model.

    Raises DataError: the data cannot be used; all that is wrong is listed.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; name that of your pairs with --data_path")

    def listed(rgb: str, depth: str, where: str) -> Pair:
        return pair_of(inside(rgb, root), inside(depth, root), root, where)

    pairs = (folder_pairs(root) if list_file is None else read_list(list_file, listed))[:limit]
    form = Form(depth_scale)
    checked = check_files(pairs, form, scope)
    folders = {pair.cluster for pair in pairs}
    several = len(folders) > 1  # one says nothing of which images belong together
    pairs = [replace(pair, index=i, cluster=pair.cluster if several else "") for i, pair in enumerate(pairs)]
    title = f"{counted(len(pairs))} of {folder_name(root)}"
    by = "folders" if several else "images, as if independent; frames of a video are not: a folder for each scene"
    return DepthPairs(
        pairs,
        form,
        scope,
        title,
        clustered_by=by,
        sizes=[one.sizes for one in checked],
        remarks=spans(checked, scope.cap),
    )


def spans(checked: Sequence[Checked], cap: float) -> list[str]:
    """The span of the true depth, and a warning if much of it does not count."""
    near, middle, far = np.percentile(np.concatenate([one.sample for one in checked]), (5, 50, 95))
    beyond, measured = (sum(part) for part in ([c.beyond for c in checked], [c.measured for c in checked]))
    line = f"true depth: 5 % nearer than {near:.2f} m, half than {middle:.2f} m, 95 % than {far:.2f} m; "
    line += f"{beyond:,} of {measured:,} measured pixels lie beyond --max_depth {cap:g} m and do not count"
    if beyond <= FEW * measured:
        return [line]
    return [line, f"warning: {beyond / measured:.0%} of the measured depth does not count; is --depth_scale right?"]


def pair_of(rgb: Path, depth: Path, base: Path, origin: str = "") -> Pair:
    """A pair whose scene and cluster are the picture's folder, from `base` on."""
    below = os.path.relpath(rgb.parent, base)
    scene = below if below != "." else base.name or "pairs"
    return Pair(rgb, depth, scene, 0, printable(scene), origin)


def folder_pairs(root: Path) -> list[Pair]:
    """All pairs of `rgb/` and `depth/` in a folder, sorted by name. Raises DataError: one has no partner."""
    pictures_root = next((root / name for name in FOLDERS if (root / name).is_dir()), root / FOLDERS[0])
    pictures = files_by_stem(pictures_root, PICTURES)
    depths = files_by_stem(root / "depth", DEPTHS)
    problems: list[Problem] = []
    for of, others, what, folder in (
        (pictures, depths, "depth map", root / "depth"),
        (depths, pictures, "picture", pictures_root),
    ):
        missing = f"its {what} is missing in {folder.name}/, which has {few_of(folder)}"
        problems += [(str(paths[0]), missing) for stem, paths in of.items() if stem not in others]
        problems += [(str(path), "a second file of this name") for paths in of.values() for path in paths[1:]]
    if not pictures and not depths:
        problems = [(str(root), f"no rgb/NAME.jpg with depth/NAME.png, but {few_of(root)}; {ELSE}")]
    raise_problems(problems, "" if not pictures and not depths else ELSE)
    return [pair_of(paths[0], depths[stem][0], pictures_root) for stem, paths in pictures.items()]


def few_of(folder: Path) -> str:
    """What a folder has, in a sentence."""
    names = sorted(map(printable, os.listdir(folder))) if folder.is_dir() else []
    return ", ".join([*names[:3], "..."][: len(names)]) or "nothing"


def files_by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, list[Path]]:
    """The files with these suffixes below a folder, sorted, by their path in it without suffix. Links are followed."""
    found: dict[str, list[Path]] = {}
    seen: set[str] = set()  # real names: what links lead to a second time does not count again
    for parent, folders, names in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if os.path.realpath(Path(parent, name)) not in seen)
        seen.update(os.path.realpath(Path(parent, name)) for name in folders)
        for path in (Path(parent, name) for name in sorted(names)):
            if path.suffix.lower() in suffixes and (real := os.path.realpath(path)) not in seen:
                seen.add(real)
                found.setdefault(path.relative_to(folder).with_suffix("").as_posix(), []).append(path)
    return dict(sorted(found.items()))
