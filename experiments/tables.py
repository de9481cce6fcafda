"""Step 3 of the experiments, in words and numbers: tables for the terminal and Markdown, CSV and JSON.

Every number is a view on `statistics.Results`. Tables are built once, as `Table`s, and written in both forms.
"""

import csv
import io
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from textwrap import fill
from typing import Any

import numpy as np
import torch

from calculate_error import Protocol
from datasets import counted, printable
from experiments import published
from experiments.published import BEST, CEILING, COLUMNS, RUNGS, THIS_RUN, UNIFORM, beside, label_of, named_by
from experiments.score import EXTRA_METRICS, SHARES, Rows, gain_over_random
from experiments.statistics import COUNTS, HIGHER, PRIMARY, Contrast, Findings, Interval, Results, p_value

RESULTS_FILE, ROWS_FILE = "results.json", "per_image.csv"
OURS, THEIRS, DIFFERENCE = "ours", "published", "difference"
CLOSE, REPRODUCED = 0.005, "within .005"  # of all metrics of a row, with the paper's weights and images
EXPLORATORY = "Exploratory, unadjusted."
SMALL_P = 0.05
TABLE_NOTES = {
    published.TABLE_1: 'Lower Bound: in the paper random "for each pixel within depth range 0-10m", for which its rmse '
    "2.934 is hardly possible (docs/questions.md). Zhang et al.'s log10 .529 does not go with its other metrics. "
    f"The mean training depth image is over another crop and filled ground truth. {EXPLORATORY}",
    published.KITTI_ROWS: "MfH does not say whose bins and protocol; Auty and Mikolajczyk crop the ground truth to the "
    f"window first, as AdaBins does. {EXPLORATORY}",
}
QUESTION = "Does language see depth here?"
QUESTION_MEANING = (
    "A yes needs both metrics to be better beyond their intervals, against the best constant as well, and a small p "
    "(docs/statistics.md). All else in these tables is exploratory, unadjusted. {} "
    "wins: images for which the first of the two rows is better. dz: mean difference / its standard deviation over "
    "images. spearman: minus 0, as a constant has no order. "
)
LADDER = "How far does language get?"
LADDER_MEANING = (
    f"From knowing nothing to the most that patches of this size can say (docs/ladder.md). Beside each metric: minus "
    f"{THIS_RUN}, image by image, with its 95 % interval. What is fitted is fitted on other clusters; a best constant "
    "of other images of the same data is not independent of them."
)
EXTRA_MEANING = (
    "spearman: rank correlation over each image's measured patches, - for maps that span less than 1 cm. ordinal: "
    "share of pairs of patches in the wrong order, of those whose true depths differ by more than a factor 1.25. aurg: "
    "what sigma, how far apart the answers lie, knows of abs_rel (docs/readouts.md), 0 for any constant. silog: "
    "scale-invariant log error, not times 100. scaled: after multiplying each prediction by the ratio of medians. "
    "aligned: after a pred + b by least squares, as relative methods report. Uniform weights stand for all constants."
)
CERTAIN_MEANING = (
    "abs_rel of the most certain share of each image's patches, by sigma, how far apart the answers lie; mean over "
    "images. aurg: area between this curve and a random order's, which is flat; positive if certain patches are better."
)


@dataclass(frozen=True)
class Report:
    """What the tables and drawings are made of."""

    findings: Findings
    rows: Rows  # that were scored
    protocol: Protocol
    title: str  # of all that is reported
    caption: str  # what everything is over, and what to beware of
    official: bool = False  # whether the images are those of published metrics, so that they compare
    as_released: bool = False  # whether OpenAI's RN50 is read out as the release does, so that rows can be reproduced
    warnings: Sequence[str] = ()  # what to beware of
    own: Sequence[str] = ()  # rows of one's own readings
    groups: Mapping[str, Sequence[str]] = field(default_factory=dict)  # question -> rows of the controls
    complete: bool = True  # whether the assignments are all that there are, or random ones of more
    assignments: int = 1  # of bins to words, the own one among them

    @property
    def results(self) -> Results:
        """All rows."""
        return self.findings.results

    @cached_property
    def primary(self) -> list[Contrast]:
        """The one question that is asked first: this run less what it would be if its words said nothing."""
        found, permuted = [], self.findings.permuted
        for i, metric in enumerate(PRIMARY):
            p = None if permuted is None else p_value(permuted[0, i], permuted[1:, i], metric in HIGHER)
            found.append(self.results.contrast(THIS_RUN, UNIFORM, metric, p))
        return found

    @cached_property
    def exploratory(self) -> list[Contrast]:
        """This run less the best constant, and what a constant does not have."""
        best = [(BEST, metric) for metric in PRIMARY if BEST in self.results.metrics]
        pairs = [*best, (UNIFORM, "spearman"), (UNIFORM, "aurg")]
        return [self.results.contrast(THIS_RUN, *pair) for pair in pairs]

    @property
    def no_p(self) -> str:
        """Why there is no p."""
        if not self.groups:
            return "no other assignment of the bins was asked (--controls)"
        return (
            "there is no other assignment of the bins"
            if self.assignments == 1
            else "no patch is measured, so there is no p"
        )

    @property
    def verdict(self) -> str:
        """Yes, no, or cannot tell, and why not."""
        asked = [*self.primary, *(c for c in self.exploratory if c.minus == BEST)]
        known = []  # intervals, positive where this run is better
        for c in asked:
            if c.interval_95 is None:
                return "cannot tell: too few clusters for intervals"
            low, high = c.interval_95
            known.append((low, high) if c.metric in HIGHER else (-high, -low))
        if self.findings.permuted is None:
            return f"cannot tell: {self.no_p}"
        if any(high < 0 for _, high in known):
            return "no"
        if len(self.findings.permuted) * SMALL_P < 1:
            return "cannot tell: there are too few assignments of the bins for a small p"
        if any(c.p is not None and c.p > SMALL_P for c in self.primary):
            return "no"
        return "yes" if all(low > 0 for low, _ in known) else "cannot tell: an interval holds 0"


@dataclass(frozen=True)
class Line:
    """One line of a table."""

    name: str  # of the row
    kind: str  # of its values: ours, published, ...
    cells: tuple[str, ...]  # one for each column


@dataclass
class Table:
    """A table."""

    title: str
    caption: str  # what must be known of it alone
    columns: Sequence[str]
    lines: list[Line] = field(default_factory=list)

    def add(self, name: str, kind: str, values: Mapping[str, float | None], sign: bool = False) -> None:
        """Add a line of values."""
        self.lines.append(Line(name, kind, cells_of(values, self.columns, "+.3f" if sign else ".3f")))


def cells_of(values: Mapping[str, float | None], columns: Sequence[str], form: str = ".3f") -> tuple[str, ...]:
    """The values of these columns as text, `-` where there is none."""
    return tuple(cell_of(values.get(column), form) for column in columns)


def cell_of(value: float | None, form: str = "+.3f") -> str:
    """A value as text, `-` where there is none."""
    return "-" if value is None else format(value, form)


def answer(report: Report) -> str:
    """The answer to the question in three lines, for the terminal."""
    lines = [f"{QUESTION} {report.verdict[0].upper()}{report.verdict[1:]}."]
    for c in report.primary:
        own, other = (cells_of(report.results.mean(row), (c.metric,))[0] for row in (THIS_RUN, UNIFORM))
        better, p = "higher" if c.metric in HIGHER else "lower", "" if c.p is None else f", p = {c.p:.4f}"
        less = f"difference {cell_of(c.difference)} {bounds(c.interval_95)}{p}"
        lines.append(f"{c.metric} ({better} is better): {own}, uniform weights {other}, {less}")
    return "\n".join(lines)


def all_tables(report: Report) -> list[Table]:
    """All tables, for Markdown."""
    tables, everything = [question_table(report)], list(report.results.metrics)
    if report.groups:
        tables.append(ladder_table(report))
    tables += [main_table(report), *paper_tables(report)]
    for title, rows in report.groups.items():
        tables.append(overview(title, report, [THIS_RUN, *rows], (*COLUMNS, "spearman")))
    if report.rows.randoms:
        tables.append(overview("Is it better than chance?", report, [THIS_RUN, *report.rows.randoms], COLUMNS))
    tables.append(overview("Every row", report, everything, COLUMNS))
    tables.append(overview("What a constant cannot fake", report, everything, EXTRA_METRICS, f"{EXTRA_MEANING} "))
    if report.findings.curve is not None:
        tables.append(certainty_table(report.findings.curve))
    return [*tables, interval_table(report)] if report.results.has_intervals else tables


def question_table(report: Report) -> Table:
    """The primary contrast, what it must be read with, and where this run is among the assignments of its bins."""
    permuted, depth = report.findings.permuted, report.rows.constants[UNIFORM]
    caption = (
        f"{report.verdict[0].upper()}{report.verdict[1:]}. Primary contrast: {THIS_RUN} minus {UNIFORM}, the mean "
        f"{depth:.3f} m of its bins, image by image. {QUESTION_MEANING.format(report.results.interval_note)}"
    )
    table = Table(QUESTION, caption, ("difference", "95 % interval", "wins", "dz", "p"))
    for c in (*report.primary, *report.exploratory):
        wins, dz = f"{c.wins} of {c.images}", cell_of(c.dz, "+.2f")
        cells = (cell_of(c.difference), bounds(c.interval_95), wins, dz, "-")
        table.lines.append(Line(f"{c.row} minus {c.minus}", c.metric, cells))
    if permuted is None:
        table.caption += f"p: {report.no_p}."
        return table
    n = len(permuted) - 1
    table.caption += f"p: (1 + k) / (1 + n), k of {'all' if report.complete else 'the random'} n = {n:,} other "
    table.caption += (
        "assignments of the bins to the words are as good, over patches with the mean of each one's ground truth."
    )
    for contrast, (own, *others) in zip(report.primary, permuted.T, strict=True):
        name = f"{THIS_RUN} minus the mean of {n:,} other assignments, over patches"
        cells = (cell_of(own - np.mean(others)), "-", "-", "-", f"{contrast.p:.4f}")
        table.lines.append(Line(name, contrast.metric, cells))
    return table


def ladder_table(report: Report) -> Table:
    """Each rung with its difference to this run."""
    results, columns = (
        report.results,
        ("delta1", "minus", "95 %", "abs_rel", "minus", "95 %", "aligned_delta1", "ordinal"),
    )
    caption = " ".join([LADDER_MEANING, distance(report), *report.findings.missing, EXPLORATORY]).replace("  ", " ")
    table = Table(LADDER, caption, columns)
    for row in RUNGS:
        if row not in results.metrics:
            continue
        mean, cells = results.mean(row), []
        for metric in PRIMARY:
            c = results.contrast(row, THIS_RUN, metric)
            less = ("", "") if row == THIS_RUN else (cell_of(c.difference), bounds(c.interval_95))
            cells += [*cells_of(mean, (metric,)), *less]
        table.lines.append(Line(row, "", (*cells, *cells_of(mean, columns[6:]))))
    return table


def distance(report: Report) -> str:
    """How far words, position and a probe get from a constant to the ceiling, in a sentence; empty if it is no way."""
    values = {row: report.results.mean(row)["delta1"] for row in RUNGS if row in report.results.metrics}
    start, end = values.get(BEST), values.get(CEILING)
    if start is None or end is None or end - start < CLOSE:
        return ""
    named = {published.TRUTH_AT: "position alone", published.PROBE: "a linear probe of the same features"}
    parts = [
        f"{name} {100 * (value - start) / (end - start):.0f} % ({value:.3f})"
        for row, name in ({THIS_RUN: "words take"} | named).items()
        if (value := values.get(row)) is not None
    ]
    return f"Of the way from the best constant (delta1 {start:.3f}) to the ceiling ({end:.3f}), {', '.join(parts)}."


def certainty_table(curve: np.ndarray) -> Table:
    """Mean error of the most certain patches; `curve` as in `Findings`."""
    shares = {f"{100 * share // SHARES} %": curve[share - 1] for share in (1, 2, 5, 10, 15, SHARES)}
    table = Table("Does CLIP know when it is wrong?", f"{CERTAIN_MEANING} {EXPLORATORY}", (*shares, "aurg"))
    table.add(THIS_RUN, OURS, shares | {"aurg": float(gain_over_random(torch.from_numpy(curve)))})
    table.add("in a random order", "", dict.fromkeys(shares, curve[-1]) | {"aurg": 0.0})
    return table


def main_table(report: Report) -> Table:
    """This run and one's own readings between published rows and what says nothing."""
    name, results = report.protocol.name, report.results
    table = Table(named_by("This run", label_of(name)), "", COLUMNS)
    table.add(THIS_RUN, OURS, results.mean(THIS_RUN))
    for theirs, values in beside(name).items() if report.official else ():
        table.add(theirs, "", values)
    for own in report.own:
        table.add(own, OURS, results.mean(own))
    for row in dict.fromkeys(results.baseline(row) for row in (THIS_RUN, *report.own)):
        table.add(f"{row} ({report.rows.constants[row]:.3f} m)" if row == UNIFORM else row, OURS, results.mean(row))
    if BEST in results.metrics:
        table.add(f"{BEST}, of other images", OURS, results.mean(BEST))
    return table


def paper_tables(report: Report) -> list[Table]:
    """The published tables: ours, theirs and, of the same protocol, the difference; none over other images."""
    tables: dict[tuple[str, str | None], Table] = {}
    name, results = report.protocol.name, report.results
    wanted = report.official and len(report.rows.settings) > 1 + len(report.own)
    for row in published.published_over(name) if wanted else ():
        over, title, caption = results.over(row.scene), row.table, TABLE_NOTES.get(row.table, EXPLORATORY)
        if row.scene:
            title = f"{row.table}, {row.scene}"
            caption = f"Of these, only {row.scene}: {counted(int(over.sum()))}. A scene is a room type."
        table = tables.setdefault((row.table, row.scene), Table(title, caption, COLUMNS))
        ours: Sequence[str | None] = report.rows.randoms if row.name == "Lower Bound" else ()
        if row.reading:
            ours = [report.rows.row_of(row.reading)]
        theirs, rows = row.by_column(), [own for own in ours if own and over.any()]
        if not rows:
            table.add(row.by_protocol + (f" ({row.note})" if row.note else ""), THEIRS, theirs)
        for own in rows:
            mean = results.mean(own, row.scene)
            table.add(named_by(row.name if row.reading else f"{row.name}: {own}", label_of(name)), OURS, mean)
            table.add(label_of(row.protocol), THEIRS, theirs)
            if row.protocol == name:
                off = {c: (mean[c] or 0.0) - value for c, value in theirs.items() if value is not None}
                close = all(round(abs(value), 9) <= CLOSE for value in off.values())
                table.add("", REPRODUCED if close and report.as_released else DIFFERENCE, off, sign=True)
    return list(tables.values())


def overview(title: str, report: Report, rows: Sequence[str], columns: Sequence[str], caption: str = "") -> Table:
    """Some rows, or all."""
    table = Table(title, f"{caption}{EXPLORATORY}", columns)
    for row in rows:
        table.add(row, OURS, report.results.mean(row))
    return table


def interval_table(report: Report) -> Table:
    """Each row with the intervals of its metrics and of their differences to uniform weights over its own bins."""
    results = report.results
    table = Table("Intervals", f"{results.interval_note} {EXPLORATORY}", COLUMNS)
    for row in results.metrics:
        own, difference = results.intervals(row)
        table.add(row, OURS, results.mean(row))
        table.lines.append(Line("", "interval", tuple(bounds(own[c], ".3f") for c in COLUMNS)))
        if row != results.baseline(row):
            table.add("", f"less {results.baseline(row)}", results.difference(row), sign=True)
            table.lines.append(Line("", "interval", tuple(bounds(difference[c]) for c in COLUMNS)))
    return table


def bounds(interval: Interval, form: str = "+.3f") -> str:
    """`[low, high]`."""
    return "-" if interval is None else f"[{interval[0]:{form}}, {interval[1]:{form}}]"


def as_text(table: Table, columns: int | None = None, names: int = 33) -> str:
    """For the terminal: title and aligned columns, all or the first few, without the caption; long names are cut."""
    rows = [("", "", table.columns), *((printable(line.name)[:names], line.kind, line.cells) for line in table.lines)]
    rows = [(name, kind, texts[:columns]) for name, kind, texts in rows]
    name_width, kind_width = (max(len(row[part]) for row in rows) for part in (0, 1))
    widths = [max(9, *(len(text) + 2 for text in column)) for column in zip(*(row[2] for row in rows), strict=True)]
    lines = [printable(table.title)]
    for name, kind, texts in rows:
        lines.append(f"{name:<{name_width}}  {kind:<{kind_width}}" + "".join(map(str.rjust, texts, widths)))
    return "\n".join(lines)


def summary(report: Report, tables: Sequence[Table], where: str) -> str:
    """What the terminal shows: the answer, the ladder, this run or Table 1, and `where` the rest is."""
    shown = {table.title: table for table in tables}
    parts = [paragraph(report.caption), answer(report)]
    if LADDER in shown:
        beside = "Beside each metric: minus this run, image by image, with its 95 % interval."
        parts += [
            as_text(shown[LADDER], columns=6),
            paragraph(" ".join([beside, distance(report), *report.findings.missing]).replace("  ", " ")),
        ]
    parts += [as_text(shown.get(published.TABLE_1, tables[2 if LADDER in shown else 1])), paragraph(where)]
    return "\n\n".join(part for part in parts if part)


def paragraph(text: str) -> str:
    """Text in lines of at most 100 letters."""
    return fill(printable(text), 100)


def as_markdown(tables: Iterable[Table], heading: str, caption: str) -> str:
    """One section for each table; `caption` is what all are over, and stands with each, so that it may be copied."""
    parts = [f"# {markdown(heading)}\n"]
    for table in tables:
        parts.append(f"## {markdown(table.title)}\n\n{markdown(f'{caption} {table.caption}'.strip())}\n")
        lines = [
            "| row | | " + " | ".join(map(markdown, table.columns)) + " |",
            "|---|---|" + "---:|" * len(table.columns),
        ]
        lines += [f"| {markdown(line.name)} | {line.kind} | " + " | ".join(line.cells) + " |" for line in table.lines]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def markdown(text: str) -> str:
    """Text for a cell or a line of Markdown: nothing in it ends the cell or the line, or begins a tag."""
    return re.sub(r"[\\|_*\[\]`]", r"\\\g<0>", printable(text)).replace("<", "&lt;")


def as_csv(results: Results, cell: Callable[[str], str], protocol: str) -> str:
    """A line for each image and row, no metric being an empty cell; `cell` makes text harmless for a spreadsheet."""
    text, images = io.StringIO(), results.images
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("image", "scene", "cluster", "index", "protocol", "reading", *COUNTS, *results.columns))
    for i, where in enumerate(zip(images.names, images.scenes, images.clusters, strict=True)):
        for row, metrics in results.metrics.items():
            names = (*map(cell, where), images.indices[i], protocol, cell(printable(row)))
            values = ("" if math.isnan(value) else value for value in metrics[i].tolist())
            writer.writerow((*names, *results.counts[row][i].tolist(), *values))
    return text.getvalue()


def as_json(report: Report) -> dict[str, Any]:
    """The question and its answer; the metrics of every row, with intervals; the ladder."""
    results, permuted, rows = report.results, report.findings.permuted, {}
    rungs = [row for row in RUNGS if report.groups and row in results.metrics and row != THIS_RUN]
    for name in results.metrics:
        own, difference = results.intervals(name)
        counts = dict(zip(COUNTS, results.counts[name].sum(0).tolist(), strict=True))
        less = {"baseline": results.baseline(name), "less_baseline": results.difference(name)}
        intervals = {"interval_95": own, "less_baseline_interval_95": difference}
        rows[name] = {"metrics": results.mean(name), **less, **intervals, **counts}
    return {
        "question": {
            "asked": QUESTION,
            "answer": report.verdict,
            "primary": [asdict(contrast) for contrast in report.primary],
            "exploratory": [asdict(contrast) for contrast in report.exploratory],
            "other_assignments": 0 if permuted is None else len(permuted) - 1,
            "all_assignments": None if permuted is None else report.complete,
        },
        "ladder": {
            "minus_this_run": [asdict(results.contrast(row, THIS_RUN, m)) for row in rungs for m in PRIMARY],
            "left_out": report.findings.missing,
        },
        "own_readings": list(report.own),
        "clustered_by": results.images.clustered_by,
        "intervals": results.interval_note,
        "rows": rows,
        "published": beside(report.protocol.name) if report.official else {},
        "images": len(results.images),
    }
