"""Step 3 of the experiments, as drawings: the question, the ladder, certainty, read-outs, the paper's bin response."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from datasets import printable
from experiments.published import BIN_RESPONSE, BIN_RESPONSE_DEPTHS, RUNGS, THIS_RUN, cell_of
from experiments.score import pooled
from experiments.statistics import HIGHER, PRIMARY, Case, Contrast, Findings, Results
from viewer.strip import Example, drawing

OWN, OTHER, NO_WORDS = "tab:orange", "tab:blue", "tab:gray"
NONE = (np.nan, np.nan)  # an interval that is not drawn


def draw_response(path: Path, example: Example, weights: np.ndarray, caption: str) -> None:
    """The softmax weights (K, h, w) of the words of `BIN_RESPONSE`, without the mirror, at a near and a far patch."""
    words, bins, grid = BIN_RESPONSE.depth_classes, np.array(BIN_RESPONSE.bin_list), weights.shape[1:]
    height, width = (side / n for side, n in zip(example.truth.shape, grid, strict=True))  # of a patch, px
    patches = near_and_far(example.truth, grid)
    answers = [f"'{words[weights[:, row, column].argmax()]}' the {which} one" for which, row, column, _ in patches]
    labels = [f"{word}, {depth:.2f} m" for word, depth in zip(words, bins, strict=True)]
    chart = {"xlim": (0, 1.25), "xticks": (0, 0.5, 1), "ylim": (len(bins) - 0.5, -0.5), "xlabel": "softmax weight"}
    with drawing(path, f"Which word fits a patch? {', '.join(answers) or 'None is measured'}", caption, 3.6) as figure:
        image, *charts = figure.subplots(1, 3, width_ratios=(1.2, 1, 1))
        image.imshow(example.pixels)
        image.set_title(example.name[-40:], parse_math=False)
        said = "prompt 3, class-dependent bins 1,\nwithout the mirror image;\ndepth: sum of weights x metres"
        image.set(xticks=[], yticks=[], xlabel=said)
        for axis in charts[len(patches) :]:
            axis.set_axis_off()
        for axis, (which, row, column, true), paper in zip(charts, patches, BIN_RESPONSE_DEPTHS[::-1], strict=False):
            colour, shares = OWN if which == "near" else OTHER, weights[:, row, column]
            x, y = width * (column + np.array([0, 1, 1, 0, 0])), height * (row + np.array([0, 0, 1, 1, 0]))
            image.plot(x, y, color=colour, linewidth=3)
            axis.bar_label(axis.barh(labels, shares, color=colour), fmt="%.2f", padding=3)
            axis.tick_params(axis="y", left=which == "near", labelleft=which == "near")
            lines = f"depth {shares @ bins:.3f} m, true {true:.3f} m\npaper's {paper[0]} m, true {paper[1]} m"
            axis.set(title=f"{which} patch, {colour[4:]}\n{lines}", **chart)


def near_and_far(truth: np.ndarray, grid: Sequence[int]) -> list[tuple[str, int, int, float]]:
    """A near and a far one of h x w patches, half of which is measured, of truth (H, W) [m]: row, column and mean."""
    share, depth = pooled(torch.from_numpy(np.stack([truth > 0, truth])).double(), grid).flatten(1).numpy()
    usable = np.flatnonzero(share >= 0.5)
    order = usable[(depth[usable] / share[usable]).argsort()].tolist()
    chosen = dict.fromkeys(order[round(quantile * (len(order) - 1))] for quantile in (0.15, 0.85) if order)
    both = zip(("near", "far"), chosen, strict=False)
    return [(which, *divmod(i, grid[1]), float(depth[i] / share[i])) for which, i in both]


def draw_question(
    path: Path, title: str, contrasts: Sequence[Contrast], findings: Findings, bins: Sequence[float], caption: str
) -> None:
    """The primary contrasts, image by image; all assignments of bins to words; true and predicted depth of patches."""
    permuted, results = findings.permuted, findings.results
    columns = ["differences", "assignments"] if permuted is not None else ["differences"]
    with drawing(path, title, caption, 5.2) as figure:
        axes = figure.subplot_mosaic([[*(f"{column} {row}" for column in columns), "patches"] for row in (0, 1)])
        for row, contrast in enumerate(contrasts):
            axis, metric = axes[f"differences {row}"], contrast.metric
            differences = np.sort(results.paired(contrast.row, contrast.minus, metric))
            axis.bar(range(len(differences)), differences, width=0.8 if len(differences) < 100 else 1, color=OTHER)
            axis.axhline(0, color="black", linewidth=1)
            axis.axhline(differences.mean(), color=OWN, linewidth=2)
            if contrast.interval_95:
                axis.axhspan(*contrast.interval_95, color=OWN, alpha=0.25, linewidth=0)
            axis.set(title=f"mean {cell_of(contrast.difference)} {cell_of(contrast.interval_95)}", xticks=[])
            better = "above" if metric in HIGHER else "below"
            axis.set(xlabel=f"images, sorted; {better} 0 is better", ylabel=f"{metric} minus uniform weights")
            if permuted is not None:
                axis, own = axes[f"assignments {row}"], permuted[0, row]
                axis.hist(permuted[1:, row], bins=60, color=NO_WORDS)
                axis.axvline(own, color=OWN, linewidth=2)
                axis.set(title=f"this run {own:.3f}, p = {contrast.p:.4f}", xlabel=f"{metric}, over patches")
                axis.set_ylabel(f"of {len(permuted) - 1:,} other assignments")
        axis, (predicted, true) = axes["patches"], np.concatenate(findings.patches, axis=1)
        span = (0.0, float(np.ceil(max([1, *predicted, *true]))))
        axis.hist2d(true, predicted, bins=60, range=[span, span], cmap="viridis_r", cmin=1)
        worst = int(results.metrics[THIS_RUN][:, results.columns.index("abs_rel")].argmax())
        axis.plot(*findings.patches[worst][::-1], ".", color=OWN, markersize=2)
        axis.plot(span, span, color="tab:red", linestyle="--", linewidth=1)
        axis.hlines((min(bins), max(bins)), *span, color="black", linestyle=":", linewidth=1)
        axis.text(span[1], min(bins), "nearest bin ", ha="right", va="top")
        axis.set(aspect="equal", ylabel="predicted depth [m]", title="every patch (dark: many)")
        legend = "true depth of a patch [m]\nred: predicted = true\norange: the picture that is worst,\n"
        axis.set_xlabel(legend + printable(results.images.names[worst])[-26:], parse_math=False)


def draw_certainty(path: Path, curve: np.ndarray, gain: Contrast, caption: str) -> None:
    """Mean abs_rel of the most certain share of patches, (SHARES,), and a random order; `gain` is the area between."""
    low, high = gain.interval_95 or (-1, 1)
    answer = "Yes, certain patches are better" if low > 0 else "Cannot tell"
    answer = "No, certain patches are worse" if high < 0 else answer
    with drawing(path, f"Does CLIP know when it is wrong? {answer}", caption, 4) as figure:
        axis, shares = figure.subplots(), 100 * np.arange(1, len(curve) + 1) / len(curve)
        area = "aurg, the mean height of this area, above 0 if it knows: "
        area += f"{cell_of(gain.difference)} {cell_of(gain.interval_95)}"
        axis.fill_between(shares, curve, curve[-1], color=OWN, alpha=0.25, linewidth=0, label=area)
        axis.plot(shares, curve, color=OWN, label="most certain patches first: least spread of depth over the words")
        axis.axhline(curve[-1], color="tab:red", linestyle="--", linewidth=1, label="patches in a random order")
        axis.set(xlabel="share of each image's patches [%]", ylabel="mean abs_rel, lower is better")
        axis.set(xlim=(0, 100), ylim=(0, 1.1 * curve.max()))
        axis.legend(loc="lower left", bbox_to_anchor=(0, 1), frameon=False)


def draw_readouts(path: Path, cases: Mapping[Case, Sequence[Contrast]], caption: str) -> None:
    """delta1 minus uniform weights of each case, with its interval, grouped by read-out."""
    labels: list[str] = []
    kinds: dict[tuple[str, str, str], dict[int, Contrast]] = {}  # colour, marker and legend -> y -> contrast
    for readout in dict.fromkeys(case.readout for case in cases):
        labels += ["", f"{readout}:"]
        for case in (case for case in cases if case.readout == readout):
            kind = OTHER, "o", "words, by backbone, image statistics, temperature"
            kind = (NO_WORDS, "o", "linear probe, no words") if case.temperature is None else kind
            kind = (OWN, "D", "the released setting") if case.released else kind
            kinds.setdefault(kind, {})[len(labels)] = cases[case][0]
            labels.append(f"{case.backbone[-40:]}, {case.statistics}, {case.name.rpartition(', ')[2]}")
    title = "Which patch features see depth? Those right of the line do better than a constant"
    with drawing(path, title, caption, 1.3 + 0.2 * len(labels)) as figure:
        axis = figure.subplots()
        for (colour, marker, legend), members in kinds.items():
            means = [contrast.difference or 0.0 for contrast in members.values()]
            reach = np.abs(np.array([contrast.interval_95 or NONE for contrast in members.values()]).T - means)
            axis.errorbar(means, list(members), xerr=reach, fmt=marker, color=colour, markersize=5, label=legend)
        axis.axvline(0, color="tab:red", linestyle="--", linewidth=1)
        axis.set_yticks(range(len(labels)), map(printable, labels), parse_math=False)
        for label in axis.get_yticklabels():
            label.set_fontweight("bold" if label.get_text().endswith(":") else "normal")
        axis.set(ylim=(len(labels), 0), xlabel="delta1 minus uniform weights (a constant depth), with 95 % intervals")
        axis.grid(axis="x", alpha=0.3)
        axis.tick_params(axis="y", length=0)
        axis.legend(loc="lower right", bbox_to_anchor=(1, 1), ncols=3, frameon=False)


def draw_ladder(path: Path, results: Results, caption: str, theirs: Mapping[str, Any] | None = None) -> None:
    """The rungs as bars of delta1 and abs_rel with intervals, this run in orange; a dashed line is `theirs`."""
    rungs = [row for row in RUNGS if row in results.metrics]
    colours = [OWN if row == THIS_RUN else OTHER for row in rungs]
    line = "; dashed: published" if theirs else ""
    title = f"How far does language get? Orange: this run{line}; whiskers: 95 % intervals"
    with drawing(path, title, caption, 1.3 + 0.36 * len(rungs)) as figure:
        for axis, metric in zip(figure.subplots(1, 2, sharey=True), PRIMARY, strict=True):
            means = [results.mean(row)[metric] or 0.0 for row in rungs]
            reach = np.abs(np.array([results.intervals(row)[0][metric] or NONE for row in rungs]).T - means)
            bars = axis.barh(rungs, means, xerr=reach, capsize=4, color=colours, height=0.7, alpha=0.85)
            axis.bar_label(bars, fmt="%.3f", padding=4)
            if theirs:
                axis.axvline(theirs[metric], color="black", linestyle="--", linewidth=1)
            axis.set_title(f"{metric}, {'higher' if metric in HIGHER else 'lower'} is better")
            axis.grid(axis="x", alpha=0.3)
            axis.set(xlim=(0, 1.15 * axis.get_xlim()[1]), ylim=(len(rungs) - 0.4, -0.6))  # room for the last value
