"""Step 2 of the experiments: features x settings -> metrics. Nothing is learnt, and no image is looked at any more.

A row is the depth of every image by one rule: a `Setting` reads depth out of the features as the method does, with
other words, bins, channels or patches; `RandomDepth` ignores the image; a constant is one depth everywhere; a map is
one depth map for all images. Beside the metrics of the paper, each row of each image has what a constant cannot fake:

    silog                scale-invariant log error (calculate_error.py)
    spearman, pearson    correlation of predicted and true depth over the patches: mean depth of a patch's pixels with
                         mean counted ground truth, patches with less than half of their pixels counted left out; ties
                         share their mean rank, and means are rounded to 0.1 mm; 0 where either side is constant
    scaled_*             the paper's metrics after the prediction is multiplied by the ratio of medians
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from calculate_error import (
    AT_ONCE,
    HIGHER_IS_BETTER,
    NYU_CROP,
    NYU_MAX_DEPTH,
    NYU_METRICS,
    counted_NYU,
    errors_of_maps,
    mean_errors,
    size_of,
)
from monoclip import MonoCLIP, Reading, depth_of, logits_of, mirror_average, unit_channels, upsampled

SCALED = NYU_METRICS[1:]  # the paper's columns
EXTRA_METRICS = ("spearman", "pearson", "silog", *(f"scaled_{metric}" for metric in SCALED))
METRICS = (*NYU_METRICS, *EXTRA_METRICS)

# How random depth is drawn: the paper does not say. All uniform in 0 to 10 m.
PIXEL, GRID, MIRRORED = "random, each pixel", "random, each patch", "random, each patch, mirror average"
RANDOM_KINDS = (PIXEL, GRID, MIRRORED)
RANDOM_RANGE = 10.0  # [m] of the paper's Lower Bound

CROP_SIZE = size_of(NYU_CROP)  # (416, 544)
WHOLE_MM = round(NYU_MAX_DEPTH * 1000)  # depths that ground truth can have, from 0 up
MAPS_AT_ONCE = 16  # of an image, so that few of their pixels are in memory
CONSTANTS_AT_ONCE = AT_ONCE // WHOLE_MM  # of the sweep, so that their table is one block
TIE = 1e-4  # [m] mean depths of patches are compared in steps of 0.1 mm: rounding of fp32 must not order equal ones
MEASURED_SHARE = 0.5  # of a patch's pixels, at least, for it to count in a correlation


@dataclass(frozen=True)
class Setting:
    """A row whose depth is read out of the features."""

    name: str
    reading: Reading
    group: str = ""  # rows of one group are reported together, as minimum, median and maximum
    channels: int | None = None  # seed of a random choice of D of the C channels, in place of every second
    shuffle: int | None = None  # seed of a random order of the patches' depths, another for each image


@dataclass(frozen=True)
class RandomDepth:
    """A row of random depth; `kind` is one of `RANDOM_KINDS`, which is also its group."""

    kind: str
    seed: int

    @property
    def name(self) -> str:
        """The row's name."""
        return f"{self.kind}, seed {self.seed}"


@dataclass(frozen=True)
class Rows:
    """What is scored: settings, random depth, constants [m] by name, and depth maps (416, 544) [m] by name."""

    settings: tuple[Setting, ...]
    randoms: tuple[RandomDepth, ...] = ()
    constants: Mapping[str, float] = field(default_factory=dict)
    maps: Mapping[str, Tensor] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all rows, in the order of `depth_maps`."""
        patches = [row.name for row in self.randoms if row.kind != PIXEL]
        pixels = [row.name for row in self.randoms if row.kind == PIXEL]
        return (*(setting.name for setting in self.settings), *patches, *pixels, *self.maps, *self.constants)

    @property
    def groups(self) -> dict[str, list[str]]:
        """Group -> names of its rows."""
        found: dict[str, list[str]] = {}
        for group, name in [(s.group, s.name) for s in self.settings] + [(r.kind, r.name) for r in self.randoms]:
            if group:
                found.setdefault(group, []).append(name)
        return found

    def row_of(self, reading: Reading) -> str | None:
        """Name of the row that is this reading and nothing else."""
        for s in self.settings:
            if s.reading == reading and s.channels is None and s.shuffle is None and not s.group:
                return s.name
        return None


class Readouts:
    """Every setting's depth by the functions of monoclip.py; those of the same words and channels share one softmax.

    Args:
        model: says which channels its features keep.
        encode_prompts: (depth_classes, obj_classes, depth_templates) -> text features (D, K).
        settings: R of them.
    """

    def __init__(self, model: MonoCLIP, encode_prompts: Callable[..., Tensor], settings: Sequence[Setting]) -> None:
        self.model, self.encode_prompts, self.settings = model, encode_prompts, settings
        self.text: dict[tuple[tuple[str, ...], ...], Tensor] = {model.reading.words: model.text_features.cpu()}
        self.joint = len(model.text_features)  # D
        self.softmaxes: dict[tuple[object, ...], list[int]] = {}
        for i, s in enumerate(settings):
            r = s.reading
            self.softmaxes.setdefault((r.words, r.temperature, r.logit_scale, s.channels), []).append(i)
            self.text_features(r.words)

    def text_features(self, words: tuple[tuple[str, ...], ...]) -> Tensor:
        """(D, K) of the words of a reading, on the CPU, encoded when they are first asked for."""
        if words not in self.text:
            self.text[words] = self.encode_prompts(*words).cpu()
        return self.text[words]

    def __call__(self, trunk: Tensor, name: str) -> Tensor:
        """Depth of each patch by each setting: (2, C, h, w), as from `MonoCLIP.trunk`, on the CPU -> (R, h, w) [m].

        The order of shuffled patches depends on the image's name.
        """
        thinned = self.model.patch_features(trunk)
        unit = unit_channels(trunk) if any(s.channels is not None for s in self.settings) else thinned
        depth = trunk.new_empty(len(self.settings), *trunk.shape[2:])
        for members in self.softmaxes.values():
            first = self.settings[members[0]]
            features = (
                thinned if first.channels is None else unit[:, self.chosen_channels(len(unit[0]), first.channels)]
            )
            logits = logits_of(features, self.text[first.reading.words], first.reading)  # (2, K, h, w)
            bins = torch.tensor([self.settings[i].reading.bin_list for i in members])  # (M, K)
            depth[members] = mirror_average(depth_of(logits, bins))[0]  # (M, h, w)
        for i, setting in enumerate(self.settings):
            if setting.shuffle is not None:
                order = generator(name, setting.shuffle).permutation(depth[i].numel())
                depth[i] = depth[i].flatten()[torch.from_numpy(order)].view_as(depth[i])
        return depth

    def chosen_channels(self, channels: int, seed: int) -> Tensor:
        """D of the C channels, sorted."""
        chosen = np.random.default_rng(seed).choice(channels, self.joint, replace=False)
        return torch.from_numpy(np.sort(chosen))


def generator(name: str, seed: int) -> np.random.Generator:
    """Random numbers that depend on an image's name and a seed, whatever else is evaluated."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def random_depth(row: RandomDepth, name: str, grid: tuple[int, ...]) -> Tensor:
    """A map of random depth for one image: (h, w) [m]; (416, 544) for each pixel."""
    rng = generator(name, row.seed)

    def drawn(size: tuple[int, ...]) -> np.ndarray:
        return rng.random(size, dtype=np.float32) * np.float32(RANDOM_RANGE)

    if row.kind == PIXEL:
        return torch.from_numpy(drawn(CROP_SIZE))
    first = drawn(grid)
    return torch.from_numpy(first if row.kind == GRID else (first + drawn(grid)) / 2)


def depth_maps(rows: Rows, readouts: Readouts, trunk: Tensor, name: str) -> tuple[Tensor, Tensor]:
    """Every row's depth of one image: of each patch (R, h, w) [m], then of each pixel (R', 416, 544) [m]."""
    grid = tuple(trunk.shape[2:])
    patches = [random_depth(row, name, grid) for row in rows.randoms if row.kind != PIXEL]
    pixels = [random_depth(row, name, grid) for row in rows.randoms if row.kind == PIXEL]
    pixels += [*rows.maps.values(), *(torch.tensor(depth).expand(CROP_SIZE) for depth in rows.constants.values())]
    return torch.cat([readouts(trunk, name), *(depth[None] for depth in patches)]), torch.stack(pixels)


@torch.inference_mode()
def score_image(gt: Tensor, patches: Tensor, pixels: Tensor, name: str) -> dict[str, np.ndarray]:
    """All metrics of every row for one image.

    From gt (1, 480, 640) float32 [m], 0 = no measurement; patches (R, h, w) [m], depth maps that are resized as the
    method's; and pixels (R', 416, 544) [m], depth maps as they are.

    Returns:
        Each of `METRICS`, `valid_pixels` and `dropped_pixels` -> (R + R',).

    Raises UnscorableError: a prediction is not finite, or no pixel counts.
    """
    places, depth = counted_NYU(gt)
    measured = torch.zeros(CROP_SIZE).flatten().index_fill_(0, places, 1).view(1, *CROP_SIZE)
    grid = tuple(patches.shape[1:])
    sizes = [whole // n for whole, n in zip(CROP_SIZE, grid, strict=True)]  # (H, W) of a patch, px
    share = F.avg_pool2d(measured, sizes).flatten()  # (h w,)
    usable = (share >= MEASURED_SHARE).nonzero()[:, 0]
    truth = (F.avg_pool2d(gt[:, *NYU_CROP] * measured, sizes).flatten() / share)[usable]  # (P,) [m]

    def errors(pred: Tensor) -> dict[str, Tensor]:  # (r, 416, 544)
        counted = pred.flatten(1).index_select(1, places)
        found = errors_of_maps(depth, counted, NYU_MAX_DEPTH, (*NYU_METRICS, "silog"), name, SCALED)
        means = F.avg_pool2d(pred, sizes).flatten(1).index_select(1, usable)  # (r, P)
        return found | correlations(means, truth)

    parts = [errors(upsampled(part[None], CROP_SIZE)[0]) for part in patches.split(MAPS_AT_ONCE)]
    parts += [errors(part) for part in pixels.split(MAPS_AT_ONCE)]
    return {
        key: torch.cat([part[key] for part in parts]).numpy() for key in (*METRICS, "valid_pixels", "dropped_pixels")
    }


def correlations(pred: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Spearman's and Pearson's correlation of R predictions with the truth: (R, P), (P,) [m] -> (R,) float64 each."""
    pred, truth = (pred / TIE).round(), (truth[None] / TIE).round()
    return {"spearman": correlation(ranks(pred), ranks(truth)), "pearson": correlation(pred, truth)}


def correlation(a: Tensor, b: Tensor) -> Tensor:
    """Pearson's correlation of rows (R, P) with one row (1, P) -> (R,) float64; 0 where either is constant."""
    if a.shape[1] < 2:
        return torch.zeros(len(a), dtype=torch.float64)
    a, b = a.double(), b.double()
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    norm = (a.square().sum(1) * b.square().sum(1)).sqrt()
    return torch.where(norm > 0, (a * b).sum(1) / norm, 0)


def ranks(values: Tensor) -> Tensor:
    """Rank of each value in its row, (R, P) -> (R, P); equal values share the mean of their ranks."""
    ordered = values.sort(1).values
    left, right = (torch.searchsorted(ordered, values, right=side) for side in (False, True))
    return (left + right).float() / 2


def histogram(gt: Tensor) -> np.ndarray:
    """The share of 0, 1, ... 9999 mm among the counted pixels of an image: (1, 480, 640) [m] -> (10000,) float32."""
    _, depth = counted_NYU(gt)
    counts = torch.bincount((depth * 1000).round().long(), minlength=WHOLE_MM)
    return (counts / len(depth)).float().numpy()


def constant_errors(depths: Sequence[float], shares: Tensor, metrics: Sequence[str]) -> dict[str, Tensor]:
    """Metrics of C constants on each of I images: depths [m], shares (10000, I) as from `histogram` -> (C, I) each."""
    gt = torch.arange(WHOLE_MM, dtype=torch.float32) / 1000
    parts = [
        mean_errors(gt, part[:, None], NYU_MAX_DEPTH, metrics, shares)
        for part in torch.tensor(depths, dtype=torch.float32).split(CONSTANTS_AT_ONCE)
    ]
    return {metric: torch.cat([part[metric] for part in parts]) for metric in metrics}


def best_constants(shares: Tensor) -> tuple[dict[str, float], dict[str, np.ndarray]]:
    """The constant depth, to the millimetre, that is best for each metric in the mean over images.

    Every metric but rmse is a mean over pixels, so that its mean over images is that of the mean histogram. All but the
    deltas fall and then rise with the constant, or with its logarithm, so that the best to 10 cm leads to the best.

    Returns metric -> constant [m], and metric -> (I,), its values at that constant, from shares (10000, I).
    """
    sweep = [millimetre / 1000 for millimetre in range(2, WHOLE_MM)]
    best = {}
    for metric in NYU_METRICS:
        over = shares if metric == "rmse" else shares.mean(1, keepdim=True)
        depths = sweep
        if metric not in HIGHER_IS_BETTER:
            coarse = 100 * int(constant_errors(sweep[::100], over, [metric])[metric].mean(1).argmin())
            depths = sweep[max(0, coarse - 100) : coarse + 101]
        mean = constant_errors(depths, over, [metric])[metric].mean(1)
        best[metric] = depths[int(mean.argmax() if metric in HIGHER_IS_BETTER else mean.argmin())]
    errors = constant_errors(list(best.values()), shares, NYU_METRICS)  # (7, I) each
    return best, {metric: errors[metric][i].numpy() for i, metric in enumerate(NYU_METRICS)}
