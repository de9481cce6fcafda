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
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from calculate_error import Protocol
from clip.model import Trunk
from experiments.published import ANSWERS_AT, CEILING, FITTED, PROBE, TRUTH_AT, WITHIN
from experiments.score import Truth
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
            self.sum_up(fold, x.double().T @ torch.cat([x, y[:, None]], dim=1).double())

    def sum_up(self, fold: int, more: Tensor) -> None:
        """Add to a fold's sum."""
        total = self.sums[fold]
        self.sums[fold] = more if total is None else total.add_(more)

    def solve(self) -> list[Tensor | None]:
        """The solution for each fold; None where no other fold has any rows."""
        known = [{i: s for i, s in enumerate(self.sums) if i != f and s is not None} for f in range(len(self.sums))]
        return [self.solution(torch.stack(list(each.values())).sum(dim=0)) if each else None for each in known]

    def solution(self, total: Tensor) -> Tensor | None:
        """The solution (C,) of sums (C, C + 1) of x'x and x'y."""
        matrix, values = total[:, :-1].clone(), total[:, -1]
        matrix.diagonal()[: len(matrix) - self.free] += self.ridge
        return (
            torch.linalg.solve(matrix, values)
            if self.ridge
            else torch.linalg.pinv(matrix, rtol=LEAST_RANK, hermitian=True) @ values
        )


class Mean(Fit):
    """Mean of maps (H, W) of one size over the images of all other folds; weighted, it is over what has weight."""

    def add(self, fold: int, values: Tensor, weights: Tensor) -> None:
        """Add a map with weights."""
        self.sum_up(fold, torch.stack([values.double() * weights, weights.double()]))

    def solution(self, total: Tensor) -> Tensor | None:
        """The mean; the mean of all where nothing has weight; None if nothing has any."""
        values, count = total
        return torch.where(count > 0, values / count.clamp(min=1), values.sum() / count.sum()) if count.any() else None


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
        if any(weights is None for weights in self.solved):
            return None
        log_depth = torch.einsum("d,dhw->hw", self.solved[fold], self.features(trunk).double())
        return log_depth.clamp(math.log(LEAST_FITTED), math.log(cap)).exp()


class Ladder:
    """The rungs that need more than one image; `one_size`: of all images, else nothing depends on position."""

    def __init__(self, model: MonoCLIP, protocol: Protocol, folds: Sequence[int], one_size: bool) -> None:
        self.model, self.protocol, self.folds = model, protocol, folds
        count = max(folds) + 1
        self.probe, self.words = Probe(model, "", count), Fit(count)
        self.positions = {ANSWERS_AT: Mean(count), TRUTH_AT: Mean(count)} if one_size else {}
        self.solved: dict[str, list[Tensor | None]] = {}
        self.measured = False  # whether any patch is
        self.missing: list[str] = []  # why rungs are left out, a sentence each

    @torch.inference_mode()
    def fit(self, trunk_of: Callable[[int], Trunk], truth_of: Callable[[int, Trunk], Truth]) -> None:
        """Sum up what the images of each fold say, and solve for each fold's others."""
        if max(self.folds) == 0:
            self.missing.append("There is one cluster, so nothing is fitted: there are no other images to fit on.")
        for item, fold in enumerate(self.folds):
            trunk = trunk_of(item)
            truth, weights = truth_of(item, trunk), self.model.weights(trunk)  # (1, K, h, w)
            self.measured |= len(truth.patches) > 0
            if max(self.folds) == 0 or not weights.isfinite().all():  # whose image will be named when it is scored
                continue
            p = weights[0].flatten(1)[:, truth.patches].T.double()  # (P, K)
            self.words.add(fold, p / truth.patch_depth[:, None], torch.ones_like(truth.patch_depth))
            self.probe.add(fold, trunk, truth)
            if self.positions:
                depth = depth_of(weights, self.model.bin_list[None])[0, 0]  # (h, w)
                self.positions[ANSWERS_AT].add(fold, depth, torch.ones_like(depth))
                pixels = torch.zeros_like(truth.counts, dtype=torch.float32)
                pixels[truth.counts] = truth.depth
                self.positions[TRUTH_AT].add(fold, pixels, truth.counts)
        if not self.measured:
            self.missing.append("No patch is measured, so there is no ceiling.")
        if max(self.folds) == 0:
            return
        self.probe.solve()
        self.solved = {FITTED: self.words.solve()} | {row: mean.solve() for row, mean in self.positions.items()}
        if any(one is None for one in self.solved[FITTED]):
            self.missing.append("Too few patches are measured to fit on those of other images.")
        if not self.positions:
            self.missing.append("Images have several sizes, so nothing depends on position.")

    def maps(self, item: int, trunk: Trunk, truth: Truth) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Depth of one image by rung: of patches, (h, w), and of pixels, (H, W) [m]."""
        fold, bins, cap = self.folds[item], self.model.bin_list, self.protocol.cap
        solved = {row: each[fold] for row, each in self.solved.items() if all(one is not None for one in each)}
        if FITTED in solved:
            solved[FITTED] = torch.einsum("k,khw->hw", solved[FITTED], self.model.weights(trunk)[0].double())
            solved[PROBE] = self.probe.depth(fold, trunk, cap)
        found = {row: depth.clamp(LEAST_FITTED, cap) for row, depth in solved.items() if depth is not None}
        pixels = {TRUTH_AT: found.pop(TRUTH_AT)} if TRUTH_AT in found else {}
        if not self.measured:
            return found, pixels
        grid, elsewhere = trunk.patches.shape[2:], truth.patch_depth if len(truth.patches) else truth.depth.double()
        ceiling = elsewhere.mean().repeat(grid.numel())
        ceiling[truth.patches] = truth.patch_depth
        found[CEILING] = ceiling.view(grid)
        found[WITHIN] = found[CEILING].clamp(bins.min(), bins.max())
        return found, pixels
