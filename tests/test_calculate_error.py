"""calculate_error: metrics worked by hand, naive loops, the golden metrics, and what must hold for any depth."""

import math
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.testing import assert_close

import calculate_error
from calculate_error import (
    HIGHER_IS_BETTER,
    KITTI_ADABINS,
    KITTI_BTS,
    KITTI_METRICS,
    NYU,
    NYU_METRICS,
    Protocol,
    UnscorableError,
    compute_errors,
    compute_errors_NYU,
    compute_errors_per_image,
    image_errors,
    mean_errors,
    whole,
)
from tests.conftest import SIZES, naive_mask_NYU, naive_metrics, sparse_depth, window_of

ALL = tuple(dict.fromkeys((*NYU_METRICS, *KITTI_METRICS, "silog")))
FRAME, CROP = (480, 640), (416, 544)
SEEDS = st.integers(0, 2**32 - 1)


def constant(value: float, size: tuple[int, int], batch: int = 1) -> Tensor:
    return torch.full((batch, 1, *size), value)


def uniform(low: float, high: float, shape: Sequence[int], seed: int) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).uniform(low, high, shape).astype(np.float32))


def one(metrics: dict[str, Tensor], row: int = 0) -> dict[str, float]:
    return {name: values[row].item() for name, values in metrics.items()}


def of_nyu(gt: Tensor, pred: Tensor, protocol: Protocol = NYU) -> dict[str, Tensor]:
    return compute_errors_per_image(list(gt), pred, protocol)


def assert_same_errors(found: dict[str, float], expected: dict[str, float], rel: float = 1e-5) -> None:
    for name, value in expected.items():
        tolerance = 3e-3 if name == "silog" else 1e-6  # near 0, silog is the root of a rounding error in fp32
        assert found[name] == pytest.approx(value, rel=rel, abs=tolerance), name


# ---- worked by hand


def test_every_metric_of_four_pixels_by_hand():
    gt, pred = torch.tensor([1.0, 2.0, 4.0, 8.0]), torch.tensor([[1.0, 2.5, 2.0, 10.0]])
    near, half = math.log(1.25), math.log(2)  # s = 0, near, -half, near
    expected = {
        "abs_diff": (0 + 0.5 + 2 + 2) / 4,
        "delta1": 1 / 4,  # 1; 1.25 is not below 1.25
        "delta2": 3 / 4,
        "delta3": 3 / 4,  # 2 is not below 1.953
        "abs_rel": (0 + 0.25 + 0.5 + 0.25) / 4,
        "sq_rel": (0 + 0.125 + 1 + 0.5) / 4,
        "log10": (2 * near + half) / 4 / math.log(10),
        "rmse": math.sqrt((0 + 0.25 + 4 + 4) / 4),
        "rmse_log": math.sqrt((2 * near**2 + half**2) / 4),
        "silog": math.sqrt((2 * near**2 + half**2) / 4 - ((2 * near - half) / 4) ** 2),
    }
    assert one(mean_errors(gt, pred, 80, ALL)) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("i", [1, 2, 3])
@pytest.mark.parametrize("near", [2.0, 0.5, 4.0])
def test_a_ratio_of_exactly_the_threshold_is_no_hit(i, near):
    beyond = near * 1.25**i  # exact in binary; one step of fp32 nearer is a hit
    inside = np.nextafter(np.float32(beyond), np.float32(near)).item()
    for far, hit in ((beyond, 0), (inside, 1)):
        for gt, pred in ((near, far), (far, near)):
            assert mean_errors(torch.tensor([gt]), torch.tensor([[pred]]), 80, ALL)[f"delta{i}"].tolist() == [hit]


def test_weights_by_hand():
    gt, weights = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([[1.0, 0.5], [0.0, 0.25], [0.0, 0.25]])
    errors = mean_errors(gt, torch.tensor([[2.0]]), 10, ("abs_diff", "rmse", "delta1"), weights)
    assert errors["abs_diff"].tolist() == [[1, 1]]
    assert errors["rmse"][0].tolist() == pytest.approx([1, math.sqrt(0.5 + 1)])
    assert errors["delta1"].tolist() == [[0, 0.25]]


def test_both_functions_of_the_release_by_hand():
    nyu = compute_errors_NYU(constant(2.0, FRAME), constant(2.6, CROP))
    assert list(nyu) == ["abs_diff", "delta1", "delta2", "delta3", "abs_rel", "log10", "rmse"]  # as is printed
    expected = {"abs_diff": 0.6, "delta1": 0, "delta2": 1, "delta3": 1, "abs_rel": 0.3}
    assert nyu == pytest.approx(expected | {"log10": math.log10(1.3), "rmse": 0.6}, abs=1e-6)
    kitti = compute_errors(constant(10.0, (100, 200)), constant(12.0, (100, 200)))
    assert list(kitti) == ["abs_diff", "abs_rel", "sq_rel", "delta1", "delta2", "delta3", "rmse", "rmse_log"]
    expected = {"abs_diff": 2, "abs_rel": 0.2, "sq_rel": 0.4, "delta1": 1, "delta2": 1, "delta3": 1, "rmse": 2}
    assert kitti == pytest.approx(expected | {"rmse_log": math.log(1.2)}, abs=1e-6)


def test_what_counts_of_a_frame_of_nyu():
    # Official quirk: the release's crop starts at column 46, Eigen's at 41; predictions start at 60, so both agree
    assert NYU.region(*FRAME) == (slice(45, 471), slice(46, 601))
    assert NYU.window(*FRAME) == (slice(56, 472), slice(60, 604))
    counts = NYU.counted(torch.full(FRAME, 2.0))
    assert (counts.shape, counts.dtype) == (CROP, torch.bool)
    assert counts[:415, :541].all()  # rows 56:471, columns 60:601 of the frame
    assert counts.sum() == 415 * 541
    assert replace(NYU, region=whole).counted(torch.full(FRAME, 2.0)).all()
    gt = torch.zeros(FRAME)
    gt[56, 60:66], gt[470, 600] = torch.tensor([0.0, 0.001, 0.002, 9.999, 10.0, 11.0]), 3.0
    assert NYU.counted(gt).nonzero().tolist() == [[0, 2], [0, 3], [414, 540]]


def test_regions_of_kitti_by_hand():
    assert KITTI_BTS.window(375, 1242) == KITTI_ADABINS.window(375, 1242) == (slice(23, 375), slice(13, 1229))
    assert KITTI_BTS.region(375, 1242) == (slice(153, 371), slice(44, 1197))
    assert KITTI_ADABINS.region(375, 1242) == (slice(166, 372), slice(56, 1185))


def test_predictions_of_at_most_a_millimetre_are_dropped_on_nyu_and_clamped_elsewhere():
    # Official quirk: they do not count on NYU; the usual thing would be to clamp them like all others
    gt, pred = constant(2.0, FRAME), constant(3.0, CROP)
    pred[..., :100, :] = 0.0
    pred[..., 100:200, :] = -5.0
    pred[..., 200:208, :] = 0.001
    pred[..., 208:, :270] = 0.0011
    errors, others = of_nyu(gt, pred), of_nyu(gt, pred, replace(NYU, drops_tiny=False))
    tiny, near, far = 208 * 541, 207 * 270, 207 * 271  # pixels
    for found, clamped in ((errors, 0), (others, tiny)):
        valid = clamped + near + far
        assert (found["valid_pixels"].item(), found["dropped_pixels"].item()) == (valid, tiny - clamped)
        expected = (clamped * (2 - 0.001) + near * (2 - 0.0011) + far * 1) / valid
        assert found["abs_diff"].item() == pytest.approx(expected, rel=1e-5)


# ---- naive loops, and the golden metrics


def test_golden_metrics(golden, golden_inputs, golden_prediction):
    nyu = compute_errors_NYU(golden_inputs["gt"], golden_prediction)
    kitti = compute_errors(golden_inputs["gk"], golden_inputs["pk"], crop=True, cap=80)
    np.testing.assert_allclose(list(nyu.values()), golden["nyu_metrics"], atol=1e-4, rtol=0)
    np.testing.assert_allclose(list(kitti.values()), golden["kitti_metrics"], atol=1e-4, rtol=0)


def test_nyu_equals_a_naive_loop_image_by_image_and_map_by_map():
    gt, pred = uniform(0, 11, (2, 1, *FRAME), 0), uniform(0.5, 12, (2, 3, *CROP), 1)
    gt[gt < 1] = 0
    gt[:, :, torch.arange(480) % 9 > 0] = 0  # fewer pixels for the loop
    pred[:, 1, 100:120] = 0
    errors = of_nyu(gt, pred)
    assert list(errors) == [*NYU_METRICS, "valid_pixels", "dropped_pixels"]
    for b, r in np.ndindex(2, 3):
        truth = gt[b, 0].numpy()
        mask, canvas = naive_mask_NYU(truth, pred[b, r].numpy())
        expected = naive_metrics(truth[mask], canvas[mask], 10)
        assert errors["valid_pixels"][b, r] == mask.sum()
        for name in NYU_METRICS:
            assert errors[name][b, r].item() == pytest.approx(expected[name], abs=1e-5), (name, b, r)


@pytest.mark.parametrize("crop", [True, False])
@pytest.mark.parametrize("cap", [80, 50])
def test_kitti_equals_a_naive_loop(crop, cap):
    gt, pred = uniform(0, 100, (2, 1, 37, 122), 1), uniform(-5, 90, (2, 1, 37, 122), 2)
    gt[gt < 20] = 0
    gt[:, :, 20, 50:60] = 50.0  # does not count if it is the cap
    images = []
    for b in range(2):
        mask = ((gt[b, 0] > 1e-3) & (gt[b, 0] < cap)).numpy()
        if crop:  # .40810811 * 37 = 15.1, .99189189 * 37 = 36.7, .03594771 * 122 = 4.4, .96405229 * 122 = 117.6
            rows, columns = np.indices(mask.shape)
            mask &= (rows >= 15) & (rows < 36) & (columns >= 4) & (columns < 117)
        images.append(naive_metrics(gt[b, 0].numpy()[mask], pred[b, 0].numpy()[mask], cap))
    expected = {name: np.mean([image[name] for image in images]) for name in KITTI_METRICS}
    assert compute_errors(gt, pred, crop, cap) == pytest.approx(expected, rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("size", SIZES)
def test_both_protocols_of_kitti_are_those_of_the_release_at_every_size(size):
    """BTS pastes the prediction into a frame, AdaBins crops the ground truth as the picture; then both are alike."""
    window = window_of(*size)
    gt = torch.from_numpy(sparse_depth(size, 3).astype(np.float32) / 256)
    pred = uniform(-1, 100, (352, 1216), 4)  # clamped to [1e-3, 80]
    canvas = torch.zeros(size)
    canvas[window] = pred
    for protocol, truth, seen in ((KITTI_BTS, gt, canvas), (KITTI_ADABINS, gt[window], pred)):
        errors = compute_errors_per_image([gt[None]], pred[None, None], protocol)
        direct = compute_errors(truth[None, None], seen[None, None])
        assert {name: errors[name].item() for name in KITTI_METRICS} == pytest.approx(direct, abs=1e-9)
        inside = protocol.counted(gt)
        assert errors["valid_pixels"] == inside.sum() > 10_000
        assert protocol.window(*size) == window


@settings(max_examples=60)
@given(seed=SEEDS, pixels=st.integers(1, 400), maps=st.integers(1, 5), cap=st.sampled_from([10.0, 80.0]))
def test_the_kernel_equals_a_naive_loop(seed, pixels, maps, cap):
    rng = np.random.default_rng(seed)
    gt, pred = np.exp(rng.uniform(-8, 5, pixels)), np.exp(rng.uniform(-8, 5, (maps, pixels)))
    gt, pred = gt.astype(np.float32), pred.astype(np.float32)
    errors = mean_errors(torch.from_numpy(gt), torch.from_numpy(pred), cap, ALL)
    for r in range(maps):
        expected = naive_metrics(gt, pred[r], cap)
        assert_same_errors(one(errors, r), {name: expected[name] for name in ALL}, rel=2e-5)


# ---- what holds for any depth


def test_equal_maps_have_no_error():
    gt = uniform(0.5, 9.5, (2, 1, *FRAME), 2)
    perfect = {name: 1.0 if name in HIGHER_IS_BETTER else 0.0 for name in ALL}
    assert compute_errors_NYU(gt, gt[..., 56:472, 60:604]) == {name: perfect[name] for name in NYU_METRICS}
    assert compute_errors(gt, gt) == {name: perfect[name] for name in KITTI_METRICS}
    assert one(mean_errors(gt.flatten(), gt.view(1, -1), 10, ALL)) == perfect


@settings(max_examples=80)
@given(seed=SEEDS, pixels=st.integers(1, 200), power=st.integers(-2, 2))
def test_symmetries_and_order(seed, pixels, power):
    rng = np.random.default_rng(seed)
    gt, pred = (torch.from_numpy(rng.uniform(0.2, 2, pixels).astype(np.float32)) for _ in range(2))
    mixed, scale = torch.from_numpy(rng.permutation(pixels)), 2.0**power
    pairs = (gt, pred), (pred, gt), (gt * scale, pred * scale), (gt[mixed], pred[mixed])
    forth, back, scaled, shuffled = (one(mean_errors(a, b[None], 10, ALL)) for a, b in pairs)
    units = dict.fromkeys(ALL, 1) | dict.fromkeys(("abs_diff", "rmse", "sq_rel"), scale)  # of the metrics in metres
    assert_same_errors(back, {n: value for n, value in forth.items() if n not in ("abs_rel", "sq_rel")})
    assert_same_errors(scaled, {n: value * units[n] for n, value in forth.items()})
    assert_same_errors(shuffled, forth)
    assert forth["delta1"] <= forth["delta2"] <= forth["delta3"]
    assert forth["abs_diff"] <= forth["rmse"] * (1 + 1e-6)
    assert forth["silog"] <= forth["rmse_log"] * (1 + 1e-6)


@pytest.mark.parametrize("at_once", [1, 7, 1000, 2**20])
def test_the_size_of_blocks_changes_nothing(at_once, monkeypatch):
    gt, pred = uniform(0.5, 9.5, (1003,), 4), uniform(0.5, 9.5, (7, 1003), 5)
    shares = torch.softmax(uniform(0, 1, (1003, 2), 6), 0)
    cases = ((pred, None, 2e-6), (pred[:, :1], shares, 2e-5))
    usual = [mean_errors(gt, maps, 10, ALL, weights) for maps, weights, _ in cases]
    monkeypatch.setattr(calculate_error, "AT_ONCE", at_once)
    for (maps, weights, tolerance), expected in zip(cases, usual, strict=True):
        for name, values in mean_errors(gt, maps, 10, ALL, weights).items():
            assert_close(values, expected[name], atol=0, rtol=tolerance, msg=name)


def test_every_image_has_the_same_weight():
    # Official quirk: the release gives every batch the same weight, so that its result depends on the batch size
    gt = constant(2.0, FRAME, batch=3)
    gt[0, :, 100:] = 0  # fewer pixels in the first image
    pred = torch.cat([constant(value, CROP) for value in (2.0, 3.0, 5.0)])
    assert compute_errors_NYU(gt, pred)["abs_diff"] == pytest.approx((0 + 1 + 3) / 3)
    assert compute_errors_NYU(gt, pred)["rmse"] == pytest.approx((0 + 1 + 3) / 3)  # no root over all pixels


def test_any_float_is_taken():
    gt, pred = uniform(0.5, 9.5, (1, 1, *FRAME), 11), uniform(0.5, 9.5, (1, 1, *CROP), 12).half()
    assert compute_errors_NYU(gt.double(), pred) == compute_errors_NYU(gt, pred.float())
    assert compute_errors(gt.double(), gt.half()) == compute_errors(gt, gt.half().float())
    far = constant(6e4, (20, 30)).half()  # fp16 holds each of them, but not their sum
    assert compute_errors(constant(2.0, (20, 30)), far)["abs_diff"] == 78


# ---- errors


@pytest.mark.parametrize("values", [[math.nan], [math.inf], [math.inf, -math.inf]])
@pytest.mark.parametrize("place", [(0, 0), (200, 300), (415, 542)])  # counted or not
def test_a_single_value_that_is_not_finite_is_an_error_that_names_its_image(values, place):
    # In the release, NaN falls out of the mask, so that a network improves by failing where it would be wrong.
    gt, pred, count = constant(2.0, FRAME, batch=2), torch.full((2, 3, *CROP), 2.0), len(values)
    pred[1, 2, place[0], place[1] : place[1] + count] = torch.tensor(values)
    with pytest.raises(UnscorableError, match=rf"^den/b\.jpg: {count} of 678,912 predicted depths are NaN"):
        compute_errors_per_image(list(gt), pred, NYU, ["den/a.jpg", "den/b.jpg"])
    with pytest.raises(UnscorableError, match=f"image 1: {count} of 226,304"):
        compute_errors_NYU(gt, pred[:, 2:])
    gt[0, 0, *place] = values[0]
    with pytest.raises(ValueError, match="image 0: expected finite gt"):
        compute_errors_NYU(gt, constant(2.0, CROP, batch=2))


def test_an_image_without_a_counted_pixel_is_an_error_that_names_it():
    gt, pred = constant(2.0, FRAME, batch=3), constant(3.0, CROP, batch=3)
    gt[1, :, 56:471, 60:601] = 0  # what lies outside the crop does not help
    with pytest.raises(UnscorableError, match="image 1: no valid pixel, so it has no metrics; leave the image out"):
        compute_errors_NYU(gt, pred)
    maps = torch.stack([torch.full(CROP, 1.0), torch.full(CROP, 0.0005)])  # all of one of them is dropped
    with pytest.raises(UnscorableError, match="mine: every predicted depth is at most 1 mm"):
        image_errors(gt[0, 0], maps, NYU, "mine")
    with pytest.raises(UnscorableError, match="image 0: no valid pixel"):
        compute_errors(constant(80.0, (50, 50)), constant(3.0, (50, 50)))


@pytest.mark.parametrize(
    ("protocol", "gt", "pred", "message"),
    [
        (NYU, (2, 1, 480, 640), (1, 1, 416, 544), r"got 2 and \(1, 1, 416, 544\)"),
        (NYU, (1, 480, 640), (1, 416, 544), "expected B frames"),
        (NYU, (1, 3, 480, 640), (1, 1, 416, 544), "expected B frames"),
        (NYU, (0, 1, 480, 640), (0, 1, 416, 544), "expected B frames"),
        (NYU, (1, 1, 480, 640), (1, 1, 480, 640), r"image 0: .* of \(416, 544\) px, got pred of \(480, 640\)"),
        (NYU, (1, 1, 240, 320), (1, 1, 416, 544), "expected a frame of NYU, 480 x 640, got 240 x 320"),
        (KITTI_BTS, (1, 1, 375, 1242), (1, 1, 375, 1242), r"of \(352, 1216\) px, got pred of \(375, 1242\)"),
        (replace(NYU, window=whole, region=whole), (1, 1, 20, 30), (1, 1, 20, 31), r"of \(20, 30\) px"),
    ],
)
def test_nothing_is_broadcast(protocol, gt, pred, message):
    with pytest.raises(ValueError, match=message):
        of_nyu(torch.ones(gt), torch.ones(pred), protocol)
