"""What the machine could do at most: GFLOP/s of multiply-add instructions on a CPU, of matrix products on a GPU."""

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("peak.c")
MATRIX = 8192  # side of the square matrices that a GPU multiplies


def machine_peak(device: torch.device, threads: int) -> dict[str, float]:
    """GFLOP/s by precision, multiply and add counted apart; a precision that could not be measured is left out.

    Args:
        device: a CPU is measured by `peak.c`, which needs a C compiler (`$CC`, cc or gcc), once for each thread at the
            same time; a matrix product is no measure there, because torch's fp32 one stays far below the peak.
        threads: of the CPU.
    """
    return cpu_peak(threads) if device.type == "cpu" else gpu_peak(device) if device.type == "cuda" else {}


def cpu_peak(threads: int) -> dict[str, float]:
    """Sum over `threads` processes that run at once; empty without a compiler."""
    compiler = shutil.which(os.environ.get("CC", "cc")) or shutil.which("gcc")
    if compiler is None:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder) / "peak"
        command = [compiler, "-O2", "-march=native", str(SOURCE), "-o", str(program)]
        if subprocess.run(command, capture_output=True).returncode:
            return {}
        runs = [subprocess.Popen([program], stdout=subprocess.PIPE, text=True) for _ in range(threads)]
        outputs = [run.communicate()[0] for run in runs]
    if any(run.returncode for run in runs):
        return {}
    return summed(outputs)


def summed(outputs: list[str]) -> dict[str, float]:
    """The rates that several runs of `peak.c` printed, added up; 0 means not measured."""
    total: dict[str, float] = {}
    for line in "".join(outputs).splitlines():
        precision, rate = line.split()
        total[precision] = total.get(precision, 0) + float(rate)
    return {precision: rate for precision, rate in total.items() if rate > 0}


def gpu_peak(device: torch.device, rounds: int = 20) -> dict[str, float]:
    """The fastest of `rounds` products of square matrices, for each precision."""
    peaks = {}
    for precision, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16), ("fp16", torch.float16)):
        matrix = torch.randn(MATRIX, MATRIX, device=device).to(dtype)
        best = float("inf")
        for _ in range(rounds):
            torch.cuda.synchronize(device)
            start = time.perf_counter()
            matrix @ matrix
            torch.cuda.synchronize(device)
            best = min(best, time.perf_counter() - start)
        peaks[precision] = 2e-9 * MATRIX**3 / best
    return peaks
