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


class Fit:
    """Least squares |x a - y|^2 + ridge |a|^2 for each fold, over the rows of all other folds.

    `free` columns at the end of x are not held down by the ridge. Where x lacks rank, a is the shortest solution.
    """

    def __init__(self, folds: int, ridge: float = 0.0, free: int = 0) -> None:
        self.ridge, self.free = ridge, free
        self.sums: list[Tensor | None] = [None] * folds

    def add(self, fold: int, x: Tensor, y: Tensor) -> None:
        """Add rows (P, C) and their values (P,)."""
        if len(x):  # else sums of 0 would pass for something to fit on
            x = x.double()
            self.sum_up(fold, x.T @ torch.cat([x, y.double()[:, None]], dim=1))

    def sum_up(self, fold: int, more: Tensor) -> None:
        """Add to a fold's sum."""
        total = self.sums[fold]
        self.sums[fold] = more if total is None else total.add_(more)

    def solve(self) -> list[Tensor | None]:
        """The solution for each fold; None for all where one has no rows of other folds."""
        known = [[s for g, s in enumerate(self.sums) if g != fold and s is not None] for fold in range(len(self.sums))]
        return [self.solution(torch.stack(others).sum(dim=0)) if all(known) else None for others in known]

    def solution(self, total: Tensor) -> Tensor:
        """The solution (C,) of sums (C, C + 1) of x'x and x'y."""
        matrix, values = total[:, :-1].clone(), total[:, -1]
        matrix.diagonal()[: len(matrix) - self.free] += self.ridge
        if self.ridge:
            return torch.linalg.solve(matrix, values)
        return torch.linalg.pinv(matrix, rtol=LEAST_RANK, hermitian=True) @ values


class Mean(Fit):
    """Mean of maps (H, W) of one size over the images of all other folds; weighted, it is over what has weight."""

    def add(self, fold: int, values: Tensor, weights: Tensor) -> None:
        """Add a map with weights."""
        self.sum_up(fold, torch.stack([values * weights, weights]).double())

    def solution(self, total: Tensor) -> Tensor:
        """The mean; the mean of all where nothing has weight."""
        values, count = total
        return torch.where(count > 0, values / count, values.sum() / count.sum())


class Probe:
    """The linear probe of a read-out's features."""

    def __init__(self, model: MonoCLIP, readout: str, folds: int) -> None:
        self.model, self.readout, self.fit = model, readout, Fit(folds, ridge=0.1, free=1)

    def features(self, trunk: Trunk) -> Tensor:
        """g with a 1 at its end, (D + 1, h, w), of an image."""
        mean = mirror_average(self.model.features(trunk, self.readout))[0]
        return torch.cat([mean, torch.ones_like(mean[:1])])

    def add(self, fold: int, trunk: Trunk, truth: Truth) -> None:
        """Add an image's measured patches."""
        self.fit.add(fold, self.features(trunk).flatten(1)[:, truth.patches].T, truth.patch_depth.log())

    def solve(self) -> None:
        """Solve for each fold's others."""
        self.solved = self.fit.solve()

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
        self.probe, self.words = Probe(model, "", count), Fit(count)
        one_size = len(set(data.sizes)) <= 1  # else nothing depends on position
        self.positions = {ANSWERS_AT: Mean(count), TRUTH_AT: Mean(count)} if one_size else {}
        self.solved: dict[str, list[Tensor | None]] = {}
        self.measured = False  # whether any patch is
        self.missing: list[str] = []  # why rungs are left out, a sentence each

    @torch.inference_mode()
    def fit(self, trunk_of: Callable[[int], Trunk], truth_of: Callable[[int, Trunk], Truth]) -> None:
        """Sum up what the images of each fold say, and solve for each fold's others."""
        for item, fold in enumerate(self.folds):
            trunk = trunk_of(item)
            truth, weights = truth_of(item, trunk), self.model.weights(trunk)  # (1, K, h, w)
            self.measured |= len(truth.patches) > 0
            if not weights.isfinite().all():  # the image will be named when it is scored
                continue
            p = weights[0].flatten(1)[:, truth.patches].T.double()  # (P, K)
            self.words.add(fold, p / truth.patch_depth[:, None], torch.ones_like(truth.patch_depth))
            self.probe.add(fold, trunk, truth)
            if self.positions:
                depth = depth_of(weights, self.model.bin_list[None])[0, 0]  # (h, w)
                self.positions[ANSWERS_AT].add(fold, depth, torch.ones_like(depth))
                self.positions[TRUTH_AT].add(fold, truth.frame[self.protocol.window(*truth.frame.shape)], truth.counts)
        self.probe.solve()
        self.solved = {FITTED: self.words.solve()} | {row: mean.solve() for row, mean in self.positions.items()}
        several = max(self.folds) > 0
        why = {
            "There is one cluster, so nothing is fitted: there are no other images to fit on.": not several,
            "No patch is measured, so there is no ceiling.": not self.measured,
            "Too few patches are measured to fit on those of other images.": several and self.solved[FITTED][0] is None,
            "Images have several sizes, so nothing depends on position.": several and not self.positions,
        }
        self.missing = [sentence for sentence, holds in why.items() if holds]

    def maps(self, item: int, trunk: Trunk, truth: Truth) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Depth of one image by rung: of patches, (h, w), and of pixels, (H, W) [m]."""
        fold, bins, cap = self.folds[item], self.model.bin_list, self.protocol.cap
        found = {row: each[fold] for row, each in self.solved.items()}
        found[PROBE] = self.probe.depth(fold, trunk, cap)
        if (fitted := found[FITTED]) is not None:
            found[FITTED] = torch.einsum("k,khw->hw", fitted, self.model.weights(trunk)[0].double())
        patches = {row: depth.clamp(LEAST_FITTED, cap) for row, depth in found.items() if depth is not None}
        pixels = {row: patches.pop(row) for row in (TRUTH_AT,) if row in patches}
        if self.measured:
            elsewhere = truth.patch_depth if len(truth.patches) else truth.depth.double()
            ceiling = elsewhere.mean().repeat(math.prod(trunk.patches.shape[2:]))
            ceiling[truth.patches] = truth.patch_depth
            patches[CEILING] = ceiling.view(trunk.patches.shape[2:])
            patches[WITHIN] = patches[CEILING].clamp(bins.min(), bins.max())
        return patches, pixels
