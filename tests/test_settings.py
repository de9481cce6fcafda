"""experiments.settings: which rows there are, and that each is what its name says."""

from dataclasses import replace
from itertools import permutations as every_permutation

import numpy as np
import pytest
import torch

from experiments.published import BEST, BIN_RESPONSE, BIN_SETS, MEAN_IMAGE, PROMPT_SETS, PUBLISHED, THIS_RUN, UNIFORM
from experiments.score import GRID, MIRRORED, PIXEL, RANDOM_ROWS, Rows
from experiments.settings import (
    COLOUR_WORDS,
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
    response = "prompt 3, bins class-dependent 1"
    uniform = (UNIFORM, *(f"{UNIFORM}, {mean} m" for mean in ("2.5", "1.75", "3.14286")))
    assert rows.names == (THIS_RUN, *prompts, *bins, response, GRID, MIRRORED, PIXEL, *uniform)
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
    assert own_rows(OTHER, {"mine": PAPER}).constants == {UNIFORM: pytest.approx(15 / 7)}


def test_every_published_reading_has_a_row():
    for rows in (paper_rows(PAPER, {}), paper_rows(OTHER, {}), controls_of(PAPER)):
        assert all(rows.row_of(row.reading) for row in PUBLISHED if row.reading and row.data_set == "NYU")
    assert paper_rows(PAPER, {}).row_of(PAPER) == THIS_RUN
    assert paper_rows(OTHER, {}).row_of(PAPER) == "the paper's words and bins"
    rows = paper_rows(PAPER, {"mine": OTHER, "again the paper's": PAPER})
    assert rows.names[:4] == (THIS_RUN, "mine", "again the paper's", "prompt 1")
    assert rows.row_of(PAPER) == THIS_RUN


def test_rows_with_controls():
    rows, channels = controls_of(PAPER), [f"random channels, unsorted {seed}" for seed in range(5)]
    plain = paper_rows(PAPER, {})
    assert sorted(rows.names) == sorted([*plain.names, "colour words", "unrelated words", *channels])
    assert rows.names[:9] == plain.names[:9]
    assert rows.randoms == RANDOM_ROWS
    assert BEST not in rows.names
    assert set(controls_of(PAPER, channels=False).names) == set(rows.names) - set(channels)  # without spare channels
    mean = torch.ones(416, 544)
    assert with_controls(plain, True, mean).maps == {MEAN_IMAGE: mean}


def test_controls_are_of_this_runs_reading():
    rows = controls_of(OTHER)
    assert reading_of(rows, "colour words") == replace(OTHER, depth_classes=COLOUR_WORDS)
    assert reading_of(rows, "unrelated words") == replace(OTHER, depth_classes=UNRELATED_WORDS)
    assert [s.channels for s in rows.settings if s.reading == OTHER] == [None, *range(5)]
    assert rows.row_of(OTHER) == THIS_RUN


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
    assert reading_of(rows, "colour words").depth_classes == ("very red", "not in colour", "very green")
    assert reading_of(rows, "unrelated words").depth_classes == ("banana", "Tuesday", "giraffe")
    assert rows.constants[UNIFORM] == pytest.approx(7 / 3)
    assert not {"colour words", "unrelated words"} & set(few(2.5).names)  # one word has no order
    rows = few(1, 2, 3, 4, 5, 6, 7, 8, 8)
    assert not {"colour words", "unrelated words"} & set(rows.names)
    assert len(rows.constants) == 4 + 1  # means of the paper's bins, and of these
    assert len(rows.names) == len(set(rows.names))
