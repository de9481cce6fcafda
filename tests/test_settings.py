"""experiments.settings: which rows there are, and that each is what its name says."""

from collections import Counter
from dataclasses import replace
from itertools import permutations as every_permutation

import numpy as np
import pytest
import torch

from experiments.published import BEST, BIN_RESPONSE, BIN_SETS, MEAN_IMAGE, PROMPT_SETS, PUBLISHED, THIS_RUN, UNIFORM
from experiments.score import GRID, MIRRORED, PIXEL, Rows
from experiments.settings import (
    COLOUR_WORDS,
    RANDOM_CHANNELS,
    UNRELATED_WORDS,
    assignments,
    own_rows,
    paper_rows,
    with_controls,
)
from monoclip import PAPER, Reading

OTHER = replace(PAPER, temperature=1)


def controls_of(reading: Reading, channels: bool = True) -> Rows:
    return with_controls(paper_rows(reading, {}), channels, None)


def few(*bins: float) -> Rows:
    return controls_of(Reading(depth_classes=tuple("abcdefghi"[: len(bins)]), bin_list=bins))


def reading_of(rows: Rows, name: str) -> Reading:
    (setting,) = (setting for setting in rows.settings if setting.name == name)
    return setting.reading


def test_rows_of_the_paper():
    rows = paper_rows(PAPER, {})
    prompts, bins = (f"prompt {i}" for i in (1, 2, 3)), (f"bins class-dependent {i}" for i in (1, 2, 3, 4))
    randoms = (f"{kind}, seed 0" for kind in (GRID, MIRRORED, PIXEL))
    response = "prompt 3, bins class-dependent 1"
    uniform = (UNIFORM, *(f"{UNIFORM}, {mean} m" for mean in ("2.5", "1.75", "3.14286")))
    assert rows.names == (THIS_RUN, *prompts, *bins, response, *randoms, *uniform)
    assert reading_of(rows, response) == BIN_RESPONSE
    assert reading_of(rows, "prompt 2") == PROMPT_SETS["prompt 2"]
    assert reading_of(rows, "bins class-dependent 4") == BIN_SETS["class-dependent 4"]
    assert [*rows.constants.values()] == pytest.approx([15 / 7, 17.5 / 7, 12.25 / 7, 22 / 7])


def test_each_row_is_compared_with_the_mean_of_its_own_bins():
    rows = paper_rows(PAPER, {"mine": replace(PAPER, bin_list=(1.0,) * 7), "warm": OTHER})
    own = {"mine": 1.0, "bins class-dependent 1": 2.5, "bins class-dependent 2": 2.5, "bins class-dependent 3": 1.75}
    own |= {"bins class-dependent 4": 22 / 7, "prompt 3, bins class-dependent 1": 2.5}
    assert set(rows.baselines) == {setting.name for setting in rows.settings}
    assert next(iter(rows.baselines)) == THIS_RUN  # whose baseline rows without one take: random depth, say
    for name, baseline in rows.baselines.items():
        assert baseline == (f"{UNIFORM}, {own[name]:g} m" if name in own else UNIFORM), name
        assert rows.constants[baseline] == pytest.approx(own.get(name, 15 / 7))
    rows = controls_of(replace(PAPER, bin_list=(2.0, 0.1, 0.2, 0.3, 1.1, 0.7, 0.6)))
    shared = {rows.baselines[name] for setting in rows.settings if (name := setting.name).startswith("permutation")}
    assert shared == {UNIFORM}  # the same sum in any order
    assert own_rows(OTHER, {"mine": PAPER}).constants == {UNIFORM: pytest.approx(15 / 7)}


def test_every_published_reading_has_a_row():
    for rows in (paper_rows(PAPER, {}), paper_rows(OTHER, {}), controls_of(PAPER)):
        assert all(rows.row_of(row.reading) for row in PUBLISHED if row.reading and row.data_set == "NYU")
    assert paper_rows(PAPER, {}).row_of(PAPER) == THIS_RUN
    assert paper_rows(OTHER, {}).row_of(PAPER) == "the paper's words and bins"
    rows = paper_rows(PAPER, {"mine": OTHER, "again the paper's": PAPER})
    assert rows.names[:4] == (THIS_RUN, "mine", "again the paper's", "prompt 1")
    assert rows.row_of(PAPER) == THIS_RUN


def test_184_rows_with_controls():
    rows = controls_of(PAPER)
    assert len({*rows.names, BEST}) == len(rows.names) + 1 == 184
    kinds = {"shuffled patches": 5, **dict.fromkeys(RANDOM_CHANNELS, 20), PIXEL: 5, GRID: 5, MIRRORED: 5}
    assert {group: len(names) for group, names in rows.groups.items()} == kinds | {
        "other assignments of bins to words": 100
    }
    assert rows.names[:9] == paper_rows(PAPER, {}).names[:9]
    assert [rows.constants[f"bin {depth:g} m alone"] for depth in PAPER.bin_list] == list(PAPER.bin_list)
    assert len(controls_of(PAPER, channels=False).names) == 143  # an encoder without spare channels
    mean = torch.ones(416, 544)
    assert with_controls(paper_rows(PAPER, {}), True, mean).maps == {MEAN_IMAGE: mean}


def test_controls_are_of_this_runs_reading():
    rows = controls_of(OTHER)
    assert reading_of(rows, "reversed bins") == replace(OTHER, bin_list=PAPER.bin_list[::-1])
    assert reading_of(rows, "colour words") == replace(OTHER, depth_classes=COLOUR_WORDS)
    assert reading_of(rows, "unrelated words") == replace(OTHER, depth_classes=UNRELATED_WORDS)
    grouped = [setting for setting in rows.settings if setting.group]
    assert {setting.reading.temperature for setting in grouped} == {1}
    permuted = [setting.reading.bin_list for setting in grouped if "assignments" in setting.group]
    assert len(set(permuted)) == 100
    assert all(sorted(bins) == sorted(PAPER.bin_list) for bins in permuted)
    numbers = Counter((s.channels is not None, s.shuffle is not None) for s in grouped)
    assert numbers == {(False, False): 100, (True, False): 40, (False, True): 5}
    for group, ordered in (("random channels, sorted", True), ("random channels, unsorted", False)):
        assert [(s.channels, s.ordered) for s in grouped if s.group == group] == [(i, ordered) for i in range(20)]


@pytest.mark.parametrize(
    ("bins", "count"), [((2,), 1), ((1, 3), 2), ((1, 1, 3, 3), 6), (range(1, 8), 5040), ((1, 1, 2, 2, 2, 3, 3), 210)]
)
def test_assignments_are_all_that_there_are(bins, count):
    bins = tuple(map(float, bins))
    found, complete = assignments(bins)
    assert complete
    assert found[0] == bins
    assert set(found) == set(every_permutation(bins))
    assert len(found) == count
    drawn = [[PAPER.bin_list[i] for i in order] for order in ((2, 4, 3, 6, 5, 0, 1), (5, 2, 4, 6, 1, 0, 3))]
    assert list(map(list, assignments(PAPER.bin_list)[0][1:3])) == drawn  # on every machine


@pytest.mark.parametrize("n", [8, 9])
def test_of_more_than_5040_assignments_as_many_are_drawn(n):
    found, complete = assignments(tuple(map(float, range(n))))
    assert not complete
    assert found[0] == tuple(range(n))
    assert len(set(found)) == len(found) == 5040
    assert all(sorted(order) == [*range(n)] for order in found)
    assert (found, complete) == assignments(tuple(map(float, range(n))))
    late = np.mean([order.index(0) for order in found])  # not those that differ in the last places
    assert late == pytest.approx((n - 1) / 2, abs=0.15)


def test_fewer_and_more_bins():
    rows = few(1, 2, 4)
    assert len(rows.groups["other assignments of bins to words"]) == 5
    assert reading_of(rows, "colour words").depth_classes == ("very red", "not in colour", "very green")
    assert reading_of(rows, "unrelated words").depth_classes == ("banana", "Tuesday", "giraffe")
    assert rows.constants[UNIFORM] == pytest.approx(7 / 3)
    assert not {"reversed bins", "colour words", "unrelated words"} & set(few(2.5).names)  # nothing to permute
    rows = few(1, 2, 3, 4, 5, 6, 7, 8, 8)
    assert not {"colour words", "unrelated words"} & set(rows.names)
    assert len(rows.constants) == 4 + 1 + 8  # means of the paper's bins, of these, and each alone
    assert len(rows.names) == len(set(rows.names))
