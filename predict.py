"""Depth of your own pictures, with MonoCLIP.

    python predict.py -i photo.jpg -o depth --clip_path RN50.pt
    python predict.py -i holiday/ "rooms/**/*.png" names.txt -o depth --save npy side_by_side words --html
    python predict.py --demo -o depth                   # offline: the embedded checkpoint on its own rendered rooms

An input is a picture, a folder (searched to its depth), a pattern, or a .txt list of paths; depth maps and what this
script writes are passed by. Below OUT, at the picture's path relative to the folder all inputs share, --save writes:

    npy             <stem>_depth.npy            float32 (H, W) [m]
    mm              <stem>_depth_mm.png         16 bit, millimetres
    colour          <stem>_depth.png            colours, pixel by pixel; --legend adds one below
    side_by_side    <stem>_side_by_side.png     the picture and its colours, with a legend in metres
    sigma           <stem>_sigma.npy, .png      how far apart the depths of a patch's words are [m], and its colours
    words           <stem>_words.png            the picture, and how strongly each patch answers to each word

OUT also gets predict.json, which says with what these were made, and, with --html, depth.html. What cannot be used or
written is named and skipped. Exit code 0: a picture has its depth; 1: none has; else as `options.run_command`.
"""

import argparse
import json
import os
import sys
from collections import Counter
from collections.abc import Sequence
from operator import methodcaller
from pathlib import Path
from typing import Any, NamedTuple

sys.path.insert(0, str(Path(__file__).resolve().parent))  # which PYTHONSAFEPATH leaves out

import datasets.packages  # noqa: F401  # first

# isort: split
import numpy as np
import torch

import options
from clip.dense import encode
from clip.inference import start_program
from datasets import DataError, counted, printable, text_of
from datasets.pictures import find_files, read_picture
from datasets.rgbd import FOLDERS
from download import file_sha256, write_json, write_text, write_whole
from monoclip import MonoCLIP, depth_of, logits_of, mirror_average, upsampled, with_mirror, zeroshot_classifier
from viewer import notes, page, terminal
from viewer.colour import COLOUR_MAP, LARGEST_MM, colour_table
from viewer.outputs import SAVED, Predicted, Style, content_of

DEMO_PICTURES = options.DEMO_DATA / "official_splits" / "test"
RECORD_FILE = "predict.json"
# No pictures to read: what this script writes, and the depth maps of the layouts of NYU and KITTI.
PASSED_BY = [f"*{ending}" for endings in SAVED.values() for ending in endings]
PASSED_BY += [page.PAGE_FILE, RECORD_FILE, "sync_depth_*.png", "proj_depth/*/*/*.png"]
ANY_MACHINE = ("device", "threads", "python", "torch")  # what the runs of one folder may differ in


def build_parser() -> argparse.ArgumentParser:
    """The command line. The flags of model and reading are those of eval.py, with the same defaults."""
    parser = terminal.new_parser("Depth [m] of your own pictures: .npy, 16-bit PNG, colours, a page to look into.")
    add = (files := parser.add_argument_group("files")).add_argument
    add("-i", "--input", nargs="+", metavar="INPUT", help="pictures, folders, patterns, .txt lists; --demo has its own")
    add("-o", "--output", required=True, type=options.named_path, metavar="OUT", help="folder for all that is written")
    add("--skip_existing", action="store_true", help="keep files of a stopped run with these settings (default: redo)")
    text, british = f"what to write of each picture: {', '.join(SAVED)}", methodcaller("replace", "color", "colour")
    add("--save", nargs="+", choices=SAVED, type=british, default=[*SAVED][:3], metavar="KIND", help=text)
    add("--max_side", type=options.positive, metavar="N", help="largest side of a map, px (default: the picture's)")
    add("--colour_map", "--color_map", default=COLOUR_MAP, metavar="NAME", help="matplotlib's, from near to far")
    add("--range", choices=("bins", "picture"), default="bins", help="colours span all bins, or a picture's own depths")
    add("--legend", action="store_true", help="add a legend in metres below the colours of *_depth.png, too")
    options.add_html_argument(files, page.PAGE_FILE, page.PAGE_IMAGES)
    model = options.add_model_arguments(parser)
    model.add_argument("--demo", action="store_true", help="take the embedded toy checkpoint, without a download")
    model.add_argument("--no_mirror", action="store_true", help="do not average with the mirrored picture")
    options.add_reading_arguments(parser)
    return parser


class Job(NamedTuple):
    """A picture to predict."""

    path: Path
    name: str
    files: dict[str, str]  # its outputs, relative to OUT: file -> ending, by which `content_of` knows its kind
    sha256: str  # of the picture; "" if it cannot be read


def passed_by(path: Path) -> bool:
    """Return whether to skip a file by its name; of one's own pairs, `depth/` beside `rgb/` holds no picture."""
    part = next((parent for parent in path.parents if parent.name in ("depth", *FOLDERS)), path)
    own = part.name == "depth" and any((part.parent / name).is_dir() for name in FOLDERS)
    return own or any(map(path.match, PASSED_BY))


def plan(inputs: Sequence[str], save: Sequence[str]) -> list[Job]:
    """Return what to write for each picture. Raises DataError: an input is nothing; WorkError: no pictures."""
    named = [Path(os.path.abspath(os.path.expanduser(text))) for text in inputs]
    there = find_files(inputs)
    found = {path: relative for path, relative in there.items() if path in named or not passed_by(path)}
    if not found:
        raise options.WorkError(f"{' '.join(inputs)}: no file there (depth maps and hidden files are passed by)")
    if len(found) < len(there):
        terminal.say(f"passed by: {len(there) - len(found)} files, by their names (depth maps, files of this script)")
    # A picture keeps its suffix if its stem is also another's stem or whole name; some file systems know no case.
    taken = Counter(str(p).casefold() for name in found.values() for p in {name, name.with_suffix("")})
    jobs = []
    for path, relative in found.items():
        stem = relative.with_suffix("")
        start = (relative if taken[str(stem).casefold()] > 1 else stem).as_posix()
        files = {start + ending: ending for kind in SAVED if kind in save for ending in SAVED[kind]}
        sha256 = file_sha256(path) if os.path.isfile(path) and path.stat().st_size and os.access(path, os.R_OK) else ""
        jobs.append(Job(path, printable(relative.as_posix()), files, sha256))
    return jobs


def prepare_folder(out: Path, jobs: Sequence[Job], made_with: dict[str, Any], skip_existing: bool) -> dict[str, str]:
    """Make OUT ready for the jobs, take from them the files to keep, and return all files with their picture's SHA-256.

    What predict.json lists and is there is always of its settings and pictures. Raises UsageError: it has others.
    """
    planned = {file: job.sha256 for job in jobs for file in job.files}
    new = json.loads(json.dumps(made_with | made_with["reading"]))
    try:
        record = json.loads(text_of(out / RECORD_FILE))
        files, made = {**record["files"]}, {**record["made_with"], **record["made_with"]["reading"]}
        names = sorted({*made, *new} - {"reading", *ANY_MACHINE})
        problem = ", ".join(name for name in names if made.get(name) != new.get(name))
    except (ValueError, LookupError, TypeError):  # none, or not ours
        problem = f"files and no {RECORD_FILE}"
    if skip_existing and problem and any(os.path.lexists(out / file) for file in [RECORD_FILE, *planned]):
        advice = "choose another folder, or compute all again without --skip_existing"
        raise options.UsageError(f"--skip_existing: {out} has other {problem}; {advice}")
    files = {} if problem else files
    for job in jobs:
        for file in [file for file in job.files if os.path.isfile(out / file)]:
            if files.get(file) != job.sha256:
                (out / file).unlink()
            elif skip_existing:
                del job.files[file]
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / RECORD_FILE, {"made_with": made_with, "files": files | planned})
    return files | planned


@torch.inference_mode()
def predict_picture(model: MonoCLIP, path: Path, mirror: bool, max_side: int | None) -> Predicted:
    """Read and predict a picture as `infer_image` does, the map of at most `max_side` px a side. Raises DataError."""
    pixels = read_picture(path)
    scale = min(1.0, (max_side or np.inf) / max(pixels.shape[:2]))
    size = [max(1, round(side * scale)) for side in pixels.shape[:2]]
    view = model.prepare(pixels)[None].to(model.bin_list.device)
    features = model.features(encode(model.clip_vis, with_mirror(view) if mirror else view))  # (V, D, h, w)
    weights = logits_of(features, model.text_features, model.reading).softmax(dim=1)
    weights = mirror_average(weights) if mirror else weights  # (1, K, h, w)
    depth = upsampled(depth_of(weights, model.bin_list[None]), size)[0, 0]  # (H', W')
    return Predicted(pixels, depth.cpu().numpy(), weights.cpu(), features)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; every error for the user is one sentence on stderr."""
    args = build_parser().parse_args(argv)

    def work() -> None:
        if not args.input and not args.demo:
            raise options.UsageError("-i is missing; name a picture, a folder, a pattern or a list, or pass --demo")
        if args.demo and args.clip_path != "RN50":
            raise options.UsageError("--demo has its own checkpoint; leave out --demo or --clip_path")
        options.check_output(out := Path(os.path.abspath(args.output)))
        colour_table(args.colour_map)  # raises, if there is none
        args.clip_path = options.DEMO_WEIGHTS if args.demo else args.clip_path
        setup, *_ = options.setup_of(args)
        reading, phrases = setup.reading, page.phrases_for(setup.reading, args.phrases, args.html)
        jobs = plan(args.input or [str(DEMO_PICTURES)], args.save)

        clip_model, model, made = options.load_model(setup)
        toy = notes.toy_notes(made["checkpoint_sha256"], photographs=bool(args.input))
        note = ("", notes.TOY_BRIEFLY, notes.TOY_ON_PHOTOGRAPHS)[len(toy)]
        style = Style(args.colour_map, args.range == "picture", args.legend, note)
        made |= {name: getattr(args, name) for name in ("max_side", "colour_map", "range", "legend")}
        made |= {"mirror": not args.no_mirror, "note": "".join(toy[:1])}
        files = prepare_folder(out, jobs, made, args.skip_existing)
        warnings = toy + notes.readout_notes(model)
        terminal.say(f"model: {setup}", *(f"note: {warning}" for warning in warnings))
        if "mm" in args.save and max(reading.bin_list) * 1000 > LARGEST_MM:
            print("warning: 16 bits of millimetres end at 65.535 m; what is deeper is 65.535 m in *_depth_mm.png")
        if kept := sum(not job.files for job in jobs):
            print(f"kept: the files of {counted(kept)}, made with the same settings")

        words = reading.depth_classes + phrases
        text_features = zeroshot_classifier(clip_model, words, reading.obj_classes, reading.depth_templates)
        done, cards = 0, list[page.Card]()
        for number, job in enumerate(jobs, 1):
            on_page = len(cards) * len(jobs) < (args.html or 0) * number  # evenly spread over what can be read
            try:
                if job.files or on_page:
                    found = predict_picture(model, job.path, not args.no_mirror, args.max_side)
                    near, far = float(found.depth.min()), float(found.depth.max())
                    if not np.isfinite([near, far]).all():
                        advice = "; use --precision fp32" * (setup.precision != "fp32")
                        raise options.WorkError(f"{job.name}: NaN or infinite depth predicted{advice}")
                    for file, ending in job.files.items():
                        content = content_of(ending, found, reading, style)
                        (out / file).parent.mkdir(parents=True, exist_ok=True)
                        write_whole(out / file, methodcaller("write", content))
                    size = "x".join(map(str, found.depth.shape[::-1]))
                    print(f"{number}/{len(jobs)} {job.name}: {size}, {near:.3f} to {far:.3f} m", flush=True)
                if on_page:
                    name = "/".join(Path(job.name).parts[-2:])  # no more, because a page may be shown to others
                    logits = logits_of(found.features, text_features, reading).cpu().numpy()
                    span = {"nearest [m]": near, "farthest [m]": far}
                    cards.append(page.card(name, found.pixels, logits, reading, span))
                done += 1
            except KeyboardInterrupt:
                raise KeyboardInterrupt("what was written is whole, and --skip_existing goes on") from None
            except (DataError, OSError) as error:
                if getattr(error, "errno", None) in options.FULL:
                    raise
                reason = f"{job.name}: {error.filename}: {error.strerror}" if isinstance(error, OSError) else error
                print(printable(f"skipped: {reason}"), file=sys.stderr, flush=True)
        if not done:
            raise options.WorkError("no picture has its depth; each is named above")
        if cards:
            unread = [f"{counted(len(jobs) - done)} could not be used"] * (done < len(jobs))
            said = [f"{made['checkpoint']} in {setup.precision}", page.subset_note(len(cards), done), *unread]
            about, warning = " · ".join(said), "; ".join(warnings)
            text = page.build(cards, reading, phrases, {}, title="Depth from words", notes=about, warning=warning)
            write_text(out / page.PAGE_FILE, text)
            terminal.say(f"page: {out / page.PAGE_FILE}, {said[1]}")
        files = {file: sha256 for file, sha256 in files.items() if os.path.isfile(out / file)}
        write_json(out / RECORD_FILE, {"made_with": made, "files": files})
        terminal.say(f"done: {done} of {counted(len(jobs))} in {out}, depth in metres; {RECORD_FILE} lists the files")

    return options.run_command("predict.py", work)


if __name__ == "__main__":
    start_program()
    sys.exit(main())
