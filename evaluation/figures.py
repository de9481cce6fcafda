"""The figures of a run, as PNG: the qualitative strip, the paper's semantic bin response, and a chart of all rows.

A run without figures does not import this file, so that it does not wait for matplotlib.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

import paper
from calculate_error import NYU_CROP
from datasets.nyu import NYUDepthV2, NYUMat, Sample
from depth_images import COLOURS
from evaluation.batch_error import CROP_SIZE, Counted
from evaluation.controls import Suite
from evaluation.results import Results
from report import CHART_FILE, RESPONSE_FILE, STRIP_FILE, THIS_RUN, TITLES, UNIFORM, group_range

CHARTED = ("a1", "abs_rel", "rmse", "spearman")
BETTER = {
    "a1": "higher is better",
    "abs_rel": "lower is better",
    "rmse": "lower is better, m",
    "spearman": "higher is better",
}
NEAR, FAR = 0.15, 0.85  # quantiles of the patches' true depth that the two patches of the bin response are taken at


def draw_all(
    folder: Path,
    results: Results,
    suite: Suite,
    records: Sequence[Mapping[str, Any]],
    dataset: NYUDepthV2 | NYUMat,
    shown: Sequence[str],
    caption: str,
) -> None:
    """Writes the figures into `folder`.

    Args:
        folder: where to.
        results: of the run.
        suite: of the run.
        records: of all images; those shown hold `depth` and `weights`.
        dataset: the images, in the order of the records.
        shown: names of the images to show, the first in the bin response.
        caption: what the figures are over.
    """
    places = {record["image"]: i for i, record in enumerate(records)}
    samples = [dataset[places[name]] for name in shown]
    chosen = [records[places[name]] for name in shown]
    draw_strip(folder / STRIP_FILE, samples, chosen, dataset.mean, dataset.std)
    draw_response(folder / RESPONSE_FILE, samples[0], chosen[0], dataset.mean, dataset.std)
    draw_chart(folder / CHART_FILE, results, suite, caption)


def pixels(sample: Sample, mean: Sequence[float], std: Sequence[float]) -> np.ndarray:
    """The image as the eye sees it, (416, 544, 3) in [0, 1]."""
    return (
        (sample.image * torch.tensor(std).view(3, 1, 1) + torch.tensor(mean).view(3, 1, 1))
        .permute(1, 2, 0)
        .numpy()
        .clip(0, 1)
    )


def save(figure: Figure, path: Path) -> None:
    """Writes a PNG that is there whole or not at all."""
    FigureCanvasAgg(figure)
    temporary = path.with_name(f".{path.name}")
    figure.savefig(temporary, dpi=110, format="png", metadata={"Software": None})
    temporary.replace(path)


def draw_strip(
    path: Path,
    samples: Sequence[Sample],
    records: Sequence[Mapping[str, Any]],
    mean: Sequence[float],
    std: Sequence[float],
) -> None:
    """Input, ground truth and prediction side by side, in one colour scale."""
    truths = [np.ma.masked_less_equal(sample.depth[0][NYU_CROP].numpy(), 0) for sample in samples]
    preds = [resized(record["depth"]) for record in records]
    bottom = min(
        min(np.percentile(t.compressed(), 2) if t.count() else np.inf, p.min())
        for t, p in zip(truths, preds, strict=True)
    )
    top = max(
        max(np.percentile(t.compressed(), 98) if t.count() else 0, p.max()) for t, p in zip(truths, preds, strict=True)
    )
    figure = Figure(figsize=(11, 2.3 * len(samples) + 0.5), layout="constrained")
    axes = figure.subplots(len(samples), 3, squeeze=False)
    for row, sample, truth, pred in zip(axes, samples, truths, preds, strict=True):
        row[0].imshow(pixels(sample, mean, std))
        for axis, depth in ((row[1], truth), (row[2], pred)):
            axis.set_facecolor("0.75")
            drawn = axis.imshow(depth, cmap=COLOURS, vmin=bottom, vmax=top)
        row[0].text(8, 10, sample.name, fontsize=8, va="top", bbox={"facecolor": "white", "alpha": 0.8, "pad": 2})
        for axis in row:
            axis.set(xticks=[], yticks=[])
    for axis, title in zip(axes[0], ("input", "ground truth (grey: not measured)", THIS_RUN), strict=True):
        axis.set_title(title)
    figure.colorbar(drawn, ax=axes[:, 1:], extend="both", label="depth [m]: bright is near, dark is far", shrink=0.9)
    save(figure, path)


def resized(depth: Sequence[Sequence[float]]) -> np.ndarray:
    """A map (h, w) as the method resizes it, (416, 544)."""
    grid = torch.tensor(depth)[None, None]
    return F.interpolate(grid, CROP_SIZE, mode="bilinear", align_corners=True)[0, 0].numpy()


def draw_response(
    path: Path, sample: Sample, record: Mapping[str, Any], mean: Sequence[float], std: Sequence[float]
) -> None:
    """The softmax weights of the words at a near and a far patch. Paper: the figure "semantic bin response"."""
    weights = np.array(record["weights"])  # (K, h, w)
    words, bins = paper.BIN_RESPONSE.depth_classes, np.array(paper.BIN_RESPONSE.bin_list)
    grid = (weights.shape[1], weights.shape[2])
    size = CROP_SIZE[0] // grid[0], CROP_SIZE[1] // grid[1]
    figure = Figure(figsize=(14, 4.6), layout="constrained")
    axes = figure.subplots(1, 3, width_ratios=(1.15, 1, 1))
    axes[0].imshow(pixels(sample, mean, std))
    axes[0].set(xticks=[], yticks=[], title=sample.name)
    for axis, (place, true), colour in zip(
        axes[1:], two_patches(sample, grid), ("tab:orange", "tab:blue"), strict=False
    ):
        row, column = divmod(place, grid[1])
        corner = (column * size[1], row * size[0])
        axes[0].add_patch(Rectangle(corner, size[1], size[0], fill=False, edgecolor=colour, linewidth=3))
        bars = weights[:, row, column]
        axis.bar(range(len(bins)), bars, color=colour)
        axis.set_xticks(
            range(len(bins)),
            [f"{w}\n{b:.2f} m" for w, b in zip(words, bins, strict=True)],
            rotation=60,
            ha="right",
            rotation_mode="anchor",
        )
        axis.set(ylim=(0, 1), ylabel="softmax weight")
        axis.set_title(f"patch in {colour[4:]}: predicted {bars @ bins:.3f} m, true {true:.3f} m", fontsize=11)
    for axis in axes[1:]:
        if not axis.patches:
            axis.set_axis_off()
    figure.suptitle("Semantic bin response: prompt 3, class-dependent bins 1, without the mirror image")
    save(figure, path)


def two_patches(sample: Sample, grid: tuple[int, int]) -> list[tuple[int, float]]:
    """Place on the grid and true mean depth [m] of a near and a far patch; fewer where the truth has fewer."""
    counted = Counted.of(sample.depth, grid)
    depth, places = counted.patch_depth[0].numpy(), counted.patches.numpy()
    order = depth.argsort()
    chosen = dict.fromkeys(int(order[round(q * (len(order) - 1))]) for q in (NEAR, FAR)) if len(order) else {}
    return [(int(places[i]), float(depth[i])) for i in chosen]


def draw_chart(path: Path, results: Results, suite: Suite, caption: str) -> None:
    """All rows: means with 95 % intervals, groups as median with minimum and maximum, the paper's figures beside."""
    groups = suite.groups
    grouped = {name for names in groups.values() for name in names}
    names = [name for name in results.rows if name not in grouped]
    intervals = results.intervals(names)
    published = {
        suite.row_of(row.reading): row.by_column() for row in paper.PUBLISHED if row.reading and row.scene is None
    }
    labels = [*names, *(f"{group} ({len(members)})" for group, members in groups.items())]
    figure = Figure(figsize=(15, 1.6 + 0.27 * len(labels)), layout="constrained")
    axes = figure.subplots(1, len(CHARTED), sharey=True)
    for axis, column in zip(axes, CHARTED, strict=True):
        for y, name in enumerate(names):
            bounds = intervals[name][0][column]
            draw_bar(axis, y, results.mean(name)[column], bounds, "tab:green" if name == THIS_RUN else "tab:blue")
            value = published.get(name, {}).get(column)
            if value is not None:
                axis.plot(value, y, "D", color="black", markersize=5)
        for y, members in enumerate(groups.values(), len(names)):
            span = group_range(results, members)
            low, high = span["min"][column], span["max"][column]
            bounds = (low, high) if low is not None and high is not None else None
            draw_bar(axis, y, span["median"][column], bounds, "tab:gray")
        constant = results.mean(UNIFORM)[column]
        if constant is not None:
            axis.axvline(constant, color="tab:red", linestyle="--", linewidth=1)
        axis.set_title(f"{TITLES[column]} ({BETTER[column]})", fontsize=10)
        axis.grid(axis="x", alpha=0.3)
    axes[0].set_yticks(range(len(labels)), labels, fontsize=8)
    axes[0].set_ylim(len(labels) - 0.4, -0.6)
    note = f"{caption}\nWhiskers: 95 % bootstrap interval over images"
    note += "; grey: median, minimum and maximum of a group" if groups else ""
    figure.suptitle(f"{note}. Dashed: {UNIFORM}. Diamond: the paper.", fontsize=10)
    save(figure, path)


def draw_bar(axis: Axes, y: int, value: float | None, bounds: tuple[float, float] | None, colour: str) -> None:
    """One horizontal bar with whiskers; nothing where there is no value."""
    if value is None:
        return
    axis.barh(y, value, color=colour, height=0.7, alpha=0.85)
    if bounds and bounds[0] < bounds[1]:
        axis.hlines(y, *bounds, color="black", linewidth=1)
        axis.vlines(bounds, y - 0.2, y + 0.2, color="black", linewidth=1)
