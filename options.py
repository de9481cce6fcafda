"""What the commands share: their flags, how flags become a model, and how a command ends.

`run_command` turns wrong arguments (`UsageError`), unusable data (`datasets.DataError`) or checkpoints
(`clip.CheckpointError`), and what a machine may refuse, into one sentence and an exit code.
"""

import argparse
import errno
import math
import os
import platform
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

import clip
from calculate_error import KITTI_ADABINS, KITTI_BTS, MIN_DEPTH, NYU, NYU_METRICS, Protocol, UnscorableError
from clip.checkpoint import locate_checkpoint
from clip.dense import READOUTS
from clip.model import convert_weights
from clip.tokenizer import TooLongError
from datasets import DataError, printable
from datasets.alignment import ALIGNMENTS
from datasets.kitti import open_kitti
from datasets.nyu import open_nyu
from datasets.pairs import DepthPairs
from datasets.readings import IMAGE_STATISTICS, READINGS, checked_reading, with_statistics
from datasets.rgbd import DEPTH_SCALE, open_rgbd
from download import file_sha256
from monoclip import PAPER, MonoCLIP, Reading
from viewer.terminal import ForgivingStream

VERSION = "2.2"
CPU = torch.device("cpu")
DEMO_WEIGHTS = Path(__file__).parent / "demo" / "rooms_clip.pt"
DEMO_DATA = Path(__file__).parent / "demo" / "sample"
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
BATCH_SIZE = {"cpu": 4, "cuda": 32, "mps": 8}  # images at once, unless told otherwise
WORKERS = {"cpu": 1, "cuda": 8, "mps": 4}  # threads that read them
PROTOCOLS = {"bts": KITTI_BTS, "adabins": KITTI_ADABINS}  # of KITTI
MAX_DEPTH = NYU.cap  # [m] of one's own pairs, unless told otherwise
DATA_FOLDERS = (Path("nyu_depth_v2"), Path("datasets", "NYU_Depth_V2"))  # the second is the release's place
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a device without room says
NO_MEMORY = "not enough memory; use smaller batches or pictures, or another --device"
WORD_FLAGS = ("depth_templates", "obj_classes", "depth_classes", "bin_list")  # fields of a `Reading`
READING_FLAGS = (*WORD_FLAGS, "temperature")


class UsageError(Exception):
    """The arguments cannot be followed; the message is one sentence for the user."""


class WorkError(Exception):
    """The work cannot be done, though nothing is wrong with the arguments; the message is one sentence."""


@dataclass(frozen=True)
class Setup:
    """Which CLIP, where and how it computes, and how depth is read out of it."""

    clip_path: str | Path  # a file, or a name in the cache
    reading: Reading = PAPER
    device: torch.device = CPU
    precision: str = "fp32"  # one of `PRECISIONS`
    exact: bool = False  # the plain network, bit for bit; else a faster image encoder, and only that in `precision`
    activation: str = "auto"  # one of `clip.ACTIVATIONS`; auto takes what the checkpoint tells

    def __str__(self) -> str:
        return f"{self.clip_path} on {self.device} in {self.precision}"


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


def add_data_arguments(parser: argparse.ArgumentParser, maps: bool = False) -> None:
    """Add which images are evaluated, and depth maps that are scored in place of the method's, and kept."""
    add = parser.add_argument_group("data").add_argument
    add("--dataset", choices=("NYU", "KITTI", "rgbd"), default="NYU", help="rgbd: own pairs of picture and depth map")
    default = next(filter(Path.exists, DATA_FOLDERS), DATA_FOLDERS[0])
    text = "folder of official_splits/test or nyu_depth_v2_labeled.mat; KITTI's root; folder of the pairs"
    add("--data_path", type=named_path, default=default, metavar="FOLDER", help=text)
    add("--list_file", type=Path, metavar="FILE", help="text file with a pair a line (default: all pairs there are)")
    add("--protocol", choices=PROTOCOLS, default="bts", help="KITTI: by whose rule pixels count")
    add("--depth_scale", type=float, default=DEPTH_SCALE, metavar="N", help="rgbd: units in a metre of 16-bit maps")
    add("--max_depth", type=float, default=MAX_DEPTH, metavar="M", help="rgbd: only pixels nearer than this count [m]")
    add("--scene", nargs="+", metavar="NAME", help="evaluate only these scenes, or drives (default: all)")
    add("--limit", type=positive, metavar="N", help="evaluate only the first N images (default: all)")
    if not maps:
        return
    add = parser.add_argument_group("maps of another method").add_argument
    text = "score this folder's maps instead, without CLIP: <scene>/<picture's stem>.npy (floats) or .png (16 bits)"
    add("--predictions", type=named_path, metavar="FOLDER", help=text)
    add("--predictions_scale", type=positive, default=1000, metavar="N", help="units in a metre of such a .png")
    text = "fitted to the true depth first: nothing, the ratio of medians, scale and shift, or these of 1 / depth"
    add("--align", choices=ALIGNMENTS, default="none", help=text)
    add(
        "--save_predictions",
        type=named_path,
        metavar="FOLDER",
        help="folder that keeps this run's maps, for --predictions",
    )


def add_model_arguments(parser: argparse.ArgumentParser, several: bool = False) -> argparse._ArgumentGroup:
    """Add the checkpoint, or several, and where and how its encoder computes."""
    model: Any = parser.add_argument_group("model")
    add, more = model.add_argument, {"nargs": "+"} if several else {}
    text = "CLIP checkpoint: a file, or a name such as RN50, whose file is fetched once"
    add("--clip_path", default=["RN50"] if several else "RN50", metavar="CLIP", help=text, **more)
    text = "what it was trained with; auto knows OpenAI's files and names" + "; one for all, or one each" * several
    known = ("auto", *clip.ACTIVATIONS)
    add("--activation", choices=known, default=["auto"] if several else "auto", help=text, **more)
    add("--device", default="auto", help="where to compute: auto (a GPU if there is one), cpu, cuda, cuda:1 or mps")
    add("--precision", choices=("auto", *PRECISIONS), default="auto", help="auto: fp32 on a CPU, fp16 on a GPU")
    add("--exact", action="store_true", help="the plain network, bit for bit (default: faster, 1e-5 m off on the demo)")
    return model


def add_reading_arguments(parser: argparse.ArgumentParser, words_only: bool = False) -> argparse._ArgumentGroup:
    """Add words and bins of a `Reading`, and its temperature, read-out and image statistics."""
    reading = parser.add_argument_group("reading", "How depth is read out of CLIP; what is not given is the preset's.")
    add = reading.add_argument
    text = "the paper's; auty: Auty and Mikolajczyk's for KITTI; log: the paper's words, log bins over 5 to 60 m"
    add("--preset", choices=READINGS, default="paper", help=text)
    add("--depth_classes", nargs="+", metavar="WORD", help="words for depth; the paper's: giant, extremely close, ...")
    add("--bin_list", nargs="+", type=float, metavar="M", help="depth of each word [m]; the paper's: 1 1.5 2 ... 3")
    add("--depth_templates", nargs="+", metavar="T", help="sentences for object and word; the paper's: This {} is {}")
    add("--obj_classes", nargs="+", metavar="WORD", help="what stands for the object; the paper's: object")
    if not words_only:
        add("--temperature", type=float, metavar="T", help="of the softmax over the words; the paper's: 0.1")
        add("--readout", choices=READOUTS, default="raw", help="how patches are read out of CLIP (docs/readouts.md)")
        add("--image_statistics", choices=IMAGE_STATISTICS, default="imagenet", help="what images are normalised with")
    return reading


def add_run_arguments(parser: argparse.ArgumentParser, output: str = "") -> argparse._ArgumentGroup:
    """Add how many images are encoded and read at once, on which GPU, and, with a default, where results go."""
    add = (run := parser.add_argument_group("run")).add_argument
    add("--batch_size", type=positive, metavar="N", help="images at once (default: 4 on a CPU, 32 on a GPU)")
    add("--workers", type=positive, metavar="N", help="threads that read images (default: 1 on a CPU, 8 on a GPU)")
    add("--gpu_num", default="0", metavar="N", help="index of the GPU that auto and cuda mean")
    if output:
        add("--output", type=named_path, default=Path(output), metavar="FOLDER", help="folder for results")
        add("--store", type=named_path, metavar="FOLDER", help="keeps features, 3.6 MB each (default: OUTPUT/features)")
    return run


def add_html_argument(group: argparse._ArgumentGroup, name: str, count: int) -> None:
    """Add `--html [N]`, for the page called `name`, with `count` pictures unless N is given, and its `--phrases`."""
    text = f"also write {name}, a page to look into the answers for N pictures ({count} if N is left out)"
    group.add_argument("--html", nargs="?", type=positive, const=count, metavar="N", help=text)
    group.add_argument("--phrases", type=Path, metavar="FILE", help="the page's phrases, one a line (default: ours)")


def open_data(args: argparse.Namespace) -> tuple[DepthPairs, Protocol]:
    """The images that the flags of `add_data_arguments` name, and how they are scored. Raises DataError, UsageError."""
    path, some = args.data_path, (args.list_file, args.scene, args.limit)
    maps, scales = getattr(args, "predictions", None), (args.depth_scale, args.max_depth)
    words, own = any(getattr(args, name, None) is not None for name in READING_FLAGS), args.dataset == "rgbd"
    possible = 0 < args.depth_scale < math.inf and MIN_DEPTH < args.max_depth < math.inf
    for wrong, message in (
        (maps and words, "--predictions scores maps as they are: words, bins and temperature are the method's"),
        (getattr(args, "align", "none") != "none" and not maps, "--align is of --predictions, the folder of maps"),
        (args.dataset != "KITTI" and args.protocol != "bts", "--protocol: only KITTI has several"),
        (not own and scales != (DEPTH_SCALE, MAX_DEPTH), "--depth_scale and --max_depth are of --dataset rgbd"),
        (own and args.scene, "--scene: one's own pairs have no scenes; name a list of some with --list_file"),
        (not possible, f"--depth_scale must be positive, --max_depth above {MIN_DEPTH:g} m, and both finite"),
    ):
        if wrong:
            raise UsageError(message)
    if args.dataset == "NYU":
        return open_nyu(path, NYU, *some), NYU
    if args.dataset == "KITTI":
        return open_kitti(path, protocol := PROTOCOLS[args.protocol], *some), protocol
    protocol = Protocol("own pairs", NYU_METRICS, args.max_depth)
    return open_rgbd(path, protocol, args.depth_scale, args.list_file, args.limit), protocol


def reading_of(args: argparse.Namespace) -> Reading:
    """The reading of the flags of `add_reading_arguments`. Raises UsageError: no depth."""
    reading = READINGS[args.preset]
    if "readout" in args:
        reading = replace(with_statistics(reading, args.image_statistics), readout=args.readout)
    given = {name: value for name in READING_FLAGS if (value := getattr(args, name, None)) is not None}
    try:
        return checked_reading(given, reading)
    except ValueError as error:
        raise UsageError(str(error)) from error


def setup_of(args: argparse.Namespace) -> tuple[Setup, int, int]:
    """The model of the flags, this process's rank and the number of processes. Raises UsageError."""
    reading, gpu, rank, count = reading_of(args), getattr(args, "gpu_num", "0"), 0, 1
    if "gpu_num" in args and {"RANK", "WORLD_SIZE", "LOCAL_RANK"} <= os.environ.keys():  # predict.py is one process
        try:
            distributed.init_process_group("gloo", timeout=timedelta(days=1))  # all that is exchanged is rows
        except (ValueError, RuntimeError) as error:
            raise UsageError(f"RANK is set as by torchrun, but {error}; start with torchrun, or unset RANK") from error
        gpu, rank, count = os.environ["LOCAL_RANK"], distributed.get_rank(), distributed.get_world_size()
    name = args.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(f"cuda:{gpu}" if name == "cuda" else name)
        torch.empty(BATCH_SIZE[device.type], device=device)
    except (RuntimeError, AssertionError, KeyError) as error:  # not there, not in this torch, not known here
        raise UsageError(f"--device {name}: not available here; use --device cpu or auto") from error
    precision = args.precision if args.precision != "auto" else "fp32" if device.type == "cpu" else "fp16"
    return Setup(args.clip_path, reading, device, precision, args.exact, args.activation), rank, count


def load_model(setup: Setup) -> tuple[clip.CLIP, MonoCLIP, dict[str, Any]]:
    """The CLIP, its MonoCLIP, and what results depend on, for JSON. Raises UsageError and CheckpointError."""
    clip_model, _ = clip.load(setup.clip_path, CPU, activation=setup.activation if setup.activation != "auto" else None)
    (convert_weights if setup.exact else clip.optimize_for_inference)(clip_model, PRECISIONS[setup.precision])
    try:
        model = MonoCLIP(clip_model.to(setup.device), setup.reading)
    except ValueError as error:
        raise UsageError(f"--clip_path {setup.clip_path}: {error}") from error
    path = locate_checkpoint(setup.clip_path)
    device = torch.cuda.get_device_name(setup.device) if setup.device.type == "cuda" else setup.device.type
    made: dict[str, Any] = {"reading": asdict(setup.reading), "checkpoint": path.name}
    made |= {"checkpoint_sha256": file_sha256(path), "activation": clip_model.activation}
    made |= {"precision": setup.precision, "network": "plain" if setup.exact else "fast", "device": device}
    made |= {"threads": torch.get_num_threads(), "python": platform.python_version()}
    return clip_model, model, made | {"torch": torch.__version__, "depthclip": VERSION}


def check_output(folder: Path) -> None:
    """Raises UsageError if it can be told, without making `folder`, that nothing can be written there."""
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(f"--output {folder}: {there} is no folder that can be written; choose another one")


def run_command(prog: str, work: Callable[[], None]) -> int:
    """Do a command's work and return its exit code; an error for the user is one sentence on stderr.

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
        except (UsageError, DataError, clip.CheckpointError, TooLongError, UnscorableError, WorkError) as error:
            message, code = str(error), 1 if isinstance(error, UnscorableError | WorkError) else 2
        except (MemoryError, RuntimeError) as error:
            if not isinstance(error, MemoryError | torch.OutOfMemoryError) and "allocate memory" not in str(error):
                raise
            message, code = NO_MEMORY, 1
        except OSError as error:
            advice = "; make room or choose another folder" if error.errno in FULL else ""
            message, code = f"{error.filename or 'output'}: {error.strerror or error}{advice}", 1
        except KeyboardInterrupt as error:
            message, code = ": ".join(("interrupted", *error.args)), 130
        finally:
            if distributed.is_initialized():
                distributed.destroy_process_group()
        message = "\n".join(map(printable, message.split("\n")))  # a file's name may bring controls to the terminal
        print(f"{prog}: {message}", file=sys.stderr, flush=True)
        return code
