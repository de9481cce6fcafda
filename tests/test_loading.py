"""loading: the device, the precision and the form of the network that the flags ask for."""

from pathlib import Path

import pytest
import torch
from torch.testing import assert_close

from arguments import UsageError
from clip.inference import FusedConv2d
from clip.model import CLIP
from loading import choose_device, choose_precision, load_model
from monoclip import PAPER

CPU = torch.device("cpu")


def loaded(checkpoint: Path, precision: str = "fp32", **form: bool) -> CLIP:
    return load_model(checkpoint, CPU, precision, PAPER, **form)[0]


def test_exact_is_the_plain_network_bit_for_bit(tiny_checkpoint, tiny_clip):
    image = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    plain, fast = loaded(tiny_checkpoint, exact=True), loaded(tiny_checkpoint)
    with torch.inference_mode():
        expected = tiny_clip.encode_patches(image)
        assert torch.equal(plain.encode_patches(image), expected)
        assert_close(fast.encode_patches(image), expected, rtol=1e-5, atol=1e-5)
    assert not any(isinstance(module, FusedConv2d) for module in plain.modules())
    assert any(isinstance(module, FusedConv2d) for module in fast.modules())


def test_only_the_image_encoder_of_the_fast_form_is_in_another_precision(tiny_checkpoint):
    fast, plain = (loaded(tiny_checkpoint, "bf16", exact=exact) for exact in (False, True))
    assert fast.dtype == plain.dtype == torch.bfloat16
    assert fast.text_projection.dtype == torch.float32
    assert plain.text_projection.dtype == torch.bfloat16


def test_compile_compiles_the_image_encoder(tiny_checkpoint, monkeypatch):
    monkeypatch.setattr(torch, "compile", lambda function: lambda image: function(image) * 0)
    model = loaded(tiny_checkpoint, compiled=True)
    assert not model.visual.forward_patches(torch.ones(1, 3, 32, 32)).any()


def test_a_smaller_batch_is_filled_up_before_it_is_compiled(tiny_checkpoint, tiny_clip, monkeypatch):
    sizes = []
    monkeypatch.setattr(torch, "compile", lambda function: lambda image: (sizes.append(len(image)), function(image))[1])
    model, image = loaded(tiny_checkpoint, compiled=True), torch.rand(4, 3, 32, 64)
    with torch.inference_mode():
        for batch in (image, image[:1]):
            assert_close(model.encode_patches(batch), tiny_clip.encode_patches(batch), rtol=1e-5, atol=1e-5)
    assert sizes == [4, 4]


def test_what_cannot_be_compiled_is_one_sentence(tiny_checkpoint, monkeypatch):
    class InductorError(RuntimeError):
        __module__ = "torch._inductor.exc"

    def fail(image):
        raise InductorError("no C++ compiler\n\nTraceback")

    monkeypatch.setattr(torch, "compile", lambda function: fail)
    model = loaded(tiny_checkpoint, compiled=True)
    with pytest.raises(UsageError, match=r"--compile: .* \(no C\+\+ compiler\); leave it out"):
        model.encode_patches(torch.ones(1, 3, 32, 32))


def test_automatic_precision_is_single_on_a_cpu_and_half_elsewhere():
    assert choose_precision("auto", CPU) == "fp32"
    assert choose_precision("auto", torch.device("cuda:1")) == "fp16"
    assert choose_precision("bf16", CPU) == "bf16"


def test_devices(monkeypatch):
    assert choose_device("cpu", 3) == CPU
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    tried = []
    monkeypatch.setattr(torch, "empty", lambda *size, device: tried.append(device))
    assert choose_device("auto", 3) == choose_device("cuda", "3") == torch.device("cuda:3")
    assert choose_device("cuda:1", 3) == torch.device("cuda:1")
    assert tried == [torch.device("cuda:3")] * 2 + [torch.device("cuda:1")]


@pytest.mark.parametrize("name", ["abacus", "meta", "cuda:99"])
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(UsageError, match=f"--device {name}: not available here"):
        choose_device(name, 0)
