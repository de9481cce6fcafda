"""Step 1 of the experiments: images -> the feature store, the only step that is expensive.

One file an image holds what CLIP's image trunk sees of it and of its mirror, (2, C, h, w) float32, before anything is
read out of it. Its folder is named by a hash of what it depends on (weights, precision, form of the network,
normalisation, crop), itself by the hash of the image. A file is there whole or not at all, and what is there is not
computed again. So the store is at once what a stopped run goes on from, the cache for other words, and how processes
share the work, on one machine or over a shared file system; another checkpoint is another name, never a conflict. Files
are .npz, whose CRC-32 is checked whenever they are read; a damaged one is computed again, and said.
"""

import hashlib
import io
import json
import shutil
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from calculate_error import NYU_CROP, size_of
from datasets.nyu import NYUDepthV2
from download import write_whole
from monoclip import MonoCLIP

DESCRIPTION = "made_with.json"
# What damaged bytes lead the readers of zip and npy to.
DAMAGE = (zipfile.BadZipFile, ValueError, KeyError, EOFError, NotImplementedError, RuntimeError, OSError)
MEMBER = "trunk.npy"  # of a file: what np.savez makes of `trunk`


class FeatureStore:
    """The features of a data set's images.

    Args:
        root: the folder of all stores.
        model: on its device; computes what is missing.
        dataset: the images; DataError if one cannot be read.
        depends_on: what the features depend on besides the image and its crop, as JSON can hold it.
    """

    def __init__(self, root: Path, model: MonoCLIP, dataset: NYUDepthV2, depends_on: Mapping[str, Any]) -> None:
        self.model, self.dataset = model, dataset
        crop = [[side.start, side.stop] for side in NYU_CROP]
        described = json.dumps({**depends_on, "crop": crop}, indent=1, sort_keys=True).encode()
        self.folder = root / hashlib.sha256(described).hexdigest()[:16]
        self.folder.mkdir(parents=True, exist_ok=True)
        if not (self.folder / DESCRIPTION).is_file():
            write_whole(self.folder / DESCRIPTION, lambda file: file.write(described))
        self.paths = [self.folder / f"{dataset.image_sha256(item)}.npz" for item in range(len(dataset))]

    def missing(self, items: Sequence[int]) -> list[int]:
        """Those of the images that have no file; images with the same bytes have one file."""
        first = {self.paths[item]: item for item in reversed(items)}
        return sorted(item for path, item in first.items() if not path.is_file())

    def check_space(self, count: int) -> str | None:
        """One sentence if the disk does not hold `count` more images, else None."""
        height, width = (side // self.model.clip_vis.patch_size for side in size_of(NYU_CROP))
        needed = count * 2 * self.model.clip_vis.patch_dim * height * width * 4
        free = shutil.disk_usage(self.folder).free
        if free >= needed:
            return None
        return f"{self.folder}: the features need {needed / 1e9:.1f} GB and {free / 1e9:.1f} GB are free; make room"

    @torch.inference_mode()
    def encode(self, items: Sequence[int], batch_size: int, workers: int = 1) -> Iterator[int]:
        """Computes and keeps the features of some images, batch by batch; yields how many were done each time.

        Raises DataError: an image is damaged; OSError: a file cannot be written.
        """
        for batch in self.dataset.batches(items, batch_size, workers):
            trunk = self.model.trunk(batch.image.to(self.model.bin_list.device)).cpu()  # (2B, C, h, w)
            for item, pair in zip(batch.items, zip(*trunk.chunk(2), strict=True), strict=True):
                both = torch.stack(pair).numpy()  # (2, C, h, w)
                write_whole(self.paths[item], partial(np.savez, trunk=both))
            yield len(batch.items)

    def get(self, item: int) -> Tensor:
        """The features of an image and its mirror, (2, C, h, w) float32 on the CPU; computed if need be."""
        for _ in range(2):
            if (trunk := self.read(item)) is not None:
                return trunk
            for _ in self.encode([item], 1):
                pass
        raise OSError(0, "is damaged right after it was written; check the disk", str(self.paths[item]))

    def read(self, item: int) -> Tensor | None:
        """What is stored of an image; None, and said, if nothing is or it is damaged."""
        path = self.paths[item]
        try:
            if path.is_file():
                with zipfile.ZipFile(path) as file:
                    content = file.read(MEMBER)  # compares the CRC-32, which np.load does not if the header is damaged
                return torch.from_numpy(np.load(io.BytesIO(content), allow_pickle=False))
        except DAMAGE as error:
            print(f"{path}: damaged ({error}); computed again", file=sys.stderr)
        return None
