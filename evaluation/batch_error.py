"""The figures of calculate_error for many depth maps of one image at once, and what a constant cannot fake.

A reading of CLIP costs next to nothing, so scoring it must not cost more: what depends on the ground truth is computed
once for each image, only counted pixels are looked at, and the logarithm of pred / gt is the one transcendental for
each pixel and map. Beside the figures of the paper, of each image and map:

    silog     sqrt(mean s^2 - (mean s)^2), s = ln pred - ln gt: scale-invariant log error (Eigen et al., 2014)
    pearson, spearman    correlation of predicted and true depth over the patches of the (h, w) grid: mean depth of the
              patch's pixels against mean counted ground truth, patches with less than half of their pixels counted left
              out; ties share their mean rank; 0 where either side is constant or fewer than two patches are left
    scaled_*  the paper's figures after pred is multiplied by median(gt) / median(pred) over the counted pixels, and
              clamped again (lower median for an even number)
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from calculate_error import (
    MIN_DEPTH,
    NYU_CROP,
    NYU_EVAL_CROP,
    NYU_FIGURES,
    NYU_FRAME,
    NYU_MAX_DEPTH,
    NonFinitePredictionError,
    errors_NYU,
)

SCALED = ("a1", "a2", "a3", "abs_rel", "log10", "rmse")  # the paper's columns
SCALED_FIGURES = tuple(f"scaled_{name}" for name in SCALED)
EXTRA_FIGURES = ("spearman", "pearson", "silog", *SCALED_FIGURES)
FIGURES = (*NYU_FIGURES, *EXTRA_FIGURES)

CROP_SIZE = (NYU_CROP[0].stop - NYU_CROP[0].start, NYU_CROP[1].stop - NYU_CROP[1].start)  # (416, 544) px
# What is left of the evaluation crop where the prediction is: rows 56:471, columns 60:601.
ROWS, COLUMNS = (
    slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(NYU_CROP, NYU_EVAL_CROP, strict=True)
)
TIE = 1e-4  # [m] mean depths of patches are compared in steps of 0.1 mm
MEASURED_SHARE = 0.5  # of a patch's pixels, at least, for it to count in a correlation
Resize = Callable[[Tensor], Tensor]
MAPS_AT_ONCE_ELEMENTS = {"cpu": 1 << 18, "cuda": 1 << 26}  # what a core's cache holds, what a GPU needs to be busy


@contextmanager
def one_thread() -> Iterator[None]:
    """torch works in one thread: each of the many short steps is over before a second thread would have woken."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class MapErrors(NamedTuple):
    """Figures of R maps of one image: figures (R, len(FIGURES)), NaN where undefined; the pixel counts (R,)."""

    figures: np.ndarray
    valid_pixels: np.ndarray
    dropped_pixels: np.ndarray


class Counted:
    """The counted pixels of one image's ground truth, N of them, with what every map's figures need of them.

    Args:
        gt: (1, 480, 640) float [m], 0 = no measurement.
        grid: (h, w) patches of the prediction.
    """

    def __init__(self, gt: Tensor, grid: tuple[int, int]) -> None:
        if tuple(gt.shape) != (1, *NYU_FRAME):
            raise ValueError(f"expected gt of shape (1, {NYU_FRAME[0]}, {NYU_FRAME[1]}), got {tuple(gt.shape)}")
        self.gt = gt
        window = gt[0, ROWS, COLUMNS]
        counted = (window > MIN_DEPTH) & (window < NYU_MAX_DEPTH)
        self.places = counted.flatten().nonzero()[:, 0]  # (N,) into the window
        self.depth = window.flatten()[self.places]  # (N,)
        self.median = lower_median(self.depth[None])[0] if len(self.depth) else self.depth.new_zeros(())
        missing = (0, CROP_SIZE[1] - window.shape[1], 0, CROP_SIZE[0] - window.shape[0])
        share = block_means(F.pad(counted.float(), missing)[None], grid)[0]  # (h w,)
        mean = block_means(F.pad(window * counted, missing)[None], grid)[0] / share
        self.patches = (share >= MEASURED_SHARE).nonzero()[:, 0]  # (P,) into the grid
        self.patch_depth = mean[self.patches][None]  # (1, P)
        self.patch_ranks = ranks(self.patch_depth)

    def __len__(self) -> int:
        return len(self.depth)


class MapScorer:
    """Scores depth maps against ground truth; holds what is the same for every image.

    Args:
        grid: (h, w) of the depth maps.
        device: where to compute.
        nonfinite: as in `errors_NYU`. With "worst", a map with NaN or infinite depths has no extra figures.
    """

    def __init__(self, grid: tuple[int, int], device: torch.device, nonfinite: str = "error") -> None:
        self.grid, self.nonfinite = grid, nonfinite
        self._memory = torch.empty(0)
        self.budget = MAPS_AT_ONCE_ELEMENTS["cuda" if device.type == "cuda" else "cpu"]
        self.rows, self.columns = (
            LinearResize(n, size, device) for n, size in zip(grid, CROP_SIZE, strict=True)
        )  # the resizing of MonoCLIP.predict, axis by axis
        self.window = (ROWS.stop - ROWS.start, COLUMNS.stop - COLUMNS.start)  # (415, 541)
        eyes = torch.eye(grid[0], device=device), torch.eye(grid[1], device=device)
        self.to_patch_rows = self.rows(eyes[0]).unflatten(0, (grid[0], -1)).mean(1)  # (h, h)
        self.to_patch_columns = self.columns(eyes[1]).unflatten(0, (grid[1], -1)).mean(1)  # (w, w)

    @one_thread()
    def counted(self, gt: Tensor) -> Counted:
        """The ground truth (1, 480, 640) [m] of one image, prepared for any number of maps."""
        return Counted(gt, self.grid)

    @one_thread()
    def grids(self, counted: Counted, depth: Tensor) -> MapErrors:
        """Figures of R maps (R, h, w) [m], each resized bilinearly to the crop.

        Raises:
            NonFinitePredictionError: a map holds NaN or infinity and `nonfinite` is "error"; its places are the maps'.
        """
        patches = self.to_patch_rows @ depth @ self.to_patch_columns.T  # (R, h, w)
        # A resized map stays within the map's own range, so looking at the grid tells whether every pixel is ordinary.
        ordinary = (depth.flatten(1).amin(1) > MIN_DEPTH * 1.001) & depth.flatten(1).isfinite().all(1)

        def resized(chunk: Tensor) -> Tensor:
            height, width = self.window
            wide = self.columns(chunk.permute(2, 1, 0), width)  # (541, h, r)
            return self.rows(wide.permute(2, 1, 0).contiguous().transpose(0, 1), height).transpose(0, 1).flatten(1)

        def whole(one: Tensor) -> Tensor:
            return F.interpolate(one[None, None], CROP_SIZE, mode="bilinear", align_corners=True)

        return self._score(counted, depth, patches.flatten(1), ordinary, resized, whole)

    @one_thread()
    def maps(self, counted: Counted, depth: Tensor) -> MapErrors:
        """Figures of R maps (R, 416, 544) [m] that are there for every pixel; errors as `grids`."""
        patches = block_means(depth, self.grid)
        ordinary = (depth.flatten(1).amin(1) > MIN_DEPTH) & depth.flatten(1).isfinite().all(1)
        height, width = self.window
        return self._score(
            counted, depth, patches, ordinary, lambda x: x[:, :height, :width].flatten(1), lambda x: x[None, None]
        )

    def _score(
        self, counted: Counted, depth: Tensor, patches: Tensor, ordinary: Tensor, resized: Resize, whole: Resize
    ) -> MapErrors:
        """`resized` gives the window's pixels of maps, `whole` the (1, 1, 416, 544) map of one."""
        result = MapErrors(
            np.full((len(depth), len(FIGURES)), np.nan),
            np.full(len(depth), len(counted)),
            np.zeros(len(depth), dtype=np.int64),
        )
        if not len(counted) or not len(depth):
            return result
        self._check_finite(depth, ordinary, whole)
        step = max(1, self.budget // len(counted))
        usual = ordinary.nonzero()[:, 0]
        correlation = correlations(counted, patches)

        for places in usual.split(step):
            work = self._workspace(len(places), len(counted), depth.device)
            for row, one in zip(work[0], resized(depth[places]), strict=True):
                torch.index_select(one, 0, counted.places, out=row)
            figures = [*pixel_figures(work, counted.depth, counted.median), correlation[places]]
            result.figures[places.cpu().numpy()] = assemble(figures)
        for i in (~ordinary).nonzero()[:, 0].tolist():
            self._score_odd(counted, i, depth[i], correlation[i : i + 1], resized, whole, result)
        return result

    def _workspace(self, maps: int, pixels: int, device: torch.device) -> Tensor:
        """(4, maps, pixels) float32 of memory that is kept: new pages for every map would cost more than the sums."""
        if self._memory.numel() < 4 * maps * pixels:
            self._memory = torch.empty(4 * maps * pixels, device=device)
        return self._memory[: 4 * maps * pixels].view(4, maps, pixels)

    def _check_finite(self, depth: Tensor, ordinary: Tensor, whole: Resize) -> None:
        if self.nonfinite == "worst":
            return
        bad = {
            i: int((~whole(depth[i]).isfinite()).sum())
            for i in (~ordinary).nonzero()[:, 0].tolist()
            if not depth[i].isfinite().all()
        }
        if bad:
            raise NonFinitePredictionError(bad)

    def _score_odd(
        self,
        counted: Counted,
        i: int,
        one: Tensor,
        correlation: Tensor,
        resized: Resize,
        whole: Resize,
        result: MapErrors,
    ) -> None:
        """One map with pixels that are not finite, or at most 1 mm and so not counted."""
        if not one.isfinite().all():
            errors = errors_NYU(counted.gt[None], whole(one), nonfinite=self.nonfinite)
            result.figures[i, : len(NYU_FIGURES)] = [errors.figures[name].item() for name in NYU_FIGURES]
            result.valid_pixels[i] = errors.valid_pixels.item()
            result.dropped_pixels[i] = errors.dropped_pixels.item()
            return
        pixels = resized(one[None])[:, counted.places]
        kept = pixels[0] > MIN_DEPTH
        result.valid_pixels[i] = int(kept.sum())
        result.dropped_pixels[i] = len(counted) - result.valid_pixels[i]
        if result.valid_pixels[i]:
            gt = counted.depth[kept]
            work = self._workspace(1, len(gt), one.device)
            work[0] = pixels[:, kept]
            figures = [*pixel_figures(work, gt, lower_median(gt[None])[0]), correlation]
            result.figures[i] = assemble(figures)


class LinearResize:
    """Linear resizing of the first axis from n to `size`, align_corners=True: (n, ...) -> (size, ...).

    Between equal values it gives exactly that value: where CLIP is certain, depth is exactly a bin, and thresholds such
    as 1.25 * 2.00 m = 2.5 m are hit by ground truth in whole millimetres.
    """

    def __init__(self, n: int, size: int, device: torch.device) -> None:
        place = torch.arange(size, device=device, dtype=torch.float64) * (n - 1) / (size - 1)
        self.first = place.long().clamp(max=max(n - 2, 0))
        self.second = (self.first + 1).clamp(max=n - 1)
        self.weight = (place - self.first).float()

    def __call__(self, values: Tensor, size: int | None = None) -> Tensor:
        """The first `size` of the resized rows; all of them unless given."""
        first, second, weight = self.first[:size], self.second[:size], self.weight[:size]
        return torch.lerp(values[first], values[second], weight.view(-1, *[1] * (values.ndim - 1)))


def pixel_figures(work: Tensor, gt: Tensor, gt_median: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The paper's figures (7, R), silog (1, R) and the median-scaled figures (6, R) of R maps against gt (N,).

    `work` is (4, R, N): the maps, and three times the room to compute in. All of it is overwritten.
    """
    pred = work[0].clamp_(MIN_DEPTH, NYU_MAX_DEPTH)  # (R, N)
    n = pred.shape[1]
    figures, log_ratio, spare = base_figures(work, gt)
    mean, square = log_ratio.sum(1).double() / n, torch.mul(log_ratio, log_ratio, out=spare).sum(1).double() / n
    silog = (square - mean.square()).clamp(min=0).sqrt().float()
    absolute = torch.sub(pred, gt, out=spare).abs_().sum(1) / n
    pred.mul_((gt_median / lower_median(pred))[:, None]).clamp_(MIN_DEPTH, NYU_MAX_DEPTH)
    return torch.cat([absolute[None], figures]), silog[None], base_figures(work, gt)[0]


def base_figures(work: Tensor, gt: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The figures `SCALED` (6, R) of the maps work[0], which are in range and stay; ln(pred / gt) (R, N); and room."""
    pred, first, second, third = work
    n = pred.shape[1]
    difference = torch.sub(pred, gt, out=first)
    squared = torch.mul(difference, difference, out=second).sum(1)
    ratio = torch.div(pred, gt, out=first)
    largest = torch.maximum(ratio, torch.div(gt, pred, out=second), out=second)
    shares = [torch.lt(largest, 1.25**i, out=third).sum(1) / n for i in (1, 2, 3)]
    relative = torch.sub(ratio, 1, out=second).abs_().sum(1)
    log_ratio = ratio.log_()
    log10 = torch.abs(log_ratio, out=second).sum(1) / (n * math.log(10))
    return torch.stack([*shares, relative / n, log10, (squared / n).sqrt()]), log_ratio, second


def assemble(parts: list[Tensor]) -> np.ndarray:
    """(plain (7, r), silog (1, r), scaled (6, r), correlations (r, 2)) -> (r, len(FIGURES)) float64."""
    plain, silog, scaled, correlation = parts
    return torch.cat([plain, correlation.T, silog, scaled]).T.double().cpu().numpy()


def correlations(counted: Counted, patches: Tensor) -> Tensor:
    """(R, h w) mean depth of patches -> (R, 2): Spearman's and Pearson's correlation with the ground truth."""
    pred = (patches[:, counted.patches] / TIE).round()  # rounding of fp32 must not order equal depths
    pearson = correlation(pred, counted.patch_depth)
    return torch.stack([correlation(ranks(pred), counted.patch_ranks), pearson], dim=1)


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of rows (R, P) with one row (1, P) -> (R,); 0 where either is constant."""
    if a.shape[1] < 2:
        return a.new_zeros(len(a))
    a, b = a.double(), b.double()
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    norm = (a.square().sum(1) * b.square().sum(1)).sqrt()
    return torch.where(norm > 0, (a * b).sum(1) / norm, 0).float()


def ranks(values: Tensor) -> Tensor:
    """Rank of each value in its row, (R, P) -> (R, P); equal values share the mean of their ranks."""
    ordered = values.sort(1).values
    values = values.contiguous()
    left, right = (torch.searchsorted(ordered, values, right=side) for side in (False, True))
    return (left + right).float() / 2


def lower_median(values: Tensor) -> Tensor:
    """Median of each row, (R, N) -> (R,): the lower of the two middle ones where N is even."""
    if values.device.type != "cpu":
        return values.median(1).values
    k = (values.shape[1] - 1) // 2
    return torch.from_numpy(np.partition(values.numpy(), k, axis=1)[:, k].copy())


def block_means(depth: Tensor, grid: tuple[int, int]) -> Tensor:
    """Mean of each patch's pixels, (R, 416, 544) -> (R, h w)."""
    size = tuple(whole // n for whole, n in zip(depth.shape[1:], grid, strict=True))
    return F.avg_pool2d(depth, size).flatten(1)
