"""hubconf: MonoCLIP through torch.hub, from a folder."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import clip
from datasets.readings import READINGS
from monoclip import PAPER, MonoCLIP
from tests.conftest import TEN_MINUTES

ROOT = str(Path(__file__).parents[1])


def load(entry: str, **options: object) -> MonoCLIP:
    return torch.hub.load(ROOT, entry, source="local", device="cpu", **options)


def test_the_hubs_model_is_the_methods(tiny_checkpoint, tiny_clip):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    model = load("monoclip", clip_path=tiny_checkpoint, activation="quickgelu")
    assert model.reading == PAPER
    assert not model.training
    expected = MonoCLIP(tiny_clip).infer_image(pixels)
    np.testing.assert_allclose(model.infer_image(pixels), expected, atol=1e-4)  # the fast form, at a scale of 1000


def test_words_of_ones_own(tiny_checkpoint):
    checkpoint = {"clip_path": tiny_checkpoint, "activation": "quickgelu"}
    model = load("monoclip", **checkpoint, depth_classes=["near", "far"], bin_list=[1, 5])
    assert (model.reading.depth_classes, model.reading.bin_list) == (("near", "far"), (1.0, 5.0))
    assert model.text_features.shape == (64, 2)
    for preset, expected in READINGS.items():
        assert load("monoclip", **checkpoint, preset=preset).reading == expected
    with pytest.raises(ValueError, match="preset 'outdoors': there are paper, auty, log"):
        load("monoclip", **checkpoint, preset="outdoors")
    with pytest.raises(ValueError, match="every depth class needs one bin"):
        load("monoclip", **checkpoint, bin_list=[1.0, 5.0])
    with pytest.raises(clip.CheckpointError, match=r"nothing\.pt"):
        load("monoclip", clip_path="nothing.pt")
    with pytest.raises(clip.CheckpointError, match="does not tell QuickGELU from GELU"):
        load("monoclip", clip_path=tiny_checkpoint)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"readout": "nonsense"}, "read-out 'nonsense': there is none of this name"),
        ({"depth_classes": "near"}, "depth_classes: expected a list of words, got 'near'"),
        ({"image_std": [0, 1, 1]}, "image_std must be positive"),
        ({"words": ["near"]}, "unknown field words; known are depth_templates"),
    ],
)
def test_readings_that_make_no_depth_are_refused_before_anything_is_read(fields, message):
    with pytest.raises(ValueError, match=message):
        load("monoclip", clip_path="nowhere.pt", **fields)


def test_the_demo_is_loaded():
    assert load("monoclip_demo", image_mean=[0, 0, 0], image_std=[1, 1, 1]).reading.image_mean == (0, 0, 0)
    model = load("monoclip_demo", temperature=0.2)
    assert model.reading.temperature == 0.2
    assert model.infer_image(np.zeros((40, 50, 3), np.uint8)).shape == (40, 50)


@pytest.mark.parametrize("name", ["clip", "datasets", "monoclip", "download"])
@pytest.mark.parametrize("namespace", [True, False])
def test_another_module_of_that_name_is_one_sentence(tmp_path, name, namespace):
    if namespace:
        (tmp_path / name).mkdir()
    else:
        (tmp_path / f"{name}.py").write_text("")
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}]; import {name}; sys.path[:1] = [{ROOT!r}]; import hubconf"
    plain = os.environ | {"PYTHON_COLORS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=TEN_MINUTES, cwd=tmp_path, env=plain
    )
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: another module '{name}' is imported already")
