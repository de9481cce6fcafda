"""What the commands share: their flags, how flags become a model, and how a command ends.

Three kinds of error mean something to a user: wrong arguments (`UsageError`), data that cannot be used
(`datasets.DataError`) and a checkpoint that cannot be used (`clip.CheckpointError`). `run_command` turns them, and what
a machine may refuse, into one sentence and an exit code. argparse's namespace ends in a command's main(), but for the
functions here that read its flags.
"""

import argparse
import errno
import math
import os
import sys
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from torch import distributed

import clip
from calculate_error import KITTI_ADABINS, KITTI_BTS, MIN_DEPTH, NYU, NYU_METRICS, Protocol, UnscorableError
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
from monoclip import PAPER, MonoCLIP, Reading
from viewer.terminal import ForgivingStream

DEMO_WEIGHTS = Path(__file__).parent / "demo" / "rooms_clip.pt"
DEMO_DATA = Path(__file__).parent / "demo" / "sample"
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
# Images at once, and threads that read them, unless the flags say otherwise.
BATCH_SIZE = {"cpu": 4, "cuda": 32, "mps": 8}
WORKERS = {"cpu": 1, "cuda": 8, "mps": 4}
PROTOCOLS = {"bts": KITTI_BTS, "adabins": KITTI_ADABINS}  # of KITTI
MAX_DEPTH = NYU.cap  # [m] of one's own pairs, unless told otherwise
DATA_FOLDERS = (Path("nyu_depth_v2"), Path("datasets") / "NYU_Depth_V2")  # the second is the release's place
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a device without room says
NO_MEMORY = "not enough memory; use smaller batches or pictures, or another --device"
WORD_FLAGS = ("depth_templates", "obj_classes", "depth_classes", "bin_list")
READING_FLAGS = (*WORD_FLAGS, "temperature")  # fields of a `Reading`


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


def add_data_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds which images are evaluated."""
    data = parser.add_argument_group("data")
    default = next((path for path in DATA_FOLDERS if path.exists()), DATA_FOLDERS[0])
    kinds = "NYU Depth V2, KITTI's Eigen test split, or one's own pairs of picture and depth map"
    data.add_argument("--dataset", choices=("NYU", "KITTI", "rgbd"), default="NYU", help=kinds)
    source = "folder that holds official_splits/test, or nyu_depth_v2_labeled.mat; KITTI's root; a folder of pairs"
    data.add_argument("--data_path", type=named_path, default=default, help=source)
    listed = "text file of 'rgb depth' lines, relative to the test split or the folder; KITTI's list of the Eigen split"
    data.add_argument("--list_file", type=Path, help=listed)
    data.add_argument("--protocol", choices=PROTOCOLS, default="bts", help="what of KITTI counts")
    data.add_argument(
        "--depth_scale", type=float, default=DEPTH_SCALE, metavar="N", help="rgbd: units in a metre, of 16-bit images"
    )
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
    exact = "the plain network, bit for bit; else a faster form, within 1e-5 m on the demo's weights in fp32"
    model.add_argument("--exact", action="store_true", help=exact)
    return model


def add_word_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds the words and bins of a `Reading`; those that are not given are a preset's."""
    reading = parser.add_argument_group("reading")
    presets = "what is not given here: the paper's; Auty and Mikolajczyk's for KITTI; ours, the paper's words with "
    presets += "bins spread in log depth over 5 to 60 m"
    reading.add_argument("--preset", choices=READINGS, default="paper", help=presets)
    reading.add_argument(
        "--depth_classes",
        nargs="+",
        metavar="WORD",
        help="the words, seven in the paper: giant, extremely close, ..., unseen",
    )
    reading.add_argument("--bin_list", nargs="+", type=float, metavar="M", help="depth of each word [m]")
    reading.add_argument(
        "--depth_templates", nargs="+", metavar="T", help="sentences, with {} for object and word: This {} is {}"
    )
    reading.add_argument("--obj_classes", nargs="+", metavar="WORD", help="what stands for the object: object")
    return reading


def add_reading_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds all of a `Reading`: words, bins, temperature, read-out, image statistics."""
    reading = add_word_arguments(parser)
    reading.add_argument("--temperature", type=float, help=f"of the softmax (default: {PAPER.temperature})")
    how = "how patch features are read out of CLIP (docs/readouts.md)"
    reading.add_argument("--readout", choices=READOUTS, default=PAPER.readout, help=how)
    means = "what images are normalised with: the paper's, or those that CLIP was trained with"
    reading.add_argument("--image_statistics", choices=IMAGE_STATISTICS, default="imagenet", help=means)
    return reading


def add_batch_arguments(parser: argparse.ArgumentParser) -> argparse._ArgumentGroup:
    """Adds how many images are encoded and read at once, and on which GPU."""
    run = parser.add_argument_group("run")
    at_once = "images at once; does not change the metrics; 4 on a CPU, 32 on a GPU"
    run.add_argument("--batch_size", type=positive, help=at_once)
    run.add_argument("--workers", type=positive, help="threads that read images; 1 on a CPU, 8 on a GPU")
    run.add_argument("--gpu_num", default="0", help="index of the GPU that 'auto' and 'cuda' mean")
    return run


def add_store_arguments(run: argparse._ArgumentGroup, output: str) -> None:
    """Adds where results and features go."""
    run.add_argument("--output", type=named_path, default=Path(output), help="folder for results")
    kept = "folder of the features (RN50: 3.6 MB an image; default: OUTPUT/features)"
    run.add_argument("--store", type=named_path, help=kept)


def add_html_argument(group: argparse._ArgumentGroup, name: str, count: int) -> None:
    """Adds `--html [N]`, for the page called `name`, with `count` pictures unless N is given, and its `--phrases`."""
    text = f"also write {name}, a page to look into the answers for N pictures ({count} if not given)"
    group.add_argument("--html", nargs="?", type=positive, const=count, metavar="N", help=text)
    phrases = "text file of the phrases that the page's word boxes offer, one a line (default: some 70 of ours)"
    group.add_argument("--phrases", type=Path, metavar="FILE", help=phrases)


def add_map_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds depth maps that are scored in place of the method's, and kept."""
    maps = parser.add_argument_group("maps of another method")
    files = "folder of maps to score: <scene>/<picture's stem>.npy (floats) or .png (16 bits); no CLIP is loaded"
    maps.add_argument("--predictions", type=named_path, metavar="FOLDER", help=files)
    maps.add_argument(
        "--predictions_scale", type=positive, default=1000, metavar="N", help="units of a .png in a metre"
    )
    fits = "what is fitted to the true depth of each image: nothing, the ratio of medians, scale and shift by least "
    fits += "squares, the same to 1 / depth"
    maps.add_argument("--align", choices=ALIGNMENTS, default="none", help=fits)
    kept = "folder for the maps that this run scores, as --predictions reads them"
    maps.add_argument("--save_predictions", type=named_path, metavar="FOLDER", help=kept)


def open_data(args: argparse.Namespace) -> tuple[DepthPairs, Protocol]:
    """The images that the flags of `add_data_arguments` name, and how they are scored. Raises DataError, UsageError."""
    if getattr(args, "predictions", None) and any(getattr(args, name) is not None for name in READING_FLAGS):
        raise UsageError("--predictions scores maps as they are: words, bins and temperature are the method's")
    if getattr(args, "align", "none") != "none" and not args.predictions:
        raise UsageError("--align is of --predictions, the folder of maps")
    path, some = args.data_path, (args.list_file, args.scene, args.limit)
    if args.dataset != "KITTI" and args.protocol != "bts":
        raise UsageError("--protocol: only KITTI has several")
    if args.dataset != "rgbd" and (args.depth_scale, args.max_depth) != (DEPTH_SCALE, MAX_DEPTH):
        raise UsageError("--depth_scale and --max_depth are of --dataset rgbd")
    if args.dataset == "NYU":
        return open_nyu(path, NYU, *some), NYU
    if args.dataset == "KITTI":
        protocol = PROTOCOLS[args.protocol]
        return open_kitti(path, protocol, *some), protocol
    if not 0 < args.depth_scale < math.inf or not MIN_DEPTH < args.max_depth < math.inf:
        raise UsageError(f"--depth_scale must be positive, --max_depth above {MIN_DEPTH:g} m, and both finite")
    if args.scene:
        raise UsageError("--scene: one's own pairs have no scenes; name a list of some of them with --list_file")
    own = Protocol("own pairs", NYU_METRICS, args.max_depth)
    return open_rgbd(path, own, args.depth_scale, args.list_file, args.limit), own


def reading_of(args: argparse.Namespace) -> Reading:
    """The reading of the flags of `add_reading_arguments` or `add_word_arguments`. Raises UsageError: no depth."""
    reading = READINGS[args.preset]
    if "readout" in args:
        reading = replace(with_statistics(reading, args.image_statistics), readout=args.readout)
    given = {name: getattr(args, name, None) for name in READING_FLAGS}
    try:
        return checked_reading({name: value for name, value in given.items() if value is not None}, reading)
    except ValueError as error:
        raise UsageError(str(error)) from error


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


def check_output(folder: Path | None) -> None:
    """Raises UsageError if it can be told, without making `folder`, that nothing can be written there."""
    if folder is None:
        return
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(f"--output {folder}: {there} is no folder that can be written; choose another one")


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
        except (UsageError, DataError, clip.CheckpointError, TooLongError) as error:
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
