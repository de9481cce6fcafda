"""What the experiments score, as data: the paper's readings, one's own, and the controls that the paper lacks."""

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from experiments import published
from experiments.score import RANDOM_ROWS, Rows, Setting
from monoclip import PAPER, Reading
from viewer.page import COLOUR_WORDS, spread_words

Groups = Mapping[str, list[Setting]]  # question -> those that answer it
TEMPERATURES = (0.03, 0.1, 0.3, 1.0)
# Seven words that vary in nothing, where `COLOUR_WORDS` vary as the depth classes do, but not in distance.
UNRELATED_WORDS = ("banana", "parliament", "violin", "Tuesday", "umbrella", "arithmetic", "giraffe")


def read_alike(theirs: Reading, reading: Reading) -> Reading:
    """The words and bins of one reading with the read-out and image statistics of the other."""
    return replace(theirs, readout=reading.readout, image_mean=reading.image_mean, image_std=reading.image_std)


def rows_of(
    reading: Reading, own: Mapping[str, Reading], protocol: str | None = "NYU", groups: Groups | None = None
) -> Rows:
    """This run's reading, one's own, what is published for a protocol's data, if any, `control_groups`, and constants.

    The published words and bins have the read-out and image statistics of `reading`: only if these are the release's,
    the rows are the published ones.
    """
    settings = [Setting(published.THIS_RUN, reading), *(Setting(name, theirs) for name, theirs in own.items())]
    more = {} if protocol is None else published.OUTDOORS
    if protocol == "NYU":
        more = {"the paper's words and bins": PAPER} | published.PROMPT_SETS
        more |= {f"bins {name}": theirs for name, theirs in published.BIN_SETS.items()}
        more |= {"prompt 3, bins class-dependent 1": published.BIN_RESPONSE}
    for name, theirs in more.items():
        if all(setting.reading != read_alike(theirs, reading) for setting in settings):
            settings.append(Setting(name, read_alike(theirs, reading)))
    means = {s.name: math.fsum(s.reading.bin_list) / len(s.reading.bin_list) for s in settings}
    first = f"{means[published.THIS_RUN]:g}"
    baselines = {s: published.UNIFORM + f", {mean:g} m" * (f"{mean:g}" != first) for s, mean in means.items()}
    constants = {baselines[name]: mean for name, mean in means.items()}
    settings += [setting for group in (groups or {}).values() for setting in group]
    return Rows(tuple(settings), RANDOM_ROWS if protocol or groups else (), constants, baselines, groups or {})


def control_groups(reading: Reading, channels: bool) -> Groups:
    """What a reading's metrics are due to, by question; `channels`: whether the encoder has some to choose from."""
    words, bins, groups = reading.depth_classes, reading.bin_list, dict[str, list[Setting]]()

    def add(question: str, name: str, seed: int | None = None, **changes: Any) -> None:
        groups.setdefault(question, []).append(Setting(name, replace(reading, **changes), seed))

    for i, word in enumerate(words):
        if words.count(word) == 1 < len(words):  # rows of two equal words would have the same name
            fewer, left = words[:i] + words[i + 1 :], bins[:i] + bins[i + 1 :]
            add("Does every word matter?", f"without {word!r}", depth_classes=fewer, bin_list=left)
    for t in TEMPERATURES:
        if t != reading.temperature:
            add("Does the temperature matter?", f"temperature {t:g}", temperature=t)
    for name, others in (("colour words", COLOUR_WORDS), ("unrelated words", UNRELATED_WORDS)):
        if chosen := spread_words(others, len(bins)):
            add("Must the words be about distance?", name, depth_classes=chosen)
    for seed in range(5 * channels):
        add("Does it matter which channels?", f"random channels, unsorted {seed}", seed)
    return groups


@cache
def assignments(bins: tuple[float, ...]) -> tuple[list[tuple[float, ...]], bool]:
    """The bins [m] as they are, then in other orders, all different; and whether these are all, or 5,040 of more."""
    count = math.factorial(len(bins)) // math.prod(math.factorial(n) for n in Counter(bins).values())
    rng = np.random.default_rng(0)
    found = {bins: None}
    while len(found) < min(count, 5040):
        found[tuple(rng.permutation(bins).tolist())] = None
    return list(found), len(found) == count
