"""Step 3 of the experiments, as drawings: the question, the ladder, certainty, read-outs, the paper's bin response.

Imported only by a run that draws: matplotlib takes a second.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from datasets import printable
from experiments.published import BIN_RESPONSE, BIN_RESPONSE_DEPTHS, RUNGS, THIS_RUN
from experiments.statistics import HIGHER, PRIMARY, Case, Contrast, Findings, Results
from viewer.strip import Example, new_figure, save_figure


def draw_response(path: Path, example: Example, weights: np.ndarray, caption: str) -> None:
    """The softmax weights (K, h, w) of the words of `BIN_RESPONSE`, without the mirror, at a near and a far patch."""
    words, bins, grid = BIN_RESPONSE.depth_classes, np.array(BIN_RESPONSE.bin_list), weights.shape[1:]
    height, width = (side / n for side, n in zip(example.truth.shape, grid, strict=True))  # of a patch, px
    figure = new_figure(14, 4.6)
    axes = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
    axes[0].imshow(example.pixels)
    axes[0].set(xticks=[], yticks=[])
    axes[0].set_title(example.name, parse_math=False)
    patches = near_and_far(example.truth, grid)
    for axis, (row, column, true), colour in zip(axes[1:], patches, ("tab:orange", "tab:blue"), strict=False):
        corner = (column * width, row * height)
        axes[0].add_patch(Rectangle(corner, width, height, fill=False, edgecolor=colour, linewidth=3))
        bars = weights[:, row, column]
        axis.bar(range(len(bins)), bars, color=colour)
        labels = [f"{word}\n{depth:.2f} m" for word, depth in zip(words, bins, strict=True)]
        axis.set_xticks(range(len(bins)), labels, rotation=60, ha="right", rotation_mode="anchor")
        axis.set(ylim=(0, 1), ylabel="softmax weight")
        axis.set_title(f"patch in {colour[4:]}: predicted {bars @ bins:.3f} m, true {true:.3f} m", fontsize=11)
    for axis in axes[1 + len(patches) :]:
        axis.set_axis_off()
    paper = ", ".join(f"{pred} m where {true} m is true" for pred, true in BIN_RESPONSE_DEPTHS)
    figure.suptitle(f"Semantic bin response: prompt 3, class-dependent bins 1, no mirror image; in the paper {paper}")
    save_figure(figure, path, caption)


def draw_question(path: Path, contrasts: Sequence[Contrast], findings: Findings, caption: str) -> None:
    """The primary contrasts, image by image; all assignments of bins to words; true and predicted depth of patches."""
    permuted, figure = findings.permuted, new_figure(12, 6.4)
    columns = ["differences", *(["assignments"] if permuted is not None else [])]
    names = [[*(f"{column} {row}" for column in columns), "patches"] for row in range(len(PRIMARY))]
    ratios = [1.2] * len(columns) + [1.3]
    axes: dict[str, Axes] = figure.subplot_mosaic(names, width_ratios=ratios)  # type: ignore[arg-type]
    for row, contrast in enumerate(contrasts):
        axis = axes[f"differences {row}"]
        differences = np.sort(findings.results.paired(contrast.row, contrast.minus, contrast.metric))
        better = "above" if contrast.metric in HIGHER else "below"
        axis.bar(range(len(differences)), differences, width=0.8 if len(differences) < 100 else 1, color="tab:blue")
        axis.axhline(0, color="black", linewidth=1)
        axis.axhline(differences.mean(), color="tab:orange", linewidth=2)
        if contrast.interval_95:
            axis.axhspan(*contrast.interval_95, color="tab:orange", alpha=0.25, linewidth=0)
        axis.set_title(f"{contrast.metric}: {contrast.difference:+.3f}, {interval_text(contrast)}", fontsize=11)
        axis.set(xticks=[], xlabel=f"images, sorted; {better} 0 is better", ylabel="minus uniform weights")
        if permuted is not None:
            axis, own = axes[f"assignments {row}"], permuted[0, row]
            axis.hist(permuted[1:, row], bins=60, color="tab:gray")
            axis.axvline(own, color="tab:orange", linewidth=2)
            axis.set_title(f"this run over patches {own:.3f}, p = {contrast.p:.4f}", fontsize=10)
            axis.set(xlabel=f"{contrast.metric}, over patches", ylabel=f"of {len(permuted) - 1:,} assignments")
    predicted, true = findings.patches
    axis, span = axes["patches"], (0.0, float(np.ceil(findings.patches.max(initial=1))))
    counts = axis.hist2d(true, predicted, bins=60, range=[span, span], cmap="viridis", cmin=1)[3]
    axis.plot(span, span, color="tab:red", linestyle="--", linewidth=1)
    axis.set(aspect="equal", xlabel="true depth of a patch [m]", ylabel="predicted depth [m]")
    axis.set_title("every patch; dashed: predicted = true", fontsize=11)
    figure.colorbar(counts, ax=axis, label="patches", shrink=0.6)
    figure.suptitle("Does language see depth here? Orange: this run, and the mean difference with its 95 % interval")
    save_figure(figure, path, caption)


def draw_certainty(path: Path, curve: np.ndarray, gain: Contrast, caption: str) -> None:
    """Mean abs_rel of the most certain share of patches, (SHARES,), and a random order; `gain` is the area between."""
    shares = 100 * np.arange(1, len(curve) + 1) / len(curve)
    figure = new_figure(6.4, 4.2)
    axis = figure.subplots()
    axis.fill_between(shares, curve, curve[-1], color="tab:orange", alpha=0.25, linewidth=0)
    axis.plot(shares, curve, color="tab:orange", label="by sigma, the most certain first")
    axis.axhline(curve[-1], color="tab:red", linestyle="--", linewidth=1, label="in a random order")
    axis.set(xlabel="share of each image's patches [%]", ylabel="mean abs_rel, lower is better", xlim=(0, 100))
    axis.set_ylim(bottom=0)
    axis.legend()
    title = "Does CLIP know when it is wrong? sigma: how far apart the depths of its answers lie\naurg, the area to a "
    title += f"random order: {gain.difference:+.3f}, {interval_text(gain)}; above 0, certain ones are better"
    figure.suptitle(title, fontsize=9)
    save_figure(figure, path, caption)


def interval_text(contrast: Contrast) -> str:
    """A contrast's interval in a title."""
    return "95 % [{:+.3f}, {:+.3f}]".format(*contrast.interval_95) if contrast.interval_95 else "no interval"


def draw_readouts(path: Path, cases: Mapping[Case, Sequence[Contrast]], caption: str) -> None:
    """delta1 minus uniform weights of each case, with its interval, grouped by read-out; the release's in orange."""
    groups: dict[str, list[tuple[Case, Contrast]]] = {}
    for case, contrasts in cases.items():
        groups.setdefault(case.readout, []).append((case, contrasts[0]))
    figure = new_figure(9, 1.6 + 0.22 * (len(cases) + 2 * len(groups)))
    axis, labels = figure.subplots(), []
    for readout, members in groups.items():
        labels.append(readout)
        for case, contrast in members:
            y, how = len(labels), "linear probe" if case.temperature is None else f"{case.temperature:g}"
            colour = "tab:orange" if case.released else "tab:gray" if case.temperature is None else "tab:blue"
            if contrast.interval_95:
                axis.hlines(y, *contrast.interval_95, color=colour, linewidth=1.5)
            axis.plot(contrast.difference or 0.0, y, "D" if case.released else "o", color=colour, markersize=5)
            labels.append(f"{case.backbone[:60]}, {case.statistics}, {how}" + " (released)" * case.released)
        labels.append("")
    axis.axvline(0, color="tab:red", linestyle="--", linewidth=1)
    axis.set_yticks(range(len(labels)), map(printable, labels), fontsize=8, parse_math=False)
    for label in axis.get_yticklabels():
        label.set_fontweight("bold" if label.get_text() in groups else "normal")
    axis.set_ylim(len(labels) - 1.5, -1)
    axis.set_xlabel("delta1 minus uniform weights; 95 % intervals; right of the dashed line is better")
    axis.grid(axis="x", alpha=0.3)
    axis.tick_params(axis="y", length=0)
    title = "Which patch features, which CLIP? In bold a read-out; below it backbone, image statistics, temperature."
    figure.suptitle(f"{title}\nUniform weights: a constant depth. Orange diamond: the released setting.", fontsize=9)
    save_figure(figure, path, caption)


def near_and_far(truth: np.ndarray, grid: Sequence[int]) -> list[tuple[int, int, float]]:
    """Row, column and mean of a near and a far one of h x w patches, half of which is measured, of truth (H, W) [m]."""
    h, w = grid
    rows, columns = (np.arange(side) * n // side for side, n in zip(truth.shape, grid, strict=True))
    places = (rows[:, None] * w + columns).ravel()  # of each pixel, its patch
    measured = np.bincount(places, truth.ravel() > 0, h * w)
    usable = np.flatnonzero(2 * measured >= np.bincount(places, minlength=h * w))
    if not len(usable):
        return []
    depth = np.bincount(places, truth.ravel(), h * w)[usable] / measured[usable]
    order = depth.argsort()
    chosen = dict.fromkeys(int(order[round(quantile * (len(order) - 1))]) for quantile in (0.15, 0.85))
    return [(*divmod(int(usable[i]), w), float(depth[i])) for i in chosen]


def draw_ladder(path: Path, results: Results, caption: str, published: Mapping[str, float] | None = None) -> None:
    """The rungs as bars of delta1 and abs_rel with intervals, this run in orange; a dashed line is `published`."""
    rungs = {row: results.intervals(row)[0] for row in RUNGS if row in results.metrics}
    figure = new_figure(8, 1.3 + 0.36 * len(rungs))
    axes = figure.subplots(1, len(PRIMARY), sharey=True)
    for axis, metric in zip(axes, PRIMARY, strict=True):
        for y, row in enumerate(rungs):
            mean, interval = results.mean(row)[metric] or 0.0, rungs[row][metric]
            axis.barh(y, mean, color="tab:orange" if row == THIS_RUN else "tab:blue", height=0.7, alpha=0.85)
            axis.text(max(mean, interval[1] if interval else 0), y, f"  {mean:.3f}", va="center", fontsize=9)
            if interval and interval[0] < interval[1]:
                axis.hlines(y, *interval, color="black", linewidth=1)
                axis.vlines(interval, y - 0.2, y + 0.2, color="black", linewidth=1)
        if published:
            axis.axvline(published[metric], color="black", linestyle="--", linewidth=1)
        axis.set_title(f"{metric}, {'higher' if metric in HIGHER else 'lower'} is better", fontsize=10)
        axis.grid(axis="x", alpha=0.3)
        axis.set_xlim(right=1.15 * axis.get_xlim()[1])  # room for the last value
    axes[0].set_yticks(range(len(rungs)), list(rungs), fontsize=10)
    axes[0].set_ylim(len(rungs) - 0.4, -0.6)
    line = "; dashed: published" if published else ""
    figure.suptitle(f"How far does language get? Orange: this run; whiskers: 95 % intervals{line}", fontsize=10)
    save_figure(figure, path, caption)
