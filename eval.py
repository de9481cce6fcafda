"""Evaluates MonoCLIP on the official test split of NYU Depth V2, or other pairs, beside what is published.

    python eval.py --data_path NYU_FOLDER --clip_path RN50.pt --output results
    python eval.py ... --depth_classes close "a little far" far --bin_list 1 2 3          one's own words
    python eval.py --dataset KITTI --data_path ROOT --preset auty                         outdoors
    torchrun --nproc_per_node 8 eval.py ...                                               images shared by 8 GPUs

`evaluate` is the loop; `python -m experiments` has the whole paper and its controls. The flags of the release are
accepted. Everything that can be wrong with the input is looked for before the model is built. Exit code 0: done; 1: the
evaluation could not be finished; 2: wrong arguments or unusable input; 130: interrupted.
"""

import argparse
import csv
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import distributed
from tqdm import tqdm

import options
from calculate_error import compute_errors_per_image
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
    run.add_argument(
        "--output", type=options.named_path, help="folder for results.json and per_image.csv; none: print only"
    )
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
    device: torch.device,
    batch_size: int = 4,
    workers: int = 1,
    items: Sequence[int] | None = None,
) -> Iterator[list[Row]]:
    """The evaluation: every image through the method and the metrics.

    Args:
        model: on `device`.
        dataset: the images, and the protocol by which they are scored.
        device: where depth is predicted.
        batch_size: images at once; their mirrors come on top.
        workers: threads that read images.
        items: places of the images; all if None.

    Yields:
        For each batch, two rows for each image: of the model, and of uniform weights, which say nothing.

    Raises:
        DataError: a file is damaged.
        UnscorableError: a prediction is not finite, or an image has no valid pixel.
    """
    items = range(len(dataset)) if items is None else items
    for batch in dataset.batches(items, batch_size, workers):
        depth = model.predict(batch.image.to(device)).cpu()  # (B, 1, h, w) [m], image and mirror in one batch
        uniform = torch.full_like(depth, model.bin_list.mean().item())  # the same for every image
        names = [dataset.names[item] for item in batch.items]
        protocol, both = dataset.protocol, torch.cat([depth, uniform], 1)
        metrics = compute_errors_per_image(batch.depth, both, protocol, names)  # (B, 2) each
        yield [
            {"image": names[i], "scene": dataset.scenes[item], "index": dataset.indices[item]}
            | {"protocol": protocol.name, "reading": reading}
            | {metric: values[i, place].item() for metric, values in metrics.items()}
            for i, item in enumerate(batch.items)
            for place, reading in enumerate((THIS_RUN, UNIFORM))
        ]


def mean(rows: Sequence[Row], reading: str) -> dict[str, float]:
    """Mean metrics of a reading over images, every image with the same weight (the release: every batch)."""
    own = [row for row in rows if row["reading"] == reading]
    return {name: sum(row[name] for row in own) / len(own) for name in own[0] if name not in (*NAMES, *COUNTS)}


def released_line(metrics: Mapping[str, float], order: Sequence[str]) -> str:
    """The line that the release prints: ` * Avg abs_diff : 0.000, a1 : 0.000, ...`."""
    return " * Avg " + ", ".join(f"{name.replace('delta', 'a')} : {metrics[name]:.3f}" for name in order)


def gathered(rows: list[Row], rank: int, count: int) -> list[Row]:
    """The rows of all processes in the order of the data, in the first of them: process r has images r, r + n, ..."""
    if count == 1:
        return rows
    parts: list[Any] | None = [None] * count if rank == 0 else None
    distributed.gather_object(rows, parts)
    images = len(parts[0]) // 2 if parts else 0
    return [row for i in range(images) for part in parts or () for row in part[2 * i : 2 * i + 2]]


def with_progress(done: Iterable[list[Row]], images: int, rank: int) -> Iterator[list[Row]]:
    """The batches of rows, with progress in images a second on stderr, in the first process."""
    with tqdm(total=images, unit=" images", bar_format=PROGRESS, disable=rank > 0) as bar:
        for rows in done:
            yield rows
            bar.update(len(rows) // 2)


def written(done: Iterable[list[Row]], output: Path | None, metrics: Sequence[str]) -> list[Row]:
    """All rows; with `output`, each stands in its per_image.csv as soon as its image is done (by one process)."""
    if output is None:
        return [row for rows in done for row in rows]
    output.mkdir(parents=True, exist_ok=True)
    for name in (RESULTS_FILE, ROWS_FILE, STRIP_FILE):  # of an earlier run: they would not belong to these rows
        (output / name).unlink(missing_ok=True)
    everything, path = [], output / ROWS_FILE
    try:
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, (*NAMES, *metrics, *COUNTS), lineterminator="\n")
            writer.writeheader()
            for rows in done:
                writer.writerows([row | {k: options.csv_text(row[k]) for k in ("image", "scene")} for row in rows])
                file.flush()
                everything += rows
    except OSError as error:  # that of a full disk does not name the file
        raise OSError(error.errno, error.strerror, error.filename or str(path)) from error
    return everything


def table(rows: Sequence[Row], own: str, uniform: str, theirs: Mapping[str, Mapping[str, float | None]]) -> str:
    """This run, published rows and what the method gives if language says nothing, the first and the last by name."""
    lines = {own: mean(rows, THIS_RUN), **theirs, uniform: mean(rows, UNIFORM)}
    width = max(29, *(len(name) + 2 for name in lines))
    text = [" " * width + "".join(f"{column:>9}" for column in COLUMNS)]
    text += [f"{name:<{width}}" + "".join(f"{shown(line[c]):>9}" for c in COLUMNS) for name, line in lines.items()]
    return "\n".join(text)


@torch.inference_mode()
def example(model: MonoCLIP, dataset: DepthPairs, item: int, device: torch.device) -> Example:
    """An image of the qualitative strip, with its true and its predicted depth."""
    depth = model.predict(dataset[item][0][None].to(device))[0, 0].cpu().numpy()
    return Example(dataset.names[item], dataset.pixels(item), dataset.truth(item), depth)


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

        batch_size = args.batch_size or options.BATCH_SIZE[device.type]
        workers = args.workers or options.WORKERS[device.type]
        items, start = range(rank, len(dataset), count), time.perf_counter()
        done = with_progress(evaluate(model, dataset, device, batch_size, workers, items), len(items), rank)
        if count > 1:
            done = iter([gathered([row for rows in done for row in rows], rank, count)])
        if rank > 0:
            return
        rows = written(done, args.output, protocol.scored)
        seconds = time.perf_counter() - start
        made = options.made_with(args.clip_path, device, precision, args.exact, reading, clip_model.activation)
        caveats = options.caveats(dataset.official, made["checkpoint_sha256"], model, protocol)
        theirs = beside(protocol.data_set) if dataset.official else {}
        if args.output:
            means = {name: {"metrics": mean(rows, name)} for name in (THIS_RUN, UNIFORM)}
            about = {"images": len(dataset), "data": dataset.title, "warnings": caveats, "seconds": round(seconds, 3)}
            about |= {"rows": means, "published": theirs, "made_with": made}
            options.write_json(args.output / RESULTS_FILE, options.identified(protocol) | about)
            if args.figures:
                examples = [example(model, dataset, i, device) for i in example_images(dataset.scenes)]
                draw_strip(args.output / STRIP_FILE, examples, options.caption(dataset.title, caveats), protocol.drawn)
        valid, dropped = (sum(row[key] for row in rows if row["reading"] == THIS_RUN) for key in COUNTS)
        print(f"counted: {counted(len(dataset))}, {valid:,} valid pixels, {len(dataset) / seconds:.2f} images/s")
        if dropped:
            print(f"warning: {dropped:,} more pixels do not count because the predicted depth is at most 1 mm")
        print(released_line(mean(rows, THIS_RUN), protocol.metrics) + "\n")
        print(table(rows, named_by(THIS_RUN, protocol.label), f"{UNIFORM} ({model.bin_list.mean():.3f} m)", theirs))
        for caveat in caveats:
            print(f"{caveat[0].upper()}{caveat[1:]}.")

    return options.run_command("eval.py", work)


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
