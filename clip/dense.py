"""Read-outs: ways from an image encoder's trunk to a feature of each patch, in the joint space or near it.

CLIP pools a picture into one embedding; each read-out says what its last layer would give for a single patch. Input is
`encode`'s trunk, output a map (B, D, h, w), L2-normalised over D but for `raw` of a ModifiedResNet. Of that, f is
layer4's vector of a patch, P the pool's positional embedding resized to h x w, x = [mean of f; f] + P, and q, k, v, c
are the pool's projections in heads of d = 64. Of a vision transformer x is the input of the last block with its class
token, y = ln_1 x, and W_v, W_o, q, k, v are that block's, of y; its result goes through out(u) = proj(ln_post u).

    name        ModifiedResNet                     vision transformer                         source
    raw         f / |f|, every (C / D)-th channel  out(the whole block of x)                  the paper
    maskclip    c(W_v f + b_v)                     u = x + W_o(W_v y), out(u + mlp(ln_2 u))   Zhou et al., ECCV 2022
    attnpool    c(softmax(q k' / sqrt d) v)        -                                          DenseCLIP, CVPR 2022
    clearclip   c(softmax(q q' / sqrt d) v), ours  out(W_o softmax(q q' / sqrt d) v)          Lan et al., ECCV 2024
    windows     the pooled embedding of crops of the encoder's own resolution R (224 px for most), averaged over pixels

docs/readouts.md has them beside each other and beside what is known of them. Nothing here knows of depth.
"""

from collections.abc import Callable
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

from clip.model import ModifiedResNet, ResidualAttentionBlock, Trunk, VisionTransformer, attention, resized_positions

ImageEncoder = ModifiedResNet | VisionTransformer


def fitted_size(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """The multiples of `patch_size` that are nearest to a size, one patch at least: (416, 544), 14 -> (420, 546)."""
    rows, columns = (max(1, int(side / patch_size + 0.5)) for side in (height, width))
    return rows * patch_size, columns * patch_size


def encode(visual: ImageEncoder, image: Tensor, readout: str) -> Trunk:
    """The expensive part of a read-out, what it reads from: of any size, normalised, (B, 3, H, W) -> float32 `Trunk`.

    An image whose sides are no multiples of the patch size is resized to the nearest. For `windows`, the trunk's
    patches are the averaged embeddings, (B, D, h, w). Raises ValueError: another shape.
    """
    if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape[2:]:
        raise ValueError(f"expected (B, 3, H, W), got {tuple(image.shape)}")
    height, width = image.shape[2:]
    if (size := fitted_size(height, width, visual.patch_size)) != (height, width):
        image = F.interpolate(image, size, mode="bicubic", antialias=True)
    trunk = pooled_windows(visual, image) if encoding_of(readout) == "windows" else visual.forward_trunk(image)
    return Trunk(trunk.patches.float(), trunk.cls.float())


def read(visual: ImageEncoder, trunk: Trunk, readout: str) -> Tensor:
    """Patch features by a read-out of `READOUTS`, of the trunk that `encode` gave for it: (B, D, h, w) float32.

    Computed on the encoder's device, in the dtype of its matrices. Raises ValueError as `check_readout` does.
    """
    check_readout(visual, readout)
    device = visual.conv1.weight.device
    return READOUTS[readout](visual, Trunk(trunk.patches.to(device), trunk.cls.to(device)))


def check_readout(visual: ImageEncoder, readout: str) -> None:
    """Raises ValueError: no such read-out, or none of this encoder."""
    if readout not in READOUTS:
        raise ValueError(f"read-out {readout!r}: there is none of this name; there are {', '.join(READOUTS)}")
    if readout in (known := readouts_of(visual)):
        return
    why = "a vision transformer has no attention pool"
    if readout == "raw":
        why = f"{visual.patch_dim} patch channels cannot be thinned evenly to {visual.joint_dim} joint dimensions"
    raise ValueError(f"read-out {readout!r}: {why}; there are {', '.join(known)}")


def readouts_of(visual: ImageEncoder) -> list[str]:
    """The names of the read-outs that an encoder has."""
    if isinstance(visual, VisionTransformer):
        return [name for name in READOUTS if name != "attnpool"]
    return [name for name in READOUTS if name != "raw" or visual.patch_dim % visual.joint_dim == 0]


def encoding_of(readout: str) -> str:
    """Which pass of the encoder a read-out reads from: `windows` has one of its own, all others the trunk's."""
    return "windows" if readout == "windows" else "trunk"


def thins(visual: ImageEncoder, readout: str) -> bool:
    """Whether a read-out keeps some of the trunk's channels, as the paper's does."""
    return readout == "raw" and isinstance(visual, ModifiedResNet) and visual.patch_dim > visual.joint_dim


def unit(features: Tensor) -> Tensor:
    """Each patch's vector at unit length over all its channels: (B, C, h, w) -> the same, float32."""
    return F.normalize(features.float(), dim=1)


def raw(visual: ImageEncoder, trunk: Trunk) -> Tensor:
    """The paper's: of a ResNet |f| < 1, and not in the joint space; of a vision transformer its last tokens.

    Official quirk, of a ResNet: every second channel (RN50's; every fourth of the others) stands for all, without a new
    normalisation; the usual thing would be the pool's projections. A transformer's are in the joint space, but their
    maps are reported as inverted (CLIP Surgery, arXiv 2304.05653).
    """
    if isinstance(visual, ModifiedResNet):
        return unit(trunk.patches)[:, :: visual.patch_dim // visual.joint_dim]
    return unit_map(projected(visual, last_block(visual)(tokens(visual, trunk), None)[:, 1:]), trunk)


def maskclip(visual: ImageEncoder, trunk: Trunk) -> Tensor:
    """The value of each patch in place of attention, so that patches are not mixed.

    A transformer's residual and MLP stay, as in the authors' code. Source: Zhou et al., ECCV 2022.
    """
    x = tokens(visual, trunk)[:, 1:]
    if isinstance(visual, ModifiedResNet):
        return unit_map(visual.attnpool.c_proj(visual.attnpool.v_proj(x)), trunk)
    block = last_block(visual)
    x = x + block.attn.out_proj(query_key_value(block, x)[2])
    return unit_map(projected(visual, x + block.mlp(block.ln_2(x))), trunk)


def attnpool(visual: ModifiedResNet, trunk: Trunk) -> Tensor:
    """The attention pool with every patch as a query. Source: DenseCLIP, Rao et al., CVPR 2022."""
    return unit_map(pooled_tokens(visual, trunk)[:, 1:], trunk)


def clearclip(visual: ImageEncoder, trunk: Trunk) -> Tensor:
    """Attention of queries to queries, and nothing added to it.

    Source: ClearCLIP, Lan et al., ECCV 2024, for vision transformers; for a ResNet's pool it is our port.
    """
    if isinstance(visual, ModifiedResNet):
        return unit_map(pooled_tokens(visual, trunk, to_queries=True)[:, 1:], trunk)
    block = last_block(visual)
    query, _, value = query_key_value(block, tokens(visual, trunk))
    mixed = block.attn.out_proj(attention(query, query, value, block.attn.num_heads))
    return unit_map(projected(visual, mixed[:, 1:]), trunk)


def windows(visual: ImageEncoder, trunk: Trunk) -> Tensor:
    """CLIP's own embeddings, as averaged by `pooled_windows`: the only ones in the regime that CLIP was trained in."""
    return unit(trunk.patches)


def tokens(visual: ImageEncoder, trunk: Trunk) -> Tensor:
    """The trunk as a sequence in the dtype of the encoder's matrices: (B, 1 + h w, C)."""
    return trunk.tokens().to(visual.conv1.weight.dtype)


def unit_map(features: Tensor, trunk: Trunk) -> Tensor:
    """A feature of each patch, at unit length, as a map: (B, h w, D) -> (B, D, h, w) float32."""
    return unit(features.transpose(1, 2).unflatten(2, trunk.patches.shape[2:]))


def pooled_tokens(visual: ModifiedResNet, trunk: Trunk, to_queries: bool = False) -> Tensor:
    """The attention pool of the image's token and of every patch: (B, 1 + h w, D); row 0 is the pool's own answer.

    With `to_queries`, each attends to the queries in place of the keys.
    """
    pool, x = visual.attnpool, tokens(visual, trunk)
    x = x + resized_positions(pool.positional_embedding, *trunk.patches.shape[2:]).to(x.dtype)
    query = pool.q_proj(x)
    key = query if to_queries else pool.k_proj(x)
    return pool.c_proj(attention(query, key, pool.v_proj(x), pool.num_heads))


def last_block(visual: VisionTransformer) -> ResidualAttentionBlock:
    """The block whose input the trunk is."""
    return visual.transformer.resblocks[-1]  # type: ignore[return-value]


def query_key_value(block: ResidualAttentionBlock, x: Tensor) -> tuple[Tensor, ...]:
    """q, k and v of y = ln_1 x, all heads side by side: (B, L, width) -> three of the same shape."""
    return F.linear(block.ln_1(x), block.attn.in_proj_weight, block.attn.in_proj_bias).chunk(3, dim=-1)


def projected(visual: VisionTransformer, x: Tensor) -> Tensor:
    """Tokens in the joint space: (B, L, width) -> (B, L, D)."""
    return visual.ln_post(x) @ visual.proj


def pooled_windows(visual: ImageEncoder, image: Tensor) -> Trunk:
    """CLIP's pooled embedding of R x R crops, in the mean over the crops that hold a pixel and over a patch's pixels.

    R is the encoder's own resolution; crops lie evenly, about R / 2 apart, from border to border. A smaller image is
    enlarged to R first, whole. (B, 3, H, W) -> patches (B, D, H / P, W / P), not normalised, and their mean.
    """
    side, (height, width) = visual.input_resolution, image.shape[2:]
    grid = (height // visual.patch_size, width // visual.patch_size)
    if min(height, width) < side:
        scale = side / min(height, width)
        height, width = max(side, round(height * scale)), max(side, round(width * scale))
        image = F.interpolate(image, (height, width), mode="bicubic", antialias=True)
    places = list(product(starts(height, side), starts(width, side)))
    inside = torch.zeros(len(places), height, width, device=image.device)
    for mask, (top, left) in zip(inside, places, strict=True):
        mask[top : top + side, left : left + side] = 1
    shares = F.adaptive_avg_pool2d(inside / inside.sum(0), grid)  # (windows, h, w), of each in a patch; their sum is 1
    crops = (image[:, :, top : top + side, left : left + side] for top, left in places)
    features = sum(visual(crop).float()[..., None, None] * share for crop, share in zip(crops, shares, strict=True))
    return Trunk(features, features.mean(dim=(2, 3)))


def starts(length: int, side: int) -> list[int]:
    """Where windows of `side` begin that cover `length`, evenly, at most side / 2 and a pixel apart."""
    steps = -(-2 * (length - side) // side)  # rounded up
    return [round(i * (length - side) / steps) for i in range(steps + 1)] if steps else [0]


READOUTS: dict[str, Callable[..., Tensor]] = {
    "raw": raw,
    "maskclip": maskclip,
    "attnpool": attnpool,
    "clearclip": clearclip,
    "windows": windows,
}
