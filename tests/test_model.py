"""clip.model and clip.load: the networks, their sizes from a state dict, agreement with open_clip, preprocessing."""

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import clip
from clip.model import CLIP, build_model, infer_architecture
from tests.conftest import PAPER_MODELS, TINY, TINY_VIT, child, random_clip


@pytest.mark.parametrize("name", PAPER_MODELS)
def test_architecture_is_inferred_from_the_state_dict(name):
    assert clip.available_models() == [*PAPER_MODELS, "RN50-cc12m", "RN50-yfcc15m"]
    with torch.device("meta"):
        model = CLIP(PAPER_MODELS[name])
    assert infer_architecture(model.state_dict()) == PAPER_MODELS[name]


@pytest.mark.parametrize("name", ["RN50-quickgelu", "ViT-B-32-quickgelu", "ViT-B-32"])
def test_embeddings_agree_with_open_clip(name, seed0):
    state_dict = seed0 if "RN50" in name else random_clip(PAPER_MODELS["ViT-B/32"]).state_dict()
    model = build_model(state_dict, activation="quickgelu" if "quick" in name else "gelu")
    twin = open_clip.create_model(name).eval()
    twin.load_state_dict(model.state_dict())
    image = torch.randn(2, 3, 224, 224, generator=torch.Generator().manual_seed(1))
    text = clip.tokenize(["This object is giant", "a photo of a far, far away planet 🪐"])
    with torch.inference_mode():
        ours, theirs = ([each.encode_image(image), each.encode_text(text)] for each in (model, twin))
        for one, other in zip(ours, theirs, strict=True):
            assert_close(one, other, atol=1e-5 * other.abs().max().item(), rtol=0)
        for ours, theirs in zip(model(image, text), twin.get_logits(image, text), strict=True):
            assert_close(ours, theirs, atol=1e-3, rtol=0)


def test_weights_are_rounded_to_fp16_as_by_openais_package(tiny_clip):
    # Official quirk: true also where the file holds fp32 and the model computes in fp32.
    state_dict = {k: v.clone() for k, v in tiny_clip.state_dict().items()}
    between = 1 + 2**-13  # fp16 has nothing between 1 and 1 + 2**-10
    expected = {"visual.conv1.weight": 1, "text_projection": 1, "visual.bn1.weight": between, "logit_scale": between}
    for key in expected:
        state_dict[key].fill_(between)
    built = build_model(state_dict).state_dict()
    assert all(value.dtype == torch.float32 for value in built.values() if value.is_floating_point())
    assert {key: built[key].unique().item() for key in expected} == expected


@pytest.mark.parametrize("architecture", [TINY, TINY_VIT], ids=["resnet", "vit"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_build_model_equals_the_model_built_the_usual_way(architecture, dtype):
    usual = random_clip(architecture)
    built = build_model(usual.state_dict(), dtype)
    assert not any(t.is_meta for t in [*built.parameters(), *built.buffers()])
    assert (built.dtype, built.training) == (dtype, False)
    image, text = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), clip.tokenize(["a", "b c"])
    tolerance = 0 if dtype == torch.float32 else 0.05
    with torch.inference_mode():
        for ours, theirs in (
            (built.encode_image(image), usual.encode_image(image)),
            (built.encode_text(text), usual.encode_text(text)),
            *zip(built.visual.forward_trunk(image), usual.visual.forward_trunk(image), strict=True),
        ):
            assert ours.dtype == dtype
            assert_close(ours.float(), theirs, atol=tolerance * theirs.abs().max().item(), rtol=0)
    for shape in ((3, 64, 64), (1, 1, 64, 64), (1, 3, 60, 64), (1, 3, 0, 64)):
        with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\) with H and W divisible by \d+, got"):
            built.visual.forward_trunk(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"expected \(B, 3, 64, 64\), got \(1, 3, 96, 64\)"):
        built.encode_image(torch.zeros(1, 3, 96, 64))
    with pytest.raises(ValueError, match=r"expected tokens of shape \(B, 77\)"):
        built.encode_text(torch.zeros(1, 76, dtype=torch.int32))


def test_every_defect_of_a_state_dict_has_its_own_error(tiny_clip):
    good, key, norm = tiny_clip.state_dict(), "visual.conv2.weight", "visual.bn1.running_var"
    nan = good[key] * torch.nan
    wide = {"visual.conv1.weight": torch.zeros(1280, 3, 1, 1), "visual.positional_embedding": nan[0, 0]}
    for bad, message in (
        ({}, "not a CLIP checkpoint: it has no entry"),
        ({"visual.proj": nan, "visual.conv1.weight": torch.zeros(3)}, "no entry visual.conv1.weight of rank 4"),
        ({"visual.proj": nan, **wide}, "it is a ViT 1280 wide"),
        ({k: v for k, v in good.items() if k != key}, f'^Missing key.*: "{key}"$'),
        ({k: v for k, v in good.items() if "bn" not in k}, r"^Missing key.{,290}\[\.\.\.\]$"),
        ({**good, "more": good[key]}, '^Unexpected key.*: "more"$'),
        ({**good, key: good[key][:1]}, f"size mismatch for {key}"),
        ({**good, key: good[key].int()}, f"{key}.* floating point"),
        ({**good, key: nan}, f"{key} holds values that are not finite"),
        ({**good, key: good[key] + 70_000}, f"{key} holds values that are not finite, or not in fp16"),
        ({**good, key: good[key].double()}, "dtype torch.float64"),
        ({**good, norm: -good[norm]}, f"{norm} holds negative variances"),
    ):
        with pytest.raises(ValueError, match=message):
            build_model({name: value.clone() for name, value in bad.items()})


# ---- clip.load


def test_load_gives_the_model_and_its_preprocessing(tiny_checkpoint, tiny_clip):
    path = str(tiny_checkpoint)
    model, preprocess = clip.load(path, device="cpu", jit=False, download_root=None, activation="quickgelu")
    assert (model.visual.input_resolution, model.dtype, model.training) == (64, torch.float32, False)
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
    for error, problem, arguments in (
        (ValueError, "jit=True", {"jit": True}),
        (clip.CheckpointError, r"tiny\.pt: a state dict does not tell QuickGELU from GELU", {}),
        (ValueError, "expected the activation quickgelu or gelu, got 'relu'", {"activation": "relu"}),
    ):
        with pytest.raises(error, match=problem):
            clip.load(tiny_checkpoint, device="cpu", **arguments)


def test_preprocessing_by_hand(tiny_checkpoint):
    # 128 x 96 pixels, red left of the middle and blue right of it; shorter side to 64, then the middle 64 columns
    _, preprocess = clip.load(tiny_checkpoint, device="cpu", activation="quickgelu")
    pixels = np.zeros((96, 128, 4), dtype=np.uint8)
    pixels[:, :64, 0] = pixels[:, 64:, 2] = pixels[..., 3] = 255
    image = preprocess(Image.fromarray(pixels))
    assert (image.shape, image.dtype) == ((3, 64, 64), torch.float32)
    mean, std = torch.tensor(clip.CLIP_MEAN), torch.tensor(clip.CLIP_STD)
    for part, colour in ((image[:, :, :28], (1, 0, 0)), (image[:, :, 36:], (0, 0, 1))):
        assert_close(part, ((torch.tensor(colour) - mean) / std).view(3, 1, 1).expand(3, 64, 28))


def test_torchvision_is_imported_only_to_preprocess(tiny_checkpoint):
    code = "import sys, clip; clip.load(sys.argv[1], 'cpu', activation='quickgelu'); print(*sys.modules)"
    modules = child("-c", code, tiny_checkpoint).stdout.split()
    assert {"clip", "torchvision", "safetensors"}.intersection(modules) == {"clip"}
