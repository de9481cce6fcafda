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

import logging
import os
import stat
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError
from torch import Tensor

from datasets import DataError, printable, text_of

Source = str | os.PathLike[str] | Image.Image | np.ndarray | Tensor  # what a picture may be given as

MAX_WORKING_PIXELS = 480 * 640  # NYU's frame; RN50 then sees rooms at about the scale of the paper's evaluation
MAX_WORKING_SIDE = 9600  # px; a picture one pixel high is stretched to a whole patch, so its area does not bound it
MAX_PICTURE_PIXELS = 120_000_000  # what a file may claim before it is decoded: a 108-megapixel phone, no bomb
VIDEO_SUFFIXES = (".3gp", ".avi", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".webm", ".wmv")
HEIC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1"}  # AVIF has mif1, too


def read_picture(source: Source, color: str = "rgb") -> np.ndarray:
    """The picture as it is meant to be looked at: (H, W, 3) uint8, RGB.

    Args:
        source: a file; a PIL image; an array (H, W), (H, W, 1), (H, W, 3) or (H, W, 4), grey, RGB or RGBA, or a tensor
            (3, H, W), of which uint8 counts to 255 and floats to 1; (H, W, 3) uint8 is returned as it is.
        color: "bgr" if an array or a tensor has blue first, as cv2 reads it; files and PIL images know their own order.

    Raises:
        DataError: no picture, a damaged one, or one that claims more than 120 million pixels.
        ValueError: an array or a tensor of another shape, dtype or range, or another `color`.
    """
    if color not in ("rgb", "bgr"):
        raise ValueError(f'expected color="rgb" or "bgr", got {color!r}')
    if isinstance(source, np.ndarray | Tensor):
        return pixels_of(source, color)
    if not isinstance(source, str | os.PathLike | Image.Image):
        raise ValueError(f"expected a file's name, a PIL image, an array or a tensor, got {type(source).__name__}")
    path = "the picture" if isinstance(source, Image.Image) else os.path.expanduser(source)
    try:
        with warnings.catch_warnings():  # what is wrong with a file is said by the errors below
            warnings.simplefilter("ignore")
            if isinstance(source, Image.Image):
                return decoded(source, path)
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise DataError("not a regular file")
            if Path(path).suffix.lower() in VIDEO_SUFFIXES:
                raise DataError("a video; take a frame, e.g. ffmpeg -i FILE -frames:v 1 frame.png")
            # Not by its name: Pillow would map an uncompressed TIFF into memory and then mix up a rotated one's rows.
            with open(path, "rb") as file:
                learn_heic(file.read(64))
                file.seek(0)
                with Image.open(file) as image:
                    return decoded(image, path)
    except MemoryError:
        raise
    except DataError as error:
        problem = str(error)
    except UnidentifiedImageError:
        problem = "not a picture"
    except Exception as error:  # Pillow's readers raise whatever the damage leads them to
        problem = f"cannot be read as a picture ({getattr(error, 'strerror', None) or error})"
    raise DataError(printable(f"{path}: {problem}"))


def pixels_of(source: np.ndarray | Tensor, color: str) -> np.ndarray:
    """The pixels of an array or a tensor: (H, W, 3) uint8, RGB. Raises ValueError, all as `read_picture`."""
    values = source
    if isinstance(values, Tensor):
        if values.ndim != 3 or len(values) != 3:
            raise ValueError(f"expected a tensor (3, H, W), a batch as a list of them, got {tuple(values.shape)}")
        values = values.detach().cpu().permute(1, 2, 0)
        values = (values.float() if values.is_floating_point() else values).numpy()
    values = values[..., None] if values.ndim == 2 else values  # (H, W, channels)
    floats = np.issubdtype(values.dtype, np.floating)
    if values.ndim != 3 or values.shape[2] not in (1, 3, 4) or not (floats or values.dtype == np.uint8):
        expected = "expected an array (H, W), (H, W, 3) or (H, W, 4) of uint8 or float"
        raise ValueError(f"{expected}, got {source.shape} {source.dtype}")
    if not values.size:
        raise ValueError(f"expected at least one pixel, got {tuple(source.shape)}")
    if floats:
        if not (values.min() >= 0 and values.max() <= 1):  # nor NaN
            raise ValueError(
                f"expected floats in [0, 1], got {values.min():g} to {values.max():g}; divide by what is white"
            )
        values = (values * 255).round().astype(np.uint8)
    if color == "bgr":
        values = values[..., {1: [0], 3: [2, 1, 0], 4: [2, 1, 0, 3]}[values.shape[2]]]
    if values.shape[2] == 4:
        values = np.array(to_rgb(Image.fromarray(values)))
    return values if values.shape[2] == 3 else values.repeat(3, axis=2)


def learn_heic(head: bytes) -> None:
    """Lets Pillow read HEIC if a file begins so. Raises DataError: the package that can read it is missing."""
    box = head[: int.from_bytes(head[:4])] if head[4:8] == b"ftyp" else b""
    brands = {box[at : at + 4] for at in range(8, len(box), 4)}
    if brands & HEIC_BRANDS and not brands & {b"avif", b"avis"}:
        try:
            import pillow_heif  # optional
        except ImportError:
            raise DataError("HEIC, which needs the package pillow-heif: pip install it, or save as JPEG") from None
        pillow_heif.register_heif_opener()


def decoded(image: Image.Image, name: str) -> np.ndarray:
    """All pixels of an opened image of any mode, turned upright: (H, W, 3) uint8, RGB.

    A PNG's 16 bits that end below 1/8 of the range, as a camera's 12 or 10 bits do, are logged under `name`.

    Raises DataError: empty, too large, or a program; any other exception: damaged, or of a mode that is not known.
    """
    if not 0 < image.width * image.height <= MAX_PICTURE_PIXELS:
        raise DataError(f"claims {image.width}x{image.height} pixels; 1 to {MAX_PICTURE_PIXELS:,} are decoded")
    if image.format == "EPS":
        raise DataError("PostScript, a program rather than a picture; save it as PNG")
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # some package may have set it; half a picture has no depth
    stored = str(getattr(image, "tile", ""))
    colours = any(form in stored for form in ("RGB;16", "RGBA;16", "LA;16"))  # which Pillow reads as 8 bits
    image.load()
    with suppress(Exception):  # the pixels are whole, also where the EXIF block is not
        image = ImageOps.exif_transpose(image)
    pixels = np.array(to_rgb(image))
    share = pixels.max() / 255 if colours else np.asarray(image).max() / 65535 if image.mode.startswith("I") else 1
    if share < 1 / 8 and (colours or share > 0):
        dark = "its 16-bit values are all below 1/8 of the range, so it is nearly black; scale 10 or 12 bits to 16"
        logging.getLogger(__name__).warning(printable(f"warning: {name}: {dark}"))
    return pixels


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
    """The files that `inputs` name, in their order and sorted within each: whole path -> path below a shared folder.

    An input is a file; a folder, which is searched to its depth (hidden entries are passed by); a pattern
    (`rooms/**/*.jpg`); or a list: a .txt file with a path in each line, relative to the list's own folder. Neither a
    search nor `**` follows links to folders, so both end. The shared folder is the deepest that holds all inputs, so
    no path below it leads upwards, and no two files have the same one. Whether a file can be read is for
    `read_picture` to say; a folder that cannot be searched is named on standard error.

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
    """The files of one input; none, if `path` neither exists nor matches. Raises DataError: an unusable list."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return matching(path)
    except OSError:
        return [path]  # in a folder that may not be entered, say: it is skipped when it is read
    if stat.S_ISDIR(mode):
        return search(path)
    if not stat.S_ISREG(mode) or path.suffix.lower() != ".txt":
        return [path]
    text = text_of(path)
    if "\0" in text:
        raise DataError(f"{printable(str(path))}: not UTF-8; save the list as that, with a path in each line")
    lines = [line.strip() for line in text.split("\n")]
    return [Path(os.path.abspath(path.parent / os.path.expanduser(line))) for line in lines if line]


def search(folder: Path) -> list[Path]:
    """All files below `folder`, sorted, as `find_files` describes."""

    def failed(error: OSError) -> None:
        print(printable(f"skipped: {error.filename}: cannot be searched ({error.strerror})"), file=sys.stderr)

    files = []
    for parent, folders, names in os.walk(folder, onerror=failed):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        files += [Path(parent, name) for name in sorted(names) if not name.startswith(".")]
    return files


def matching(pattern: Path) -> list[Path]:
    """The files that a whole path with wildcards matches, sorted; hidden names only if the pattern spells them out."""
    pattern = pattern / "*" if pattern.name == "**" else pattern
    try:
        found = Path(pattern.anchor).glob(str(pattern.relative_to(pattern.anchor)))  # its ** follows no links
        paths = sorted(path for path in found if not os.path.isdir(path))
    except (ValueError, OSError):  # `a**`, which is no pattern to pathlib, or a name that is too long
        return []
    return [path for path in paths if all(part[0] != "." or part in pattern.parts for part in path.parts)]
