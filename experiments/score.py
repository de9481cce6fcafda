"""Step 2 of the experiments: features x settings -> metrics. Nothing is learnt, and no image is looked at any more.

A row is the depth of every image by one rule: a `Setting` reads depth out of the features as the method does, with
other words, bins, channels or patches; `RandomDepth` ignores the image; a constant is one depth everywhere; a map is
one depth map for all images. Beside the metrics of the paper, each row of each image has what a constant cannot fake:

    silog                scale-invariant log error (calculate_error.py)
    spearman, pearson    correlation of predicted and true depth over the patches: mean depth of a patch's pixels with
                         mean counted ground truth; those of which too little is counted are left out
                         (`Protocol.measured_share`)
    spearman_pixels      rank correlation over counted pixels, of every fourth row and column
    aurg                 what certainty knows of error: area under the random gain, over the patches; 0 without sigma
    scaled_*             the paper's metrics after the prediction is multiplied by the ratio of (lower) medians

Correlations compare steps of a 65,536th of the range, on both sides, and so does the order of sigma; equal values
share their mean rank, or error; 0 where either side is constant.
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
    NYU_METRICS,
    Protocol,
    Size,
    counted_pixels,
    errors_of_maps,
    gain_over_random,
    mean_errors,
    pixel_errors,
    size_of,
    sparsification,
)
from clip.dense import read, unit
from clip.model import Trunk
from datasets import PROGRESS
from experiments.statistics import COUNTS, PRIMARY
from monoclip import MonoCLIP, Reading, logits_of, mirror_average, sigma_of, upsampled, weighted

SCALED = NYU_METRICS[1:]  # the paper's columns
EXTRA_METRICS = ("spearman", "spearman_pixels", "pearson", "aurg", "silog", *(f"scaled_{metric}" for metric in SCALED))


def metrics_of(protocol: Protocol) -> tuple[str, ...]:
    """All metrics of a row, in the order of tables and files."""
    return (*protocol.scored, *EXTRA_METRICS)


# How random depth is drawn: the paper does not say. All uniform from 0 to the protocol's largest depth, 10 m on NYU.
PIXEL, GRID, MIRRORED = "random, each pixel", "random, each patch", "random, each patch, mirror average"
RANDOM_KINDS = (PIXEL, GRID, MIRRORED)

MAPS_AT_ONCE = 16  # of an image, so that few of their pixels are in memory
CONSTANTS_AT_ONCE = 256  # of the sweep, so that histograms are read a few times only
SWEPT = 2000  # steps from 0 to the protocol's largest depth, at which constants are tried: 5 mm apart on NYU
STEPS = 2**16 + 1  # of the range, in which depths are ranked: rounding of fp32 must not order equal ones
SMALLEST_STEP = 1e-5  # [m] what is nearer than this is equal, whatever the range
EVERY = 4  # row and column of the crop, whose pixels the rank correlation over pixels takes


@dataclass(frozen=True)
class Setting:
    """A row whose depth is read out of the features."""

    name: str
    reading: Reading
    group: str = ""  # rows of one group are reported together, as minimum, median and maximum
    channels: int | None = None  # seed of a random choice of D of the C channels, in place of every second
    ordered: bool = True  # whether those channels stay in their order
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
    """What is scored: settings, random depth, constants [m] by name, and depth maps (H, W) [m] by name.

    `baselines`: setting -> the constant that it would be if its words said nothing, the mean of its own bins.
    """

    settings: tuple[Setting, ...]
    randoms: tuple[RandomDepth, ...] = ()
    constants: Mapping[str, float] = field(default_factory=dict)
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    baselines: Mapping[str, str] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        """The names of all rows: settings, random depth of patches, then what is of pixels."""
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


class Read(NamedTuple):
    """What R settings read out of an image, in the mean of it and its mirror; all on the CPU, float32."""

    depth: Tensor  # (R, h, w) [m]
    sigma: Tensor  # (R, h, w) [m]
    weights: Tensor  # (asked, K, h, w), of the words of the first settings


class Readouts:
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
            key = (r.words, r.temperature, r.logit_scale, r.readout, s.channels, s.ordered)
            self.softmaxes.setdefault(key, []).append(i)
            self.text_features(r.words)

    def text_features(self, words: tuple[tuple[str, ...], ...]) -> Tensor:
        """(D, K) of the words of a reading, on the CPU, encoded when they are first asked for."""
        if words not in self.text:
            self.text[words] = self.encode_prompts(*words).cpu()
        return self.text[words]

    def __call__(self, trunk: Trunk, name: str) -> Read:
        """What all settings read of an image's trunk, as from `FeatureStore.get`.

        The order of shuffled patches depends on the image's name.
        """
        names = dict.fromkeys(setting.reading.readout for setting in self.settings)
        by_readout = {name: read(self.model.clip_vis, trunk, name).cpu() for name in names}  # (2, D, h, w) each
        channels = unit(trunk.patches) if any(s.channels is not None for s in self.settings) else trunk.patches
        depth = trunk.patches.new_empty(len(self.settings), *trunk.patches.shape[2:])
        sigma = torch.empty_like(depth)
        weights: dict[int, Tensor] = {}
        for members in self.softmaxes.values():
            first = self.settings[members[0]]
            features = by_readout[first.reading.readout]
            if first.channels is not None:
                features = channels[:, self.chosen_channels(channels.shape[1], first)]
            views = logits_of(features, self.text[first.reading.words], first.reading).softmax(1)  # (2, K, h, w)
            bins = torch.tensor([self.settings[i].reading.bin_list for i in members])  # (M, K)
            found, mean = mirror_average(weighted(views, bins)), mirror_average(views)
            depth[members], sigma[members] = found[0], sigma_of(mean, bins, found)[0]  # (M, h, w)
            weights |= {i: mean[0] for i in members if i < self.asked}
        for i, setting in enumerate(self.settings):
            if setting.shuffle is not None:
                order = torch.from_numpy(generator(name, setting.shuffle).permutation(depth[i].numel()))
                for maps in (depth, sigma):
                    maps[i] = maps[i].flatten()[order].view_as(maps[i])
        return Read(depth, sigma, torch.stack([weights[i] for i in range(self.asked)]))

    def chosen_channels(self, channels: int, setting: Setting) -> Tensor:
        """D of the C channels, as a setting with random channels has them."""
        chosen = np.random.default_rng(setting.channels).choice(channels, self.joint, replace=False)
        return torch.from_numpy(np.sort(chosen) if setting.ordered else chosen)


def generator(name: str, seed: int) -> np.random.Generator:
    """Random numbers that depend on an image's name and a seed, whatever else is evaluated."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def random_depth(row: RandomDepth, name: str, grid: tuple[int, ...], size: Size, largest: float) -> Tensor:
    """A map of random depth for one image, from 0 to `largest` [m]: (h, w) [m]; for each pixel, `size`."""
    rng = generator(name, row.seed)

    def drawn(size: tuple[int, ...]) -> np.ndarray:
        return rng.random(size, dtype=np.float32) * np.float32(largest)

    if row.kind == PIXEL:
        return torch.from_numpy(drawn(size))
    first = drawn(grid)
    return torch.from_numpy(first if row.kind == GRID else (first + drawn(grid)) / 2)


def other_maps(rows: Rows, name: str, truth: "Truth", grid: tuple[int, ...]) -> tuple[list[Tensor], Tensor]:
    """The depth of one image by rows that are no settings: of each patch, (h, w) [m], of each pixel, (R', H, W) [m]."""
    size, largest = truth.size, truth.protocol.max_depth
    patches = [random_depth(row, name, grid, size, largest) for row in rows.randoms if row.kind != PIXEL]
    pixels = [random_depth(row, name, grid, size, largest) for row in rows.randoms if row.kind == PIXEL]
    pixels += [*rows.maps.values(), *(torch.tensor(depth).expand(size) for depth in rows.constants.values())]
    return patches, torch.stack(pixels)


class ImageScores(NamedTuple):
    """What is kept of an image."""

    errors: dict[str, np.ndarray]  # metric -> (R + R',), of `score_image`, and "aurg"
    histogram: np.ndarray  # (U,), of `histogram`
    permuted: np.ndarray  # (asked, n, 2), of `permuted_errors`
    patches: np.ndarray  # (2, P) [m], predicted by the first setting and true
    curve: np.ndarray  # (S,), of `sparsification` of the first setting; NaN if no patch is measured


@torch.inference_mode()
def score_all(
    gt: Tensor, trunk: Trunk, name: str, rows: Rows, readouts: Readouts, bins: Tensor, protocol: Protocol
) -> ImageScores:
    """Every row's metrics of one image, and what is told of its first settings besides.

    From gt, a whole frame (1, H, W) [m]; the trunk of the image and its mirror; and bins (n, K) [m], assignments of
    bins to words. Raises UnscorableError as `score_image` does.
    """
    answers = readouts(trunk, name)
    grid = tuple(answers.depth.shape[1:])
    truth = truth_of(gt, grid, protocol)
    patches, pixels = other_maps(rows, name, truth, grid)
    errors = score_image(truth, torch.cat([answers.depth, *(depth[None] for depth in patches)]), pixels, name)
    depth, sigma = (maps.flatten(1)[:, truth.patches] for maps in (answers.depth, answers.sigma))  # (R, P)
    true, predicted = (maps.float().clamp(MIN_DEPTH, protocol.max_depth) for maps in (truth.patch_depth, depth))
    uncertain = torch.from_numpy(np.stack([steps(row) for row in sigma.numpy()]))
    curves = sparsification(pixel_errors(true, predicted, ("abs_rel",))["abs_rel"], uncertain)
    aurg = np.zeros_like(errors["spearman"])
    aurg[: len(curves)] = gain_over_random(curves).nan_to_num()
    errors = {metric: aurg if metric == "aurg" else errors[metric] for metric in (*metrics_of(protocol), *COUNTS)}
    permuted = np.stack([permuted_errors(weights, bins, truth) for weights in answers.weights])
    both = np.stack([depth[0].double().numpy(), truth.patch_depth.numpy()])
    return ImageScores(errors, histogram(truth.depth, protocol), permuted, both, curves[0].numpy())


def score_images(
    depths: Callable[[int], Tensor],
    trunks: Callable[[int], Trunk],
    names: Sequence[str],
    rows: Rows,
    readouts: Readouts,
    bins: Tensor,
    protocol: Protocol,
) -> list[ImageScores]:
    """`score_all` of every image, of which `depths` and `trunks` give the ground truth and the trunk by its place.

    Raises UnscorableError: a prediction is not finite, or an image has no valid pixel; DataError: damaged depth.
    """

    def one(item: int) -> ImageScores:
        return score_all(depths(item), trunks(item), names[item], rows, readouts, bins, protocol)

    # A thread for each image at a time, in which torch computes alone: threads that share a step wait for each other
    # at the end of each of thousands, and metrics do not depend on how many there are.
    threads, count = torch.get_num_threads(), len(names)
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
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
def score_image(truth: Truth, patches: Tensor, pixels: Tensor, name: str) -> dict[str, np.ndarray]:
    """All metrics of every row for one image.

    From its ground truth; patches (R, h, w) [m], depth maps that are resized as the method's; and pixels
    (R', H, W) [m], depth maps as they are.

    Returns:
        Each of `METRICS` but aurg, `valid_pixels` and `dropped_pixels` -> (R + R',).

    Raises UnscorableError: a prediction is not finite, or no pixel counts.
    """
    places, depth, width = truth.places, truth.depth, truth.size[1]
    some = ((places // width % EVERY == 0) & (places % width % EVERY == 0)).nonzero()[:, 0]
    grid, wanted = patches.shape[1:], (*truth.protocol.scored, "silog")

    def errors(pred: Tensor) -> dict[str, Tensor]:  # (r, H, W)
        counted = pred.flatten(1).index_select(1, places)
        found = errors_of_maps(depth, counted, truth.protocol, wanted, name, SCALED)
        means = pooled(pred, grid).flatten(1).index_select(1, truth.patches)  # (r, P)
        found["spearman"], found["pearson"] = correlations(means, truth.patch_depth)
        found["spearman_pixels"], _ = correlations(counted[:, some], depth[some])
        return found

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


def correlations(pred: Tensor, truth: Tensor) -> tuple[Tensor, Tensor]:
    """Spearman's and Pearson's correlation of R predictions with the truth: (R, N), (N,) [m] -> (R,) float64 each."""
    true = steps(truth.numpy())
    true_ranks, rows = ranks(true), [steps(row) for row in pred.numpy()]
    found = [(correlation(ranks(row), true_ranks), correlation(row, true)) for row in rows]
    spearman, pearson = torch.tensor(found, dtype=torch.float64).unbind(1)
    return spearman, pearson


def steps(values: np.ndarray) -> np.ndarray:
    """Which of `STEPS` depths, evenly over their range, the values are nearest to: (N,) [m] -> (N,) int64."""
    low, high = (values.min(), values.max()) if len(values) else (0, 0)
    return np.rint((values - low) / max((high - low) / (STEPS - 1), SMALLEST_STEP)).astype(np.int64)


def ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each value, from 0; equal values share the mean of their ranks: (N,) int64 >= 0 -> (N,) float64."""
    counts = np.bincount(values)
    return (np.cumsum(counts) - (counts + 1) / 2)[values]


def correlation(a: np.ndarray, b: np.ndarray) -> float:
    """Pearson's correlation, (N,) each; 0 where either is constant."""
    if not len(a):
        return 0.0
    a, b = a - a.mean(), b - b.mean()
    norm = math.sqrt((a * a).sum() * (b * b).sum())  # not `@`, whose own threads would wait for each other here
    return float((a * b).sum() / norm) if norm > 0 else 0.0


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
    return tuple(i * protocol.max_depth / SWEPT for i in range(1, SWEPT))


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
