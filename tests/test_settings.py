"""experiments.settings: which rows there are, and that each is what its name says."""

from dataclasses import replace
from itertools import permutations as every_permutation

import pytest

from experiments.published import BIN_RESPONSE, LOG_BINS, THIS_RUN, UNIFORM, published_rows
from experiments.score import RANDOM_ROWS, Rows, Setting
from experiments.settings import COLOUR_WORDS, TEMPERATURES, UNRELATED_WORDS, assignments, control_groups, rows_of
from monoclip import PAPER, Reading

OTHER = replace(PAPER, temperature=1)


def names_of(rows: Rows) -> list[str]:
    return [setting.name for setting in rows.settings]


def controls_of(reading: Reading, channels: bool = True) -> dict[str, Setting]:
    return {setting.name: setting for group in control_groups(reading, channels).values() for setting in group}


def test_rows_of_the_paper():
    rows = rows_of(PAPER, {})
    prompts, bins = (f"prompt {i}" for i in (1, 2, 3)), (f"bins class-dependent {i}" for i in (1, 2, 3, 4))
    assert names_of(rows) == [THIS_RUN, *prompts, *bins, response := "prompt 3, bins class-dependent 1"]
    assert rows.randoms == RANDOM_ROWS
    assert rows.row_of(BIN_RESPONSE) == response
    assert all(rows.row_of(row.reading) for row in published_rows() if row.reading and row.protocol == "NYU")
    assert rows_of(OTHER, {}).row_of(PAPER) == "the paper's words and bins"
    assert names_of(rows_of(PAPER, {"mine": OTHER, "again": PAPER}))[:4] == [THIS_RUN, "mine", "again", "prompt 1"]
    for kitti in ("KITTI, BTS", "KITTI, AdaBins"):
        outdoors = rows_of(PAPER, {}, kitti)
        assert names_of(outdoors) == [THIS_RUN, "Auty's words and bins", "the paper's words, bins in log depth (ours)"]
        assert outdoors.row_of(LOG_BINS) == names_of(outdoors)[2]


def test_each_row_is_compared_with_the_mean_of_its_own_bins():
    rows = rows_of(PAPER, {"mine": replace(PAPER, bin_list=(1.0,) * 7), "warm": OTHER})
    own = {"mine": 1.0, "bins class-dependent 1": 2.5, "bins class-dependent 2": 2.5, "bins class-dependent 3": 1.75}
    own |= {"bins class-dependent 4": 22 / 7, "prompt 3, bins class-dependent 1": 2.5}
    assert list(rows.baselines) == names_of(rows)  # the first is that of rows without one of their own
    for name, baseline in rows.baselines.items():
        assert baseline == (f"{UNIFORM}, {own[name]:g} m" if name in own else UNIFORM), name
        assert rows.constants[baseline] == pytest.approx(own.get(name, 15 / 7))


def test_controls_are_of_this_runs_reading_and_have_a_question_each():
    groups, found = control_groups(OTHER, True), controls_of(OTHER)
    assert [len(group) for group in groups.values()] == [7, 3, 2, 5]
    assert all(title.endswith("?") for title in groups)
    words, bins = PAPER.depth_classes, PAPER.bin_list
    without = replace(OTHER, depth_classes=words[:2] + words[3:], bin_list=bins[:2] + bins[3:])
    assert found["without 'close'"].reading == without
    assert [found[f"temperature {t:g}"].reading.temperature for t in TEMPERATURES if t != 1] == [0.03, 0.1, 0.3]
    assert found["colour words"].reading == replace(OTHER, depth_classes=COLOUR_WORDS)
    assert found["unrelated words"].reading == replace(OTHER, depth_classes=UNRELATED_WORDS)
    channels = [(s.channels, s.reading) for s in found.values() if s.channels is not None]
    assert channels == [(seed, OTHER) for seed in range(5)]
    plain, rows = rows_of(OTHER, {}, None), rows_of(OTHER, {}, None, groups)
    assert names_of(rows) == [*names_of(plain), *found]
    assert (plain.randoms, rows.randoms, rows.constants) == ((), RANDOM_ROWS, plain.constants)
    assert rows.row_of(OTHER) == THIS_RUN  # and not one of random channels


def test_controls_of_fewer_and_more_words():
    def of(*bins: float, words: str = "abcdefghi") -> dict[str, Setting]:
        return controls_of(Reading(depth_classes=tuple(words[: len(bins)]), bin_list=bins), channels=False)

    three = of(1, 2, 4)
    assert three["colour words"].reading.depth_classes == ("very red", "not in colour", "very green")
    assert three["unrelated words"].reading.depth_classes == ("banana", "Tuesday", "giraffe")
    assert three["without 'b'"].reading.bin_list == (1, 4)
    warm = [f"temperature {t:g}" for t in (0.03, 0.3, 1)]
    assert list(of(1, 2, 3, words="aba"))[:2] == ["without 'b'", warm[0]]  # two rows cannot have one name
    assert list(of(2.5)) == warm  # without its one word there is none, and one word has no order
    assert list(of(*range(1, 10))) == [*(f"without {word!r}" for word in "abcdefghi"), *warm]


@pytest.mark.parametrize(
    ("bins", "count"), [((2,), 1), ((1, 3), 2), ((1, 1, 3, 3), 6), (range(1, 8), 5040), ((1, 1, 2, 2, 2, 3, 3), 210)]
)
def test_assignments_are_all_that_there_are(bins, count):
    bins = tuple(map(float, bins))
    found, complete = assignments(bins)
    assert (complete, found[0], set(found)) == (True, bins, set(every_permutation(bins)))
    assert len(found) == count


def test_of_more_than_5040_assignments_as_many_are_drawn():
    found, complete = assignments(tuple(map(float, range(9))))
    assert (complete, found[0]) == (False, tuple(range(9)))
    assert len(set(found)) == len(found) == 5040
    assert all(sorted(order) == [*range(9)] for order in found)
    drawn = [[PAPER.bin_list[i] for i in order] for order in ((2, 4, 3, 6, 5, 0, 1), (5, 2, 4, 6, 1, 0, 3))]
    assert list(map(list, assignments(PAPER.bin_list)[0][1:3])) == drawn  # on every machine
