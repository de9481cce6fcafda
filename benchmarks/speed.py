"""The suite's speed beside a plain implementation (plain.py) on this machine, in about 15 minutes on two cores.

    python -m benchmarks.speed              one line for each measurement, on the processor; --device cuda: on a GPU
    python -m benchmarks.speed --quick      few images, one round: whether it runs, not how fast

Weights are random, of RN50's shape; the images are the demo's, repeated. Whole commands are timed, from start to exit.
In each round all take their turn, and a ratio is the median over the rounds of the ratio within a round, so that a
machine that slows down slows both sides. Ratios hold for the machine that is named, if nothing else runs there.
"""

import argparse
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import nn

import options
from clip.checkpoint import RN50
from clip.model import CLIP, Architecture, convert_weights
from datasets.nyu import TEST_INDICES
from experiments.published import published_rows

ROOT = Path(__file__).parents[1]

SETTINGS = len(
    {row.reading for row in published_rows() if row.reading and row.protocol == "NYU"}
)  # 8, in its two ablations
HALF = {"cpu": "bf16", "cuda": "fp16"}  # of which one evaluation is, too

Seconds = Mapping[str, Sequence[float]]  # by name, of each round


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = options.new_parser("Measure the suite's speed beside a plain implementation.", "benchmarks.speed")
    parser.add_argument("--device", choices=HALF, default="cpu", help="where networks run; all in fp32 but one line")
    parser.add_argument("--quick", action="store_true", help="8 images, 16 stored images, 1 round")
    parser.add_argument("--images", type=options.positive, default=96, help="images of a whole evaluation")
    parser.add_argument("--rounds", type=options.positive, default=2, help="rounds of whole commands")
    return parser


def write_weights(path: Path, architecture: Architecture = RN50) -> None:
    """Writes random weights, in fp16 like OpenAI's, with batch norms unlike those of a new layer."""
    torch.manual_seed(0)
    network = CLIP(architecture)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.get_buffer("running_mean").normal_(0, 0.05)
            module.get_buffer("running_var").uniform_(0.8, 1.2)
    convert_weights(network, torch.float16)
    torch.save(network.state_dict(), path)


def write_images(root: Path, count: int, distinct: int) -> None:
    """Writes `count` pairs out of the demo's, the first `distinct` of which the feature store takes for different ones.

    The store knows images by the bytes of their files: a comment in the JPEG makes a difference that nothing else sees.
    """
    folder = root / "official_splits" / "test" / "office"
    folder.mkdir(parents=True)
    pictures = sorted(options.DEMO_DATA.rglob("rgb_*.jpg"))
    for i, index in enumerate(TEST_INDICES[:count]):
        rgb = pictures[i % distinct % len(pictures)]
        jpeg, comment = rgb.read_bytes(), b"\xff\xfe\x00\x06" + (i % distinct).to_bytes(4, "big")
        (folder / f"rgb_{index:05d}.jpg").write_bytes(jpeg[:2] + comment + jpeg[2:])
        shutil.copyfile(rgb.with_name(f"sync_depth_{rgb.stem[-5:]}.png"), folder / f"sync_depth_{index:05d}.png")


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


def command(*arguments: object) -> None:
    """Runs a command of the project; what it writes goes to a folder that is removed. Raises WorkError: it failed."""
    with tempfile.TemporaryDirectory() as folder:
        words = [sys.executable, *(str(word).replace("OUTPUT", folder) for word in arguments)]
        run = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    if run.returncode:
        said = run.stderr.strip().splitlines() or [f"exit code {run.returncode}"]
        raise options.WorkError(f"{' '.join(words[1:])} failed: {said[-1]}")


def commands(weights: Path, data: Path, store: Path, images: int, device: str) -> dict[str, Callable[[], object]]:
    """The whole commands by the names that `command_lines` knows; each call runs one."""
    files = ("--data_path", data, "--clip_path", weights)
    source = (*files, "--activation", "quickgelu", "--device", device)
    some = (*source, "--limit", images)
    paper = ("-m", "experiments", "--output", "OUTPUT", "--precision", "fp32")
    words = ("--depth_classes", "near", "far", "--bin_list", "1", "3")
    return {
        "plain": partial(command, "-m", "benchmarks.plain", *files, "--limit", images, "--device", device),
        "eval fp32": partial(command, "eval.py", *some, "--precision", "fp32"),
        "eval half": partial(command, "eval.py", *some, "--precision", HALF[device]),
        "paper": partial(command, *paper, *some),
        "controls": partial(command, *paper, *some, "--controls"),
        "new words": partial(command, *paper, *source, "--store", store, "--no_paper", *words),
        "help": partial(command, "eval.py", "--help"),
    }


def command_lines(seconds: Seconds, images: int, stored: int, half: str) -> list[str]:
    """What the whole commands took, a line each, with the target on two cores beside it."""
    median = {name: statistics.median(times) for name, times in seconds.items()}

    def compared(text: str, name: str, base: str, of: str, target: str) -> str:
        took = f"{median[name]:.1f} s against {median[base]:.1f} s"
        return f"{text}, {images} images: {ratio(seconds, name, base):.2f} of {of} ({took}); target: at most {target}"

    faster = SETTINGS / ratio(seconds, "paper", "plain")
    took = f"{median['paper']:.1f} s against {SETTINGS} x {median['plain']:.1f} s"
    return [
        compared("eval.py, fp32", "eval fp32", "plain", "the plain implementation's time", "0.75"),
        compared(f"eval.py, {half}", "eval half", "plain", "the plain implementation's time", "0.42"),
        compared("experiments, empty store", "paper", "eval fp32", "eval.py's time", "1.10"),
        compared("experiments --controls, empty store", "controls", "eval fp32", "eval.py's time", "1.40"),
        f"experiments, empty store, {images} images: {faster:.1f} times faster than "
        f"the plain implementation run for each of {SETTINGS} settings ({took}); target: at least 9.5",
        f"experiments with new words over {stored} stored images: {median['new words']:.1f} s; target: under 12 s",
        f"eval.py --help: {median['help']:.1f} s; target: under 3 s",
    ]


def machine(device: str) -> str:
    """The processor and what computes on it, and the GPU, if one is measured."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    name = next((line.split(": ")[1] for line in lines if line.startswith("model name")), platform.machine())
    isa = torch.backends.cpu.get_cpu_capability()
    gpu = f"{torch.cuda.get_device_name()}, " if device == "cuda" else ""
    return f"{gpu}{name} ({isa}), {os.cpu_count()} cores, {torch.get_num_threads()} threads, torch {torch.__version__}"


def measure(work: Path, images: int, stored: int, rounds: int, device: str) -> None:
    """Measures everything on files that it writes into `work`, and prints the lines."""
    print(f"machine: {machine(device)}; medians of {rounds}", flush=True)
    weights, data, store = (work / name for name in ("random.pt", "nyu", "features"))
    write_weights(weights)
    write_images(data, stored, images)

    source = ("--data_path", data, "--clip_path", weights, "--activation", "quickgelu", "--device", device)
    command("-m", "experiments", *source, "--precision", "fp32", "--store", store, "--output", "OUTPUT")
    seconds = take_turns(commands(weights, data, store, images, device), rounds)
    print("\n".join(command_lines(seconds, images, stored, HALF[device])), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; every error for the user is one sentence on stderr."""
    args = build_parser().parse_args(argv)

    def work() -> None:
        images, stored, rounds = (8, 16, 1) if args.quick else (args.images, len(TEST_INDICES), args.rounds)
        with tempfile.TemporaryDirectory() as folder:
            measure(Path(folder), images, stored, rounds, args.device)

    return options.run_command("benchmarks.speed", work)


if __name__ == "__main__":
    sys.exit(main())
