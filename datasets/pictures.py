"""Pictures of any size and kind as the arrays that MonoCLIP reads: which files, which pixels, at which size.

- Size: one resize, to the whole number of patches nearest to the picture's own size, or to that of 640x480 pixels if it
  has more. So a 416x544 or 480x640 picture is used pixel for pixel, nothing is cut off, padded or enlarged, and neither
  5000x4000 nor 1x2000 pixels need much memory. The depth map is resized back to the picture's size.
- Kind: rotated as EXIF says; transparent parts become white; 16-bit grey is scaled from its full range; palettes and
  CMYK are converted; of an animation or a multi-page file, the first picture counts; colour profiles are not applied.
- Damage: whatever Pillow cannot decode to the end raises `DataError`; what no decoder notices passes, such as half a
  JPEG with an end marker. Only regular files are opened, because a pipe or a device may never end.
"""

import os
import stat
import sys
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from datasets import DataError, printable, text_of

MAX_WORKING_PIXELS = 480 * 640  # NYU's frame; RN50 then sees rooms at about the scale of the paper's evaluation
MAX_WORKING_SIDE = 9600  # px; a picture one pixel high is stretched to a whole patch, so its area does not bound it
MAX_PICTURE_PIXELS = 120_000_000  # what a file may claim before it is decoded: a 108-megapixel phone, no bomb


def read_picture(source: str | os.PathLike[str] | Image.Image | np.ndarray) -> np.ndarray:
    """The picture as it is meant to be looked at: (H, W, 3) uint8, RGB.

    Args:
        source: a file, a PIL image, or an array (H, W, 3) uint8, RGB, which is returned as it is.

    Raises:
        DataError: no picture, a damaged one, or one that claims more than 120 million pixels.
        ValueError: an array of another shape or dtype.
    """
    if isinstance(source, np.ndarray):
        if source.ndim != 3 or source.shape[2] != 3 or source.dtype != np.uint8 or not source.size:
            raise ValueError(f"expected an array (H, W, 3) uint8, got {source.shape} {source.dtype}")
        return source
    path = "the picture" if isinstance(source, Image.Image) else os.path.expanduser(source)
    try:
        with warnings.catch_warnings():  # what is wrong with a file is said by the errors below
            warnings.simplefilter("ignore")
            if isinstance(source, Image.Image):
                return decoded(source)
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise DataError("not a regular file")
            # Not by its name: Pillow would map an uncompressed TIFF into memory and then mix up a rotated one's rows.
            with open(path, "rb") as file, Image.open(file) as image:
                return decoded(image)
    except MemoryError:
        raise
    except DataError as error:
        problem = str(error)
    except UnidentifiedImageError:
        problem = "not a picture"
    except Exception as error:  # Pillow's readers raise whatever the damage leads them to
        problem = f"cannot be read as a picture ({getattr(error, 'strerror', None) or error})"
    raise DataError(printable(f"{path}: {problem}"))


def decoded(image: Image.Image) -> np.ndarray:
    """All pixels of an opened image of any mode, turned upright: (H, W, 3) uint8, RGB.

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
    return image.convert("RGB")


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
