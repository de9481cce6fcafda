"""Step 2 of the experiments: features x settings -> metrics. No image is looked at any more.

A row is the depth of every image by one rule. Beside the metrics of the paper, it has what a constant cannot fake:

    silog       scale-invariant log error (calculate_error.py)
    spearman    rank correlation over the measured patches, of the mean depth of a patch's pixels with that of its
                counted ones. NaN where the prediction spans less than 1 cm: its order is rounding
    ordinal     share of pairs of measured patches in the wrong order, or equal, of those whose true depths differ by
                more than a factor 1.25. Of a map of patches, by the patches' own depths
    aurg        what certainty knows of error: area under the random gain, over the patches; 0 without sigma
    scaled_*    delta1 and abs_rel after the prediction is multiplied by the ratio of (lower) medians
    aligned_*   the same after least squares a pred + b = gt over counted pixels; of a constant, b is the mean

A patch is measured if half of it is counted, or a fiftieth outside NYU, as lidar is sparse. Ties: docs/statistics.md.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from calculate_error import MIN_DEPTH, NYU, Protocol, image_errors, mean_errors, pixel_errors
from clip.model import Trunk
from datasets import PROGRESS
from datasets.alignment import alignment
from datasets.pairs import DepthPairs
from experiments.statistics import COUNTS, PRIMARY
from monoclip import MonoCLIP, Reading, depth_of, logits_of, mirror_average, upsampled
from viewer.colour import sigma_of

ALIGNED = ("delta1", "abs_rel")  # metrics that rows have after scaling and aligning, too
EXTRA_METRICS = ("spearman", "ordinal", "aurg", "silog", *(f"{h}_{m}" for h in ("scaled", "aligned") for m in ALIGNED))

# Random depth, uniform up to the protocol's largest. The paper does not say how its own is drawn.
PIXEL, GRID = "random, each pixel, seed 0", "random, each patch, seed 0"
RANDOM_ROWS = (PIXEL, GRID, "random, each patch, mirror average, seed 0")

SWEPT = 2000  # constants that are tried, from 0 to the protocol's largest depth: 5 mm apart on NYU
SHARES = 20  # of the most certain predictions, at which a sparsification curve is taken


def metrics_of(protocol: Protocol) -> tuple[str, ...]:
    """All metrics of a row, in their order."""
    return (*protocol.metrics, *EXTRA_METRICS)


class Setting(NamedTuple):
    """A row whose depth is read out of the features."""

    name: str
    reading: Reading
    channels: int | None = None  # seed of a random choice of D of the C channels, in place of every second


@dataclass(frozen=True)
class Rows:
    """What is scored."""

    settings: tuple[Setting, ...]
    randoms: tuple[str, ...] = ()  # `RANDOM_ROWS`
    constants: Mapping[str, float] = field(default_factory=dict)  # [m], by name
    baselines: Mapping[str, str] = field(default_factory=dict)  # setting -> the constant that is the mean of its bins
    groups: Mapping[str, Sequence[Setting]] = field(default_factory=dict)  # question -> those that are controls

    def row_of(self, reading: Reading) -> str | None:
        """Name of the row that is this reading and nothing else."""
        return next((s.name for s in self.settings if s.reading == reading and s.channels is None), None)


class SettingsReader:
    """Every setting's depth; those of the same words and features share one softmax.

    `encode_prompts` gives the text features (D, K) of words. The weights of the first `asked` settings are answers.
    """

    def __init__(
        self, model: MonoCLIP, encode_prompts: Callable[..., Tensor], settings: Sequence[Setting], asked: int = 1
    ) -> None:
        self.model, self.settings, self.asked = model, settings, asked
        self.text_features = cache(lambda words: encode_prompts(*words).to(model.bin_list.device))  # (D, K)
        for setting in settings:
            self.text_features(setting.reading.words)

    def __call__(self, trunk: Trunk) -> tuple[Tensor, Tensor, Sequence[Tensor]]:
        """Depth and sigma (R, h, w) [m], and weights of the words (K, h, w) of the first settings, of an image."""
        features_by = cache(lambda readout: self.model.features(trunk, readout).contiguous())  # (2, D, h, w)
        every = cache(lambda: F.normalize(trunk.patches.to(self.model.bin_list.device), dim=1))  # (2, C, h, w)
        softmaxes, answers = dict[tuple[object, ...], Tensor](), []
        for _, r, seed in self.settings:
            same = (r.words, r.temperature, r.logit_scale, r.readout, seed)
            if same not in softmaxes:
                features = features_by(r.readout)
                if seed is not None:  # in a random order: sorted ones would meet some of every second
                    chosen = np.random.default_rng(seed).choice(every().shape[1], features.shape[1], replace=False)
                    features = every()[:, chosen]
                logits = logits_of(features, self.text_features(r.words), r)  # (2, K, h, w)
                softmaxes[same] = mirror_average(logits.softmax(dim=1))  # (1, K, h, w)
            weights = softmaxes[same]
            depth = depth_of(weights, bins := weights.new_tensor([r.bin_list]))  # (1, 1, h, w)
            answers.append((depth[0, 0], sigma_of(weights, bins, depth)[0, 0], weights[0]))
        depths, sigmas, asked = zip(*answers, strict=True)
        return torch.stack(depths), torch.stack(sigmas), asked[: self.asked]


def random_depth(row: str, name: str, size: Sequence[int], largest: float) -> Tensor:
    """A map of random depth from 0 to `largest` [m], of patches or pixels; it depends on the image's name only."""
    rng = np.random.default_rng([0, zlib.crc32(name.encode())])
    draws = rng.random((1 if row in (PIXEL, GRID) else 2, *size), dtype=np.float32)
    return torch.from_numpy((draws * np.float32(largest)).mean(axis=0))


class Truth(NamedTuple):
    """Ground truth of an image: of the pixels, and of the P patches that are measured."""

    frame: Tensor  # (H, W) float32 [m]
    counts: Tensor  # (h, w) bool, which pixels count of what the method sees
    depth: Tensor  # (N,) float32 [m], of these
    patches: Tensor  # (P,) int64 in the flattened grid
    patch_depth: Tensor  # (P,) float64 [m], mean over a patch's counted pixels


def truth_of(frame: Tensor, grid: Sequence[int], protocol: Protocol, units_per_metre: float) -> Truth:
    """The ground truth of a frame (H, W) float32 [m], 0 = no measurement, and of the patches seen of it."""
    counts, depth = protocol.counted(frame), frame[protocol.window(*frame.shape)]
    units = (depth.double() * units_per_metre).round() * counts  # sums of whole ones are exact: equal means are equal
    share, units = pooled(torch.stack([counts.double(), units]), grid).flatten(1)
    patches = (share >= (0.5 if protocol is NYU else 0.02)).nonzero()[:, 0]
    pixels = depth.flatten().index_select(0, counts.flatten().nonzero()[:, 0])  # half the time of depth[counts]
    return Truth(frame, counts, pixels, patches, units[patches] / share[patches] / units_per_metre)


def pooled(maps: Tensor, grid: Sequence[int]) -> Tensor:
    """Mean of each of h x w patches: (R, H, W) -> (R, h, w). Where they do not divide H and W, borders are of both."""
    if maps.shape[1] % grid[0] or maps.shape[2] % grid[1]:  # equal depths would pool to different fp32 sums
        maps = maps.double()
    return F.adaptive_avg_pool2d(maps, (grid[0], grid[1]))


class ImageScores(NamedTuple):
    """What is kept of an image: its metrics and, of the first settings, what else is reported."""

    errors: dict[str, dict[str, float]]  # row -> metric -> value, with `COUNTS`
    histogram: np.ndarray  # (U,), of `histogram`
    permuted: np.ndarray  # (asked, n, 2), of `permuted_errors`
    patches: np.ndarray  # (2, P) [m], predicted and true
    curve: np.ndarray  # (S,), of `sparsification`; NaN if no patch is measured


@dataclass(frozen=True)
class Scorer:
    """All rows of an image, and of all images."""

    rows: Rows
    reader: SettingsReader  # of the settings among the rows
    bins: Tensor  # (n, K) [m], assignments of the first reading's bins to its words, its own first
    protocol: Protocol
    data: DepthPairs
    # Further depth maps of an image by row: (item, trunk, truth) -> row -> (h, w) of patches or (H, W) of pixels [m].
    more: Callable[[int, Trunk, Truth], dict[str, Tensor]] = lambda *_: {}

    def truth(self, item: int, trunk: Trunk) -> Truth:
        """The ground truth of an image, on the patches of its trunk."""
        frame = self.data.depth(item)[0].to(self.reader.model.bin_list.device)
        return truth_of(frame, trunk.patches.shape[2:], self.protocol, self.data.form.units_per_metre)

    @torch.inference_mode()
    def score_image(self, item: int, trunk: Trunk) -> ImageScores:
        """Score an image. Raises UnscorableError: a prediction is not finite, or no pixel counts; DataError: damage."""
        truth, (depths, sigmas, weights) = self.truth(item, trunk), self.reader(trunk)
        name, cap, grid = self.data.names[item], self.protocol.cap, trunk.patches.shape[2:]
        depth, sigma = (maps.flatten(1)[:, truth.patches].cpu() for maps in (depths, sigmas))  # (R, P)
        true = truth.patch_depth.cpu()
        y, pred = (maps.float().clamp(MIN_DEPTH, cap) for maps in (true, depth))
        curves = sparsification(pixel_errors(y, pred, ("abs_rel",))["abs_rel"], sigma)
        names = [setting.name for setting in self.rows.settings]
        gains = dict(zip(names, gain_over_random(curves).tolist(), strict=True))

        maps = dict(zip(names, depths, strict=True))
        for row in self.rows.randoms:
            maps[row] = random_depth(row, name, truth.counts.shape if row == PIXEL else grid, cap)
        maps |= self.more(item, trunk, truth)
        maps |= {row: torch.tensor(constant) for row, constant in self.rows.constants.items()}
        errors, order = dict[str, dict[str, float]](), (*metrics_of(self.protocol), *COUNTS)
        for size in dict.fromkeys(own.shape for own in maps.values()):  # of patches, of pixels, or one depth
            some = {row: own.to(truth.depth) for row, own in maps.items() if own.shape == size}
            found = errors_of(torch.stack(list(some.values())), truth, grid, self.protocol, name)
            columns = {metric: values.tolist() for metric, values in found.items()}
            columns["aurg"] = [gains.get(row, 0 * gains[names[0]]) for row in some]  # NaN where no patch is measured
            errors |= {row: {metric: columns[metric][i] for metric in order} for i, row in enumerate(some)}
        shares = histogram(truth.depth.cpu(), self.protocol, self.data.form.units_per_metre)
        permuted = np.stack([permuted_errors(each, self.bins, truth, cap) for each in weights])
        return ImageScores(errors, shares, permuted, torch.stack([depth[0].double(), true]).numpy(), curves[0].numpy())

    def score_images(self, trunk_of: Callable[[int], Trunk]) -> list[ImageScores]:
        """`score_image` of every image, whose trunk `trunk_of` gives by its place."""
        count = len(self.data)
        # Each thread has an image, in which torch computes alone: threads that shared thousands of short steps would
        # wait for each other at the end of each.
        with ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                done = pool.map(lambda item: self.score_image(item, trunk_of(item)), range(count))
                return list(tqdm(done, "score", count, unit=" images", bar_format=PROGRESS))
            finally:
                pool.shutdown(cancel_futures=True)  # an error or Ctrl-C does not wait for the other images


def errors_of(depth: Tensor, truth: Truth, grid: Sequence[int], protocol: Protocol, name: str) -> dict[str, Tensor]:
    """Metrics but aurg, (R,) each, of depth [m] of patches (R, h, w), of pixels (R, H, W), or everywhere (R,)."""
    if depth.ndim == 1:
        found = errors_of_pixels(truth.depth, depth[:, None], protocol.cap, protocol.metrics)
        found |= {"valid_pixels": torch.full_like(depth, len(truth.depth)), "dropped_pixels": torch.zeros_like(depth)}
        means = own = depth[:, None].expand(-1, len(truth.patches))
    else:
        of_patches = depth.shape[1:] == tuple(grid)
        pred = upsampled(depth[None], truth.counts.shape)[0] if of_patches else depth
        found = image_errors(truth.frame, pred, protocol, name, errors_of_pixels)
        means = pooled(pred, grid).flatten(1)[:, truth.patches]  # (R, P)
        own = depth.flatten(1)[:, truth.patches] if of_patches else means
    true = truth.patch_depth.cpu()
    return found | {"spearman": rank_correlations(means.cpu(), true), "ordinal": ordinal_errors(own.cpu(), true)}


def errors_of_pixels(gt: Tensor, pred: Tensor, cap: float, metrics: Sequence[str]) -> dict[str, Tensor]:
    """Metrics of R maps, (R,) each, as they are, scaled and aligned: gt (N,), pred (R, N) or, constants, (R, 1) [m]."""
    found = mean_errors(gt, pred, cap, (*metrics, "silog"))
    rows = pred if pred.shape[1] > 1 else pred[:1]  # constants are all the same when they are aligned
    for how, fit in (("scaled", "median"), ("aligned", "scale_shift")):
        scale, shift = alignment(gt, rows, fit)
        other = mean_errors(gt, scale[:, None] * rows + shift[:, None], cap, ALIGNED)
        found |= {f"{how}_{metric}": value.expand(len(pred)) for metric, value in other.items()}
    return found


def permuted_errors(weights: Tensor, bins: Tensor, truth: Truth, cap: float) -> np.ndarray:
    """`PRIMARY` over patches of n assignments of bins (n, K) [m] to words of weights (K, h, w): (n, 2); NaN of none."""
    if not len(truth.patches):
        return np.full((len(bins), len(PRIMARY)), np.nan)
    depth = bins.to(weights.device) @ weights.flatten(1)[:, truth.patches]  # (n, P)
    found = mean_errors(truth.patch_depth.float(), depth, cap, PRIMARY)
    return torch.stack(list(found.values()), dim=1).cpu().numpy()


def mean_permuted(images: Sequence[ImageScores], place: int = 0) -> np.ndarray | None:
    """Mean over images with a measured patch of `permuted` of the setting at `place`, (n, 2); None if n is 1."""
    found = [image.permuted[place] for image in images if np.isfinite(image.permuted[place]).all()]
    return np.mean(found, axis=0) if found and len(found[0]) > 1 else None


# ---- certainty and order


def steps(values: Tensor) -> Tensor:
    """Which 65,536th of its row's range each value is nearest to: (R, N) [m] -> (R, N) int64; of 10 um at least."""
    if not values.numel():
        return values.long()
    low, high = values.amin(1, keepdim=True), values.amax(1, keepdim=True)
    return ((values - low) / ((high - low) / 2**16).clamp(min=1e-5)).round().long()


def places(values: Tensor) -> tuple[Tensor, Tensor]:
    """How many of its row are less than each value, and how many are not greater: (R, N) [m] -> (R, N) float64 each."""
    order = steps(values)
    ordered = order.sort(dim=1).values
    return torch.searchsorted(ordered, order).double(), torch.searchsorted(ordered, order, right=True).double()


def sparsification(errors: Tensor, uncertainty: Tensor) -> Tensor:
    """Mean error of the most certain 1 / S, 2 / S, ... 1: (R, N), (R, N) -> (R, S) float64; NaN where N = 0."""
    less, upto = (place[:, None] for place in places(uncertainty))  # (R, 1, N)
    first = (errors.shape[1] * torch.arange(1, SHARES + 1) / SHARES).ceil()[:, None]  # (S, 1), how many
    among = ((first - less) / (upto - less)).clamp(0, 1)  # (R, S, N), the equally certain alike
    return (among * errors.double()[:, None]).sum(dim=2) / first[:, 0]


def gain_over_random(curves: Tensor) -> Tensor:
    """Area under the random gain (Poggi et al., CVPR 2020) of curves: (..., S) -> (...); positive if it knows."""
    return (curves[..., -1] - curves.mean(dim=-1)).round(decimals=12) + 0.0  # flat ones are 0, and not -0


def rank_correlations(pred: Tensor, truth: Tensor) -> Tensor:
    """Spearman's correlation: (R, N), (N,) [m] -> (R,) float64; NaN of what spans less than 1 cm or constant truth."""
    own, true = (torch.stack(places(values)).sum(dim=0) - len(truth) for values in (pred, truth[None]))  # 2 ranks
    found = (own * true).sum(dim=1) / (own.square().sum(dim=1) * true.square().sum(dim=1)).sqrt()
    return found.masked_fill(pred.amax(1) - pred.amin(1) < 0.01, math.nan) if len(truth) else found


def ordinal_errors(pred: Tensor, truth: Tensor) -> Tensor:
    """Share of the pairs whose order is wrong: (R, N), (N,) [m] -> (R,) float64; NaN if no pair is apart."""
    nearer, farther = (truth[:, None] * 1.25 < truth).nonzero().T  # (pairs,)
    order = steps(pred)
    return (order[:, nearer] >= order[:, farther]).double().mean(dim=1)


# ---- constants


def histogram(depth: Tensor, protocol: Protocol, units_per_metre: float) -> np.ndarray:
    """Shares of 0, 1, ... units of the 16-bit depth maps among an image's counted pixels: (N,) [m] -> (U,) float32."""
    count = min(math.ceil(protocol.cap * units_per_metre), 2**16)
    units = (depth * units_per_metre).round().long().clamp(max=count - 1)
    return (torch.bincount(units, minlength=count) / len(depth)).float().numpy()


def swept_constants(shares: Tensor, protocol: Protocol, units_per_metre: float) -> dict[str, np.ndarray]:
    """Metrics of the S constants that are tried on each of I images, by histograms (U, I): metric -> (S, I) float64."""
    gt = torch.arange(len(shares)).float() / units_per_metre  # (U,)
    # On NYU 5 k + 1.1 mm, whose ratio to whole millimetres is never 1.25, 1.25^2 or 1.25^3.
    constants = (torch.arange(SWEPT).double() * protocol.cap / SWEPT + 0.0011).float()[:, None]  # (S, 1)
    parts = [mean_errors(gt, c, protocol.cap, protocol.metrics, shares) for c in constants.split(256)]
    return {metric: torch.cat([part[metric] for part in parts]).numpy() for metric in protocol.metrics}
