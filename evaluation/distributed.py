"""Several processes share the images of one evaluation: `torchrun --nproc_per_node N eval.py ...`.

The images are dealt out batch by batch in turn, so that a batch holds the images it would hold in a single process.
After each turn all processes exchange their records (rows of figures, no tensors), and the first one writes them in the
order of the data: what is there when a run stops is what a single process would have left, and `--resume` goes on.
"""

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed

T = TypeVar("T")
Errors = tuple[type[Exception], ...]
TIMEOUT = timedelta(days=1)  # of waiting for another one's turn; torchrun ends all when one dies


class OtherProcessError(Exception):
    """Another process could not go on, and says why itself; the message is its sentence."""


class LostProcessError(Exception):
    """Another process has gone without a word."""


@dataclass(frozen=True)
class Processes:
    """The processes that share a run: how many there are, and which of them this is.

    Attributes:
        count: 1 for a run without torchrun.
        rank: of this process, 0 to count - 1; the first writes and prints.
        local_rank: of this process on its machine, which is the index of its GPU.
        local_count: processes on its machine.
    """

    count: int = 1
    rank: int = 0
    local_rank: int = 0
    local_count: int = 1

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> "Processes":
        """As torchrun says in `WORLD_SIZE` and so on; a single one where that is not all there."""
        said = [environment.get(key, "") for key in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")]
        return cls(*map(int, said)) if all(value.isdigit() for value in said) else cls()

    @contextmanager
    def connected(self, device: torch.device) -> Iterator[None]:
        """Connects the processes, over NCCL on GPUs and over gloo elsewhere; nothing for a single one.

        Raises:
            LostProcessError: they cannot be connected.
        """
        if self.count == 1:
            yield
            return
        try:
            if device.type == "cuda":
                torch.cuda.set_device(device)
                distributed.init_process_group("nccl", timeout=TIMEOUT, device_id=device)
            else:
                distributed.init_process_group("gloo", timeout=TIMEOUT)
        except (RuntimeError, ValueError) as error:
            raise LostProcessError(f"the processes cannot be connected ({error})") from error
        try:
            yield
        finally:
            distributed.destroy_process_group()

    def share(self, start: int, end: int, batch_size: int) -> list[int]:
        """The images of this process among start ... end - 1: every `count`-th batch."""
        return [i for i in range(start, end) if (i - start) // batch_size % self.count == self.rank]

    def agreed(self, work: Callable[[], T], expected: Errors) -> T:
        """What `work` returns here, once it has succeeded in every process.

        Raises:
            OtherProcessError: it failed with one of the `expected` errors, which the first process to have one raises.
        """
        failure: Exception | None = None
        try:
            result = work()
        except expected as error:
            failure = error
        messages = self._exchanged(failure and str(failure))
        for rank, message in enumerate(messages):
            if message is not None:
                raise failure if failure and rank == self.rank else OtherProcessError(message)
        return result

    def told_by_the_first(self, value: T) -> T:
        """The first process's `value`, in every process."""
        return self._exchanged(value)[0]

    def in_turn(self, batches: Iterable[list[T]], images: int, batch_size: int, expected: Errors) -> Iterator[list[T]]:
        """The records of all processes in the order of the data, turn by turn, in every process.

        Args:
            batches: the records of this process, a list for each batch of its `share`.
            images: of all processes together.
            batch_size: images of a batch.
            expected: errors that end the run with a sentence. Records before the failed batch are still given.

        Raises:
            OtherProcessError: a batch failed with one of the `expected` errors, which its process raises.
        """
        if self.count == 1:
            yield from batches
            return
        own = iter(batches)
        for _ in range(0, images, batch_size * self.count):
            failure: Exception | None = None
            records: list[T] = []
            try:
                records = next(own, [])
            except expected as error:
                failure = error
            for rank, (theirs, message) in enumerate(self._exchanged((records, failure and str(failure)))):
                yield theirs
                if message is not None:
                    raise failure if failure and rank == self.rank else OtherProcessError(message)

    def _exchanged(self, value: Any) -> list[Any]:
        """The value of every process, by rank. Raises LostProcessError if one is gone."""
        if self.count == 1:
            return [value]
        values = [None] * self.count
        try:
            distributed.all_gather_object(values, value)
        except RuntimeError as error:
            raise LostProcessError(f"another process was lost ({str(error).splitlines()[0]})") from error
        return values
