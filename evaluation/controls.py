"""What is evaluated in one pass over the images: the paper's readings, one's own, and the controls the paper lacks.

The encoder runs once for each image and its mirror. Everything else is a cheap view on its (2B, C, h, w) features:

    Setting       words, bins and temperature, perhaps with other channels or the depths at shuffled places
    RandomDepth   depth that ignores the image
    constants     one depth everywhere; their figures follow from the ground truth alone

A `Suite` lists them; `Predictor` turns features into the depth of every row of the suite.
"""

import math
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

import paper
from calculate_error import NYU_CROP
from datasets.nyu import DataError, depth_in_metres
from datasets.nyu_files import decode
from evaluation.encode import to_device
from monoclip import Reading, mirror_average

THIS_RUN = "this run"
UNIFORM = "uniform weights"
BEST = "best constant for each figure"
MEAN_IMAGE = "mean training depth image"
PERMUTATIONS, SHUFFLES, CHANNEL_SUBSETS, RANDOM_SEEDS = 100, 5, 20, 5
MAX_RANDOM_DEPTH = 10.0  # [m] of the paper's Lower Bound
# Seven words that vary as the depth classes do, but not in distance; and seven that vary in nothing.
COLOUR_WORDS = ("very red", "red", "a little red", "not in colour", "a little green", "green", "very green")
UNRELATED_WORDS = ("banana", "parliament", "violin", "Tuesday", "umbrella", "arithmetic", "giraffe")

# How random depth is drawn: the paper does not say. All uniform in 0 to 10 m.
PIXEL, GRID, MIRRORED = "random, each pixel", "random, each patch", "random, each patch, mirror average"
RANDOM_KINDS = (PIXEL, GRID, MIRRORED)


@dataclass(frozen=True)
class Setting:
    """A row whose depth is read out of the features.

    Attributes:
        name: of the row.
        reading: words, bins, temperature.
        group: rows of one group are reported together, as minimum, median and maximum.
        own: whether the user asked for it by name.
        channels: seed of a random choice of D of the C channels, in place of every second.
        shuffle: seed of a random order that the depths are put in, another for each image.
    """

    name: str
    reading: Reading
    group: str = ""
    own: bool = False
    channels: int | None = None
    shuffle: int | None = None


@dataclass(frozen=True)
class RandomDepth:
    """A row of random depth; `kind` is one of `RANDOM_KINDS`, which is also its group."""

    kind: str
    seed: int

    @property
    def name(self) -> str:
        """Of the row."""
        return f"{self.kind}, seed {self.seed}"


@dataclass(frozen=True)
class Suite:
    """The rows of a run: settings, random depth, constants [m] by name, and depth maps (416, 544) [m] by name.

    `paper` and `controls` say whether the rows of `with_paper` and `with_controls` are among them.
    """

    settings: tuple[Setting, ...]
    randoms: tuple[RandomDepth, ...] = ()
    constants: Mapping[str, float] = field(default_factory=dict)
    maps: Mapping[str, Tensor] = field(default_factory=dict)
    paper: bool = False
    controls: bool = False

    @property
    def predicted(self) -> tuple[str, ...]:
        """Names of the rows that are predicted for each image, in the order of `Predictor`: grids, then maps."""
        grids = [s.name for s in self.settings] + [r.name for r in self.randoms if r.kind != PIXEL]
        return (*grids, *(r.name for r in self.randoms if r.kind == PIXEL), *self.maps)

    @property
    def own(self) -> list[Setting]:
        """The settings that the user asked for by name."""
        return [setting for setting in self.settings if setting.own]

    @property
    def groups(self) -> dict[str, list[str]]:
        """Group -> names of its rows."""
        found: dict[str, list[str]] = {}
        for group, name in [(s.group, s.name) for s in self.settings] + [(r.kind, r.name) for r in self.randoms]:
            if group:
                found.setdefault(group, []).append(name)
        return found

    @property
    def all_channels(self) -> bool:
        """Whether a row needs more than every second channel."""
        return any(setting.channels is not None for setting in self.settings)

    def row_of(self, reading: Reading) -> str | None:
        """Name of the row that is this reading and nothing else."""
        for s in self.settings:
            if s.reading == reading and s.channels is None and s.shuffle is None and not s.group:
                return s.name
        return None


def plain_suite(reading: Reading, own: Mapping[str, Reading] | None = None) -> Suite:
    """The reading of this run, those of `own`, and what the first gives if language says nothing."""
    settings = [Setting(THIS_RUN, reading), *(Setting(name, r, own=True) for name, r in (own or {}).items())]
    return Suite(tuple(settings), constants={UNIFORM: sum(reading.bin_list) / len(reading.bin_list)})


def with_paper(suite: Suite) -> Suite:
    """Adds every reading that the paper publishes figures of, and its Lower Bound in three kinds of random."""
    settings = list(suite.settings)
    for prefix, readings in (("", paper.PROMPT_SETS), ("bins ", paper.BIN_SETS)):
        for name, reading in readings.items():
            if all(s.reading != reading for s in settings if not s.group):
                settings.append(Setting(f"{prefix}{name}" if name != "original" else "the paper's reading", reading))
    randoms = tuple(RandomDepth(kind, 0) for kind in RANDOM_KINDS)
    suite = replace(suite, settings=tuple(settings), randoms=randoms, paper=True)
    return with_bin_response(suite)


def with_bin_response(suite: Suite) -> Suite:
    """Adds the reading of the paper's bin-response figure."""
    if suite.row_of(paper.BIN_RESPONSE):
        return suite
    setting = Setting("prompt 3, bins class-dependent 1", paper.BIN_RESPONSE)
    return replace(suite, settings=(*suite.settings, setting))


def with_controls(suite: Suite, channels: bool, mean_image: Tensor | None) -> Suite:
    """Adds what tells how much of the first reading's figures is due to language and to sight.

    Args:
        suite: its first setting is what is controlled.
        channels: whether the encoder has channels to choose from.
        mean_image: (416, 544) [m], from `mean_training_depth`; None where there is no training split.
    """
    reading = suite.settings[0].reading
    bins = reading.bin_list
    settings = list(suite.settings)
    if len(bins) > 1:
        settings.append(Setting("reversed bins", replace(reading, bin_list=bins[::-1])))
    group = "word-to-bin permutations"
    for i, order in enumerate(permutations(len(bins))):
        permuted = replace(reading, bin_list=tuple(bins[j] for j in order))
        settings.append(Setting(f"permutation {i}", permuted, group))
    for name, words in (("colour words", COLOUR_WORDS), ("unrelated words", UNRELATED_WORDS)):
        if 1 < len(bins) <= len(words):  # as many words as bins, spread evenly; there are no more than seven
            chosen = tuple(words[round(i * (len(words) - 1) / (len(bins) - 1))] for i in range(len(bins)))
            settings.append(Setting(name, replace(reading, depth_classes=chosen)))
    settings += [Setting(f"shuffled patches {i}", reading, "shuffled patches", shuffle=i) for i in range(SHUFFLES)]
    if channels:
        group = "random channels"
        settings += [Setting(f"random channels {i}", reading, group, channels=i) for i in range(CHANNEL_SUBSETS)]
    return replace(
        suite,
        settings=tuple(settings),
        randoms=tuple(RandomDepth(kind, seed) for kind in RANDOM_KINDS for seed in range(RANDOM_SEEDS)),
        constants={**suite.constants, **{f"bin {depth:g} m alone": depth for depth in dict.fromkeys(bins)}},
        maps={**suite.maps, **({MEAN_IMAGE: mean_image} if mean_image is not None else {})},
        controls=True,
    )


def permutations(n: int) -> list[tuple[int, ...]]:
    """`PERMUTATIONS` different random orders of 0 ... n - 1, never the identity; fewer where there are fewer."""
    rng = np.random.default_rng(0)
    found: dict[tuple[int, ...], None] = {}
    while len(found) < min(PERMUTATIONS, math.factorial(n) - 1):
        order = tuple(rng.permutation(n).tolist())
        if order != tuple(range(n)):
            found[order] = None
    return list(found)


def mean_training_depth(root: Path) -> Tensor | None:
    """Pixelwise mean depth of the training split, (416, 544) [m]; None where there is none.

    Over the pixels that are measured; a pixel that never is takes the mean of all others.

    Args:
        root: the data folder; the split is `<root>/official_splits/train/<scene>/sync_depth_*.png`.

    Raises:
        DataError: a depth map is damaged or no depth map.
    """
    total, count = np.zeros((480, 640)), np.zeros((480, 640))
    paths = sorted((root / "official_splits" / "train").glob("*/sync_depth_*.png"))
    for path in paths:
        depth = depth_in_metres(decode(path, "I;16"), str(path))[0].numpy()
        total += depth
        count += depth > 0
    if not paths:
        return None
    if not count.any():
        raise DataError(f"{paths[0].parent.parent}: no training depth map has a measured pixel; remove the folder")
    mean = np.where(count > 0, total / np.maximum(count, 1), total.sum() / count.sum())
    return torch.from_numpy(mean[NYU_CROP]).float()


class _Source(NamedTuple):
    """What one softmax is computed from; settings that differ in bins or order alone share it."""

    words: tuple[tuple[str, ...], ...]
    scale: float
    channels: int | None


class Predictor:
    """Depth of every predicted row of a suite, from the features of images and mirrors.

    Args:
        encode_prompts: (depth_classes, obj_classes, depth_templates) -> text features (D, K) as from
            `zeroshot_classifier`; called once for each distinct set of prompts.
        suite: the rows.
        channels: C, of the encoder's patch features.
    """

    def __init__(self, encode_prompts: Callable[..., Tensor], suite: Suite, channels: int) -> None:
        self.suite, self.channels = suite, channels
        texts: dict[tuple[tuple[str, ...], ...], Tensor] = {}
        weights: dict[_Source, Tensor] = {}
        bins: dict[_Source, list[tuple[int, tuple[float, ...]]]] = {}
        for i, setting in enumerate(suite.settings):
            r = setting.reading
            words = r.words
            if words not in texts:
                texts[words] = encode_prompts(*words)  # (D, K)
            source = _Source(words, r.logit_scale / r.temperature, setting.channels)
            if source not in weights:
                weights[source] = self._weights(texts[words], setting.channels) * source.scale
            bins.setdefault(source, []).append((i, r.bin_list))
        text = next(iter(texts.values()))
        self.joint = len(text)  # D
        self.bins = {source: text.new_tensor([b for _, b in rows]) for source, rows in bins.items()}  # (M, K) each
        thinned = [source for source in weights if source.channels is None]
        chosen = [source for source in weights if source.channels is not None]
        self.sources = [*thinned, *chosen]
        rows_of_sources = torch.tensor([i for source in self.sources for i, _ in bins[source]])
        self.places = rows_of_sources.argsort().to(text.device)  # of each setting's row among those of the sources
        shuffled = [i for i, setting in enumerate(suite.settings) if setting.shuffle is not None]
        self.shuffled = torch.tensor(shuffled, dtype=torch.long).to(text.device)
        self.sizes = [weights[source].shape[1] for source in self.sources]
        self.thinned_weights = torch.cat([weights[source] for source in thinned], dim=1).T.contiguous()
        self.chosen_weights = (
            torch.cat([weights[source] for source in chosen], dim=1).T.contiguous() if chosen else None
        )

    def _weights(self, text: Tensor, seed: int | None) -> Tensor:
        """Text features (D, K); spread over D random ones of C channels, (C, K), for a seed."""
        if seed is None:
            return text
        chosen = np.sort(np.random.default_rng(seed).choice(self.channels, len(text), replace=False))
        spread = text.new_zeros(self.channels, text.shape[1])
        spread[torch.from_numpy(chosen).to(text.device)] = text
        return spread

    def logits(self, features: Tensor) -> dict[_Source, Tensor]:
        """Of each distinct softmax: (2B, C or D, h, w) -> (2B, K, h, w)."""
        thinned = features[:, :: features.shape[1] // self.joint].flatten(2)  # (2B, D, N)
        logits = [self.thinned_weights @ thinned]
        if self.chosen_weights is not None:
            logits.append(self.chosen_weights @ features.flatten(2))
        parts = torch.cat(logits, dim=1).unflatten(2, features.shape[2:]).split(self.sizes, dim=1)
        return dict(zip(self.sources, parts, strict=True))

    def logits_of(self, features: Tensor, reading: Reading) -> Tensor:
        """Logits of the words of one of the suite's readings: features as for a call -> (2B, K, h, w)."""
        words = reading.words
        return self.logits(features)[_Source(words, reading.logit_scale / reading.temperature, None)]

    def weights(self, features: Tensor, reading: Reading) -> Tensor:
        """Softmax weights of the words of one of the suite's readings: features as for a call -> (2B, K, h, w)."""
        return self.logits_of(features, reading).softmax(dim=1)

    def __call__(self, features: Tensor, names: Sequence[str]) -> Tensor:
        """Depth of the rows that live on the grid, for B images.

        Args:
            features: (2B, C, h, w), or (2B, D, h, w) where no row needs other channels, of images and then mirrors.
            names: of the B images; random rows depend on them, and on nothing else.

        Returns:
            (B, R, h, w) [m], in the order of `suite.predicted`.
        """
        parts = [
            torch.einsum("bkhw,mk->bmhw", logits.softmax(dim=1), self.bins[source])
            for source, logits in self.logits(features).items()
        ]  # (2B, M, h, w) each
        depth = mirror_average(torch.cat(parts, dim=1))[:, self.places]  # (B, R, h, w)
        seeds = [setting.shuffle for setting in self.suite.settings if setting.shuffle is not None]
        if seeds:
            patches = depth[0, 0].numel()
            orders = np.stack([[generator(name, seed).permutation(patches) for seed in seeds] for name in names])
            maps = depth.index_select(1, self.shuffled).flatten(2)  # (B, S, h w)
            maps = maps.gather(2, to_device(torch.from_numpy(orders), depth.device)).unflatten(2, depth.shape[2:])
            depth.index_copy_(1, self.shuffled, maps)
        grids = [r for r in self.suite.randoms if r.kind != PIXEL]
        if not grids:
            return depth
        drawn = np.stack(
            [[random_grid(r, name, (features.shape[2], features.shape[3])) for r in grids] for name in names]
        )
        return torch.cat([depth, to_device(torch.from_numpy(drawn), depth.device)], dim=1)

    def maps(self, name: str, size: tuple[int, int]) -> Tensor:
        """Depth of the rows that have a value for every pixel, for one image, on the CPU: (R, 416, 544) [m]."""
        pixels = [r for r in self.suite.randoms if r.kind == PIXEL]
        drawn = [torch.from_numpy(uniform(generator(name, r.seed), size)) for r in pixels]
        rows = [*drawn, *self.suite.maps.values()]
        return torch.stack(rows) if rows else torch.empty(0, *size)


def generator(name: str, seed: int) -> np.random.Generator:
    """Random numbers that depend on an image's name and a seed, whatever else is evaluated."""
    return np.random.default_rng([seed, zlib.crc32(name.encode())])


def uniform(rng: np.random.Generator, size: tuple[int, ...]) -> np.ndarray:
    """Depths of `size`, float32, uniform in 0 to 10 m."""
    return rng.random(size, dtype=np.float32) * np.float32(MAX_RANDOM_DEPTH)


def random_grid(row: RandomDepth, name: str, grid: tuple[int, int]) -> np.ndarray:
    """One map (h, w) [m]; the mirror average is of two independent ones."""
    rng = generator(name, row.seed)
    first = uniform(rng, grid)
    return first if row.kind == GRID else (first + uniform(rng, grid)) / 2
