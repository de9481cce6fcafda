"""How far the fast form of the network, and other batches, move depth and metrics: the guarantees, measured.

    python -m benchmarks.deviation                                        the demo's toy CLIP on the demo's rooms
    python -m benchmarks.deviation --clip_path RN50.pt --data_path NYU --limit 16

The softmax multiplies cosines by 100 / temperature, and their rounding with them: a line for each temperature. In fp32.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

import options
from calculate_error import NYU_METRICS, compute_errors_NYU_per_image
from datasets.nyu import open_nyu
from monoclip import PAPER

TEMPERATURES = (0.1, 0.01, 0.001, 0.0001)  # the first is the paper's


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = options.new_parser("Measures what the fast form and other batches change.", "benchmarks.deviation")
    parser.add_argument("--clip_path", default=options.DEMO_WEIGHTS, help="CLIP checkpoint")
    parser.add_argument("--activation", default="auto", help="as for eval.py")
    parser.add_argument("--data_path", type=Path, default=options.DEMO_DATA, help="as for eval.py")
    parser.add_argument("--limit", type=options.positive, help="the first N images only")
    return parser


def moved(gt: Tensor, depth: Tensor, other: Tensor) -> str:
    """The largest change of depth, of a delta (in pixels that count for another one) and of another metric of an image.

    gt (I, 1, 480, 640), depth and other (I, 1, 416, 544) [m].
    """
    errors, others = compute_errors_NYU_per_image(gt, depth), compute_errors_NYU_per_image(gt, other)
    change = {metric: (errors[metric] - others[metric]).abs() for metric in NYU_METRICS}
    pixels = max((change[f"delta{i}"] * errors["valid_pixels"]).max().item() for i in (1, 2, 3))
    rest = max(change[metric].max().item() for metric in NYU_METRICS if not metric.startswith("delta"))
    return f"depth {(depth - other).abs().max():.1e} m, deltas {pixels:.0f} pixels, other metrics {rest:.1e}"


@torch.inference_mode()
def measure(clip_path: str | Path, activation: str, data_path: Path, limit: int | None) -> None:
    """Prints two lines for each temperature. Raises DataError, CheckpointError, UsageError."""
    cpu, dataset = torch.device("cpu"), open_nyu(data_path, PAPER.normalised, limit=limit)
    images, gt = (torch.stack([dataset[i][part] for i in range(len(dataset))]) for part in (0, 1))
    print(f"{dataset.title}; {Path(clip_path).name}; torch {torch.__version__}; a pixel is about 4.5e-6 of a delta")
    for temperature in TEMPERATURES:
        reading = replace(PAPER, temperature=temperature)
        _, plain = options.load_model(clip_path, cpu, "fp32", reading, exact=True, activation=activation)
        _, fast = options.load_model(clip_path, cpu, "fp32", reading, exact=False, activation=activation)
        of_plain, of_fast = (torch.cat([model.predict(x[None]) for x in images]) for model in (plain, fast))
        batches = torch.cat([fast.predict(x) for x in images.split(4)])
        print(f"temperature {temperature:g}, fast form against --exact: {moved(gt, of_plain, of_fast)}")
        print(f"temperature {temperature:g}, batches of 4 against 1:    {moved(gt, of_fast, batches)}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; every error for the user is one sentence on stderr."""
    args = build_parser().parse_args(argv)
    work = partial(measure, args.clip_path, args.activation, args.data_path, args.limit)
    return options.run_command("benchmarks.deviation", work)


if __name__ == "__main__":
    sys.exit(main())
