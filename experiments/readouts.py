"""Which patch features, which CLIP: the same words by every read-out of every backbone, in one table.

Each backbone encodes the images with both image statistics, once for its trunk and once in windows; what the store has
is not encoded again, and all read-outs are read from there, at two temperatures: the release's .1 was tuned for `raw`.
Rows are beside uniform weights over the same bins, image by image, and beside all assignments of the bins to the words.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import torch

from clip.checkpoint import CHECKPOINTS
from clip.dense import encoding_of, readouts_of
from clip.model import CLIP
from datasets.pairs import DepthPairs
from experiments.features import FeatureStore
from experiments.published import UNIFORM
from experiments.score import Readouts, Rows, Setting, mean_permuted, score_images
from experiments.statistics import HIGHER, PRIMARY, Case, Contrast, Results, p_value
from monoclip import PAPER, MonoCLIP, Reading, zeroshot_classifier

TEMPERATURES = (PAPER.temperature, 10 * PAPER.temperature)  # the second is CLIP's own softmax, 100 times the cosine

Errors = dict[str, np.ndarray]  # metric -> (R,), of an image
Compared = tuple[dict[Case, list[Contrast]], Results]


def cases_of(
    backbone: str, clip_model: CLIP, statistics: str, reading: Reading, rn50: bool = False
) -> dict[Case, Reading]:
    """Every read-out that a backbone has, at every temperature, as readings with the words and bins of `reading`.

    The release's is one of them if the weights are those of OpenAI's RN50.
    """
    found = {}
    for readout in readouts_of(clip_model.visual):
        for temperature in TEMPERATURES:
            own = replace(reading, readout=readout, temperature=temperature)
            found[Case(backbone, statistics, readout, temperature, rn50 and own == PAPER)] = own
    return found


def compare(
    backbones: Iterable[tuple[str, CLIP, Mapping[str, Any]]],
    readings: Mapping[str, Reading],
    dataset: DepthPairs,
    clusters: Sequence[str],
    root: Path,
    fill: Callable[[FeatureStore], None],
    bins: Sequence[Sequence[float]],
    say: Callable[[str], None],
    scores: bool = True,
) -> Compared | None:
    """Encodes what is not in the store and scores every case of every backbone, one backbone after the other.

    Args:
        backbones: name, model on its device, and what its features depend on besides the statistics and the image.
        readings: words and bins with each of the image statistics, by their name.
        dataset: the images; how they are normalised follows from `readings`.
        clusters: of each image, which belong together.
        root: the folder of all stores.
        fill: puts into a store what this process has to, and returns when all of it is there.
        bins: (n, K) [m], assignments of the bins to the words, the readings' own first.
        say: is told what comes next.
        scores: whether this process scores; if not, the result is None.

    Raises UnscorableError and DataError as `score_images`, OSError as `FeatureStore.fill`.
    """
    uniform = float(np.mean(bins[0]))
    cases: list[Case] = []
    passes: list[list[Errors]] = []
    permuted: list[np.ndarray | None] = []
    for name, clip_model, depends_on in backbones:
        rn50 = name == "RN50" or CHECKPOINTS["RN50"].matches(depends_on["checkpoint_sha256"])
        for statistics, reading in readings.items():
            readings_of = cases_of(name, clip_model, statistics, reading, rn50)
            for encoding, of_encoding in groupby(readings_of, lambda case: encoding_of(case.readout)):
                found = list(of_encoding)
                say(f"{name}, image statistics of {statistics}, {encoding}:")
                model = MonoCLIP(clip_model, readings_of[found[0]])
                store = FeatureStore(root, model, dataset.normalised_by(reading.normalised), depends_on)
                fill(store)
                if scores:
                    settings = tuple(Setting(case.name, readings_of[case]) for case in found)
                    reader = Readouts(model, partial(zeroshot_classifier, clip_model), settings, asked=len(settings))
                    errors, means = scored(store, reader, Rows(settings, constants={UNIFORM: uniform}), bins)
                    cases += found
                    passes.append(errors)
                    permuted += means
    if not scores:
        return None
    results = joined(passes, dataset, clusters, [case.name for case in cases])
    return {case: contrasts(results, case.name, means) for case, means in zip(cases, permuted, strict=True)}, results


def scored(
    store: FeatureStore, reader: Readouts, rows: Rows, bins: Sequence[Sequence[float]]
) -> tuple[list[Errors], list[np.ndarray | None]]:
    """Errors of each image, and `mean_permuted` of each setting: what is kept of a pass; the rest takes half a GB."""
    data = store.dataset
    images = score_images(data.depth, store.get, data.names, rows, reader, torch.tensor(bins), data.protocol)
    return [image.errors for image in images], [mean_permuted(images, place) for place in range(len(rows.settings))]


def joined(
    passes: Sequence[Sequence[Errors]], dataset: DepthPairs, clusters: Sequence[str], names: Sequence[str]
) -> Results:
    """The rows of all passes as one; each ends with the row of uniform weights, which then stands once, last."""
    errors = []
    for image in zip(*passes, strict=True):  # the errors of one image in each pass
        rows_of = {metric: [*(part[metric][:-1] for part in image), image[-1][metric][-1:]] for metric in image[-1]}
        errors.append({metric: np.concatenate(values) for metric, values in rows_of.items()})
    rows, baselines = [*names, UNIFORM], dict.fromkeys(names, UNIFORM)
    return Results(dataset.names, dataset.scenes, clusters, dataset.indices, rows, errors, baselines)


def contrasts(results: Results, row: str, permuted: np.ndarray | None) -> list[Contrast]:
    """A row less uniform weights, in each of `PRIMARY`, with its p if there are other assignments."""
    found = []
    for place, metric in enumerate(PRIMARY):
        p = None if permuted is None else p_value(permuted[0, place], permuted[1:, place], metric in HIGHER)
        found.append(results.contrast(row, UNIFORM, metric, p))
    return found
