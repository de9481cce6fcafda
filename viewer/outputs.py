"""The files that predict.py writes of a picture: arrays, 16-bit millimetres, and drawings with a legend in metres.

Nothing here reads or writes files.
"""

import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from datasets import printable
from datasets.pictures import resized
from monoclip import Reading, depth_of, upsampled
from viewer.colour import COLOUR_MAP, NO_DEPTH_MAP, colourise, sigma_of, to_millimetres

# Kinds of output, and the ends of the names of their files.
SAVED = {"npy": ["_depth.npy"], "mm": ["_depth_mm.png"], "colour": ["_depth.png"], "words": ["_words.png"]}
SAVED |= {"side_by_side": ["_side_by_side.png"], "sigma": ["_sigma.npy", "_sigma.png"]}
# The first, middle and last numbers of a legend.
DEPTH, SIGMA = ("near {} m", "{} m", "{} m far"), ("sure {} m", "{} m", "{} m unsure")
WEIGHT = ("weight {}", "{}", "{}")
LEGEND_WIDTH = 240  # px at least, so that its ends can be read under a map of any size
TILE_SIDE, LABEL_SIZE = 240, 15  # px, of the longer side of each map in `word_maps`, and of its letters


class Style(NamedTuple):
    """How the drawings of a run look."""

    colour_map: str = COLOUR_MAP  # matplotlib's name of that of depth
    own_range: bool = False  # colours span what there is in a picture; else all that there can be
    legend: bool = False  # also below the coloured depth alone
    note: str = ""  # below every legend


class Predicted(NamedTuple):
    """A picture of H x W pixels and h x w patches, and what the words say of it."""

    pixels: np.ndarray  # (H, W, 3) uint8
    depth: np.ndarray  # (H', W') float32 [m], of the picture's size or smaller
    weights: Tensor  # (1, K, h, w), how strongly each patch answers to each word, on the CPU
    features: Tensor  # (2, D, h, w), of the picture and its mirror, or (1, D, h, w)


def content_of(ending: str, found: Predicted, reading: Reading, style: Style) -> memoryview:
    """Return the content of the file of this ending, of a picture that was predicted with `reading`."""
    content, size, bins = io.BytesIO(), found.depth.shape, torch.tensor([reading.bin_list])
    values, colour_map, numbers = found.depth, style.colour_map, DEPTH
    span = min(reading.bin_list), max(reading.bin_list)
    if "sigma" in ending:
        patches = sigma_of(found.weights, bins, depth_of(found.weights, bins))  # (1, 1, h, w)
        values, colour_map, numbers = upsampled(patches, size)[0, 0].numpy(), NO_DEPTH_MAP, SIGMA
        span = 0.0, (span[1] - span[0]) / 2  # the largest there is: half of the answers at either end
    if style.own_range:
        span = float(values.min()), float(values.max())
    if ending.endswith(".npy"):
        np.save(content, values)
        return content.getbuffer()
    if ending == "_depth_mm.png":
        image = Image.fromarray(to_millimetres(values))
    elif ending == "_words.png":
        labels = [f"{printable(c)[:40]}, {b:g} m" for c, b in zip(reading.depth_classes, reading.bin_list, strict=True)]
        drawn = word_maps(found.pixels, found.weights, labels)
        image = with_legend(drawn, (0, 1), NO_DEPTH_MAP, WEIGHT, style.note, LABEL_SIZE)
    else:
        drawn = colourise(values, *span, colour_map)
        if ending == "_side_by_side.png":  # or above each other, if they are wide
            drawn = np.concatenate([resized(found.pixels, size), drawn], axis=0 if size[1] > 2 * size[0] else 1)
        plain = ending == "_depth.png" and not style.legend
        image = Image.fromarray(drawn) if plain else with_legend(drawn, span, colour_map, numbers, style.note)
    image.save(content, "PNG")
    return content.getbuffer()


def letters(size: int) -> ImageFont.FreeTypeFont:
    """matplotlib's DejaVu Sans, which has most alphabets, with letters of `size` px."""
    import matplotlib

    return ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)


def with_legend(
    image: np.ndarray, span: tuple[float, float], colour_map: str, numbers: Sequence[str], note: str, size: int = 0
) -> Image.Image:
    """Return the image (H, W, 3), whole and at the top left, above a bar of its colours, their numbers and a note.

    The canvas is as wide as the image, or as the legend needs, and the letters have `size` px or, with 0, the image's.
    """
    height, width = image.shape[:2]
    size = size or max(11, round(min(max(width, LEGEND_WIDTH), 4 * height) / 50))  # also of the bar and the margins
    font = letters(size)
    length = round(max(width, LEGEND_WIDTH, font.getlength(note) + 2 * size))
    canvas = Image.new("RGB", (length, height + round((5.5 if note else 4) * size)), "white")
    canvas.paste(Image.fromarray(image), (0, 0))
    top, inner = height + size // 2, length - 2 * size
    bar = colourise(np.linspace(*span, inner)[None].repeat(size, axis=0), *span, colour_map)
    canvas.paste(Image.fromarray(bar), (size, top))
    draw = ImageDraw.Draw(canvas)
    for place, text, anchor in zip((0, 0.5, 1), numbers, ("la", "ma", "ra"), strict=True):
        value = f"{span[0] + place * (span[1] - span[0]):.3g}"
        draw.text((size + place * inner, top + size + size // 3), text.format(value), "black", font, anchor)
    draw.text((size, top + 3 * size), note, "black", font)
    return canvas


def word_maps(pixels: np.ndarray, weights: Tensor, labels: Sequence[str]) -> np.ndarray:
    """Return the picture and how strongly each patch answers to each word, small, below titles: (h', w', 3) uint8.

    The weights (1, K, h, w) go from 0, which is black, to 1; `labels` are K titles. The last map is the entropy,
    divided by the largest there is, ln K: bright is undecided.
    """
    scale, font = TILE_SIDE / max(pixels.shape), letters(LABEL_SIZE)
    height, width = (max(1, round(side * scale)) for side in pixels.shape[:2])
    entropy = torch.special.entr(weights).sum(dim=1, keepdim=True) / max(math.log(len(labels)), 1e-30)
    tiles = [Image.fromarray(resized(pixels, (height, width)))]
    for values in torch.cat([weights, entropy], dim=1)[0].numpy():
        patches = Image.fromarray(colourise(values, 0, 1, NO_DEPTH_MAP))
        tiles.append(patches.resize((width, height), Image.Resampling.NEAREST))
    titles = ["picture", *labels, "unsure (entropy / ln K)"]
    columns = math.ceil(len(tiles) ** 0.5)
    pitch = round(max(width, *map(font.getlength, titles))) + LABEL_SIZE, height + 3 * LABEL_SIZE
    canvas = Image.new("RGB", (columns * pitch[0] + LABEL_SIZE, -(-len(tiles) // columns) * pitch[1]), "white")
    for place, (tile, title) in enumerate(zip(tiles, titles, strict=True)):
        left, top = LABEL_SIZE + place % columns * pitch[0], LABEL_SIZE // 2 + place // columns * pitch[1]
        ImageDraw.Draw(canvas).text((left, top), title, "black", font)
        canvas.paste(tile, (left, top + 3 * LABEL_SIZE // 2))
    return np.array(canvas)
