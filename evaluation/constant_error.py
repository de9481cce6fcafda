"""The figures of every constant depth, exactly, from the histogram of the ground truth in millimetres.

A constant is what the method gives if language says nothing. Its figures need sums over the histogram only, so that all
constants of a range cost less than one prediction.
"""

import math

import numpy as np

from calculate_error import MIN_DEPTH, NYU_FIGURES, NYU_MAX_DEPTH
from evaluation.batch_error import MAX_MILLIMETRES, SCALED

DEPTH = np.maximum(np.arange(MAX_MILLIMETRES), 1) / 1000  # [m] of each place of a histogram
LOG_DEPTH = np.log(DEPTH)


class ConstantErrors:
    """Figures of any constant depth on one image, from sums over `Counted.histogram` (10000,): no pixel is visited."""

    def __init__(self, histogram: np.ndarray) -> None:
        self.n = histogram.sum().item()
        # Sums over the pixels below 0, 1, ... 10000 mm, each (10001,)
        self.pixels, self.depths, self.inverses, self.logs = (
            np.concatenate([[0], np.cumsum(histogram * value)]) for value in (1, DEPTH, 1 / DEPTH, LOG_DEPTH)
        )
        self.square = histogram @ DEPTH**2 / self.n
        log_mean = self.logs[-1] / self.n
        self.silog = math.sqrt(max(0.0, histogram @ LOG_DEPTH**2 / self.n - log_mean**2))
        self.median = int(np.searchsorted(self.pixels, (self.n - 1) // 2 + 1) - 1) / 1000

    def paper_figures(self, depth: np.ndarray) -> np.ndarray:
        """`NYU_FIGURES` of C constants: (C,) [m] -> (C, 7); NaN at or below 1 mm."""
        depth = np.minimum(depth, NYU_MAX_DEPTH)
        millimetres = np.round(depth * 1000, 6)  # 2.3 * 1000 is not 2300
        place = np.minimum(np.floor(millimetres).astype(int) + 1, MAX_MILLIMETRES)  # sums below it are sums up to depth
        n, up_to = self.n, self.pixels[place]

        def within(millimetres: np.ndarray, t: float) -> np.ndarray:
            gt, pred = np.maximum(millimetres, 1).astype(np.float32) / np.float32(1000), depth.astype(np.float32)
            return np.maximum(gt / pred, pred / gt) < np.float32(t)

        def share(t: float) -> np.ndarray:
            """Of pixels with max(gt / c, c / gt) < t; at the two ends the fp32 of errors_NYU decides."""
            low = np.floor(np.round(millimetres / t, 6)).astype(int)
            high = np.minimum(np.ceil(np.round(millimetres * t, 6)).astype(int), MAX_MILLIMETRES)
            low = low + ~within(low, t)
            high = np.minimum(high + within(high, t), MAX_MILLIMETRES)
            return (self.pixels[high] - self.pixels[low]) / n

        def distance(sums: np.ndarray, value: np.ndarray) -> np.ndarray:
            return (value * (2 * up_to - n) + sums[-1] - 2 * sums[place]) / n

        relative = (depth * (2 * self.inverses[place] - self.inverses[-1]) + n - 2 * up_to) / n
        columns = [distance(self.depths, depth), share(1.25), share(1.25**2), share(1.25**3), relative]
        columns += [distance(self.logs, np.log(depth)) / math.log(10), rmse_of(self.depths[-1] / n, self.square, depth)]
        return np.where(depth[:, None] > MIN_DEPTH, np.stack(columns, axis=1), np.nan)

    def figures(self, depth: np.ndarray) -> np.ndarray:
        """`FIGURES` of C constants: (C,) [m] -> (C, len(FIGURES))."""
        scaled = self.paper_figures(np.array([self.median]))[0, [NYU_FIGURES.index(name) for name in SCALED]]
        extra = np.array([0.0, 0.0, self.silog, *scaled])
        return np.concatenate([self.paper_figures(depth), np.tile(extra, (len(depth), 1))], axis=1)


class MeanOfConstants:
    """Mean figures, over images, of constants (C,) [m]; images are added one by one, and only sums are kept.

    All figures but rmse are linear in the shares of the pixels, so those of the mean histogram are their means.
    """

    def __init__(self, depth: np.ndarray) -> None:
        self.depth, self.images = depth, 0
        self.shares, self.rmse = np.zeros(MAX_MILLIMETRES), np.zeros(len(depth))

    def add(self, histogram: np.ndarray) -> None:
        """Adds an image with pixels, by its histogram (10000,)."""
        share = histogram / histogram.sum()
        self.images += 1
        self.shares += share
        self.rmse += rmse_of(share @ DEPTH, share @ DEPTH**2, self.depth)

    def paper_figures(self) -> np.ndarray:
        """`NYU_FIGURES`, (C, 7)."""
        figures = ConstantErrors(self.shares / self.images).paper_figures(self.depth)
        figures[:, -1] = self.rmse / self.images
        return figures


def rmse_of(mean: float, square: float, depth: np.ndarray) -> np.ndarray:
    """Of C constants (C,) [m], against ground truth with this mean [m] and mean square: (C,) [m]."""
    return np.sqrt(np.maximum(square - 2 * depth * mean + depth**2, 0))
