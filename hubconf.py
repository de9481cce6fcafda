"""MonoCLIP through torch.hub.

    model = torch.hub.load("OWNER/REPOSITORY", "monoclip")                       # the paper's; fetches RN50 once
    model = torch.hub.load("FOLDER", "monoclip_demo", source="local")            # the embedded toy; offline
    depth = model.infer_image("photo.jpg")                                       # (H, W) float32 [m]

Arrays are RGB; `model.infer_image(cv2.imread(...), color="bgr")` takes cv2's. A Python that has imported another `clip`
or `datasets` is refused with an ImportError that says so.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import options  # first: it refuses another `clip` or `datasets`
from monoclip import PAPER, MonoCLIP

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
    """MonoCLIP in evaluation mode.

    Args:
        clip_path: a checkpoint, or one of CLIP's names, whose file is then fetched into the cache if need be.
        device: None takes the GPU if there is one. fp32 on a CPU, fp16 elsewhere.
        exact: keep the plain network, bit for bit, instead of the form of `clip.optimize_for_inference`.
        activation: "quickgelu" or "gelu", where the checkpoint is neither OpenAI's nor of a known name.
        image_statistics: "imagenet", as in the paper, or "clip", which CLIP was trained with.
        preset: of `options.READINGS`; "auty" and "log" are for KITTI. What `reading` has replaces its words and bins.
        reading: `depth_classes`, `bin_list`, `temperature`, `readout` and the other fields of `monoclip.Reading`.

    Raises:
        clip.CheckpointError, options.UsageError: no such checkpoint or device, or one that cannot be used.
        ValueError, TypeError: a reading that makes no depth, or a field that there is not.
    """
    for name, value, known in (
        ("image_statistics", image_statistics, options.IMAGE_STATISTICS),
        ("preset", preset, options.READINGS),
    ):
        if value not in known:
            raise ValueError(f"{name} {value!r}: there are {', '.join(known)}")
    chosen = options.choose_device(str(device or "auto"))
    precision = options.choose_precision("auto", chosen)
    given = {
        name: options.field_of(name, value) for name, value in reading.items() if name in PAPER.__dataclass_fields__
    }
    read = replace(options.with_statistics(options.READINGS[preset], image_statistics), **(reading | given))
    _, model = options.load_model(clip_path, chosen, precision, read, exact, activation)
    return model.eval()


def monoclip_demo(device: str | None = None, exact: bool = False, **reading: Any) -> MonoCLIP:
    """MonoCLIP with the small CLIP of `demo/`, which was taught distance on rendered rooms: to try things out with."""
    return monoclip(options.DEMO_WEIGHTS, device, exact, **reading)
