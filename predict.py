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
import errno
import io
import json
import os
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib import colormaps
from PIL import Image
from torch import Tensor

import options
from clip.dense import encode
from clip.inference import keep_freed_memory
from datasets import NAME_FILE, DataError, counted, name_of, printable, text_of
from datasets.pictures import find_files, read_picture, resized
from download import file_sha256, write_whole
from monoclip import MonoCLIP, Reading, depth_of, logits_of, mirror_average, upsampled, with_mirror, zeroshot_classifier
from viewer import colour, page

DEMO_PICTURES = options.DEMO_DATA / "official_splits" / "test"
RECORD_FILE = "predict.json"
NPY, MM_PNG, COLOURED, SIDE_BY_SIDE = "_depth.npy", "_depth_mm.png", "_depth.png", "_side_by_side.png"
SIGMA_NPY, SIGMA_PNG, WORDS = "_sigma.npy", "_sigma.png", "_words.png"
SAVED = {"npy": [NPY], "mm": [MM_PNG], "colour": [COLOURED], "side_by_side": [SIDE_BY_SIDE]}
SAVED |= {"sigma": [SIGMA_NPY, SIGMA_PNG], "words": [WORDS]}
# No pictures to read: what this script writes, and the depth maps of the layouts of NYU and KITTI.
PASSED_BY = [f"*{kind}" for kinds in SAVED.values() for kind in kinds]
PASSED_BY += [page.PAGE_FILE, RECORD_FILE, NAME_FILE, "sync_depth_*.png", "proj_depth/*/*/*.png"]
ANY_MACHINE = ("device", "threads", "python", "torch")  # what the runs of one folder may differ in
LARGE = 20_000_000  # pixels of a map, from which on its files take 80 MB and more
# A device that is full or broken takes no other picture's files either.
DEVICE_ERRORS = (*options.FULL, errno.EIO, errno.EROFS)


def build_parser() -> argparse.ArgumentParser:
    """The command line. The flags of model and reading are those of eval.py, with the same defaults."""
    parser = options.new_parser("Depth [m] of your own pictures: .npy, 16-bit PNG, colours, a page to look into.")
    files = parser.add_argument_group("files")
    inputs = "pictures, folders, patterns, .txt lists; --demo has its own"
    files.add_argument("-i", "--input", nargs="+", metavar="INPUT", help=inputs)
    folder = "folder for everything written"
    files.add_argument("-o", "--output", required=True, type=options.named_path, metavar="OUT", help=folder)
    files.add_argument("--skip_existing", action="store_true", help="go on with a stopped run of the same settings")
    kinds, first = f"what to write: {', '.join(SAVED)}", ["npy", "mm", "colour"]
    files.add_argument("--save", nargs="+", choices=SAVED, default=first, metavar="KIND", help=kinds)
    files.add_argument("--max_side", type=options.positive, metavar="N", help="write maps of at most N px a side")
    files.add_argument("--colour_map", default=colour.COLOUR_MAP, metavar="NAME", help="matplotlib's, from near to far")
    spans = "what colours span: all bins, so that pictures compare, or each picture's own depths"
    files.add_argument("--range", choices=("bins", "picture"), default="bins", help=spans)
    options.add_html_argument(files, page.PAGE_FILE, page.PAGE_IMAGES)
    model = options.add_model_arguments(parser)
    model.add_argument("--demo", action="store_true", help="the embedded toy checkpoint instead; no download")
    model.add_argument("--no_mirror", action="store_true", help="do not average with the mirrored picture")
    options.add_reading_arguments(parser)
    return parser


@dataclass(frozen=True)
class Settings:
    """What a run's files depend on besides `options.made_with`: the flags of these names, and what drawings say."""

    mirror: bool = True
    max_side: int | None = None
    colour_map: str = colour.COLOUR_MAP
    range: str = "bins"
    note: str = ""  # of the toy


@dataclass(frozen=True)
class Job:
    """A picture: its file, its name in messages, what the data set that it is of is called, and its outputs."""

    path: Path
    name: str
    data_set: str  # by `name_of`; "" for most
    files: dict[str, str]  # by kind, relative to OUT
    sha256: str  # of the picture; "" if it cannot be read


def passed_by(path: Path) -> bool:
    """Whether a file is no picture to read, by its name; of one's own pairs, `depth/` beside `rgb/` holds none."""
    own = path.parent.name == "depth" and (path.parent.parent / "rgb").is_dir()
    return own or any(map(path.match, PASSED_BY))


def plan(inputs: Sequence[str], save: Sequence[str]) -> list[Job]:
    """What to write for each picture of `inputs`. Raises DataError: an input is nothing; WorkError: no pictures.

    No two files share an output: a file keeps its suffix if its stem is also another file's stem or another file's
    whole name. Compared without case, because some file systems do not know it.
    """
    found = find_files(inputs)
    found = {path: found[path] for path in found if not passed_by(path)}
    if not found:
        raise options.WorkError(f"{' '.join(inputs)}: no file there (depth maps and hidden files are passed by)")
    stems = Counter(str(relative.with_suffix("")).casefold() for relative in found.values())
    names = Counter(str(relative).casefold() for relative in found.values())
    jobs = []
    for path, relative in found.items():
        stem = relative.with_suffix("")
        others = stems[str(stem).casefold()] - 1 + names[str(stem).casefold()] - (stem == relative)
        start = (relative if others else stem).as_posix()
        files = {kind: start + kind for choice in SAVED if choice in save for kind in SAVED[choice]}
        sha256 = file_sha256(path) if path.is_file() and os.access(path, os.R_OK) else ""
        jobs.append(Job(path, printable(relative.as_posix()), name_of(path), files, sha256))
    return jobs


class OutputFolder:
    """The folder OUT and its predict.json: with what its files were made, and of which pictures.

    predict.json is written before the first file and after the last, so what it lists and what is there is of these
    settings and pictures: a file appears whole, and what stood in its place of others is removed first.

    Attributes:
        files: file -> SHA-256 of its picture.
        differing: the names of the settings that an earlier run, if there was one, does not share.
    """

    def __init__(self, path: Path, made_with: dict[str, Any]) -> None:
        self.path, self.made_with = path, made_with
        new = json.loads(json.dumps({**made_with, **made_with["reading"]}))
        try:
            content = json.loads(text_of(path / RECORD_FILE))
            old, self.files = {**content["made_with"], **content["made_with"]["reading"]}, {**content["files"]}
        except (ValueError, LookupError, TypeError, RecursionError):  # none, or not ours
            old, self.files = {}, {}
        self.known = bool(old)
        names = sorted({*old, *new} - {"reading", *ANY_MACHINE})
        self.differing = [name for name in names if old.get(name) != new.get(name)] if old else []
        if self.differing:
            self.files = {}

    def start(self, jobs: Sequence[Job], skip_existing: bool) -> list[Job]:
        """Writes predict.json and returns the jobs without the files that are kept.

        Raises UsageError: files are to be kept, but are not known to be of these settings; OSError.
        """
        some = any(os.path.lexists(self.path / file) for job in jobs for file in job.files.values())
        if skip_existing and (self.differing or (some and not self.known)):
            what = f"has other {', '.join(self.differing)}" if self.known else f"has results, but no {RECORD_FILE}"
            advice = "choose another folder, or compute all again without --skip_existing"
            raise options.UsageError(f"--skip_existing: {self.path} {what}; {advice}")
        remaining = []
        for job in jobs:
            there = [file for file in job.files.values() if os.path.isfile(self.path / file)]
            own = [file for file in there if self.files.get(file) == job.sha256]
            for file in set(there) - set(own):
                (self.path / file).unlink()
            files = {kind: file for kind, file in job.files.items() if not skip_existing or file not in own}
            remaining.append(replace(job, files=files))
            self.files |= dict.fromkeys(job.files.values(), job.sha256)
        self.path.mkdir(parents=True, exist_ok=True)
        self.record()
        return remaining

    def write(self, file: str, content: memoryview) -> None:
        """Writes a file, whole or not at all. Raises OSError: it cannot be, or a link leads out of the folder."""
        path = self.path / file
        if not Path(os.path.realpath(path.parent)).is_relative_to(os.path.realpath(self.path)):
            raise OSError(errno.ELOOP, f"a link leads out of {self.path}, so nothing is written there", str(path))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, lambda opened: opened.write(content))

    def record(self) -> None:
        """Writes predict.json with the files that are there or, before they are, planned. Raises OSError."""
        options.write_json(self.path / RECORD_FILE, {"made_with": self.made_with, "files": self.files})


class Answers(NamedTuple):
    """What is read out of one picture of H x W pixels and h x w patches; all float32."""

    depth: np.ndarray  # (H, W) [m]
    weights: np.ndarray  # (K, h, w), how strongly each depth class is answered to; their sum over K is 1
    sigma: np.ndarray  # (h, w) [m], by `colour.sigma_of`
    entropy: np.ndarray  # (h, w) [nats], by `colour.entropy_of`


def answers_of(model: MonoCLIP, features: Tensor, size: Sequence[int]) -> Answers:
    """What the words say of a picture of `size` (H, W): features (2, D, h, w) of it and its mirror, or (1, D, h, w)."""
    weights = logits_of(features, model.text_features, model.reading).softmax(dim=1)
    weights = mirror_average(weights) if len(features) == 2 else weights  # (1, K, h, w)
    depth = depth_of(weights, model.bin_list[None])  # (1, 1, h, w)
    sigma, entropy = colour.sigma_of(weights, model.bin_list[None], depth), colour.entropy_of(weights)
    found = (upsampled(depth, size)[0, 0], weights[0], sigma[0, 0], entropy[0, 0])
    return Answers(*(maps.cpu().numpy() for maps in found))


def file_content(
    kind: str, pixels: np.ndarray, answers: Answers, reading: Reading, settings: Settings, note: str
) -> memoryview:
    """The content of one kind of output, of a picture (H, W, 3) uint8."""
    content, size = io.BytesIO(), answers.depth.shape
    values, bounds, names, table = answers.depth, np.array(reading.bin_list), ("near {}", "{} far"), settings.colour_map
    if kind in (SIGMA_NPY, SIGMA_PNG):
        values = upsampled(torch.from_numpy(answers.sigma)[None, None], size)[0, 0].numpy()
        bounds = np.array([0, np.ptp(bounds) / 2])  # to the largest there is: half of the answers at either end
        names, table = ("sure {}", "{} unsure"), colour.NO_DEPTH_MAP
    if kind in (NPY, SIGMA_NPY):
        np.save(content, values)
        return content.getbuffer()
    if kind == MM_PNG:
        image = Image.fromarray(colour.to_millimetres(values))
    elif kind == WORDS:
        labels = [f"{printable(c)[:40]}, {b:g} m" for c, b in zip(reading.depth_classes, reading.bin_list, strict=True)]
        drawn = colour.word_maps(answers.weights, answers.entropy, labels, size)
        image = colour.with_legend(drawn, 0, 1, colour.NO_DEPTH_MAP, ("weight {}", "{}"), "", note)
    else:
        bounds = values if settings.range == "picture" else bounds
        span = float(bounds.min()), float(bounds.max())
        drawn = colour.coloured(values, *span, table)
        drawn = colour.side_by_side(resized(pixels, size), drawn) if kind == SIDE_BY_SIDE else drawn
        image = colour.with_legend(drawn, *span, table, names, " m", note)
    image.save(content, "PNG")
    return content.getbuffer()


@torch.inference_mode()
def predict_one(
    job: Job, model: MonoCLIP, settings: Settings, output: OutputFolder
) -> tuple[np.ndarray, np.ndarray, Tensor]:
    """Reads and predicts a picture, and writes its files; its pixels, depth and features (V, D, h, w).

    Depth is as `MonoCLIP.infer_image` gives it, but of at most the settings' `max_side` px a side. V is 2, the picture
    and its mirror, or 1 without the mirror.

    Raises DataError: no picture; OSError: a file cannot be written; WorkError: a prediction is not finite.
    """
    pixels = read_picture(job.path)
    height, width = pixels.shape[:2]
    scale = min(1.0, (settings.max_side or np.inf) / max(height, width))
    view = model.prepare(pixels)[None].to(model.bin_list.device)
    features = model.features(encode(model.clip_vis, with_mirror(view) if settings.mirror else view))  # (V, D, h, w)
    answers = answers_of(model, features, [max(1, round(side * scale)) for side in (height, width)])
    if not np.isfinite(answers.depth).all():
        advice = "" if output.made_with["precision"] == "fp32" else "; use --precision fp32"
        raise options.WorkError(f"{job.name}: NaN or infinite depth predicted{advice}")
    toy = "toy CLIP: says nothing about the real one" if settings.note else ""
    note = "; ".join(filter(None, (toy, job.data_set)))
    for kind, file in job.files.items():
        output.write(file, file_content(kind, pixels, answers, model.reading, settings, note))
    return pixels, answers.depth, features


CardOf = Callable[[Job, np.ndarray, np.ndarray, Tensor], page.Card]  # of a job's pixels, depth and features


def predict_all(
    jobs: Sequence[Job], model: MonoCLIP, settings: Settings, output: OutputFolder, count: int, card: CardOf
) -> tuple[int, list[page.Card]]:
    """Predicts one picture after the other; one for which that is impossible is named and skipped.

    Returns how many pictures have their files now, and the cards of `count` of these, evenly spread over them: of all
    until there are twice as many, then of every second one, and so on.
    Raises OSError: the device of `output` takes no more files; WorkError: a prediction is not finite.
    """
    done, cards, step = 0, [], 1
    for number, job in enumerate(jobs, 1):
        on_page = count > 0 and done % step == 0
        if job.files or on_page:
            try:
                pixels, depth, features = predict_one(job, model, settings, output)
            except (DataError, OSError) as error:
                if isinstance(error, OSError) and error.errno in DEVICE_ERRORS:
                    raise
                reason = f"{job.name}: {error.filename}: {error.strerror}" if isinstance(error, OSError) else error
                print(printable(f"skipped: {reason}"), file=sys.stderr, flush=True)
                continue
            near, far, (height, width) = depth.min(), depth.max(), depth.shape
            large = "; --max_side 2000 writes less" if height * width > LARGE and not settings.max_side else ""
            print(f"{number}/{len(jobs)} {job.name}: {width}x{height}, {near:.3f} to {far:.3f} m{large}", flush=True)
        if on_page:
            cards.append(card(job, pixels, depth, features))
            cards, step = (cards[::2], 2 * step) if len(cards) == 2 * count else (cards, step)
        done += 1
    return done, [cards[i] for i in page.spread(len(cards), count)]


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
        options.check_output(path := Path(os.path.abspath(folder)))
        if args.colour_map not in colormaps:
            raise options.UsageError(f"--colour_map {args.colour_map}: matplotlib has none of this name; try turbo_r")
        reading = options.reading_of(args)
        phrases = page.phrases_for(reading, args.phrases, args.html)
        device = options.choose_device(args.device)
        precision = options.choose_precision(args.precision, device)
        clip_path = options.DEMO_WEIGHTS if args.demo else args.clip_path
        jobs = plan(args.input or [str(DEMO_PICTURES)], args.save)

        clip_model, model = options.load_model(clip_path, device, precision, reading, args.exact, args.activation)
        made = options.made_with(clip_path, device, precision, args.exact, reading, clip_model.activation)
        toy = options.toy_note(made["checkpoint_sha256"])
        settings = Settings(not args.no_mirror, args.max_side, args.colour_map, args.range, toy)
        output = OutputFolder(path, made | asdict(settings))
        jobs = output.start(jobs, args.skip_existing)
        warnings = [toy] * bool(toy) + options.readout_notes(model)
        for name, count in Counter(job.data_set for job in jobs if job.data_set).items():
            warnings.append(f"{count} of {counted(len(jobs))}: {name}")
        options.say(f"model: {clip_path} on {device} in {precision}")
        for warning in warnings:
            print(f"note: {warning}")
        if "mm" in args.save and max(reading.bin_list) * 1000 > colour.LARGEST_MM:
            print(f"warning: 16 bits of millimetres end at 65.535 m; what is deeper is 65.535 m in *{MM_PNG}")
        if kept := sum(not job.files for job in jobs):
            print(f"kept: the files of {counted(kept)}, made with the same settings")

        words = reading.depth_classes + phrases
        text_features = zeroshot_classifier(clip_model, words, reading.obj_classes, reading.depth_templates)

        def card(job: Job, pixels: np.ndarray, depth: np.ndarray, features: Tensor) -> page.Card:
            *_, scene, name = ("", *Path(job.name).parts)  # no more, because a page may be shown to others
            span = {"nearest [m]": depth.min(), "farthest [m]": depth.max()}
            logits = logits_of(features, text_features, reading).cpu().numpy()
            return page.card(f"{scene}/{name}".lstrip("/"), scene, pixels, logits, reading, phrases, metrics=span)

        try:
            done, cards = predict_all(jobs, model, settings, output, args.html or 0, card)
        except KeyboardInterrupt:
            raise KeyboardInterrupt("what was written is whole, and --skip_existing goes on") from None
        if not done:
            raise options.WorkError("no picture has its depth; each is named above")
        if cards:
            unread = [f"{counted(len(jobs) - done)} could not be used"] * (done < len(jobs))
            notes = [f"{made['checkpoint']} in {precision}", page.subset_note(len(cards), done), *unread]
            text = page.build("Depth from words", cards, reading, phrases, notes=notes, warning="; ".join(warnings))
            options.write_text(path / page.PAGE_FILE, text)
            options.say(f"page: {path / page.PAGE_FILE}, {notes[1]}")
        output.files = {file: sha256 for file, sha256 in output.files.items() if os.path.isfile(path / file)}
        output.record()
        options.say(f"done: {done} of {counted(len(jobs))} in {path}, depth in metres; {RECORD_FILE} lists the files")

    return options.run_command("predict.py", work)


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
