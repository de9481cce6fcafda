"""The files of NYU Depth V2 in the field's layout: which of them belong together, and whether they are whole.

Layout: `<root>/official_splits/test/<scene>/rgb_{i:05d}.jpg` with `sync_depth_{i:05d}.png`, i the 0-based index into
the labelled data set; `prepare_nyu.py` writes it. RGB is 640x480; depth is a 16-bit PNG in millimetres, where 0 means
no measurement.

Nothing is repaired silently: `check_files` looks at every file before a model is built and reports all that is wrong at
once, and a file that does not decode to the end raises. What no decoder can tell, bytes changed inside a whole JPEG,
`prepare_nyu.py --check` finds by the hashes it recorded. Nothing is ever written here, and torch is not needed.
"""

import re
import warnings
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageFile

FRAME = (480, 640)  # (H, W) of every RGB and depth image
DEPTH_UNITS_PER_METRE = 1000  # the PNGs hold millimetres
SANE_DEPTH = (0.1, 65.0)  # [m] a largest depth outside this range is another unit or a damaged file
MAX_PIXELS = 4_000_000  # an image that claims more is refused before it is decoded

# The 654 test images, 0-based (splits.mat of the data set, less one).
TEST_RANGES = """
    0-1 8 13-17 20 27-42 45-46 55-56 58-62 75-78 83-90 116-118 124-128 130-133 136 152-154 166-168 170-175
    179-201 206-211 219-221 249 263 270-272 278-284 295-301 309-311 314-316 324-334 350-351 354-363 383-389
    394-396 410-413 429-434 440-447 461-465 468-476 507-512 514-525 530-532 536-538 548-550 554-570 578-582
    590-593 602-606 611-612 616-620 632-637 643-644 649-650 655-657 662-663 667-672 675-680 685-689 692-693
    696-698 705-712 716-717 723-727 730-733 742-743 758-786 799-803 809-813 820-822 832-845 849-851 856-861
    868-870 905-907 916-918 925-927 931-934 944-946 958-961 964-966 969-976 990-994 1000-1003 1009-1011
    1020-1022 1031-1033 1037-1038 1047-1048 1051-1052 1056-1057 1074-1083 1087-1095 1097-1103 1105-1108
    1116-1118 1122-1130 1134-1135 1143-1157 1161-1166 1169-1170 1173-1175 1178-1183 1191-1195 1200-1211
    1215-1219 1225-1229 1232-1234 1246-1249 1253-1264 1274-1279 1284-1294 1296-1298 1301-1307 1313-1314
    1328-1331 1334-1339 1346-1348 1352-1355 1363-1364 1367-1368 1383-1390 1393-1400 1406-1413 1420-1423
    1429-1432 1440-1448
"""


def _expand(ranges: str) -> tuple[int, ...]:
    bounds = [tuple(map(int, part.split("-"))) for part in ranges.split()]
    return tuple(i for bound in bounds for i in range(bound[0], bound[-1] + 1))


TEST_INDICES = _expand(TEST_RANGES)


class DataError(ValueError):
    """The data cannot be used as they are; the message says which file, what is wrong and what to do."""


@dataclass(frozen=True)
class Pair:
    """One test image: its files, its scene, its 0-based index and where a reader finds it in the input."""

    rgb: Path
    depth: Path
    scene: str
    index: int
    origin: str = ""  # "list.txt, line 7" when it comes from a list file

    @property
    def name(self) -> str:
        """`<scene>/<file name of the RGB image>`, the name of the image in every table."""
        return f"{self.scene}/{self.rgb.name}"


def test_split_folder(root: Path) -> Path:
    """The folder of the scenes: `<root>/official_splits/test`, or `root` where that does not exist.

    Raises:
        DataError: there is no such folder.
    """
    if not root.is_dir():
        raise DataError(f"{root}: no such folder; give the folder that holds official_splits/test")
    inner = root / "official_splits" / "test"
    return inner if inner.is_dir() else root


def scan_folder(root: Path) -> list[Pair]:
    """All pairs below the test split of `root`, sorted by scene and file name.

    Raises:
        DataError: no image at all; an RGB image without depth or the reverse; a name without an index; an index that
            occurs twice. All of them are listed.
    """
    folder = test_split_folder(root)
    found: dict[str, dict[tuple[str, int], Path]] = {"rgb": {}, "sync_depth": {}}
    problems = []
    for kind, suffix in (("rgb", ".jpg"), ("sync_depth", ".png")):
        for path in sorted(folder.glob(f"*/{kind}_*")):
            match = re.fullmatch(rf"{kind}_(\d+){re.escape(suffix)}", path.name)
            if match is None:
                problems.append(f"{path}: expected a name like {kind}_00045{suffix}")
                continue
            key = (path.parent.name, int(match[1]))
            if key in found[kind]:
                problems.append(f"{path}: a second file of index {key[1]}, beside {found[kind][key].name}")
            found[kind].setdefault(key, path)
    rgb, depth = found["rgb"], found["sync_depth"]
    if not rgb and not depth and not problems:
        raise DataError(
            f"{folder}: no <scene>/rgb_*.jpg with sync_depth_*.png in it; "
            "write them with python -m datasets.prepare_nyu, or give another folder"
        )
    problems += [
        f"{path}: its depth map sync_depth_{key[1]:05d}.png is missing" for key, path in rgb.items() if key not in depth
    ]
    problems += [f"{path}: its image rgb_{key[1]:05d}.jpg is missing" for key, path in depth.items() if key not in rgb]
    for index, count in Counter(index for _, index in rgb).items():
        if count > 1:
            scenes = ", ".join(scene for scene, i in rgb if i == index)
            problems.append(f"{folder}: index {index} occurs {count} times, in {scenes}")
    raise_problems(problems)
    return [Pair(rgb[key], depth[key], *key) for key in sorted(rgb, key=lambda key: (key[0], rgb[key].name))]


def read_list(list_file: Path, root: Path, any_index: bool = False) -> list[Pair]:
    """The pairs that a text file names, sorted by RGB path.

    Each line holds the RGB path and the depth path relative to the test split, then optionally the focal length, which
    is not used; blank lines are skipped.

    Args:
        list_file: the text file.
        root: as for `scan_folder`.
        any_index: accept pairs whose file names carry different indices (other data sets).

    Raises:
        DataError: all lines that are wrong, with their numbers.
    """
    folder = test_split_folder(root)
    try:
        text = list_file.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{list_file}: cannot be read ({error}); give a text file of 'rgb depth' lines") from error
    pairs: list[Pair] = []
    problems: list[str] = []
    seen: dict[str, str] = {}
    for number, line in enumerate(text.split("\n"), 1):
        columns = line.split()
        where = f"{list_file}, line {number}"
        if not columns:
            continue
        if len(columns) not in (2, 3):
            problems.append(
                f"{where}: {len(columns)} columns, expected RGB path, depth path and optionally focal length"
            )
            continue
        wrong = [reason for column in columns[:2] if (reason := unsafe_path(column, folder))]
        for column in columns[:2]:
            key = str(PurePosixPath(column))
            if key in seen:
                wrong.append(f"{column} stands in {seen[key]} already")
            seen.setdefault(key, f"line {number}")
        rgb, depth = (PurePosixPath(column) for column in columns[:2])
        indices = [re.search(r"(\d{1,9})$", path.stem) for path in (rgb, depth)]
        if not wrong and not any_index and (not all(indices) or len({int(i[1]) for i in indices if i}) != 1):
            wrong.append(f"{rgb.name} and {depth.name} do not carry the same index")
        problems += [f"{where}: {reason}" for reason in wrong]
        if not wrong:
            index = int(indices[0][1]) if indices[0] else -1
            pairs.append(Pair(folder / rgb, folder / depth, rgb.parent.name, index, where))
    if not pairs and not problems:
        problems.append(f"{list_file}: names no image")
    raise_problems(problems)
    return sorted(pairs, key=lambda pair: str(pair.rgb))


def unsafe_path(text: str, folder: Path) -> str | None:
    """Why the relative path `text` must not be opened below `folder`, or None."""
    path = PurePosixPath(text)
    if "\0" in text or "\\" in text or path.is_absolute() or ".." in path.parts or re.match(r"[A-Za-z]:", text):
        return f"{text!r} is not a plain relative path"
    if not (folder / path).resolve().is_relative_to(folder.resolve()):
        return f"{text!r} leads out of {folder}"
    return None


def raise_problems(problems: Sequence[str]) -> None:
    """Raises one DataError that lists all `problems`, if there are any."""
    if len(problems) == 1:
        raise DataError(problems[0])
    if problems:
        raise DataError(f"{len(problems)} problems in the data:\n" + "\n".join(f"  {problem}" for problem in problems))


def open_image(path: Path, mode: str) -> Image.Image:
    """The image, opened but not decoded, a JPEG of mode RGB or a PNG of mode I;16 (16 bits), and of 640x480 pixels.

    Raises:
        DataError: it cannot be opened, has another format, mode or size, or claims more than 4 million pixels.
    """
    form, expected = ("JPEG", "an RGB JPEG") if mode == "RGB" else ("PNG", "a 16-bit single-channel PNG")
    if path.exists() and not path.is_file():
        raise DataError(f"{path}: not a regular file; put the image there")
    try:
        image = Image.open(path)
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: claims more than {MAX_PIXELS:,} pixels, so it is not decoded; remove it") from error
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path}: not a readable image ({error}); write it again") from error
    height, width = FRAME
    if image.width * image.height > MAX_PIXELS:
        problem = f"claims {image.width}x{image.height} pixels, so it is not decoded; remove it"
    elif (image.mode, image.format) != (mode, form):
        problem = f"has mode {image.mode} and format {image.format}, expected {expected} (mode {mode}); write it again"
    elif image.size != (width, height):
        problem = f"is {image.width}x{image.height}, expected {width}x{height}; do not resize NYU's images"
    else:
        return image
    image.close()
    raise DataError(f"{path}: {problem}")


def decode(path: Path, mode: str) -> np.ndarray:
    """All pixels of `path`: (480, 640, 3) uint8 for mode RGB, (480, 640) uint16 for mode I;16.

    Raises:
        DataError: as `open_image`; or the file is truncated or damaged.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # some package may have set it; half a JPEG must never be scored
    with open_image(path, mode) as image:
        try:
            image.load()
        except (OSError, SyntaxError, ValueError) as error:
            raise DataError(f"{path}: truncated or damaged ({error}); write it again") from error
        return np.array(image)


def check_files(pairs: Sequence[Pair], allow_empty: bool = False) -> None:
    """Looks at everything that can be wrong before a model is built: about 3 ms an image and core.

    Of an RGB image the header and the end are read, and the pixels only if the end is not a JPEG's; depth is decoded.

    Args:
        pairs: from `scan_folder` or `read_list`.
        allow_empty: accept depth maps without a single measurement.

    Raises:
        DataError: all files that are missing, unreadable, truncated, of a wrong mode or size, or hold no depth, with
            the lines that name them.
    """

    def problems_of(pair: Pair) -> list[str]:
        problems = []
        for check, path in ((check_rgb, pair.rgb), (check_depth, pair.depth)):
            try:
                check(path)
            except DataError as error:
                problems.append(f"{pair.origin}: {error}" if pair.origin else str(error))
        return problems

    def check_rgb(path: Path) -> None:
        open_image(path, "RGB").close()
        if not ends_as_jpeg(path):
            decode(path, "RGB")  # cut off, or followed by other bytes: decoding decides

    def check_depth(path: Path) -> None:
        millimetres = decode(path, "I;16")
        require_millimetres(millimetres, str(path))
        if not allow_empty and not millimetres.any():
            raise DataError(f"{path}: no valid pixel, every depth is 0; remove the image or pass --empty skip")

    with warnings.catch_warnings():  # here and not in the threads, because the filters are the process's
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        with ThreadPoolExecutor() as pool:
            raise_problems([problem for problems in pool.map(problems_of, pairs) for problem in problems])


def ends_as_jpeg(path: Path) -> bool:
    """Whether the last two bytes are a JPEG's end marker: a cheap sign that nothing is cut off."""
    with path.open("rb") as file:
        file.seek(-2, 2)
        return file.read() == b"\xff\xd9"


def require_millimetres(millimetres: np.ndarray, name: str) -> None:
    """Accepts a depth map (480, 640) uint16 [mm] only if its largest depth makes sense.

    Raises:
        DataError: the largest depth is below 0.1 m (but not all is 0, which the metrics name) or above 65 m.
    """
    largest = millimetres.max() / DEPTH_UNITS_PER_METRE
    low, high = SANE_DEPTH
    if largest != 0 and not low < largest < high:
        raise DataError(f"{name}: its largest depth is {largest:g} m, so it does not hold millimetres; write it again")


def coverage(indices: Sequence[int]) -> str:
    """One sentence on how `indices` compare with the official test split."""
    official = set(TEST_INDICES)
    known = len(official.intersection(indices))
    if known == len(official) == len(indices):
        return f"all {known} images of the official test split"
    others = len(indices) - known
    rest = f", and {others} that do not belong to it" if others else ""
    return f"{len(indices)} images: {known} of the {len(official)} of the official test split{rest}"
