"""Evaluates MonoCLIP on the official test split of NYU Depth V2, or other pairs, beside what is published.

    python eval.py --data_path NYU_FOLDER --clip_path RN50.pt --output results
    python eval.py ... --depth_classes close "a little far" far --bin_list 1 2 3          one's own words
    python eval.py --dataset KITTI --data_path ROOT --preset auty                         outdoors
    torchrun --nproc_per_node 8 eval.py ...                                               images shared by 8 GPUs

`evaluate` is the loop; `python -m experiments` has the whole paper and its controls. Exit code 0: done; 1: it could not
be finished; 2: wrong arguments or unusable input, found before the model is built; 130: interrupted.
"""

import argparse
import csv
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed
from tqdm import tqdm

import options
from calculate_error import compute_errors_per_image, size_of
from clip.inference import keep_freed_memory
from datasets import PROGRESS, counted
from datasets.pairs import DepthPairs
from experiments.published import COLUMNS, THIS_RUN, UNIFORM, beside, named_by, shown
from monoclip import MonoCLIP
from viewer.strip import Example, draw_strip, example_images

NAMES, COUNTS = ("image", "scene", "index", "protocol", "reading"), ("valid_pixels", "dropped_pixels")  # of a row
RESULTS_FILE, ROWS_FILE, STRIP_FILE = "results.json", "per_image.csv", "qualitative.png"

Row = dict[str, Any]  # of one image and one reading: `NAMES`, then metrics, then `COUNTS`


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = options.new_parser("Evaluate MonoCLIP on NYU Depth V2's official test split, or other pairs.")
    options.add_data_arguments(parser)
    options.add_model_arguments(parser)
    options.add_reading_arguments(parser)
    run = options.add_batch_arguments(parser)
    folder = "folder for results.json and per_image.csv; none: print only"
    run.add_argument("--output", type=options.named_path, help=folder)
    run.add_argument("--figures", action="store_true", help="also draw qualitative.png into --output")
    released = parser.add_argument_group("flags of the release")
    released.add_argument("--evaluate", action="store_true", help="accepted; evaluation is all there is")
    released.add_argument("--gpu_num", default="0", help="index of the GPU that 'auto' and 'cuda' mean")
    released.add_argument("--encoder", choices=("AST",), default="AST", help="accepted; without effect in the release")
    released.add_argument("--other_method", choices=("MonoCLIP",), default="MonoCLIP", help="the method")
    return parser


@torch.inference_mode()
def evaluate(
    model: MonoCLIP,
    dataset: DepthPairs,
    parts: Sequence[Sequence[int]],
    workers: int = 1,
    write: Callable[[list[Row]], object] = lambda rows: None,
    quiet: bool = False,
) -> tuple[list[Row], list[Row]]:
    """The evaluation: every image through the method and the metrics; its rows, and those of uniform weights.

    Uniform weights say nothing: the mean of the bins everywhere. `parts` are the places of the images of each batch, to
    which their mirrors come; `workers` threads read; `write` gets the model's rows as soon as they are there.

    Raises DataError: a file is damaged; UnscorableError: a prediction is not finite, or an image has no valid pixel.
    """
    dataset, protocol = dataset.prepared_by(model.prepare), dataset.protocol
    rows, uniform = list[Row](), list[Row]()
    loader = dataset.batches(parts, workers)
    for batch in tqdm(loader, total=len(parts), unit=" batches", bar_format=PROGRESS, disable=quiet):
        size = size_of(protocol.window(*batch.depth[0].shape[1:]))
        depth = model.predict(batch.image.to(model.bin_list.device), size).cpu()  # (B, 1, h, w) [m]
        both = torch.cat([depth, torch.full_like(depth, model.bin_list.mean().item())], dim=1)
        names = [dataset.names[item] for item in batch.items]
        errors = compute_errors_per_image(batch.depth, both, protocol, names)  # metric -> (B, 2)
        own, constant = (records(dataset, batch.items, errors, place) for place in (0, 1))
        write(own)
        rows += own
        uniform += constant
    return rows, uniform


def records(dataset: DepthPairs, items: Sequence[int], errors: Mapping[str, Tensor], place: int) -> list[Row]:
    """The rows of a batch's images by one of the two readings, from metric -> (B, 2)."""
    return [
        {"image": dataset.names[item], "scene": dataset.scenes[item], "index": dataset.indices[item]}
        | {"protocol": dataset.protocol.name, "reading": (THIS_RUN, UNIFORM)[place]}
        | {metric: values[i, place].item() for metric, values in errors.items()}
        for i, item in enumerate(items)
    ]


def mean(rows: Sequence[Row]) -> dict[str, float]:
    """Mean metrics over images, every image with the same weight (the release: every batch)."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0] if name not in (*NAMES, *COUNTS)}


def released_line(metrics: Mapping[str, float], order: Sequence[str]) -> str:
    """The line that the release prints: ` * Avg abs_diff : 0.000, a1 : 0.000, ...`."""
    return " * Avg " + ", ".join(f"{name.replace('delta', 'a')} : {metrics[name]:.3f}" for name in order)


def gather_rows(rows: list[Row], rank: int, count: int) -> list[Row]:
    """Collects the rows of all processes in the first, in the order of the data: process r has images r, r + n, ..."""
    if count == 1:
        return rows
    parts: list[Any] | None = [None] * count if rank == 0 else None
    distributed.gather_object(rows, parts)
    return [part[i] for i in range(len(parts[0])) for part in parts if i < len(part)] if parts else []


def start_rows(folder: Path) -> Callable[[list[Row]], None]:
    """Removes an earlier run's files and returns what appends rows to per_image.csv. Raises OSError."""
    folder.mkdir(parents=True, exist_ok=True)
    for name in (RESULTS_FILE, ROWS_FILE, STRIP_FILE):  # they would not belong to these rows
        (folder / name).unlink(missing_ok=True)

    def append(rows: list[Row]) -> None:
        try:
            with (folder / ROWS_FILE).open("a", newline="", encoding="utf-8") as file:
                writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
                if file.tell() == 0:
                    writer.writeheader()
                writer.writerows([row | {k: options.csv_text(row[k]) for k in ("image", "scene")} for row in rows])
        except OSError as error:  # that of a full disk does not name the file
            raise OSError(error.errno, error.strerror, str(folder / ROWS_FILE)) from error

    return append


def table(lines: Mapping[str, Mapping[str, float | None]]) -> str:
    """Metrics by the name of their line, in the paper's columns."""
    width = max(29, *(len(name) + 2 for name in lines))
    text = [" " * width + "".join(f"{column:>9}" for column in COLUMNS)]
    text += [f"{name:<{width}}" + "".join(f"{shown(line[c]):>9}" for c in COLUMNS) for name, line in lines.items()]
    return "\n".join(text)


@torch.inference_mode()
def example(model: MonoCLIP, dataset: DepthPairs, item: int) -> Example:
    """An image of the qualitative strip, with its true and its predicted depth."""
    image, truth = dataset.prepared_by(model.prepare)[item][0], dataset.truth(item)
    depth = model.predict(image[None].to(model.bin_list.device), truth.shape)[0, 0].cpu().numpy()
    return Example(dataset.names[item], dataset.pixels(item), truth, depth)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; every error for the user is one sentence on stderr."""
    args = build_parser().parse_args(argv)

    def work() -> None:
        if args.figures and not args.output:
            raise options.UsageError("--figures needs --output, the folder that it draws into")
        options.check_output(args.output)
        reading = options.reading_of(args)
        device, rank, count = options.own_device(args.device, args.gpu_num)
        precision = options.choose_precision(args.precision, device)
        dataset = options.open_data(args, reading)
        protocol = dataset.protocol
        say = options.say if rank == 0 else lambda text: None
        say(f"data: {dataset.title}")
        clip_model, model = options.load_model(args.clip_path, device, precision, reading, args.exact, args.activation)
        say(f"model: {args.clip_path} on {device} in {precision}")

        start = time.perf_counter()
        parts = dataset.parts(range(rank, len(dataset), count), args.batch_size or options.BATCH_SIZE[device.type])
        workers = args.workers or options.WORKERS[device.type]
        write = start_rows(args.output) if args.output and rank == 0 else lambda rows: None
        found = evaluate(model, dataset, parts, workers, write if count == 1 else lambda rows: None, quiet=rank > 0)
        rows, uniform = (gather_rows(part, rank, count) for part in found)
        if rank > 0:
            return
        write(uniform if count == 1 else rows + uniform)
        seconds = time.perf_counter() - start

        means = {THIS_RUN: mean(rows), UNIFORM: mean(uniform)}
        made = options.made_with(args.clip_path, device, precision, args.exact, reading, clip_model.activation)
        caveats = options.caveats(dataset.official, made["checkpoint_sha256"], model, protocol)
        theirs = beside(protocol.data_set) if dataset.official else {}
        if args.output:
            about = {"images": len(dataset), "data": dataset.title, "warnings": caveats, "seconds": round(seconds, 3)}
            about |= {"rows": {name: {"metrics": metrics} for name, metrics in means.items()}}
            about |= {"published": theirs, "made_with": made}
            options.write_json(args.output / RESULTS_FILE, options.identified(protocol) | about)
        if args.figures:
            examples = [example(model, dataset, item) for item in example_images(dataset.scenes)]
            draw_strip(args.output / STRIP_FILE, examples, options.caption(dataset.title, caveats), protocol.drawn)

        valid, dropped = (sum(row[key] for row in rows) for key in COUNTS)
        print(f"counted: {counted(len(dataset))}, {valid:,} valid pixels, {len(dataset) / seconds:.2f} images/s")
        if dropped:
            print(f"warning: {dropped:,} more pixels do not count because the predicted depth is at most 1 mm")
        print(released_line(means[THIS_RUN], protocol.metrics) + "\n")
        uniform_name = f"{UNIFORM} ({model.bin_list.mean():.3f} m)"
        print(table({named_by(THIS_RUN, protocol.label): means[THIS_RUN], **theirs, uniform_name: means[UNIFORM]}))
        for caveat in caveats:
            print(f"{caveat[0].upper()}{caveat[1:]}.")

    return options.run_command("eval.py", work)


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
