"""What a run leaves behind: the released line, a table beside the paper's, a CSV row for each image, results.json.

Every figure is a view on the per-image rows: dictionaries with `ROW_FIELDS`, one for each image, in the data's order.
A row without a valid pixel has None for its figures.
"""

import csv
import json
import os
import platform
import subprocess
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

import paper
from calculate_error import NYU_FIGURES

ROW_FIELDS = ("image", "scene", "index", "valid_pixels", "dropped_pixels", *NYU_FIGURES)
ROWS_FILE, RESULTS_FILE = "per_image.csv", "results.json"

Row = dict[str, Any]


class RowWriter:
    """Writes rows to `<folder>/per_image.csv` as they come, so that a run that stops keeps what it has.

    A `results.json` of an earlier run is removed first: it would not belong to these rows.
    """

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / RESULTS_FILE).unlink(missing_ok=True)
        self.path = folder / ROWS_FILE
        self.file = self.path.open("w", newline="", encoding="utf-8")
        self.writer = csv.DictWriter(self.file, ROW_FIELDS, lineterminator="\n")
        self.writer.writeheader()

    def write(self, rows: Sequence[Row]) -> None:
        """Appends rows and hands them to the operating system."""
        self.writer.writerows(rows)
        self.file.flush()

    def __enter__(self) -> "RowWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.file.close()


def mean_figures(rows: Sequence[Row]) -> dict[str, float]:
    """Mean of each figure over the rows that have figures, every image with the same weight."""
    counted = [row for row in rows if row["valid_pixels"]]
    return {name: sum(row[name] for row in counted) / len(counted) for name in NYU_FIGURES}


def released_line(figures: Mapping[str, float]) -> str:
    """The line that the release prints: ` * Avg abs_diff : 0.000, a1 : 0.000, ...`."""
    return " * Avg " + ", ".join(f"{name} : {figures[name]:.3f}" for name in NYU_FIGURES)


def table(rows: Mapping[str, Mapping[str, float]]) -> str:
    """The paper's columns, a line for each named row of figures."""
    width = max(map(len, rows))
    lines = [" " * width + "".join(f"{title:>9}" for title in paper.COLUMN_TITLES)]
    lines += [f"{name:<{width}}" + "".join(f"{row[c]:9.3f}" for c in paper.COLUMNS) for name, row in rows.items()]
    return "\n".join(lines)


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
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            json.dump(value, file, indent=1, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
