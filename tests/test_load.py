"""clip.load and its preprocessing: OpenAI's interface."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close
from torchvision import transforms

import clip


def test_load_gives_the_model_and_its_preprocessing(tiny_checkpoint, tiny_clip):
    model, preprocess = clip.load(str(tiny_checkpoint), device="cpu", jit=False, download_root=None)
    assert model.visual.input_resolution == 64
    assert model.dtype == torch.float32
    assert not model.training
    image = preprocess(Image.effect_noise((120, 90), 60))[None]
    text = clip.tokenize(["a room", "a face"])
    with torch.inference_mode():
        assert_close(model.encode_image(image), tiny_clip.encode_image(image))
        per_image, per_text = model(image, text)
    assert per_image.shape == (1, 2)
    assert_close(per_text, per_image.T)


@pytest.mark.parametrize("size", [(640, 480), (480, 641), (224, 224), (100, 333), (301, 200)])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P"])
def test_preprocessing_equals_torchvisions(size, mode):
    rng = np.random.default_rng(sum(size))
    image = Image.fromarray(rng.integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)).convert(mode)
    theirs = transforms.Compose(
        [
            transforms.Resize(224, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.CenterCrop(224),
            lambda picture: picture.convert("RGB"),
            transforms.ToTensor(),
            transforms.Normalize(clip.CLIP_MEAN, clip.CLIP_STD),
        ]
    )
    assert_close(clip.Preprocess(224)(image), theirs(image), atol=1e-6, rtol=0)


def test_jit_is_refused(tiny_checkpoint):
    with pytest.raises(ValueError, match="jit=True"):
        clip.load(tiny_checkpoint, jit=True)
