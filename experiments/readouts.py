"""Which patch features, which CLIP: the same words by every read-out of every backbone, in one table and figure.

    python -m experiments.readouts --clip_path RN50 RN101 RN50x4 ViT-B/16 --output results_readouts
    torchrun --nproc_per_node 8 -m experiments.readouts ...                    images shared by 8 GPUs

Each backbone encodes the images with both image statistics. What the store has is not encoded again, and all read-outs
are read from there, at two temperatures: the release's .1 was tuned for `raw`. Rows stand beside uniform weights over
the same bins, image by image, and beside all assignments of the bins to the words. Exit codes are those of eval.py.
"""

import argparse
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

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
from datasets import csv_text
from datasets.readings import IMAGE_STATISTICS, with_statistics
from download import new_results, write_json, write_text
from experiments.features import FeatureStore
from experiments.ladder import Probe
from experiments.published import UNIFORM
from experiments.score import Rows, Scorer, Setting, SettingsReader, mean_permuted
from experiments.settings import assignments
from experiments.statistics import HIGHER, PRIMARY, Case, Contrast, Images, Results, folds_of, p_value
from experiments.tables import EXPLORATORY, Line, Table, as_csv, as_markdown, as_text, bounds, cells_of, paragraph
from monoclip import PAPER, MonoCLIP, Reading, zeroshot_classifier
from viewer import notes, terminal

FILES = {kind: f"readouts.{kind}" for kind in ("csv", "md", "png", "json")}
COLUMNS = (
    "delta1",
    "less uniform",
    "95 %",
    "abs_rel",
    "less uniform",
    "95 %",
    "spearman",
    "aurg",
    "p delta1",
    "p abs_rel",
)
MEANING = (
    "The same words and bins by each read-out, at temperatures .1 (cosine times 1000) and 1 (times 100), with image "
    "statistics of ImageNet and of CLIP (docs/readouts.md). less uniform: minus uniform weights over the same bins, by "
    "image. linear probe: the read-out's features, fitted to depth on other clusters: what they hold without words. "
    "spearman (rank correlation), aurg (what certainty knows of error) and p are over patches, whose size differs."
)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = terminal.new_parser("Every read-out of every CLIP, in one table.", "python -m experiments.readouts")
    options.add_data_arguments(parser)
    options.add_model_arguments(parser, several=True)
    options.add_word_arguments(parser)
    options.add_store_arguments(options.add_batch_arguments(parser), "results_readouts")
    return parser


def activation_by_checkpoint(clip_paths: Sequence[str], activations: Sequence[str]) -> dict[str, str]:
    """The activation of each checkpoint. Raises UsageError."""
    if len(set(map(short_name, clip_paths))) < len(clip_paths):
        raise options.UsageError("--clip_path: two checkpoints have one name; give each its own")
    if len(activations) not in (1, len(clip_paths)):
        raise options.UsageError("--activation: give one for all checkpoints, or one for each (auto where it tells)")
    return dict(zip(clip_paths, [*activations] * len(clip_paths), strict=False))


def short_name(clip_path: str) -> str:
    """A checkpoint in tables: its name, or that of its file."""
    return clip_path if clip_path in clip.available_models() else Path(clip_path).name


def cases_of(name: str, clip_model: CLIP, statistics: str, reading: Reading, rn50: bool = False) -> dict[Case, Reading]:
    """Every read-out of a backbone at every temperature; the release's is one of them if it is OpenAI's RN50."""
    found = {}
    for readout in readouts_of(clip_model.visual):
        for temperature in (PAPER.temperature, 10 * PAPER.temperature):  # the second is CLIP's own softmax
            own = replace(reading, readout=readout, temperature=temperature)
            found[Case(name, statistics, readout, temperature, rn50 and own == PAPER)] = own
    return found


class Comparison:
    """The rows of all cases, added store by store; the words and bins of `reading` are those of all."""

    def __init__(self, images: Images, reading: Reading, protocol: Protocol) -> None:
        self.images, self.protocol, self.folds = images, protocol, folds_of(images.clusters)
        self.bins, self.complete = assignments(reading.bin_list)
        self.permuted: dict[Case, np.ndarray | None] = {}  # of each case, by `mean_permuted`
        self.errors: list[dict[str, dict[str, float]]] = [{} for _ in range(len(images))]  # row -> metric -> value

    @torch.inference_mode()
    def add(self, clip_model: CLIP, store: FeatureStore, cases: Mapping[Case, Reading]) -> None:
        """Score the cases that are read out of a store, a linear probe of each read-out, and uniform weights."""
        settings = tuple(Setting(case.name, reading) for case, reading in cases.items())
        reader = SettingsReader(store.model, partial(zeroshot_classifier, clip_model), settings, asked=len(settings))
        probes = {
            replace(case, temperature=None, released=False): Probe(store.model, case.readout, max(self.folds) + 1)
            for case in cases
        }

        def probed(item: int, trunk: Trunk, *_: object) -> dict[str, Tensor]:
            found = {c.name: probe.depth(self.folds[item], trunk, self.protocol.cap) for c, probe in probes.items()}
            return {name: depth for name, depth in found.items() if depth is not None}

        rows = Rows(settings, constants={UNIFORM: float(np.mean(self.bins[0]))})
        scorer = Scorer(rows, reader, torch.tensor(self.bins), self.protocol, store.dataset, probed)
        for item, fold in enumerate(self.folds):
            trunk = store.get(item)
            truth = scorer.truth(item, trunk)
            for probe in probes.values():
                probe.add(fold, trunk, truth)
        for probe in probes.values():
            probe.solve()
        done = scorer.score_images(store.get)
        self.errors = [errors | image.errors for errors, image in zip(self.errors, done, strict=True)]
        self.permuted |= {case: mean_permuted(done, place) for place, case in enumerate(cases)}
        self.permuted |= {case: None for case in probes if case.name in done[0].errors}

    def results(self) -> Results:
        """All cases as rows, and uniform weights."""
        return Results(self.images, self.errors, {case.name: UNIFORM for case in self.permuted})

    def contrasts(self, results: Results) -> dict[Case, list[Contrast]]:
        """Each case minus uniform weights, in each of `PRIMARY`, with its p if there are other assignments."""
        found: dict[Case, list[Contrast]] = {}
        for case, means in self.permuted.items():
            found[case] = []
            for i, metric in enumerate(PRIMARY):
                p = None if means is None else p_value(means[0, i], means[1:, i], metric in HIGHER)
                found[case].append(results.contrast(case.name, UNIFORM, metric, p))
        return found

    def p_note(self) -> str:
        """What p is."""
        which = f"{'all' if self.complete else 'the random'} n = {len(self.bins) - 1:,} other assignments"
        count = sum(means is not None for means in self.permuted.values())
        note = (
            f"p: (1 + k) / (1 + n), k of {which} of the bins to the words are as good; of {count} rows, some are good"
        )
        probes = any(case.temperature is None for case in self.permuted)
        lacking = "" if probes else " No linear probe: there are no other clusters with measured patches to fit on."
        return f"{note} by chance.{lacking}"


def readout_table(cases: Mapping[Case, Sequence[Contrast]], results: Results, p_note: str) -> Table:
    """A line for each case, with its differences to uniform weights in each of `PRIMARY`, and for these."""
    table = Table("Read-outs and backbones", f"{MEANING} {results.interval_note} {p_note} {EXPLORATORY}", COLUMNS)
    for case, contrasts in cases.items():
        mean, cells = results.mean(case.name), []
        for c in contrasts:
            cells += [f"{mean[c.metric]:.3f}", f"{c.difference:+.3f}", bounds(c.interval_95)]
        cells += cells_of(mean, ("spearman", "aurg"), "+.3f")
        cells += ["-" if c.p is None else f"{c.p:.4f}" for c in contrasts]
        table.lines.append(Line(case.name, "released setting" if case.released else "", tuple(cells)))
    uniform = cells_of(results.mean(UNIFORM), PRIMARY)
    table.lines.append(Line(UNIFORM, "", (uniform[0], "", "", uniform[1], *[""] * 6)))
    return table


def as_json(cases: Mapping[Case, Sequence[Contrast]], results: Results) -> dict[str, Any]:
    """Every case with its metrics and contrasts, and uniform weights."""
    rows = [
        {**asdict(case), "metrics": results.mean(case.name), "less_uniform": [asdict(c) for c in contrasts]}
        for case, contrasts in cases.items()
    ]
    about = {"intervals": results.interval_note, "clustered_by": results.images.clustered_by}
    return {"readouts": rows, UNIFORM: results.mean(UNIFORM), "images": len(results.images), **about}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; every error for the user is one sentence on stderr."""
    args = build_parser().parse_args(argv)

    def work() -> None:
        from experiments import plots  # imports matplotlib, which takes a second

        options.check_output(args.output)
        activations = activation_by_checkpoint(args.clip_path, args.activation)
        reading = options.reading_of(args)
        device, rank, count = options.own_device(args.device, args.gpu_num)
        precision = options.choose_precision(args.precision, device)
        sizes = args.batch_size or options.BATCH_SIZE[device.type], args.workers or options.WORKERS[device.type]
        dataset, protocol = options.open_data(args)
        images = Images(dataset.names, dataset.scenes, dataset.clusters, dataset.indices, dataset.clustered_by)
        comparison = Comparison(images, reading, protocol)
        say = terminal.say if rank == 0 else lambda *lines: None
        say(*dataset.remarks)

        def load(path: str) -> tuple[CLIP, MonoCLIP]:
            return options.load_model(path, device, precision, reading, args.exact, activations[path])

        for path in args.clip_path[1:]:  # so that none is found unusable when the others have taken hours
            load(path)
        start, made_with = time.perf_counter(), {}
        warnings: list[str] = []
        for path in args.clip_path:
            name, (clip_model, model) = short_name(path), load(path)
            made = notes.made_with(path, device, precision, reading, args.exact, clip_model.activation)
            sha256 = made["checkpoint_sha256"]
            made_with[name] = {key: value for key, value in made.items() if key != "reading"}  # each row has its own
            own = notes.caveats(True, protocol, sha256, model, dataset.seen)
            of_all = notes.caveats(dataset.official, protocol, sha256, model, dataset.seen)
            warnings += [note for note in of_all if note not in [*own, *warnings]]
            warnings += [f"{name}: {note}" for note in own]
            rn50 = name == "RN50" or CHECKPOINTS["RN50"].matches(sha256)
            for statistics in IMAGE_STATISTICS:
                say(f"{name}, image statistics of {statistics}:")
                cases = cases_of(name, clip_model, statistics, with_statistics(reading, statistics), rn50)
                own_model = MonoCLIP(clip_model, next(iter(cases.values())))
                store = FeatureStore(args.store or args.output / "features", own_model, dataset, made)
                store.fill(*sizes, rank, count)
                if rank == 0:
                    comparison.add(clip_model, store, cases)
        if rank > 0:
            return
        results = comparison.results()
        found, caption = comparison.contrasts(results), notes.caption(dataset.title, warnings)
        table = readout_table(found, results, comparison.p_note())
        about = notes.identified(protocol) | {"data": dataset.title, "warnings": warnings, "made_with": made_with}
        about["words"] = {name: list(getattr(reading, name)) for name in options.WORD_FLAGS}
        about["seconds"] = round(time.perf_counter() - start, 3)
        with new_results(args.output, list(FILES.values())) as folder:
            write_text(folder / FILES["csv"], as_csv(results, csv_text, protocol.name))
            write_text(folder / FILES["md"], as_markdown([table], f"MonoCLIP on {dataset.title}", caption))
            write_json(folder / FILES["json"], about | as_json(found, results))
            terminal.try_to_draw(lambda: plots.draw_readouts(folder / FILES["png"], found, caption))
        print("", paragraph(caption), as_text(table, names=60), paragraph(table.caption), sep="\n\n")

    return options.run_command("experiments.readouts", work)


if __name__ == "__main__":
    start_program()
    sys.exit(main())
