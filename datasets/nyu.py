"""NYU Depth V2 (Silberman et al., ECCV 2012), its official test split, as a data set of tensors.

`NYUDepthV2` reads the folder that `nyu_files.py` describes, `NYUMat` the published .mat; both give the same samples.
"""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from datasets.nyu_files import (
    DEPTH_UNITS_PER_METRE,
    TEST_INDICES,
    DataError,
    Pair,
    check_files,
    coverage,
    decode,
    read_list,
    require_millimetres,
    scan_folder,
)
from datasets.nyu_mat import LabelledMat

__all__ = [
    "TEST_INDICES",
    "DataError",
    "NYUDepthV2",
    "NYUMat",
    "Pair",
    "Sample",
    "check_files",
    "coverage",
    "depth_in_metres",
    "normalised",
    "read_list",
    "scan_folder",
]

MAX_DEPTH = 10.0  # [m] the Kinect's range; ground truth is clipped to it


class Sample(NamedTuple):
    """What a data set returns: image (3, h, w) float32, normalised; depth (1, 480, 640) float32 [m]; its name."""

    image: Tensor
    depth: Tensor
    name: str
    scene: str
    index: int  # type: ignore[assignment]  # hides tuple.index, which nobody needs here


def depth_in_metres(millimetres: np.ndarray, name: str) -> Tensor:
    """(480, 640) uint16 [mm] -> (1, 480, 640) float32 [m], clipped to [0, 10].

    Raises:
        DataError: the largest depth is below 0.1 m (but not all is 0, which the metrics name) or above 65 m.
    """
    require_millimetres(millimetres, name)
    depth = torch.from_numpy(millimetres.astype(np.float32) / DEPTH_UNITS_PER_METRE)
    return depth.clamp(0, MAX_DEPTH)[None]


def normalised(pixels: np.ndarray, crop: tuple[slice, slice], mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(480, 640, 3) uint8 -> (3, h, w) float32: cropped, scaled to [0, 1], less `mean`, over `std`."""
    x = torch.from_numpy(np.ascontiguousarray(pixels[crop])).permute(2, 0, 1).float() / 255  # (3, h, w)
    return (x - torch.tensor(mean).view(3, 1, 1)) / torch.tensor(std).view(3, 1, 1)


class NYUDepthV2(Dataset[Sample]):
    """Images and depth maps of `pairs`, in their order.

    Args:
        pairs: from `scan_folder` or `read_list`.
        crop: rows and columns of the RGB image that the method sees; no resizing. Depth stays whole.
        mean, std: statistics that the image is normalised with, RGB in [0, 1].

    Attributes:
        indices: of the images, in their order.
    """

    def __init__(
        self, pairs: Sequence[Pair], crop: tuple[slice, slice], mean: Sequence[float], std: Sequence[float]
    ) -> None:
        self.pairs, self.crop, self.mean, self.std = list(pairs), crop, mean, std
        self.indices = [pair.index for pair in self.pairs]

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, item: int) -> Sample:
        """Raises DataError: the files changed since they were checked, or are damaged inside."""
        pair = self.pairs[item]
        image = normalised(decode(pair.rgb, "RGB"), self.crop, self.mean, self.std)
        depth = depth_in_metres(decode(pair.depth, "I;16"), str(pair.depth))
        return Sample(image, depth, pair.name, pair.scene, pair.index)


class NYUMat(Dataset[Sample]):
    """Images and raw depth maps out of the .mat, sorted by scene and index, as `scan_folder` sorts the folder's.

    The file is opened where it is read: once in each process, never shared with a worker.

    Args:
        path: the .mat.
        crop, mean, std: as for `NYUDepthV2`.
        indices: which of the 1449 images, 0-based; the official test split unless given.

    Attributes:
        names, scenes, indices: of the images, in their order.

    Raises:
        DataError: the file is missing, truncated, no HDF5 file or laid out otherwise. No image is read yet.
    """

    def __init__(
        self,
        path: Path,
        crop: tuple[slice, slice],
        mean: Sequence[float],
        std: Sequence[float],
        indices: Sequence[int] = TEST_INDICES,
    ) -> None:
        self.path, self.crop, self.mean, self.std = path, crop, mean, std
        with LabelledMat(path) as mat:
            scenes = mat.scenes()
        self.indices = sorted(indices, key=lambda index: (scenes[index], index))
        self.scenes = [scenes[index] for index in self.indices]
        self.names = [f"{scene}/rgb_{index:05d}.jpg" for scene, index in zip(self.scenes, self.indices, strict=True)]
        self._mat: LabelledMat | None = None
        self._process = 0

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_mat": None}

    def __len__(self) -> int:
        return len(self.indices)

    def _opened(self) -> LabelledMat:
        if self._mat is not None and self._process != os.getpid():  # a fork's copy of the parent's handle
            self._mat.close()
            self._mat = None
        if self._mat is None:
            self._mat, self._process = LabelledMat(self.path), os.getpid()
        return self._mat

    def __getitem__(self, item: int) -> Sample:
        """Raises DataError: the image is damaged, or the file changed since it was checked."""
        mat, index, name = self._opened(), self.indices[item], self.names[item]
        with Image.open(io.BytesIO(mat.jpeg(index))) as image:
            pixels = np.array(image)  # (480, 640, 3)
        depth = depth_in_metres(mat.millimetres(index), f"{self.path}, image {index}")
        return Sample(normalised(pixels, self.crop, self.mean, self.std), depth, name, self.scenes[item], index)
