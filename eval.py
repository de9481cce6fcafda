"""Evaluates MonoCLIP on the official test split of NYU Depth V2, or other pairs, beside what is published.

    python eval.py --data_path NYU_FOLDER --clip_path RN50.pt --output results
    python eval.py ... --depth_classes close "a little far" far --bin_list 1 2 3          one's own words
    python eval.py --dataset KITTI --data_path ROOT --preset auty                         outdoors
    torchrun --nproc_per_node 8 eval.py ...                                               images shared by 8 GPUs

`evaluate` is the loop; `python -m experiments` has the whole paper and its controls. Exit code 0: done; 1: it could not
be finished; 2: wrong arguments or unusable input, found before the model is built; 130: interrupted.
"""

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))  # which PYTHONSAFEPATH leaves out

import datasets.packages  # noqa: F401  # first

# isort: split
import torch
from torch import Tensor, distributed
from tqdm import tqdm

import options
from calculate_error import KITTI_METRICS, NYU_METRICS, Protocol, compute_errors_per_image, size_of
from clip.inference import start_program
from datasets import PROGRESS, counted
from datasets.maps import SavedMaps, keeping
from datasets.pairs import Batch, DepthPairs
from datasets.pictures import resized
from download import new_results, write_json
from experiments.published import THIS_RUN, UNIFORM, beside, named_by, table
from monoclip import MonoCLIP
from viewer import notes, terminal
from viewer.strip import Example, draw_strip, example_images

NAMES, COUNTS = ("image", "scene", "index", "protocol", "reading"), ("valid_pixels", "dropped_pixels")  # of a row
FILES = ROWS_FILE, STRIP_FILE, RESULTS_FILE = "per_image.csv", "qualitative.png", "results.json"

Row = dict[str, Any]  # of one image and one reading: `NAMES`, then metrics, then `COUNTS`


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = terminal.new_parser("Evaluate MonoCLIP, or depth maps of any method, on NYU Depth V2, KITTI or own pairs.")
    options.add_data_arguments(parser, maps=True)
    options.add_model_arguments(parser)
    options.add_reading_arguments(parser)
    run = options.add_run_arguments(parser)
    folder = "folder for results.json and per_image.csv; none: print only"
    run.add_argument("--output", type=options.named_path, help=folder)
    run.add_argument("--figures", action="store_true", help="also draw qualitative.png into --output")
    released = parser.add_argument_group("flags of the release")
    released.add_argument("--evaluate", action="store_true", help="accepted; evaluation is all there is")
    released.add_argument("--encoder", choices=("AST",), default="AST", help="accepted; without effect in the release")
    released.add_argument("--other_method", choices=("MonoCLIP",), default="MonoCLIP", help="the method")
    return parser


@torch.inference_mode()
def evaluate(
    predict: Callable[[Batch], Tensor],
    loader: Iterable[Batch],
    dataset: DepthPairs,
    protocol: Protocol,
    constant: float | None = None,
    write: Callable[[list[Row]], object] = lambda rows: None,
) -> tuple[list[Row], list[Row]]:
    """The rows of every image by a prediction, and by a constant depth [m], such as the mean of the bins.

    `predict` gives the depth (B, 1, h, w) [m] of a batch's h x w pixels; `write` gets its rows at once.
    Raises DataError: a file is damaged; UnscorableError: a prediction is not finite, or an image has no valid pixel.
    """
    rows, uniform = list[Row](), list[Row]()
    for batch in loader:
        names = [dataset.names[item] for item in batch.items]
        depth = predict(batch)
        found = records(dataset, batch.items, THIS_RUN, compute_errors_per_image(batch.depth, depth, protocol, names))
        write(found)
        rows += found
        if constant is not None:
            errors = compute_errors_per_image(batch.depth, torch.full_like(depth, constant), protocol, names)
            uniform += records(dataset, batch.items, UNIFORM, errors)
    return rows, uniform


def predict_depth(model: MonoCLIP, protocol: Protocol, batch: Batch) -> Tensor:
    """The method's depth of a batch, (B, 1, h, w) [m], in the protocol's window, which has one size in a batch."""
    size = size_of(protocol.window(*batch.depth[0].shape[1:]))
    return model.predict(batch.image.to(model.bin_list.device), size).cpu()


def records(dataset: DepthPairs, items: Sequence[int], reading: str, errors: Mapping[str, Tensor]) -> list[Row]:
    """The rows of some images by a reading, from metric -> (B, 1)."""
    return [
        {"image": dataset.names[item], "scene": dataset.scenes[item], "index": dataset.indices[item]}
        | {"protocol": dataset.scope.name, "reading": reading}
        | {metric: values[i, 0].item() for metric, values in errors.items()}
        for i, item in enumerate(items)
    ]


def mean(rows: Sequence[Row]) -> dict[str, float]:
    """Mean metrics over images, every image with the same weight (the release: every batch)."""
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0] if name not in (*NAMES, *COUNTS)}


def released_line(metrics: Mapping[str, float], order: Sequence[str]) -> str:
    """The line that the release prints: ` * Avg abs_diff : 0.000, a1 : 0.000, ...`."""
    return " * Avg " + ", ".join(f"{name.replace('delta', 'a')} : {metrics[name]:.3f}" for name in order)


def gather_rows(rows: list[Row], rank: int, count: int) -> list[Row]:
    """Collects the rows of all processes in the first, in the order of the data, as they were shared out in turn."""
    if count == 1:
        return rows
    parts: list[Any] | None = [None] * count if rank == 0 else None
    distributed.gather_object(rows, parts)
    return [part[i] for i in range(len(parts[0])) for part in parts if i < len(part)] if parts else []


@torch.inference_mode()
def example(
    predict: Callable[[Batch], Tensor], dataset: DepthPairs, item: int, prepare: Callable[..., Tensor], delta1: float
) -> Example:
    """An image of the qualitative strip, with its true and its predicted depth."""
    pixels, truth = dataset.pixels(item), dataset.truth(item)
    depth = predict(Batch([item], prepare(pixels)[None], [dataset.depth(item)]))[0, 0].numpy()
    return Example(dataset.names[item], resized(pixels, truth.shape), truth, depth, delta1)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; every error for the user is one sentence on stderr."""
    args = build_parser().parse_args(argv)

    def work() -> None:
        if args.output:
            options.check_output(args.output)
        elif args.figures:
            raise options.UsageError("--figures needs --output, the folder that it draws into")
        setup, rank, count = options.setup_of(args)
        dataset, protocol = options.open_data(args)
        say = terminal.say if rank == 0 else lambda *lines: None
        say(*dataset.remarks)
        predict: Callable[[Batch], Tensor]
        prepare: Callable[..., Tensor] = setup.reading.normalised
        constant = None
        if args.predictions:
            made: dict[str, Any] = {"predictions": args.predictions.name, "align": args.align}
            caveats = notes.caveats(dataset.official, protocol)
            predict = SavedMaps(args.predictions, dataset, args.align, args.predictions_scale, caveats)
        else:
            _, model, made = options.load_model(setup)
            predict = partial(predict_depth, model, protocol)
            prepare, constant = dataset.prepared_by(model), model.bin_list.mean().item()
            caveats = notes.caveats(dataset.official, protocol, made["checkpoint_sha256"], model, dataset.seen)
        say(f"depth: {args.predictions or setup}")

        start = time.perf_counter()
        parts = dataset.parts(
            range(rank, len(dataset), count), args.batch_size or options.BATCH_SIZE[setup.device.type]
        )
        loader = dataset.batches(parts, prepare, args.workers or options.WORKERS[setup.device.type])
        keep = keeping(predict, args.save_predictions, dataset) if args.save_predictions else predict
        bar = tqdm(loader, total=len(parts), unit=" batches", bar_format=PROGRESS, disable=rank > 0)
        with new_results(args.output, FILES) if args.output and rank == 0 else nullcontext() as folder:
            write = partial(notes.append_rows, folder / ROWS_FILE) if folder else lambda rows: None
            found = evaluate(keep, bar, dataset, protocol, constant, write if count == 1 else lambda rows: None)
            rows, uniform = (gather_rows(part, rank, count) for part in found)
            if rank > 0:
                return
            write(uniform if count == 1 else rows + uniform)
            seconds = time.perf_counter() - start
            means = {name: mean(part) for name, part in ((THIS_RUN, rows), (UNIFORM, uniform)) if part}
            theirs = beside(protocol.name) if dataset.official else {}
            if folder:
                about = notes.identified(dataset, protocol) | {"warnings": caveats, "seconds": round(seconds, 3)}
                about |= {"rows": {name: {"metrics": metrics} for name, metrics in means.items()}}
                about |= {"published": theirs, "made_with": made}
                write_json(folder / RESULTS_FILE, about)
            if args.figures and folder:
                shown = example_images(dataset.scenes)
                examples = [example(predict, dataset, item, prepare, rows[item]["delta1"]) for item in shown]
                caption = notes.short_caption(dataset.title, caveats)
                terminal.try_to_draw(lambda: draw_strip(folder / STRIP_FILE, examples, caption))

        valid, dropped = (sum(row[key] for row in rows) for key in COUNTS)
        print(f"counted: {counted(len(dataset))}, {valid:,} valid pixels, {len(dataset) / seconds:.2f} images/s")
        if dropped:
            print(f"warning: {dropped:,} more pixels do not count because the predicted depth is at most 1 mm")
        released = KITTI_METRICS if args.dataset == "KITTI" else NYU_METRICS
        print(released_line(means[THIS_RUN], released) + "\n")
        own = {named_by(THIS_RUN, protocol.name): means[THIS_RUN]}
        print(table(own | theirs | ({f"{UNIFORM} ({constant:.3f} m)": means[UNIFORM]} if constant else {})))
        for caveat in caveats:
            print(f"{caveat[0].upper()}{caveat[1:]}.")

    return options.run_command("eval.py", work)


if __name__ == "__main__":
    start_program()
    sys.exit(main())
