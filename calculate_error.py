"""The metrics of monocular depth estimation, with the masks and crops of the release, for NYU Depth V2 and KITTI.

Over the counted pixels of an image, gt and pred in metres and clamped to [1e-3, cap]:

    delta_i  = share with max(gt / pred, pred / gt) < 1.25 ** i, i = 1, 2, 3       (the release's a1, a2, a3)
    abs_rel  = mean |gt - pred| / gt             log10    = mean |log10 gt - log10 pred|
    sq_rel   = mean (gt - pred)^2 / gt           rmse     = sqrt mean (gt - pred)^2
    abs_diff = mean |gt - pred|                  rmse_log = sqrt mean (ln gt - ln pred)^2
    silog    = sqrt(mean s^2 - (mean s)^2), s = ln pred - ln gt: scale-invariant log error (Eigen et al., 2014)

`pixel_errors` holds these formulas, and `mean_errors` averages them for any number of maps of one image: everything
that scores depth, here and in `experiments`, calls it. Every image has the same weight. A prediction that is not finite
is an error, and so is an image without a counted pixel: neither falls out of a mean unseen.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

MIN_DEPTH = 1e-3  # [m] gt and pred at or below it do not count; both are clamped to it
NYU_METRICS = ("abs_diff", "delta1", "delta2", "delta3", "abs_rel", "log10", "rmse")  # in the released line's order
KITTI_METRICS = ("abs_diff", "abs_rel", "sq_rel", "delta1", "delta2", "delta3", "rmse", "rmse_log")
HIGHER_IS_BETTER = frozenset({"delta1", "delta2", "delta3"})
Size = tuple[int, int]  # (H, W) [px]
Crop = tuple[slice, slice]  # rows, columns
Region = Callable[[int, int], Crop]  # the part of a map of H x W


def whole(height: int, width: int) -> Crop:
    """All rows and columns."""
    return slice(0, height), slice(0, width)


def garg(height: int, width: int) -> Crop:
    """The counted region of Garg et al., ECCV 2016: shares of the height and of the width."""
    rows, columns = (0.40810811, 0.99189189), (0.03594771, 0.96405229)
    return slice(*(int(share * height) for share in rows)), slice(*(int(share * width) for share in columns))


def bottom_middle(height: int, width: int) -> Region:
    """The crop of this size at the bottom of a frame, in the middle of its width."""
    return lambda h, w: (slice(h - height, h), slice((w - width) // 2, (w - width) // 2 + width))


@dataclass(frozen=True)
class Protocol:
    """How a data set is evaluated, as data. Every row of results names it.

    A pixel counts if `MIN_DEPTH` < gt < `max_depth` and it lies in `region`; gt and pred are clamped to that range.
    """

    name: str
    about: str  # the same in a sentence
    data_set: str  # whose published metrics stand beside
    metrics: tuple[str, ...]  # in the order of the release's line
    max_depth: float  # [m]
    units_per_metre: float  # of the 16-bit depth PNGs, in which 0 is no measurement
    whole_split: str  # what is said of metrics over other images than those of published ones
    pictures: tuple[str, ...] = ("JPEG", "PNG")  # formats that pictures may have
    frames: tuple[Size, ...] = ()  # sizes that frames have; any, if there is none
    window: Region = whole  # of the frame, what the method sees
    region: Region = whole  # what counts: of the frame, or of the window
    region_of_window: bool = False
    draws_all: bool = True  # whether drawings span the whole range, however little of it the bins use
    measured_share: float = 0.02  # of a patch's pixels, at least, for it to count in correlations: lidar is sparse
    largest_sane: float = math.inf  # [m] a larger depth is another unit or a damaged file
    # Official quirk, of NYU: pixels whose prediction is at most 1 mm do not count; the usual thing is to clamp them.
    drops_tiny: bool = False

    @property
    def scored(self) -> tuple[str, ...]:
        """All metrics that are computed: the release's, and what the paper's tables have besides."""
        return tuple(dict.fromkeys((*self.metrics, "log10")))

    @property
    def seen(self) -> Size | None:
        """(H, W) of what the method sees, if it is the same for all frames."""
        return size_of(self.window(*self.frames[0])) if self.frames else None

    @property
    def label(self) -> str:
        """What a row names it by: its name, or nothing where its data set has no other."""
        return "" if self.name == self.data_set else self.name

    @property
    def drawn(self) -> tuple[float, float] | None:
        """The ends [m] of colours and of axes of depth; those of what is drawn, if None."""
        return (0.0, self.max_depth) if self.draws_all else None

    def counted_region(self, height: int, width: int) -> Crop:
        """What counts of a frame, in the frame's rows and columns."""
        if not self.region_of_window:
            return self.region(height, width)
        window = self.window(height, width)
        inside = self.region(*size_of(window))
        return tuple(slice(a.start + b.start, a.start + b.stop) for a, b in zip(window, inside, strict=True))  # type: ignore[return-value]


NYU = Protocol(
    "NYU",
    "NYU Depth V2 as the release evaluates it: 416 x 544 crop, mirror average, 1e-3 < gt < 10 m, mean over images",
    "NYU",
    NYU_METRICS,
    max_depth=10.0,  # range of the Kinect
    units_per_metre=1000,
    whole_split="the paper's metrics are over the official test split: they do not compare with these",
    pictures=("JPEG",),
    frames=((480, 640),),
    window=lambda height, width: (slice(56, 472), slice(60, 604)),  # 416 x 544
    # Official quirk: columns 46:601 where others have Eigen's 41:601. Predictions start at column 60: nothing changes.
    region=lambda height, width: (slice(45, 471), slice(46, 601)),
    measured_share=0.5,
    largest_sane=65.0,
    drops_tiny=True,
    draws_all=False,  # of 10 m, the paper's bins use 1 to 3
)
# The Eigen test split: the benchmark's crop of 352 x 1216 is seen. BTS counts Garg's region of the frame.
KITTI_BTS = Protocol(
    "KITTI, BTS",
    "KITTI as BTS evaluates it: 352 x 1216 crop seen, Garg's region of the frame, 1e-3 < gt < 80 m, mean over images",
    "KITTI",
    KITTI_METRICS,
    max_depth=80.0,
    units_per_metre=256,
    whole_split="published metrics are over the whole Eigen test split: they do not compare with these",
    frames=((370, 1224), (370, 1226), (374, 1238), (375, 1242), (376, 1241)),
    window=bottom_middle(352, 1216),
    region=garg,
)
# AdaBins crops the ground truth as the picture first, and counts Garg's region of that.
KITTI_ADABINS = replace(
    KITTI_BTS,
    name="KITTI, AdaBins",
    about="KITTI as AdaBins evaluates it: Garg's region of the 352 x 1216 crop, 1e-3 < gt < 80 m, mean over images",
    region_of_window=True,
)

(NYU_FRAME,) = NYU.frames
NYU_CROP = NYU.window(*NYU_FRAME)

AT_ONCE = 2**17  # values of a block of maps and pixels, which a core's cache holds


class UnscorableError(ValueError):
    """An image has no metrics: its prediction is not finite, or none of its pixels counts. The message names it."""


def pixel_errors(gt: Tensor, pred: Tensor, metrics: Sequence[str]) -> dict[str, Tensor]:
    """What each metric averages, for every pixel: gt and pred > 0 [m], shapes that broadcast -> metric: that shape.

    `silog` is s itself, and of `rmse` and `rmse_log` the root is still to be taken: see `mean_errors`.
    """
    error, ratio = (pred - gt).abs_(), pred / gt
    largest = torch.maximum(ratio, gt / pred)
    log = ratio.log_() if {"log10", "rmse_log", "silog"}.intersection(metrics) else ratio  # the slowest step

    def delta(i: int) -> Tensor:
        return torch.lt(largest, 1.25**i, out=torch.empty_like(largest))  # 0.0 and 1.0: booleans are summed slower

    formulas: dict[str, Callable[[], Tensor]] = {
        "abs_diff": lambda: error,
        "delta1": lambda: delta(1),
        "delta2": lambda: delta(2),
        "delta3": lambda: delta(3),
        "abs_rel": lambda: error / gt,
        "sq_rel": lambda: error.square() / gt,
        "log10": lambda: log.abs() / math.log(10),
        "rmse": lambda: error.square(),
        "rmse_log": lambda: log.square(),
        "silog": lambda: log,
    }
    return {metric: formulas[metric]() for metric in metrics}


def mean_errors(
    gt: Tensor, pred: Tensor, cap: float, metrics: Sequence[str], weights: Tensor | None = None
) -> dict[str, Tensor]:
    """Metrics of R maps against one ground truth: the kernel of every evaluation.

    Args:
        gt: (N,) float32 [m], of counted pixels, N > 0.
        pred: (R, N) float32 [m], or (R, 1) for constants.
        cap: largest depth [m], to which both are clamped.
        metrics: of those above, which.
        weights: (N, I) float32, how much each depth counts in each of I images, for ground truth that is a list of
            possible depths and not one of pixels; the columns sum to 1.

    Returns:
        Metric -> (R,) float64; (R, I) with `weights`.
    """
    averaged = (*metrics, *(("rmse_log",) if "silog" in metrics and "rmse_log" not in metrics else ()))
    step = max(1, AT_ONCE // len(pred))
    sums: dict[str, Any] = dict.fromkeys(averaged, 0)
    for start in range(0, len(gt), step):
        pixels = slice(start, start + step)
        true = gt[pixels].clamp(MIN_DEPTH, cap)  # (step,)
        predicted = (pred[:, pixels] if pred.shape[1] > 1 else pred).clamp(MIN_DEPTH, cap)  # (R, step)
        errors = pixel_errors(true, predicted, averaged)  # (R, step) each
        for metric, error in errors.items():
            sums[metric] += (error.sum(1) if weights is None else error @ weights[pixels]).double()
    means = {metric: total / (len(gt) if weights is None else 1) for metric, total in sums.items()}
    if "silog" in metrics:
        means["silog"] = (means["rmse_log"] - means["silog"].square()).clamp(min=0).sqrt()
    return {metric: means[metric].sqrt() if metric in ("rmse", "rmse_log") else means[metric] for metric in metrics}


def counted_pixels(gt: Tensor, protocol: Protocol, crop: bool = True) -> tuple[Tensor, Tensor]:
    """The pixels of ground truth that count whatever is predicted: by range and, with `crop`, by the protocol's region.

    NYU's region is rows 45:471, columns 46:601; as the prediction covers rows 56:472, columns 60:604, in effect 56:471
    and 60:601. From a whole frame gt (1, H, W) [m], 0 = no measurement.

    Returns:
        places (N,) int64 in the flattened window of the method; depth (N,) float32 [m].
    """
    size = gt.shape[1:]
    region = torch.full(size, not crop, device=gt.device)
    region[protocol.counted_region(*size)] = True
    counts = (gt[0] > MIN_DEPTH) & (gt[0] < protocol.max_depth) & region  # (H, W)
    window = protocol.window(*size)
    places = counts[window].flatten().nonzero()[:, 0]
    return places, gt[0][window].flatten()[places].float()


def errors_of_maps(
    gt: Tensor, pred: Tensor, protocol: Protocol, metrics: Sequence[str], name: str, scaled: Sequence[str] = ()
) -> dict[str, Tensor]:
    """Metrics of R maps over counted pixels; those that the protocol drops for their prediction are reported.

    Args:
        gt: (N,) float32 [m], of counted pixels.
        pred: (R, N) float32 [m].
        protocol: whose range both are clamped to.
        metrics: as for `mean_errors`.
        name: of the image, for errors.
        scaled: metrics that are wanted also of pred * median(gt) / median(pred), the lower medians of counted pixels.

    Returns:
        Metric, and `scaled_<metric>` -> (R,) float64; also `valid_pixels` and `dropped_pixels`, (R,) int64.

    Raises UnscorableError: a prediction is not finite, or a map has no counted pixel.
    """
    smallest = check_finite(pred, name)
    some_tiny = protocol.drops_tiny and smallest < 2 * MIN_DEPTH
    kept = pred > MIN_DEPTH if some_tiny else None  # (R, N); all are kept if None
    valid = torch.full((len(pred),), len(gt)) if kept is None else kept.sum(1)
    if not len(gt):
        raise UnscorableError(f"{name}: no valid pixel, so it has no metrics; leave the image out")
    if not valid.all():
        raise UnscorableError(f"{name}: every predicted depth is at most 1 mm, so it has no metrics")

    cap = protocol.max_depth

    def errors(gt: Tensor, pred: Tensor) -> dict[str, Tensor]:
        plain = mean_errors(gt, pred, cap, metrics)
        if not scaled:
            return plain
        ratio = lower_median(gt[None]) / lower_median(pred)  # (R,)
        after = mean_errors(gt, pred * ratio[:, None], cap, scaled)
        return plain | {f"scaled_{metric}": value for metric, value in after.items()}

    if kept is None:
        found = errors(gt, pred)
    else:
        rows = [errors(gt[mask], one[None, mask]) for one, mask in zip(pred, kept, strict=True)]
        found = {metric: torch.cat([row[metric] for row in rows]) for metric in rows[0]}
    return found | {"valid_pixels": valid, "dropped_pixels": len(gt) - valid}


def lower_median(values: Tensor) -> Tensor:
    """Median of each row, the lower of the two middle values where there are two: (R, N) -> (R,)."""
    middle = (values.shape[1] - 1) // 2
    ordered = np.partition(values.cpu().numpy(), middle, axis=1)  # takes 60 % of the time of torch.median
    return torch.from_numpy(ordered[:, middle]).to(values.device)


def check_finite(pred: Tensor, name: str) -> float:
    """The smallest predicted depth [m]. Raises UnscorableError: one is not finite, which would raise the score."""
    smallest, largest = (value.item() for value in pred.aminmax()) if pred.numel() else (math.inf, 0.0)
    if not math.isfinite(largest - smallest) and pred.numel():
        bad = int((~pred.isfinite()).sum())
        raise UnscorableError(f"{name}: {bad:,} of {pred.numel():,} predicted depths are NaN or infinite: no metrics")
    return smallest


def compute_errors_per_image(
    gt: Sequence[Tensor], pred: Tensor, protocol: Protocol, names: Sequence[str] | None = None, crop: bool = True
) -> dict[str, Tensor]:
    """Metrics of each image by a protocol, for one or more predictions of it.

    Args:
        gt: B whole frames, (1, H, W) float [m] each, 0 = no measurement.
        pred: (B, R, h, w) float [m], R depth maps of the protocol's window.
        protocol: says which pixels count.
        names: of the images, for errors; their places unless given.
        crop: count only the pixels of the protocol's region.

    Returns:
        Each metric that the protocol has `scored` -> (B, R) float64; `valid_pixels`, `dropped_pixels` as
        `errors_of_maps`.

    Raises:
        ValueError: a shape is another, or gt is not finite.
        UnscorableError: a prediction is not finite, or an image has no pixel that counts.
    """
    if wrong := [tuple(one.shape) for one in gt if one.ndim != 3]:
        raise ValueError(f"expected gt of shape (1, H, W), got {wrong[0]}")
    if pred.ndim != 4 or len(pred) != len(gt) or len(gt) == 0:
        raise ValueError(f"expected pred of shape ({len(gt)}, R, h, w), got {tuple(pred.shape)}")
    rows = []
    for i, name in enumerate(names or [f"image {i}" for i in range(len(gt))]):
        height, width = gt[i].shape[1:]
        size = (height, width) if not protocol.frames or (height, width) in protocol.frames else protocol.frames[0]
        check_shapes(gt[i][None], size, pred[i : i + 1], size_of(protocol.window(*size)))
        check_finite(pred[i], name)
        places, depth = counted_pixels(gt[i], protocol, crop)
        of_counted = pred[i].flatten(1).index_select(1, places).float()  # (R, N)
        rows.append(errors_of_maps(depth, of_counted, protocol, protocol.scored, name))
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def compute_errors_NYU_per_image(
    gt: Tensor, pred: Tensor, crop: bool = True, names: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """`compute_errors_per_image` on NYU Depth V2: gt (B, 1, 480, 640) and pred (B, R, 416, 544), float [m].

    A pixel counts if 1e-3 < gt < 10 and pred > 1e-3 and, with `crop`, it lies in rows 45:471, columns 46:601.
    """
    check_shapes(gt, NYU_FRAME, pred, size_of(NYU_CROP))
    return compute_errors_per_image(gt, pred, NYU, names, crop)  # type: ignore[arg-type]


def compute_errors_NYU(gt: Tensor, pred: Tensor, crop: bool = True) -> dict[str, float]:
    """Mean metrics over images on NYU Depth V2, by name: as `compute_errors_NYU_per_image`, with R = 1."""
    errors = compute_errors_NYU_per_image(gt, pred, crop)
    return {name: errors[name].mean().item() for name in NYU_METRICS}


def compute_errors(gt: Tensor, pred: Tensor, crop: bool = True, cap: float = KITTI_BTS.max_depth) -> dict[str, float]:
    """Mean metrics over images on KITTI, by name in the order of `KITTI_METRICS`.

    A pixel counts if 1e-3 < gt < cap and, with `crop`, it lies in the crop of Garg et al.

    gt, 0 = no measurement, and pred are (B, 1, H, W) float [m]; both are clamped to [1e-3, cap]. Raises ValueError and
    UnscorableError as `compute_errors_NYU_per_image` does.
    """
    size = tuple(gt.shape[-2:])
    check_shapes(gt, size, pred, size)  # type: ignore[arg-type]
    protocol = replace(KITTI_BTS, max_depth=cap, frames=(), window=whole)
    errors = compute_errors_per_image(list(gt), pred[:, :1], protocol, crop=crop)
    return {name: errors[name].mean().item() for name in KITTI_METRICS}


def size_of(crop: tuple[slice, slice]) -> tuple[int, int]:
    """(H, W) of a crop."""
    rows, columns = crop
    return rows.stop - rows.start, columns.stop - columns.start


def check_shapes(gt: Tensor, gt_size: tuple[int, int], pred: Tensor, pred_size: tuple[int, int]) -> None:
    """Raises ValueError unless gt is (B, 1, *gt_size) and finite, and pred (B, R, *pred_size): nothing is broadcast."""
    batch = len(gt) if gt.ndim else 0
    if batch == 0 or tuple(gt.shape) != (batch, 1, *gt_size):
        raise ValueError(f"expected gt of shape (B, 1, {gt_size[0]}, {gt_size[1]}), got {tuple(gt.shape)}")
    if pred.ndim != 4 or len(pred) != batch or pred.shape[1] < 1 or tuple(pred.shape[2:]) != pred_size:
        expected = f"({batch}, R, {pred_size[0]}, {pred_size[1]})"
        raise ValueError(f"expected pred of shape {expected}, got {tuple(pred.shape)}")
    if not gt.isfinite().all():
        raise ValueError("gt holds NaN or infinite depths; use 0 where there is no measurement")
