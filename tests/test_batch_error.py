"""batch_error: many maps at once against calculate_error, figures known in closed form, and what has no figure."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from calculate_error import NonFinitePredictionError, errors_NYU
from evaluation.batch_error import FIGURES, NYU_FIGURES, SCALED, Counted, MapScorer, lower_median, ranks
from evaluation.constant_error import ConstantErrors, MeanOfConstants

GRID = (13, 17)
CPU = torch.device("cpu")


def truth(seed: int = 0, low: float = 0.5, high: float = 9.0) -> Tensor:
    """(1, 480, 640) [m] in whole millimetres, smooth, a fifth of it not measured."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 1, 12, 16, generator=generator) * (high - low) + low
    gt = F.interpolate(coarse, (480, 640), mode="bilinear", align_corners=True)[0]
    gt = (gt * 1000).round() / 1000
    return gt.where(torch.rand(gt.shape, generator=generator) > 0.2, 0)


def maps(count: int, seed: int = 1) -> Tensor:
    return torch.rand(count, *GRID, generator=torch.Generator().manual_seed(seed)) * 3 + 0.5


def resized(grids: Tensor) -> Tensor:
    """(R, h, w) -> (R, 1, 416, 544), as MonoCLIP.predict does it."""
    return F.interpolate(grids[:, None], (416, 544), mode="bilinear", align_corners=True)


def by_name(figures: np.ndarray) -> dict[str, np.ndarray]:
    return dict(zip(FIGURES, figures.T, strict=True))


def test_a_constant_by_hand():
    scorer, gt = MapScorer(GRID, CPU), torch.full((1, 480, 640), 2.0)
    errors = scorer.grids(scorer.counted(gt), torch.full((1, *GRID), 2.6)).result()
    expected = {"abs_diff": 0.6, "a1": 0, "a2": 1, "a3": 1, "abs_rel": 0.3, "log10": math.log10(1.3), "rmse": 0.6}
    expected |= {"spearman": 0, "pearson": 0}
    expected |= {f"scaled_{n}": float(n in ("a1", "a2", "a3")) for n in SCALED}
    figures = {n: v[0] for n, v in by_name(errors.figures).items()}
    assert figures.pop("silog") == pytest.approx(0, abs=5e-4)  # the root of a rounding error
    assert figures == pytest.approx(expected, abs=1e-6)
    assert errors.valid_pixels.tolist() == [415 * 541]
    assert errors.dropped_pixels.tolist() == [0]


def test_a_ratio_of_exactly_the_threshold_does_not_count():
    scorer, gt = MapScorer(GRID, CPU), torch.full((1, 480, 640), 2.5)
    grids = torch.tensor([2.0, 3.125]).view(-1, 1, 1).expand(-1, *GRID)  # ratios 1.25 and 0.8
    figures = by_name(scorer.grids(scorer.counted(gt), grids).result().figures)
    assert figures["a1"].tolist() == [0, 0]
    assert figures["a2"].tolist() == [1, 1]


def test_many_maps_agree_with_the_reference():
    scorer, gt, grids = MapScorer(GRID, CPU), truth(), maps(5)
    reference = errors_NYU(gt.expand(5, 1, 480, 640), resized(grids))
    for scorer.at_once, scorer.block in ((1, 1000), (2, 1 << 20)):
        errors = scorer.grids(scorer.counted(gt), grids).result()
        assert errors.valid_pixels.tolist() == reference.valid_pixels.tolist()
        for name in NYU_FIGURES:
            np.testing.assert_allclose(by_name(errors.figures)[name], reference.figures[name], atol=1e-5)
    whole = scorer.maps(scorer.counted(gt), resized(grids)[:, 0]).result()
    np.testing.assert_allclose(whole.figures, errors.figures, atol=1e-5)


def test_nothing_is_waited_for():
    # The meta device has no values, so whatever would have to be read from a device raises there.
    scorer, gt = MapScorer(GRID, torch.device("meta")), truth()
    counted = scorer.counted(gt)
    for pending in (
        scorer.grids(counted, maps(3).to("meta")),
        scorer.maps(counted, torch.empty(2, 416, 544, device="meta")),
    ):
        assert pending.figures.shape == (len(pending.depth), len(FIGURES))
        assert pending.figures.is_meta
        with pytest.raises(TypeError, match="meta"):
            pending.result()


def test_extra_figures_agree_with_a_plain_computation():
    scorer, gt, grids = MapScorer(GRID, CPU), truth(2), maps(2)
    figures = by_name(scorer.grids(scorer.counted(gt), grids).result().figures)
    window = (slice(56, 471), slice(60, 601))
    for r, pred in enumerate(resized(grids)[:, 0]):
        g, p = gt[0][window].double(), pred[:415, :541].double()
        mask = g > 0
        s = (p[mask] / g[mask]).log()
        assert figures["silog"][r] == pytest.approx(s.std(correction=0).item(), abs=1e-5)
        ratio = g[mask].median() / p[mask].median()
        scaled = errors_NYU(gt[None], pred[None, None] * ratio.float())
        for name in SCALED:
            assert figures[f"scaled_{name}"][r] == pytest.approx(scaled.figures[name].item(), abs=1e-4)
        true, predicted = [], []
        for i in range(GRID[0]):
            for j in range(GRID[1]):
                cell = (slice(32 * i, 32 * i + 32), slice(32 * j, 32 * j + 32))
                g_cell = gt[0, 56:471, 60:601][cell].double()
                if (g_cell > 0).sum() >= 512:
                    true.append(g_cell[g_cell > 0].mean().item())
                    predicted.append(pred[cell].double().mean().item())
        assert len(true) > 200
        assert figures["pearson"][r] == pytest.approx(np.corrcoef(true, predicted)[0, 1], abs=1e-4)
        order = [np.argsort(np.argsort(v)) for v in (true, predicted)]
        assert figures["spearman"][r] == pytest.approx(np.corrcoef(*order)[0, 1], abs=1e-3)


def test_what_a_constant_cannot_fake():
    scorer, gt = MapScorer(GRID, CPU), truth(3)
    counted = scorer.counted(gt)
    patches = torch.zeros(GRID[0] * GRID[1])
    patches[counted.patches] = counted.patch_depth[0]
    grids = torch.stack([patches.view(GRID) + 0.1, 10 - patches.view(GRID), torch.full(GRID, 2.0)])
    figures = by_name(scorer.grids(counted, grids).result().figures)
    assert figures["spearman"][0] > 0.9
    assert figures["spearman"][1] < -0.9
    assert figures["spearman"][2] == figures["pearson"][2] == 0
    larger = by_name(scorer.grids(counted, grids * 0.9).result().figures)
    np.testing.assert_allclose(larger["silog"], figures["silog"], atol=1e-5)
    np.testing.assert_allclose(larger["scaled_rmse"], figures["scaled_rmse"], atol=1e-5)


def test_ties_share_their_rank_and_the_median_is_the_lower():
    assert ranks(torch.tensor([[3.0, 1.0, 3.0, 7.0]])).tolist() == [[2.0, 0.5, 2.0, 3.5]]
    assert lower_median(torch.tensor([[4.0, 1.0, 3.0, 2.0], [5.0, 5.0, 1.0, 0.0]])).tolist() == [2.0, 1.0]


@pytest.mark.parametrize("seed", range(3))
def test_constants_from_the_histogram_are_exact(seed):
    gt = truth(seed)
    gt[:, :, 300:330] = 2.5  # where 1.25 * 2 m is hit exactly
    depths = np.array([2.0, 15 / 7, 1.0, 1.5, 2.25, 3.0, 4.0, 0.05, 9.9, 12.0])
    reference = errors_NYU(
        gt.expand(len(depths), 1, 480, 640),
        torch.tensor(depths).float().view(-1, 1, 1, 1).expand(-1, 1, 416, 544),
    )
    figures = by_name(ConstantErrors(Counted.of(gt, (13, 17)).histogram).figures(depths))
    for name in NYU_FIGURES:
        np.testing.assert_allclose(figures[name], reference.figures[name], atol=1e-5, err_msg=name)
    scorer = MapScorer(GRID, CPU)
    grids = torch.tensor(depths).float().view(-1, 1, 1).expand(-1, *GRID)
    extra = by_name(scorer.grids(scorer.counted(gt), grids).result().figures)
    for name in FIGURES:
        np.testing.assert_allclose(figures[name], extra[name], atol=1e-5, err_msg=name)


def test_means_of_constants_are_those_of_their_figures():
    histograms = [Counted.of(truth(seed), GRID).histogram for seed in range(3)]
    depths = np.array([0.5, 2.0, 15 / 7, 9.999])
    expected = np.mean([ConstantErrors(histogram).paper_figures(depths) for histogram in histograms], axis=0)
    means = MeanOfConstants(depths)
    for histogram in histograms:
        means.add(histogram)
    np.testing.assert_allclose(means.paper_figures(), expected, rtol=0, atol=1e-12)


def test_uniform_random_depth_has_its_closed_form():
    scorer, depth = MapScorer(GRID, CPU), 3.2
    pred = torch.rand(4, 416, 544, generator=torch.Generator().manual_seed(5)) * 10
    figures = by_name(scorer.maps(scorer.counted(torch.full((1, 480, 640), depth)), pred).result().figures)
    assert figures["a1"].mean() == pytest.approx(0.045 * depth, abs=2e-3)
    assert figures["abs_rel"].mean() == pytest.approx(depth / 10 - 1 + 5 / depth, abs=5e-3)
    assert figures["rmse"].mean() == pytest.approx(math.sqrt(100 / 12 + (5 - depth) ** 2), abs=5e-3)


def test_predictions_of_at_most_a_millimetre_are_dropped_as_in_the_reference():
    scorer, gt, grids = MapScorer(GRID, CPU), truth(), maps(3)
    grids[1, :, :9] = 0
    reference = errors_NYU(gt.expand(3, 1, 480, 640), resized(grids))
    errors = scorer.grids(scorer.counted(gt), grids).result()
    assert errors.valid_pixels.tolist() == reference.valid_pixels.tolist()
    assert errors.dropped_pixels.tolist() == reference.dropped_pixels.tolist()
    assert errors.dropped_pixels[1] > 1000
    for name in NYU_FIGURES:
        np.testing.assert_allclose(by_name(errors.figures)[name], reference.figures[name], atol=1e-5)
    nothing = scorer.grids(scorer.counted(gt), torch.zeros(1, *GRID)).result()
    assert nothing.valid_pixels.tolist() == [0]
    assert np.isnan(nothing.figures).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_predictions_that_are_not_finite_raise_or_count_as_the_worst(value):
    gt, grids = truth(), maps(3)
    grids[1, 5, 5] = value
    scorer = MapScorer(GRID, CPU)
    with pytest.raises(NonFinitePredictionError) as error:
        scorer.grids(scorer.counted(gt), grids).result()
    assert list(error.value.counts) == [1]
    scorer = MapScorer(GRID, CPU, nonfinite="worst")
    errors = scorer.grids(scorer.counted(gt), grids).result()
    reference = errors_NYU(gt.expand(3, 1, 480, 640), resized(grids), nonfinite="worst")
    for name in NYU_FIGURES:
        np.testing.assert_allclose(by_name(errors.figures)[name], reference.figures[name], atol=1e-5)
    assert np.isnan(by_name(errors.figures)["spearman"]).tolist() == [False, True, False]


def test_no_ground_truth_gives_no_figures():
    scorer = MapScorer(GRID, CPU)
    errors = scorer.grids(scorer.counted(torch.zeros(1, 480, 640)), maps(2)).result()
    assert errors.valid_pixels.tolist() == [0, 0]
    assert np.isnan(errors.figures).all()
    with pytest.raises(ValueError, match=r"expected gt of shape \(1, 480, 640\)"):
        scorer.counted(torch.zeros(480, 640))
