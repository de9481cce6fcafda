"""clip.inference: the fast form of the image encoder computes what the plain network computes."""

import copy
import platform

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import clip
from clip.inference import keep_freed_memory
from clip.model import CLIP
from monoclip import MonoCLIP
from tests.conftest import TINY, TINY_VIT, random_clip


def optimised(model: CLIP, dtype: torch.dtype | None = None) -> CLIP:
    return clip.optimize_for_inference(copy.deepcopy(model), dtype)


def noise(*size: int) -> torch.Tensor:
    image = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(1))
    return image.contiguous(memory_format=torch.channels_last)  # as it is inside, where it might be overwritten


@pytest.mark.parametrize("size", [(32, 32), (64, 96)])
def test_features_of_a_tiny_resnet_at_any_size(tiny_clip, size):
    image, before, fast = noise(*size), noise(*size), optimised(tiny_clip)
    with torch.inference_mode():
        expected, patches = (model.visual.forward_trunk(image).patches for model in (tiny_clip, fast))
        singles = torch.cat([fast.visual.forward_trunk(one[None]).patches for one in image])
    assert patches.shape == expected.shape == (3, 128, size[0] // 32, size[1] // 32)
    assert_close(patches, expected, rtol=1e-5, atol=1e-5)
    assert_close(patches, singles, rtol=1e-5, atol=1e-5)
    assert torch.equal(image, before)
    assert clip.optimize_for_inference(fast) is fast  # a second call changes nothing
    assert not any(isinstance(module, nn.BatchNorm2d) for module in fast.visual.modules())
    assert patches.is_contiguous(memory_format=torch.channels_last)
    with pytest.raises(ValueError, match="training mode"):
        clip.optimize_for_inference(copy.deepcopy(tiny_clip).train())


def test_depth_of_rn50_is_that_of_the_plain_network(rn50, golden_inputs, golden_prediction):
    with torch.inference_mode():
        depth = MonoCLIP(optimised(rn50)).predict(golden_inputs["x"])
    assert_close(depth, golden_prediction, rtol=0, atol=1e-4)  # at a scale of 1000


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.003), (None, 1e-5)])
@pytest.mark.parametrize("architecture", [TINY, TINY_VIT], ids=["resnet", "vit"])
def test_half_precision_stays_close_and_leaves_the_text_alone(architecture, dtype, tolerance):
    plain, image, tokens = random_clip(architecture), noise(96, 64), clip.tokenize(["This object is close", "far"])
    model = optimised(plain, dtype)
    with torch.inference_mode():
        expected, patches = (each.visual.forward_trunk(image).patches for each in (plain, model))
        assert torch.equal(model.encode_text(tokens), plain.encode_text(tokens))
    assert patches.dtype == model.dtype == (dtype or torch.float32)
    assert_close(patches.float(), expected, rtol=0, atol=tolerance * expected.abs().max().item())


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's malloc")
def test_freed_memory_is_kept():
    assert keep_freed_memory()
