"""Depth maps as files, of whatever method: `<scene>/<picture's stem>.npy` (float) or `.png` (16 bit), one an image.

A map is as large as the picture's frame, or as what the method sees of it. `alignment` fits maps of unknown scale.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets import DataError, printable
from datasets.alignment import alignment
from datasets.pairs import Batch, DepthPairs, content_of, image_values, npy_values
from download import write_whole

TURNED = {  # by alignment, what a negative scale says
    "median": "the medians of maps and of true depth have different signs",
    "scale_shift": "maps grow towards the camera, as a fitted scale is negative; for disparity use --align disparity",
    "disparity": "maps grow away from the camera, as a fitted scale is negative; for depth use --align scale_shift",
}


class SavedMaps:
    """Maps that a method saved, in place of a prediction.

    Args:
        folder: of the files.
        dataset: whose images they are of.
        align: one of `ALIGNMENTS`, fitted to the counted pixels of each image.
        units_per_metre: of .png files.
        remarks: list that gets what has to be said of the maps once they were read.

    Raises DataError: a map is missing, or there are two.
    """

    def __init__(
        self, folder: Path, dataset: DepthPairs, align: str, units_per_metre: float, remarks: list[str]
    ) -> None:
        self.dataset, self.align, self.units_per_metre, self.remarks = dataset, align, units_per_metre, remarks
        self.paths: list[Path] = []
        if not folder.is_dir():
            raise DataError(f"{printable(str(folder))}: no such folder of maps")
        for stem in stems_of(dataset):
            there = [path for suffix in (".npy", ".png") if (path := folder / f"{stem}{suffix}").exists()]
            if len(there) != 1:
                what = "no map: neither .npy nor .png" if not there else "two maps, .npy and .png; keep one"
                raise DataError(f"{printable(str(folder / stem))}: {what}")
            self.paths += there

    def __call__(self, batch: Batch) -> Tensor:
        """The maps of a batch's images as depth, (B, 1, h, w) [m]. Raises DataError: damaged, or of another size."""
        return torch.stack([self.depth(item, gt[0]) for item, gt in zip(batch.items, batch.depth, strict=True)])[
            :, None
        ]

    def depth(self, item: int, gt: Tensor) -> Tensor:
        """The aligned map of one image, (h, w) [m], for a frame gt (H, W) [m]."""
        scope, pred = self.dataset.scope, self.read(self.paths[item])
        window, counts = scope.window(*gt.shape), scope.counted(gt)  # counts: (h, w)
        if pred.shape == gt.shape:
            pred = pred[window]
        elif pred.shape != counts.shape:
            sizes = " or ".join(f"{w}x{h}" for h, w in dict.fromkeys((tuple(gt.shape), tuple(counts.shape))))
            found = "x".join(map(str, reversed(pred.shape)))
            raise DataError(f"{printable(str(self.paths[item]))}: is {found}, expected {sizes}")
        if self.align == "none" or not counts.any() or not pred.isfinite().all():
            return pred
        scale, shift = alignment(gt[window][counts].double(), pred[counts][None].double(), self.align)
        if scale < 0 and (remark := TURNED.get(self.align)) and remark not in self.remarks:
            self.remarks.append(remark)
        fitted = scale * pred.double() + shift
        return (1 / fitted.clamp(min=1 / scope.cap) if self.align == "disparity" else fitted).float()

    def read(self, path: Path) -> Tensor:
        """The values of a file, (H, W) float32."""
        name = printable(str(path))
        try:
            content = content_of(path)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
        if path.suffix == ".npy":
            return torch.from_numpy(npy_values(content, name))
        return torch.from_numpy(image_values(content, name).astype(np.float32) / self.units_per_metre)


def keeping(predict: Callable[[Batch], Tensor], folder: Path, dataset: DepthPairs) -> Callable[[Batch], Tensor]:
    """`predict`, whose depth is written into `folder`, too. Raises DataError: maps are there already, or cannot be."""
    stems = stems_of(dataset)
    if folder.exists() and not folder.is_dir():
        raise DataError(f"--save_predictions {printable(str(folder))}: no folder")
    if there := [
        path for stem in stems for suffix in (".npy", ".png") if (path := folder / f"{stem}{suffix}").exists()
    ]:
        raise DataError(f"{printable(str(there[0]))}: is there already; choose a new folder for --save_predictions")

    def predict_and_save(batch: Batch) -> Tensor:
        depth = predict(batch)
        save_maps(folder, dataset, batch.items, depth)
        return depth

    return predict_and_save


def save_maps(folder: Path, dataset: DepthPairs, items: Sequence[int], depth: Tensor) -> None:
    """Writes the maps of some images, (B, 1, h, w) [m], as .npy. Raises OSError."""
    stems = stems_of(dataset)
    for item, values in zip(items, depth[:, 0].numpy(), strict=True):
        path = folder / f"{stems[item]}.npy"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, partial(np.save, arr=values))


def stems_of(dataset: DepthPairs) -> list[str]:
    """`<scene>/<picture's stem>` of each image. Raises DataError: two images have the same."""
    stems = [f"{pair.scene}/{pair.rgb.stem}" for pair in dataset.pairs]
    if twice := [stem for stem, count in Counter(stems).items() if count > 1]:
        raise DataError(f"{len(twice)} names of maps stand for several images, {printable(twice[0])} the first")
    return stems
