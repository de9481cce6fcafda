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

import numpy as np
import torch

import clip
import options
from clip.checkpoint import CHECKPOINTS
from clip.dense import readouts_of
from clip.inference import keep_freed_memory
from clip.model import CLIP
from datasets import printable
from experiments.features import Encoder, FeatureStore
from experiments.published import UNIFORM
from experiments.score import Rows, Scorer, Setting, SettingsReader, mean_permuted
from experiments.settings import assignments
from experiments.statistics import HIGHER, PRIMARY, Case, Contrast, Images, Results, p_value
from experiments.tables import EXPLORATORY, Line, Table, as_csv, as_markdown, as_text, bounds, cells_of
from monoclip import PAPER, MonoCLIP, Reading, zeroshot_classifier

TEMPERATURES = (PAPER.temperature, 10 * PAPER.temperature)  # the second is CLIP's own softmax, 100 times the cosine
WORD_FLAGS = ("depth_templates", "obj_classes", "depth_classes", "bin_list")
FILES = {kind: f"readouts.{kind}" for kind in ("json", "csv", "md", "png")}
TITLE = "Read-outs and backbones"
BESIDE = ("less uniform", "95 %")
COLUMNS = ("delta1", *BESIDE, "abs_rel", *BESIDE, "spearman", "aurg", "p delta1", "p abs_rel")
MEANING = (
    "The same words and bins by each read-out, at temperatures .1 (cosine times 1000) and 1 (times 100), with image "
    "statistics of ImageNet and of CLIP (docs/readouts.md). less uniform: minus uniform weights over the same bins, by "
    "image. spearman (rank correlation), aurg (what certainty knows of error) and p are over patches, whose size "
    "differs."
)
RELEASED = "released setting"


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = options.new_parser("Every read-out of every CLIP, in one table.", "python -m experiments.readouts")
    options.add_data_arguments(parser)
    options.add_model_arguments(parser, several=True)
    reading = parser.add_argument_group("reading")
    reading.add_argument(
        "--preset", choices=options.READINGS, default="paper", help="words and bins that are not given here"
    )
    reading.add_argument("--depth_classes", nargs="+", metavar="WORD", help="words")
    reading.add_argument("--bin_list", nargs="+", type=float, metavar="M", help="depths [m]")
    reading.add_argument("--depth_templates", nargs="+", metavar="T", help="sentences")
    reading.add_argument("--obj_classes", nargs="+", metavar="WORD", help="objects")
    run = options.add_batch_arguments(parser)
    kept = "folder of the features (RN50: 3.6 MB an image; default: OUTPUT/features)"
    run.add_argument("--output", type=options.named_path, default=Path("results_readouts"), help="folder for results")
    run.add_argument("--store", type=options.named_path, help=kept)
    run.add_argument("--gpu_num", default="0", help="index of the GPU that 'auto' and 'cuda' mean")
    return parser


def activation_by_checkpoint(clip_paths: Sequence[str], activations: Sequence[str]) -> dict[str, str]:
    """The activation of each checkpoint. Raises UsageError: names or numbers do not fit."""
    if len(set(map(short_name, clip_paths))) < len(clip_paths):
        raise options.UsageError("--clip_path: two checkpoints have one name; give each its own")
    if len(activations) not in (1, len(clip_paths)):
        raise options.UsageError("--activation: give one for all checkpoints, or one for each (auto where it tells)")
    return dict(zip(clip_paths, [*activations] * len(clip_paths), strict=False))


def short_name(clip_path: str) -> str:
    """A checkpoint in tables: its name, or that of its file."""
    return clip_path if clip_path in clip.available_models() else Path(clip_path).name


def cases_of(
    backbone: str, clip_model: CLIP, statistics: str, reading: Reading, rn50: bool = False
) -> dict[Case, Reading]:
    """Every read-out of a backbone at every temperature, as readings with the words and bins of `reading`.

    The release's is one of them if the weights are those of OpenAI's RN50.
    """
    found = {}
    for readout in readouts_of(clip_model.visual):
        for temperature in TEMPERATURES:
            own = replace(reading, readout=readout, temperature=temperature)
            found[Case(backbone, statistics, readout, temperature, rn50 and own == PAPER)] = own
    return found


class Comparison:
    """The rows of all cases, added store by store.

    Args:
        images: that are compared over.
        reading: its words and bins are those of all cases.
    """

    def __init__(self, images: Images, reading: Reading) -> None:
        self.images = images
        self.bins, self.complete = assignments(reading.bin_list)
        self.cases: list[Case] = []
        self.errors: list[list[dict[str, np.ndarray]]] = []  # of each store, of each image, metric -> (R,)
        self.permuted: list[np.ndarray | None] = []  # of each case, by `mean_permuted`

    def add(self, clip_model: CLIP, store: FeatureStore, cases: Mapping[Case, Reading]) -> None:
        """Score the cases that are read out of a store; uniform weights come last.

        Raises UnscorableError and DataError as `Scorer.score_images`.
        """
        settings = tuple(Setting(case.name, reading) for case, reading in cases.items())
        reader = SettingsReader(store.model, partial(zeroshot_classifier, clip_model), settings, asked=len(settings))
        rows = Rows(settings, constants={UNIFORM: float(np.mean(self.bins[0]))})
        scorer = Scorer(rows, reader, torch.tensor(self.bins), store.dataset.protocol)
        scored = scorer.score_images(store.dataset, store.get)
        self.cases += cases
        self.errors.append([image.errors for image in scored])
        self.permuted += [mean_permuted(scored, place) for place in range(len(settings))]

    def results(self) -> Results:
        """All cases as rows, then uniform weights, once."""
        errors = []
        for parts in zip(*self.errors, strict=True):  # one image in each store
            values = {m: [*(part[m][:-1] for part in parts), parts[-1][m][-1:]] for m in parts[-1]}
            errors.append({metric: np.concatenate(each) for metric, each in values.items()})
        names = [case.name for case in self.cases]
        return Results(self.images, [*names, UNIFORM], errors, dict.fromkeys(names, UNIFORM))

    def contrasts(self, results: Results) -> dict[Case, list[Contrast]]:
        """Each case minus uniform weights, in each of `PRIMARY`, with its p if there are other assignments."""
        found = {}
        for case, means in zip(self.cases, self.permuted, strict=True):
            ps = [
                None if means is None else p_value(means[0, place], means[1:, place], metric in HIGHER)
                for place, metric in enumerate(PRIMARY)
            ]
            found[case] = [results.contrast(case.name, UNIFORM, *pair) for pair in zip(PRIMARY, ps, strict=True)]
        return found

    def p_note(self) -> str:
        """What p is."""
        which = f"{'all' if self.complete else 'the random'} n = {len(self.bins) - 1:,} other assignments"
        note = f"p: (1 + k) / (1 + n), k of {which} of the bins to the words are as good; of {len(self.cases)} rows, "
        return f"{note}some are good by chance."


def readout_table(cases: Mapping[Case, Sequence[Contrast]], results: Results, p_note: str) -> Table:
    """A line for each case, with its differences to uniform weights in each of `PRIMARY`, and for these."""
    table = Table(TITLE, f"{MEANING} {results.interval_note} {p_note} {EXPLORATORY}", COLUMNS)
    for case, contrasts in cases.items():
        mean, cells = results.mean(case.name), []
        for c in contrasts:
            cells += [f"{mean[c.metric]:.3f}", f"{c.difference:+.3f}", bounds(c.interval_95, "+.3f")]
        cells += cells_of(mean, ("spearman", "aurg"), "+.3f")
        cells += ["-" if c.p is None else f"{c.p:.4f}" for c in contrasts]
        table.lines.append(Line(case.name, RELEASED if case.released else "", tuple(cells)))
    uniform = cells_of(results.mean(UNIFORM), PRIMARY)
    table.lines.append(Line(UNIFORM, "", (uniform[0], "", "", uniform[1], *[""] * 6)))
    return table


def as_json(cases: Mapping[Case, Sequence[Contrast]], results: Results) -> dict[str, Any]:
    """Every case with its metrics and contrasts, and uniform weights."""
    rows = [
        {**asdict(case), "metrics": results.mean(case.name), "less_uniform": [asdict(c) for c in contrasts]}
        for case, contrasts in cases.items()
    ]
    about = {"images": len(results.images), "intervals": results.interval_note}
    about["clustered_by"] = results.images.clustered_by
    return {"readouts": rows, UNIFORM: results.mean(UNIFORM), **about}


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; every error for the user is one sentence on stderr."""
    args = build_parser().parse_args(argv)

    def work() -> None:
        from experiments import plots  # imports matplotlib, which takes a second

        options.check_output(args.output)
        activations = activation_by_checkpoint(args.clip_path, args.activation)
        given = {name: getattr(args, name) for name in WORD_FLAGS if getattr(args, name) is not None}
        reading = options.checked_reading(given, options.READINGS[args.preset])
        device, rank, count = options.own_device(args.device, args.gpu_num)
        precision = options.choose_precision(args.precision, device)
        dataset = options.open_data(args, reading)
        protocol, (clusters, clustered_by) = dataset.protocol, dataset.clusters()
        comparison = Comparison(Images(dataset.names, dataset.scenes, clusters, dataset.indices, clustered_by), reading)
        batch_size = args.batch_size or options.BATCH_SIZE[device.type]
        workers = args.workers or options.WORKERS[device.type]
        encoder = Encoder(args.store or args.output / "features", batch_size, workers, rank, count)
        say = options.say if rank == 0 else lambda text: None
        say(f"data: {dataset.title}")

        def load(path: str) -> tuple[CLIP, MonoCLIP]:
            return options.load_model(path, device, precision, reading, args.exact, activations[path])

        for path in args.clip_path[1:]:  # so that none is found unusable when the others have taken hours
            load(path)
        start, made_with = time.perf_counter(), {}
        warnings = [] if dataset.official else [protocol.whole_split]
        for path in args.clip_path:
            name, (clip_model, model) = short_name(path), load(path)
            made = options.made_with(path, device, precision, args.exact, reading, clip_model.activation)
            sha256 = made["checkpoint_sha256"]
            made_with[name] = {key: value for key, value in made.items() if key != "reading"}  # each row has its own
            warnings += [f"{name}: {note}" for note in options.caveats(True, sha256, model, protocol)]
            rn50 = name == "RN50" or CHECKPOINTS["RN50"].matches(sha256)
            for statistics in options.IMAGE_STATISTICS:
                say(f"{name}, image statistics of {statistics}:")
                normalised = options.with_statistics(reading, statistics)
                cases = cases_of(name, clip_model, statistics, normalised, rn50)
                own = MonoCLIP(clip_model, next(iter(cases.values())))
                store = encoder.fill_store(own, dataset.normalised_by(normalised.normalised), made)
                if rank == 0:
                    comparison.add(clip_model, store, cases)
        if rank > 0:
            return
        results = comparison.results()
        found, caption = comparison.contrasts(results), options.caption(dataset.title, warnings)
        table = readout_table(found, results, comparison.p_note())
        about = options.identified(protocol) | {"data": dataset.title, "warnings": warnings, "made_with": made_with}
        about["words"] = {name: list(getattr(reading, name)) for name in WORD_FLAGS}
        about["seconds"] = round(time.perf_counter() - start, 3)
        args.output.mkdir(parents=True, exist_ok=True)
        options.write_text(args.output / FILES["csv"], as_csv(results, options.csv_text, protocol.name))
        options.write_text(args.output / FILES["md"], as_markdown([table], f"MonoCLIP on {dataset.title}", caption))
        plots.draw_readouts(args.output / FILES["png"], found, caption)
        options.write_json(args.output / FILES["json"], about | as_json(found, results))
        print("", printable(caption), as_text(table), printable(caption), sep="\n\n")

    return options.run_command("experiments.readouts", work)


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
