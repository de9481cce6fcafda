"""Pictures of any size and kind as the arrays that MonoCLIP reads: which files, which pixels, at which size.

- Size: one resize, to the whole number of patches nearest to the picture's own size, or to that of 640x480 pixels if it
  has more. So a 416x544 or 480x640 picture is used pixel for pixel, nothing is cut off, padded or enlarged, and neither
  5000x4000 nor 1x2000 pixels need much memory. The depth map is resized back to the picture's size.
- Kind: rotated as EXIF says; transparent parts become white; 16-bit grey is scaled from its full range; palettes and
  CMYK are converted; of an animation or a multi-page file, the first picture counts; colour profiles are not applied.
  HEIC is read where the package pillow-heif is installed; a video is refused.
- Damage: whatever Pillow cannot decode to the end raises `DataError`; what no decoder notices passes, such as half a
  JPEG with an end marker. Only regular files are opened, because a pipe or a device may never end.
"""

import io
import os
import stat
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from datasets import DataError, printable, text_of

Source = str | os.PathLike[str] | io.BytesIO | Image.Image | np.ndarray | Tensor  # what a picture may be given as

MAX_WORKING_PIXELS = 480 * 640  # NYU's frame; RN50 then sees rooms at about the scale of the paper's evaluation
MAX_WORKING_SIDE = 9600  # px; a picture one pixel high is stretched to a whole patch, so its area does not bound it
MAX_PICTURE_PIXELS = 120_000_000  # what a file may claim before it is decoded: a 108-megapixel phone, no bomb
VIDEO_SUFFIXES = (".3gp", ".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")


def read_picture(source: Source, color: str = "rgb", name: str = "") -> np.ndarray:
    """Return the picture as it is meant to be looked at: (H, W, 3) uint8, RGB.

    Args:
        source: a file, or its bytes; a PIL image; an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), grey, RGB or
            RGBA, or a tensor (3, H, W), of which uint8 counts to 255 and floats to 1; (H, W, 3) uint8 stays as it is.
        color: "bgr" if an array or a tensor has blue first, as cv2 reads it; files and PIL images know their own order.
        name: what errors call it; a file's own unless given.

    Raises:
        DataError: no picture, a damaged one, or one that claims more than 120 million pixels.
        ValueError: an array or a tensor of another shape, dtype or range, or another `color`.
    """
    if color not in ("rgb", "bgr"):
        raise ValueError(f'expected color="rgb" or "bgr", got {color!r}')
    if isinstance(source, np.ndarray | Tensor):
        return pixels_of(source, color)
    path = "the picture" if isinstance(source, io.BytesIO | Image.Image) else os.path.expanduser(source)
    name = name or path
    try:
        with warnings.catch_warnings():  # what is wrong with a file is said by the errors below
            warnings.simplefilter("ignore")
            if isinstance(source, Image.Image):
                return decoded(source)
            if isinstance(source, io.BytesIO):
                return decoded_file(source)
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise DataError("not a regular file")
            if Path(path).suffix.lower() in VIDEO_SUFFIXES:
                raise DataError("a video; take a frame, e.g. ffmpeg -i FILE -frames:v 1 frame.png")
            # Not by its name: Pillow would map an uncompressed TIFF into memory and then mix up a rotated one's rows.
            with open(path, "rb") as file:
                return decoded_file(file)
    except Exception as error:  # Pillow's readers raise whatever the damage leads them to
        problem: object = f"cannot be read as a picture ({getattr(error, 'strerror', None) or error})"
        if isinstance(error, DataError | UnidentifiedImageError):
            problem = error if isinstance(error, DataError) else "not a picture"
        elif isinstance(error, MemoryError):
            problem = "needs more memory than there is"
        raise DataError(printable(f"{name}: {problem}")) from None


def pixels_of(source: np.ndarray | Tensor, color: str) -> np.ndarray:
    """Return the pixels of an array or a tensor: (H, W, 3) uint8, RGB. Raises ValueError, all as `read_picture`."""
    values = source
    if isinstance(values, Tensor):
        if values.ndim != 3 or len(values) != 3 or values.layout != torch.strided or values.is_meta:
            raise ValueError(f"expected a tensor (3, H, W), a batch as a list of them, got {tuple(values.shape)}")
        values = values.detach().cpu().permute(1, 2, 0)
        values = (values.float() if values.is_floating_point() else values).numpy()
    values = values[..., 0] if values.shape[2:] == (1,) else values
    floats = np.issubdtype(values.dtype, np.floating)
    known = values.ndim in (2, 3) and values.shape[2:] in ((), (3,), (4,)) and (floats or values.dtype == np.uint8)
    if not known or not values.size:
        expected = "expected an array (H, W), (H, W, 3) or (H, W, 4) of uint8 or float with at least one pixel"
        raise ValueError(f"{expected}, got {source.shape} {source.dtype}")
    if floats:
        low, high = values.min(), values.max()
        if not (low >= 0 and high <= 1):  # nor NaN
            raise ValueError(f"expected floats in [0, 1], got {low:g} to {high:g}; divide by what is white")
        values = (values * 255).round().astype(np.uint8)
    if color == "bgr" and values.ndim == 3:
        values = values[..., [2, 1, 0, 3][: values.shape[2]]]
    return values if values.shape[2:] == (3,) else np.array(to_rgb(Image.fromarray(values)))


def decoded_file(file: BinaryIO) -> np.ndarray:
    """Return what `decoded` does, of an open file. HEIC needs a package, which its DataError names."""
    head = file.read(12)
    if head[4:8] == b"ftyp" and head[8:] in HEIC_BRANDS:
        try:
            import pillow_heif  # optional
        except ImportError:
            raise DataError("HEIC, which needs the package pillow-heif: pip install it, or save as JPEG") from None
        pillow_heif.register_heif_opener()
    file.seek(0)
    with Image.open(file) as image:
        return decoded(image)


def decoded(image: Image.Image) -> np.ndarray:
    """Return all pixels of an opened image of any mode, turned upright: (H, W, 3) uint8, RGB.

    Raises DataError: empty, too large, or a program; any other exception: damaged, or of a mode that is not known.
    """
    if not 0 < image.width * image.height <= MAX_PICTURE_PIXELS:
        raise DataError(f"claims {image.width}x{image.height} pixels; 1 to {MAX_PICTURE_PIXELS:,} are decoded")
    if image.format == "EPS":
        raise DataError("PostScript, a program rather than a picture; save it as PNG")
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # some package may have set it; half a picture has no depth
    image.load()
    with suppress(Exception):  # the pixels are whole, also where the EXIF block is not
        image = ImageOps.exif_transpose(image)
    return np.array(to_rgb(image))


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
    """The size at which a picture is looked at: multiples of `patch`, near its own size, of bounded area.

    (416, 544) and (480, 640) stay as they are; (4000, 5000) becomes (480, 608); (1, 2000) becomes (32, 2016).
    """
    shrink = min(1.0, (MAX_WORKING_PIXELS / (height * width)) ** 0.5, MAX_WORKING_SIDE / max(height, width))
    rows, columns = (max(1, int(side * shrink / patch + 0.5)) for side in (height, width))
    return rows * patch, columns * patch


def resized(pixels: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """(H, W, 3) uint8 -> (*size, 3) uint8, bicubic with anti-aliasing; the same array if it has that size."""
    if pixels.shape[:2] == size:
        return pixels
    height, width = size
    return np.array(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def find_files(inputs: Sequence[str]) -> dict[Path, Path]:
    """Return the files that `inputs` name, in their order: whole path -> path below a folder that all share.

    An input is a file; a folder, which is searched to its depth; a pattern (`rooms/**/*.jpg`); or a list: a .txt file
    with a path in each line, relative to the list's own folder. The shared folder is the deepest that holds all inputs,
    so no path below it leads upwards, and no two files have the same one. Whether a file can be read is for
    `read_picture` to say.

    Raises DataError: an input that is none of these, or a list that cannot be read.
    """
    files: list[Path] = []
    folders: list[Path] = []  # named by the user, and those of the files
    for text in inputs:
        if not text:
            raise DataError("-i: an empty name (an unset variable?); name a picture, a folder or a pattern")
        path = Path(os.path.abspath(os.path.expanduser(text)))  # not resolve(): a link keeps its place
        named = files_of(path)
        if not named and not os.path.lexists(path):
            raise DataError(f"{printable(text)}: no such file or folder, and no file matches it as a pattern")
        folders += [path] if os.path.isdir(path) else [file.parent for file in named]
        files += named
    base = os.path.commonpath(folders) if folders else ""
    return {file: file.relative_to(base) for file in files}


def files_of(path: Path) -> list[Path]:
    """Return the files of one input; none, if `path` neither exists nor matches. Raises DataError: an unusable list."""
    if os.path.isdir(path):
        return matching(path, Path("**"))
    if not os.path.lexists(path):
        return matching(Path(path.anchor), path.relative_to(path.anchor))
    if path.suffix.lower() != ".txt":
        return [path]
    text = text_of(path)
    if "\0" in text:
        raise DataError(f"{printable(str(path))}: not UTF-8; save the list as that, with a path in each line")
    lines = [line.strip() for line in text.split("\n")]
    files = [Path(os.path.abspath(path.parent / os.path.expanduser(line))) for line in lines if line and line[0] != "#"]
    if not any(file.suffix or os.path.lexists(file) for file in files):
        raise DataError(f"{printable(str(path))}: line 1 names no file, nor does any other; list a path in each line")
    return files


def matching(folder: Path, pattern: Path) -> list[Path]:
    """Return the files below `folder` that a pattern matches, sorted; hidden ones only if it spells them out.

    Links to folders are not followed by `**`, so it ends.
    """
    pattern = pattern / "*" if pattern.name == "**" else pattern
    try:
        paths = sorted(path for path in folder.glob(str(pattern)) if not os.path.isdir(path))
    except (ValueError, OSError):  # `a**`, which is no pattern to pathlib, or a name that is too long
        return []
    return [p for p in paths if all(n[0] != "." or n in pattern.parts for n in p.relative_to(folder).parts)]
