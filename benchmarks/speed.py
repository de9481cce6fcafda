"""Speed and memory of the suite beside a plain implementation (plain.py), on this machine, in about three minutes.

    python -m benchmarks.speed --output speed            prints the tables; writes speed.json and speed.png there
    python -m benchmarks.speed --device cuda --images 256

Everything is measured on random weights of RN50's shape (or `--clip_path`) and on images of NYU's size made of noise.
Variants take turns within each round of one process, and a ratio is the median over the rounds of the quotient within
a round, so a machine that slows down slows all of them. An image is always an image with its mirror. Multiply and add
count apart; a share is that of the peak that peak.py measures before, in the variant's own precision.

ONNX Runtime (which also needs onnx and onnxscript) and OpenVINO are measured where they are installed; both get the
plain network, which they optimise themselves.
"""

import argparse
import copy
import itertools
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import clip
from benchmarks import plain
from benchmarks.peak import machine_peak
from calculate_error import NYU_CROP, NYU_FIGURES
from clip.inference import keep_freed_memory
from clip.model import CLIP, Architecture, ModifiedResNet, VisionTransformer, infer_architecture
from datasets.nyu import TEST_INDICES, NYUDepthV2, Pair, scan_folder
from eval import evaluate, prompt_encoder
from evaluation.controls import THIS_RUN, Predictor, Suite, plain_suite, with_controls, with_paper
from evaluation.encode import FeatureFile, FeatureWriter, encode
from evaluation.fingerprint import features_fingerprint
from evaluation.journal import Record
from evaluation.scoring import score_all
from loading import BATCH_SIZE, WORKERS, choose_precision
from monoclip import PAPER, MonoCLIP, zeroshot_classifier

ROOT = Path(__file__).parents[1]
SIZE = (NYU_CROP[0].stop - NYU_CROP[0].start, NYU_CROP[1].stop - NYU_CROP[1].start)  # (416, 544) px
RN50 = Architecture(1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 12)
PAPER_RUNS = 8  # settings of prompts and bins that the paper reports; a plain implementation runs once for each
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
SEED = 0


@dataclass(frozen=True)
class Variant:
    """One way to do the work: `run()` treats `images` images in `precision`; None stands for "not installed"."""

    name: str
    precision: str
    images: int
    run: Callable[[], Any] | None


@dataclass(frozen=True)
class Timing:
    """What was measured of a variant; None where it could not be.

    Attributes:
        ms: median milliseconds for an image.
        ratio: to the first variant, median over rounds.
        gflops: GFLOP/s of the encoder's arithmetic.
        share: of the machine's peak in the same precision.
        deviation: the largest difference of a depth to the first variant's [m].
    """

    name: str
    precision: str
    images: int
    ms: float | None = None
    ratio: float | None = None
    gflops: float | None = None
    share: float | None = None
    deviation: float | None = None


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.speed",
        description="Measure the suite beside a plain implementation.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--clip_path", help="CLIP checkpoint; none: random weights of RN50's shape")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="cpu or cuda")
    parser.add_argument("--images", type=int, default=8, help="images of an end-to-end run")
    parser.add_argument("--batch_sizes", type=int, nargs="+", help="images at once (default: 1 4; on a GPU 1 8 32 128)")
    parser.add_argument("--cached_images", type=int, default=654, help="images in the feature cache, 2.4 MB each")
    parser.add_argument("--rounds", type=int, default=5, help="of which medians are taken")
    parser.add_argument("--threads", type=int, help="of torch on a CPU; none: torch's own choice")
    parser.add_argument("--compile", action="store_true", help="also measure torch.compile, which takes a minute")
    parser.add_argument("--output", type=Path, help="folder for speed.json and speed.png; none: print only")
    return parser


def random_network(architecture: Architecture = RN50) -> CLIP:
    """A CLIP of random weights in evaluation mode, its batch norms unlike those of a new layer."""
    generator = torch.Generator().manual_seed(SEED)
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = CLIP(architecture)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.get_buffer("running_mean").normal_(0, 0.05, generator=generator)
            module.get_buffer("running_var").uniform_(0.8, 1.2, generator=generator)
    return model.eval().requires_grad_(False)


def write_images(folder: Path, count: int) -> None:
    """Writes `count` pairs of 480x640 in NYU's layout: smooth noise with grain, and smooth depth with holes."""
    rng = np.random.default_rng(SEED)
    folder = folder / "official_splits" / "test" / "office"
    folder.mkdir(parents=True)

    def smooth(low: float, high: float) -> np.ndarray:
        coarse = Image.fromarray(rng.uniform(low, high, (12, 16)).astype(np.float32))
        return np.asarray(coarse.resize((640, 480), Image.Resampling.BICUBIC))

    for index in TEST_INDICES[:count]:
        rgb = np.stack([smooth(0, 255) for _ in range(3)], axis=-1) + rng.normal(0, 8, (480, 640, 3))
        Image.fromarray(rgb.clip(0, 255).astype(np.uint8)).save(folder / f"rgb_{index:05d}.jpg", quality=95)
        depth = smooth(800, 6000) + rng.normal(0, 10, (480, 640))
        depth[smooth(0, 1) > 0.9] = 0
        Image.fromarray(depth.clip(0, 9900).astype(np.uint16)).save(folder / f"sync_depth_{index:05d}.png")


def take_turns(variants: Sequence[Variant], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds for an image, by variant and round. Each variant runs once before, unmeasured."""
    runs = [(variant, variant.run) for variant in variants if variant.run]
    seconds: dict[str, list[float]] = {variant.name: [] for variant, _ in runs}
    for round_ in range(rounds + 1):
        for variant, run in runs:
            synchronize(device)
            start = time.perf_counter()
            run()
            synchronize(device)
            if round_:
                seconds[variant.name].append((time.perf_counter() - start) / variant.images)
    return seconds


def synchronize(device: torch.device) -> None:
    """Waits until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def summarised(
    variants: Sequence[Variant], seconds: dict[str, list[float]], gflop: float, peak: dict[str, float]
) -> list[Timing]:
    """A row for each variant, relative to the first one.

    Args:
        variants: in the order of the rows.
        seconds: for an image, by name and round, of those that are installed.
        gflop: of the encoder, for an image with its mirror.
        peak: GFLOP/s by precision, as far as measured.
    """
    reference = seconds[variants[0].name]
    rows = []
    for variant in variants:
        row = Timing(variant.name, variant.precision, variant.images)
        if times := seconds.get(variant.name):
            median = statistics.median(times)
            ratio = statistics.median(one / base for one, base in zip(times, reference, strict=True))
            limit = peak.get(variant.precision)
            share = gflop / median / limit if limit else None
            row = replace(row, ms=1e3 * median, ratio=ratio, gflops=gflop / median, share=share)
        rows.append(row)
    return rows


def table(rows: Sequence[Timing]) -> str:
    """Markdown; what could not be measured says so."""

    def cell(value: float | None, form: str, missing: str = "not measured") -> str:
        return missing if value is None else format(value, form)

    lines = ["| variant | precision | images at once | ms an image | ratio | GFLOP/s | of the peak | deviation [m] |"]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in rows:
        cells = [row.name, row.precision, str(row.images)]
        if row.ms is None:
            cells += ["not installed", "", "", "", ""]
        else:
            cells += [cell(row.ms, ".1f"), cell(row.ratio, ".3f"), cell(row.gflops, ".0f"), cell(row.share, ".0%")]
            cells += [cell(row.deviation, ".1e", "")]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def encoder_gflop(network: CLIP, size: tuple[int, int] = SIZE) -> float:
    """Of an image with its mirror, counted by torch."""
    with torch.device("meta"):
        twin = CLIP(infer_architecture(network.state_dict())).eval()
        image = torch.empty(2, 3, *size)
    with FlopCounterMode(display=False) as counter, torch.inference_mode():
        twin.visual.forward_patches(image)
    return counter.get_total_flops() / 1e9


class Patches(nn.Module):
    """`forward_patches` as the `forward` that exporters want."""

    def __init__(self, visual: ModifiedResNet | VisionTransformer) -> None:
        super().__init__()
        self.visual = visual

    def forward(self, image: Tensor) -> Tensor:
        """(B, 3, H, W) -> (B, C, h, w)."""
        return self.visual.forward_patches(image)


def onnxruntime_encoder(network: CLIP, image: Tensor, folder: Path) -> Callable[[], Tensor]:
    """The plain network in ONNX Runtime, on a CPU, with torch's number of threads."""
    import onnxruntime

    path = folder / "encoder.onnx"
    torch.onnx.export(Patches(network.visual).eval(), (image,), path, dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    array, name = image.numpy(), session.get_inputs()[0].name
    return lambda: torch.from_numpy(session.run(None, {name: array})[0])


def openvino_encoder(network: CLIP, image: Tensor, precision: str) -> Callable[[], Tensor]:
    """The plain network in OpenVINO, on a CPU, with torch's number of threads."""
    import openvino

    program = torch.export.export(Patches(network.visual).eval(), (image,))
    config = {
        "INFERENCE_PRECISION_HINT": {"fp32": "f32", "bf16": "bf16"}[precision],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.compile_model(openvino.convert_model(program), "CPU", config)
    array = image.numpy()
    return lambda: torch.from_numpy(compiled([array])[0])


def forms_of(network: CLIP, device: torch.device) -> dict[str, CLIP]:
    """The network in the fast form of each precision that makes sense on the device."""
    names = ("fp32", "bf16") if device.type == "cpu" else ("fp32", "bf16", "fp16")
    return {name: clip.optimize_for_inference(copy.deepcopy(network), PRECISIONS[name]) for name in names}


def encoder_variants(
    network: CLIP,
    forms: dict[str, CLIP],
    device: torch.device,
    batch_sizes: Sequence[int],
    compiled: bool,
    folder: Path,
) -> list[Variant]:
    """Ways to encode images; each `run` returns the features (2B, C, h, w) of the first ones of one set of images."""
    generator = torch.Generator().manual_seed(SEED)
    upright = torch.randn(max(batch_sizes), 3, *SIZE, generator=generator)
    pairs = torch.stack([upright, upright.flip(-1)], dim=1).to(device)  # (B, 2, 3, H, W)
    one = pairs[0]

    def encoder(visual: ModifiedResNet | VisionTransformer, image: Tensor) -> Callable[[], Tensor]:
        return lambda: visual.forward_patches(image)

    variants = [
        Variant(
            "plain: image, then mirror",
            "fp32",
            1,
            lambda: torch.cat([network.visual.forward_patches(v[None]) for v in one]),
        ),
        Variant("plain network, image with mirror", "fp32", 1, encoder(network.visual, one)),
    ]
    for precision, form in forms.items():
        for images in batch_sizes:
            variants.append(
                Variant(
                    f"eval.py, {precision}, {images} at once",
                    precision,
                    images,
                    encoder(form.visual, pairs[:images].flatten(0, 1)),
                )
            )
        if compiled:
            visual = copy.deepcopy(form.visual)
            visual.forward_patches = torch.compile(visual.forward_patches)  # type: ignore[method-assign]
            variants.append(Variant(f"torch.compile, {precision}", precision, 1, encoder(visual, one)))
    if device.type == "cpu":
        has_onnx = all(find_spec(name) for name in ("onnxruntime", "onnx", "onnxscript"))
        run = onnxruntime_encoder(network, one, folder) if has_onnx else None
        variants.append(Variant("ONNX Runtime", "fp32", 1, run))
        for precision in ("fp32", "bf16"):
            run = openvino_encoder(network, one, precision) if find_spec("openvino") else None
            variants.append(Variant(f"OpenVINO, {precision}", precision, 1, run))
    return variants


def deviations(model: MonoCLIP, variants: Sequence[Variant]) -> dict[str, float]:
    """The largest difference of a patch's depth [m] in the first image to that of the first variant, by name."""

    def depth(variant: Variant) -> Tensor:
        features = variant.run()[:2].float().to(model.bin_list.device)  # type: ignore[misc]
        return model.depth(nn.functional.normalize(features, dim=1)[:, :: model.channel_stride])

    expected = depth(variants[0])
    return {v.name: (depth(v) - expected).abs().max().item() for v in variants if v.run}


class EncoderClock:
    """Adds up the seconds that a model's image encoder takes, on a CPU."""

    def __init__(self, model: MonoCLIP) -> None:
        self.seconds = 0.0
        self.forward = model.clip_vis.forward_patches
        model.clip_vis.forward_patches = self  # type: ignore[method-assign]

    def __call__(self, image: Tensor) -> Tensor:
        """What the encoder computes."""
        start = time.perf_counter()
        features = self.forward(image)
        self.seconds += time.perf_counter() - start
        return features


def suites(channels: bool) -> dict[str, Suite]:
    """What is read from one pass over the images, by the flags that ask for it; `channels` as in `with_controls`."""
    suite = plain_suite(PAPER)
    published = with_paper(suite)
    return {"": suite, " --paper": published, " --paper --controls": with_controls(published, channels, None)}


def end_to_end_variants(
    network: CLIP, forms: dict[str, CLIP], device: torch.device, dataset: NYUDepthV2, pairs: list[Pair], batch_size: int
) -> list[Variant]:
    """From files to figures; words are encoded before. Each `run` evaluates all images."""
    count, text_features = len(pairs), zeroshot_classifier(network)
    variants = [Variant("plain", "fp32", count, lambda: plain.evaluate(network, text_features, pairs, device))]
    for precision, form in forms.items():
        model = MonoCLIP(form)
        for flags, suite in suites(model.channel_stride > 1).items():
            predictor = Predictor(prompt_encoder(model, form), suite, model.clip_vis.patch_dim)

            def records(model: MonoCLIP = model, predictor: Predictor = predictor) -> list[Record]:
                every = predictor.suite.all_channels
                batches = encode(model, dataset, device, batch_size, WORKERS[device.type], every)
                return [record for records in score_all(batches, predictor, "error", "error") for record in records]

            variants.append(Variant(f"eval.py{flags}, {precision}", precision, count, records))
    return variants


def mean_figures(records: Sequence[Record]) -> list[float]:
    """Of the suite's own evaluation, in the order of `plain.figures`."""
    rows = [record["rows"][THIS_RUN][2 : 2 + len(NYU_FIGURES)] for record in records]
    return np.mean(rows, axis=0).tolist()


def encoder_share(form: CLIP, dataset: NYUDepthV2, device: torch.device, batch_size: int) -> float:
    """Share of the encoder in the time from files to figures, on a CPU."""
    model = MonoCLIP(form)
    clock = EncoderClock(model)
    start = time.perf_counter()
    for _ in evaluate(model, dataset, device, batch_size):
        pass
    seconds = time.perf_counter() - start
    del model.clip_vis.forward_patches
    return clock.seconds / seconds


def link_images(folder: Path, pairs: Sequence[Pair], count: int) -> None:
    """Gives the `pairs` new names in NYU's layout until there are `count` images of the test split."""
    folder = folder / "official_splits" / "test" / "office"
    folder.mkdir(parents=True)
    for index, pair in zip(TEST_INDICES[:count], itertools.cycle(pairs), strict=False):
        os.link(pair.rgb, folder / f"rgb_{index:05d}.jpg")
        os.link(pair.depth, folder / f"sync_depth_{index:05d}.png")


def write_cache(path: Path, weights: Path, form: CLIP, data: Path, device: torch.device) -> None:
    """The feature cache that eval.py would write for the images of `data`, with the first one's features for all."""
    dataset = NYUDepthV2(scan_folder(data), NYU_CROP, PAPER.image_mean, PAPER.image_std)
    fingerprint = features_fingerprint(str(weights), dataset, choose_precision("auto", device), "fast")
    batch = next(iter(encode(MonoCLIP(form), dataset, device)))
    with FeatureWriter(path, fingerprint | {"all_channels": False}, len(dataset)) as writer:
        for _ in writer.kept(itertools.repeat(batch, len(dataset))):
            pass


def cached_seconds(form: CLIP, path: Path, device: torch.device) -> float:
    """Seconds to encode words, and to read and score a feature cache with them."""
    model = MonoCLIP(form)
    start = time.perf_counter()
    predictor = Predictor(prompt_encoder(MonoCLIP(form), form), plain_suite(PAPER), model.clip_vis.patch_dim)
    cache = FeatureFile(path, {}, all_channels=False)
    names = [f"{i}.jpg" for i in range(len(cache.features))]
    batches = cache.batches(names, names, range(len(names)), device, BATCH_SIZE[device.type])
    for _ in score_all(batches, predictor, "error", "error"):
        pass
    return time.perf_counter() - start


@dataclass(frozen=True)
class Process:
    """A run of eval.py as a process of its own: wall seconds from its start, peak resident memory [GB]."""

    name: str
    seconds: float
    peak_gb: float


# Started in between, because a child's peak memory counts from that of the process it is forked from.
LAUNCHER = """
import os, subprocess, sys
child = subprocess.Popen(sys.argv[1:], stdout=subprocess.DEVNULL)
_, status, usage = os.wait4(child.pid, 0)
print(usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))
sys.exit(os.waitstatus_to_exitcode(status))
"""


def process(name: str, command: list[str]) -> Process:
    """Runs a command.

    Raises:
        subprocess.CalledProcessError: it failed; holds what it wrote to stderr.
    """
    start = time.perf_counter()
    launcher = [sys.executable, "-S", "-c", LAUNCHER, *command]
    run = subprocess.run(launcher, cwd=ROOT, capture_output=True, text=True, check=True)
    return Process(name, time.perf_counter() - start, int(run.stdout) / 1e9)


def processes(data: Path, weights: Path, cache: Path, device: torch.device, images: int) -> list[Process]:
    """Start-up, how time and memory grow with the images and the processes, and new words on cached features."""
    script, run = (
        str(ROOT / "eval.py"),
        ["--data_path", str(data), "--clip_path", str(weights), "--device", str(device)],
    )
    rows = [process("eval.py --help", [sys.executable, script, "--help"])]
    for count in (1, images, 8 * images):
        rows.append(process(f"eval.py, images: {count}", [sys.executable, script, *run, "--limit", str(count)]))
    if device.type == "cuda":
        rows.append(process("eval.py --paper, all images", [sys.executable, script, *run, "--paper"]))
    count = torch.cuda.device_count() if device.type == "cuda" else 2
    if count > 1:
        threads = max(1, torch.get_num_threads() // count)
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}", script]
        command = ["env", f"OMP_NUM_THREADS={threads}", sys.executable, *torchrun, *run, "--limit", str(8 * images)]
        rows.append(process(f"torchrun, {count} processes, images: {8 * images}", command))
    words = ["--feature_cache", str(cache), "--depth_classes", "near", "far", "--bin_list", "1", "3"]
    rows.append(process("eval.py with new words on the feature cache", [sys.executable, script, *run, *words]))
    return rows


def measured(args: argparse.Namespace) -> dict[str, Any]:
    """Everything, as JSON can hold it; prints each table when it is there."""
    device = torch.device(args.device)
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.backends.cudnn.allow_tf32 = False  # fp32 is to mean fp32
    batch_sizes = args.batch_sizes or ([1, 4] if device.type == "cpu" else [1, 8, 32, 128])
    hardware = {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else processor_name(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "torch": torch.__version__,
        "platform": platform.platform(),
    }
    print(", ".join(f"{key}: {value}" for key, value in hardware.items()), flush=True)
    peak = machine_peak(device, torch.get_num_threads())
    print("peak: " + (", ".join(f"{k} {v:,.0f} GFLOP/s" for k, v in peak.items()) or "not measured"), flush=True)

    network = clip.load(args.clip_path, device="cpu")[0] if args.clip_path else random_network()
    network = network.to(device)
    gflop = encoder_gflop(network)
    with ExitStack() as stack, torch.inference_mode():
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        weights = Path(args.clip_path or folder / "random.pt")
        if not args.clip_path:
            torch.save(network.state_dict(), weights)
        write_images(folder / "data", args.images)
        pairs = scan_folder(folder / "data")
        dataset = NYUDepthV2(pairs, NYU_CROP, PAPER.image_mean, PAPER.image_std)
        forms = forms_of(network, device)

        variants = encoder_variants(network, forms, device, batch_sizes, args.compile, folder)
        differences = deviations(MonoCLIP(network), variants)
        rows = summarised(variants, take_turns(variants, args.rounds, device), gflop, peak)
        encoder = [asdict(row) | {"deviation": differences.get(row.name)} for row in rows]
        print(f"\nEncoder, {gflop:.1f} GFLOP an image\n\n{table([Timing(**row) for row in encoder])}", flush=True)
        del variants

        batch_size = min(BATCH_SIZE[device.type], args.images)
        variants = end_to_end_variants(network, forms, device, dataset, pairs, batch_size)
        rows = summarised(variants, take_turns(variants, args.rounds, device), gflop, peak)
        end_to_end = [asdict(row) for row in rows]
        print(f"\nFrom files to figures, {args.images} images\n\n{table(rows)}", flush=True)
        ratios = {row.name: row.ratio for row in rows if row.ratio}
        facts = {}
        for precision in forms:
            name = f"the paper's {PAPER_RUNS} settings, {precision}: times faster than {PAPER_RUNS} plain runs"
            facts[name] = PAPER_RUNS / ratios[f"eval.py --paper, {precision}"]
        runs = {variant.name: variant.run for variant in variants if variant.run}
        expected = runs["plain"]()
        for precision in forms:
            figures = mean_figures(runs[f"eval.py, {precision}"]())
            difference = max(abs(one - other) for one, other in zip(figures, expected, strict=True))
            facts[f"largest difference of a mean figure to the plain run's, {precision}"] = difference
        if device.type == "cpu":
            facts["share of the encoder in the end-to-end time, fp32"] = encoder_share(
                forms["fp32"], dataset, device, batch_size
            )
        link_images(folder / "many", pairs, args.cached_images)
        cache = folder / "features.h5"
        write_cache(cache, weights, forms["fp32"], folder / "many", device)
        seconds = cached_seconds(forms["fp32"], cache, device)
        facts[f"seconds for new words over a feature cache of {args.cached_images} images"] = seconds
        facts["peak memory of this process [GB]"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
            1e9 if sys.platform == "darwin" else 1e6
        )
        print("\n" + "\n".join(f"{name}: {value:.3g}" for name, value in facts.items()), flush=True)

        children = processes(folder / "many", weights, cache, device, args.images)
        print("\n" + "\n".join(f"{r.name}: {r.seconds:.1f} s, {r.peak_gb:.2f} GB" for r in children), flush=True)
    return {
        "hardware": hardware,
        "peak_gflops": peak,
        "encoder_gflop": gflop,
        "encoder": encoder,
        "end_to_end": end_to_end,
        "facts": facts,
        "processes": [asdict(child) for child in children],
        "gpu": "see encoder" if device.type == "cuda" else "not run",
    }


def processor_name() -> str:
    """As the operating system calls it."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def draw(results: dict[str, Any], path: Path) -> None:
    """Bars of the milliseconds of every variant, encoder above end to end."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 7), layout="constrained")
    axes = figure.subplots(2, 1)
    colours = {"fp32": "#4c72b0", "bf16": "#dd8452", "fp16": "#55a868"}
    for axis, key, title in zip(
        axes, ("encoder", "end_to_end"), ("Encoder: image and mirror", "From files to figures"), strict=True
    ):
        rows = [row for row in results[key] if row["ms"] is not None]
        bars = axis.barh(
            [row["name"] for row in rows],
            [row["ms"] for row in rows],
            color=[colours[row["precision"]] for row in rows],
        )
        axis.bar_label(bars, [f"{row['ms']:.0f} ms, x{row['ratio']:.2f}" for row in rows], padding=3)
        axis.invert_yaxis()
        axis.margins(x=0.25)
        axis.set_title(title, loc="left")
        axis.set_xlabel("ms an image")
        axis.spines[["top", "right"]].set_visible(False)
    figure.suptitle(f"{results['hardware']['device']}, {results['hardware']['threads']} threads, RN50 at 416x544")
    figure.savefig(path, dpi=120)


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command line and returns its exit code."""
    args = build_parser().parse_args(argv)
    try:
        results = measured(args)
        if args.output:
            args.output.mkdir(parents=True, exist_ok=True)
            (args.output / "speed.json").write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
            draw(results, args.output / "speed.png")
    except (OSError, RuntimeError, ValueError, clip.CheckpointError) as error:
        print(f"benchmarks.speed: {error}", file=sys.stderr)
        return 1
    except subprocess.CalledProcessError as error:
        print(f"benchmarks.speed: eval.py failed: {error.stderr.strip()}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
