"""The suite's speed beside a plain implementation (plain.py) on this machine's processor, in about 12 minutes.

    python -m benchmarks.speed                              prints one line for each measurement
    python -m benchmarks.speed --output speed.json          also writes them, with the seconds of each run
    python -m benchmarks.speed --quick                      few images, one round: whether it runs, not how fast

Weights are random, of RN50's shape; images are noise of NYU's size. Commands are whole processes, from start to exit;
encoders run in one process, where the plain one gains from `keep_freed_memory` as well. In each round all take their
turn, and a ratio is the median over the rounds of the ratio within a round, so that a machine that slows down slows
both sides. Ratios hold for the machine that is named.
"""

import argparse
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch

import options
from benchmarks import plain
from benchmarks.workload import FEATURES, PICTURES, fill_store, write_images, write_weights
from calculate_error import NYU_CROP, size_of
from clip.inference import keep_freed_memory
from datasets.nyu import TEST_INDICES
from experiments.published import PUBLISHED
from monoclip import PAPER, MonoCLIP

ROOT = Path(__file__).parents[1]
CPU = torch.device("cpu")
SETTINGS = len({row.reading for row in PUBLISHED if row.reading})  # 8, in the paper's prompt and bin ablations
ENCODERS = (("fp32", 1), ("fp32", 4), ("bf16", 1), ("bf16", 4))  # precision and images at once of the programs' form
BUSY = 0.3  # load of each core from which on a machine is not quiet
NEW_WORDS = ("--depth_classes", "near", "far", "--bin_list", "1", "3")

Seconds = Mapping[str, Sequence[float]]  # by name, of each round


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = options.new_parser("Measure the suite's speed beside a plain implementation.", "benchmarks.speed")
    parser.add_argument("--quick", action="store_true", help="8 images, 16 stored images, 1 round")
    parser.add_argument("--images", type=options.positive, default=48, help="images of a whole evaluation")
    parser.add_argument("--rounds", type=options.positive, default=3, help="rounds of whole commands")
    parser.add_argument("--work", type=Path, help="folder that keeps weights, images and features (4 GB) for next time")
    parser.add_argument("--output", type=Path, metavar="FILE.json", help="also write what was measured")
    return parser


def take_turns(runs: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Seconds of each run in each round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - start)
    return seconds


def ratio(seconds: Seconds, name: str, base: str) -> float:
    """Median over the rounds of the ratio of two runs."""
    return statistics.median(one / other for one, other in zip(seconds[name], seconds[base], strict=True))


def command(*arguments: object, output: Path | None = None) -> None:
    """Runs a command of the project; what it writes goes to `output` and is removed. Raises WorkError: it failed."""
    with tempfile.TemporaryDirectory(dir=output) as folder:
        written = ("--output", folder) if output else ()
        words = [sys.executable, *map(str, (*arguments, *written))]
        run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        said = run.stderr.strip().splitlines() or [f"exit code {run.returncode}"]
        raise options.WorkError(f"{' '.join(words[1:])} failed: {said[-1]}")


def commands(work: Path, weights: Path, data: Path, images: int, stored: int) -> dict[str, Callable[[], object]]:
    """The whole commands by the names that `command_lines` knows; each call runs one."""
    source = ("--data_path", data, "--clip_path", weights)
    some, own = (*source, "--limit", images), ("--device", "cpu")
    paper = ("-m", "experiments", *own)
    known = ("--limit", stored, "--store", work / "begun" / FEATURES)
    return {
        "plain": partial(command, "-m", "benchmarks.plain", *some),
        "eval fp32": partial(command, "eval.py", *some, *own),
        "eval bf16": partial(command, "eval.py", *some, *own, "--precision", "bf16"),
        "paper": partial(command, *paper, *some, output=work),
        "controls": partial(command, *paper, *some, "--controls", output=work),
        "new words": partial(command, *paper, *source, *known, *NEW_WORDS, output=work),
        "plain, 1 image": partial(command, "-m", "benchmarks.plain", *source, "--limit", 1),
        "eval fp32, 1 image": partial(command, "eval.py", *source, "--limit", 1, *own),
        "help": partial(command, "eval.py", "--help"),
    }


def command_lines(seconds: Seconds, images: int, stored: int) -> list[str]:
    """What the whole commands took, a line each, with the target beside it."""
    median = {name: statistics.median(times) for name, times in seconds.items()}

    def compared(text: str, name: str, base: str, of: str, target: str) -> str:
        took = f"{median[name]:.1f} s against {median[base]:.1f} s"
        return f"{text}, {images} images: {ratio(seconds, name, base):.2f} of {of} ({took}); target: at most {target}"

    start = median["plain, 1 image"], median["eval fp32, 1 image"]
    faster = SETTINGS / ratio(seconds, "paper", "plain")
    return [
        compared("eval.py, fp32", "eval fp32", "plain", "the plain implementation's time", "0.80"),
        compared("eval.py, bf16", "eval bf16", "plain", "the plain implementation's time", "0.43"),
        f"start-up and one image: plain {start[0]:.1f} s, eval.py {start[1]:.1f} s",
        compared("experiments, fp32, empty store", "paper", "eval fp32", "eval.py's time", "1.15"),
        compared("experiments --controls, fp32, empty store", "controls", "eval fp32", "eval.py's time", "1.90"),
        f"experiments, fp32, empty store, {images} images: {faster:.1f} times faster than the plain implementation "
        f"run for each of {SETTINGS} settings ({median['paper']:.1f} s against {SETTINGS} x {median['plain']:.1f} s); "
        "target: at least 9",
        f"experiments with new words over {stored} stored images: {median['new words']:.1f} s; target: under 12 s",
        f"eval.py --help: {median['help']:.1f} s; target: under 3 s",
    ]


def encoders(network: plain.CLIP, models: Mapping[str, MonoCLIP]) -> dict[str, Callable[[], object]]:
    """The image encoder alone, plain and in the programs' forms, by the names that `encoder_lines` knows."""
    images = torch.randn(4, 3, *size_of(NYU_CROP), generator=torch.Generator().manual_seed(0))
    views = images[:1], images[:1].flip(-1)
    fast = {f"{name} {count}": partial(models[name].trunk, images[:count]) for name, count in ENCODERS}
    return {"plain": lambda: [network.visual.forward_patches(view) for view in views], **fast}


def encoder_lines(seconds: Seconds) -> list[str]:
    """What the encoders took for an image with its mirror, a line each."""
    ms = {name: 1e3 * statistics.median(times) for name, times in seconds.items()}
    return [
        f"encoder alone, {precision}, image with mirror, {count} at once: "
        f"{ratio(seconds, f'{precision} {count}', 'plain') / count:.2f} of the plain network's time "
        f"({ms[f'{precision} {count}'] / count:.0f} ms against {ms['plain']:.0f} ms an image)"
        for precision, count in ENCODERS
    ]


def machine() -> str:
    """The processor and what computes on it."""
    info, name = Path("/proc/cpuinfo"), platform.processor() or platform.machine()
    for line in info.read_text().splitlines() if info.is_file() else ():
        if line.startswith("model name"):
            name = line.split(":", 1)[1].strip()
    isa = torch.backends.cpu.get_cpu_capability()
    return f"{name} ({isa}), {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def measure(work: Path, images: int, stored: int, rounds: int) -> dict[str, object]:
    """Measures everything on files in `work`, prints each line when it is there, and returns it as JSON can hold it."""
    weights, data, begun = (work / name for name in ("random.pt", "nyu", "begun"))
    images = min(images, len(TEST_INDICES))
    found = [f"machine: {machine()}; medians of {rounds}; GPU: not run here"]
    print(found[0], flush=True)
    if hasattr(os, "getloadavg") and os.getloadavg()[0] > BUSY * (os.cpu_count() or 1):
        print(f"warning: other work is running (load {os.getloadavg()[0]:.1f}): these ratios mean little", flush=True)
    write_weights(weights)
    write_images(data, max(images, stored))

    network = plain.load(weights)
    models = {precision: options.load_model(weights, CPU, precision, PAPER)[1] for precision in ("fp32", "bf16")}
    with torch.inference_mode():
        runs = encoders(network, models)
        take_turns(runs, 2)  # unmeasured: malloc and the processor settle
        encoder_seconds = take_turns(runs, 4 * rounds)
    found += encoder_lines(encoder_seconds)
    print("\n".join(found[1:]), flush=True)

    source = ("--data_path", data, "--clip_path", weights, "--device", "cpu")
    command("-m", "experiments", *source, "--limit", PICTURES, "--output", begun)
    fill_store(begun, models["fp32"], data, stored)
    del network, models, runs
    seconds = take_turns(commands(work, weights, data, images, stored), rounds)
    lines = command_lines(seconds, images, stored)
    print("\n".join(lines), flush=True)
    return {"lines": found + lines, "encoder_seconds": encoder_seconds, "command_seconds": seconds}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; every error for the user is one sentence on stderr."""
    args = build_parser().parse_args(argv)

    def work() -> None:
        sizes = (8, 16, 1) if args.quick else (args.images, len(TEST_INDICES), args.rounds)
        if args.work:
            args.work.mkdir(parents=True, exist_ok=True)
            measured = measure(args.work.absolute(), *sizes)
        else:
            with tempfile.TemporaryDirectory() as folder:
                measured = measure(Path(folder), *sizes)
        if args.output:
            options.write_json(args.output, measured)

    return options.run_command("benchmarks.speed", work)


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
