"""What the experiments score, as data: the paper's readings, one's own, and the controls that the paper lacks."""

import math
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
from torch import Tensor

from experiments import published
from experiments.score import RANDOM_KINDS, RandomDepth, Rows, Setting
from monoclip import Reading
from viewer.page import COLOUR_WORDS, spread_words

PERMUTATIONS, SHUFFLES, CHANNEL_SUBSETS, RANDOM_SEEDS = 100, 5, 20, 5
# Seven words that vary in nothing, where `COLOUR_WORDS` vary as the depth classes do, but not in distance.
UNRELATED_WORDS = ("banana", "parliament", "violin", "Tuesday", "umbrella", "arithmetic", "giraffe")


def own_rows(reading: Reading, own: Mapping[str, Reading]) -> Rows:
    """This run's reading, one's own by name, and what says nothing: the constant mean of this run's bins."""
    settings = (Setting(published.THIS_RUN, reading), *(Setting(name, r) for name, r in own.items()))
    return Rows(settings, constants={published.UNIFORM: sum(reading.bin_list) / len(reading.bin_list)})


def paper_rows(reading: Reading, own: Mapping[str, Reading]) -> Rows:
    """`own_rows`, every reading that the paper publishes, and its Lower Bound in three kinds of random."""
    rows = own_rows(reading, own)
    settings = list(rows.settings)

    def add(name: str, reading: Reading) -> None:
        if all(setting.reading != reading for setting in settings):
            settings.append(Setting(name, reading))

    for prefix, readings in (("", published.PROMPT_SETS), ("bins ", published.BIN_SETS)):
        for name, paper_reading in readings.items():
            add(f"{prefix}{name}" if name != "original" else "the paper's reading", paper_reading)
    add("prompt 3, bins class-dependent 1", published.BIN_RESPONSE)
    return replace(rows, settings=tuple(settings), randoms=tuple(RandomDepth(kind, 0) for kind in RANDOM_KINDS))


def with_controls(rows: Rows, channels: bool, mean_image: Tensor | None) -> Rows:
    """Adds what tells how much of the first reading's metrics is due to language and to sight.

    The first of `rows` is what is controlled; `channels` says whether the encoder has channels to choose from;
    `mean_image` is the mean depth of a training split, (416, 544) [m], if there is one.
    """
    reading = rows.settings[0].reading
    bins = reading.bin_list
    settings = list(rows.settings)
    if len(bins) > 1:
        settings.append(Setting("reversed bins", replace(reading, bin_list=bins[::-1])))
    for i, order in enumerate(permutations(len(bins))):
        permuted = replace(reading, bin_list=tuple(bins[j] for j in order))
        settings.append(Setting(f"permutation {i}", permuted, group="word-to-bin permutations"))
    for name, words in (("colour words", COLOUR_WORDS), ("unrelated words", UNRELATED_WORDS)):
        if chosen := spread_words(words, len(bins)):
            settings.append(Setting(name, replace(reading, depth_classes=chosen)))
    settings += [Setting(f"shuffled patches {i}", reading, "shuffled patches", shuffle=i) for i in range(SHUFFLES)]
    if channels:
        seeds = range(CHANNEL_SUBSETS)
        settings += [Setting(f"random channels {i}", reading, "random channels", channels=i) for i in seeds]
    return Rows(
        tuple(settings),
        tuple(RandomDepth(kind, seed) for kind in RANDOM_KINDS for seed in range(RANDOM_SEEDS)),
        {**rows.constants, **{f"bin {depth:g} m alone": depth for depth in dict.fromkeys(bins)}},
        {published.MEAN_IMAGE: mean_image} if mean_image is not None else {},
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
