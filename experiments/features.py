"""Step 1 of the experiments: images -> the feature store, the only step that is expensive.

One file an image holds what CLIP's image trunk sees of it and of its mirror, a `Trunk` of float32, before anything is
read out of it, so that every read-out comes from one file. Its folder is named by a hash of what it depends on
(weights, precision, form of the network, normalisation, crop), and it by the hash of the image. A file is there whole
or not at all, and what is there is not computed again. So the store is at once what a stopped run goes on from, the
cache for other words, and how processes share the work, on one machine or over a shared file system. Files are .npz,
whose CRC-32 is checked whenever they are read; a damaged one is computed again, and said.
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
    """The features of a data set's images, in a folder of `root`, of which the model computes what is missing.

    The folder's name depends on `STORED_WITH` of `made_with`. Raises OSError: the folder is not what its name says.
    """

    def __init__(self, root: Path, model: MonoCLIP, dataset: DepthPairs, made_with: Mapping[str, Any]) -> None:
        self.model, self.dataset, reading = model, dataset, model.reading
        crop: Any = "all, at the working size"
        if dataset.form.frames:
            crop = [[side.start, side.stop] for side in dataset.scope.window(*dataset.form.frames[0])]
        about = {key: made_with.get(key) for key in STORED_WITH}
        about |= {"image_mean": reading.image_mean, "image_std": reading.image_std, "crop": crop}
        described = json.dumps(about, indent=1, sort_keys=True).encode()
        self.folder = root / hashlib.sha256(described).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (file := self.folder / DESCRIPTION).is_file():
            write_whole(file, lambda file: file.write(described))
        if file.read_bytes() != described:
            wrong = "describes other features than its folder's name says; remove the folder"
            raise OSError(0, wrong, str(self.folder))
        self.paths = [self.folder / f"{dataset.image_sha256(item)}.npz" for item in range(len(dataset))]

    def fill(self, batch_size: int, workers: int, rank: int = 0, count: int = 1) -> None:
        """Step 1 as process `rank` of `count`, whose own is every count-th image; returns when all have done theirs.

        Raises OSError: there is no room for them, or they cannot be written; DataError: an image is damaged.
        """
        items = range(rank, len(self.paths), count)
        first = {self.paths[item]: item for item in reversed(items)}  # images with the same bytes have one file
        missing = sorted(item for path, item in first.items() if not path.is_file())
        needed = sum(2 * self.model.clip_vis.patch_dim * (math.prod(self.grid(item)) + 1) * 4 for item in missing)
        if (free := shutil.disk_usage(self.folder).free) < needed:
            room = f"the features need {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free"
            raise OSError(errno.ENOSPC, room, str(self.folder))
        silent = rank > 0 or not missing
        with tqdm(total=len(missing), desc="encode", unit=" images", disable=silent, bar_format=PROGRESS) as bar:
            for done in self.encode(missing, batch_size, workers):
                bar.update(done)
        if count > 1:
            distributed.barrier()
        if self.model.bin_list.device.type == "mps":
            self.model.to("cpu")  # scoring sums in float64, which MPS lacks

    @torch.inference_mode()
    def encode(self, items: Sequence[int], batch_size: int, workers: int = 1) -> Iterator[int]:
        """Compute and keep the features of some images; yield how many each batch has."""
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

    def grid(self, item: int) -> tuple[int, ...]:
        """Patches (h, w) of an image."""
        patch, seen = self.model.clip_vis.patch_size, self.dataset.seen
        size = fitted_size(*seen, patch) if seen else working_size(*self.dataset.sizes[item][0], patch)
        return tuple(side // patch for side in size)

    def get(self, item: int) -> Trunk:
        """The trunk of an image and its mirror, patches (2, C, h, w), on the CPU; computed if need be."""
        if (trunk := self.read(item)) is None:
            list(self.encode([item], 1))
            trunk = self.read(item)
        if trunk is None:
            raise OSError(0, "is damaged right after it was written; check the disk", str(self.paths[item]))
        return trunk

    def read(self, item: int) -> Trunk | None:
        """What is stored of an image; None, and said, if nothing is or it is damaged."""
        path, shape = self.paths[item], (2, self.model.clip_vis.patch_dim, *self.grid(item))
        if not path.is_file():
            return None
        try:
            with zipfile.ZipFile(path) as file:  # compares CRC-32s, which np.load does not if a header is damaged
                contents = [file.read(f"{name}.npy") for name in (*Trunk._fields, "key")]
            *arrays, key = (np.load(io.BytesIO(content), allow_pickle=False) for content in contents)
            if str(key) != self.key(item) or any(array.dtype != np.float32 for array in arrays):
                raise ValueError("it is of another image or store")
            if [array.shape for array in arrays] != [shape, shape[:2]] or not all(array.any() for array in arrays):
                raise ValueError(f"patches of shape {arrays[0].shape}, expected {shape}, or all 0")
            return Trunk(*map(torch.from_numpy, arrays))
        except DAMAGE as error:
            print(f"{path}: damaged ({error}); computed again", file=sys.stderr)
            return None
