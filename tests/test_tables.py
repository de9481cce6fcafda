"""experiments.tables: the numbers that stand in them, what is said of them, and names that would break their form."""

import csv
import io
import json
import re
from dataclasses import replace

import numpy as np
import pytest

from calculate_error import KITTI_ADABINS, KITTI_BTS
from experiments import published, tables
from experiments.published import BEST, BINS, PROMPTS, RUNGS, TABLE_1, THIS_RUN, UNIFORM, published_rows
from experiments.score import Setting
from experiments.statistics import COUNTS, PRIMARY
from experiments.tables import DIFFERENCE, LADDER, OURS, QUESTION, REPRODUCED, THEIRS, Report, Table, parts_of
from tests.conftest import FITTED, HOSTILE, LESS, METRICS, RANDOM, ROWS, asked, report_of, with_findings


@pytest.fixture(scope="module")
def report() -> Report:
    return report_of()


def by_title(report: Report) -> dict[str, Table]:
    return {table.title: table for table in tables.all_tables(report)}


def test_this_run_stands_between_the_paper_and_what_says_nothing(report):
    found = by_title(report)
    assert [(name, cells[0], cells[-1]) for name, _, *cells in found["This run"].lines] == [
        (THIS_RUN, "0.100", "0.100"),
        ("paper, DepthCLIP", "0.394", "1.167"),
        ("mine", "1.100", "1.100"),
        (f"{UNIFORM} (2.143 m)", "1.000", "1.000"),
        (LESS, "2.000", "2.000"),  # those of its own bins
        (f"{BEST}, of other images", "1.000", "0.500"),
    ]
    control = found["Must the words be about distance?"].lines
    assert [line[:3] for line in control] == [(THIS_RUN, OURS, "0.100"), ("colour words", OURS, "5.100")]
    shown = tables.summary(report, list(found.values()), "tables.md")
    assert [title in shown for title in (LADDER, TABLE_1, "Every row")] == [True, True, False]
    assert max(map(len, shown.splitlines())) <= 100
    other = by_title(replace(report, official=False))  # over other images, no published row stands beside ours
    assert not any("DepthCLIP" in line[0] or line[1] == THEIRS for table in other.values() for line in table.lines)
    certainty = by_title(with_findings(report, curve=np.linspace(0.11, 0.3, 20)))[tables.CERTAIN]
    assert certainty.columns == ("5 %", "10 %", "25 %", "50 %", "75 %", "100 %", "aurg")
    own = (THIS_RUN, OURS, "0.110", "0.120", "0.150", "0.200", "0.250", "0.300", "0.095")
    assert certainty.lines == [own, ("in a random order", "", *["0.300"] * 6, "0.000")]


def test_the_question_by_hand():
    """Of delta1's differences, 6 are .2 and 6 are -.1: se = .15 / sqrt(11) = .0452, and t(.975; 11) is 2.201."""
    report, name, best = asked(), f"{THIS_RUN} minus {UNIFORM}", f"{THIS_RUN} minus {BEST}"
    others = f"{THIS_RUN} minus the mean of 3 other assignments, over patches"
    table = tables.question_table(report)
    assert table.lines == [
        (name, "delta1", "+0.050", "[-0.050, +0.150]", "6 of 12", "+0.32", "-"),
        (name, "abs_rel", "-0.250", "[-0.250, -0.250]", "12 of 12", "-", "-"),
        (best, "delta1", "+0.050", "[-0.050, +0.150]", "6 of 12", "+0.32", "-"),
        (best, "abs_rel", "-0.250", "[-0.250, -0.250]", "12 of 12", "-", "-"),
        (name, "spearman", "+0.300", "[+0.300, +0.300]", "12 of 12", "-", "-"),
        (name, "aurg", "+0.300", "[+0.300, +0.300]", "12 of 12", "-", "-"),
        (others, "delta1", "+0.100", "-", "-", "-", "0.5000"),
        (others, "abs_rel", "-0.050", "-", "-", "-", "0.5000"),
    ]
    assert f"Primary contrast: {name}, the mean 2.143 m of its bins, image by image. A yes " in table.caption
    assert "k of all n = 3 other assignments of the bins" in table.caption
    assert "k of the random n = 3 other" in tables.question_table(replace(report, complete=False)).caption
    alone = with_findings(report, permuted=None)
    assert tables.question_table(alone).lines == table.lines[:-2]
    assert tables.question_table(alone).caption.endswith("p: there is no other assignment of the bins.")
    assert tables.question_table(replace(alone, groups={})).caption.endswith("was asked (--controls).")
    shown = tables.summary(report, tables.all_tables(report), "tables.md")
    assert shown.split("\n\n")[1].split("\n") == [
        f"{QUESTION} Cannot tell: there are too few assignments of the bins for a small p.",
        "delta1 (higher is better): 1.050, uniform weights 1.000: +0.050 [-0.050, +0.150], p = 0.5000",
        "abs_rel (lower is better): 0.750, uniform weights 1.000: -0.250 [-0.250, -0.250], p = 0.5000",
    ]


def test_the_ladder_by_hand():
    report = asked()
    report.results.metrics[published.CEILING][:] = 2.0
    report.results.metrics[published.TRUTH_AT][:] = 1.5
    lines = {name: tuple(cells) for name, _, *cells in tables.ladder_table(report).lines}
    assert list(lines) == list(RUNGS)
    less = ("-0.050", "[-0.150, +0.050]", "+0.250", "[+0.250, +0.250]")  # of delta1, of abs_rel
    assert lines[UNIFORM] == ("1.000", *less[:2], "1.000", *less[2:], "1.000", "1.000")
    assert lines[THIS_RUN] == ("1.050", "", "", "0.750", "", "", "1.300", "1.300")
    said = "Of the way from the best constant (delta1 1.000) to the ceiling (2.000), words take 5 % (1.050), "
    said += "position alone 50 % (1.500), a linear probe of the same features 855 % (9.550). "
    assert tables.distance(report) == said
    told = tables.ladder_table(with_findings(report, missing=["A reason.", "A second one."])).caption
    assert told.endswith(f"{said}A reason. A second one. Exploratory, unadjusted.")
    report.results.metrics[published.CEILING][:] = 1.0049
    assert tables.distance(report) == ""  # it is no way
    assert LADDER not in by_title(replace(report, groups={}))  # without --controls


def test_intervals_and_differences():
    lines = by_title(asked())["Intervals"].lines
    delta1 = ("1.050", "[0.950, 1.000]", "+0.050", "[-0.050, +0.150]")
    abs_rel = ("0.750", "[0.750, 0.750]", "-0.250", "[-0.250, -0.250]")
    names = ((THIS_RUN, OURS), ("", "interval"), ("", f"less {UNIFORM}"), ("", "interval"))
    expected = [(*name, one, two) for name, one, two in zip(names, delta1, abs_rel, strict=True)]
    assert [(*line[:3], line[5]) for line in lines[:4]] == expected
    assert (lines[4][0], *lines[6][1:3]) == ("mine", f"less {LESS}", "-0.450")
    assert lines[[line[0] for line in lines].index(UNIFORM) + 2][0] == LESS  # nothing is less itself
    assert "Intervals" not in by_title(asked(9))  # clusters


def test_ours_the_papers_and_the_difference(report):
    found = {table.title: table for table in tables.paper_tables(report)}
    assert list(found) == [TABLE_1, PROMPTS, BINS, f"{BINS}, bathroom", f"{BINS}, classroom"]
    first = [("original", OURS, "0.100"), ("", THEIRS, "0.394"), ("", DIFFERENCE, "-0.294")]
    assert [line[:3] for line in found[PROMPTS].lines[:3]] == first
    ours = [line[0] for line in found[TABLE_1].lines if line[1] == OURS]
    assert ours == ["Lower Bound: random a", "Lower Bound: random b", "DepthCLIP"]
    bathroom = found[f"{BINS}, bathroom"]
    assert bathroom.caption == "Of these, only bathroom: 2 images. A scene is a room type."
    assert bathroom.lines[0][2] == "0.100"  # of images 0 and 2
    assert {line[1] for line in found[f"{BINS}, classroom"].lines} == {THEIRS}
    theirs = [line[2:] for table in found.values() for line in table.lines if line[1] == THEIRS]
    on_nyu = [row for row in published_rows() if row.protocol == "NYU"]
    assert {tuple(map(published.cell_of, row.metrics.values(), [".3f"] * 6)) for row in on_nyu} == set(theirs)
    assert len(theirs) == len(on_nyu) + 1  # the Lower Bound stands beside both random rows


def test_a_row_within_half_a_hundredth_of_the_published_one_is_marked():
    report = report_of()
    (paper,) = (row for row in published_rows() if row.name == "original" and row.table == PROMPTS)
    for off, as_released, kind in ((0.005, True, REPRODUCED), (0.005, False, DIFFERENCE), (0.0051, True, DIFFERENCE)):
        for column, value in paper.metrics.items():
            report.results.metrics[THIS_RUN][:, METRICS.index(column)] = value
        report.results.metrics[THIS_RUN][:, METRICS.index("rmse")] += off
        assert by_title(replace(report, as_released=as_released))[PROMPTS].lines[2][1] == kind


@pytest.mark.parametrize("protocol", [KITTI_BTS, KITTI_ADABINS])
def test_published_rows_of_kitti_have_their_protocol_and_a_difference_only_to_their_own(report, protocol):
    rows = replace(report.rows, settings=(*report.rows.settings, Setting("colour words", published.AUTY)))
    found = by_title(replace(report, protocol=protocol, rows=rows))
    main, table = found[f"This run ({protocol.name})"].lines, found[published.KITTI_ROWS].lines
    names = ("DepthCLIP, as run in MfH (KITTI, protocol not said)", "Auty, size words (KITTI, AdaBins)")
    assert (main[1][0], main[4][0]) == names
    place = [line[:2] for line in table].index((f"Auty, depth words ({protocol.name})", OURS))
    assert table[place + 1][:2] == ("KITTI, AdaBins", THEIRS)
    assert (table[place + 2][1] == DIFFERENCE) == (protocol is KITTI_ADABINS)


def test_json_has_every_mean_and_no_value_that_is_not_one():
    report = asked()
    report.results.metrics[UNIFORM][:, METRICS.index("spearman")] = np.nan  # a constant has no order
    value = json.loads(json.dumps(tables.as_json(report), allow_nan=False))
    _, abs_rel = value["question"]["primary"]
    assert list(abs_rel.values()) == [THIS_RUN, UNIFORM, "abs_rel", -0.25, [-0.25, -0.25], 12, 12, None, 0.5]
    assert (value["question"]["answer"], value["question"]["other_assignments"]) == (report.verdict, 3)
    assert list(value["rows"]) == [*ROWS, BEST]
    row = value["rows"]["mine"]
    assert row["metrics"] == pytest.approx(dict.fromkeys(METRICS, 1.55))
    assert (row["baseline"], row["less_baseline"]["rmse"]) == (LESS, pytest.approx(-0.45))
    assert [row[count] for count in COUNTS] == [1266, 1266]
    ladder = [(c["row"], c["metric"]) for c in value["ladder"]["minus_this_run"]]
    assert ladder == [(row, metric) for row in RUNGS if row != THIS_RUN for metric in PRIMARY]
    uniform = value["rows"][UNIFORM]
    assert [uniform[key]["spearman"] for key in ("metrics", "interval_95", "less_baseline")] == [None] * 3
    lines = csv.DictReader(io.StringIO(tables.as_csv(report.results, "NYU", parts_of(report))))
    assert {line["spearman"] for line in lines if line["reading"] == UNIFORM} == {""}


def test_csv_has_a_line_for_each_image_and_row_and_the_part_that_the_row_belongs_to(report):
    header, *lines = csv.reader(io.StringIO(tables.as_csv(report.results, "NYU", parts_of(report))))
    assert header == ["image", "scene", "cluster", "index", "protocol", "reading", "group", *COUNTS, *METRICS]
    line = lines[len(ROWS) + 1 + 1]
    assert line[:9] == ["den/rgb_00001.jpg", "den", "'=den_2", "8", "NYU", "mine", "own readings", "101", "101"]
    assert [float(cell) for cell in line[9:]] == [1.1] * len(METRICS)
    expected = {THIS_RUN: THIS_RUN, "mine": "own readings", "prompt 1": "paper", LESS: "baseline"}
    expected |= {"colour words": "Must the words be about distance?"} | dict.fromkeys(RANDOM, "random")
    assert {line[5]: line[6] for line in lines} == expected | dict.fromkeys((*FITTED, UNIFORM, BEST), "ladder")


@pytest.mark.parametrize("name", HOSTILE)
def test_a_name_stays_in_its_cell(name):
    def written_of(report: Report) -> tuple[list[str], list[str]]:
        found = tables.all_tables(report)
        text, markdown = map(tables.as_text, found), tables.as_markdown(found, "Results", report.caption)
        return "\n".join(text).split("\n"), re.sub(r"\\.", "", markdown).split("\n")

    report = report_of(own=name, caption=f"Of {name}.")
    ours, usual = written_of(report), written_of(report_of())
    assert "<script" not in "".join(ours[1])
    for line in (*ours[0], *ours[1]):
        line.encode()
        assert line.isprintable()
    assert len(ours[0]) == len(usual[0])
    assert [line.count("|") for line in ours[1]] == [line.count("|") for line in usual[1]]
    text = tables.as_csv(report.results, "NYU", parts_of(report)).encode().decode()
    lines = list(csv.reader(io.StringIO(text, newline="")))
    assert [len(line) for line in lines] == [7 + len(COUNTS) + len(METRICS)] * (1 + 3 * (len(ROWS) + 1))
    assert not lines[2][5].startswith(("=", "+", "-", "@", "\t", "\r"))
    assert tables.markdown("a|b_c*<d>\\\n") == r"a\|b\_c\*&lt;d>\\\\n"
