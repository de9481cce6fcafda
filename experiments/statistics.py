"""Rows of metrics -> means, and how sure they are: 95 % bootstrap intervals over images."""

from collections.abc import Mapping, Sequence
from typing import TypeVar

import numpy as np

RESAMPLES = 10_000
INTERVAL = (2.5, 97.5)  # percentiles
DIGITS = 6  # of intervals: the last bits of a matrix product may differ from run to run
COUNTS = ("valid_pixels", "dropped_pixels")  # among the values of an image: what is not averaged

Means = Mapping[str, float | None]
Intervals = Mapping[str, tuple[float, float] | None]
T = TypeVar("T")


class Results:
    """All rows over all images.

    Args:
        images, scenes, indices: of the I images.
        rows: names of the R rows.
        errors: of each image, metric -> (R,) in the order of `rows`, with `COUNTS` among the metrics.
        baseline: the row that says nothing, which differences are taken to.

    Attributes:
        columns: names of the metrics.
        metrics: row -> (I, columns) float64.
        counts: row -> (I, 2) int64, the `COUNTS`.
    """

    def __init__(
        self,
        images: Sequence[str],
        scenes: Sequence[str],
        indices: Sequence[int],
        rows: Sequence[str],
        errors: Sequence[Mapping[str, np.ndarray]],
        baseline: str,
    ) -> None:
        self.images, self.scenes, self.indices, self.baseline = list(images), np.array(scenes), list(indices), baseline
        self.columns = tuple(name for name in errors[0] if name not in COUNTS)

        def by_row(names: Sequence[str]) -> dict[str, np.ndarray]:
            values = np.array([[each[name] for name in names] for each in errors])  # (I, names, R)
            return {row: np.ascontiguousarray(values[..., i]) for i, row in enumerate(rows)}

        self.metrics, self.counts = by_row(self.columns), by_row(COUNTS)

    def add_like_baseline(self, row: str, errors: Mapping[str, np.ndarray]) -> None:
        """Adds a row with the baseline's metrics but for those in `errors`, metric -> (I,)."""
        self.metrics[row], self.counts[row] = self.metrics[self.baseline].copy(), self.counts[self.baseline]
        for metric, values in errors.items():
            self.metrics[row][:, self.columns.index(metric)] = values

    def single_rows(self, groups: Mapping[str, Sequence[str]]) -> list[str]:
        """Rows that belong to none of the groups (group -> rows)."""
        grouped = {row for rows in groups.values() for row in rows}
        return [row for row in self.metrics if row not in grouped]

    def over(self, scene: str | None) -> np.ndarray:
        """Which images a mean is over, (I,) bool: those of `scene`, or all."""
        return np.ones(len(self.images), dtype=bool) if scene is None else self.scenes == scene

    def mean(self, row: str, scene: str | None = None) -> Means:
        """Mean of each metric over images, every image with the same weight; None where there is no image."""
        chosen = self.over(scene)
        if not chosen.any():
            return dict.fromkeys(self.columns)
        return self.by_column(self.metrics[row][chosen].mean(axis=0).tolist())

    def by_column(self, values: Sequence[T]) -> dict[str, T]:
        """A value of each metric -> metric: value."""
        return dict(zip(self.columns, values, strict=True))

    def difference(self, row: str, scene: str | None = None) -> Means:
        """The row's means less those of the baseline."""
        own, other = self.mean(row, scene), self.mean(self.baseline, scene)
        return {metric: minus(own[metric], other[metric]) for metric in self.columns}

    def intervals(self, rows: Sequence[str], scene: str | None = None) -> dict[str, tuple[Intervals, Intervals]]:
        """For each row, 95 % intervals of the means and of their differences to the baseline; None for one image.

        Bootstrap over images: the same resamples of the images for all rows, percentiles of the resampled means.
        """
        chosen = self.over(scene)
        if chosen.sum() < 2:
            return {row: (dict.fromkeys(self.columns), dict.fromkeys(self.columns)) for row in rows}
        weights = resampling_weights(int(chosen.sum()))
        other = self.metrics[self.baseline][chosen]
        found: dict[str, tuple[Intervals, Intervals]] = {}
        for row in rows:
            own = self.metrics[row][chosen]
            bounds = bootstrap(np.concatenate([own, own - other], axis=1), weights)
            pairs = [(round(low, DIGITS), round(high, DIGITS)) for low, high in bounds.tolist()]
            found[row] = self.by_column(pairs[: len(self.columns)]), self.by_column(pairs[len(self.columns) :])
        return found

    def ranges(self, rows: Sequence[str]) -> dict[str, dict[str, float]]:
        """Minimum, median and maximum over rows of the mean of each metric, each metric for itself."""
        means = np.array([self.metrics[row].mean(axis=0) for row in rows])  # (R, columns)
        kinds = {"min": means.min(0), "median": np.median(means, 0), "max": means.max(0)}
        return {kind: self.by_column(values.tolist()) for kind, values in kinds.items()}


def minus(a: float | None, b: float | None) -> float | None:
    """a - b; None where either is."""
    return None if a is None or b is None else a - b


def resampling_weights(images: int, seed: int = 0) -> np.ndarray:
    """Weight of each image in each resample with replacement, (RESAMPLES, images); each row sums to 1."""
    counts = np.random.default_rng(seed).multinomial(images, np.full(images, 1 / images), size=RESAMPLES)
    return counts / images


def bootstrap(values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Percentile intervals of the means of V columns: (I, V), (RESAMPLES, I) -> (V, 2)."""
    means = np.ascontiguousarray((weights @ values).T)  # (V, RESAMPLES)
    return np.percentile(means, INTERVAL, axis=1).T
