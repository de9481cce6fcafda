"""From encoded batches to records: every row of the suite predicted and scored, one record for each image.

A record is a dictionary that JSON can hold: `image`, `scene`, `index`, the packed `histogram` of the counted ground
truth, and `rows`: name -> [valid pixels, dropped pixels, *FIGURES], None where a figure is undefined. Images that a
figure will show also have `depth`, the (h, w) map of this run, and `weights`, the (K, h, w) bin weights of the image
without its mirror in the paper's bin-response figure. Images that the page will show also have `logits`, those of this
run's reading, (2, K, h, w) of the image and of its mirror.
"""

import math
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

import paper
from calculate_error import NonFinitePredictionError
from datasets.nyu import DataError
from evaluation.batch_error import CROP_SIZE, MapScorer, PendingErrors
from evaluation.controls import Predictor
from evaluation.encode import CachedBatches, Encoded, fetched, to_device
from evaluation.journal import Record
from evaluation.results import pack_histogram

SHOWN_DIGITS = 5  # of the maps and weights that figures show
BATCHES_AHEAD = {"cuda": 1}  # that the device is given before the figures of one are waited for


class EvaluationError(Exception):
    """The evaluation cannot go on; the message is one sentence for the user."""


def score_all(
    batches: Iterable[Encoded],
    predictor: Predictor,
    nonfinite: str,
    empty: str,
    shown: Collection[str] = (),
    paged: Collection[str] = (),
) -> Iterator[list[Record]]:
    """The records of each batch.

    Args:
        batches: from `encode` or a feature cache.
        predictor: of the suite's rows.
        nonfinite: as in `errors_NYU`.
        empty: "error" raises for an image without a valid pixel, "skip" gives it rows without figures.
        shown: names of the images that figures will show.
        paged: names of the images that the page will show.

    Raises:
        EvaluationError: a file is damaged, a prediction is not finite, or an image has no valid pixel.
    """
    scorer: MapScorer | None = None
    waiting: deque[Scored] = deque()
    failure: DataError | None = None
    remaining = iter(batches)
    while True:
        try:
            batch = next(remaining, None)
        except DataError as error:
            failure, batch = error, None
        if batch is None:
            break
        if scorer is None:
            grid = batch.features.shape[2], batch.features.shape[3]
            scorer = MapScorer(grid, batch.features.device, nonfinite, torch.get_num_threads())
        waiting.append(score(batch, predictor, scorer))
        if len(waiting) > BATCHES_AHEAD.get(scorer.device.type, 0):
            yield records_of(waiting.popleft(), predictor, empty, shown, paged)
    for scored in waiting:
        yield records_of(scored, predictor, empty, shown, paged)
    if failure:
        raise EvaluationError(str(failure)) from failure


class CachedRecords(Dataset[list[Record] | EvaluationError]):
    """The records of each batch of a feature cache. Errors come out as items, as from `encode.Part`."""

    def __init__(self, batches: CachedBatches, *options: Any) -> None:
        self.batches, self.options = batches, options

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, item: int) -> list[Record] | EvaluationError:
        try:
            return next(score_all((self.batches[i] for i in (item,)), *self.options))
        except EvaluationError as error:
            return error


def score_cached(batches: CachedBatches, workers: int, *options: Any) -> Iterator[list[Record]]:
    """As `score_all` with the same `options`, by `workers` processes: features in a cache need no common encoder."""
    loader = DataLoader(CachedRecords(batches, *options), batch_size=None, num_workers=workers, collate_fn=unchanged)
    try:
        for records in fetched(loader):
            if isinstance(records, EvaluationError):
                raise records
            yield records
    except DataError as error:
        raise EvaluationError(str(error)) from error


def unchanged(records: list[Record] | EvaluationError) -> list[Record] | EvaluationError:
    """What a DataLoader collates nothing from."""
    return records


@contextmanager
def one_thread() -> Iterator[None]:
    """torch computes in one thread.

    Scoring is thousands of steps of some microseconds. Two threads would wait for each other after every one, which
    takes many times longer as soon as other work wants the cores; and figures do not depend on how many there are.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class Scored(NamedTuple):
    """A batch whose figures are on their way: depth (B, R, h, w) [m]; each image's, in one or two parts."""

    batch: Encoded
    depth: Tensor
    pending: list[list[PendingErrors]]


@torch.inference_mode()
def score(batch: Encoded, predictor: Predictor, scorer: MapScorer) -> Scored:
    """Predicts and scores every row of one batch, without waiting for the device."""
    depth = predictor(batch.features, batch.name).to(scorer.device)  # (B, R, h, w)
    pending: list[list[PendingErrors]] = []
    with one_thread():
        for name, gt, grids in zip(batch.name, batch.depth, depth, strict=True):
            counted = scorer.counted(gt)
            pending.append([scorer.grids(counted, grids)])
            if len(maps := predictor.maps(name, CROP_SIZE)):  # (R', 416, 544)
                pending[-1].append(scorer.maps(counted, to_device(maps, scorer.device)))
    return Scored(batch, depth, pending)


@torch.inference_mode()
def records_of(
    scored: Scored, predictor: Predictor, empty: str, shown: Collection[str], paged: Collection[str]
) -> list[Record]:
    """The records of a batch; arguments and errors as in `score_all`."""
    batch, depth, names = scored.batch, scored.depth, predictor.suite.predicted
    records = []
    for i, image in enumerate(batch.name):
        with one_thread():
            rows = score_rows(scored.pending[i], image, names)
        if empty == "error":
            check_not_empty(image, rows, names)
        record = {"image": image, "scene": batch.scene[i], "index": batch.index[i]}
        record |= {
            "histogram": pack_histogram(scored.pending[i][0].counted.histogram),
            "rows": dict(zip(names, rows, strict=True)),
        }
        if image in shown:
            weights = predictor.weights(batch.features[i : i + 1], paper.BIN_RESPONSE)[0]  # (K, h, w)
            record |= {"depth": rounded(depth[i, 0]), "weights": rounded(weights)}
        if image in paged:
            views = batch.features[i :: len(batch.name)]  # the image and its mirror
            record["logits"] = rounded(predictor.logits_of(views, predictor.suite.settings[0].reading))
        records.append(record)
    return records


def score_rows(pending: Sequence[PendingErrors], image: str, names: Sequence[str]) -> list[list[float | None]]:
    """A row [valid pixels, dropped pixels, *FIGURES] for each map of one image.

    Raises:
        EvaluationError: a prediction is not finite; names the image and the row.
    """
    rows: list[list[float | None]] = []
    for part in pending:
        try:
            errors = part.result()
        except NonFinitePredictionError as error:
            bad = ", ".join(f"{names[len(rows) + i]}: {count:,} pixels" for i, count in error.counts.items())
            raise EvaluationError(
                f"NaN or infinite depth predicted for {image} ({bad}); use --precision fp32, or count it as the worst "
                "with --nonfinite worst"
            ) from error
        rows += [
            [valid, dropped, *(None if math.isnan(figure) else figure for figure in figures)]
            for valid, dropped, figures in zip(
                errors.valid_pixels.tolist(), errors.dropped_pixels.tolist(), errors.figures.tolist(), strict=True
            )
        ]
    return rows


def check_not_empty(image: str, rows: Sequence[list[float | None]], names: Sequence[str]) -> None:
    """Raises EvaluationError if a row has no valid pixel."""
    for name, row in zip(names, rows, strict=True):
        if not row[0]:
            of = f" of {name}" if row[1] else ""  # dropped pixels: the ground truth has some
            raise EvaluationError(f"{image}: no valid pixel{of}, so no figures; remove it or pass --empty skip")


def rounded(values: Tensor) -> list:  # type: ignore[type-arg]
    """A tensor as nested lists that print shortly."""
    return (values.cpu().double() * 10**SHOWN_DIGITS).round().div(10**SHOWN_DIGITS).tolist()
