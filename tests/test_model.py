"""clip.model: the networks, their sizes from a state dict, and agreement with open_clip and the released code."""

from dataclasses import replace

import open_clip
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

import clip
from clip.model import (
    ACTIVATIONS,
    CLIP,
    Architecture,
    build_model,
    check_state_dict,
    infer_architecture,
    resized_positions,
)
from tests.conftest import TINY, random_clip

TEXT = {"context_length": 77, "vocab_size": 49408}
RN, VIT = dict(TEXT, vision_patch_size=None), TEXT
PAPER_MODELS = {
    "RN50": Architecture(1024, 224, (3, 4, 6, 3), 64, transformer_width=512, transformer_layers=12, **RN),
    "RN101": Architecture(512, 224, (3, 4, 23, 3), 64, transformer_width=512, transformer_layers=12, **RN),
    "RN50x4": Architecture(640, 288, (4, 6, 10, 6), 80, transformer_width=640, transformer_layers=12, **RN),
    "RN50x16": Architecture(768, 384, (6, 8, 18, 8), 96, transformer_width=768, transformer_layers=12, **RN),
    "RN50x64": Architecture(1024, 448, (3, 15, 36, 10), 128, transformer_width=1024, transformer_layers=12, **RN),
    "ViT-B/32": Architecture(512, 224, 12, 768, 32, transformer_width=512, transformer_layers=12, **VIT),
    "ViT-B/16": Architecture(512, 224, 12, 768, 16, transformer_width=512, transformer_layers=12, **VIT),
    "ViT-L/14": Architecture(768, 224, 24, 1024, 14, transformer_width=768, transformer_layers=12, **VIT),
    "ViT-L/14@336px": Architecture(768, 336, 24, 1024, 14, transformer_width=768, transformer_layers=12, **VIT),
}
TINY_VIT = replace(TINY, vision_layers=2, vision_width=64, vision_patch_size=16)


@pytest.mark.parametrize("name", PAPER_MODELS)
def test_architecture_is_inferred_from_the_state_dict(name):
    assert clip.available_models() == [*PAPER_MODELS, "RN50-cc12m", "RN50-yfcc15m"]
    with torch.device("meta"):
        model = CLIP(PAPER_MODELS[name])
    assert infer_architecture(model.state_dict()) == PAPER_MODELS[name]


@pytest.mark.parametrize("kind", ["RN50", "ViT-B/32"])
def test_embeddings_agree_with_open_clip(kind, rn50):
    model = rn50 if kind == "RN50" else random_clip(PAPER_MODELS[kind])
    twin = open_clip.create_model(f"{kind.replace('/', '-')}-quickgelu").eval()
    twin.load_state_dict(model.state_dict())
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(2, 3, 224, 224, generator=generator)
    text = clip.tokenize(["This object is giant", "a photo of a far, far away planet 🪐"])
    with torch.inference_mode():
        for ours, theirs in (
            (model.encode_image(image), twin.encode_image(image)),
            (model.encode_text(text), twin.encode_text(text)),
        ):
            assert_close(F.normalize(ours, dim=-1), F.normalize(theirs, dim=-1), atol=1e-5, rtol=0)
            assert_close(ours, theirs, atol=1e-5 * theirs.abs().max().item(), rtol=0)
        logits_per_image, logits_per_text = model(image, text)
        theirs = twin.get_logits(image, text)
    assert_close(logits_per_image, theirs[0], atol=1e-3, rtol=0)
    assert_close(logits_per_text, theirs[1], atol=1e-3, rtol=0)


def test_activations_by_hand():
    x = torch.linspace(-4, 4, 17, dtype=torch.double)
    assert_close(ACTIVATIONS["quickgelu"]()(x), x / (1 + (-1.702 * x).exp()))
    assert_close(ACTIVATIONS["gelu"]()(x), x * (1 + torch.erf(x / 2**0.5)) / 2)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_all_transformers_take_the_activation(activation):
    state_dict = random_clip(TINY_VIT).state_dict()
    model = build_model(state_dict, activation=activation)
    assert model.activation == activation
    blocks = [*model.transformer.resblocks, *model.visual.transformer.resblocks]
    assert [type(block.mlp.gelu) for block in blocks] == [ACTIVATIONS[activation]] * 4
    x = torch.randn(2, 5, 64, generator=torch.Generator().manual_seed(0))
    block = model.visual.transformer.resblocks[0]
    attended = x + block.attn(*[block.ln_1(x)] * 3)[0]
    hidden = block.ln_2(attended) @ block.mlp.c_fc.weight.T + block.mlp.c_fc.bias
    gate = torch.sigmoid(1.702 * hidden) if activation == "quickgelu" else (1 + torch.erf(hidden / 2**0.5)) / 2
    expected = attended + (hidden * gate) @ block.mlp.c_proj.weight.T + block.mlp.c_proj.bias
    assert_close(block(x, None), expected, rtol=1e-5, atol=1e-5)

    other = build_model(state_dict, activation=next(name for name in ACTIVATIONS if name != activation))
    image, text = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0)), clip.tokenize(["a room"])
    for ours, theirs in (
        (model.encode_image(image), other.encode_image(image)),
        (model.encode_text(text), other.encode_text(text)),
    ):
        assert (ours - theirs).abs().max() > 1e-4 * theirs.abs().max()
    with pytest.raises(ValueError, match="expected the activation quickgelu or gelu, got 'relu'"):
        build_model(state_dict, activation="relu")


def test_gelu_agrees_with_open_clip():
    model = build_model(random_clip(PAPER_MODELS["ViT-B/32"]).state_dict(), activation="gelu")
    twin = open_clip.create_model("ViT-B-32").eval()
    twin.load_state_dict(model.state_dict())
    image, text = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(1)), clip.tokenize(["a room"])
    with torch.inference_mode():
        assert_close(F.normalize(model.encode_image(image)), F.normalize(twin.encode_image(image)), atol=1e-5, rtol=0)
        assert_close(F.normalize(model.encode_text(text)), F.normalize(twin.encode_text(text)), atol=1e-5, rtol=0)


def test_a_vision_transformer_wider_than_vit_l_is_refused():
    for width, wide in ((1024, False), (1280, True)):
        with torch.device("meta"):
            model = CLIP(replace(TINY_VIT, vision_width=width))
        if wide:
            with pytest.raises(ValueError, match=r"vision transformer is 1280 wide.*80 channels or more, not 64"):
                infer_architecture(model.state_dict())
        else:
            assert infer_architecture(model.state_dict()).vision_width == width


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
    assert not built.training
    assert built.dtype == dtype
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


def test_vit_patches_at_its_own_resolution_use_the_embedding_as_it_is():
    model = random_clip(TINY_VIT)
    own = resized_positions(model.visual.positional_embedding, 4, 4)
    wide = resized_positions(model.visual.positional_embedding, 4, 7)
    assert_close(own, model.visual.positional_embedding, atol=0, rtol=0)
    assert_close(wide[0], own[0], atol=0, rtol=0)  # the class token's stays
    corners = [0, 6, 21, 27]  # align_corners: the corners of 4 x 7 are the corners of 4 x 4
    assert_close(wide[1:][corners], own[1:][[0, 3, 12, 15]], atol=1e-6, rtol=0)


@pytest.mark.parametrize("architecture", [TINY, TINY_VIT], ids=["resnet", "vit"])
def test_other_shapes_are_refused(architecture):
    model = random_clip(architecture)
    for shape in ((3, 64, 64), (1, 1, 64, 64), (1, 3, 60, 64), (1, 3, 0, 64)):
        with pytest.raises(ValueError, match=r"expected \(B, 3, H, W\) with H and W divisible by \d+, got"):
            model.visual.forward_trunk(torch.zeros(shape))
    with pytest.raises(ValueError, match=r"expected \(B, 3, 64, 64\), got \(1, 3, 96, 64\)"):
        model.encode_image(torch.zeros(1, 3, 96, 64))
    with pytest.raises(ValueError, match=r"expected tokens of shape \(B, 77\)"):
        model.encode_text(torch.zeros(1, 76, dtype=torch.int32))


def test_every_defect_of_a_state_dict_has_its_own_error(tiny_clip):
    good = tiny_clip.state_dict()
    check_state_dict(good, good)
    key, norm = "visual.conv2.weight", "visual.bn1.running_var"
    nan = good[key].clone()
    nan[0, 0, 0, 0] = float("nan")
    for bad, message in (
        ({k: v for k, v in good.items() if k != key}, f"1 entries are missing: {key}"),
        ({**good, "more": good[key]}, "1 entries are unexpected: more"),
        ({**good, "visual.conv3.weight": good["visual.conv3.weight"].transpose(0, 1)}, "has shape"),
        ({**good, key: nan}, f"{key} holds values that are not finite"),
        ({**good, key: good[key].double()}, "dtype torch.float64"),
        ({**good, norm: -good[norm]}, f"{norm} holds negative variances"),
    ):
        with pytest.raises(ValueError, match=message):
            check_state_dict(bad, good)


@pytest.mark.parametrize("state_dict", [{}, {"weight": torch.zeros(3)}, {"positional_embedding": torch.zeros(3)}])
def test_what_is_not_clip_is_said_to_be_none(state_dict):
    with pytest.raises(ValueError, match="not a CLIP checkpoint"):
        build_model(state_dict)
