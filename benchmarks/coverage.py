"""How often a nominal 95 % interval of a mean over images holds the true mean, by simulation, in about 3 minutes.

    python -m benchmarks.coverage           one line for each population, number of clusters and method
    python -m benchmarks.coverage --quick   few trials: whether it runs, not what is covered

Images come in clusters as in NYU Depth V2's test split, whose 654 images are of some 215 captures. An image's value is
a function of z = (cluster effect + image effect) / sqrt(2), both standard normal, whose true mean is known. Trials come
in batches that share their clusters' sizes and resamples, so the standard error that is printed is that over batches.
An interval misses "below" if it lies below the true mean.
"""

import argparse
import math
import sys
from collections.abc import Callable, Mapping, Sequence
from statistics import NormalDist

import numpy as np

import options
from experiments.statistics import INTERVAL, Clusters

CLUSTERS = (5, 10, 16, 60, 200)
BEST_CLUSTERS = (16, 60)
LARGEST = 12  # images of a cluster; sizes are geometric with mean 3 below that
AT_ONCE, BESTS_AT_ONCE = 50, 10  # trials of a batch
NORMAL = NormalDist()
CDF = np.vectorize(NORMAL.cdf, otypes=[float])

# name -> values of z, and their true mean.
Population = tuple[Callable[[np.ndarray], np.ndarray], float]
RARE = 1.28  # z of one image in 10
POPULATIONS: Mapping[str, Population] = {
    "normal": (lambda z: z, 0),  # as differences are
    "log-normal": (lambda z: np.exp(0.8 * z), math.exp(0.32)),  # as abs_rel is
    "near 1": (lambda z: 1 - CDF(0.8 * z - 2), NORMAL.cdf(2 / math.sqrt(1.64))),  # as delta3 is
    "mostly 1": (  # as delta3 is of rooms that are easy: 9 images in 10 have it
        lambda z: 1 - 0.1 * np.maximum(z - RARE, 0),
        1 - 0.1 * (NORMAL.pdf(RARE) - RARE * NORMAL.cdf(-RARE)),
    ),
}
WITHOUT_CLUSTERS = "normal"  # the population of which images are also drawn as if they were independent

LOG_CONSTANTS = np.linspace(0, math.log(6), 50)  # of 1 to 6 m
LOG_DEPTH, LOG_SPREAD = math.log(2.5), 0.35  # of images, each of one depth
LOG_DELTA1 = math.log(1.25)

Found = dict[str, list[np.ndarray]]  # method -> of each batch, (2, V) lower and upper bounds


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = options.new_parser("Measure what nominal 95 % intervals cover.", "benchmarks.coverage")
    parser.add_argument("--quick", action="store_true", help=f"{2 * AT_ONCE} trials of each line")
    more = f"trials of each line, in batches of {AT_ONCE}; a fifth as many of the best constant"
    parser.add_argument("--trials", type=options.positive, default=3000, help=more)
    return parser


def draw(rng: np.random.Generator, count: int, trials: int) -> tuple[np.ndarray, np.ndarray]:
    """Images of `count` clusters: labels (I,), the same in all trials, and standard normal z (I, trials)."""
    labels = np.repeat(np.arange(count), np.minimum(rng.geometric(1 / 3, count), LARGEST))
    of_clusters, of_images = rng.normal(size=(count, trials)), rng.normal(size=(len(labels), trials))
    return labels, (of_clusters[labels] + of_images) / math.sqrt(2)


def percentile(resampled: np.ndarray) -> np.ndarray:
    """The plainest intervals, percentiles of the means: (RESAMPLES, V) -> (2, V)."""
    return np.percentile(resampled, INTERVAL, axis=0)


def bca(mean: np.ndarray, resampled: np.ndarray, left_out: np.ndarray) -> np.ndarray:
    """Bias-corrected and accelerated intervals (Efron and Tibshirani, 1993, chapter 14).

    From the means (V,), those of resamples (RESAMPLES, V) and those without each cluster in turn (C, V) -> (2, V).
    A bias beyond what so many resamples can tell is taken for the largest that they can.
    """
    below = ((resampled < mean).mean(axis=0) + (resampled <= mean).mean(axis=0)) / 2  # (V,)
    influence = left_out.mean(axis=0) - left_out
    scale = 6 * (influence**2).sum(axis=0) ** 1.5
    acceleration = np.divide((influence**3).sum(axis=0), scale, out=np.zeros_like(scale), where=scale > 0)
    bounds = []
    for column, share, a in zip(resampled.T, below, acceleration, strict=True):
        bias = NORMAL.inv_cdf(float(np.clip(share, 1 / len(column), 1 - 1 / len(column))))
        z = [bias + NORMAL.inv_cdf(percent / 100) for percent in INTERVAL]
        bounds.append(np.quantile(column, [NORMAL.cdf(bias + each / (1 - a * each)) for each in z]))
    return np.array(bounds).T


def intervals(clusters: Clusters, values: np.ndarray) -> dict[str, np.ndarray]:
    """Intervals of V means by each method: (I, V) -> (2, V)."""
    mean, excess, _ = clusters.excess(values)
    resampled = mean + clusters.shifts(excess)
    left_out = mean - excess / (len(values) - clusters.sizes)[:, None]
    return {
        "percentile": percentile(resampled),
        "BCa": bca(mean, resampled, left_out),
        "studentised": np.array(clusters.intervals(values)).T,
    }


def best_mean() -> float:
    """The mean over all images, not only those drawn, of delta1 of the best constant."""
    away = LOG_CONSTANTS - LOG_DEPTH
    return float((CDF((away + LOG_DELTA1) / LOG_SPREAD) - CDF((away - LOG_DELTA1) / LOG_SPREAD)).max())


def best_intervals(clusters: Clusters, values: np.ndarray) -> dict[str, np.ndarray]:
    """Intervals of the best of S constants, with and without what choosing gains: (I, S) -> (2, 1)."""
    (once,) = clusters.intervals(values[:, [int(values.mean(axis=0).argmax())]])
    return {
        "chosen once": np.array([once]).T,
        "less the gain": np.array([once]).T - clusters.gain(values, largest=True),
    }


def add(found: Found, batch: Mapping[str, np.ndarray]) -> None:
    """Adds what a batch found."""
    for method, bounds in batch.items():
        found.setdefault(method, []).append(bounds)


def lines(title: str, found: Found, truth: float, base: str) -> list[str]:
    """What each method covers [%] +- standard error, and the width of its intervals in median widths of `base`."""
    widths = {method: np.concatenate([high - low for low, high in batches]) for method, batches in found.items()}
    texts = []
    for method, batches in found.items():
        covered = [100 * ((low <= truth) & (truth <= high)).mean() for low, high in batches]
        low, high = np.concatenate(batches, axis=1)
        error = np.std(covered, ddof=1) / math.sqrt(len(covered))
        missed = f"{100 * (high < truth).mean():.1f} below, {100 * (truth < low).mean():.1f} above"
        half, most = np.percentile(widths[method], (50, 97.5)) / np.median(widths[base])
        width = f"width {half:.2f}, 1 in 40 over {most:.3g}"
        texts.append(f"{title}, {method}: {np.mean(covered):.1f} ± {error:.1f} ({missed}); {width}")
    return texts


def simulate(count: int, batches: int) -> list[str]:
    """The lines of all populations with `count` clusters."""
    found: dict[str, Found] = {name: {} for name in POPULATIONS}
    for seed in range(batches):
        labels, z = draw(np.random.default_rng([count, seed]), count, AT_ONCE)
        clusters = Clusters(labels, least=2, seed=seed)
        for name, (values, _) in POPULATIONS.items():
            add(found[name], intervals(clusters, values(z)))
        images = Clusters(np.arange(len(labels)), least=2, seed=seed)
        mean, excess, _ = images.excess(POPULATIONS[WITHOUT_CLUSTERS][0](z))
        add(found[WITHOUT_CLUSTERS], {"percentile over images": percentile(mean + images.shifts(excess))})
    return [
        text
        for name, (_, truth) in POPULATIONS.items()
        for text in lines(f"{name}, {count} clusters", found[name], truth, "studentised")
    ]


def simulate_best(count: int, batches: int) -> list[str]:
    """The lines of the best of some constants with `count` clusters, against the mean of the truly best."""
    found: Found = {}
    for seed in range(batches):
        labels, z = draw(np.random.default_rng([count, seed]), count, BESTS_AT_ONCE)
        clusters = Clusters(labels, least=2, seed=seed)
        for column in z.T:
            away = LOG_CONSTANTS - (LOG_DEPTH + LOG_SPREAD * column)[:, None]
            add(found, best_intervals(clusters, (abs(away) < LOG_DELTA1).astype(float)))
    return lines(f"best constant, {count} clusters", found, best_mean(), "less the gain")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; every error for the user is one sentence on stderr."""
    args = build_parser().parse_args(argv)

    def work() -> None:
        batches = 2 if args.quick else max(2, args.trials // AT_ONCE)
        print(f"{batches * AT_ONCE} trials, {batches * BESTS_AT_ONCE} of the best constant; nominal: 95 %", flush=True)
        for count in CLUSTERS:
            print("\n".join(simulate(count, batches)), flush=True)
        for count in BEST_CLUSTERS:
            print("\n".join(simulate_best(count, batches)), flush=True)

    return options.run_command("benchmarks.coverage", work)


if __name__ == "__main__":
    sys.exit(main())
