"""From encoded batches to records: every row of the suite predicted and scored, one record for each image.

A record is a dictionary that JSON can hold: `image`, `scene`, `index`, the packed `histogram` of the counted ground
truth, and `rows`: name -> [valid pixels, dropped pixels, *FIGURES], None where a figure is undefined. Images that a
figure will show also have `depth`, the (h, w) map of this run, and `weights`, the (K, h, w) bin weights of the image
without its mirror in the paper's bin-response figure. Images that the page will show also have `logits`, those of this
run's reading, (2, K, h, w) of the image and of its mirror.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator

import torch
from torch import Tensor

import paper
from calculate_error import NonFinitePredictionError
from datasets.nyu import DataError
from evaluation.batch_error import CROP_SIZE, Counted, MapErrors, MapScorer
from evaluation.constant_error import depth_histogram
from evaluation.controls import Predictor
from evaluation.encode import Encoded
from evaluation.journal import Record
from evaluation.results import pack_histogram

SHOWN_DIGITS = 5  # of the maps and weights that figures show


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
    try:
        for batch in batches:
            if scorer is None:
                height, width = batch.features.shape[2:]
                scorer = MapScorer((height, width), batch.features.device, nonfinite)
            yield score(batch, predictor, scorer, empty, shown, paged)
    except DataError as error:
        raise EvaluationError(str(error)) from error


@torch.inference_mode()
def score(
    batch: Encoded,
    predictor: Predictor,
    scorer: MapScorer,
    empty: str,
    shown: Collection[str] = (),
    paged: Collection[str] = (),
) -> list[Record]:
    """Predicts and scores every row of one batch; arguments and errors as in `score_all`."""
    names = predictor.suite.predicted
    depth = predictor(batch.features, batch.name)  # (B, R, h, w)
    records = []
    for i, image in enumerate(batch.name):
        counted = scorer.counted(batch.depth[i])
        maps = predictor.maps(image, CROP_SIZE, depth.device)  # (R', 416, 544)
        rows = score_rows(scorer.grids, image, names[: depth.shape[1]], counted, depth[i])
        if len(maps):
            rows += score_rows(scorer.maps, image, names[depth.shape[1] :], counted, maps)
        if empty == "error":
            check_not_empty(image, rows, names, counted)
        record = {"image": image, "scene": batch.scene[i], "index": batch.index[i]}
        record |= {
            "histogram": pack_histogram(depth_histogram(batch.depth[i])),
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


def score_rows(
    scorer: Callable[[Counted, Tensor], MapErrors], image: str, names: tuple[str, ...], counted: Counted, depth: Tensor
) -> list[list[float | None]]:
    """A row [valid pixels, dropped pixels, *FIGURES] for each map of one image.

    Raises:
        EvaluationError: a prediction is not finite; names the image and the row.
    """
    try:
        errors = scorer(counted, depth)
    except NonFinitePredictionError as error:
        rows = ", ".join(f"{names[i]}: {count:,} pixels" for i, count in error.counts.items())
        raise EvaluationError(
            f"NaN or infinite depth predicted for {image} ({rows}); use --precision fp32, or count it as the worst "
            "with --nonfinite worst"
        ) from error
    return [
        [valid, dropped, *(None if math.isnan(figure) else figure for figure in figures)]
        for valid, dropped, figures in zip(
            errors.valid_pixels.tolist(), errors.dropped_pixels.tolist(), errors.figures.tolist(), strict=True
        )
    ]


def check_not_empty(image: str, rows: list[list[float | None]], names: tuple[str, ...], counted: Counted) -> None:
    """Raises EvaluationError if a row has no valid pixel."""
    for name, row in zip(names, rows, strict=True):
        if not row[0]:
            of = f" of {name}" if len(counted) else ""
            raise EvaluationError(f"{image}: no valid pixel{of}, so no figures; remove it or pass --empty skip")


def rounded(values: Tensor) -> list:  # type: ignore[type-arg]
    """A tensor as nested lists that print shortly."""
    return (values.double() * 10**SHOWN_DIGITS).round().div(10**SHOWN_DIGITS).tolist()
