"""The metrics of monocular depth estimation, with masks and crops as in the authors' release, for NYU and KITTI.

Over the counted pixels of an image, gt and pred in metres and clamped to [1e-3, cap] (which changes pred alone):

    delta_i  = share with max(gt / pred, pred / gt) < 1.25 ** i, i = 1, 2, 3       (the release's a1, a2, a3)
    abs_rel  = mean |gt - pred| / gt             log10    = mean |log10 gt - log10 pred|
    sq_rel   = mean (gt - pred)^2 / gt           rmse     = sqrt mean (gt - pred)^2
    abs_diff = mean |gt - pred|                  rmse_log = sqrt mean (ln gt - ln pred)^2
    silog    = sqrt(mean s^2 - (mean s)^2), s = ln pred - ln gt: scale-invariant log error (Eigen et al., 2014)

Every image has the same weight. A prediction that is not finite raises an exception, and so does an image without a
counted pixel. Shapes: a frame, the whole ground truth, has H x W pixels; a window of it, h x w, is predicted; N of its
pixels count, in R depth maps of one image.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

MIN_DEPTH = 1e-3  # [m] gt at or below it does not count; pred is clamped to it, or on NYU does not count either
NYU_METRICS = ("abs_diff", "delta1", "delta2", "delta3", "abs_rel", "log10", "rmse")  # in the released line's order
KITTI_METRICS = ("abs_diff", "abs_rel", "sq_rel", "delta1", "delta2", "delta3", "rmse", "rmse_log")
HIGHER_IS_BETTER = frozenset({"delta1", "delta2", "delta3"})
AT_ONCE = 2**17  # values of a block of maps and pixels, which a core's cache holds

Crop = tuple[slice, slice]  # rows, columns
Region = Callable[[int, int], Crop]  # the part of a frame of H x W pixels


def whole(height: int, width: int) -> Crop:
    """All rows and columns."""
    return slice(0, height), slice(0, width)


def nyu_crop(height: int, width: int) -> Crop:
    """The 416 x 544 px of NYU's frame that the method sees. Raises ValueError: the frame is not 480 x 640."""
    if (height, width) != (480, 640):
        raise ValueError(f"expected a frame of NYU, 480 x 640, got {height} x {width}")
    return slice(56, 472), slice(60, 604)


def kitti_crop(height: int, width: int) -> Crop:
    """The benchmark's 352 x 1216 px at the bottom of a frame, in the middle of its width."""
    left = (width - 1216) // 2
    return slice(height - 352, height), slice(left, left + 1216)


def garg(height: int, width: int) -> Crop:
    """The region of Garg et al., ECCV 2016: shares of the height and of the width."""
    top, bottom, left, right = 0.40810811, 0.99189189, 0.03594771, 0.96405229
    return slice(int(top * height), int(bottom * height)), slice(int(left * width), int(right * width))


def garg_of_crop(height: int, width: int) -> Crop:
    """Garg's region of `kitti_crop`, in the frame's rows and columns."""
    outer, (rows, columns) = kitti_crop(height, width), garg(352, 1216)
    top, left = outer[0].start, outer[1].start
    return slice(top + rows.start, top + rows.stop), slice(left + columns.start, left + columns.stop)


@dataclass(frozen=True)
class Protocol:
    """How the depth of a data set is scored. A pixel counts if `MIN_DEPTH` < gt < `cap` and it lies in `region`."""

    name: str
    metrics: tuple[str, ...]  # in the release's order, then what the paper's tables have besides
    cap: float  # [m] to which gt and pred are clamped: the range of NYU's Kinect, of KITTI's evaluation
    window: Region = whole  # of a frame, what the method sees and predicts
    region: Region = whole  # of a frame, what counts
    # Official quirk, of NYU: pixels whose prediction is at most 1 mm do not count; the usual thing is to clamp them.
    drops_tiny: bool = False

    def counted(self, gt: Tensor) -> Tensor:
        """Which pixels of the window count whatever is predicted: a frame (H, W) [m], 0 = none -> (h, w) bool."""
        inside = torch.zeros_like(gt, dtype=torch.bool)
        inside[self.region(*gt.shape)] = True
        return ((gt > MIN_DEPTH) & (gt < self.cap) & inside)[self.window(*gt.shape)]


# Official quirk: columns 46:601 where others have Eigen's 41:601. Predictions start at column 60: nothing changes.
NYU_REGION = slice(45, 471), slice(46, 601)
NYU = Protocol("NYU", NYU_METRICS, 10.0, nyu_crop, lambda height, width: NYU_REGION, drops_tiny=True)
# The Eigen test split. BTS counts Garg's region of the frame; AdaBins crops ground truth and picture first.
KITTI_BTS = Protocol("KITTI, BTS", (*KITTI_METRICS, "log10"), 80.0, kitti_crop, garg)
KITTI_ADABINS = replace(KITTI_BTS, name="KITTI, AdaBins", region=garg_of_crop)


class UnscorableError(ValueError):
    """An image has no metrics: its prediction is not finite, or none of its pixels counts. The message names it."""


def pixel_errors(gt: Tensor, pred: Tensor, metrics: Sequence[str]) -> dict[str, Tensor]:
    """What each metric averages, for every pixel: gt and pred > 0 [m], shapes that broadcast -> metric: that shape.

    `silog` is s itself, and of `rmse` and `rmse_log` the root is still to be taken: see `mean_errors`.
    """
    error, ratio = (pred - gt).abs_(), pred / gt
    largest = torch.maximum(ratio, gt / pred)
    log = ratio.log_() if {"log10", "rmse_log", "silog"}.intersection(metrics) else ratio  # the slowest step

    def delta(i: int) -> Callable[[], Tensor]:
        return lambda: torch.lt(largest, 1.25**i, out=torch.empty_like(largest))  # 0.0 and 1.0 are summed faster

    formulas: dict[str, Callable[[], Tensor]] = {
        **{f"delta{i}": delta(i) for i in (1, 2, 3)},
        "abs_diff": lambda: error,
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

    From gt (N,) float32 [m], of counted pixels, N > 0, and pred (R, N), or (R, 1) for constants; metric -> (R,), fp64.
    With weights (N, I), gt are N possible depths, and column i is each one's share in image i; metric -> (R, I).
    """
    averaged = dict.fromkeys((*metrics, *(["rmse_log"] if "silog" in metrics else [])))
    step = max(1, AT_ONCE // len(pred))
    sums: dict[str, Tensor] = {}
    for start in range(0, len(gt), step):
        block = slice(start, start + step)
        true = gt[block].clamp(MIN_DEPTH, cap)  # (step,)
        predicted = (pred[:, block] if pred.shape[1] > 1 else pred).clamp(MIN_DEPTH, cap)  # (R, step)
        for metric, error in pixel_errors(true, predicted, list(averaged)).items():  # (R, step)
            total = (error.sum(1) if weights is None else error @ weights[block]).double()
            sums[metric] = sums.get(metric, 0) + total
    means = {metric: total / (len(gt) if weights is None else 1) for metric, total in sums.items()}
    if "silog" in metrics:
        means["silog"] = (means["rmse_log"] - means["silog"].square()).clamp(min=0).sqrt()
    return {metric: means[metric].sqrt() if metric in ("rmse", "rmse_log") else means[metric] for metric in metrics}


def image_errors(
    gt: Tensor, pred: Tensor, protocol: Protocol, name: str, errors: Callable[..., dict[str, Tensor]] = mean_errors
) -> dict[str, Tensor]:
    """Metrics of R maps of one image: a whole frame gt (H, W) [m], 0 = no measurement, and pred (R, h, w) [m].

    Metric -> (R,), and `valid_pixels` and `dropped_pixels`: how many count and, for their prediction, do not. `errors`
    computes in place of `mean_errors`. Raises ValueError: shapes do not fit, or gt is not finite; UnscorableError.
    """
    counts, size = protocol.counted(gt), size_of(window := protocol.window(*gt.shape))
    if not counts.shape == pred.shape[1:] == size or not gt.isfinite().all():
        raise ValueError(f"{name}: expected finite gt and pred of {size} px, got pred of {tuple(pred.shape[1:])}")
    if not pred.sum().isfinite() and (bad := int((~pred.isfinite()).sum())):
        raise UnscorableError(f"{name}: {bad:,} of {pred.numel():,} predicted depths are NaN or infinite: no metrics")
    where = counts.flatten().nonzero()[:, 0]  # faster than a mask
    true, pred = (maps.flatten(-2).index_select(-1, where).float() for maps in (gt[window], pred))  # (N,), (R, N)
    if not len(true):
        raise UnscorableError(f"{name}: no valid pixel, so it has no metrics; leave the image out")
    dropped = (pred <= (MIN_DEPTH if protocol.drops_tiny else -math.inf)).count_nonzero(dim=1)  # (R,)
    if (dropped == len(true)).any():
        raise UnscorableError(f"{name}: every predicted depth is at most 1 mm, so it has no metrics")
    kept = [(true[one > MIN_DEPTH], one[None, one > MIN_DEPTH]) for one in pred] if dropped.any() else [(true, pred)]
    rows = [errors(*each, protocol.cap, protocol.metrics) for each in kept]
    found = {metric: torch.cat([row[metric] for row in rows]) for metric in rows[0]}
    return found | {"valid_pixels": len(true) - dropped, "dropped_pixels": dropped}


def compute_errors_per_image(
    gt: Sequence[Tensor], pred: Tensor, protocol: Protocol, names: Sequence[str] | None = None
) -> dict[str, Tensor]:
    """`image_errors` of B images, whose `names` errors have: B frames (1, H, W) and pred (B, R, h, w) -> (B, R)."""
    if pred.ndim != 4 or 0 in pred.shape or len(pred) != len(gt) or any(one.ndim != 3 or len(one) != 1 for one in gt):
        raise ValueError(f"expected B frames (1, H, W) and pred (B, R, h, w), got {len(gt)} and {tuple(pred.shape)}")
    names = names or [f"image {i}" for i in range(len(gt))]
    rows = [image_errors(one[0], maps, protocol, name) for one, maps, name in zip(gt, pred, names, strict=True)]
    return {key: torch.stack([row[key] for row in rows]) for key in rows[0]}


def compute_errors_NYU(gt: Tensor, pred: Tensor, crop: bool = True) -> dict[str, float]:
    """Mean metrics over images of NYU Depth V2, in the released line's order.

    From gt (B, 1, 480, 640) and pred (B, 1, 416, 544) [m]; without `crop`, all of the prediction counts.
    """
    errors = compute_errors_per_image(list(gt), pred, NYU if crop else replace(NYU, region=whole))
    return {metric: errors[metric].mean().item() for metric in NYU_METRICS}


def compute_errors(gt: Tensor, pred: Tensor, crop: bool = True, cap: float = KITTI_BTS.cap) -> dict[str, float]:
    """Mean metrics over images of KITTI: gt and pred (B, 1, H, W) [m]; without `crop`, all that is measured counts."""
    protocol = replace(KITTI_BTS, cap=cap, window=whole, region=garg if crop else whole)
    errors = compute_errors_per_image(list(gt), pred, protocol)
    return {metric: errors[metric].mean().item() for metric in KITTI_METRICS}


def size_of(crop: Crop) -> tuple[int, int]:
    """(H, W) of a crop."""
    rows, columns = crop
    return rows.stop - rows.start, columns.stop - columns.start
