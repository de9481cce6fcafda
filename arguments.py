"""The command line of eval.py: its flags, which predict.py shares in part, and the file of readings."""

import argparse
import json
from dataclasses import fields
from pathlib import Path

import torch

from evaluation.controls import BEST, THIS_RUN, UNIFORM
from monoclip import PAPER, Reading

HTML_IMAGES = 24  # of a longer run on the page, which redraws them all while a slider moves
PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class UsageError(Exception):
    """The arguments cannot be followed; the message is one sentence for the user."""


def positive(text: str) -> int:
    """A whole number of 1 or more, for argparse."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
    return value


def natural(text: str) -> int:
    """A whole number of 0 or more, for argparse."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
    return value


def positive_or_auto(text: str) -> int | None:
    """A whole number of 1 or more, or None for "auto", for argparse."""
    return None if text == "auto" else positive(text)


def natural_or_auto(text: str) -> int | None:
    """A whole number of 0 or more, or None for "auto", for argparse."""
    return None if text == "auto" else natural(text)


def add_device_arguments(model: argparse._ArgumentGroup) -> None:
    """Adds where and how the encoder computes."""
    model.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps; auto takes a GPU if any")
    model.add_argument(
        "--precision", choices=("auto", *PRECISIONS), default="auto", help="auto: fp32 on a CPU, fp16 on a GPU"
    )
    model.add_argument(
        "--exact",
        action="store_true",
        help="the plain network, bit for bit; else a form of it that is faster, and within 1e-5 m in fp32",
    )


def add_reading_arguments(reading: argparse._ArgumentGroup) -> None:
    """Adds the words, bins and temperature of a `Reading`; their defaults are the paper's."""
    reading.add_argument("--depth_classes", nargs="+", metavar="WORD", default=PAPER.depth_classes, help="words")
    reading.add_argument("--bin_list", nargs="+", type=float, metavar="M", default=PAPER.bin_list, help="depths [m]")
    reading.add_argument("--depth_templates", nargs="+", metavar="T", default=PAPER.depth_templates, help="sentences")
    reading.add_argument("--obj_classes", nargs="+", metavar="WORD", default=PAPER.obj_classes, help="objects")
    reading.add_argument("--temperature", type=float, default=PAPER.temperature, help="of the softmax")


def add_html_argument(group: argparse._ArgumentGroup, help_: str) -> None:
    """Adds `--html [N]`."""
    group.add_argument("--html", nargs="?", type=positive, const=HTML_IMAGES, metavar="N", help=help_)


def build_parser() -> argparse.ArgumentParser:
    """The command line of eval.py."""
    parser = argparse.ArgumentParser(
        description="Evaluate MonoCLIP on the official test split of NYU Depth V2, beside the paper's figures.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        allow_abbrev=False,
    )
    data = parser.add_argument_group("data")
    data.add_argument(
        "--data_path",
        type=Path,
        default=Path("nyu_depth_v2"),
        help="folder that holds official_splits/test, or nyu_depth_v2_labeled.mat",
    )
    data.add_argument("--list_file", type=Path, help="text file of 'rgb depth' lines, relative to the test split")
    data.add_argument("--any_index", action="store_true", help="in --list_file, accept pairs with different indices")
    data.add_argument("--limit", type=positive, metavar="N", help="evaluate the first N images only")
    data.add_argument("--scene", nargs="+", metavar="NAME", help="evaluate the images of these scenes only")
    data.add_argument("--empty", choices=("error", "skip"), default="error", help="images without a valid pixel")

    model = parser.add_argument_group("model")
    model.add_argument("--clip_path", default="RN50", help="CLIP checkpoint: a file, or a name in the cache")
    add_device_arguments(model)
    model.add_argument(
        "--compile", action="store_true", help="torch.compile the encoder: half a minute more, then faster on a GPU"
    )
    model.add_argument("--nonfinite", choices=("error", "worst"), default="error", help="NaN or infinite predictions")

    reading = parser.add_argument_group("reading")
    add_reading_arguments(reading)
    reading.add_argument(
        "--readings",
        type=Path,
        metavar="FILE.json",
        help='more readings in one pass: [{"name": "mine", "depth_classes": ["near", "far"], "bin_list": [1, 3]}], '
        "also depth_templates, obj_classes, temperature; what is left out is the paper's",
    )
    reading.add_argument("--paper", action="store_true", help="every reading that the paper reports, in the same pass")
    reading.add_argument("--controls", action="store_true", help="what tells the figures of this run from chance")

    run = parser.add_argument_group("run")
    run.add_argument(
        "--batch_size",
        type=positive_or_auto,
        default="auto",
        help="images at once; does not change the figures; auto: 4 on a CPU, 32 on a GPU, 8 on MPS",
    )
    run.add_argument(
        "--workers",
        type=natural_or_auto,
        default="auto",
        help="processes that read images, or score a feature cache on a CPU; auto: none on a CPU (for a cache one for "
        "each thread), 8 on a GPU, 4 on MPS",
    )
    run.add_argument("--output", type=Path, help="folder for rows, tables and results.json; none: print only")
    run.add_argument("--figures", action="store_true", help="also draw figures, as PNG, into --output")
    add_html_argument(
        run, f"also write depth.html, a page to look into the answers of N images (if not given: {HTML_IMAGES})"
    )
    run.add_argument("--resume", action="store_true", help="go on from the rows that a stopped run left in --output")
    run.add_argument(
        "--feature_cache",
        type=Path,
        metavar="FILE.h5",
        help="keep the encoder's features here, and read them if they are there: 2.4 MB an image, 4.2 with --controls",
    )

    released = parser.add_argument_group("flags of the release")
    released.add_argument("--evaluate", action="store_true", help="accepted; evaluation is all there is")
    released.add_argument("--dataset", choices=("NYU",), default="NYU", help="the data set")
    released.add_argument("--gpu_num", default="0", help="index of the GPU that 'auto' and 'cuda' mean")
    released.add_argument("--encoder", choices=("AST",), default="AST", help="accepted; without effect in the release")
    released.add_argument("--other_method", choices=("MonoCLIP",), default="MonoCLIP", help="the method")
    return parser


def load_readings(path: Path) -> dict[str, Reading]:
    """Readings by name from JSON: a list of objects with "name" and any of `Reading`'s word and number fields.

    Raises:
        ValueError: no such list, an unknown field, a value of another kind, or a name twice; one sentence.
        OSError: the file cannot be read.
    """
    allowed = {f.name for f in fields(Reading)} - {"image_mean", "image_std", "logit_scale"}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: no JSON ({error}); see --help") from error
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise ValueError(f'{path}: expected a list of objects like {{"name": "mine", "depth_classes": [...]}}')
    readings: dict[str, Reading] = {}
    for i, entry in enumerate(entries, 1):
        name = entry.pop("name", None)
        if not isinstance(name, str) or not name or name in readings or name in (THIS_RUN, UNIFORM, BEST):
            raise ValueError(f'{path}, entry {i}: needs a "name" of its own, got {name!r}')
        if unknown := sorted(entry.keys() - allowed):
            raise ValueError(
                f"{path}, {name!r}: unknown field {', '.join(unknown)}; known are {', '.join(sorted(allowed))}"
            )
        for key, value in entry.items():
            kind = str if key in ("depth_templates", "obj_classes", "depth_classes") else (int, float)
            values = [value] if key == "temperature" else value
            if not isinstance(values, list) or not all(isinstance(v, kind) and not isinstance(v, bool) for v in values):
                raise ValueError(f"{path}, {name!r}: {key} has a value of another kind: {value!r}")
        values = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
        try:
            readings[name] = Reading(**values)
        except ValueError as error:
            raise ValueError(f"{path}, {name!r}: {error}") from error
    return readings
