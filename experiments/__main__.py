"""The whole paper and its controls, in three steps, each of which only looks at what the one before left.

    python -m experiments --data_path NYU --clip_path RN50.pt --controls --figures --html --output results_paper
    python -m experiments ... --no_paper --depth_classes close far --bin_list 1 3            other words: seconds
    torchrun --nproc_per_node 8 -m experiments ...                                           images shared by 8 GPUs

    encode   images -> feature store (features.py); what is there already is not computed again
    score    features x settings -> metrics of each image and row (score.py, settings.py)
    report   metrics -> means and intervals (statistics.py), tables (tables.py), drawings (plots.py), the page

A run that was stopped goes on when the same command is given again, with any number of processes. Exit codes are those
of eval.py. Which patch features and which CLIP see depth best, `python -m experiments.readouts` compares.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import options
from calculate_error import NYU, counted_pixels
from clip.checkpoint import CHECKPOINTS
from clip.dense import thins
from clip.inference import keep_freed_memory
from datasets import printable, text_of
from datasets.nyu import training_depths
from experiments import published, tables
from experiments.features import Encoder, FeatureStore
from experiments.score import Scorer, SettingsReader, mean_permuted, sweep_of, swept_constants, training_split
from experiments.settings import assignments, own_rows, paper_rows, read_alike, with_controls
from experiments.statistics import HIGHER, MIN_CLUSTERS, Findings, Images, Results, best_elsewhere, best_places
from experiments.tables import Report
from monoclip import PAPER, Reading, depth_of, logits_of, upsampled, zeroshot_classifier
from viewer import page
from viewer.strip import Example, draw_strip, example_images

PAGE_METRICS = (*published.COLUMNS, "spearman")
MARKDOWN_FILE = "tables.md"
STRIP_FILE, RESPONSE_FILE, CHART_FILE, QUESTION_FILE = "qualitative.png", "bin_response.png", "rows.png", "question.png"
CERTAINTY_FILE = "certainty.png"
DRAWN_FILES = (STRIP_FILE, RESPONSE_FILE, CHART_FILE, QUESTION_FILE, CERTAINTY_FILE, page.PAGE_FILE)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = options.new_parser("The whole paper and its controls, each image encoded once.", "python -m experiments")
    options.add_data_arguments(parser)
    options.add_model_arguments(parser)
    reading = options.add_reading_arguments(parser)
    more = 'more readings: [{"name": "mine", "depth_classes": ["near", "far"], "bin_list": [1, 3]}]; also '
    more += "depth_templates, obj_classes, temperature; what is left out is the paper's"
    reading.add_argument("--readings", type=Path, metavar="FILE.json", help=more)
    reading.add_argument("--controls", action="store_true", help="what tells this run's metrics from chance")
    reading.add_argument("--no_paper", action="store_true", help="without the paper's settings: new words in seconds")
    run = options.add_batch_arguments(parser)
    kept = "folder of the features (RN50: 3.6 MB an image; default: OUTPUT/features)"
    run.add_argument("--output", type=options.named_path, default=Path("results_paper"), help="folder for results")
    run.add_argument("--store", type=options.named_path, help=kept)
    run.add_argument("--gpu_num", default="0", help="index of the GPU that 'auto' and 'cuda' mean")
    run.add_argument("--figures", action="store_true", help="also draw PNGs: five, four outside NYU")
    options.add_html_argument(run, page.PAGE_FILE, page.PAGE_IMAGES)
    return parser


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


def score_rows(store: FeatureStore, scorer: Scorer, images: Images, training: Tensor | None) -> Findings:
    """Step 2: the metrics of every row for each image, and the best constants.

    From a store that has all features and, if there is a training split, the histograms of its depth, (10000, T).
    Raises UnscorableError: a prediction is not finite, or an image has no valid pixel; DataError: damaged depth.
    """
    done, protocol = scorer.score_images(store.dataset, store.get), scorer.protocol
    results = Results(images, scorer.rows.names, [image.errors for image in done], scorer.rows.baselines)
    swept = swept_constants(torch.from_numpy(np.stack([image.histogram for image in done], axis=1)), protocol)
    places = {"of these images": best_places(swept)}
    rows = {"of these images": published.BEST, "of the training split": published.BEST_TRAINED}
    if training is not None:
        places["of the training split"] = best_places(swept_constants(training, protocol))
    for of, best in places.items():
        results.add_constant(rows[of], {metric: swept[metric][place] for metric, place in best.items()})
    if images.cluster_count > 1:
        elsewhere = {metric: best_elsewhere(swept[metric], results.codes, metric in HIGHER) for metric in swept}
        results.add_constant(published.BEST_ELSEWHERE, elsewhere)
    tried = sweep_of(protocol)
    depths = {of: {metric: tried[place] for metric, place in best.items()} for of, best in places.items()}
    patches = np.concatenate([image.patches for image in done], axis=1)
    curves = [image.curve for image in done if np.isfinite(image.curve).all()]
    return Findings(results, depths, mean_permuted(done), patches, np.mean(curves, axis=0) if curves else None)


def write_report(report: Report, found: list[tables.Table], output: Path, about: dict[str, Any]) -> None:
    """Step 3: write the CSV, the tables and, last, results.json with `about`, each whole. Raises OSError."""
    found = [*found, tables.interval_table(report)] if report.results.images.cluster_count >= MIN_CLUSTERS else found
    text = tables.as_csv(report.results, options.csv_text, report.protocol.name)
    options.write_text(output / tables.ROWS_FILE, text)
    options.write_text(output / MARKDOWN_FILE, tables.as_markdown(found, report.title, report.caption))
    options.write_json(output / tables.RESULTS_FILE, tables.as_json(report) | about)


@torch.inference_mode()
def features_of(store: FeatureStore, item: int) -> Tensor:
    """Features (2, D, h, w) of an image and its mirror."""
    return store.model.features(store.get(item))


@torch.inference_mode()
def draw(output: Path, report: Report, store: FeatureStore, text: Tensor, findings: Findings) -> None:
    """Write the PNGs, the paper's semantic bin response of NYU only.

    `text` are the text features (D, K) of the words of `published.BIN_RESPONSE`.
    """
    from experiments import plots  # imports matplotlib, which takes a second

    examples, dataset = [], store.dataset
    for item in example_images(dataset.scenes):
        truth = dataset.truth(item)
        patches = depth_of(store.model.weights(store.get(item)), store.model.bin_list[None])  # (1, 1, h, w)
        depth = upsampled(patches, truth.shape)[0, 0].cpu().numpy()
        examples.append(Example(dataset.names[item], dataset.pixels(item), truth, depth))
        if len(examples) == 1 and dataset.protocol is NYU:  # whose bins the paper's drawing has
            logits = logits_of(features_of(store, item).cpu(), text, published.BIN_RESPONSE)
            weights = logits.softmax(1)[0].numpy()  # (K, h, w), of the image without its mirror
            plots.draw_response(output / RESPONSE_FILE, examples[0], weights, report.caption)
    draw_strip(output / STRIP_FILE, examples, report.caption, dataset.protocol.drawn)
    plots.draw_chart(output / CHART_FILE, findings.results, report.compared, report.caption)
    drawn = dataset.protocol.drawn
    plots.draw_question(output / QUESTION_FILE, report.primary, findings, report.caption, drawn)
    if report.curve is not None:
        gain = report.results.contrast(published.THIS_RUN, published.UNIFORM, "aurg")
        plots.draw_certainty(output / CERTAINTY_FILE, report.curve, gain, report.caption)


@torch.inference_mode()
def write_page(
    path: Path, count: int, report: Report, store: FeatureStore, text: Tensor, phrases: Sequence[str]
) -> None:
    """Write the page of `count` images, spread evenly over the data set.

    `text` are the text features (D, K + P) of the run's words and of the page's further `phrases`.
    """
    results, dataset, reading, cards = report.results, store.dataset, store.model.reading, []
    for item in page.spread(len(dataset), count):
        logits = logits_of(features_of(store, item).cpu(), text, reading).numpy()  # (2, K + P, h, w)
        own = results.by_column(results.metrics[published.THIS_RUN][item].tolist())
        metrics = {name: None if math.isnan(own[name]) else own[name] for name in PAGE_METRICS}
        picture = dataset.pixels(item)
        counted = np.zeros(picture.shape[:2], dtype=bool)
        counted.flat[counted_pixels(dataset.depth(item), dataset.protocol)[0].numpy()] = True
        name, scene, truth = dataset.names[item], dataset.scenes[item], dataset.truth(item)
        cards.append(page.card(name, scene, picture, logits, reading, phrases, truth, metrics, counted))
    rows = {row: results.mean(row) for row in (published.THIS_RUN, published.UNIFORM)}
    rows |= published.beside(dataset.protocol.data_set) if report.official else {}
    table = {name: {column: row[column] for column in published.COLUMNS} for name, row in rows.items()}
    notes, warning = [page.subset_note(len(cards), len(dataset))], "; ".join(report.warnings)
    content = page.build(report.title, cards, reading, phrases, table, notes, warning, dataset.protocol)
    options.write_text(path, content)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; every error for the user is one sentence on stderr."""
    args = build_parser().parse_args(argv)

    def work() -> None:
        options.check_output(args.output)
        reading = options.reading_of(args)
        own = load_readings(args.readings, read_alike(PAPER, reading)) if args.readings else {}
        device, rank, count = options.own_device(args.device, args.gpu_num)
        precision = options.choose_precision(args.precision, device)
        dataset = options.open_data(args, reading)
        protocol, (clusters, clustered_by) = dataset.protocol, dataset.clusters()
        phrases = page.phrases_for(reading, args.phrases, args.html, protocol)
        say = options.say if rank == 0 else lambda text: None
        say(f"data: {dataset.title}")
        clip_model, model = options.load_model(args.clip_path, device, precision, reading, args.exact, args.activation)
        made = options.made_with(args.clip_path, device, precision, args.exact, reading, clip_model.activation)
        say(f"model: {args.clip_path} on {device} in {precision}")
        rows = own_rows(reading, own) if args.no_paper else paper_rows(reading, own, protocol.data_set)
        training = None
        if args.controls:
            training = training_split(training_depths(args.data_path)) if rank == 0 and protocol is NYU else None
            rows = with_controls(rows, thins(model.clip_vis, reading.readout), training and training[0])
        orders, complete = assignments(reading.bin_list) if args.controls else ([reading.bin_list], False)
        names = [*rows.names, published.BEST, published.BEST_ELSEWHERE, published.BEST_TRAINED]
        if twice := {name for name in own if names.count(name) > 1}:
            raise options.UsageError(f"{args.readings}: {min(twice)!r} is the name of another row; choose another name")

        start = time.perf_counter()
        batch_size = args.batch_size or options.BATCH_SIZE[device.type]
        workers = args.workers or options.WORKERS[device.type]
        encoder = Encoder(args.store or args.output / "features", batch_size, workers, rank, count)
        store = encoder.fill_store(model, dataset, made)
        if rank > 0:
            return
        encoded = time.perf_counter()

        reader = SettingsReader(model, partial(zeroshot_classifier, clip_model), rows.settings)
        images = Images(dataset.names, dataset.scenes, clusters, dataset.indices, clustered_by)
        scorer = Scorer(rows, reader, torch.tensor(orders), protocol)
        findings = score_rows(store, scorer, images, training and training[1])
        seconds = {"encode": round(encoded - start, 3), "score": round(time.perf_counter() - encoded, 3)}

        caveats = options.caveats(dataset.official, made["checkpoint_sha256"], model, protocol)
        rn50 = CHECKPOINTS["RN50"].matches(made["checkpoint_sha256"])
        report = Report(
            findings.results,
            published_by={
                row: name
                for row in published.published_over(protocol.data_set)
                if row.reading and (name := rows.row_of(row.reading))
            },
            lower_bounds=[] if args.no_paper else rows.randoms,
            official=dataset.official,
            as_released=rn50 and read_alike(PAPER, reading) == PAPER,
            title=f"MonoCLIP on {dataset.title}",
            caption=options.caption(dataset.title, caveats),
            controls=args.controls,
            warnings=caveats,
            permuted=findings.permuted,
            complete=complete,
            own=list(own),
            curve=findings.curve,
            protocol=protocol,
        )
        about = options.identified(protocol) | {"best_constants": findings.best, "data": dataset.title}
        about |= {"warnings": caveats, "seconds": seconds, "made_with": made}
        about["certainty"] = {"most_certain_abs_rel": None if report.curve is None else report.curve.tolist()}
        about["readings"] = {setting.name: asdict(setting.reading) for setting in rows.settings}
        found = tables.all_tables(report, rows.constants)
        args.output.mkdir(parents=True, exist_ok=True)
        write_report(report, found, args.output, about)
        for name in DRAWN_FILES:  # of an earlier run: it would not belong to these rows
            (args.output / name).unlink(missing_ok=True)
        if args.figures:
            text = reader.text_features(published.BIN_RESPONSE.words)
            draw(args.output, report, store, text, findings)
        if args.html:
            text = reader.text_features(((*reading.depth_classes, *phrases), *reading.words[1:]))
            write_page(args.output / page.PAGE_FILE, args.html, report, store, text, phrases)
        print("", printable(report.caption), *map(tables.as_text, found), printable(report.caption), sep="\n\n")

    return options.run_command("experiments", work)


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
