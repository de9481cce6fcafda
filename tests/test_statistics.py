"""experiments.statistics: values worked by hand, intervals against a naive loop and scipy."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from scipy import stats

from experiments.statistics import Results, best_elsewhere, folds_of, interval_of, p_value, t_975
from tests.conftest import Images

ROWS = ("mine", "other", "nothing", "little")
RMSE = ([1, 4, 2, 3], [2, 5, 2, 3], [6, 6, 2, 3])  # of each image, row by row
DELTA1 = ([0.5, 0.1, 0, 0], [0.6, 0.1, 0.25, 0], [1, 0.1, 0.5, 0])


def errors_of(**metrics: list[float]) -> dict[str, dict[str, float]]:
    """An image's errors: row -> metric -> value, from the values of each of `ROWS`, or of the first and third."""
    rows = ROWS if len(next(iter(metrics.values()))) == 4 else ROWS[::2]
    return {
        row: {"valid_pixels": 10 + i, "dropped_pixels": i} | {name: float(v[i]) for name, v in metrics.items()}
        for i, row in enumerate(rows)
    }


@pytest.fixture
def results() -> Results:
    """Three images in two scenes, four rows, of which "nothing" is the first's baseline, "little" the second's."""
    images = Images(["a", "b", "c"], ["den", "office", "den"], ["x", "y", "x"], [5, 6, 7])
    each = [errors_of(rmse=rmse, delta1=delta1) for rmse, delta1 in zip(RMSE, DELTA1, strict=True)]
    return Results(images, each, {"mine": "nothing", "other": "little"})


def two_rows(metric: str, values: np.ndarray, clusters: Sequence[object] = ()) -> Results:
    """Rows "mine" and "nothing" of one metric, (I, 2); each image is a cluster, unless they are given."""
    names = [f"{i}" for i in range(len(values))]
    images = Images(names, names, list(map(str, clusters)) or names, range(len(values)))
    return Results(images, [errors_of(**{metric: row}) for row in values.tolist()], {"mine": "nothing"})


# ---- worked by hand


def test_means_and_differences_by_hand(results):
    assert results.columns == ("rmse", "delta1")
    assert results.mean("mine") == pytest.approx({"rmse": 3, "delta1": 0.7})
    assert results.mean("mine", "den") == pytest.approx({"rmse": 3.5, "delta1": 0.75})
    assert results.mean("mine", "attic") == {"rmse": None, "delta1": None}
    assert results.counts["other"].tolist() == [[11, 1]] * 3
    assert results.difference("mine") == pytest.approx({"rmse": 1, "delta1": 0.45})
    assert results.difference("other") == pytest.approx({"rmse": 2, "delta1": 0.1})
    assert results.difference("little") == pytest.approx({"rmse": 1, "delta1": -0.25})  # none of its own: the first's
    results.add_constant("best", {"rmse": np.array([1, 1, 0])})
    assert results.mean("best") == pytest.approx({"rmse": 2 / 3, "delta1": 0.25})  # the first baseline's delta1
    assert results.counts["best"].tolist() == [[12, 2]] * 3
    assert results.mean("nothing") == pytest.approx({"rmse": 2, "delta1": 0.25})  # as before


def test_images_without_a_metric_are_left_out_and_the_other_rows_count_as_0():
    found = two_rows("spearman", np.random.default_rng(0).gamma(1, size=(12, 2)))
    mine, nothing = (found.metrics[row][:, 0] for row in ("mine", "nothing"))
    mine[3], nothing[5:] = np.nan, np.nan
    known = np.delete(np.arange(12), 3)
    assert found.mean("mine")["spearman"] == pytest.approx(mine[known].mean())
    less = mine[known] - np.where(known < 5, nothing[known], 0)
    contrast = found.contrast("mine", "nothing", "spearman")
    assert contrast.difference == found.difference("mine")["spearman"] == pytest.approx(less.mean())
    assert (contrast.wins, contrast.images) == ((less > 0).sum(), 11)
    assert contrast.interval_95 == found.intervals("mine")[1]["spearman"] == interval_of(less, known)
    mine[:] = np.nan
    contrast = found.contrast("mine", "nothing", "spearman")
    assert contrast.difference is contrast.interval_95 is contrast.dz is None
    assert found.mean("mine") == found.difference("mine") == {"spearman": None}


def test_contrasts_by_hand(results):
    lower = results.contrast("mine", "nothing", "rmse", p=0.25)  # -1, 0, 4
    assert (lower.row, lower.minus, lower.metric, lower.wins, lower.images) == ("mine", "nothing", "rmse", 1, 3)
    assert (lower.difference, lower.dz, lower.p) == pytest.approx((1, 1 / math.sqrt(7), 0.25))
    higher = results.contrast("mine", "nothing", "delta1")  # 0.5, 0.35, 0.5
    assert (higher.wins, higher.p) == (3, None)
    assert (higher.difference, higher.dz) == pytest.approx((0.45, 3 * math.sqrt(3)))
    same = results.contrast("nothing", "little", "rmse")  # -1 each
    assert (same.difference, same.dz, same.wins) == (-1, None, 3)
    assert two_rows("rmse", np.ones((1, 2))).contrast("mine", "nothing", "rmse").dz is None


@pytest.mark.parametrize(("metric", "sign"), [("aligned_delta1", 1), ("ordinal", -1), ("rmse", -1)])
def test_differences_of_rounding_are_none(metric, sign):
    def contrast(*differences):
        values = np.array([[1 + sign * difference, 1] for difference in differences])
        return two_rows(metric, values).contrast("mine", "nothing", metric)

    assert contrast(5e-6, 2e-5, 3e-5, -2e-5).wins == 2  # two pixels of an image's delta are a difference
    assert contrast(0, 4e-6).dz is None  # the spread is 2.8e-6
    assert contrast(0, 4e-5).dz == pytest.approx(sign / math.sqrt(2))


def test_ties_count_against_oneself_and_p_is_never_zero():
    others = np.array([0.4, 0.5, 0.6, 0.7])
    assert p_value(0.5, others, higher=True) == 4 / 5
    assert p_value(0.5, others, higher=False) == 3 / 5
    assert p_value(0.3, np.array([0.1 + 0.2, 0.2]), higher=False) == 1  # a tie but for rounding
    assert p_value(1, np.zeros(9), higher=True) == p_value(-1, np.zeros(9), higher=False) == 1 / 10


# ---- intervals


def naive_interval(values: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """The cluster-robust interval of a mean, (I,), cluster by cluster, with scipy's quantile."""
    mean = values.mean()
    sums = [sum(values[labels == cluster] - mean) for cluster in set(labels)]
    count = len(sums)
    error = math.sqrt(count / (count - 1) * sum(s**2 for s in sums)) / len(values)
    reach = stats.t.ppf(0.975, count - 1) * error
    return mean - reach, mean + reach


def test_quantiles_are_those_of_scipy():
    for freedom in (9, 10, 15, 59, 214, 653, 10**6):
        assert t_975(freedom) == pytest.approx(stats.t.ppf(0.975, freedom), abs=1.4e-5)


def test_clusters_of_unequal_size_equal_a_naive_loop():
    labels = np.repeat(list("abcdefghijk"), [1, 7, 2, 1, 3, 5, 1, 1, 4, 2, 9])
    values = np.random.default_rng(1).gamma(1, size=36) + (labels < "d")
    assert interval_of(values, labels) == pytest.approx(naive_interval(values, labels), abs=2e-5)
    assert interval_of(np.arange(20) % 2, np.arange(20) // 2) == (0.5, 0.5)  # one mean in each cluster
    usual = stats.t.interval(0.95, 35, values.mean(), stats.sem(values))
    assert interval_of(values, np.arange(36)) == pytest.approx(usual, abs=2e-5)  # clusters of one image


@pytest.mark.parametrize("count", [9, 10])
def test_fewer_than_ten_clusters_have_no_interval(count):
    found = two_rows("rmse", np.ones((20, 2)), np.arange(20) % count)
    assert found.interval_note.startswith("No intervals" if count == 9 else "95 % intervals: cluster-robust, over 10 c")
    assert (found.intervals("mine")[0]["rmse"] is None) == (count == 9)
    assert interval_of(np.ones(0), np.ones(0)) is None


@pytest.mark.parametrize("metric", ["delta3", "aligned_delta1", "ordinal", "abs_rel"])
def test_an_interval_of_a_share_is_cut_at_0_and_1_and_one_of_differences_is_not(metric):
    values = np.array([[1, 0], *[[0.99, 0.01]] * 10, [0.6, 0.7]])
    found = two_rows(metric, values)
    (mine, less), (nothing, _) = found.intervals("mine"), found.intervals("nothing")
    uncut = [interval_of(each, np.arange(12)) for each in (*values.T, values[:, 0] - values[:, 1])]
    assert uncut[0][1] > 1 > 0 > uncut[1][0]
    assert less[metric] == uncut[2]
    assert uncut[2][1] > 1
    assert mine[metric] == (uncut[0][0], 1 if metric != "abs_rel" else uncut[0][1])
    assert nothing[metric] == (0 if metric != "abs_rel" else uncut[1][0], uncut[1][1])
    assert found.interval_note.endswith("those of shares are cut at 0 and 1.")


# ---- folds and constants


def test_clusters_are_dealt_to_folds_in_the_order_of_their_first_image():
    assert folds_of(["b", "a", "b", "c", "a"]) == [0, 1, 0, 2, 1]
    assert folds_of([f"{i // 2}" for i in range(24)]) == [i // 2 % 10 for i in range(24)]


@pytest.mark.parametrize("higher", [True, False])
def test_the_best_constant_of_other_folds_equals_a_naive_loop(higher):
    rng = np.random.default_rng(2)
    folds, swept = rng.permutation(np.repeat(range(4), [1, 2, 4, 4])).tolist(), rng.random((5, 11))
    found, chosen = best_elsewhere(swept, folds, higher), set()
    for i, fold in enumerate(folds):
        means = [np.mean([v for v, other in zip(row, folds, strict=True) if other != fold]) for row in swept]
        best = means.index(max(means) if higher else min(means))
        chosen.add(best)
        assert found[i] == swept[best, i]
    assert len(chosen) > 1
