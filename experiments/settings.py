"""What the experiments score, as data: the paper's readings, one's own, and the controls that the paper lacks."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache

import numpy as np

from experiments import published
from experiments.score import RANDOM_ROWS, Rows, Setting
from monoclip import Reading
from viewer.page import COLOUR_WORDS, spread_words

CHANNEL_SUBSETS = 5  # draws of random channels
TEMPERATURES = (0.03, 0.1, 0.3, 1.0)
ASSIGNMENTS = 5040  # of bins to words, at most: seven different bins have so many
# Seven words that vary in nothing, where `COLOUR_WORDS` vary as the depth classes do, but not in distance.
UNRELATED_WORDS = ("banana", "parliament", "violin", "Tuesday", "umbrella", "arithmetic", "giraffe")


def own_rows(reading: Reading, own: Mapping[str, Reading]) -> Rows:
    """This run's reading, one's own by name, and what says nothing: the constant means of their bins."""
    return with_baselines(Rows((Setting(published.THIS_RUN, reading), *(Setting(name, r) for name, r in own.items()))))


def with_baselines(rows: Rows) -> Rows:
    """Add each setting's baseline: uniform weights over its own bins."""
    means = {s.name: math.fsum(s.reading.bin_list) / len(s.reading.bin_list) for s in rows.settings}
    names = {setting: f"{published.UNIFORM}, {mean:g} m" for setting, mean in means.items()}
    first = names[rows.settings[0].name]
    baselines = {setting: published.UNIFORM if name == first else name for setting, name in names.items()}
    constants: dict[str, float] = {}
    for setting, name in baselines.items():
        constants.setdefault(name, means[setting])
    return replace(rows, constants=constants | dict(rows.constants), baselines=baselines)


def read_alike(theirs: Reading, reading: Reading) -> Reading:
    """The words and bins of one reading with the read-out and image statistics of the other."""
    return replace(theirs, readout=reading.readout, image_mean=reading.image_mean, image_std=reading.image_std)


def paper_rows(reading: Reading, own: Mapping[str, Reading], protocol: str = "NYU") -> Rows:
    """`own_rows`, all words and bins that are published for a data set, and the Lower Bound in three kinds of random.

    Outside NYU these are `published.OUTDOORS`, ours among them. All have the read-out and image statistics of
    `reading`: only if these are the release's, the rows are the published ones.
    """
    rows = own_rows(reading, own)
    settings = list(rows.settings)

    def add(name: str, theirs: Reading) -> None:
        added = read_alike(theirs, reading)
        if all(setting.reading != added for setting in settings):
            settings.append(Setting(name, added))

    if protocol == "NYU":
        for prefix, readings in (("", published.PROMPT_SETS), ("bins ", published.BIN_SETS)):
            for name, paper_reading in readings.items():
                add(f"{prefix}{name}" if name != "original" else "the paper's words and bins", paper_reading)
        add("prompt 3, bins class-dependent 1", published.BIN_RESPONSE)
    else:
        for name, theirs in published.OUTDOORS.items():
            add(name, theirs)
    return with_baselines(replace(rows, settings=tuple(settings), randoms=RANDOM_ROWS))


def control_groups(reading: Reading, channels: bool) -> dict[str, list[Setting]]:
    """What tells how much of a reading's metrics is due to what, by the question that each group answers.

    `channels` says whether the encoder has channels to choose from.
    """
    words, bins = reading.depth_classes, reading.bin_list
    without = []
    for i, word in enumerate(words):
        if len(words) == 1 or words.count(word) > 1:  # a row for each of two equal words would have the same name
            continue
        kept = [place for place in range(len(words)) if place != i]
        fewer = replace(reading, depth_classes=tuple(words[k] for k in kept), bin_list=tuple(bins[k] for k in kept))
        without.append(Setting(f"without {word!r}", fewer))
    temperatures = [t for t in TEMPERATURES if t != reading.temperature]
    others = [
        Setting(name, replace(reading, depth_classes=chosen))
        for name, found in (("colour words", COLOUR_WORDS), ("unrelated words", UNRELATED_WORDS))
        if (chosen := spread_words(found, len(bins)))
    ]
    seeds = range(CHANNEL_SUBSETS if channels else 0)
    return {
        "Does every word matter?": without,
        "Does the temperature matter?": [
            Setting(f"temperature {t:g}", replace(reading, temperature=t)) for t in temperatures
        ],
        "Must the words be about distance?": others,
        "Does it matter which channels?": [
            Setting(f"random channels, unsorted {seed}", reading, seed) for seed in seeds
        ],
    }


def with_controls(rows: Rows, groups: Mapping[str, Sequence[Setting]]) -> Rows:
    """Add the settings of `control_groups` of the first reading, and random depth."""
    settings = (*rows.settings, *(setting for group in groups.values() for setting in group))
    return replace(rows, settings=settings, randoms=RANDOM_ROWS)


@cache
def assignments(bins: tuple[float, ...]) -> tuple[list[tuple[float, ...]], bool]:
    """The bins [m] as they are, then in other orders, all different; and whether these are all, or `ASSIGNMENTS`."""
    count = math.factorial(len(bins)) // math.prod(math.factorial(n) for n in Counter(bins).values())
    rng = np.random.default_rng(0)
    found = {bins: None}
    while len(found) < min(count, ASSIGNMENTS):
        found[tuple(rng.permutation(bins).tolist())] = None
    return list(found), len(found) == count
