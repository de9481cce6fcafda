"""Depth of your own pictures, with MonoCLIP.

    python predict.py -i photo.jpg -o depth --clip_path RN50.pt
    python predict.py -i holiday/ "rooms/**/*.png" names.txt -o depth --side_by_side --html
    python predict.py --demo -o depth                   # offline: the embedded checkpoint on its own rendered rooms

An input is a picture, a folder (searched to its depth), a pattern, or a .txt list of paths; `datasets/pictures.py` says
how they are read and at which size they are looked at. For each picture, below OUT, at its path relative to the folder
that all inputs share:

    <stem>_depth.npy            float32 (H, W) [m]
    <stem>_depth_mm.png         16 bit, millimetres
    <stem>_depth.png            colours, with a legend in metres; the range is that of the bins
    <stem>_side_by_side.png     picture and map, with --side_by_side
    depth.html                  one page to look into the answers, with --html

Two pictures of one folder that differ only in their suffix keep it: `a.jpg_depth.npy`, `a.png_depth.npy`. Files that
are there are kept unless --overwrite is given, so a run that stopped goes on where it was. A picture that cannot be
used, or whose files cannot be written, is named and skipped. Exit code 0: at least one picture has its depth now; 1:
none has, or the output folder takes no files; 2: wrong arguments or an unusable checkpoint; 130: interrupted.
"""

import argparse
import errno
import os
import sys
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO, TextIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

import options
from clip.inference import keep_freed_memory
from datasets import DataError, printable
from datasets.pictures import Found, find_files, read_picture
from download import write_whole
from monoclip import MonoCLIP, Reading, depth_of, mirror_average, upsampled
from viewer import page
from viewer.colour import LARGEST_MM, coloured, side_by_side, to_millimetres, with_legend

DEMO_PICTURES = options.DEMO_DATA / "official_splits" / "test"
NPY, MILLIMETRES, COLOURED, SIDE_BY_SIDE = "_depth.npy", "_depth_mm.png", "_depth.png", "_side_by_side.png"
# What a folder's search passes by: what this script writes, and the depth maps of NYU's layout.
LEFT_OUT = (f"*{NPY}", f"*{MILLIMETRES}", f"*{COLOURED}", f"*{SIDE_BY_SIDE}", page.PAGE_FILE, "sync_depth_*.png")
# What ends a run, because no other picture's files could be written either; None: what the system gives no number to.
NO_MORE_FILES = {None, errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}


def build_parser() -> argparse.ArgumentParser:
    """The command line. The flags of model and reading are those of eval.py, with the same defaults."""
    parser = options.new_parser("Depth [m] of your own pictures: .npy, 16-bit PNG, colours, a page to look into.")
    files = parser.add_argument_group("files")
    files.add_argument(
        "-i",
        "--input",
        nargs="+",
        metavar="INPUT",
        help="pictures, folders, patterns, .txt lists; --demo has its own",
    )
    files.add_argument("-o", "--output", required=True, metavar="OUT", help="folder for everything written")
    files.add_argument("--overwrite", action="store_true", help="compute and write again what is there already")
    files.add_argument("--side_by_side", action="store_true", help="write picture and map together, too")
    files.add_argument(
        "--html",
        nargs="?",
        type=options.positive,
        const=page.PAGE_IMAGES,
        metavar="N",
        help=f"write {page.PAGE_FILE}, with N pictures spread evenly over all (N: {page.PAGE_IMAGES} unless given)",
    )
    model = options.add_model_arguments(parser)
    model.add_argument("--demo", action="store_true", help="the embedded toy checkpoint instead; no download")
    model.add_argument("--batch_size", type=options.positive, default=1, help="pictures at once, if of one size")
    model.add_argument("--no_mirror", action="store_true", help="do not average with the mirrored picture")
    options.add_reading_arguments(parser)
    return parser


@dataclass(frozen=True)
class Job:
    """One picture to predict: its file, its name in messages and on the page, the start of its outputs' paths."""

    path: Path
    name: str
    stem: str


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
        name = printable(file.relative.as_posix())
        jobs.append(Job(file.path, name, str(output / (file.relative if others else stem))))
    return jobs


@dataclass(frozen=True)
class Prediction:
    """A picture (H, W, 3) uint8, its depth (H, W) float32 [m], and the logits behind it, (V, K, h, w) float32.

    V is 2, the view and its mirror, or 1 without the mirror.
    """

    job: Job
    pixels: np.ndarray
    depth: np.ndarray
    logits: Tensor


def batches(jobs: Iterable[Job], model: MonoCLIP, batch_size: int) -> Iterator[list[tuple[Job, np.ndarray, Tensor]]]:
    """Pictures with their views: lists of (job, pixels, view (1, 3, H', W')), neighbours of one working size together.

    Files that cannot be used are named and skipped.
    """
    batch: list[tuple[Job, np.ndarray, Tensor]] = []
    for job in jobs:
        try:
            pixels = read_picture(job.path)
        except DataError as error:
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
def predictions(jobs: Iterable[Job], model: MonoCLIP, batch_size: int, mirror: bool) -> Iterator[Prediction]:
    """The prediction of each usable picture, in the order of `jobs`; `mirror` averages with the mirrored picture.

    Raises:
        WorkError: a prediction is not finite.
    """
    half = any(weight.dtype != torch.float32 for weight in model.clip_vis.parameters())
    advice = "; use --precision fp32" if half else ""
    for batch in batches(jobs, model, batch_size):
        image = torch.cat([view for _, _, view in batch])  # (B, 3, H', W')
        trunk = model.trunk(image) if mirror else model.clip_vis.forward_patches(image).float()  # (VB, C, h, w)
        logits = model.logits(model.patch_features(trunk))  # (VB, K, h, w)
        depth = depth_of(logits, model.bin_list[None])  # (VB, 1, h, w)
        depth = mirror_average(depth) if mirror else depth  # (B, 1, h, w)
        views = logits.unflatten(0, (-1, len(batch)))  # (V, B, K, h, w)
        for i, (job, pixels, _) in enumerate(batch):
            if not depth[i].isfinite().all():
                raise options.WorkError(f"{job.name}: NaN or infinite depth predicted{advice}")
            full = upsampled(depth[i : i + 1], pixels.shape[:2])[0, 0].cpu().numpy()
            yield Prediction(job, pixels, full, views[:, i])


def write_outputs(prediction: Prediction, files: Mapping[str, Path], reading: Reading, output: Path) -> None:
    """Writes files of a picture: `files` says which kinds and where, all of it in `output`.

    Raises:
        OSError: a file cannot be written, or a link in `output` leads out of it. What is there is whole.
    """
    near, far = min(reading.bin_list), max(reading.bin_list)
    depth, pixels = prediction.depth, prediction.pixels

    def save(kind: str, file: BinaryIO) -> None:
        if kind == NPY:  # not into the file itself, where NumPy would not say that the disk is full
            np.save(SimpleNamespace(write=file.write), depth)  # type: ignore[call-overload]
        elif kind == MILLIMETRES:
            Image.fromarray(to_millimetres(depth)).save(file, "PNG")
        else:
            colours = coloured(depth, near, far)
            shown = colours if kind == COLOURED else side_by_side(pixels, colours)
            with_legend(shown, near, far).save(file, "PNG")

    for kind, path in files.items():
        if not Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(output)):
            raise OSError(errno.ELOOP, f"a link leads out of {output}, so nothing is written there", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, partial(save, kind))


def write_all(
    predicted: Iterable[Prediction],
    files: Mapping[str, Mapping[str, Path]],
    shown: Collection[str],
    reading: Reading,
    output: Path,
) -> tuple[int, list[page.Card]]:
    """Writes the files of each picture, and says so.

    Args:
        predicted: from `predictions`.
        files: what to write for each picture's stem, as in `write_outputs`.
        shown: stems of the pictures on the page.
        reading: of the model.
        output: the folder that holds all files.

    Returns:
        How many pictures have all their files, and the cards of those that are shown.

    Raises:
        OSError: the device of `output` takes nothing more.
    """
    done, cards = 0, []
    for prediction in predicted:
        job, depth = prediction.job, prediction.depth
        try:
            write_outputs(prediction, files[job.stem], reading, output)
        except OSError as error:
            if error.errno in NO_MORE_FILES:
                raise
            skip(printable(f"{job.name}: {error.filename}: {error.strerror}"))
            continue
        if job.stem in shown:
            cards.append(card_of(prediction, reading))
        say(f"{job.name}: {depth.shape[1]}x{depth.shape[0]}, {depth.min():.3f} to {depth.max():.3f} m")
        done += 1
    return done, cards


def card_of(prediction: Prediction, reading: Reading) -> page.Card:
    """The picture on the page, with its range to sort by."""
    name, depth = prediction.job.name, prediction.depth
    span = {"nearest [m]": float(depth.min()), "farthest [m]": float(depth.max())}
    logits = prediction.logits.cpu().numpy()
    return page.card(name, Path(name).parent.as_posix(), prediction.pixels, logits, reading, metrics=span)


def output_folder(text: str) -> Path:
    """The whole path of the folder that the user wrote as `text`. Raises UsageError: it begins with ~ of nobody."""
    folder = os.path.expanduser(text)
    if folder.startswith("~"):
        raise options.UsageError(f"-o {printable(text)}: the home folder is not known; write the folder's whole path")
    return Path(os.path.abspath(folder))


def make_folder(output: Path) -> None:
    """Makes the folder of all outputs. Raises OSError or WorkError: it cannot be made or written to."""
    output.mkdir(parents=True, exist_ok=True)
    if not os.access(output, os.W_OK | os.X_OK):
        raise options.WorkError(f"{printable(str(output))}: cannot be written to; choose another folder with -o")


def say(text: str, stream: TextIO | None = None) -> None:
    """Prints a line, to stdout unless told otherwise, above the progress bar if there is one."""
    with tqdm.external_write_mode():
        print(text, file=stream, flush=True)


def skip(sentence: str) -> None:
    """Says which picture or folder is left out, and why."""
    say(f"skipped: {sentence}", sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; every error for the user is one sentence on stderr."""
    parser = build_parser()
    args = parser.parse_args(argv)

    def work() -> None:
        if not args.input and not args.demo:
            raise options.UsageError("-i is missing; name a picture, a folder, a pattern or a list, or pass --demo")
        if args.demo and args.clip_path != parser.get_default("clip_path"):
            raise options.UsageError("--demo has its own checkpoint; leave out --demo or --clip_path")
        reading = options.reading_of(args)
        device = options.choose_device(args.device)
        precision = options.choose_precision(args.precision, device)
        clip_path = options.DEMO_WEIGHTS if args.demo else args.clip_path
        output = output_folder(args.output)
        inputs = args.input or [str(DEMO_PICTURES)]
        jobs = plan(find_files(inputs, skip, LEFT_OUT, output), output)
        if not jobs:
            names = printable(" ".join(inputs))
            raise options.WorkError(f"{names}: no file there (depth maps and hidden files are passed by)")
        make_folder(output)

        def absent(path: Path) -> bool:
            return args.overwrite or not os.path.lexists(path)

        kinds = [NPY, MILLIMETRES, COLOURED] + ([SIDE_BY_SIDE] if args.side_by_side else [])
        paths = {job.stem: {kind: Path(job.stem + kind) for kind in kinds} for job in jobs}
        files = {stem: {kind: path for kind, path in own.items() if absent(path)} for stem, own in paths.items()}
        shown = {jobs[i].stem for i in page.spread(len(jobs), args.html or 0)}
        page_file = output / page.PAGE_FILE
        if shown and not absent(page_file):
            say(printable(f"kept: {page_file}, as it was (--overwrite makes it again)"))
            shown = set()
        todo = [job for job in jobs if files[job.stem] or job.stem in shown]
        if kept := sum(not own for own in files.values()):
            say(f"kept: the files of {kept} of {len(jobs)} pictures, as they were (--overwrite computes them again)")
        if not todo:
            return

        _, model = options.load_model(clip_path, device, precision, reading, args.exact)
        say(printable(f"model: {clip_path} on {device} in {precision}"))
        if max(reading.bin_list) * 1000 > LARGEST_MM:
            say(f"warning: 16 bits of millimetres end at 65.535 m; what is deeper is 65.535 m in *{MILLIMETRES}")
        try:
            with tqdm(todo, unit="picture", disable=None) as progress:
                predicted = predictions(progress, model, args.batch_size, not args.no_mirror)
                done, cards = write_all(predicted, files, shown, reading, output)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("what was written is whole, and the same command goes on") from None
        if not done and not kept:
            raise options.WorkError("no picture has its depth; each is named above")
        if cards:
            notes = [f"{Path(clip_path).name} in {precision}", page.subset_note(len(cards), len(jobs))]
            html = page.build("Depth from words", cards, reading, notes=notes).encode()
            write_whole(page_file, lambda file: file.write(html))
            say(printable(f"page: {page_file}, {notes[-1]}, {len(html) / 1e6:.1f} MB"))
        units = "depth in metres (.npy, float32) and millimetres (16-bit .png)"
        say(printable(f"done: {done} of {len(todo)} pictures in {output}, {units}"))

    return options.run_command("predict.py", work)


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
