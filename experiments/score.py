"""Step 2 of the experiments: features x settings -> metrics. No image is looked at any more.

A row is the depth of every image by one rule. A `Setting` reads depth out of the features as the method does, with
other words, bins or channels; random depth ignores the image; a constant is one depth everywhere; `ladder.py` has the
rest. Beside the metrics of the paper, each row of each image has what a constant cannot fake:

    silog       scale-invariant log error (calculate_error.py)
    spearman    rank correlation of predicted and true depth over the measured patches: mean depth of a patch's pixels
                with the mean of its counted ones. NaN where the prediction spans less than 1 cm: its order is rounding
    ordinal     share of the pairs of measured patches whose predicted order is not the true one, of those whose true
                depths differ by more than a factor 1.25; equal is wrong. Of a map of patches, the patches' own depths
    aurg        what certainty knows of error: area under the random gain, over the patches; 0 without sigma
    scaled_*    delta1 and abs_rel after the prediction is multiplied by the ratio of (lower) medians
    aligned_*   the same after least squares a pred + b = gt over counted pixels; of a constant, b is the mean

A patch is measured if enough of it is counted: half on NYU, a fiftieth elsewhere, as lidar is sparse. Orders compare
steps of a 65,536th of the range; equal values share their mean rank, or error.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
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

# Rows of random depth, uniform up to the protocol's largest. The paper does not say how its own is drawn.
PIXEL, GRID = "random, each pixel, seed 0", "random, each patch, seed 0"
RANDOM_ROWS = (PIXEL, GRID, "random, each patch, mirror average, seed 0")

MAPS_AT_ONCE = 16  # of an image, so that few of their pixels are in memory
CONSTANTS_AT_ONCE = 256  # of the sweep, so that histograms are read a few times only
SWEPT = 2000  # constants that are tried, from 0 to the protocol's largest depth: 5 mm apart on NYU
SHARES = 20  # of the most certain predictions, at which a sparsification curve is taken


def metrics_of(protocol: Protocol) -> tuple[str, ...]:
    """All metrics of a row, in their order."""
    return (*protocol.metrics, *EXTRA_METRICS)


@dataclass(frozen=True)
class Setting:
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

    def row_of(self, reading: Reading) -> str | None:
        """Name of the row that is this reading and nothing else."""
        return next((s.name for s in self.settings if s.reading == reading and s.channels is None), None)


class PatchAnswers(NamedTuple):
    """What R settings read out of an image, in the mean of it and its mirror; float32, on the model's device."""

    depth: Tensor  # (R, h, w) [m]
    sigma: Tensor  # alike
    weights: Tensor  # (asked, K, h, w), of the words of the first settings


class SettingsReader:
    """Every setting's depth by the functions of monoclip.py; those of the same words and features share one softmax.

    `encode_prompts` gives the text features (D, K) of a reading's words. The first `asked` settings, all of K words,
    have their weights among the answers.
    """

    def __init__(
        self, model: MonoCLIP, encode_prompts: Callable[..., Tensor], settings: Sequence[Setting], asked: int = 1
    ) -> None:
        self.model, self.encode_prompts, self.settings, self.asked = model, encode_prompts, settings, asked
        self.text: dict[tuple[tuple[str, ...], ...], Tensor] = {model.reading.words: model.text_features}
        self.softmaxes: dict[tuple[object, ...], list[int]] = {}
        for i, s in enumerate(settings):
            r = s.reading
            self.softmaxes.setdefault((r.words, r.temperature, r.logit_scale, r.readout, s.channels), []).append(i)
            self.text_features(r.words)

    def text_features(self, words: tuple[tuple[str, ...], ...]) -> Tensor:
        """(D, K) of the words of a reading, encoded when they are first asked for."""
        if words not in self.text:
            self.text[words] = self.encode_prompts(*words).to(self.model.bin_list.device)
        return self.text[words]

    def __call__(self, trunk: Trunk) -> PatchAnswers:
        """What all settings read of an image's trunk, as from `FeatureStore.get`."""
        names = {setting.reading.readout for setting in self.settings}
        by_readout = {name: self.model.features(trunk, name) for name in names}  # (2, D, h, w) each
        depth = self.model.bin_list.new_empty(len(self.settings), *trunk.patches.shape[2:])
        sigma = torch.empty_like(depth)
        weights: dict[int, Tensor] = {}
        for members in self.softmaxes.values():
            first = self.settings[members[0]]
            features = by_readout[first.reading.readout]
            if first.channels is not None:
                channels = F.normalize(trunk.patches.to(features.device), dim=1)
                features = channels[:, random_channels(channels.shape[1], features.shape[1], first.channels)]
            logits = logits_of(features, self.text[first.reading.words], first.reading)  # (2, K, h, w)
            mean = mirror_average(logits.softmax(dim=1))  # (1, K, h, w)
            bins = mean.new_tensor([self.settings[i].reading.bin_list for i in members])  # (M, K)
            found = depth_of(mean, bins)
            depth[members], sigma[members] = found[0], sigma_of(mean, bins, found)[0]  # (M, h, w)
            weights |= {i: mean[0] for i in members if i < self.asked}
        return PatchAnswers(depth, sigma, torch.stack([weights[i] for i in range(self.asked)]))


def random_channels(channels: int, joint: int, seed: int) -> Tensor:
    """`joint` of the channels, in a random order: sorted ones would meet some dimensions of every second channel."""
    return torch.from_numpy(np.random.default_rng(seed).choice(channels, joint, replace=False))


def random_depth(row: str, name: str, grid: tuple[int, ...], size: tuple[int, ...], largest: float) -> Tensor:
    """A map of random depth from 0 to `largest` [m], of patches or pixels; it depends on the image's name only."""
    rng = np.random.default_rng([0, zlib.crc32(name.encode())])
    draws = rng.random((1 if row in (PIXEL, GRID) else 2, *(size if row == PIXEL else grid)), dtype=np.float32)
    return torch.from_numpy((draws * np.float32(largest)).mean(axis=0))


class Truth(NamedTuple):
    """Ground truth of an image: of the pixels, and of the P patches that are measured."""

    frame: Tensor  # (H, W) float32 [m]
    counts: Tensor  # (h, w) bool, which pixels count of what the method sees
    depth: Tensor  # (N,) float32 [m], of these
    patches: Tensor  # (P,) int64 in the flattened grid
    patch_depth: Tensor  # (P,) float64 [m], mean over a patch's counted pixels


def truth_of(frame: Tensor, grid: Sequence[int], protocol: Protocol, units_per_metre: float) -> Truth:
    """The ground truth of a frame (H, W) float32 [m], 0 = no measurement, and of the patches seen of it.

    Sums of whole units are exact for patches of 2^n pixels, so that those of equal mean depth have equal numbers.
    """
    counts = protocol.counted(frame)
    depth = frame[protocol.window(*frame.shape)]
    units = (depth.double() * units_per_metre).round() * counts
    share, units = pooled(torch.stack([counts.double(), units]), grid).flatten(1)
    patches = (share >= (0.5 if protocol is NYU else 0.02)).nonzero()[:, 0]
    return Truth(frame, counts, depth[counts].float(), patches, units[patches] / share[patches] / units_per_metre)


def pooled(maps: Tensor, grid: Sequence[int]) -> Tensor:
    """Mean of each of h x w patches: (R, H, W) -> (R, h, w). Where they do not divide H and W, borders are of both."""
    h, w = grid
    if maps.shape[1] % h or maps.shape[2] % w:  # else equal depths would pool to different fp32 sums
        maps = maps.double()
    return F.adaptive_avg_pool2d(maps, (h, w))


class ImageScores(NamedTuple):
    """What is kept of an image."""

    errors: dict[str, dict[str, float]]  # row -> metric -> value, with `COUNTS`
    histogram: np.ndarray  # (U,), of `histogram`
    permuted: np.ndarray  # (asked, n, 2), of `permuted_errors`
    patches: np.ndarray  # (2, P) [m], predicted by the first setting and true
    curve: np.ndarray  # (S,), of `sparsification` of the first setting; NaN if no patch is measured


@dataclass(frozen=True)
class Scorer:
    """Scores images by all rows."""

    rows: Rows
    reader: SettingsReader  # of the settings among the rows
    bins: Tensor  # (n, K) [m], assignments of the first reading's bins to its words, its own first
    protocol: Protocol
    data: DepthPairs
    # Further depth maps of an image by row: (item, trunk, truth) -> of patches (h, w) and of pixels (H, W) [m].
    more: Callable[..., tuple[dict[str, Tensor], dict[str, Tensor]]] = lambda *_: ({}, {})

    def truth(self, item: int, trunk: Trunk) -> Truth:
        """The ground truth of an image, on the patches of its trunk."""
        frame = self.data.depth(item)[0].to(self.reader.model.bin_list.device)
        return truth_of(frame, trunk.patches.shape[2:], self.protocol, self.data.form.units_per_metre)

    @torch.inference_mode()
    def score_image(self, item: int, trunk: Trunk) -> ImageScores:
        """Every row's metrics of one image, and what its first settings tell besides.

        Raises UnscorableError: a prediction is not finite, or no pixel counts; DataError: damaged depth.
        """
        name, truth, answers = self.data.names[item], self.truth(item, trunk), self.reader(trunk)
        size, grid, device = tuple(truth.counts.shape), tuple(trunk.patches.shape[2:]), truth.depth.device
        more, whole = self.more(item, trunk, truth)
        patches = {setting.name: depth for setting, depth in zip(self.rows.settings, answers.depth, strict=True)}
        pixels: dict[str, Tensor] = {}
        for row in self.rows.randoms:
            (pixels if row == PIXEL else patches)[row] = random_depth(row, name, grid, size, self.protocol.cap)
        patches |= more
        pixels |= whole | {row: torch.tensor(depth).expand(size) for row, depth in self.rows.constants.items()}
        found: dict[str, dict[str, float]] = {}
        for maps in (patches, pixels):
            for start in range(0, len(maps), MAPS_AT_ONCE):
                part = dict(list(maps.items())[start : start + MAPS_AT_ONCE])
                depth = torch.stack([one.to(device, torch.float32) for one in part.values()])
                values = errors_of(depth, truth, grid, self.protocol, name)
                found |= {row: {m: float(v[i]) for m, v in values.items()} for i, row in enumerate(part)}
        depth, sigma = (maps.flatten(1)[:, truth.patches].cpu() for maps in (answers.depth, answers.sigma))  # (R, P)
        true = truth.patch_depth.cpu()
        y, pred = (maps.float().clamp(MIN_DEPTH, self.protocol.cap) for maps in (true, depth))
        uncertain = torch.from_numpy(np.stack([steps(row) for row in sigma.numpy()]))
        curves = sparsification(pixel_errors(y, pred, ("abs_rel",))["abs_rel"], uncertain)
        gains = dict(zip(patches, gain_over_random(curves).tolist(), strict=False))
        order, first = (*metrics_of(self.protocol), *COUNTS), next(iter(patches))  # NaN where no patch is measured
        errors = {
            row: {m: ({"aurg": gains.get(row, 0.0 * gains[first])} | each)[m] for m in order}
            for row, each in found.items()
        }
        shares = histogram(truth.depth.cpu(), self.protocol, self.data.form.units_per_metre)
        permuted = np.stack([permuted_errors(w, self.bins, truth, self.protocol.cap) for w in answers.weights])
        return ImageScores(errors, shares, permuted, torch.stack([depth[0].double(), true]).numpy(), curves[0].numpy())

    def score_images(self, trunk_of: Callable[[int], Trunk]) -> list[ImageScores]:
        """`score_image` of every image, whose trunk `trunk_of` gives by its place. Raises as that."""
        count = len(self.data)
        # A thread for each image at a time, in which torch computes alone: threads that share a step wait for each
        # other at the end of each of thousands, and metrics do not depend on how many there are.
        with ThreadPoolExecutor(torch.get_num_threads(), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            try:
                done = pool.map(lambda item: self.score_image(item, trunk_of(item)), range(count))
                return list(tqdm(done, "score", count, unit=" images", bar_format=PROGRESS))
            except BaseException:
                pool.shutdown(cancel_futures=True)
                raise


def errors_of(depth: Tensor, truth: Truth, grid: Sequence[int], protocol: Protocol, name: str) -> dict[str, Tensor]:
    """Metrics but aurg, (R,) each, of maps of patches, (R, h, w) [m], or pixels, (R, H, W). Raises UnscorableError."""
    of_patches = depth.shape[1:] == tuple(grid)
    pred = upsampled(depth[None], truth.counts.shape)[0] if of_patches else depth

    def errors(gt: Tensor, pred: Tensor, cap: float, metrics: Sequence[str]) -> dict[str, Tensor]:
        found = mean_errors(gt, pred, cap, (*metrics, "silog"))
        for how, fit in (("scaled", "median"), ("aligned", "scale_shift")):
            scale, shift = alignment(gt, pred, fit)
            other = mean_errors(gt, scale[:, None] * pred + shift[:, None], cap, ALIGNED)
            found |= {f"{how}_{metric}": value for metric, value in other.items()}
        return found

    found = image_errors(truth.frame, pred, protocol, name, errors)
    means = pooled(pred, grid).flatten(1)[:, truth.patches].cpu()  # (R, P)
    own, true = depth.flatten(1)[:, truth.patches].cpu() if of_patches else means, truth.patch_depth.cpu()
    return found | {"spearman": rank_correlations(means, true), "ordinal": ordinal_errors(own, true)}


def permuted_errors(weights: Tensor, bins: Tensor, truth: Truth, cap: float) -> np.ndarray:
    """`PRIMARY` over patches of n assignments of bins (n, K) [m] to words of weights (K, h, w): (n, 2); NaN of none."""
    if not len(truth.patches):
        return np.full((len(bins), len(PRIMARY)), np.nan)
    depth = bins.to(weights.device) @ weights.flatten(1)[:, truth.patches]  # (n, P)
    found = mean_errors(truth.patch_depth.float(), depth, cap, PRIMARY)
    return np.stack([found[metric].cpu().numpy() for metric in PRIMARY], axis=1)


def mean_permuted(images: Sequence[ImageScores], place: int = 0) -> np.ndarray | None:
    """Mean over images with a measured patch of `permuted` of the setting at `place`, (n, 2); None if n is 1."""
    found = [image.permuted[place] for image in images if np.isfinite(image.permuted[place]).all()]
    return np.mean(found, axis=0) if found and len(found[0]) > 1 else None


# ---- certainty and order


def sparsification(errors: Tensor, uncertainty: Tensor) -> Tensor:
    """Mean error of the most certain 1 / S, 2 / S, ... 1: (R, N), (R, N) -> (R, S); NaN where N = 0."""
    rows, n = [], errors.shape[1]
    ends = [-(-n * i // SHARES) for i in range(1, SHARES + 1)]  # rounded up
    for error, sigma in zip(errors.double().numpy(), uncertainty.numpy(), strict=True):
        _, place, count = np.unique(sigma, return_inverse=True, return_counts=True)
        sums = np.cumsum(np.repeat(np.bincount(place, error) / count, count)) if n else np.full(1, np.nan)
        rows.append([sums[end - 1] / max(end, 1) for end in ends])
    return torch.tensor(rows, dtype=torch.float64).view(len(rows), SHARES)


def gain_over_random(curves: Tensor) -> Tensor:
    """Area under the random gain (Poggi et al., CVPR 2020) of curves: (..., S) -> (...); positive if it knows."""
    return (curves[..., -1] - curves.mean(dim=-1)).round(decimals=12) + 0.0  # flat ones are 0, and not -0


def rank_correlations(pred: Tensor, truth: Tensor) -> Tensor:
    """Spearman's correlation: (R, N), (N,) [m] -> (R,) float64; NaN of what spans less than 1 cm or constant truth."""
    true, found = ranks(steps(truth.numpy())), []
    for row in pred.numpy():
        own = ranks(steps(row))
        norm = math.sqrt((own * own).sum() * (true * true).sum())  # not `@`, whose threads would wait for each other
        ordered = norm > 0 and np.ptp(row) >= 0.01
        found.append(float((own * true).sum() / norm) if ordered else math.nan)
    return torch.tensor(found, dtype=torch.float64)


def ordinal_errors(pred: Tensor, truth: Tensor) -> Tensor:
    """Share of the pairs whose order is wrong: (R, N), (N,) [m] -> (R,) float64; NaN if no pair is apart."""
    nearer, farther = (truth[:, None] * 1.25 < truth).nonzero().T  # (pairs,)
    order = torch.from_numpy(np.stack([steps(row) for row in pred.numpy()]))
    return (order[:, nearer] >= order[:, farther]).double().mean(dim=1)


def steps(values: np.ndarray) -> np.ndarray:
    """Which 65,536th of their range the values are nearest to: (N,) [m] -> (N,) int64; steps of 10 um at least."""
    low, high = (values.min(), values.max()) if len(values) else (0, 0)
    return np.rint((values - low) / max((high - low) / 2**16, 1e-5)).astype(np.int64)


def ranks(values: np.ndarray) -> np.ndarray:
    """Rank of each value less the mean rank; equal values share theirs: (N,) int64 >= 0 -> (N,) float64."""
    counts = np.bincount(values)
    return (np.cumsum(counts) - (counts + len(values)) / 2)[values]


# ---- constants


def depths_of(protocol: Protocol, units_per_metre: float) -> Tensor:
    """All depths [m] that counted ground truth can have, from 0 up, in units of the 16-bit depth maps."""
    count = min(math.ceil(protocol.cap * units_per_metre), 2**16)
    return torch.arange(count, dtype=torch.float32) / units_per_metre


def histogram(depth: Tensor, protocol: Protocol, units_per_metre: float) -> np.ndarray:
    """The share of each of the U `depths_of` among an image's counted pixels: (N,) [m] -> (U,) float32."""
    count = len(depths_of(protocol, units_per_metre))
    units = (depth * units_per_metre).round().long().clamp(max=count - 1)
    return (torch.bincount(units, minlength=count) / len(depth)).float().numpy()


def sweep_of(protocol: Protocol) -> tuple[float, ...]:
    """The constants [m] that are tried; no ratio of 5 k + 1.1 mm to whole millimetres is 1.25, 1.25^2 or 1.25^3."""
    return tuple(depth for k in range(SWEPT) if (depth := k * protocol.cap / SWEPT + 0.0011) < protocol.cap)


def swept_constants(shares: Tensor, protocol: Protocol, units_per_metre: float) -> dict[str, np.ndarray]:
    """Metrics of the S constants of `sweep_of` on each of I images, by histograms (U, I): metric -> (S, I) float64."""
    gt = depths_of(protocol, units_per_metre)
    parts = [
        mean_errors(gt, part[:, None], protocol.cap, protocol.metrics, shares)
        for part in torch.tensor(sweep_of(protocol)).split(CONSTANTS_AT_ONCE)
    ]
    return {metric: torch.cat([part[metric] for part in parts]).numpy() for metric in protocol.metrics}
