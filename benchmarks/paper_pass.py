"""What the paper's tables and the controls cost beside an evaluation of one reading over the same images.

    python -m benchmarks.paper_pass [--images 16] [--output FILE.json]

CLIP RN50 with random weights of a seed in eval.py's fast form, synthetic images, nothing read from the disk. The
variants score every batch in turn, interleaved, so that the machine's state is the same for all; ratios are of the
medians. What a run does once (encoding prompts, intervals, tables) is timed apart and added as it falls on the 654
images of the test split.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import clip
import report
from benchmarks.workload import random_network, suites
from clip.inference import keep_freed_memory
from datasets.nyu import TEST_INDICES
from evaluation.batch_error import CROP_SIZE
from evaluation.controls import Predictor
from evaluation.encode import Encoded
from evaluation.journal import Record
from evaluation.results import Results
from evaluation.scoring import score_all
from loading import BATCH_SIZE
from monoclip import MonoCLIP, with_mirror, zeroshot_classifier

SUITES = ("one reading", "--paper", "--paper --controls")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__.splitlines()[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--images", type=int, default=16, help="how many images each variant scores")
    parser.add_argument("--threads", type=int, help="of torch (default: as torch chooses)")
    parser.add_argument("--output", type=Path, help="JSON file for what was measured")
    return parser


def synthetic(rng: np.random.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """One image (1, 3, 416, 544), normalised, and its depth (1, 1, 480, 640) [m], a tenth of it not measured."""
    image = torch.from_numpy(rng.normal(size=(1, 3, 416, 544)).astype(np.float32))
    coarse = torch.from_numpy(rng.uniform(0.8, 6, (1, 1, 12, 16)).astype(np.float32))
    depth = torch.nn.functional.interpolate(coarse, (480, 640), mode="bilinear", align_corners=True)
    depth = (depth * 1000).round() / 1000
    depth[torch.from_numpy(rng.random((1, 1, 480, 640)) < 0.1)] = 0
    return image, depth


def measure(images: int) -> dict[str, Any]:
    """Seconds for each image and variant, and for what happens once in a run."""
    clip_model = clip.optimize_for_inference(random_network())
    model = MonoCLIP(clip_model)
    measured = dict(zip(SUITES, suites(True, torch.full(CROP_SIZE, 2.5)).values(), strict=True))
    once: dict[str, dict[str, float]] = {}
    predictors = {}
    for name, suite in measured.items():
        start = time.perf_counter()
        predictors[name] = Predictor(
            lambda *words: zeroshot_classifier(clip_model, *words), suite, model.clip_vis.patch_dim
        )
        once[name] = {"prompts": time.perf_counter() - start}
    rng, size = np.random.default_rng(0), BATCH_SIZE["cpu"]
    seconds: dict[str, list[float]] = {name: [] for name in SUITES}
    records: dict[str, list[Record]] = {name: [] for name in SUITES}
    with torch.inference_mode():
        for first in range(-size, images, size):  # the first batch is slower, and not counted
            image, depth = (torch.cat(parts) for parts in zip(*(synthetic(rng) for _ in range(size)), strict=True))
            names = [f"office/{first + i}" for i in range(size)]
            for name, predictor in predictors.items():
                start = time.perf_counter()
                encode = model.channel_features if predictor.suite.all_channels else model.patch_features
                batch = Encoded(encode(with_mirror(image)), depth, names, ["office"] * size, list(range(size)))
                scored = [record for part in score_all([batch], predictor, "error", "error") for record in part]
                if first >= 0:
                    seconds[name].append((time.perf_counter() - start) / size)
                    records[name] += scored
            print(f"{max(first + size, 0)} of {images} images", file=sys.stderr, flush=True)
    for name, suite in measured.items():
        copies = [record | {"image": f"{i}"} for i, record in enumerate(records[name] * len(TEST_INDICES))]
        start = time.perf_counter()
        results = Results(copies[: len(TEST_INDICES)], suite.constants)
        with tempfile.TemporaryDirectory() as folder:
            report.write_all(Path(folder), results, suite, "synthetic", {})
        once[name]["intervals and tables"] = time.perf_counter() - start
    return {"seconds": seconds, "once": once, "rows": {n: len(s.predicted) for n, s in measured.items()}}


def main(argv: Sequence[str] | None = None) -> int:
    """Measures and prints; returns the exit code."""
    args = build_parser().parse_args(argv)
    if args.threads:
        torch.set_num_threads(args.threads)
    measured = measure(args.images)
    split = len(TEST_INDICES)
    median = {name: float(np.median(values)) for name, values in measured["seconds"].items()}
    once = {name: sum(parts.values()) for name, parts in measured["once"].items()}
    whole = {name: median[name] + once[name] / split for name in SUITES}
    measured["ratio"] = {name: median[name] / median[SUITES[0]] for name in SUITES}
    measured["ratio_of_the_test_split"] = {name: whole[name] / whole[SUITES[0]] for name in SUITES}
    print(f"{args.images} images, {torch.get_num_threads()} threads, torch {torch.__version__}; medians, interleaved")
    print(f"{'':<22}{'rows':>6}{'ms/image':>10}{'ratio':>7}{'once [s]':>10}{f'ratio, {split} images':>20}")
    for name in SUITES:
        print(
            f"{name:<22}{measured['rows'][name]:>6}{median[name] * 1e3:>10.0f}{measured['ratio'][name]:>7.2f}"
            f"{once[name]:>10.1f}{measured['ratio_of_the_test_split'][name]:>20.2f}"
        )
    if args.output:
        report.write_json(args.output, measured)
    return 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
