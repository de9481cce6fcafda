"""The method as one would first write it, and as it was released: what the measurements are relative to.

    python -m benchmarks.plain --data_path NYU --clip_path WEIGHTS.pt --limit 8 --device cuda

The formulas of monoclip.py, on purpose without its speed: prompts are encoded one by one, an image and its mirror are
two batches of one, and the next file is read when the last one's metrics are there.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from torchvision.transforms import functional

import clip
from calculate_error import compute_errors_NYU
from monoclip import PAPER


def words(model: clip.CLIP) -> Tensor:
    """Text features of the paper's seven prompts, (D, 7)."""
    prompts = [PAPER.depth_templates[0].format(PAPER.obj_classes[0], word) for word in PAPER.depth_classes]
    device = model.text_projection.device
    features = torch.cat([model.encode_text(clip.tokenize(prompt).to(device)) for prompt in prompts])  # (7, D)
    return (features / features.norm(dim=-1, keepdim=True)).T


def predict(model: clip.CLIP, text_features: Tensor, image: Tensor) -> Tensor:
    """Depth of each pixel, the mean of the image's and its mirror's: (1, 3, H, W) -> (1, 1, H, W) [m]."""
    depths = []
    for view in (image, image.flip(-1)):
        features = model.visual.forward_trunk(view).patches.permute(0, 2, 3, 1)  # (1, h, w, C)
        features = (features / features.norm(dim=-1, keepdim=True))[..., :: features.shape[-1] // len(text_features)]
        logits = PAPER.logit_scale * features @ text_features / PAPER.temperature  # (1, h, w, K)
        depths.append((logits.softmax(dim=-1) * logits.new_tensor(PAPER.bin_list)).sum(dim=-1)[None])  # (1, 1, h, w)
    mean = (depths[0] + depths[1].flip(-1)) / 2
    return F.interpolate(mean, image.shape[2:], mode="bilinear", align_corners=True)


@torch.inference_mode()
def evaluate(model: clip.CLIP, data_path: Path, limit: int | None = None) -> dict[str, float]:
    """Mean metrics over the first images of a folder in NYU's layout."""
    text_features, rows = words(model), []
    for path in sorted(data_path.glob("official_splits/test/*/rgb_*.jpg"))[:limit]:
        image = functional.to_tensor(np.array(Image.open(path))[56:472, 60:604])  # (3, 416, 544)
        image = functional.normalize(image, PAPER.image_mean, PAPER.image_std)
        millimetres = np.asarray(Image.open(path.with_name(f"sync_depth_{path.stem[-5:]}.png")))
        gt = torch.from_numpy(millimetres.astype(np.float32) / 1000)[None, None]  # (1, 1, 480, 640) [m]
        depth = predict(model, text_features, image[None].to(text_features.device))
        rows.append(compute_errors_NYU(gt, depth.cpu()))
    return {name: sum(row[name] for row in rows) / len(rows) for name in rows[0]}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Evaluates the plain implementation and prints its metrics.")
    parser.add_argument("--data_path", type=Path, required=True)
    parser.add_argument("--clip_path", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    model, _ = clip.load(args.clip_path, "cpu", activation="quickgelu")  # fp32
    print(evaluate(model.to(args.device), args.data_path, args.limit))
