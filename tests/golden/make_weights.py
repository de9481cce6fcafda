"""Random CLIP RN50 weights that depend on nothing but a seed: the weights behind the figures in this folder.

Every tensor is drawn by numpy from (seed, crc32 of its state-dict key), so the result does not depend on any
implementation's initialisation or parameter order.

    python make_weights.py OUT.pt [SEED]        writes a plain state dict (fp32, 408 MB)
"""

import sys
import zlib

import numpy as np
import torch

LAYERS, WIDTH, EMBED, TEXT_WIDTH, TEXT_LAYERS = (3, 4, 6, 3), 64, 1024, 512, 12


def rn50_shapes() -> dict[str, tuple[int, ...]]:
    """Shape of every entry of CLIP RN50's state dict, by key."""
    shapes: dict[str, tuple[int, ...]] = {}

    def batch_norm(prefix: str, channels: int) -> None:
        for name in ("weight", "bias", "running_mean", "running_var"):
            shapes[f"{prefix}.{name}"] = (channels,)
        shapes[f"{prefix}.num_batches_tracked"] = ()

    for i, (c_in, c_out) in enumerate([(3, 32), (32, 32), (32, 64)], 1):
        shapes[f"visual.conv{i}.weight"] = (c_out, c_in, 3, 3)
        batch_norm(f"visual.bn{i}", c_out)
    c_in = WIDTH
    for i, (blocks, width) in enumerate(zip(LAYERS, (64, 128, 256, 512)), 1):
        for b in range(blocks):
            prefix = f"visual.layer{i}.{b}"
            shapes[f"{prefix}.conv1.weight"] = (width, c_in, 1, 1)
            batch_norm(f"{prefix}.bn1", width)
            shapes[f"{prefix}.conv2.weight"] = (width, width, 3, 3)
            batch_norm(f"{prefix}.bn2", width)
            shapes[f"{prefix}.conv3.weight"] = (4 * width, width, 1, 1)
            batch_norm(f"{prefix}.bn3", 4 * width)
            if b == 0:
                shapes[f"{prefix}.downsample.0.weight"] = (4 * width, c_in, 1, 1)
                batch_norm(f"{prefix}.downsample.1", 4 * width)
            c_in = 4 * width
    shapes["visual.attnpool.positional_embedding"] = (50, c_in)
    for name, c_out in (("k_proj", c_in), ("q_proj", c_in), ("v_proj", c_in), ("c_proj", EMBED)):
        shapes[f"visual.attnpool.{name}.weight"] = (c_out, c_in)
        shapes[f"visual.attnpool.{name}.bias"] = (c_out,)

    d = TEXT_WIDTH
    for i in range(TEXT_LAYERS):
        prefix = f"transformer.resblocks.{i}"
        for name, shape in (
            ("attn.in_proj_weight", (3 * d, d)),
            ("attn.in_proj_bias", (3 * d,)),
            ("attn.out_proj.weight", (d, d)),
            ("attn.out_proj.bias", (d,)),
            ("ln_1.weight", (d,)),
            ("ln_1.bias", (d,)),
            ("mlp.c_fc.weight", (4 * d, d)),
            ("mlp.c_fc.bias", (4 * d,)),
            ("mlp.c_proj.weight", (d, 4 * d)),
            ("mlp.c_proj.bias", (d,)),
            ("ln_2.weight", (d,)),
            ("ln_2.bias", (d,)),
        ):
            shapes[f"{prefix}.{name}"] = shape
    shapes["token_embedding.weight"], shapes["positional_embedding"] = (49408, d), (77, d)
    shapes["ln_final.weight"], shapes["ln_final.bias"] = (d,), (d,)
    shapes["text_projection"], shapes["logit_scale"] = (d, EMBED), ()
    return shapes


def random_tensor(key: str, shape: tuple[int, ...], seed: int) -> np.ndarray:
    """The entry `key`, scaled so that activations stay of order one through the network."""
    rng = np.random.default_rng([seed, zlib.crc32(key.encode())])
    if key.endswith("num_batches_tracked"):
        return np.array(1, dtype=np.int64)
    if key == "logit_scale":
        return np.array(np.log(1 / 0.07), dtype=np.float32)
    if key.endswith("running_var"):
        value = rng.uniform(0.8, 1.2, shape)
    elif key.endswith("running_mean"):
        value = rng.standard_normal(shape) * 0.05
    elif key.endswith("weight") and len(shape) == 1:
        value = rng.uniform(0.8, 1.2, shape).astype(np.float32) * (0.3 if "bn3" in key else 1)
    elif len(shape) == 1:
        value = rng.standard_normal(shape) * 0.05
    elif len(shape) == 4:
        value = rng.standard_normal(shape) * np.sqrt(2 / np.prod(shape[1:]))
    elif "embedding" in key:
        value = rng.standard_normal(shape) * 0.02
    else:
        value = rng.standard_normal(shape) * shape[-1] ** -0.5
    return np.asarray(value, dtype=np.float32)


def rn50_state_dict(seed: int = 0) -> dict[str, torch.Tensor]:
    """A whole RN50 state dict, fp32."""
    return {k: torch.from_numpy(random_tensor(k, s, seed)) for k, s in rn50_shapes().items()}


if __name__ == "__main__":
    torch.save(rn50_state_dict(int(sys.argv[2]) if len(sys.argv) > 2 else 0), sys.argv[1])
