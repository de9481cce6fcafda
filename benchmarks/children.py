"""Runs of eval.py as processes of their own: their time from start to end, and their peak memory."""

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
# Started in between, because a child's peak memory counts from that of the process it is forked from.
LAUNCHER = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
sys.exit(os.waitstatus_to_exitcode(status))
"""


@dataclass(frozen=True)
class Process:
    """A run of eval.py as a process of its own: wall seconds from its start, peak resident memory [GB]."""

    name: str
    seconds: float
    peak_gb: float


def process(name: str, command: list[str]) -> Process:
    """Runs a command.

    Raises:
        subprocess.CalledProcessError: it failed; holds what it wrote to stderr.
    """
    start = time.perf_counter()
    launcher = [sys.executable, "-S", "-c", LAUNCHER, *command]
    run = subprocess.run(launcher, cwd=ROOT, capture_output=True, text=True, check=True)
    return Process(name, time.perf_counter() - start, int(run.stdout) / 1e9)


def eval_py(data: Path, weights: Path, device: torch.device, *flags: str) -> list[str]:
    """The command line of an evaluation, without the interpreter."""
    return [
        str(ROOT / "eval.py"),
        "--data_path",
        str(data),
        "--clip_path",
        str(weights),
        "--device",
        str(device),
        *flags,
    ]


def processes(data: Path, weights: Path, device: torch.device, images: int) -> list[Process]:
    """Start-up, and how time and memory grow with the images and the processes; files are read once before."""
    process("unmeasured", [sys.executable, *eval_py(data, weights, device, "--limit", "1")])
    rows = [process("eval.py --help", [sys.executable, str(ROOT / "eval.py"), "--help"])]
    for count in (1, images, 8 * images):
        command = [sys.executable, *eval_py(data, weights, device, "--limit", str(count))]
        rows.append(process(f"eval.py, images: {count}", command))
    if device.type == "cuda":
        command = [sys.executable, *eval_py(data, weights, device, "--paper")]
        rows.append(process("eval.py --paper, all images", command))
    count = torch.cuda.device_count() if device.type == "cuda" else 2
    if count > 1:
        threads = max(1, torch.get_num_threads() // count)
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
        command = ["env", f"OMP_NUM_THREADS={threads}", *torchrun]
        command += eval_py(data, weights, device, "--limit", str(8 * images))
        rows.append(process(f"torchrun, {count} processes, images: {8 * images}", command))
    return rows


def new_words(data: Path, weights: Path, cache: Path, device: torch.device) -> Process:
    """A run with words of one's own on cached features, as its user sees it."""
    words = ["--feature_cache", str(cache), "--depth_classes", "near", "far", "--bin_list", "1", "3"]
    return process(
        "eval.py with new words on the feature cache", [sys.executable, *eval_py(data, weights, device, *words)]
    )
