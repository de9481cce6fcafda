"""The method of "Can Language Understand Depth?" (Zhang et al., ACM MM 2022, arXiv 2207.01077), from top to bottom.

CLIP (RN50, a ResNet-50), which was never shown depth, is asked how well each patch of an image fits "This object is
close", "... far" and five more prompts. A mean of seven depths, weighted by their softmax, is the depth of the patch:

    f      = layer4 at unit length, then every second channel of it   (B, D, h, w)
    p      = softmax(100 * f @ T / .1), the mean of image and mirror  (B, K, h, w), T: text features (D, K)
    depth  = sum_k p_k * bin_k    [m], so never outside 1 to 3 m      (B, 1, h, w), then resized to H x W

Left out: the encoders and other read-outs (clip/), the data (datasets/), NYU's crop and metrics (calculate_error.py).
Shapes: B images of H x W pixels, h = H/32 and w = W/32 patches, C channels of layer4 (2048), D dimensions of the joint
space of image and text (1024), K depth classes and bins (7), M sets of bins (1 here), L text tokens (77).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from clip.dense import check_readout, encode, read, thins
from clip.model import CLIP, Trunk
from clip.tokenizer import tokenize
from datasets.pictures import Source, read_picture, resized, working_size


@dataclass(frozen=True)
class Reading:
    """How depth is read out of CLIP: the paper's words and numbers (table 1), or one's own. Raises ValueError."""

    depth_templates: tuple[str, ...] = ("This {} is {}",)  # filled with object and depth class, or the latter alone
    obj_classes: tuple[str, ...] = ("object",)
    depth_classes: tuple[str, ...] = (
        "giant", "extremely close", "close", "not in distance", "a little remote", "far", "unseen",
    )  # fmt: skip
    bin_list: tuple[float, ...] = (1.00, 1.50, 2.00, 2.25, 2.50, 2.75, 3.00)  # [m], one for each depth class
    temperature: float = 0.1
    logit_scale: float = 100.0  # CLIP's own exp(logit_scale), as a constant
    readout: str = "raw"  # `patch_features`; the others are those of `clip.dense`
    # Official quirk: ImageNet's statistics, RGB in [0, 1]; the usual thing would be CLIP's own, `clip.CLIP_MEAN`.
    image_mean: tuple[float, ...] = (0.485, 0.456, 0.406)
    image_std: tuple[float, ...] = (0.229, 0.224, 0.225)

    def __post_init__(self) -> None:
        classes, bins = len(self.depth_classes), len(self.bin_list)
        if classes != bins or not bins:
            raise ValueError(f"{classes} depth classes and {bins} bins: every depth class needs one bin [m]")
        if not all(0 < value < float("inf") for value in (*self.bin_list, self.temperature)):
            raise ValueError("bins [m] and the temperature must be positive and finite")
        for template in self.depth_templates:
            if not template.count("{}") == template.count("{") == template.count("}") in (1, 2):
                raise ValueError(f"template {template!r} must hold {{}} twice, for object and depth class, or once")

    def normalised(self, pixels: np.ndarray) -> Tensor:
        """Pixels as the encoder takes them: (H, W, 3) uint8, RGB -> (3, H, W) float32."""
        x = torch.from_numpy(np.ascontiguousarray(pixels)).permute(2, 0, 1).float() / 255
        return (x - torch.tensor(self.image_mean).view(3, 1, 1)) / torch.tensor(self.image_std).view(3, 1, 1)

    @property
    def words(self) -> tuple[tuple[str, ...], ...]:
        """What the text features depend on, in the order of `zeroshot_classifier`."""
        return self.depth_classes, self.obj_classes, self.depth_templates


PAPER = Reading()


def prompt(template: str, obj: str, depth_class: str) -> str:
    """The template with both words, or with the depth class alone."""
    return template.format(*(obj, depth_class)[-template.count("{}") :])


@torch.no_grad()
def zeroshot_classifier(
    clip_model: CLIP,
    depth_classes: Sequence[str] = PAPER.depth_classes,
    obj_classes: Sequence[str] = PAPER.obj_classes,
    depth_templates: Sequence[str] = PAPER.depth_templates,
) -> Tensor:
    """Text features T: for each depth class the unit mean of the unit vectors of its prompts. Paper: section 3.2.

    Returns (D, K) float32. Raises RuntimeError: a prompt has too many tokens.
    """
    prompts = [prompt(t, o, c) for c in depth_classes for t in depth_templates for o in obj_classes]
    tokens = tokenize(prompts, clip_model.context_length).to(clip_model.text_projection.device)  # (K * prompts, L)
    features = F.normalize(clip_model.encode_text(tokens).float(), dim=-1)  # (K * prompts, D)
    features = features.unflatten(0, (len(depth_classes), -1)).mean(dim=1)  # (K, D)
    return F.normalize(features, dim=-1).T.contiguous()  # (D, K)


def patch_features(layer4: Tensor, dimensions: int) -> Tensor:
    """f: a vector for each patch, |f| < 1: (B, C, h, w) -> (B, D, h, w) float32. Paper: section 3.1."""
    # Official quirks: layer4 lies before the attention pool, so f is not in the joint space of image and text; every
    # second channel (C / D-th) stands for all, not normalised again. Usual would be `maskclip` (clip/dense.py).
    return F.normalize(layer4.float(), dim=1)[:, :: layer4.shape[1] // dimensions]


def logits_of(features: Tensor, text_features: Tensor, reading: Reading) -> Tensor:
    """Scaled similarity of each patch to each depth class: (B, D, h, w), (D, K) -> (B, K, h, w)."""
    return reading.logit_scale * torch.einsum("bdhw,dk->bkhw", features, text_features.float()) / reading.temperature


def depth_of(weights: Tensor, bins: Tensor) -> Tensor:
    """sum_k p_k bin_k for M sets of bins: (B, K, h, w), (M, K) [m] -> (B, M, h, w) [m]. Paper: equations 3 and 4."""
    return torch.einsum("bkhw,mk->bmhw", weights, bins.float())


def with_mirror(image: Tensor) -> Tensor:
    """The images and then their horizontal mirrors: (B, 3, H, W) -> (2B, 3, H, W)."""
    return torch.cat([image, image.flip(-1)])


def mirror_average(maps: Tensor) -> Tensor:
    """Mean of each image's maps and of its mirror's, mirrored back: (2B, K, h, w) -> (B, K, h, w)."""
    upright, mirrored = maps.chunk(2)
    return (upright + mirrored.flip(-1)) / 2


def upsampled(depth: Tensor, size: Sequence[int]) -> Tensor:
    """Depth of each pixel from that of each patch: (B, M, h, w) -> (B, M, *size)."""
    # Official quirk: corners lie on corners, which moves patches by up to half of one; usual is align_corners=False.
    return F.interpolate(depth, tuple(size), mode="bilinear", align_corners=True)


class MonoCLIP(nn.Module):
    """Depth from an image and words. Raises TypeError: not a CLIP; ValueError: its encoder lacks the read-out."""

    def __init__(self, clip_model: CLIP, reading: Reading = PAPER) -> None:
        super().__init__()
        if not isinstance(clip_model, CLIP):
            raise TypeError(f'expected a CLIP, got {type(clip_model).__name__}; call MonoCLIP(clip.load("RN50")[0])')
        check_readout(clip_model.visual, reading.readout)
        self.clip_vis, self.reading = clip_model.visual, reading
        self.text_features: Tensor = nn.Buffer(zeroshot_classifier(clip_model, *reading.words))  # (D, K) float32
        self.bin_list: Tensor = nn.Buffer(self.text_features.new_tensor(reading.bin_list))  # (K,) [m]

    def trunk(self, image: Tensor) -> Trunk:
        """What the encoder sees of the images, then of their mirrors: (B, 3, H, W) -> patches (2B, C, h, w) float32."""
        if not isinstance(image, Tensor):
            raise TypeError(f'expected images, got {type(image).__name__}; for a photo call model.infer_image("a.jpg")')
        if image.ndim != 4 or image.shape[1] != 3 or 0 in image.shape[2:]:
            raise ValueError(f"expected images (B, 3, H, W), got {tuple(image.shape)}")
        return encode(self.clip_vis, with_mirror(image))

    def features(self, trunk: Trunk, readout: str = "") -> Tensor:
        """f of each patch, by the reading's read-out or another: patches (B, C, h, w) -> (B, D, h, w)."""
        if thins(self.clip_vis, readout := readout or self.reading.readout):
            return patch_features(trunk.patches.to(self.bin_list.device), len(self.text_features))
        return read(self.clip_vis, trunk, readout)

    def weights(self, trunk: Trunk) -> Tensor:
        """p, in the mean of image and mirror, of the trunk of both: patches (2B, C, h, w) -> (B, K, h, w)."""
        logits = logits_of(self.features(trunk), self.text_features, self.reading)  # (2B, K, h, w)
        return mirror_average(logits.softmax(dim=1))

    def forward(self, image: Tensor) -> Tensor:
        """p, how strongly each patch answers to each depth class: (B, 3, H, W), normalised -> (B, K, h, w)."""
        return self.weights(self.trunk(image))

    def predict(self, image: Tensor, size: Sequence[int] | None = None) -> Tensor:
        """Depth of each pixel: (B, 3, H, W), normalised -> (B, 1, H, W) float32 [m], or of another `size`."""
        return upsampled(depth_of(self(image), self.bin_list[None]), size or image.shape[2:])

    def prepare(self, pixels: np.ndarray) -> Tensor:
        """A picture as the encoder takes it: (H, W, 3) uint8, RGB -> (3, H', W') by `working_size`."""
        height, width, _ = pixels.shape
        return self.reading.normalised(resized(pixels, working_size(height, width, self.clip_vis.patch_size)))

    @torch.inference_mode()
    def infer_image(self, image: Source, color: str = "rgb", colour: str = "") -> np.ndarray:
        """Depth of a picture of any size and kind, (H, W) float32 [m]; arguments and errors of `read_picture`."""
        view = self.prepare(pixels := read_picture(image, colour or color))[None].to(self.bin_list.device)
        return self.predict(view, pixels.shape[:2])[0, 0].cpu().numpy()
