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

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

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
from evaluation.encode import to_device

SCALED = ("a1", "a2", "a3", "abs_rel", "log10", "rmse")  # the paper's columns
SCALED_FIGURES = tuple(f"scaled_{name}" for name in SCALED)
EXTRA_FIGURES = ("spearman", "pearson", "silog", *SCALED_FIGURES)
FIGURES = (*NYU_FIGURES, *EXTRA_FIGURES)

CROP_SIZE = (NYU_CROP[0].stop - NYU_CROP[0].start, NYU_CROP[1].stop - NYU_CROP[1].start)  # (416, 544) px
# What is left of the evaluation crop where the prediction is: rows 56:471, columns 60:601.
ROWS, COLUMNS = (
    slice(max(a.start, b.start), min(a.stop, b.stop)) for a, b in zip(NYU_CROP, NYU_EVAL_CROP, strict=True)
)
MAX_MILLIMETRES = round(NYU_MAX_DEPTH * 1000)
TIE = 1e-4  # [m] mean depths of patches are compared in steps of 0.1 mm
MEASURED_SHARE = 0.5  # of a patch's pixels, at least, for it to count in a correlation
T = TypeVar("T")
Resize = Callable[[Tensor], Tensor]
# Maps at once, and values of a block: what a core's cache holds, what keeps a GPU busy.
AT_ONCE = {"cpu": (8, 1 << 18), "gpu": (256, 1 << 26)}


class MapErrors(NamedTuple):
    """Figures of R maps of one image: figures (R, len(FIGURES)), NaN where undefined; the pixel counts (R,)."""

    figures: np.ndarray
    valid_pixels: np.ndarray
    dropped_pixels: np.ndarray


@dataclass(frozen=True)
class Counted:
    """The counted pixels of one image's ground truth, N of them in P patches, and what every map's figures need.

    Attributes:
        places: (N,) int64, into the window `ROWS`, `COLUMNS`.
        depth: (N,) float32 [m].
        median: () [m], the lower one.
        patches: (P,) int64, into the grid.
        patch_depth: (1, P) mean depth [m].
        patch_ranks: (1, P) its ranks.
        histogram: (10000,) int64, pixels of 0, 1, ... 9999 mm; always on the CPU.
    """

    places: Tensor
    depth: Tensor
    median: Tensor
    patches: Tensor
    patch_depth: Tensor
    patch_ranks: Tensor
    histogram: np.ndarray

    @classmethod
    def of(cls, gt: Tensor, grid: tuple[int, int]) -> "Counted":
        """From gt (1, 480, 640) float32 [m] on the CPU, whole millimetres, 0 = no measurement, and (h, w) patches."""
        if tuple(gt.shape) != (1, *NYU_FRAME):
            raise ValueError(f"expected gt of shape (1, {NYU_FRAME[0]}, {NYU_FRAME[1]}), got {tuple(gt.shape)}")
        window = np.ascontiguousarray(gt[0, ROWS, COLUMNS])  # in numpy: several times faster than torch's masks
        counted = (window > MIN_DEPTH) & (window < NYU_MAX_DEPTH)
        places = np.flatnonzero(counted)
        depth = window.ravel().take(places)
        histogram = np.bincount((depth * 1000 + 0.5).astype(np.int64), minlength=MAX_MILLIMETRES)
        middle = np.searchsorted(histogram.cumsum(), (len(depth) - 1) // 2 + 1)  # [mm]
        median = torch.tensor(middle if len(depth) else 0, dtype=torch.float32) / 1000
        sizes = [whole // n for whole, n in zip(CROP_SIZE, grid, strict=True)]
        area = patch_sums(counted.astype(np.float32), sizes)  # [px]
        patches = (area >= MEASURED_SHARE * sizes[0] * sizes[1]).nonzero()[:, 0]
        patch_depth = (patch_sums(window * counted, sizes) / area)[patches][None]
        pixels = torch.from_numpy(places), torch.from_numpy(depth)
        return cls(*pixels, median, patches, patch_depth, ranks(patch_depth), histogram[:MAX_MILLIMETRES])

    @property
    def pixels(self) -> int:
        """N."""
        return len(self.depth)

    def to(self, device: torch.device) -> "Counted":
        """The same on a device."""
        moved = {name: to_device(value, device) for name, value in vars(self).items() if isinstance(value, Tensor)}
        return Counted(**{**vars(self), **moved})

    def gt(self) -> Tensor:
        """(1, 1, 480, 640) [m], 0 where no pixel is counted."""
        frame = self.depth.new_zeros(1, 1, *NYU_FRAME)
        window = frame.new_zeros(ROWS.stop - ROWS.start, COLUMNS.stop - COLUMNS.start)
        window.view(-1)[self.places] = self.depth
        frame[0, 0, ROWS, COLUMNS] = window
        return frame


class MapScorer:
    """Scores depth maps against ground truth; holds what is the same for every image.

    Args:
        grid: (h, w) of the depth maps.
        device: where to compute; the CPU instead of a device without double precision.
        nonfinite: as in `errors_NYU`. With "worst", a map with NaN or infinite depths has no extra figures.
        threads: of a CPU, which share the maps.
    """

    def __init__(self, grid: tuple[int, int], device: torch.device, nonfinite: str = "error", threads: int = 1) -> None:
        device = torch.device("cpu") if device.type == "mps" else device
        self.grid, self.device, self.nonfinite = grid, device, nonfinite
        self.threads = threads if device.type == "cpu" else 1
        self.at_once, self.block = AT_ONCE["cpu" if device.type == "cpu" else "gpu"]
        self.rows, self.columns = (
            LinearResize(n, size, device) for n, size in zip(grid, CROP_SIZE, strict=True)
        )  # the resizing of MonoCLIP.predict, axis by axis
        self.window = (ROWS.stop - ROWS.start, COLUMNS.stop - COLUMNS.start)  # (415, 541)
        eyes = torch.eye(grid[0], device=device), torch.eye(grid[1], device=device)
        self.to_patch_rows = self.rows(eyes[0]).unflatten(0, (grid[0], -1)).mean(1)  # (h, h)
        self.to_patch_columns = self.columns(eyes[1]).unflatten(0, (grid[1], -1)).mean(1)  # (w, w)

    def counted(self, gt: Tensor) -> Counted:
        """The ground truth (1, 480, 640) [m] of one image, on the CPU, prepared for any number of maps."""
        return Counted.of(gt, self.grid).to(self.device)

    def grids(self, counted: Counted, depth: Tensor) -> "PendingErrors":
        """Figures of R maps (R, h, w) [m], each resized bilinearly to the crop."""
        patches = self.to_patch_rows @ depth @ self.to_patch_columns.T  # (R, h, w)
        # A resized map stays within the map's own range, so looking at the grid tells whether every pixel is ordinary.
        ordinary = (depth.flatten(1).amin(1) > MIN_DEPTH * 1.001) & depth.flatten(1).isfinite().all(1)

        def resized(chunk: Tensor) -> Tensor:
            height, width = self.window
            wide = self.columns(chunk.mT, width).mT.contiguous()  # (r, h, 541)
            return self.rows(wide, height).flatten(1)

        def whole(one: Tensor) -> Tensor:
            return F.interpolate(one[None, None], CROP_SIZE, mode="bilinear", align_corners=True)

        return self._start(counted, depth, patches.flatten(1), ordinary, resized, whole, False)

    def maps(self, counted: Counted, depth: Tensor) -> "PendingErrors":
        """Figures of R maps (R, 416, 544) [m] that are there for every pixel, some of which may be dropped."""
        patches = F.avg_pool2d(depth, [whole // n for whole, n in zip(CROP_SIZE, self.grid, strict=True)]).flatten(1)
        finite = depth.flatten(1).isfinite().all(1)
        height, width = self.window
        return self._start(
            counted, depth, patches, finite, lambda x: x[:, :height, :width].flatten(1), lambda x: x[None, None], True
        )

    def _start(
        self,
        counted: Counted,
        depth: Tensor,
        patches: Tensor,
        ordinary: Tensor,
        resized: Resize,
        whole: Resize,
        drop: bool,
    ) -> "PendingErrors":
        """Nothing here waits for the device: shapes follow from what the CPU knows of the ground truth.

        Args:
            counted: the ground truth.
            depth: the maps.
            patches: (R, h w) their mean depth [m].
            ordinary: (R,) whether a map is finite and, unless `drop`, has no pixel to drop. `PendingErrors.result`
                treats the others.
            resized: gives the window's pixels of maps, (R, M).
            whole: gives the (1, 1, 416, 544) map of one.
            drop: look for pixels of at most 1 mm, which do not count.
        """
        correlation = correlations(counted, patches)  # (R, 2)
        figures = depth.new_full((len(depth), len(FIGURES)), math.nan, dtype=torch.float64)
        dropped = ordinary.new_zeros(len(depth), dtype=torch.int64)
        # On a CPU it is known which maps are ordinary; a GPU need not be waited for to know it.
        chosen = ordinary.nonzero()[:, 0] if self.device.type == "cpu" else torch.arange(len(depth), device=self.device)
        parts = chosen.split(self.at_once) if counted.pixels and len(chosen) else ()

        @torch.inference_mode()
        def scored(places: Tensor) -> tuple[Tensor, Tensor]:
            return pixel_figures(resized(depth[places]), counted, correlation[places], self.block, drop)

        for places, part in zip(parts, self._each(scored, parts), strict=True):
            figures[places], dropped[places] = part
        arrived = None
        if self.device.type == "cuda":
            figures, dropped, ordinary = (x.to("cpu", non_blocking=True) for x in (figures, dropped, ordinary))
            arrived = torch.cuda.Event()
            arrived.record(torch.cuda.current_stream(self.device))
        return PendingErrors(self, counted, depth, figures, dropped, correlation, ordinary, resized, whole, arrived)

    def _each(self, function: Callable[[Tensor], T], parts: Sequence[Tensor]) -> Iterable[T]:
        """`function` of each part, by `threads` threads, in each of which torch computes alone."""
        if min(self.threads, len(parts)) < 2:
            return map(function, parts)
        with ThreadPoolExecutor(self.threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return list(pool.map(function, parts))


@dataclass(frozen=True)
class PendingErrors:
    """The figures of R maps, on their way from the device; `arrived` tells when they, and nothing later, are there."""

    scorer: MapScorer
    counted: Counted
    depth: Tensor
    figures: Tensor
    dropped: Tensor
    correlation: Tensor
    ordinary: Tensor
    resized: Resize
    whole: Resize
    arrived: torch.cuda.Event | None

    def result(self) -> MapErrors:
        """Waits for the device, and treats the maps that are not ordinary one by one.

        Raises:
            NonFinitePredictionError: a map holds NaN or infinity and `nonfinite` is "error"; its places are the maps'.
        """
        if self.arrived:
            self.arrived.synchronize()
        dropped = self.dropped.numpy()
        result = MapErrors(self.figures.numpy(), self.counted.pixels - dropped, dropped)
        if self.counted.pixels and not self.ordinary.all():
            odd = (~self.ordinary).nonzero()[:, 0].tolist()
            self._check_finite(odd)
            for i in odd:
                self._score_odd(i, result)
        return result

    def _check_finite(self, odd: Sequence[int]) -> None:
        if self.scorer.nonfinite == "worst":
            return
        bad = {i: int((~self.whole(self.depth[i]).isfinite()).sum()) for i in odd if not self.depth[i].isfinite().all()}
        if bad:
            raise NonFinitePredictionError(bad)

    def _score_odd(self, i: int, result: MapErrors) -> None:
        """One map with pixels that are not finite, or at most 1 mm and so not counted."""
        one = self.depth[i]
        if one.isfinite().all():
            partner, block = self.correlation[i : i + 1], self.scorer.block
            figures, dropped = pixel_figures(self.resized(one[None]), self.counted, partner, block, True)
            result.figures[i] = figures[0].cpu().numpy()
            result.dropped_pixels[i] = dropped.item()
            result.valid_pixels[i] = self.counted.pixels - result.dropped_pixels[i]
            return
        errors = errors_NYU(self.counted.gt(), self.whole(one), nonfinite=self.scorer.nonfinite)
        result.figures[i] = math.nan
        result.figures[i, : len(NYU_FIGURES)] = [errors.figures[name].item() for name in NYU_FIGURES]
        result.valid_pixels[i] = errors.valid_pixels.item()
        result.dropped_pixels[i] = errors.dropped_pixels.item()


class LinearResize:
    """Linear resizing of one axis from n to `size`, align_corners=True: (..., n, m) -> (..., size, m).

    Between equal values it gives exactly that value: where CLIP is certain, depth is exactly a bin, and thresholds such
    as 1.25 * 2.00 m = 2.5 m are hit by ground truth in whole millimetres.
    """

    def __init__(self, n: int, size: int, device: torch.device) -> None:
        place = torch.arange(size, dtype=torch.float64) * (n - 1) / (size - 1)
        first = place.long().clamp(max=max(n - 2, 0))
        self.weight = (place - first).float()[:, None].to(device)
        starts = torch.searchsorted(first, torch.arange(max(n - 1, 1) + 1)).tolist()
        self.spans = list(itertools.pairwise(starts))  # of the resized rows between two given ones
        self.last = n - 1

    def __call__(self, values: Tensor, size: int | None = None) -> Tensor:
        """The first `size` of the resized rows; all of them unless given."""
        size = len(self.weight) if size is None else size
        resized = values.new_empty(*values.shape[:-2], size, values.shape[-1])
        for i, (start, end) in enumerate(self.spans):
            span = slice(start, min(end, size))
            pair = values[..., i : i + 1, :], values[..., min(i + 1, self.last), None, :]
            torch.lerp(*pair, self.weight[span], out=resized[..., span, :])
        return resized


def pixel_figures(maps: Tensor, counted: Counted, correlation: Tensor, block: int, drop: bool) -> tuple[Tensor, Tensor]:
    """`FIGURES` of R maps (R, M) of the window's pixels, (R, len(FIGURES)), and how many pixels were dropped, (R,).

    `correlation` is what `correlations` gives. With `drop`, pixels of at most 1 mm do not count; NaN if none is left.
    """
    pred = maps.index_select(1, counted.places)  # (R, N)
    low = pred <= MIN_DEPTH if drop else None
    dropped = pred.new_zeros(len(pred), dtype=torch.int64) if low is None else low.sum(1)
    pred.clamp_(MIN_DEPTH, NYU_MAX_DEPTH)
    median = counted.median if low is None else lower_median(counted.depth.expand_as(pred), low)
    ratio = median / lower_median(pred, low)  # (R,)
    left = (counted.pixels - dropped)[:, None]  # (R, 1)
    plain, scaled = (means(pred, scale, counted, block, low, left) for scale in (None, ratio))
    silog = (plain[:, 1] - plain[:, 0].square()).clamp(min=0).sqrt()
    correlation = correlation.where(left > 0, math.nan)
    return torch.cat([plain[:, 2:], correlation, silog[:, None], scaled[:, 1:]], dim=1), dropped


def means(pred: Tensor, scale: Tensor | None, counted: Counted, block: int, low: Tensor | None, left: Tensor) -> Tensor:
    """`NYU_FIGURES` of R maps (R, N), multiplied by `scale` (R,) and clamped first: (R, 7) float64.

    Without `scale`, the means of s = ln(pred / gt) and of s^2 stand before them, (R, 9). Pixels are taken in blocks of
    `block` values, so that a core's cache holds all steps of a block; s is the only transcendental. Where `low`
    (R, N) is true, a pixel does not count, `left` (R, 1) do: it is given the true depth, which adds nothing but to the
    three shares.
    """
    step = min(max(1, block // len(pred)), counted.pixels)
    room = pred.new_empty(4, len(pred), step).unbind()
    sums: list[Tensor] = []
    for i, (maps, gt) in enumerate(zip(pred.split(step, dim=1), counted.depth.split(step), strict=True)):
        values, ratio, largest, spare = room if len(gt) == step else (x[:, : len(gt)] for x in room)
        if scale is not None:
            maps = torch.mul(maps, scale[:, None], out=values).clamp_(MIN_DEPTH, NYU_MAX_DEPTH)
        if low is not None:
            maps = torch.where(low[:, i * step : i * step + len(gt)], gt, maps)
        torch.div(maps, gt, out=ratio)
        torch.maximum(ratio, torch.div(gt, maps, out=largest), out=largest)
        shares = [torch.lt(largest, 1.25**i, out=spare).sum(1) for i in (1, 2, 3)]
        relative = torch.sub(ratio, 1, out=spare).abs_().sum(1)
        difference, log = torch.sub(maps, gt, out=values).abs_(), ratio.log_()
        if scale is None:
            sums += [log.sum(1), torch.mul(log, log, out=spare).sum(1)]
        square = torch.mul(difference, difference, out=spare).sum(1)
        sums += [difference.sum(1), *shares, relative, log.abs_().sum(1), square]
    blocks = torch.stack(sums).unflatten(0, (-1, 7 if scale is not None else 9))  # (blocks, 7 or 9, R)
    mean = blocks.sum(0, dtype=torch.float64).T  # (R, 7 or 9)
    mean[:, -6:-3] -= counted.pixels - left
    mean /= left
    mean[:, -2] /= math.log(10)  # log10
    mean[:, -1].sqrt_()  # rmse
    return mean


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


def lower_median(values: Tensor, left_out: Tensor | None = None) -> Tensor:
    """Median of each row, (R, N) -> (R,): the lower of the two middle ones where N is even.

    Values where `left_out` (R, N) is true do not count; a row without any other has no meaningful median.
    """
    if values.device.type != "cpu":
        return (values if left_out is None else values.masked_fill(left_out, math.nan)).nanmedian(1).values
    if left_out is None:
        k = (values.shape[1] - 1) // 2
        return torch.from_numpy(np.partition(values.numpy(), k, axis=1)[:, k].copy())
    rows = values.masked_fill(left_out, math.inf).numpy()
    middle = ((~left_out).sum(1) - 1).clamp(min=0) // 2
    return values.new_tensor([np.partition(row, k)[k] for row, k in zip(rows, middle.tolist(), strict=True)])


def patch_sums(values: np.ndarray, sizes: Sequence[int]) -> Tensor:
    """Sums over patches of `sizes` pixels of the crop: (415, 541), of the window, -> (h w,)."""
    rows, columns = (
        torch.eye(whole // size).repeat_interleave(size, dim=0)[:kept]
        for whole, size, kept in zip(CROP_SIZE, sizes, values.shape, strict=True)
    )  # (415, h), (541, w)
    return (rows.T @ torch.from_numpy(values) @ columns).flatten()
