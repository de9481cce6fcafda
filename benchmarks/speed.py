"""Speed and memory of the suite beside a plain implementation (plain.py), on this machine, in about four minutes.

    python -m benchmarks.speed --output speed            prints the tables; writes speed.json and speed.png there
    python -m benchmarks.speed --device cuda --images 256

Everything is measured on random weights of RN50's shape (or `--clip_path`) and on images of NYU's size made of noise
(or those of `--data_path`).
Variants take turns within each round of one process, and a ratio is the median over the rounds of the quotient within
a round, so a machine that slows down slows all of them. An image is always an image with its mirror. Multiply and add
count apart; a share is that of the peak that peak.py measures before, in the variant's own precision.
"""

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

import clip
from benchmarks.children import new_words, processes
from benchmarks.peak import machine_peak
from benchmarks.variants import (
    Variant,
    cached_seconds,
    deviations,
    encoder_gflop,
    encoder_share,
    encoder_variants,
    end_to_end_variants,
    forms_of,
    mean_figures,
)
from benchmarks.workload import link_images, random_network, write_cache, write_images
from calculate_error import NYU_CROP
from clip.inference import keep_freed_memory
from clip.model import CLIP
from datasets.nyu import NYUDepthV2, Pair, scan_folder
from evaluation.batch_error import CROP_SIZE
from loading import BATCH_SIZE
from monoclip import PAPER, MonoCLIP

BUSY = 0.5  # load of each core from which on a machine is not quiet
PAPER_RUNS = 8  # settings of prompts and bins that the paper reports; a plain implementation runs once for each


@dataclass(frozen=True)
class Timing:
    """What was measured of a variant; None where it could not be.

    Attributes:
        ms: median milliseconds for an image.
        ratio: to the first variant, median over rounds.
        gflops: GFLOP/s of the encoder's arithmetic.
        share: of the machine's peak in the same precision.
        deviation: the largest difference of a depth to the first variant's [m].
    """

    name: str
    precision: str
    images: int
    ms: float | None = None
    ratio: float | None = None
    gflops: float | None = None
    share: float | None = None
    deviation: float | None = None


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description="Measure the suite beside a plain implementation.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--clip_path", help="CLIP checkpoint; none: random weights of RN50's shape")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument(
        "--data_path", type=Path, help="folder that holds official_splits/test; none: images of noise of NYU's size"
    )
    parser.add_argument("--images", type=int, default=8, help="images of an end-to-end run")
    parser.add_argument("--batch_sizes", type=int, nargs="+", help="images at once (default: 1 4; on a GPU 1 8 32 128)")
    parser.add_argument("--cached_images", type=int, default=654, help="images in the feature cache, 2.4 MB each")
    parser.add_argument("--rounds", type=int, default=5, help="of which medians are taken")
    parser.add_argument("--threads", type=int, help="of torch on a CPU; none: torch's own choice")
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile, which takes a minute")
    parser.add_argument("--output", type=Path, help="folder for speed.json and speed.png; none: print only")
    return parser


def take_turns(variants: Sequence[Variant], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds for an image, by variant and round. Each variant runs once before, unmeasured."""
    runs = [(variant, variant.run) for variant in variants if variant.run]
    seconds: dict[str, list[float]] = {variant.name: [] for variant, _ in runs}
    for round_ in range(rounds + 1):
        for variant, run in runs:
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            if round_:
                seconds[variant.name].append((time.perf_counter() - start) / variant.images)
    return seconds


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summarised(
    variants: Sequence[Variant], seconds: dict[str, list[float]], gflop: float, peak: dict[str, float]
) -> list[Timing]:
    """A row for each variant, relative to the first one.

    Args:
        variants: in the order of the rows.
        seconds: for an image, by name and round, of those that are installed.
        gflop: of the encoder, for an image with its mirror.
        peak: GFLOP/s by precision, as far as measured.
    """
    reference = seconds[variants[0].name]
    rows = []
    for variant in variants:
        row = Timing(variant.name, variant.precision, variant.images)
        if times := seconds.get(variant.name):
            median = statistics.median(times)
            ratio = statistics.median(one / base for one, base in zip(times, reference, strict=True))
            limit = peak.get(variant.precision)
            share = gflop / median / limit if limit else None
            row = replace(row, ms=1e3 * median, ratio=ratio, gflops=gflop / median, share=share)
        rows.append(row)
    return rows


def table(rows: Sequence[Timing]) -> str:
    """Markdown; what could not be measured says so."""

    def cell(value: float | None, form: str, missing: str = "not measured") -> str:
        return missing if value is None else format(value, form)

    lines = ["| variant | precision | images at once | ms an image | ratio | GFLOP/s | of the peak | deviation [m] |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [row.name, row.precision, str(row.images)]
        if row.ms is None:
            cells += ["not installed", "", "", "", ""]
        else:
            cells += [cell(row.ms, ".1f"), cell(row.ratio, ".3f"), cell(row.gflops, ".0f"), cell(row.share, ".0%")]
            cells += [cell(row.deviation, ".1e", "")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def encoder_table(
    network: CLIP, forms: dict[str, CLIP], args: argparse.Namespace, peak: dict[str, float], folder: Path
) -> list[Timing]:
    """Measures the encoder alone, and how far each variant's depth is from the plain network's."""
    device = torch.device(args.device)
    batch_sizes = args.batch_sizes or ([1, 4] if device.type == "cpu" else [1, 8, 32, 128])
    variants = encoder_variants(network, forms, device, batch_sizes, args.compile, folder)
    differences = deviations(MonoCLIP(network), variants)
    rows = summarised(variants, take_turns(variants, args.rounds, device), encoder_gflop(network), peak)
    return [replace(row, deviation=differences.get(row.name)) for row in rows]


def end_to_end_table(
    network: CLIP, forms: dict[str, CLIP], args: argparse.Namespace, peak: dict[str, float], pairs: list[Pair]
) -> tuple[list[Timing], dict[str, float]]:
    """Measures from files to figures; the second value is what follows from it, by a sentence that names it."""
    device = torch.device(args.device)
    dataset = NYUDepthV2(pairs, NYU_CROP, PAPER.image_mean, PAPER.image_std)
    batch_size = min(BATCH_SIZE[device.type], len(pairs))
    variants = end_to_end_variants(network, forms, device, dataset, pairs, batch_size)
    rows = summarised(variants, take_turns(variants, args.rounds, device), encoder_gflop(network), peak)
    ratios = {row.name: row.ratio for row in rows if row.ratio}
    runs = {variant.name: variant.run for variant in variants if variant.run}
    expected, facts = runs["plain"](), {}
    for precision in forms:
        name = f"the paper's {PAPER_RUNS} settings, {precision}: times faster than {PAPER_RUNS} plain runs"
        facts[name] = PAPER_RUNS / ratios[f"eval.py --paper, {precision}"]
        figures = mean_figures(runs[f"eval.py, {precision}"]())
        difference = max(abs(one - other) for one, other in zip(figures, expected, strict=True))
        facts[f"largest difference of a mean figure to the plain run's, {precision}"] = difference
    if device.type == "cpu":
        name = "share of the encoder in the end-to-end time, fp32"
        facts[name] = encoder_share(forms["fp32"], dataset, device, batch_size)
    return rows, facts


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Everything, as JSON can hold it; prints each table when it is there."""
    device = torch.device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = False  # fp32 is to mean fp32
    hardware = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "platform": platform.platform(),
    }
    print(", ".join(f"{key}: {value}" for key, value in hardware.items()), flush=True)
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > BUSY * (os.cpu_count() or 1):
        print(f"warning: other work is running (load {os.getloadavg()[0]:.1f}), so the ratios mean little", flush=True)
    peak = machine_peak(device, torch.get_num_threads())
    print("peak: " + (", ".join(f"{k} {v:,.0f} GFLOP/s" for k, v in peak.items()) or "not measured"), flush=True)

    network = clip.load(args.clip_path, device="cpu")[0] if args.clip_path else random_network()
    with ExitStack() as stack, torch.inference_mode():
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        weights = Path(args.clip_path or folder / "random.pt")
        if not args.clip_path:
            torch.save(network.state_dict(), weights)
        if not args.data_path:
            write_images(folder / "data", args.images)
        pairs = scan_folder(args.data_path or folder / "data")[: args.images]
        link_images(folder / "many", pairs, args.cached_images)
        children = processes(folder / "many", weights, device, len(pairs))

        network = network.to(device)
        forms = forms_of(network, device)
        encoder = encoder_table(network, forms, args, peak, folder)
        print(f"\nEncoder, {encoder_gflop(network):.1f} GFLOP an image\n\n{table(encoder)}", flush=True)
        end_to_end, facts = end_to_end_table(network, forms, args, peak, pairs)
        print(f"\nFrom files to figures, {len(pairs)} images\n\n{table(end_to_end)}", flush=True)

        cache = folder / "features.h5"
        write_cache(cache, weights, forms["fp32"], folder / "many", device)
        name = f"seconds for new words over a feature cache of {args.cached_images} images"
        facts[name] = cached_seconds(forms["fp32"], cache, args.cached_images, device)
        if device.type == "cuda":
            facts["peak GPU memory of this process [GB]"] = torch.cuda.max_memory_allocated(device) / 1e9
        facts["peak memory of this process [GB]"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
            1e9 if sys.platform == "darwin" else 1e6
        )
        children.append(new_words(folder / "many", weights, cache, device))
        print("\n" + "\n".join(f"{name}: {value:.3g}" for name, value in facts.items()), flush=True)
        if device.type != "cuda":
            print("\nGPU: not run")
        print("\n" + "\n".join(f"{r.name}: {r.seconds:.1f} s, {r.peak_gb:.2f} GB" for r in children), flush=True)
    return {
        "hardware": hardware,
        "weights": Path(args.clip_path).name if args.clip_path else "random RN50",
        "peak_gflops": peak,
        "encoder_gflop": encoder_gflop(network),
        "encoder": [asdict(row) for row in encoder],
        "end_to_end": [asdict(row) for row in end_to_end],
        "facts": facts,
        "processes": [asdict(child) for child in children],
        "gpu": "see encoder" if device.type == "cuda" else "not run",
    }


def processor_name() -> str:
    """As the operating system calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def draw(results: dict[str, Any], path: Path) -> None:
    """Bars of the milliseconds of every variant, encoder above end to end."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    axes = figure.subplots(2, 1)
    colours = {"fp32": "#4c72b0", "bf16": "#dd8452", "fp16": "#55a868"}
    for axis, key, title in zip(
        axes, ("encoder", "end_to_end"), ("Encoder: image and mirror", "From files to figures"), strict=True
    ):
        rows = [row for row in results[key] if row["ms"] is not None]
        bars = axis.barh(
            [row["name"] for row in rows],
            [row["ms"] for row in rows],
            color=[colours[row["precision"]] for row in rows],
        )
        axis.bar_label(bars, [f"{row['ms']:.0f} ms, x{row['ratio']:.2f}" for row in rows], padding=3)
        axis.invert_yaxis()
        axis.margins(x=0.25)
        axis.set_title(title, loc="left")
        axis.set_xlabel("ms an image")
        axis.spines[["top", "right"]].set_visible(False)
    hardware = f"{results['hardware']['device']}, {results['hardware']['threads']} threads"
    figure.suptitle(f"{hardware}, {results['weights']} at {CROP_SIZE[0]}x{CROP_SIZE[1]}")
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    args = build_parser().parse_args(argv)
    try:
        results = measured(args)
        if args.output:
            args.output.mkdir(parents=True, exist_ok=True)
            (args.output / "speed.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            draw(results, args.output / "speed.png")
    except (OSError, RuntimeError, ValueError, clip.CheckpointError) as error:
        print(f"benchmarks.speed: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"benchmarks.speed: eval.py failed: {error.stderr.strip()}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
