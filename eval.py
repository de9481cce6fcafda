"""Evaluates MonoCLIP on the official test split of NYU Depth V2 and prints its figures beside the paper's.

    python eval.py --data_path NYU_FOLDER --clip_path RN50.pt --output results
    python eval.py ... --output results --paper --controls --figures     all that the paper reports, and what it lacks
    python eval.py ... --depth_classes close "a little far" far --bin_list 1 2 3                       one's own words
    torchrun --nproc_per_node 8 eval.py ...                              the images shared by 8 GPUs, the same figures

The flags of the release are accepted: `--evaluate --batch_size 1 --dataset NYU --gpu_num 0 --encoder AST
--other_method MonoCLIP`. Everything that can be wrong with the input is looked for before the model is built. Exit
code 0: done; 1: the evaluation could not be finished; 2: wrong arguments or unusable input; 130: interrupted.
"""

import argparse
import dataclasses
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

import clip
import page
import report
from arguments import UsageError, build_parser, load_readings
from calculate_error import NYU_CROP
from clip.inference import keep_freed_memory
from datasets.nyu import (
    TEST_INDICES,
    DataError,
    NYUDepthV2,
    NYUMat,
    check_files,
    coverage,
    read_list,
    scan_folder,
)
from evaluation.batch_error import CROP_SIZE, FIGURES
from evaluation.controls import (
    BEST,
    THIS_RUN,
    Predictor,
    Suite,
    mean_training_depth,
    plain_suite,
    with_bin_response,
    with_controls,
    with_paper,
)
from evaluation.distributed import LostProcessError, OtherProcessError, Processes
from evaluation.encode import CachedBatches, CacheError, Encoded, FeatureWriter, check_cache, encode
from evaluation.fingerprint import choose_shown, features_fingerprint, names_and_scenes, run_fingerprint
from evaluation.journal import JOURNAL_FILE, Journal, JournalError, Record, locked
from evaluation.results import Results
from evaluation.scoring import EvaluationError, score_all, score_cached
from loading import BATCH_SIZE, WORKERS, choose_device, choose_precision, load_model
from monoclip import MonoCLIP, Reading, zeroshot_classifier

INPUT_ERRORS = (UsageError, DataError, CacheError, JournalError, clip.CheckpointError)  # before; exit code 2
RUN_ERRORS = (EvaluationError, UsageError, torch.OutOfMemoryError, OSError)  # while images are evaluated
ALL_ERRORS = (*INPUT_ERRORS, *RUN_ERRORS)

# tqdm's own, but always images a second, also where an image takes longer than one
PROGRESS = "{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}]"


def open_dataset(args: argparse.Namespace, reading: Reading) -> NYUDepthV2 | NYUMat:
    """The data that the arguments name, checked as far as that is possible without a model.

    Raises:
        UsageError: `--list_file` with a .mat.
        DataError: the data cannot be used.
    """
    protocol = (NYU_CROP, reading.image_mean, reading.image_std)
    if args.data_path.suffix == ".mat":
        if args.list_file is not None:
            raise UsageError(f"--list_file names files of a folder, but --data_path is {args.data_path}; drop one")
        mat = NYUMat(args.data_path, *protocol)
        kept = choose_scenes(list(zip(mat.indices, mat.scenes, strict=True)), lambda pair: pair[1], args.scene)
        return NYUMat(args.data_path, *protocol, [index for index, _ in kept[: args.limit]])
    if args.list_file is None:
        pairs = scan_folder(args.data_path)
    else:
        pairs = read_list(args.list_file, args.data_path, args.any_index)
    pairs = choose_scenes(pairs, lambda pair: pair.scene, args.scene)[: args.limit]
    if not is_cached(args):  # the cache's fingerprint knows every byte of the files
        check_files(pairs, allow_empty=args.empty == "skip")
    return NYUDepthV2(pairs, *protocol)


def is_cached(args: argparse.Namespace) -> bool:
    """Whether the features are to be read, not computed."""
    return bool(args.feature_cache and args.feature_cache.exists())


def check_output(flag: str, folder: Path | None) -> None:
    """Raises UsageError if it can be told, without making `folder`, that nothing can be written there."""
    if folder is None:
        return
    there = next(path for path in (folder.absolute(), *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        raise UsageError(f"{flag} {folder}: {there} is no folder that can be written; choose another one")


def check_patches(clip_path: str | Path, patch: int) -> None:
    """Raises UsageError if patches of this many pixels do not fit the images of the protocol."""
    height, width = CROP_SIZE
    if height % patch or width % patch:
        raise UsageError(
            f"--clip_path {clip_path}: patches of {patch} px do not fit the {height}x{width} images of the "
            "protocol; use a ResNet or a ViT with patches of 32 or 16"
        )


def is_official(indices: Sequence[int]) -> bool:
    """Whether these are the images of the official test split, each once."""
    return sorted(indices) == sorted(TEST_INDICES)


def describe(data_path: Path, indices: Sequence[int]) -> str:
    """What the figures are over, as the tables' caption says it."""
    if is_official(indices):
        return f"Over the official test split, {len(indices)} images."
    return (
        f"Over {len(indices)} images of {data_path}, not the official test split of {len(TEST_INDICES)}: "
        "the paper's figures are over other images and do not compare."
    )


def choose_scenes(items: list[Any], scene_of: Callable[[Any], str], wanted: Sequence[str] | None) -> list[Any]:
    """The items of the wanted scenes; all if none are named. Raises UsageError for a scene that is not there."""
    if not wanted:
        return items
    there = sorted({scene_of(item) for item in items})
    if unknown := [scene for scene in wanted if scene not in there]:
        raise UsageError(f"--scene {' '.join(unknown)}: no such scene here; there are {', '.join(there)}")
    return [item for item in items if scene_of(item) in wanted]


def build_suite(args: argparse.Namespace, reading: Reading, channels: bool, mean_image: Tensor | None) -> Suite:
    """The rows that the arguments ask for.

    Args:
        args: the command line.
        reading: of its flags.
        channels: whether the encoder has channels to choose from.
        mean_image: mean training depth, for the controls; None where there is none.

    Raises:
        UsageError: `--readings` is no file of readings, one has another row's name, or a prompt is too long.
    """
    try:
        suite = plain_suite(reading, load_readings(args.readings) if args.readings else None)
    except ValueError as error:
        raise UsageError(str(error)) from error
    except OSError as error:
        raise UsageError(f"--readings {args.readings}: cannot be read ({error.strerror})") from error
    if args.paper:
        suite = with_paper(suite)
    if args.controls:
        suite = with_controls(suite, channels, mean_image)
    if args.figures:
        suite = with_bin_response(suite)
    # Most rows share their prompts with others, and tokenising is not free.
    for reading in {s.reading.words: s.reading for s in suite.settings}.values():
        check_prompts(reading)
    names = [*suite.predicted, *suite.constants, BEST, *suite.groups]
    if taken := sorted({name for name in names if names.count(name) > 1}):
        raise UsageError(f"--readings: {', '.join(taken)} is the name of another row of this run; choose another")
    return suite


def check_prompts(reading: Reading) -> None:
    """Raises UsageError if a prompt of `reading` has too many tokens for CLIP."""
    try:
        for template in reading.depth_templates:
            clip.tokenize([template.format(o, c) for o in reading.obj_classes for c in reading.depth_classes])
    except RuntimeError as error:
        raise UsageError(f"a prompt is too long: {error}") from error


def network_form(args: argparse.Namespace) -> str:
    """Of the model that `load_model` gives, in a word."""
    return "plain" if args.exact else "compiled" if args.compile else "fast"


def evaluate(
    model: MonoCLIP,
    dataset: NYUDepthV2 | NYUMat,
    device: torch.device,
    batch_size: int = 1,
    workers: int = 0,
    nonfinite: str = "error",
    empty: str = "error",
) -> Iterator[list[report.Row]]:
    """The figures of one model with its own reading: the rows of each batch, in the order of `dataset`.

    Args:
        model: on `device`.
        dataset: gives `Sample`s.
        device: where prediction and figures are computed.
        batch_size: images at once; their mirrors come on top.
        workers: processes that read images, 0 for none.
        nonfinite: as in `errors_NYU`.
        empty: "error" raises for an image without a valid pixel, "skip" gives it a row without figures.

    Raises:
        EvaluationError: a file is damaged, a prediction is not finite, or an image has no valid pixel.
    """
    predictor = Predictor(prompt_encoder(model), plain_suite(model.reading), model.clip_vis.patch_dim)
    for records in score_all(encode(model, dataset, device, batch_size, workers), predictor, nonfinite, empty):
        yield [
            {key: record[key] for key in ("image", "scene", "index")}
            | dict(zip(("valid_pixels", "dropped_pixels", *FIGURES), record["rows"][THIS_RUN], strict=True))
            for record in records
        ]


def prompt_encoder(model: MonoCLIP, clip_model: clip.CLIP | None = None) -> Callable[..., Tensor]:
    """What encodes prompts for a `Predictor`; the model's own are encoded already."""

    def encode_prompts(*words: tuple[str, ...]) -> Tensor:
        if words == model.reading.words or clip_model is None:
            return model.text_features
        return zeroshot_classifier(clip_model, *words)

    return encode_prompts


def own_reading(args: argparse.Namespace) -> Reading:
    """The reading of the flags. Raises UsageError if it makes no sense."""
    try:
        reading = Reading(
            depth_templates=tuple(args.depth_templates),
            obj_classes=tuple(args.obj_classes),
            depth_classes=tuple(args.depth_classes),
            bin_list=tuple(args.bin_list),
            temperature=args.temperature,
        )
    except ValueError as error:
        raise UsageError(str(error)) from error
    check_prompts(reading)
    return reading


def check_flags(args: argparse.Namespace, processes: Processes) -> None:
    """Raises UsageError for flags that do not go together."""
    for flag in ("resume", "figures", "html"):
        if getattr(args, flag) and not args.output:
            raise UsageError(f"--{flag} needs --output, the folder that it works in")
    if args.nonfinite == "worst" and (args.figures or args.html):
        raise UsageError("--nonfinite worst cannot be drawn; leave out --figures and --html")
    if args.exact and args.compile:
        raise UsageError("--exact keeps the plain network, and --compile changes it; drop one")
    if args.feature_cache and processes.count > 1:
        raise UsageError("--feature_cache is written and read by a single process; start without torchrun")


def run(args: argparse.Namespace) -> None:
    """Does what the command line says: checks the input, evaluates, writes and prints.

    Raises:
        UsageError, DataError, CacheError, JournalError, clip.CheckpointError: the input cannot be used; nothing was
            computed or written.
        EvaluationError: the evaluation stopped; the rows so far are in `--output`.
        OSError: the output, or the feature cache, cannot be written.
        OtherProcessError, LostProcessError: of several processes, another one could not go on.
    """
    processes = Processes.from_environment()
    device = own_device(args, processes)
    args.batch_size = args.batch_size or BATCH_SIZE[device.type]
    with processes.connected(device):
        run_on(device, args, processes)


def own_device(args: argparse.Namespace, processes: Processes) -> torch.device:
    """The device of this process. Raises UsageError: there is none; each of several processes says so itself."""
    if processes.count == 1:
        return choose_device(args.device, args.gpu_num)
    if args.device.startswith("cuda:") or args.gpu_num != "0":
        raise UsageError("with torchrun every process takes a GPU of its own; leave out its number")
    if args.device in ("auto", "cuda") and 0 < torch.cuda.device_count() < processes.local_count:
        raise UsageError(
            f"{processes.local_count} processes need a GPU each, but there are {torch.cuda.device_count()}; "
            "use a smaller --nproc_per_node"
        )
    return choose_device(args.device, processes.local_rank)


def run_on(device: torch.device, args: argparse.Namespace, processes: Processes) -> None:
    """What `run` does once the device is known: this process's share of the images, and in the first one the rest."""
    reading, mean_image, dataset = processes.agreed(lambda: checked_input(args, processes), ALL_ERRORS)
    caption = describe(args.data_path, dataset.indices)
    say(f"data: {args.data_path}, {coverage(dataset.indices)}")

    precision = choose_precision(args.precision, device)
    clip_model, model = processes.agreed(lambda: loaded(args, device, precision, reading), ALL_ERRORS)
    shared = f", the images shared by {processes.count} processes" if processes.count > 1 else ""
    say(f"model: {args.clip_path} on {device} in {precision}{shared}")
    if args.compile:
        say("compiling the encoder with the first images, which can take half a minute")
    suite = build_suite(args, reading, model.channel_stride > 1, mean_image)
    predictor = Predictor(prompt_encoder(model, clip_model), suite, model.clip_vis.patch_dim)

    with ExitStack() as stack:
        names, scenes = names_and_scenes(dataset)
        shown = choose_shown(names, scenes) if args.figures else []
        paged = [names[i] for i in page.spread(len(names), args.html or 0)]

        def started() -> tuple[dict[str, Any], Journal | None]:
            if processes.rank or not (args.output or args.feature_cache):
                return {}, None
            features = features_fingerprint(args.clip_path, dataset, precision, network_form(args))
            fingerprint = features | run_fingerprint(args, suite, device, shown, paged)
            return features, open_journal(args, fingerprint, dataset, stack)

        features, journal = processes.agreed(started, ALL_ERRORS)
        done = processes.told_by_the_first(len(journal.records) if journal else 0)
        items = processes.share(done, len(dataset), args.batch_size)
        batches = encoded(args, model, dataset, device, features, suite.all_channels, items, stack)
        options = (predictor, args.nonfinite, args.empty, shown, paged)
        if isinstance(batches, CachedBatches):
            own = score_cached(batches, scoring_workers(args, device), *options)
        else:
            own = score_all(batches, *options)
        start = time.perf_counter()
        records = collected(own, journal, done, len(dataset), args, processes)
        if processes.rank:
            return
        seconds, new = time.perf_counter() - start, len(records) - done

        results = Results(records, suite.constants)
        if not results.counted.any():
            raise EvaluationError(f"{args.data_path}: no image has a valid pixel, so there are no figures")
        if args.output:
            timing = {"images": new, "seconds": seconds, "images_per_second": new / seconds}
            report.write_json(args.output / report.TIMING_FILE, timing)
            setting = configuration(args, reading, precision, coverage(dataset.indices), features)
            about = {"configuration": setting, **report.environment(device)}
            report.write_all(args.output, results, suite, caption, about)
            if args.figures:
                from evaluation import figures  # matplotlib takes a second to import

                figures.draw_all(args.output, results, suite, records, dataset, shown, caption)
            if args.html:
                text = page.of_evaluation(results, records, dataset, reading, caption)
                report.write_whole(args.output / report.PAGE_FILE, lambda file: file.write(text))
                say(f"page: {args.output / report.PAGE_FILE}, {page.subset_note(len(paged), len(names))}")
    print_results(results, suite, caption, is_official(dataset.indices) and bool(results.counted.all()))


def checked_input(args: argparse.Namespace, processes: Processes) -> tuple[Reading, Tensor | None, NYUDepthV2 | NYUMat]:
    """The flags' reading, the mean training depth for the controls, and the data; all that needs no model is checked.

    Raises:
        UsageError, DataError: the arguments, or the data, cannot be used.
    """
    check_flags(args, processes)
    reading = own_reading(args)
    mean_image = mean_training_depth(args.data_path) if args.controls and args.data_path.is_dir() else None
    build_suite(args, reading, False, mean_image)
    dataset = open_dataset(args, reading)
    check_output("--output", args.output)
    check_output("--feature_cache", args.feature_cache and args.feature_cache.parent)
    return reading, mean_image, dataset


def loaded(
    args: argparse.Namespace, device: torch.device, precision: str, reading: Reading
) -> tuple[clip.CLIP, MonoCLIP]:
    """The networks of the flags; errors as `load_model` and `check_patches`."""
    clip_model, model = load_model(args.clip_path, device, precision, reading, args.exact, args.compile)
    check_patches(args.clip_path, model.clip_vis.patch_size)
    return clip_model, model


def collected(
    own: Iterator[list[Record]],
    journal: Journal | None,
    done: int,
    total: int,
    args: argparse.Namespace,
    processes: Processes,
) -> list[Record]:
    """The records of all images, from the journal's on; written on the way. None in any but the first process.

    Args:
        own: the records of this process, batch by batch.
        journal: of the first process, if there is `--output`.
        done: images in the journal already.
        total: images of all processes.
        args: the command line.
        processes: that share the images.
    """
    records = journal.records if journal else []
    bar = tqdm(total=total, initial=done, unit=" images", bar_format=PROGRESS, disable=processes.rank > 0)
    try:
        with bar as progress:
            for batch in processes.in_turn(own, total - done, args.batch_size, RUN_ERRORS):
                if journal:
                    journal.write(batch)
                if not processes.rank:
                    records += batch
                progress.update(len(batch))
    except KeyboardInterrupt as error:
        hint = "; resume with the same command and --resume" if args.output else ""
        raise KeyboardInterrupt(f"{len(records)} of {total} images done{hint}") from error
    return records


def open_journal(
    args: argparse.Namespace, fingerprint: dict[str, Any], dataset: NYUDepthV2 | NYUMat, stack: ExitStack
) -> Journal | None:
    """The journal in `--output`, held until `stack` is left; None without `--output`.

    Results of an earlier run are removed from the folder: they would not belong to these rows.
    """
    if not args.output:
        return None
    stack.enter_context(locked(args.output))
    unfinished = (args.output / JOURNAL_FILE).exists() and not (args.output / report.RESULTS_FILE).exists()
    names, _ = names_and_scenes(dataset)
    journal = Journal(args.output, fingerprint, args.resume, args.batch_size, names)
    stack.enter_context(closing(journal))
    report.remove_results(args.output)
    if args.resume:
        say(f"resuming: {len(journal.records)} of {len(names)} images are done")
    elif unfinished:
        say(f"starting anew: the rows of an unfinished run in {args.output} are replaced (--resume goes on instead)")
    return journal


def encoded(
    args: argparse.Namespace,
    model: MonoCLIP,
    dataset: NYUDepthV2 | NYUMat,
    device: torch.device,
    fingerprint: dict[str, Any],
    all_channels: bool,
    items: Sequence[int],
    stack: ExitStack,
) -> Iterable[Encoded] | CachedBatches:
    """The features of the images `items`: from the feature cache, else computed, and cached if it is all images.

    Raises:
        CacheError: the cache cannot be used.
    """
    path: Path | None = args.feature_cache
    start = len(dataset) - len(items)  # with a feature cache, which is for a single process
    if path and is_cached(args):
        check_cache(path, fingerprint, all_channels)
        say(f"features: read from {path}")
        return CachedBatches(path, *names_and_scenes(dataset), dataset.indices, device, args.batch_size, start)
    workers = args.workers if args.workers is not None else WORKERS[device.type]
    batches = encode(model, dataset, device, args.batch_size, workers, all_channels, items)
    if path and start:
        say(f"features: not kept in {path}, because {start} images were encoded by an earlier run")
    elif path:
        writer = FeatureWriter(path, fingerprint | {"all_channels": all_channels}, len(dataset))
        say(f"features: to be kept in {path}")
        return stack.enter_context(writer).kept(batches)
    return batches


def scoring_workers(args: argparse.Namespace, device: torch.device) -> int:
    """Processes that score cached features on a CPU: `--workers`, else as many as torch would take threads."""
    if device.type != "cpu":
        return 0
    if args.workers is not None:
        return args.workers
    threads = torch.get_num_threads()
    return threads if threads > 1 else 0


def configuration(
    args: argparse.Namespace, reading: Reading, precision: str, extent: str, features: dict[str, Any]
) -> dict[str, Any]:
    """Everything that the figures depend on, as JSON can hold it."""
    return {
        "reading": dataclasses.asdict(reading),
        "paper": args.paper,
        "controls": args.controls,
        "clip_path": str(args.clip_path),
        "clip_sha256": features["weights"],
        "data_path": str(args.data_path),
        "data_sha256": features["data"],
        "list_file": args.list_file and str(args.list_file),
        "scenes": args.scene,
        "data": extent,
        "limit": args.limit,
        "precision": precision,
        "network": network_form(args),
        "batch_size": args.batch_size,
        "nonfinite": args.nonfinite,
        "empty": args.empty,
    }


def print_results(results: Results, suite: Suite, caption: str, comparable: bool) -> None:
    """Prints what was counted, the released line, and the tables that were asked for.

    `comparable` says whether the figures are over the images that the paper's are over.
    """
    valid, dropped = (int(pixels[THIS_RUN].sum()) for pixels in (results.valid, results.dropped))
    say(f"counted: {len(results.images)} images, {valid:,} valid pixels")
    if skipped := [name for name, counted in zip(results.images, results.counted, strict=True) if not counted]:
        say(f"left out: {len(skipped)} images without a valid pixel: {', '.join(skipped)}")
    if dropped:
        say(f"warning: {dropped:,} more pixels were not counted because the predicted depth is at most 1 mm")
    say(report.released_line(results.mean(THIS_RUN)) + "\n")
    tables = report.tables(results, suite, caption)
    say(report.as_text(tables[0], title=False))
    if not comparable:
        say("The paper's row is over the official test split, this run's is not: they do not compare.")
    for table in tables[1:]:
        say("\n" + report.as_text(table))


def say(text: str) -> None:
    """Prints to stdout, in the first process. A reader that has gone, as in `| head`, ends the printing only."""
    if Processes.from_environment().rank:
        return
    try:
        print(text, flush=True)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  # for the rest of the process


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code; every error for the user is one sentence on stderr."""
    args = build_parser().parse_args(argv)
    try:
        run(args)
    except INPUT_ERRORS as error:
        return fail(str(error), 2)
    except OtherProcessError:
        return 1  # that process has said why
    except EvaluationError as error:
        return fail(str(error), 1)
    except LostProcessError as error:
        hint = "; what is done is kept, and the same command with --resume goes on" if args.output else ""
        return fail(f"{error}{hint}", 1)
    except torch.OutOfMemoryError:
        return fail(f"not enough memory for --batch_size {args.batch_size}; use a smaller one, or another --device", 1)
    except OSError as error:
        what = f"{error.filename or args.output}: {error.strerror or error}"
        return fail(f"{what}; make room or choose another --output, and go on with --resume", 1)
    except KeyboardInterrupt as error:
        if Processes.from_environment().rank:
            return 130  # the first process says it
        return fail(f"interrupted: {str(error) or 'while no image was being evaluated'}", 130)
    return 0


def fail(message: str, code: int) -> int:
    """Prints `message` to stderr and returns `code`."""
    print(f"eval.py: {message}", file=sys.stderr)
    return code


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
