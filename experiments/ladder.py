"""How far does language get? Rungs from knowing nothing to the most that patches of this size can say.

    uniform weights           the mean of the bins                                        `settings.py`
    best constant             for each metric, the best on the other folds                `statistics.py`
    position of the answers   mean over the other folds of this run's depth of a patch
    position of the truth     mean over the other folds of the counted depth of a pixel
    this run                  sum_k p_k bin_k
    words, fitted bins        p b,            b = argmin sum ((p b) / y - 1)^2
    linear probe              exp(w g + c),   w, c = argmin sum (ln y - w g - c)^2 + 0.1 |w|^2
    ceiling, within the bins  y, clamped to the smallest and largest bin
    ceiling, true patches     y

y is the mean counted truth of a measured patch, p are the weights of the words, g the patch's features, each the mean
of image and mirror. What is fitted for an image is fitted on the images of the other folds, in float64: sums of each
fold are kept, not patches, so memory does not grow with the images. docs/ladder.md says what the gaps mean.
"""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from calculate_error import Protocol
from clip.model import Trunk
from datasets.pairs import DepthPairs
from experiments.published import ANSWERS_AT, CEILING, FITTED, PROBE, TRUTH_AT, WITHIN
from experiments.score import Truth
from experiments.statistics import folds_of
from monoclip import MonoCLIP, depth_of, mirror_average

LEAST_FITTED = 0.1  # [m]
LEAST_RANK = 1e-9  # of squared singular values: below it are differences that fp32 makes of equal weights


class Sums:
    """Sums over the images of each fold, from which that of all other folds is had."""

    def __init__(self, folds: int) -> None:
        self.sums: list[Tensor | None] = [None] * folds

    def add(self, fold: int, more: Tensor) -> None:
        """Add to a fold's sum what is not all 0: nothing would pass for something to fit on."""
        if more.any():
            total = self.sums[fold]
            self.sums[fold] = more if total is None else total.add_(more)

    def solve(self, solution: Callable[[Tensor], Tensor]) -> list[Tensor | None]:
        """The solution for each fold; None for all where one has nothing in other folds."""
        others = [[s for i, s in enumerate(self.sums) if i != fold and s is not None] for fold in range(len(self.sums))]
        return [solution(torch.stack(some).sum(dim=0)) if all(others) else None for some in others]


def equations(x: Tensor, y: Tensor) -> Tensor:
    """x'x and x'y of P rows: (P, C), (P,) -> (C, C + 1) float64."""
    return x.double().T @ torch.cat([x, y[:, None]], dim=1).double()


def least_squares(total: Tensor, ridge: float = 0.0, free: int = 0) -> Tensor:
    """argmin |x a - y|^2 + ridge |a|^2 of sums of `equations`, the shortest where x lacks rank: (C, C + 1) -> (C,).

    The last `free` columns are not held down by the ridge.
    """
    matrix, values = total[:, :-1].clone(), total[:, -1]
    matrix.diagonal()[: len(matrix) - free] += ridge
    if ridge:
        return torch.linalg.solve(matrix, values)
    return torch.linalg.pinv(matrix, rtol=LEAST_RANK, hermitian=True) @ values


def mean_map(total: Tensor) -> Tensor:
    """Weighted mean of maps by sums (2, H, W) of value x weight and weight; the mean of all where nothing has any."""
    values, weight = total
    return torch.where(weight > 0, values / weight, values.sum() / weight.sum())


class Probe:
    """The linear probe of a read-out's features."""

    def __init__(self, model: MonoCLIP, readout: str, folds: int) -> None:
        self.model, self.readout, self.sums = model, readout, Sums(folds)

    def features(self, trunk: Trunk) -> Tensor:
        """g with a 1 at its end, (D + 1, h, w), of an image."""
        mean = mirror_average(self.model.features(trunk, self.readout))[0]
        return torch.cat([mean, torch.ones_like(mean[:1])])

    def add(self, fold: int, trunk: Trunk, truth: Truth) -> None:
        """Add an image's measured patches."""
        x = self.features(trunk).flatten(1)[:, truth.patches].T
        self.sums.add(fold, equations(x, truth.patch_depth.log()))

    def solve(self) -> None:
        """Solve for each fold's others."""
        self.solved = self.sums.solve(partial(least_squares, ridge=0.1, free=1))

    def depth(self, fold: int, trunk: Trunk, cap: float) -> Tensor | None:
        """Depth of the patches of an image of this fold, (h, w) [m]; None if some fold's others have no patches."""
        if (weights := self.solved[fold]) is None:
            return None
        log_depth = torch.einsum("d,dhw->hw", weights, self.features(trunk).double())
        return log_depth.clamp(math.log(LEAST_FITTED), math.log(cap)).exp()


class Ladder:
    """The rungs that need more than one image of `data`."""

    def __init__(self, model: MonoCLIP, protocol: Protocol, data: DepthPairs) -> None:
        self.model, self.protocol, self.folds = model, protocol, folds_of(data.clusters)
        count = max(self.folds) + 1
        self.probe, self.words = Probe(model, "", count), Sums(count)
        one_size = len(set(data.sizes)) <= 1  # else nothing depends on position
        self.positions = {ANSWERS_AT: Sums(count), TRUTH_AT: Sums(count)} if one_size else {}
        self.measured = False  # whether any patch is

    @torch.inference_mode()
    def fit(self, trunk_of: Callable[[int], Trunk], truth_of: Callable[[int, Trunk], Truth]) -> None:
        """Sum up what the images of each fold say, and solve for each fold's others."""
        for item, fold in enumerate(self.folds):
            trunk = trunk_of(item)
            truth, weights = truth_of(item, trunk), self.model.weights(trunk)  # (1, K, h, w)
            self.measured |= len(truth.patches) > 0
            if not weights.isfinite().all():  # the image will be named when it is scored
                continue
            p = weights[0].flatten(1)[:, truth.patches].T  # (P, K)
            self.words.add(fold, equations(p / truth.patch_depth[:, None], torch.ones_like(truth.patch_depth)))
            self.probe.add(fold, trunk, truth)
            if self.positions:
                depth = depth_of(weights, self.model.bin_list[None])[0, 0].double()  # (h, w)
                self.positions[ANSWERS_AT].add(fold, torch.stack([depth, torch.ones_like(depth)]))
                counts = truth.counts.double()
                depth = truth.frame[self.protocol.window(*truth.frame.shape)] * counts
                self.positions[TRUTH_AT].add(fold, torch.stack([depth, counts]))
        self.probe.solve()
        self.solved = {FITTED: self.words.solve(least_squares)}
        self.solved |= {row: sums.solve(mean_map) for row, sums in self.positions.items()}

    @property
    def missing(self) -> list[str]:
        """Why rungs are left out, a sentence each."""
        several = max(self.folds) > 0
        why = {
            "There is one cluster, so nothing is fitted: there are no other images to fit on.": not several,
            "No patch is measured, so there is no ceiling.": not self.measured,
            "Too few patches are measured to fit on those of other images.": several and self.solved[FITTED][0] is None,
            "Images have several sizes, so nothing depends on position.": several and not self.positions,
        }
        return [sentence for sentence, holds in why.items() if holds]

    def maps(self, item: int, trunk: Trunk, truth: Truth) -> dict[str, Tensor]:
        """Depth of one image by rung: of patches, (h, w), but for `TRUTH_AT` of pixels, (H, W) [m]."""
        fold, bins, cap = self.folds[item], self.model.bin_list, self.protocol.cap
        solved = {row: each[fold] for row, each in self.solved.items()}
        if (fitted := solved[FITTED]) is not None:
            solved[FITTED] = torch.einsum("k,khw->hw", fitted, self.model.weights(trunk)[0].double())
        solved[PROBE] = self.probe.depth(fold, trunk, cap)
        found = {row: depth.clamp(LEAST_FITTED, cap) for row, depth in solved.items() if depth is not None}
        if self.measured:
            elsewhere = truth.patch_depth if len(truth.patches) else truth.depth.double()
            ceiling = elsewhere.mean().repeat(math.prod(trunk.patches.shape[2:]))
            ceiling[truth.patches] = truth.patch_depth
            found[CEILING] = ceiling.view(trunk.patches.shape[2:])
            found[WITHIN] = found[CEILING].clamp(bins.min(), bins.max())
        return found
