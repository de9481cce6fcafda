"""The suite's speed beside a plain implementation (plain.py) on this machine, in about 15 minutes on two cores.

    python -m benchmarks.speed              one line for each command, on the processor; --device cuda: on a GPU
    python -m benchmarks.speed --quick      few images, one round: whether it runs, not how fast

Weights are random, of RN50's shape; the images are the demo's, repeated. Whole commands are timed, from start to exit.
A ratio is the median over the rounds of the ratio within a round, so that a machine that slows down slows both sides.
"""

import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median

import torch

import options
from clip.checkpoint import RN50
from clip.model import CLIP
from datasets.nyu import TEST_INDICES
from viewer import terminal

HALF = {"cpu": "bf16", "cuda": "fp16"}  # of which one evaluation is, too
FILES = "--data_path @/nyu --clip_path @/random.pt --device {device}"  # @ is a temporary folder
SOME = f"{FILES} --activation quickgelu --limit {{images}} --precision"
PAPER = f"-m experiments --output @/out {SOME} fp32"
NEW_WORDS = "--no_paper --depth_classes near far --bin_list 1 3 --output @/out --store @/store --activation quickgelu"
COMMANDS = {
    "plain": f"-m benchmarks.plain {FILES} --limit {{images}}",
    "eval.py, fp32": f"eval.py {SOME} fp32",
    "eval.py, half precision": f"eval.py {SOME} {{half}}",
    "experiments, empty store": PAPER,
    "experiments --controls, empty store": f"{PAPER} --controls",
    "new words over stored images": f"-m experiments {FILES} {NEW_WORDS}",
    "eval.py --help": "eval.py --help",
}


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


def seconds_of(command: Sequence[str], output: Path) -> float:
    """The time of a command; its folder `output` is removed. Raises WorkError: it failed."""
    start = time.perf_counter()
    run = subprocess.run([sys.executable, *command], cwd=Path(__file__).parents[1], capture_output=True, text=True)
    took = time.perf_counter() - start
    shutil.rmtree(output, ignore_errors=True)
    if run.returncode:
        said = run.stderr.strip().rpartition("\n")[2]
        raise options.WorkError(f"{' '.join(command)} failed: {said}")
    return took


def result_lines(seconds: Mapping[str, Sequence[float]]) -> list[str]:
    """What the commands took, given by name and round, and their ratios to two of them: a line each."""
    lines = []
    for name, times in seconds.items():
        lines.append(f"{name}: {median(times):.1f} s")
        for base in ("plain", "eval.py, fp32"):
            ratio = median(one / other for one, other in zip(times, seconds[base], strict=True))
            lines[-1] += f"; {ratio:.3f} of {base}"
    return lines


def measure(images: int, stored: int, rounds: int, device: str) -> None:
    """Prints the lines. Raises WorkError: a command failed."""
    gpu = f"{torch.cuda.get_device_name()}, " if device == "cuda" else ""
    machine = f"{gpu}{platform.machine()} ({torch.backends.cpu.get_cpu_capability()}), {os.cpu_count()} cores"
    print(f"machine: {machine}, torch {torch.__version__}; {images} images, {stored} stored; medians of {rounds}")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.save(CLIP(RN50).state_dict(), folder / "random.pt")
        write_images(folder / "nyu", stored, images)
        filled = {key: line.format(device=device, images=images, half=HALF[device]) for key, line in COMMANDS.items()}
        runs = {key: [word.replace("@", name) for word in line.split()] for key, line in filled.items()}
        seconds_of(runs["new words over stored images"], folder / "out")  # fills the store
        rows = [[seconds_of(command, folder / "out") for command in runs.values()] for _ in range(rounds)]
    print("\n".join(result_lines(dict(zip(runs, zip(*rows, strict=True), strict=True)))), flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; every error for the user is one sentence on stderr."""
    parser = terminal.new_parser("Measure the suite's speed beside a plain implementation.", "benchmarks.speed")
    parser.add_argument("--device", choices=HALF, default="cpu", help="where networks run; all in fp32 but one line")
    parser.add_argument("--quick", action="store_true", help="8 images, 16 stored images, 1 round")
    parser.add_argument("--images", type=options.positive, default=96, help="images of a whole evaluation")
    parser.add_argument("--rounds", type=options.positive, default=2, help="rounds of whole commands")
    args = parser.parse_args(argv)
    images, stored, rounds = (8, 16, 1) if args.quick else (args.images, len(TEST_INDICES), args.rounds)
    return options.run_command("benchmarks.speed", lambda: measure(images, stored, rounds, args.device))


if __name__ == "__main__":
    sys.exit(main())
