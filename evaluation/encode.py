"""From a data set to patch features: the only expensive step of an evaluation, done once for each image.

`encode` runs the image encoder; `FeatureWriter` keeps what it gave in an HDF5 file, so that new words on the same
images take seconds; `CachedBatches` reads it. Both ways give `Encoded` batches.
"""

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from datasets.nyu import DataError, NYUDepthV2, NYUMat, Sample
from monoclip import MonoCLIP, with_mirror

MILLIMETRES = 1000
T = TypeVar("T")


class Encoded(NamedTuple):
    """B images: features (2B, C, h, w), theirs and then their mirrors'; depth (B, 1, 480, 640) [m], on the CPU."""

    features: Tensor
    depth: Tensor
    name: list[str]
    scene: list[str]
    index: list[int]  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


class Part(Dataset[Sample | DataError]):
    """Some samples of a data set. Errors come out as items: a worker would bury them under its traceback."""

    def __init__(self, dataset: NYUDepthV2 | NYUMat, items: Sequence[int]) -> None:
        self.dataset, self.items = dataset, items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, item: int) -> Sample | DataError:
        try:
            return self.dataset[self.items[item]]
        except DataError as error:
            return error


def collate(items: list[Sample | DataError]) -> Sample | DataError:
    """A batch of samples as one Sample of stacked tensors and lists, or the first error among them."""
    for item in items:
        if isinstance(item, DataError):
            return item
    return default_collate(items)


def encode(
    model: MonoCLIP,
    dataset: NYUDepthV2 | NYUMat,
    device: torch.device,
    batch_size: int = 1,
    workers: int = 0,
    all_channels: bool = False,
    items: Sequence[int] | None = None,
) -> Iterator[Encoded]:
    """The features of `dataset`, batch by batch, in its order.

    Args:
        model: on `device`.
        dataset: gives `Sample`s.
        device: where the encoder runs.
        batch_size: images at once; their mirrors come on top.
        workers: processes that read images, 0 for none.
        all_channels: all C normalised channels, instead of the D that MonoCLIP keeps.
        items: places of the images to encode; all unless given.

    Raises:
        DataError: a file is damaged.
    """
    loader = DataLoader(
        Part(dataset, range(len(dataset)) if items is None else items),
        batch_size,
        num_workers=workers,
        collate_fn=collate,
        pin_memory=device.type == "cuda",
    )
    features_of = model.channel_features if all_channels else model.patch_features
    for batch in fetched(loader):
        if isinstance(batch, DataError):
            raise batch
        with torch.inference_mode():
            features = features_of(with_mirror(batch.image.to(device, non_blocking=True)))
        yield Encoded(features, batch.depth, batch.name, batch.scene, batch.index.tolist())  # type: ignore[attr-defined]


def fetched(loader: Iterable[T]) -> Iterator[T]:
    """What a DataLoader gives. Raises DataError: one of its processes was killed."""
    try:
        yield from loader
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise DataError("a process of --workers ended unexpectedly, perhaps for lack of memory; use fewer") from error


def to_device(values: Tensor, device: torch.device) -> Tensor:
    """`values` of the CPU on a device; to a GPU without waiting for it."""
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


class CacheError(Exception):
    """The feature cache cannot be used; the message is one sentence for the user."""


class FeatureWriter:
    """Writes a feature cache: complete under its name, or not there.

    Args:
        path: of the file.
        fingerprint: what the features depend on, as JSON can hold it.
        count: N images.

    Raises:
        OSError: it cannot be written.
    """

    def __init__(self, path: Path, fingerprint: Mapping[str, Any], count: int) -> None:
        import h5py  # optional: only a run with a feature cache needs it

        self.path, self.fingerprint, self.count, self.done = path, fingerprint, count, 0
        self.temporary = path.with_name(f"{path.name}.{os.getpid()}.part")
        path.parent.mkdir(parents=True, exist_ok=True)
        self.file = h5py.File(self.temporary, "x")

    def kept(self, batches: Iterable[Encoded]) -> Iterator[Encoded]:
        """The batches, each written on the way; after the last, the file is put under its name."""
        for batch in batches:
            try:
                self.write(batch)
            except OSError as error:
                raise OSError(error.errno, error.strerror or str(error), str(self.path)) from error
            yield batch
        self.finish()

    def write(self, batch: Encoded) -> None:
        """Appends a batch."""
        images = len(batch.name)
        features = batch.features.unflatten(0, (2, images)).transpose(0, 1).cpu().numpy()  # (B, 2, C, h, w)
        depth = (batch.depth * MILLIMETRES).round()[:, 0].numpy().astype("uint16")
        if not self.done:
            for name, array in (("features", features), ("depth_mm", depth)):
                self.file.create_dataset(name, (self.count, *array.shape[1:]), array.dtype)  # packing costs more time
        self.file["features"][self.done : self.done + images] = features
        self.file["depth_mm"][self.done : self.done + images] = depth
        self.done += images

    def finish(self) -> None:
        """Puts the file, with all images in it, under its name."""
        self.file.attrs["fingerprint"] = json.dumps(self.fingerprint)
        self.file.close()
        with self.temporary.open("rb") as file:
            os.fsync(file.fileno())
        self.temporary.replace(self.path)

    def __enter__(self) -> "FeatureWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.file.close()
        self.temporary.unlink(missing_ok=True)


def check_cache(path: Path, fingerprint: Mapping[str, Any], all_channels: bool) -> None:
    """Accepts a complete feature cache.

    Args:
        path: of the file.
        fingerprint: what its features must have been made with.
        all_channels: whether all C channels are needed.

    Raises:
        CacheError: it is no feature cache, damaged, or made with something else.
    """
    import h5py

    try:
        with h5py.File(path, "r") as file:
            made_with = json.loads(file.attrs["fingerprint"])
            whole = "features" in file and "depth_mm" in file
        if not whole or not isinstance(made_with, dict) or "all_channels" not in made_with:
            raise ValueError("something is not there")
    except (OSError, KeyError, ValueError) as error:
        raise CacheError(f"{path}: no feature cache, or a damaged one; delete it or name another file") from error
    wanted = json.loads(json.dumps(fingerprint))
    changed = [key for key in wanted if key != "all_channels" and made_with.get(key, path) != wanted[key]]
    if changed:
        raise CacheError(
            f"{path}: made with another {', '.join(changed)}, so its features are not those of this run; "
            "name another --feature_cache, or delete the file to make it anew"
        )
    if all_channels and not made_with["all_channels"]:
        raise CacheError(
            f"{path}: holds every second channel only, but --controls needs all; "
            "name another --feature_cache, or delete the file to make it anew with --controls"
        )


class CachedBatches(Dataset[Encoded]):
    """Batches out of a feature cache: what `encode` gave, image files untouched. Every process opens it for itself.

    Args:
        path: of a cache that `check_cache` accepts.
        names, scenes, indices: of all images in it.
        device: where the features go.
        batch_size: images at once.
        start: images before it are left out.
    """

    def __init__(
        self,
        path: Path,
        names: Sequence[str],
        scenes: Sequence[str],
        indices: Sequence[int],
        device: torch.device,
        batch_size: int,
        start: int = 0,
    ) -> None:
        self.path, self.device = path, device
        self.names, self.scenes, self.indices = names, scenes, indices
        self.parts = [slice(i, min(i + batch_size, len(names))) for i in range(start, len(names), batch_size)]
        self._file: Any = None
        self._process = 0

    def __len__(self) -> int:
        return len(self.parts)

    def _opened(self) -> Any:
        import h5py

        if self._process != os.getpid():
            self._file, self._process = h5py.File(self.path, "r"), os.getpid()
        return self._file

    def __getitem__(self, item: int) -> Encoded:
        """Raises DataError: the file is damaged inside."""
        part = self.parts[item]
        try:
            stored = self._opened()["features"]
            features = np.empty((2, part.stop - part.start, *stored.shape[2:]), np.float32)
            for view in (0, 1):
                stored.read_direct(features, np.s_[part, view], np.s_[view])
            depth = self._opened()["depth_mm"][part]
        except OSError as error:
            raise DataError(f"{self.path}: damaged; delete it to make it anew") from error
        return Encoded(
            to_device(torch.from_numpy(features).flatten(0, 1), self.device),
            torch.from_numpy(np.divide(depth, MILLIMETRES, dtype=np.float32))[:, None],
            list(self.names[part]),
            list(self.scenes[part]),
            list(self.indices[part]),
        )
