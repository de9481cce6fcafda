"""Pictures of any size and kind as the arrays that MonoCLIP reads: which files, which pixels, at which size.

One resize, to the whole number of patches nearest to the picture's own size, or to that of 640x480 pixels if it has
more. Pictures are turned as EXIF says; transparent parts become white; 16-bit grey is scaled from its full range; of
several pictures in a file the first counts; colour profiles are not applied; HEIC needs the package pillow-heif.
Whatever Pillow cannot decode to the end raises `DataError`; what no decoder notices passes.
"""

import os
import warnings
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from itertools import takewhile
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from datasets import DataError, check_regular, printable, text_of

Source = str | os.PathLike[str] | BinaryIO | Image.Image | np.ndarray | Tensor  # what a picture may be given as

MAX_WORKING_PIXELS = 480 * 640  # NYU's frame; RN50 then sees rooms at about the scale of the paper's evaluation
MAX_WORKING_SIDE = 9600  # px; a picture one pixel high is stretched to a whole patch, so its area does not bound it
MAX_PICTURE_PIXELS = 120_000_000  # what a file may claim before it is decoded: a 108-megapixel phone, no bomb
VIDEO_SUFFIXES = (".3gp", ".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
WHITE = {"u1": 255, "u2": 65535, "f2": 1, "f4": 1, "f8": 1}  # the value that is white, by kind and bytes of a number
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def read_picture(source: Source, color: str = "rgb", name: str = "") -> np.ndarray:
    """Return the picture as it is meant to be looked at: (H, W, 3) uint8, RGB.

    Args:
        source: a file, by name or open (a BytesIO); a PIL image; an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4),
            grey, RGB or RGBA, or a tensor (3, H, W), of uint8, which stays as it is, uint16, or floats up to 1.
        color: "bgr" if an array or a tensor has blue first, as cv2 reads it; files and PIL images know their own order.
        name: what errors call it; a file's own unless given.

    Raises DataError: no picture, a damaged or a huge one; ValueError: another shape, dtype or range, a list, a `color`.
    """
    if color not in ("rgb", "bgr"):
        raise ValueError(f'expected color="rgb" or "bgr", got {color!r}')
    if isinstance(source, list | tuple) or getattr(source, "ndim", 0) == 4:
        raise ValueError("expected one picture, got a list of pictures: call it for each one")
    if isinstance(source, np.ndarray | Tensor):
        return pixels_of(source, color)
    path = os.path.expanduser(source) if isinstance(source, str | os.PathLike) else "the picture"
    try:
        with warnings.catch_warnings(), ExitStack() as stack:
            warnings.simplefilter("ignore")  # what is wrong with a file is said by the errors below
            if isinstance(source, str | os.PathLike):
                check_regular(path)
                if Path(path).suffix.lower() in VIDEO_SUFFIXES:
                    raise DataError("a video; take a frame, e.g. ffmpeg -i FILE -frames:v 1 frame.png")
                # Not by its name: Pillow would map an uncompressed TIFF into memory and mix up a rotated one's rows.
                source = stack.enter_context(open(path, "rb"))
            image = source if isinstance(source, Image.Image) else opened(source)
            return np.array(to_rgb(upright(image)))
    except Exception as error:  # Pillow's readers raise whatever the damage leads them to
        known = {UnidentifiedImageError: "not a picture", MemoryError: "needs more memory than there is"}
        problem = known.get(type(error), f"cannot be read as a picture ({getattr(error, 'strerror', None) or error})")
        raise DataError(printable(f"{name or path}: {error if isinstance(error, DataError) else problem}")) from None


def pixels_of(values: np.ndarray | Tensor, color: str) -> np.ndarray:
    """Return the pixels of an array or a tensor: (H, W, 3) uint8, RGB. Raises ValueError, all as `read_picture`."""
    if isinstance(values, Tensor):
        if values.ndim != 3 or len(values) != 3 or values.layout != torch.strided or values.is_meta:
            raise ValueError(f"expected a tensor (3, H, W), got {tuple(values.shape)}")
        values = values.detach().cpu().permute(1, 2, 0)
        values = (values.float() if values.is_floating_point() else values).numpy()
    values = values[..., 0] if values.shape[2:] == (1,) else values
    white = WHITE.get(values.dtype.str[1:])
    if not white or not values.size or values.ndim not in (2, 3) or values.shape[2:] not in ((), (3,), (4,)):
        expected = "expected an array (H, W), (H, W, 3) or (H, W, 4) of uint8, uint16 or float with at least one pixel"
        raise ValueError(f"{expected}, got {values.shape} {values.dtype}")
    if not (values.min() >= 0 and values.max() <= white):  # nor NaN
        raise ValueError(f"expected floats in [0, 1], got {values.min():g} to {values.max():g}; divide by white")
    if white != 255:
        values = (values * (255 / white)).round().astype(np.uint8)
    if color == "bgr" and values.ndim == 3:
        values = values[..., [2, 1, 0, 3][: values.shape[2]]]
    return values if values.shape[2:] == (3,) else np.array(to_rgb(Image.fromarray(values)))


def opened(file: BinaryIO) -> Image.Image:
    """Return the image in an open file. Raises DataError: HEIC, which needs a package; any other: no picture."""
    head = file.read(12)
    if head[4:8] == b"ftyp" and head[8:] in HEIC_BRANDS:
        try:
            import pillow_heif  # optional
        except ImportError:
            raise DataError("HEIC, which needs the package pillow-heif: pip install it, or save as JPEG") from None
        pillow_heif.register_heif_opener()
    file.seek(0)
    return Image.open(file)


def upright(image: Image.Image) -> Image.Image:
    """Return an opened image, read to its end and turned as its EXIF tag says. Raises if it is damaged."""
    if not 0 < image.width * image.height <= MAX_PICTURE_PIXELS:
        raise DataError(f"claims {image.width}x{image.height} pixels; 1 to {MAX_PICTURE_PIXELS:,} are decoded")
    if image.format == "EPS":
        raise DataError("PostScript, a program rather than a picture; save it as PNG")
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # some package may have set it; half a picture has no depth
    image.load()
    with suppress(Exception):  # the pixels are whole, also where the EXIF block is not
        return ImageOps.exif_transpose(image)
    return image


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB: 16 bits and more scaled to 8, transparent parts on white."""
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
        # 65535 is white for 16 bits; wider types define no white, so there it is the largest value.
        white = 65535.0 if image.mode != "F" and grey.max() <= 65535 else grey.max()
        levels = grey.clip(0) * (255 / white if white > 0 else 0)
        return Image.fromarray(levels.round().astype(np.uint8)).convert("RGB")
    if image.has_transparency_data:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def working_size(height: int, width: int, patch: int) -> tuple[int, int]:
    """The size at which a picture is looked at: multiples of `patch`, near its own size, of bounded area."""
    shrink = min(1.0, (MAX_WORKING_PIXELS / (height * width)) ** 0.5, MAX_WORKING_SIDE / max(height, width))
    rows, columns = (max(1, int(side * shrink / patch + 0.5)) for side in (height, width))
    return rows * patch, columns * patch


def resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 -> (*size, 3) uint8, bicubic with anti-aliasing; pixels of that size stay."""
    height, width = size
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def find_files(inputs: Sequence[str]) -> dict[Path, Path]:
    """Return the files that `inputs` name, in their order: whole path -> path below the deepest folder that all share.

    An input is a file; a folder, searched to its depth; a pattern (`rooms/**/*.jpg`); or a .txt file of paths, relative
    to its own folder; else DataError. A folder below that cannot be read stands for its files: `read_picture` says it.
    """
    files, folders = list[Path](), list[Path]()  # the latter named by the user, and those of the files
    for text in inputs:
        if not text:
            raise DataError("-i: an empty name (an unset variable?); name a picture, a folder or a pattern")
        path = Path(os.path.abspath(os.path.expanduser(text)))  # not resolve(): a link keeps its place
        if is_folder := os.path.isdir(path):
            named = matching(path, Path("**"))
        elif os.path.lexists(path):
            named = listed(path) if path.suffix.lower() == ".txt" else [path]
        else:
            named = matching(Path(path.anchor), path.relative_to(path.anchor))
        if is_folder and path in named:
            raise DataError(f"{printable(text)}: a folder, which cannot be read")
        if not named and not is_folder:
            raise DataError(f"{printable(text)}: no such file or folder, and no file matches it as a pattern")
        folders += [path] if is_folder else [file.parent for file in named]
        files += named
    base = os.path.commonpath(folders) if folders else ""
    return {file: file.relative_to(base) for file in files}


def listed(path: Path) -> list[Path]:
    """Return the files that a list names. Raises DataError: it cannot be read or names none."""
    text = text_of(path)
    if "\0" in text:
        raise DataError(f"{printable(path)}: not UTF-8; save the list as that, with a path in each line")
    lines = [line.strip() for line in text.split("\n")]
    files = [Path(os.path.abspath(path.parent / os.path.expanduser(line))) for line in lines if line and line[0] != "#"]
    if not any(file.suffix or os.path.lexists(file) for file in files):
        raise DataError(f"{printable(path)}: line 1 names no file, nor does any other; list a path in each line")
    return files


def matching(folder: Path, pattern: Path) -> list[Path]:
    """Return the files below `folder` that a pattern matches, sorted; hidden ones only if it spells them out.

    Links to folders are not followed by `**`, so it ends. A folder that it cannot search is among the files.
    """
    top, unread = folder.joinpath(*takewhile("**".__ne__, pattern.parts)), list[Path]()
    if "**" in pattern.parts and os.path.isdir(top):  # `glob` would pass by what it cannot read
        list(os.walk(top, onerror=lambda error: unread.append(Path(error.filename))))
    try:
        found = folder.glob(str(pattern / "*" if pattern.name == "**" else pattern))
        paths = sorted({path for path in found if not os.path.isdir(path)}.union(unread))
    except (ValueError, OSError):  # `a**`, which is no pattern to pathlib, or a name that is too long
        return []
    return [p for p in paths if all(n[0] != "." or n in pattern.parts for n in p.relative_to(folder).parts)]
