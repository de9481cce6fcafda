"""Pairs of a picture and its depth as a data set of tensors: what NYU, KITTI and one's own pairs have in common.

A picture is a JPEG or PNG, depth a 16-bit PNG of one channel, 0 = no measurement; a `Protocol` says the unit, the sizes
and which part of a frame the method sees. All files are decoded before a model is built, and all that is wrong is said
at once; what no decoder notices passes, such as half a JPEG that somebody closed with an end marker. Nothing is ever
written.
"""

import hashlib
import io
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path, PurePosixPath
from typing import NamedTuple
from typing import Protocol as Interface

import numpy as np
import torch
from PIL import Image, ImageFile
from torch import Tensor

from calculate_error import MIN_DEPTH, Protocol, Size, counted_pixels
from datasets import DataError, printable, text_of

MAX_PIXELS = 4_000_000  # an image of a known size that claims more is refused before it is decoded
MAX_OWN_PIXELS = 50_000_000  # the same, of any size
LEAST_DEPTH = 0.1  # [m] a largest depth below it is another unit or a damaged file


class Pair(Interface):
    """A picture and its depth, of a scene, with an index in its data set."""

    @property
    def scene(self) -> str:
        """What images of one place or kind have in common."""

    @property
    def index(self) -> int:
        """The image's number."""

    @property
    def name(self) -> str:
        """What the image is called in tables and messages."""

    def picture(self) -> bytes:
        """The bytes of the picture's file. Raises DataError."""

    def units(self, frames: Sequence[Size]) -> np.ndarray:
        """The raw depth map, (H, W) uint16. Raises DataError: it is damaged, or of none of these sizes, if any."""


@dataclass(frozen=True)
class FilePair:
    """A picture and its depth in files, their scene, their index, and the line of a list that names them."""

    rgb: Path
    depth: Path
    scene: str
    index: int
    origin: str = ""  # "list.txt, line 7"

    @property
    def name(self) -> str:
        """`<scene>/<file name of the picture>`, as a text that any file and any terminal can hold."""
        return printable(f"{self.scene}/{self.rgb.name}")

    def picture(self) -> bytes:
        """The bytes of the picture's file. Raises DataError."""
        return content_of(self.rgb)

    def units(self, frames: Sequence[Size]) -> np.ndarray:
        """The raw depth map, (H, W) uint16. Raises DataError."""
        return decode(content_of(self.depth), str(self.depth), "I;16", frames)


class Batch(NamedTuple):
    """Places of B images in the data set; image (B, 3, h, w) float32, normalised; depth, B frames (1, H, W) [m]."""

    items: list[int]
    image: Tensor
    depth: list[Tensor]


class DepthPairs:
    """Images and depth maps, in the order of `pairs`; `names`, `scenes` and `indices` are theirs.

    `protocol` says what the method sees of a frame and how depth is stored; depth stays whole. `normalised` makes what
    the encoder takes, (3, H, W) float32, of pixels (H, W, 3) uint8. `title` says what the images are; `official`
    whether they are all of a split that published metrics are over, and nothing else.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        protocol: Protocol,
        normalised: Callable[[np.ndarray], Tensor],
        title: str,
        official: bool = False,
    ) -> None:
        self.pairs, self.protocol, self.normalised = list(pairs), protocol, normalised
        self.title, self.official = title, official
        self.names = [pair.name for pair in pairs]
        self.scenes = [printable(pair.scene) for pair in pairs]
        self.indices = [pair.index for pair in pairs]

    def __len__(self) -> int:
        return len(self.names)

    def normalised_by(self, normalised: Callable[[np.ndarray], Tensor]) -> "DepthPairs":
        """The same images for another encoder, or with other statistics."""
        other = copy(self)
        other.normalised = normalised
        return other

    def prepared_by(self, prepare: Callable[[np.ndarray], Tensor]) -> "DepthPairs":
        """The same images as `MonoCLIP.prepare` makes them; those of known sizes stay as they are."""
        return self if self.protocol.frames else self.normalised_by(prepare)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        """Image (3, h, w) float32, normalised, and depth (1, H, W) float32 [m].

        Raises DataError: the files changed since they were checked, or are damaged inside.
        """
        return self.normalised(self.pixels(item)), self.depth(item)

    def pixels(self, item: int) -> np.ndarray:
        """The part of the picture that the method sees, (h, w, 3) uint8, RGB. Raises DataError."""
        frame = decode(
            self.pairs[item].picture(), self.names[item], "RGB", self.protocol.frames, self.protocol.pictures
        )
        return frame[self.protocol.window(*frame.shape[:2])]

    def depth(self, item: int) -> Tensor:
        """The ground truth, (1, H, W) float32 [m], clipped to [0, max]; 0 = no measurement. Raises DataError."""
        return depth_in_metres(self.pairs[item].units(self.protocol.frames), self.names[item], self.protocol)

    def truth(self, item: int) -> np.ndarray:
        """The ground truth of what the method sees, (h, w) float32 [m]. Raises DataError."""
        depth = self.depth(item)[0]
        return depth[self.protocol.window(*depth.shape)].numpy()

    def frame(self, item: int) -> Size:
        """(H, W) of the picture, from the head of its file. Raises DataError."""
        return opened(self.pairs[item].picture(), self.names[item]).size[::-1]

    def image_sha256(self, item: int) -> str:
        """The hash of the picture's file. Raises DataError."""
        return hashlib.sha256(self.pairs[item].picture()).hexdigest()

    def clusters(self) -> tuple[list[str], str]:
        """What images have in common that keeps them from being independent: a label of each, and it in words."""
        return self.names, "images"

    def parts(self, items: Sequence[int], batch_size: int) -> list[list[int]]:
        """The places `items`, in that order, in parts of at most `batch_size` images of one size."""
        of_one_size = [list(items)]
        if not self.protocol.frames:
            of_one_size = [list(group) for _, group in groupby(items, self.frame)]
        return [
            group[start : start + batch_size] for group in of_one_size for start in range(0, len(group), batch_size)
        ]

    def batches(self, parts: Sequence[Sequence[int]], workers: int = 1) -> Iterator[Batch]:
        """The images of each of the `parts`.

        `workers` threads read the next batch while the caller works on one. Raises DataError: a file is damaged.
        """
        with ThreadPoolExecutor(workers) as pool:
            following = [pool.map(self.__getitem__, part) for part in parts[:1]]
            for part, after in zip(parts, [*parts[1:], []], strict=False):  # no part at all, none after it
                image, depth = zip(*following.pop(), strict=True)
                following.append(pool.map(self.__getitem__, after))
                yield Batch(list(part), torch.stack(image), list(depth))


def unsafe_path(text: str, folder: Path) -> str | None:
    """Why the relative path `text` must not be opened below `folder`, or None."""
    path = PurePosixPath(text)
    if "\0" in text or "\\" in text or path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", text):
        return f"{text!r} is not a plain relative path"
    try:
        inside = (folder / path).resolve().is_relative_to(folder.resolve())
    except (OSError, RuntimeError) as error:  # too long a name, links in a circle
        return f"{text!r} cannot be followed ({error})"
    return None if inside else f"{text!r} leads out of {folder}"


def lines_of(
    list_file: Path, counts: Sequence[int], expected: str, problems: list[str]
) -> Iterator[tuple[int, str, list[str]]]:
    """Number, place in words and columns of each line of a list that is not blank.

    A line of another number of columns than `counts`, or whose third is no number, goes to `problems`, with what was
    `expected`.
    Raises DataError: the list cannot be read.
    """
    for number, line in enumerate(text_of(list_file).split("\n"), 1):
        columns, where = line.split(), f"{list_file}, line {number}"
        if columns and len(columns) not in counts:
            problems.append(f"{where}: {len(columns)} columns, expected {expected}")
        elif len(columns) == 3 and not re.fullmatch(r"[\d.eE+-]+", columns[2]):
            problems.append(f"{where}: {columns[2]!r} is no focal length; expected {expected}")
        elif columns:
            yield number, where, columns


def raise_problems(problems: Sequence[str]) -> None:
    """Raises one DataError that lists all `problems`, if there are any."""
    if len(problems) == 1:
        raise DataError(problems[0])
    if problems:
        raise DataError(f"{len(problems)} problems in the data:\n" + "\n".join(f"  {problem}" for problem in problems))


def content_of(path: Path) -> bytes:
    """The bytes of a regular file. Raises DataError: it cannot be read, or is none."""
    try:
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: not a regular file; put the image there")
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error


def opened(content: bytes, name: str) -> Image.Image:
    """An image of which only the head is read. Raises DataError: the file `name` is none."""
    try:
        return Image.open(io.BytesIO(content))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: claims too many pixels, so it is not decoded; remove it") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{name}: not a readable image; write it again") from error


def decode(
    content: bytes, name: str, mode: str, frames: Sequence[Size] = (), pictures: Sequence[str] = ("JPEG", "PNG")
) -> np.ndarray:
    """All pixels of an image file: (H, W, 3) uint8 for mode RGB, (H, W) uint16 for mode I;16.

    Raises DataError: the file `name` is in none of the formats `pictures` (RGB), or no PNG (I;16), has a size that is
    none of `frames`, if there are any, or does not decode to the end.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # some package may have set it; half a JPEG must not be scored
    forms, expected = (pictures, f"an RGB {' or '.join(pictures)}") if mode == "RGB" else (["PNG"], "a 16-bit PNG")
    image = opened(content, name)
    found, sizes = f"{image.width}x{image.height}", [f"{width}x{height}" for height, width in frames]
    if image.width * image.height > (MAX_PIXELS if frames else MAX_OWN_PIXELS):
        problem = f"claims {found} pixels, so it is not decoded; remove it"
    elif image.mode != mode or image.format not in forms:
        kind = f"{expected} of one channel" if mode == "I;16" else expected
        problem = f"has mode {image.mode} and format {image.format}, expected {kind} (mode {mode}); write it again"
    elif frames and found not in sizes:
        problem = f"is {found}, expected {' or '.join(sizes)}; do not resize the data set's images"
    else:
        try:
            return np.array(image)
        except (OSError, SyntaxError, ValueError) as error:
            problem = f"truncated or damaged ({error}); write it again"
    raise DataError(f"{name}: {problem}")


def check_files(pairs: Sequence[FilePair], protocol: Protocol) -> None:
    """Reads all files once, before a model is built: about 7 ms an image and core.

    Raises:
        DataError: all files that are missing, unreadable, damaged, of a wrong mode or size, or have no depth that
            counts, with the lines of the list that name them.
    """

    def problems_of(pair: FilePair) -> list[str]:
        problems, sizes = [], []
        for path, mode in ((pair.rgb, "RGB"), (pair.depth, "I;16")):
            try:
                pixels = decode(content_of(path), str(path), mode, protocol.frames, protocol.pictures)
                sizes.append(pixels.shape[:2])
                if mode == "I;16":
                    check_counted(depth_in_metres(pixels, str(path), protocol), str(path), protocol)
            except DataError as error:
                problems.append(str(error))
        if len(set(sizes)) > 1:
            (h, w), (own_h, own_w) = sizes
            problems.append(f"{pair.depth}: is {own_w}x{own_h} where its picture is {w}x{h}; write it again")
        return [f"{pair.origin}: {problem}" if pair.origin else problem for problem in problems]

    with ThreadPoolExecutor() as pool:
        raise_problems([problem for problems in pool.map(problems_of, pairs) for problem in problems])


def check_counted(depth: Tensor, name: str, protocol: Protocol) -> None:
    """Raises DataError: no pixel of a depth map, (1, H, W) [m], counts, so that its image would have no metrics."""
    if not len(counted_pixels(depth, protocol)[0]):
        limits = f"{MIN_DEPTH:g} to {protocol.max_depth:g} m in the region that counts"
        raise DataError(f"{name}: no valid pixel, no depth of {limits}; remove the image, or see its unit")


def depth_in_metres(units: np.ndarray, name: str, protocol: Protocol) -> Tensor:
    """(H, W) uint16 in the protocol's unit -> (1, H, W) float32 [m], clipped to [0, its largest depth].

    Raises DataError: the largest depth is below 0.1 m (but not all is 0, which the metrics name) or beyond what the
    protocol's sensor may give.
    """
    largest = units.max() / protocol.units_per_metre
    if largest != 0 and not LEAST_DEPTH < largest < protocol.largest_sane:
        unit = "millimetres" if protocol.units_per_metre == 1000 else f"units of 1/{protocol.units_per_metre:g} m"
        raise DataError(f"{name}: its largest depth is {largest:g} m, so it does not hold {unit}; write it again")
    metres = torch.from_numpy(units.astype(np.float32) / protocol.units_per_metre)
    return metres.clamp(0, protocol.max_depth)[None]
