"""What the experiments score, as data: the paper's readings, one's own, and the controls that the paper lacks."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache

import numpy as np
from torch import Tensor

from experiments import published
from experiments.score import RANDOM_KINDS, RandomDepth, Rows, Setting
from monoclip import Reading
from viewer.page import COLOUR_WORDS, spread_words

PERMUTATIONS, SHUFFLES, CHANNEL_SUBSETS, RANDOM_SEEDS = 100, 5, 20, 5
ASSIGNMENTS = 5040  # of bins to words, at most: seven different bins have so many
# Sorted, a few channels still meet the dimension of every second one; unsorted, none but by chance.
RANDOM_CHANNELS = {"random channels, sorted": True, "random channels, unsorted": False}
# Seven words that vary in nothing, where `COLOUR_WORDS` vary as the depth classes do, but not in distance.
UNRELATED_WORDS = ("banana", "parliament", "violin", "Tuesday", "umbrella", "arithmetic", "giraffe")


def own_rows(reading: Reading, own: Mapping[str, Reading]) -> Rows:
    """This run's reading, one's own by name, and what says nothing: the constant means of their bins."""
    return with_baselines(Rows((Setting(published.THIS_RUN, reading), *(Setting(name, r) for name, r in own.items()))))


def with_baselines(rows: Rows) -> Rows:
    """Adds the constant that each setting is if its words say nothing, and which constant is whose."""
    means = {s.name: math.fsum(s.reading.bin_list) / len(s.reading.bin_list) for s in rows.settings}
    names = {setting: f"{published.UNIFORM}, {mean:g} m" for setting, mean in means.items()}
    first = names[rows.settings[0].name]
    baselines = {setting: published.UNIFORM if name == first else name for setting, name in names.items()}
    constants: dict[str, float] = {}
    for setting, name in baselines.items():
        constants.setdefault(name, means[setting])
    return replace(rows, constants=constants | dict(rows.constants), baselines=baselines)


def read_alike(theirs: Reading, reading: Reading) -> Reading:
    """The words and bins of one reading, read out of the images as the other says."""
    return replace(theirs, readout=reading.readout, image_mean=reading.image_mean, image_std=reading.image_std)


def paper_rows(reading: Reading, own: Mapping[str, Reading], dataset: str = "NYU") -> Rows:
    """`own_rows`, all words and bins that are published for a data set, and the Lower Bound in three kinds of random.

    Outside NYU these are `published.OUTDOORS`, ours among them. All are read out of the images as `reading` is; only if
    that is the release's way, the rows are the published ones.
    """
    rows = own_rows(reading, own)
    settings = list(rows.settings)

    def add(name: str, theirs: Reading) -> None:
        added = read_alike(theirs, reading)
        if all(setting.reading != added for setting in settings):
            settings.append(Setting(name, added))

    if dataset == "NYU":
        for prefix, readings in (("", published.PROMPT_SETS), ("bins ", published.BIN_SETS)):
            for name, paper_reading in readings.items():
                add(f"{prefix}{name}" if name != "original" else "the paper's words and bins", paper_reading)
        add("prompt 3, bins class-dependent 1", published.BIN_RESPONSE)
    else:
        for name, theirs in published.OUTDOORS.items():
            add(name, theirs)
    randoms = tuple(RandomDepth(kind, 0) for kind in RANDOM_KINDS)
    return with_baselines(replace(rows, settings=tuple(settings), randoms=randoms))


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
    for i, order in enumerate(assignments(bins)[0][1 : 1 + PERMUTATIONS]):
        permuted = Setting(f"permutation {i}", replace(reading, bin_list=order), "other assignments of bins to words")
        settings.append(permuted)
    for name, words in (("colour words", COLOUR_WORDS), ("unrelated words", UNRELATED_WORDS)):
        if chosen := spread_words(words, len(bins)):
            settings.append(Setting(name, replace(reading, depth_classes=chosen)))
    settings += [Setting(f"shuffled patches {i}", reading, "shuffled patches", shuffle=i) for i in range(SHUFFLES)]
    for group, ordered in RANDOM_CHANNELS.items() if channels else ():
        seeds = range(CHANNEL_SUBSETS)
        settings += [Setting(f"{group} {i}", reading, group, channels=i, ordered=ordered) for i in seeds]
    alone = {f"bin {depth:g} m alone": depth for depth in dict.fromkeys(bins)}
    return with_baselines(
        Rows(
            tuple(settings),
            tuple(RandomDepth(kind, seed) for kind in RANDOM_KINDS for seed in range(RANDOM_SEEDS)),
            {**rows.constants, **alone},
            {published.MEAN_IMAGE: mean_image} if mean_image is not None else {},
        )
    )


@cache
def assignments(bins: tuple[float, ...]) -> tuple[list[tuple[float, ...]], bool]:
    """The bins [m] as they are, then in other orders, all different; and whether these are all, or `ASSIGNMENTS`."""
    count = math.factorial(len(bins)) // math.prod(math.factorial(n) for n in Counter(bins).values())
    rng = np.random.default_rng(0)
    found = {bins: None}
    while len(found) < min(count, ASSIGNMENTS):
        found[tuple(rng.permutation(bins).tolist())] = None
    return list(found), len(found) == count
