"""Trains a small CLIP from scratch on rendered rooms, so that its patches answer to the paper's distance words.

A toy, taught distance on purpose: it shows that the pipeline works and says nothing about OpenAI's CLIP, which never
saw depth. Captions are the paper's seven prompts. Each patch of a rendered picture is matched with them through the
read-out of monoclip.py itself; its target is shared between the two depth classes whose bins enclose its depth, so that
the read-out's mean of bins is that depth. Pooled embeddings of whole views are matched likewise, as CLIP is trained.

    python -m demo.train_clip --output demo/rooms_clip.pt --seed 0

Command line, hardware, time and the metrics to expect: README.md beside this file. Saved as fp16 under the keys of
OpenAI's RN50, so that `clip.load` reads it. Left out: everything that a CLIP for other purposes would need.
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import clip
from calculate_error import HIGHER_IS_BETTER, NYU, NYU_METRICS, compute_errors_per_image
from clip.model import CLIP, Architecture
from datasets.nyu import open_nyu
from demo.rooms import render_scene, write_split
from experiments.score import rank_correlations
from monoclip import PAPER, MonoCLIP, depth_of, logits_of, upsampled

HELD_OUT_SEED = 64_000  # the pictures that training is judged by
SAMPLE_SEED = 16_000  # the pictures in demo/sample
# RN50's design, made small. 49408 token embeddings of width 24 fill half of the file.
ROOMS_CLIP = Architecture(
    embed_dim=192,
    image_resolution=224,
    vision_layers=(1, 2, 2, 2),
    vision_width=12,
    vision_patch_size=None,
    context_length=77,
    vocab_size=49408,
    transformer_width=24,
    transformer_layers=2,
)
PATCH = 32  # pixels, the stride of layer4
PEAK_LEARNING_RATE = 2e-3
WEIGHT_DECAY = 0.02
WARM_UP = 0.05  # share of the steps in which the learning rate rises
# The read-out multiplies cosines by 1000, which drowns an untrained network's gradients: begin at a fiftieth of it.
FIRST_SHARPNESS = 0.02
SHARPENING = 0.6  # share of the steps after which the read-out is the paper's
DEPTH_WEIGHT = 2.0  # of the loss on the depth that is read out, beside the patches' cross-entropy
POOLED_WEIGHT = 0.2  # of the pooled embedding's loss
PERMUTATIONS = 20  # wrong assignments of words to bins that the right one is compared with


@dataclass(frozen=True)
class Pictures:
    """A training set.

    Attributes:
        image: (N, 416, 544, 3) uint8, the crop of the method.
        depth: (N, 13, 17) float32 [m], geometric mean of each patch's measured depths.
        measured: (N, 13, 17) float32, share of each patch that was measured.
    """

    image: np.ndarray
    depth: Tensor
    measured: Tensor


# ------------------------------------------------------------------------------------------------------ training data


def patch_depth(depth: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Geometric mean of the measured depths, and their share, in each 32 x 32 patch: (416, 544) -> twice (13, 17).

    Geometric, because the metrics judge ratios: on an edge between 1 m and 3 m, 1.73 m is as wrong for both sides. It
    is 1 m where nothing was measured.
    """
    h, w = depth.shape[0] // PATCH, depth.shape[1] // PATCH
    patches = depth.reshape(h, PATCH, w, PATCH).astype(np.float64)
    measured = (patches > 0).sum((1, 3))
    log_depth = np.log(np.where(patches > 0, patches, 1)).sum((1, 3)) / np.maximum(measured, 1)
    return np.exp(log_depth), measured / PATCH**2


def training_picture(seed: int, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """One rendered picture as `Pictures` holds it: image (416, 544, 3), depth (13, 17), measured (13, 17)."""
    _, image, depth = render_scene(seed, number)
    crop = NYU.window(*depth.shape)
    return image[crop], *patch_depth(depth[crop])


def training_set(seed: int, count: int, workers: int) -> Pictures:
    """Renders `count` pictures, in `workers` processes beside this one, or in this one if 0."""
    render = partial(training_picture, seed)
    if workers == 0:
        rendered = [render(number) for number in range(count)]
    else:
        with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
            rendered = list(pool.map(render, range(count), chunksize=8))
    image, depth, measured = (np.stack(part) for part in zip(*rendered, strict=True))
    return Pictures(image, torch.from_numpy(depth).float(), torch.from_numpy(measured).float())


def batches(pictures: Pictures, batch_size: int, rng: np.random.Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Endless batches in random order: image (B, 3, 416, 544), normalised, depth and measured (B, 13, 17).

    Half of the pictures are mirrored; brightness and colour vary a little.
    """
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (PAPER.image_mean, PAPER.image_std))
    order: list[int] = []
    while True:
        while len(order) < batch_size:
            order.extend(rng.permutation(len(pictures.image)).tolist())
        chosen, order = order[:batch_size], order[batch_size:]
        image = torch.from_numpy(pictures.image[chosen]).permute(0, 3, 1, 2).float() / 255  # (B, 3, 416, 544)
        gain = rng.uniform(0.92, 1.08, (batch_size, 1, 1, 1)) * rng.uniform(0.95, 1.05, (batch_size, 3, 1, 1))
        image = ((image * torch.from_numpy(gain).float()).clamp(0, 1) - mean) / std
        depth, measured = pictures.depth[chosen], pictures.measured[chosen]
        mirrored = torch.from_numpy(rng.random(batch_size) < 0.5).view(-1, 1, 1)
        yield (
            image.where(~mirrored[..., None], image.flip(-1)),
            depth.where(~mirrored, depth.flip(-1)),
            measured.where(~mirrored, measured.flip(-1)),
        )


# ----------------------------------------------------------------------------------------------------------- training


def new_clip(architecture: Architecture) -> CLIP:
    """A CLIP with random weights; residual branches start at zero and token embeddings small, as CLIP's do."""
    model = CLIP(architecture)
    nn.init.normal_(model.token_embedding.weight, std=0.02)
    for name, parameter in model.visual.named_parameters():
        if name.startswith("layer") and name.endswith("bn3.weight"):
            nn.init.zeros_(parameter)
    return model


def class_shares(depth: Tensor, bins: Tensor) -> Tensor:
    """Target probabilities (..., K) of depths (...) [m]: shared between the two bins around it, mean = the depth.

    Depths outside of the bins belong to the first or the last. The bins (K,) rise.
    """
    depth = depth.clamp(bins[0], bins[-1])
    lower = (torch.searchsorted(bins, depth.contiguous(), right=True) - 1).clamp(0, len(bins) - 2)
    share = (depth - bins[lower]) / (bins[lower + 1] - bins[lower])
    one_hot = partial(F.one_hot, num_classes=len(bins))
    return one_hot(lower) * (1 - share[..., None]) + one_hot(lower + 1) * share[..., None]


def patch_loss(logits: Tensor, depth: Tensor, measured: Tensor, bins: Tensor) -> Tensor:
    """How badly patches answer: cross-entropy with their target classes, and log error of the depth read out.

    Args:
        logits: (B, K, h, w).
        depth: (B, h, w) [m].
        measured: (B, h, w); a patch counts if a third of it was measured.
        bins: (K,) [m].
    """
    counted = measured > 1 / 3
    logits = logits.permute(0, 2, 3, 1)[counted]  # (N, K)
    target = class_shares(depth[counted], bins)
    log_error = (logits.softmax(1) @ bins).log() - (target @ bins).log()
    return F.cross_entropy(logits, target) + DEPTH_WEIGHT * log_error.abs().mean()


def pooled_loss(model: CLIP, image: Tensor, depth: Tensor, text_features: Tensor, bins: Tensor) -> Tensor:
    """CLIP's own objective: each picture's pooled embedding against the captions, target the picture's mean depth.

    Args:
        model: the CLIP.
        image: (B, 3, R, R) of the model's resolution R.
        depth: (B,) mean depth of what the image shows [m].
        text_features: (D, K) unit vectors.
        bins: (K,) [m].
    """
    image_features = F.normalize(model.encode_image(image), dim=-1)
    return F.cross_entropy(model.logit_scale.exp() * image_features @ text_features, class_shares(depth, bins))


def learning_rate_share(progress: float) -> float:
    """Share of the peak learning rate: up in a line, down as a cosine; progress from 0 to 1."""
    return min(progress / WARM_UP, (1 + np.cos(np.pi * progress)) / 2)


def train(model: CLIP, pictures: Pictures, steps: int, batch_size: int, seed: int, device: torch.device) -> None:
    """Trains `model`, on `device`, in place; prints the loss now and then."""
    rng = np.random.default_rng((seed, 1))
    prompts = [PAPER.depth_templates[0].format(PAPER.obj_classes[0], word) for word in PAPER.depth_classes]
    tokens = clip.tokenize(prompts).to(device)
    reader = MonoCLIP(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_LEARNING_RATE, weight_decay=WEIGHT_DECAY)
    window = ROOMS_CLIP.image_resolution // PATCH
    model.train()
    losses = []
    for step, (image, depth, measured) in zip(range(steps), batches(pictures, batch_size, rng), strict=False):
        progress = step / steps
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LEARNING_RATE * min(
                1, (progress + 1 / steps) / WARM_UP, (1 + np.cos(np.pi * progress)) / 2
            )
        sharpness = FIRST_SHARPNESS ** (1 - min(1, progress / SHARPENING))
        image, depth, measured = image.to(device), depth.to(device), measured.to(device)

        reader.text_features = F.normalize(model.encode_text(tokens), dim=-1).T  # (D, K), with its gradient
        trunk = model.visual.forward_trunk(image.contiguous(memory_format=torch.channels_last))
        logits = sharpness * logits_of(reader.features(trunk), reader.text_features, PAPER)
        loss = patch_loss(logits, depth, measured, reader.bin_list)

        top, left = rng.integers(depth.shape[1] - window + 1), rng.integers(depth.shape[2] - window + 1)
        rows, columns = slice(top, top + window), slice(left, left + window)
        view = image[:, :, PATCH * top : PATCH * (top + window), PATCH * left : PATCH * (left + window)]
        weights = measured[:, rows, columns]
        mean_depth = (depth[:, rows, columns] * weights).sum((1, 2)) / weights.sum((1, 2)).clamp(min=1e-3)
        view = view.contiguous(memory_format=torch.channels_last)
        loss = loss + POOLED_WEIGHT * pooled_loss(model, view, mean_depth, reader.text_features, reader.bin_list)

        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == steps:
            print(f"step {step + 1} of {steps}: loss {np.mean(losses[-50:]):.3f}", flush=True)
    model.eval()


def save(model: CLIP, path: Path) -> None:
    """Writes the state dict, floating entries in fp16, under OpenAI's keys."""
    state_dict = {k: v.cpu().half() if v.is_floating_point() else v.cpu() for k, v in model.state_dict().items()}
    torch.save(state_dict, path)


# --------------------------------------------------------------------------------------------------------- evaluation


@torch.inference_mode()
def measure(model: CLIP, root: Path, seed: int = 0) -> tuple[dict[str, dict[str, float]], float]:
    """The official evaluation on the pictures in `root`, for the model and for what it must beat.

    Args:
        model: on the CPU.
        root: folder of official_splits/test.
        seed: of the permutations.

    Returns:
        For "embedded CLIP", "uniform weights", "best constant" (the best for each metric on its own, of 1.5, 1.6, ...
        3.0 m) and "best of 20 permutations" (of the word-to-bin order, again for each metric): metric -> mean
        over images. And the median over images of Spearman's correlation between predicted and true depth.
    """
    bins = torch.tensor(PAPER.bin_list)
    generator = torch.Generator().manual_seed(seed)
    permuted: list[Tensor] = []
    while len(permuted) < PERMUTATIONS:
        order = torch.randperm(len(bins), generator=generator)
        if not order.equal(torch.arange(len(bins))):
            permuted.append(bins[order])
    constants = torch.cat([bins.mean()[None], torch.arange(15, 31) / 10])
    reader = MonoCLIP(model)
    rows, ranked = [], []
    dataset = open_nyu(root, NYU)
    for i in range(len(dataset)):
        image, depth = PAPER.normalised(dataset.pixels(i))[None], dataset.depth(i)
        read = depth_of(reader(image), torch.stack([bins, *permuted]))  # (1, 1 + 20, h, w)
        flat = constants.view(1, -1, 1, 1).expand(-1, -1, *image.shape[2:])
        # (1, R, 416, 544): the model, 20 permutations, uniform weights, 16 constants
        pred = torch.cat([upsampled(read, image.shape[2:]), flat], dim=1)
        errors = compute_errors_per_image([depth], pred, NYU)
        rows.append(torch.cat([errors[name] for name in NYU_METRICS]))  # (metrics, R)
        counts, gt = NYU.counted(depth[0]), depth[0][NYU.window(*depth[0].shape)]
        ranked.append(rank_correlations(pred[:, 0][:, counts], gt[counts]).item())
    means = torch.stack(rows).mean(0)  # (metrics, R)
    groups = {
        "embedded CLIP": slice(0, 1),
        "uniform weights": slice(1 + PERMUTATIONS, 2 + PERMUTATIONS),
        "best constant": slice(2 + PERMUTATIONS, None),
        f"best of {PERMUTATIONS} permutations": slice(1, 1 + PERMUTATIONS),
    }
    table = {
        group: {
            name: (row[part].max() if name in HIGHER_IS_BETTER else row[part].min()).item()
            for name, row in zip(NYU_METRICS, means, strict=True)
        }
        for group, part in groups.items()
    }
    return table, float(np.median(ranked))


def markdown(table: dict[str, dict[str, float]], correlation: float) -> str:
    """The table of `measure`, and a line on the rank correlation."""
    lines = ["| | " + " | ".join(NYU_METRICS) + " |", "|---|" + "---|" * len(NYU_METRICS)]
    lines += [f"| {name} | " + " | ".join(f"{row[f]:.4f}" for f in NYU_METRICS) + " |" for name, row in table.items()]
    return "\n".join([*lines, "", f"median rank correlation with the ground truth: {correlation:.3f}"])


# -------------------------------------------------------------------------------------------------------- command line


def build_parser() -> argparse.ArgumentParser:
    """The command line."""

    def number(text: str, least: int) -> int:
        value = int(text)
        if value < least:
            raise argparse.ArgumentTypeError(f"{text} is not {least} or more")
        return value

    positive, natural = partial(number, least=1), partial(number, least=0)
    parser = argparse.ArgumentParser(
        prog="python -m demo.train_clip",
        description="Train the demo's small CLIP on rendered rooms and judge it on rooms that it never saw.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="checkpoint to write")
    parser.add_argument("--seed", type=natural, default=0, help="of the weights, the pictures and their order")
    parser.add_argument("--images", type=positive, default=1000, help="pictures to render for training")
    parser.add_argument("--steps", type=positive, default=800, help="training steps")
    parser.add_argument("--batch_size", type=positive, default=8, help="pictures in each step")
    parser.add_argument("--held_out", type=positive, default=64, help="pictures to judge the result by")
    parser.add_argument("--workers", type=natural, default=2, help="processes that render")
    parser.add_argument("--threads", type=positive, default=1, help="of PyTorch; one repeats to the last bit")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu", help="where to train")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Renders, trains, saves, judges what was saved."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.seed in (HELD_OUT_SEED, SAMPLE_SEED):
        parser.error(f"--seed {args.seed} is that of pictures which training must not see; choose another")
    if args.device == "cuda" and not torch.cuda.is_available():
        parser.error("--device cuda: no CUDA device was found; use --device cpu")
    if not args.output.parent.is_dir():
        parser.error(f"--output {args.output}: the folder {args.output.parent} does not exist; create it first")

    torch.set_num_threads(args.threads)
    start = time.monotonic()
    pictures = training_set(args.seed, args.images, args.workers)
    print(f"rendered {args.images} pictures in {time.monotonic() - start:.0f} s", flush=True)
    torch.manual_seed(args.seed)
    device = torch.device(args.device)
    model = new_clip(ROOMS_CLIP).to(device).to(memory_format=torch.channels_last)
    train(model, pictures, args.steps, args.batch_size, args.seed, device)
    try:
        save(model, args.output)
    except (OSError, RuntimeError) as error:
        print(f"{args.output}: cannot be written ({error}); choose another --output", file=sys.stderr)
        return 1
    print(
        f"wrote {args.output}, {args.output.stat().st_size:,} bytes, {time.monotonic() - start:.0f} s after the start"
    )

    with tempfile.TemporaryDirectory() as folder:
        write_split(Path(folder), args.held_out, HELD_OUT_SEED)
        saved, _ = clip.load(args.output, device="cpu", activation="quickgelu")
        print(f"on {args.held_out} rooms of seed {HELD_OUT_SEED}:\n")
        print(markdown(*measure(saved, Path(folder))))
    return 0


if __name__ == "__main__":
    sys.exit(main())
