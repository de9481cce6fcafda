"""The whole paper and its controls, in three steps, each of which only looks at what the one before left.

    python -m experiments --data_path NYU --clip_path RN50.pt --controls --figures --html --output results_paper
    python -m experiments ... --no_paper --depth_classes close far --bin_list 1 3            other words: seconds
    torchrun --nproc_per_node 8 -m experiments ...                                           images shared by 8 GPUs

    encode   images -> feature store (features.py); what is there already is not computed again
    score    features x settings (settings.py) -> metrics of each image and row (score.py, ladder.py)
    report   metrics -> means and intervals (statistics.py), tables (tables.py), drawings (plots.py), the page

A stopped run goes on when the same command is given again, with any number of processes. Exit codes: eval.py's.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import datasets.packages  # noqa: F401  # first

# isort: split
import numpy as np
import torch

import options
from calculate_error import NYU, Protocol
from clip.checkpoint import CHECKPOINTS
from clip.dense import thins
from clip.inference import start_program
from datasets import text_of
from datasets.pictures import resized
from datasets.readings import checked_reading
from download import new_results, write_json, write_text
from experiments import plots, published, tables
from experiments.features import FeatureStore
from experiments.ladder import Ladder
from experiments.score import Rows, Scorer, SettingsReader, mean_permuted, swept_constants
from experiments.settings import assignments, control_groups, read_alike, rows_of
from experiments.statistics import HIGHER, Findings, Results, best_elsewhere, folds_of
from experiments.tables import Report
from monoclip import PAPER, Reading, depth_of, logits_of, upsampled, zeroshot_classifier
from viewer import notes, page, terminal
from viewer.strip import Example, draw_strip, example_images

MARKDOWN_FILE = "tables.md"
PNG_FILES = ("qualitative.png", "bin_response.png", "ladder.png", "question.png", "certainty.png")
FILES = (tables.ROWS_FILE, MARKDOWN_FILE, *PNG_FILES, page.PAGE_FILE, tables.RESULTS_FILE)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = terminal.new_parser("The whole paper and its controls, each image encoded once.", "python -m experiments")
    options.add_data_arguments(parser)
    options.add_model_arguments(parser)
    reading = options.add_reading_arguments(parser)
    more = 'more readings: [{"name": "mine", "depth_classes": ["near", "far"], "bin_list": [1, 3]}]; also '
    more += "depth_templates, obj_classes, temperature; what is left out is the paper's"
    reading.add_argument("--readings", type=Path, metavar="FILE.json", help=more)
    reading.add_argument("--controls", action="store_true", help="what tells this run's metrics from chance")
    reading.add_argument("--no_paper", action="store_true", help="without the paper's settings: new words in seconds")
    run = options.add_run_arguments(parser, "results_paper")
    run.add_argument("--figures", action="store_true", help="also draw PNGs, among them the ladder with --controls")
    options.add_html_argument(run, page.PAGE_FILE, page.PAGE_IMAGES)
    return parser


def load_readings(path: Path, default: Reading) -> dict[str, Reading]:
    """Readings by name from JSON, what is left out being `default`'s. Raises UsageError, DataError."""
    text, readings, where = text_of(path), dict[str, Reading](), f"{path}, as JSON"
    try:
        entries = json.loads(text)
        if not isinstance(entries, list) or not entries or not all(isinstance(entry, dict) for entry in entries):
            raise ValueError('expected a list of objects like {"name": "mine", "depth_classes": [...]}')
        for i, entry in enumerate(entries, 1):
            name = entry.pop("name", None)
            where = f"{path}, entry {i} ({name!r})"
            if not isinstance(name, str) or not name or not name.isprintable() or name in readings:
                raise ValueError('needs a printable "name" of its own')
            if unknown := sorted(entry.keys() - set(options.READING_FLAGS)):
                raise ValueError(f"unknown field {', '.join(unknown)}; known are {', '.join(options.READING_FLAGS)}")
            readings[name] = checked_reading(entry, default)
    except (ValueError, RecursionError) as error:
        raise options.UsageError(f"{where}: {error}") from error
    return readings


def score_rows(store: FeatureStore, reader: SettingsReader, rows: Rows, protocol: Protocol) -> Findings:
    """Step 2, from a full store: every row's metrics, and the best constant. Raises as `Scorer.score_image`."""
    data, bins = store.dataset, store.model.reading.bin_list
    ladder = Ladder(store.model, protocol, data) if rows.groups else None
    orders = torch.tensor(assignments(bins)[0] if ladder else [bins])
    scorer = Scorer(rows, reader, orders, protocol, data, *([ladder.maps] if ladder else []))
    if ladder:
        ladder.fit(store.get, scorer.truth)
    done, folds = scorer.score_images(store.get), folds_of(data.clusters)
    results = Results(data, [image.errors for image in done], rows.baselines)
    if max(folds) > 0:
        shares = torch.from_numpy(np.stack([image.histogram for image in done], axis=1))  # (U, I)
        swept = swept_constants(shares, protocol, data.form.units_per_metre)
        results.add_constant(published.BEST, {m: best_elsewhere(swept[m], folds, m in HIGHER) for m in swept})
    curves = [image.curve for image in done if np.isfinite(image.curve).all()]
    curve, missing = np.mean(curves, axis=0) if curves else None, ladder.missing if ladder else []
    return Findings(results, mean_permuted(done), [image.patches for image in done], curve, missing)


def results_json(report: Report, store: FeatureStore, made: Mapping[str, Any], seconds: Any) -> dict[str, Any]:
    """All of results.json: every row, and what the run is of and how it was made."""
    curve = report.findings.curve
    about = {"warnings": report.warnings, "seconds": seconds, "made_with": made}
    about["certainty"] = {"most_certain_abs_rel": None if curve is None else curve.tolist()}
    about["readings"] = {setting.name: asdict(setting.reading) for setting in report.rows.settings}
    return tables.as_json(report) | notes.identified(store.dataset, report.protocol) | about


@torch.inference_mode()
def draw(output: Path, report: Report, store: FeatureStore, reader: SettingsReader) -> None:
    """Write the PNGs into a folder; the response to the paper's words is of NYU only, whose bins they have."""
    strip, response, rungs, question, certainty = (output / name for name in PNG_FILES)
    examples, dataset, model, results = [], store.dataset, store.model, report.results
    caption, theirs = notes.short_caption(dataset.title, report.warnings), None
    delta1 = results.metrics[published.THIS_RUN][:, results.columns.index("delta1")]
    for item in (shown := example_images(dataset.scenes)):
        truth, patches = dataset.truth(item), depth_of(model.weights(store.get(item)), model.bin_list[None])
        depth, picture = upsampled(patches, truth.shape)[0, 0].cpu().numpy(), resized(dataset.pixels(item), truth.shape)
        examples.append(Example(dataset.names[item], picture, truth, depth, delta1[item]))
    draw_strip(strip, examples, caption)
    if report.protocol is NYU:
        text, features = reader.text_features(published.BIN_RESPONSE.words), model.features(store.get(shown[0]))
        weights = logits_of(features, text, published.BIN_RESPONSE).softmax(dim=1)[0]  # without the mirror image
        plots.draw_response(response, examples[0], weights.cpu().numpy(), caption)
        theirs = published.beside("NYU")[published.PAPER_ROW] if report.official else None
    title = f"{tables.QUESTION} {report.verdict.capitalize()}"
    plots.draw_question(question, title, report.primary, report.findings, model.reading.bin_list, caption)
    if published.CEILING in results.metrics:
        plots.draw_ladder(rungs, results, caption, theirs)
    if report.findings.curve is not None:
        plots.draw_certainty(certainty, report.findings.curve, report.exploratory[-1], caption)


@torch.inference_mode()
def page_of(count: int, report: Report, store: FeatureStore, reader: SettingsReader, phrases: Sequence[str]) -> str:
    """The page of `count` images, which offers `phrases` besides the run's words."""
    results, dataset, reading, cards = report.results, store.dataset, store.model.reading, []
    text = reader.text_features(((*reading.depth_classes, *phrases), *reading.words[1:]))  # (D, K + P)
    for item in page.spread(len(dataset), count):
        logits = logits_of(store.model.features(store.get(item)), text, reading).cpu().numpy()  # (2, K + P, h, w)
        own = results.by_column(results.metrics[published.THIS_RUN][item].tolist())
        shown = {m: None if math.isnan(own[m]) else own[m] for m in (*published.COLUMNS, "spearman")}
        truth, counted = dataset.truth(item), dataset.scope.counted(dataset.depth(item)[0]).numpy()
        picture = resized(dataset.pixels(item), truth.shape)
        cards.append(page.card(dataset.names[item], picture, logits, reading, shown, (truth, counted)))
    ours = {row: results.mean(row) for row in (published.THIS_RUN, published.UNIFORM)}
    theirs = published.beside(report.protocol.name) if report.official else {}
    table = {row: {c: means[c] for c in published.COLUMNS} for row, means in (*ours.items(), *theirs.items())}
    said = {"notes": page.subset_note(len(cards), len(dataset)), "warning": "; ".join(report.warnings)}
    return page.build(cards, reading, phrases, table, report.protocol, title=report.title, **said)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; every error for the user is one sentence on stderr."""
    args = build_parser().parse_args(argv)

    def work() -> None:
        options.check_output(args.output)
        setup, rank, count = options.setup_of(args)
        reading, device = setup.reading, setup.device
        own = load_readings(args.readings, read_alike(PAPER, reading)) if args.readings else {}
        dataset, protocol = options.open_data(args)
        phrases = page.phrases_for(reading, args.phrases, args.html, protocol)
        say = terminal.say if rank == 0 else lambda *lines: None
        say(*dataset.remarks)
        clip_model, model, made = options.load_model(setup)
        say(f"model: {setup}")
        groups = control_groups(reading, thins(model.clip_vis, reading.readout)) if args.controls else {}
        rows = rows_of(reading, own, None if args.no_paper else protocol.name, groups)
        rungs = published.RUNGS if groups else (published.BEST,)
        names = [*(setting.name for setting in rows.settings), *rows.randoms, *rows.constants, *rungs]
        if twice := [name for name in own if names.count(name) > 1]:
            raise options.UsageError(f"{args.readings}: {twice[0]!r} is the name of another row; choose another name")

        start = time.perf_counter()
        store = FeatureStore(args.store or args.output / "features", model, dataset, made)
        sizes = args.batch_size or options.BATCH_SIZE[device.type], args.workers or options.WORKERS[device.type]
        store.fill(*sizes, rank, count)
        if rank > 0:
            return
        encoded = time.perf_counter()
        reader = SettingsReader(model, partial(zeroshot_classifier, clip_model), rows.settings)
        findings = score_rows(store, reader, rows, protocol)
        seconds = {"encode": round(encoded - start, 3), "score": round(time.perf_counter() - encoded, 3)}

        caveats = notes.caveats(dataset.official, protocol, made["checkpoint_sha256"], model, dataset.seen)
        orders, complete = assignments(reading.bin_list) if groups else ([reading.bin_list], False)
        report = Report(
            findings,
            rows,
            protocol,
            title=f"MonoCLIP on {dataset.title}",
            caption=notes.caption(dataset.title, caveats),
            official=dataset.official,
            as_released=CHECKPOINTS["RN50"].matches(made["checkpoint_sha256"]) and read_alike(PAPER, reading) == PAPER,
            warnings=caveats,
            own=list(own),
            groups={title: [setting.name for setting in group] for title, group in groups.items()},
            complete=complete,
            assignments=len(orders),
        )
        found = tables.all_tables(report)
        with new_results(args.output, FILES) as folder:
            write_text(folder / tables.ROWS_FILE, tables.as_csv(report.results, protocol.name, tables.parts_of(report)))
            write_text(folder / MARKDOWN_FILE, tables.as_markdown(found, report.title, report.caption))
            write_json(folder / tables.RESULTS_FILE, results_json(report, store, made, seconds))
            if args.figures:
                terminal.try_to_draw(lambda: draw(folder, report, store, reader))
            if args.html:
                write_text(folder / page.PAGE_FILE, page_of(args.html, report, store, reader, phrases))
        files = f"{args.output / MARKDOWN_FILE} has all tables, {tables.ROWS_FILE} beside it every image."
        print(f"\n{tables.summary(report, found, files)}")

    return options.run_command("experiments", work)


if __name__ == "__main__":
    start_program()
    sys.exit(main())
