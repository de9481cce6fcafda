"""clip.dense: every read-out against a naive loop over patches and heads, written from its formula, in fp64."""

import copy
import math
from dataclasses import replace
from itertools import chain, product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.testing import assert_close

import clip
from clip import dense
from clip.model import CLIP, ModifiedResNet, Trunk
from monoclip import PAPER, MonoCLIP
from tests.conftest import TINY, random_clip

RESNET = replace(TINY, image_resolution=96)  # C = 128, two heads
VIT = replace(RESNET, vision_layers=2, vision_width=128, vision_patch_size=16)  # two heads
KINDS = {"resnet": RESNET, "vit": VIT}
CASES = [("resnet", name) for name in ("maskclip", "attnpool", "clearclip")]  # raw is monoclip's
CASES += [("vit", name) for name in ("raw", "maskclip", "clearclip")]
NYU = (416, 544)


@pytest.fixture(scope="module")
def clips() -> dict[str, CLIP]:
    """By kind; their biases and norms are no longer those of a new network, or a forgotten one would not show."""
    models = {kind: random_clip(architecture, seed=1) for kind, architecture in KINDS.items()}
    generator = torch.Generator().manual_seed(0)
    for parameter in chain(*(model.visual.parameters() for model in models.values())):
        if parameter.ndim == 1:
            parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return models


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.inference_mode():
        yield


def noise(*size: int, seed: int = 0, batch: int = 1) -> Tensor:
    squares = torch.randn(batch, 3, *(-(-side // 16) for side in size), generator=torch.Generator().manual_seed(seed))
    return squares.repeat_interleave(16, 2).repeat_interleave(16, 3)[:, :, : size[0], : size[1]]


def read(visual: dense.ImageEncoder, image: Tensor, readout: str) -> Tensor:
    return dense.read(visual, dense.encode(visual, image), readout)


def naive_positions(embedding: Tensor, h: int, w: int) -> Tensor:
    """(1 + grid^2, C) -> (1 + h w, C), bilinear between the corners of the square grid."""
    grid = math.isqrt(len(embedding) - 1)
    cells, rows = embedding[1:].unflatten(0, (grid, grid)), [embedding[0]]
    for i, j in product(range(h), range(w)):
        y, x = (k * (grid - 1) / (n - 1) if n > 1 else 0.0 for k, n in ((i, h), (j, w)))
        row = torch.zeros_like(embedding[0])
        for a, b in product(range(grid), range(grid)):
            row = row + max(0, 1 - abs(y - a)) * max(0, 1 - abs(x - b)) * cells[a, b]
        rows.append(row)
    return torch.stack(rows)


def naive_attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k' / 8) v, token by token in heads of 64 channels: (L, C) each -> (L, C)."""
    mixed = torch.zeros_like(value)
    for start, i in product(range(0, value.shape[1], 64), range(len(query))):
        head = slice(start, start + 64)
        mixed[i, head] = (key[:, head] @ query[i, head] / 8).softmax(0) @ value[:, head]
    return mixed


def linear(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return x @ weights[f"{name}weight"].T + weights[f"{name}bias"]


def naive_resnet(visual: ModifiedResNet, trunk: Trunk, readout: str) -> Tensor:
    """One image's patches (1, C, h, w) -> (h w, D), as long as they are."""
    weights = {key: value.double() for key, value in visual.attnpool.state_dict().items()}
    f = trunk.patches[0].double().flatten(1).T
    if readout == "maskclip":
        return linear(linear(f, weights, "v_proj."), weights, "c_proj.")
    x = torch.cat([f.mean(0)[None], f]) + naive_positions(weights["positional_embedding"], *trunk.patches.shape[2:])
    query, key, value = (linear(x, weights, f"{name}_proj.") for name in "qkv")
    mixed = naive_attention(query, query if readout == "clearclip" else key, value)
    return linear(mixed, weights, "c_proj.")[1:]


def naive_vit(visual: torch.nn.Module, trunk: Trunk, readout: str) -> Tensor:
    """One image's tokens -> (h w, D), as long as they are."""
    weights = {key: value.double() for key, value in visual.state_dict().items()}
    block = f"transformer.resblocks.{len(visual.transformer.resblocks) - 1}."
    x = torch.cat([trunk.cls[0][None], trunk.patches[0].flatten(1).T]).double()

    def norm(name: str, x: Tensor) -> Tensor:
        x = (x - x.mean(1, keepdim=True)) / (x.var(1, keepdim=True, correction=0) + 1e-5).sqrt()
        return x * weights[f"{name}.weight"] + weights[f"{name}.bias"]

    query, key, value = linear(norm(f"{block}ln_1", x), weights, f"{block}attn.in_proj_").chunk(3, 1)
    key = query if readout == "clearclip" else key
    mixed = value if readout == "maskclip" else naive_attention(query, key, value)
    u = linear(mixed, weights, f"{block}attn.out_proj.")
    if readout != "clearclip":
        u = x + u
        hidden = linear(norm(f"{block}ln_2", u), weights, f"{block}mlp.c_fc.")
        u = u + linear(hidden * torch.sigmoid(1.702 * hidden), weights, f"{block}mlp.c_proj.")
    return (norm("ln_post", u) @ weights["proj"])[1:]


@pytest.mark.parametrize(("kind", "readout"), CASES)
@pytest.mark.parametrize("size", [NYU, (96, 160), (90, 149)])  # the last is resized to the second
def test_a_read_out_equals_a_naive_loop(clips, kind, readout, size):
    visual, image = clips[kind].visual, noise(*size)
    found = read(visual, image, readout)
    grid = [round(side / visual.patch_size) for side in size]
    if (fitted := [rows * visual.patch_size for rows in grid]) != [*size]:
        image = F.interpolate(image, fitted, mode="bicubic", antialias=True)
    assert (found.shape, found.dtype) == ((1, 64, *grid), torch.float32)
    trunk = visual.forward_trunk(image)
    expected = (naive_resnet if kind == "resnet" else naive_vit)(visual, trunk, readout)
    expected = expected / expected.norm(dim=1, keepdim=True)
    assert_close(found.norm(dim=1), torch.ones(1, *grid), atol=1e-5, rtol=0)
    assert_close(found[0].flatten(1).T.double(), expected, atol=1e-5, rtol=0)
    if size != NYU:
        assert found.flatten(2).std(2).max() > 1e-3, "patches differ"


def test_fitted_sizes_by_hand():
    assert dense.fitted_size(416, 544, 14) == (420, 546)
    assert dense.fitted_size(416, 544, 32) == (416, 544)
    assert dense.fitted_size(3, 80, 32) == (32, 96)  # one patch at least; a half is rounded up


@pytest.mark.parametrize(("kind", "readout"), CASES)
def test_batches_mirrors_and_half_precision(clips, kind, readout):
    visual, images = clips[kind].visual, noise(96, 128, batch=2)
    found = read(visual, images, readout)
    assert_close(found[1:], read(visual, images[1:], readout), atol=1e-5, rtol=0)
    model = MonoCLIP(clips[kind], replace(PAPER, readout=readout, temperature=5))
    weights = model(images)
    assert weights.std() > 1e-4
    assert_close(model(images.flip(-1)), weights.flip(-1), atol=1e-5, rtol=0)
    for dtype, tolerance in ((torch.float16, 0.01), (torch.bfloat16, 0.05)):
        fast = clip.optimize_for_inference(copy.deepcopy(clips[kind]), dtype).visual
        trunk = dense.encode(fast, images[:1])
        half = dense.read(fast, trunk, readout)
        assert half.dtype == trunk.patches.dtype == trunk.cls.dtype == torch.float32
        assert 0 < (half - found[:1]).norm(dim=1).max() < tolerance


def test_what_an_encoder_does_not_have_is_refused(clips):
    odd = random_clip(replace(TINY, embed_dim=48)).visual
    trunk = Trunk(torch.ones(1, 128, 2, 2), torch.ones(1, 128))
    for visual, readout, message in (
        (clips["vit"].visual, "attnpool", "no attention pool; there are raw, maskclip, clearclip$"),
        (clips["resnet"].visual, "nonsense", "there is none of this name; there are raw, "),
        (odd, "raw", "128 patch channels cannot be thinned evenly to 48 joint dimensions"),
    ):
        with pytest.raises(ValueError, match=f"^read-out '{readout}': .*{message}"):
            dense.check_readout(visual, readout)
    assert dense.read(odd, trunk, "maskclip").shape == (1, 48, 2, 2)
    assert dense.readouts_of(odd) == ["maskclip", "attnpool", "clearclip"]
