"""CLIP with the public interface of OpenAI's package: `load`, `tokenize`, `available_models`.

It knows nothing of depth. `model.py` holds the networks, `tokenizer.py` the byte-pair encoding, `checkpoint.py` where
weights come from and how they are read, `inference.py` the form of a model that is fastest to evaluate.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from clip.checkpoint import CHECKPOINTS, CheckpointError, file_sha256, locate_checkpoint, read_state_dict
from clip.inference import optimize_for_inference
from clip.model import CLIP, build_model
from clip.tokenizer import tokenize

__all__ = [
    "CLIP",
    "CLIP_MEAN",
    "CLIP_STD",
    "CheckpointError",
    "Preprocess",
    "available_models",
    "build_model",
    "load",
    "optimize_for_inference",
    "tokenize",
]

# Statistics of CLIP's training images, RGB in [0, 1] (Radford et al. 2021, released preprocessing).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


class Preprocess:
    """CLIP's own preprocessing: shorter side to `resolution` (bicubic), centre crop, RGB, CLIP's statistics."""

    def __init__(self, resolution: int) -> None:
        self.resolution = resolution

    def __call__(self, image: Image.Image) -> Tensor:
        """PIL image of any size and mode -> (3, R, R) float32, normalised."""
        size = self.resolution
        scale = size / min(image.size)
        # The longer side is cut to an integer and the crop's corner rounded half to even, as torchvision does.
        width, height = (size if side == min(image.size) else int(side * scale) for side in image.size)
        left, top = round((width - size) / 2), round((height - size) / 2)
        resized = image.resize((width, height), Image.Resampling.BICUBIC)
        pixels = np.asarray(resized.crop((left, top, left + size, top + size)).convert("RGB"), dtype=np.float32)
        x = torch.from_numpy(pixels / 255).permute(2, 0, 1)  # (3, R, R)
        return (x - torch.tensor(CLIP_MEAN).view(3, 1, 1)) / torch.tensor(CLIP_STD).view(3, 1, 1)


def available_models() -> list[str]:
    """Names that `load` knows, as in the paper: `RN50`, ..., `ViT-L/14@336px`."""
    return list(CHECKPOINTS)


def load(
    name_or_path: str | Path,
    device: str | torch.device | None = None,
    jit: bool = False,
    download_root: str | Path | None = None,
) -> tuple[CLIP, Callable[[Image.Image], Tensor]]:
    """A CLIP in evaluation mode, and its preprocessing from a PIL image to (3, R, R).

    Args:
        name_or_path: one of `available_models()`, or a local file: an OpenAI archive or a plain state dict.
        device: where the model goes; None takes the GPU if there is one. fp32 on a CPU, fp16 elsewhere.
        jit: kept for callers of OpenAI's package; only False is possible, because torch.jit is deprecated and runs
            code from the file.
        download_root: folder of the checkpoints; None takes `$CLIP_CACHE`, else `~/.cache/clip`.

    Raises:
        CheckpointError: the file is not there or is no CLIP checkpoint; the message says which file, why, what to do.
        ValueError: `jit` is True.
    """
    if jit:
        raise ValueError("clip.load(jit=True) is not supported: torch.jit runs code from the file; pass jit=False")
    if device is None:
        device = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(device)
    path = locate_checkpoint(name_or_path, download_root)
    try:
        model = build_model(read_state_dict(path), torch.float32 if device.type == "cpu" else torch.float16)
    except ValueError as error:
        raise CheckpointError(path, str(error), file_sha256(path)) from error
    return model.to(device), Preprocess(model.visual.input_resolution)
