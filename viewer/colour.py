"""Depth as whole millimetres and as colours, and how sure the words of a patch are.

Depth is in viridis, which is perceptually uniform and survives colour blindness and grey printing, turned round so that
near is bright; black and white stay free for what is not known. What is no depth (weights, sigma) is in magma.
"""

from difflib import get_close_matches

import numpy as np
import torch
from torch import Tensor

from datasets import DataError

COLOUR_MAP = "viridis_r"
NO_DEPTH_MAP = "magma"
LARGEST_MM = 2**16 - 1


def sigma_of(weights: Tensor, bins: Tensor, depth: Tensor) -> Tensor:
    """Standard deviation of depth over the words, sqrt(sum_k p_k (bin_k - depth)^2), for M sets of bins.

    (B, K, h, w), (M, K) [m] and their depth (B, M, h, w) [m] -> (B, M, h, w) [m].
    """
    squares = (bins[:, :, None, None] - depth[:, :, None]).square()  # (B, M, K, h, w)
    return torch.einsum("bkhw,bmkhw->bmhw", weights, squares).sqrt()


def to_millimetres(depth: np.ndarray) -> np.ndarray:
    """(H, W) float32 [m] -> (H, W) uint16 [mm], as NYU's own depth files; 65.535 m and more become 65535."""
    return np.multiply(depth, 1000, dtype=np.float64).round().clip(0, LARGEST_MM).astype(np.uint16)


def colour_table(name: str = COLOUR_MAP) -> np.ndarray:
    """The 256 colours of one of matplotlib's maps, from near to far: (256, 3) uint8, RGB. Raises DataError: no map."""
    from matplotlib import colormaps  # here, so that a command which draws nothing does not wait for matplotlib

    if name not in colormaps:
        near = ", ".join(get_close_matches(name, colormaps)) or COLOUR_MAP
        raise DataError(f"colour_map {name}: matplotlib has none of this name; try {near}")
    return (colormaps[name](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8)


def colourise(
    depth: np.ndarray, near: float | None = None, far: float | None = None, colour_map: str = COLOUR_MAP
) -> np.ndarray:
    """Return depth in colours: (H, W) [m] -> (H, W, 3) uint8, RGB. Raises ValueError: another shape; no such map.

    The first colour is `near` [m] and less, the last `far` [m] and more: the depth's own ends unless given.
    """
    if depth.ndim != 2:
        raise ValueError(f"expected depth (H, W) in metres, got {depth.shape}")
    low, high = float(depth.min() if near is None else near), float(depth.max() if far is None else far)
    position = ((depth - low) / max(high - low, 1e-6)).clip(0, 1)
    return colour_table(colour_map)[(position * 255).round().astype(np.uint8)]
