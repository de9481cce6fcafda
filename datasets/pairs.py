"""Pairs of a picture and its depth as a data set of tensors: the one class, and the one reader of lists.

A picture is whatever `pictures.read_picture` reads. Depth is an image of 16 bits and one channel in a `Form`'s units,
or a .npy of metres; 0 = no measurement. All files are decoded before a model is built, and all that is wrong is said at
once; what no decoder notices passes, such as half a JPEG that somebody closed with an end marker.
"""

import hashlib
import io
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby, pairwise
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets import DataError, content_of, printable, text_of
from datasets.pictures import read_picture, upright
from download import file_sha256

Size = tuple[int, int]  # (H, W) [px]
# What names of pictures and of depth maps end in.
PICTURES = re.compile(r"\.(jpe?g|jpe|jfif|png|bmp|tiff?|webp|gif|ppm|pgm|jp2|avif|heic|heif)$", re.IGNORECASE)
DEPTHS = re.compile(r"\.(png|npy|tiff?)$", re.IGNORECASE)
LEAST_DEPTH = 0.1  # [m] a largest depth below it is another unit or a damaged file
SAMPLED = 1000  # depths of an image, at least, where it has so many
MISSING = "no such file"
SAME_SHAPE = 0.02  # by which the shapes of a picture and its depth map may differ
Problem = tuple[str, str]  # where something is wrong, and what


@dataclass(frozen=True)
class Form:
    """How a data set's files hold depth, and which sizes its frames have."""

    units_per_metre: float  # of depth maps of whole numbers
    frames: tuple[Size, ...] = ()  # no two of one shape; any size, if there is none
    largest_sane: float = float("inf")  # [m] a larger depth is another unit or a damaged file


@dataclass(frozen=True)
class Pair:
    """A picture and its depth map."""

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
    digests: bytes  # SHA-256 of both files


@dataclass(eq=False)
class DepthPairs:
    """Images and depth maps in the order of `pairs`, as `names` and others; `sizes`, where frames have any size."""

    pairs: list[Pair]
    form: Form
    scope: Any  # what counts: a `Protocol` of calculate_error.py, which data sets do not know
    title: str  # what the images are
    official: bool = False  # whether they are all of a split that published metrics are over, and nothing else
    clustered_by: str = "images"  # what images of one cluster have in common
    checked: Sequence[Checked] = ()
    mat: Path | None = None  # the one file of them all

    def __post_init__(self) -> None:
        self.remarks = [f"data: {self.title}"]  # what a run has to say
        self.sizes = [] if self.form.frames else [one.sizes for one in self.checked]
        self.names = [pair.name for pair in self.pairs]
        self.scenes = [printable(pair.scene) for pair in self.pairs]
        self.indices = [pair.index for pair in self.pairs]
        self.clusters = [pair.cluster or pair.name for pair in self.pairs]

    def __len__(self) -> int:
        return len(self.names)

    @property
    def seen(self) -> Size | None:
        """(H, W) of what the method sees, if it is the same for all frames."""
        if not self.form.frames:
            return None
        rows, columns = self.scope.window(*self.form.frames[0])
        return rows.stop - rows.start, columns.stop - columns.start

    @cached_property
    def sha256(self) -> str:
        """One hash of the data: that of `mat`, or of the hashes of each picture and depth map, as they were checked."""
        digests = b"".join(one.digests for one in self.checked)
        return file_sha256(self.mat) if self.mat else hashlib.sha256(digests).hexdigest()

    def pixels(self, item: int) -> np.ndarray:
        """The part of the picture that the method sees, (h, w, 3) uint8, RGB. Raises DataError."""
        pair = self.pairs[item]
        frame = read_picture(io.BytesIO(pair.read(pair.rgb)), name=str(pair.rgb))
        return frame[self.scope.window(*frame.shape[:2])]

    def depth(self, item: int) -> Tensor:
        """The ground truth, (1, H, W) float32 [m], clipped to [0, cap]; 0 = no measurement. Raises DataError."""
        pair = self.pairs[item]
        metres = metres_of(pair.read(pair.depth), pair.depth, self.form)
        return torch.from_numpy(metres).clamp(max=self.scope.cap)[None]

    def truth(self, item: int) -> np.ndarray:
        """The ground truth of what the method sees, (h, w) float32 [m]. Raises DataError."""
        depth = self.depth(item)[0]
        return depth[self.scope.window(*depth.shape)].numpy()

    def image_sha256(self, item: int) -> str:
        """The hash of the picture's file. Raises DataError."""
        return hashlib.sha256(self.pairs[item].read(self.pairs[item].rgb)).hexdigest()

    def prepared_by(self, model: Any) -> Callable[[np.ndarray], Tensor]:
        """What a `MonoCLIP` makes of pixels: `prepare` resizes those of any size, frames of known sizes stay."""
        return model.reading.normalised if self.form.frames else model.prepare

    def parts(self, items: Sequence[int], batch_size: int) -> list[list[int]]:
        """The places `items`, in that order, in parts of at most `batch_size` images of one size."""
        groups = [list(group) for _, group in groupby(items, lambda item: self.sizes and self.sizes[item])]
        return [group[i : i + batch_size] for group in groups for i in range(0, len(group), batch_size)]

    def batches(
        self, parts: Sequence[Sequence[int]], prepare: Callable[[np.ndarray], Tensor], workers: int = 1
    ) -> Iterator[Batch]:
        """The images of each of the `parts`, pixels by `prepare`; threads read the next. Raises DataError: damage."""

        def read(item: int) -> tuple[Tensor, Tensor]:
            return prepare(self.pixels(item)), self.depth(item)

        with ThreadPoolExecutor(workers) as pool:
            coming = pool.map(read, next(iter(parts), ()))
            for part, following in pairwise([*parts, []]):
                image, depth = zip(*coming, strict=True)
                coming = pool.map(read, following)
                yield Batch(list(part), torch.stack(image), list(depth))


def metres_of(content: bytes, path: Path, form: Form) -> np.ndarray:
    """The depth map in a file's bytes, (H, W) float32 [m], 0 = no measurement, as are NaN and infinity in a .npy.

    Raises DataError: it cannot be read, or is of another unit, which its largest depth tells, if there is any.
    """
    name, values = printable(path), np.nan_to_num(values_of(content, path), posinf=0)
    unit = 1.0 if values.dtype == np.float32 else form.units_per_metre
    if values.min() < 0:
        raise DataError(f"{name}: holds depths below 0 m; write it again")
    if (largest := float(values.max()) / unit) != 0 and not LEAST_DEPTH < largest < form.largest_sane:
        kind = {1.0: "metres", 1000.0: "millimetres"}.get(unit, f"units of 1/{unit:g} m")
        raise DataError(f"{name}: its largest depth is {largest:g} m, so it does not hold {kind}; write it again")
    return values.astype(np.float32) / np.float32(unit)


def values_of(content: bytes, path: Path) -> np.ndarray:
    """The values in the bytes of a map, (H, W): float32 of a .npy, uint16 of an image. Raises DataError."""
    try:
        if path.suffix.lower() == ".npy":
            values = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
            if values.ndim != 2 or not values.size or values.dtype.kind != "f":
                raise DataError(f"holds {values.dtype} {values.shape}, expected (H, W) floats")
            return values.astype(np.float32)
        image = Image.open(io.BytesIO(content))
        if image.mode not in ("I;16", "I;16B"):  # a TIFF has either order of bytes
            raise DataError(f"has mode {image.mode}, expected 16 bits of one channel; write it again")
        return np.asarray(upright(image)).astype(np.uint16)
    except Exception as error:  # what is damaged leads to errors of many kinds
        problem = error if isinstance(error, DataError) else "no depth map, or truncated or damaged; write it again"
        raise DataError(f"{printable(path)}: {problem}") from error


def check_files(pairs: Sequence[Pair], form: Form, scope: Any, advice: str = "") -> list[Checked]:
    """Reads all files once. Raises DataError: all that are missing (with `advice`), damaged, or do not count."""

    def check(pair: Pair) -> Checked | list[Problem]:
        problems, decoded, digests = list[Problem](), list[np.ndarray](), b""

        def note(path: Path, what: object) -> None:
            name = printable(path)
            problems.append((f"{pair.origin}: {name}" if pair.origin else name, str(what).removeprefix(f"{name}: ")))

        for path in (pair.rgb, pair.depth):
            try:
                if not os.path.exists(path):  # nor does too long a name
                    raise DataError(MISSING)
                content = pair.read(path)
                digests += hashlib.sha256(content).digest()
                if path is pair.rgb:
                    decoded.append(read_picture(io.BytesIO(content), name=str(path)))
                else:
                    decoded.append(metres_of(content, path, form))
                if form.frames and (size := decoded[-1].shape[:2]) not in form.frames:
                    found, *expected = (f"{w}x{h}" for h, w in (size, *form.frames))
                    raise DataError(f"is {found}, expected {' or '.join(expected)}; do not resize the images")
            except DataError as error:
                note(path, error)
        if problems:
            return problems
        (h, w, _), (own_h, own_w) = decoded[0].shape, decoded[1].shape
        depth = decoded[1][decoded[1] > 0]
        beyond, farthest = int((depth >= scope.cap).sum()), depth.max(initial=0)
        if abs(h * own_w / (w * own_h) - 1) > (0 if form.frames else SAME_SHAPE):
            note(pair.depth, f"is {own_w}x{own_h} where its picture is {w}x{h}, another shape; write it again")
        elif not scope.counted(torch.from_numpy(decoded[1])).any():
            why = f"no depth of up to {scope.cap:g} m in the region that counts, its depths end at {farthest:g} m"
            note(pair.depth, f"no valid pixel, {why}; remove the image, or see its unit (--depth_scale)")
        sizes, sample = ((h, w), (own_h, own_w)), depth[:: max(1, len(depth) // SAMPLED)]
        return problems or Checked(sizes, sample, len(depth), beyond, digests)

    with ThreadPoolExecutor() as pool:
        found = list(pool.map(check, pairs))
    problems = [problem for one in found if isinstance(one, list) for problem in one]
    problems.sort(key=lambda problem: problem[1] != MISSING)
    refuse(problems, advice if problems and problems[0][1] == MISSING else "")
    return [one for one in found if isinstance(one, Checked)]


def refuse(problems: Sequence[Problem], advice: str = "") -> None:
    """Raises one DataError that lists all problems, if there are any; of each kind, three, and how many there are."""
    kinds: dict[str, list[Problem]] = {}
    for where, what in problems:
        kinds.setdefault(re.sub(r"'[^']*'|\S+\.\w+", "", what), []).append((where, what))  # the same but for names
    lines: list[str] = []
    for some in kinds.values():
        first = ", ".join(where for where, _ in some[:3])
        many = [f"{some[0][1]}: {len(some):,} times, first {first}"]
        lines += many if len(some) > 3 else [f"{where}: {what}" for where, what in some]
    if lines:
        text = lines[0] if len(lines) == 1 else f"{len(problems):,} problems in the data:\n  " + "\n  ".join(lines)
        raise DataError(f"{text}; {advice}" if advice else text)


def choose_pairs(pairs: Sequence[Pair], scenes: Sequence[str] | None, limit: int | None) -> list[Pair]:
    """The first `limit` pairs of some scenes, or of all. Raises DataError: there is no such scene."""
    there, wanted = {printable(pair.scene) for pair in pairs}, {printable(scene) for scene in scenes or ()}
    if unknown := sorted(wanted - there):
        raise DataError(f"--scene {' '.join(unknown)}: no such scene here; there are {', '.join(sorted(there))}")
    return [pair for pair in pairs if not wanted or printable(pair.scene) in wanted][:limit]


def read_list(list_file: Path, pair_of: Callable[[str, str, str], Pair]) -> list[Pair]:
    """The pairs that a text file names, in its order. Raises DataError: wrong lines, all of them.

    `#` begins a comment. Of a line's entries, the first that names a picture file and the first after it that names a
    depth file count, whatever stands between or behind; with `None` for the depth, the line is left out. `pair_of`
    makes the pair of both and of the line's place; its ValueError says why it cannot.
    """
    pairs, problems, seen = list[Pair](), list[Problem](), dict[Path, str]()
    for number, line in enumerate(text_of(list_file).split("\n"), 1):
        where = f"{printable(list_file)}, line {number}"
        words = line.partition("#")[0].split()
        rest = iter(words)
        rgb = next((word for word in rest if re.search(r"\.[A-Za-z]\w*\W*$", word)), "")  # no time, no number
        depth = next((word for word in rest if word == "None" or DEPTHS.search(word)), "")
        try:
            if words and not (depth and PICTURES.search(rgb)):
                raise ValueError("expected a picture and its depth map, such as rgb/a.jpg depth/a.png")
            if depth in ("", "None"):
                continue
            pair = pair_of(rgb, depth, where)
            for path in (pair.rgb.resolve(), pair.depth.resolve()):
                if path in seen:
                    raise ValueError(f"{printable(path.name)} stands in {seen[path]} already")
                seen[path] = f"line {number}"
            pairs.append(pair)
        except (ValueError, OSError, RuntimeError) as error:  # the last two: too long a name, links in a circle
            problems.append((where, printable(str(error))))
    if not pairs and not problems:
        problems.append((printable(list_file), "names no pair; each line needs a picture and its depth"))
    refuse(problems)
    return pairs


def inside(text: str, folder: Path) -> Path:
    """The path `text`, relative to `folder` or absolute below it, links followed. Raises ValueError: it leads out."""
    path = PurePosixPath(text)
    if "\0" in text or "\\" in text or ".." in path.parts or re.match(r"[A-Za-z]:", text):
        raise ValueError(f"{text!r} is not a plain path")
    roots = folder.absolute(), folder.resolve()
    inner = next((path.relative_to(root) for root in roots if path.is_relative_to(root)), path)
    if inner.is_absolute():
        raise ValueError(f"{text!r} is not in {folder}")
    return folder / inner
