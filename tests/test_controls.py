"""controls and results: what a suite holds, that rows equal single runs, and controls whose figures are known."""

import json
import math

import numpy as np
import pytest
import torch
from torch import Tensor

import paper
from arguments import load_readings
from calculate_error import NYU_FIGURES, errors_NYU
from clip.model import CLIP
from evaluation import controls
from evaluation.batch_error import FIGURES, Counted
from evaluation.controls import (
    BEST,
    GRID,
    MIRRORED,
    PIXEL,
    UNIFORM,
    Predictor,
    Setting,
    Suite,
    plain_suite,
    with_bin_response,
    with_controls,
    with_paper,
)
from evaluation.results import Results, bootstrap, pack_histogram, resampling_weights, unpack_histogram
from monoclip import PAPER, MonoCLIP, Reading, with_mirror, zeroshot_classifier

NAMES = ["kitchen/rgb_00001.jpg", "office/rgb_00002.jpg"]


def soft(reading: Reading) -> Reading:
    """So soft that a tiny CLIP's depth is not one bin."""
    return Reading(
        depth_classes=reading.depth_classes,
        bin_list=reading.bin_list,
        depth_templates=reading.depth_templates,
        temperature=2,
    )


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(0))


def predict(clip_model: CLIP, suite: Suite, images: Tensor) -> dict[str, Tensor]:
    """Depth (B, h, w) of every row on the grid."""
    calls = []

    def encode(*words):
        calls.append(words)
        return zeroshot_classifier(clip_model, *words)

    model = MonoCLIP(clip_model)
    predictor = Predictor(encode, suite, clip_model.visual.patch_dim)
    assert len(calls) == len(set(calls))  # no set of prompts twice
    with torch.inference_mode():
        features = model.channel_features(with_mirror(images))
        depth = predictor(features, NAMES[: len(images)])
        if not suite.all_channels:
            thinned = predictor(model.patch_features(with_mirror(images)), NAMES[: len(images)])
            torch.testing.assert_close(thinned, depth, atol=1e-5, rtol=0)
    return dict(zip(suite.predicted, depth.unbind(1), strict=False))


def single(clip_model: CLIP, reading: Reading, images: Tensor) -> Tensor:
    """What MonoCLIP alone gives, (B, h, w)."""
    model = MonoCLIP(clip_model, reading)
    with torch.inference_mode():
        return ((model(images) + model(images.flip(-1)).flip(-1)) / 2)[:, 0]


def test_every_reading_equals_a_run_of_its_own(tiny_clip, images):
    readings = {name: soft(r) for name, r in {**paper.PROMPT_SETS, **paper.BIN_SETS}.items()}
    readings["two words"] = Reading(
        depth_classes=("near", "far away"), bin_list=(1.0, 4.0), depth_templates=("a {} that is {}",), temperature=5
    )
    depth = predict(tiny_clip, plain_suite(PAPER, readings), images)
    for name, reading in readings.items():
        expected = single(tiny_clip, reading, images)
        assert expected.std() > 1e-3
        torch.testing.assert_close(depth[name], expected, atol=1e-4, rtol=0)


def test_paper_suite_has_a_row_for_every_published_reading():
    suite = with_paper(plain_suite(PAPER))
    assert [s.name for s in suite.settings].count("this run") == 1
    for row in paper.PUBLISHED:
        if row.reading is not None:
            assert suite.row_of(row.reading)
    assert suite.row_of(PAPER) == "this run"
    assert len(suite.settings) == 1 + 3 + 4 + 1
    other = with_paper(plain_suite(Reading(bin_list=PAPER.bin_list[::-1])))
    assert other.row_of(PAPER) == "the paper's reading"
    assert len(with_bin_response(suite).settings) == len(suite.settings)


def test_controls_are_what_they_say(tiny_clip, images):
    reading = soft(PAPER)
    suite = with_controls(plain_suite(reading), channels=True, mean_image=None)
    depth = predict(tiny_clip, suite, images)
    assert {group: len(names) for group, names in suite.groups.items()} == {
        "word-to-bin permutations": 100,
        "shuffled patches": 5,
        "random channels": 20,
        PIXEL: 5,
        GRID: 5,
        MIRRORED: 5,
    }
    by_hand = single(tiny_clip, Reading(bin_list=PAPER.bin_list[::-1], temperature=2), images)
    torch.testing.assert_close(depth["reversed bins"], by_hand, atol=1e-4, rtol=0)
    shuffled = depth["shuffled patches 0"]
    assert not shuffled.equal(depth["this run"])
    torch.testing.assert_close(shuffled.flatten(1).sort(1).values, depth["this run"].flatten(1).sort(1).values)
    orders = {s.reading.bin_list for s in suite.settings if s.group == "word-to-bin permutations"}
    assert len(orders) == 100
    assert PAPER.bin_list not in orders
    assert suite.constants[UNIFORM] == pytest.approx(15 / 7)
    assert [suite.constants[f"bin {b:g} m alone"] for b in PAPER.bin_list] == list(PAPER.bin_list)


def test_random_channels_are_a_choice_of_all(tiny_clip, images):
    reading = soft(PAPER)
    depth = predict(tiny_clip, Suite((Setting("a", reading, channels=3), Setting("b", reading))), images)
    model = MonoCLIP(tiny_clip, reading)
    chosen = np.sort(np.random.default_rng(3).choice(128, 64, replace=False))
    with torch.inference_mode():
        features = model.channel_features(with_mirror(images))
        upright, mirrored = model.depth(features[:, chosen]).chunk(2)
    torch.testing.assert_close(depth["a"], ((upright + mirrored.flip(-1)) / 2)[:, 0], atol=1e-4, rtol=0)
    assert not depth["a"].allclose(depth["b"], atol=1e-3)


def test_no_row_waits_for_the_device():
    # The meta device has no values, so whatever would have to be read from a device raises there.
    suite = with_controls(with_paper(plain_suite(PAPER)), channels=True, mean_image=None)
    predictor = Predictor(lambda words, *_: torch.empty(64, len(words), device="meta"), suite, 128)
    depth = predictor(torch.empty(4, 128, 13, 17, device="meta"), NAMES[:2])
    assert depth.is_meta
    assert depth.shape == (2, len(suite.predicted) - 5, 13, 17)  # without random depth for each pixel


def test_random_rows_depend_on_name_and_seed_alone(tiny_clip, images):
    suite = with_paper(plain_suite(PAPER))
    both, one = predict(tiny_clip, suite, images), predict(tiny_clip, suite, images[:1])
    row = f"{GRID}, seed 0"
    assert both[row][0].equal(one[row][0])
    assert not both[row][0].equal(both[row][1])
    assert both[row].min() >= 0
    assert both[row].max() <= 10
    predictor = Predictor(lambda *_: MonoCLIP(tiny_clip).text_features, plain_suite(PAPER), 128)
    assert len(predictor.maps(NAMES[0], (416, 544))) == 0


def test_few_bins_have_few_permutations():
    suite = with_controls(plain_suite(Reading(depth_classes=("a", "b", "c"), bin_list=(1, 2, 3))), False, None)
    assert len(suite.groups["word-to-bin permutations"]) == 5
    colours = next(setting for setting in suite.settings if setting.name == "colour words")
    assert colours.reading.depth_classes == ("very red", "not in colour", "very green")
    assert "random channels" not in suite.groups


def test_mean_training_depth(tmp_path):
    from PIL import Image

    assert controls.mean_training_depth(tmp_path) is None
    folder = tmp_path / "official_splits" / "train" / "den"
    folder.mkdir(parents=True)
    first, second = np.full((480, 640), 2000, np.uint16), np.full((480, 640), 4000, np.uint16)
    first[100, 100] = second[100, 100] = 0  # never measured: takes the mean of all others
    second[200, 200] = 0  # measured once
    Image.fromarray(first).save(folder / "sync_depth_00002.png")
    Image.fromarray(second).save(folder / "sync_depth_00003.png")
    mean = controls.mean_training_depth(tmp_path)
    assert mean.shape == (416, 544)
    assert mean[0, 0] == 3
    assert mean[200 - 56, 200 - 60] == 2
    assert mean[100 - 56, 100 - 60] == pytest.approx(3, abs=1e-4)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("{}", "expected a list of objects"),
        ('[{"depth_classes": ["a"]}]', 'needs a "name" of its own'),
        ('[{"name": "this run"}]', 'needs a "name" of its own'),
        ('[{"name": "x"}, {"name": "x"}]', "entry 2"),
        ('[{"name": "x", "bins": [1]}]', "unknown field bins"),
        ('[{"name": "x", "bin_list": ["1"]}]', "bin_list has a value of another kind"),
        ('[{"name": "x", "depth_classes": "near"}]', "depth_classes has a value of another kind"),
        ('[{"name": "x", "bin_list": [1, 2]}]', "7 depth classes and 2 bins"),
    ],
)
def test_readings_file_is_refused_in_one_sentence(tmp_path, text, message):
    path = tmp_path / "readings.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message) as error:
        load_readings(path)
    assert str(path) in str(error.value)


def test_readings_file(tmp_path):
    path = tmp_path / "readings.json"
    path.write_text(
        json.dumps([{"name": "mine", "depth_classes": ["near", "far"], "bin_list": [1, 3.5], "temperature": 1}])
    )
    assert load_readings(path) == {"mine": Reading(depth_classes=("near", "far"), bin_list=(1, 3.5), temperature=1)}


def record(image: str, gt: Tensor, rows: dict[str, list[float]], scene: str = "den") -> dict:
    return {
        "image": image,
        "scene": scene,
        "index": 0,
        "histogram": pack_histogram(Counted.of(gt, (13, 17)).histogram),
        "rows": rows,
    }


def row_of(value: float) -> list[float]:
    return [100, 0, *[value] * len(FIGURES)]


def test_best_constants_are_those_of_a_brute_sweep():
    generator = torch.Generator().manual_seed(0)
    truths = [(torch.rand(1, 480, 640, generator=generator) * 2000 + 1000).round() / 1000 for _ in range(2)]
    truths[1][:, :, :320] = 1.25
    records = [record(str(i), gt, {"this run": row_of(0.5)}) for i, gt in enumerate(truths)]
    results = Results(records, {UNIFORM: 15 / 7})
    for figure, best in results.best.items():
        around = torch.tensor([best - 0.002, best - 0.001, best, best + 0.001, best + 0.002, 15 / 7, 1.9])
        pred = around.view(-1, 1, 1, 1).expand(-1, 1, 416, 544)
        means = torch.stack([errors_NYU(gt.expand(7, 1, 480, 640), pred).figures[figure] for gt in truths]).mean(0)
        assert results.mean(BEST)[figure] == pytest.approx(means[2].item(), abs=1e-5)
        extreme = (
            means.max() if figure.startswith("a") and figure != "abs_diff" and figure != "abs_rel" else means.min()
        )
        assert means[2].item() == pytest.approx(extreme.item(), abs=1e-5)
    one = Results([record("flat", torch.full((1, 480, 640), 2.345), {"this run": row_of(1)})], {UNIFORM: 2.0})
    assert one.best["rmse"] == one.best["abs_diff"] == pytest.approx(2.345)
    assert one.mean(BEST)["rmse"] == pytest.approx(0, abs=1e-6)
    assert one.mean(UNIFORM)["abs_rel"] == pytest.approx(0.345 / 2.345)


def test_means_scenes_and_images_without_a_valid_pixel():
    gt = torch.full((1, 480, 640), 2.0)
    records = [
        record("a", gt, {"this run": row_of(1.0)}, "den"),
        record("b", gt, {"this run": row_of(2.0)}, "office"),
        record("c", torch.zeros(1, 480, 640), {"this run": [0, 0, *[None] * len(FIGURES)]}, "office"),
    ]
    results = Results(records, {UNIFORM: 2.0})
    assert results.mean("this run")["a1"] == 1.5
    assert results.mean("this run", "office")["a1"] == 2.0
    assert results.mean("this run", "attic")["a1"] is None
    assert results.counted.tolist() == [True, True, False]
    assert unpack_histogram(records[0]["histogram"])[2000] == 415 * 541


def test_bootstrap_intervals_have_the_size_of_the_standard_error():
    values = np.random.default_rng(1).normal(3, 2, (400, 2))
    values[:, 1] = 7
    (low, high), constant = bootstrap(values, resampling_weights(400))
    error = values[:, 0].std() / math.sqrt(400)
    assert low == pytest.approx(values[:, 0].mean() - 1.96 * error, abs=0.02)
    assert high == pytest.approx(values[:, 0].mean() + 1.96 * error, abs=0.02)
    assert constant.tolist() == pytest.approx([7, 7])


def test_intervals_of_figures_and_of_differences():
    truths = [torch.full((1, 480, 640), d) for d in (1.5, 2.0, 2.5, 3.0)]
    records = [record(str(i), gt, {"this run": row_of(float(i))}) for i, gt in enumerate(truths)]
    results = Results(records, {UNIFORM: 2.0})
    own, difference = results.intervals(["this run", UNIFORM])[UNIFORM]
    assert difference["rmse"] == (0, 0)
    assert own["rmse"][0] < results.mean(UNIFORM)["rmse"] < own["rmse"][1]
    assert results.intervals([UNIFORM], "attic")[UNIFORM][0]["rmse"] is None
    assert set(own) == set(FIGURES) > set(NYU_FIGURES)
