"""viewer.colour, viewer.outputs and viewer.strip: depth as images, and the strip of an evaluation."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch

from datasets.pictures import read_picture
from monoclip import PAPER, depth_of
from tests.conftest import noise
from viewer.colour import colourise, sigma_of, to_millimetres
from viewer.outputs import DEPTH, Predicted, sheet, word_tiles
from viewer.strip import Example, colour_range, draw_strip, example_images


def test_millimetres_by_hand():
    depth = np.array([[1.0004, 1.0006, 65.534, 65.6, 80.0]], dtype=np.float32)
    assert to_millimetres(depth).tolist() == [[1000, 1001, 65534, 65535, 65535]]


def test_colours_follow_the_range():
    ramp = np.linspace(0.5, 3.5, 301, dtype=np.float32)[None].repeat(3, axis=0)
    colours = colourise(ramp, 1.0, 3.0)
    luminance = colours[0] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) <= 1).all()  # near is bright, monotonically
    assert luminance[0] > 200 > 50 > luminance[-1]
    assert (colourise(np.full((2, 2), 1.5)) == colours[0, 0]).all()
    assert (colourise(ramp[:, 50:251]) == colours[:, 50:251]).all()  # its own range, 1 to 3 m
    assert (colourise(ramp, far=2.0)[0, 150:] == colours[0, -1]).all()
    with pytest.raises(ValueError, match=r"expected depth \(H, W\) in metres, got \(1, 3, 301\)"):
        colourise(ramp[None])


@pytest.mark.parametrize("size", [(1, 1), (480, 640)])
def test_the_legend_covers_nothing_and_spans_the_colours(size):
    image = noise(*size)
    canvas = np.array(sheet([("", image)], (1.0, 3.0), "viridis_r", DEPTH, "of a toy"))
    assert (canvas[: size[0], : size[1]] == image).all()
    below = canvas[size[0] :]
    bar = next(row for row in below if (row != 255).any())
    shown = bar[(bar != 255).any(axis=1)]
    assert (shown[[0, -1]] == colourise(np.array([[1, 3]]))[0]).all()
    assert 0.9 * len(bar) - 10 < len(shown) <= len(bar) - 20
    ink = (below[len(below) // 3 :] < 100).all(axis=2)  # the numbers and, in the lower half, the note
    assert [half.any() for half in np.array_split(ink, 2)] == [True, True]


def test_words_have_the_picture_each_word_and_the_entropy():
    weights = torch.tensor([[[[1, 0.5]], [[0, 0.5]]]])  # two words, two patches: certain, and torn
    black, white, half = colourise(np.array([[0, 1, 0.5]]), 0, 1, "magma")[0]
    picture = np.full((360, 720, 3), (9, 99, 199), np.uint8)
    reading = replace(PAPER, depth_classes=("near", "far"), bin_list=(1, 3.5))
    tiles = word_tiles(Predicted(picture, np.ones((1, 1)), weights, weights), reading)
    assert [title for title, _ in tiles] == ["picture", "near, 1 m", "far, 3.5 m", "unsure (entropy / ln K)"]
    assert {tile.shape for _, tile in tiles} == {(120, 240, 3)}
    ends = [[picture[0, 0]] * 2, [white, half], [black, half], [black, white]]
    assert [tile[60, [0, -1]].tolist() for _, tile in tiles] == np.array(ends).tolist()


def test_examples_are_of_each_scene_a_classroom_first():
    scenes = ["bath", "bath", "class", "classroom", "classroom", "hall", "office"]
    assert example_images(scenes) == [3, 0, 2, 5]
    assert example_images(scenes, 7) == [3, 0, 2, 5, 6, 1, 4]


def test_the_colours_of_a_strip_cover_predictions_and_most_of_the_truth():
    truth = np.concatenate([np.zeros(50), np.linspace(2, 4, 101)]).astype(np.float32)[None]  # 2 % of 101 steps: 0.04
    one, unmeasured = (Example("", noise(1, 151), gt, gt * 0 + depth) for gt, depth in ((truth, 3), (truth * 0, 7)))
    assert colour_range([one]) == pytest.approx((2.04, 3.96))
    assert colour_range([one, unmeasured]) == pytest.approx((2.04, 7.0))


def test_a_strip_shows_every_picture_beside_its_maps(tmp_path):
    red = np.full((416, 544, 3), (255, 0, 0), np.uint8)
    truth = np.linspace(1, 3, 416 * 544, dtype=np.float32).reshape(416, 544)
    truth[:208] = 0
    names = ("kitchen/rgb_1.jpg", r"no $\math$ at all $", "\u53a8\u623f \\udcff")  # the last in letters of no font here
    draw_strip(tmp_path / "strip.png", [Example(name, red, truth, truth + 1) for name in names], "of $no_ kind; " * 20)
    drawn = read_picture(tmp_path / "strip.png").astype(int)
    greys = (np.abs(drawn - 0.75 * 255) <= 1).all(axis=2)  # where nothing was measured
    reds = (drawn == [255, 0, 0]).all(axis=2)
    assert (reds.sum() > 3 * 150 * 200, greys.sum() > 3 * 70 * 200) == (True, True)
    assert np.quantile(np.nonzero(reds)[1], 0.99) < np.quantile(np.nonzero(greys)[1], 0.01)  # columns
    assert [file.name for file in tmp_path.iterdir()] == ["strip.png"]


def test_sigma_by_hand():
    # a patch that answers 5/8 to 1 m and 3/8 to 5 m: depth 2.5 m, 5/8 1.5^2 + 3/8 2.5^2 = 3.75; and one that is sure
    weights = torch.tensor([[5 / 8, 3 / 8], [1.0, 0.0]]).T.view(1, 2, 1, 2)
    bins = torch.tensor([[1.0, 5.0], [2.0, 2.0]])
    sigma = sigma_of(weights, bins, depth_of(weights, bins))
    assert sigma.flatten().tolist() == pytest.approx([math.sqrt(3.75), 0, 0, 0], abs=1e-6)
