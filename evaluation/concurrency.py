"""Nobody waits: a CPU's second thread not for steps that are over at once, and the CPU not for the GPU."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def one_thread() -> Iterator[None]:
    """torch works in one thread: each of many short steps is over before a second thread would have woken."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """`values` of the CPU on a device; to a GPU without waiting for it."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)
