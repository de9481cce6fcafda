"""Computes a results.json of the experiments again out of the CSVs beside it, and sets it beside the paper.

    python -m experiments.verify results_paper/results.json
    python -m experiments.verify results_paper/results.json --data_path nyu_depth_v2_labeled.mat    its hash, too

Says whether weights and data are those of the paper, whether every mean, difference, interval and p-value follows from
the metrics of each image and of each assignment, and for each published row whether ours is within .005 of it in all
metrics, and in how many of them the published one lies in our interval. What the CSVs do not tell is listed.

Exit code 0: all follows, and no published row that was measured is off, over other images than the paper's because none
compares; 1: a number does not follow, a published reading is off by more than .005, or the .mat is another; 2: wrong
arguments or files that cannot be used. Other weights than the paper's are said, and compared all the same.
"""

import argparse
import csv
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import options
from calculate_error import KITTI_ADABINS, KITTI_BTS, NYU
from clip.checkpoint import CHECKPOINTS, OPENAI
from datasets import DataError, printable, text_of
from datasets.kitti import split_frames
from datasets.nyu import TEST_INDICES
from datasets.nyu_mat import MAT_NAME
from datasets.prepare_nyu import MAT_SHA256
from datasets.rgbd import own_protocol
from download import file_sha256
from experiments import tables
from experiments.published import BEST, COLUMNS, Published, named_by, published_over
from experiments.score import RANDOM_KINDS, RandomDepth
from experiments.settings import assignments
from experiments.statistics import COUNTS, DIGITS, PRIMARY, Results
from monoclip import Reading

OWN = own_protocol()  # stands for any of one's own pairs
OF_IMAGE = ("scene", "cluster", "index")  # columns that all rows of an image share
CLOSE = 0.005  # a metric is reproduced if it differs from the published one by at most this
TOLERANCE = 2e-6  # of intervals, which are rounded; means agree far better
SHOWN = 20  # values that do not follow


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    description = "Computes a results.json again out of per_image.csv, and compares it with the paper."
    parser = options.new_parser(description, "python -m experiments.verify")
    parser.add_argument("results", type=Path, help="results.json that python -m experiments has written")
    known = "also compare the SHA-256 of this .mat with the published one's"
    parser.add_argument("--data_path", type=Path, metavar="MAT", help=known)
    return parser


def load(path: Path) -> dict[str, Any]:
    """A results.json of the experiments. Raises DataError: it is none, or one of another form."""
    text = text_of(path)
    try:
        stored = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: no JSON ({error}); run python -m experiments again") from error
    if not isinstance(stored, dict) or stored.get("schema") != options.SCHEMA:
        raise DataError(f"{path}: no results.json of schema {options.SCHEMA}; run python -m experiments again")
    if "question" not in stored:
        raise DataError(f"{path}: of eval.py or of --readouts; give the results.json of python -m experiments")
    return stored


def rows_of(path: Path) -> list[dict[str, str]]:
    """The lines of a CSV by its header. Raises DataError: it cannot be read."""
    if not path.exists():
        raise DataError(f"{path}: no such file; keep it beside results.json")
    try:
        return list(csv.DictReader(text_of(path).splitlines()))
    except csv.Error as error:
        raise DataError(f"{path}: no CSV ({error}); run python -m experiments again") from error


def plain(cell: str) -> str:
    """What `options.csv_text` was given."""
    return cell.removeprefix("'")


def permuted_of(path: Path, orders: Sequence[Sequence[float]]) -> np.ndarray:
    """The metrics of all assignments of a run's bins [m] to its words, (n, 2).

    Raises DataError: the file is missing, or holds others.
    """
    lines = rows_of(path)
    values = np.array([[float(line[metric]) for metric in PRIMARY] for line in lines])
    if [line["bins"] for line in lines] != list(map(tables.bins_text, orders)) or not np.isfinite(values).all():
        raise DataError(f"{path}: not the assignments of this run's bins; run python -m experiments again")
    return values


def scored_again(stored: dict[str, Any], folder: Path) -> tables.Scored:
    """What the tables were made of, out of the CSVs in `folder`, with the names of rows as in results.json.

    Raises DataError: a file is missing, damaged, or not of the same run.
    """
    path = folder / tables.ROWS_FILE
    lines, rows = rows_of(path), stored["rows"]
    images = [lines[start : start + len(rows)] for start in range(0, len(lines), len(rows))]
    names = [options.csv_text(printable(row)) for row in rows]
    if not images or any([line["reading"] for line in image] != names for image in images):
        raise DataError(f"{path}: its rows are not those of results.json; run python -m experiments again")
    if any(line[key] != image[0][key] for image in images for line in image for key in ("image", *OF_IMAGE)):
        raise DataError(f"{path}: the lines of an image name different ones; run python -m experiments again")
    columns = (*next(iter(rows.values()))["metrics"], *COUNTS)
    first = [image[0] for image in images]
    results = Results(
        [line["image"] for line in first],
        [plain(line["scene"]) for line in first],
        [plain(line["cluster"]) for line in first],
        [int(line["index"]) for line in first],
        list(rows),
        [{column: np.array([float(line[column]) for line in image]) for column in columns} for image in images],
        {row: values["baseline"] for row, values in rows.items()},
    )
    results.gains = stored["gains_of_choosing"]
    if not all(np.isfinite(values).all() for values in results.metrics.values()):
        raise DataError(f"{path}: holds metrics that are no numbers; run python -m experiments again")
    orders, complete = assignments(tuple(map(float, stored["made_with"]["reading"]["bin_list"])))
    permuted = permuted_of(folder / tables.PERMUTED_FILE, orders) if stored["groups"] and len(orders) > 1 else None
    names_of: dict[Reading, str] = {}
    for row, values in stored["readings"].items():
        names_of.setdefault(Reading(**values), row)
    protocol = next((known for known in (NYU, KITTI_BTS, KITTI_ADABINS) if known.name == stored["protocol_name"]), OWN)
    about = stored["protocol"] if protocol is OWN else protocol.about
    if {line["protocol"] for line in lines} != {protocol.name} or about != stored["protocol"]:
        raise DataError(f"{path}: its protocol is not that of results.json; run python -m experiments again")
    whole = sorted(results.indices) == sorted(TEST_INDICES)
    if protocol is not NYU:
        found = zip(results.scenes.tolist(), results.indices, strict=True)
        whole = sorted(found) == sorted(frame[:2] for frame in split_frames())
    official = whole and protocol.whole_split not in stored["warnings"]
    return tables.Scored(
        results,
        groups={group: values["rows"] for group, values in stored["groups"].items()},
        published_by={r: names_of[r.reading] for r in published_over(protocol.data_set) if r.reading in names_of},
        lower_bounds=[name for kind in RANDOM_KINDS if (name := RandomDepth(kind, 0).name) in rows],
        official=official,
        title=stored["data"],
        caption="",
        clustered_by=stored["clustered_by"],
        permuted=permuted,
        complete=complete,
        own=stored["own_readings"],
        protocol=protocol,
    )


def compared(stored: Any, again: Any, where: str = "") -> Iterator[str | None]:
    """For each value that was computed again: None, or where it differs from the stored one and how."""
    if isinstance(again, list):
        again, stored = dict(enumerate(again)), dict(enumerate(stored)) if isinstance(stored, list) else stored
    if isinstance(again, dict):
        if not isinstance(stored, dict) or stored.keys() != again.keys():
            yield f"{where}: not of the same form"
            return
        for key, value in again.items():
            yield from compared(stored[key], value, f"{where}, {key}" if where else str(key))
    elif isinstance(again, float) and isinstance(stored, float | int):
        yield None if abs(stored - again) <= TOLERANCE else f"{where}: {stored}, but {again} follows"
    else:
        yield None if stored == again else f"{where}: {stored!r}, but {again!r} follows"


def origin_lines(stored: dict[str, Any], scored: tables.Scored) -> list[str]:
    """Which weights, data and code a results.json says that it was made with, compared with what is known."""
    made = stored["made_with"]
    known = [name for name, checkpoint in CHECKPOINTS.items() if checkpoint.matches(made["checkpoint_sha256"])]
    toy = options.toy_note(made["checkpoint_sha256"])
    other = toy or f"not known here, SHA-256 {made['checkpoint_sha256']}"
    whose = "OpenAI's" if known and CHECKPOINTS[known[0]].addresses == OPENAI else "open_clip's"
    weights = f"{whose} {known[0]}, by SHA-256" if known else other
    whole = "the official test split, whole" if scored.official else "no official test split, or not all of it"
    lines = [f"weights: {made['checkpoint']}: {weights}", f"data: {stored['data']}: {whole}, by index"]
    return [*lines, f"code: commit {stored['commit']}; here {options.code_commit()}"]


def published_lines(scored: tables.Scored) -> Iterator[tuple[bool | None, str]]:
    """For each published row, whether it is reproduced, None if it cannot be, and a line of text."""
    for row in scored.published:
        name = f"{row.table}{f', {row.scene}' if row.scene else ''}, {row.name}"
        theirs = row.by_column()
        paper = f"{named_by('published', row.protocol)} {' '.join(tables.cells_of(theirs, COLUMNS))}"
        paper += f" ({row.note})" if row.note else ""
        ours = [name for name in scored.beside(row) if scored.results.over(row.scene).any()]
        comparable = scored.official and row.protocol == scored.protocol.label
        if not ours or not comparable:
            other = "by another protocol" if scored.official else "over other images"
            yield None, f"-        {name}: {f'not compared, {other}' if ours else 'not measured'}; {paper}"
        for one in ours if comparable else ():
            yield compared_row(scored, row, name, one, paper)


def compared_row(scored: tables.Scored, row: Published, name: str, ours: str, paper: str) -> tuple[bool | None, str]:
    """A published row beside ours: whether it is reproduced, None where the paper does not say how, and its line."""
    mean, theirs = scored.results.mean(ours, row.scene), row.by_column()
    intervals, _ = scored.results.intervals([ours], row.scene)[ours]
    known = [column for column in COLUMNS if theirs[column] is not None]
    off = {column: round(mean[column] - theirs[column], DIGITS) for column in known}  # type: ignore[operator]
    worst = max(off, key=lambda column: abs(off[column]))
    within = abs(off[worst]) <= CLOSE
    held = [c for c in known if (pair := intervals[c]) and pair[0] <= theirs[c] <= pair[1]]  # type: ignore[operator]
    inside = f"in {len(held)} of {len(known)} intervals" if intervals[known[0]] else "no interval"
    text = (
        f"ours {' '.join(tables.cells_of(mean, COLUMNS))}; {paper}; at most {off[worst]:+.3f} off ({worst}); {inside}"
    )
    reproducible = row.reading and scored.protocol is NYU  # elsewhere not all that makes a row is published
    which = name if reproducible else f"{name} ({ours}; nothing to reproduce exactly)"
    return within if reproducible else None, f"{'within ' if within else 'OUTSIDE'}  {which}: {text}"


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; every error for the user is one sentence on stderr."""
    args = build_parser().parse_args(argv)

    def work() -> None:
        path = args.results / tables.RESULTS_FILE if args.results.is_dir() else args.results
        stored = load(path)
        if args.data_path and not args.data_path.is_file():
            raise DataError(f"{args.data_path}: no such file; name {MAT_NAME}")
        try:
            scored = scored_again(stored, path.parent)
            again = json.loads(json.dumps(tables.as_json(scored)))
            checks = list(compared({key: stored[key] for key in again}, again))
            origin = origin_lines(stored, scored)
        except DataError:
            raise
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            problem = f"damaged, or not of the CSVs beside it ({error!r})"
            raise DataError(f"{path}: {problem}; run python -m experiments again") from error
        wrong = [check for check in checks if check]
        lines = list(published_lines(scored))
        outside, within = (sum(reproduced is truth for reproduced, _ in lines) for truth in (False, True))
        problems = [f"{len(wrong):,} values do not follow from the CSVs"] if wrong else []
        problems += [f"{outside} published rows are outside {CLOSE}"] if outside else []
        if args.data_path and file_sha256(args.data_path) != MAT_SHA256:
            problems.append(f"{args.data_path} is not {MAT_NAME} as published, by SHA-256")
        text = f"computed again from the CSVs: {len(checks) - len(wrong):,} of {len(checks):,} values agree"
        limits = "not told by them: metrics of images and assignments, the certainty curve, "
        limits += f"what {BEST!r} gains, readings, notes, tables.*"
        for line in (*origin, text, limits, *(f"  {check}" for check in wrong[:SHOWN]), *(line for _, line in lines)):
            options.say(line)
        if problems:
            raise options.WorkError(f"{path}: {'; '.join(problems)}")
        print(f"OK: {within} published rows are within {CLOSE}" if within else "OK, but no published row is judged")

    return options.run_command("experiments.verify", work)


if __name__ == "__main__":
    sys.exit(main())
