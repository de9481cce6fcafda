"""demo/train_clip.py, and what only a model that knows distance can do: the checkpoint on the held-out sample."""

import re
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

import clip
from calculate_error import HIGHER_IS_BETTER, NYU, NYU_METRICS
from clip.checkpoint import read_state_dict
from clip.model import CLIP
from datasets.nyu import open_nyu
from datasets.pairs import DepthPairs
from demo import rooms, train_clip
from eval import evaluate, mean, predict_depth
from monoclip import PAPER, MonoCLIP, Reading
from tests.conftest import PAPER_MODELS

DEMO = Path(train_clip.__file__).parent
BINS = torch.tensor(PAPER.bin_list)


@pytest.fixture(scope="module")
def rooms_clip() -> CLIP:
    return clip.load(DEMO / "rooms_clip.pt", device="cpu", activation="quickgelu")[0]


@pytest.fixture(scope="module")
def sample() -> DepthPairs:
    return open_nyu(DEMO / "sample", NYU)


def metrics_of(model: MonoCLIP, dataset: DepthPairs) -> dict[str, float]:
    """Mean metrics by the official evaluation."""
    batches = dataset.batches(dataset.parts(range(len(dataset)), 4), PAPER.normalised)
    return mean(evaluate(partial(predict_depth, model, NYU), batches, dataset, NYU)[0])


def test_class_shares_by_hand():
    shares = torch.tensor([[0, 0.2, 0.8, 0, 0, 0, 0], [0, 0, 0, 0, 0, 0, 1]])
    torch.testing.assert_close(train_clip.class_shares(torch.tensor([1.9, 4.2]), BINS), shares)


def test_patch_depth_leaves_holes_out():
    depth = np.zeros((64, 32), dtype=np.float32)
    depth[:16] = 2.0
    depth[16:24] = 3.0
    mean, measured = train_clip.patch_depth(depth)
    np.testing.assert_allclose(mean, [[(2**16 * 3**8) ** (1 / 24)], [1]])  # 16 rows of 2 m, 8 rows of 3 m
    np.testing.assert_allclose(measured, [[0.75], [0]])


def test_batches_mirror_image_and_depth_together():
    ramp, ones = np.linspace(40, 200, 544).astype(np.uint8), torch.ones(3, 13, 17)
    pictures = train_clip.Pictures(np.tile(ramp[:, None], (3, 416, 1, 3)), torch.linspace(1, 3, 17) * ones, ones)
    image, depth, _ = next(train_clip.batches(pictures, 12, np.random.default_rng(0)))
    mirrored = depth[:, 0, 0] > depth[:, 0, -1]
    assert torch.equal(image[:, 0, 0, 0] > image[:, 0, 0, -1], mirrored)
    assert 0 < mirrored.sum() < 12


def test_checkpoint_has_the_keys_of_openai_in_fp16_and_at_most_5_mb(rooms_clip):
    path = DEMO / "rooms_clip.pt"
    assert path.stat().st_size <= 5_000_000
    with torch.device("meta"):
        official = set(CLIP(PAPER_MODELS["RN50"]).state_dict())
    state_dict = read_state_dict(path)
    assert set(state_dict) <= official
    assert {re.sub(r"\d+", "#", key) for key in state_dict} == {re.sub(r"\d+", "#", key) for key in official}
    for key, value in state_dict.items():
        assert value.dtype == (torch.int64 if key.endswith("num_batches_tracked") else torch.float16)
    assert rooms_clip.visual.patch_dim == 2 * rooms_clip.text_projection.shape[1]  # every second channel, as RN50


def test_sample_is_small_and_is_what_the_renderer_makes(sample):
    assert sum(path.stat().st_size for path in (DEMO / "sample").rglob("*") if path.is_file()) <= 4_000_000
    scene, _, depth = rooms.render_scene(train_clip.SAMPLE_SEED, 0)
    first = sample.indices.index(0)
    assert (len(sample), sample.scenes[first]) == (16, scene)
    same = np.abs(sample.depth(first)[0].numpy() - depth) < 2e-3
    assert same.mean() > 0.995  # another processor may round an edge otherwise


def test_metrics_are_those_of_the_readme_and_better_than_those_of_other_words_and_weights(rooms_clip, sample):
    metrics = metrics_of(MonoCLIP(rooms_clip), sample)
    section = (DEMO / "README.md").read_text(encoding="utf-8").split("### The sample: 16 pictures of seed 16000\n")[1]
    titles, _, (name, *row) = ([cell.strip() for cell in line.split("|")[1:-1]] for line in section.splitlines()[1:4])
    assert name == "embedded CLIP"
    assert metrics == pytest.approx(dict(zip(titles[1:], map(float, row), strict=True)), abs=0.01)
    unrelated = ("red", "a dog", "seven", "music", "thin", "yesterday", "wet")
    for change in ({"bin_list": PAPER.bin_list[::-1]}, {"depth_classes": unrelated}, {"temperature": 1e6}):
        other = metrics_of(MonoCLIP(rooms_clip, Reading(**change)), sample)
        worse = {name for name in NYU_METRICS if (metrics[name] > other[name]) == (name in HIGHER_IS_BETTER)}
        assert worse == set(NYU_METRICS), change


def test_two_steps_end_to_end_repeat_from_their_seed_which_is_not_that_of_the_sample(tmp_path, capsys):
    small = ["--images", "2", "--steps", "2", "--batch_size", "2", "--held_out", "1", "--workers", "0"]
    small += ["--threads", str(torch.get_num_threads())]
    weights = []
    for name, seed in (("first", "7"), ("again", "7"), ("other", "8")):
        assert train_clip.main(["--output", str(tmp_path / name), "--seed", seed, *small]) == 0
        assert "step 2 of 2: loss" in capsys.readouterr().out
        weights.append(clip.load(tmp_path / name, device="cpu", activation="quickgelu")[0].state_dict())
    first, again, other = weights
    torch.testing.assert_close(again, first)
    assert all(value.isfinite().all() for value in first.values())
    assert (other["visual.conv1.weight"] - first["visual.conv1.weight"]).abs().max() > 1e-3
    for seed in (train_clip.HELD_OUT_SEED, train_clip.SAMPLE_SEED):
        with pytest.raises(SystemExit):
            train_clip.main(["--output", str(tmp_path / "clip.pt"), "--seed", str(seed)])
        assert "is that of pictures which training must not see" in capsys.readouterr().err
