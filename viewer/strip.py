"""The strip of an evaluation as PNG: pictures, their true and their predicted depth, all in one colour scale."""

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from download import write_whole
from viewer.colour import COLOUR_MAP

TALLEST = 1.5  # heights of a row for its width
LEAST_HEIGHT = 2.5  # inches, for the label of the colours


@dataclass(frozen=True)
class Example:
    """An image of the strip."""

    name: str  # written into the picture
    pixels: np.ndarray  # (H, W, 3) uint8, RGB
    truth: np.ndarray  # (H, W) [m], 0 where nothing was measured
    depth: np.ndarray  # (H, W) [m], as predicted


def example_images(scenes: Sequence[str], count: int = 4) -> list[int]:
    """Places of at most `count` images to show: the first of each scene, a classroom before all others, then any."""
    first = {scene: place for place, scene in reversed(list(enumerate(scenes)))}
    of_scenes = sorted(first.values(), key=lambda place: (scenes[place] != "classroom", place))  # the paper shows one
    return list(dict.fromkeys([*of_scenes, *range(len(scenes))]))[:count]


def colour_range(examples: Sequence[Example]) -> tuple[float, float]:
    """Between which depths [m] the colours run: all predictions, and each truth's 2nd to 98th percentile."""
    depths = [example.depth for example in examples]
    measured = [example.truth[example.truth > 0] for example in examples]
    bounds = depths + [np.percentile(depth, (2, 98)) for depth in measured if depth.size]
    return min(float(depth.min()) for depth in bounds), max(float(depth.max()) for depth in bounds)


def new_figure(width: float, height: float) -> Any:
    """An empty figure, in inches, whatever a person's matplotlibrc says."""
    import matplotlib.figure  # here, so that a command which draws nothing does not wait for it

    matplotlib.rcdefaults()
    return matplotlib.figure.Figure(figsize=(width, height), layout="constrained")


def draw_strip(path: Path, examples: Sequence[Example], caption: str) -> None:
    """Writes a PNG with a row for each example: input, ground truth and prediction. Raises OSError."""
    near, far = colour_range(examples)
    heights = [3.07 * min(height / width, TALLEST) for height, width in (one.depth.shape for one in examples)]  # inches
    figure = new_figure(11, max(sum(heights), LEAST_HEIGHT) + 0.5)
    style: dict[str, Any] = {"xticks": [], "yticks": [], "facecolor": "0.75"}
    axes = figure.subplots(len(examples), 3, squeeze=False, height_ratios=heights, subplot_kw=style)
    for row, example in zip(axes, examples, strict=True):
        row[0].imshow(example.pixels)
        label = {"facecolor": "white", "alpha": 0.8, "pad": 2}
        row[0].text(8, 10, example.name, fontsize=8, va="top", parse_math=False, bbox=label)
        for axis, depth in ((row[1], np.ma.masked_less_equal(example.truth, 0)), (row[2], example.depth)):
            colours = axis.imshow(depth, cmap=COLOUR_MAP, vmin=near, vmax=far, interpolation="nearest")
    for axis, title in zip(axes[0], ("input", "ground truth (grey: not measured)", "this run"), strict=True):
        axis.set_title(title)
    figure.colorbar(colours, ax=axes[:, 1:], extend="both", label="depth [m]: bright is near, dark is far", shrink=0.9)
    save_figure(figure, path, caption)


def save_figure(figure: Any, path: Path, caption: str) -> None:
    """Writes a PNG with `caption` at its foot, whole or not at all. Raises OSError: it cannot be written."""
    figure.supxlabel(fill(caption, int(14 * figure.get_figwidth())), fontsize=9, parse_math=False)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a scene's name in letters that the font lacks
        write_whole(path, lambda file: figure.savefig(file, dpi=110, format="png", metadata={"Software": None}))
