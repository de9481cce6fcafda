"""hubconf: MonoCLIP through torch.hub, from a folder."""

import numpy as np
import pytest
import torch

import clip
from datasets.readings import READINGS
from monoclip import PAPER, MonoCLIP
from tests.conftest import ROOT, child


def load(entry: str, **options: object) -> MonoCLIP:
    return torch.hub.load(str(ROOT), entry, source="local", device="cpu", **options)


def test_the_hubs_model_is_the_methods(tiny_checkpoint, tiny_clip):
    pixels = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    checkpoint = {"clip_path": tiny_checkpoint, "activation": "quickgelu"}
    model = load("monoclip", **checkpoint)
    assert (model.reading, model.training) == (PAPER, False)
    expected = MonoCLIP(tiny_clip).infer_image(pixels)
    np.testing.assert_allclose(model.infer_image(pixels), expected, atol=1e-4)  # the fast form, at a scale of 1000
    for spelled in ("color", "colour"):
        assert (model.infer_image(pixels[..., ::-1], **{spelled: "bgr"}) == model.infer_image(pixels)).all()
    for preset, reading in READINGS.items():
        assert load("monoclip", **checkpoint, preset=preset).reading == reading
    model = load("monoclip", **checkpoint, depth_classes=["near", "far"], bin_list=[1, 5])
    assert (model.reading.depth_classes, model.reading.bin_list) == (("near", "far"), (1.0, 5.0))


def test_what_makes_no_depth_is_refused_before_anything_is_read():
    for fields, message in (
        ({"readout": "nonsense"}, "read-out 'nonsense': there is none of this name"),
        ({"preset": "outdoors"}, "preset 'outdoors': there are paper, auty, log"),
        ({"image_statistics": ["clip"]}, r"image_statistics \['clip'\]: there are imagenet, clip"),
        ({}, r"nowhere\.pt: there is no such file"),
    ):
        with pytest.raises((ValueError, clip.CheckpointError), match=message):
            load("monoclip", clip_path="nowhere.pt", **fields)


def test_the_demo_is_loaded():
    model = load("monoclip_demo", temperature=0.2, image_mean=[0, 0, 0], image_std=[1, 1, 1])
    assert (model.reading.temperature, model.reading.image_mean) == (0.2, (0, 0, 0))
    assert model.infer_image(np.zeros((40, 50, 3), np.uint8)).shape == (40, 50)


@pytest.mark.parametrize("name", ["clip", "datasets", "monoclip", "download"])
@pytest.mark.parametrize("namespace", [True, False])
def test_another_module_of_that_name_is_one_sentence(tmp_path, name, namespace):
    (tmp_path / name).mkdir() if namespace else (tmp_path / f"{name}.py").touch()
    code = f"import sys; sys.path[:0] = [{str(tmp_path)!r}]; import {name}; sys.path[0] = {str(ROOT)!r}; import hubconf"
    done = child("-c", code, cwd=tmp_path, env=None)
    assert done.stderr.splitlines()[-1].startswith(f"ImportError: another module '{name}' is imported already")
