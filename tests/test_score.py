"""experiments.score: rows against models of their own, metrics against naive loops, controls that are known."""

import math
from dataclasses import replace
from fractions import Fraction
from functools import partial
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.testing import assert_close

from calculate_error import (
    NYU,
    NYU_CROP,
    NYU_METRICS,
    UnscorableError,
    compute_errors_NYU_per_image,
    counted_pixels,
)
from clip.model import CLIP, Trunk
from experiments import score
from experiments.published import BIN_SETS, PROMPT_SETS
from experiments.score import (
    GRID,
    MIRRORED,
    PIXEL,
    RANDOM_ROWS,
    SCALED,
    STEPS,
    Rows,
    Scorer,
    Setting,
    SettingsReader,
    errors_of_rows,
    gain_over_random,
    histogram,
    mean_permuted,
    other_maps,
    random_channels,
    random_depth,
    rank_correlations,
    ranks,
    sparsification,
    steps,
    swept_constants,
    training_split,
    truth_of,
)
from monoclip import PAPER, MonoCLIP, Reading, depth_of, zeroshot_classifier
from tests.conftest import METRICS
from tests.test_calculate_error import naive_mask_NYU, naive_metrics

NAME = "kitchen/rgb_00001.jpg"
CROP = (416, 544)
PATCHES = (13, 17)  # (h, w) of NYU's crop


def soft(reading: Reading, **changes: object) -> Reading:
    """The reading so soft that a tiny CLIP's depth is not one bin."""
    return replace(reading, temperature=2, **changes)


@pytest.fixture(scope="module")
def image() -> Tensor:
    return torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def trunk(tiny_clip: CLIP, image: Tensor) -> Trunk:
    with torch.inference_mode():
        return MonoCLIP(tiny_clip).trunk(image)  # patches (2, 128, 3, 4)


def depths_of(clip_model: CLIP, settings: list[Setting], trunk: Trunk) -> dict[str, Tensor]:
    """Depth of each patch, (h, w), by each setting's name."""

    def encode(*words: object) -> Tensor:
        calls.append(words)
        return zeroshot_classifier(clip_model, *words)

    calls: list[object] = []
    with torch.inference_mode():
        depth = SettingsReader(MonoCLIP(clip_model), encode, settings)(trunk).depth
    assert len(calls) == len(set(calls)), "no set of prompts is encoded twice"
    assert depth.dtype == torch.float32
    return {setting.name: each for setting, each in zip(settings, depth, strict=True)}


def all_maps(rows: Rows, readouts: SettingsReader, trunk: Trunk) -> tuple[Tensor, Tensor]:
    """Depth of all rows that are maps of patches, (R, h, w), and of all that are of pixels, (R', 416, 544)."""
    with torch.inference_mode():
        depth = readouts(trunk).depth
        patches, pixels = other_maps(rows, NAME, truth_of(rough_truth(), PATCHES, NYU), tuple(depth.shape[1:]))
    return torch.stack([*depth, *patches]), pixels


def rough_truth(seed: int = 0) -> Tensor:
    """(1, 480, 640) [m] in whole millimetres, in tiles that are not the patches, a fifth of it not measured."""
    rng = np.random.default_rng(seed)
    millimetres = np.kron(rng.integers(500, 9000, (16, 20)), np.ones((30, 32))) + rng.integers(0, 50, (480, 640))
    millimetres[rng.random((480, 640)) < 0.2] = 0
    return torch.from_numpy(millimetres.astype(np.float32) / 1000)[None]


# ---- settings that read depth out of the features


def test_every_reading_equals_a_model_of_its_own(tiny_clip, image, trunk):
    readings = {f"words {name}": soft(r) for name, r in PROMPT_SETS.items()}
    readings |= {f"bins {name}": soft(r) for name, r in BIN_SETS.items()}
    readings |= {f"temperature {t}": replace(PAPER, temperature=t) for t in (0.1, 1, 30)}
    readings["scale"] = replace(PAPER, logit_scale=20)
    readings["permuted"] = soft(PAPER, bin_list=(2.25, 1.0, 3.0, 1.5, 2.75, 2.0, 2.5))
    readings["two words"] = Reading(("a {} that is {}",), ("thing",), ("near", "far away"), (1.0, 4.0), 5)
    depth = depths_of(tiny_clip, [Setting(name, r) for name, r in readings.items()], trunk)
    for name, reading in readings.items():
        with torch.inference_mode():
            own = MonoCLIP(tiny_clip, reading)
            expected = depth_of(own(image), own.bin_list[None])[0, 0]
        assert expected.std() > 1e-3
        assert_close(depth[name], expected, atol=2e-6, rtol=0, msg=name)


def test_read_outs_share_a_trunk_and_have_their_own_depth_and_sigma(tiny_clip, image, trunk):
    names = ("raw", "maskclip", "attnpool", "clearclip")
    settings = [Setting(name, soft(PAPER, readout=name)) for name in names]
    settings.append(Setting("reversed", soft(PAPER, bin_list=PAPER.bin_list[::-1])))
    model = MonoCLIP(tiny_clip)
    with torch.inference_mode():
        found = SettingsReader(model, partial(zeroshot_classifier, tiny_clip), settings, asked=4)(trunk)
        for i, setting in enumerate(settings):
            own = MonoCLIP(tiny_clip, setting.reading)
            weights, bins = own(image).double(), own.bin_list.double().view(1, 7, 1, 1)
            expected = (weights * bins).sum(1)
            assert_close(found.depth[i].double(), expected[0], atol=1e-5, rtol=0)
            sigma = (weights * (bins - expected) ** 2).sum(1).sqrt()
            assert_close(found.sigma[i].double(), sigma[0], atol=1e-4, rtol=0)
    assert found.weights.shape == (4, 7, 3, 4)
    bins = torch.tensor(PAPER.bin_list).view(7, 1, 1)
    assert_close((found.weights * bins).sum(1), found.depth[:4], atol=1e-5, rtol=0)
    assert all(not one.allclose(other, atol=1e-4) for i, one in enumerate(found.depth) for other in found.depth[:i])


def test_random_channels_equal_a_naive_computation(tiny_clip, trunk):
    reading = soft(PAPER)
    settings = [Setting("a", reading, channels=3), Setting("b", reading), Setting("c", reading, channels=4)]
    depth = depths_of(tiny_clip, settings, trunk)
    text = zeroshot_classifier(tiny_clip).double().detach().numpy()
    features = trunk.patches.double().numpy()
    features /= np.sqrt((features**2).sum(1, keepdims=True))
    for seed, name in ((3, "a"), (4, "c"), (None, "b")):
        chosen = range(0, 128, 2) if seed is None else np.random.default_rng(seed).choice(128, 64, replace=False)
        assert len(set(chosen)) == 64
        logits = 50 * np.einsum("bdhw,dk->bkhw", features[:, chosen], text)
        weights = np.exp(logits - logits.max(1, keepdims=True))
        both = np.einsum("bkhw,k->bhw", weights / weights.sum(1, keepdims=True), PAPER.bin_list)
        np.testing.assert_allclose(depth[name], (both[0] + both[1][:, ::-1]) / 2, atol=1e-4, rtol=0, err_msg=name)
    assert all(not depth["a"].allclose(depth[name], atol=1e-3) for name in "bc")


def test_random_channels_hardly_keep_their_places():
    every_second = torch.arange(0, 2048, 2)
    same = [(random_channels(2048, 1024, seed) == every_second).float().mean().item() for seed in range(20)]
    assert np.mean(same) < 0.005


# ---- depth that ignores the image


@pytest.mark.parametrize(
    ("kind", "size", "variance"),
    [(PIXEL, (416, 544), 100 / 12), (GRID, PATCHES, 100 / 12), (MIRRORED, PATCHES, 100 / 24)],  # the mean of two
)
def test_random_depth_is_uniform_to_ten_metres(kind, size, variance):
    depth = torch.stack([random_depth(kind, f"{i}", PATCHES, CROP, 10.0) for i in range(40)])
    assert (depth.shape, depth.dtype) == ((40, *size), torch.float32)
    assert 0 <= depth.min() < 0.2
    assert 9.8 < depth.max() <= 10
    assert depth.mean().item() == pytest.approx(5, abs=0.1)
    assert depth.var().item() == pytest.approx(variance, rel=0.05)
    both = np.corrcoef(depth.flatten(1)[:20].flatten(), depth.flip(-1).flatten(1)[:20].flatten())
    assert abs(both[0, 1]) < 0.5  # the mirror's draw is another one: the mean of one and its mirror is symmetric


@pytest.mark.parametrize("kind", RANDOM_ROWS)
def test_random_depth_depends_on_the_name_alone(kind):
    first, again, other = (random_depth(kind, name, PATCHES, CROP, 10.0) for name in "aab")
    assert torch.equal(first, again)
    assert not first.equal(other)


def test_random_numbers_depend_on_the_name_alone(monkeypatch):
    monkeypatch.setattr(np.random, "default_rng", lambda seed: seed)
    assert score.generator("abc") == [0, 0x352441C2]  # the CRC-32 of "abc"


def test_random_depth_by_hand(monkeypatch):
    draws = [np.array([[0.25, 0.5]], dtype=np.float32), np.array([[0.75, 0]], dtype=np.float32)]
    for kind, expected in ((GRID, [2.5, 5]), (MIRRORED, [5, 2.5])):  # the second is drawn anew
        stream = Mock(random=Mock(side_effect=draws))
        monkeypatch.setattr(score, "generator", lambda name, stream=stream: stream)
        assert random_depth(kind, NAME, (1, 2), CROP, 10.0).flatten().tolist() == expected


# ---- metrics of an image


def naive_upsampled(depth: np.ndarray) -> np.ndarray:
    """(h, w) -> (416, 544), bilinear between the corners, in double precision."""
    for axis, size in enumerate((416, 544)):
        places = np.arange(size) * (depth.shape[axis] - 1) / (size - 1)
        low = np.minimum(places.astype(int), depth.shape[axis] - 2)
        part = np.expand_dims(places - low, 1 - axis)
        depth = depth.take(low, axis) * (1 - part) + depth.take(low + 1, axis) * part
    return depth


def naive_scores(gt: np.ndarray, pred: np.ndarray) -> dict[str, float]:
    """All metrics of a map (416, 544) against the frame (480, 640), in double precision, patch by patch."""
    mask, canvas = naive_mask_NYU(gt, pred)
    found = naive_metrics(gt[mask], canvas[mask], 10)
    g, p = sorted(gt[mask]), sorted(canvas[mask])
    ratio = g[(len(g) - 1) // 2] / p[(len(p) - 1) // 2]
    scaled = naive_metrics(gt[mask], canvas[mask] * ratio, 10)
    counted = naive_mask_NYU(gt, np.ones_like(pred))[0][NYU_CROP]
    true, mean = [], []
    for i, j in np.ndindex(PATCHES):
        patch = (slice(32 * i, 32 * i + 32), slice(32 * j, 32 * j + 32))
        if counted[patch].sum() >= 512:
            true.append(round(gt[NYU_CROP][patch][counted[patch]].astype(float).mean(), 4))
            mean.append(round(pred[patch].astype(float).mean(), 4))
    found["spearman"] = stats.spearmanr(true, mean).statistic if np.ptp(mean) >= 0.01 else math.nan
    return found | {f"scaled_{metric}": scaled[metric] for metric in SCALED} | {"valid_pixels": mask.sum()}


def test_all_metrics_equal_a_naive_loop():
    rng = np.random.default_rng(3)
    gt = rough_truth(1)
    gt[:, 56 + 64 :, 60:] = 0  # fewer pixels for the loop: two rows of patches
    gt[0, 56:88, 60:124] = 2.0
    gt[0, 56:72, 60:124] = 0  # half of two patches, so that both count
    gt[0, 72, 92] = 0  # one pixel less, so that the second does not
    patches = torch.from_numpy(rng.uniform(0.5, 9, (3, *PATCHES)).astype(np.float32))
    tiles = np.kron(rng.choice([1.1003, 2.2006, 3.3001], PATCHES), np.ones((32, 32)))  # most patches tie
    holes = rng.uniform(0.5, 9, (416, 544))
    holes[:20] = 0  # is dropped
    pixels = torch.from_numpy(np.stack([tiles, holes, np.full((416, 544), 2.5173)]).astype(np.float32))
    scores = errors_of_rows(truth_of(gt, PATCHES, NYU), patches, pixels, NAME)
    assert set(scores) == {*METRICS, "valid_pixels", "dropped_pixels"} - {"aurg"}
    maps = [*(naive_upsampled(each.double().numpy()) for each in patches), *pixels.numpy()]
    for r, pred in enumerate(maps):
        expected = naive_scores(gt[0].numpy(), pred.astype(np.float32))
        for name in set(scores) - {"dropped_pixels"}:
            # Spearman's: two patches that differ by less than a step of the range tie; delta's: three of 27,000 pixels
            tolerance = {"spearman": 1e-3, "silog": 5e-4}.get(name, 1e-4 if "delta" in name else 2e-5)
            assert scores[name][r] == pytest.approx(expected[name], abs=tolerance, nan_ok=True), (name, r)
    assert scores["dropped_pixels"].tolist() == [0, 0, 0, 0, scores["valid_pixels"][0] - scores["valid_pixels"][4], 0]
    assert np.isnan(scores["spearman"]).tolist() == [False] * 5 + [True]  # a constant


def test_scores_do_not_depend_on_what_else_is_scored(monkeypatch):
    gt, rng = rough_truth(2), np.random.default_rng(5)
    patches, pixels = (
        torch.from_numpy(rng.uniform(0.5, 9, (4, *size)).astype(np.float32)) for size in (PATCHES, (416, 544))
    )
    together = errors_of_rows(truth_of(gt, PATCHES, NYU), patches, pixels, NAME)
    monkeypatch.setattr(score, "MAPS_AT_ONCE", 3)
    blocks = errors_of_rows(truth_of(gt, PATCHES, NYU), patches, pixels, NAME)
    alone = errors_of_rows(truth_of(gt, PATCHES, NYU), patches[2:3], pixels[:1], NAME)
    for name, values in together.items():
        assert values.shape == (8,)
        atol = 3e-5 if name.startswith(("delta", "scaled_delta")) else 1e-6  # five pixels may cross a threshold
        np.testing.assert_allclose(blocks[name], values, rtol=1e-5, atol=atol, err_msg=name)
        np.testing.assert_allclose(alone[name], values[[2, 4]], rtol=1e-5, atol=atol, err_msg=name)


def test_correlations_by_hand():
    assert ranks(np.array([7, 1, 7, 2, 7])).tolist() == [3, 0, 3, 1, 3]  # ties share the mean of theirs
    assert steps(np.array([1.0, 3.0, 1 + 2 / (STEPS - 1)])).tolist() == [0, STEPS - 1, 1]
    rising = torch.tensor([1.0, 2.0, 3.0])
    # ranks (2, .5, .5) - 1 with (-1, 0, 1)
    found = rank_correlations(torch.tensor([[1.0, 2.0, 4.0], [3.0, 2.0, 2.0]]), rising)
    assert found.tolist() == pytest.approx([1, -1.5 / math.sqrt(2 * 1.5)], abs=1e-6)


def test_what_spans_less_than_a_centimetre_has_no_order():
    rising = torch.tensor([1.0, 2.0, 3.0])
    found = rank_correlations(torch.tensor([[2.0, 2.0, 2.0], [2.0, 2.004, 2.009], [2.0, 2.004, 2.011]]), rising)
    assert found.tolist() == pytest.approx([math.nan, math.nan, 1], nan_ok=True)
    assert rank_correlations(rising[None], torch.full((3,), 2.0)).isnan().all()  # the truth is constant
    for few in (torch.ones(1), torch.ones(0)):
        assert rank_correlations(few[None], few).isnan().tolist() == [True]


@pytest.mark.parametrize("rounding", [0, 1e-6])
def test_ties_on_either_side_are_those_of_scipy(rounding):
    rng = np.random.default_rng(7)
    pred, truth = rng.integers(1, 10, (4, 60)), rng.integers(1, 30, 60)
    pred[3] += truth // 3
    rounded = torch.from_numpy(pred + rng.uniform(-rounding, rounding, pred.shape)).float()
    found = rank_correlations(rounded, torch.from_numpy(truth / 1000))
    assert found.tolist() == pytest.approx([stats.spearmanr(row, truth).statistic for row in pred], abs=1e-12)


def test_patches_of_equal_mean_depth_tie_in_ground_truth():
    rng = np.random.default_rng(8)
    millimetres, means = np.zeros((480, 640), dtype=int), {}
    for number, (i, j) in enumerate(np.ndindex(PATCHES)):
        centre, around = int(rng.choice([2000, 2001, 4321])), rng.integers(1, 900, (32, 16))
        patch = np.concatenate([centre + around, centre - around], axis=1)  # in pairs around one of three means
        patch[np.tile(rng.random((32, 16)) < rng.choice([0, 0.1, 0.3, 0.5]), 2)] = 0  # of which not all are measured
        patch[:, :16] += (number % 4 == 0) * rng.integers(300) * (patch[:, :16] > 0)  # but every fourth
        patch[32 - (i == 12) :] = 0  # the last row and columns of the crop never count
        patch[:, 32 - 3 * (j == 16) :] = 0
        millimetres[56 + 32 * i : 88 + 32 * i, 60 + 32 * j : 92 + 32 * j] = patch
        if (count := np.count_nonzero(patch)) >= 512:
            means[number] = Fraction(int(patch.sum()), int(count)), count
    truth = truth_of(torch.from_numpy(millimetres.astype(np.float32) / 1000)[None], PATCHES, NYU)
    exact = [mean for mean, _ in means.values()]
    assert truth.patches.tolist() == list(means)
    assert 100 < len(means) < 221
    assert len(set(exact)) + 50 < len(set(means.values()))  # many are the means of different numbers of pixels
    np.testing.assert_allclose(truth.patch_depth, [float(mean / 1000) for mean in exact], rtol=1e-15)
    expected = stats.rankdata([sorted(set(exact)).index(mean) for mean in exact])
    np.testing.assert_array_equal(stats.rankdata(truth.patch_depth), expected)
    np.testing.assert_array_equal(ranks(steps(truth.patch_depth.numpy())), expected - 1)


def test_patches_that_do_not_divide_the_crop_share_their_borders():
    gt, grid = rough_truth(6), (30, 39)  # of 14 px
    gt[torch.rand(gt.shape, generator=torch.Generator().manual_seed(0)) < 0.375] = 0  # half of it is left
    truth = truth_of(gt, grid, NYU)
    mask = naive_mask_NYU(gt[0].numpy(), np.ones((416, 544)))[0][NYU_CROP]
    depth, expected = gt[0][NYU_CROP].double().numpy(), {}
    for i, j in np.ndindex(grid):
        patch = tuple(slice(k * side // n, -(-(k + 1) * side // n)) for k, n, side in ((i, 30, 416), (j, 39, 544)))
        if 2 * mask[patch].sum() >= mask[patch].size:
            expected[39 * i + j] = depth[patch][mask[patch]].mean()
    assert truth.patches.tolist() == list(expected)
    assert 500 < len(expected) < 1170
    np.testing.assert_allclose(truth.patch_depth, list(expected.values()), atol=1e-6)


def test_an_image_that_cannot_be_scored_is_named():
    bad, pixels = torch.ones(2, *PATCHES), torch.ones(1, 416, 544)
    bad[1, 3, 3] = math.nan
    with pytest.raises(UnscorableError, match=f"^{NAME}: [0-9,]+ of [0-9,]+ predicted depths are NaN or infinite"):
        errors_of_rows(truth_of(rough_truth(), PATCHES, NYU), bad, pixels, NAME)
    with pytest.raises(UnscorableError, match=f"^{NAME}: no valid pixel"):
        errors_of_rows(truth_of(torch.zeros(1, 480, 640), PATCHES, NYU), bad[:1], pixels, NAME)


def test_every_row_has_the_name_of_its_own_map(tiny_clip, trunk):
    settings = (Setting("this run", soft(PAPER)), Setting("other", soft(PAPER), channels=0))
    mean = torch.linspace(1, 4, 416 * 544).view(416, 544)
    rows = Rows(settings, RANDOM_ROWS, {"two metres": 2.0, "near": 0.5}, {"mean image": mean})
    readouts = SettingsReader(MonoCLIP(tiny_clip), partial(zeroshot_classifier, tiny_clip), settings)
    patches, pixels = all_maps(rows, readouts, trunk)
    expected = depths_of(tiny_clip, list(settings), trunk)
    expected |= {row: random_depth(row, NAME, tuple(trunk.patches.shape[2:]), CROP, 10.0) for row in RANDOM_ROWS}
    expected |= {"mean image": mean, "two metres": torch.full((416, 544), 2.0), "near": torch.full((416, 544), 0.5)}
    assert len(expected) == len(rows.names)
    for name, depth in zip(rows.names, [*patches, *pixels], strict=True):
        assert torch.equal(depth, expected[name]), name


# ---- all of an image


def test_an_image_scores_every_assignment_of_bins(tiny_clip):
    trunk = Trunk(torch.randn(2, 128, *PATCHES, generator=torch.Generator().manual_seed(6)), torch.zeros(2, 128))
    bins = [PAPER.bin_list, PAPER.bin_list[::-1], (0.5, 9.0, 3.0, 1.5, 2.75, 2.0, 12.0)]  # to 10 m at most
    settings = [Setting(f"{i}", replace(PAPER, bin_list=each)) for i, each in enumerate(bins)]
    rows = Rows(tuple(settings), constants={"two": 2.0})
    readouts = SettingsReader(MonoCLIP(tiny_clip), partial(zeroshot_classifier, tiny_clip), settings)
    gt, table = rough_truth(4), torch.tensor(bins)
    scores = Scorer(rows, readouts, table, NYU).score_image(gt, trunk, NAME)
    truth = truth_of(gt, PATCHES, NYU)
    true = truth.patch_depth.numpy()
    patches, pixels = all_maps(rows, readouts, trunk)
    for i, depth in enumerate(patches):
        pred = depth.flatten()[truth.patches].double().numpy()
        expected = naive_metrics(true, pred, 10)
        assert pred.std() > 0.01
        assert scores.permuted[0, i] == pytest.approx([expected["delta1"], expected["abs_rel"]], abs=1e-5)
        if i == 0:
            np.testing.assert_allclose(scores.patches, [pred, true], atol=1e-6, rtol=0)
    expected = errors_of_rows(truth_of(gt, PATCHES, NYU), patches, pixels, NAME)
    assert all(np.array_equal(scores.errors[name], expected[name], equal_nan=True) for name in expected)
    with torch.inference_mode():
        sigma = readouts(trunk).sigma.flatten(1)[:, truth.patches]
    relative = abs(patches.flatten(1)[:, truth.patches].clamp(max=10) - truth.patch_depth) / truth.patch_depth
    curves = sparsification(relative, torch.from_numpy(np.stack([steps(row) for row in sigma.numpy()])))
    np.testing.assert_allclose(scores.curve, curves[0], atol=1e-4)
    np.testing.assert_allclose(scores.errors["aurg"], [*gain_over_random(curves), 0], atol=1e-4)
    assert abs(scores.errors["aurg"][:3]).min() > 1e-3
    readouts = SettingsReader(MonoCLIP(tiny_clip), partial(zeroshot_classifier, tiny_clip), settings, asked=2)
    of_two = Scorer(rows, readouts, table, NYU).score_image(gt, trunk, NAME).permuted
    np.testing.assert_allclose(of_two, [scores.permuted[0]] * 2, atol=1e-6)  # they differ in their bins alone
    assert np.array_equal(mean_permuted([scores, scores]), scores.permuted[0])
    np.testing.assert_array_equal(scores.histogram, histogram(counted_pixels(gt, NYU)[1], NYU))
    gt[torch.rand(gt.shape, generator=torch.Generator().manual_seed(0)) < 0.7] = 0  # no patch is measured, an image is
    scores = Scorer(rows, readouts, table, NYU).score_image(gt, trunk, NAME)
    assert scores.permuted.shape == (2, 3, 2)
    assert np.isnan(scores.curve).all()
    assert mean_permuted([scores]) is None
    assert np.isnan(scores.permuted).all()
    assert scores.patches.shape == (2, 0)
    assert np.isnan(scores.errors["spearman"]).all()
    assert scores.errors["aurg"].tolist() == [0] * 4


# ---- constants, from histograms


def test_histogram_by_hand():
    gt = torch.zeros(1, 480, 640)
    gt[0, 100, 100:108] = torch.tensor([1.234, 1.234, 1.234, 9.999, 10.0, 0.001, 0.002, 7.0])
    gt[0, 0, 0] = 5.0  # outside the crop
    shares = histogram(counted_pixels(gt, NYU)[1], NYU)
    assert shares.shape == (10_000,)
    assert {int(i): float(shares[i]) for i in shares.nonzero()[0]} == pytest.approx(
        {2: 1 / 6, 1234: 1 / 2, 7000: 1 / 6, 9999: 1 / 6}
    )
    assert histogram(counted_pixels(rough_truth(), NYU)[1], NYU).sum() == pytest.approx(1, abs=1e-5)


def test_constants_from_histograms_equal_constant_maps(monkeypatch):
    truths = [rough_truth(seed) for seed in range(2)]
    truths[0][:, :, 300:330] = 2.5  # where 1.25 * 2 m is hit exactly
    depths = [2.0, 15 / 7, 0.5, 1.0, 9.999]
    shares = torch.from_numpy(np.stack([histogram(counted_pixels(gt, NYU)[1], NYU) for gt in truths])).T
    monkeypatch.setattr(score, "sweep_of", lambda protocol: depths)
    errors = swept_constants(shares, NYU)
    maps = torch.tensor(depths).view(1, -1, 1, 1).expand(1, -1, 416, 544)
    for i, gt in enumerate(truths):
        expected = compute_errors_NYU_per_image(gt[None], maps)
        for name in NYU_METRICS:
            np.testing.assert_allclose(errors[name][:, i], expected[name][0], atol=1e-5, err_msg=name)


def test_no_tried_constant_has_a_ratio_on_a_threshold():
    for tenths in (50 * k + 11 for k in range(2000)):  # of a millimetre
        for i in (1, 2, 3):
            for threshold in (Fraction(5**i, 4**i), Fraction(4**i, 5**i)):
                assert (Fraction(tenths, 10) * threshold).denominator > 1


def test_swept_constants_equal_a_naive_sweep(monkeypatch):
    sweep = score.sweep_of(NYU)
    assert [round(depth * 1000, 9) for depth in sweep] == [5 * k + 1.1 for k in range(2000)]
    monkeypatch.setattr(score, "sweep_of", lambda protocol: sweep[::7])  # the others would take seconds
    few_depths = np.zeros((10_000, 3), dtype=np.float32)  # shares of 6 depths in 3 images
    for image, depths in enumerate(([1201, 1211, 5001, 9999], [2, 801, 802, 4001], [2345] * 4)):
        for millimetres in depths:
            few_depths[millimetres, image] += 0.25
    swept = swept_constants(torch.from_numpy(few_depths), NYU)
    assert list(swept) == list(NYU_METRICS)
    constants = np.arange(1.1, 10_000, 35)[:, None] / 1000
    for image in range(3):
        places = few_depths[:, image].nonzero()[0]
        gt, share = places / 1000, few_depths[places, image].astype(float)
        ratio = np.maximum(gt / constants, constants / gt)
        terms = {f"delta{i}": ratio < 1.25**i for i in (1, 2, 3)}
        terms |= {"abs_diff": abs(gt - constants), "abs_rel": abs(gt - constants) / gt, "rmse": (gt - constants) ** 2}
        terms["log10"] = abs(np.log10(gt) - np.log10(constants))
        for name, term in terms.items():
            expected = np.sqrt(term @ share) if name == "rmse" else term @ share
            np.testing.assert_allclose(swept[name][:, image], expected, rtol=1e-5, atol=1e-5, err_msg=name)


# ---- the training split


def test_training_split_by_hand():
    assert training_split([]) is training_split([torch.zeros(1, 480, 640)] * 2) is None
    first, second, clipped = torch.full((1, 480, 640), 2.0), torch.full((1, 480, 640), 4.0), torch.zeros(1, 480, 640)
    first[0, 100, 100] = second[0, 100, 100] = 0  # never measured: takes the mean of all others
    second[0, 200, 200] = 0  # measured once
    clipped[0, 300, 300] = 10.0  # is measured, but does not count
    mean, shares = training_split(iter([first, torch.zeros(1, 480, 640), clipped, second]))
    assert (mean.shape, mean.dtype) == ((416, 544), torch.float32)
    assert mean[0, 0] == 3
    assert mean[200 - 56, 200 - 60] == 2
    assert mean[300 - 56, 300 - 60].item() == pytest.approx(16 / 3)
    assert mean[100 - 56, 100 - 60].item() == pytest.approx(3, abs=1e-4)
    expected = np.stack(
        [histogram(counted_pixels(first, NYU)[1], NYU), histogram(counted_pixels(second, NYU)[1], NYU)], axis=1
    )
    np.testing.assert_array_equal(shares, expected)  # without images of which no pixel counts


# ---- does certainty know of error


def test_sparsification_by_hand():
    # of 4 predictions, the most certain 1 for shares up to 1 / 4, then 2, 3 and 4
    errors, sigma = torch.tensor([[4.0, 2.0, 1.0, 5.0]]), torch.tensor([[3.0, 1.0, 2.0, 4.0]])
    curve = sparsification(errors, sigma)
    assert curve.dtype == torch.float64
    assert curve[0].tolist() == pytest.approx([2] * 5 + [1.5] * 5 + [7 / 3] * 5 + [3] * 5)
    assert gain_over_random(curve).tolist() == pytest.approx([3 - (2 + 1.5 + 7 / 3 + 3) / 4])
    ties = torch.tensor([[1.0, 1.0, 1.0, 2.0]])  # the first three share (4 + 2 + 1) / 3
    assert sparsification(errors, ties)[0].tolist() == pytest.approx([7 / 3] * 15 + [3] * 5)
    perfect, worst, equal = (sparsification(errors, key) for key in (errors, -errors, torch.ones(1, 4)))
    assert perfect[0].tolist() == pytest.approx([1] * 5 + [1.5] * 5 + [7 / 3] * 5 + [3] * 5)
    assert worst[0].tolist() == pytest.approx([5] * 5 + [4.5] * 5 + [11 / 3] * 5 + [3] * 5)
    assert gain_over_random(equal).tolist() == pytest.approx([0])
    assert gain_over_random(torch.stack([perfect, worst]))[:, 0].tolist() == pytest.approx([25 / 24, -25 / 24])
    for few in (sparsification(torch.ones(2, 0), torch.ones(2, 0)), sparsification(torch.ones(0, 4), torch.ones(0, 4))):
        assert few.shape[1] == 20
        assert few.isnan().all()
    assert gain_over_random(sparsification(torch.ones(2, 0), torch.ones(2, 0))).isnan().tolist() == [True, True]


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 70), levels=st.sampled_from([2, 7, 1000]))
def test_sparsification_equals_a_naive_loop(seed, count, levels):
    rng = np.random.default_rng(seed)
    errors, sigma = rng.uniform(0, 3, (2, count)).astype(np.float32), rng.integers(0, levels, (2, count)) / 7
    curves = sparsification(torch.from_numpy(errors), torch.from_numpy(sigma.astype(np.float32)))
    for error, own, curve in zip(errors.astype(float), sigma, curves.tolist(), strict=True):
        order = sorted(range(count), key=lambda i: own[i])
        shared = [np.mean([error[j] for j in range(count) if own[j] == own[i]]) for i in order]
        expected = [np.mean(shared[: math.ceil(count * i / 20)]) for i in range(1, 21)]
        assert curve == pytest.approx(expected, abs=1e-9)
        assert gain_over_random(torch.tensor(curve, dtype=torch.float64)).item() == pytest.approx(
            error.mean() - np.mean(curve), abs=1e-9
        )
    better = gain_over_random(sparsification(torch.from_numpy(errors), torch.from_numpy(errors)))
    assert (better >= gain_over_random(curves) - 1e-6).all()  # no order gains more than that of the errors
