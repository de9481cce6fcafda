"""One's own pairs of picture and depth, of any size, as a data set.

Either a list of `rgb depth` lines, relative to a folder, or a folder with `rgb/NAME.png` (or .jpg) and
`depth/NAME.png`, depth of 16 bits with `--depth_scale` units in a metre, 0 = no measurement. Every measured pixel
nearer than `--max_depth` counts; pictures are resized as `pictures.working_size` says, and predictions back.
"""

from collections.abc import Callable
from pathlib import Path, PurePosixPath

import numpy as np
from torch import Tensor

from calculate_error import NYU_METRICS, Protocol
from datasets import DataError, counted, name_of
from datasets.pairs import DepthPairs, FilePair, check_files, lines_of, raise_problems, unsafe_path

DEPTH_SCALE, MAX_DEPTH = 1000.0, 10.0  # units in a metre, and [m], unless told otherwise


def own_protocol(depth_scale: float = DEPTH_SCALE, max_depth: float = MAX_DEPTH) -> Protocol:
    """Every measured pixel of a whole picture of any size, up to `max_depth` [m]."""
    about = f"one's own pairs: every pixel that is measured, 1e-3 < gt < {max_depth:g} m, mean over images"
    other = "no published metric is over these images"
    return Protocol("own pairs", about, "own pairs", NYU_METRICS, max_depth, depth_scale, other)


def open_rgbd(
    root: Path,
    protocol: Protocol,
    normalised: Callable[[np.ndarray], Tensor],
    list_file: Path | None = None,
    limit: int | None = None,
) -> DepthPairs:
    """The pairs of a folder or a list, checked as far as is possible without a model.

    Raises DataError: the data cannot be used; all that is wrong is listed.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; name that of your pairs with --data_path")
    pairs = (folder_pairs(root) if list_file is None else listed_pairs(list_file, root))[:limit]
    check_files(pairs, protocol)
    name = name_of(root)
    return DepthPairs(pairs, protocol, normalised, f"{counted(len(pairs))} of {name or 'your own'}")


def folder_pairs(root: Path) -> list[FilePair]:
    """All pairs of `rgb/` and `depth/` below a folder, sorted by name. Raises DataError: one has no partner."""
    pictures = sorted(path for path in (root / "rgb").glob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    depths = {path.stem: path for path in sorted((root / "depth").glob("*")) if path.suffix.lower() == ".png"}
    problems = [
        f"{path}: its depth map depth/{path.stem}.png is missing" for path in pictures if path.stem not in depths
    ]
    stems = [path.stem for path in pictures]
    problems += [f"{depths[stem]}: its picture in rgb/ is missing" for stem in depths if stem not in stems]
    problems += [f"{path}: a second picture of this name" for path in pictures if stems.count(path.stem) > 1]
    if not pictures and not problems:
        problems = [f"{root}: no rgb/NAME.png or .jpg with depth/NAME.png in it"]
    raise_problems(problems)
    return [FilePair(path, depths[path.stem], path.parent.name, i) for i, path in enumerate(pictures)]


def listed_pairs(list_file: Path, root: Path) -> list[FilePair]:
    """The pairs of a list's `rgb depth` lines, in its order. Raises DataError: all lines that are wrong."""
    pairs: list[FilePair] = []
    problems: list[str] = []
    seen: dict[str, int] = {}
    for number, where, columns in lines_of(list_file, (2,), "picture and depth", problems):
        wrong = [reason for column in columns if (reason := unsafe_path(column, root))]
        wrong += [f"{column} stands in line {seen[column]} already" for column in columns if column in seen]
        seen |= dict.fromkeys(columns, number)
        problems += [f"{where}: {reason}" for reason in wrong]
        rgb, depth = map(PurePosixPath, columns)
        pairs.append(FilePair(root / rgb, root / depth, rgb.parent.as_posix(), len(pairs), where))
    if not pairs and not problems:
        problems.append(f"{list_file}: names no pair")
    raise_problems(problems)
    return pairs
