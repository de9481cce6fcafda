"""experiments.statistics: values worked by hand, intervals against a naive loop and against theory."""

import math

import numpy as np
import pytest
from scipy import stats

from experiments.statistics import Images, Results, best_elsewhere, best_places, interval_of, minus, p_value, t_975

ROWS = ("mine", "other", "nothing", "little")


def errors(rmse: list[float], delta1: list[float]) -> dict[str, np.ndarray]:
    counts = {"valid_pixels": np.array([10, 11, 12, 13]), "dropped_pixels": np.array([0, 1, 2, 3])}
    return {"rmse": np.array(rmse), "delta1": np.array(delta1), **counts}


EACH = (
    errors([1, 4, 2, 3], [0.5, 0.1, 0, 0]),
    errors([2, 5, 2, 3], [0.6, 0.1, 0.25, 0]),
    errors([6, 6, 2, 3], [1, 0.1, 0.5, 0]),
)


@pytest.fixture
def results() -> Results:
    """Three images in two scenes, four rows, of which "nothing" is the first's baseline, "little" the second's."""
    baselines = {"mine": "nothing", "other": "little"}
    return Results(Images(["a", "b", "c"], ["den", "office", "den"], ["x", "y", "x"], [5, 6, 7]), ROWS, EACH, baselines)


def random_results(metric: str, clusters: list[str]) -> Results:
    """Two rows of one metric and random values."""
    rng, count = np.random.default_rng(0), len(clusters)
    counts = dict.fromkeys(("valid_pixels", "dropped_pixels"), np.zeros(2, dtype=int))
    each = [{metric: row, **counts} for row in rng.gamma(1, size=(count, 2))]
    images, places = [f"{i}" for i in range(count)], range(count)
    return Results(Images(images, images, clusters, places), ("mine", "nothing"), each, {"mine": "nothing"})


# ---- worked by hand


def test_means_by_hand(results):
    assert results.columns == ("rmse", "delta1")
    assert results.mean("mine") == pytest.approx({"rmse": 3, "delta1": 0.7})
    assert results.mean("mine", "den") == pytest.approx({"rmse": 3.5, "delta1": 0.75})
    assert results.mean("mine", "office") == pytest.approx({"rmse": 2, "delta1": 0.6})
    assert results.mean("mine", "attic") == {"rmse": None, "delta1": None}


def test_differences_are_to_a_rows_own_baseline(results):
    assert results.difference("mine") == pytest.approx({"rmse": 1, "delta1": 0.45})
    assert results.difference("mine", "den") == pytest.approx({"rmse": 1.5, "delta1": 0.5})
    assert results.difference("mine", "attic") == {"rmse": None, "delta1": None}
    assert results.difference("other") == pytest.approx({"rmse": 2, "delta1": 0.1})
    assert results.difference("little") == pytest.approx({"rmse": 1, "delta1": -0.25})  # none of its own: the first's
    assert (minus(3, 1), minus(None, 1), minus(1, None)) == (2, None, None)


def test_images_without_a_metric_are_left_out_and_the_other_rows_count_as_0():
    found = random_results("spearman", [f"{i}" for i in range(12)])
    mine, nothing = (found.metrics[row][:, 0] for row in ("mine", "nothing"))
    mine[3], nothing[5:] = np.nan, np.nan
    known = np.delete(np.arange(12), 3)
    assert found.mean("mine")["spearman"] == pytest.approx(mine[known].mean())
    less = mine[known] - np.where(known < 5, nothing[known], 0)
    contrast = found.contrast("mine", "nothing", "spearman")
    assert contrast.difference == found.difference("mine")["spearman"] == pytest.approx(less.mean())
    assert contrast.wins == (less > 0).sum()
    assert contrast.interval_95 == found.intervals("mine")[1]["spearman"] == interval_of(less, known)
    mine[:] = np.nan
    contrast = found.contrast("mine", "nothing", "spearman")
    assert (contrast.difference, contrast.interval_95, contrast.wins, contrast.dz) == (None, None, 0, None)
    assert found.mean("mine") == found.difference("mine") == {"spearman": None}


def test_contrasts_by_hand(results):
    lower = results.contrast("mine", "nothing", "rmse", p=0.25)  # -1, 0, 4
    assert (lower.row, lower.minus, lower.metric, lower.wins, lower.p) == ("mine", "nothing", "rmse", 1, 0.25)
    assert (lower.difference, lower.dz) == pytest.approx((1, 1 / math.sqrt(7)))
    higher = results.contrast("mine", "nothing", "delta1")  # 0.5, 0.35, 0.5
    assert (higher.wins, higher.p) == (3, None)
    assert (higher.difference, higher.dz) == pytest.approx((0.45, 3 * math.sqrt(3)))
    same = results.contrast("nothing", "little", "rmse")  # -1 each
    assert (same.difference, same.dz, same.wins) == (-1, None, 3)
    assert results.contrast("mine", "mine", "delta1").wins == results.contrast("mine", "mine", "rmse").wins == 0
    assert lower.interval_95 is None  # two clusters
    ranked = random_results("spearman", list("abcde"))
    assert (
        ranked.contrast("mine", "nothing", "spearman").wins == (ranked.paired("mine", "nothing", "spearman") > 0).sum()
    )
    assert random_results("rmse", ["a"]).contrast("mine", "nothing", "rmse").dz is None


@pytest.mark.parametrize(("metric", "sign"), [("delta1", 1), ("rmse", -1)])
def test_differences_of_rounding_are_none(metric, sign):
    counts = dict.fromkeys(("valid_pixels", "dropped_pixels"), np.zeros(2, dtype=int))

    def contrast(*differences):
        each = [{metric: np.array([1 + sign * difference, 1]), **counts} for difference in differences]
        images = [f"{i}" for i in range(len(each))]
        found = Results(
            Images(images, images, images, range(len(each))), ("mine", "nothing"), each, {"mine": "nothing"}
        )
        return found.contrast("mine", "nothing", metric)

    assert contrast(5e-6, 2e-5, -2e-5).wins == 1  # two pixels of an image's delta are a difference
    assert contrast(0, 4e-6).dz is None  # the spread is 2.8e-6
    assert contrast(0, 4e-5).dz == pytest.approx(sign / math.sqrt(2))


def test_constants_by_hand(results):
    swept = {"rmse": np.array([[1, 1, 7], [3, 3, 2], [9, 9, 0]]), "delta1": np.array([[0.5, 0, 0.1], [0.2, 0.2, 0.3]])}
    assert best_places(swept) == {"rmse": 1, "delta1": 1}
    results.add_constant("best", {metric: errors[1] for metric, errors in swept.items()})
    assert results.mean("best") == pytest.approx({"rmse": 8 / 3, "delta1": 0.7 / 3})
    results.add_constant("trained", {"rmse": np.array([1, 1, 0])})
    assert results.mean("trained") == pytest.approx({"rmse": 2 / 3, "delta1": 0.25})  # delta1 as the first baseline's
    assert results.counts["best"].tolist() == results.counts["trained"].tolist() == [[12, 2]] * 3
    assert results.mean("nothing") == pytest.approx({"rmse": 2, "delta1": 0.25})  # as before


def test_ties_count_against_oneself_and_p_is_never_zero():
    others = np.array([0.4, 0.5, 0.6, 0.7])
    assert p_value(0.5, others, higher=True) == 4 / 5
    assert p_value(0.5, others, higher=False) == 3 / 5
    assert p_value(0.3, np.array([0.1 + 0.2, 0.2]), higher=False) == 1  # a tie but for rounding
    assert p_value(0.1 + 0.2, np.array([0.3, 0.2]), higher=True) == 2 / 3
    assert p_value(1, np.zeros(9), higher=True) == p_value(-1, np.zeros(9), higher=False) == 1 / 10


# ---- intervals


def naive_interval(values: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """The cluster-robust interval of a mean, (I,), cluster by cluster, with scipy's quantile."""
    n, clusters = len(values), sorted(set(labels))
    mean = sum(values) / n
    sums = [sum(value - mean for value, label in zip(values, labels, strict=True) if label == c) for c in clusters]
    count = len(clusters)
    error = math.sqrt(count / (count - 1) * sum(s**2 for s in sums)) / n
    reach = stats.t.ppf(0.975, count - 1) * error
    return mean - reach, mean + reach


def test_quantiles_are_those_of_scipy():
    for freedom in (9, 10, 15, 59, 214, 653, 10**6):
        assert t_975(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1.4e-5)


def test_clusters_of_one_have_the_usual_interval_of_a_mean():
    values = np.random.default_rng(0).gamma(1, size=12)
    expected = stats.t.interval(0.95, 11, values.mean(), stats.sem(values))
    assert interval_of(values, np.arange(12)) == pytest.approx(expected, abs=2e-5)


def test_clusters_of_unequal_size_equal_a_naive_loop():
    labels = np.repeat(list("abcdefghijk"), [1, 7, 2, 1, 3, 5, 1, 1, 4, 2, 9])
    values = np.random.default_rng(1).gamma(1, size=36) + (labels < "d")
    found = interval_of(values, labels)
    assert found == pytest.approx(naive_interval(values, labels), abs=2e-5)
    order = np.random.default_rng(2).permutation(36)
    assert interval_of(values[order], labels[order]) == pytest.approx(found, abs=1e-6)


def test_intervals_of_rows_are_of_their_means_and_of_paired_differences():
    found = random_results("rmse", [f"{i // 2:02d}" for i in range(60)])
    found.scenes = np.array(["den", "hall", "attic"]).repeat((24, 24, 12))
    mine, nothing = (found.metrics[row][:, 0] for row in ("mine", "nothing"))
    for scene, chosen in ((None, slice(60)), ("den", slice(24))):
        own, less = (pairs["rmse"] for pairs in found.intervals("mine", scene))
        labels = np.array(found.images.clusters)[chosen]
        assert own == interval_of(mine[chosen], labels)
        assert less == interval_of((mine - nothing)[chosen], labels)
    assert found.contrast("mine", "nothing", "rmse").interval_95 == found.intervals("mine")[1]["rmse"]
    turned = found.contrast("nothing", "mine", "rmse").interval_95
    assert turned == tuple(-bound for bound in reversed(found.intervals("mine")[1]["rmse"]))
    assert found.intervals("mine", "attic") == ({"rmse": None},) * 2  # six clusters


@pytest.mark.parametrize("count", [9, 10])
def test_fewer_than_ten_clusters_have_no_interval(count):
    found = random_results("rmse", [f"{i % count}" for i in range(20)])
    assert found.images.cluster_count == count
    assert found.interval_note.startswith("No intervals" if count == 9 else "95 % intervals: cluster-robust, over 10 c")
    pairs = [found.contrast("mine", "nothing", "rmse").interval_95, found.intervals("mine")[0]["rmse"]]
    assert [pair is None for pair in pairs] == [count == 9] * 2
    assert interval_of(np.ones(0), np.ones(0)) is None


def test_a_mean_without_spread_is_its_own_interval():
    labels = np.arange(20) // 2
    assert interval_of(np.full(20, 0.1), labels) == (0.1, 0.1)
    assert interval_of(np.arange(20) % 2, labels) == (0.5, 0.5)  # one mean in each cluster


@pytest.mark.parametrize("count", [16, 60])
def test_some_95_of_100_intervals_cover_the_true_mean(count):
    rng = np.random.default_rng(5)
    labels = np.repeat(np.arange(count), rng.integers(1, 7, count))
    samples = rng.normal(size=(1000, count))[:, labels] + rng.normal(0, 0.5, (1000, len(labels)))  # 1000 evaluations
    low, high = np.array([interval_of(values, labels) for values in samples]).T
    assert 0.92 < ((low < 0) & (high > 0)).mean() < 0.97


# ---- constants


@pytest.mark.parametrize("higher", [True, False])
def test_the_best_constant_of_other_clusters_equals_a_naive_loop(higher):
    rng = np.random.default_rng(2)
    labels, swept = rng.permutation(np.repeat(list("abcd"), [1, 2, 4, 4])), rng.random((5, 11))
    found, chosen = best_elsewhere(swept, labels, higher), set()
    for i, label in enumerate(labels):
        means = [np.mean([v for v, other in zip(row, labels, strict=True) if other != label]) for row in swept]
        best = means.index(max(means) if higher else min(means))
        chosen.add(best)
        assert found[i] == swept[best, i]
    assert len(chosen) > 1
