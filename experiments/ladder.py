"""How far does language get? Rungs from knowing nothing to the most that patches of this size can say.

    uniform weights, best constant    `settings.py`, `statistics.py`
    position of answers, of truth     mean depth of a patch as it is read here, mean counted depth of a pixel
    this run                          sum_k p_k bin_k
    words, fitted bins                p b,           b = argmin sum ((p b) / y - 1)^2
    linear probe                      exp(w g + c),  w, c = argmin sum (ln y - w g - c)^2 + 0.1 |w|^2
    ceiling                           y, or y clamped to the smallest and largest bin

y is the mean counted truth of a measured patch, p are the weights of the words, g the patch's features, each the mean
of image and mirror. What an image is compared with is fitted on the other folds, in float64, by sums over each fold's
images (docs/ladder.md).
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


class Sums:
    """A sum over the images of each fold."""

    def __init__(self, folds: int) -> None:
        self.folds, self.sums = range(folds), dict[int, Tensor]()

    def add(self, fold: int, more: Tensor) -> None:
        """Add to a fold's sum what is not all 0: nothing would pass for something to fit on."""
        if more.any():
            self.sums[fold] = more.add_(self.sums.get(fold, 0))

    def solve(self, solution: Callable[[Tensor], Tensor]) -> list[Tensor | None]:
        """The solution for each fold of the sum over all others; None for all where one has nothing there."""
        others = [[total for i, total in self.sums.items() if i != fold] for fold in self.folds]
        return [solution(torch.stack(some).sum(dim=0)) if all(others) else None for some in others]


def equations(x: Tensor, y: Tensor) -> Tensor:
    """x'x and x'y of P rows: (P, C), (P,) -> (C, C + 1) float64."""
    return x.double().T @ torch.cat([x, y[:, None]], dim=1).double()


def least_squares(total: Tensor, ridge: float = 0.0) -> Tensor:
    """argmin |x a - y|^2 by sums of `equations`, the shortest where x lacks rank: (C, C + 1) -> (C,).

    `ridge` times the square of each of a but the last, a constant, is added.
    """
    matrix, values = total[:, :-1].clone(), total[:, -1]
    matrix.diagonal()[:-1] += ridge
    if ridge:
        return torch.linalg.solve(matrix, values)
    return torch.linalg.pinv(matrix, rtol=1e-9, hermitian=True) @ values  # below: what fp32 makes of equal weights


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
        self.solved = self.sums.solve(partial(least_squares, ridge=0.1))

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
        places = (ANSWERS_AT, TRUTH_AT) if len(set(data.sizes)) <= 1 else ()  # in several sizes, nothing has one
        self.sums = {row: Sums(count) for row in (FITTED, *places)}
        self.probe, self.measured = Probe(model, "", count), False  # whether any patch is

    @torch.inference_mode()
    def fit(self, trunk_of: Callable[[int], Trunk], truth_of: Callable[[int, Trunk], Truth]) -> None:
        """Sum up what the images of each fold say, and solve for each fold's others."""
        for item, fold in enumerate(self.folds):
            trunk = trunk_of(item)
            truth, weights = truth_of(item, trunk), self.model.weights(trunk)  # (1, K, h, w)
            self.measured |= len(truth.patches) > 0
            if not weights.isfinite().all():  # the image will be named when it is scored
                continue
            self.probe.add(fold, trunk, truth)
            p = weights[0].flatten(1)[:, truth.patches].T  # (P, K)
            self.sums[FITTED].add(fold, equations(p / truth.patch_depth[:, None], torch.ones_like(truth.patch_depth)))
            if TRUTH_AT in self.sums:
                depth = depth_of(weights, self.model.bin_list[None])[0, 0].double()  # (h, w)
                self.sums[ANSWERS_AT].add(fold, torch.stack([depth, torch.ones_like(depth)]))
                seen, counts = truth.frame[self.protocol.window(*truth.frame.shape)], truth.counts.double()
                self.sums[TRUTH_AT].add(fold, torch.stack([seen * counts, counts]))
        self.probe.solve()
        self.solved = {row: s.solve(least_squares if row == FITTED else mean_map) for row, s in self.sums.items()}

    @property
    def missing(self) -> list[str]:
        """Why rungs are left out, a sentence each."""
        several = max(self.folds) > 0
        why = {
            "There is one cluster, so nothing is fitted: there are no other images to fit on.": not several,
            "No patch is measured, so there is no ceiling.": not self.measured,
            "Too few patches are measured to fit on those of other images.": several and self.solved[FITTED][0] is None,
            "Images have several sizes, so nothing depends on position.": several and TRUTH_AT not in self.sums,
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
            found[CEILING] = elsewhere.mean().repeat(*trunk.patches.shape[2:])
            found[CEILING].view(-1)[truth.patches] = truth.patch_depth
            found[WITHIN] = found[CEILING].clamp(bins.min(), bins.max())
        return found
