"""Depth maps as files, of whatever method: `<scene>/<picture's stem>.npy` (float) or `.png` (16 bit), one an image.

A map is as large as the picture's frame, or as what the method sees of it. `alignment` fits maps of unknown scale.
"""

from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets import DataError, content_of, printable
from datasets.alignment import alignment
from datasets.pairs import Batch, DepthPairs, refuse, values_of
from download import write_whole

TURNED = {  # by alignment, what a negative scale says
    "scale_shift": "maps grow towards the camera, as a fitted scale is negative; for disparity use --align disparity",
    "disparity": "maps grow away from the camera, as a fitted scale is negative; for depth use --align scale_shift",
}


class SavedMaps:
    """Maps that a method saved in `folder`, in place of a prediction. Raises DataError: maps that are missing, or two.

    `align`, one of `ALIGNMENTS`, is fitted to each image; `remarks` gets what has to be said of maps that were read.
    """

    def __init__(
        self, folder: Path, dataset: DepthPairs, align: str, units_per_metre: float, remarks: list[str]
    ) -> None:
        self.dataset, self.align, self.units_per_metre, self.remarks = dataset, align, units_per_metre, remarks
        if not folder.is_dir():
            raise DataError(f"--predictions {printable(folder)}: no such folder")
        found = {stem: there(stem) for stem in stems_of(dataset, folder)}
        says = {0: "no map: neither .npy nor .png", 2: "two maps, .npy and .png; keep one"}
        refuse([(printable(stem), says[len(paths)]) for stem, paths in found.items() if len(paths) != 1])
        self.paths = [paths[0] for paths in found.values()]

    def __call__(self, batch: Batch) -> Tensor:
        """The maps of a batch's images as depth, (B, 1, h, w) [m]. Raises DataError: damaged, or of another size."""
        return torch.stack([self.depth(item, gt[0])[None] for item, gt in zip(batch.items, batch.depth, strict=True)])

    def depth(self, item: int, gt: Tensor) -> Tensor:
        """The aligned map of one image, (h, w) [m], for a frame gt (H, W) [m]."""
        scope, values = self.dataset.scope, values_of(content_of(self.paths[item]), self.paths[item])
        pred = torch.from_numpy(values if values.dtype == np.float32 else values / np.float32(self.units_per_metre))
        window, counts = scope.window(*gt.shape), scope.counted(gt)  # counts: (h, w)
        if pred.shape == gt.shape:
            pred = pred[window]
        elif pred.shape != counts.shape:
            found, *sizes = (f"{size[1]}x{size[0]}" for size in dict.fromkeys((pred.shape, gt.shape, counts.shape)))
            raise DataError(f"{printable(self.paths[item])}: is {found}, expected {' or '.join(sizes)}")
        if self.align == "none" or not counts.any() or not pred.isfinite().all():
            return pred
        scale, shift = alignment(gt[window][counts].double(), pred[counts][None].double(), self.align)
        if scale < 0 and (remark := TURNED.get(self.align, "maps are negative")) not in self.remarks:
            self.remarks.append(remark)
        fitted = scale * pred.double() + shift
        return (1 / fitted.clamp(min=1 / scope.cap) if self.align == "disparity" else fitted).float()


def keeping(predict: Callable[[Batch], Tensor], folder: Path, dataset: DepthPairs) -> Callable[[Batch], Tensor]:
    """`predict`, whose depth is written into `folder`, too. Raises DataError: maps are there already, or cannot be."""
    stems = stems_of(dataset, folder)
    advice = "is there already; choose a new folder for --save_predictions"
    refuse([(printable(path), advice) for stem in stems for path in there(stem)])

    def predict_and_save(batch: Batch) -> Tensor:
        depth = predict(batch)
        for item, values in zip(batch.items, depth[:, 0].numpy(), strict=True):
            path = Path(f"{stems[item]}.npy")
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, partial(np.save, arr=values))
        return depth

    return predict_and_save


def there(stem: Path) -> list[Path]:
    """The maps of an image that exist."""
    return [path for suffix in (".npy", ".png") if (path := Path(f"{stem}{suffix}")).exists()]


def stems_of(dataset: DepthPairs, folder: Path) -> list[Path]:
    """`<folder>/<scene>/<picture's stem>` of each image. Raises DataError: two images have the same."""
    stems = [folder / pair.scene / pair.rgb.stem for pair in dataset.pairs]
    twice = [stem for stem, count in Counter(stems).items() if count > 1]
    refuse([(printable(stem), "the maps of several images would have this name") for stem in twice])
    return stems
