"""The whole paper and its controls, in three steps, each of which only looks at what the one before left.

    python -m experiments --data_path NYU --clip_path RN50.pt --controls --figures --html --output results_paper
    python -m experiments ... --no_paper --depth_classes close far --bin_list 1 3            other words: seconds
    python -m experiments --readouts --clip_path RN50 ViT-B/16 --output results_readouts     which features, which CLIP
    torchrun --nproc_per_node 8 -m experiments ...                                           images shared by 8 GPUs

    encode   images -> feature store (features.py); what is there already is not computed again
    score    features x settings -> metrics of each image and row (score.py, settings.py, readouts.py)
    report   metrics -> means and intervals (statistics.py), tables (tables.py), drawings (plots.py), the page
    verify   python -m experiments.verify results.json: all of it again out of the metrics (verify.py)

A run that was stopped goes on when the same command is given again, with any number of processes. Exit codes are those
of eval.py.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, distributed

import clip
import options
from calculate_error import NYU, counted_pixels
from clip.dense import thins
from clip.inference import keep_freed_memory
from datasets import printable, text_of
from datasets.nyu import training_depths
from datasets.pairs import DepthPairs
from experiments import published, readouts, tables
from experiments.features import FeatureStore
from experiments.score import (
    Readouts,
    Rows,
    mean_permuted,
    score_images,
    sweep_of,
    swept_constants,
    training_split,
)
from experiments.settings import assignments, own_rows, paper_rows, read_alike, with_controls
from experiments.statistics import HIGHER, Results, best_elsewhere, best_places
from monoclip import PAPER, MonoCLIP, Reading, logits_of, zeroshot_classifier
from viewer import page
from viewer.strip import Example, draw_strip, example_images

PAGE_METRICS = (*published.COLUMNS, "spearman")
MARKDOWN_FILE, LATEX_FILE = "tables.md", "tables.tex"
STRIP_FILE, RESPONSE_FILE, CHART_FILE, QUESTION_FILE = "qualitative.png", "bin_response.png", "rows.png", "question.png"
CERTAINTY_FILE = "certainty.png"
DRAWN_FILES = (STRIP_FILE, RESPONSE_FILE, CHART_FILE, QUESTION_FILE, CERTAINTY_FILE, page.PAGE_FILE)
# Of what a run is made with, what features depend on, too.
STORED_WITH = ("checkpoint_sha256", "activation", "precision", "network", "depthclip")
READOUT_FILES = {kind: f"readouts.{kind}" for kind in ("json", "csv", "md", "tex", "png")}
# Flags that --readouts, which has values or outputs of its own, does not take.
NOT_COMPARED = ["readout", "image_statistics", "temperature", "readings", "controls", "no_paper", "figures", "html"]
NOT_COMPARED += ["phrases"]


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = options.new_parser("The whole paper and its controls, each image encoded once.", "python -m experiments")
    options.add_data_arguments(parser)
    options.add_model_arguments(parser, several=True)
    reading = options.add_reading_arguments(parser)
    more = 'more readings: [{"name": "mine", "depth_classes": ["near", "far"], "bin_list": [1, 3]}]; also '
    more += "depth_templates, obj_classes, temperature; what is left out is the paper's"
    reading.add_argument("--readings", type=Path, metavar="FILE.json", help=more)
    reading.add_argument("--controls", action="store_true", help="what tells this run's metrics from chance")
    reading.add_argument("--no_paper", action="store_true", help="without the paper's settings: new words in seconds")
    several = "instead compare all read-outs of every --clip_path, with both image statistics, in one table and figure"
    reading.add_argument("--readouts", action="store_true", help=several)
    run = options.add_batch_arguments(parser)
    run.add_argument(
        "--output", type=options.named_path, default=Path("results_paper"), help="folder for what is reported"
    )
    run.add_argument(
        "--store",
        type=options.named_path,
        help="folder of the features (RN50: 3.6 MB an image; default: OUTPUT/features)",
    )
    run.add_argument("--figures", action="store_true", help="also draw PNGs: five, four outside NYU")
    options.add_html_argument(run, page.PAGE_FILE, page.PAGE_IMAGES)
    run.add_argument("--gpu_num", default="0", help="index of the GPU that 'auto' and 'cuda' mean")
    return parser


def short_name(clip_path: str) -> str:
    """A checkpoint in tables: its name, or that of its file."""
    return clip_path if clip_path in clip.available_models() else Path(clip_path).name


def load_readings(path: Path, default: Reading) -> dict[str, Reading]:
    """Readings by name from JSON: objects with "name" and some of `options.READING_FLAGS`, the others `default`'s.

    Raises UsageError, DataError.
    """
    text = text_of(path)
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise options.UsageError(f"{path}: no JSON ({error}); see --help") from error
    if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
        raise options.UsageError(f'{path}: expected a list of objects like {{"name": "mine", "depth_classes": [...]}}')
    readings: dict[str, Reading] = {}
    for i, entry in enumerate(entries, 1):
        name = entry.pop("name", None)
        if not isinstance(name, str) or not name or not name.isprintable() or name in readings:
            raise options.UsageError(f'{path}, entry {i}: needs a printable "name" of its own, got {name!r}')
        readings[name] = options.checked_reading(entry, default, f"{path}, {name!r}: ")
    return readings


class Scores(NamedTuple):
    """What step 2 finds over all images."""

    results: Results
    best: dict[str, dict[str, float]]  # metric -> best constant [m], over which images
    permuted: np.ndarray | None  # (n, 2), mean primary metrics of assignments of words to bins, the run's own first
    patches: np.ndarray  # (2, N) [m], depth of all patches, as this run predicts it and as it is
    curve: np.ndarray | None  # (S,), mean `sparsification` of this run, if any patch is measured


def score(
    store: FeatureStore,
    rows: Rows,
    reader: Readouts,
    bins: Tensor,
    clusters: Sequence[str],
    training: Tensor | None,
) -> Scores:
    """Step 2: the metrics of every row for each image.

    Args:
        store: has all features.
        rows: what is scored.
        reader: of the settings among the rows.
        bins: (n, K) [m], assignments of this run's bins to its words, its own first.
        clusters: of each image, which belong together.
        training: (10000, T), histograms of the training split's depth, if there is one.

    Raises UnscorableError: a prediction is not finite, or an image has no valid pixel; DataError: damaged depth.
    """
    dataset = store.dataset
    done = score_images(dataset.depth, store.get, dataset.names, rows, reader, bins, dataset.protocol)
    errors = [image.errors for image in done]
    results = Results(dataset.names, dataset.scenes, clusters, dataset.indices, rows.names, errors, rows.baselines)

    swept = swept_constants(torch.from_numpy(np.stack([image.histogram for image in done], axis=1)), dataset.protocol)
    best = {"of these images": results.add_best_constant(published.BEST, swept)}
    if len(set(clusters)) > 1:
        elsewhere = {metric: best_elsewhere(swept[metric], results.clusters, metric in HIGHER) for metric in swept}
        results.add_constant(published.BEST_ELSEWHERE, elsewhere)
    if training is not None:
        places = best["of the training split"] = best_places(swept_constants(training, dataset.protocol))
        results.add_constant(published.BEST_TRAINED, {metric: swept[metric][place] for metric, place in places.items()})
    tried = sweep_of(dataset.protocol)
    depths = {of: {metric: tried[place] for metric, place in places.items()} for of, places in best.items()}
    patches = np.concatenate([image.patches for image in done], axis=1)
    curves = [image.curve for image in done if np.isfinite(image.curve).all()]
    return Scores(results, depths, mean_permuted(done), patches, np.mean(curves, axis=0) if curves else None)


def report(
    scored: tables.Scored,
    found: list[tables.Table],
    orders: Sequence[Sequence[float]],
    output: Path,
    about: dict[str, Any],
) -> None:
    """Step 3: writes the CSV, the tables and, last, results.json with `about`, each whole. Raises OSError."""
    found = [*found, tables.interval_table(scored)] if len(scored.results.all_clusters.counts) else found
    options.write_text(output / tables.ROWS_FILE, tables.as_csv(scored.results, options.csv_text, scored.protocol.name))
    if scored.permuted is not None:
        options.write_text(output / tables.PERMUTED_FILE, tables.permuted_csv(orders, scored.permuted))
    else:  # that of an earlier run would not belong to these rows
        (output / tables.PERMUTED_FILE).unlink(missing_ok=True)
    options.write_text(output / MARKDOWN_FILE, tables.as_markdown(found, scored.title, scored.caption))
    options.write_text(output / LATEX_FILE, tables.as_latex(found, scored.caption))
    options.write_json(output / tables.RESULTS_FILE, tables.as_json(scored) | about)


@torch.inference_mode()
def features_of(store: FeatureStore, item: int) -> Tensor:
    """Features (2, D, h, w) of an image and its mirror."""
    return store.model.patch_features(store.get(item))


@torch.inference_mode()
def draw(output: Path, scored: tables.Scored, store: FeatureStore, text: Tensor, patches: np.ndarray) -> None:
    """Writes the PNGs, the paper's semantic bin response of NYU only.

    `text` are the text features (D, K) of the words of `published.BIN_RESPONSE`; `patches` those of `Scores`.
    """
    from experiments import plots  # imports matplotlib, which takes a second

    examples, dataset = [], store.dataset
    for item in example_images(dataset.scenes):
        features = features_of(store, item)
        truth = dataset.truth(item)
        depth = store.model.answers(features, truth.shape).depth
        examples.append(Example(dataset.names[item], dataset.pixels(item), truth, depth))
        if len(examples) == 1 and dataset.protocol is NYU:  # whose bins the paper's drawing has
            weights = logits_of(features.cpu(), text, published.BIN_RESPONSE).softmax(1)[0].numpy()  # (K, h, w)
            plots.draw_response(output / RESPONSE_FILE, examples[0], weights, scored.caption)
    draw_strip(output / STRIP_FILE, examples, scored.caption, dataset.protocol.drawn)
    compared = scored.published_by.items() if scored.official else ()
    label = dataset.protocol.label
    theirs = {name: row.by_column() for row, name in compared if row.scene is None and row.protocol == label}
    plots.draw_chart(output / CHART_FILE, scored.results, scored.groups, theirs, scored.caption)
    question = (scored.primary, scored.results, scored.permuted, patches, scored.caption)
    plots.draw_question(output / QUESTION_FILE, *question, dataset.protocol.drawn)
    if scored.curve is not None:
        gain = scored.results.contrast(published.THIS_RUN, published.UNIFORM, "aurg")
        plots.draw_certainty(output / CERTAINTY_FILE, scored.curve, gain, scored.caption)


@torch.inference_mode()
def write_page(
    path: Path, count: int, scored: tables.Scored, store: FeatureStore, text: Tensor, phrases: Sequence[str]
) -> None:
    """Writes the page of `count` images, spread evenly over the data set.

    `text` are the text features (D, K + P) of the run's words and of the page's further `phrases`.
    """
    results, dataset, reading, cards = scored.results, store.dataset, store.model.reading, []
    for item in page.spread(len(dataset), count):
        logits = logits_of(features_of(store, item).cpu(), text, reading).numpy()  # (2, K + P, h, w)
        own = results.by_column(results.metrics[published.THIS_RUN][item].tolist())
        metrics = {name: own[name] for name in PAGE_METRICS}
        picture = dataset.pixels(item)
        counted = np.zeros(picture.shape[:2], dtype=bool)
        counted.flat[counted_pixels(dataset.depth(item), dataset.protocol)[0].numpy()] = True
        name, scene, truth = dataset.names[item], dataset.scenes[item], dataset.truth(item)
        cards.append(page.card(name, scene, picture, logits, reading, phrases, truth, metrics, counted))
    rows = {row: results.mean(row) for row in (published.THIS_RUN, published.UNIFORM)}
    rows |= published.beside(dataset.protocol.data_set) if scored.official else {}
    table = {name: {column: row[column] for column in published.COLUMNS} for name, row in rows.items()}
    notes, warning = [page.subset_note(len(cards), len(dataset))], "; ".join(scored.warnings)
    content = page.build(scored.title, cards, reading, phrases, table, notes, warning, dataset.protocol)
    options.write_text(path, content)


class Data(NamedTuple):
    """The images of a run, and which of them belong together."""

    dataset: DepthPairs
    clusters: list[str]
    clustered_by: str


Load = Callable[[str], tuple[clip.CLIP, MonoCLIP, dict[str, Any]]]  # of a checkpoint, with `options.made_with`


def compare_readouts(
    clip_paths: Sequence[str],
    load: Load,
    reading: Reading,
    data: Data,
    root: Path,
    fill: Callable[[FeatureStore], None],
    output: Path,
    say: Callable[[str], None],
    scores: bool,
) -> None:
    """All of `--readouts`: encodes, scores, and reports if `scores`.

    Raises what `load` and `readouts.compare` do.
    """
    from experiments import plots  # imports matplotlib, which takes a second

    made_with: dict[str, Any] = {}
    protocol = data.dataset.protocol
    warnings = [] if data.dataset.official else [protocol.whole_split]
    for clip_path in clip_paths[1:]:  # so that none is found unusable when the others have taken hours
        load(clip_path)

    def backbones() -> Iterator[tuple[str, clip.CLIP, dict[str, Any]]]:
        for name, clip_path in zip(map(short_name, clip_paths), clip_paths, strict=True):
            clip_model, model, made_with[name] = load(clip_path)
            del made_with[name]["reading"]  # each row has its own
            notes = options.caveats(True, made_with[name]["checkpoint_sha256"], model, protocol)
            warnings.extend(f"{name}: {note}" for note in notes)
            yield name, clip_model, {key: made_with[name][key] for key in STORED_WITH}

    start = time.perf_counter()
    readings = {name: options.with_statistics(reading, name) for name in options.IMAGE_STATISTICS}
    orders, complete = assignments(reading.bin_list)
    found = readouts.compare(backbones(), readings, data.dataset, data.clusters, root, fill, orders, say, scores)
    if found is None:
        return
    cases, results = found
    title, caption = f"MonoCLIP on {data.dataset.title}", options.caption(data.dataset.title, warnings)
    about = options.identified(protocol) | {"data": data.dataset.title, "warnings": warnings, "made_with": made_with}
    about["words"] = {name: list(getattr(reading, name)) for name in options.READING_FLAGS if name != "temperature"}
    about["seconds"] = round(time.perf_counter() - start, 3)
    table = tables.readout_table(cases, results, data.clustered_by, len(orders) - 1, complete)
    output.mkdir(parents=True, exist_ok=True)
    options.write_text(output / READOUT_FILES["csv"], tables.as_csv(results, options.csv_text, protocol.name))
    options.write_text(output / READOUT_FILES["md"], tables.as_markdown([table], title, caption))
    options.write_text(output / READOUT_FILES["tex"], tables.as_latex([table], caption))
    plots.draw_readouts(output / READOUT_FILES["png"], cases, caption)
    options.write_json(output / READOUT_FILES["json"], about | tables.readouts_json(cases, results, data.clustered_by))
    print("", printable(caption), tables.as_text(table), printable(caption), sep="\n\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; every error for the user is one sentence on stderr."""
    parser = build_parser()
    args = parser.parse_args(argv)

    def work() -> None:
        options.check_output(args.output)
        if args.readouts and (given := [n for n in NOT_COMPARED if getattr(args, n) != parser.get_default(n)]):
            raise options.UsageError(f"--readouts has one table and one figure of its own; leave out --{given[0]}")
        if not args.readouts and len(args.clip_path) > 1:
            raise options.UsageError("--clip_path: only --readouts takes several checkpoints")
        if len(set(map(short_name, args.clip_path))) < len(args.clip_path):
            raise options.UsageError("--clip_path: two checkpoints have one name; give each its own")
        if len(args.activation) not in (1, len(args.clip_path)):
            raise options.UsageError(
                "--activation: give one for all checkpoints, or one for each (auto where it tells)"
            )
        activations = dict(zip(args.clip_path, args.activation * len(args.clip_path), strict=False))
        reading = options.reading_of(args)
        own = load_readings(args.readings, read_alike(PAPER, reading)) if args.readings else {}
        device, rank, count = options.own_device(args.device, args.gpu_num)
        precision = options.choose_precision(args.precision, device)
        dataset = options.open_data(args, reading)
        phrases = page.phrases_for(reading, args.phrases, args.html, dataset.protocol)
        data = Data(dataset, *dataset.clusters())
        say = options.say if rank == 0 else lambda text: None
        say(f"data: {dataset.title}")
        root = args.store or args.output / "features"
        batch_size = args.batch_size or options.BATCH_SIZE[device.type]
        workers = args.workers or options.WORKERS[device.type]

        def load(clip_path: str) -> tuple[clip.CLIP, MonoCLIP, dict[str, Any]]:
            activation = activations[clip_path]
            clip_model, model = options.load_model(clip_path, device, precision, reading, args.exact, activation)
            made = options.made_with(clip_path, device, precision, args.exact, reading, clip_model.activation)
            return clip_model, model, made

        def fill(store: FeatureStore) -> None:
            store.fill(range(rank, len(dataset), count), batch_size, workers, rank > 0)
            if count > 1:
                distributed.barrier()

        if args.readouts:
            compare_readouts(args.clip_path, load, reading, data, root, fill, args.output, say, rank == 0)
            return
        clip_model, model, made = load(*args.clip_path)
        say(f"model: {args.clip_path[0]} on {device} in {precision}")
        rows = own_rows(reading, own) if args.no_paper else paper_rows(reading, own, dataset.protocol.data_set)
        trained = args.controls and rank == 0 and dataset.protocol is NYU
        training = training_split(training_depths(args.data_path)) if trained else None
        if args.controls:
            rows = with_controls(rows, thins(model.clip_vis, reading.readout), training and training[0])
        orders, complete = assignments(reading.bin_list) if args.controls else ([reading.bin_list], False)
        names = [*rows.names, published.BEST, published.BEST_ELSEWHERE, published.BEST_TRAINED]
        if twice := {name for name in own if names.count(name) > 1}:
            raise options.UsageError(f"{args.readings}: {min(twice)!r} is the name of another row; choose another name")

        start = time.perf_counter()
        store = FeatureStore(root, model, dataset, {key: made[key] for key in STORED_WITH})
        fill(store)
        if rank > 0:
            return
        encoded = time.perf_counter()

        reader = Readouts(model, partial(zeroshot_classifier, clip_model), rows.settings)
        scores = score(store, rows, reader, torch.tensor(orders), data.clusters, training and training[1])
        finished = time.perf_counter()

        caveats = options.caveats(dataset.official, made["checkpoint_sha256"], model, dataset.protocol)
        scored = tables.Scored(
            scores.results,
            groups=rows.groups if args.controls else {},
            published_by={
                r: name
                for r in published.published_over(dataset.protocol.data_set)
                if r.reading and (name := rows.row_of(r.reading))
            },
            lower_bounds=[] if args.no_paper else [random.name for random in rows.randoms if random.seed == 0],
            official=dataset.official,
            protocol=dataset.protocol,
            title=f"MonoCLIP on {dataset.title}",
            caption=options.caption(dataset.title, caveats),
            warnings=caveats,
            clustered_by=data.clustered_by,
            permuted=scores.permuted,
            complete=complete,
            own=list(own),
            curve=scores.curve,
        )
        seconds = {"encode": round(encoded - start, 3), "score": round(finished - encoded, 3)}
        about = options.identified(dataset.protocol) | {
            "best_constants": scores.best,
            "data": dataset.title,
            "warnings": caveats,
        }
        about |= {"seconds": seconds, "made_with": made}
        about["certainty"] = {"most_certain_abs_rel": None if scores.curve is None else scores.curve.tolist()}
        about["readings"] = {setting.name: asdict(setting.reading) for setting in rows.settings if not setting.group}
        found = tables.all_tables(scored, rows.constants)
        args.output.mkdir(parents=True, exist_ok=True)
        report(scored, found, orders, args.output, about)
        for name in DRAWN_FILES:  # of an earlier run: it would not belong to these rows
            (args.output / name).unlink(missing_ok=True)
        if args.figures:
            draw(args.output, scored, store, reader.text_features(published.BIN_RESPONSE.words), scores.patches)
        if args.html:
            text = reader.text_features(((*reading.depth_classes, *phrases), *reading.words[1:]))
            write_page(args.output / page.PAGE_FILE, args.html, scored, store, text, phrases)
        print("", printable(scored.caption), *map(tables.as_text, found), printable(scored.caption), sep="\n\n")

    return options.run_command("experiments", work)


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
