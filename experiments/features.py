"""Step 1 of the experiments: images -> the feature store, the only step that is expensive.

One .npz an image holds what CLIP's image trunk sees of it and of its mirror, a `Trunk` of float32, before anything is
read out of it. It is named by the hash of the image, and its folder by that of what it depends on besides. It is there
whole or not at all, and not computed again unless it is damaged, which is said. So the store is at once what a stopped
run goes on from, the cache for other words, and how processes share the work, also over a shared file system.
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


class FeatureStore:
    """The features of a data set's images, in a folder of `root`, of which the model computes what is missing.

    The folder's name depends on `STORED_WITH` of `made_with`. Raises OSError: the folder is not what its name says.
    """

    def __init__(self, root: Path, model: MonoCLIP, dataset: DepthPairs, made_with: Mapping[str, Any]) -> None:
        self.model, self.dataset, reading = model, dataset, model.reading
        sides = dataset.scope.window(*dataset.form.frames[0]) if dataset.form.frames else ()
        about = {key: made_with.get(key) for key in STORED_WITH}
        about |= {"image_mean": reading.image_mean, "image_std": reading.image_std}
        about["crop"] = [[side.start, side.stop] for side in sides] or "all, at the working size"
        described = json.dumps(about, indent=1, sort_keys=True).encode()
        self.folder = root / hashlib.sha256(described).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (file := self.folder / DESCRIPTION).is_file():
            write_whole(file, lambda file: file.write(described))
        if file.read_bytes() != described:
            raise OSError(0, "describes other features than its folder's name says; remove the folder", str(file))
        self.paths = [self.folder / f"{dataset.image_sha256(item)}.npz" for item in range(len(dataset))]

    def fill(self, batch_size: int, workers: int, rank: int = 0, count: int = 1) -> None:
        """Step 1 as process `rank` of `count`, whose own is every count-th image; returns when all have done theirs.

        Raises OSError: there is no room for them, or they cannot be written; DataError: an image is damaged.
        """
        missing = [item for item in range(rank, len(self.paths), count) if not self.paths[item].is_file()]
        needed = sum(4 * 2 * self.model.clip_vis.patch_dim * (math.prod(self.grid(item)) + 1) for item in missing)
        if (free := shutil.disk_usage(self.folder).free) < needed:
            room = f"the features need {needed / 1e6:,.0f} MB and {free / 1e6:,.0f} MB are free"
            raise OSError(errno.ENOSPC, room, str(self.folder))
        silent = rank > 0 or not missing
        with tqdm(None, "encode", len(missing), unit=" images", disable=silent, bar_format=PROGRESS) as bar:
            for trunk in self.encode(missing, batch_size, workers):
                bar.update(len(trunk.cls) // 2)
        if count > 1:
            distributed.barrier()
        if self.model.bin_list.device.type == "mps":
            self.model.to("cpu")  # scoring sums in float64, which MPS lacks

    @torch.inference_mode()
    def encode(self, items: Sequence[int], batch_size: int, workers: int = 1) -> Iterator[Trunk]:
        """Compute and keep the features of some images; yield each batch's, patches (2B, C, h, w), on the CPU."""
        parts = self.dataset.parts(items, batch_size)
        for batch in self.dataset.batches(parts, self.dataset.prepared_by(self.model), workers):
            trunk = Trunk(*(part.cpu() for part in self.model.trunk(batch.image.to(self.model.bin_list.device))))
            of_each = [part.unflatten(0, (2, -1)).transpose(0, 1).numpy() for part in trunk]  # (B, 2, ...)
            for item, patches, cls in zip(batch.items, *of_each, strict=True):
                write_whole(self.paths[item], partial(np.savez, patches=patches, cls=cls, key=self.key(item)))
            yield trunk

    def key(self, item: int) -> str:
        """What a file is of: the folder's hash and the image's."""
        return f"{self.folder.name}/{self.paths[item].stem}"

    def grid(self, item: int) -> tuple[int, int]:
        """Patches (h, w) of an image."""
        patch, seen = self.model.clip_vis.patch_size, self.dataset.seen
        rows, columns = fitted_size(*seen, patch) if seen else working_size(*self.dataset.sizes[item][0], patch)
        return rows // patch, columns // patch

    def get(self, item: int) -> Trunk:
        """The trunk of an image and its mirror, patches (2, C, h, w), on the CPU; computed if need be."""
        return self.read(item) or next(self.encode([item], 1))

    def read(self, item: int) -> Trunk | None:
        """What is stored of an image; None, and said, if nothing is or it is damaged."""
        if not (path := self.paths[item]).is_file():
            return None
        shape = (2, self.model.clip_vis.patch_dim, *self.grid(item))
        try:
            with zipfile.ZipFile(path) as file:  # compares CRC-32s, which np.load does not if a header is damaged
                contents = [io.BytesIO(file.read(f"{name}.npy")) for name in (*Trunk._fields, "key")]
            *arrays, key = (np.load(content, allow_pickle=False) for content in contents)
            found = [str(key), *((array.shape, array.dtype, bool(array.any())) for array in arrays)]
            if found != [self.key(item), (shape, np.float32, True), (shape[:2], np.float32, True)]:
                raise ValueError("it is not of this image and store, or not whole")
            return Trunk(*map(torch.from_numpy, arrays))
        except Exception as error:  # damaged bytes lead the readers of zip and npy to errors of many kinds
            print(f"{path}: damaged ({error}); computed again", file=sys.stderr)
            return None
