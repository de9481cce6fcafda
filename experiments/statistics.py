"""Rows of metrics -> means, paired differences and 95 % intervals, which are cluster-robust.

Images of one capture resemble each other, so that the standard error of a mean over n images is that of G clusters:

    se^2 = G / (G - 1) sum_g (sum over the images of cluster g of (value - mean))^2 / n^2
    interval = mean -+ t(.975; G - 1) se, from 10 clusters on (docs/statistics.md)
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from calculate_error import HIGHER_IS_BETTER

MIN_CLUSTERS = 10  # for an interval
EQUAL = 1e-5  # below which a difference of two metrics is none: two pixels of an image's delta
COUNTS = ("valid_pixels", "dropped_pixels")  # among the values of an image: what is not averaged
PRIMARY = ("delta1", "abs_rel")  # metrics of the one question that is asked first; all else is exploratory
SHARES = HIGHER_IS_BETTER | {"scaled_delta1", "aligned_delta1", "ordinal"}  # metrics from 0 to 1
HIGHER = SHARES - {"ordinal"} | {"spearman", "aurg"}  # is better

Interval = tuple[float, float] | None


@dataclass(frozen=True)
class Contrast:
    """A row minus another, image by image, in one metric."""

    row: str
    minus: str
    metric: str
    difference: float | None  # mean over images; None if none has the metric
    interval_95: Interval
    wins: int  # images for which the row is better, by more than `EQUAL`
    images: int  # that have the metric
    dz: float | None  # effect size: mean difference / its standard deviation over images
    p: float | None = None


@dataclass(frozen=True)
class Case:
    """A row of the comparison of read-outs."""

    backbone: str
    statistics: str  # of images
    readout: str
    temperature: float | None  # None: a linear probe of the features, and no words
    released: bool  # whether this is how the release reads

    @property
    def name(self) -> str:
        """The row's name."""
        how = "linear probe" if self.temperature is None else f"{self.temperature:g}"
        return f"{self.backbone}, {self.readout}, {self.statistics}, {how}"


class Results:
    """All rows over a data set's images: `metrics` by row, (I, columns) float64, NaN for none; `counts`, (I, 2).

    `errors` has for each image row -> metric -> value, with `COUNTS` among the metrics, `baselines` the row that a
    row's difference is taken to; all others take the first.
    """

    def __init__(
        self, images: Any, errors: Sequence[Mapping[str, Mapping[str, float]]], baselines: Mapping[str, str]
    ) -> None:
        self.images, self.baselines, self.first_baseline = images, dict(baselines), next(iter(baselines.values()))
        self.columns = tuple(name for name in next(iter(errors[0].values())) if name not in COUNTS)
        self.metrics, self.counts = (
            {row: np.array([[each[row][name] for name in names] for each in errors], dtype) for row in errors[0]}
            for names, dtype in ((self.columns, np.float64), (COUNTS, np.int64))
        )
        self.codes = np.unique(images.clusters, return_inverse=True)[1]
        count, by = int(self.codes.max()) + 1, images.clustered_by
        self.has_intervals = count >= MIN_CLUSTERS
        note = f"95 % intervals: cluster-robust, over {count} clusters ({by}); those of shares are cut at 0 and 1."
        none = f"No intervals: fewer than {MIN_CLUSTERS} clusters ({count}: {by})."
        self.interval_note = note if self.has_intervals else none

    def baseline(self, row: str) -> str:
        """The row that a row's difference is taken to."""
        return self.baselines.get(row, self.first_baseline)

    def add_constant(self, row: str, errors: Mapping[str, np.ndarray]) -> None:
        """Add a row with the first baseline's metrics but for those in `errors`, metric -> (I,)."""
        self.metrics[row], self.counts[row] = self.metrics[self.first_baseline].copy(), self.counts[self.first_baseline]
        for metric, values in errors.items():
            self.metrics[row][:, self.columns.index(metric)] = values

    def over(self, scene: str | None) -> np.ndarray:
        """Which images a mean is over, (I,) bool: those of `scene`, or all."""
        return np.array([scene in (None, own) for own in self.images.scenes])

    def by_column(self, values: Sequence[Any]) -> dict[str, Any]:
        """A value of each metric -> metric: value."""
        return dict(zip(self.columns, values, strict=True))

    def mean(self, row: str, scene: str | None = None) -> dict[str, float | None]:
        """Mean of each metric over the images that have it, all with the same weight; None where none has it."""
        return self.by_column([mean_of(values) for values in self.metrics[row][self.over(scene)].T])

    def difference(self, row: str) -> dict[str, float | None]:
        """Mean of each metric minus that of the row's baseline, image by image."""
        return self.by_column([mean_of(values) for values in self.less(row, self.baseline(row)).T])

    def intervals(self, row: str) -> tuple[dict[str, Interval], dict[str, Interval]]:
        """95 % intervals of a row's means, and of their differences to its baseline."""
        own = zip(self.metrics[row].T, self.columns, strict=True)
        less = [interval_of(values, self.codes) for values in self.less(row, self.baseline(row)).T]
        return self.by_column([interval_of(v, self.codes, m in SHARES) for v, m in own]), self.by_column(less)

    def less(self, row: str, other: str) -> np.ndarray:
        """Metrics of each image in one row minus those in another, where NaN (a map without order) counts as 0."""
        return self.metrics[row] - np.nan_to_num(self.metrics[other])

    def paired(self, row: str, other: str, metric: str) -> np.ndarray:
        """A column of `less`, (I,)."""
        return self.less(row, other)[:, self.columns.index(metric)]

    def contrast(self, row: str, other: str, metric: str, p: float | None = None) -> Contrast:
        """The paired difference of two rows over all images; `p` is put beside it."""
        every = self.paired(row, other, metric)
        known = every[np.isfinite(every)]
        wins = int(((known if metric in HIGHER else -known) > EQUAL).sum())
        spread = known.std(ddof=1) if len(known) > 1 else 0
        dz = float(known.mean() / spread) if spread > EQUAL else None
        return Contrast(row, other, metric, mean_of(known), interval_of(every, self.codes), wins, len(known), dz, p)


class Findings(NamedTuple):
    """All that step 2 finds over all images."""

    results: Results
    permuted: np.ndarray | None  # (n, 2), mean `PRIMARY` metrics of assignments of bins to words, the run's own first
    patches: Sequence[np.ndarray]  # (2, P) [m] of each image: predicted and true depth of its patches
    curve: np.ndarray | None  # (S,), mean `sparsification` of this run, if any patch is measured
    missing: list[str]  # why rows are left out, a sentence each


def mean_of(values: np.ndarray) -> float | None:
    """Mean of those of (I,) that are no NaN; None where there is none."""
    values = values[np.isfinite(values)]
    return float(values.mean()) if len(values) else None


def interval_of(values: np.ndarray, labels: np.ndarray, share: bool = False) -> Interval:
    """95 % interval of a mean over images, (I,), without NaN, of a share cut at 0 and 1; None of too few labels."""
    known = np.isfinite(values)
    values, codes = values[known], np.unique(labels[known], return_inverse=True)[1]
    count = int(codes.max(initial=-1)) + 1
    if count < MIN_CLUSTERS:
        return None
    sums = np.bincount(codes, values - values.mean())  # (G,)
    reach = t_975(count - 1) * math.sqrt(count / (count - 1) * (sums @ sums)) / len(values)
    ends = (values.mean() + np.array([-reach, reach])).clip(*((0, 1) if share else (-np.inf, np.inf)))
    low, high = ends.round(6).tolist()  # the last bits differ between machines
    return low, high


def t_975(freedom: int) -> float:
    """97.5 % quantile of Student's t, within 1.4e-5 from 9 degrees of freedom on (Abramowitz and Stegun, 26.7.5)."""
    z, f = 1.959963984540054, freedom  # the quantile of the standard normal distribution
    first, second = (z**3 + z) / 4, (5 * z**5 + 16 * z**3 + 3 * z) / 96
    third = (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384
    fourth = (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160
    return z + first / f + second / f**2 + third / f**3 + fourth / f**4


def folds_of(clusters: Sequence[str]) -> list[int]:
    """The fold of each image: clusters, in the order of their first image, are dealt in turn to ten or fewer."""
    order = {cluster: place for place, cluster in enumerate(dict.fromkeys(clusters))}
    return [order[cluster] % min(10, len(order)) for cluster in clusters]


def best_elsewhere(swept: np.ndarray, folds: Sequence[int], higher: bool) -> np.ndarray:
    """Each image's value for the constant that is best over all images of the other folds: (S, I), (I,) -> (I,)."""
    codes = np.array(folds)
    others = swept @ (codes[:, None] != np.arange(codes.max() + 1))  # (S, F)
    best = others.argmax(axis=0) if higher else others.argmin(axis=0)  # (F,)
    return swept[best[codes], np.arange(len(codes))]


def p_value(own: float, others: np.ndarray, higher: bool) -> float:
    """(1 + k) / (1 + n): k of n other values are as good as one's own, none of them NaN. At least 1 / (1 + n)."""
    as_good = others >= own - EQUAL if higher else others <= own + EQUAL
    return float((1 + as_good.sum()) / (1 + len(others)))
