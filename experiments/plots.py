"""Step 3 of the experiments, as drawings: the paper's semantic bin response, and a chart of all rows.

Imported only by a run that draws: matplotlib takes a second.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from datasets import printable
from experiments.published import BIN_RESPONSE, BIN_RESPONSE_DEPTHS, THIS_RUN, UNIFORM
from experiments.statistics import HIGHER, PRIMARY, Case, Contrast, Findings, Interval, Results
from viewer.strip import Example, save_figure

CHARTED = {"delta1": "higher", "abs_rel": "lower", "rmse": "lower", "spearman": "higher"}  # is better
FINE = 100  # images, from which on bars touch each other
LONGEST = 60  # letters of a name in a drawing
NEAR, FAR = 0.15, 0.85  # quantiles of the patches' true depth at which the bin response takes its two patches


def draw_response(path: Path, example: Example, weights: np.ndarray, caption: str) -> None:
    """The softmax weights (K, h, w) of the words of `BIN_RESPONSE`, without the mirror, at a near and a far patch."""
    words, bins = BIN_RESPONSE.depth_classes, np.array(BIN_RESPONSE.bin_list)
    grid = weights.shape[1:]
    height, width = (side / n for side, n in zip(example.truth.shape, grid, strict=True))  # of a patch, px
    figure = Figure(figsize=(14, 4.6), layout="constrained")
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


def draw_question(
    path: Path,
    contrasts: Sequence[Contrast],
    findings: Findings,
    caption: str,
    drawn: tuple[float, float] | None = None,
) -> None:
    """The primary contrasts, image by image; all assignments of bins to words; depth of each patch, true and predicted.

    drawn: ends of the axes of depth [m]; of 0 and all patches if None.
    """
    permuted, results = findings.permuted, findings.results
    figure = Figure(figsize=(12, 6.4), layout="constrained")
    columns = ["differences", "assignments", "patches"] if permuted is not None else ["differences", "patches"]
    names = [
        [f"{column} {row}" if column != "patches" else column for column in columns] for row in range(len(PRIMARY))
    ]
    axes: dict[str, Axes] = figure.subplot_mosaic(
        names,  # type: ignore[arg-type]
        width_ratios=[1.2] * (len(columns) - 1) + [1.3],
    )
    for row, contrast in enumerate(contrasts):
        axis = axes[f"differences {row}"]
        differences = np.sort(results.paired(contrast.row, contrast.minus, contrast.metric))
        better = "above" if contrast.metric in HIGHER else "below"
        axis.bar(range(len(differences)), differences, width=0.8 if len(differences) < FINE else 1, color="tab:blue")
        axis.axhline(0, color="black", linewidth=1)
        axis.axhline(differences.mean(), color="tab:orange", linewidth=2)
        interval = "no interval"
        if contrast.interval_95:
            axis.axhspan(*contrast.interval_95, color="tab:orange", alpha=0.25, linewidth=0)
            interval = "95 % [{:+.3f}, {:+.3f}]".format(*contrast.interval_95)
        axis.set_title(f"{contrast.metric}: {contrast.difference:+.3f}, {interval}", fontsize=11)
        axis.set(xticks=[], xlabel=f"images, sorted; {better} 0 is better", ylabel="minus uniform weights")
        if permuted is not None:
            axis, own = axes[f"assignments {row}"], permuted[0, row]
            axis.hist(permuted[1:, row], bins=60, color="tab:gray")
            axis.axvline(own, color="tab:orange", linewidth=2)
            axis.set_title(f"this run over patches {own:.3f}, p = {contrast.p:.4f}", fontsize=10)
            axis.set(xlabel=f"{contrast.metric}, over patches", ylabel=f"of {len(permuted) - 1:,} assignments")
    predicted, true = patches = findings.patches
    axis, span = axes["patches"], drawn or (0.0, float(np.ceil(patches.max(initial=1))))
    true, predicted = np.clip(true, *span), np.clip(predicted, *span)  # as metrics do
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
    figure = Figure(figsize=(6.4, 4.2), layout="constrained")
    axis = figure.subplots()
    axis.fill_between(shares, curve, curve[-1], color="tab:orange", alpha=0.25, linewidth=0)
    axis.plot(shares, curve, color="tab:orange", label="by sigma, the most certain first")
    axis.axhline(curve[-1], color="tab:red", linestyle="--", linewidth=1, label="in a random order")
    axis.set(xlabel="share of each image's patches [%]", ylabel="mean abs_rel, lower is better", xlim=(0, 100))
    axis.set_ylim(bottom=0)
    axis.legend()
    between = ", 95 % [{:+.3f}, {:+.3f}]".format(*gain.interval_95) if gain.interval_95 else ", no interval"
    title = "Does CLIP know when it is wrong? sigma: how far apart the depths of its answers lie"
    title += f"\naurg, the area to a random order: {gain.difference:+.3f}{between}; above 0, certain ones are better"
    figure.suptitle(title, fontsize=9)
    save_figure(figure, path, caption)


def draw_readouts(path: Path, cases: Mapping[Case, Sequence[Contrast]], caption: str) -> None:
    """delta1 minus uniform weights of each case, with its interval, grouped by read-out; the release's in orange."""
    groups: dict[str, list[tuple[Case, Contrast]]] = {}
    for case, contrasts in cases.items():
        groups.setdefault(case.readout, []).append((case, contrasts[0]))
    figure = Figure(figsize=(9, 1.6 + 0.22 * (len(cases) + 2 * len(groups))), layout="constrained")
    axis, labels = figure.subplots(), []
    for readout, members in groups.items():
        labels.append(readout)
        for case, contrast in members:
            colour, y = "tab:orange" if case.released else "tab:blue", len(labels)
            if contrast.interval_95:
                axis.hlines(y, *contrast.interval_95, color=colour, linewidth=1.5)
            axis.plot(float(contrast.difference or 0), y, "D" if case.released else "o", color=colour, markersize=5)
            labels.append(
                f"{case.backbone[:LONGEST]}, {case.statistics}, {case.temperature:g}" + " (released)" * case.released
            )
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
    """Row, column and mean true depth [m] of a near and a far patch, of those that are measured by half or more.

    truth: (H, W) [m], 0 = no measurement; grid: (h, w) patches.
    """
    h, w = grid
    rows, columns = (np.arange(side) * n // side for side, n in zip(truth.shape, grid, strict=True))
    places = (rows[:, None] * w + columns).ravel()  # of each pixel, its patch
    measured = np.bincount(places, truth.ravel() > 0, h * w)
    usable = np.flatnonzero(2 * measured >= np.bincount(places, minlength=h * w))
    if not len(usable):
        return []
    depth = np.bincount(places, truth.ravel(), h * w)[usable] / measured[usable]
    order = depth.argsort()
    chosen = dict.fromkeys(int(order[round(quantile * (len(order) - 1))]) for quantile in (NEAR, FAR))
    return [(*divmod(int(usable[i]), w), float(depth[i])) for i in chosen]


def draw_chart(path: Path, results: Results, published: Mapping[str, Mapping[str, float | None]], caption: str) -> None:
    """All rows: means with 95 % intervals, and published metrics beside (row -> metrics, where they compare)."""
    rows = list(results.metrics)
    intervals = {row: results.intervals(row)[0] for row in rows}
    figure = Figure(figsize=(15, 1.6 + 0.27 * len(rows)), layout="constrained")
    axes = figure.subplots(1, len(CHARTED), sharey=True)
    for axis, (metric, better) in zip(axes, CHARTED.items(), strict=True):
        for y, row in enumerate(rows):
            colour = "tab:green" if row == THIS_RUN else "tab:blue"
            draw_bar(axis, y, results.mean(row)[metric], intervals[row][metric], colour)
            value = published.get(row, {}).get(metric)
            if value is not None:
                axis.plot(value, y, "D", color="black", markersize=5)
        axis.axvline(results.mean(UNIFORM)[metric] or 0, color="tab:red", linestyle="--", linewidth=1)
        axis.set_title(f"{metric} ({better} is better{', m' if metric == 'rmse' else ''})", fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(rows)), map(printable, rows), fontsize=8, parse_math=False)
    axes[0].set_ylim(len(rows) - 0.4, -0.6)
    note = f"Whiskers: 95 % intervals, as in tables.md. Dashed: {UNIFORM}, or 0 where these have no order."
    figure.suptitle(note + " Diamond: published." * bool(published), fontsize=10)
    save_figure(figure, path, caption)


def draw_bar(axis: Axes, y: int, mean: float | None, interval: Interval, colour: str) -> None:
    """One horizontal bar, with whiskers where there is an interval; none for a metric that the row does not have."""
    if mean is None:
        return
    axis.barh(y, mean, color=colour, height=0.7, alpha=0.85)
    if interval and interval[0] < interval[1]:
        axis.hlines(y, *interval, color="black", linewidth=1)
        axis.vlines(interval, y - 0.2, y + 0.2, color="black", linewidth=1)
