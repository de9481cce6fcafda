"""Which patch features, which CLIP: the same words by every read-out of every backbone, in one table and figure.

    python -m experiments.readouts --clip_path RN50 RN101 RN50x4 ViT-B/16 --output results_readouts

Each backbone encodes the images with both image statistics; all read-outs are read from the store, at two
temperatures, as the release's .1 was tuned for `raw`. torchrun and exit codes are as for `python -m experiments`.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from itertools import product
from pathlib import Path

import datasets.packages  # noqa: F401  # first

# isort: split
import numpy as np
import torch
from torch import Tensor

import clip
import options
from calculate_error import Protocol
from clip.checkpoint import CHECKPOINTS
from clip.dense import readouts_of
from clip.inference import start_program
from clip.model import CLIP, Trunk
from datasets.readings import IMAGE_STATISTICS, with_statistics
from download import new_results, write_json, write_text
from experiments import plots, tables
from experiments.features import FeatureStore
from experiments.ladder import Probe
from experiments.published import UNIFORM, cell_of
from experiments.score import Rows, Scorer, Setting, SettingsReader, mean_permuted
from experiments.settings import assignments
from experiments.statistics import PRIMARY, Case, Contrast, Results, folds_of
from experiments.tables import EXPLORATORY, P_NOTE, Table, paragraph, primary_contrasts
from monoclip import PAPER, MonoCLIP, Reading, zeroshot_classifier
from viewer import notes, terminal

FILES = {kind: f"readouts.{kind}" for kind in ("csv", "md", "png", "json")}
LESS = ("less uniform", "95 %")
COLUMNS = ("delta1", *LESS, "abs_rel", *LESS, "spearman", "aurg", "p delta1", "p abs_rel")
MEANING = (
    "The same words and bins by each read-out (docs/readouts.md), at temperatures .1 (cosine times 1000) and 1 (times "
    "100). less uniform: minus uniform weights over the same bins, by image. linear probe: the read-out's features, "
    "fitted to depth on other clusters. spearman (rank correlation), aurg (what certainty knows of error) and p are "
    "over patches, whose size differs. Of many rows, some are good by chance."
)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = terminal.new_parser("Every read-out of every CLIP, in one table.", "python -m experiments.readouts")
    options.add_data_arguments(parser)
    options.add_model_arguments(parser, several=True)
    options.add_reading_arguments(parser, words_only=True)
    options.add_run_arguments(parser, "results_readouts")
    return parser


def cases_of(name: str, clip_model: CLIP, statistics: str, reading: Reading, rn50: bool = False) -> dict[Case, Reading]:
    """Every read-out of a backbone at every temperature; the release's is one of them if it is OpenAI's RN50."""
    found = {}
    temperatures = PAPER.temperature, 10 * PAPER.temperature  # the second is CLIP's own softmax
    for readout, temperature in product(readouts_of(clip_model.visual), temperatures):
        own = replace(reading, readout=readout, temperature=temperature)
        found[Case(name, statistics, readout, temperature, rn50 and own == PAPER)] = own
    return found


@torch.inference_mode()
def score_cases(
    clip_model: CLIP, store: FeatureStore, cases: Mapping[Case, Reading], folds: Sequence[int], scope: Protocol
) -> tuple[list[dict[str, dict[str, float]]], dict[Case, np.ndarray | None]]:
    """Metrics of each image by row, and by case `mean_permuted`, None for the linear probe of each read-out."""
    settings = tuple(Setting(case.name, reading) for case, reading in cases.items())
    bins = assignments(settings[0].reading.bin_list)[0]
    reader = SettingsReader(store.model, partial(zeroshot_classifier, clip_model), settings, asked=len(settings))
    fitted = dict.fromkeys(replace(case, temperature=None, released=False) for case in cases)  # for all temperatures
    probes = {case: Probe(store.model, case.readout, max(folds) + 1) for case in fitted}

    def probed(item: int, trunk: Trunk, *_: object) -> dict[str, Tensor]:
        found = {case.name: probe.depth(folds[item], trunk, scope.cap) for case, probe in probes.items()}
        return {name: depth for name, depth in found.items() if depth is not None}

    rows = Rows(settings, constants={UNIFORM: float(np.mean(bins[0]))})
    scorer = Scorer(rows, reader, torch.tensor(bins), scope, store.dataset, probed)
    for item, fold in enumerate(folds):
        trunk = store.get(item)
        truth = scorer.truth(item, trunk)
        for probe in probes.values():
            probe.add(fold, trunk, truth)
    for probe in probes.values():
        probe.solve()
    done = scorer.score_images(store.get)
    permuted = {case: mean_permuted(done, place) for place, case in enumerate(cases)}
    return [image.errors for image in done], permuted | {case: None for case in probes if case.name in done[0].errors}


def readout_table(results: Results, contrasts: Mapping[Case, Sequence[Contrast]], bins: tuple[float, ...]) -> Table:
    """A line for each case, with its differences to uniform weights, and for these."""
    orders, complete = assignments(bins)
    caption = f"{MEANING} {results.interval_note} {P_NOTE.format('all' if complete else 'the random', len(orders) - 1)}"
    table = Table("Read-outs and backbones", f"{caption}. {EXPLORATORY}", COLUMNS)
    for case, each in contrasts.items():
        mean, cells = results.mean(case.name), [case.name, "released setting" if case.released else ""]
        for c in each:
            cells += [cell_of(mean[c.metric], ".3f"), cell_of(c.difference), cell_of(c.interval_95)]
        cells += [cell_of(mean["spearman"]), cell_of(mean["aurg"]), *(cell_of(c.p, ".4f") for c in each)]
        table.lines.append(tuple(cells))
    delta1, abs_rel = (cell_of(results.mean(UNIFORM)[metric], ".3f") for metric in PRIMARY)
    table.lines.append((UNIFORM, "", delta1, "", "", abs_rel, *[""] * 6))
    return table


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; every error for the user is one sentence on stderr."""
    args = build_parser().parse_args(argv)

    def work() -> None:
        options.check_output(args.output)
        setup, rank, count = options.setup_of(args)
        names = [path if path in clip.available_models() else Path(path).name for path in args.clip_path]
        activations = args.activation * (len(names) if len(args.activation) == 1 else 1)
        if len(set(names)) < len(names):
            raise options.UsageError("--clip_path: two checkpoints have one name; give each its own")
        if len(activations) != len(names):
            raise options.UsageError("--activation: give one for all checkpoints, or one for each")
        each = zip(names, args.clip_path, activations, strict=True)
        setups = {name: replace(setup, clip_path=path, activation=activation) for name, path, activation in each}
        kind = setup.device.type
        sizes = args.batch_size or options.BATCH_SIZE[kind], args.workers or options.WORKERS[kind]
        dataset, protocol = options.open_data(args)
        say = terminal.say if rank == 0 else lambda *lines: None
        say(*dataset.remarks)
        for other in list(setups.values())[1:]:  # so that none is refused when others have taken hours
            options.load_model(other)
        start, made_with, warnings = time.perf_counter(), {}, notes.caveats(dataset.official, protocol)
        errors: list[dict[str, dict[str, float]]] = [{} for _ in dataset.names]
        permuted: dict[Case, np.ndarray | None] = {}
        for name, own_setup in setups.items():
            clip_model, model, made = options.load_model(own_setup)
            made_with[name] = {key: value for key, value in made.items() if key != "reading"}  # each row has its own
            sha256 = made["checkpoint_sha256"]
            warnings += [f"{name}: {note}" for note in notes.caveats(True, protocol, sha256, model, dataset.seen)]
            rn50 = name == "RN50" or CHECKPOINTS["RN50"].matches(sha256)
            for statistics in IMAGE_STATISTICS:
                say(f"{name}, image statistics of {statistics}:")
                cases = cases_of(name, clip_model, statistics, with_statistics(setup.reading, statistics), rn50)
                model = MonoCLIP(clip_model, next(iter(cases.values())))
                store = FeatureStore(args.store or args.output / "features", model, dataset, made)
                store.fill(*sizes, rank, count)
                if rank == 0:
                    more, means = score_cases(clip_model, store, cases, folds_of(dataset.clusters), protocol)
                    errors, permuted = [a | b for a, b in zip(errors, more, strict=True)], permuted | means
        if rank > 0:
            return
        results = Results(dataset, errors, {case.name: UNIFORM for case in permuted})
        contrasts = {case: primary_contrasts(results, case.name, means) for case, means in permuted.items()}
        table = readout_table(results, contrasts, setup.reading.bin_list)
        about = notes.identified(dataset, protocol) | {"warnings": warnings, "made_with": made_with}
        about |= {"words": {name: list(getattr(setup.reading, name)) for name in options.WORD_FLAGS}}
        about |= {"seconds": round(time.perf_counter() - start, 3), "readouts": []}
        for case, primary in contrasts.items():
            less = list(map(asdict, primary))
            about["readouts"].append(asdict(case) | {"metrics": results.mean(case.name), "less_uniform": less})
        about |= {UNIFORM: results.mean(UNIFORM), "intervals": results.interval_note}
        about |= {"clustered_by": dataset.clustered_by}
        groups = {case.name: case.backbone for case in contrasts} | {UNIFORM: UNIFORM}
        caption, short = (make(dataset.title, warnings) for make in (notes.caption, notes.short_caption))
        with new_results(args.output, list(FILES.values())) as folder:
            write_text(folder / FILES["csv"], tables.as_csv(results, protocol.name, groups))
            write_text(folder / FILES["md"], tables.as_markdown([table], f"MonoCLIP on {dataset.title}", caption))
            write_json(folder / FILES["json"], about)
            terminal.try_to_draw(lambda: plots.draw_readouts(folder / FILES["png"], contrasts, short))
        print("", paragraph(caption), tables.as_text(table, names=60), paragraph(table.caption), sep="\n\n")

    return options.run_command("experiments.readouts", work)


if __name__ == "__main__":
    start_program()
    sys.exit(main())
