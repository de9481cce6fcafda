"""experiments.statistics: means worked by hand, and intervals against a naive loop and against theory."""

import numpy as np
import pytest

from experiments.statistics import RESAMPLES, Results, bootstrap, minus, resampling_weights

ROWS = ("mine", "other", "nothing")


def errors(rmse: list[float], delta1: list[float]) -> dict[str, np.ndarray]:
    counts = {"valid_pixels": np.array([10, 11, 12]), "dropped_pixels": np.array([0, 1, 2])}
    return {"rmse": np.array(rmse), "delta1": np.array(delta1), **counts}


@pytest.fixture
def results() -> Results:
    """Three images in two scenes, three rows, of which "nothing" is the baseline."""
    each = [errors([1, 4, 2], [0.5, 0.1, 0]), errors([2, 5, 2], [0.6, 0.1, 0.25]), errors([6, 6, 2], [1, 0.1, 0.5])]
    return Results(["a", "b", "c"], ["den", "office", "den"], [5, 6, 7], ROWS, each, "nothing")


def test_means_by_hand(results):
    assert results.columns == ("rmse", "delta1")
    assert results.mean("mine") == pytest.approx({"rmse": 3, "delta1": 0.7})
    assert results.mean("mine", "den") == pytest.approx({"rmse": 3.5, "delta1": 0.75})
    assert results.mean("mine", "office") == pytest.approx({"rmse": 2, "delta1": 0.6})
    assert results.mean("mine", "attic") == {"rmse": None, "delta1": None}


def test_differences_by_hand(results):
    assert results.difference("mine") == pytest.approx({"rmse": 1, "delta1": 0.45})
    assert results.difference("mine", "den") == pytest.approx({"rmse": 1.5, "delta1": 0.5})
    assert results.difference("mine", "attic") == {"rmse": None, "delta1": None}
    assert (minus(3, 1), minus(None, 1), minus(1, None)) == (2, None, None)


def test_spread_is_over_the_means_of_rows(results):
    assert results.ranges(ROWS) == {
        "min": pytest.approx({"rmse": 2, "delta1": 0.1}),
        "median": pytest.approx({"rmse": 3, "delta1": 0.25}),
        "max": pytest.approx({"rmse": 5, "delta1": 0.7}),
    }


def test_a_row_like_the_baseline(results):
    results.add_like_baseline("best", {"rmse": np.array([1, 1, 0])})
    assert results.mean("best") == pytest.approx({"rmse": 2 / 3, "delta1": 0.25})
    assert results.counts["best"].tolist() == results.counts["nothing"].tolist() == [[12, 2]] * 3


def test_every_image_has_the_same_weight_in_any_order(results):
    each = [errors([6, 6, 2], [1, 0.1, 0.5]), errors([1, 4, 2], [0.5, 0.1, 0]), errors([2, 5, 2], [0.6, 0.1, 0.25])]
    other = Results(["c", "a", "b"], ["den", "den", "office"], [7, 5, 6], ROWS, each, "nothing")
    for scene in (None, "den", "office"):
        assert other.mean("mine", scene) == pytest.approx(results.mean("mine", scene))


def test_resampling_weights_are_shares_of_draws_with_replacement():
    weights = resampling_weights(8)
    assert weights.shape == (RESAMPLES, 8)
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(weights * 8, (weights * 8).round(), atol=1e-12)
    assert weights.mean(0) == pytest.approx([1 / 8] * 8, abs=0.005)
    assert weights.var() == pytest.approx((1 / 8) * (7 / 8) / 8, rel=0.05)  # of a binomial share
    np.testing.assert_array_equal(weights, resampling_weights(8))
    assert not np.array_equal(weights, resampling_weights(8, seed=1))


def test_bootstrap_equals_a_naive_loop():
    rng = np.random.default_rng(0)
    values, weights = rng.normal(3, 2, (7, 3)), resampling_weights(7)[:400]
    for column, (low, high) in zip(values.T, bootstrap(values, weights), strict=True):
        means = sorted(sum(w * v for w, v in zip(row, column, strict=True)) for row in weights)
        for bound, share in ((low, 0.025), (high, 0.975)):
            place = share * 399
            i, part = int(place), place - int(place)
            assert bound == pytest.approx(means[i] * (1 - part) + means[i + 1] * part, abs=1e-9)


def test_the_interval_of_two_images_is_known():
    # resampled means of 1 and 3: 1, 2 and 3 in shares 1/4, 1/2, 1/4
    assert bootstrap(np.array([[1.0, 5.0], [3.0, 5.0]]), resampling_weights(2)).tolist() == [[1, 3], [5, 5]]


def test_95_of_100_intervals_cover_the_true_mean():
    samples = np.random.default_rng(2).normal(3, 2, (60, 500))  # 500 evaluations of 60 images
    low, high = bootstrap(samples, resampling_weights(60)).T
    assert 0.91 < ((low < 3) & (high > 3)).mean() < 0.97


def test_intervals_of_metrics_and_of_differences(results):
    own, difference = results.intervals(["mine"])["mine"]
    weights = resampling_weights(3)
    values = results.metrics["mine"]
    expected = bootstrap(np.concatenate([values, values - results.metrics["nothing"]], axis=1), weights).round(6)
    assert [own["rmse"], own["delta1"], difference["rmse"], difference["delta1"]] == [*map(tuple, expected.tolist())]
    assert results.intervals(["mine"], "den")["mine"][0]["rmse"] == (1, 6)


def test_one_image_has_no_interval(results):
    nothing = {"rmse": None, "delta1": None}
    assert results.intervals(["mine"], "office") == {"mine": (nothing, nothing)}
