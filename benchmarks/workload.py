"""What the benchmarks work on: readings, a CLIP of random weights, images of noise, and caches of their features."""

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from calculate_error import NYU_CROP
from clip.model import CLIP, Architecture
from datasets.nyu import TEST_INDICES, NYUDepthV2, Pair, scan_folder
from evaluation.controls import Suite, plain_suite, with_controls, with_paper
from evaluation.encode import FeatureWriter, encode
from evaluation.fingerprint import features_fingerprint
from loading import choose_precision
from monoclip import PAPER, MonoCLIP

RN50 = Architecture(1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 12)
SEED = 0


def suites(channels: bool, mean_image: Tensor | None) -> dict[str, Suite]:
    """What is read from one pass over the images, by the flags that ask for it; arguments as of `with_controls`."""
    suite = plain_suite(PAPER)
    published = with_paper(suite)
    return {"": suite, " --paper": published, " --paper --controls": with_controls(published, channels, mean_image)}


def random_network(architecture: Architecture = RN50) -> CLIP:
    """A CLIP of random weights in evaluation mode, its batch norms unlike those of a new layer."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = CLIP(architecture)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.get_buffer("running_mean").normal_(0, 0.05, generator=generator)
            module.get_buffer("running_var").uniform_(0.8, 1.2, generator=generator)
    return model.eval().requires_grad_(False)


def write_images(folder: Path, count: int) -> None:
    """Writes `count` pairs of 480x640 in NYU's layout: smooth noise with grain, and smooth depth with holes."""
    rng = np.random.default_rng(SEED)
    folder = folder / "official_splits" / "test" / "office"
    folder.mkdir(parents=True)

    def smooth(low: float, high: float) -> np.ndarray:
        coarse = Image.fromarray(rng.uniform(low, high, (12, 16)).astype(np.float32))
        return np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC))

    for index in TEST_INDICES[:count]:
        rgb = np.stack([smooth(0, 255) for _ in range(3)], axis=-1) + rng.normal(0, 8, (480, 640, 3))
        Image.fromarray(rgb.clip(0, 255).astype(np.uint8)).save(folder / f"rgb_{index:05d}.jpg", quality=95)
        depth = smooth(800, 6000) + rng.normal(0, 10, (480, 640))
        depth[smooth(0, 1) > 0.9] = 0
        Image.fromarray(depth.clip(0, 9900).astype(np.uint16)).save(folder / f"sync_depth_{index:05d}.png")


def link_images(folder: Path, pairs: Sequence[Pair], count: int) -> None:
    """Gives the `pairs` new names in NYU's layout until there are `count` images of the test split."""
    folder = folder / "official_splits" / "test" / "office"
    folder.mkdir(parents=True)
    for index, pair in zip(TEST_INDICES[:count], itertools.cycle(pairs), strict=False):
        (folder / f"rgb_{index:05d}.jpg").symlink_to(pair.rgb.resolve())
        (folder / f"sync_depth_{index:05d}.png").symlink_to(pair.depth.resolve())


def write_cache(path: Path, weights: Path, form: CLIP, data: Path, device: torch.device) -> None:
    """The feature cache that eval.py would write for the images of `data`, with the first one's features for all."""
    dataset = NYUDepthV2(scan_folder(data), NYU_CROP, PAPER.image_mean, PAPER.image_std)
    fingerprint = features_fingerprint(str(weights), dataset, choose_precision("auto", device), "fast")
    batch = next(iter(encode(MonoCLIP(form), dataset, device)))
    with FeatureWriter(path, fingerprint | {"all_channels": False}, len(dataset)) as writer:
        for _ in writer.kept(itertools.repeat(batch, len(dataset))):
            pass
