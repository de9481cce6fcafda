"""Step 3 of the experiments, in words and numbers: tables for the terminal and Markdown, CSV and JSON."""

import csv
import io
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from textwrap import fill
from typing import Any

import numpy as np
import torch

from calculate_error import Protocol
from datasets import counted, csv_text, printable
from experiments import published
from experiments.published import BEST, COLUMNS, PROBE, RUNGS, THIS_RUN, TRUTH_AT, UNIFORM, beside, cell_of, named_by
from experiments.score import EXTRA_METRICS, SHARES, Rows, gain_over_random
from experiments.statistics import COUNTS, HIGHER, PRIMARY, Contrast, Findings, Results, p_value

RESULTS_FILE, ROWS_FILE = "results.json", "per_image.csv"
OURS, THEIRS, DIFFERENCE = "ours", "published", "difference"
CLOSE, REPRODUCED = 0.005, "within .005"  # of all metrics of a row, with the paper's weights and images
EXPLORATORY, SMALL_P = "Exploratory, unadjusted.", 0.05
QUESTION, LADDER = "Does language see depth here?", "How far does language get?"
P_NOTE = "p: (1 + k) / (1 + n), k of {} n = {:,} other assignments of the bins to the words are as good"
BESIDE = f"Beside each metric: minus {THIS_RUN}, image by image, with its 95 % interval."
WAYS = {THIS_RUN: "words take", TRUTH_AT: "position alone", PROBE: "a linear probe of the same features"}
CERTAIN, EXTRA = "Does CLIP know when it is wrong?", "What a constant cannot fake"
NOTES = {  # by title
    published.TABLE_1: "Values of the Lower Bound and of Zhang et al. are doubtful; the mean training depth image is "
    f"over another crop and filled ground truth (docs/report.md). {EXPLORATORY}",
    QUESTION: "A yes needs both metrics to be better beyond their intervals, against the best constant as well, and a "
    "small p. All else is exploratory, unadjusted. docs/statistics.md explains wins (of the first of the two rows), dz "
    "and p. spearman: minus 0, as a constant has no order.",
    LADDER: f"From knowing nothing to the most that patches of this size can say (docs/ladder.md). {BESIDE} What is "
    "fitted is fitted on other clusters; a best constant of other images of the same data is not independent of them.",
    EXTRA: "docs/ladder.md explains each. spearman: - for maps that span less than 1 cm. ordinal: share of pairs of "
    "patches in the wrong order. aurg: what certainty knows of abs_rel, 0 for constants. silog: not times 100. scaled, "
    "aligned: after the ratio of medians, and after a pred + b by least squares, as relative methods report. Uniform "
    f"weights stand for all constants. {EXPLORATORY}",
    CERTAIN: "abs_rel of the most certain share of each image's patches, by sigma, the spread of the answers; mean "
    f"over images. aurg: area between this curve and a random order's; above 0 if it knows. {EXPLORATORY}",
}


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
        return primary_contrasts(self.results, THIS_RUN, self.findings.permuted)

    @cached_property
    def exploratory(self) -> list[Contrast]:
        """This run less the best constant, and what a constant does not have."""
        best = [(BEST, metric) for metric in PRIMARY if BEST in self.results.metrics]
        return [self.results.contrast(THIS_RUN, *pair) for pair in (*best, (UNIFORM, "spearman"), (UNIFORM, "aurg"))]

    @property
    def no_p(self) -> str:
        """Why there is no p."""
        if not self.groups:
            return "no other assignment of the bins was asked (--controls)"
        alone = self.assignments == 1
        return "there is no other assignment of the bins" if alone else "no patch is measured, so there is no p"

    @property
    def verdict(self) -> str:
        """Yes, no, or cannot tell, and why not."""
        asked = [*self.primary, *(c for c in self.exploratory if c.minus == BEST)]
        gains = [i if c.metric in HIGHER else (-i[1], -i[0]) for c in asked if (i := c.interval_95)]
        if len(gains) < len(asked):
            return "cannot tell: too few clusters for intervals"
        if self.findings.permuted is None:
            return f"cannot tell: {self.no_p}"
        enough = len(self.findings.permuted) * SMALL_P >= 1  # assignments for a small p
        if any(high < 0 for _, high in gains) or (enough and any((c.p or 0) > SMALL_P for c in self.primary)):
            return "no"
        if not enough:
            return "cannot tell: there are too few assignments of the bins for a small p"
        return "yes" if all(low > 0 for low, _ in gains) else "cannot tell: an interval holds 0"


def primary_contrasts(results: Results, row: str, permuted: np.ndarray | None) -> list[Contrast]:
    """A row minus uniform weights in each of `PRIMARY`, with p by `permuted` (n, 2), its own first, if there is any."""
    found = []
    for i, metric in enumerate(PRIMARY):
        p = None if permuted is None else p_value(permuted[0, i], permuted[1:, i], metric in HIGHER)
        found.append(results.contrast(row, UNIFORM, metric, p))
    return found


@dataclass
class Table:
    """A table; a line holds the row's name, the kind of its values (ours, published, ...) and a cell a column."""

    title: str
    caption: str  # what must be known of it alone
    columns: Sequence[str]
    lines: list[tuple[str, ...]] = field(default_factory=list)

    def add(self, name: str, kind: str, values: Mapping[str, Any], form: str = ".3f") -> None:
        """Add a line of values, or intervals, by column."""
        self.lines.append((name, kind, *(cell_of(values.get(column), form) for column in self.columns)))


def all_tables(report: Report) -> list[Table]:
    """All tables, for Markdown."""
    results, curve, randoms = report.results, report.findings.curve, report.rows.randoms
    tables = [question_table(report), *([ladder_table(report)] if report.groups else []), main_table(report)]
    tables += paper_tables(report)
    more = [(title, [THIS_RUN, *rows], [*COLUMNS, "spearman"]) for title, rows in report.groups.items()]
    more += [("Is it better than chance?", [THIS_RUN, *randoms], [*COLUMNS])] if randoms else []
    more += [("Every row", [*results.metrics], [*COLUMNS]), (EXTRA, [*results.metrics], [*EXTRA_METRICS])]
    for title, rows, columns in more:
        tables.append(Table(title, NOTES.get(title, EXPLORATORY), columns))
        for row in rows:
            tables[-1].add(row, OURS, results.mean(row))
    if curve is not None:
        shares = {f"{100 * share // SHARES} %": curve[share - 1] for share in (1, 2, 5, 10, 15, SHARES)}
        tables.append(Table(CERTAIN, NOTES[CERTAIN], (*shares, "aurg")))
        tables[-1].add(THIS_RUN, OURS, shares | {"aurg": float(gain_over_random(torch.from_numpy(curve)))})
        tables[-1].add("in a random order", "", dict.fromkeys(shares, curve[-1]) | {"aurg": 0.0})
    if results.has_intervals:
        tables.append(Table("Intervals", f"{results.interval_note} {EXPLORATORY}", COLUMNS))
        for row in results.metrics:
            own, less = results.intervals(row)
            tables[-1].add(row, OURS, results.mean(row))
            tables[-1].add("", "interval", own)
            if row != results.baseline(row):
                tables[-1].add("", f"less {results.baseline(row)}", results.difference(row), "+.3f")
                tables[-1].add("", "interval", less, "+.3f")
    return tables


def question_table(report: Report) -> Table:
    """The primary contrast, what it must be read with, and where this run is among the assignments of its bins."""
    permuted, depth, note = report.findings.permuted, report.rows.constants[UNIFORM], f"p: {report.no_p}"
    lines: list[tuple[str, ...]] = []
    for c in (*report.primary, *report.exploratory):
        cells = (cell_of(c.difference), cell_of(c.interval_95), f"{c.wins} of {c.images}", cell_of(c.dz, "+.2f"), "-")
        lines.append((f"{c.row} minus {c.minus}", c.metric, *cells))
    if permuted is not None:
        note = P_NOTE.format("all" if report.complete else "the random", len(permuted) - 1)
        note += ", over patches with the mean of each one's ground truth"
        name = f"{THIS_RUN} minus the mean of {len(permuted) - 1:,} other assignments, over patches"
        for c, less in zip(report.primary, permuted[0] - permuted[1:].mean(axis=0), strict=True):
            lines.append((name, c.metric, cell_of(less), "-", "-", "-", cell_of(c.p, ".4f")))
    caption = f"{report.verdict.capitalize()}. Primary contrast: {THIS_RUN} minus {UNIFORM}, the mean {depth:.3f} m of "
    caption += f"its bins, image by image. {NOTES[QUESTION]} {report.results.interval_note} {note}."
    return Table(QUESTION, caption, ("difference", "95 % interval", "wins", "dz", "p"), lines)


def ladder_table(report: Report) -> Table:
    """Each rung with its difference to this run."""
    results, last, lines = report.results, ("aligned_delta1", "ordinal"), []
    for row in (row for row in RUNGS if row in results.metrics):
        cells, mean = [row, ""], results.mean(row)
        for c in (results.contrast(row, THIS_RUN, metric) for metric in PRIMARY):
            less = ("", "") if row == THIS_RUN else (cell_of(c.difference), cell_of(c.interval_95))
            cells += [cell_of(mean[c.metric], ".3f"), *less]
        lines.append((*cells, *(cell_of(mean[column], ".3f") for column in last)))
    columns = ("delta1", "minus", "95 %", "abs_rel", "minus", "95 %", *last)
    return Table(LADDER, f"{NOTES[LADDER]} {distance(report)}{EXPLORATORY}", columns, lines)


def distance(report: Report) -> str:
    """How far words, position and a probe get from a constant to the ceiling, if it is a way, and what is left out."""
    values = {row: report.results.mean(row)["delta1"] or 0.0 for row in report.results.metrics}
    start, way, said = values.get(BEST, 0.0), values.get(published.CEILING, 0.0) - values.get(BEST, math.inf), []
    if way >= CLOSE:
        known = [(name, values[row]) for row, name in WAYS.items() if row in values]
        parts = ", ".join(f"{name} {100 * (value - start) / way:.0f} % ({value:.3f})" for name, value in known)
        said = [f"Of the way from the best constant (delta1 {start:.3f}) to the ceiling ({start + way:.3f}), {parts}."]
    return "".join(f"{sentence} " for sentence in (*said, *report.findings.missing))


def main_table(report: Report) -> Table:
    """This run and one's own readings between published rows and what says nothing."""
    name, results = report.protocol.name, report.results
    table = Table(named_by("This run", name), "", COLUMNS)
    table.add(THIS_RUN, OURS, results.mean(THIS_RUN))
    for theirs, values in beside(name).items() if report.official else ():
        table.add(theirs, "", values)
    constants = dict.fromkeys(results.baseline(row) for row in (THIS_RUN, *report.own))
    names = {UNIFORM: f"{UNIFORM} ({report.rows.constants[UNIFORM]:.3f} m)", BEST: f"{BEST}, of other images"}
    for row in (*report.own, *constants, *([BEST] if BEST in results.metrics else [])):
        table.add(names.get(row, row), OURS, results.mean(row))
    return table


def paper_tables(report: Report) -> list[Table]:
    """The published tables: ours, theirs and, of the same protocol, the difference; none over other images."""
    tables: dict[str, Table] = {}
    name, results = report.protocol.name, report.results
    wanted = report.official and len(report.rows.settings) > 1 + len(report.own)
    for row in published.published_rows(name) if wanted else ():
        title, caption, images = row.table, NOTES.get(row.table, EXPLORATORY), int(results.over(row.scene).sum())
        if row.scene:
            title += f", {row.scene}"
            caption = f"Of these, only {row.scene}: {counted(images)}. A scene is a room type."
        table = tables.setdefault(title, Table(title, caption, COLUMNS))
        read = report.rows.row_of(row.reading) if row.reading else None
        rows = [own for own in (report.rows.randoms if row.name == "Lower Bound" else [read]) if own and images]
        if not rows:
            note = f" ({row.note})" if row.note else ""
            table.add(named_by(row.name, row.protocol) + note, THEIRS, row.metrics)
        for own in rows:
            mean = results.mean(own, row.scene)
            table.add(named_by(row.name if row.reading else f"{row.name}: {own}", name), OURS, mean)
            table.add(row.protocol if "," in row.protocol else "", THEIRS, row.metrics)
            if row.protocol == name:
                off = {c: (mean[c] or 0.0) - value for c, value in row.metrics.items() if value is not None}
                close = report.as_released and all(round(abs(value), 9) <= CLOSE for value in off.values())
                table.add("", REPRODUCED if close else DIFFERENCE, off, "+.3f")
    return list(tables.values())


def as_text(table: Table, columns: int | None = None, names: int = 33) -> str:
    """For the terminal: title and aligned columns, all or the first few, without the caption; long names are cut."""
    rows = [("", "", *table.columns[:columns])]
    rows += [(printable(name)[:names], kind, *cells[:columns]) for name, kind, *cells in table.lines]
    name_width, kind_width, *widths = (max(map(len, column)) for column in zip(*rows, strict=True))
    widths, lines = [max(9, width + 2) for width in widths], [printable(table.title)]
    for name, kind, *cells in rows:
        lines.append(f"{name:<{name_width}}  {kind:<{kind_width}}" + "".join(map(str.rjust, cells, widths)))
    return "\n".join(lines)


def summary(report: Report, tables: Sequence[Table], where: str) -> str:
    """What the terminal shows: the answer, the ladder, this run or Table 1, and `where` the rest is."""
    shown, answer = {table.title: table for table in tables}, f"{QUESTION} {report.verdict.capitalize()}."
    for c in report.primary:
        own, other = (cell_of(report.results.mean(row)[c.metric], ".3f") for row in (THIS_RUN, UNIFORM))
        better, p = "higher" if c.metric in HIGHER else "lower", "" if c.p is None else f", p = {c.p:.4f}"
        answer += f"\n{c.metric} ({better} is better): {own}, uniform weights {other}: "
        answer += f"{cell_of(c.difference)} {cell_of(c.interval_95)}{p}"
    parts = [paragraph(report.caption), answer]
    if LADDER in shown:
        said = f"p: of the order of the words. {BESIDE} {distance(report)}"
        parts += [as_text(shown[LADDER], columns=6), paragraph(said)]
    parts += [as_text(shown.get(published.TABLE_1, tables[2 if LADDER in shown else 1])), paragraph(where)]
    return "\n\n".join(parts)


def paragraph(text: str) -> str:
    """Text in lines of at most 100 letters."""
    return fill(printable(text), 100)


def as_markdown(tables: Iterable[Table], heading: str, caption: str) -> str:
    """One section for each table; `caption` is what all are over, and stands with each, so that it may be copied."""
    parts = [f"# {markdown(heading)}\n"]
    for table in tables:
        parts.append(f"## {markdown(table.title)}\n\n{markdown(f'{caption} {table.caption}'.strip())}\n")
        lines = [("row", "", *map(markdown, table.columns)), ("---", "---", *["---:"] * len(table.columns))]
        lines += [(markdown(name), *cells) for name, *cells in table.lines]
        parts.append("".join(f"| {' | '.join(cells)} |\n" for cells in lines))
    return "\n".join(parts)


def markdown(text: str) -> str:
    """Text for a cell or a line of Markdown: nothing in it ends the cell or the line, or begins a tag."""
    return re.sub(r"[\\|_*\[\]`]", r"\\\g<0>", printable(text)).replace("<", "&lt;")


def parts_of(report: Report) -> dict[str, str]:
    """The part of the report that each row belongs to."""
    found = {setting.name: "paper" for setting in report.rows.settings}
    found |= dict.fromkeys(published.OUTDOORS, "outdoors") | dict.fromkeys(report.rows.constants, "baseline")
    found |= {row: title for title, rows in report.groups.items() for row in rows}
    found |= dict.fromkeys(report.own, "own readings") | dict.fromkeys(report.rows.randoms, "random")
    return found | dict.fromkeys(RUNGS, "ladder") | {THIS_RUN: THIS_RUN}


def as_csv(results: Results, protocol: str, groups: Mapping[str, str]) -> str:
    """A line for each image and row, which is of one of the `groups`; no metric is an empty cell."""
    text, images = io.StringIO(), results.images
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("image", "scene", "cluster", "index", "protocol", "reading", "group", *COUNTS, *results.columns))
    for i, where in enumerate(zip(images.names, images.scenes, images.clusters, strict=True)):
        for row, metrics in results.metrics.items():
            names = (*map(csv_text, where), images.indices[i], protocol, *map(csv_text, (printable(row), groups[row])))
            values = ("" if math.isnan(value) else value for value in metrics[i].tolist())
            writer.writerow((*names, *results.counts[row][i].tolist(), *values))
    return text.getvalue()


def as_json(report: Report) -> dict[str, Any]:
    """The question and its answer; the metrics of every row, with intervals; the ladder."""
    results, permuted, rows = report.results, report.findings.permuted, {}
    for row, counts in results.counts.items():
        own, less = results.intervals(row)
        rows[row] = {"metrics": results.mean(row), "baseline": results.baseline(row)}
        rows[row] |= {"less_baseline": results.difference(row), "interval_95": own, "less_baseline_interval_95": less}
        rows[row] |= zip(COUNTS, counts.sum(0).tolist(), strict=True)
    rungs = [row for row in RUNGS if report.groups and row in results.metrics and row != THIS_RUN]
    contrasts = [asdict(results.contrast(row, THIS_RUN, metric)) for row in rungs for metric in PRIMARY]
    question: dict[str, Any] = {"asked": QUESTION, "answer": report.verdict}
    question |= {name: list(map(asdict, getattr(report, name))) for name in ("primary", "exploratory")}
    question |= {"other_assignments": 0 if permuted is None else len(permuted) - 1}
    question |= {"all_assignments": None if permuted is None else report.complete}
    ladder = {"minus_this_run": contrasts, "left_out": report.findings.missing}
    told = {"question": question, "ladder": ladder, "own_readings": list(report.own)}
    told |= {"clustered_by": results.images.clustered_by, "intervals": results.interval_note, "rows": rows}
    theirs = beside(report.protocol.name) if report.official else {}
    return told | {"published": theirs}
