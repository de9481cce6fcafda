"""Pairs of a picture and its depth as a data set of tensors: the one class, and the one reader of lists.

A picture is whatever `pictures.read_picture` reads. Depth is an image of 16 bits and one channel in a `Form`'s units,
or a .npy of metres; 0 = no measurement. What is evaluated of a frame, a `Scope` says. All files are decoded before a
model is built, and all that is wrong is said at once; what no decoder notices passes, such as half a JPEG that somebody
closed with an end marker. Nothing is ever written.
"""

import hashlib
import io
import math
import os
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps
from torch import Tensor

from datasets import DataError, printable, text_of
from datasets.pictures import MAX_PICTURE_PIXELS, read_picture

Size = tuple[int, int]  # (H, W) [px]
PICTURES = (  # what names of pictures end in
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".tif", ".tiff", ".webp", ".gif", ".ppm", ".pgm", ".jp2"),
    *(".avif", ".heic", ".heif"),
)
DEPTHS = (".png", ".npy", ".tif", ".tiff")  # what names of depth maps end in
LEAST_DEPTH = 0.1  # [m] a largest depth below it is another unit or a damaged file
SAMPLED = 1000  # depths of an image, at least, where it has so many
SAME_SHAPE = 0.02  # by which the shapes of a picture and its depth map may differ
Problem = tuple[str, str]  # where something is wrong, and what


class Scope(Protocol):
    """What is evaluated of a frame; the protocols of calculate_error.py are such."""

    @property
    def name(self) -> str:
        """What rows of results call it."""

    @property
    def cap(self) -> float:
        """The largest depth [m]."""

    @property
    def window(self) -> Callable[[int, int], tuple[slice, slice]]:
        """Rows and columns of a frame (H, W) that the method sees."""

    def counted(self, gt: Tensor) -> Tensor:
        """Which pixels of the window count: a frame (H, W) [m] -> (h, w) bool."""


@dataclass(frozen=True)
class Form:
    """How a data set's files hold depth, and which sizes its frames have."""

    units_per_metre: float  # of depth maps of whole numbers
    frames: tuple[Size, ...] = ()  # any, if there is none
    largest_sane: float = math.inf  # [m] a larger depth is another unit or a damaged file


def content_of(path: Path) -> bytes:
    """The bytes of a regular file. Raises DataError: it cannot be read, or is none."""
    try:
        if path.exists() and not path.is_file():
            raise DataError("not a regular file; put the image there")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError("no such file") from error
    except OSError as error:
        raise DataError(f"cannot be read ({error.strerror})") from error


@dataclass(frozen=True)
class Pair:
    """A picture and its depth map, and what is known of them."""

    rgb: Path
    depth: Path
    scene: str  # room type, drive or folder
    index: int  # in its data set
    cluster: str = ""  # images of one cluster resemble each other
    origin: str = ""  # "list.txt, line 7"
    read: Callable[[Path], bytes] = content_of  # raises DataError

    @property
    def name(self) -> str:
        """`<scene>/<file name of the picture>`, as a text that any file and any terminal can hold."""
        return printable(f"{self.scene}/{self.rgb.name}")


class Batch(NamedTuple):
    """Places of B images in the data set; image (B, 3, h, w) float32, normalised; depth, B frames (1, H, W) [m]."""

    items: list[int]
    image: Tensor
    depth: list[Tensor]


class Checked(NamedTuple):
    """What is known of a pair's files once they were read."""

    sizes: tuple[Size, Size]  # of the picture and of the depth map
    sample: np.ndarray  # some of the measured depths [m], evenly spread
    measured: int  # pixels
    beyond: int  # of these, how many are at the cap or farther


class DepthPairs:
    """Images and depth maps, in the order of `pairs`; `names`, `scenes`, `indices` and `clusters` are theirs.

    `sizes` are those of each picture and depth map, where frames have any size. `title` says what the images are,
    `official` whether they are all of a split that published metrics are over, and nothing else, `clustered_by` what
    images of one cluster have in common, and `remarks` what else a run has to say of them.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        form: Form,
        scope: Scope,
        title: str,
        official: bool = False,
        clustered_by: str = "images",
        sizes: Sequence[tuple[Size, Size]] = (),
        remarks: Sequence[str] = (),
    ) -> None:
        self.pairs, self.form, self.scope, self.sizes = list(pairs), form, scope, list(sizes)
        self.title, self.official, self.clustered_by = title, official, clustered_by
        self.remarks = [f"data: {title}", *remarks]
        self.names = [pair.name for pair in pairs]
        self.scenes = [printable(pair.scene) for pair in pairs]
        self.indices = [pair.index for pair in pairs]
        self.clusters = [pair.cluster or name for pair, name in zip(pairs, self.names, strict=True)]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def seen(self) -> Size | None:
        """(H, W) of what the method sees, if it is the same for all frames."""
        if not self.form.frames:
            return None
        rows, columns = self.scope.window(*self.form.frames[0])
        return rows.stop - rows.start, columns.stop - columns.start

    def pixels(self, item: int) -> np.ndarray:
        """The part of the picture that the method sees, (h, w, 3) uint8, RGB. Raises DataError."""
        frame = picture_of(self.pairs[item], self.form)
        return frame[self.scope.window(*frame.shape[:2])]

    def depth(self, item: int) -> Tensor:
        """The ground truth, (1, H, W) float32 [m], clipped to [0, cap]; 0 = no measurement. Raises DataError."""
        return torch.from_numpy(metres_of(self.pairs[item], self.form)).clamp(0, self.scope.cap)[None]

    def truth(self, item: int) -> np.ndarray:
        """The ground truth of what the method sees, (h, w) float32 [m]. Raises DataError."""
        depth = self.depth(item)[0]
        return depth[self.scope.window(*depth.shape)].numpy()

    def image_sha256(self, item: int) -> str:
        """The hash of the picture's file. Raises DataError."""
        return hashlib.sha256(bytes_of(self.pairs[item], self.pairs[item].rgb)).hexdigest()

    def prepared_by(self, model: Any) -> Callable[[np.ndarray], Tensor]:
        """What a `MonoCLIP` makes of pixels: `prepare` resizes those of any size, frames of known sizes stay."""
        return model.reading.normalised if self.form.frames else model.prepare

    def parts(self, items: Sequence[int], batch_size: int) -> list[list[int]]:
        """The places `items`, in that order, in parts of at most `batch_size` images of one size."""
        of_one_size = [list(items)]
        if self.sizes:
            of_one_size = [list(group) for _, group in groupby(items, self.sizes.__getitem__)]
        return [
            group[start : start + batch_size] for group in of_one_size for start in range(0, len(group), batch_size)
        ]

    def batches(
        self, parts: Sequence[Sequence[int]], prepare: Callable[[np.ndarray], Tensor], workers: int = 1
    ) -> Iterator[Batch]:
        """The images of each of the `parts`, pixels by `prepare` (`prepared_by`).

        `workers` threads read the next batch while the caller works on one. Raises DataError: a file is damaged.
        """

        def read(item: int) -> tuple[Tensor, Tensor]:
            return prepare(self.pixels(item)), self.depth(item)

        with ThreadPoolExecutor(workers) as pool:
            following = [pool.map(read, part) for part in parts[:1]]
            for part, after in zip(parts, [*parts[1:], []], strict=False):  # no part at all, none after it
                image, depth = zip(*following.pop(), strict=True)
                following.append(pool.map(read, after))
                yield Batch(list(part), torch.stack(image), list(depth))


# ---- files


def bytes_of(pair: Pair, path: Path) -> bytes:
    """The bytes of one of a pair's files. Raises DataError."""
    try:
        return pair.read(path)
    except DataError as error:
        raise DataError(f"{printable(str(path))}: {error}") from error


def picture_of(pair: Pair, form: Form) -> np.ndarray:
    """The whole picture, (H, W, 3) uint8, RGB. Raises DataError: it does not decode to the end, or has another size."""
    pixels = read_picture(io.BytesIO(bytes_of(pair, pair.rgb)), name=str(pair.rgb))
    check_size(pixels, pair.rgb, form)
    return pixels


def metres_of(pair: Pair, form: Form) -> np.ndarray:
    """The depth map, (H, W) float32 [m], 0 = no measurement.

    Raises DataError: it does not decode to the end, is no depth map of this form, or holds another unit, which its
    largest depth tells: below 0.1 m (but all 0 is for the metrics to name), or beyond what its sensor may give.
    """
    path, content = printable(str(pair.depth)), bytes_of(pair, pair.depth)
    values = metres_of_npy(content, path) if pair.depth.suffix.lower() == ".npy" else image_values(content, path)
    check_size(values, pair.depth, form)
    unit = 1.0 if values.dtype == np.float32 else form.units_per_metre
    largest = values.max() / unit
    if largest != 0 and not LEAST_DEPTH < largest < form.largest_sane:
        kind = {1.0: "metres", 1000: "millimetres"}.get(unit, f"units of 1/{unit:g} m")
        raise DataError(f"{path}: its largest depth is {largest:g} m, so it does not hold {kind}; write it again")
    return values.astype(np.float32) / np.float32(unit)


def image_values(content: bytes, path: str) -> np.ndarray:
    """The values of a depth image, (H, W) uint16. Raises DataError."""
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # some package may have set it; half a depth map must not be scored
    try:
        with warnings.catch_warnings():  # of many pixels, which are refused here
            warnings.simplefilter("ignore")
            image = Image.open(io.BytesIO(content))
        if image.width * image.height > MAX_PICTURE_PIXELS:
            raise DataError(f"{path}: claims {image.width}x{image.height} pixels, so it is not decoded; remove it")
        if image.mode not in ("I;16", "I;16B"):  # a TIFF has either order of bytes
            raise DataError(f"{path}: has mode {image.mode}, expected 16 bits of one channel; write it again")
        image.load()  # which turns a TIFF
        return np.asarray(ImageOps.exif_transpose(image)).astype(np.uint16)
    except DataError:
        raise
    except Exception as error:  # Pillow's readers raise whatever the damage leads them to
        raise DataError(f"{path}: no depth map, or truncated or damaged; write it again") from error


def npy_values(content: bytes, path: str) -> np.ndarray:
    """The values of a .npy, (H, W) float32. Raises DataError."""
    try:
        values = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # a damaged header leads to errors of many kinds
        raise DataError(f"{path}: not a readable .npy; write it again") from error
    if values.ndim != 2 or not values.size or values.dtype.kind != "f":
        raise DataError(f"{path}: holds {values.dtype} {values.shape}, expected (H, W) floats")
    return values.astype(np.float32)


def metres_of_npy(content: bytes, path: str) -> np.ndarray:
    """Depth in a .npy, (H, W) float32 [m], where NaN and infinity are no measurement. Raises DataError."""
    values = np.nan_to_num(npy_values(content, path), posinf=0)
    if values.min() < 0:
        raise DataError(f"{path}: holds depths below 0 m; write it again")
    return values


def check_size(pixels: np.ndarray, path: Path, form: Form) -> None:
    """Raises DataError: the file's size is none of the frames', if there are any."""
    if form.frames and pixels.shape[:2] not in form.frames:
        found, *sizes = [f"{width}x{height}" for height, width in (pixels.shape[:2], *form.frames)]
        raise DataError(f"{printable(str(path))}: is {found}, expected {' or '.join(sizes)}; do not resize the images")


def check_files(pairs: Sequence[Pair], form: Form, scope: Scope, advice: str = "") -> list[Checked]:
    """Reads all files once, before a model is built: 7 ms an image and core.

    Raises DataError: all files that are missing, unreadable, damaged, of a wrong size, or have no depth that counts,
    with the lines of the list that name them; `advice` is said of those that are missing.
    """

    def problem(pair: Pair, path: Path, error: object) -> Problem:
        name = printable(str(path))
        return f"{pair.origin}: {name}" if pair.origin else name, str(error).removeprefix(f"{name}: ")

    files = [(pair, path) for pair in pairs for path in (pair.rgb, pair.depth)]
    lost = {path for _, path in files if not os.path.exists(path)}  # too long a name is one, too
    missing = [problem(*file, "no such file") for file in files if file[1] in lost]

    def checked(pair: Pair) -> tuple[Checked | None, list[Problem]]:
        problems, sizes, depth = [], [], np.zeros(0)
        for path, decode in ((pair.rgb, picture_of), (pair.depth, metres_of)):
            try:
                values = decode(pair, form)
                sizes.append(values.shape[:2])
                depth = values[values > 0]
                if decode is metres_of and not scope.counted(torch.from_numpy(values)).any():
                    region = f"no depth of up to {scope.cap:g} m in the region that counts"
                    span = f"its depths end at {depth.max(initial=0):g} m"
                    raise DataError(
                        f"no valid pixel, {region}, {span}; remove the image, or see its unit (--depth_scale)"
                    )
            except DataError as error:
                problems.append(problem(pair, path, error))
        if len(sizes) == 2 and not problems and (sizes[0] != sizes[1] if form.frames else not alike(*sizes)):
            (h, w), (own_h, own_w) = sizes
            what = f"is {own_w}x{own_h} where its picture is {w}x{h}, another shape; write it again"
            problems.append(problem(pair, pair.depth, what))
        if problems:
            return None, problems
        sample = depth[:: max(1, len(depth) // SAMPLED)]
        return Checked((sizes[0], sizes[1]), sample, len(depth), int((depth >= scope.cap).sum())), []

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(checked, [pair for pair in pairs if lost.isdisjoint((pair.rgb, pair.depth))]))
    raise_problems([*missing, *(one for _, problems in found for one in problems)], advice if missing else "")
    return [one for one, _ in found if one]


def alike(one: Size, other: Size) -> bool:
    """Whether two sizes are of one shape, to `SAME_SHAPE`."""
    return abs(one[0] * other[1] / (one[1] * other[0]) - 1) <= SAME_SHAPE


def raise_problems(problems: Sequence[Problem], advice: str = "") -> None:
    """Raises one DataError that lists all problems, if there are any; of each kind, three, and how many there are."""
    kinds: dict[str, list[Problem]] = {}
    for problem in problems:
        kinds.setdefault(re.sub(r"'[^']*'|\S+\.\w+", "", problem[1]), []).append(problem)  # the same but for names
    lines = []
    for some in kinds.values():
        few = [f"{where}: {what}" for where, what in some]
        first = ", ".join(where for where, _ in some[:3])
        lines += few if len(some) <= 3 else [f"{some[0][1]}: {len(some):,} times, first {first}"]
    if lines:
        text = lines[0] if len(lines) == 1 else f"{len(problems):,} problems in the data:\n  " + "\n  ".join(lines)
        raise DataError(f"{text}; {advice}" if advice else text)


# ---- lists


def read_list(list_file: Path, pair_of: Callable[[str, str, str], Pair]) -> list[Pair]:
    """The pairs that a text file names, in its order.

    `#` begins a comment. Of a line's entries, the first that names a picture file and the first after it that names a
    depth file count, whatever stands between or behind; with `None` for the depth, the line is left out. `pair_of`
    makes the pair of both and of the line's place in words; ValueError says why it cannot.

    Raises DataError: all lines that are wrong, with their numbers.
    """
    pairs: list[Pair] = []
    problems: list[Problem] = []
    seen: dict[Path, str] = {}
    for number, line in enumerate(text_of(list_file).split("\n"), 1):
        where = f"{printable(str(list_file))}, line {number}"
        try:
            columns = picture_and_depth(line.partition("#")[0].split())
            if columns is None:
                continue
            pair = pair_of(*columns, where)
            for path in (pair.rgb.resolve(), pair.depth.resolve()):
                if path in seen:
                    raise ValueError(f"{printable(path.name)} stands in {seen[path]} already")
                seen[path] = f"line {number}"
            pairs.append(pair)
        except (ValueError, OSError, RuntimeError) as error:  # the last two: too long a name, links in a circle
            problems.append((where, printable(str(error))))
    if not pairs and not problems:
        problems.append((printable(str(list_file)), "names no pair; each line needs a picture and its depth"))
    raise_problems(problems)
    return pairs


def picture_and_depth(entries: Sequence[str]) -> tuple[str, str] | None:
    """The two that count of a line's entries; None if there is none, or no depth. Raises ValueError: none is found."""
    rest = iter(entries)
    rgb = next((entry for entry in rest if re.search(r"\.[A-Za-z]\w*\W*$", entry)), "")  # no time, no number
    depth = next((entry for entry in rest if entry == "None" or entry.lower().endswith(DEPTHS)), "")
    if entries and not (depth and rgb.lower().endswith(PICTURES)):
        raise ValueError("expected a picture and its depth map, such as rgb/a.jpg depth/a.png")
    return (rgb, depth) if entries and depth != "None" else None


def inside(text: str, folder: Path) -> Path:
    """The path `text`, relative to `folder` or absolute below it. Raises ValueError: it leads out of the folder.

    Links in the folder are the user's own and are followed.
    """
    path = PurePosixPath(text)
    if "\0" in text or "\\" in text or ".." in path.parts or re.match(r"[A-Za-z]:", text):
        raise ValueError(f"{text!r} is not a plain path")
    for root in (folder.absolute(), folder.resolve()):
        if path.is_relative_to(root):
            return folder / path.relative_to(root)
    if path.is_absolute():
        raise ValueError(f"{text!r} is not in {folder}")
    return folder / path
