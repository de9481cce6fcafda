"""The records of a run as arrays: every table and figure of the report is a view on them.

A record is what `eval.py` keeps of one image: its name, scene and index, the histogram of its counted ground truth, and
for each predicted row [valid pixels, dropped pixels, *FIGURES]. Constants are not predicted: their rows follow from the
histogram, exactly, and so does the best constant of all.
"""

import base64
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from calculate_error import HIGHER_IS_BETTER, NYU_FIGURES
from evaluation.batch_error import FIGURES, MAX_MILLIMETRES
from evaluation.constant_error import ConstantErrors, MeanOfConstants
from evaluation.controls import BEST, UNIFORM

RESAMPLES = 10_000
INTERVAL = (2.5, 97.5)  # percentiles
SWEEP = np.arange(2, MAX_MILLIMETRES) / 1000  # [m] constants that the best is chosen from: every millimetre
DIGITS = 6  # of intervals: the last bits of a matrix product may differ from run to run

Intervals = dict[str, tuple[float, float] | None]


def pack_histogram(histogram: np.ndarray) -> str:
    """(10000,) counts -> text that JSON can hold."""
    return base64.b64encode(zlib.compress(histogram.astype("<i4").tobytes(), level=1)).decode()


def unpack_histogram(text: str) -> np.ndarray:
    """The counts that `pack_histogram` packed, (10000,) int64."""
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype="<i4").astype(np.int64)


class Results:
    """All rows over all images.

    Args:
        records: of the I images, in their order.
        constants: depth [m] of each constant row.

    Attributes:
        images, scenes, indices: of the images.
        rows: name -> figures (I, len(FIGURES)) float64; NaN where undefined.
        valid, dropped: name -> pixels (I,) int64.
        best: figure -> the constant [m] that is best for it over all images.
    """

    def __init__(self, records: Sequence[Mapping[str, Any]], constants: Mapping[str, float]) -> None:
        self.images = [record["image"] for record in records]
        self.scenes = np.array([record["scene"] for record in records])
        self.indices = [record["index"] for record in records]
        self.rows: dict[str, np.ndarray] = {}
        self.valid: dict[str, np.ndarray] = {}
        self.dropped: dict[str, np.ndarray] = {}
        for name in records[0]["rows"]:
            table = np.array([record["rows"][name] for record in records], dtype=np.float64)  # None -> NaN
            self.valid[name], self.dropped[name] = table[:, 0].astype(np.int64), table[:, 1].astype(np.int64)
            self.rows[name] = table[:, 2:]
        depths, means, figures = np.array(list(constants.values())), MeanOfConstants(SWEEP), []
        pixels = []
        for record in records:  # a histogram is 80 kB, so none is kept
            histogram = unpack_histogram(record["histogram"])
            pixels.append(int(histogram.sum()))
            if pixels[-1]:
                means.add(histogram)
                figures.append(ConstantErrors(histogram).figures(depths))
            else:
                figures.append(np.full((len(depths), len(FIGURES)), np.nan))
        self.counted = np.array(pixels) > 0  # (I,) images with a valid pixel
        for i, name in enumerate(constants):
            self._add_constant(name, [each[i] for each in figures], pixels)
        self.best = best_constants(means)
        self._add_constant(BEST, [self._at_best(record["histogram"]) for record in records], pixels)

    def _add_constant(self, name: str, figures: Sequence[np.ndarray], pixels: Sequence[int]) -> None:
        self.rows[name], self.valid[name] = np.array(figures), np.array(pixels)
        self.dropped[name] = np.zeros(len(pixels), dtype=np.int64)

    def _at_best(self, packed: str) -> np.ndarray:
        """Each figure of one image at the constant that is best for it over all images, (len(FIGURES),)."""
        histogram = unpack_histogram(packed)
        if not histogram.any():
            return np.full(len(FIGURES), np.nan)
        each = ConstantErrors(histogram).figures(np.array(list(self.best.values())))  # (7, len(FIGURES))
        return np.concatenate([each.diagonal()[: len(NYU_FIGURES)], each[0, len(NYU_FIGURES) :]])

    def chosen(self, name: str, scene: str | None = None) -> np.ndarray:
        """(I,) which images the row's means are over: those with a valid pixel, of `scene` or of all."""
        chosen = self.valid[name] > 0
        return chosen if scene is None else chosen & (self.scenes == scene)

    def mean(self, name: str, scene: str | None = None) -> dict[str, float | None]:
        """Mean of each figure over images, every image with the same weight; None where it is undefined."""
        chosen = self.chosen(name, scene)
        if not chosen.any():
            return dict.fromkeys(FIGURES)
        return _by_figure(self.rows[name][chosen].mean(axis=0).tolist())

    def intervals(self, names: Sequence[str], scene: str | None = None) -> dict[str, tuple[Intervals, Intervals]]:
        """For each row, 95 % intervals of the mean figures and of their differences to uniform weights.

        Bootstrap over images: the same resamples of the images for all rows, percentiles of the resampled means.
        Undefined figures, and rows over fewer than two images, have none.
        """
        chosen = self.counted if scene is None else self.counted & (self.scenes == scene)
        found = {}
        draw = resampling_weights(int(chosen.sum())) if chosen.sum() > 1 else None
        uniform = self.rows[UNIFORM][chosen]
        for name in names:
            values = self.rows[name][chosen]
            if draw is None:
                found[name] = (dict.fromkeys(FIGURES), dict.fromkeys(FIGURES))
            else:
                bounds = bootstrap(np.concatenate([values, values - uniform], axis=1), draw)
                found[name] = (_pairs(bounds[: len(FIGURES)]), _pairs(bounds[len(FIGURES) :]))
        return found


def best_constants(means: MeanOfConstants) -> dict[str, float]:
    """Figure -> the constant of `SWEEP` [m] that is best for it over all images."""
    columns = means.paper_figures().T if means.images else np.zeros((len(NYU_FIGURES), 1))
    places = [v.argmax() if n in HIGHER_IS_BETTER else v.argmin() for n, v in zip(NYU_FIGURES, columns, strict=True)]
    return {name: float(SWEEP[place]) for name, place in zip(NYU_FIGURES, places, strict=True)}


def resampling_weights(images: int, seed: int = 0) -> np.ndarray:
    """Weight of each image in each resample with replacement, (RESAMPLES, images); each row sums to 1."""
    counts = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=RESAMPLES)
    return counts / images


def bootstrap(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Percentile intervals of the means of V columns: (I, V), (RESAMPLES, I) -> (V, 2)."""
    means = np.ascontiguousarray((weights @ values).T)  # (V, RESAMPLES)
    return np.percentile(means, INTERVAL, axis=1).T


def _by_figure(values: Sequence[float]) -> dict[str, float | None]:
    return {name: None if np.isnan(v) else v for name, v in zip(FIGURES, values, strict=True)}


def _pairs(bounds: np.ndarray) -> Intervals:
    return {
        name: None if np.isnan(low) else (round(low, DIGITS), round(high, DIGITS))
        for name, (low, high) in zip(FIGURES, bounds.tolist(), strict=True)
    }
