"""clip.load and its preprocessing: OpenAI's interface."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import clip
from tests.conftest import child


def test_load_gives_the_model_and_its_preprocessing(tiny_checkpoint, tiny_clip):
    path = str(tiny_checkpoint)
    model, preprocess = clip.load(path, device="cpu", jit=False, download_root=None, activation="quickgelu")
    assert model.visual.input_resolution == 64
    assert model.dtype == torch.float32
    assert not model.training
    image = preprocess(Image.effect_noise((120, 90), 60))[None]
    text = clip.tokenize(["a room", "a face"])
    gelu, _ = clip.load(tiny_checkpoint, device="cpu", activation="gelu")
    with torch.inference_mode():
        assert_close(model.encode_image(image), tiny_clip.encode_image(image))
        assert_close(model.encode_text(text), tiny_clip.encode_text(text))
        assert not torch.allclose(gelu.encode_text(text), tiny_clip.encode_text(text), rtol=1e-4)
        per_image, per_text = model(image, text)
    assert per_image.shape == (1, 2)
    assert_close(per_text, per_image.T)
    for problem, arguments in (
        ("jit=True", {"jit": True}),
        (r"tiny\.pt: a state dict does not tell QuickGELU from GELU", {}),
        ("expected the activation quickgelu or gelu, got 'relu'", {"activation": "relu"}),
    ):
        with pytest.raises((ValueError, clip.CheckpointError), match=problem):
            clip.load(tiny_checkpoint, device="cpu", **arguments)


def test_preprocessing_by_hand(tiny_checkpoint):
    # 128 x 96 pixels, red left of the middle and blue right of it; shorter side to 64, then the middle 64 columns
    _, preprocess = clip.load(tiny_checkpoint, device="cpu", activation="quickgelu")
    pixels = np.zeros((96, 128, 4), dtype=np.uint8)
    pixels[:, :64, 0] = pixels[:, 64:, 2] = pixels[..., 3] = 255
    image = preprocess(Image.fromarray(pixels))
    assert image.shape == (3, 64, 64)
    assert image.dtype == torch.float32
    mean, std = torch.tensor(clip.CLIP_MEAN), torch.tensor(clip.CLIP_STD)
    for part, colour in ((image[:, :, :28], (1, 0, 0)), (image[:, :, 36:], (0, 0, 1))):
        assert_close(part, ((torch.tensor(colour) - mean) / std).view(3, 1, 1).expand(3, 64, 28))


def test_torchvision_is_imported_only_to_preprocess(tiny_checkpoint):
    code = (
        "import sys, clip\n"
        "_, preprocess = clip.load(sys.argv[1], device='cpu', activation='quickgelu')\n"
        "print('torchvision' in sys.modules, 'safetensors' in sys.modules)"
    )
    done = child("-c", code, tiny_checkpoint)
    assert done.stdout == "False False\n", done.stderr
