"""experiments.score: rows against models of their own, metrics against naive loops, controls that are known."""

import math
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from torch import Tensor
from torch.testing import assert_close

from calculate_error import NYU, NYU_METRICS, Protocol
from clip.model import CLIP, Trunk
from datasets.nyu import FORM
from experiments import score
from experiments.published import BIN_SETS, PROMPT_SETS
from experiments.score import RANDOM_ROWS, Rows, Scorer, Setting, SettingsReader
from monoclip import PAPER, MonoCLIP, Reading, depth_of, zeroshot_classifier
from tests.conftest import METRICS, naive_mask_NYU, naive_metrics

NAME = "kitchen/rgb_00001.jpg"
CROP, PATCHES = (416, 544), (13, 17)  # of NYU: (H, W) that the method sees, and (h, w)
IN_FRAME = (slice(56, 472), slice(60, 604))


soft = partial(replace, temperature=2)  # so that a tiny CLIP's depth is not one bin
truth_of = partial(score.truth_of, grid=PATCHES, protocol=NYU, units_per_metre=1000)


def reader_of(clip_model: CLIP, settings: list[Setting], asked: int = 1) -> SettingsReader:
    return SettingsReader(MonoCLIP(clip_model), partial(zeroshot_classifier, clip_model), settings, asked)


def rough_truth(seed: int = 0) -> Tensor:
    """(480, 640) [m] in whole millimetres, in tiles that are not the patches, a fifth of it not measured."""
    rng = np.random.default_rng(seed)
    millimetres = np.kron(rng.integers(500, 9000, (16, 20)), np.ones((30, 32))) + rng.integers(0, 50, (480, 640))
    millimetres[rng.random((480, 640)) < 0.2] = 0
    return torch.from_numpy(millimetres.astype(np.float32) / 1000)


def errors_of(maps: Tensor, frame: Tensor) -> dict[str, Tensor]:
    return score.errors_of(maps, truth_of(frame), PATCHES, NYU, NAME)


# ---- settings that read depth out of the features


def test_every_reading_equals_a_model_of_its_own(tiny_clip):
    image = torch.randn(1, 3, 96, 128, generator=torch.Generator().manual_seed(0))
    readings = {f"read-out {name}": soft(PAPER, readout=name) for name in ("raw", "maskclip", "attnpool", "clearclip")}
    asked = len(readings)
    readings |= {f"words {name}": soft(r) for name, r in PROMPT_SETS.items()}
    readings |= {f"bins {name}": soft(r) for name, r in BIN_SETS.items()}
    readings |= {f"temperature {t}": replace(PAPER, temperature=t) for t in (0.1, 1, 30)}
    readings["scale"] = replace(PAPER, logit_scale=20)
    readings["permuted"] = soft(PAPER, bin_list=(2.25, 1.0, 3.0, 1.5, 2.75, 2.0, 2.5))
    readings["two words"] = Reading(("a {} that is {}",), ("thing",), ("near", "far away"), (1.0, 4.0), 5)
    with torch.inference_mode():
        trunk = MonoCLIP(tiny_clip).trunk(image)  # patches (2, 128, 3, 4)
    depths, sigmas, asked_weights = reader_of(tiny_clip, [Setting(*each) for each in readings.items()], asked)(trunk)
    assert len(asked_weights) == asked
    for i, (name, reading) in enumerate(readings.items()):
        with torch.inference_mode():
            own = MonoCLIP(tiny_clip, reading)
            weights, bins = own(image), own.bin_list.view(1, -1, 1, 1)
            expected = depth_of(weights, own.bin_list[None])[0, 0]
        assert expected.std() > 1e-3
        assert_close(depths[i], expected, atol=2e-6, rtol=0, msg=name)
        sigma = (weights.double() * (bins - expected) ** 2).sum(1).sqrt()
        assert_close(sigmas[i].double(), sigma[0], atol=1e-4, rtol=0, msg=name)
        if i < asked:
            assert_close(asked_weights[i], weights[0], atol=1e-5, rtol=0, msg=name)


def test_random_channels_equal_a_naive_computation(tiny_clip):
    seeds, patches = (3, None, 4), torch.randn(2, 128, 3, 4, generator=torch.Generator().manual_seed(0))
    settings = [Setting(f"{seed}", soft(PAPER), channels=seed) for seed in seeds]
    depths = reader_of(tiny_clip, settings)(Trunk(patches, torch.zeros(2, 128)))[0]
    text = zeroshot_classifier(tiny_clip).double().detach().numpy()
    features = patches.double().numpy()
    features /= np.sqrt((features**2).sum(1, keepdims=True))
    for i, seed in enumerate(seeds):
        chosen = range(0, 128, 2) if seed is None else np.random.default_rng(seed).choice(128, 64, replace=False)
        logits = 50 * np.einsum("bdhw,dk->bkhw", features[:, chosen], text)
        weights = np.exp(logits - logits.max(1, keepdims=True))
        both = np.einsum("bkhw,k->bhw", weights / weights.sum(1, keepdims=True), PAPER.bin_list)
        np.testing.assert_allclose(depths[i], (both[0] + both[1][:, ::-1]) / 2, atol=1e-4, rtol=0)


def test_random_depth_is_drawn_from_the_name_alone():
    rng = np.random.default_rng([0, 0x352441C2])  # the CRC-32 of "abc"
    first, second = (rng.random(PATCHES, dtype=np.float32) * 8 for _ in range(2))
    sizes = zip(RANDOM_ROWS, (CROP, PATCHES, PATCHES), strict=True)
    pixel, grid, mirrored = (score.random_depth(row, "abc", size, 8.0) for row, size in sizes)
    np.testing.assert_array_equal(grid, first)
    np.testing.assert_array_equal(mirrored, (first + second) / 2)  # the mirror's draw is another one
    assert (pixel.mean().item(), pixel.var().item()) == pytest.approx((4, 64 / 12), rel=0.02)  # uniform
    assert 0 <= pixel.min() < 0.01 < 7.99 < pixel.max() <= 8


# ---- metrics of an image


def naive_upsampled(depth: np.ndarray) -> np.ndarray:
    """(h, w) -> (416, 544), bilinear between the corners, in double precision."""
    for axis, size in enumerate(CROP):
        places = np.arange(size) * (depth.shape[axis] - 1) / (size - 1)
        low = np.minimum(places.astype(int), depth.shape[axis] - 2)
        part = np.expand_dims(places - low, 1 - axis)
        depth = depth.take(low, axis) * (1 - part) + depth.take(low + 1, axis) * part
    return depth


def naive_scores(gt: np.ndarray, pred: np.ndarray, own: np.ndarray | None = None) -> dict[str, float]:
    """All metrics of a map (416, 544), of `own` patches perhaps, against the frame (480, 640), patch by patch."""
    mask, canvas = naive_mask_NYU(gt, pred)
    y, x = gt[mask].astype(float), canvas[mask].astype(float)
    found = naive_metrics(gt[mask], canvas[mask], 10)
    ratio = sorted(y)[(len(y) - 1) // 2] / sorted(x)[(len(x) - 1) // 2]
    fit = np.polyfit(x, y, 1) if np.ptp(x) else (0, y.mean())
    for how, other in (("scaled", x * ratio), ("aligned", np.polyval(fit, x))):
        found |= {f"{how}_{m}": naive_metrics(gt[mask], other, 10)[m] for m in ("delta1", "abs_rel")}
    counted = naive_mask_NYU(gt, np.ones_like(pred))[0][IN_FRAME]
    true, mean, patches = [], [], []
    for i, j in np.ndindex(PATCHES):
        patch = (slice(32 * i, 32 * i + 32), slice(32 * j, 32 * j + 32))
        if counted[patch].sum() >= 512:
            true.append(round(gt[IN_FRAME][patch][counted[patch]].astype(float).mean(), 4))
            mean.append(round(pred[patch].astype(float).mean(), 4))
            patches.append(mean[-1] if own is None else own[i, j])
    found["spearman"] = stats.spearmanr(true, mean).statistic if np.ptp(mean) >= 0.01 else math.nan
    pairs = [(a, b) for a in range(len(true)) for b in range(len(true)) if true[a] * 1.25 < true[b]]
    found["ordinal"] = np.mean([patches[a] >= patches[b] for a, b in pairs])
    return found | {"valid_pixels": mask.sum()}


def test_all_metrics_equal_a_naive_loop():
    rng = np.random.default_rng(3)
    gt = rough_truth(1)
    gt[56 + 64 :, 60:] = 0  # fewer pixels for the loop: two rows of patches
    gt[56:88, 60:124] = 2.0
    gt[56:72, 60:124] = 0  # half of two patches, so that both count
    gt[72, 92] = 0  # one pixel less, so that the second does not
    patches = torch.from_numpy(rng.uniform(0.5, 9, (3, *PATCHES)).astype(np.float32))
    tiles = np.kron(rng.choice([1.1003, 2.2006, 3.3001], PATCHES), np.ones((32, 32)))  # most patches tie
    holes = rng.uniform(0.5, 9, CROP)
    holes[:20] = 0  # is dropped
    pixels = torch.from_numpy(np.stack([tiles, holes, np.full(CROP, 2.5173)]).astype(np.float32))
    of_patches, of_pixels = errors_of(patches, gt), errors_of(pixels, gt)
    assert of_patches.keys() == {*METRICS, "valid_pixels", "dropped_pixels"} - {"aurg"}
    found = {name: [*of_patches[name].tolist(), *of_pixels[name].tolist()] for name in of_patches}
    maps = [(naive_upsampled(each.double().numpy()), each.numpy()) for each in patches]
    maps += [(each, None) for each in pixels.numpy()]
    for r, (pred, own) in enumerate(maps):
        expected = naive_scores(gt.numpy(), pred.astype(np.float32), own)
        for name in found.keys() - {"dropped_pixels"}:
            # Spearman's: two patches that differ by less than a step of the range tie; delta's: three of 27,000 pixels
            tolerance = {"spearman": 1e-3, "silog": 5e-4}.get(name, 1e-4 if "delta" in name else 2e-5)
            assert found[name][r] == pytest.approx(expected[name], abs=tolerance, nan_ok=True), (name, r)
    valid = found["valid_pixels"]
    assert found["dropped_pixels"] == [0, 0, 0, 0, valid[0] - valid[4], 0]
    assert np.isnan(found["spearman"]).tolist() == [False] * 5 + [True]  # a constant, all of whose pairs are wrong
    assert found["ordinal"][5] == 1


def test_orders_by_hand():
    less, upto = score.places(torch.tensor([[7.0, 1.0, 7.0, 2.0, 7.0]]))
    assert (less.tolist(), upto.tolist()) == ([[2, 0, 2, 1, 2]], [[5, 1, 5, 2, 5]])  # ties share their places
    steps = score.steps(torch.tensor([[1.0, 3.0, 1 + 2 / 2**16], [1.0, 1.0, 1.00002]]))
    assert steps.tolist() == [[0, 2**16, 1], [0, 0, 2]]
    rising = torch.tensor([1.0, 2.0, 3.0])
    # ranks (2, .5, .5) - 1 with (-1, 0, 1)
    found = score.rank_correlations(torch.tensor([[1.0, 2.0, 4.0], [3.0, 2.0, 2.0]]), rising)
    assert found.tolist() == pytest.approx([1, -1.5 / math.sqrt(2 * 1.5)], abs=1e-6)
    flat = torch.tensor([[2.0, 2.004, 2.009], [2.0, 2.004, 2.011]])  # to less than a centimetre
    assert score.rank_correlations(flat, rising).isnan().tolist() == [True, False]
    assert score.rank_correlations(rising[None], torch.full((3,), 2.0)).isnan().all()  # the truth is constant
    assert score.rank_correlations(torch.ones(1, 0), torch.ones(0)).isnan().all()
    true = torch.tensor([1.0, 1.25, 2.0, 3.0])  # all pairs but the first: 1.25 is not more than 1.25
    pred = torch.tensor([[2.0, 1.0, 3.0, 4.0], [1.0, 2.0, 2.0, 1.5], [5.0, 5.0, 5.0, 5.0], [4.0, 3.0, 2.0, 1.0]])
    assert score.ordinal_errors(pred, true).tolist() == pytest.approx([0, 3 / 5, 1, 1])
    assert score.ordinal_errors(pred, torch.ones(4)).isnan().all()


def test_outside_nyu_a_fiftieth_of_a_patch_measures_it():
    gt = torch.zeros(64, 64)
    gt.view(-1)[:21], gt[32, :20] = 2.0, 3.0  # of 1,024 px, in the first and the third of four patches
    truth = score.truth_of(gt, (2, 2), Protocol("own pairs", NYU_METRICS, 10.0), 1000)
    assert (truth.patches.tolist(), truth.patch_depth.tolist()) == ([0], [2.0])


# ---- all of an image


def test_every_row_of_an_image_has_the_metrics_of_its_own_map(tiny_clip):
    gt = rough_truth(4)
    trunk = Trunk(torch.randn(2, 128, *PATCHES, generator=torch.Generator().manual_seed(6)), torch.zeros(2, 128))
    bins = [PAPER.bin_list, PAPER.bin_list[::-1], (0.5, 9.0, 3.0, 1.5, 2.75, 2.0, 12.0)]  # to 10 m at most
    settings = [Setting(f"{i}", replace(PAPER, bin_list=each)) for i, each in enumerate(bins)]
    settings.append(Setting("channels", soft(PAPER), channels=0))
    rows = Rows(tuple(settings), RANDOM_ROWS, {"two metres": 2.0, "near": 0.5})
    data = SimpleNamespace(names=[NAME], form=FORM, depth=lambda item: gt[None])
    depths, sigmas, _ = reader_of(tiny_clip, settings)(trunk)
    more = {"twice": 2 * depths[0].double(), "of pixels": torch.full(CROP, 3.0)}
    scorer = Scorer(rows, reader_of(tiny_clip, settings), torch.tensor(bins), NYU, data, lambda *_: more)
    image = scorer.score_image(0, trunk)
    expected = dict(zip([setting.name for setting in settings], depths, strict=True))
    expected |= {"twice": 2 * depths[0], "of pixels": torch.full(CROP, 3.0)}
    expected |= {r: score.random_depth(r, NAME, CROP if r == score.PIXEL else PATCHES, 10.0) for r in RANDOM_ROWS}
    expected |= {row: torch.full(CROP, depth) for row, depth in rows.constants.items()}
    assert image.errors.keys() == expected.keys()
    truth = truth_of(gt)
    for row, depth in expected.items():
        own = {name: values[0].item() for name, values in errors_of(depth[None], gt).items()}
        assert {m: image.errors[row][m] for m in own} == pytest.approx(own, abs=3e-5, rel=1e-5, nan_ok=True), row
        assert tuple(image.errors[row]) == (*METRICS, "valid_pixels", "dropped_pixels")

    true = truth.patch_depth.numpy()
    for i in range(3):  # and every assignment of bins over the patches
        pred = depths[i].flatten()[truth.patches].double().numpy()
        naive = naive_metrics(true, pred, 10)
        assert pred.std() > 0.01
        assert image.permuted[0, i] == pytest.approx([naive["delta1"], naive["abs_rel"]], abs=1e-5)
    np.testing.assert_allclose(image.patches[0], depths[0].flatten()[truth.patches], atol=1e-6, rtol=0)
    np.testing.assert_array_equal(image.patches[1], true)
    assert np.array_equal(score.mean_permuted([image, image]), image.permuted[0])
    relative = abs(depths.flatten(1)[:, truth.patches].clamp(max=10) - truth.patch_depth) / truth.patch_depth
    curves = score.sparsification(relative, sigmas.flatten(1)[:, truth.patches])
    np.testing.assert_allclose(image.curve, curves[0], atol=1e-4)
    gained = dict(zip(expected, score.gain_over_random(curves).tolist(), strict=False))  # settings come first
    gains = {row: errors["aurg"] for row, errors in image.errors.items()}
    assert gains == pytest.approx(dict.fromkeys(expected, 0.0) | gained, abs=1e-4)
    assert min(map(abs, gained.values())) > 5e-4

    gt[torch.rand(gt.shape, generator=torch.Generator().manual_seed(0)) < 0.7] = 0  # no patch is measured, an image is
    image = scorer.score_image(0, trunk)
    assert (image.permuted.shape, image.patches.shape) == ((1, 3, 2), (2, 0))
    assert score.mean_permuted([image]) is None
    assert np.isnan(image.curve).all()
    of_patches = ("spearman", "ordinal", "aurg")
    assert all(math.isnan(errors[metric]) for errors in image.errors.values() for metric in of_patches)


# ---- does certainty know of error


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), count=st.integers(1, 70), levels=st.sampled_from([2, 7, 1000]))
def test_sparsification_equals_a_naive_loop(seed, count, levels):
    rng = np.random.default_rng(seed)
    errors, sigma = rng.uniform(0, 3, (2, count)).astype(np.float32), rng.integers(0, levels, (2, count)) / 7
    curves = score.sparsification(torch.from_numpy(errors), torch.from_numpy(sigma.astype(np.float32)))
    for error, own, curve in zip(errors.astype(float), sigma, curves.tolist(), strict=True):
        order = sorted(range(count), key=lambda i: own[i])
        shared = [np.mean([error[j] for j in range(count) if own[j] == own[i]]) for i in order]
        expected = [np.mean(shared[: math.ceil(count * i / 20)]) for i in range(1, 21)]
        assert curve == pytest.approx(expected, abs=1e-9)
    best = score.gain_over_random(score.sparsification(torch.from_numpy(errors), torch.from_numpy(errors)))
    assert (best >= score.gain_over_random(curves) - 1e-6).all()  # no order gains more than that of the errors
