"""Depth of your own pictures, with MonoCLIP.

    python predict.py -i photo.jpg -o depth --clip_path RN50.pt
    python predict.py -i holiday/ "rooms/**/*.png" names.txt -o depth --side_by_side --html
    python predict.py --demo -o depth                   # offline: the embedded checkpoint on its own rendered rooms

An input is a picture, a folder (searched to its depth), a pattern, or a .txt list of paths; `pictures.py` says how they
are read and at which size they are looked at. For each picture, below OUT, at its path relative to the folder that all
inputs share:

    <stem>_depth.npy            float32 (H, W) [m]
    <stem>_depth_mm.png         16 bit, millimetres
    <stem>_depth.png            colours, with a legend in metres; the range is that of the bins
    <stem>_side_by_side.png     picture and map, with --side_by_side
    depth.html                  one page to look into the answers, with --html

Two pictures of one folder that differ only in their suffix keep it: `a.jpg_depth.npy`, `a.png_depth.npy`. Files that
are there are kept unless --overwrite is given, so a run that stopped goes on where it was. What is no picture, or a
damaged one, is named and skipped. Exit code 0: at least one picture has its depth now; 1: none could be used, or the
output could not be written; 2: wrong arguments or an unusable checkpoint; 130: interrupted.
"""

import argparse
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import clip
import page
from arguments import (
    HTML_IMAGES,
    UsageError,
    add_device_arguments,
    add_html_argument,
    add_reading_arguments,
    positive,
)
from clip.inference import keep_freed_memory
from depth_images import MAX_MILLIMETRES, MILLIMETRES_PER_METRE, coloured, side_by_side, to_millimetres, with_legend
from eval import own_reading, say
from loading import choose_device, choose_precision, load_model
from monoclip import MonoCLIP, Reading, mirror_average, upsampled, with_mirror
from pictures import Found, PictureError, find_files, read_picture
from report import PAGE_FILE as PAGE

DEMO = Path(__file__).parent / "demo"
NPY, MILLIMETRES, COLOURS, SIDE_BY_SIDE = "_depth.npy", "_depth_mm.png", "_depth.png", "_side_by_side.png"
# What a folder's search passes by: what this script writes, and the depth maps of NYU's layout.
LEFT_OUT = (f"*{NPY}", f"*{MILLIMETRES}", f"*{COLOURS}", f"*{SIDE_BY_SIDE}", PAGE, "sync_depth_*.png")


class PredictionError(Exception):
    """The work cannot be done; the message is one sentence for the user."""


def build_parser() -> argparse.ArgumentParser:
    """The command line. The flags of model and reading are those of eval.py, with the same defaults."""
    parser = argparse.ArgumentParser(
        description="Depth [m] of your own pictures: .npy, 16-bit PNG, colours, a page to look into.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    files = parser.add_argument_group("files")
    files.add_argument(
        "-i",
        "--input",
        nargs="+",
        metavar="INPUT",
        help="pictures, folders, patterns, .txt lists; --demo has its own",
    )
    files.add_argument("-o", "--output", type=Path, required=True, metavar="OUT", help="folder for everything written")
    files.add_argument("--overwrite", action="store_true", help="compute and write again what is there already")
    files.add_argument("--side_by_side", action="store_true", help="write picture and map together, too")
    add_html_argument(files, f"write {PAGE}, with N pictures spread evenly over all (N: {HTML_IMAGES} unless given)")

    model = parser.add_argument_group("model")
    weights = model.add_mutually_exclusive_group()
    weights.add_argument("--clip_path", default="RN50", help="CLIP checkpoint: a file, or a name in the cache")
    weights.add_argument("--demo", action="store_true", help="the embedded toy checkpoint; no download")
    add_device_arguments(model)
    model.add_argument("--batch_size", type=positive, default=1, help="pictures at once, if of one working size")
    model.add_argument("--no_mirror", action="store_true", help="do not average with the mirrored picture")

    add_reading_arguments(parser.add_argument_group("reading"))
    return parser


@dataclass(frozen=True)
class Job:
    """One picture to predict: its file, its name in messages and on the page, the start of its outputs' paths."""

    path: Path
    name: str
    stem: str

    def outputs(self, kinds: Iterable[str]) -> list[Path]:
        """The files of these kinds (suffixes) that belong to the picture."""
        return [Path(self.stem + kind) for kind in kinds]


def plan(found: Sequence[Found], output: Path) -> list[Job]:
    """Where everything of each file goes: no two files share an output.

    A file keeps its suffix if its stem is also another file's stem or another file's whole name. Compared without
    case, because some file systems do not know it.
    """
    stems = Counter(str(file.relative.with_suffix("")).casefold() for file in found)
    names = Counter(str(file.relative).casefold() for file in found)
    jobs = []
    for file in found:
        stem = file.relative.with_suffix("")
        others = stems[str(stem).casefold()] - 1 + names[str(stem).casefold()] - (stem == file.relative)
        jobs.append(Job(file.path, file.relative.as_posix(), str(output / (file.relative if others else stem))))
    return jobs


class Writer:
    """Writes files below one folder, each of them whole or not at all, and nothing outside of it."""

    def __init__(self, folder: Path) -> None:
        """Makes the folder and tries it. Raises PredictionError: it cannot be made or written to."""
        self.folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self.root = folder.resolve()
            probe = self.root / f".{os.getpid()}.tmp"
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise PredictionError(
                f"{folder}: cannot be written to ({error.strerror}); choose another folder with -o"
            ) from error

    def write(self, path: Path, save: Callable[[BinaryIO], None]) -> None:
        """Replaces `path` by what `save` puts into the file that it is given.

        Raises:
            PredictionError: a link inside the folder leads out of it, or the disk does not take the file.
        """
        if not path.parent.resolve().is_relative_to(self.root):
            raise PredictionError(f"{path}: a link leads out of {self.folder}, so nothing is written there; remove it")
        temporary = path.with_name(f".{os.getpid()}.tmp")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with temporary.open("xb") as file:
                save(file)
            temporary.replace(path)
        except OSError as error:
            raise PredictionError(f"{path}: cannot be written ({error.strerror or error})") from error
        finally:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


@dataclass(frozen=True)
class Prediction:
    """A picture (H, W, 3) uint8, its depth (H, W) float32 [m], and the logits behind it, (V, K, h, w) float32.

    V is 2, the view and its mirror, or 1 with --no_mirror.
    """

    job: Job
    pixels: np.ndarray
    depth: np.ndarray
    logits: Tensor


def batches(jobs: Sequence[Job], model: MonoCLIP, batch_size: int, skip: Callable[[str], None]) -> Iterator[list]:
    """Pictures with their views: lists of (job, pixels, view (1, 3, H', W')), neighbours of one working size together.

    Files that cannot be used go to `skip` as one sentence each.
    """
    batch: list[tuple[Job, np.ndarray, Tensor]] = []
    for job in jobs:
        try:
            pixels = read_picture(job.path)
        except PictureError as error:
            skip(str(error))
            continue
        view = model.prepare(pixels)
        if batch and (len(batch) == batch_size or batch[0][2].shape != view.shape):
            yield batch
            batch = []
        batch.append((job, pixels, view))
    if batch:
        yield batch


@torch.inference_mode()
def predict(
    jobs: Sequence[Job], model: MonoCLIP, batch_size: int, mirror: bool, skip: Callable[[str], None]
) -> Iterator[Prediction]:
    """The prediction of each usable picture, in the order of `jobs`; `skip` hears about the others.

    Raises:
        PredictionError: a prediction is not finite.
    """
    for batch in batches(jobs, model, batch_size, skip):
        view = torch.cat([view for _, _, view in batch])  # (B, 3, H', W')
        features = model.patch_features(with_mirror(view) if mirror else view)
        depth = mirror_average(model.depth(features)) if mirror else model.depth(features)  # (B, 1, h, w)
        views = model.logits(features).unflatten(0, (-1, len(batch)))  # (V, B, K, h, w)
        for i, (job, pixels, _) in enumerate(batch):
            if not depth[i].isfinite().all():
                raise PredictionError(f"{job.path}: NaN or infinite depth predicted; use --precision fp32")
            full = upsampled(depth[i : i + 1], pixels.shape[:2])[0, 0].cpu().numpy()
            yield Prediction(job, pixels, full, views[:, i])


def write_outputs(
    prediction: Prediction, kinds: Sequence[str], reading: Reading, writer: Writer, overwrite: bool
) -> None:
    """Writes those of the picture's outputs that are wanted and, unless `overwrite`, not there yet."""
    near, far = min(reading.bin_list), max(reading.bin_list)
    depth, pixels = prediction.depth, prediction.pixels

    def colours() -> np.ndarray:
        return coloured(depth, near, far)

    savers: dict[str, Callable[[BinaryIO], None]] = {
        NPY: lambda file: np.save(file, depth),
        MILLIMETRES: lambda file: Image.fromarray(to_millimetres(depth)).save(file, "PNG"),
        COLOURS: lambda file: with_legend(colours(), near, far).save(file, "PNG"),
        SIDE_BY_SIDE: lambda file: with_legend(side_by_side(pixels, colours()), near, far).save(file, "PNG"),
    }
    for kind, path in zip(kinds, prediction.job.outputs(kinds), strict=True):
        if overwrite or not os.path.lexists(path):
            writer.write(path, savers[kind])


def jobs_of(args: argparse.Namespace, output: Path) -> list[Job]:
    """The pictures that the command line names.

    Raises:
        UsageError: an input that does not exist, or none.
        PredictionError: there is no file in what it names.
    """
    if not args.input and not args.demo:
        raise UsageError("-i is missing; name a picture, a folder, a pattern or a list, or pass --demo")
    inputs = args.input or [str(DEMO / "sample" / "official_splits" / "test")]
    try:
        found = find_files(inputs, LEFT_OUT, output)
    except PictureError as error:
        raise UsageError(str(error)) from error
    if not found:
        raise PredictionError(f"{' '.join(inputs)}: no file there (depth maps and hidden files are passed by)")
    return plan(found, output)


def run(args: argparse.Namespace) -> None:
    """Does what the command line says.

    Raises:
        UsageError, clip.CheckpointError: arguments that cannot be followed; no picture was read.
        PredictionError: no picture could be used, or the output cannot be written; what was written stays.
    """
    reading = own_reading(args)
    device = choose_device(args.device, "0")
    precision = choose_precision(args.precision, device)
    clip_path = DEMO / "rooms_clip.pt" if args.demo else args.clip_path
    output = Path(os.path.abspath(args.output.expanduser()))
    jobs = jobs_of(args, output)
    writer = Writer(output)

    kinds = [NPY, MILLIMETRES, COLOURS] + ([SIDE_BY_SIDE] if args.side_by_side else [])
    shown = {jobs[i].stem for i in page.spread(len(jobs), args.html or 0)}
    if shown and os.path.lexists(output / PAGE) and not args.overwrite:
        say(f"kept: {output / PAGE}, as it was (--overwrite makes it again)")
        shown = set()
    missing = {job.stem for job in jobs if args.overwrite or not all(map(os.path.lexists, job.outputs(kinds)))}
    todo = [job for job in jobs if job.stem in missing | shown]
    if kept := len(jobs) - len(missing):
        say(f"kept: the files of {kept} pictures, as they were (--overwrite computes them again)")
    if not todo:
        return

    _, model = load_model(clip_path, device, precision, reading, args.exact)
    say(f"model: {clip_path} on {device} in {precision}")
    if max(reading.bin_list) * MILLIMETRES_PER_METRE > MAX_MILLIMETRES:
        say(f"warning: 16 bits of millimetres end at 65.535 m; what is deeper is 65.535 m in *{MILLIMETRES}")

    done, cards = 0, []
    with tqdm(total=len(todo), unit="picture", disable=None) as progress:

        def skip(reason: str) -> None:
            progress.write(f"skipped: {reason}", file=sys.stderr)
            progress.update()

        for prediction in predict(todo, model, args.batch_size, not args.no_mirror, skip):
            write_outputs(prediction, kinds, reading, writer, args.overwrite)
            if prediction.job.stem in shown:
                cards.append(card_of(prediction, reading))
            (height, width), depth = prediction.depth.shape, prediction.depth
            with progress.external_write_mode():
                say(f"{prediction.job.name}: {width}x{height}, {depth.min():.3f} to {depth.max():.3f} m")
            progress.update()
            done += 1
    if not done and not kept:
        raise PredictionError("none of the files is a usable picture; each is named above")
    if cards:
        notes = [f"{Path(clip_path).name} in {precision}", page.subset_note(len(cards), len(jobs))]
        text = page.build("Depth from words", cards, reading, notes=notes).encode()
        writer.write(output / PAGE, lambda file: save_bytes(file, text))
        say(f"page: {output / PAGE}, {notes[-1]}, {len(text) / 1e6:.1f} MB")
    pictures = "1 picture" if done == 1 else f"{done} pictures"
    say(f"done: {pictures} in {output}, depth in metres (.npy, float32) and millimetres (16-bit .png)")


def card_of(prediction: Prediction, reading: Reading) -> page.Card:
    """The picture on the page, with its range to sort by."""
    name, depth = prediction.job.name, prediction.depth
    figures = {"nearest [m]": float(depth.min()), "farthest [m]": float(depth.max())}
    logits = prediction.logits.cpu().numpy()
    return page.card(name, Path(name).parent.as_posix(), prediction.pixels, logits, reading, figures=figures)


def save_bytes(file: BinaryIO, content: bytes) -> None:
    """Writes `content`, as `Writer.write` wants it."""
    file.write(content)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; every error for the user is one sentence on stderr."""
    args = build_parser().parse_args(argv)
    try:
        run(args)
    except (UsageError, clip.CheckpointError) as error:
        return fail(str(error), 2)
    except PredictionError as error:
        return fail(str(error), 1)
    except (MemoryError, torch.OutOfMemoryError):
        return fail(f"not enough memory for --batch_size {args.batch_size}; use a smaller one, or smaller pictures", 1)
    except KeyboardInterrupt:
        return fail("interrupted; what was written is whole, and the same command goes on", 130)
    return 0


def fail(message: str, code: int) -> int:
    """Prints `message` to stderr and returns `code`."""
    print(f"predict.py: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
