"""Step 3 of the experiments, in words and numbers: tables for the terminal and Markdown, CSV and JSON.

Every number is a view on `statistics.Results`. Tables are built once, as `Table`s, and written in both forms.
"""

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from textwrap import wrap
from typing import Any

import numpy as np
import torch

from calculate_error import NYU, Protocol
from datasets import counted, printable
from experiments.published import (
    BEST,
    BEST_ELSEWHERE,
    BEST_TRAINED,
    BINS,
    COLUMNS,
    KITTI_ROWS,
    LOWER_BOUND,
    MEAN_IMAGE,
    PROMPTS,
    TABLE_1,
    THIS_RUN,
    UNIFORM,
    Published,
    beside,
    named_by,
    published_over,
)
from experiments.score import SHARES, gain_over_random
from experiments.statistics import (
    COUNTS,
    HIGHER,
    PRIMARY,
    Contrast,
    Interval,
    Intervals,
    Results,
    minus,
    p_value,
)

RESULTS_FILE, ROWS_FILE = "results.json", "per_image.csv"
OURS, THEIRS, DIFFERENCE = "ours", "published", "difference"
CLOSE, REPRODUCED = 0.005, "difference, within .005"  # of all metrics of a row, with the paper's weights and images
APART = ("ours:", *COLUMNS, "published:", *COLUMNS)  # columns where ours and the paper's do not compare
NOT_MEASURED = "as published, not measured here"
EXPLORATORY = "Exploratory, unadjusted."
TABLE_NOTES = {
    TABLE_1: 'Lower Bound: in the paper random "for each pixel within depth range 0-10m", for which its rmse 2.934 is '
    "hardly possible (docs/questions.md). Zhang et al.'s log10 .529 does not go with its other metrics. "
    f"{MEAN_IMAGE[0].upper()}{MEAN_IMAGE[1:]}: over another crop and filled ground truth. {EXPLORATORY}",
    PROMPTS: EXPLORATORY,
    BINS: EXPLORATORY,
    KITTI_ROWS: "MfH does not say whose bins and protocol; Auty and Mikolajczyk crop the ground truth to the window "
    f"first, as AdaBins does. {EXPLORATORY}",
}
QUESTION = "Does language see depth here?"
ANSWER = (
    "A yes needs both metrics to be better beyond their intervals, against the best constant of the other clusters as "
    "well, and a small p (docs/statistics.md)."
)
CONTRAST_MEANING = (
    "wins: images for which this run is better. dz: mean difference / its standard deviation over images. spearman: "
    "minus 0, as a constant has no order."
)
CONTRAST_COLUMNS = ("difference", "95 % interval", "wins", "dz", "p")
SCENE_MEANING = "A scene is a room type."
EXTRA_MEANING = (
    "spearman: rank correlation over each image's patches of which half is measured (outside NYU, a fiftieth), - for "
    "maps that span less than 1 cm. aurg: what sigma, how far apart the answers lie, knows of abs_rel "
    "(docs/readouts.md), 0 for any constant. silog: scale-invariant log error, not times 100. scaled: after "
    "multiplying each prediction by the ratio of medians, the lower ones of even numbers of pixels. Uniform weights "
    "stand for all constants."
)
CERTAIN = "Does CLIP know when it is wrong?"
CERTAIN_MEANING = (
    "abs_rel of the most certain share of each image's patches, by sigma, how far apart the answers lie; mean over "
    "images. aurg: area between this curve and a random order's, which is flat; positive if certain patches are better."
)
CERTAIN_SHARES = (1, 2, 5, 10, 15, SHARES)  # of SHARES, in the table


@dataclass(frozen=True)
class Report:
    """What the tables and drawings are made of."""

    results: Results
    published_by: Mapping[Published, str]  # published row with a reading -> our row of the same reading
    lower_bounds: Sequence[str]  # our rows that stand beside the paper's Lower Bound
    official: bool  # whether the images are those of published metrics, so that they compare
    as_released: bool  # whether OpenAI's RN50 is read out as the release does, so that rows can be reproduced
    title: str  # of all that is reported
    caption: str  # what everything is over, and what to beware of
    controls: bool = False  # whether they are among the rows
    warnings: Sequence[str] = ()  # what to beware of
    permuted: np.ndarray | None = None  # (n, 2), mean primary metrics of assignments of bins to words, ours first
    complete: bool = True  # whether these are all that there are, or random ones of more
    own: Sequence[str] = ()  # rows of one's own readings
    curve: np.ndarray | None = None  # (SHARES,), mean `sparsification` of this run
    protocol: Protocol = NYU

    @property
    def published(self) -> list[Published]:
        """What is published over the data set."""
        return published_over(self.protocol.data_set)

    @cached_property
    def primary(self) -> list[Contrast]:
        """The one question that is asked first: this run less what it would be if its words said nothing."""
        return [self.results.contrast(THIS_RUN, UNIFORM, metric, self.p_of(metric)) for metric in PRIMARY]

    @cached_property
    def exploratory(self) -> list[Contrast]:
        """Correlations; this run less what is known without looking; own readings and other prompts less theirs."""
        pairs = [(THIS_RUN, UNIFORM, metric) for metric in ("spearman", "aurg")]
        constants = [row for row in (BEST, BEST_ELSEWHERE, BEST_TRAINED, MEAN_IMAGE) if row in self.results.metrics]
        pairs += [(THIS_RUN, row, metric) for row in constants for metric in PRIMARY]
        pairs += [(row, self.results.baseline(row), metric) for row in self.own for metric in PRIMARY]
        prompts = {row.name: ours for row, ours in self.published_by.items() if row.table == PROMPTS}
        original = prompts.pop("original", None)
        pairs += [(row, original, metric) for row in prompts.values() for metric in PRIMARY if original]
        return [self.results.contrast(*pair) for pair in pairs]

    @cached_property
    def intervals(self) -> dict[str, tuple[Intervals, Intervals]]:
        """Of each row over all images: see `Results.intervals`."""
        return {row: self.results.intervals(row) for row in self.results.metrics}

    @property
    def compared(self) -> dict[str, dict[str, float | None]]:
        """Published metrics over all images by the same protocol, of each of our rows that has some beside it."""
        by, label = self.published_by.items() if self.official else (), self.protocol.label
        return {name: row.by_column() for row, name in by if row.scene is None and row.protocol == label}

    def p_of(self, metric: str) -> float | None:
        """Share of the assignments of bins to words that are as good as this run's; None where there is no other."""
        if self.permuted is None:
            return None
        own, *others = self.permuted[:, PRIMARY.index(metric)]
        return p_value(own, np.array(others), metric in HIGHER)

    def beside(self, row: Published) -> Sequence[str]:
        """Our rows that stand beside a published one."""
        if row in self.published_by:
            return [self.published_by[row]]
        if row.name == LOWER_BOUND:
            return self.lower_bounds
        return [MEAN_IMAGE] if row.name == MEAN_IMAGE and MEAN_IMAGE in self.results.metrics else []


@dataclass(frozen=True)
class Line:
    """One line of a table: a row's name, what the values are (ours, paper, ...), and a text for each column."""

    name: str
    kind: str
    cells: tuple[str, ...]


@dataclass
class Table:
    """A table: title, what must be known of it alone, the metrics of its columns, and its lines."""

    title: str
    caption: str
    columns: Sequence[str]
    lines: list[Line] = field(default_factory=list)

    def add(self, name: str, kind: str, values: Mapping[str, float | None], sign: bool = False) -> None:
        """A line of values with three decimals, `-` where there is none."""
        self.lines.append(Line(name, kind, cells_of(values, self.columns, "+.3f" if sign else ".3f")))


def cells_of(values: Mapping[str, float | None], columns: Sequence[str], form: str = ".3f") -> tuple[str, ...]:
    """The values of these columns as text, `-` where there is none."""
    return tuple("-" if values.get(c) is None else format(values[c], form) for c in columns)


def all_tables(report: Report, constants: Mapping[str, float]) -> list[Table]:
    """All tables that are printed; `constants` [m] have the baselines of this run and of one's own readings."""
    tables = [question_table(report, constants[UNIFORM]), main_table(report, constants)]
    tables += paper_tables(report) if report.lower_bounds else ()
    if report.controls:
        tables.append(overview("Controls", report, COLUMNS))
    extra = [metric for metric in report.results.columns if metric not in report.protocol.scored]
    tables.append(overview("What a constant cannot fake", report, extra, EXTRA_MEANING))
    tables.append(contrast_table("Paired differences", EXPLORATORY, report.exploratory[1:], report))
    return [*tables, certainty_table(report.curve)] if report.curve is not None else tables


def question_table(report: Report, uniform_depth: float) -> Table:
    """The primary contrast, what it must be read with, and where this run is among the assignments of its bins."""
    caption = (
        f"Primary contrast: {THIS_RUN} minus {UNIFORM}, the mean {uniform_depth:.3f} m of its bins, image by image. "
        f"{ANSWER} All else in these tables is exploratory, unadjusted. {report.results.interval_note} "
        f"{CONTRAST_MEANING} "
    )
    first = [*report.primary, *(c for c in report.exploratory if c.minus == BEST_ELSEWHERE), report.exploratory[0]]
    table = contrast_table(QUESTION, caption, first, report)
    if report.permuted is None:
        table.caption += "p: there is no other assignment." if report.controls else "p: with --controls."
        return table
    n = len(report.permuted) - 1
    table.caption += f"p: (1 + k) / (1 + n), k of {'all' if report.complete else 'the random'} n = {n:,} other "
    table.caption += (
        "assignments of the bins to the words are as good, over patches with the mean of each one's ground truth."
    )
    for place, contrast in enumerate(report.primary):
        own, *others = report.permuted[:, place]
        name = f"{THIS_RUN} minus the mean of {n:,} other assignments, over patches"
        cells = (f"{own - np.mean(others):+.3f}", "-", "-", "-", f"{contrast.p:.4f}")
        table.lines.append(Line(name, contrast.metric, cells))
    return table


def contrast_table(title: str, caption: str, contrasts: Sequence[Contrast], report: Report) -> Table:
    """A line for each contrast."""
    table = Table(title, caption, CONTRAST_COLUMNS)
    for c in contrasts:
        effect = "-" if c.dz is None else f"{c.dz:+.2f}"
        wins = f"{c.wins} of {len(report.results.images)}"
        difference = "-" if c.difference is None else f"{c.difference:+.3f}"
        cells = (difference, bounds(c.interval_95, "+.3f"), wins, effect, "-")
        table.lines.append(Line(f"{c.row} minus {c.minus}", c.metric, cells))
    return table


def certainty_table(curve: np.ndarray) -> Table:
    """Mean error of the most certain patches; `curve` as in `Report`."""
    shares = {f"{100 * share // SHARES} %": share - 1 for share in CERTAIN_SHARES}
    table = Table(CERTAIN, f"{CERTAIN_MEANING} {EXPLORATORY}", (*shares, "aurg"))
    gain = float(gain_over_random(torch.from_numpy(curve)))
    table.add(THIS_RUN, OURS, {share: curve[place] for share, place in shares.items()} | {"aurg": gain})
    table.add("in a random order", "", dict.fromkeys(shares, curve[-1]) | {"aurg": 0.0})
    return table


def main_table(report: Report, constants: Mapping[str, float]) -> Table:
    """This run and one's own readings between published rows and what says nothing."""
    table, results = Table(named_by("This run", report.protocol.label), "", COLUMNS), report.results
    table.add(THIS_RUN, OURS, results.mean(THIS_RUN))
    for name, row in beside(report.protocol.data_set).items() if report.official else ():
        table.add(name, "", row)
    for name in report.own:
        table.add(name, OURS, results.mean(name))
    for name in dict.fromkeys(results.baseline(row) for row in (THIS_RUN, *report.own)):
        table.add(f"{name} ({constants[name]:.3f} m)" if name == UNIFORM else name, OURS, results.mean(name))
    for name in (BEST, BEST_ELSEWHERE, BEST_TRAINED):
        if name in results.metrics:
            table.add(name, OURS, results.mean(name))
    return table


def paper_tables(report: Report) -> list[Table]:
    """The published tables: ours, theirs and the difference; rows that we cannot measure as published.

    Rows of another protocol have no difference. Over other images than the paper's, nothing is ranked: no Table 1, and
    ours and published stand in columns apart.
    """
    tables: dict[tuple[str, str | None], Table] = {}
    for row in report.published if report.official else (r for r in report.published if r.table != TABLE_1):
        count = counted(int(report.results.over(row.scene).sum()))
        caption = (
            f"Of these, only {row.scene}: {count}. {SCENE_MEANING}" if row.scene else TABLE_NOTES.get(row.table, "")
        )
        title = f"{row.table}, {row.scene}" if row.scene else row.table
        columns = COLUMNS if report.official else APART
        table = tables.setdefault((row.table, row.scene), Table(title, caption, columns))
        theirs = row.by_column()
        ours = {name: report.results.mean(name, row.scene) for name in report.beside(row)}
        if not report.official:
            pairs = [(cells_of(mean, COLUMNS), cells_of(theirs, COLUMNS)) for mean in ours.values()]
            table.lines += [Line(row.by_protocol, "", ("", *own, "", *published)) for own, published in pairs]
            continue
        if not ours or not report.results.over(row.scene).any():
            table.add(row.by_protocol + (f" ({row.note})" if row.note else ""), NOT_MEASURED, theirs)
            continue
        for name, mean in ours.items():
            one = row.name if row.reading or row.name == name else f"{row.name}: {name}"
            table.add(named_by(one, row.protocol and report.protocol.label), OURS, mean)
            table.add(named_by("", row.protocol).strip(), THEIRS, theirs)
            if row.protocol == report.protocol.label:
                off = {c: minus(mean[c], theirs[c]) for c in COLUMNS}
                close = all(round(abs(value), 9) <= CLOSE for value in off.values() if value is not None)
                table.add("", REPRODUCED if close and report.as_released else DIFFERENCE, off, sign=True)
    return list(tables.values())


def overview(title: str, report: Report, columns: Sequence[str], caption: str = "") -> Table:
    """Every row."""
    table = Table(title, f"{caption} {EXPLORATORY}".strip(), columns)
    for row in report.results.metrics:
        table.add(row, OURS, report.results.mean(row))
    return table


def interval_table(report: Report) -> Table:
    """Each row with the intervals of its metrics and of their differences to uniform weights over its own bins."""
    results = report.results
    best = f"{BEST!r} is chosen on the images that it is report on, so that it looks too good."
    table = Table("Intervals", f"{report.results.interval_note} {best} {EXPLORATORY}", COLUMNS)
    for row, (own, difference) in report.intervals.items():
        table.add(row, OURS, results.mean(row))
        table.lines.append(Line("", "interval", tuple(bounds(own[c], ".3f") for c in COLUMNS)))
        if row != results.baseline(row):
            table.add("", f"less {results.baseline(row)}", results.difference(row), sign=True)
            table.lines.append(Line("", "interval", tuple(bounds(difference[c], "+.3f") for c in COLUMNS)))
    return table


def bounds(interval: Interval, form: str) -> str:
    """`[low, high]`."""
    return "-" if interval is None else f"[{interval[0]:{form}}, {interval[1]:{form}}]"


def as_text(table: Table) -> str:
    """For the terminal: aligned columns."""
    rows = [("", "", table.columns), *((printable(line.name), line.kind, line.cells) for line in table.lines)]
    name_width, kind_width = (max(len(row[part]) for row in rows) for part in (0, 1))
    widths = [max(9, *(len(text) + 2 for text in column)) for column in zip(*(row[2] for row in rows), strict=True)]
    lines = wrap(printable(f"{table.title} ({table.caption})" if table.caption else table.title), 120)
    for name, kind, texts in rows:
        lines.append(f"{name:<{name_width}}  {kind:<{kind_width}}" + "".join(map(str.rjust, texts, widths)))
    return "\n".join(lines)


def as_markdown(tables: Iterable[Table], heading: str, caption: str) -> str:
    """One section for each table; `caption` is what all are over, and stands with each, so that it may be copied."""
    parts = [f"# {markdown(heading)}\n"]
    for table in tables:
        parts.append(f"## {markdown(table.title)}\n\n{markdown(f'{caption} {table.caption}'.strip())}\n")
        lines = ["| row | | " + " | ".join(markdown(c) for c in table.columns) + " |"]
        lines.append("|---|---|" + "---:|" * len(table.columns))
        lines += [f"| {markdown(line.name)} | {line.kind} | " + " | ".join(line.cells) + " |" for line in table.lines]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def markdown(text: str) -> str:
    """Text for a cell or a line of Markdown: nothing in it ends the cell or the line, or begins a tag."""
    text = printable(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return text.replace("_", "\\_").replace("*", "\\*")


def as_csv(results: Results, cell: Callable[[str], str], protocol: str = NYU.name) -> str:
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
    """The primary contrast; the metrics of every row, over all images and for each scene, with intervals."""
    results = report.results

    def row(name: str, intervals: tuple[Intervals, Intervals], scene: str | None = None) -> dict[str, Any]:
        return {
            "metrics": results.mean(name, scene),
            "interval_95": intervals[0],
            "baseline": results.baseline(name),
            "less_baseline": results.difference(name, scene),
            "less_baseline_interval_95": intervals[1],
        }

    def of_scene(scene: str) -> dict[str, Any]:
        return {name: row(name, results.intervals(name, scene), scene) for name in results.metrics}

    counts = {name: dict(zip(COUNTS, values.sum(0).tolist(), strict=True)) for name, values in results.counts.items()}
    return {
        "question": {
            "asked": QUESTION,
            "primary": [asdict(contrast) for contrast in report.primary],
            "exploratory": [asdict(contrast) for contrast in report.exploratory],
            "other_assignments": 0 if report.permuted is None else len(report.permuted) - 1,
            "all_assignments": None if report.permuted is None else report.complete,
        },
        "own_readings": list(report.own),
        "clustered_by": results.images.clustered_by,
        "intervals": results.interval_note,
        "rows": {name: row(name, report.intervals[name]) | counts[name] for name in results.metrics},
        "published": beside(report.protocol.data_set),
        "scenes": {scene: of_scene(scene) for scene in dict.fromkeys(results.images.scenes)},
        "images": len(results.images),
    }
