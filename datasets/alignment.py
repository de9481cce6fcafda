"""Scale and shift of depth maps that have none: fitted to the true depth, as relative methods are evaluated."""

import numpy as np
import torch
from torch import Tensor

ALIGNMENTS = ("none", "median", "scale_shift", "disparity")
FLAT = 1e-10  # share of a map's mean square, below which its variance is rounding and the map constant


def alignment(gt: Tensor, pred: Tensor, how: str) -> tuple[Tensor, Tensor]:
    """Scale a and shift b of R maps, (R,) each, so that a pred + b is near to gt, or to 1 / gt for "disparity".

    From gt (N,) [m] and pred (R, N), or (R, 1) of constants: the ratio of (lower) medians, else least squares. There
    a of a constant is 0.
    """
    zero = pred.new_zeros(len(pred))
    if how == "median":
        low, lows = (lower_median(values.cpu().numpy()) for values in (gt, pred))
        return torch.from_numpy(low / lows).to(pred), zero
    target = 1 / gt if how == "disparity" else gt
    centre = pred.mean(dim=1)
    x, y = pred - centre[:, None], target - target.mean()
    square = x.square().mean(dim=1)
    least = FLAT * pred.square().mean(dim=1)
    scale = torch.where(square > least, (x * y).mean(dim=1) / square.maximum(least), zero)
    return scale, target.mean() - scale * centre


def lower_median(values: np.ndarray) -> np.ndarray:
    """The median of (..., N), of two the lower; partitioned, which takes a tenth of the time of torch.median."""
    middle = (values.shape[-1] - 1) // 2
    return np.partition(values, middle)[..., middle]
