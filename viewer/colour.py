"""Depth maps as images: 16-bit millimetres, colours with a legend in metres, picture and map side by side, all words.

Unless the user names another of matplotlib's colour maps, depth is in viridis, which is perceptually uniform and
survives colour blindness and grey printing, turned round so that near is bright; black and white stay free for what is
not known. What is no depth (weights, sigma) is in magma. The range is given by the caller: where it is the same for
every picture, so is the distance that a colour means. Nothing here reads or writes files.
"""

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

COLOUR_MAP = "viridis_r"
NO_DEPTH_MAP = "magma"
LEGEND_WIDTH = 240  # px at least, so that its ends can be read under a map of any size
TILE_SIDE, LABEL_SIZE = 240, 14  # px, of the longer side of each map in `word_maps`, and of its letters
LARGEST_MM = 2**16 - 1


def sigma_of(weights: Tensor, bins: Tensor, depth: Tensor) -> Tensor:
    """Standard deviation of depth over the words, sqrt(sum_k p_k (bin_k - depth)^2), for M sets of bins.

    (B, K, h, w), (M, K) [m] and their depth (B, M, h, w) [m] -> (B, M, h, w) [m].
    """
    squares = (bins[:, :, None, None] - depth[:, :, None]).square()  # (B, M, K, h, w)
    return torch.einsum("bkhw,bmkhw->bmhw", weights, squares).sqrt()


def entropy_of(weights: Tensor) -> Tensor:
    """How undecided the answers are, -sum_k p_k ln p_k, from 0 to ln K: (B, K, h, w) -> (B, 1, h, w)."""
    return torch.special.entr(weights).sum(dim=1, keepdim=True)


def to_millimetres(depth: np.ndarray) -> np.ndarray:
    """(H, W) float32 [m] -> (H, W) uint16 [mm], as NYU's own depth files; 65.535 m and more become 65535."""
    return np.multiply(depth, 1000, dtype=np.float64).round().clip(0, LARGEST_MM).astype(np.uint16)


def colour_table(name: str = COLOUR_MAP) -> np.ndarray:
    """The 256 colours of one of matplotlib's maps, from near to far: (256, 3) uint8, RGB."""
    from matplotlib import colormaps  # here, so that a command which draws nothing does not wait for matplotlib

    return (colormaps[name](np.linspace(0, 1, 256))[:, :3] * 255).round().astype(np.uint8)


def letters(size: int) -> ImageFont.FreeTypeFont:
    """matplotlib's DejaVu Sans, which has most alphabets, with letters of `size` px."""
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def coloured(values: np.ndarray, low: float, high: float, colour_map: str = COLOUR_MAP) -> np.ndarray:
    """(H, W) [m] -> (H, W, 3) uint8: the map's first colour up to `low` [m], its last from `high` [m] on."""
    position = (values - low) / max(high - low, 1e-6)
    return colour_table(colour_map)[(position.clip(0, 1) * 255).round().astype(np.uint8)]


def with_legend(
    image: np.ndarray,
    low: float,
    high: float,
    colour_map: str = COLOUR_MAP,
    ends: tuple[str, str] = ("near {}", "{} far"),
    unit: str = " m",
    note: str = "",
) -> Image.Image:
    """The image (H, W, 3), whole and at the top left, above a bar of the colours with what they mean.

    The canvas is as wide as the image, or as the legend needs. `ends` go around the first and the last number, `note`
    below them all.
    """
    height, width = image.shape[:2]
    size = max(11, round(min(max(width, LEGEND_WIDTH), 4 * height) / 50))  # of the letters, the bar, the margins, px
    font = letters(size)
    length = round(max(width, LEGEND_WIDTH, font.getlength(note) + 2 * size))
    canvas = Image.new("RGB", (length, height + round((5.5 if note else 4) * size)), "white")
    canvas.paste(Image.fromarray(image), (0, 0))
    top, inner = height + size // 2, length - 2 * size
    bar = coloured(np.linspace(low, high, inner)[None].repeat(size, axis=0), low, high, colour_map)
    canvas.paste(Image.fromarray(bar), (size, top))
    draw, digits = ImageDraw.Draw(canvas), 2 if high - low >= 0.1 or high == low else 4
    for count in (5, 3, 2):
        texts = [f"{value:.{digits}f}{unit}" for value in np.linspace(low, high, count)]
        texts = [ends[0].format(texts[0]), *texts[1:-1], ends[1].format(texts[-1])]
        needed = [font.getlength(text) for text in texts]
        if 1.5 * max(needed) + size <= inner / (count - 1):
            break
    for place, (text, wide) in enumerate(zip(texts, needed, strict=True)):
        x = min(max(place / (len(texts) - 1) * inner - wide / 2, 0), inner - wide)
        draw.text((size + x, top + size + size // 3), text, "black", font)
    draw.text((size, top + 3 * size), note, "black", font)
    return canvas


def side_by_side(pixels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """The picture and its coloured map, (H, W, 3) each, beside each other, or above each other if they are wide.

    Between them is a white gap.
    """
    height, width, _ = pixels.shape
    gap, axis = max(2, min(height, width) // 25), 0 if width > 2 * height else 1
    white = np.full((gap, width, 3) if axis == 0 else (height, gap, 3), 255, dtype=np.uint8)
    return np.concatenate([pixels, white, colours], axis=axis)


def word_maps(weights: np.ndarray, entropy: np.ndarray, labels: Sequence[str], size: tuple[int, int]) -> np.ndarray:
    """How strongly each patch answers to each word, as one small map a word below its label: (h', w', 3) uint8.

    Args:
        weights: (K, h, w), from 0, which is black, to 1, with a sum over K of 1.
        entropy: (h, w) [nats], of the weights.
        labels: K of them.
        size: (H, W) of the picture.

    The last map is the entropy, divided by the largest there is, ln K: bright is undecided.
    """
    scale, font = TILE_SIDE / max(size), letters(LABEL_SIZE)
    height, width = (max(1, round(side * scale)) for side in size)
    texts = [*labels, "unsure (entropy / ln K)"]
    pitch = round(max(width, *map(font.getlength, texts))) + LABEL_SIZE, height + 3 * LABEL_SIZE
    columns = min(len(texts), 4)
    canvas = Image.new("RGB", (columns * pitch[0] + LABEL_SIZE, -(-len(texts) // columns) * pitch[1]), "white")
    for place, (tile, text) in enumerate(
        zip([*weights, entropy / max(np.log(len(weights)), 1e-30)], texts, strict=True)
    ):
        left, top = LABEL_SIZE + place % columns * pitch[0], LABEL_SIZE // 2 + place // columns * pitch[1]
        ImageDraw.Draw(canvas).text((left, top), text, "black", font)
        patches = Image.fromarray(coloured(tile, 0, 1, NO_DEPTH_MAP))
        canvas.paste(patches.resize((width, height), Image.Resampling.NEAREST), (left, top + 3 * LABEL_SIZE // 2))
    return np.array(canvas)
