"""MonoCLIP through torch.hub.

    model = torch.hub.load("OWNER/REPOSITORY", "monoclip")                       # the paper's; fetches RN50 once
    model = torch.hub.load("FOLDER", "monoclip_demo", source="local")            # the embedded toy; offline
    depth = model.infer_image("photo.jpg")                                       # (H, W) float32 [m]

Arrays are RGB; `model.infer_image(cv2.imread(...), color="bgr")` takes cv2's.
"""

# ruff: noqa: E402  # other packages have these names, too: what is here must not be imported from those

import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
for name in ("clip", "datasets", "monoclip", "download"):
    other = sys.modules.get(name)
    places = [*getattr(other, "__path__", ()), getattr(other, "__file__", None) or "/"]
    if other and HERE not in (Path(place).resolve().parent for place in places):
        raise ImportError(f"another module {name!r} is imported already ({other}); load DepthCLIP in a new Python")

import torch

import clip
from clip.model import convert_weights
from datasets.readings import IMAGE_STATISTICS, READINGS, checked_reading, with_statistics
from monoclip import MonoCLIP

dependencies = ["torch", "numpy", "PIL", "ftfy", "regex", "tqdm"]


def monoclip(
    clip_path: str | Path = "RN50",
    device: str | None = None,
    exact: bool = False,
    activation: str = "auto",
    image_statistics: str = "imagenet",
    preset: str = "paper",
    **reading: Any,
) -> MonoCLIP:
    """MonoCLIP in evaluation mode: fp32 on a CPU, fp16 elsewhere; by default on the GPU, if there is one.

    `clip_path` is a checkpoint, or one of CLIP's names, whose file is fetched into the cache if need be; `activation`,
    "quickgelu" or "gelu", is needed if it is neither OpenAI's nor of a known name. `exact` keeps the plain network, bit
    for bit. `image_statistics`: "imagenet", as in the paper, or "clip", which CLIP was trained with. `preset`: "paper",
    or "auty" or "log" for KITTI; `reading` replaces fields of its `monoclip.Reading`: `bin_list`, `temperature`, ...

    Raises clip.CheckpointError; ValueError: no depth by these values; clip.tokenizer.TooLongError.
    """
    for kind, value, known in (("image_statistics", image_statistics, IMAGE_STATISTICS), ("preset", preset, READINGS)):
        if value not in list(known):
            raise ValueError(f"{kind} {value!r}: there are {', '.join(known)}")
    chosen = checked_reading(reading, with_statistics(READINGS[preset], image_statistics))
    device = device or ("cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu")
    clip_model, _ = clip.load(clip_path, "cpu", activation=None if activation == "auto" else activation)
    change = convert_weights if exact else clip.optimize_for_inference
    change(clip_model, torch.float32 if torch.device(device).type == "cpu" else torch.float16)
    return MonoCLIP(clip_model.to(device), chosen).eval()


def monoclip_demo(device: str | None = None, exact: bool = False, **reading: Any) -> MonoCLIP:
    """MonoCLIP with the small CLIP of `demo/`, which was taught distance on rendered rooms."""
    return monoclip(HERE / "demo" / "rooms_clip.pt", device, exact, **reading)
