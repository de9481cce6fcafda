"""Step 3 of the experiments, in words and numbers: tables for the terminal, Markdown and LaTeX, CSV and JSON.

Every number is a view on `statistics.Results`. Tables are built once, as `Table`s, and written in three forms.
"""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from calculate_error import NYU_METRICS
from datasets import counted, printable
from experiments.published import (
    BEST,
    COLUMNS,
    DEPTHCLIP,
    LOWER_BOUND,
    MEAN_IMAGE,
    PAPER_ROW,
    PUBLISHED,
    TABLE_1,
    THIS_RUN,
    UNIFORM,
    Published,
)
from experiments.statistics import COUNTS, Results, minus

OURS, THEIRS, DIFFERENCE = "ours", "paper", "difference"
APART = ("ours:", *COLUMNS, "published:", *COLUMNS)  # columns where ours and the paper's do not compare
NOT_MEASURED = "as published, not measured here"
FEW = 50  # images, below which the intervals are called rough
EXTRA_MEANING = (
    "Correlations are over the patches of each image, 0 where a prediction is constant; silog: scale-invariant log "
    "error; scaled: after multiplying each prediction by the ratio of medians. Uniform weights stand for all constants."
)
LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%#_${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
)


@dataclass(frozen=True)
class Scored:
    """What the tables are made of."""

    results: Results
    groups: Mapping[str, Sequence[str]]  # group -> rows that are reported together
    published_by: Mapping[Published, str]  # published row with a reading -> our row of the same reading
    lower_bounds: Sequence[str]  # our rows that stand beside the paper's Lower Bound
    controls: bool  # whether the rows of the controls are there
    official: bool  # whether the images are the paper's, so that its metrics compare
    title: str  # of all that is reported
    caption: str  # what everything is over, and what to beware of
    warnings: Sequence[str] = ()  # what to beware of

    @property
    def single_rows(self) -> list[str]:
        """Rows that belong to no group."""
        return self.results.single_rows(self.groups)

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


def all_tables(scored: Scored, own: Sequence[str], uniform_depth: float) -> list[Table]:
    """All tables that are printed; `own` are the rows of one's own readings, `uniform_depth` the bins' mean [m]."""
    tables = [main_table(scored, own, uniform_depth), *(paper_tables(scored) if scored.lower_bounds else ())]
    if scored.controls:
        tables.append(overview("Controls", scored, COLUMNS))
    extra = [metric for metric in scored.results.columns if metric not in NYU_METRICS]
    return [*tables, overview("What a constant cannot fake", scored, extra, EXTRA_MEANING)]


def main_table(scored: Scored, own: Sequence[str], uniform_depth: float) -> Table:
    """This run and one's own readings between the paper's row and what says nothing."""
    table, results = Table("This run", "", COLUMNS), scored.results
    table.add(THIS_RUN, OURS, results.mean(THIS_RUN))
    if scored.official:
        table.add(PAPER_ROW, "", DEPTHCLIP)
    for name in own:
        table.add(name, OURS, results.mean(name))
    table.add(f"{UNIFORM} ({uniform_depth:.3f} m)", OURS, results.mean(UNIFORM))
    table.add(BEST, OURS, results.mean(BEST))
    return table


def paper_tables(scored: Scored) -> list[Table]:
    """The paper's tables: ours, the paper's and the difference; rows that we cannot measure as published.

    Over other images than the paper's, nothing is ranked: no Table 1, and ours and published stand in columns apart.
    """
    tables: dict[tuple[str, str | None], Table] = {}
    for row in PUBLISHED if scored.official else (row for row in PUBLISHED if row.table != TABLE_1):
        count = counted(int(scored.results.over(row.scene).sum()))
        caption = f"Of these, only {row.scene}: {count}." if row.scene else ""
        title = f"{row.table}, {row.scene}" if row.scene else row.table
        columns = COLUMNS if scored.official else APART
        table = tables.setdefault((row.table, row.scene), Table(title, caption, columns))
        theirs = row.by_column()
        ours = {name: scored.results.mean(name, row.scene) for name in scored.beside(row)}
        if not scored.official:
            pairs = [(cells_of(mean, COLUMNS), cells_of(theirs, COLUMNS)) for mean in ours.values()]
            table.lines += [Line(row.name, "", ("", *own, "", *published)) for own, published in pairs]
            continue
        if not ours or not scored.results.over(row.scene).any():
            table.add(row.name + (f" ({row.note})" if row.note else ""), NOT_MEASURED, theirs)
            continue
        for name, mean in ours.items():
            table.add(row.name if row.reading else f"{row.name}: {name}", OURS, mean)
            table.add("", THEIRS, theirs)
            table.add("", DIFFERENCE, {c: minus(mean[c], theirs[c]) for c in COLUMNS}, sign=True)
    return list(tables.values())


def overview(title: str, scored: Scored, columns: Sequence[str], caption: str = "") -> Table:
    """Every row, groups as minimum, median and maximum."""
    table = Table(title, caption, columns)
    for row in scored.single_rows:
        table.add(row, OURS, scored.results.mean(row))
    for group, rows in scored.groups.items():
        for kind, values in scored.results.ranges(rows).items():
            table.add(f"{group} ({len(rows)})" if kind == "min" else "", kind, values)
    return table


def interval_table(scored: Scored) -> Table:
    """Each row with the intervals of its metrics and of their differences to uniform weights."""
    results = scored.results
    few = ", rough for so few images" if len(results.images) < FEW else ""
    table = Table("Intervals", f"95 % bootstrap intervals over images, 10,000 resamples{few}.", COLUMNS)
    for row, (own, difference) in results.intervals(scored.single_rows).items():
        table.add(row, OURS, results.mean(row))
        table.lines.append(Line("", "interval", tuple(bounds(own[c], ".3f") for c in COLUMNS)))
        if row != UNIFORM:
            table.add("", f"less {UNIFORM}", results.difference(row), sign=True)
            table.lines.append(Line("", "interval", tuple(bounds(difference[c], "+.3f") for c in COLUMNS)))
    return table


def bounds(interval: tuple[float, float] | None, form: str) -> str:
    """`[low, high]`."""
    return "-" if interval is None else f"[{interval[0]:{form}}, {interval[1]:{form}}]"


def as_text(table: Table) -> str:
    """For the terminal: aligned columns."""
    rows = [("", "", table.columns), *((printable(line.name), line.kind, line.cells) for line in table.lines)]
    name_width, kind_width = (max(len(row[part]) for row in rows) for part in (0, 1))
    widths = [max(9, *(len(text) + 2 for text in column)) for column in zip(*(row[2] for row in rows), strict=True)]
    lines = [printable(f"{table.title} ({table.caption})" if table.caption else table.title)]
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


def as_latex(tables: Iterable[Table], caption: str) -> str:
    """One `table` environment for each table, with `caption`, what all are over; needs no package."""
    parts = []
    for table in tables:
        rows = [latex_row("", "", *table.columns) + r" \hline"]
        rows += [latex_row(line.name, line.kind, *line.cells) for line in table.lines]
        parts.append(
            "\\begin{table}\n"
            f"\\caption{{{latex(table.title)}. {latex(f'{caption} {table.caption}'.strip())}}}\n"
            f"\\begin{{tabular}}{{ll{'r' * len(table.columns)}}}\n\\hline\n"
            + "\n".join(rows)
            + "\n\\hline\n\\end{tabular}\n\\end{table}\n"
        )
    return "\n".join(parts)


def markdown(text: str) -> str:
    """Text for a cell or a line of Markdown: nothing in it ends the cell or the line, or begins a tag."""
    text = printable(text).replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")
    return text.replace("_", "\\_").replace("*", "\\*")


def latex(text: str) -> str:
    """Text for LaTeX: its special characters escaped, minus signs of numbers as minus signs."""
    text = printable(text).translate(LATEX)
    return f"${text}$" if text[:1] in ("+", "-") and text[1:2].isdigit() else text


def latex_row(*cells: str) -> str:
    r"""A row of a LaTeX table. What would look like an argument of the `\\` before it begins with an empty group."""
    text = " & ".join(map(latex, cells))
    return ("{}" if text.startswith(("[", "*")) else "") + text + r" \\"


def as_csv(results: Results, cell: Callable[[str], str]) -> str:
    """A line for each image and row; `cell` makes text harmless for a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("image", "scene", "index", "reading", *COUNTS, *results.columns))
    for i, image in enumerate(results.images):
        for row, metrics in results.metrics.items():
            where = cell(image), cell(results.scenes[i]), results.indices[i], cell(printable(row))
            writer.writerow([*where, *results.counts[row][i].tolist(), *metrics[i].tolist()])
    return text.getvalue()


def as_json(scored: Scored) -> dict[str, Any]:
    """The metrics of every row, over all images and for each scene, with intervals."""
    results = scored.results

    def row(name: str, intervals: tuple[Any, Any], scene: str | None = None) -> dict[str, Any]:
        return {
            "metrics": results.mean(name, scene),
            "interval_95": intervals[0],
            "less_uniform_weights": results.difference(name, scene),
            "less_uniform_weights_interval_95": intervals[1],
        }

    def rows(names: Sequence[str], scene: str | None = None) -> dict[str, Any]:
        return {name: row(name, each, scene) for name, each in results.intervals(names, scene).items()}

    everything = rows(list(results.metrics))
    for name, values in everything.items():
        values |= dict(zip(COUNTS, results.counts[name].sum(0).tolist(), strict=True))
    return {
        "rows": everything,
        "paper": dict(DEPTHCLIP),
        "groups": {group: results.ranges(names) for group, names in scored.groups.items()},
        "scenes": {scene: rows(scored.single_rows, scene) for scene in dict.fromkeys(results.scenes.tolist())},
        "images": len(results.images),
    }
