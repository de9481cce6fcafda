"""Depth of your own pictures, with MonoCLIP.

    python predict.py -i photo.jpg -o depth --clip_path RN50.pt
    python predict.py -i holiday/ "rooms/**/*.png" names.txt -o depth --save npy side_by_side words --html
    python predict.py --demo -o depth                   # offline: the embedded checkpoint on its own rendered rooms

An input is a picture, a folder (searched to its depth), a pattern, or a .txt list of paths; `datasets/pictures.py` says
how they are read and at which size they are looked at. Names that this script itself writes, and those of NYU's depth
maps, are passed by. Below OUT, at the picture's path relative to the folder that all inputs share, --save writes:

    npy             <stem>_depth.npy            float32 (H, W) [m]
    mm              <stem>_depth_mm.png         16 bit, millimetres
    colour          <stem>_depth.png            colours, with a legend in metres
    side_by_side    <stem>_side_by_side.png     the picture and its colours
    sigma           <stem>_sigma.npy, .png      how far apart the depths of a patch's words are [m], and its colours
    words           <stem>_words.png            how strongly each patch answers to each word

OUT also gets predict.json, which says with which words, weights and flags which files were made, and, with --html, the
page depth.html. Pictures of one folder that differ only in their suffix keep it: `a.jpg_depth.npy`.

What is there is computed and written again; with --skip_existing, a stopped run of the same settings goes on. A picture
that cannot be used, or whose files cannot be written, is named and skipped. Exit code 0: at least one picture has its
depth now; 1: none has, or the output folder takes no files; 2: wrong arguments or an unusable checkpoint; 130:
interrupted.
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import datasets.packages  # noqa: F401  # first

# isort: split
import numpy as np
import torch
from torch import Tensor

import options
from clip.dense import encode
from clip.inference import start_program
from datasets import DataError, counted, printable, text_of
from datasets.pictures import find_files, read_picture
from datasets.rgbd import FOLDERS
from download import file_sha256, write_json, write_text, write_whole
from monoclip import MonoCLIP, depth_of, logits_of, mirror_average, upsampled, with_mirror, zeroshot_classifier
from viewer import notes, page, terminal
from viewer.colour import COLOUR_MAP, LARGEST_MM
from viewer.outputs import SAVED, content_of

DEMO_PICTURES = options.DEMO_DATA / "official_splits" / "test"
RECORD_FILE = "predict.json"
# No pictures to read: what this script writes, and the depth maps of the layouts of NYU and KITTI.
PASSED_BY = [f"*{ending}" for endings in SAVED.values() for ending in endings]
PASSED_BY += [page.PAGE_FILE, RECORD_FILE, "sync_depth_*.png", "proj_depth/*/*/*.png"]
ANY_MACHINE = ("device", "threads", "python", "torch")  # what the runs of one folder may differ in
LARGE = 20_000_000  # pixels of a map, from which on its files take 80 MB and more


def build_parser() -> argparse.ArgumentParser:
    """The command line. The flags of model and reading are those of eval.py, with the same defaults."""
    parser = terminal.new_parser("Depth [m] of your own pictures: .npy, 16-bit PNG, colours, a page to look into.")
    files = parser.add_argument_group("files")
    inputs = "pictures, folders, patterns, .txt lists; --demo has its own"
    files.add_argument("-i", "--input", nargs="+", metavar="INPUT", help=inputs)
    folder = "folder for everything written"
    files.add_argument("-o", "--output", required=True, type=options.named_path, metavar="OUT", help=folder)
    files.add_argument("--skip_existing", action="store_true", help="go on with a stopped run of the same settings")
    kinds, first = f"what to write: {', '.join(SAVED)}", ["npy", "mm", "colour"]
    files.add_argument("--save", nargs="+", choices=SAVED, default=first, metavar="KIND", help=kinds)
    files.add_argument("--max_side", type=options.positive, metavar="N", help="write maps of at most N px a side")
    files.add_argument("--colour_map", default=COLOUR_MAP, metavar="NAME", help="matplotlib's, from near to far")
    spans = "what colours span: all bins, so that pictures compare, or each picture's own depths"
    files.add_argument("--range", choices=("bins", "picture"), default="bins", help=spans)
    options.add_html_argument(files, page.PAGE_FILE, page.PAGE_IMAGES)
    model = options.add_model_arguments(parser)
    model.add_argument("--demo", action="store_true", help="the embedded toy checkpoint instead; no download")
    model.add_argument("--no_mirror", action="store_true", help="do not average with the mirrored picture")
    options.add_reading_arguments(parser)
    return parser


class Job(NamedTuple):
    """A picture to predict."""

    path: Path
    name: str  # in messages
    files: dict[str, str]  # its outputs, relative to OUT: file -> ending, by which `content_of` knows its kind
    sha256: str  # of the picture; "" if it cannot be read


class Predicted(NamedTuple):
    """A picture of H x W pixels and h x w patches, and what the words say of it."""

    pixels: np.ndarray  # (H, W, 3) uint8
    depth: np.ndarray  # (H', W') float32 [m], of the picture's size or smaller
    weights: Tensor  # (1, K, h, w), how strongly each patch answers to each word, on the CPU
    features: Tensor  # (2, D, h, w), of the picture and its mirror, or (1, D, h, w)


def passed_by(path: Path) -> bool:
    """Return whether to skip a file by its name; of one's own pairs, `depth/` beside `rgb/` holds no picture."""
    part = next((parent for parent in path.parents if parent.name in ("depth", *FOLDERS)), path)
    own = part.name == "depth" and any((part.parent / name).is_dir() for name in FOLDERS)
    return own or any(map(path.match, PASSED_BY))


def plan(inputs: Sequence[str], save: Sequence[str]) -> list[Job]:
    """Return what to write for each picture. Raises DataError: an input is nothing; WorkError: no pictures.

    No two pictures share an output: a file keeps its suffix if its stem is also another file's stem or another file's
    whole name. Compared without case, because some file systems do not know it.
    """
    named = [Path(os.path.abspath(os.path.expanduser(text))) for text in inputs]
    there = find_files(inputs)
    found = {path: relative for path, relative in there.items() if path in named or not passed_by(path)}
    if not found:
        raise options.WorkError(f"{' '.join(inputs)}: no file there (depth maps and hidden files are passed by)")
    if len(found) < len(there):
        terminal.say(f"passed by: {len(there) - len(found)} files, by their names (depth maps, files of this script)")
    stems = Counter(str(relative.with_suffix("")).casefold() for relative in found.values())
    names = Counter(str(relative).casefold() for relative in found.values())
    jobs = []
    for path, relative in found.items():
        stem = relative.with_suffix("")
        others = stems[str(stem).casefold()] - 1 + names[str(stem).casefold()] - (stem == relative)
        start = (relative if others else stem).as_posix()
        files = {start + ending: ending for kind in SAVED if kind in save for ending in SAVED[kind]}
        sha256 = file_sha256(path) if os.path.isfile(path) and path.stat().st_size and os.access(path, os.R_OK) else ""
        jobs.append(Job(path, printable(relative.as_posix()), files, sha256))
    return jobs


def files_of_earlier_run(out: Path, made_with: dict[str, Any]) -> tuple[dict[str, str], str]:
    """Return the files that predict.json lists, each with the SHA-256 of its picture, and "".

    Or, if they are of other settings or there is no such list, none of them and the reason.
    """
    try:
        record = json.loads(text_of(out / RECORD_FILE))
        files, made = {**record["files"]}, {**record["made_with"], **record["made_with"]["reading"]}
    except (ValueError, LookupError, TypeError):  # none, or not ours
        return {}, f"has results, but no {RECORD_FILE}"
    new = json.loads(json.dumps({**made_with, **made_with["reading"]}))
    names = sorted({*made, *new} - {"reading", *ANY_MACHINE})
    differing = [name for name in names if made.get(name) != new.get(name)]
    return ({}, f"has other {', '.join(differing)}") if differing else (files, "")


def prepare_folder(
    out: Path, jobs: Sequence[Job], made_with: dict[str, Any], skip_existing: bool
) -> tuple[list[Job], dict[str, str]]:
    """Make OUT ready for the jobs, and return them without the files to keep, and all files with their SHA-256.

    predict.json is written before the first file and after the last, so what it lists and what is there is of these
    settings and pictures: a file appears whole, and what stood in its place of others is removed first.

    Raises UsageError: files are to be kept, but are not known to be of these settings; OSError.
    """
    planned = {file: job.sha256 for job in jobs for file in job.files}
    files, problem = files_of_earlier_run(out, made_with)
    if skip_existing and problem and any(os.path.lexists(out / file) for file in [RECORD_FILE, *planned]):
        advice = "choose another folder, or compute all again without --skip_existing"
        raise options.UsageError(f"--skip_existing: {out} {problem}; {advice}")
    there = {file for file in planned if os.path.isfile(out / file)}
    own = {file for file in there if files.get(file) == planned[file]}
    for file in there - own:
        (out / file).unlink()
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / RECORD_FILE, {"made_with": made_with, "files": files | planned})
    kept = own if skip_existing else set()
    wanted = [{file: ending for file, ending in job.files.items() if file not in kept} for job in jobs]
    return [job._replace(files=missing) for job, missing in zip(jobs, wanted, strict=True)], files | planned


@torch.inference_mode()
def predict_picture(model: MonoCLIP, path: Path, mirror: bool, max_side: int | None) -> Predicted:
    """Read a picture and return its depth, as `MonoCLIP.infer_image` gives it, but of at most `max_side` px a side.

    Raises DataError: no picture.
    """
    pixels = read_picture(path)
    height, width, _ = pixels.shape
    scale = min(1.0, (max_side or np.inf) / max(height, width))
    size = [max(1, round(side * scale)) for side in (height, width)]
    view = model.prepare(pixels)[None].to(model.bin_list.device)
    features = model.features(encode(model.clip_vis, with_mirror(view) if mirror else view))  # (V, D, h, w)
    weights = logits_of(features, model.text_features, model.reading).softmax(dim=1)
    weights = mirror_average(weights) if mirror else weights  # (1, K, h, w)
    depth = upsampled(depth_of(weights, model.bin_list[None]), size)[0, 0]  # (H', W')
    return Predicted(pixels, depth.cpu().numpy(), weights.cpu(), features)


def write_file(path: Path, content: memoryview) -> None:
    """Write a file and the folders above it, whole or not at all. Raises OSError: it cannot be written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, lambda file: file.write(content))


def predict_all(
    jobs: Sequence[Job],
    predict: Callable[[Job], Predicted],
    card: Callable[[Job, Predicted], page.Card],
    count: int,
) -> tuple[int, list[page.Card]]:
    """Predict one picture after the other; one for which that is impossible is named and skipped.

    Returns how many pictures have their files now, and the cards of `count` of these, evenly spread over them.
    Raises OSError: the device takes no more files; WorkError: a prediction is not finite.
    """
    done = 0
    cards: list[page.Card] = []
    for number, job in enumerate(jobs, 1):
        on_page = len(cards) * len(jobs) < count * number
        if job.files or on_page:
            try:
                found = predict(job)
            except (DataError, OSError) as error:
                if isinstance(error, OSError) and error.errno in options.FULL:
                    raise
                reason = f"{job.name}: {error.filename}: {error.strerror}" if isinstance(error, OSError) else error
                print(printable(f"skipped: {reason}"), file=sys.stderr, flush=True)
                continue
            near, far, (height, width) = found.depth.min(), found.depth.max(), found.depth.shape
            large = "; --max_side 2000 writes less" if height * width > LARGE else ""
            print(f"{number}/{len(jobs)} {job.name}: {width}x{height}, {near:.3f} to {far:.3f} m{large}", flush=True)
            if on_page:
                cards.append(card(job, found))
        done += 1
    return done, cards


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; every error for the user is one sentence on stderr."""
    parser = build_parser()
    args = parser.parse_args(argv)

    def work() -> None:
        if not args.input and not args.demo:
            raise options.UsageError("-i is missing; name a picture, a folder, a pattern or a list, or pass --demo")
        if args.demo and args.clip_path != parser.get_default("clip_path"):
            raise options.UsageError("--demo has its own checkpoint; leave out --demo or --clip_path")
        options.check_output(out := Path(os.path.abspath(args.output)))
        from matplotlib import colormaps  # here, as it looks at what `start_program` sets

        if args.colour_map not in colormaps:
            raise options.UsageError(f"--colour_map {args.colour_map}: matplotlib has none of this name; try turbo_r")
        reading = options.reading_of(args)
        phrases = page.phrases_for(reading, args.phrases, args.html)
        device = options.choose_device(args.device)
        precision = options.choose_precision(args.precision, device)
        clip_path = options.DEMO_WEIGHTS if args.demo else args.clip_path
        jobs = plan(args.input or [str(DEMO_PICTURES)], args.save)

        clip_model, model = options.load_model(clip_path, device, precision, reading, args.exact, args.activation)
        made = notes.made_with(clip_path, device, precision, reading, args.exact, clip_model.activation)
        toy = notes.toy_note(made["checkpoint_sha256"])
        note = "toy CLIP: says nothing about the real one" if toy else ""
        flags = {"max_side": args.max_side, "colour_map": args.colour_map, "range": args.range}
        made |= {"mirror": not args.no_mirror, **flags, "note": toy}
        jobs, files = prepare_folder(out, jobs, made, args.skip_existing)
        warnings = [toy] * bool(toy) + notes.readout_notes(model)
        terminal.say(f"model: {clip_path} on {device} in {precision}")
        for warning in warnings:
            print(f"note: {warning}")
        if "mm" in args.save and max(reading.bin_list) * 1000 > LARGEST_MM:
            print("warning: 16 bits of millimetres end at 65.535 m; what is deeper is 65.535 m in *_depth_mm.png")
        if kept := sum(not job.files for job in jobs):
            print(f"kept: the files of {counted(kept)}, made with the same settings")

        words = reading.depth_classes + phrases
        text_features = zeroshot_classifier(clip_model, words, reading.obj_classes, reading.depth_templates)

        def predict(job: Job) -> Predicted:
            found = predict_picture(model, job.path, not args.no_mirror, args.max_side)
            if not np.isfinite(found.depth).all():
                advice = "" if precision == "fp32" else "; use --precision fp32"
                raise options.WorkError(f"{job.name}: NaN or infinite depth predicted{advice}")
            for file, ending in job.files.items():
                content = content_of(ending, *found[:3], reading, args.colour_map, args.range == "picture", note)
                write_file(out / file, content)
            return found

        def card(job: Job, found: Predicted) -> page.Card:
            *_, scene, name = ("", *Path(job.name).parts)  # no more, because a page may be shown to others
            span = {"nearest [m]": found.depth.min(), "farthest [m]": found.depth.max()}
            logits = logits_of(found.features, text_features, reading).cpu().numpy()
            return page.card(f"{scene}/{name}".lstrip("/"), scene, found.pixels, logits, reading, phrases, metrics=span)

        try:
            done, cards = predict_all(jobs, predict, card, args.html or 0)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("what was written is whole, and --skip_existing goes on") from None
        if not done:
            raise options.WorkError("no picture has its depth; each is named above")
        if cards:
            unread = [f"{counted(len(jobs) - done)} could not be used"] * (done < len(jobs))
            said = [f"{made['checkpoint']} in {precision}", page.subset_note(len(cards), done), *unread]
            text = page.build("Depth from words", cards, reading, phrases, notes=said, warning="; ".join(warnings))
            write_text(out / page.PAGE_FILE, text)
            terminal.say(f"page: {out / page.PAGE_FILE}, {said[1]}")
        files = {file: sha256 for file, sha256 in files.items() if os.path.isfile(out / file)}
        write_json(out / RECORD_FILE, {"made_with": made, "files": files})
        terminal.say(f"done: {done} of {counted(len(jobs))} in {out}, depth in metres; {RECORD_FILE} lists the files")

    return options.run_command("predict.py", work)


if __name__ == "__main__":
    start_program()
    sys.exit(main())
