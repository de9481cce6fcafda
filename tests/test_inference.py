"""clip.inference: the fast form of the image encoder computes what the plain network computes."""

import copy
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import clip
from clip.model import CLIP
from monoclip import MonoCLIP
from tests.conftest import random_clip
from tests.test_model import TINY_VIT

ROOT = Path(__file__).parents[1]


def optimised(model: CLIP, dtype: torch.dtype | None = None) -> CLIP:
    return clip.optimize_for_inference(copy.deepcopy(model), dtype)


@pytest.fixture
def image() -> torch.Tensor:
    return torch.randn(2, 3, 96, 64, generator=torch.Generator().manual_seed(0))


def test_folding_by_hand(tiny_clip):
    # batch norm: (y - 1) / 2 * 5 + 2 = 2.5 y - 0.5, so weights are 2.5 times as large and the bias is -0.5
    model = copy.deepcopy(tiny_clip)
    bn, weight = model.visual.layer1[0].downsample[2], model.visual.layer1[0].downsample[1].weight.clone()
    bn.eps = 0
    for name, value in (("weight", 5.0), ("bias", 2.0), ("running_mean", 1.0), ("running_var", 4.0)):
        getattr(bn, name).fill_(value)
    folded = clip.optimize_for_inference(model).visual.layer1[0].downsample[1]
    assert_close(folded.weight, 2.5 * weight)
    assert_close(folded.bias, torch.full_like(folded.bias, -0.5))


@pytest.mark.parametrize("size", [(32, 32), (64, 64), (64, 96)])
def test_features_of_a_tiny_resnet_at_any_size(tiny_clip, size):
    image = torch.randn(3, 3, *size, generator=torch.Generator().manual_seed(1))
    image = image.contiguous(memory_format=torch.channels_last)  # as it is inside, where it might be overwritten
    before, fast = image.clone(), optimised(tiny_clip)
    with torch.inference_mode():
        expected, patches = tiny_clip.encode_patches(image), fast.encode_patches(image)
        singles = torch.cat([fast.encode_patches(one[None]) for one in image])
    assert patches.shape == expected.shape == (3, 128, size[0] // 32, size[1] // 32)
    assert_close(patches, expected, rtol=1e-5, atol=1e-5)
    assert_close(patches, singles, rtol=1e-5, atol=1e-5)
    assert torch.equal(image, before)


def test_depth_of_rn50_is_that_of_the_plain_network(rn50, golden_inputs, golden_prediction):
    with torch.inference_mode():
        depth = MonoCLIP(optimised(rn50)).predict(golden_inputs["x"])
    assert_close(depth, golden_prediction, rtol=0, atol=1e-5)


def test_the_fast_form_is_the_one_that_is_used(tiny_clip, image):
    model = optimised(tiny_clip)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.visual.modules())
    layouts: list[bool] = []
    convolutions = [module for module in model.visual.modules() if isinstance(module, nn.Conv2d)]
    for convolution in convolutions:
        convolution.register_forward_hook(
            lambda _, __, output: layouts.append(output.is_contiguous(memory_format=torch.channels_last))
        )
    model.encode_patches(image)
    # 3 of the stem, 3 of each of the 4 blocks, and 4 that match the widths of residuals
    assert layouts == [True] * len(convolutions) == [True] * (3 + 3 * 4 + 4)


def test_gradients_of_the_image_pass_through(tiny_clip, image):
    gradients = []
    for model in (tiny_clip, optimised(tiny_clip)):
        x = image.clone().requires_grad_()
        model.encode_patches(x).square().mean().backward()
        gradients.append(x.grad)
    assert gradients[0].abs().max() > 0
    assert_close(gradients[1], gradients[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 0.03), (torch.float16, 0.003)])
def test_half_precision_stays_close_and_leaves_the_text_alone(tiny_clip, image, dtype, tolerance):
    model = optimised(tiny_clip, dtype)
    tokens = clip.tokenize(["This object is close", "This object is far"])
    with torch.inference_mode():
        expected, patches = tiny_clip.encode_patches(image), model.encode_patches(image)
        assert torch.equal(model.encode_text(tokens), tiny_clip.encode_text(tokens))
    assert patches.dtype == model.dtype == dtype
    assert 0 < (patches.float() - expected).abs().max() <= tolerance * expected.abs().max()


def test_a_second_call_changes_nothing_but_the_dtype(tiny_clip, image):
    model = optimised(tiny_clip)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    assert clip.optimize_for_inference(model) is model
    after = model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert clip.optimize_for_inference(model, torch.bfloat16).encode_patches(image).dtype == torch.bfloat16


def test_a_vision_transformer_keeps_its_features(image):
    model = random_clip(TINY_VIT)
    with torch.inference_mode():
        assert torch.equal(optimised(model).encode_patches(image), model.encode_patches(image))
        half = optimised(model, torch.bfloat16).encode_patches(image)
    assert half.dtype == torch.bfloat16


def test_a_model_in_training_mode_is_refused(tiny_clip):
    with pytest.raises(ValueError, match="training mode"):
        clip.optimize_for_inference(copy.deepcopy(tiny_clip).train())


PAGE_FAULTS = """
import ctypes, resource, sys
from clip.inference import keep_freed_memory
import torch
if sys.argv[1] == "keep":
    assert keep_freed_memory()
x = torch.ones(2**24)  # 64 MiB
for _ in range(8):  # until every place that malloc may choose has been touched
    y = x + 1
    del y
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(4):
    y = x + 1
    del y
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="a setting of glibc's malloc")
def test_freed_memory_is_not_faulted_in_again():
    def faults(mode: str) -> int:
        command = [sys.executable, "-c", PAGE_FAULTS, mode]
        return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=100).stdout)

    assert faults("keep") < 100 < faults("default")
