"""The strip of an evaluation as PNG, and what all drawings share: a message above, a caveat in grey below."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from textwrap import fill
from typing import Any

import numpy as np

from download import write_whole
from viewer.colour import COLOUR_MAP


@dataclass(frozen=True)
class Example:
    """An image of the strip."""

    name: str  # written into the picture
    pixels: np.ndarray  # (H, W, 3) uint8, RGB
    truth: np.ndarray  # (H, W) [m], 0 where nothing was measured
    depth: np.ndarray  # (H, W) [m], as predicted
    delta1: float | None = None  # as in per_image.csv


def example_images(scenes: Sequence[str], count: int = 4) -> list[int]:
    """Places of at most `count` images to show: the first of each scene, a classroom before all others, then any."""
    first = {scene: place for place, scene in reversed(list(enumerate(scenes)))}
    of_scenes = sorted(first.values(), key=lambda place: (scenes[place] != "classroom", place))  # the paper shows one
    return list(dict.fromkeys([*of_scenes, *range(len(scenes))]))[:count]


def colour_range(examples: Sequence[Example]) -> tuple[float, float]:
    """Between which depths [m] the colours run: all predictions, and each truth's 2nd to 98th percentile."""
    bounds = [np.percentile(true, (2, 98)) for one in examples if len(true := one.truth[one.truth > 0])]
    every = np.concatenate([*bounds, *(example.depth.flat for example in examples)])
    return float(every.min()), float(every.max())


@contextmanager
def drawing(path: Path, title: str, caption: str, height: float) -> Iterator[Any]:
    """A figure of this height [inches], whatever a person's matplotlibrc says; a PNG at the end. Raises OSError."""
    import matplotlib.figure  # here, so that a command which draws nothing does not wait for it

    matplotlib.rcdefaults()
    matplotlib.rcParams.update({"font.size": 9, "axes.titlesize": 9.5})
    figure = matplotlib.figure.Figure(figsize=(8, height), layout="constrained")  # letters have their size at 800 px
    figure.suptitle(fill(title, 85), fontsize=12, parse_math=False)
    figure.supxlabel(fill(caption, 110), fontsize=9, color="0.4", parse_math=False)
    yield figure
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph", UserWarning)  # a scene's name in letters that the font lacks
        write_whole(path, lambda file: figure.savefig(file, dpi=200, format="png", metadata={"Software": None}))


def draw_strip(path: Path, examples: Sequence[Example], caption: str) -> None:
    """Writes a PNG with a row for each example: input, ground truth, prediction and error. Raises OSError."""
    near, far = colour_range(examples)
    heights = [0.25 + 1.8 * min(one.depth.shape[0] / one.depth.shape[1], 1.5) for one in examples]  # inches
    with drawing(path, "What this run sees, and where it is wrong", caption, sum(heights) + 1.5) as figure:
        style = {"xticks": [], "yticks": [], "facecolor": "0.75"}
        axes = figure.subplots(len(examples), 4, squeeze=False, height_ratios=heights, subplot_kw=style)
        for row, example in zip(axes, examples, strict=True):
            truth = np.ma.masked_less_equal(example.truth, 0)
            row[0].imshow(example.pixels)
            row[0].set_xlabel(example.name[-26:], parse_math=False)
            for axis, depth in zip(row[1:], (truth, example.depth), strict=False):
                depths = axis.imshow(depth, cmap=COLOUR_MAP, vmin=near, vmax=far, interpolation="nearest")
            error = 100 * example.depth / truth - 100  # %
            errors = row[3].imshow(error, cmap="RdBu_r", vmin=-50, vmax=50, interpolation="nearest")
            if example.delta1 is not None:
                row[3].set_xlabel(f"delta1 {example.delta1:.3f}")
        for axis, title in zip(axes[0], ("input", "true depth (grey: none)", "this run", "error"), strict=True):
            axis.set_title(title)
        bar = {"location": "bottom", "extend": "both", "aspect": 40}
        figure.colorbar(depths, ax=axes[:, 1:3], label="depth [m]: bright is near, dark is far", **bar)
        figure.colorbar(errors, ax=axes[:, 3], label="error [%]: red is too far", **bar | {"aspect": 20})
