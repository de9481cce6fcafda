"""experiments.tables: the numbers that stand in them, what is said of them, and names that would break their form."""

import csv
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from calculate_error import NYU_METRICS
from experiments.published import (
    BEST,
    BINS,
    COLUMNS,
    LOWER_BOUND,
    MEAN_IMAGE,
    PROMPTS,
    PUBLISHED,
    TABLE_1,
    THIS_RUN,
    UNIFORM,
)
from experiments.score import METRICS
from experiments.statistics import COUNTS, Results
from experiments.tables import (
    DIFFERENCE,
    NOT_MEASURED,
    OURS,
    PAPER,
    Line,
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
    "+1",
    "-1",
    "@SUM(A1)",
    "100 % of $5 & {x_1} #2 ~ ^ \\end{tabular}",
    "[2ex]",
    "*{3}",
    "\x1b[31mred\x1b[0m\r\a",
    "\u202eright to left",
    "not UTF-8 \udcff\udce9",
    "größer, 部屋",
    "\t=1+1",
    "'quoted', \"twice\"",
)


def scored_of(
    own: str = "mine", scenes: tuple[str, ...] = ("bathroom", "den", "bathroom"), **changes: object
) -> Scored:
    """Three images; row r of image i has r + i / 10 in every metric, but for a baseline of 1."""
    rows = [own if row == "mine" else row for row in ROWS]
    images = [f"{scene}/rgb_{i:05d}.jpg" for i, scene in enumerate(scenes)]
    errors = []
    for i in range(len(images)):
        values = np.array([*(r + i / 10 for r in range(len(rows) - 1)), 1.0])
        counts = {count: np.full(len(rows), 100 + i) for count in COUNTS}
        errors.append({**dict.fromkeys(METRICS, values), **counts})
    results = Results(images, scenes, [7 + i for i in range(len(images))], rows, errors, UNIFORM)
    results.add_like_baseline(BEST, {"rmse": np.full(len(images), 0.5)})
    by = {row: THIS_RUN for row in PUBLISHED if row.name in ("original", "DepthCLIP")}
    by |= {row: "prompt 1" for row in PUBLISHED if row.name == "prompt 1"}
    scored = Scored(results, {"shuffled patches": rows[5:8]}, by, RANDOM, True, "Over 3 images.")
    return replace(scored, **changes)


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
    assert bounds((0.1, 1.23456), ".3f") == "[0.100, 1.235]"
    assert bounds((-0.1, 0.2), "+.3f") == "[-0.100, +0.200]"
    assert bounds(None, ".3f") == "-"


def test_this_run_stands_between_the_paper_and_what_says_nothing(scored):
    table = all_tables(scored, ["mine"], 15 / 7)[0]
    assert [(line.name, line.cells[0], line.cells[-1]) for line in table.lines] == [
        (THIS_RUN, "0.100", "0.100"),
        ("paper, DepthCLIP", "0.394", "1.167"),
        ("mine", "1.100", "1.100"),
        (f"{UNIFORM} (2.143 m)", "1.000", "1.000"),
        (BEST, "1.000", "0.500"),
    ]


def test_every_published_number_is_in_the_tables(scored):
    lines = [line for table in paper_tables(scored) for line in table.lines if line.kind in (PAPER, NOT_MEASURED)]
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
    assert (theirs.name, theirs.kind, theirs.cells[0]) == ("", PAPER, "0.394")
    assert (difference.name, difference.kind, difference.cells[0]) == ("", DIFFERENCE, "-0.294")
    assert tables[PROMPTS].lines[3].cells[0] == "2.100"
    assert tables[PROMPTS].lines[6] == Line(
        "prompt 2", NOT_MEASURED, ("0.377", "0.667", "0.845", "0.385", "0.161", "1.196")
    )
    names = [line.name for line in tables[TABLE_1].lines if line.kind == OURS]
    assert names == [f"{LOWER_BOUND}: random a", f"{LOWER_BOUND}: random b", "DepthCLIP"]
    assert tables[TABLE_1].lines[0].name == "Make3D (depth)"


def test_a_scenes_table_is_over_its_images(scored):
    tables = by_title(paper_tables(scored))
    bathroom, classroom = tables[f"{BINS}, bathroom"], tables[f"{BINS}, classroom"]
    assert bathroom.caption == "bathroom only, 2 images; Over 3 images."
    assert bathroom.lines[0].cells[0] == "0.100"  # of images 0 and 2
    assert classroom.caption.startswith("classroom only, 0 images")
    assert {line.kind for line in classroom.lines} == {NOT_MEASURED}


def test_mean_training_image_stands_beside_eigens():
    scored = scored_of()
    scored.results.add_like_baseline(MEAN_IMAGE, {})
    lines = by_title(paper_tables(scored))[TABLE_1].lines
    assert [line.cells[0] for line in lines[-3:]] == ["1.000", "0.418", "+0.582"]


def test_groups_are_minimum_median_and_maximum(scored):
    tables = by_title(all_tables(scored, [], 2))
    assert set(tables) >= {"Controls", "What a constant cannot fake"}
    assert [(line.name, line.kind, line.cells[0]) for line in tables["Controls"].lines[-3:]] == [
        ("shuffled patches (3)", "min", "5.100"),
        ("", "median", "6.100"),
        ("", "max", "7.100"),
    ]
    assert "shuffled 0" not in [line.name for line in tables["Controls"].lines]
    assert "Controls" not in by_title(all_tables(replace(scored, controls=False), [], 2))
    columns = tables["What a constant cannot fake"].columns
    assert set(columns) == set(METRICS) - set(NYU_METRICS)


def test_intervals_and_differences(scored):
    table = interval_table(scored)
    own, interval, difference, its_interval = table.lines[:4]
    assert (own.cells[0], interval.cells[0]) == ("0.100", "[0.000, 0.200]")
    assert (difference.cells[0], its_interval.cells[0]) == ("-0.900", "[-1.000, -0.800]")
    assert difference.kind == f"less {UNIFORM}"
    assert sum(line.name == UNIFORM for line in table.lines) == 1
    assert "3 images are few: read the intervals as rough" in table.caption
    many = scored_of(scenes=("den",) * 50)
    assert "are few" not in interval_table(many).caption


def test_text_has_aligned_columns(scored):
    for table in all_tables(scored, ["mine"], 2):
        first, *lines = as_text(table).split("\n")
        assert first == f"{table.title} ({table.caption})"
        assert len({len(line) for line in lines}) == 1
        assert lines[0].split() == list(table.columns)


def test_json_has_every_mean_and_no_value_that_is_not_one(scored):
    value = json.loads(json.dumps(as_json(scored), allow_nan=False))
    assert list(value["rows"]) == [*ROWS, BEST]
    row = value["rows"]["mine"]
    assert row["metrics"] == pytest.approx(dict.fromkeys(METRICS, 1.1))
    assert row["interval_95"]["rmse"] == [1, 1.2]
    assert row["less_uniform_weights"]["rmse"] == pytest.approx(0.1)
    assert row["less_uniform_weights_interval_95"]["rmse"] == [0, 0.2]
    assert [row[count] for count in COUNTS] == [303, 303]
    assert value["scenes"]["den"]["mine"]["interval_95"]["rmse"] is None
    assert value["scenes"]["bathroom"]["mine"]["metrics"]["rmse"] == pytest.approx(1.1)
    assert value["groups"]["shuffled patches"]["median"]["rmse"] == pytest.approx(6.1)
    assert value["paper"]["delta1"] == 0.394
    assert value["images"] == 3


def test_csv_has_a_line_for_each_image_and_row(scored):
    header, *lines = csv.reader(io.StringIO(as_csv(scored.results, csv_text)))
    assert header == ["image", "scene", "index", "reading", *COUNTS, *METRICS]
    assert len(lines) == 3 * (len(ROWS) + 1)
    line = lines[len(ROWS) + 1 + 1]
    assert line[:6] == ["den/rgb_00001.jpg", "den", "8", "mine", "101", "101"]
    assert [float(cell) for cell in line[6:]] == [1.1] * len(METRICS)


# ---- names that would break their form


def cells_of(line: str, separator: str) -> list[str]:
    return re.split(rf"(?<!\\)(?:\\\\)*{re.escape(separator)}", line)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_stays_in_its_cell(name):
    scored = scored_of(own=name, caption=f"Of {name}.")
    tables = [*all_tables(scored, [name], 2), interval_table(scored)]
    text, page, tex = "\n".join(map(as_text, tables)), as_markdown(tables, "Results"), as_latex(tables)
    for written in (text, page, tex):
        written.encode()
        assert all(c.isprintable() or c == "\n" for c in written)
        assert written.count("\n") == len(lines_of(written, scored_of()))
    assert "<script" not in page
    for line in page.splitlines():
        if line.startswith("|"):
            assert len(cells_of(line, "|")) in (len(COLUMNS) + 4, len(METRICS) - len(NYU_METRICS) + 4)
    for line in tex.splitlines():
        if line.endswith((r"\\", r"\\ \hline")):
            assert len(cells_of(line, "&")) in (len(COLUMNS) + 2, len(METRICS) - len(NYU_METRICS) + 2)
            assert not line.startswith(("[", "*"))  # after \\ they would be its argument
        assert not re.search(r"(?<!\\)[#%_~^]", line)
    assert tex.count(r"\end{tabular}") == len(tables)


def lines_of(written: str, plain: Scored) -> list[str]:
    """Line ends of the same text about a row with a plain name."""
    tables = [*all_tables(plain, ["mine"], 2), interval_table(plain)]
    if written.startswith("This run"):
        return "\n".join(map(as_text, tables)).split("\n")[1:]
    return (as_markdown(tables, "Results") if written.startswith("#") else as_latex(tables)).split("\n")[1:]


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
    assert latex("a < b > c") == "a $<$ b $>$ c"
    assert [latex(text) for text in ("-0.123", "+0.123", "0.123", "-", "- far")] == [
        "$-0.123$",
        "$+0.123$",
        "0.123",
        "-",
        "- far",
    ]
