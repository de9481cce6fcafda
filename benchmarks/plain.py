"""The method as one would first write it, and as it was released: what the measurements are relative to.

    python -m benchmarks.plain --data_path NYU --clip_path WEIGHTS.pt --limit 8 --device cuda

The one other place in Python of the formulas of monoclip.py and calculate_error.py, on purpose without their speed:
prompts are encoded one by one, an image and its mirror are two batches of one, and the next file is read when the last
one's metrics are there. Words, bins and the encoders are the suite's.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision import transforms

from clip.model import CLIP, infer_architecture
from clip.tokenizer import tokenize
from monoclip import PAPER

RGB_CROP = (slice(56, 472), slice(60, 604))
EVALUATION_CROP = (slice(45, 471), slice(46, 601))


def load(path: Path) -> CLIP:
    """The plain network of a state dict that was trained with QuickGELU, fp32."""
    state_dict = torch.load(path, map_location="cpu", weights_only=True)
    network = CLIP(infer_architecture(state_dict))
    network.load_state_dict(state_dict)
    return network.eval()


def words(network: CLIP) -> Tensor:
    """Text features of the paper's seven prompts, (D, 7)."""
    prompts = [PAPER.depth_templates[0].format(PAPER.obj_classes[0], word) for word in PAPER.depth_classes]
    device = network.text_projection.device
    features = torch.cat([network.encode_text(tokenize([prompt]).to(device)) for prompt in prompts])  # (7, D)
    return (features / features.norm(dim=-1, keepdim=True)).T


def depth_of_view(network: CLIP, text_features: Tensor, image: Tensor) -> Tensor:
    """Depth of each patch of the image or of its mirror: (1, 3, H, W) -> (1, 1, h, w) [m]."""
    features = network.visual.forward_trunk(image).patches.permute(0, 2, 3, 1)  # (1, h, w, C)
    features = (features / features.norm(dim=-1, keepdim=True))[..., :: features.shape[-1] // len(text_features)]
    logits = PAPER.logit_scale * features @ text_features / PAPER.temperature  # (1, h, w, K)
    return (logits.softmax(dim=-1) * logits.new_tensor(PAPER.bin_list)).sum(dim=-1)[None]  # (1, 1, h, w)


def predict(network: CLIP, text_features: Tensor, image: Tensor) -> Tensor:
    """Depth of each pixel: (1, 3, H, W) -> (1, 1, H, W) [m]."""
    upright = depth_of_view(network, text_features, image)
    mirrored = depth_of_view(network, text_features, image.flip(-1)).flip(-1)
    return F.interpolate((upright + mirrored) / 2, image.shape[2:], mode="bilinear", align_corners=True)


def metrics_of(gt: Tensor, pred: Tensor) -> dict[str, float]:
    """Metrics of one image, by name: (480, 640), (416, 544) [m]."""
    full, region = torch.zeros_like(gt), torch.zeros_like(gt, dtype=torch.bool)
    full[RGB_CROP], region[EVALUATION_CROP] = pred, True
    mask = (gt > 1e-3) & (gt < 10) & (full > 1e-3) & region
    gt, pred = gt[mask], full[mask].clamp(1e-3, 10)
    ratio, error = torch.maximum(gt / pred, pred / gt), (gt - pred).abs()
    metrics = {"abs_diff": error.mean()} | {f"delta{i}": (ratio < 1.25**i).float().mean() for i in (1, 2, 3)}
    metrics |= {"abs_rel": (error / gt).mean(), "log10": (gt.log10() - pred.log10()).abs().mean()}
    metrics["rmse"] = error.square().mean().sqrt()
    return {name: value.item() for name, value in metrics.items()}


@torch.inference_mode()
def evaluate(network: CLIP, data_path: Path, limit: int | None = None) -> dict[str, float]:
    """Mean metrics over the first images of a folder in NYU's layout."""
    text_features, rows = words(network), []
    to_tensor, normalise = transforms.ToTensor(), transforms.Normalize(PAPER.image_mean, PAPER.image_std)
    for path in sorted(data_path.glob("official_splits/test/*/rgb_*.jpg"))[:limit]:
        image = normalise(to_tensor(np.array(Image.open(path))[RGB_CROP]))  # (3, 416, 544)
        millimetres = np.asarray(Image.open(path.with_name(f"sync_depth_{path.stem[-5:]}.png")))
        gt = torch.from_numpy(millimetres.astype(np.float32) / 1000).clamp(0, 10)  # (480, 640)
        depth = predict(network, text_features, image[None].to(text_features.device))
        rows.append(metrics_of(gt, depth[0, 0].cpu()))
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Evaluates the plain implementation and prints its metrics.")
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--clip_path", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    print(evaluate(load(args.clip_path).to(args.device), args.data_path, args.limit))
