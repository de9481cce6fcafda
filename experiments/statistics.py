"""Rows of metrics -> means, differences, and how sure they are: 95 % bootstrap intervals over clusters of images.

Images of one capture are not independent, so clusters are drawn with replacement, and images with them. A mean over I
images is the ratio of sums over clusters; with r the sum over a cluster's images of what they exceed the mean by,

    se = sqrt(sum r^2) / I        t* = (mean* - mean) / se*        interval = [mean - q.975(t*) se, mean - q.025(t*) se]

where * is of a resample: the studentised bootstrap (Efron and Tibshirani, 1993, chapter 12), which covers better than
percentiles of the means and BCa where clusters are few or skewed (docs/statistics.md). Below 10 clusters there is none.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import numpy as np

from calculate_error import HIGHER_IS_BETTER

RESAMPLES = 10_000
INTERVAL = (2.5, 97.5)  # percentiles
MIN_CLUSTERS = 10  # for an interval
AT_ONCE = 250  # resamples, of thousands of constants each, so that they stay in a core's cache
DIGITS = 6  # of intervals: the last bits of a matrix product may differ from run to run
ROUNDING = 1e-9  # below which a standard error is rounding
EQUAL = 1e-5  # below which a difference of two metrics is: two pixels of an image's delta
LEAST_SPREAD = 0.1  # of se: a smaller se* counts as this, or t* would be anything where few clusters differ at all
COUNTS = ("valid_pixels", "dropped_pixels")  # among the values of an image: what is not averaged
PRIMARY = ("delta1", "abs_rel")  # metrics of the one question that is asked first; all else is exploratory
HIGHER = HIGHER_IS_BETTER | {"spearman", "spearman_pixels", "aurg"}  # is better, of the metrics that contrasts are in

Interval = tuple[float, float] | None
Means = Mapping[str, float | None]
Intervals = Mapping[str, Interval]
T = TypeVar("T")


@dataclass(frozen=True)
class Contrast:
    """A row less another, image by image, in one metric."""

    row: str
    minus: str
    metric: str
    difference: float  # mean over images
    interval_95: Interval
    wins: int  # images for which the row is better
    dz: float | None  # effect size: mean difference / its standard deviation over images
    p: float | None = None  # of `p_value`


@dataclass(frozen=True)
class Case:
    """A row of the comparison of read-outs: which CLIP, which image statistics, how read, at which temperature."""

    backbone: str
    statistics: str
    readout: str
    temperature: float
    released: bool  # whether this is how the release reads

    @property
    def name(self) -> str:
        """The row's name."""
        return f"{self.backbone}, {self.readout}, {self.statistics}, {self.temperature:g}"


class Results:
    """All rows over all images.

    Args:
        images, scenes, clusters, indices: of the I images; a scene is a room type, images of a cluster belong together.
        rows: names of the R rows.
        errors: of each image, metric -> (R,) in the order of `rows`, with `COUNTS` among the metrics.
        baselines: row -> the row that its difference is taken to, of which all others take the first.

    Attributes:
        columns: names of the metrics.
        metrics: row -> (I, columns) float64.
        counts: row -> (I, 2) int64, the `COUNTS`.
        gains: row -> metric -> what its values gain by being the best of some, which intervals leave out.
    """

    def __init__(
        self,
        images: Sequence[str],
        scenes: Sequence[str],
        clusters: Sequence[str],
        indices: Sequence[int],
        rows: Sequence[str],
        errors: Sequence[Mapping[str, np.ndarray]],
        baselines: Mapping[str, str],
    ) -> None:
        self.images, self.indices, self.baselines = list(images), list(indices), dict(baselines)
        self.scenes, self.clusters = np.array(scenes), np.array(clusters)
        self.columns = tuple(name for name in errors[0] if name not in COUNTS)
        self.gains: dict[str, dict[str, float]] = {}

        def by_row(names: Sequence[str]) -> dict[str, np.ndarray]:
            values = np.array([[each[name] for name in names] for each in errors])  # (I, names, R)
            return {row: np.ascontiguousarray(values[..., i]) for i, row in enumerate(rows)}

        self.metrics, self.counts = by_row(self.columns), by_row(COUNTS)

    @property
    def first_baseline(self) -> str:
        """The first row's baseline, which is also that of rows without one of their own."""
        return next(iter(self.baselines.values()))

    @cached_property
    def all_clusters(self) -> "Clusters":
        """The clusters of all images."""
        return Clusters(self.clusters)

    def baseline(self, row: str) -> str:
        """The row that a row's difference is taken to."""
        return self.baselines.get(row, self.first_baseline)

    def add_constant(self, row: str, errors: Mapping[str, np.ndarray]) -> None:
        """Adds a row with the first baseline's metrics but for those in `errors`, metric -> (I,)."""
        self.metrics[row], self.counts[row] = self.metrics[self.first_baseline].copy(), self.counts[self.first_baseline]
        for metric, values in errors.items():
            self.metrics[row][:, self.columns.index(metric)] = values

    def add_best_constant(self, row: str, swept: Mapping[str, np.ndarray]) -> dict[str, int]:
        """Adds a row with the best of S constants for each metric: metric -> (S, I) to metric -> that one's place."""
        places = best_places(swept)
        self.add_constant(row, {metric: swept[metric][place] for metric, place in places.items()})
        gains = {metric: self.all_clusters.gain(errors.T, metric in HIGHER) for metric, errors in swept.items()}
        self.gains[row] = {metric: gain for metric, gain in gains.items() if gain is not None}
        return places

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
        """The row's means less those of its baseline."""
        own, other = self.mean(row, scene), self.mean(self.baseline(row), scene)
        return {metric: minus(own[metric], other[metric]) for metric in self.columns}

    def intervals(self, rows: Sequence[str], scene: str | None = None) -> dict[str, tuple[Intervals, Intervals]]:
        """For each row, 95 % intervals of the means and of their differences to its baseline; None: too few clusters.

        Over all images, those of a row in `gains` are without what the row gains.
        """
        chosen = self.over(scene)
        clusters = self.all_clusters if scene is None else Clusters(self.clusters[chosen])
        found: dict[str, tuple[Intervals, Intervals]] = {}
        for row in rows:
            own, other = self.metrics[row][chosen], self.metrics[self.baseline(row)][chosen]
            pairs = clusters.intervals(np.concatenate([own, own - other], axis=1))
            gains = self.gains.get(row, {}) if scene is None else {}
            pairs = [shifted(pair, -gains.get(column, 0)) for pair, column in zip(pairs, self.columns * 2, strict=True)]
            found[row] = self.by_column(pairs[: len(self.columns)]), self.by_column(pairs[len(self.columns) :])
        return found

    def paired(self, row: str, other: str, metric: str) -> np.ndarray:
        """What each image has in one row less what it has in another, (I,)."""
        place = self.columns.index(metric)
        return self.metrics[row][:, place] - self.metrics[other][:, place]

    def contrast(self, row: str, other: str, metric: str, p: float | None = None) -> Contrast:
        """The paired difference of two rows over all images; `p` is put beside it."""
        differences, higher = self.paired(row, other, metric), metric in HIGHER
        (interval,) = self.all_clusters.intervals(differences[:, None])
        interval = shifted(interval, self.gains.get(other, {}).get(metric, 0) - self.gains.get(row, {}).get(metric, 0))
        wins = int((differences > EQUAL if higher else differences < -EQUAL).sum())
        spread = differences.std(ddof=1) if len(differences) > 1 else 0
        dz = float(differences.mean() / spread) if spread > EQUAL else None
        return Contrast(row, other, metric, float(differences.mean()), interval, wins, dz, p)

    def ranges(self, rows: Sequence[str]) -> dict[str, dict[str, float]]:
        """Minimum, median and maximum over rows of the mean of each metric, each metric for itself."""
        means = np.array([self.metrics[row].mean(axis=0) for row in rows])  # (R, columns)
        kinds = {"min": means.min(0), "median": np.median(means, 0), "max": means.max(0)}
        return {kind: self.by_column(values.tolist()) for kind, values in kinds.items()}


class Clusters:
    """Clusters of I images and their resamples, which are the same for all that is measured of the images.

    Args:
        labels: (I,), of each image; images of one label are one cluster.
        least: clusters, below which there is no resample.

    Attributes:
        codes: (I,) int, of each image, its cluster.
        sizes: (C,) float64, images of each cluster.
        counts: (RESAMPLES, C) float64, how often each cluster is drawn; no resample if there are too few.
    """

    def __init__(self, labels: np.ndarray, least: int = MIN_CLUSTERS, seed: int = 0) -> None:
        self.codes = np.unique(labels, return_inverse=True)[1]
        self.sizes = np.bincount(self.codes).astype(float)
        count = len(self.sizes)
        resamples = RESAMPLES if count >= least else 0
        draws = np.random.default_rng(seed).multinomial(count, np.full(count, 1 / count), size=resamples)
        self.counts = draws.astype(float)

    def excess(self, values: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Means of V columns over images, (V,); r of each cluster, (C, V); and standard errors, (V,). From (I, V)."""
        mean = values.mean(axis=0)
        sums = np.zeros((len(self.sizes), values.shape[1]))
        np.add.at(sums, self.codes, values - mean)
        return mean, sums, np.sqrt((sums**2).sum(axis=0)) / len(values)

    def shifts(self, excess: np.ndarray, resamples: slice = slice(None)) -> np.ndarray:
        """mean* - mean of each resample, of all unless told otherwise: r (C, V) -> (RESAMPLES, V)."""
        counts = self.counts[resamples]
        return (counts @ excess) / (counts @ self.sizes)[:, None]

    def errors(self, excess: np.ndarray, shifts: np.ndarray) -> np.ndarray:
        """se* of each resample: r (C, V) and its `shifts` (RESAMPLES, V) -> (RESAMPLES, V)."""
        cross, squares = self.counts @ (excess * self.sizes[:, None]), self.counts @ self.sizes**2
        spread = self.counts @ excess**2 - 2 * shifts * cross + shifts**2 * squares[:, None]
        return np.sqrt(spread.clip(min=0)) / (self.counts @ self.sizes)[:, None]

    def intervals(self, values: np.ndarray) -> list[Interval]:
        """Intervals of the means of V columns, (I, V), None where there are too few clusters."""
        if not len(self.counts):
            return [None] * values.shape[1]
        mean, excess, error = self.excess(values)
        shifts = self.shifts(excess)
        return studentised(mean, error, shifts, self.errors(excess, shifts))

    def gain(self, values: np.ndarray, largest: bool) -> float | None:
        """What the largest, or smallest, of S means gains by being chosen: (I, S), None where there is no resample.

        By how much the best mean of a resample, of all S, exceeds the best mean, in the mean over resamples.
        """
        if not len(self.counts):
            return None
        sign, (mean, excess, _) = 1 if largest else -1, self.excess(values)
        parts = [slice(start, start + AT_ONCE) for start in range(0, len(self.counts), AT_ONCE)]
        best = [(sign * (mean + self.shifts(excess, part))).max(axis=1) for part in parts]
        return round(sign * float(np.concatenate(best).mean() - (sign * mean).max()), DIGITS)


def shifted(interval: Interval, by: float) -> Interval:
    """The interval moved; None stays None."""
    return interval and (round(interval[0] + by, DIGITS), round(interval[1] + by, DIGITS))


def studentised(mean: np.ndarray, error: np.ndarray, shifts: np.ndarray, errors: np.ndarray) -> list[Interval]:
    """Studentised intervals of V means: (V,), se (V,), mean* - mean (RESAMPLES, V) and se* (RESAMPLES, V)."""
    t = np.divide(shifts, np.maximum(errors, LEAST_SPREAD * error), out=np.zeros_like(shifts), where=error > ROUNDING)
    low, high = np.percentile(t, INTERVAL, axis=0)
    pairs = np.stack([mean - high * error, mean - low * error], axis=1).round(DIGITS)
    return [(low, high) for low, high in pairs.tolist()]


def best_places(swept: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Which of S constants has the best mean over images: metric -> (S, I) to metric -> place."""
    means = {metric: errors.mean(axis=1) for metric, errors in swept.items()}
    return {metric: int(mean.argmax() if metric in HIGHER else mean.argmin()) for metric, mean in means.items()}


def best_elsewhere(swept: np.ndarray, labels: np.ndarray, higher: bool) -> np.ndarray:
    """What each image gets of the constant that is best over all images of other clusters: (S, I), (I,) -> (I,).

    There are two clusters or more.
    """
    codes = np.unique(labels, return_inverse=True)[1]
    own = codes == np.arange(codes.max() + 1)[:, None]  # (C, I)
    others = swept @ ~own.T  # (S, C)
    best = others.argmax(axis=0) if higher else others.argmin(axis=0)  # (C,)
    return swept[best[codes], np.arange(len(codes))]


def p_value(own: float, others: np.ndarray, higher: bool) -> float:
    """(1 + k) / (1 + n): k of n other values are as good as one's own, none of them NaN. At least 1 / (1 + n)."""
    as_good = others >= own - EQUAL if higher else others <= own + EQUAL
    return float((1 + as_good.sum()) / (1 + len(others)))


def minus(a: float | None, b: float | None) -> float | None:
    """a - b; None where either is."""
    return None if a is None or b is None else a - b
