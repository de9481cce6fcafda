"""Step 1 of the experiments: images -> the feature store, the only step that is expensive.

One file an image holds what CLIP's image trunk sees of it and of its mirror, a `Trunk` of float32, before anything is
read out of it, so that every read-out comes from one file. Its folder is named by a hash of what it depends on
(weights, precision, form of the network, normalisation, crop), and it by the hash of the image. A file is there whole
or not at all, and what is there is not computed again. So the store is at once what a stopped run goes on from, the
cache for other words, and how processes share the work, on one machine or over a shared file system; another checkpoint
is another name, never a conflict. Files are .npz, whose CRC-32 is checked whenever they are read; a damaged one is
computed again, and said.
"""

import errno
import hashlib
import io
import json
import math
import shutil
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed
from tqdm import tqdm

from clip.dense import fitted_size
from clip.model import Trunk
from datasets import PROGRESS
from datasets.pairs import DepthPairs
from datasets.pictures import working_size
from download import write_whole
from monoclip import MonoCLIP

DESCRIPTION = "made_with.json"
STORED_WITH = ("checkpoint_sha256", "activation", "precision", "network", "depthclip")  # that features depend on
# What damaged bytes lead the readers of zip and npy to.
DAMAGE = (zipfile.BadZipFile, ValueError, KeyError, EOFError, NotImplementedError, RuntimeError, OSError)


class FeatureStore:
    """The features of a data set's images.

    Args:
        root: the folder of all stores.
        model: on its device; computes what is missing.
        dataset: the images; DataError if one cannot be read.
        depends_on: what the features depend on besides the image, its crop and the model's reading, as JSON holds it.
    """

    def __init__(self, root: Path, model: MonoCLIP, dataset: DepthPairs, depends_on: Mapping[str, Any]) -> None:
        self.model, self.dataset = model, dataset
        crop: Any = "all, at the working size"
        if dataset.form.frames:
            crop = [[side.start, side.stop] for side in dataset.scope.window(*dataset.form.frames[0])]
        reading = model.reading
        about = {**depends_on, "image_mean": reading.image_mean, "image_std": reading.image_std, "crop": crop}
        described = json.dumps(about, indent=1, sort_keys=True).encode()
        self.folder = root / hashlib.sha256(described).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / DESCRIPTION).is_file():
            write_whole(self.folder / DESCRIPTION, lambda file: file.write(described))
        if (self.folder / DESCRIPTION).read_bytes() != described:
            raise OSError(
                0, "describes other features than its folder's name says; remove the folder", str(self.folder)
            )
        self.paths = [self.folder / f"{dataset.image_sha256(item)}.npz" for item in range(len(dataset))]

    def missing(self, items: Sequence[int]) -> list[int]:
        """Those of the images that have no file; images with the same bytes have one file."""
        first = {self.paths[item]: item for item in reversed(items)}
        return sorted(item for path, item in first.items() if not path.is_file())

    def fill(self, items: Sequence[int], batch_size: int, workers: int, quiet: bool) -> None:
        """Computes the features of those of the images that are not there, with progress on stderr unless `quiet`.

        Raises OSError: there is no room for them, or they cannot be written; DataError: an image is damaged.
        """
        missing = self.missing(items)
        self.check_space(missing)
        silent = quiet or not missing
        with tqdm(total=len(missing), desc="encode", unit=" images", disable=silent, bar_format=PROGRESS) as bar:
            for count in self.encode(missing, batch_size, workers):
                bar.update(count)

    def check_space(self, missing: Sequence[int]) -> None:
        """Raises OSError: the disk does not hold these images, too."""
        visual, seen = self.model.clip_vis, self.dataset.seen
        needed, patch = 0, visual.patch_size
        for item in missing:
            size = fitted_size(*seen, patch) if seen else working_size(*self.dataset.sizes[item][0], patch)
            needed += 2 * visual.patch_dim * (math.prod(side // visual.patch_size for side in size) + 1) * 4
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            room = f"the features need {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free"
            raise OSError(errno.ENOSPC, room, str(self.folder))

    @torch.inference_mode()
    def encode(self, items: Sequence[int], batch_size: int, workers: int = 1) -> Iterator[int]:
        """Computes and keeps the features of some images, batch by batch; yields how many were done each time.

        Raises DataError: an image is damaged; OSError: a file cannot be written.
        """
        parts = self.dataset.parts(items, batch_size)
        for batch in self.dataset.batches(parts, self.dataset.prepared_by(self.model), workers):
            trunk = self.model.trunk(batch.image.to(self.model.bin_list.device))
            of_each = [part.cpu().unflatten(0, (2, -1)).transpose(0, 1).numpy() for part in trunk]  # (B, 2, ...)
            for item, patches, cls in zip(batch.items, *of_each, strict=True):
                write_whole(self.paths[item], partial(np.savez, patches=patches, cls=cls, key=self.key(item)))
            yield len(batch.items)

    def key(self, item: int) -> str:
        """What a file is of: the folder's hash and the image's."""
        return f"{self.folder.name}/{self.paths[item].stem}"

    def get(self, item: int) -> Trunk:
        """The trunk of an image and its mirror, patches (2, C, h, w), on the CPU; computed if need be."""
        for _ in range(2):
            if (trunk := self.read(item)) is not None:
                return trunk
            for _ in self.encode([item], 1):
                pass
        raise OSError(0, "is damaged right after it was written; check the disk", str(self.paths[item]))

    def read(self, item: int) -> Trunk | None:
        """What is stored of an image; None, and said, if nothing is or it is damaged."""
        path = self.paths[item]
        try:
            if path.is_file():
                with zipfile.ZipFile(path) as file:  # compares CRC-32s, which np.load does not if a header is damaged
                    contents = [file.read(f"{name}.npy") for name in (*Trunk._fields, "key")]
                *arrays, key = (np.load(io.BytesIO(content), allow_pickle=False) for content in contents)
                if str(key) != self.key(item) or any(array.dtype != np.float32 for array in arrays):
                    raise ValueError("it is of another image or store")
                if arrays[0].shape[:2] != (2, self.model.clip_vis.patch_dim) or arrays[1].shape != arrays[0].shape[:2]:
                    raise ValueError(f"shapes {arrays[0].shape} and {arrays[1].shape}")
                return Trunk(*map(torch.from_numpy, arrays))
        except DAMAGE as error:
            print(f"{path}: damaged ({error}); computed again", file=sys.stderr)
        return None


@dataclass(frozen=True)
class Encoder:
    """Step 1 as one process, `rank` of `count`, does it: every count-th image is its own."""

    root: Path  # the folder of all stores
    batch_size: int
    workers: int
    rank: int = 0
    count: int = 1

    def fill_store(self, model: MonoCLIP, dataset: DepthPairs, made_with: Mapping[str, Any]) -> FeatureStore:
        """The store of a model's features, once all processes have put theirs there.

        Raises OSError and DataError as `FeatureStore.fill`.
        """
        store = FeatureStore(self.root, model, dataset, {key: made_with[key] for key in STORED_WITH})
        store.fill(range(self.rank, len(dataset), self.count), self.batch_size, self.workers, self.rank > 0)
        if self.count > 1:
            distributed.barrier()
        return store
