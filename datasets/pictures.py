"""Pictures of any size and kind as the arrays that MonoCLIP reads: which files, which pixels, at which size.

What is decided here:

- Size: one resize, to the whole number of patches nearest to the picture's own size in each direction, at least one;
  beforehand, a picture of more than 640x480 pixels is taken as reduced to that many. So a 416x544 or 480x640 picture is
  used pixel for pixel, nothing is cut off or padded, and neither 5000x4000 nor 1x2000 pixels need much memory. The
  depth map is resized back to the picture's size. Small pictures are not enlarged: CLIP's patches would only show blur.
- Kind: rotated as EXIF says; transparent parts become white; 16-bit grey is scaled from its full range; palettes and
  CMYK are converted; of an animation or a multi-page file, the first picture counts; colour profiles are not applied.
- Damage: whatever Pillow cannot decode to the end raises `DataError`. What no decoder notices, such as half a JPEG that
  somebody closed with an end marker, is not noticed here either.
- Names: any that the system has. Only regular files are opened, because a pipe or a device may never end. Messages are
  `printable`.
"""

import glob
import os
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageFile

from datasets import DataError, printable

MAX_WORKING_PIXELS = 480 * 640  # NYU's frame; RN50 then sees rooms at about the scale of the paper's evaluation
MAX_WORKING_SIDE = 9600  # px; a picture one pixel high is stretched to a whole patch, so its area does not bound it
MAX_PICTURE_PIXELS = 120_000_000  # what a file may claim before it is decoded: a 108-megapixel phone, no bomb

# What EXIF's orientation asks of a viewer.
EXIF_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


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
    with warnings.catch_warnings():  # what is wrong with a file is said by the errors below
        warnings.simplefilter("ignore")
        if isinstance(source, Image.Image):
            return decode_picture(source, "the picture")
        path = os.path.expanduser(source)
        name = printable(path)
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):
                raise DataError(f"{name}: not a regular file")
            # Not by its name: Pillow would map an uncompressed TIFF into memory and then mix up a rotated one's rows.
            with open(path, "rb") as file, Image.open(file) as image:
                return decode_picture(image, name)
        except (DataError, MemoryError):
            raise
        except Image.DecompressionBombError as error:
            raise too_large(name) from error
        except FileNotFoundError as error:
            raise DataError(f"{name}: no such file") from error
        except Image.UnidentifiedImageError as error:
            raise DataError(f"{name}: not a picture") from error
        except Exception as error:  # Pillow's readers raise whatever the damage leads them to
            raise DataError(f"{name}: not readable ({reason(error)})") from error


def reason(error: Exception) -> str:
    """What an error says, without the file's name."""
    return printable(str(getattr(error, "strerror", None) or error))


def too_large(name: str) -> DataError:
    """The error for a picture whose header claims more pixels than are decoded."""
    return DataError(f"{name}: claims more than {MAX_PICTURE_PIXELS:,} pixels, so it is not decoded")


def decode_picture(image: Image.Image, name: str) -> np.ndarray:
    """All pixels of an opened image of any mode, turned upright: (H, W, 3) uint8, RGB.

    Raises:
        DataError: `name` is damaged, empty, too large, or of a mode that is not known.
    """
    if image.width * image.height > MAX_PICTURE_PIXELS:
        raise too_large(name)
    if not image.width * image.height:
        raise DataError(f"{name}: has no pixels")
    if image.format == "EPS":
        raise DataError(f"{name}: PostScript, a program rather than a picture; save it as PNG")
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # some package may have set it; half a picture has no depth
    try:
        image.load()
        rgb = to_rgb(image)
    except MemoryError:
        raise
    except Exception as error:  # Pillow's readers raise whatever the damage leads them to
        raise DataError(f"{name}: truncated or damaged ({reason(error)})") from error
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except Exception:  # the pixels are whole, only the EXIF block is not
        orientation = None
    if orientation in EXIF_TRANSPOSE:
        rgb = rgb.transpose(EXIF_TRANSPOSE[orientation])
    return np.array(rgb)


def to_rgb(image: Image.Image) -> Image.Image:
    """The image in mode RGB: 16 bits and more scaled to 8, transparent parts on white."""
    if image.mode.startswith("I") or image.mode == "F":
        grey = np.nan_to_num(np.asarray(image, dtype=np.float64), posinf=0, neginf=0)
        # 65535 is white for 16 bits; wider types define no white, so there it is the largest value.
        white = 65535.0 if image.mode != "F" and grey.max() <= 65535 else grey.max()
        levels = grey.clip(0) * (255 / white if white > 0 else 0)
        return Image.fromarray(levels.round().astype(np.uint8)).convert("RGB")
    if image.mode == "La":
        image = image.convert("LA")
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


@dataclass(frozen=True)
class Found:
    """One file to read, and its path relative to the folder that all inputs share."""

    path: Path
    relative: Path


def find_files(
    inputs: Sequence[str],
    skip: Callable[[str], None],
    left_out: Sequence[str] = (),
    without: Path | None = None,
) -> list[Found]:
    """The files that `inputs` name, each once, in the order of the inputs and sorted within each of them.

    An input is a file; a folder, which is searched to its depth (hidden entries are passed by); a pattern
    (`rooms/**/*.jpg`); or a list: a .txt file with a path in each line, relative to the list's own folder. Neither a
    search nor `**` follows links to folders, so both end. The relative paths are those below the deepest folder that
    holds all inputs, so they never lead upwards, and two files never have the same one. Whether a file that a list, a
    pattern or a folder names can be read is for `read_picture` to say.

    Args:
        inputs: what the user named.
        skip: hears one sentence about each folder that cannot be searched.
        left_out: name patterns that a folder's search passes by.
        without: a folder that a search does not enter, unless it is the one to search.

    Raises:
        DataError: an input that is none of these, or a list that cannot be read.
    """
    files: list[Path] = []
    shared: list[str] = []  # folders named by the user, and those of the files
    for text in inputs:
        if not text:
            raise DataError("-i: an empty name (an unset variable?); name a picture, a folder or a pattern")
        path = Path(os.path.abspath(os.path.expanduser(text)))  # not resolve(): a link keeps its place
        if os.path.isdir(path):
            shared.append(str(path))
            files += search(path, skip, left_out, without)
            continue
        named = files_of(path, text)
        shared += [str(file.parent) for file in named]
        files += named
    base = os.path.commonpath(shared) if shared else ""
    return [Found(file, file.relative_to(base)) for file in dict.fromkeys(files)]


def files_of(path: Path, text: str) -> list[Path]:
    """The files of one input that is no folder: `path`, which the user wrote as `text`. Raises DataError."""
    try:
        regular = stat.S_ISREG(os.stat(path).st_mode)
    except (FileNotFoundError, NotADirectoryError) as error:
        if named := matching(os.path.expanduser(text)):
            return named
        raise DataError(f"{printable(text)}: no such file or folder, and no file matches it as a pattern") from error
    except OSError:
        return [path]  # in a folder that may not be entered, say: it is skipped when it is read
    if not regular:
        raise DataError(f"{printable(text)}: not a regular file; name a picture, a folder, a pattern or a list")
    return files_of_list(path) if path.suffix.lower() == ".txt" else [path]


def walk(folder: Path, skip: Callable[[str], None]) -> Iterator[tuple[Path, list[str], list[str]]]:
    """As os.walk: `folder` and the folders below it, sorted; without those that are hidden, and through no links."""

    def failed(error: OSError) -> None:
        skip(printable(f"{error.filename}: cannot be searched ({error.strerror})"))

    for parent, folders, names in os.walk(folder, onerror=failed):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        yield Path(parent), folders, sorted(names)


def matching(pattern: str) -> list[Path]:
    """The files that a pattern matches, sorted; `**` stands for any number of folders, and follows no links."""
    parts = Path(pattern).parts
    places = [Path()]
    for part in (*parts, "*") if parts[-1] == "**" else parts:
        if part == "**":
            found = [parent for place in places for parent, _, _ in walk(place, lambda sentence: None)]
        else:
            found = [place / name for place in places for name in glob.glob(part, root_dir=place)]
        places = list(dict.fromkeys(found))
    return sorted(Path(os.path.abspath(place)) for place in places if not os.path.isdir(place))


def search(folder: Path, skip: Callable[[str], None], left_out: Sequence[str], without: Path | None) -> list[Path]:
    """All files below `folder`, sorted, as `find_files` describes."""
    files = []
    for parent, folders, names in walk(folder, skip):
        folders[:] = [name for name in folders if parent / name != without]
        paths = [parent / name for name in names if not name.startswith(".")]
        files += [path for path in paths if not any(path.match(pattern) for pattern in left_out)]
    return files


def files_of_list(path: Path) -> list[Path]:
    """The files that a text file names, one in each line; they need not exist."""
    name = printable(str(path))
    try:
        text = path.read_text(encoding="utf-8-sig", errors="surrogateescape")  # names need not be UTF-8
    except OSError as error:
        raise DataError(f"{name}: cannot be read as a list of files ({reason(error)})") from error
    named = [line.strip() for line in text.split("\n") if line.strip()]
    if bad := [line for line in named if "\0" in line]:
        raise DataError(f"{name}: {printable(bad[0])} is not a path; save the list as UTF-8, with a path in each line")
    if not named:
        raise DataError(f"{name}: names no picture; write a path in each line")
    return [Path(os.path.abspath(path.parent / os.path.expanduser(line))) for line in named]
