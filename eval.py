"""Evaluates MonoCLIP on the official test split of NYU Depth V2 and prints its figures beside the paper's.

    python eval.py --data_path NYU_FOLDER --clip_path RN50.pt --output results

The flags of the release are accepted: `--evaluate --batch_size 1 --dataset NYU --gpu_num 0 --encoder AST
--other_method MonoCLIP`. Everything that can be wrong with the input is looked for before the model is built. Exit
code 0: done; 1: the evaluation could not be finished; 2: wrong arguments or unusable input; 130: interrupted.
"""

import argparse
import dataclasses
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, default_collate
from tqdm import tqdm

import clip
import paper
import report
from calculate_error import NYU_CROP, NYU_FIGURES, NonFinitePredictionError, errors_NYU
from clip.checkpoint import file_sha256, locate_checkpoint
from clip.model import convert_weights
from datasets.nyu import (
    TEST_INDICES,
    DataError,
    NYUDepthV2,
    NYUMat,
    Sample,
    check_files,
    coverage,
    read_list,
    scan_folder,
)
from monoclip import PAPER, MonoCLIP, Reading

PRECISIONS = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


class UsageError(Exception):
    """The arguments cannot be followed; the message is one sentence for the user."""


class EvaluationError(Exception):
    """The evaluation cannot go on; the message is one sentence for the user."""


def build_parser() -> argparse.ArgumentParser:
    """The command line."""

    def positive(text: str) -> int:
        value = int(text)
        if value < 1:
            raise argparse.ArgumentTypeError(f"{text} is not 1 or more")
        return value

    def natural(text: str) -> int:
        value = int(text)
        if value < 0:
            raise argparse.ArgumentTypeError(f"{text} is not 0 or more")
        return value

    parser = argparse.ArgumentParser(
        description="Evaluate MonoCLIP on the official test split of NYU Depth V2, beside the paper's figures.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
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
    data.add_argument("--empty", choices=("error", "skip"), default="error", help="images without a valid pixel")

    model = parser.add_argument_group("model")
    model.add_argument("--clip_path", default="RN50", help="CLIP checkpoint: a file, or a name in the cache")
    model.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1 or mps; auto takes a GPU if any")
    model.add_argument(
        "--precision", choices=("auto", *PRECISIONS), default="auto", help="auto: fp32 on a CPU, fp16 on a GPU"
    )
    model.add_argument("--nonfinite", choices=("error", "worst"), default="error", help="NaN or infinite predictions")

    reading = parser.add_argument_group("reading")
    reading.add_argument("--depth_classes", nargs="+", metavar="WORD", default=PAPER.depth_classes, help="words")
    reading.add_argument("--bin_list", nargs="+", type=float, metavar="M", default=PAPER.bin_list, help="depths [m]")
    reading.add_argument("--depth_templates", nargs="+", metavar="T", default=PAPER.depth_templates, help="sentences")
    reading.add_argument("--obj_classes", nargs="+", metavar="WORD", default=PAPER.obj_classes, help="objects")
    reading.add_argument("--temperature", type=float, default=PAPER.temperature, help="of the softmax")

    run = parser.add_argument_group("run")
    run.add_argument("--batch_size", type=positive, default=1, help="images at once; does not change the figures")
    run.add_argument("--workers", type=natural, help="processes that read images (default: 0 on a CPU, else 4)")
    run.add_argument("--output", type=Path, help="folder for results.json and per_image.csv; none: print only")

    released = parser.add_argument_group("flags of the release")
    released.add_argument("--evaluate", action="store_true", help="accepted; evaluation is all there is")
    released.add_argument("--dataset", choices=("NYU",), default="NYU", help="the data set")
    released.add_argument("--gpu_num", default="0", help="index of the GPU that 'auto' and 'cuda' mean")
    released.add_argument("--encoder", choices=("AST",), default="AST", help="accepted; without effect in the release")
    released.add_argument("--other_method", choices=("MonoCLIP",), default="MonoCLIP", help="the method")
    return parser


def choose_device(name: str, gpu_num: str) -> torch.device:
    """The device of `--device` and `--gpu_num`.

    Raises:
        UsageError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(f"cuda:{gpu_num}" if name == "cuda" else name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"--device {name}: not available here; use --device cpu or auto") from error
    return device


def open_dataset(args: argparse.Namespace, reading: Reading) -> NYUDepthV2 | NYUMat:
    """The data that the arguments name, checked as far as that is possible without a model.

    Raises:
        UsageError: `--list_file` with a .mat.
        DataError: the data cannot be used.
    """
    protocol = (NYU_CROP, reading.image_mean, reading.image_std)
    if args.data_path.suffix == ".mat":
        if args.list_file is not None:
            raise UsageError(f"--list_file names files of a folder, but --data_path is {args.data_path}; drop one")
        dataset = NYUMat(args.data_path, *protocol)
        return NYUMat(args.data_path, *protocol, dataset.indices[: args.limit]) if args.limit else dataset
    if args.list_file is None:
        pairs = scan_folder(args.data_path)
    else:
        pairs = read_list(args.list_file, args.data_path, args.any_index)
    pairs = pairs[: args.limit]
    check_files(pairs, allow_empty=args.empty == "skip")
    return NYUDepthV2(pairs, *protocol)


class CaughtErrors(Dataset[Sample | DataError]):
    """A data set whose errors come out as items: a worker process would bury their sentence under its traceback."""

    def __init__(self, dataset: NYUDepthV2 | NYUMat) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, item: int) -> Sample | DataError:
        try:
            return self.dataset[item]
        except DataError as error:
            return error


def collate(items: list[Sample | DataError]) -> Sample | DataError:
    """A batch of samples as one Sample of stacked tensors and lists, or the first error among them."""
    for item in items:
        if isinstance(item, DataError):
            return item
    return default_collate(items)


def evaluate(
    model: MonoCLIP,
    dataset: NYUDepthV2 | NYUMat,
    device: torch.device,
    batch_size: int = 1,
    workers: int = 0,
    nonfinite: str = "error",
    empty: str = "error",
) -> Iterator[list[report.Row]]:
    """The rows of each batch, in the order of `dataset`.

    Args:
        model: on `device`.
        dataset: gives `Sample`s.
        device: where prediction and figures are computed.
        batch_size: images at once; their mirrors come on top.
        workers: processes that read images, 0 for none.
        nonfinite: as in `errors_NYU`.
        empty: "error" raises for an image without a valid pixel, "skip" gives it a row without figures.

    Raises:
        EvaluationError: a file is damaged, a prediction is not finite, or an image has no valid pixel.
    """
    loader = DataLoader(
        CaughtErrors(dataset),
        batch_size,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
    )
    for batch in loader:
        if isinstance(batch, DataError):
            raise EvaluationError(str(batch)) from batch
        yield score(model, batch, device, nonfinite, empty)


@torch.inference_mode()
def score(model: MonoCLIP, batch: Sample, device: torch.device, nonfinite: str, empty: str) -> list[report.Row]:
    """Predicts and scores one batch; arguments and errors as in `evaluate`."""
    pred = model.predict(batch.image.to(device, non_blocking=True))  # (B, 1, 416, 544)
    try:
        errors = errors_NYU(batch.depth.to(device, non_blocking=True), pred, nonfinite=nonfinite)
    except NonFinitePredictionError as error:
        images = ", ".join(f"{batch.name[i]} ({count:,} pixels)" for i, count in error.counts.items())
        raise EvaluationError(
            f"NaN or infinite depth predicted for {images}; use --precision fp32, or count it as the worst "
            "with --nonfinite worst"
        ) from error
    columns = {name: value.tolist() for name, value in errors.figures.items()}
    columns |= {"valid_pixels": errors.valid_pixels.tolist(), "dropped_pixels": errors.dropped_pixels.tolist()}
    rows = []
    for i, image in enumerate(batch.name):
        row = {"image": image, "scene": batch.scene[i], "index": int(batch.index[i])}
        row |= {name: column[i] for name, column in columns.items()}
        if not row["valid_pixels"]:
            if empty == "error":
                raise EvaluationError(f"{image}: no valid pixel, so no figures; remove it or pass --empty skip")
            row |= dict.fromkeys(NYU_FIGURES)
        rows.append(row)
    return rows


def run(args: argparse.Namespace) -> None:
    """Does what the command line says: checks the input, evaluates, writes and prints.

    Raises:
        UsageError, DataError, clip.CheckpointError: the input cannot be used; nothing was computed or written.
        EvaluationError: the evaluation stopped; the rows so far are in `--output`.
        OSError: the output cannot be written.
    """
    try:
        reading = Reading(
            depth_templates=tuple(args.depth_templates),
            obj_classes=tuple(args.obj_classes),
            depth_classes=tuple(args.depth_classes),
            bin_list=tuple(args.bin_list),
            temperature=args.temperature,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    device = choose_device(args.device, args.gpu_num)
    precision = args.precision if args.precision != "auto" else "fp32" if device.type == "cpu" else "fp16"
    workers = args.workers if args.workers is not None else 0 if device.type == "cpu" else 4

    dataset = open_dataset(args, reading)
    extent = coverage(dataset.indices)
    print(f"data: {args.data_path}, {extent}")

    clip_model, _ = clip.load(args.clip_path, device="cpu")
    convert_weights(clip_model, PRECISIONS[precision])
    model = MonoCLIP(clip_model.to(device), reading)
    print(f"model: {args.clip_path} on {device} in {precision}")

    rows: list[report.Row] = []
    start = time.perf_counter()
    try:
        with report.RowWriter(args.output) if args.output else nullcontext() as writer:
            batches = evaluate(model, dataset, device, args.batch_size, workers, args.nonfinite, args.empty)
            with tqdm(total=len(dataset), unit="image") as progress:
                for batch in batches:
                    rows += batch
                    if writer:
                        writer.write(batch)
                    progress.update(len(batch))
    except KeyboardInterrupt as error:
        raise KeyboardInterrupt(f"{len(rows)} of {len(dataset)} images done") from error
    seconds = time.perf_counter() - start

    if not any(row["valid_pixels"] for row in rows):
        raise EvaluationError(f"{args.data_path}: no image has a valid pixel, so there are no figures")
    figures = report.mean_figures(rows)
    if args.output:
        results = {
            "figures": figures,
            "paper": dict(paper.DEPTHCLIP),
            "images": len(rows),
            "images_without_valid_pixel": [row["image"] for row in rows if not row["valid_pixels"]],
            "valid_pixels": sum(row["valid_pixels"] for row in rows),
            "dropped_pixels": sum(row["dropped_pixels"] for row in rows),
            "configuration": configuration(args, reading, precision, workers, extent),
            "images_per_second": len(rows) / seconds,
            **report.environment(device),
        }
        report.write_json(args.output / report.RESULTS_FILE, results)
    print_results(rows, figures, len(dataset))


def configuration(
    args: argparse.Namespace, reading: Reading, precision: str, workers: int, extent: str
) -> dict[str, Any]:
    """Everything that the figures depend on, as JSON can hold it."""
    return {
        "reading": dataclasses.asdict(reading),
        "clip_path": str(args.clip_path),
        "clip_sha256": file_sha256(locate_checkpoint(args.clip_path)),
        "data_path": str(args.data_path),
        "list_file": args.list_file and str(args.list_file),
        "data": extent,
        "limit": args.limit,
        "precision": precision,
        "batch_size": args.batch_size,
        "workers": workers,
        "nonfinite": args.nonfinite,
        "empty": args.empty,
    }


def print_results(rows: Sequence[report.Row], figures: dict[str, float], images: int) -> None:
    """Prints what was counted, the released line, and the paper's columns with the paper's row beside ours."""
    valid, dropped = (sum(row[key] for row in rows) for key in ("valid_pixels", "dropped_pixels"))
    print(f"counted: {len(rows)} images, {valid:,} valid pixels")
    if skipped := [row["image"] for row in rows if not row["valid_pixels"]]:
        print(f"left out: {len(skipped)} images without a valid pixel: {', '.join(skipped)}")
    if dropped:
        print(f"warning: {dropped:,} more pixels were not counted because the predicted depth is at most 1 mm")
    print(report.released_line(figures))
    print()
    print(report.table({"this run": figures, "paper, DepthCLIP": paper.DEPTHCLIP}))
    if images != len(TEST_INDICES):
        print(f"The paper's row is over {len(TEST_INDICES)} images, this run's over {images}: they do not compare.")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; every error for the user is one sentence on stderr."""
    args = build_parser().parse_args(argv)
    try:
        run(args)
    except (UsageError, DataError, clip.CheckpointError) as error:
        return fail(str(error), 2)
    except EvaluationError as error:
        return fail(str(error), 1)
    except torch.OutOfMemoryError:
        return fail(f"not enough memory for --batch_size {args.batch_size}; use a smaller one", 1)
    except OSError as error:
        return fail(f"{error.filename or args.output}: {error.strerror or error}; nothing else was lost", 1)
    except KeyboardInterrupt as error:
        return fail(f"interrupted: {error}", 130)
    return 0


def fail(message: str, code: int) -> int:
    """Prints `message` to stderr and returns `code`."""
    print(f"eval.py: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    sys.exit(main())
