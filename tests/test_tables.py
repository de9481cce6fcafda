"""experiments.tables: the numbers that stand in them, what is said of them, and names that would break their form."""

import csv
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from experiments.published import (
    BEST,
    BEST_ELSEWHERE,
    BEST_TRAINED,
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
from experiments.statistics import COUNTS, PRIMARY
from experiments.tables import (
    CERTAIN,
    DIFFERENCE,
    NOT_MEASURED,
    OURS,
    QUESTION,
    REPRODUCED,
    THEIRS,
    Report,
    Table,
    all_tables,
    as_csv,
    as_json,
    as_markdown,
    as_text,
    bounds,
    interval_table,
    markdown,
    paper_tables,
    question_table,
)
from options import csv_text
from tests.conftest import CONSTANTS, HOSTILE, LESS, METRICS, ROWS, asked, report_of


@pytest.fixture(scope="module")
def report() -> Report:
    return report_of()


def by_title(tables: list[Table]) -> dict[str, Table]:
    return {table.title: table for table in tables}


# ---- what stands in the tables


def test_numbers_have_three_decimals_signs_and_gaps():
    table = Table("T", "c", ("a", "b", "d"))
    table.add("x", OURS, {"a": 1.23456, "b": None})
    table.add("y", DIFFERENCE, {"a": -0.00051, "b": 0.0, "d": 12.0}, sign=True)
    assert [line.cells for line in table.lines] == [("1.235", "-", "-"), ("-0.001", "+0.000", "+12.000")]
    assert (bounds((-0.1, 1.23456), "+.3f"), bounds(None, ".3f")) == ("[-0.100, +1.235]", "-")


def test_this_run_and_controls_stand_with_their_means(report):
    tables, alone = (by_title(all_tables(replace(report, own=own), CONSTANTS)) for own in (["mine"], []))
    assert [(line.name, line.cells[0], line.cells[-1]) for line in tables["This run"].lines] == [
        (THIS_RUN, "0.100", "0.100"),
        ("paper, DepthCLIP", "0.394", "1.167"),
        ("mine", "1.100", "1.100"),
        (f"{UNIFORM} (2.143 m)", "1.000", "1.000"),
        (LESS, "2.000", "2.000"),  # those of its own bins
        (BEST, "1.000", "0.500"),
        (BEST_ELSEWHERE, "1.000", "0.600"),
    ]
    assert not {"mine", LESS} & {line.name for line in alone["This run"].lines}
    assert [line.name for line in tables["Controls"].lines] == list(report.results.metrics)
    assert tables["Controls"].lines[5].cells[0] == "5.100"


def test_the_question_by_hand():
    """Of delta1's differences, 6 are .2 and 6 are -.1: se = .15 / sqrt(11) = .0452, and t(.975; 11) is 2.201."""
    report, name, elsewhere = asked(), f"{THIS_RUN} minus {UNIFORM}", f"{THIS_RUN} minus {BEST_ELSEWHERE}"
    others = f"{THIS_RUN} minus the mean of 3 other assignments, over patches"
    table = question_table(report, 15 / 7)
    assert [(line.name, line.kind, *line.cells) for line in table.lines] == [
        (name, "delta1", "+0.050", "[-0.050, +0.150]", "6 of 12", "+0.32", "-"),
        (name, "abs_rel", "-0.250", "[-0.250, -0.250]", "12 of 12", "-", "-"),
        (elsewhere, "delta1", "+0.050", "[-0.050, +0.150]", "6 of 12", "+0.32", "-"),
        (elsewhere, "abs_rel", "-0.250", "[-0.250, -0.250]", "12 of 12", "-", "-"),
        (name, "spearman", "+0.300", "[+0.300, +0.300]", "12 of 12", "-", "-"),
        (others, "delta1", "+0.100", "-", "-", "-", "0.5000"),
        (others, "abs_rel", "-0.050", "-", "-", "-", "0.5000"),
    ]
    assert table.caption.startswith(f"Primary contrast: {name}, the mean 2.143 m of its bins, image by image. A yes ")
    assert "over 12 clusters (captures). wins: " in table.caption
    assert "All else in these tables is exploratory, unadjusted." in table.caption
    assert "k of all n = 3 other assignments of the bins" in table.caption
    assert "k of the random n = 3 other" in question_table(replace(report, complete=False), 2).caption
    alone = question_table(replace(report, permuted=None), 15 / 7)
    assert {line.cells[-1] for line in alone.lines} == {"-"}
    assert alone.caption.endswith("p: there is no other assignment.")  # of one bin
    alone = question_table(replace(report, permuted=None, controls=False), 15 / 7)
    assert alone.caption.endswith("p: with --controls.")


def test_below_ten_clusters_there_is_no_interval_and_the_note_says_so():
    for count, said in ((9, True), (10, False)):
        question, intervals = question_table(asked(count), 2), interval_table(asked(count))
        cells = [line.cells[1] for line in question.lines[:5]]
        cells += [cell for line in intervals.lines if line.kind == "interval" for cell in line.cells]
        assert {cell == "-" for cell in cells} == {said}
        for table in (question, intervals):
            assert ("No intervals: fewer than 10 clusters (9: captures)." in table.caption) == said


def test_what_is_told_of_each_table(report):
    tables = by_title([*all_tables(report, CONSTANTS), interval_table(report)])
    assert list(tables)[:2] == [QUESTION, "This run"]
    said = {title for title, table in tables.items() if table.caption.endswith("Exploratory, unadjusted.")}
    extra = "What a constant cannot fake"
    assert said == {TABLE_1, PROMPTS, BINS, "Controls", extra, "Paired differences", "Intervals"}
    assert "All else in these tables is exploratory, unadjusted." in tables[QUESTION].caption
    for title, texts in (
        (TABLE_1, ('random "for each pixel within depth range 0-10m"', "Zhang et al.'s log10 .529 does not go with")),
        (TABLE_1, ("Mean training depth image: over another crop and filled ground truth.",)),
        (extra, ("- for maps that span less than 1 cm", "silog: scale-invariant log error", "ratio of medians, the l")),
        ("Intervals", (f"{BEST!r} is chosen on the images that it is report on, so that it looks too good.",)),
    ):
        assert all(text in tables[title].caption for text in texts), title
    plain = by_title(all_tables(replace(report, controls=False), CONSTANTS))  # without controls
    assert "Controls" not in plain


def test_certainty_has_its_column_and_a_table_of_its_own(report):
    extra = "What a constant cannot fake"
    curve = np.linspace(0.11, 0.3, 20)
    without, tables = (all_tables(each, CONSTANTS) for each in (report, replace(report, curve=curve)))
    assert by_title(tables)[extra].columns == ["spearman", "aurg", "silog", "scaled_delta1", "scaled_abs_rel"]
    assert [table.title for table in tables] == [*(table.title for table in without), CERTAIN]
    assert tables[-1].columns == ("5 %", "10 %", "25 %", "50 %", "75 %", "100 %", "aurg")
    cells = ("0.110", "0.120", "0.150", "0.200", "0.250", "0.300", "0.095")
    random = ("in a random order", "", (*["0.300"] * 6, "0.000"))
    assert [(line.name, line.kind, line.cells) for line in tables[-1].lines] == [(THIS_RUN, OURS, cells), random]


def test_paired_differences_are_to_all_that_is_known_without_looking(report):
    differences = [(c.row, c.minus, c.metric) for c in report.exploratory]
    expected = [(THIS_RUN, UNIFORM, metric) for metric in ("spearman", "aurg")]
    expected += [(THIS_RUN, constant, metric) for constant in (BEST, BEST_ELSEWHERE) for metric in PRIMARY]
    expected += [("mine", LESS, metric) for metric in PRIMARY]
    assert differences == expected + [(row, THIS_RUN, m) for row in ("prompt 1", "mine", "mine") for m in PRIMARY]
    without = [(c.row, c.minus, c.metric) for c in replace(report, published_by={}).exploratory]  # --no_paper
    assert without == expected
    trained = report_of()
    for row in (BEST_TRAINED, MEAN_IMAGE):
        trained.results.add_constant(row, {"delta1": np.full(3, 0.25)})
    found = {c.minus: c.difference for c in trained.exploratory if c.row == THIS_RUN and c.metric == "delta1"}
    assert found == pytest.approx({BEST: -0.9, BEST_ELSEWHERE: -0.9, BEST_TRAINED: -0.15, MEAN_IMAGE: -0.15})
    tables = by_title(all_tables(trained, CONSTANTS))
    assert tables["This run"].lines[-1].name == BEST_TRAINED
    beside = [line for line in tables[TABLE_1].lines[-4:-1] if line.kind != OURS]
    assert [(line.kind, line.cells[0]) for line in beside] == [(THEIRS, "0.418"), (DIFFERENCE, "-0.168")]


def test_every_published_number_is_in_the_tables(report):
    lines = [line for table in paper_tables(report) for line in table.lines if line.kind in (THEIRS, NOT_MEASURED)]
    shown = [line.cells for line in lines]
    on_nyu = [row for row in PUBLISHED if row.data_set == "NYU"]
    for row in on_nyu:
        cells = tuple("-" if value is None else f"{value:.3f}" for value in row.metrics)
        assert cells in shown, row.name
    assert len(lines) == len(on_nyu) + 1  # the Lower Bound stands beside both random rows
    assert {table.columns for table in paper_tables(report)} == {COLUMNS}


def test_ours_the_papers_and_the_difference(report):
    tables = by_title(paper_tables(report))
    assert list(tables) == [TABLE_1, PROMPTS, BINS, f"{BINS}, bathroom", f"{BINS}, classroom"]
    ours, theirs, difference = tables[PROMPTS].lines[:3]
    assert (ours.name, ours.kind, ours.cells[0]) == ("original", OURS, "0.100")
    assert (theirs.name, theirs.kind, theirs.cells[0]) == ("", THEIRS, "0.394")
    assert (difference.name, difference.kind, difference.cells[0]) == ("", DIFFERENCE, "-0.294")
    names = [line.name for line in tables[TABLE_1].lines if line.kind == OURS]
    assert names == [f"{LOWER_BOUND}: random a", f"{LOWER_BOUND}: random b", "DepthCLIP"]
    bathroom = tables[f"{BINS}, bathroom"]
    assert bathroom.caption == "Of these, only bathroom: 2 images. A scene is a room type."
    assert bathroom.lines[0].cells[0] == "0.100"  # of images 0 and 2
    assert {line.kind for line in tables[f"{BINS}, classroom"].lines} == {NOT_MEASURED}


def test_a_row_within_a_two_hundredth_of_the_published_one_is_marked():
    report = report_of()
    (paper,) = (row for row in PUBLISHED if row.name == "original" and row.table == PROMPTS)
    for off, as_released, kind in ((0.005, True, REPRODUCED), (0.005, False, DIFFERENCE), (0.0051, True, DIFFERENCE)):
        for column, value in paper.by_column().items():
            report.results.metrics[THIS_RUN][:, METRICS.index(column)] = value
        report.results.metrics[THIS_RUN][:, METRICS.index("rmse")] += off
        lines = by_title(paper_tables(replace(report, as_released=as_released)))[PROMPTS].lines
        assert [line.kind for line in lines[:3]] == [OURS, THEIRS, kind]
        assert {line.kind for line in lines[3:]} == {OURS, THEIRS, DIFFERENCE}


def test_over_other_images_ours_and_published_stand_apart_and_nothing_is_ranked(report):
    tables = by_title(all_tables(replace(report, official=False), CONSTANTS))
    assert TABLE_1 not in tables
    assert not [line for table in tables.values() for line in table.lines if line.kind in (THEIRS, DIFFERENCE)]
    first = tables[PROMPTS].lines[0]
    assert tables[PROMPTS].columns == ("ours:", *COLUMNS, "published:", *COLUMNS)
    assert (first.name, first.cells[:2], first.cells[7:9]) == ("original", ("", "0.100"), ("", "0.394"))
    assert tables[f"{BINS}, classroom"].lines[0].cells[1:9] == ("-",) * 6 + ("", "0.308")
    widths = {len(line) for line in as_text(tables[PROMPTS]).split("\n")[1:]}
    assert len(widths) == 1  # every column is as wide in each line


def test_intervals_and_differences(report):
    lines = interval_table(report).lines
    assert [(line.kind, line.cells[0]) for line in lines[:4]] == [
        (OURS, "0.100"),
        ("interval", "-"),
        (f"less {UNIFORM}", "-0.900"),
        ("interval", "-"),
    ]
    assert (lines[4].name, lines[6].kind, lines[6].cells[0]) == ("mine", f"less {LESS}", "-0.900")
    assert [line.kind for line in lines if line.name == UNIFORM] == [OURS]
    assert lines[[line.name for line in lines].index(UNIFORM) + 2].name == LESS  # nothing is less itself
    assert [line.cells for line in interval_table(asked()).lines[1:4:2]] == [
        ("[0.950, 1.150]", *["[1.300, 1.300]"] * 2, "[0.750, 0.750]", *["[1.300, 1.300]"] * 2),
        ("[-0.050, +0.150]", *["[+0.300, +0.300]"] * 2, "[-0.250, -0.250]", *["[+0.300, +0.300]"] * 2),
    ]


def test_json_has_every_mean_and_no_value_that_is_not_one():
    report = asked()
    value = json.loads(json.dumps(as_json(report), allow_nan=False))
    keys = {
        "question",
        "own_readings",
        "clustered_by",
        "intervals",
        "rows",
        "published",
        "scenes",
        "images",
    }
    assert (value.keys(), value["images"], value["clustered_by"]) == (keys, 12, "captures")
    assert value["intervals"] == report.results.interval_note
    first, second = value["question"]["primary"]
    assert {k: first[k] for k in ("row", "minus", "metric", "wins", "p")} == {
        "row": THIS_RUN,
        "minus": UNIFORM,
        "metric": "delta1",
        "wins": 6,
        "p": 0.5,
    }
    assert (second["metric"], second["difference"], second["interval_95"]) == ("abs_rel", -0.25, [-0.25, -0.25])
    assert (value["question"]["asked"], value["question"]["other_assignments"]) == (QUESTION, 3)
    assert len(value["question"]["exploratory"]) == len(report.exploratory)
    assert list(value["rows"]) == [*ROWS, BEST, BEST_ELSEWHERE]
    row = value["rows"]["mine"]
    assert row["metrics"] == pytest.approx(dict.fromkeys(METRICS, 1.55))
    assert (row["baseline"], row["less_baseline"]["rmse"]) == (LESS, pytest.approx(-0.45))
    assert row["less_baseline_interval_95"]["rmse"][0] < -0.45 < row["less_baseline_interval_95"]["rmse"][1]
    assert [row[count] for count in COUNTS] == [1266, 1266]
    assert value["scenes"]["bathroom"]["mine"]["metrics"]["rmse"] == pytest.approx(1.5)
    assert value["scenes"]["bathroom"]["mine"]["interval_95"]["rmse"] is None  # six clusters
    assert as_json(report_of())["question"]["other_assignments"] == 0


def test_csv_has_a_line_for_each_image_and_row(report):
    header, *lines = csv.reader(io.StringIO(as_csv(report.results, csv_text)))
    assert header == ["image", "scene", "cluster", "index", "protocol", "reading", *COUNTS, *METRICS]
    line = lines[len(ROWS) + 2 + 1]
    assert line[:8] == ["den/rgb_00001.jpg", "den", "'=den_2", "8", "NYU", "mine", "101", "101"]
    assert [float(cell) for cell in line[8:]] == [1.1] * len(METRICS)


def test_what_has_no_order_has_no_spearman_anywhere():
    report = asked()
    report.results.metrics[UNIFORM][:, METRICS.index("spearman")] = np.nan
    value = json.loads(json.dumps(as_json(report), allow_nan=False))["rows"][UNIFORM]
    assert (
        value["metrics"]["spearman"] is value["interval_95"]["spearman"] is value["less_baseline"]["spearman"] is None
    )
    (line,) = (line for line in question_table(report, 2).lines if line.kind == "spearman")
    assert line.cells[:3] == ("+1.300", "[+1.300, +1.300]", "12 of 12")  # minus 0
    (line,) = (
        x for x in by_title(all_tables(report, CONSTANTS))["What a constant cannot fake"].lines if x.name == UNIFORM
    )
    assert line.cells[0] == "-"
    lines = csv.DictReader(io.StringIO(as_csv(report.results, csv_text)))
    assert {line["spearman"] for line in lines if line["reading"] == UNIFORM} == {""}


# ---- names that would break their form


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_stays_in_its_cell(name):
    def written_of(report: Report, own: str) -> list[str]:
        tables = [*all_tables(report, CONSTANTS), interval_table(report)]
        return ["\n".join(map(as_text, tables)), as_markdown(tables, "Results", report.caption)]

    def cells(line: str, separator: str) -> int:
        return len(re.split(rf"(?<!\\)(?:\\\\)*{re.escape(separator)}", line))

    ours, plain = written_of(report_of(own=name, caption=f"Of {name}."), name), written_of(report_of(), "mine")
    assert "<script" not in ours[1]
    for written, usual, separator in zip(ours, plain, ("\n", "|"), strict=True):
        written.encode()
        assert all(c.isprintable() or c == "\n" for c in written)
        for line, other in zip(written.split("\n"), usual.split("\n"), strict=True):
            assert cells(line, separator) == cells(other, separator)


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_in_a_csv_is_text_and_in_json_itself(name):
    report = report_of(own=name)
    lines = list(csv.reader(io.StringIO(as_csv(report.results, csv_text).encode().decode(), newline="")))
    assert len(lines) == 1 + 3 * (len(ROWS) + 2)
    assert {len(line) for line in lines} == {6 + len(COUNTS) + len(METRICS)}
    assert not lines[2][5].startswith(("=", "+", "-", "@", "\t", "\r"))
    assert json.loads(json.dumps(as_json(report)))["rows"][name]["metrics"]["rmse"] == pytest.approx(1.1)


def test_special_characters_by_hand():
    assert markdown("a|b_c*<d>\\\n") == r"a\|b\_c\*&lt;d>\\\\n"
