"""Depth of your own pictures, with MonoCLIP.

    python predict.py -i photo.jpg -o depth --clip_path RN50.pt
    python predict.py -i holiday/ "rooms/**/*.png" names.txt -o depth --side_by_side --html
    python predict.py --demo -o depth                   # offline: the embedded checkpoint on its own rendered rooms

An input is a picture, a folder (searched to its depth), a pattern, or a .txt list of paths; `datasets/pictures.py` says
how they are read and at which size they are looked at. Names that this script itself writes, and those of NYU's depth
maps, are passed by. For each picture, below OUT, at its path relative to the folder that all inputs share:

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
import io
import os
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import options
from clip.inference import keep_freed_memory
from datasets import DataError, printable
from datasets.pictures import find_files, read_picture
from download import write_whole
from monoclip import MonoCLIP, Reading, depth_of, mirror_average, upsampled, with_mirror
from viewer import page
from viewer.colour import LARGEST_MM, coloured, side_by_side, to_millimetres, with_legend

DEMO_PICTURES = options.DEMO_DATA / "official_splits" / "test"
NPY, MM_PNG, COLOURED, SIDE_BY_SIDE = "_depth.npy", "_depth_mm.png", "_depth.png", "_side_by_side.png"
# No pictures to read: what this script writes, and the depth maps of NYU's layout.
PASSED_BY = (f"*{NPY}", f"*{MM_PNG}", f"*{COLOURED}", f"*{SIDE_BY_SIDE}", page.PAGE_FILE, "sync_depth_*.png")
# A device that is full or broken takes no other picture's files either.
DEVICE_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS)


def build_parser() -> argparse.ArgumentParser:
    """The command line. The flags of model and reading are those of eval.py, with the same defaults."""
    parser = options.new_parser("Depth [m] of your own pictures: .npy, 16-bit PNG, colours, a page to look into.")
    files = parser.add_argument_group("files")
    inputs = "pictures, folders, patterns, .txt lists; --demo has its own"
    files.add_argument("-i", "--input", nargs="+", metavar="INPUT", help=inputs)
    files.add_argument(
        "-o", "--output", required=True, type=options.named_path, metavar="OUT", help="folder for everything written"
    )
    files.add_argument("--overwrite", action="store_true", help="compute and write again what is there already")
    files.add_argument("--side_by_side", action="store_true", help="write picture and map together, too")
    options.add_html_argument(files, page.PAGE_FILE, page.PAGE_IMAGES)
    model = options.add_model_arguments(parser)
    model.add_argument("--demo", action="store_true", help="the embedded toy checkpoint instead; no download")
    model.add_argument("--no_mirror", action="store_true", help="do not average with the mirrored picture")
    options.add_reading_arguments(parser)
    return parser


@dataclass(frozen=True)
class Job:
    """A picture's file, its name in messages and on the page, and where to write each kind of its outputs."""

    path: Path
    name: str
    files: dict[str, Path]


def plan(found: Mapping[Path, Path], output: Path, kinds: Sequence[str], overwrite: bool) -> list[Job]:
    """What to write for each file of `find_files`: those `kinds` that are not there yet, or all.

    No two files share an output: a file keeps its suffix if its stem is also another file's stem or another file's
    whole name. Compared without case, because some file systems do not know it.
    """
    stems = Counter(str(relative.with_suffix("")).casefold() for relative in found.values())
    names = Counter(str(relative).casefold() for relative in found.values())
    jobs = []
    for path, relative in found.items():
        stem = relative.with_suffix("")
        others = stems[str(stem).casefold()] - 1 + names[str(stem).casefold()] - (stem == relative)
        start = output / (relative if others else stem)
        files = {kind: start.with_name(start.name + kind) for kind in kinds}
        files = {kind: file for kind, file in files.items() if overwrite or not os.path.lexists(file)}
        jobs.append(Job(path, printable(relative.as_posix()), files))
    return jobs


@torch.inference_mode()
def predict_picture(model: MonoCLIP, pixels: np.ndarray, mirror: bool) -> tuple[np.ndarray, np.ndarray]:
    """Depth of each pixel as `MonoCLIP.infer_image` gives it, and the answers behind it.

    From pixels (H, W, 3) uint8, RGB, to depth (H, W) float32 [m] and logits (V, K, h, w) float32; V is 2, the picture
    and its mirror, or 1 without the mirror.
    """
    image = model.prepare(pixels)  # (1, 3, H', W')
    trunk = model.clip_vis.forward_patches(with_mirror(image) if mirror else image)  # (V, C, h, w)
    logits = model.logits(model.patch_features(trunk))  # (V, K, h, w)
    depth = depth_of(logits, model.bin_list[None])  # (V, 1, h, w)
    depth = mirror_average(depth) if mirror else depth  # (1, 1, h, w)
    return upsampled(depth, pixels.shape[:2])[0, 0].cpu().numpy(), logits.cpu().numpy()


def file_content(kind: str, pixels: np.ndarray, depth: np.ndarray, reading: Reading) -> bytes:
    """The content of one kind of output, from the picture (H, W, 3) uint8 and its depth (H, W) float32 [m]."""
    content = io.BytesIO()
    if kind == NPY:
        np.save(content, depth)
        return content.getvalue()
    if kind == MM_PNG:
        image = Image.fromarray(to_millimetres(depth))
    else:
        near, far = min(reading.bin_list), max(reading.bin_list)
        colours = coloured(depth, near, far)
        image = with_legend(colours if kind == COLOURED else side_by_side(pixels, colours), near, far)
    image.save(content, "PNG")
    return content.getvalue()


def write_inside(output: Path, path: Path, content: bytes) -> None:
    """Writes a file of `output`, whole or not at all. Raises OSError: it cannot be, or a link leads out of `output`."""
    if not Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(output)):
        raise OSError(errno.ELOOP, f"a link leads out of {output}, so nothing is written there", str(path))
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(content))


def predict_all(
    jobs: Sequence[Job], on_page: Sequence[Job], model: MonoCLIP, output: Path, precision: str, mirror: bool
) -> tuple[int, list[page.Card]]:
    """Reads, predicts and writes one picture after the other; one for which that is impossible is named and skipped.

    Returns how many pictures have their files now, and the cards of those that are `on_page`.
    Raises OSError: the device of `output` takes no more files; WorkError: a prediction is not finite.
    """
    done, cards = 0, []
    for number, job in enumerate(jobs, 1):
        try:
            pixels = read_picture(job.path)
            depth, logits = predict_picture(model, pixels, mirror)
            if not np.isfinite(depth).all():
                advice = "" if precision == "fp32" else "; use --precision fp32"
                raise options.WorkError(f"{job.name}: NaN or infinite depth predicted{advice}")
            for kind, path in job.files.items():
                write_inside(output, path, file_content(kind, pixels, depth, model.reading))
        except DataError as error:
            print(f"skipped: {error}", file=sys.stderr, flush=True)
            continue
        except OSError as error:
            if error.errno in DEVICE_ERRORS:
                raise
            print(printable(f"skipped: {job.name}: {error.filename}: {error.strerror}"), file=sys.stderr, flush=True)
            continue
        done += 1
        near, far = float(depth.min()), float(depth.max())
        height, width = depth.shape
        print(f"{number}/{len(jobs)} {job.name}: {width}x{height}, {near:.3f} to {far:.3f} m", flush=True)
        if job in on_page:
            scene, span = Path(job.name).parent.as_posix(), {"nearest [m]": near, "farthest [m]": far}
            cards.append(page.card(job.name, scene, pixels, logits, model.reading, metrics=span))
    return done, cards


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; every error for the user is one sentence on stderr."""
    parser = build_parser()
    args = parser.parse_args(argv)

    def work() -> None:
        if not args.input and not args.demo:
            raise options.UsageError("-i is missing; name a picture, a folder, a pattern or a list, or pass --demo")
        if args.demo and args.clip_path != parser.get_default("clip_path"):
            raise options.UsageError("--demo has its own checkpoint; leave out --demo or --clip_path")
        if (folder := os.path.expanduser(str(args.output))).startswith("~"):
            raise options.UsageError(f"-o {folder}: the home folder is not known; write the folder's whole path")
        output = Path(os.path.abspath(folder))
        reading = options.reading_of(args)
        device = options.choose_device(args.device)
        precision = options.choose_precision(args.precision, device)
        clip_path = options.DEMO_WEIGHTS if args.demo else args.clip_path
        inputs = args.input or [str(DEMO_PICTURES)]
        found = find_files(inputs)
        found = {path: found[path] for path in found if not any(map(path.match, PASSED_BY))}
        if not found:
            raise options.WorkError(f"{' '.join(inputs)}: no file there (depth maps and hidden files are passed by)")
        output.mkdir(parents=True, exist_ok=True)
        if not os.access(output, os.W_OK | os.X_OK):
            raise options.WorkError(f"{output}: cannot be written to; choose another folder with -o")

        kinds = [NPY, MM_PNG, COLOURED] + ([SIDE_BY_SIDE] if args.side_by_side else [])
        jobs = plan(found, output, kinds, args.overwrite)
        on_page = [jobs[i] for i in page.spread(len(jobs), args.html or 0)]
        page_file = output / page.PAGE_FILE
        if on_page and page_file.exists() and not args.overwrite:
            print(printable(f"kept: {page_file}, as it was (--overwrite makes it again)"))
            on_page = []
        if kept := sum(not job.files for job in jobs):
            print(f"kept: the files of {kept} of {len(jobs)} pictures, as they were (--overwrite computes them again)")
        todo = [job for job in jobs if job.files or job in on_page]
        if not todo:
            return

        _, model = options.load_model(clip_path, device, precision, reading, args.exact)
        print(printable(f"model: {clip_path} on {device} in {precision}"))
        if max(reading.bin_list) * 1000 > LARGEST_MM:
            print(f"warning: 16 bits of millimetres end at 65.535 m; what is deeper is 65.535 m in *{MM_PNG}")
        try:
            done, cards = predict_all(todo, on_page, model, output, precision, not args.no_mirror)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("what was written is whole, and the same command goes on") from None
        if not done and not kept:
            raise options.WorkError("no picture has its depth; each is named above")
        if cards:
            notes = [f"{Path(clip_path).name} in {precision}", page.subset_note(len(cards), len(jobs))]
            options.write_text(page_file, page.build("Depth from words", cards, reading, notes=notes))
            print(printable(f"page: {page_file}, {notes[-1]}"))
        units = "depth in metres (.npy, float32) and millimetres (16-bit .png)"
        print(printable(f"done: {done} of {len(todo)} pictures in {output}, {units}"))

    return options.run_command("predict.py", work)


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
