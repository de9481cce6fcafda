"""benchmarks: what is compared computes the same, and the printed ratios are right. Nothing here asserts a speed."""

import re
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

import eval as evaluation
import options
from benchmarks import coverage, plain, speed
from calculate_error import NYU_METRICS
from datasets.nyu import open_nyu
from experiments.published import THIS_RUN
from experiments.statistics import Clusters
from monoclip import PAPER, MonoCLIP

CPU = torch.device("cpu")
METHODS = ("percentile", "BCa", "studentised")


def test_plain_implementation_predicts_what_the_method_predicts(tiny_clip, golden_inputs):
    image = golden_inputs["x"][:1]
    with torch.inference_mode():
        text_features = plain.words(tiny_clip)
        model = MonoCLIP(tiny_clip)
        assert_close(text_features, model.text_features, rtol=0, atol=1e-5)
        assert_close(plain.predict(tiny_clip, text_features, image), model.predict(image), rtol=0, atol=1e-4)


def test_plain_implementation_has_the_metrics_of_an_evaluation(tiny_checkpoint, nyu_folder):
    folder = nyu_folder(3)
    _, model = options.load_model(tiny_checkpoint, CPU, "fp32", PAPER, activation="quickgelu")
    dataset = open_nyu(folder, PAPER.normalised, limit=2)
    rows = [row for rows in evaluation.evaluate(model, dataset, CPU) for row in rows]
    found = plain.evaluate(plain.load(tiny_checkpoint), folder, limit=2)
    assert tuple(found) == NYU_METRICS
    assert found == pytest.approx(evaluation.mean(rows, THIS_RUN), abs=1e-4)


def test_images_are_as_many_different_ones_as_asked_for(tmp_path):
    speed.write_images(tmp_path, 20, 18)
    dataset = open_nyu(tmp_path, PAPER.normalised)
    assert len(dataset) == 20
    assert len({dataset.image_sha256(item) for item in range(20)}) == 18
    assert_close(dataset[0], dataset[16])  # the demo has 16 pictures


def test_ratios_by_hand(tmp_path):
    names = speed.commands(tmp_path, tmp_path, tmp_path, 8, "cpu")
    seconds = {name: [1.0, 1.0, 1.0] for name in names} | {
        "plain": [10.0, 20.0, 40.0],
        "eval fp32": [5.0, 16.0, 28.0],
        "paper": [5.0, 20.0, 35.0],
    }
    fp32, _, paper, _, faster, words, _ = speed.command_lines(seconds, 8, 16, "bf16")
    # Within rounds 0.5, 0.8, 0.7; then 1, 1.25, 1.25; and 8 / (0.5, 1, 0.875).
    assert fp32 == (
        "eval.py, fp32, 8 images: 0.70 of the plain implementation's time (16.0 s against 20.0 s); target: at most 0.80"
    )
    assert "1.25 of eval.py's time" in paper
    assert re.search(r"\b9\.1 times faster.*8 settings \(20\.0 s against 8 x 20\.0 s\)", faster)
    assert "16 stored images: 1.0 s" in words


def test_runs_take_turns_and_a_command_that_fails_is_one_sentence():
    calls = []
    seconds = speed.take_turns({name: lambda name=name: calls.append(name) for name in "ab"}, rounds=2)
    assert calls == ["a", "b", "a", "b"]
    assert {name: len(times) for name, times in seconds.items()} == {"a": 2, "b": 2}
    with pytest.raises(options.WorkError, match=r"unrecognized arguments: --nothing$"):
        speed.command("eval.py", "--nothing")


def test_percentiles_of_means_by_hand():
    means = np.arange(41.0)[:, None] * [1, 10]  # 2.5 % of the way from 0 to 40 is 1
    assert coverage.percentile(means).tolist() == [[1, 10], [39, 390]]


def test_bca_intervals_are_scipys_where_a_cluster_is_an_image():
    values = np.random.default_rng(0).lognormal(size=(20, 3))
    clusters = Clusters(np.arange(20))
    mean, excess, _ = clusters.excess(values)
    resampled = SimpleNamespace(bootstrap_distribution=(mean + clusters.shifts(excess)).T)
    expected = stats.bootstrap((values.T,), np.mean, axis=1, n_resamples=0, method="BCa", bootstrap_result=resampled)
    found = coverage.intervals(clusters, values)["BCa"]
    np.testing.assert_allclose(found, np.array(expected.confidence_interval), atol=1e-9)


def test_bca_leaves_out_whole_clusters():
    labels, values = np.array([0, 0, 0, 1, 2, 2, 3]), np.random.default_rng(0).lognormal(size=(7, 2))
    clusters = Clusters(labels, least=2)
    mean, excess, _ = clusters.excess(values)
    left_out = np.array([values[labels != cluster].mean(axis=0) for cluster in range(4)])
    expected = coverage.bca(mean, mean + clusters.shifts(excess), left_out)
    np.testing.assert_allclose(coverage.intervals(clusters, values)["BCa"], expected, atol=1e-9)


def test_true_means_are_those_of_very_many_images():
    z = np.array([coverage.NORMAL.inv_cdf((i + 0.5) / 20_000) for i in range(20_000)])
    for values, truth in coverage.POPULATIONS.values():
        assert values(z).mean() == pytest.approx(truth, abs=1e-3)
    away = coverage.LOG_CONSTANTS[:, None] - coverage.LOG_DEPTH - coverage.LOG_SPREAD * z
    assert (abs(away) < coverage.LOG_DELTA1).mean(axis=1).max() == pytest.approx(coverage.best_mean(), abs=1e-3)


def test_coverage_by_hand():
    one, two = np.array([[0.0, 2], [4, 4]]), np.array([[-2.0, -2], [0, 4]])  # lower bounds, upper bounds
    found = {"a": [one, two], "b": [one / 2, two / 2]}
    # Of widths 4, 2, 2, 6, the second lies above 1, the third below. Half as wide, the second begins at 1.
    first, second = coverage.lines("title", found, 1, "a")
    assert first == "title, a: 50.0 ± 0.0 (25.0 below, 25.0 above); width 1.00, 1 in 40 over 1.95"
    assert second == "title, b: 75.0 ± 25.0 (25.0 below, 0.0 above); width 0.50, 1 in 40 over 0.975"


def test_tiny_simulation_prints_a_line_for_each_result(monkeypatch, capsys):
    monkeypatch.setattr(coverage, "CLUSTERS", (5,))
    monkeypatch.setattr(coverage, "BEST_CLUSTERS", (5,))
    assert coverage.main(["--quick"]) == 0
    head, *found = capsys.readouterr().out.splitlines()
    assert head.startswith("100 trials, 20 of the best constant")
    assert found[:13] == coverage.simulate(5, 2)  # again the same
    titles = [f"{name}, 5 clusters, {method}" for name in coverage.POPULATIONS for method in METHODS]
    titles.insert(3, "normal, 5 clusters, percentile over images")
    titles += [f"best constant, 5 clusters, {method}" for method in ("chosen once", "less the gain")]
    assert [line.split(":")[0] for line in found] == titles
    covered = {title: float(line.split(": ")[1].split(" ")[0]) for title, line in zip(titles, found, strict=True)}
    assert covered["normal, 5 clusters, percentile over images"] < covered["normal, 5 clusters, studentised"]
