"""Depth maps as images: 16-bit millimetres, colours with a legend in metres, picture and map side by side.

The colours are matplotlib's viridis, which is perceptually uniform and survives colour blindness and grey printing,
turned round so that near is bright; black and white stay free for what is not known. Their range is given by the caller
and not stretched to each map, so that the same colour is the same distance in every picture. Nothing here reads or
writes files.
"""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

COLOUR_MAP = "viridis_r"
LEGEND_WIDTH = 160  # px at least, so that its depths can be read under a map of any size
LARGEST_MM = 2**16 - 1


def to_millimetres(depth: np.ndarray) -> np.ndarray:
    """(H, W) float32 [m] -> (H, W) uint16 [mm], as NYU's own depth files; 65.535 m and more become 65535."""
    return np.multiply(depth, 1000, dtype=np.float64).round().clip(0, LARGEST_MM).astype(np.uint16)


def colour_table() -> np.ndarray:
    """The 256 colours from near to far, (256, 3) uint8, RGB."""
    from matplotlib import colormaps  # here, so that a command which draws nothing does not wait for matplotlib

    return (colormaps[COLOUR_MAP](np.arange(256))[:, :3] * 255).round().astype(np.uint8)


def coloured(depth: np.ndarray, near: float, far: float) -> np.ndarray:
    """(H, W) [m] -> (H, W, 3) uint8: the table's first colour up to `near` [m], its last from `far` [m] on."""
    position = (depth - near) / max(far - near, 1e-6)
    return colour_table()[(position.clip(0, 1) * 255).round().astype(np.uint8)]


def with_legend(image: np.ndarray, near: float, far: float) -> Image.Image:
    """The image (H, W, 3), whole and at the top left, above a bar of the colours with their depths [m].

    The canvas is as wide as the image, or as the legend needs.
    """
    height, width = image.shape[:2]
    length = max(width, LEGEND_WIDTH)
    size = max(11, round(min(length, 4 * height) / 50))  # of the letters and of the bar, px
    canvas = Image.new("RGB", (length, height + 4 * size), "white")
    canvas.paste(Image.fromarray(image), (0, 0))
    top = height + size // 2
    bar = coloured(np.linspace(near, far, length)[None].repeat(size, axis=0), near, far)
    canvas.paste(Image.fromarray(bar), (0, top))
    draw, font = ImageDraw.Draw(canvas), ImageFont.load_default(size)
    count = 5 if length >= 25 * size else 3
    for x, depth in zip(np.linspace(0, length - 1, count), np.linspace(near, far, count), strict=True):
        text = f"{depth:.2f} m"
        needed = draw.textlength(text, font)
        draw.text((min(max(x - needed / 2, 0), length - needed), top + size + size // 3), text, "black", font)
    return canvas


def side_by_side(pixels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """The picture and its coloured map, (H, W, 3) each, beside each other, or above each other if they are wide."""
    return np.concatenate([pixels, colours], axis=0 if pixels.shape[1] > 2 * pixels.shape[0] else 1)
