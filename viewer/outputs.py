"""The content of the files that predict.py writes of a picture: arrays, 16-bit millimetres, and drawings."""

import io
import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from datasets import printable
from datasets.pictures import resized
from monoclip import Reading, depth_of, upsampled
from viewer.colour import COLOUR_MAP, NO_DEPTH_MAP, colour_table, colourise, sigma_of, to_millimetres

SAVED = {"npy": ["_depth.npy"], "mm": ["_depth_mm.png"], "colour": ["_depth.png"], "words": ["_words.png"]}
SAVED |= {"side_by_side": ["_side_by_side.png"], "sigma": ["_sigma.npy", "_sigma.png"]}  # kinds, ends of files' names
DEPTH, SIGMA = ("near {} m", "{} m", "{} m far"), ("sure {} m", "{} m", "{} m unsure")  # the numbers of a legend
WEIGHT = ("weight {}", "{}", "{}")
SMALL = 240  # px, the longer side of each of `word_tiles`, and least width of a legend, so that it can be read

Tiles = Sequence[tuple[str, np.ndarray]]  # titles and images (H, W, 3) uint8, all of one size


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
    values, span, colour_map, numbers = found.depth, (bins.min().item(), bins.max().item()), style.colour_map, DEPTH
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
        image = sheet(word_tiles(found, reading), (0, 1), NO_DEPTH_MAP, WEIGHT, style.note)
    else:
        tiles = [("", drawn := colourise(values, *span, colour_map))]
        if ending == "_side_by_side.png":
            tiles = [("picture", resized(found.pixels, size)), ("depth", drawn)]
        plain = ending == "_depth.png" and not style.legend
        image = Image.fromarray(drawn) if plain else sheet(tiles, span, colour_map, numbers, style.note)
    image.save(content, "PNG")
    return content.getbuffer()


def word_tiles(found: Predicted, reading: Reading) -> Tiles:
    """Return the picture, how strongly each patch answers to each word, from black to 1, and its entropy, all small."""
    height, width, _ = found.pixels.shape
    size = tuple(max(1, round(side * SMALL / max(height, width))) for side in (height, width))
    entropy = torch.special.entr(found.weights).sum(1, keepdim=True) / max(math.log(len(reading.bin_list)), 1e-30)
    maps = F.interpolate(torch.cat([found.weights, entropy], dim=1), size, mode="nearest-exact")[0].numpy()
    titles = [f"{printable(c)[:40]}, {b:g} m" for c, b in zip(reading.depth_classes, reading.bin_list, strict=True)]
    coloured = [resized(found.pixels, (size[0], size[1])), *(colourise(each, 0, 1, NO_DEPTH_MAP) for each in maps)]
    return [*zip(["picture", *titles, "unsure (entropy / ln K)"], coloured, strict=True)]


def sheet(tiles: Tiles, span: tuple[float, float], colour_map: str, numbers: Sequence[str], note: str) -> Image.Image:
    """Return the tiles below their titles, if they have any, above a bar of the colours, its numbers and a note."""
    import matplotlib  # for its DejaVu Sans, which has most alphabets

    height, width, _ = tiles[0][1].shape
    columns = math.ceil((len(tiles) / (2 if width > 2 * height else 1)) ** 0.5)
    rows = -(-len(tiles) // columns)
    size = max(11, round(min(max(columns * width, SMALL), 4 * rows * height) / 50))  # of letters, bar, gaps, px
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", size)
    head = 2 * size if any(title for title, _ in tiles) else 0
    step = round(max(width, *(font.getlength(title) for title, _ in tiles))) + size, head + height + size // 2
    length = round(max(columns * step[0] - size, SMALL, font.getlength(note) + 2 * size))
    top, inner = rows * step[1], length - 2 * size
    canvas = Image.new("RGB", (length, top + round((5 if note else 3.5) * size)), "white")
    draw = ImageDraw.Draw(canvas)
    for place, (title, pixels) in enumerate(tiles):
        left, above = place % columns * step[0], place // columns * step[1]
        draw.text((left, above + size // 3), title, "black", font)
        canvas.paste(Image.fromarray(pixels), (left, above + head))
    bar = Image.fromarray(colour_table(colour_map)[None]).resize((inner, size), Image.Resampling.NEAREST)
    canvas.paste(bar, (size, top))
    for part, number, anchor in zip((0, 0.5, 1), numbers, ("la", "ma", "ra"), strict=True):
        text = number.format(f"{span[0] + part * (span[1] - span[0]):.3g}")
        draw.text((size + part * inner, top + size + size // 3), text, "black", font, anchor)
    draw.text((size, top + 3 * size), note, "black", font)
    return canvas
