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

docs/readouts.md has them beside each other and beside what is known of them. Nothing here knows of depth.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from clip.model import ModifiedResNet, ResidualAttentionBlock, Trunk, VisionTransformer, attention, resized_positions

ImageEncoder = ModifiedResNet | VisionTransformer


def fitted_size(height: int, width: int, patch_size: int) -> tuple[int, int]:
    """The multiples of `patch_size` that are nearest to a size, one patch at least: (416, 544), 14 -> (420, 546)."""
    rows, columns = (max(1, int(side / patch_size + 0.5)) for side in (height, width))
    return rows * patch_size, columns * patch_size


def encode(visual: ImageEncoder, image: Tensor) -> Trunk:
    """What all read-outs read from, the expensive part: of any size, normalised, (B, 3, H, W) -> float32 `Trunk`.

    An image whose sides are no multiples of the patch size is resized to the nearest. Raises ValueError: another shape.
    """
    if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape[2:]:
        raise ValueError(f"expected (B, 3, H, W), got {tuple(image.shape)}")
    height, width = image.shape[2:]
    if (size := fitted_size(height, width, visual.patch_size)) != (height, width):
        image = F.interpolate(image, size, mode="bicubic", antialias=True)
    trunk = visual.forward_trunk(image)
    return Trunk(trunk.patches.float(), trunk.cls.float())


def check_readout(visual: ImageEncoder, readout: str) -> None:
    """Raises ValueError: there is no such read-out, or none of this encoder."""
    if readout in (known := readouts_of(visual)):
        return
    why = "there is none of this name"
    if readout in READOUTS:
        why = "a vision transformer has no attention pool"
        if readout == "raw":
            why = f"{visual.patch_dim} patch channels cannot be thinned evenly to {visual.joint_dim} joint dimensions"
    raise ValueError(f"read-out {readout!r}: {why}; there are {', '.join(known)}")


def readouts_of(visual: ImageEncoder) -> list[str]:
    """The names of the read-outs that an encoder has."""
    if isinstance(visual, VisionTransformer):
        return [name for name in READOUTS if name != "attnpool"]
    return [name for name in READOUTS if name != "raw" or visual.patch_dim % visual.joint_dim == 0]


def thins(visual: ImageEncoder, readout: str) -> bool:
    """Whether the read-out is the paper's own, which keeps some of layer4's channels."""
    return readout == "raw" and isinstance(visual, ModifiedResNet)


def read(visual: ImageEncoder, trunk: Trunk, readout: str) -> Tensor:
    """Patch features by a read-out that is not the paper's own: (B, D, h, w) float32, on the encoder's device."""
    device = visual.conv1.weight.device
    return READOUTS[readout](visual, Trunk(trunk.patches.to(device), trunk.cls.to(device)))


def raw(visual: VisionTransformer, trunk: Trunk) -> Tensor:
    """A vision transformer's last tokens; their maps are reported as inverted (CLIP Surgery, arXiv 2304.05653)."""
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


def tokens(visual: ImageEncoder, trunk: Trunk) -> Tensor:
    """The trunk as a sequence in the dtype of the encoder's matrices: (B, 1 + h w, C)."""
    return trunk.tokens().to(visual.conv1.weight.dtype)


def unit_map(features: Tensor, trunk: Trunk) -> Tensor:
    """A feature of each patch, at unit length, as a map: (B, h w, D) -> (B, D, h, w) float32."""
    return F.normalize(features.transpose(1, 2).unflatten(2, trunk.patches.shape[2:]).float(), dim=1)


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


READOUTS: dict[str, Callable[..., Tensor]] = {
    "raw": raw,
    "maskclip": maskclip,
    "attnpool": attnpool,
    "clearclip": clearclip,
}
