"""What a run leaves behind: tables for the terminal, Markdown and LaTeX, a CSV row for each image and reading, JSON.

Every figure is a view on `results.Results`. Tables are built once, as `Table`s, and written in three forms.
"""

import csv
import json
import os
import platform
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any, TextIO

import numpy as np
import torch

import paper
from calculate_error import NYU_FIGURES
from evaluation.batch_error import EXTRA_FIGURES, FIGURES
from evaluation.controls import BEST, MEAN_IMAGE, THIS_RUN, UNIFORM, Suite
from evaluation.results import Results

ROW_FIELDS = ("image", "scene", "index", "reading", "valid_pixels", "dropped_pixels", *FIGURES)
ROWS_FILE, RESULTS_FILE, TIMING_FILE = "per_image.csv", "results.json", "timing.json"
MARKDOWN_FILE, LATEX_FILE, PAGE_FILE = "tables.md", "tables.tex", "depth.html"
STRIP_FILE, RESPONSE_FILE, CHART_FILE = "qualitative.png", "bin_response.png", "rows.png"  # of evaluation/figures.py
FIGURE_FILES = (STRIP_FILE, RESPONSE_FILE, CHART_FILE)
LATEX = str.maketrans(
    {c: f"\\{c}" for c in "&%#_${}"}
    | {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": "$<$", ">": "$>$"}
)
FILES = (ROWS_FILE, RESULTS_FILE, TIMING_FILE, MARKDOWN_FILE, LATEX_FILE, PAGE_FILE, *FIGURE_FILES)

TITLES = dict(zip(paper.COLUMNS, paper.COLUMN_TITLES, strict=True)) | {
    name: name.replace("scaled_a", "scaled delta") if name[:-1] == "scaled_a" else name.replace("_", " ", 1)
    for name in EXTRA_FIGURES
}
OURS, PUBLISHED, DIFFERENCE = "ours", "paper", "difference"
NOT_MEASURED = "as published, not measured here"

EXTRA_MEANING = (
    "Correlations are over the patches of each image, 0 where a prediction is constant; silog: scale-invariant log "
    "error; scaled: after multiplying each prediction by the ratio of medians. Uniform weights stand for all constants."
)

Row = dict[str, Any]
Values = Mapping[str, float | None]


@dataclass(frozen=True)
class Line:
    """One line of a table: a row's name, what the values are (ours, paper, ...), and a text for each column."""

    name: str
    kind: str
    cells: tuple[str, ...]


@dataclass
class Table:
    """A table: title, what it is over, the columns' names in the figures, and its lines."""

    title: str
    caption: str
    columns: tuple[str, ...]
    lines: list[Line] = field(default_factory=list)

    def add(self, name: str, kind: str, values: Values, sign: bool = False) -> None:
        """A line of values with three decimals, `-` where there is none."""
        form = "+.3f" if sign else ".3f"
        cells = ("-" if values.get(c) is None else format(values[c], form) for c in self.columns)
        self.lines.append(Line(name, kind, tuple(cells)))


def released_line(figures: Values) -> str:
    """The line that the release prints: ` * Avg abs_diff : 0.000, a1 : 0.000, ...`."""
    return " * Avg " + ", ".join(f"{name} : {figures[name]:.3f}" for name in NYU_FIGURES)


def main_table(results: Results, suite: Suite, caption: str) -> Table:
    """This run and the user's own readings between the paper's row and what says nothing."""
    table = Table("This run", caption, paper.COLUMNS)
    table.add(THIS_RUN, OURS, results.mean(THIS_RUN))
    table.add("paper, DepthCLIP", "", paper.DEPTHCLIP)
    for setting in suite.own:
        table.add(setting.name, OURS, results.mean(setting.name))
    table.add(f"{UNIFORM} ({suite.constants[UNIFORM]:.3f} m)", OURS, results.mean(UNIFORM))
    table.add(BEST, OURS, results.mean(BEST))
    return table


def paper_tables(results: Results, suite: Suite, caption: str) -> list[Table]:
    """The paper's tables: ours, the paper's and the difference; rows that we cannot measure as published."""
    tables: dict[tuple[str, str | None], Table] = {}
    for row in paper.PUBLISHED:
        images = f"{row.scene} only, {int((results.scenes == row.scene).sum())} images; " if row.scene else ""
        table = tables.setdefault(
            (row.table, row.scene),
            Table(f"{row.table}{f', {row.scene}' if row.scene else ''}", images + caption, paper.COLUMNS),
        )
        published = row.by_column()
        measured = [results.mean(name, row.scene) for name in measured_rows(row, suite, results)]
        if not measured or measured[0]["a1"] is None:
            table.add(row.name + (f" ({row.note})" if row.note else ""), NOT_MEASURED, published)
            continue
        for name, ours in zip(measured_rows(row, suite, results), measured, strict=True):
            label = row.name if row.reading else f"{row.name}: {name}"
            table.add(label, OURS, ours)
            table.add("", PUBLISHED, published)
            table.add("", DIFFERENCE, {c: minus(ours[c], published[c]) for c in paper.COLUMNS}, sign=True)
    return list(tables.values())


def measured_rows(row: paper.Published, suite: Suite, results: Results) -> list[str]:
    """Names of our rows that stand beside a published one."""
    if row.reading is not None:
        name = suite.row_of(row.reading)
        return [name] if name else []
    if row.name == paper.LOWER_BOUND:
        return [random.name for random in suite.randoms if random.seed == 0]
    return [MEAN_IMAGE] if row.name == paper.MEAN_IMAGE and MEAN_IMAGE in results.rows else []


def minus(a: float | None, b: float | None) -> float | None:
    """a - b; None where either is."""
    return None if a is None or b is None else a - b


def overview(title: str, results: Results, suite: Suite, columns: Sequence[str], caption: str) -> Table:
    """Every row, groups as minimum, median and maximum of each figure over their members."""
    table = Table(title, caption, tuple(columns))
    groups = suite.groups
    grouped = {name for names in groups.values() for name in names}
    for name in results.rows:
        if name not in grouped:
            table.add(name, OURS, results.mean(name))
    for group, names in groups.items():
        for kind, values in group_range(results, names).items():
            table.add(f"{group} ({len(names)})" if kind == "min" else "", kind, values)
    return table


def group_range(results: Results, names: Sequence[str], scene: str | None = None) -> dict[str, dict[str, float | None]]:
    """Minimum, median and maximum over rows of each mean figure."""
    means = [results.mean(name, scene) for name in names]
    ranges: dict[str, dict[str, float | None]] = {"min": {}, "median": {}, "max": {}}
    for figure in FIGURES:
        values = [mean[figure] for mean in means]
        known = [v for v in values if v is not None]
        for kind, function in (("min", np.min), ("median", np.median), ("max", np.max)):
            ranges[kind][figure] = float(function(known)) if len(known) == len(values) else None
    return ranges


def interval_table(results: Results, suite: Suite, intervals: Mapping[str, Any], caption: str) -> Table:
    """Each row with the intervals of its figures and of their differences to uniform weights."""
    images = int(results.counted.sum())
    few = f" {images} images are few: read the intervals as rough." if images < 50 else ""
    explained = f"95 % bootstrap intervals over images, 10,000 resamples.{few} {caption}"
    table = Table("Intervals", explained, paper.COLUMNS)
    grouped = {name for names in suite.groups.values() for name in names}
    uniform = results.mean(UNIFORM)
    for name in results.rows:
        if name in grouped:
            continue
        mean = results.mean(name)
        own, difference = intervals[name]
        table.add(name, OURS, mean)
        table.lines.append(Line("", "interval", bounds(own, table.columns, ".3f")))
        if name != UNIFORM:
            table.add("", f"less {UNIFORM}", {c: minus(mean[c], uniform[c]) for c in paper.COLUMNS}, sign=True)
            table.lines.append(Line("", "interval", bounds(difference, table.columns, "+.3f")))
    return table


def bounds(intervals: Mapping[str, tuple[float, float] | None], columns: Sequence[str], form: str) -> tuple[str, ...]:
    """A cell `[low, high]` for each column."""
    pairs = [intervals[c] for c in columns]
    return tuple("-" if pair is None else f"[{pair[0]:{form}}, {pair[1]:{form}}]" for pair in pairs)


def as_text(table: Table, title: bool = True) -> str:
    """For the terminal: aligned columns."""
    kinds = any(line.kind not in ("", OURS) for line in table.lines)
    width = max(len(line.name) for line in table.lines)
    kind_width = max(len(line.kind) for line in table.lines) + 2 if kinds else 0
    cell = max(9, *(len(TITLES[c]) + 2 for c in table.columns), *(len(t) + 2 for li in table.lines for t in li.cells))
    lines = [f"{table.title} ({table.caption})"] if title else []
    lines.append(" " * (width + kind_width) + "".join(f"{TITLES[c]:>{cell}}" for c in table.columns))
    for line in table.lines:
        kind = f"  {line.kind:<{kind_width - 2}}" if kinds else ""
        lines.append(f"{line.name:<{width}}{kind}" + "".join(f"{text:>{cell}}" for text in line.cells))
    return "\n".join(lines)


def as_markdown(tables: Iterable[Table], heading: str) -> str:
    """One section for each table."""
    parts = [f"# {heading}\n"]
    for table in tables:
        parts.append(f"## {markdown(table.title)}\n\n{markdown(table.caption)}\n")
        lines = ["| row | | " + " | ".join(TITLES[c] for c in table.columns) + " |"]
        lines.append("|---|---|" + "---:|" * len(table.columns))
        lines += [f"| {markdown(line.name)} | {line.kind} | " + " | ".join(line.cells) + " |" for line in table.lines]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def as_latex(tables: Iterable[Table]) -> str:
    """One `table` environment for each table; needs no package."""
    parts = []
    for table in tables:
        rows = [" & ".join(map(escape, ("", "", *(TITLES[c] for c in table.columns)))) + r" \\ \hline"]
        rows += [" & ".join(map(escape, (line.name, line.kind, *line.cells))) + r" \\" for line in table.lines]
        parts.append(
            "\\begin{table}\n"
            f"\\caption{{{escape(table.title)}. {escape(table.caption)}}}\n"
            f"\\begin{{tabular}}{{ll{'r' * len(table.columns)}}}\n\\hline\n"
            + "\n".join(rows)
            + "\n\\hline\n\\end{tabular}\n\\end{table}\n"
        )
    return "\n".join(parts)


def markdown(text: str) -> str:
    """Text for a cell or a line of Markdown: nothing in it ends the cell or begins a tag."""
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("<", "&lt;")


def escape(text: str) -> str:
    """Text for LaTeX: its special characters escaped, minus signs of numbers as minus signs."""
    text = text.translate(LATEX)
    return f"${text}$" if text[:1] in "+-" and text[1:2].isdigit() else text


def results_json(results: Results, suite: Suite, intervals: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of every row, over all images and for each scene, with intervals."""
    uniform = results.mean(UNIFORM)
    grouped = {name for names in suite.groups.values() for name in names}
    scene_rows = [name for name in results.rows if name not in grouped]
    rows = {}
    for name in results.rows:
        mean = results.mean(name)
        own, difference = intervals[name]
        rows[name] = {
            "figures": mean,
            "interval_95": own,
            "less_uniform_weights": {n: minus(mean[n], uniform[n]) for n in FIGURES},
            "less_uniform_weights_interval_95": difference,
            "valid_pixels": int(results.valid[name].sum()),
            "dropped_pixels": int(results.dropped[name].sum()),
        }
    figures = results.mean(THIS_RUN)
    return {
        "figures": {name: figures[name] for name in NYU_FIGURES},
        "paper": dict(paper.DEPTHCLIP),
        "rows": rows,
        "groups": {group: group_range(results, names) for group, names in suite.groups.items()},
        "constants": dict(suite.constants),
        "best_constants": results.best,
        "scenes": {
            str(scene): {
                name: {
                    "figures": results.mean(name, scene),
                    "interval_95": own,
                    "less_uniform_weights_interval_95": less,
                }
                for name, (own, less) in results.intervals(scene_rows, scene).items()
            }
            for scene in dict.fromkeys(results.scenes.tolist())
        },
        "images": len(results.images),
        "images_without_valid_pixel": [n for n, c in zip(results.images, results.counted, strict=True) if not c],
        "valid_pixels": int(results.valid[THIS_RUN].sum()),
        "dropped_pixels": int(results.dropped[THIS_RUN].sum()),
    }


def write_rows(file: TextIO, results: Results) -> None:
    """The CSV: one row for each image and reading, empty cells where a figure is undefined."""
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(ROW_FIELDS)
    tables = {name: values.tolist() for name, values in results.rows.items()}
    for i, image in enumerate(results.images):
        for name, table in tables.items():
            figures = ["" if v != v else v for v in table[i]]
            counts = results.valid[name][i], results.dropped[name][i]
            writer.writerow([image, results.scenes[i], results.indices[i], name, *counts, *figures])


def tables(results: Results, suite: Suite, caption: str) -> list[Table]:
    """The tables of a run: its own first, then those that its suite has the rows for."""
    found = [main_table(results, suite, caption)]
    if suite.paper:
        found += paper_tables(results, suite, caption)
    if suite.controls:
        found.append(overview("Controls", results, suite, paper.COLUMNS, caption))
    if suite.paper or suite.controls:
        found.append(
            overview("What a constant cannot fake", results, suite, EXTRA_FIGURES, f"{EXTRA_MEANING} {caption}")
        )
    return found


def write_all(folder: Path, results: Results, suite: Suite, caption: str, made_with: Mapping[str, Any]) -> None:
    """Writes the CSV, both forms of the tables and, last, `results.json`, each whole or not at all.

    Raises:
        OSError: one cannot be written; the error names it.
    """
    intervals = results.intervals(list(results.rows))
    written = [*tables(results, suite, caption), interval_table(results, suite, intervals, caption)]
    write_whole(folder / ROWS_FILE, lambda file: write_rows(file, results))
    write_whole(folder / MARKDOWN_FILE, lambda file: file.write(as_markdown(written, "MonoCLIP on NYU Depth V2")))
    write_whole(folder / LATEX_FILE, lambda file: file.write(as_latex(written)))
    write_json(folder / RESULTS_FILE, results_json(results, suite, intervals) | dict(made_with))


def remove_results(folder: Path) -> None:
    """Removes what an earlier run left in `folder`: the files of `write_all`, the figures and the page."""
    for name in FILES:
        (folder / name).unlink(missing_ok=True)


def environment(device: torch.device) -> dict[str, Any]:
    """Versions, commit (None outside a git checkout, "-dirty" with local changes), device and threads of this run."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor() or platform.machine()
    return {
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{package: metadata.version(package) for package in ("numpy", "pillow")},
        },
        "commit": commit(),
        "device": {"type": str(device), "name": name, "threads": torch.get_num_threads()},
        "platform": platform.platform(),
    }


def commit() -> str | None:
    """The checkout's commit, "-dirty" appended if files differ from it; None where there is no git or no checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        run = subprocess.run(command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return None
    return run.stdout.strip()


def write_json(path: Path, value: Any) -> None:
    """Writes `value` as JSON so that `path` holds all of it or does not change."""
    write_whole(path, lambda file: file.write(json.dumps(value, indent=1, allow_nan=False) + "\n"))


def write_whole(path: Path, write: Any) -> None:
    """Calls `write(file)` on a text file that becomes `path` when all of it is on the disk.

    Raises:
        OSError: it cannot be written; the error names `path`.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("x", newline="", encoding="utf-8") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    finally:
        temporary.unlink(missing_ok=True)
