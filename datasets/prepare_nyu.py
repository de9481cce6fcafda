"""Fetches nyu_depth_v2_labeled.mat, and writes its images in the field's layout, for those who want files.

    python -m datasets.prepare_nyu --output nyu_depth_v2                                (downloads 2.97 GB first)
    python -m datasets.prepare_nyu --output nyu_depth_v2 --mat nyu_depth_v2_labeled.mat
    python -m datasets.prepare_nyu --output nyu_depth_v2 --download_only                (eval.py reads the .mat itself)

It writes official_splits/{test,train}/<scene>/rgb_{i:05d}.jpg, sync_depth_{i:05d}.png (rawDepths in mm) and, with
--dense, dense/sync_depth_dense_{i:05d}.png (depths in mm), i being the 0-based index into the .mat. A file appears
whole, and one that is there is not written again, so the same command goes on where a run was stopped.
"""

import argparse
import signal
import sys
from collections.abc import Sequence
from functools import partial
from operator import methodcaller
from pathlib import Path

import datasets.packages  # noqa: F401  # first

# isort: split
from tqdm import tqdm

from datasets import DataError, printable
from datasets.nyu import TEST_INDICES
from datasets.nyu_mat import MAT_NAME, NUM_IMAGES, LabelledMat
from download import DownloadError, download, file_sha256, write_whole

MAT_URLS = (f"https://horatio.cs.nyu.edu/mit/silberman/nyu_depth_v2/{MAT_NAME}",)
MAT_SIZE = 2_972_037_809  # [bytes]
MAT_SHA256 = "2d724b0c0ab358aa1ce5df855e5bd14a2279ab7202efe22f32a30d612dcb86aa"  # as several projects have it
BY_HAND = "NYU's host is down at times: go on later with the same command, or bring the file (docs/data.md)"


def note(text: str) -> None:
    """Writes lines to standard error; a server's answer in them may hold anything."""
    print("\n".join(map(printable, text.split("\n"))), file=sys.stderr, flush=True)


def obtain(root: Path, mat: Path | None, urls: Sequence[str], verify: bool) -> Path:
    """The .mat: the user's own, or that in `root`, fetched if need be. Raises DataError, DownloadError, OSError."""
    target = mat or root / MAT_NAME
    if target.is_file() and (not verify or file_sha256(target) == MAT_SHA256):
        return target
    if mat:
        problem = f"is not {MAT_NAME} as published, of SHA-256 {MAT_SHA256}" if mat.is_file() else "no such file"
        raise DataError(f"{mat}: {problem}; bring it again, or name a file of your own with --mat and --no_verify")
    note(f"Downloading {MAT_NAME} ({MAT_SIZE / 1e9:.2f} GB) to {target}")
    return download(urls, target, MAT_SHA256, MAT_SIZE)


def extract(mat: Path, root: Path, splits: Sequence[str], dense: bool) -> int:
    """Writes the images of these splits that are not there; returns their number. Raises DataError, OSError."""
    written = 0
    with LabelledMat(mat) as reader:
        scenes = reader.names("sceneTypes")
        kinds = [("rgb_{:05d}.jpg", reader.jpeg), ("sync_depth_{:05d}.png", reader.png)]
        kinds += [("dense/sync_depth_dense_{:05d}.png", partial(reader.png, name="depths"))] * dense
        for index in tqdm(range(NUM_IMAGES), desc="writing", unit="image", disable=None):
            split = "test" if index in TEST_INDICES else "train"
            for name, content in kinds:
                path = root / "official_splits" / split / scenes[index] / name.format(index)
                if split in splits and not path.exists():
                    path.parent.mkdir(parents=True, exist_ok=True)
                    write_whole(path, methodcaller("write", content(index)))
                    written += 1
    return written


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line; returns 0: done, 1: not finished, 2: wrong arguments or .mat, 130: interrupted."""
    prog, about = "python -m datasets.prepare_nyu", "Writes the images of NYU Depth V2 out of its .mat."
    shown = argparse.ArgumentDefaultsHelpFormatter
    parser = argparse.ArgumentParser(prog, description=about, formatter_class=shown, allow_abbrev=False)
    add, splits = parser.add_argument, ("test", "train")
    add("--output", type=Path, metavar="ROOT", required=True, help="write ROOT/official_splits")
    add("--mat", type=Path, metavar="FILE", help=f"your {MAT_NAME}; else ROOT/{MAT_NAME}, downloaded if missing")
    add("--url", nargs="+", default=MAT_URLS, help="addresses to download it from, tried in this order")
    add("--splits", nargs="+", choices=splits, default=splits[:1], help="what to write: 654 test, 795 train images")
    add("--dense", action="store_true", help="write the in-filled depth maps too, into <scene>/dense")
    add("--no_verify", action="store_true", help="take the file of --mat without comparing its SHA-256")
    add("--verbose", action="store_true", help="say of every address why it did not give the file")
    add("--download_only", action="store_true", help="fetch and verify the .mat and write no images")
    args = parser.parse_args(argv)
    if args.no_verify and args.mat is None:
        parser.error("--no_verify needs --mat: a download is always verified")
    try:
        mat = obtain(args.output, args.mat, args.url, not args.no_verify)
        if args.download_only:
            note(f"{mat}: complete")
        else:
            written = extract(mat, args.output, args.splits, args.dense)
            note(f"{args.output / 'official_splits'}: complete, {written} files written now")
        return 0
    except DataError as error:
        message, code = str(error), 2
    except DownloadError as error:
        tried = "".join(f"\n  {failure}" for failure in error.failures) if args.verbose else ""
        message, code = f"{args.output / MAT_NAME}: {error}; {BY_HAND}{tried}", 1
    except OSError as error:
        problem = f"{error.filename or args.output}: {error.strerror or error}"
        message, code = f"{problem}; make room or choose another folder", 1
    except KeyboardInterrupt:
        message, code = "interrupted; run the same command again to go on", 130
    note(f"{prog}: {message}")
    return code


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: what has arrived is kept
    sys.exit(main())
