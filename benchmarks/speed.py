"""The suite's speed beside a plain implementation (plain.py) on this machine, in about 15 minutes on two cores.

    python -m benchmarks.speed              one line for each measurement, on the processor; --device cuda: on a GPU
    python -m benchmarks.speed --quick      few images, one round: whether it runs, not how fast

Weights are random, of RN50's shape; the images are the demo's, repeated. Whole commands are timed, from start to exit.
A ratio is the median over the rounds of the ratio within a round, so that a machine that slows down slows both sides.
"""

import argparse
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median

import torch

import options
from clip.checkpoint import RN50
from clip.model import CLIP, convert_weights
from datasets.nyu import TEST_INDICES
from viewer import terminal

ROOT = Path(__file__).parents[1]
SETTINGS = 8  # the paper's, in its two ablations
HALF = {"cpu": "bf16", "cuda": "fp16"}  # of which one evaluation is, too


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = terminal.new_parser("Measure the suite's speed beside a plain implementation.", "benchmarks.speed")
    parser.add_argument("--device", choices=HALF, default="cpu", help="where networks run; all in fp32 but one line")
    parser.add_argument("--quick", action="store_true", help="8 images, 16 stored images, 1 round")
    parser.add_argument("--images", type=options.positive, default=96, help="images of a whole evaluation")
    parser.add_argument("--rounds", type=options.positive, default=2, help="rounds of whole commands")
    return parser


def write_images(root: Path, count: int, distinct: int) -> None:
    """Writes `count` pairs out of the demo's; a comment in the JPEG makes `distinct` of them new to the store."""
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


def command_lines(seconds: Mapping[str, Sequence[float]], images: int, stored: int, half: str) -> list[str]:
    """What the whole commands took, by name and round: a line each, with the target on two cores beside it."""
    took = {name: median(times) for name, times in seconds.items()}

    def ratio(name: str, base: str) -> float:
        return median(one / other for one, other in zip(seconds[name], seconds[base], strict=True))

    lines = []
    for title, name, base, whose, target in (
        ("eval.py, fp32", "eval fp32", "plain", "the plain implementation's", "0.75"),
        (f"eval.py, {half}", "eval half", "plain", "the plain implementation's", "0.42"),
        ("experiments, empty store", "paper", "eval fp32", "eval.py's", "1.10"),
        ("experiments --controls, empty store", "controls", "eval fp32", "eval.py's", "1.40"),
    ):
        against = f"{took[name]:.1f} s against {took[base]:.1f} s"
        of = f"{ratio(name, base):.2f} of {whose} time ({against})"
        lines.append(f"{title}, {images} images: {of}; target: at most {target}")
    return [
        *lines,
        f"experiments, empty store, {images} images: {SETTINGS / ratio('paper', 'plain'):.1f} times faster than the "
        f"plain implementation run for each of {SETTINGS} settings ({took['paper']:.1f} s against {SETTINGS} x "
        f"{took['plain']:.1f} s); target: at least 9.5",
        f"experiments with new words over {stored} stored images: {took['new words']:.1f} s; target: under 12 s",
        f"eval.py --help: {took['help']:.1f} s; target: under 3 s",
    ]


def measure(images: int, stored: int, rounds: int, device: str) -> None:
    """Prints the lines. Raises WorkError: a command failed."""
    machine = f"{platform.machine()} ({torch.backends.cpu.get_cpu_capability()}), {os.cpu_count()} cores"
    gpu = f"{torch.cuda.get_device_name()}, " if device == "cuda" else ""
    print(f"machine: {gpu}{machine}, torch {torch.__version__}; medians of {rounds}", flush=True)
    network = CLIP(RN50)
    convert_weights(network, torch.float16)  # as OpenAI's
    with tempfile.TemporaryDirectory() as folder:
        weights, data, store = (Path(folder, name) for name in ("random.pt", "nyu", "features"))
        torch.save(network.state_dict(), weights)
        write_images(data, stored, images)
        runs = commands(weights, data, store, images, device)
        runs["new words"]()  # fills the store
        seconds = take_turns(runs, rounds)
    print("\n".join(command_lines(seconds, images, stored, HALF[device])), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; every error for the user is one sentence on stderr."""
    args = build_parser().parse_args(argv)
    images, stored, rounds = (8, 16, 1) if args.quick else (args.images, len(TEST_INDICES), args.rounds)
    return options.run_command("benchmarks.speed", lambda: measure(images, stored, rounds, args.device))


if __name__ == "__main__":
    sys.exit(main())
