"""What speed.py compares: ways to encode images, and ways from files to figures.

ONNX Runtime (which also needs onnx and onnxscript) and OpenVINO take part where they are installed; both get the plain
network, which they optimise themselves.
"""

import copy
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

import clip
from arguments import PRECISIONS
from benchmarks import plain
from benchmarks.workload import SEED, suites
from calculate_error import NYU_FIGURES
from clip.model import CLIP, ModifiedResNet, VisionTransformer, infer_architecture
from datasets.nyu import NYUDepthV2, Pair
from eval import evaluate, prompt_encoder
from evaluation.batch_error import CROP_SIZE
from evaluation.controls import THIS_RUN, Predictor, plain_suite
from evaluation.encode import CachedBatches, encode
from evaluation.journal import Record
from evaluation.scoring import score_all, score_cached
from loading import BATCH_SIZE, WORKERS
from monoclip import PAPER, MonoCLIP, zeroshot_classifier


@dataclass(frozen=True)
class Variant:
    """One way to do the work: `run()` treats `images` images in `precision`; None stands for "not installed"."""

    name: str
    precision: str
    images: int
    run: Callable[[], Any] | None


def encoder_gflop(network: CLIP, size: tuple[int, int] = CROP_SIZE) -> float:
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
    upright = torch.randn(max(batch_sizes), 3, *CROP_SIZE, generator=generator)
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


def end_to_end_variants(
    network: CLIP, forms: dict[str, CLIP], device: torch.device, dataset: NYUDepthV2, pairs: list[Pair], batch_size: int
) -> list[Variant]:
    """From files to figures; words are encoded before. Each `run` evaluates all images."""
    count, text_features = len(pairs), zeroshot_classifier(network)
    variants = [Variant("plain", "fp32", count, lambda: plain.evaluate(network, text_features, pairs, device))]
    for precision, form in forms.items():
        model = MonoCLIP(form)
        for flags, suite in suites(model.channel_stride > 1, None).items():
            predictor = Predictor(prompt_encoder(model, form), suite, model.clip_vis.patch_dim)

            def records(model: MonoCLIP = model, predictor: Predictor = predictor) -> list[Record]:
                every = predictor.suite.all_channels
                batches = encode(model, dataset, device, batch_size, WORKERS[device.type], every)
                return [record for records in score_all(batches, predictor, "error", "error") for record in records]

            variants.append(Variant(f"eval.py{flags}, {precision}", precision, count, records))
    return variants


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


def cached_seconds(form: CLIP, path: Path, images: int, device: torch.device) -> float:
    """Seconds to encode words, and to read and score a feature cache of `images` images with them."""
    model = MonoCLIP(form)
    start = time.perf_counter()
    predictor = Predictor(prompt_encoder(MonoCLIP(form), form), plain_suite(PAPER), model.clip_vis.patch_dim)
    names = [f"{i}.jpg" for i in range(images)]
    batches = CachedBatches(path, names, names, range(images), device, BATCH_SIZE[device.type])
    workers = torch.get_num_threads() if device.type == "cpu" else 0
    for _ in score_cached(batches, workers, predictor, "error", "error"):
        pass
    return time.perf_counter() - start


def mean_figures(records: Sequence[Record]) -> list[float]:
    """Of the suite's own evaluation, in the order of `plain.figures`."""
    rows = [record["rows"][THIS_RUN][2 : 2 + len(NYU_FIGURES)] for record in records]
    return np.mean(rows, axis=0).tolist()
