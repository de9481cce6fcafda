"""The method of "Can Language Understand Depth?" (Zhang et al., ACM MM 2022, arXiv 2207.01077).

CLIP, which was never shown depth, is asked of every image patch how well it fits "This object is close", "... far" and
five more such prompts. The softmax over the seven answers, weighted by seven depths, is the patch's depth:

    logits = 100 * f @ T / temperature          f: patch features, T: text features          (B, K, h, w)
    depth  = sum_k softmax_k(logits) * bin_k    [m]                                          (B, 1, h, w)

This file is the whole method; everything in Python reads depth out of features with it (but for benchmarks/plain.py, to
be compared): `MonoCLIP` for one reading, its functions for any number of them. Left out: the encoders and how a
feature of each patch is read out of them (clip/), the data and how a picture becomes pixels (datasets/), the metrics
(calculate_error.py).

Shapes, here and in all files: B images, H x W pixels, h = H/32 and w = W/32 patches, C channels of the image trunk
(2048), D dimensions of the joint space (1024), K depth classes and bins (7), M sets of bins, L text tokens (77).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from numbers import Real
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip.dense import READOUTS, check_readout, encode, read
from clip.model import CLIP, Trunk
from clip.tokenizer import tokenize
from datasets.pictures import Source, read_picture, resized, working_size

NUMBERS = ("bin_list", "temperature", "logit_scale", "image_mean", "image_std")  # the fields that are no words
SMALLEST, LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max  # that fp32 holds at full precision


@dataclass(frozen=True)
class Reading:
    """How depth is read out of CLIP: the paper's words and numbers, each of which may be replaced by one's own.

    Lists will do for tuples, and whole numbers for floats. Raises ValueError: a value of another kind, words and bins
    that do not match, or a value that makes no depth. Paper: section 3; the defaults are its main result (table 1).
    """

    depth_templates: tuple[str, ...] = ("This {} is {}",)  # filled with an object and a depth class, or it alone
    obj_classes: tuple[str, ...] = ("object",)
    depth_classes: tuple[str, ...] = (
        "giant",
        "extremely close",
        "close",
        "not in distance",
        "a little remote",
        "far",
        "unseen",
    )
    bin_list: tuple[float, ...] = (1.00, 1.50, 2.00, 2.25, 2.50, 2.75, 3.00)  # [m], one for each depth class
    temperature: float = 0.1
    # Official quirk: features from before CLIP's attention pool; the others of `clip.dense` go through its last layer.
    readout: str = "raw"
    logit_scale: float = 100.0  # CLIP's own exp(logit_scale), as a constant

    # Official quirk: ImageNet's statistics, RGB in [0, 1]; CLIP was trained with those of `clip.CLIP_MEAN`.
    image_mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    image_std: tuple[float, float, float] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        for field in fields(self):
            value, many = getattr(self, field.name), isinstance(field.default, tuple)
            items, kind = value if many else [value], Real if field.name in NUMBERS else str
            if not isinstance(items, list | tuple) or not all(isinstance(v, kind) and v is not True for v in items):
                wanted = "a list of " * many + ("words" if kind is str else "numbers" if many else "a number")
                raise ValueError(f"{field.name}: expected {wanted}, got {value!r}")
            if kind is str and not all(v.strip() for v in items):
                raise ValueError(f"{field.name} has an empty word: {value!r}")
            if kind is Real and not all(abs(v) <= LARGEST for v in items):
                raise ValueError(f"{field.name} must be positive and finite, as fp32 holds it, got {value!r}")
            items = tuple(items) if kind is str else tuple(map(float, items))
            object.__setattr__(self, field.name, items if many else items[0])
        if len(self.depth_classes) != len(self.bin_list) or not self.bin_list:
            classes, bins = len(self.depth_classes), len(self.bin_list)
            raise ValueError(f"{classes} depth classes and {bins} bins: every depth class needs one bin [m]")
        if not all(depth > SMALLEST for depth in self.bin_list):
            raise ValueError(f"bins must be positive and finite depths [m], got {list(self.bin_list)}")
        if self.readout not in READOUTS:
            known = ", ".join(READOUTS)
            raise ValueError(f"read-out {self.readout!r}: there is none of this name; there are {known}")
        if not self.temperature > SMALLEST:
            raise ValueError(f"the temperature must be positive and finite, got {self.temperature}")
        if not self.depth_templates or not self.obj_classes:
            raise ValueError("at least one template and one object word are needed")
        for template in self.depth_templates:
            if not template.count("{}") == template.count("{") == template.count("}") in (1, 2):
                twice = "twice, for the object and for the depth class, or once, for the depth class"
                raise ValueError(f"template {template!r} must hold {{}} {twice}")

    def normalised(self, pixels: np.ndarray) -> Tensor:
        """Pixels as the encoder takes them: (H, W, 3) uint8, RGB -> (3, H, W) float32."""
        x = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).float() / 255
        return (x - torch.tensor(self.image_mean).view(3, 1, 1)) / torch.tensor(self.image_std).view(3, 1, 1)

    @property
    def words(self) -> tuple[tuple[str, ...], tuple[str, ...], tuple[str, ...]]:
        """What the text features depend on, in `zeroshot_classifier`'s order: depth classes, objects, templates."""
        return self.depth_classes, self.obj_classes, self.depth_templates


PAPER = Reading()
# Outdoors. The paper's own bins for KITTI are published nowhere. Auty and Mikolajczyk's words and bins (ICCV-W 2023);
# and ours, declared as such: the paper's words, with bins spread evenly in log depth over 5 to 60 m.
AUTY = Reading(
    depth_templates=("This object appears to be {}",),
    depth_classes=(
        "very close",
        "close",
        "slightly close",
        "neither close nor distant",
        "slightly distant",
        "distant",
        "very distant",
    ),
    bin_list=(5.715, 17.144, 28.572, 40.0, 51.429, 62.857, 74.286),
)
LOG_BINS = Reading(bin_list=tuple(round(5 * 12 ** (i / 6), 2) for i in range(7)))
READINGS: Mapping[str, Reading] = MappingProxyType({"paper": PAPER, "auty": AUTY, "log": LOG_BINS})


def prompt(template: str, obj: str, depth_class: str) -> str:
    """What CLIP is asked of a depth class: the template with both words, or with the depth class alone."""
    return template.format(obj, depth_class) if template.count("{}") == 2 else template.format(depth_class)


def zeroshot_classifier(
    clip_model: CLIP,
    depth_classes: Sequence[str] = PAPER.depth_classes,
    obj_classes: Sequence[str] = PAPER.obj_classes,
    depth_templates: Sequence[str] = PAPER.depth_templates,
) -> Tensor:
    """Text features T: one unit vector for each depth class, in the joint space.

    For each of the K classes, its prompts (a `prompt` for every template and object word) are encoded and
    L2-normalised, and their mean is L2-normalised again. All prompts are one batch.

    Returns:
        (D, K) float32.

    Raises:
        RuntimeError: a prompt has too many tokens.
        ValueError: a string where a list of them belongs, or the model was made for another tokenizer.

    Paper: section 3.2; the pure function is CLIP's zero-shot classifier.
    """
    if isinstance(depth_classes, str) or isinstance(obj_classes, str) or isinstance(depth_templates, str):
        raise ValueError("expected lists of words, objects and templates, got a string; its letters are no words")
    prompts = [prompt(t, o, c) for c in depth_classes for t in depth_templates for o in obj_classes]
    tokens = tokenize(prompts, clip_model.context_length)  # (K * templates, L)
    if tokens.numel() and int(tokens.max()) >= clip_model.token_embedding.num_embeddings:
        known = clip_model.token_embedding.num_embeddings
        raise ValueError(f"a text encoder of {known} tokens, where CLIP's tokenizer has more")
    device = clip_model.text_projection.device
    with torch.no_grad():
        text_features = clip_model.encode_text(tokens.to(device)).float()  # (K * templates, D)
        text_features = F.normalize(text_features, dim=-1)
        text_features = text_features.unflatten(0, (len(depth_classes), -1)).mean(dim=1)  # (K, D)
        return F.normalize(text_features, dim=-1).T.contiguous()  # (D, K)


def logits_of(features: Tensor, text_features: Tensor, reading: Reading) -> Tensor:
    """Scaled similarity of each patch to each depth class: (B, D, h, w), (D, K) -> (B, K, h, w)."""
    similarity = torch.einsum("bdhw,dk->bkhw", features, text_features)
    return reading.logit_scale * similarity / reading.temperature


def depth_of(logits: Tensor, bins: Tensor) -> Tensor:
    """Depth of each patch, within the bins, for M sets of bins: (B, K, h, w), (M, K) [m] -> (B, M, h, w) [m].

    Paper: equations 3 and 4.
    """
    return weighted(logits.softmax(dim=1), bins)


def weighted(weights: Tensor, bins: Tensor) -> Tensor:
    """sum_k p_k bin_k: (B, K, h, w), (M, K) [m] -> (B, M, h, w) [m]."""
    return torch.einsum("bkhw,mk->bmhw", weights, bins)


def entropy_of(weights: Tensor) -> Tensor:
    """How undecided the answers are, -sum_k p_k ln p_k, from 0 to ln K: (B, K, h, w) -> (B, 1, h, w)."""
    return torch.special.entr(weights).sum(dim=1, keepdim=True)


def sigma_of(weights: Tensor, bins: Tensor, depth: Tensor) -> Tensor:
    """How far the answers lie apart, sqrt(sum_k p_k (bin_k - depth)^2), for M sets of bins.

    (B, K, h, w), (M, K) [m] and their `weighted` depth (B, M, h, w) [m] -> (B, M, h, w) [m].
    """
    squares = (bins[:, :, None, None] - depth[:, :, None]).square()  # (B, M, K, h, w)
    return torch.einsum("bkhw,bmkhw->bmhw", weights, squares).sqrt()


def with_mirror(image: Tensor) -> Tensor:
    """The images and their horizontal mirrors in one batch: (B, 3, H, W) -> (2B, 3, H, W)."""
    return torch.cat([image, image.flip(-1)])


def mirror_average(depth: Tensor) -> Tensor:
    """Mean of each map and of its mirror's, mirrored back: (2B, M, h, w) as from `with_mirror` -> (B, M, h, w)."""
    upright, mirrored = depth.chunk(2)
    return (upright + mirrored.flip(-1)) / 2


def upsampled(depth: Tensor, size: Sequence[int]) -> Tensor:
    """Depth of each pixel from that of each patch, bilinear between their corners: (B, M, h, w) -> (B, M, *size)."""
    return F.interpolate(depth, tuple(size), mode="bilinear", align_corners=True)


class Answers(NamedTuple):
    """What is read out of one picture of H x W pixels and h x w patches; all float32."""

    depth: np.ndarray  # (H, W) [m]
    patch_depth: np.ndarray  # (h, w) [m]
    weights: np.ndarray  # (K, h, w), how strongly each depth class is answered to; their sum over K is 1
    sigma: np.ndarray  # (h, w) [m], by `sigma_of`
    entropy: np.ndarray  # (h, w) [nats], by `entropy_of`


class MonoCLIP(nn.Module):
    """Depth from an image and words.

    Args:
        clip_model: RN50 in the paper; any CLIP of `clip.load` works. Its image encoder becomes `clip_vis`.
        reading: words, bins and temperature.

    Attributes:
        text_features: (D, K) float32 buffer, from `zeroshot_classifier`.
        bin_list: (K,) float32 buffer [m].

    Raises ValueError: the encoder does not have the reading's read-out.
    """

    text_features: Tensor
    bin_list: Tensor

    def __init__(self, clip_model: CLIP, reading: Reading = PAPER) -> None:
        super().__init__()
        self.clip_vis = clip_model.visual
        self.reading = reading
        check_readout(self.clip_vis, reading.readout)
        text_features = zeroshot_classifier(clip_model, *reading.words)
        self.register_buffer("text_features", text_features)
        self.register_buffer("bin_list", torch.tensor(reading.bin_list, device=text_features.device))

    def trunk(self, image: Tensor, mirror: bool = True) -> Trunk:
        """What CLIP's image encoder sees of the images and then of their mirrors, before anything is read out of it.

        (B, 3, H, W) of any size -> patches (2B, C, h, w) float32; without `mirror`, of the images alone, (B, C, h, w).
        `experiments` stores it.
        """
        return encode(self.clip_vis, with_mirror(image) if mirror else image, self.reading.readout)

    def patch_features(self, trunk: Trunk) -> Tensor:
        """f: a vector for each patch, by the reading's read-out, patches (B, C, h, w) -> (B, D, h, w).

        Official quirks of the paper's, `raw`: the trunk ends before CLIP's attention pool, so f is not in the joint
        space of image and text; and every second channel stands for all, without a new normalisation, so that |f| < 1.
        The usual thing would be the pool's value and output projections, `maskclip`.

        Paper: section 3.1.
        """
        return read(self.clip_vis, trunk, self.reading.readout)

    def logits(self, features: Tensor) -> Tensor:
        """Scaled similarity of each patch to each depth class: (B, D, h, w) -> (B, K, h, w)."""
        return logits_of(features, self.text_features, self.reading)

    def depth(self, features: Tensor) -> Tensor:
        """Depth of each patch, within the bins: (B, D, h, w) -> (B, 1, h, w) [m]."""
        return depth_of(self.logits(features), self.bin_list[None])

    def forward(self, image: Tensor) -> Tensor:
        """Depth of each patch, the mean of the image's and its mirror's: (B, 3, H, W) -> (B, 1, h, w) [m]."""
        return mirror_average(self.depth(self.patch_features(self.trunk(image))))

    def predict(self, image: Tensor) -> Tensor:
        """Depth of each pixel: (B, 3, H, W), normalised with the reading's statistics -> (B, 1, H, W) float32 [m].

        An image that patches do not fill is resized to the nearest size that they do.
        """
        return upsampled(self(image), image.shape[2:])

    def uncertainty(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """How far apart and how undecided the answers of each patch are, in the mean of image and mirror.

        (B, 3, H, W) -> sigma (B, 1, h, w) [m] by `sigma_of` and entropy (B, 1, h, w) [nats] by `entropy_of`, float32.
        """
        weights = mirror_average(self.logits(self.patch_features(self.trunk(image))).softmax(dim=1))
        _, sigma, entropy = self.told_by(weights)
        return sigma, entropy

    def told_by(self, weights: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Depth [m], sigma [m] and entropy of the words' weights: (B, K, h, w) -> (B, 1, h, w) each."""
        depth = weighted(weights, self.bin_list[None])
        return depth, sigma_of(weights, self.bin_list[None], depth), entropy_of(weights)

    def answers(self, features: Tensor, size: Sequence[int]) -> Answers:
        """All that the words say of one picture of `size` (H, W).

        features: (2, D, h, w) of the picture and its mirror, whose answers are averaged, or (1, D, h, w).
        """
        weights = self.logits(features).softmax(dim=1)
        weights = mirror_average(weights) if len(features) == 2 else weights  # (1, K, h, w)
        depth, sigma, entropy = self.told_by(weights)  # (1, 1, h, w) each
        found = (upsampled(depth, size)[0, 0], depth[0, 0], weights[0], sigma[0, 0], entropy[0, 0])
        return Answers(*(maps.cpu().numpy() for maps in found))

    @torch.inference_mode()
    def infer_image(self, image: Source | list | tuple, return_all: bool = False, color: str = "rgb") -> Any:
        """Depth of each pixel of a picture of any size and kind, as `predict` gives it for its own sizes.

        Args:
            image: RGB, as `datasets.pictures.read_picture` takes it: a file, a PIL image, an array (H, W), (H, W, 1),
                (H, W, 3) or (H, W, 4), a tensor (3, H, W), of uint8 or of floats in [0, 1]; or a list or tuple of such.
            return_all: give the whole `Answers`.
            color: "bgr" for arrays as cv2 reads them.

        Returns:
            (H, W) float32 [m], of the picture's size once it is turned upright as EXIF says, or `Answers`; for a list
            of pictures, a list.

        Raises DataError and ValueError as `read_picture` does.
        """
        if isinstance(image, list | tuple):
            return [self.infer_image(one, return_all, color) for one in image]
        pixels = read_picture(image, color)
        found = self.answers(self.patch_features(self.trunk(self.prepare(pixels))), pixels.shape[:2])
        return found if return_all else found.depth

    def prepare(self, pixels: np.ndarray) -> Tensor:
        """The picture as the encoder takes it: (H, W, 3) uint8, RGB -> (1, 3, H', W') by `working_size`."""
        height, width, _ = pixels.shape
        view = resized(pixels, working_size(height, width, self.clip_vis.patch_size))
        return self.reading.normalised(view)[None].to(self.bin_list.device)
