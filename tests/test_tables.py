"""experiments.tables: the numbers that stand in them, what is said of them, and names that would break their form."""

import csv
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from experiments.published import BEST, BINS, COLUMNS, LOWER_BOUND, PROMPTS, PUBLISHED, TABLE_1, THIS_RUN, UNIFORM
from experiments.score import METRICS
from experiments.statistics import COUNTS, Results
from experiments.tables import (
    DIFFERENCE,
    NOT_MEASURED,
    OURS,
    THEIRS,
    Scored,
    Table,
    all_tables,
    as_csv,
    as_json,
    as_latex,
    as_markdown,
    as_text,
    bounds,
    interval_table,
    latex,
    markdown,
    paper_tables,
)
from options import csv_text

RANDOM = ("random a", "random b")
ROWS = (THIS_RUN, "mine", "prompt 1", *RANDOM, "shuffled 0", "shuffled 1", "shuffled 2", UNIFORM)
HOSTILE = (
    "a | b",
    "<script>alert(1)</script>",
    "two\nlines",
    "=1+1",
    "100 % of $5 & {x_1} #2 ~ ^ \\end{tabular}",
    "[2ex]",
    "\x1b[31mred\x1b[0m\r\a",
    "not UTF-8 \udcff\udce9",
    "\t@größer, 部屋",
    "'quoted', \"twice\"",
)


def scored_of(own: str = "mine", caption: str = "Over 3 images.") -> Scored:
    """Three images; row r of image i has r + i / 10 in every metric, but for a baseline of 1."""
    rows, scenes = [own if row == "mine" else row for row in ROWS], ("bathroom", "den", "bathroom")
    images = [f"{scene}/rgb_{i:05d}.jpg" for i, scene in enumerate(scenes)]
    errors = []
    for i in range(3):
        values = np.array([*(r + i / 10 for r in range(len(rows) - 1)), 1.0])
        counts = {count: np.full(len(rows), 100 + i) for count in COUNTS}
        errors.append({**dict.fromkeys(METRICS, values), **counts})
    results = Results(images, scenes, [7, 8, 9], rows, errors, UNIFORM)
    results.add_like_baseline(BEST, {"rmse": np.full(3, 0.5)})
    by = {row: THIS_RUN for row in PUBLISHED if row.name in ("original", "DepthCLIP")}
    by |= {row: "prompt 1" for row in PUBLISHED if row.name == "prompt 1"}
    return Scored(results, {"shuffled patches": rows[5:8]}, by, RANDOM, True, True, "Title", caption)


@pytest.fixture(scope="module")
def scored() -> Scored:
    return scored_of()


def by_title(tables: list[Table]) -> dict[str, Table]:
    return {table.title: table for table in tables}


# ---- what stands in the tables


def test_numbers_have_three_decimals_signs_and_gaps():
    table = Table("T", "c", ("a", "b", "d"))
    table.add("x", OURS, {"a": 1.23456, "b": None})
    table.add("y", DIFFERENCE, {"a": -0.00051, "b": 0.0, "d": 12.0}, sign=True)
    assert [line.cells for line in table.lines] == [("1.235", "-", "-"), ("-0.001", "+0.000", "+12.000")]
    assert (bounds((-0.1, 1.23456), "+.3f"), bounds(None, ".3f")) == ("[-0.100, +1.235]", "-")


def test_this_run_and_groups_stand_with_their_means(scored):
    table, *others = all_tables(scored, ["mine"], 15 / 7)
    assert [(line.name, line.cells[0], line.cells[-1]) for line in table.lines] == [
        (THIS_RUN, "0.100", "0.100"),
        ("paper, DepthCLIP", "0.394", "1.167"),
        ("mine", "1.100", "1.100"),
        (f"{UNIFORM} (2.143 m)", "1.000", "1.000"),
        (BEST, "1.000", "0.500"),
    ]
    assert [(line.name, line.kind, line.cells[0]) for line in by_title(others)["Controls"].lines[-3:]] == [
        ("shuffled patches (3)", "min", "5.100"),
        ("", "median", "6.100"),
        ("", "max", "7.100"),
    ]


def test_every_published_number_is_in_the_tables(scored):
    lines = [line for table in paper_tables(scored) for line in table.lines if line.kind in (THEIRS, NOT_MEASURED)]
    shown = [line.cells for line in lines]
    for row in PUBLISHED:
        cells = tuple("-" if value is None else f"{value:.3f}" for value in row.metrics)
        assert cells in shown, row.name
    assert len(lines) == len(PUBLISHED) + 1  # the Lower Bound stands beside both random rows
    assert {table.columns for table in paper_tables(scored)} == {COLUMNS}


def test_ours_the_papers_and_the_difference(scored):
    tables = by_title(paper_tables(scored))
    assert list(tables) == [TABLE_1, PROMPTS, BINS, f"{BINS}, bathroom", f"{BINS}, classroom"]
    ours, theirs, difference = tables[PROMPTS].lines[:3]
    assert (ours.name, ours.kind, ours.cells[0]) == ("original", OURS, "0.100")
    assert (theirs.name, theirs.kind, theirs.cells[0]) == ("", THEIRS, "0.394")
    assert (difference.name, difference.kind, difference.cells[0]) == ("", DIFFERENCE, "-0.294")
    names = [line.name for line in tables[TABLE_1].lines if line.kind == OURS]
    assert names == [f"{LOWER_BOUND}: random a", f"{LOWER_BOUND}: random b", "DepthCLIP"]
    bathroom = tables[f"{BINS}, bathroom"]
    assert bathroom.caption == "Of these, only bathroom: 2 images."
    assert bathroom.lines[0].cells[0] == "0.100"  # of images 0 and 2
    assert {line.kind for line in tables[f"{BINS}, classroom"].lines} == {NOT_MEASURED}


def test_over_other_images_ours_and_published_stand_apart_and_nothing_is_ranked(scored):
    tables = by_title(all_tables(replace(scored, official=False), ["mine"], 2))
    assert TABLE_1 not in tables
    assert not [line for table in tables.values() for line in table.lines if line.kind in (THEIRS, DIFFERENCE)]
    first = tables[PROMPTS].lines[0]
    assert tables[PROMPTS].columns == ("ours:", *COLUMNS, "published:", *COLUMNS)
    assert (first.name, first.cells[:2], first.cells[7:9]) == ("original", ("", "0.100"), ("", "0.394"))
    assert tables[f"{BINS}, classroom"].lines[0].cells[1:9] == ("-",) * 6 + ("", "0.308")
    widths = {len(line) for line in as_text(tables[PROMPTS]).split("\n")[1:]}
    assert len(widths) == 1  # every column is as wide in each line


def test_intervals_and_differences(scored):
    table = interval_table(scored)
    own, interval, difference, its_interval = table.lines[:4]
    assert (own.cells[0], interval.cells[0]) == ("0.100", "[0.000, 0.200]")
    assert (difference.cells[0], its_interval.cells[0]) == ("-0.900", "[-1.000, -0.800]")
    assert difference.kind == f"less {UNIFORM}"
    assert table.caption.endswith("resamples, rough for so few images.")


def test_json_has_every_mean_and_no_value_that_is_not_one(scored):
    value = json.loads(json.dumps(as_json(scored), allow_nan=False))
    assert list(value["rows"]) == [*ROWS, BEST]
    row = value["rows"]["mine"]
    assert row["metrics"] == pytest.approx(dict.fromkeys(METRICS, 1.1))
    assert row["less_uniform_weights_interval_95"]["rmse"] == [0, 0.2]
    assert [row[count] for count in COUNTS] == [303, 303]
    assert value["groups"]["shuffled patches"]["median"]["rmse"] == pytest.approx(6.1)


def test_csv_has_a_line_for_each_image_and_row(scored):
    header, *lines = csv.reader(io.StringIO(as_csv(scored.results, csv_text)))
    assert header == ["image", "scene", "index", "reading", *COUNTS, *METRICS]
    line = lines[len(ROWS) + 1 + 1]
    assert line[:6] == ["den/rgb_00001.jpg", "den", "8", "mine", "101", "101"]
    assert [float(cell) for cell in line[6:]] == [1.1] * len(METRICS)


# ---- names that would break their form


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_stays_in_its_cell(name):
    def written_of(scored: Scored, own: str) -> list[str]:
        tables = [*all_tables(scored, [own], 2), interval_table(scored)]
        return [
            "\n".join(map(as_text, tables)),
            as_markdown(tables, "Results", scored.caption),
            as_latex(tables, scored.caption),
        ]

    def cells(line: str, separator: str) -> int:
        return len(re.split(rf"(?<!\\)(?:\\\\)*{re.escape(separator)}", line))

    ours, plain = written_of(scored_of(own=name, caption=f"Of {name}."), name), written_of(scored_of(), "mine")
    assert "<script" not in ours[1]
    for written, usual, separator in zip(ours, plain, ("\n", "|", "&"), strict=True):
        written.encode()
        assert all(c.isprintable() or c == "\n" for c in written)
        for line, other in zip(written.split("\n"), usual.split("\n"), strict=True):
            assert cells(line, separator) == cells(other, separator)
            if separator == "&":
                assert not line.startswith(("[", "*"))  # after \\ they would be its argument
                assert not re.search(r"(?<!\\)[#%_~^]", line)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_in_a_csv_is_text_and_in_json_itself(name):
    scored = scored_of(own=name)
    lines = list(csv.reader(io.StringIO(as_csv(scored.results, csv_text).encode().decode(), newline="")))
    assert len(lines) == 1 + 3 * (len(ROWS) + 1)
    assert {len(line) for line in lines} == {4 + len(COUNTS) + len(METRICS)}
    assert not lines[2][3].startswith(("=", "+", "-", "@", "\t", "\r"))
    assert json.loads(json.dumps(as_json(scored)))["rows"][name]["metrics"]["rmse"] == pytest.approx(1.1)


def test_special_characters_by_hand():
    assert markdown("a|b_c*<d>\\\n") == r"a\|b\_c\*&lt;d>\\\\n"
    assert latex("50 % & $5_x^2 \\ {~}") == r"50 \% \& \$5\_x\textasciicircum{}2 \textbackslash{} \{\textasciitilde{}\}"
    assert [latex(text) for text in ("-0.123", "0.123", "-", "- far")] == ["$-0.123$", "0.123", "-", "- far"]
