"""What the commands are measured on: random weights of RN50's shape, images of noise in NYU's layout, stored features.

All of it is written into one folder, and what is there already stays.
"""

import json
import shutil
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from calculate_error import NYU_CROP, NYU_FRAME
from clip.model import CLIP, Architecture, convert_weights
from datasets.nyu import TEST_INDICES, open_nyu
from download import write_whole
from experiments.__main__ import RESULTS_FILE, STORED_WITH
from experiments.features import FeatureStore
from monoclip import MonoCLIP

RN50 = Architecture(1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 12)
FEATURES = "features"  # where experiments keeps them in its --output
SEED = 0
PICTURES = 4  # that differ; the other images repeat them


def write_weights(path: Path, architecture: Architecture = RN50) -> None:
    """Writes random weights, in fp16 like OpenAI's, with batch norms unlike those of a new layer."""
    if path.is_file():
        return
    generator = torch.Generator().manual_seed(SEED)
    torch.manual_seed(SEED)
    network = CLIP(architecture)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.get_buffer("running_mean").normal_(0, 0.05, generator=generator)
            module.get_buffer("running_var").uniform_(0.8, 1.2, generator=generator)
    convert_weights(network, torch.float16)
    write_whole(path, lambda file: torch.save(network.state_dict(), file))


def write_images(root: Path, count: int) -> None:
    """Writes `count` pairs: smooth noise with grain, and smooth depth of 0.8 to 6 m with holes.

    A comment with the image's index in each JPEG makes all files differ, as the store names features by their bytes.
    """
    folder = root / "official_splits" / "test" / "office"
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(SEED)
    height, width = NYU_FRAME

    def smooth(low: float, high: float) -> np.ndarray:
        coarse = Image.fromarray(rng.uniform(low, high, (12, 16)).astype(np.float32))
        return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))

    pairs = []
    for _ in range(PICTURES):
        rgb = np.stack([smooth(0, 255) for _ in range(3)], axis=-1) + rng.normal(0, 8, (height, width, 3))
        depth = smooth(800, 6000) + rng.normal(0, 10, NYU_FRAME)
        depth[smooth(0, 1) > 0.9] = 0
        jpeg, png = BytesIO(), BytesIO()
        Image.fromarray(rgb.clip(0, 255).astype(np.uint8)).save(jpeg, "JPEG", quality=95)
        Image.fromarray(depth.clip(0, 9900).astype(np.uint16)).save(png, "PNG")
        pairs.append((jpeg.getvalue(), png.getvalue()))
    for i, index in enumerate(TEST_INDICES[:count]):
        jpeg_bytes, png_bytes = pairs[i % PICTURES]
        comment = b"\xff\xfe\x00\x06" + index.to_bytes(4, "big")
        (folder / f"rgb_{index:05d}.jpg").write_bytes(jpeg_bytes[:2] + comment + jpeg_bytes[2:])
        (folder / f"sync_depth_{index:05d}.png").write_bytes(png_bytes)


def fill_store(output: Path, model: MonoCLIP, data: Path, count: int) -> None:
    """Completes the feature store that `python -m experiments --limit 4` left in its --output.

    Args:
        output: what --output named.
        model: any with RN50's sizes; nothing is computed.
        data: written by `write_images`, so that the features of each image are those of one of the first.
        count: of the images that the store is to have.

    Raises:
        FileNotFoundError: that run stored its features elsewhere.
    """
    made = json.loads((output / RESULTS_FILE).read_text(encoding="utf-8"))["made_with"]
    depends_on = {key: made["reading"][key] for key in ("image_mean", "image_std")}
    dataset = open_nyu(data, NYU_CROP, model.reading.normalised, limit=count)
    store = FeatureStore(output / FEATURES, model, dataset, depends_on | {key: made[key] for key in STORED_WITH})
    for item in store.missing(range(len(dataset))):
        shutil.copyfile(store.paths[item % PICTURES], store.paths[item])
