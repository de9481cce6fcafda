"""What the commands share: their flags, how flags become a model, and how a command ends.

Three kinds of error mean something to a user: wrong arguments (`UsageError`), data that cannot be used
(`datasets.DataError`) and a checkpoint that cannot be used (`clip.CheckpointError`). `run_command` turns them, and what
a machine may refuse, into one sentence and an exit code. argparse's namespace ends in a command's main(): everything
below takes what it needs by name.
"""
# ruff: noqa: E402  # other packages are called clip and datasets, too: what is here must not be imported from those

import argparse
import errno
import filecmp
import io
import json
import math
import os
import platform
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, replace
from datetime import timedelta
from numbers import Real
from pathlib import Path
from typing import Any, TextIO

import torch
from torch import distributed

for name in ("clip", "datasets"):
    other = sys.modules.get(name)
    folders = [Path(folder).resolve() for folder in getattr(other, "__path__", ())]
    if other and (Path(__file__).resolve().parent / name).resolve() not in folders:
        raise ImportError(f"another package {name!r} is imported already ({other}); load DepthCLIP in a new Python")

import clip
from calculate_error import KITTI_ADABINS, KITTI_BTS, MIN_DEPTH, NYU, Protocol, UnscorableError
from clip.checkpoint import locate_checkpoint
from clip.dense import READOUTS, fitted_size
from clip.model import VisionTransformer, convert_weights
from datasets import DataError, printable
from datasets.kitti import PRESETS, open_kitti
from datasets.nyu import open_nyu
from datasets.pairs import DepthPairs
from datasets.rgbd import DEPTH_SCALE, MAX_DEPTH, open_rgbd, own_protocol
from download import file_sha256, write_whole
from monoclip import PAPER, MonoCLIP, Reading, prompt

VERSION = "2.1"
SCHEMA = 4  # of results.json: raised whenever a key changes its meaning
DEMO_WEIGHTS = Path(__file__).parent / "demo" / "rooms_clip.pt"
DEMO_DATA = Path(__file__).parent / "demo" / "sample"
TOY = "a toy CLIP that was taught distance on rendered rooms: no evidence about the real CLIP or the paper"
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Images at once, and threads that read them, unless the flags say otherwise.
BATCH_SIZE = {"cpu": 4, "cuda": 32, "mps": 8}
WORKERS = {"cpu": 1, "cuda": 8, "mps": 4}
PROTOCOLS = {"bts": KITTI_BTS, "adabins": KITTI_ADABINS}
DATA_FOLDERS = (Path("nyu_depth_v2"), Path("datasets") / "NYU_Depth_V2")  # the second is the release's place
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a device without room says
NO_MEMORY = "not enough memory; use smaller batches or pictures, or another --device"
# What --preset names: the paper's reading, and those for outdoors.
READINGS = {"paper": PAPER} | {name: replace(PAPER, **fields) for name, fields in PRESETS.items()}
READING_FLAGS = ("depth_templates", "obj_classes", "depth_classes", "bin_list", "temperature")
# What images are normalised with: mean and standard deviation, RGB in [0, 1].
IMAGE_STATISTICS = {"imagenet": (PAPER.image_mean, PAPER.image_std), "clip": (clip.CLIP_MEAN, clip.CLIP_STD)}
FAR = 10  # a largest bin below this part of the largest depth is worth a word
SMALLEST, LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max  # that fp32 holds fully
INVERTED = "raw patch tokens of a vision transformer, whose maps are reported as inverted (arXiv 2304.05653)"


class UsageError(Exception):
    """The arguments cannot be followed; the message is one sentence for the user."""


class WorkError(Exception):
    """The work cannot be done, though nothing is wrong with the arguments; the message is one sentence."""


def positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    if (value := int(text)) < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def named_path(text: str) -> Path:
    """A path, for argparse; an empty name, of an unset variable perhaps, would be the present folder."""
    if not text:
        raise argparse.ArgumentTypeError("is empty; name a folder")
    return Path(text)


def say(text: str) -> None:
    """Prints a line whose names may hold anything."""
    print(printable(text))


class _Help(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action: argparse.Action) -> str | None:
        return action.help if action.default in (None, False) else super()._get_help_string(action)


def new_parser(description: str, prog: str | None = None) -> argparse.ArgumentParser:
    """A parser that shows defaults, where there is one, and takes no abbreviated flags."""
    return argparse.ArgumentParser(prog=prog, description=description, formatter_class=_Help, allow_abbrev=False)


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds which images are evaluated."""
    data = parser.add_argument_group("data")
    default = next((path for path in DATA_FOLDERS if path.exists()), DATA_FOLDERS[0])
    kinds = "NYU Depth V2, KITTI's Eigen test split, or one's own pairs of picture and 16-bit depth"
    data.add_argument("--dataset", choices=("NYU", "KITTI", "rgbd"), default="NYU", help=kinds)
    source = "folder that holds official_splits/test, or nyu_depth_v2_labeled.mat; KITTI's root; a folder of pairs"
    data.add_argument("--data_path", type=named_path, default=default, help=source)
    listed = "text file of 'rgb depth' lines, relative to the test split or the folder; KITTI's list of the Eigen split"
    data.add_argument("--list_file", type=Path, help=listed)
    data.add_argument("--protocol", choices=PROTOCOLS, default="bts", help="what of KITTI counts")
    data.add_argument("--depth_scale", type=float, default=DEPTH_SCALE, metavar="N", help="rgbd: PNG units in a metre")
    data.add_argument("--max_depth", type=float, default=MAX_DEPTH, metavar="M", help="rgbd: what counts is nearer [m]")
    data.add_argument("--scene", nargs="+", metavar="NAME", help="evaluate the images of these scenes, or drives, only")
    data.add_argument("--limit", type=positive, metavar="N", help="evaluate the first N images only")


def add_model_arguments(parser: argparse.ArgumentParser, several: bool = False) -> argparse._ArgumentGroup:
    """Adds the checkpoint, or several, and where and how its encoder computes."""
    model = parser.add_argument_group("model")
    many: dict[str, Any] = {"nargs": "+", "default": ["RN50"]} if several else {"default": "RN50"}
    model.add_argument("--clip_path", **many, help="CLIP checkpoint: a file, or a name in the cache")
    trained = "what it was trained with; needed for a file that is neither OpenAI's nor of a known name"
    trained += "; one for all, or one for each" * several
    many = {"nargs": "+", "default": ["auto"]} if several else {"default": "auto"}
    model.add_argument("--activation", **many, choices=("auto", *clip.ACTIVATIONS), help=trained)
    model.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps; auto takes a GPU if any")
    precisions = ("auto", *PRECISIONS)
    model.add_argument("--precision", choices=precisions, default="auto", help="auto: fp32 on a CPU, fp16 on a GPU")
    exact = "the plain network, bit for bit; else a faster form: in fp32 within 1e-5 m, at the temperature 0.1"
    model.add_argument("--exact", action="store_true", help=exact)
    return model


def add_reading_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds the words, bins and temperature of a `Reading`; those that are not given are a preset's."""
    reading = parser.add_argument_group("reading")
    presets = "what is not given here: the paper's; Auty and Mikolajczyk's for KITTI; ours, the paper's words with "
    presets += "bins spread in log depth over 5 to 60 m"
    reading.add_argument("--preset", choices=READINGS, default="paper", help=presets)
    reading.add_argument("--depth_classes", nargs="+", metavar="WORD", help="words")
    reading.add_argument("--bin_list", nargs="+", type=float, metavar="M", help="depths [m]")
    reading.add_argument("--depth_templates", nargs="+", metavar="T", help="sentences")
    reading.add_argument("--obj_classes", nargs="+", metavar="WORD", help="objects")
    reading.add_argument("--temperature", type=float, help=f"of the softmax (default: {PAPER.temperature})")
    how = "how patch features are read out of CLIP (docs/readouts.md)"
    reading.add_argument("--readout", choices=READOUTS, default=PAPER.readout, help=how)
    means = "what images are normalised with: the paper's, or those that CLIP was trained with"
    reading.add_argument("--image_statistics", choices=IMAGE_STATISTICS, default="imagenet", help=means)
    return reading


def add_batch_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds how many images are encoded and read at once."""
    run = parser.add_argument_group("run")
    at_once = "images at once; does not change the metrics; 4 on a CPU, 32 on a GPU"
    run.add_argument("--batch_size", type=positive, help=at_once)
    run.add_argument("--workers", type=positive, help="threads that read images; 1 on a CPU, 8 on a GPU")
    return run


def add_html_argument(group: argparse._ArgumentGroup, name: str, count: int) -> None:
    """Adds `--html [N]`, for the page called `name`, with `count` pictures unless N is given, and its `--phrases`."""
    text = f"also write {name}, a page to look into the answers for N pictures ({count} if not given)"
    group.add_argument("--html", nargs="?", type=positive, const=count, metavar="N", help=text)
    phrases = "text file of the phrases that the page's word boxes offer, one a line (default: some 70 of ours)"
    group.add_argument("--phrases", type=Path, metavar="FILE", help=phrases)


def open_data(args: argparse.Namespace, reading: Reading) -> DepthPairs:
    """The images that the flags of `add_data_arguments` name. Raises DataError, UsageError."""
    if args.dataset != "KITTI" and args.protocol != "bts":
        raise UsageError("--protocol: only KITTI has several")
    if args.dataset != "rgbd" and (args.depth_scale, args.max_depth) != (DEPTH_SCALE, MAX_DEPTH):
        raise UsageError("--depth_scale and --max_depth are of --dataset rgbd")
    if args.dataset == "NYU":
        return open_nyu(args.data_path, reading.normalised, args.list_file, args.scene, args.limit)
    if args.dataset == "KITTI":
        protocol = PROTOCOLS[args.protocol]
        return open_kitti(args.data_path, protocol, reading.normalised, args.list_file, args.scene, args.limit)
    if not 0 < args.depth_scale < math.inf or not MIN_DEPTH < args.max_depth < math.inf:
        raise UsageError(f"--depth_scale must be positive, --max_depth above {MIN_DEPTH:g} m, and both finite")
    if args.scene:
        raise UsageError("--scene: one's own pairs have no scenes; name a list of some of them with --list_file")
    own = own_protocol(args.depth_scale, args.max_depth)
    return open_rgbd(args.data_path, own, reading.normalised, args.list_file, args.limit)


def reading_of(args: argparse.Namespace) -> Reading:
    """The reading of the flags. Raises UsageError if it makes no depth."""
    reading = replace(with_statistics(READINGS[args.preset], args.image_statistics), readout=args.readout)
    given = {name: getattr(args, name) for name in READING_FLAGS}
    return checked_reading({name: value for name, value in given.items() if value is not None}, reading)


def with_statistics(reading: Reading, name: str) -> Reading:
    """The reading of images that are normalised with one of `IMAGE_STATISTICS`."""
    mean, std = IMAGE_STATISTICS[name]
    return replace(reading, image_mean=mean, image_std=std)


def statistics_of(reading: Reading) -> str:
    """Which of `IMAGE_STATISTICS` a reading has; "other" for none of them."""
    own = (reading.image_mean, reading.image_std)
    return next((name for name, known in IMAGE_STATISTICS.items() if known == own), "other")


def checked_reading(values: dict[str, Any], default: Reading = PAPER, where: str = "") -> Reading:
    """A reading whose prompts CLIP can take.

    Args:
        values: of some of `READING_FLAGS`, sequences as lists or tuples.
        default: has the other fields.
        where: the beginning of an error's sentence, if the values come from a file.

    Raises:
        UsageError: an unknown field, a value of another kind, values that make no depth, or a prompt that is too long.
    """
    if unknown := sorted(values.keys() - set(READING_FLAGS)):
        known = ", ".join(READING_FLAGS)
        raise UsageError(f"{where}unknown field {', '.join(unknown)}; known are {known}")
    try:
        reading = replace(default, **{name: field_of(name, value) for name, value in values.items()})
        for template in reading.depth_templates:
            clip.tokenize([prompt(template, o, c) for o in reading.obj_classes for c in reading.depth_classes])
    except (ValueError, RuntimeError, OverflowError) as error:  # the last: JSON knows whole numbers of any size
        raise UsageError(f"{where}{error}") from error
    return reading


def field_of(name: str, value: Any) -> Any:
    """A field of a `Reading` from what a person gave: words as they are, numbers as floats, lists as tuples.

    Raises ValueError: a value of another kind, an empty word or list, or a number that fp32 does not hold.
    """
    example = getattr(PAPER, name)
    if name == "readout" and value not in READOUTS:
        raise ValueError(f"read-out {value!r}: there is none of this name; there are {', '.join(READOUTS)}")
    many = isinstance(example, tuple)
    kind = str if isinstance(example[0] if many else example, str) else Real
    items = value if many else [value]
    if not isinstance(items, list | tuple) or not all(isinstance(v, kind) and not isinstance(v, bool) for v in items):
        wanted = "a list of " * many + ("words" if kind is str else "numbers" if many else "a number")
        raise ValueError(f"{name}: expected {wanted}, got {value!r}")
    if not items:
        raise ValueError(f"{name} has no word or number")
    if kind is str and not all(v.strip() for v in items):
        raise ValueError(f"{name} has an empty word: {value!r}")
    least = -LARGEST if name == "image_mean" else SMALLEST
    if kind is Real and not all(least < v <= LARGEST for v in items):
        raise ValueError(f"{name} must be positive and finite, as fp32 holds it, got {value!r}")
    items = tuple(items) if kind is str else tuple(map(float, items))
    return items if many else items[0]


def choose_device(name: str, gpu: int | str = 0) -> torch.device:
    """The device of `--device`; `gpu` is the index of the GPU that auto and cuda mean. Raises UsageError: none here."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(f"cuda:{gpu}" if name == "cuda" else name)
        if device.type not in BATCH_SIZE:
            raise NotImplementedError(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"--device {name}: not available here; use --device cpu or auto") from error
    return device


def own_device(name: str, gpu: str = "0") -> tuple[torch.device, int, int]:
    """The device of this process, its rank and the number of processes, as torchrun says; rank 0 of 1 without it.

    Several processes are connected, over gloo, because all that they exchange is rows; each takes a GPU of its own.
    Raises UsageError: no such device here, or not enough GPUs.
    """
    if not {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():
        return choose_device(name, gpu), 0, 1
    try:
        distributed.init_process_group("gloo", timeout=timedelta(days=1))
    except (ValueError, RuntimeError) as error:
        raise UsageError(f"RANK is set as by torchrun, but {error}; start with torchrun, or unset RANK") from error
    return choose_device(name, os.environ["LOCAL_RANK"]), distributed.get_rank(), distributed.get_world_size()


def choose_precision(name: str, device: torch.device) -> str:
    """The precision of `--precision`: auto is fp32 on a CPU and fp16 elsewhere."""
    return name if name != "auto" else "fp32" if device.type == "cpu" else "fp16"


def load_model(
    clip_path: str | Path,
    device: torch.device,
    precision: str,
    reading: Reading,
    exact: bool = False,
    activation: str = "auto",
) -> tuple[clip.CLIP, MonoCLIP]:
    """The CLIP of `clip_path` on `device`, and its MonoCLIP.

    Args:
        clip_path: a file, or a name in the cache.
        device: from `choose_device`.
        precision: one of `PRECISIONS`.
        reading: words, bins, temperature and read-out.
        exact: keep the plain network, bit for bit; else its image encoder gets the form of
            `clip.optimize_for_inference`, and only that is in `precision`.
        activation: one of `clip.ACTIVATIONS`, or "auto", where the checkpoint tells.

    Raises:
        UsageError: this CLIP cannot be read as depth.
        clip.CheckpointError: the checkpoint cannot be used.
    """
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32; other precisions do not use it
    named = str(clip_path) in clip.available_models()  # whose files have another hash
    if not named and filecmp.cmp(locate_checkpoint(clip_path), DEMO_WEIGHTS, shallow=False):
        if activation == "gelu":
            raise UsageError("--activation gelu: the demo's CLIP was trained with QuickGELU; use auto for it")
        activation = "quickgelu"
    clip_model, _ = clip.load(clip_path, device="cpu", activation=None if activation == "auto" else activation)
    if exact:
        convert_weights(clip_model, PRECISIONS[precision])
    else:
        clip.optimize_for_inference(clip_model, PRECISIONS[precision])
    clip_model.to(device)
    try:
        return clip_model, MonoCLIP(clip_model, reading)
    except ValueError as error:
        raise UsageError(f"--clip_path {clip_path}: {error}") from error


def made_with(
    clip_path: str | Path,
    device: torch.device,
    precision: str,
    exact: bool,
    reading: Reading,
    activation: str,
) -> dict[str, Any]:
    """What the results of a run depend on besides its images, as JSON can hold it."""
    path = locate_checkpoint(clip_path)
    return {
        "reading": asdict(reading),
        "checkpoint": path.name,
        "checkpoint_sha256": file_sha256(path),
        "activation": activation,
        "precision": precision,
        "network": "plain" if exact else "fast",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "depthclip": VERSION,
    }


def code_commit() -> str:
    """The commit of this checkout, with `-dirty` if tracked files are changed; `unknown` where it is none."""
    root = Path(__file__).resolve().parent
    git = [
        "git",
        f"--git-dir={root / '.git'}",
        f"--work-tree={root}",
    ]  # not that of a folder above, or of the environment
    command = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        found = ""
    return found.strip() or "unknown"


def identified(protocol: Protocol) -> dict[str, Any]:
    """What a results.json is: the version of its form, the protocol, the code."""
    return {"schema": SCHEMA, "protocol": protocol.about, "protocol_name": protocol.name, "commit": code_commit()}


def toy_note(checkpoint_sha256: str) -> str:
    """What is said beside every result of the embedded checkpoint, under whatever name; empty for any other."""
    return TOY if checkpoint_sha256 == file_sha256(DEMO_WEIGHTS) else ""


def caveats(official: bool, checkpoint_sha256: str, model: MonoCLIP, protocol: Protocol = NYU) -> list[str]:
    """What keeps metrics from being beside published ones: other images, the toy CLIP, the read-out, resizing."""
    notes = ["" if official else protocol.whole_split, toy_note(checkpoint_sha256), *readout_notes(model)]
    patch, (height, width) = model.clip_vis.patch_size, protocol.seen or (0, 0)
    rows, columns = fitted_size(height, width, patch)
    if protocol.seen and (rows, columns) != protocol.seen:
        notes.append(f"images of {height}x{width} px are resized to {rows}x{columns}, whole patches of {patch} px")
    farthest, largest = max(model.reading.bin_list), protocol.max_depth
    if farthest > largest:
        notes.append(f"bins beyond {largest:g} m, to which depth is clamped: see --preset and --bin_list")
    if protocol is not NYU and farthest < largest / FAR:
        notes.append(f"no bin is beyond {farthest:g} m, where ground truth goes to {largest:g} m: see --preset")
    if model.reading.bin_list == READINGS["log"].bin_list:
        notes.append("bins that are ours, spread in log depth, and published nowhere")
    return [text for text in notes if text]


def readout_notes(model: MonoCLIP) -> list[str]:
    """What is not the paper's in how patch features are read, or must be known of it."""
    readout, statistics = model.reading.readout, statistics_of(model.reading)
    others = [f"patch features by {readout}"] * (readout != "raw")
    others += [f"image statistics of {statistics}"] * (statistics != "imagenet")
    notes = [f"{' and '.join(others)}: not the paper's setting"] if others else []
    if readout == "raw" and isinstance(model.clip_vis, VisionTransformer):
        notes.append(INVERTED)
    return notes


def caption(title: str, warnings: Sequence[str]) -> str:
    """What stands in every table and drawing: over which data set it is, and its `caveats`."""
    return "; ".join([f"Over {title}", *warnings]) + "."


def write_text(path: Path, text: str) -> None:
    """Writes a text file, whole or not at all. Raises OSError: it cannot be written."""
    write_whole(path, lambda file: file.write(text.encode()))


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON, whole or not at all. Raises OSError: it cannot be written."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def csv_text(text: str) -> str:
    """Text for a cell of a CSV file: a spreadsheet must not take it for a formula."""
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "'")) else text


def check_output(folder: Path | None) -> None:
    """Raises UsageError if it can be told, without making `folder`, that nothing can be written there."""
    if folder is None:
        return
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(f"--output {folder}: {there} is no folder that can be written; choose another one")


class ForgivingStream:
    """A text stream whose reader may go away, as `| head` does: from then on, what is written is dropped.

    Args:
        stream: standard output or error; None, where it is closed, takes everything and keeps nothing. What its
            encoding lacks, such as a name that is not UTF-8, is written with backslashes.
        needed: whether `write` and `flush` raise OSError where another reason, such as a full disk, keeps the text
            from being written.
    """

    def __init__(self, stream: TextIO | None, needed: bool) -> None:
        self.stream, self.needed = stream or open(os.devnull, "w"), needed  # noqa: SIM115  # for the whole command
        if isinstance(self.stream, io.TextIOWrapper):
            self.stream.reconfigure(errors="backslashreplace")

    def write(self, text: str) -> int:
        """Writes the text."""
        self._tried(lambda: self.stream.write(text))
        return len(text)

    def flush(self) -> None:
        """Flushes the stream."""
        self._tried(self.stream.flush)

    def _tried(self, action: Callable[[], Any]) -> None:
        try:
            action()
        except OSError as error:
            os.dup2(os.open(os.devnull, os.O_WRONLY), self.stream.fileno())  # what is left in its buffer goes there
            if self.needed and not isinstance(error, BrokenPipeError):
                raise OSError(error.errno, error.strerror, "standard output") from error

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def run_command(prog: str, work: Callable[[], None]) -> int:
    """The exit code of a command whose work this is; an error for the user is one sentence on stderr.

    0: done; 1: it could not be finished; 2: wrong arguments, unusable data or an unusable checkpoint; 130: interrupted.
    """
    with (
        redirect_stdout(ForgivingStream(sys.stdout, needed=True)),  # type: ignore[type-var]
        redirect_stderr(ForgivingStream(sys.stderr, needed=False)),  # type: ignore[type-var]
    ):
        try:
            work()
            sys.stdout.flush()
            return 0
        except (UsageError, DataError, clip.CheckpointError) as error:
            message, code = str(error), 2
        except (UnscorableError, WorkError) as error:
            message, code = str(error), 1
        except (MemoryError, torch.OutOfMemoryError):
            message, code = NO_MEMORY, 1
        except RuntimeError as error:
            if "can't allocate memory" not in str(error):  # as torch says it on a CPU
                raise
            message, code = NO_MEMORY, 1
        except OSError as error:
            advice = "; make room or choose another folder" if error.errno in FULL else ""
            message, code = f"{error.filename or 'output'}: {error.strerror or error}{advice}", 1
        except KeyboardInterrupt as error:
            message, code = f"interrupted{f': {error}' if str(error) else ''}", 130
        finally:
            if distributed.is_initialized():
                distributed.destroy_process_group()
        message = "\n".join(map(printable, message.split("\n")))  # a file's name may bring controls to the terminal
        print(f"{prog}: {message}", file=sys.stderr, flush=True)
        return code
