"""NYU Depth V2 (Silberman et al., ECCV 2012), its official test split, as a data set of tensors.

`open_nyu` finds and checks the images of a folder in the field's layout, or of the published .mat (`nyu_mat.py`), and
gives one `NYUDepthV2`. Layout: `<root>/official_splits/test/<scene>/rgb_{i:05d}.jpg` with `sync_depth_{i:05d}.png`, i
the 0-based index into the labelled data set. RGB is 640x480; depth is a 16-bit PNG in millimetres, 0 = no measurement.
All files are decoded before a model is built, and all that is wrong is said at once; what no decoder notices passes,
such as half a JPEG that somebody closed with an end marker. Nothing is ever written.
"""

import hashlib
import io
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path, PurePosixPath
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageFile
from torch import Tensor

from calculate_error import NYU_MAX_DEPTH
from datasets import DataError, counted, name_of, printable, text_of
from datasets.nyu_mat import DEPTH_UNITS_PER_METRE, FRAME, MAT_NAME, NUM_IMAGES, LabelledMat

SPLIT = Path("official_splits") / "test"
SANE_DEPTH = (0.1, 65.0)  # [m] a largest depth outside this range is another unit or a damaged file
MAX_PIXELS = 4_000_000  # an image that claims more is refused before it is decoded
SEE = "or see it work now: sh test.sh --demo"  # what who has no data can do
# What images are called: those of the .mat are NYU's, those of a folder may be anything in its layout.
NYU, LAYOUT = "of NYU Depth V2", "in the layout of NYU Depth V2"


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


@dataclass(frozen=True)
class FolderPair:
    """A test image in a folder: its files, its scene, its 0-based index, and the line of a list that names it."""

    rgb: Path
    depth: Path
    scene: str
    index: int
    origin: str = ""  # "list.txt, line 7"

    @property
    def name(self) -> str:
        """`<scene>/<file name of the RGB image>`, as a text that any file and any terminal can hold."""
        return printable(f"{self.scene}/{self.rgb.name}")

    def jpeg(self) -> bytes:
        """The RGB image as the bytes of its JPEG file. Raises DataError."""
        return content_of(self.rgb)

    def millimetres(self) -> np.ndarray:
        """The raw depth map, (480, 640) uint16 [mm]. Raises DataError."""
        return decode(content_of(self.depth), str(self.depth), "I;16")


@dataclass(frozen=True)
class MatPair:
    """A test image in the .mat: as a `FolderPair` that `prepare_nyu` would write."""

    mat: LabelledMat
    scene: str
    index: int

    @property
    def name(self) -> str:
        """`<scene>/<file name of the RGB image>`."""
        return f"{self.scene}/rgb_{self.index:05d}.jpg"

    def jpeg(self) -> bytes:
        """The RGB image as the bytes of a JPEG file. Raises DataError."""
        return self.mat.jpeg(self.index)

    def millimetres(self) -> np.ndarray:
        """The raw depth map, (480, 640) uint16 [mm]. Raises DataError."""
        return self.mat.millimetres(self.index)


class Batch(NamedTuple):
    """Places of B images in the data set; image (B, 3, h, w) float32, normalised; depth (B, 1, 480, 640) [m]."""

    items: list[int]
    image: Tensor
    depth: Tensor


class NYUDepthV2:
    """Images and depth maps, in the order of `pairs`; `names`, `scenes` and `indices` are theirs.

    `official` says whether they are the official test split, all of it and nothing else; `title` says it in words.
    `crop` are the rows and columns of the RGB image that the method sees, without resizing; depth stays whole.
    `normalised` makes what the encoder takes, (3, H, W) float32, of pixels (H, W, 3) uint8.
    `kind` is what follows the number of images in the title; images with a name of their own are never the split.
    """

    def __init__(
        self,
        pairs: Sequence[FolderPair | MatPair],
        crop: tuple[slice, slice],
        normalised: Callable[[np.ndarray], Tensor],
        kind: str = LAYOUT,
    ) -> None:
        self.pairs, self.crop, self.normalised, self.kind = list(pairs), crop, normalised, kind
        self.names = [pair.name for pair in pairs]
        self.scenes = [printable(pair.scene) for pair in pairs]
        self.indices = [pair.index for pair in pairs]
        self.official = kind in (NYU, LAYOUT) and sorted(self.indices) == sorted(TEST_INDICES)
        split = f"all {len(TEST_INDICES)} images of the official test split of NYU Depth V2"
        self.title = split if self.official else f"{counted(len(self))} {kind}"

    def __len__(self) -> int:
        return len(self.names)

    def normalised_by(self, normalised: Callable[[np.ndarray], Tensor]) -> "NYUDepthV2":
        """The same images for another encoder, or with other statistics."""
        return NYUDepthV2(self.pairs, self.crop, normalised, self.kind)

    def __getitem__(self, item: int) -> tuple[Tensor, Tensor]:
        """Image (3, h, w) float32, normalised, and depth (1, 480, 640) float32 [m].

        Raises DataError: the files changed since they were checked, or are damaged inside.
        """
        return self.normalised(self.pixels(item)), self.depth(item)

    def pixels(self, item: int) -> np.ndarray:
        """The part of the picture that the method sees, (416, 544, 3) uint8, RGB. Raises DataError."""
        return decode(self.pairs[item].jpeg(), self.names[item], "RGB")[self.crop]

    def depth(self, item: int) -> Tensor:
        """The ground truth, (1, 480, 640) float32 [m], clipped to [0, 10]; 0 = no measurement. Raises DataError."""
        return depth_in_metres(self.pairs[item].millimetres(), self.names[item])

    def image_sha256(self, item: int) -> str:
        """The hash of the image's JPEG file, which a folder and the .mat have in common. Raises DataError."""
        return hashlib.sha256(self.pairs[item].jpeg()).hexdigest()

    def clusters(self) -> tuple[list[str], str]:
        """What images have in common that keeps them from being independent: a label of each, and it in words.

        The .mat knows the capture of each image, some 215 for the 654 of the split. A folder in its layout does not:
        there, images of one room type with consecutive indices are one cluster, which may hold more than one capture
        (the split's indices form 124 runs, and room types part some). Images with a name of their own are clusters of
        one. Raises DataError: the .mat is damaged.
        """
        captures = next((pair.mat.names("scenes") for pair in self.pairs if isinstance(pair, MatPair)), None)
        if captures:
            return [captures[index] for index in self.indices], "captures"
        if self.kind != LAYOUT:
            return self.names, "images"
        places = sorted(range(len(self)), key=self.indices.__getitem__)
        labels = [f"{scene} from {index}" for scene, index in zip(self.scenes, self.indices, strict=True)]
        for before, place in pairwise(places):
            if self.scenes[place] == self.scenes[before] and self.indices[place] == self.indices[before] + 1:
                labels[place] = labels[before]
        return labels, "runs of consecutive indices of one room type"

    def batches(self, items: Sequence[int], batch_size: int, workers: int = 1) -> Iterator[Batch]:
        """The images at the places `items`, in that order, `batch_size` at once; the last batch may have fewer.

        `workers` threads read the next batch while the caller works on one. Raises DataError: a file is damaged.
        """
        parts = [list(items[start : start + batch_size]) for start in range(0, len(items), batch_size)]
        with ThreadPoolExecutor(workers) as pool:
            following = [pool.map(self.__getitem__, part) for part in parts[:1]]
            for part, after in zip(parts, [*parts[1:], []], strict=False):  # no part at all, none after it
                image, depth = zip(*following.pop(), strict=True)
                following.append(pool.map(self.__getitem__, after))
                yield Batch(part, torch.stack(image), torch.stack(depth))


def open_nyu(
    path: Path,
    crop: tuple[slice, slice],
    normalised: Callable[[np.ndarray], Tensor],
    list_file: Path | None = None,
    scenes: Sequence[str] | None = None,
    limit: int | None = None,
) -> NYUDepthV2:
    """The images that the arguments name, checked as far as that is possible without a model.

    Args:
        path: a folder in the field's layout; the .mat; or a folder that holds the .mat and no official_splits.
        crop: as for `NYUDepthV2`.
        normalised: as for `NYUDepthV2`.
        list_file: a text file that names the pairs of a folder.
        scenes: only the images of these.
        limit: only the first so many images.

    Raises DataError: the data cannot be used; all that is wrong is listed.
    """
    path = source_of(path)
    pairs: Sequence[FolderPair | MatPair]
    if path.suffix == ".mat" and not path.is_dir():
        if list_file is not None:
            raise DataError(f"--list_file names files of a folder, but --data_path is {path}; drop one")
        mat = LabelledMat(path)
        types = mat.names("sceneTypes")
        pairs = sorted((MatPair(mat, types[index], index) for index in TEST_INDICES), key=lambda pair: pair.name)
        kind = NYU
    else:
        pairs = scan_folder(path) if list_file is None else read_list(list_file, path)
        name = name_of(test_split_folder(path))
        kind = f"of {name}" if name else LAYOUT
    there = sorted({printable(pair.scene) for pair in pairs})
    if unknown := [scene for scene in scenes or () if scene not in there]:
        raise DataError(f"--scene {' '.join(unknown)}: no such scene here; there are {', '.join(there)}")
    pairs = [pair for pair in pairs if not scenes or printable(pair.scene) in scenes][:limit]
    check_files([pair for pair in pairs if isinstance(pair, FolderPair)])
    return NYUDepthV2(pairs, crop, normalised, kind)


def source_of(path: Path) -> Path:
    """What `--data_path` means: the .mat in a folder that has no official_splits, else the path itself."""
    inside = path.is_dir() and not (path / SPLIT).is_dir() and (path / MAT_NAME).is_file()
    return path / MAT_NAME if inside else path


def test_split_folder(root: Path) -> Path:
    """The folder of the scenes: `<root>/official_splits/test`, or else `root`. Raises DataError: there is none."""
    if not root.is_dir():
        how = f"bring {MAT_NAME} there (docs/data.md), name yours with --data_path, {SEE}"
        raise DataError(f"{root}: no such folder; {how}")
    inner = root / SPLIT
    return inner if inner.is_dir() else root


def scan_folder(root: Path) -> list[FolderPair]:
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
            elif (other := found[kind].setdefault((path.parent.name, int(match[1])), path)) is not path:
                problems.append(f"{path}: a second file of index {int(match[1])}, beside {other.name}")
    rgb, depth = found.values()
    if not rgb and not depth and not problems:
        how = f"write them with python -m datasets.prepare_nyu, give another folder, {SEE}"
        raise DataError(f"{folder}: no <scene>/rgb_*.jpg with sync_depth_*.png in it; {how}")
    problems += [f"{rgb[key]}: its depth map sync_depth_{key[1]:05d}.png is missing" for key in rgb.keys() - depth]
    problems += [f"{depth[key]}: its image rgb_{key[1]:05d}.jpg is missing" for key in depth.keys() - rgb]
    for index, count in Counter(index for _, index in rgb).items():
        if count > 1:
            scenes = ", ".join(scene for scene, i in rgb if i == index)
            problems.append(f"{folder}: index {index} occurs {count} times, in {scenes}")
    raise_problems(sorted(problems))
    return [FolderPair(path, depth[key], *key) for key, path in sorted(rgb.items(), key=lambda e: (e[0][0], e[1].name))]


def read_list(list_file: Path, root: Path) -> list[FolderPair]:
    """The pairs that a text file names, sorted by RGB path.

    Each line holds the RGB path and the depth path relative to the test split, then optionally the focal length, which
    is not used; blank lines are skipped.

    Raises DataError: all lines that are wrong, with their numbers.
    """
    folder = test_split_folder(root)
    pairs: list[FolderPair] = []
    problems: list[str] = []
    seen: dict[PurePosixPath, str] = {}
    for number, line in enumerate(text_of(list_file).split("\n"), 1):
        columns, where = line.split(), f"{list_file}, line {number}"
        if not columns:
            continue
        if len(columns) not in (2, 3):
            expected = "expected RGB path, depth path and optionally focal length"
            problems.append(f"{where}: {len(columns)} columns, {expected}")
            continue
        wrong = [reason for column in columns[:2] if (reason := unsafe_path(column, folder))]
        rgb, depth = paths = [PurePosixPath(column) for column in columns[:2]]
        wrong += [f"{path} stands in {seen[path]} already" for path in paths if path in seen]
        seen |= dict.fromkeys(paths, f"line {number}")
        indices = [int(match[1]) for path in paths if (match := re.search(r"(\d{1,9})$", path.stem))]
        if not wrong and (len(indices) < 2 or indices[0] != indices[1]):
            wrong.append(f"{rgb.name} and {depth.name} do not carry the same index")
        problems += [f"{where}: {reason}" for reason in wrong]
        if not wrong:
            pairs.append(FolderPair(folder / rgb, folder / depth, rgb.parent.name, indices[0], where))
    if not pairs and not problems:
        problems.append(f"{list_file}: names no image")
    raise_problems(problems)
    return sorted(pairs, key=lambda pair: str(pair.rgb))


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


def decode(content: bytes, name: str, mode: str) -> np.ndarray:
    """All pixels of an image file: (480, 640, 3) uint8 for mode RGB, (480, 640) uint16 for mode I;16.

    Raises DataError: the file `name` is no JPEG (RGB) or PNG (I;16), has another size, or does not decode to the end.
    """
    ImageFile.LOAD_TRUNCATED_IMAGES = False  # some package may have set it; half a JPEG must not be scored
    form, expected = ("JPEG", "an RGB JPEG") if mode == "RGB" else ("PNG", "a 16-bit single-channel PNG")
    try:
        image = Image.open(io.BytesIO(content))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError) as error:
        raise DataError(f"{name}: claims more than {MAX_PIXELS:,} pixels, so it is not decoded; remove it") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{name}: not a readable image; write it again") from error
    found = f"{image.width}x{image.height}"
    if image.width * image.height > MAX_PIXELS:
        problem = f"claims {found} pixels, so it is not decoded; remove it"
    elif (image.mode, image.format) != (mode, form):
        problem = f"has mode {image.mode} and format {image.format}, expected {expected} (mode {mode}); write it again"
    elif (image.height, image.width) != FRAME:
        problem = f"is {found}, expected {FRAME[1]}x{FRAME[0]}; do not resize NYU's images"
    else:
        try:
            return np.array(image)
        except (OSError, SyntaxError, ValueError) as error:
            problem = f"truncated or damaged ({error}); write it again"
    raise DataError(f"{name}: {problem}")


def check_files(pairs: Sequence[FolderPair]) -> None:
    """Reads all files once, before a model is built: about 7 ms an image and core.

    Raises:
        DataError: all files that are missing, unreadable, damaged, of a wrong mode or size, or hold no depth, with the
            lines of the list that name them.
    """

    def problems_of(pair: FolderPair) -> list[str]:
        problems = []
        for path, mode in ((pair.rgb, "RGB"), (pair.depth, "I;16")):
            try:
                pixels = decode(content_of(path), str(path), mode)
                if mode == "I;16" and not depth_in_metres(pixels, str(path)).any():
                    raise DataError(f"{path}: no valid pixel, every depth is 0; remove the image")
            except DataError as error:
                problems.append(f"{pair.origin}: {error}" if pair.origin else str(error))
        return problems

    with ThreadPoolExecutor() as pool:
        raise_problems([problem for problems in pool.map(problems_of, pairs) for problem in problems])


def depth_in_metres(millimetres: np.ndarray, name: str) -> Tensor:
    """(480, 640) uint16 [mm] -> (1, 480, 640) float32 [m], clipped to [0, 10].

    Raises DataError: the largest depth is below 0.1 m (but not all is 0, which the metrics name) or above 65 m.
    """
    largest = millimetres.max() / DEPTH_UNITS_PER_METRE
    low, high = SANE_DEPTH
    if largest != 0 and not low < largest < high:
        raise DataError(f"{name}: its largest depth is {largest:g} m, so it does not hold millimetres; write it again")
    return torch.from_numpy(millimetres.astype(np.float32) / DEPTH_UNITS_PER_METRE).clamp(0, NYU_MAX_DEPTH)[None]


def training_depths(path: Path) -> Iterator[Tensor]:
    """The ground truth of the training split, (1, 480, 640) [m] each: all other images of the .mat, or a folder's
    `<path>/official_splits/train/<scene>/sync_depth_*.png`, of which there may be none.

    Raises DataError: a depth map is damaged or no depth map.
    """
    path = source_of(path)
    if path.suffix == ".mat" and not path.is_dir():
        with LabelledMat(path) as mat:
            for index in sorted(set(range(NUM_IMAGES)) - set(TEST_INDICES)):
                yield depth_in_metres(mat.millimetres(index), f"{path}, image {index}")
    for file in sorted((path / SPLIT.parent / "train").glob("*/sync_depth_*.png")):
        yield depth_in_metres(decode(content_of(file), str(file), "I;16"), str(file))
