"""The files that predict.py writes of a picture: arrays, 16-bit millimetres, and drawings with a legend in metres.

Nothing here reads or writes files.
"""

import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from datasets import printable
from datasets.pictures import resized
from monoclip import Reading, depth_of, upsampled
from viewer.colour import COLOUR_MAP, NO_DEPTH_MAP, coloured, entropy_of, sigma_of, to_millimetres

# Kinds of output, and the ends of the names of their files.
SAVED = {
    "npy": ["_depth.npy"],
    "mm": ["_depth_mm.png"],
    "colour": ["_depth.png"],
    "side_by_side": ["_side_by_side.png"],
    "sigma": ["_sigma.npy", "_sigma.png"],
    "words": ["_words.png"],
}
LEGEND_WIDTH = 240  # px at least, so that its ends can be read under a map of any size
TILE_SIDE, LABEL_SIZE = 240, 14  # px, of the longer side of each map in `word_maps`, and of its letters


def content_of(
    ending: str,
    pixels: np.ndarray,
    depth: np.ndarray,
    weights: Tensor,
    reading: Reading,
    colour_map: str,
    own_range: bool,
    note: str,
) -> memoryview:
    """Return the content of the file of this ending.

    Of a picture (H, W, 3) uint8, its depth (H', W') [m] and the weights of the words in each patch, (1, K, h, w),
    which `reading` made. `colour_map` is matplotlib's name of that of depth; colours span what there is in the picture,
    or, without `own_range`, all that there can be; `note` stands below a legend.
    """
    content, size, bins = io.BytesIO(), depth.shape, torch.tensor([reading.bin_list])
    values, bounds, ends = depth, bins.numpy(), ("near {}", "{} far")
    if "sigma" in ending:
        patches = sigma_of(weights, bins, depth_of(weights, bins))  # (1, 1, h, w)
        values = upsampled(patches, size)[0, 0].numpy()
        bounds = np.array([0, np.ptp(bounds) / 2])  # to the largest there is: half of the answers at either end
        ends, colour_map = ("sure {}", "{} unsure"), NO_DEPTH_MAP
    if ending.endswith(".npy"):
        np.save(content, values)
        return content.getbuffer()
    if ending == "_depth_mm.png":
        image = Image.fromarray(to_millimetres(values))
    elif ending == "_words.png":
        labels = [f"{printable(c)[:40]}, {b:g} m" for c, b in zip(reading.depth_classes, reading.bin_list, strict=True)]
        drawn = word_maps(weights, labels, size)
        image = with_legend(drawn, 0, 1, NO_DEPTH_MAP, ("weight {}", "{}"), "", note)
    else:
        bounds = values if own_range else bounds
        span = float(bounds.min()), float(bounds.max())
        drawn = coloured(values, *span, colour_map)
        drawn = side_by_side(resized(pixels, size), drawn) if ending == "_side_by_side.png" else drawn
        image = with_legend(drawn, *span, colour_map, ends, " m", note)
    image.save(content, "PNG")
    return content.getbuffer()


def letters(size: int) -> ImageFont.FreeTypeFont:
    """matplotlib's DejaVu Sans, which has most alphabets, with letters of `size` px."""
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def with_legend(
    image: np.ndarray,
    low: float,
    high: float,
    colour_map: str = COLOUR_MAP,
    ends: tuple[str, str] = ("near {}", "{} far"),
    unit: str = " m",
    note: str = "",
) -> Image.Image:
    """Return the image (H, W, 3), whole and at the top left, above a bar of the colours with what they mean.

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
    count = 5 if inner > 40 * size else 3  # the longest text is 8 letters wide, as they are high
    texts = [f"{value:.{digits}f}{unit}" for value in np.linspace(low, high, count)]
    texts = [ends[0].format(texts[0]), *texts[1:-1], ends[1].format(texts[-1])]
    for place, text in enumerate(texts):
        anchor = {0: "la", count - 1: "ra"}.get(place, "ma")  # to the right of the place, to its left, in the middle
        draw.text((size + place / (count - 1) * inner, top + size + size // 3), text, "black", font, anchor)
    draw.text((size, top + 3 * size), note, "black", font)
    return canvas


def side_by_side(pixels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Return the picture and its coloured map, (H, W, 3) each, beside each other, or above each other if wide.

    Between them is a white gap.
    """
    height, width, _ = pixels.shape
    gap, below = max(2, min(height, width) // 25), width > 2 * height
    edged = np.pad(pixels, ((0, gap * below), (0, gap * (not below)), (0, 0)), constant_values=255)
    return np.concatenate([edged, colours], axis=0 if below else 1)


def word_maps(weights: Tensor, labels: Sequence[str], size: tuple[int, int]) -> np.ndarray:
    """Return how strongly each patch answers to each word, as one small map a word below its label: (h', w', 3) uint8.

    Args:
        weights: (1, K, h, w), from 0, which is black, to 1, with a sum over K of 1.
        labels: K of them.
        size: (H, W) of the picture.

    The last map is the entropy, divided by the largest there is, ln K: bright is undecided.
    """
    scale, font = TILE_SIDE / max(size), letters(LABEL_SIZE)
    height, width = (max(1, round(side * scale)) for side in size)
    texts = [*labels, "unsure (entropy / ln K)"]
    entropy = entropy_of(weights) / max(math.log(len(labels)), 1e-30)
    pitch = round(max(width, *map(font.getlength, texts))) + LABEL_SIZE, height + 3 * LABEL_SIZE
    columns = min(len(texts), 4)
    canvas = Image.new("RGB", (columns * pitch[0] + LABEL_SIZE, -(-len(texts) // columns) * pitch[1]), "white")
    for place, (tile, text) in enumerate(zip(torch.cat([weights, entropy], dim=1)[0].numpy(), texts, strict=True)):
        left, top = LABEL_SIZE + place % columns * pitch[0], LABEL_SIZE // 2 + place // columns * pitch[1]
        ImageDraw.Draw(canvas).text((left, top), text, "black", font)
        patches = Image.fromarray(coloured(tile, 0, 1, NO_DEPTH_MAP))
        canvas.paste(patches.resize((width, height), Image.Resampling.NEAREST), (left, top + 3 * LABEL_SIZE // 2))
    return np.array(canvas)
