"""From flags to a model: on which device, in which precision, in which form of the network."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import clip
from arguments import PRECISIONS, UsageError
from clip.model import convert_weights
from monoclip import MonoCLIP, Reading

# Images at once, and processes that read them, unless the flags say otherwise.
BATCH_SIZE = {"cpu": 4, "cuda": 32, "mps": 8}
WORKERS = {"cpu": 0, "cuda": 8, "mps": 4}


def choose_device(name: str, gpu: int | str) -> torch.device:
    """The device of `--device`; `gpu` is the index of the GPU that auto and cuda mean.

    Raises:
        UsageError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(f"cuda:{gpu}" if name == "cuda" else name)
        if device.type not in BATCH_SIZE:
            raise NotImplementedError(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        raise UsageError(f"--device {name}: not available here; use --device cpu or auto") from error
    return device


def choose_precision(name: str, device: torch.device) -> str:
    """The precision of `--precision`: auto is fp32 on a CPU and fp16 elsewhere."""
    return name if name != "auto" else "fp32" if device.type == "cpu" else "fp16"


def load_model(
    clip_path: str | Path,
    device: torch.device,
    precision: str,
    reading: Reading,
    exact: bool = False,
    compiled: bool = False,
) -> tuple[clip.CLIP, MonoCLIP]:
    """The CLIP of `clip_path` on `device`, and its MonoCLIP.

    Args:
        clip_path: a file, or a name in the cache.
        device: from `choose_device`.
        precision: one of `PRECISIONS`.
        reading: words, bins and temperature.
        exact: keep the plain network, bit for bit; else its image encoder gets the form of
            `clip.optimize_for_inference`, and only that is in `precision`.
        compiled: the image encoder goes through torch.compile, which happens at the first image.

    Raises:
        UsageError: this CLIP cannot be read as depth.
        clip.CheckpointError: the checkpoint cannot be used.
    """
    torch.backends.cudnn.allow_tf32 = False  # fp32 means fp32; other precisions do not use it
    clip_model, _ = clip.load(clip_path, device="cpu")
    if exact:
        convert_weights(clip_model, PRECISIONS[precision])
    else:
        clip.optimize_for_inference(clip_model, PRECISIONS[precision])
    clip_model.to(device)
    if compiled:
        visual = clip_model.visual
        visual.forward_patches = compiled_or_said(visual.forward_patches)  # type: ignore[method-assign,assignment]
    try:
        return clip_model, MonoCLIP(clip_model, reading)
    except ValueError as error:
        raise UsageError(f"--clip_path {clip_path}: {error}; use a CLIP of clip.available_models()") from error


def compiled_or_said(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """`forward` through torch.compile, which raises UsageError when it is first called and cannot be compiled.

    A batch smaller than the first is filled up to its size: another size would be compiled again.
    """
    compiled = torch.compile(forward)
    sizes: dict[str, int] = {}

    def call(image: Tensor) -> Tensor:
        missing = max(0, sizes.setdefault("first", len(image)) - len(image))
        try:
            return compiled(torch.cat([image, image[:1].expand(missing, -1, -1, -1)]))[: len(image)]
        except RuntimeError as error:
            if not type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
                raise
            reason = str(error).strip().splitlines()[0]
            raise UsageError(f"--compile: torch cannot compile the encoder here ({reason}); leave it out") from error

    return call
