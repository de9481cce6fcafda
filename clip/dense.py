"""Other read-outs than the paper's: ways from an image encoder's trunk to a feature of each patch in the joint space.

CLIP pools a picture into one embedding; each read-out says what its last layer would give for a single patch. Input is
`encode`'s trunk, output a map (B, D, h, w), L2-normalised over D. Of a ModifiedResNet, f is layer4's vector of a patch,
P the pool's positional embedding resized to h x w, x = [mean of f; f] + P, and q, k, v, c are the pool's projections in
heads of d = 64. Of a vision transformer x is the input of the last block with its class token, y = ln_1 x, and W_v,
W_o, q, k, v are that block's, of y; its result goes through out(u) = proj(ln_post u).

    name        ModifiedResNet                     vision transformer                         source
    raw         monoclip.py                        out(the whole block of x)                  the paper
    maskclip    c(W_v f + b_v)                     u = x + W_o(W_v y), out(u + mlp(ln_2 u))   Zhou et al., ECCV 2022
    attnpool    c(softmax(q k' / sqrt d) v)        -                                          DenseCLIP, CVPR 2022
    clearclip   c(softmax(q q' / sqrt d) v), ours  out(W_o softmax(q q' / sqrt d) v)          Lan et al., ECCV 2024

The raw maps of vision transformers are reported as inverted (CLIP Surgery, arXiv 2304.05653). More: docs/readouts.md.
"""

from typing import Any

import torch.nn.functional as F
from torch import Tensor

from clip.model import ModifiedResNet, Trunk, VisionTransformer, attention

READOUTS = ("raw", "maskclip", "attnpool", "clearclip")

ImageEncoder = ModifiedResNet | VisionTransformer


def fitted_size(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """The multiples of `patch_size` that are nearest to a size, one patch at least: (416, 544), 14 -> (420, 546)."""
    rows, columns = (max(1, int(side / patch_size + 0.5)) for side in (height, width))
    return rows * patch_size, columns * patch_size


def encode(visual: ImageEncoder, image: Tensor) -> Trunk:
    """What all read-outs read from: (B, 3, H, W), normalised, resized to the nearest multiple of a patch -> float32."""
    height, width = image.shape[2:]
    if (size := fitted_size(height, width, visual.patch_size)) != (height, width):
        image = F.interpolate(image, size, mode="bicubic", antialias=True)
    trunk = visual.forward_trunk(image)
    return Trunk(trunk.patches.float(), trunk.cls.float())


def check_readout(visual: ImageEncoder, readout: str) -> None:
    """Raises ValueError: there is no such read-out, or none of this encoder."""
    uneven = f"{visual.patch_dim} patch channels cannot be thinned evenly to {visual.joint_dim} joint dimensions"
    reasons = {"attnpool": "a vision transformer has no attention pool", "raw": uneven}
    if readout not in (known := readouts_of(visual)):
        why = reasons.get(readout, "there is none of this name")
        raise ValueError(f"read-out {readout!r}: {why}; there are {', '.join(known)}")


def readouts_of(visual: ImageEncoder) -> list[str]:
    """The names of the read-outs that an encoder has."""
    uneven = visual.patch_dim % visual.joint_dim
    lacking = "attnpool" if isinstance(visual, VisionTransformer) else "raw" if uneven else ""
    return [name for name in READOUTS if name != lacking]


def thins(visual: ImageEncoder, readout: str) -> bool:
    """Whether the read-out is the paper's own, which keeps some of layer4's channels."""
    return readout == "raw" and isinstance(visual, ModifiedResNet)


def read(visual: ImageEncoder, trunk: Trunk, readout: str) -> Tensor:
    """Patch features by a read-out that is not the paper's own: (B, D, h, w) float32, on the encoder's device."""
    trunk = Trunk(*(part.to(visual.conv1.weight) for part in trunk))
    h, w = trunk.patches.shape[2:]
    if isinstance(visual, VisionTransformer):
        features = _read_transformer(visual, trunk, readout)
    elif readout == "maskclip":
        features = visual.attnpool.c_proj(visual.attnpool.v_proj(trunk.tokens()[:, 1:]))
    else:
        features = visual.attnpool(trunk, to_queries=readout == "clearclip")  # (B, h w or one more, D)
    return F.normalize(features[:, -h * w :].transpose(1, 2).unflatten(2, (h, w)).float(), dim=1)


def _read_transformer(visual: Any, trunk: Trunk, readout: str) -> Tensor:
    block, x = visual.transformer.resblocks[-1], trunk.tokens()  # (B, 1 + h w, C)
    attn = block.attn
    if readout == "raw":
        x = block(x)
    else:
        query, _, value = F.linear(block.ln_1(x), attn.in_proj_weight, attn.in_proj_bias).chunk(3, dim=-1)
        if readout == "clearclip":
            x = attn.out_proj(attention(query, query, value))
        else:
            x = x + attn.out_proj(value)
            x = x + block.mlp(block.ln_2(x))
    return visual.ln_post(x) @ visual.proj
