"""The method as one would first write it: what the measurements are relative to.

Each image goes through the plain network as two batches of one, the image and its mirror; files are read, and figures
computed, one image after another. Numbers and words are those of monoclip.py, the weights those of the same CLIP.
"""

from collections.abc import Iterable

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import clip
from datasets.nyu import Pair
from monoclip import PAPER


def depth_of_view(network: clip.CLIP, text_features: Tensor, bins: Tensor, image: Tensor) -> Tensor:
    """(1, 3, H, W) -> (1, 1, h, w) [m]."""
    features = network.visual.forward_patches(image).float()  # (1, C, h, w)
    features = features.flatten(2).transpose(1, 2)  # (1, N, C)
    features = (features / features.norm(dim=-1, keepdim=True))[..., :: features.shape[-1] // len(text_features)]
    logits = PAPER.logit_scale * features @ text_features / PAPER.temperature  # (1, N, K)
    depth = (logits.softmax(dim=-1) * bins).sum(dim=-1)  # (1, N)
    return depth.unflatten(1, (image.shape[2] // 32, image.shape[3] // 32))[:, None]


def predict(network: clip.CLIP, text_features: Tensor, bins: Tensor, image: Tensor) -> Tensor:
    """(1, 3, H, W) -> (1, 1, H, W) [m]."""
    upright = depth_of_view(network, text_features, bins, image)
    mirrored = depth_of_view(network, text_features, bins, image.flip(-1)).flip(-1)
    return F.interpolate((upright + mirrored) / 2, image.shape[2:], mode="bilinear", align_corners=True)


def figures(gt: Tensor, pred: Tensor) -> list[float]:
    """abs_diff, a1, a2, a3, abs_rel, log10 and rmse of one image: (480, 640), (416, 544) -> 7 numbers."""
    full = torch.zeros_like(gt)
    full[56:472, 60:604] = pred
    mask = (gt > 1e-3) & (gt < 10) & (full > 1e-3)
    crop = torch.zeros_like(mask)
    crop[45:471, 46:601] = True
    mask &= crop
    gt, pred = gt[mask], full[mask].clamp(1e-3, 10)
    ratio = torch.maximum(gt / pred, pred / gt)
    difference = (gt - pred).abs()
    values = [difference.mean(), *((ratio < 1.25**i).float().mean() for i in (1, 2, 3)), (difference / gt).mean()]
    values += [(gt.log10() - pred.log10()).abs().mean(), difference.square().mean().sqrt()]
    return [value.item() for value in values]


@torch.inference_mode()
def evaluate(network: clip.CLIP, text_features: Tensor, pairs: Iterable[Pair], device: torch.device) -> list[float]:
    """Mean figures over the images of `pairs`, in the order of `figures`; `text_features` are (D, K)."""
    bins = torch.tensor(PAPER.bin_list, device=device)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (PAPER.image_mean, PAPER.image_std))
    rows = []
    for pair in pairs:
        with Image.open(pair.rgb) as file:
            pixels = np.array(file)[56:472, 60:604]
        with Image.open(pair.depth) as file:
            gt = torch.from_numpy(np.array(file).astype(np.float32) / 1000).clamp(0, 10)
        image = (torch.from_numpy(pixels).permute(2, 0, 1) / 255 - mean) / std
        pred = predict(network, text_features, bins, image[None].to(device))
        rows.append(figures(gt.to(device), pred[0, 0]))
    return np.mean(rows, axis=0).tolist()
