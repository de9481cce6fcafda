"""CLIP with the public interface of OpenAI's package: `load`, `tokenize`, `available_models`. It knows no depth."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor

from clip.archive import CheckpointError, read_state_dict
from clip.checkpoint import CHECKPOINTS, activation_of, locate_checkpoint
from clip.inference import optimize_for_inference as optimize_for_inference
from clip.model import ACTIVATIONS, CLIP, CLIP_MEAN, CLIP_STD, build_model
from clip.tokenizer import tokenize as tokenize
from download import file_sha256


def available_models() -> list[str]:
    """Names that `load` knows: OpenAI's nine, and two RN50s of open_clip."""
    return list(CHECKPOINTS)


def load(
    name_or_path: str | Path,
    device: str | torch.device | None = None,
    jit: bool = False,
    download_root: str | Path | None = None,
    activation: str | None = None,
) -> tuple[CLIP, Callable[[Image.Image], Tensor]]:
    """A CLIP in evaluation mode, fp32 on a CPU and fp16 elsewhere, and its preprocessing: PIL image -> (3, R, R).

    `name_or_path` is one of `available_models()`, or a file: an OpenAI archive or a state dict. A `device` of None is
    the GPU if there is one, a `download_root` of None `$CLIP_CACHE`, else `~/.cache/clip`. `activation` is "quickgelu"
    or "gelu", as in training; None will do for `available_models()` and OpenAI's archives.

    Raises CheckpointError: the file cannot be used, or `activation` is lacking or wrong; ValueError: other arguments.
    """
    if jit:
        raise ValueError("clip.load(jit=True) is not supported: torch.jit runs code from the file; pass jit=False")
    if activation not in (None, *ACTIVATIONS):
        raise ValueError(f"expected the activation {' or '.join(ACTIVATIONS)}, got {activation!r}")
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    path = locate_checkpoint(name_or_path, download_root)
    dtype = torch.float32 if device.type == "cpu" else torch.float16
    try:
        # The state dict is read within the call, so that nobody else holds it while `build_model` converts it.
        model = build_model(read_state_dict(path), dtype, activation_of(name_or_path, path, activation))
    except ValueError as error:
        raise CheckpointError(path, str(error), file_sha256(path)) from error
    return model.to(device), partial(_preprocess, resolution=model.visual.input_resolution)


def _preprocess(image: Image.Image, resolution: int) -> Tensor:
    """CLIP's own preprocessing: PIL image of any size and mode -> (3, R, R) float32, normalised."""
    from torchvision.transforms import functional  # here, because the import takes 1.3 s that depth does not need

    resized = functional.resize(image, [resolution], functional.InterpolationMode.BICUBIC)
    cropped = functional.center_crop(resized, [resolution]).convert("RGB")
    return functional.normalize(functional.to_tensor(cropped), CLIP_MEAN, CLIP_STD)
