"""experiments.ladder: every rung against a naive loop, the demo's right values, and what is left out and said."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from calculate_error import NYU_METRICS, Protocol
from clip.model import Trunk
from experiments import __main__ as experiments
from experiments.ladder import Ladder
from experiments.published import ANSWERS_AT, BEST, CEILING, FITTED, PROBE, RUNGS, THIS_RUN, TRUTH_AT, UNIFORM, WITHIN
from experiments.score import Truth, truth_of
from monoclip import MonoCLIP, Reading
from options import DEMO_DATA, DEMO_WEIGHTS
from tests.conftest import METRICS, QUICKGELU, ROOT, TINY, asked, noise, random_clip, save, with_findings

OWN = Protocol("own pairs", NYU_METRICS, 10.0)
BINS = (1.0, 2.0, 4.0)
READING = Reading(depth_classes=("near", "far", "unseen"), bin_list=BINS, temperature=2)
SIZE, GRID = (64, 96), (2, 3)
FOLDS = (0, 1, 0)  # of three images: the first and the last are fitted on the second alone
# Right values on the demo, of an independent computation; each image is its own cluster. - is not among them.
RIGHT = """
position of the answers: .5740 .2915 .6427 .2152 .2160
position of the truth: .5650 .2919 .6516 .2127 -
this run: .8593 .1374 .9030 .1052 .0296
words, fitted bins: .8451 .1294 .8985 .1092 .0326
linear probe: .8546 .1326 .8889 .1108 .0364
ceiling, within the bins: .9512 .0651 .9602 .0606 .0002
ceiling, true patches: .9598 .0498 .9615 .0464 .0000
"""
RIGHT_COLUMNS = ("delta1", "abs_rel", "aligned_delta1", "aligned_abs_rel", "ordinal")
LESS_UNIFORM = {  # each with its 95 % interval
    "delta1": (0.3824, 0.2893, 0.4755),
    "abs_rel": (-0.1712, -0.2280, -0.1144),
    "spearman": (0.8858, 0.8363, 0.9353),
}


@pytest.fixture(scope="module")
def model(tiny_clip):
    return MonoCLIP(tiny_clip, READING)


@pytest.fixture(scope="module")
def images() -> list[tuple[Trunk, Truth]]:
    """Images of 2 x 3 patches; two patches of the first, and some pixels of all, are not measured."""
    found, rng = [], np.random.default_rng(0)
    for i in range(3):
        frame = np.kron(rng.uniform(0.5, 9, GRID), np.ones((32, 32))) + rng.uniform(0, 0.9, SIZE)
        frame[:, 32 : 32 + 32 * (i == 0)] = frame[:20, 64:] = frame[0, 0] = 0
        patches = torch.randn(2, 128, *GRID, generator=torch.Generator().manual_seed(i))
        truth = truth_of(torch.from_numpy(frame.astype(np.float32)), GRID, OWN, 1000)
        found.append((Trunk(patches, torch.zeros(2, 128)), truth))
    return found


def climbed(model: MonoCLIP, images: Sequence[tuple[Trunk, Truth]], folds: Sequence[int]) -> list[dict[str, Tensor]]:
    """Each image's depth by rung."""
    ladder = Ladder(model, OWN, SimpleNamespace(clusters=[f"{fold}" for fold in folds], sizes=()))
    ladder.fit(lambda item: images[item][0], lambda item, trunk: images[item][1])
    with torch.inference_mode():
        return [ladder.maps(i, *images[i]) for i in range(len(images))]


# ---- against naive loops


def naive_answers(model: MonoCLIP, trunk: Trunk) -> tuple[np.ndarray, np.ndarray]:
    """p (6, K) and g (6, D) of the patches, in the mean of image and mirror, in double precision."""
    patches, text = trunk.patches.double().numpy(), model.text_features.double().numpy()
    features = (patches / np.sqrt((patches**2).sum(1, keepdims=True)))[:, ::2]  # (2, D, h, w)
    weights = np.exp(50 * np.einsum("bdhw,dk->bkhw", features, text))
    weights /= weights.sum(1, keepdims=True)
    return tuple(((both[0] + both[1][..., ::-1]) / 2).reshape(-1, 6).T for both in (weights, features))


def naive_rungs(model: MonoCLIP, images: list[tuple[Trunk, Truth]], item: int) -> dict[str, np.ndarray]:
    """Every rung of an image by loops over the images of the other fold, not resized."""
    answers = [naive_answers(model, trunk) for trunk, _ in images]
    others = [i for i in range(3) if FOLDS[i] != FOLDS[item]]
    measured = [(i, k, y) for i in others for k, y in zip(*map(list, images[i][1][3:]), strict=True)]
    y = np.array([float(y) for _, _, y in measured])
    p, g = (np.array([answers[i][part][k] for i, k, _ in measured]) for part in (0, 1))
    bins = np.linalg.lstsq(p / y[:, None], np.ones(len(y)), rcond=None)[0]
    centred, target = g - g.mean(0), np.log(y) - np.log(y).mean()  # so that the constant is free
    w = np.linalg.solve(centred.T @ centred + 0.1 * np.eye(64), centred.T @ target)
    own_p, own_g = answers[item]
    found = {FITTED: own_p @ bins, PROBE: np.exp((own_g - g.mean(0)) @ w + np.log(y).mean())}
    found[ANSWERS_AT] = np.mean([answers[i][0] @ BINS for i in others], axis=0)
    found = {row: depth.clip(0.1, 10) for row, depth in found.items()}
    frames = [images[i][1].frame.numpy() for i in others]
    every = np.concatenate([frame[frame > 0] for frame in frames]).mean()
    at = [[frame[place] for frame in frames if frame[place] > 0] for place in np.ndindex(SIZE)]
    found[TRUTH_AT] = np.array([np.mean(depths) if depths else every for depths in at])
    truth = images[item][1]
    found[CEILING] = np.full(6, truth.patch_depth.mean())
    found[CEILING][truth.patches] = truth.patch_depth
    return found | {WITHIN: found[CEILING].clip(1, 4)}


def test_every_rung_equals_a_naive_loop(model, images):
    for item, maps in enumerate(climbed(model, images, FOLDS)):
        expected = naive_rungs(model, images, item)
        assert maps.keys() == expected.keys()
        for row, depth in maps.items():
            assert depth.shape == (SIZE if row == TRUTH_AT else GRID)
            np.testing.assert_allclose(depth.flatten(), expected[row], rtol=2e-4, err_msg=row)
        assert np.ptp(maps[PROBE].numpy()) > 0.1


# ---- a run of the command


@pytest.fixture(scope="module")
def demo(tmp_path_factory) -> dict:
    """The results.json of the demo's images with --controls, and its folder."""
    out = tmp_path_factory.mktemp("demo")
    flags = ["--data_path", DEMO_DATA, "--clip_path", DEMO_WEIGHTS, "--device", "cpu", "--controls", "--output", out]
    assert experiments.main([*map(str, flags)]) == 0
    return json.loads((out / "results.json").read_text()) | {"folder": out}


def test_right_values_of_the_demo(demo):
    for name, text in (line.split(": ") for line in RIGHT.strip().splitlines()):
        metrics = demo["rows"][name]["metrics"]
        for column, value in zip(RIGHT_COLUMNS, text.split(), strict=True):
            assert value == "-" or metrics[column] == pytest.approx(float(value), abs=5e-4), (name, column)
    question = demo["question"]
    found = {c["metric"]: c for c in (*question["primary"], *question["exploratory"]) if c["minus"] == UNIFORM}
    for metric, right in LESS_UNIFORM.items():
        assert (found[metric]["difference"], *found[metric]["interval_95"]) == pytest.approx(right, abs=5e-4)
    assert (question["answer"], demo["ladder"]["left_out"]) == ("yes", [])
    assert {c["row"] for c in demo["ladder"]["minus_this_run"]} == {*RUNGS} - {THIS_RUN}


def test_the_lines_of_the_documentation_recompute_what_the_results_say(demo, capsys):
    text = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    exec(text.split("```python\n")[1].split("```")[0], {"folder": demo["folder"]})
    primary = demo["question"]["primary"][0]
    expected = [demo["rows"][THIS_RUN]["metrics"]["delta1"], primary["difference"], *primary["interval_95"]]
    assert list(map(float, capsys.readouterr().out.split())) == pytest.approx(expected, abs=2e-5)


def write_pairs(root: Path, sizes: Sequence[tuple[int, int]], measured: float) -> None:
    """Pairs of noise whose depth grows to the right; of it a share is measured."""
    for i, size in enumerate(sizes):
        rng = np.random.default_rng(i)
        depth = (np.linspace(1000, 9000, size[1]) + rng.uniform(0, 500, size)) * (rng.random(size) < measured)
        save(root / "rgb" / f"{i}.png", noise(*size, i, side=1))
        save(root / "depth" / f"{i}.png", depth.astype(np.uint16))


SAME, ALIKE = [SIZE] * 3, ("--depth_classes", *["near"] * 3, "--bin_list", 1, 2, 4)
VIT = ("--readout", "maskclip")  # of a vision transformer
PLACES, FITS, CEILINGS = {ANSWERS_AT, TRUTH_AT}, {FITTED, PROBE}, {CEILING, WITHIN}


@pytest.mark.parametrize(
    ("sizes", "measured", "flags", "said", "left_out"),
    [
        ([SIZE], 1, (), "There is one cluster, so nothing is fitted", PLACES | FITS | {BEST}),
        ([SIZE, (96, 64), SIZE], 1, (), "Images have several sizes, so nothing depends on position.", PLACES),
        (SAME, 0.01, (), "Too few patches are measured to fit on those of other images.", FITS | CEILINGS),
        (SAME, 1, ALIKE, "", set()),  # all weights are 1 / 3: the bins' equations have rank 1
        (SAME, 1, VIT, "", set()),  # has no channels to choose
    ],
)
def test_what_is_missing_is_said_and_no_mean_is_none(tmp_path, tiny_checkpoint, sizes, measured, flags, said, left_out):
    vit = replace(TINY, vision_layers=2, vision_width=64, vision_patch_size=32, image_resolution=224)
    torch.save(random_clip(vit).state_dict(), tmp_path / "vit.pt")
    write_pairs(tmp_path / "data", sizes, measured)
    usual = ["--dataset", "rgbd", "--data_path", tmp_path / "data", "--no_paper", "--controls", "--device", "cpu"]
    weights = tmp_path / "vit.pt" if flags == VIT else tiny_checkpoint
    usual += [*QUICKGELU, "--output", tmp_path / "out", "--clip_path", weights]
    assert experiments.main([str(flag) for flag in (*usual, *flags)]) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert set(RUNGS) - results["rows"].keys() == left_out
    assert (said in " ".join(results["ladder"]["left_out"])) if said else results["ladder"]["left_out"] == []
    table = (tmp_path / "out" / "tables.md").read_text()
    assert said in table
    assert "nan" not in table
    assert ("random channels" in table) == (flags != VIT)
    for row in results["rows"].values():
        gaps = {metric for metric, value in row["metrics"].items() if value is None}
        assert gaps <= ({"spearman", "ordinal", "aurg"} if measured < 1 else {"spearman"})
    if flags == ALIKE:  # the shortest solution: one depth
        assert results["rows"][FITTED]["metrics"]["spearman"] is None


# ---- the verdict


def verdict(delta1: object, abs_rel: float, best: float = 1.0, **changes: object) -> str:
    """Of 12 images, or `count`, whose uniform weights have 1 in both metrics, and 40 assignments, or `permuted`."""
    report = asked(changes.pop("count", 12))
    for metric, values in (("delta1", delta1), ("abs_rel", abs_rel)):
        report.results.metrics[THIS_RUN][:, METRICS.index(metric)] = values
    report.results.metrics[BEST][:, METRICS.index("delta1")] = best
    permuted = changes.pop("permuted", np.array([[0.9, 0.1], *[[0.5, 0.5]] * 39]))
    return replace(with_findings(report, permuted=permuted), **changes).verdict


def test_the_verdict_by_hand():
    mixed, many = [0.9, 1.2] * 6, np.array([[0.5, 0.5]] * 40)  # p = 1
    assert verdict(1.1, 0.9) == "yes"
    assert verdict(1.1, 0.9, permuted=many) == "no"
    assert verdict(1.1, 1.1) == verdict(0.9, 0.9) == verdict(1.1, 0.9, best=1.2) == "no"
    assert verdict(mixed, 1.1) == "no"  # one is worse for certain
    assert verdict(mixed, 0.9) == verdict(1.1, 0.9, best=mixed) == "cannot tell: an interval holds 0"
    assert verdict(1.1, 0.9, count=9) == "cannot tell: too few clusters for intervals"
    assert verdict(1.1, 0.9, permuted=many[:6]).startswith("cannot tell: there are too few assignments")
    assert verdict(1.1, 1.1, permuted=many[:6]) == "no"
    assert verdict(1.1, 0.9, permuted=None) == "cannot tell: there is no other assignment of the bins"
    assert verdict(1.1, 0.9, permuted=None, assignments=6) == "cannot tell: no patch is measured, so there is no p"
    asked_for = "cannot tell: no other assignment of the bins was asked (--controls)"
    assert verdict(1.1, 0.9, permuted=None, groups={}) == asked_for
