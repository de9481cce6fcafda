"""What the paper publishes, as data: "Can Language Understand Depth?", ACM MM 2022, arXiv 2207.01077.

Every row of its tables, over NYU Depth V2's official test split of 654 images, with the reading behind it.
"""

import csv
from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from datasets.presets import PRESETS
from monoclip import PAPER, Reading

AUTY, LOG_BINS = (replace(PAPER, **PRESETS[name]) for name in ("auty", "log"))
COLUMNS = ("delta1", "delta2", "delta3", "abs_rel", "log10", "rmse")  # of the paper's tables

PAPER_ROW = "paper, DepthCLIP"
# Rows of ours: the reading of a run; what says nothing; the best constant of other clusters; and those of ladder.py.
THIS_RUN, UNIFORM, BEST = "this run", "uniform weights", "best constant"
ANSWERS_AT, TRUTH_AT = "position of the answers", "position of the truth"
FITTED, PROBE = "words, fitted bins", "linear probe"
WITHIN, CEILING = "ceiling, within the bins", "ceiling, true patches"
RUNGS = (UNIFORM, BEST, ANSWERS_AT, TRUTH_AT, THIS_RUN, FITTED, PROBE, WITHIN, CEILING)  # of the ladder

TABLE_1 = "Table 1: methods"
PROMPTS, BINS = "Prompt ablation (original bins)", "Depth-bin ablation (original prompts)"
# The paper has no row on KITTI, and its bins for KITTI are published nowhere; these are zero-shot rows of later papers.
# Auty and Mikolajczyk, ICCV-W 2023, crop the ground truth first, as AdaBins does; their "RMSE log" is no root.
KITTI_ROWS = "KITTI, Eigen test split: zero-shot rows of other papers"


def cell_of(value: float | tuple[float, float] | None, form: str = "+.3f") -> str:
    """A value, or an interval as `[low, high]`, as text; `-` where there is none."""
    if isinstance(value, tuple):
        return f"[{value[0]:{form}}, {value[1]:{form}}]"
    return "-" if value is None else format(value, form)


def table(lines: Mapping[str, Mapping[str, Any]]) -> str:
    """Metrics by the name of their line, in the paper's columns."""
    width = max(29, *(len(name) + 2 for name in lines))
    cells = {"": COLUMNS} | {name: [cell_of(line[column], ".3f") for column in COLUMNS] for name, line in lines.items()}
    return "\n".join(f"{name:<{width}}" + "".join(f"{cell:>9}" for cell in each) for name, each in cells.items())


def named_by(name: str, protocol: str) -> str:
    """A row's name, with its protocol in brackets where a data set has several: "KITTI, BTS"."""
    return f"{name} ({protocol})" if "," in protocol else name


class Published(NamedTuple):
    """One published row."""

    table: str  # that it stands in
    name: str  # as the table calls it
    metrics: Mapping[str, float | None]  # by column, None where none is published
    reading: Reading | None  # what makes the row here; None for other methods and random depth
    scene: str | None  # the images of one scene only
    note: str  # supervision, or where the row comes from
    protocol: str  # the name of its `Protocol`, or that it is not said


PROMPTS_BY_NAME = {
    "prompt 1": "extremely close, close, middle, a little far, far, quite far, unseen",
    "prompt 2": "extremely close, very close, close, a little close, a little far, far, unseen",
    "prompt 3": "giant, close, a little close, not in distance, a bit remote, far, unseen",
}
BINS_BY_NAME = {
    "class-dependent 1": (1.00, 2.00, 2.25, 2.50, 2.75, 3.00, 4.00),
    "class-dependent 2": (1.00, 1.50, 2.00, 2.50, 3.00, 3.50, 4.00),
    "class-dependent 3": (1.00, 1.25, 1.50, 1.75, 2.00, 2.25, 2.50),
    "class-dependent 4": (2.00, 2.50, 3.00, 3.25, 3.50, 3.75, 4.00),
}
PROMPT_SETS = {"original": PAPER}
PROMPT_SETS |= {k: replace(PAPER, depth_classes=tuple(words.split(", "))) for k, words in PROMPTS_BY_NAME.items()}
BIN_SETS = {"original": PAPER} | {name: replace(PAPER, bin_list=bins) for name, bins in BINS_BY_NAME.items()}
OUTDOORS = {"Auty's words and bins": AUTY, "the paper's words, bins in log depth (ours)": LOG_BINS}

# The paper's drawing "semantic bin response": prompt 3 with class-dependent bins 1.
BIN_RESPONSE = replace(PROMPT_SETS["prompt 3"], bin_list=BIN_SETS["class-dependent 1"].bin_list)
BIN_RESPONSE_DEPTHS = ((3.117, 3.567), (1.502, 1.328))  # [m] predicted and true, of its two patches


@cache
def published_rows(over: str = "") -> list[Published]:
    """The rows of published.csv, of the paper first, or those `over` the data set of a protocol, by any protocol."""
    readings, rows = PROMPT_SETS | BIN_SETS | {"auty": AUTY}, []
    for row in csv.DictReader(Path(__file__).with_suffix(".csv").read_text("utf-8").splitlines()):
        if over.partition(",")[0] in ("", row["protocol"].partition(",")[0]):
            metrics = {column: float(row[column]) if row[column] else None for column in COLUMNS}
            reading, scene = readings.get(row["reading"]), row["scene"] or None
            rows.append(Published(row["table"], row["name"], metrics, reading, scene, row["note"], row["protocol"]))
    return rows


def beside(protocol: str) -> dict[str, Mapping[str, float | None]]:
    """What stands beside a run over a whole split: of NYU the paper's row, else all rows, name -> metric -> value."""
    rows = {named_by(row.name, row.protocol): row.metrics for row in published_rows(protocol)}
    return {PAPER_ROW: rows["DepthCLIP"]} if protocol == "NYU" else rows
