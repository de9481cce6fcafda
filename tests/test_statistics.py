"""experiments.statistics: values worked by hand, intervals against a naive loop and against theory."""

import math

import numpy as np
import pytest

from experiments import statistics
from experiments.statistics import INTERVAL, RESAMPLES, Clusters, Results, best_elsewhere, best_places, minus, p_value

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
    return Results(["a", "b", "c"], ["den", "office", "den"], ["x", "y", "x"], [5, 6, 7], ROWS, EACH, baselines)


@pytest.fixture
def few_resamples(monkeypatch):
    """So that a naive loop over them takes no time."""
    monkeypatch.setattr(statistics, "RESAMPLES", 300)


def random_results(metric: str, clusters: list[str], seed: int = 0) -> tuple[Results, np.ndarray]:
    """Rows of one metric and random values, and four constants (4, I) of which the best are nearly as good."""
    rng, count = np.random.default_rng(seed), len(clusters)
    counts = dict.fromkeys(("valid_pixels", "dropped_pixels"), np.zeros(2, dtype=int))
    each = [{metric: row, **counts} for row in rng.gamma(1, size=(count, 2))]
    images, places = [f"{i}" for i in range(count)], range(count)
    found = Results(images, images, clusters, places, ("mine", "nothing"), each, {"mine": "nothing"})
    return found, rng.gamma(1, size=(4, count)) + np.array([[0], [0.1], [0], [0.6]])


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


def test_spread_is_over_the_means_of_rows(results):
    assert results.ranges(ROWS[:3]) == {
        "min": pytest.approx({"rmse": 2, "delta1": 0.1}),
        "median": pytest.approx({"rmse": 3, "delta1": 0.25}),
        "max": pytest.approx({"rmse": 5, "delta1": 0.7}),
    }


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
    ranked, _ = random_results("spearman", list("abcde"))
    assert (
        ranked.contrast("mine", "nothing", "spearman").wins == (ranked.paired("mine", "nothing", "spearman") > 0).sum()
    )
    assert random_results("rmse", ["a"])[0].contrast("mine", "nothing", "rmse").dz is None


@pytest.mark.parametrize(("metric", "sign"), [("delta1", 1), ("rmse", -1)])
def test_differences_of_rounding_are_none(metric, sign):
    counts = dict.fromkeys(("valid_pixels", "dropped_pixels"), np.zeros(2, dtype=int))

    def contrast(*differences):
        each = [{metric: np.array([1 + sign * difference, 1]), **counts} for difference in differences]
        images = [f"{i}" for i in range(len(each))]
        found = Results(images, images, images, range(len(each)), ("mine", "nothing"), each, {"mine": "nothing"})
        return found.contrast("mine", "nothing", metric)

    assert contrast(5e-6, 2e-5, -2e-5).wins == 1  # two pixels of an image's delta are a difference
    assert contrast(0, 4e-6).dz is None  # the spread is 2.8e-6
    assert contrast(0, 4e-5).dz == pytest.approx(sign / math.sqrt(2))


def test_constants_by_hand(results):
    swept = {"rmse": np.array([[1, 1, 7], [3, 3, 2], [9, 9, 0]]), "delta1": np.array([[0.5, 0, 0.1], [0.2, 0.2, 0.3]])}
    assert best_places(swept) == results.add_best_constant("best", swept) == {"rmse": 1, "delta1": 1}
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


def naive_interval(values: np.ndarray, labels: np.ndarray, counts: np.ndarray) -> tuple[float, float]:
    """The studentised interval of a mean, (I,), by lists of the images that each resample draws."""
    members = [np.flatnonzero(labels == label) for label in sorted(set(labels))]

    def measured(drawn: list[np.ndarray]) -> tuple[float, float]:
        mean = values[np.concatenate(drawn)].mean()
        squares = sum((values[cluster] - mean).sum() ** 2 for cluster in drawn)
        return mean, math.sqrt(squares) / sum(map(len, drawn))

    mean, error = measured(members)
    ts = []
    for row in counts.astype(int):
        resampled, its_error = measured([members[i] for i, times in enumerate(row) for _ in range(times)])
        ts.append((resampled - mean) / max(its_error, 0.1 * error))
    ts.sort()

    def quantile(percent: float) -> float:
        low, part = divmod(percent / 100 * (len(ts) - 1), 1)
        return ts[int(low)] * (1 - part) + ts[int(low) + 1] * part

    return mean - quantile(97.5) * error, mean - quantile(2.5) * error


def test_resamples_draw_as_many_clusters_with_replacement():
    clusters = Clusters(np.array(list("hgfedcbaabcdefghijij")))
    assert clusters.sizes.tolist() == [2] * 10
    counts = clusters.counts
    assert counts.shape == (RESAMPLES, 10)
    assert (counts.sum(1) == 10).all()
    assert counts.mean(0) == pytest.approx([1] * 10, abs=0.05)
    assert counts.var() == pytest.approx(1 - 1 / 10, rel=0.05)  # of a binomial number
    np.testing.assert_array_equal(counts, Clusters(np.arange(10)).counts)
    assert not np.array_equal(counts, Clusters(np.arange(10), seed=1).counts)


def test_clusters_of_one_are_a_bootstrap_over_images(few_resamples):
    values, clusters = np.random.default_rng(0).gamma(1, size=(12, 3)), Clusters(np.arange(12))
    drawn = np.array([values[np.repeat(range(12), row.astype(int))] for row in clusters.counts])  # (300, 12, 3)
    t = (drawn.mean(1) - values.mean(0)) / (drawn.std(1) / math.sqrt(12))
    low, high = np.percentile(t, INTERVAL, axis=0)
    error = values.std(0) / math.sqrt(12)
    expected = np.stack([values.mean(0) - high * error, values.mean(0) - low * error], axis=1)
    np.testing.assert_allclose(clusters.intervals(values), expected, atol=2e-6)


def test_clusters_of_unequal_size_equal_a_naive_loop(few_resamples):
    labels = np.repeat(list("abcdefghijk"), [1, 7, 2, 1, 3, 5, 1, 1, 4, 2, 9])
    values = np.random.default_rng(1).gamma(1, size=(36, 3)) + (labels < "d")[:, None]
    clusters = Clusters(labels)
    found = clusters.intervals(values)
    for column, interval in zip(values.T, found, strict=True):
        assert interval == pytest.approx(naive_interval(column, labels, clusters.counts), abs=2e-6)
    order = np.random.default_rng(2).permutation(36)
    np.testing.assert_allclose(Clusters(labels[order]).intervals(values[order]), found, atol=2e-6)


def test_names_of_clusters_say_nothing():
    labels = np.arange(30) // 2
    values = np.random.default_rng(3).gamma(1, size=(30, 1))
    ((low, high),) = Clusters(labels).intervals(values)
    renamed = Clusters(np.array([f"{i * 7 % 15:02d}" for i in labels])).intervals(values)  # other resamples
    assert renamed[0] == pytest.approx((low, high), abs=0.05 * (high - low))


@pytest.mark.parametrize(("metric", "sign"), [("delta1", 1), ("abs_rel", -1)])
def test_intervals_of_the_best_constant_are_without_what_choosing_gains(few_resamples, metric, sign):
    clusters = [f"{i % 11:02d}" for i in range(25)]
    results, swept = random_results(metric, clusters)
    place = results.add_best_constant("best", {metric: swept})[metric]
    labels, counts = results.clusters, results.all_clusters.counts
    sums = np.array([swept.T[labels == label].sum(0) for label in sorted(set(clusters))])
    means = counts @ sums / (counts @ [sum(labels == label) for label in sorted(set(clusters))])[:, None]
    assert len(set((sign * means).argmax(1))) > 2  # or the test would say nothing
    gain = sign * ((sign * means).max(1).mean() - (sign * swept.mean(1)).max())
    assert sign * gain > 0
    own, less = (found[metric] for found in results.intervals(["best"])["best"])
    nothing, mine = results.metrics["nothing"][:, 0], results.metrics["mine"][:, 0]
    best = swept[place]
    assert own == pytest.approx(np.array(naive_interval(best, labels, counts)) - gain, abs=3e-6)
    assert less == pytest.approx(np.array(naive_interval(best - nothing, labels, counts)) - gain, abs=3e-6)
    contrast, turned = results.contrast("mine", "best", metric), results.contrast("best", "mine", metric)
    assert contrast.interval_95 == pytest.approx(np.array(naive_interval(mine - best, labels, counts)) + gain, abs=3e-6)
    assert turned.interval_95 == pytest.approx([-contrast.interval_95[1], -contrast.interval_95[0]], abs=3e-6)
    assert contrast.difference == pytest.approx(mine.mean() - best.mean())
    plain = results.contrast("mine", "nothing", metric).interval_95
    assert plain == results.intervals(["mine"])["mine"][1][metric]
    assert plain == pytest.approx(naive_interval(mine - nothing, labels, counts), abs=2e-6)


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


def test_fewer_than_ten_clusters_have_no_interval(results):
    nothing = {"rmse": None, "delta1": None}
    assert results.intervals(["mine"]) == {"mine": (nothing, nothing)}
    for count in (9, 10):
        found, swept = random_results("rmse", [f"{i % count}" for i in range(20)])
        found.add_best_constant("best", {"rmse": swept})
        pairs = [found.contrast("mine", row, "rmse").interval_95 for row in ("nothing", "best")]
        pairs += [found.intervals([row])[row][0]["rmse"] for row in ("mine", "best")]
        assert [pair is None for pair in pairs] == [count == 9] * 4


def test_intervals_of_a_scene_are_over_its_clusters():
    found, swept = random_results("rmse", [f"{i // 2:02d}" for i in range(60)])
    found.scenes = np.array(["den", "hall", "attic"]).repeat((24, 24, 12))
    found.add_best_constant("best", {"rmse": swept})
    found.baselines = {"best": "mine", "mine": "nothing"}
    den = Clusters(found.clusters[:24])
    for row in ("mine", "best"):  # the best of all images
        own, other = found.metrics[row][:24], found.metrics[found.baselines[row]][:24]
        pairs = found.intervals([row], "den")[row]
        assert [pair["rmse"] for pair in pairs] == den.intervals(np.concatenate([own, own - other], axis=1))
    assert found.intervals(["mine"], "attic")["mine"][0]["rmse"] is None


def test_a_mean_without_spread_is_its_own_interval():
    values = np.stack([np.full(20, 0.1), np.arange(20) % 2], axis=1)  # the second has one mean in each cluster
    clusters = Clusters(np.arange(20) // 2)
    assert clusters.intervals(values) == [(0.1, 0.1), (0.5, 0.5)]
    assert clusters.gain(values, largest=True) == clusters.gain(values, largest=False) == 0


@pytest.mark.parametrize("count", [10, 12, 60])
def test_resamples_without_spread_do_not_widen_intervals_without_end(count):
    values = (np.arange(count) == 0).astype(float)[:, None]  # one cluster differs, which a third draws nowhere
    ((low, high),) = Clusters(np.arange(count)).intervals(values)
    assert -1 / count < low < 1 / count
    assert high == pytest.approx(11 / count, abs=1e-6)  # t* = -1 / count / (0.1 se) of those that do not draw it


@pytest.mark.parametrize("count", [16, 60])
def test_95_of_100_intervals_cover_the_true_mean(monkeypatch, count):
    monkeypatch.setattr(statistics, "RESAMPLES", 1000)
    rng = np.random.default_rng(5)
    labels = np.repeat(np.arange(count), rng.integers(1, 7, count))
    samples = rng.gamma(1, size=(count, 1000))[labels] + rng.normal(0, 0.5, (len(labels), 1000))  # 1000 evaluations
    clusters = Clusters(labels)

    def coverage(low: np.ndarray, high: np.ndarray) -> float:
        return ((low < 1) & (high > 1)).mean()

    covered = coverage(*np.array(clusters.intervals(samples)).T)
    mean, excess, _ = clusters.excess(samples)
    percentiles = coverage(*np.percentile(mean + clusters.shifts(excess), INTERVAL, axis=0))
    assert 0.92 < covered < 0.975
    assert percentiles < covered
    assert percentiles < 0.9 or count > 16
