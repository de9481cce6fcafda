"""The figures of monocular depth estimation, on NYU Depth V2 and KITTI, with the masks and crops of the release.

Per image, over its counted pixels, gt and pred in metres:

    delta_i  = share with max(gt / pred, pred / gt) < 1.25 ** i, i = 1, 2, 3       (a1, a2, a3)
    abs_rel  = mean |gt - pred| / gt             log10    = mean |log10 gt - log10 pred|
    sq_rel   = mean (gt - pred)^2 / gt           rmse     = sqrt mean (gt - pred)^2
    abs_diff = mean |gt - pred|                  rmse_log = sqrt mean (ln gt - ln pred)^2

`errors_NYU` and `errors_KITTI` give them for each image, `compute_errors_NYU` and `compute_errors` their means. Every
image has the same weight. A prediction that is not finite never falls out of the mask: it raises, or counts as badly as
a prediction can. An image without a counted pixel has no figures, and no mean is taken over it unless asked to.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

MIN_DEPTH = 1e-3  # [m] gt and pred at or below it do not count; both are clamped to it
NYU_MAX_DEPTH = 10.0  # [m] range of the Kinect
NYU_FRAME = (480, 640)  # (H, W) of the ground truth
NYU_CROP = (slice(56, 472), slice(60, 604))  # rows, columns that the method sees: 416 x 544
# Official quirk: columns 46:601 where others have Eigen's 41:601. As predictions start at column 60, nothing changes.
NYU_EVAL_CROP = (slice(45, 471), slice(46, 601))
# Garg et al., ECCV 2016: top, bottom, left and right of the counted region, as shares of the ground truth's size.
GARG_CROP = (0.40810811, 0.99189189, 0.03594771, 0.96405229)
KITTI_MAX_DEPTH = 80.0  # [m]

NYU_FIGURES = ("abs_diff", "a1", "a2", "a3", "abs_rel", "log10", "rmse")  # in the order of the released line
KITTI_FIGURES = ("abs_diff", "abs_rel", "sq_rel", "a1", "a2", "a3", "rmse", "rmse_log")
HIGHER_IS_BETTER = frozenset({"a1", "a2", "a3"})
ROOTS = frozenset({"rmse", "rmse_log"})  # the root is taken of the mean


class NonFinitePredictionError(ValueError):
    """A prediction holds NaN or infinity; `counts` has the number of such pixels by place in the batch."""

    def __init__(self, counts: dict[int, int]) -> None:
        listed = ", ".join(f"image {i} has {n}" for i, n in counts.items())
        super().__init__(f"predictions hold NaN or infinite depths, which cannot be scored: {listed}")
        self.counts = counts


class NoValidPixelError(ValueError):
    """Images have no pixel that counts, so no figures; `images` has their places in the batch."""

    def __init__(self, images: Sequence[int]) -> None:
        super().__init__(f"no valid pixel in image {', '.join(map(str, images))}: it has no figures")
        self.images = list(images)


@dataclass(frozen=True)
class ImageErrors:
    """Figures of B images.

    Attributes:
        figures: name -> (B,) float32; NaN exactly where `valid_pixels` is 0.
        valid_pixels: (B,) int64, how many pixels counted.
        dropped_pixels: (B,) int64, how many more would have counted if the prediction were above 1 mm.
    """

    figures: dict[str, Tensor]
    valid_pixels: Tensor
    dropped_pixels: Tensor

    def mean(self, empty: str = "error") -> dict[str, float]:
        """Mean over images, in double precision, every image with the same weight.

        Args:
            empty: "error" raises for an image without a valid pixel, "skip" leaves such images out.

        Raises:
            NoValidPixelError: there is such an image, or no other is left.
        """
        counted = self.valid_pixels > 0
        if not counted.all() and (empty == "error" or not counted.any()):
            raise NoValidPixelError((~counted).nonzero().flatten().tolist())
        return {name: value[counted].double().mean().item() for name, value in self.figures.items()}


def compute_errors_NYU(gt: Tensor, pred: Tensor, crop: bool = True) -> dict[str, float]:
    """Mean figures on NYU Depth V2 by name, in the order of `NYU_FIGURES`. Arguments and errors as `errors_NYU`.

    Raises:
        NoValidPixelError: an image has no pixel that counts.
    """
    return errors_NYU(gt, pred, crop).mean()


def errors_NYU(gt: Tensor, pred: Tensor, crop: bool = True, nonfinite: str = "error") -> ImageErrors:
    """Figures of each image on NYU Depth V2.

    A pixel counts if 1e-3 < gt < 10 and pred > 1e-3 and, with `crop`, it lies in rows 45:471, columns 46:601. As the
    prediction covers rows 56:472, columns 60:604, these are rows 56:471, columns 60:601 in effect.

    Args:
        gt: (B, 1, 480, 640) float [m], 0 = no measurement.
        pred: (B, 1, 416, 544) float [m], the depth of rows 56:472, columns 60:604.
        crop: count only the pixels of the evaluation crop.
        nonfinite: what NaN and infinite predictions do: "error" raises; "worst" counts each as the end of [1e-3, 10]
            that makes the figure worse.

    Raises:
        ValueError: a shape is another.
        NonFinitePredictionError: a prediction is NaN or infinite and `nonfinite` is "error".
    """
    (top, bottom), (left, right) = ((s.start, s.stop) for s in NYU_CROP)
    height, width = NYU_FRAME
    check_shapes(gt, (height, width), pred, (bottom - top, right - left))
    pred = F.pad(pred, (left, width - right, top, height - bottom))  # (B, 1, 480, 640)
    region = torch.zeros(height, width, dtype=torch.bool, device=gt.device)
    region[NYU_CROP] = True
    if crop:
        outside = torch.ones_like(region)
        outside[NYU_EVAL_CROP] = False
        region &= ~outside
    candidates = (gt > MIN_DEPTH) & (gt < NYU_MAX_DEPTH) & region  # (B, 1, 480, 640)
    counted = candidates & ((pred > MIN_DEPTH) | ~pred.isfinite())
    return image_errors(NYU_FIGURES, gt, pred, candidates, counted, NYU_MAX_DEPTH, nonfinite)


def compute_errors(gt: Tensor, pred: Tensor, crop: bool = True, cap: float = KITTI_MAX_DEPTH) -> dict[str, float]:
    """Mean figures on KITTI by name, in the order of `KITTI_FIGURES`. Arguments and errors as `errors_KITTI`.

    Raises:
        NoValidPixelError: an image has no pixel that counts.
    """
    return errors_KITTI(gt, pred, crop, cap).mean()


def errors_KITTI(
    gt: Tensor, pred: Tensor, crop: bool = True, cap: float = KITTI_MAX_DEPTH, nonfinite: str = "error"
) -> ImageErrors:
    """Figures of each image on KITTI.

    A pixel counts if 1e-3 < gt < cap and, with `crop`, it lies in the crop of Garg et al.

    Args:
        gt: (B, 1, H, W) float [m], 0 = no measurement.
        pred: (B, 1, H, W) float [m].
        crop: count only the pixels of Garg's crop.
        cap: largest depth [m]; gt and pred are clamped to [1e-3, cap].
        nonfinite: as in `errors_NYU`.

    Raises:
        ValueError: the shapes differ.
        NonFinitePredictionError: a prediction is NaN or infinite and `nonfinite` is "error".
    """
    height, width = gt.shape[-2:]
    check_shapes(gt, (height, width), pred, (height, width))
    counted = (gt > MIN_DEPTH) & (gt < cap)  # (B, 1, H, W)
    if crop:
        top, bottom, left, right = GARG_CROP
        region = torch.zeros(height, width, dtype=torch.bool, device=gt.device)
        region[int(top * height) : int(bottom * height), int(left * width) : int(right * width)] = True
        counted = counted & region
    return image_errors(KITTI_FIGURES, gt, pred, counted, counted, cap, nonfinite)


def check_shapes(gt: Tensor, gt_size: tuple[int, int], pred: Tensor, pred_size: tuple[int, int]) -> None:
    """Raises ValueError unless gt is (B, 1, *gt_size) and pred (B, 1, *pred_size), B > 0: nothing is broadcast."""
    batch = len(gt) if gt.ndim else 0
    for name, tensor, size in (("gt", gt, gt_size), ("pred", pred, pred_size)):
        if batch == 0 or tuple(tensor.shape) != (batch, 1, *size):
            raise ValueError(f"expected {name} of shape (B, 1, {size[0]}, {size[1]}), got {tuple(tensor.shape)}")
    if not gt.isfinite().all():
        raise ValueError("gt holds NaN or infinite depths; use 0 where there is no measurement")


def image_errors(
    names: Sequence[str], gt: Tensor, pred: Tensor, candidates: Tensor, counted: Tensor, cap: float, nonfinite: str
) -> ImageErrors:
    """The figures `names` over the `counted` pixels of (B, 1, H, W) maps; `candidates` ignores the prediction."""
    bad = ~pred.isfinite()
    if bad.any():
        if nonfinite == "error":
            counts = bad.sum(dim=(1, 2, 3))
            raise NonFinitePredictionError({i: n for i, n in enumerate(counts.tolist()) if n})
        low = pixel_errors(names, gt, pred.masked_fill(bad, MIN_DEPTH), cap)
        high = pixel_errors(names, gt, pred.masked_fill(bad, cap), cap)
        errors = {
            name: torch.minimum(low[name], high[name])
            if name in HIGHER_IS_BETTER
            else torch.maximum(low[name], high[name])
            for name in names
        }
    else:
        errors = pixel_errors(names, gt, pred, cap)
    valid_pixels = counted.sum(dim=(1, 2, 3))
    figures = {}
    for name in names:
        mean = errors[name].where(counted, 0).sum(dim=(1, 2, 3)) / valid_pixels  # (B,), 0 / 0 = NaN where none counts
        figures[name] = mean.sqrt() if name in ROOTS else mean
    return ImageErrors(figures, valid_pixels, candidates.sum(dim=(1, 2, 3)) - valid_pixels)


def pixel_errors(names: Sequence[str], gt: Tensor, pred: Tensor, cap: float) -> dict[str, Tensor]:
    """What each figure averages, for every pixel: name -> (B, 1, H, W). Both maps are clamped to [1e-3, cap] first."""
    gt, pred = gt.float().clamp(MIN_DEPTH, cap), pred.float().clamp(MIN_DEPTH, cap)
    difference = (gt - pred).abs()
    ratio = torch.maximum(gt / pred, pred / gt)
    terms = {
        "abs_diff": lambda: difference,
        "a1": lambda: (ratio < 1.25).float(),
        "a2": lambda: (ratio < 1.25**2).float(),
        "a3": lambda: (ratio < 1.25**3).float(),
        "abs_rel": lambda: difference / gt,
        "sq_rel": lambda: difference.square() / gt,
        "log10": lambda: (gt.log10() - pred.log10()).abs(),
        "rmse": lambda: difference.square(),
        "rmse_log": lambda: (gt.log() - pred.log()).square(),
    }
    return {name: terms[name]() for name in names}
