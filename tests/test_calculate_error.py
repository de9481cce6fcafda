"""calculate_error: figures worked by hand, naive loops, the released figures, and predictions that are not finite."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from calculate_error import (
    HIGHER_IS_BETTER,
    KITTI_FIGURES,
    NYU_CROP,
    NYU_FIGURES,
    NonFinitePredictionError,
    NoValidPixelError,
    compute_errors,
    compute_errors_NYU,
    errors_KITTI,
    errors_NYU,
)

NYU_GT, NYU_PRED = (480, 640), (416, 544)
EVERY_COUNTED = (slice(56, 471), slice(60, 601))  # what crop and placement leave


def constant(value: float, size: tuple[int, int], batch: int = 1) -> Tensor:
    return torch.full((batch, 1, *size), value)


def test_nyu_figures_by_hand():
    figures = compute_errors_NYU(constant(2.0, NYU_GT), constant(2.6, NYU_PRED))
    assert list(figures) == ["abs_diff", "a1", "a2", "a3", "abs_rel", "log10", "rmse"]
    expected = {"abs_diff": 0.6, "a1": 0, "a2": 1, "a3": 1, "abs_rel": 0.3, "log10": math.log10(1.3), "rmse": 0.6}
    assert figures == pytest.approx(expected, abs=1e-6)


def test_kitti_figures_by_hand():
    figures = compute_errors(constant(10.0, (100, 200)), constant(12.0, (100, 200)))
    assert list(figures) == ["abs_diff", "abs_rel", "sq_rel", "a1", "a2", "a3", "rmse", "rmse_log"]
    expected = {"abs_diff": 2, "abs_rel": 0.2, "sq_rel": 0.4, "a1": 1, "a2": 1, "a3": 1, "rmse": 2}
    assert figures == pytest.approx(expected | {"rmse_log": math.log(1.2)}, abs=1e-6)


def test_released_figures(golden, golden_inputs, golden_prediction):
    nyu = compute_errors_NYU(golden_inputs["gt"], golden_prediction)
    kitti = compute_errors(golden_inputs["gk"], golden_inputs["pk"], crop=True, cap=80)
    np.testing.assert_allclose(list(nyu.values()), golden["nyu_metrics"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(list(kitti.values()), golden["kitti_metrics"], atol=1e-4, rtol=0)


def naive_figures(gt: np.ndarray, pred: np.ndarray, mask: np.ndarray, cap: float) -> dict[str, float]:
    """All figures of one image, pixel by pixel, in double precision."""
    terms = {name: [] for name in {*NYU_FIGURES, *KITTI_FIGURES}}
    for g, p in zip(gt[mask].astype(float), pred[mask].astype(float), strict=True):
        g, p = min(max(g, 1e-3), cap), min(max(p, 1e-3), cap)
        for i in (1, 2, 3):
            terms[f"a{i}"].append(max(g / p, p / g) < 1.25**i)
        terms["abs_diff"].append(abs(g - p))
        terms["abs_rel"].append(abs(g - p) / g)
        terms["sq_rel"].append((g - p) ** 2 / g)
        terms["log10"].append(abs(math.log10(g) - math.log10(p)))
        terms["rmse"].append((g - p) ** 2)
        terms["rmse_log"].append((math.log(g) - math.log(p)) ** 2)
    mean = {name: sum(values) / len(values) for name, values in terms.items()}
    return mean | {"rmse": math.sqrt(mean["rmse"]), "rmse_log": math.sqrt(mean["rmse_log"])}


def test_nyu_figures_equal_a_naive_loop_image_by_image():
    rng = np.random.default_rng(0)
    gt = rng.uniform(0, 11, (2, 1, *NYU_GT)).astype(np.float32)
    gt[gt < 1] = 0
    gt[:, :, ::3] = 0  # fewer pixels for the loop
    pred = rng.uniform(0.5, 12, (2, 1, *NYU_PRED)).astype(np.float32)
    pred[:, :, 100:120] = 0
    result = errors_NYU(torch.from_numpy(gt), torch.from_numpy(pred))
    for b in range(2):
        canvas = np.zeros(NYU_GT, dtype=np.float32)
        canvas[56:472, 60:604] = pred[b, 0]
        crop = np.zeros(NYU_GT, dtype=bool)
        crop[45:471, 46:601] = True
        mask = crop & (gt[b, 0] > 1e-3) & (gt[b, 0] < 10) & (canvas > 1e-3)
        expected = naive_figures(gt[b, 0], canvas, mask, 10)
        assert result.valid_pixels[b] == mask.sum()
        assert {n: v[b].item() for n, v in result.figures.items()} == pytest.approx(
            {n: expected[n] for n in NYU_FIGURES}, abs=1e-5
        )


@pytest.mark.parametrize("crop", [True, False])
def test_kitti_figures_equal_a_naive_loop(crop):
    rng = np.random.default_rng(1)
    gt = rng.uniform(0, 100, (2, 1, 37, 122)).astype(np.float32)
    pred = rng.uniform(0, 90, (2, 1, 37, 122)).astype(np.float32)
    result = errors_KITTI(torch.from_numpy(gt), torch.from_numpy(pred), crop)
    for b in range(2):
        mask = (gt[b, 0] > 1e-3) & (gt[b, 0] < 80)
        if crop:
            rows, columns = np.indices(mask.shape)
            mask &= (rows >= int(0.40810811 * 37)) & (rows < int(0.99189189 * 37))
            mask &= (columns >= int(0.03594771 * 122)) & (columns < int(0.96405229 * 122))
        expected = naive_figures(gt[b, 0], pred[b, 0], mask, 80)
        assert {n: v[b].item() for n, v in result.figures.items()} == pytest.approx(
            {n: expected[n] for n in KITTI_FIGURES}, rel=1e-4, abs=1e-5
        )


def test_which_pixels_count():
    counted = torch.zeros(NYU_GT, dtype=torch.bool)
    counted[EVERY_COUNTED] = True
    whole = errors_NYU(constant(2.0, NYU_GT), constant(2.0, NYU_PRED))
    assert whole.valid_pixels.item() == 415 * 541 == counted.sum()
    assert errors_NYU(constant(2.0, NYU_GT), constant(2.0, NYU_PRED), crop=False).valid_pixels.item() == 416 * 544
    gt = constant(0.0, NYU_GT)
    gt[0, 0, 56, 60], gt[0, 0, 470, 600] = 1.0, 3.0  # two corners inside
    gt[0, 0, 55, 60], gt[0, 0, 56, 59], gt[0, 0, 471, 600], gt[0, 0, 470, 601] = 9.0, 9.0, 9.0, 9.0  # just outside
    corners = errors_NYU(gt, constant(2.0, NYU_PRED))
    assert corners.valid_pixels.item() == 2
    assert corners.figures["abs_diff"].item() == pytest.approx(1.0)


@pytest.mark.parametrize(("depth", "counts"), [(0.001, False), (0.002, True), (9.999, True), (10.0, False)])
def test_range_of_ground_truth(depth, counts):
    assert (errors_NYU(constant(depth, NYU_GT), constant(2.0, NYU_PRED)).valid_pixels.item() > 0) == counts


def test_columns_46_and_41_count_the_same_pixels():
    # Official quirk: the release's crop starts at column 46, Eigen's at 41; predictions start at 60, so both agree.
    assert NYU_CROP[1].start == 60 > 46 > 41


def test_prediction_is_clamped_to_the_range():
    low, high = constant(0.0005, NYU_PRED), constant(1000.0, NYU_PRED)
    assert compute_errors_NYU(constant(4.0, NYU_GT), high)["abs_diff"] == pytest.approx(6.0)
    assert errors_NYU(constant(4.0, NYU_GT), low).valid_pixels.item() == 0  # dropped, see the next test


def test_pixels_dropped_for_a_prediction_of_zero_are_counted():
    pred = constant(2.0, NYU_PRED)
    pred[..., :208, :] = 0
    result = errors_NYU(constant(2.0, NYU_GT), pred)
    assert result.valid_pixels.item() == 207 * 541
    assert result.dropped_pixels.item() == 208 * 541


def test_equal_maps_have_no_error():
    rng = np.random.default_rng(2)
    gt = torch.from_numpy(rng.uniform(0.5, 9.5, (2, 1, *NYU_GT)).astype(np.float32))
    figures = compute_errors_NYU(gt, gt[..., 56:472, 60:604])
    assert figures == {name: 1.0 if name in HIGHER_IS_BETTER else 0.0 for name in NYU_FIGURES}


def test_every_image_has_the_same_weight():
    # Official quirk: the release gives every batch the same weight
    gt = constant(2.0, NYU_GT, batch=3)
    gt[0, :, 100:] = 0  # fewer pixels in the first image
    pred = torch.cat([constant(value, NYU_PRED) for value in (2.0, 3.0, 5.0)])
    assert compute_errors_NYU(gt, pred)["abs_diff"] == pytest.approx((0 + 1 + 3) / 3)
    assert errors_NYU(gt, pred).figures["abs_diff"].tolist() == pytest.approx([0, 1, 3])


def test_an_image_without_a_valid_pixel_is_named():
    gt, pred = constant(2.0, NYU_GT, batch=3), constant(3.0, NYU_PRED, batch=3)
    gt[1] = 0
    result = errors_NYU(gt, pred)
    assert result.valid_pixels.tolist() == [415 * 541, 0, 415 * 541]
    assert all(value.isnan().tolist() == [False, True, False] for value in result.figures.values())
    with pytest.raises(NoValidPixelError, match="no valid pixel in image 1") as error:
        result.mean()
    assert error.value.images == [1]
    with pytest.raises(NoValidPixelError):
        compute_errors_NYU(gt, pred)
    assert result.mean(empty="skip")["abs_diff"] == pytest.approx(1.0)
    with pytest.raises(NoValidPixelError, match="image 0"):
        errors_NYU(gt[1:2], pred[1:2]).mean(empty="skip")
    with pytest.raises(NoValidPixelError):
        compute_errors(constant(0.0, (50, 50)), constant(1.0, (50, 50)))


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("place", [(0, 0), (200, 300), (415, 543)])
def test_a_single_value_that_is_not_finite_raises(value, place):
    pred = constant(2.0, NYU_PRED, batch=2)
    pred[1, 0, *place] = value
    with pytest.raises(NonFinitePredictionError, match="image 1 has 1") as error:
        errors_NYU(constant(2.0, NYU_GT, batch=2), pred)
    assert error.value.counts == {1: 1}


def test_nan_where_the_prediction_is_wrong_does_not_raise_the_score():
    # what the release does: NaN falls out of its mask, so the wrong pixels no longer count
    rng = np.random.default_rng(3)
    gt = torch.from_numpy(rng.uniform(1, 5, (1, 1, *NYU_GT)).astype(np.float32))
    pred = constant(2.5, NYU_PRED)
    spoiled = pred.masked_fill((gt[..., 56:472, 60:604] - pred).abs() > 0.3, math.nan)
    with pytest.raises(NonFinitePredictionError):
        errors_NYU(gt, spoiled)
    honest, worst = errors_NYU(gt, pred).mean(), errors_NYU(gt, spoiled, nonfinite="worst").mean()
    assert worst["a1"] < honest["a1"]
    assert worst["rmse"] > honest["rmse"]


@settings(max_examples=150, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(1, 60),
    value=st.sampled_from([math.nan, math.inf, -math.inf]),
    crop=st.booleans(),
)
def test_no_figure_improves_where_predictions_stop_being_finite(seed, count, value, crop):
    rng = np.random.default_rng(seed)
    gt = torch.from_numpy(rng.uniform(0, 100, (1, 1, 12, 30)).astype(np.float32))
    pred = torch.from_numpy(rng.uniform(-5, 120, (1, 1, 12, 30)).astype(np.float32))
    spoiled = pred.flatten().clone()
    spoiled[rng.choice(360, count, replace=False)] = value
    spoiled = spoiled.view_as(pred)
    with pytest.raises(NonFinitePredictionError):
        errors_KITTI(gt, spoiled, crop)
    before, after = errors_KITTI(gt, pred, crop), errors_KITTI(gt, spoiled, crop, nonfinite="worst")
    assert torch.equal(before.valid_pixels, after.valid_pixels)
    for name in KITTI_FIGURES:
        if name in HIGHER_IS_BETTER:
            assert after.figures[name] <= before.figures[name]
        else:
            assert after.figures[name] >= before.figures[name] * (1 - 1e-6)


def test_worst_counts_pixels_whose_prediction_is_not_finite():
    pred = constant(2.0, NYU_PRED)
    pred[..., 0, 0] = math.nan
    result = errors_NYU(constant(2.0, NYU_GT), pred, nonfinite="worst")
    assert result.valid_pixels.item() == 415 * 541
    assert result.dropped_pixels.item() == 0
    assert result.figures["abs_diff"].item() == pytest.approx(8 / (415 * 541), rel=1e-4)  # 10 m is the worse end
    assert result.figures["log10"].item() == pytest.approx(math.log10(2000) / (415 * 541), rel=1e-4)  # 1 mm is
    assert result.figures["a3"].item() == pytest.approx(1 - 1 / (415 * 541))


@pytest.mark.parametrize(
    ("gt", "pred"),
    [
        ((2, 1, 480, 640), (1, 1, 416, 544)),
        ((1, 480, 640), (1, 416, 544)),
        ((1, 1, 480, 640), (1, 1, 480, 640)),
        ((1, 1, 416, 544), (1, 1, 416, 544)),
        ((1, 3, 480, 640), (1, 1, 416, 544)),
        ((0, 1, 480, 640), (0, 1, 416, 544)),
    ],
)
def test_nothing_is_broadcast(gt, pred):
    with pytest.raises(ValueError, match=r"expected (gt|pred) of shape \(B, 1, "):
        errors_NYU(torch.ones(gt), torch.ones(pred))


def test_kitti_shapes_and_ground_truth_are_checked():
    with pytest.raises(ValueError, match="expected pred of shape"):
        errors_KITTI(torch.ones(1, 1, 20, 30), torch.ones(1, 1, 20, 31))
    with pytest.raises(ValueError, match="gt holds NaN"):
        errors_KITTI(torch.full((1, 1, 20, 30), math.nan), torch.ones(1, 1, 20, 30))
