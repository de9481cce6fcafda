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
from evaluation.constant_error import ConstantErrors, mean_paper_figures
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
        histograms = [unpack_histogram(record["histogram"]) for record in records]
        self.counted = np.array([h.any() for h in histograms])  # (I,) images with a valid pixel
        errors = [ConstantErrors(h) if h.any() else None for h in histograms]
        self._add_constants(constants, errors)
        self._add_best(histograms, errors)

    def _add_row(
        self, name: str, figures: Sequence[np.ndarray | None], errors: Sequence[ConstantErrors | None]
    ) -> None:
        self.rows[name] = np.array([np.full(len(FIGURES), np.nan) if f is None else f for f in figures])
        self.valid[name] = np.array([e.n if e else 0 for e in errors])
        self.dropped[name] = np.zeros(len(errors), dtype=np.int64)

    def _add_constants(self, constants: Mapping[str, float], errors: Sequence[ConstantErrors | None]) -> None:
        depths = np.array(list(constants.values()))
        figures = [e.figures(depths) if e else None for e in errors]
        for i, name in enumerate(constants):
            self._add_row(name, [None if f is None else f[i] for f in figures], errors)

    def _add_best(self, histograms: Sequence[np.ndarray], errors: Sequence[ConstantErrors | None]) -> None:
        measured = [h for h in histograms if h.any()]
        means = mean_paper_figures(measured, SWEEP).T if measured else np.zeros((len(NYU_FIGURES), 1))
        self.best = {
            name: float(SWEEP[values.argmax() if name in HIGHER_IS_BETTER else values.argmin()])
            for name, values in zip(NYU_FIGURES, means, strict=True)
        }
        depths = np.array(list(self.best.values()))
        figures: list[np.ndarray | None] = []
        for e in errors:
            if e is None:
                figures.append(None)
                continue
            each = e.figures(depths)  # (7, len(FIGURES)); its diagonal is each figure at its own constant
            figures.append(np.concatenate([each.diagonal()[: len(NYU_FIGURES)], each[0, len(NYU_FIGURES) :]]))
        self._add_row(BEST, figures, errors)

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
