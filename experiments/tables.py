"""Step 3 of the experiments, in words and numbers: tables for the terminal, Markdown and LaTeX, CSV and JSON.

Every number is a view on `statistics.Results`. Tables are built once, as `Table`s, and written in three forms.
"""

import csv
import io
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from textwrap import wrap
from typing import Any

import numpy as np
import torch

from calculate_error import NYU, SHARES, Protocol, gain_over_random
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
from experiments.statistics import (
    COUNTS,
    HIGHER,
    MIN_CLUSTERS,
    PRIMARY,
    RESAMPLES,
    Case,
    Contrast,
    Interval,
    Intervals,
    Results,
    minus,
    p_value,
)

RESULTS_FILE, ROWS_FILE, PERMUTED_FILE = "results.json", "per_image.csv", "permutations.csv"
OURS, THEIRS, DIFFERENCE = "ours", "published", "difference"
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
    "wins: images for which this run is better. dz: mean difference / its standard deviation over images."
)
CONTRAST_COLUMNS = ("difference", "95 % interval", "wins", "dz", "p")
SCENE_MEANING = "A scene is a room type."
GROUP_MEANING = "A group's minimum, median and maximum are over its rows, each metric for itself."
EXTRA_MEANING = (
    "spearman, pearson: correlation over each image's patches of which half is measured (outside NYU, a fiftieth); "
    "spearman_pixels: over its counted pixels, every fourth row and column; 0 for any constant. aurg: what sigma, how "
    "far apart the answers lie, knows of abs_rel (docs/readouts.md); 0 for any constant. silog: scale-invariant "
    "log error, not times 100. scaled: after multiplying each prediction by the ratio of medians, the lower ones of "
    "even numbers of pixels. Uniform weights stand for all constants."
)
CERTAIN = "Does CLIP know when it is wrong?"
CERTAIN_MEANING = (
    "abs_rel of the most certain share of each image's patches, by sigma, how far apart the answers lie; mean over "
    "images. aurg: area between this curve and a random order's, which is flat; positive if certain patches are better."
)
CERTAIN_SHARES = (1, 2, 5, 10, 15, SHARES)  # of SHARES, in the table
READOUTS = "Read-outs and backbones"
READOUT_COLUMNS = ["delta1", "less uniform", "95 %", "abs_rel", "less uniform", "95 %"]
READOUT_COLUMNS += ["spearman", "aurg", "p delta1", "p abs_rel"]
READOUT_MEANING = (
    "The same words and bins by each read-out, at temperatures .1 (cosine times 1000) and 1 (times 100), with image "
    "statistics of ImageNet and of CLIP (docs/readouts.md). less uniform: minus uniform weights over the same bins, by "
    "image. "
    "spearman (rank correlation), aurg (what certainty knows of error) and p are over patches, whose size differs."
)
RELEASED = "released setting"
LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%#_${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
)


@dataclass(frozen=True)
class Scored:
    """What the tables are made of."""

    results: Results
    groups: Mapping[str, Sequence[str]]  # group -> rows that are reported together; of a run with controls
    published_by: Mapping[Published, str]  # published row with a reading -> our row of the same reading
    lower_bounds: Sequence[str]  # our rows that stand beside the paper's Lower Bound
    official: bool  # whether the images are those of published metrics, so that they compare
    title: str  # of all that is reported
    caption: str  # what everything is over, and what to beware of
    warnings: Sequence[str] = ()  # what to beware of
    clustered_by: str = "images"  # what makes the clusters that intervals are over
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
        pairs = [(THIS_RUN, UNIFORM, metric) for metric in ("spearman", "spearman_pixels", "aurg")]
        constants = [row for row in (BEST, BEST_ELSEWHERE, BEST_TRAINED, MEAN_IMAGE) if row in self.results.metrics]
        pairs += [(THIS_RUN, row, metric) for row in constants for metric in PRIMARY]
        pairs += [(row, self.results.baseline(row), metric) for row in self.own for metric in PRIMARY]
        prompts = {
            row.name: self.published_by[row]
            for row in self.published
            if row.table == PROMPTS and row in self.published_by
        }
        original = prompts.pop("original", None)
        pairs += [(row, original, metric) for row in prompts.values() for metric in PRIMARY if original]
        return [self.results.contrast(*pair) for pair in pairs]

    @cached_property
    def intervals(self) -> dict[str, tuple[Intervals, Intervals]]:
        """Of each single row over all images: see `Results.intervals`."""
        return self.results.intervals(self.single_rows)

    def p_of(self, metric: str) -> float | None:
        """Share of the assignments of bins to words that are as good as this run's; None where there is no other."""
        if self.permuted is None:
            return None
        own, *others = self.permuted[:, PRIMARY.index(metric)]
        return p_value(own, np.array(others), metric in HIGHER)

    @property
    def interval_note(self) -> str:
        """How the intervals come about, or why there are none."""
        return interval_note(self.results, self.clustered_by)

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


def interval_note(results: Results, clustered_by: str) -> str:
    """How intervals come about, or why there are none; `clustered_by` is what makes the clusters."""
    count = len(results.all_clusters.sizes)
    if count < MIN_CLUSTERS:
        return f"No intervals: fewer than {MIN_CLUSTERS} clusters ({count}: {clustered_by})."
    return f"95 % intervals: studentised bootstrap, {RESAMPLES:,} times {count} clusters ({clustered_by})."


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


def all_tables(scored: Scored, constants: Mapping[str, float]) -> list[Table]:
    """All tables that are printed; `constants` [m] have the baselines of this run and of one's own readings."""
    tables = [question_table(scored, constants[UNIFORM]), main_table(scored, constants)]
    tables += paper_tables(scored) if scored.lower_bounds else ()
    if scored.groups:
        tables.append(overview("Controls", scored, COLUMNS))
    extra = [metric for metric in scored.results.columns if metric not in scored.protocol.scored]
    tables.append(overview("What a constant cannot fake", scored, extra, EXTRA_MEANING))
    tables.append(contrast_table("Paired differences", EXPLORATORY, scored.exploratory[1:], scored))
    return [*tables, certainty_table(scored.curve)] if scored.curve is not None else tables


def question_table(scored: Scored, uniform_depth: float) -> Table:
    """The primary contrast, what it must be read with, and where this run is among the assignments of its bins."""
    caption = (
        f"Primary contrast: {THIS_RUN} minus {UNIFORM}, the mean {uniform_depth:.3f} m of its bins, image by image. "
        f"{ANSWER} All else in these tables is exploratory, unadjusted. {scored.interval_note} {CONTRAST_MEANING} "
    )
    first = [*scored.primary, *(c for c in scored.exploratory if c.minus == BEST_ELSEWHERE), scored.exploratory[0]]
    table = contrast_table(QUESTION, caption, first, scored)
    if scored.permuted is None:
        table.caption += "p: there is no other assignment." if scored.groups else "p: with --controls."
        return table
    n = len(scored.permuted) - 1
    table.caption += f"p: (1 + k) / (1 + n), k of {'all' if scored.complete else 'the random'} n = {n:,} other "
    table.caption += (
        "assignments of the bins to the words are as good, over patches with the mean of each one's ground truth."
    )
    for place, contrast in enumerate(scored.primary):
        own, *others = scored.permuted[:, place]
        name = f"{THIS_RUN} minus the mean of {n:,} other assignments, over patches"
        cells = (f"{own - np.mean(others):+.3f}", "-", "-", "-", f"{contrast.p:.4f}")
        table.lines.append(Line(name, contrast.metric, cells))
    return table


def contrast_table(title: str, caption: str, contrasts: Sequence[Contrast], scored: Scored) -> Table:
    """A line for each contrast."""
    table = Table(title, caption, CONTRAST_COLUMNS)
    for c in contrasts:
        effect = "-" if c.dz is None else f"{c.dz:+.2f}"
        wins = f"{c.wins} of {len(scored.results.images)}"
        cells = (f"{c.difference:+.3f}", bounds(c.interval_95, "+.3f"), wins, effect, "-")
        table.lines.append(Line(f"{c.row} minus {c.minus}", c.metric, cells))
    return table


def certainty_table(curve: np.ndarray) -> Table:
    """Mean error of the most certain patches; `curve` as in `Scored`."""
    shares = {f"{100 * share // SHARES} %": share - 1 for share in CERTAIN_SHARES}
    table = Table(CERTAIN, f"{CERTAIN_MEANING} {EXPLORATORY}", (*shares, "aurg"))
    gain = float(gain_over_random(torch.from_numpy(curve)))
    table.add(THIS_RUN, OURS, {share: curve[place] for share, place in shares.items()} | {"aurg": gain})
    table.add("in a random order", "", dict.fromkeys(shares, curve[-1]) | {"aurg": 0.0})
    return table


def readout_table(
    cases: Mapping[Case, Sequence[Contrast]], results: Results, clustered_by: str, assignments: int, complete: bool
) -> Table:
    """A line for each case, with its differences to uniform weights in each of `PRIMARY`, and for these.

    `assignments` of the bins to the words are behind p, besides the own; `complete` if these are all.
    """
    which = "all" if complete else "the random"
    note = f"p: (1 + k) / (1 + n), k of {which} n = {assignments:,} other assignments of the bins to the words are as "
    note += f"good; of {len(cases)} rows, some are good by chance. {EXPLORATORY}"
    caption = f"{READOUT_MEANING} {interval_note(results, clustered_by)} {note}"
    table = Table(READOUTS, caption, READOUT_COLUMNS)
    for case, contrasts in cases.items():
        mean, cells = results.mean(case.name), []
        for c in contrasts:
            cells += [f"{mean[c.metric]:.3f}", f"{c.difference:+.3f}", bounds(c.interval_95, "+.3f")]
        cells += cells_of(mean, ("spearman", "aurg"), "+.3f")
        cells += ["-" if c.p is None else f"{c.p:.4f}" for c in contrasts]
        table.lines.append(Line(case.name, RELEASED if case.released else "", tuple(cells)))
    uniform = cells_of(results.mean(UNIFORM), PRIMARY)
    table.lines.append(Line(UNIFORM, "", (uniform[0], "", "", uniform[1], *[""] * 6)))
    return table


def readouts_json(cases: Mapping[Case, Sequence[Contrast]], results: Results, clustered_by: str) -> dict[str, Any]:
    """Every case with its metrics and contrasts, and uniform weights."""
    rows = [
        {**asdict(case), "metrics": results.mean(case.name), "less_uniform": [asdict(c) for c in contrasts]}
        for case, contrasts in cases.items()
    ]
    about = {"images": len(results.images), "intervals": interval_note(results, clustered_by)}
    return {"readouts": rows, UNIFORM: results.mean(UNIFORM), **about, "clustered_by": clustered_by}


def main_table(scored: Scored, constants: Mapping[str, float]) -> Table:
    """This run and one's own readings between published rows and what says nothing."""
    table, results = Table(named_by("This run", scored.protocol.label), "", COLUMNS), scored.results
    table.add(THIS_RUN, OURS, results.mean(THIS_RUN))
    for name, row in beside(scored.protocol.data_set).items() if scored.official else ():
        table.add(name, "", row)
    for name in scored.own:
        table.add(name, OURS, results.mean(name))
    for name in dict.fromkeys(results.baseline(row) for row in (THIS_RUN, *scored.own)):
        table.add(f"{name} ({constants[name]:.3f} m)" if name == UNIFORM else name, OURS, results.mean(name))
    for name in (BEST, BEST_ELSEWHERE, BEST_TRAINED):
        if name in results.metrics:
            table.add(name, OURS, results.mean(name))
    return table


def paper_tables(scored: Scored) -> list[Table]:
    """The published tables: ours, theirs and the difference; rows that we cannot measure as published.

    Rows of another protocol have no difference. Over other images than the paper's, nothing is ranked: no Table 1, and
    ours and published stand in columns apart.
    """
    tables: dict[tuple[str, str | None], Table] = {}
    for row in scored.published if scored.official else (r for r in scored.published if r.table != TABLE_1):
        count = counted(int(scored.results.over(row.scene).sum()))
        caption = (
            f"Of these, only {row.scene}: {count}. {SCENE_MEANING}" if row.scene else TABLE_NOTES.get(row.table, "")
        )
        title = f"{row.table}, {row.scene}" if row.scene else row.table
        columns = COLUMNS if scored.official else APART
        table = tables.setdefault((row.table, row.scene), Table(title, caption, columns))
        theirs = row.by_column()
        ours = {name: scored.results.mean(name, row.scene) for name in scored.beside(row)}
        if not scored.official:
            pairs = [(cells_of(mean, COLUMNS), cells_of(theirs, COLUMNS)) for mean in ours.values()]
            table.lines += [Line(row.by_protocol, "", ("", *own, "", *published)) for own, published in pairs]
            continue
        if not ours or not scored.results.over(row.scene).any():
            table.add(row.by_protocol + (f" ({row.note})" if row.note else ""), NOT_MEASURED, theirs)
            continue
        for name, mean in ours.items():
            one = row.name if row.reading or row.name == name else f"{row.name}: {name}"
            table.add(named_by(one, row.protocol and scored.protocol.label), OURS, mean)
            table.add(named_by("", row.protocol).strip(), THEIRS, theirs)
            if row.protocol == scored.protocol.label:
                table.add("", DIFFERENCE, {c: minus(mean[c], theirs[c]) for c in COLUMNS}, sign=True)
    return list(tables.values())


def overview(title: str, scored: Scored, columns: Sequence[str], caption: str = "") -> Table:
    """Every row, groups as minimum, median and maximum."""
    caption = " ".join(filter(None, (caption, GROUP_MEANING if scored.groups else "", EXPLORATORY)))
    table = Table(title, caption, columns)
    for row in scored.single_rows:
        table.add(row, OURS, scored.results.mean(row))
    for group, rows in scored.groups.items():
        for kind, values in scored.results.ranges(rows).items():
            table.add(f"{group} ({len(rows)})" if kind == "min" else "", kind, values)
    return table


def interval_table(scored: Scored) -> Table:
    """Each row with the intervals of its metrics and of their differences to uniform weights over its own bins."""
    results = scored.results
    best = f"Those of {BEST!r} are less what it gains by being chosen, anew in each resample."
    table = Table("Intervals", f"{scored.interval_note} {best} {EXPLORATORY}", COLUMNS)
    for row, (own, difference) in scored.intervals.items():
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


def as_latex(tables: Iterable[Table], caption: str) -> str:
    """One `table` environment for each table, with `caption`, what all are over; needs no package."""
    parts = []
    for table in tables:
        title = table.title if table.title.endswith("?") else f"{table.title}."
        rows = [latex_row("", "", *table.columns) + r" \hline"]
        rows += [latex_row(line.name, line.kind, *line.cells) for line in table.lines]
        parts.append(
            "\\begin{table}\n"
            f"\\caption{{{latex(f'{title} {caption} {table.caption}'.strip())}}}\n"
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
    return f"${text}$" if re.match(r"\[?[+-]\d", text) else text


def latex_row(*cells: str) -> str:
    r"""A row of a LaTeX table. What would look like an argument of the `\\` before it begins with an empty group."""
    text = " & ".join(map(latex, cells))
    return ("{}" if text.startswith(("[", "*")) else "") + text + r" \\"


def as_csv(results: Results, cell: Callable[[str], str], protocol: str = NYU.name) -> str:
    """A line for each image and row; `cell` makes text harmless for a spreadsheet."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("image", "scene", "cluster", "index", "protocol", "reading", *COUNTS, *results.columns))
    for i, image in enumerate(results.images):
        for row, metrics in results.metrics.items():
            where = (cell(text) for text in (image, results.scenes[i], results.clusters[i]))
            writer.writerow(
                [
                    *where,
                    results.indices[i],
                    protocol,
                    cell(printable(row)),
                    *results.counts[row][i].tolist(),
                    *metrics[i].tolist(),
                ]
            )
    return text.getvalue()


def permuted_csv(bins: Iterable[Iterable[float]], permuted: np.ndarray) -> str:
    """A line for each assignment of bins to words, this run's first: its bins [m] and its mean primary metrics."""
    lines = [",".join(("bins", *PRIMARY))]
    for depths, values in zip(bins, permuted.tolist(), strict=True):
        lines.append(",".join([bins_text(depths), *map(repr, values)]))
    return "\n".join(lines) + "\n"


def bins_text(bins: Iterable[float]) -> str:
    """Bins [m] in a cell."""
    return " ".join(map(repr, bins))


def as_json(scored: Scored) -> dict[str, Any]:
    """The primary contrast; the metrics of every row, over all images and for each scene, with intervals.

    Rows of groups have no intervals of their own.
    """
    results = scored.results
    missing: Intervals = dict.fromkeys(results.columns)

    def rows(names: Iterable[str], intervals: Mapping[str, Any], scene: str | None = None) -> dict[str, Any]:
        found = {}
        for name in names:
            own, difference = intervals.get(name, (missing, missing))
            found[name] = {
                "metrics": results.mean(name, scene),
                "interval_95": own,
                "baseline": results.baseline(name),
                "less_baseline": results.difference(name, scene),
                "less_baseline_interval_95": difference,
            }
        return found

    def of_scene(scene: str) -> dict[str, Any]:
        return rows(scored.single_rows, results.intervals(scored.single_rows, scene), scene)

    everything = rows(results.metrics, scored.intervals)
    for name, values in everything.items():
        values |= dict(zip(COUNTS, results.counts[name].sum(0).tolist(), strict=True))
    groups = {group: {"rows": list(names), **results.ranges(names)} for group, names in scored.groups.items()}
    return {
        "question": {
            "asked": QUESTION,
            "primary": [asdict(contrast) for contrast in scored.primary],
            "exploratory": [asdict(contrast) for contrast in scored.exploratory],
            "other_assignments": 0 if scored.permuted is None else len(scored.permuted) - 1,
            "all_assignments": None if scored.permuted is None else scored.complete,
        },
        "own_readings": list(scored.own),
        "clustered_by": scored.clustered_by,
        "gains_of_choosing": results.gains,
        "intervals": scored.interval_note,
        "rows": everything,
        "published": beside(scored.protocol.data_set),
        "groups": groups,
        "scenes": {scene: of_scene(scene) for scene in dict.fromkeys(results.scenes.tolist())},
        "images": len(results.images),
    }
