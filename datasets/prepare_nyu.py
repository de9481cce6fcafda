"""Writes the images of NYU Depth V2 out of nyu_depth_v2_labeled.mat, in the field's layout, and checks such a folder.

    python -m datasets.prepare_nyu --output data/nyu                                    (downloads 2.97 GB first)
    python -m datasets.prepare_nyu --output data/nyu --mat nyu_depth_v2_labeled.mat
    python -m datasets.prepare_nyu --check data/nyu

    <output>/official_splits/manifest.json                                      SHA-256 of every file, written last
    <output>/official_splits/{test,train}/<scene>/rgb_{i:05d}.jpg               quality 95, 4:2:0
    <output>/official_splits/{test,train}/<scene>/sync_depth_{i:05d}.png        rawDepths [mm], 16 bits
    <output>/official_splits/{test,train}/<scene>/dense/sync_depth_dense_{i:05d}.png        depths [mm], with --dense

i is the 0-based index into the .mat; the train split is every image that is not in the test split. A run that was
stopped is continued by the same command: each finished file stands in manifest.part, and what stands there or in the
manifest with the right hash is not written again.
"""

import argparse
import hashlib
import json
import os
import re
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from tqdm import tqdm

from datasets.download import download, file_sha256, locked
from datasets.nyu_files import (
    TEST_INDICES,
    DataError,
    coverage,
    decode,
    raise_problems,
    require_millimetres,
    scan_folder,
    test_split_folder,
)
from datasets.nyu_mat import MAT_NAME, NUM_IMAGES, LabelledMat

MAT_URLS = (f"https://horatio.cs.nyu.edu/mit/silberman/nyu_depth_v2/{MAT_NAME}",)
MAT_SIZE = 2_972_037_809  # [bytes]
# No official checksum is published; several independent projects agree on this one.
MAT_SHA256 = "2d724b0c0ab358aa1ce5df855e5bd14a2279ab7202efe22f32a30d612dcb86aa"

FILES = {  # kind of file -> its path below the scene's folder
    "rgb": "rgb_{:05d}.jpg",
    "sync_depth": "sync_depth_{:05d}.png",
    "sync_depth_dense": "dense/sync_depth_dense_{:05d}.png",
}
FILE_PATTERN = re.compile(r"(?:test|train)/\w+/(?:dense/)?(rgb|sync_depth|sync_depth_dense)_(\d{5})\.(?:jpg|png)")
TEST = frozenset(TEST_INDICES)
TEST_SCENES = {  # images of each scene in the official test split
    "bedroom": 191,
    "living_room": 107,
    "kitchen": 106,
    "bathroom": 58,
    "dining_room": 55,
    "office": 38,
    "home_office": 24,
    "classroom": 23,
    "playroom": 14,
    "bookstore": 11,
    "study": 11,
    "reception_room": 5,
    "office_kitchen": 4,
    "computer_lab": 3,
    "foyer": 2,
    "study_room": 2,
}


def prepare(
    root: Path,
    mat: Path | None = None,
    urls: Sequence[str] = MAT_URLS,
    splits: Sequence[str] = ("test",),
    dense: bool = False,
    verify: bool = True,
) -> str:
    """Completes `root`/official_splits and says in one sentence what was done.

    The .mat is not looked at, let alone downloaded, when nothing is missing.

    Args:
        root: the folder to write into.
        mat: the .mat; `root`/nyu_depth_v2_labeled.mat, downloaded if need be, unless given.
        urls: addresses to download it from, tried in this order.
        splits: of "test" and "train".
        dense: write the in-filled depth maps too.
        verify: check the size and the SHA-256 of `mat`; without, `mat` must be given.

    Raises:
        DataError: the .mat cannot be had or is not what it should be; or a file cannot be written.
    """
    wanted = wanted_files(splits, dense)
    mat_sha256 = MAT_SHA256 if verify or mat is None else file_sha256(mat)
    folder = root / "official_splits"
    total = f"{len(wanted)} files of {len({index for index, _ in wanted})} images"
    if wanted <= present(recorded(folder, mat_sha256)):
        return f"{folder}: complete already, {total}"
    if mat is None:
        mat = obtain(root / MAT_NAME, urls)
    elif verify:
        verify_mat(mat)
    written = extract(mat, folder, wanted, mat_sha256)
    return f"{folder}: complete, {total}, {written} of them written now"


def split_of(index: int) -> str:
    """The official split that the image belongs to."""
    return "test" if index in TEST else "train"


def wanted_files(splits: Sequence[str], dense: bool) -> set[tuple[int, str]]:
    """(index, kind) of every file of these splits."""
    kinds = [kind for kind in FILES if dense or kind != "sync_depth_dense"]
    return {(index, kind) for index in range(NUM_IMAGES) if split_of(index) in splits for kind in kinds}


def obtain(target: Path, urls: Sequence[str]) -> Path:
    """`target` itself, verified, and downloaded if it is missing or not the right file.

    Raises:
        DataError: it could not be downloaded; the message says how to bring it.
    """
    if target.exists():
        try:
            verify_mat(target)
            return target
        except DataError as error:
            print(f"{error}\nIt is replaced once the right file has been downloaded.", flush=True)
    print(f"Downloading {MAT_NAME} ({MAT_SIZE / 1e9:.2f} GB) to {target}", flush=True)
    try:
        download(urls, target, MAT_SIZE, MAT_SHA256)
    except DataError as error:
        raise DataError(
            f"{error}\nNYU's host is down at times. Run this again later, which continues the download; or name "
            f"another address with --url; or bring {MAT_NAME} ({MAT_SIZE:,} bytes, SHA-256 {MAT_SHA256}) from "
            "elsewhere and name it with --mat."
        ) from error
    return target


def verify_mat(mat: Path) -> None:
    """Compares size and SHA-256 of the .mat with the published file's.

    Raises:
        DataError: it is missing or another file.
    """
    if not mat.is_file():
        raise DataError(f"{mat}: no such file; give the path of {MAT_NAME}")
    size = mat.stat().st_size
    found = f"{size:,} bytes"
    expected = f"{MAT_SIZE:,} bytes"
    if size == MAT_SIZE:
        print(f"Checking the SHA-256 of {mat}", flush=True)
        found, expected = f"SHA-256 {file_sha256(mat)}", f"SHA-256 {MAT_SHA256}"
    if found != expected:
        raise DataError(
            f"{mat}: {found}, expected {expected}, so it is not {MAT_NAME} as published; "
            "bring it again, or name a file of your own with --mat and --no_verify"
        )


def extract(mat: Path, folder: Path, wanted: Iterable[tuple[int, str]], mat_sha256: str) -> int:
    """Writes those of the `wanted` files, (index, kind), that are not recorded in `folder`; returns their number.

    One image at a time is in memory. Every file appears whole under its name; files of these names that no manifest
    records for this .mat are replaced.

    Raises:
        DataError: the .mat is damaged; a file cannot be written; another process is writing into `folder`.
    """
    with LabelledMat(mat) as reader:
        scenes = reader.scenes()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise DataError(f"{folder}: cannot be made ({error.strerror}); choose another folder") from error
        journal = folder / "manifest.part"
        with locked(journal) as journal_file:
            files = recorded(folder, mat_sha256)
            missing = sorted(set(wanted) - present(files))
            journal_file.write(b"\n")  # ends a line that a killed process left open
            for index, kind in tqdm(missing, desc="writing", unit="file", disable=None):
                path = f"{split_of(index)}/{scenes[index]}/{FILES[kind].format(index)}"
                data = render(reader, index, kind)
                write_whole(folder / path, data)
                files[path] = hashlib.sha256(data).hexdigest()
                record = {"path": path, "sha256": files[path], "mat_sha256": mat_sha256}
                journal_file.write(json.dumps(record).encode() + b"\n")
                journal_file.flush()
            manifest = {"mat_sha256": mat_sha256, "count": len(files), "files": dict(sorted(files.items()))}
            write_whole(folder / "manifest.json", json.dumps(manifest, indent=1).encode() + b"\n")
            journal.unlink()
    return len(missing)


def render(mat: LabelledMat, index: int, kind: str) -> bytes:
    """The bytes of the file of this kind."""
    if kind == "rgb":
        return mat.jpeg(index)
    return mat.png(index, "rawDepths" if kind == "sync_depth" else "depths")


def write_whole(path: Path, data: bytes) -> None:
    """Writes `data` so that `path` never holds a part of it.

    Raises:
        DataError: it cannot be written.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except OSError as error:
        raise DataError(f"{path}: cannot be written ({error.strerror}); make room and run this again") from error


def recorded(folder: Path, mat_sha256: str) -> dict[str, str]:
    """Path below `folder` -> SHA-256 of the recorded files that came from this .mat and are still the same."""
    records = {path: sha256 for path, sha256, source in read_manifests(folder) if source == mat_sha256}
    bar = tqdm(records.items(), desc="checking", unit="file", disable=None)
    return {path: sha256 for path, sha256 in bar if is_same(folder / path, sha256)}


def is_same(path: Path, sha256: str) -> bool:
    """Whether the file is there and has this SHA-256."""
    return path.is_file() and file_sha256(path) == sha256


def present(files: Iterable[str]) -> set[tuple[int, str]]:
    """(index, kind) of every path below official_splits."""
    return {(int(match[2]), match[1]) for path in files if (match := FILE_PATTERN.fullmatch(path))}


def read_manifests(folder: Path) -> Iterator[tuple[str, str, str]]:
    """(path, SHA-256, SHA-256 of the .mat) of every file that manifest.json and manifest.part record.

    What cannot be understood is left out: its files count as missing.
    """
    try:
        manifest = json.loads((folder / "manifest.json").read_bytes())
        found = [(path, sha256, manifest["mat_sha256"]) for path, sha256 in manifest["files"].items()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        found = []
    try:
        lines = (folder / "manifest.part").read_bytes().splitlines()
    except OSError:
        lines = []
    for line in lines:
        try:
            record = json.loads(line)
            found.append((record["path"], record["sha256"], record["mat_sha256"]))
        except (ValueError, KeyError, TypeError):
            continue
    yield from (record for record in found if isinstance(record[0], str) and FILE_PATTERN.fullmatch(record[0]))


def check(root: Path) -> str:
    """Compares the test split below `root` with the official one and decodes every file; says so in one sentence.

    Raises:
        DataError: all that is missing, damaged or odd.
    """
    folder = test_split_folder(root)
    problems = []
    try:
        scan_folder(root)
    except DataError as error:
        problems.append(str(error))
    rgb = {path: int(path.stem[4:]) for path in sorted(folder.glob("*/rgb_*.jpg")) if path.stem[4:].isdecimal()}
    indices = list(rgb.values())
    depth = sorted(folder.glob("*/sync_depth_*.png"))
    if missing := sorted(TEST - set(indices)):
        problems.append(
            f"{folder}: {len(missing)} of the {len(TEST_INDICES)} test images are missing: {listed(missing)}"
        )
    if others := sorted(set(indices) - TEST):
        problems.append(f"{folder}: {len(others)} images are not of the test split: {listed(others)}")
    counts = Counter(path.parent.name for path in rgb)
    for scene in sorted(counts.keys() | TEST_SCENES.keys()):
        expected = TEST_SCENES.get(scene, 0)
        if counts[scene] != expected:
            problems.append(f"{folder / scene}: {counts[scene]} images, expected {expected}")
    for path in tqdm([*rgb, *depth], desc="decoding", unit="file", disable=None):
        try:
            pixels = decode(path, "RGB" if path in rgb else "I;16")
            if pixels.max() == 0:
                raise DataError(f"{path}: all its pixels are 0; write it again")
            if path not in rgb:
                require_millimetres(pixels, str(path))
        except DataError as error:
            problems.append(str(error))
    if folder != root:
        changed = [
            folder.parent / path
            for path, sha256, _ in read_manifests(folder.parent)
            if not is_same(folder.parent / path, sha256)
        ]
        problems += [f"{path}: missing or changed since manifest.json was written" for path in changed]
    raise_problems(problems)
    return f"{folder}: {coverage(indices)}, {len(rgb) + len(depth)} files, all decoded"


def listed(indices: Sequence[int]) -> str:
    """The first twenty indices, as text."""
    return ", ".join(map(str, indices[:20])) + (", ..." if len(indices) > 20 else "")


def web_address(text: str) -> str:
    """`text`, if it is an http or https address."""
    if not re.match(r"https?://[^/]+/", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not an http or https address of a file")
    return text


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m datasets.prepare_nyu",
        description="Writes the images of NYU Depth V2 out of its .mat, or checks a folder of them.",
        epilog="A run that was stopped is continued by the same command.",
    )
    task = parser.add_mutually_exclusive_group(required=True)
    task.add_argument("--output", type=Path, metavar="ROOT", help="write ROOT/official_splits")
    task.add_argument("--check", type=Path, metavar="ROOT", help="verify the test split below ROOT; writes nothing")
    parser.add_argument(
        "--mat", type=Path, metavar="FILE", help=f"your {MAT_NAME} (default: ROOT/{MAT_NAME}, downloaded if missing)"
    )
    parser.add_argument(
        "--url",
        type=web_address,
        nargs="+",
        default=MAT_URLS,
        metavar="URL",
        help=f"addresses to download it from, tried in this order (default: {' '.join(MAT_URLS)})",
    )
    parser.add_argument(
        "--splits",
        nargs="+",
        choices=("test", "train"),
        default=("test",),
        help="what to write: 654 test images, 795 train images (default: test)",
    )
    parser.add_argument(
        "--dense", action="store_true", help="write the in-filled depth maps too, into <scene>/dense (default: no)"
    )
    parser.add_argument(
        "--no_verify",
        action="store_true",
        help="take the file of --mat without comparing its size and SHA-256 with the published ones (default: compare)",
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns the exit code."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.check and (args.mat or args.dense or args.no_verify):
        parser.error("--check takes no flag beside it")
    if args.no_verify and args.mat is None:
        parser.error("--no_verify needs --mat: a download is always verified")
    try:
        if args.check:
            print(check(args.check))
        else:
            print(prepare(args.output, args.mat, args.url, args.splits, args.dense, not args.no_verify))
    except DataError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("stopped; run the same command again to go on", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
