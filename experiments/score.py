"""Step 2 of the experiments: features x settings -> metrics. Nothing is learnt, and no image is looked at any more.

A row is the depth of every image by one rule. A `Setting` reads depth out of the features as the method does, with
other words, bins or channels; random depth ignores the image; a constant is one depth everywhere; a map is one depth
map for all images. Beside the metrics of the paper, each row of each image has what a constant cannot fake:

    silog       scale-invariant log error (calculate_error.py)
    spearman    rank correlation of predicted and true depth over the patches: mean depth of a patch's pixels with mean
                counted ground truth; patches of which too little is counted are left out (`Protocol.measured_share`).
                NaN where the prediction spans less than 1 cm: what order it has is rounding
    aurg        what certainty knows of error: area under the random gain, over the patches; 0 without sigma
    scaled_*    the paper's metrics after the prediction is multiplied by the ratio of (lower) medians

Ranks, also those of sigma, compare steps of a 65,536th of the range; equal values share their mean rank, or error.
"""

import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from calculate_error import (
    MIN_DEPTH,
    NYU,
    NYU_CROP,
    Protocol,
    Size,
    counted_pixels,
    errors_of_maps,
    mean_errors,
    pixel_errors,
    size_of,
)
from clip.model import Trunk
from datasets import PROGRESS
from datasets.pairs import DepthPairs
from experiments.statistics import COUNTS, PRIMARY
from monoclip import MonoCLIP, Reading, depth_of, logits_of, mirror_average, upsampled
from viewer.colour import sigma_of

SCALED = ("delta1", "abs_rel")
EXTRA_METRICS = ("spearman", "aurg", "silog", *(f"scaled_{metric}" for metric in SCALED))


def metrics_of(protocol: Protocol) -> tuple[str, ...]:
    """All metrics of a row, in the order of tables and files."""
    return (*protocol.scored, *EXTRA_METRICS)


# Rows of random depth. The paper does not say how its own is drawn. All are uniform from 0 to the protocol's largest
# depth, 10 m on NYU.
PIXEL, GRID = "random, each pixel, seed 0", "random, each patch, seed 0"
MIRRORED = "random, each patch, mirror average, seed 0"
RANDOM_ROWS = (PIXEL, GRID, MIRRORED)

MAPS_AT_ONCE = 16  # of an image, so that few of their pixels are in memory
CONSTANTS_AT_ONCE = 256  # of the sweep, so that histograms are read a few times only
SWEPT = 2000  # constants that are tried, from 0 to the protocol's largest depth: 5 mm apart on NYU
OFF_THRESHOLDS = 0.0011  # [m] added to each: no ratio of 5 k + 1.1 mm to whole millimetres is 1.25, 1.25^2 or 1.25^3
SHARES = 20  # of the most certain predictions, at which a sparsification curve is taken
STEPS = 2**16 + 1  # of the range, in which depths are ranked: rounding of fp32 must not order equal ones
SMALLEST_STEP = 1e-5  # [m] what is nearer than this is equal, whatever the range
LEAST_SPAN = 0.01  # [m] a prediction that spans less has no order


@dataclass(frozen=True)
class Setting:
    """A row whose depth is read out of the features."""

    name: str
    reading: Reading
    channels: int | None = None  # seed of a random choice of D of the C channels, in place of every second


@dataclass(frozen=True)
class Rows:
    """What is scored: settings, `RANDOM_ROWS`, constants [m] by name, and depth maps (H, W) [m] by name.

    `baselines`: setting -> the constant that it would be if its words said nothing, the mean of its own bins.
    """

    settings: tuple[Setting, ...]
    randoms: tuple[str, ...] = ()
    constants: Mapping[str, float] = field(default_factory=dict)
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    baselines: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all rows: settings, random depth of patches, then what is of pixels."""
        randoms = sorted(self.randoms, key=lambda row: row == PIXEL)
        return (*(setting.name for setting in self.settings), *randoms, *self.maps, *self.constants)

    def row_of(self, reading: Reading) -> str | None:
        """Name of the row that is this reading and nothing else."""
        return next((s.name for s in self.settings if s.reading == reading and s.channels is None), None)


class PatchAnswers(NamedTuple):
    """What R settings read out of an image, in the mean of it and its mirror; all on the CPU, float32."""

    depth: Tensor  # (R, h, w) [m]
    sigma: Tensor  # (R, h, w) [m]
    weights: Tensor  # (asked, K, h, w), of the words of the first settings


class SettingsReader:
    """Every setting's depth by the functions of monoclip.py; those of the same words and features share one softmax.

    Args:
        model: whose image encoder the features are of.
        encode_prompts: (depth_classes, obj_classes, depth_templates) -> text features (D, K).
        settings: R of them.
        asked: settings, the first, whose weights are given; all of these have K words.
    """

    def __init__(
        self, model: MonoCLIP, encode_prompts: Callable[..., Tensor], settings: Sequence[Setting], asked: int = 1
    ) -> None:
        self.model, self.encode_prompts, self.settings, self.asked = model, encode_prompts, settings, asked
        self.text: dict[tuple[tuple[str, ...], ...], Tensor] = {model.reading.words: model.text_features.cpu()}
        self.joint = len(model.text_features)  # D
        self.softmaxes: dict[tuple[object, ...], list[int]] = {}
        for i, s in enumerate(settings):
            r = s.reading
            key = (r.words, r.temperature, r.logit_scale, r.readout, s.channels)
            self.softmaxes.setdefault(key, []).append(i)
            self.text_features(r.words)

    def text_features(self, words: tuple[tuple[str, ...], ...]) -> Tensor:
        """(D, K) of the words of a reading, on the CPU, encoded when they are first asked for."""
        if words not in self.text:
            self.text[words] = self.encode_prompts(*words).cpu()
        return self.text[words]

    def __call__(self, trunk: Trunk) -> PatchAnswers:
        """What all settings read of an image's trunk, as from `FeatureStore.get`."""
        names = dict.fromkeys(setting.reading.readout for setting in self.settings)
        by_readout = {name: self.model.features(trunk, name).cpu() for name in names}  # (2, D, h, w) each
        channels = F.normalize(trunk.patches, dim=1) if any(s.channels is not None for s in self.settings) else None
        depth = trunk.patches.new_empty(len(self.settings), *trunk.patches.shape[2:])
        sigma = torch.empty_like(depth)
        weights: dict[int, Tensor] = {}
        for members in self.softmaxes.values():
            first = self.settings[members[0]]
            features = by_readout[first.reading.readout]
            if channels is not None and first.channels is not None:
                features = channels[:, random_channels(channels.shape[1], self.joint, first.channels)]
            logits = logits_of(features, self.text[first.reading.words], first.reading)  # (2, K, h, w)
            mean = mirror_average(logits.softmax(dim=1))  # (1, K, h, w)
            bins = torch.tensor([self.settings[i].reading.bin_list for i in members])  # (M, K)
            found = depth_of(mean, bins)
            depth[members], sigma[members] = found[0], sigma_of(mean, bins, found)[0]  # (M, h, w)
            weights |= {i: mean[0] for i in members if i < self.asked}
        return PatchAnswers(depth, sigma, torch.stack([weights[i] for i in range(self.asked)]))


def random_channels(channels: int, joint: int, seed: int) -> Tensor:
    """`joint` of the channels, in a random order: sorted ones would meet some dimensions of every second channel."""
    return torch.from_numpy(np.random.default_rng(seed).choice(channels, joint, replace=False))


def generator(name: str) -> np.random.Generator:
    """Random numbers that depend on an image's name, whatever else is evaluated."""
    return np.random.default_rng([0, zlib.crc32(name.encode())])


def random_depth(row: str, name: str, grid: tuple[int, ...], size: Size, largest: float) -> Tensor:
    """A map of random depth for one image, from 0 to `largest` [m]: (h, w) [m]; for each pixel, `size`."""
    rng = generator(name)

    def drawn(size: tuple[int, ...]) -> np.ndarray:
        return rng.random(size, dtype=np.float32) * np.float32(largest)

    if row == PIXEL:
        return torch.from_numpy(drawn(size))
    first = drawn(grid)
    return torch.from_numpy(first if row == GRID else (first + drawn(grid)) / 2)


def other_maps(rows: Rows, name: str, truth: "Truth", grid: tuple[int, ...]) -> tuple[list[Tensor], Tensor]:
    """The depth of one image by rows that are no settings: of each patch, (h, w) [m], of each pixel, (R', H, W) [m]."""
    size, largest = truth.size, truth.protocol.max_depth
    patches = [random_depth(row, name, grid, size, largest) for row in rows.randoms if row != PIXEL]
    pixels = [random_depth(row, name, grid, size, largest) for row in rows.randoms if row == PIXEL]
    pixels += [*rows.maps.values(), *(torch.tensor(depth).expand(size) for depth in rows.constants.values())]
    return patches, torch.stack(pixels)


class ImageScores(NamedTuple):
    """What is kept of an image."""

    errors: dict[str, np.ndarray]  # metric -> (R + R',), of `errors_of_rows`, and "aurg"
    histogram: np.ndarray  # (U,), of `histogram`
    permuted: np.ndarray  # (asked, n, 2), of `permuted_errors`
    patches: np.ndarray  # (2, P) [m], predicted by the first setting and true
    curve: np.ndarray  # (S,), of `sparsification` of the first setting; NaN if no patch is measured


@dataclass(frozen=True)
class Scorer:
    """Scores images by all rows.

    Args:
        rows: what is scored.
        reader: of the settings among the rows.
        bins: (n, K) [m], assignments of the first reading's bins to its words, its own first.
        protocol: of the data set.
    """

    rows: Rows
    reader: SettingsReader
    bins: Tensor
    protocol: Protocol

    @torch.inference_mode()
    def score_image(self, gt: Tensor, trunk: Trunk, name: str) -> ImageScores:
        """Every row's metrics of one image, and what its first settings tell besides.

        From gt, a whole frame (1, H, W) [m], and the trunk of the image and its mirror. Raises UnscorableError as
        `errors_of_rows` does.
        """
        protocol, answers = self.protocol, self.reader(trunk)
        grid = tuple(answers.depth.shape[1:])
        truth = truth_of(gt, grid, protocol)
        patches, pixels = other_maps(self.rows, name, truth, grid)
        errors = errors_of_rows(truth, torch.cat([answers.depth, *(depth[None] for depth in patches)]), pixels, name)
        depth, sigma = (maps.flatten(1)[:, truth.patches] for maps in (answers.depth, answers.sigma))  # (R, P)
        true, predicted = (maps.float().clamp(MIN_DEPTH, protocol.max_depth) for maps in (truth.patch_depth, depth))
        uncertain = torch.from_numpy(np.stack([steps(row) for row in sigma.numpy()]))
        curves = sparsification(pixel_errors(true, predicted, ("abs_rel",))["abs_rel"], uncertain)
        aurg = np.zeros_like(errors["spearman"])
        aurg[: len(curves)] = gain_over_random(curves).nan_to_num()
        errors = {metric: aurg if metric == "aurg" else errors[metric] for metric in (*metrics_of(protocol), *COUNTS)}
        permuted = np.stack([permuted_errors(weights, self.bins, truth) for weights in answers.weights])
        both = np.stack([depth[0].double().numpy(), truth.patch_depth.numpy()])
        return ImageScores(errors, histogram(truth.depth, protocol), permuted, both, curves[0].numpy())

    def score_images(self, data: DepthPairs, trunk_of: Callable[[int], Trunk]) -> list[ImageScores]:
        """`score_image` of every image, whose trunk `trunk_of` gives by its place.

        Raises UnscorableError: a prediction is not finite, or an image has no valid pixel; DataError: damaged depth.
        """
        count = len(data)

        def one(item: int) -> ImageScores:
            return self.score_image(data.depth(item), trunk_of(item), data.names[item])

        # A thread for each image at a time, in which torch computes alone: threads that share a step wait for each
        # other at the end of each of thousands, and metrics do not depend on how many there are.
        with ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                return list(tqdm(pool.map(one, range(count)), "score", count, unit=" images", bar_format=PROGRESS))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def mean_permuted(images: Sequence[ImageScores], place: int = 0) -> np.ndarray | None:
    """Mean over images of a setting's metrics for every assignment, (n, 2), its own first; None if there is no other.

    `place` is the setting's among those whose weights were asked for. Images without a measured patch do not count.
    """
    found = [image.permuted[place] for image in images if np.isfinite(image.permuted[place]).all()]
    return np.mean(found, axis=0) if found and len(found[0]) > 1 else None


class Truth(NamedTuple):
    """Ground truth of an image: of its N counted pixels, and of the P patches of which enough is counted."""

    places: Tensor  # (N,) int64 in what the method sees, flattened
    depth: Tensor  # (N,) float32 [m]
    patches: Tensor  # (P,) int64 in the flattened grid
    patch_depth: Tensor  # (P,) float64 [m], mean over a patch's counted pixels
    size: Size  # of what the method sees
    protocol: Protocol


def sparsification(errors: Tensor, uncertainty: Tensor) -> Tensor:
    """Mean error of the most certain share, for shares of 1 / `SHARES`, 2 / `SHARES`, ... 1: (R, N), (R, N) -> (R, S).

    Equal uncertainties share their mean error. NaN where N = 0. What order knows of error, `gain_over_random` says.
    """
    rows, n = [], errors.shape[1]
    ends = [-(-n * i // SHARES) for i in range(1, SHARES + 1)]  # rounded up
    for error, sigma in zip(errors.double().cpu().numpy(), uncertainty.cpu().numpy(), strict=True):
        _, place, count = np.unique(sigma, return_inverse=True, return_counts=True)
        sums = np.cumsum(np.repeat(np.bincount(place, error) / count, count)) if n else np.full(1, np.nan)
        rows.append([sums[end - 1] / max(end, 1) for end in ends])
    return torch.tensor(rows, dtype=torch.float64).view(len(rows), SHARES)


def gain_over_random(curves: Tensor) -> Tensor:
    """Area between a random order's curve, which is flat, and those of `sparsification`: (..., S) -> (...).

    Positive if certain predictions are better ones. Source: the area under the random gain, Poggi et al., CVPR 2020.
    """
    return (curves[..., -1] - curves.mean(dim=-1)).round(decimals=12) + 0.0  # flat ones are 0, and not -0


def pooled(maps: Tensor, grid: Sequence[int]) -> Tensor:
    """Mean of each of h x w patches: (R, H, W) -> (R, h, w). Where they do not divide H and W, borders are of both."""
    h, w = grid
    if maps.shape[1] % h or maps.shape[2] % w:  # else equal depths would pool to different fp32 sums
        maps = maps.double()
    return F.adaptive_avg_pool2d(maps, (h, w))


def truth_of(gt: Tensor, grid: Sequence[int], protocol: Protocol) -> Truth:
    """The ground truth of an image, and of the h x w patches that the method sees of it.

    From a whole frame gt (1, H, W) float32 [m], 0 = no measurement. Sums of the depth map's whole units are exact where
    patches divide what is seen into 2^n pixels each, as those of 32 and 16 px do, so that patches of equal mean depth
    have equal numbers.
    """
    places, depth = counted_pixels(gt, protocol)
    height, width = gt.shape[1:]
    size = size_of(protocol.window(height, width))
    maps = torch.zeros(2, math.prod(size), dtype=torch.float64)  # whether a pixel counts; its depth in units
    maps[0, places], maps[1, places] = 1, (depth.double() * protocol.units_per_metre).round()
    share, units = pooled(maps.view(2, *size), grid).flatten(1)
    patches = (share >= protocol.measured_share).nonzero()[:, 0]
    patch_depth = units[patches] / share[patches] / protocol.units_per_metre
    return Truth(places, depth, patches, patch_depth, size, protocol)


@torch.inference_mode()
def errors_of_rows(truth: Truth, patches: Tensor, pixels: Tensor, name: str) -> dict[str, np.ndarray]:
    """All metrics of every row for one image.

    From its ground truth; patches (R, h, w) [m], depth maps that are resized as the method's; and pixels
    (R', H, W) [m], depth maps as they are.

    Returns:
        Each of `metrics_of` but aurg, `valid_pixels` and `dropped_pixels` -> (R + R',).

    Raises UnscorableError: a prediction is not finite, or no pixel counts.
    """
    grid, wanted = patches.shape[1:], (*truth.protocol.scored, "silog")

    def errors(pred: Tensor) -> dict[str, Tensor]:  # (r, H, W)
        counted = pred.flatten(1).index_select(1, truth.places)
        found = errors_of_maps(truth.depth, counted, truth.protocol, wanted, name, SCALED)
        means = pooled(pred, grid).flatten(1).index_select(1, truth.patches)  # (r, P)
        return found | {"spearman": rank_correlations(means, truth.patch_depth)}

    parts = [errors(upsampled(part[None], truth.size)[0]) for part in patches.split(MAPS_AT_ONCE)]
    parts += [errors(part) for part in pixels.split(MAPS_AT_ONCE)]
    return {key: torch.cat([part[key] for part in parts]).numpy() for key in parts[0]}


def permuted_errors(weights: Tensor, bins: Tensor, truth: Truth) -> np.ndarray:
    """The primary metrics of n assignments of bins to words, over patches and not over pixels.

    From weights (K, h, w) and bins (n, K) [m] -> (n, 2) in the order of `PRIMARY`; NaN where no patch is measured.
    """
    if not len(truth.patches):
        return np.full((len(bins), len(PRIMARY)), np.nan)
    depth = bins @ weights.flatten(1)[:, truth.patches]  # (n, P)
    found = mean_errors(truth.patch_depth.float(), depth, truth.protocol.max_depth, PRIMARY)
    return np.stack([found[metric].numpy() for metric in PRIMARY], axis=1)


def rank_correlations(pred: Tensor, truth: Tensor) -> Tensor:
    """Spearman's correlation of R predictions with the truth: (R, N), (N,) [m] -> (R,) float64.

    NaN for a prediction that spans less than `LEAST_SPAN`, and where the truth is constant.
    """
    true = ranks(steps(truth.numpy()))
    found = [
        correlation(ranks(steps(row)), true) if row.size and np.ptp(row) >= LEAST_SPAN else math.nan
        for row in pred.numpy()
    ]
    return torch.tensor(found, dtype=torch.float64)


def steps(values: np.ndarray) -> np.ndarray:
    """Which of `STEPS` depths, evenly over their range, the values are nearest to: (N,) [m] -> (N,) int64."""
    low, high = (values.min(), values.max()) if len(values) else (0, 0)
    return np.rint((values - low) / max((high - low) / (STEPS - 1), SMALLEST_STEP)).astype(np.int64)


def ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each value, from 0; equal values share the mean of their ranks: (N,) int64 >= 0 -> (N,) float64."""
    counts = np.bincount(values)
    return (np.cumsum(counts) - (counts + 1) / 2)[values]


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation, (N,) each; NaN where either is constant."""
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt((a * a).sum() * (b * b).sum())  # not `@`, whose own threads would wait for each other here
    return float((a * b).sum() / norm) if norm > 0 else math.nan


def depths_of(protocol: Protocol) -> Tensor:
    """All depths [m] that counted ground truth can have, from 0 up, in units of the 16-bit depth maps."""
    count = min(math.ceil(protocol.max_depth * protocol.units_per_metre), 2**16)
    return torch.arange(count, dtype=torch.float32) / protocol.units_per_metre


def histogram(depth: Tensor, protocol: Protocol) -> np.ndarray:
    """The share of each of the U `depths_of` the protocol among an image's counted pixels: (N,) [m] -> (U,) float32."""
    units = (depth * protocol.units_per_metre).round().long()
    counts = torch.bincount(units, minlength=len(depths_of(protocol)))
    return (counts / len(depth)).float().numpy()


def sweep_of(protocol: Protocol) -> tuple[float, ...]:
    """The constants [m] that are tried."""
    tried = (k * protocol.max_depth / SWEPT + OFF_THRESHOLDS for k in range(SWEPT))
    return tuple(depth for depth in tried if depth < protocol.max_depth)


def swept_constants(shares: Tensor, protocol: Protocol) -> dict[str, np.ndarray]:
    """Metrics of the S constants of `sweep_of` on each of I images, by histograms (U, I): metric -> (S, I) float64."""
    gt = depths_of(protocol)
    parts = [
        mean_errors(gt, part[:, None], protocol.max_depth, protocol.scored, shares)
        for part in torch.tensor(sweep_of(protocol)).split(CONSTANTS_AT_ONCE)
    ]
    return {metric: torch.cat([part[metric] for part in parts]).numpy() for metric in protocol.scored}


def training_split(depths: Iterable[Tensor]) -> tuple[Tensor, Tensor] | None:
    """The mean of each pixel, (416, 544) [m], and the `histogram`s, (10000, T), of a training split's depth maps.

    A pixel's mean is over the maps that measured it; one that none measured takes the mean of all others. None if there
    is no map, or none with a counted pixel.
    """
    size = size_of(NYU_CROP)
    total, count, shares = torch.zeros(size, dtype=torch.float64), torch.zeros(size), []
    for gt in depths:
        total += gt[0][NYU_CROP]
        count += gt[0][NYU_CROP] > 0
        if len(depth := counted_pixels(gt, NYU)[1]):
            shares.append(histogram(depth, NYU))
    if not shares:
        return None
    mean = torch.where(count > 0, total / count.clamp(min=1), total.sum() / count.sum())
    return mean.float(), torch.from_numpy(np.stack(shares, axis=1))
