"""One self-contained HTML page to look into a run: what each patch answers to each word, and what follows from it.

The page holds its style, its script and its data, asks for nothing from anywhere (its content security policy forbids
it), and opens from the disk. For each picture it stores the similarities behind the prediction, so temperature and bins
can be changed in the page and every map follows. Its parts are `page.html`, `page.css` and `page.js`.
"""

import base64
import hashlib
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from monoclip import Reading
from viewer.colour import colour_table, to_millimetres

PAGE_FILE = "depth.html"
PAGE_IMAGES = 24  # on a page unless the user says otherwise: it redraws them all while a slider moves
SOURCES = Path(__file__).parent
PICTURE_SIDE = 544  # px at most: NYU's crop as it is
TRUTH_SIDE = 136  # px at most, of the ground truth as a map; its means over the patches are exact

Card = dict[str, Any]


def spread(total: int, count: int) -> list[int]:
    """`count` of the indices 0 ... total - 1, evenly spread and in order; all of them if there are no more."""
    count = min(total, count)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def subset_note(shown: int, total: int) -> str:
    """What the page says about its choice of pictures."""
    if shown == total:
        return f"all {total} pictures of the run" if total > 1 else "the one picture of the run"
    return f"{shown} of the run's {total} pictures, spread evenly over it"


def card(
    name: str,
    scene: str,
    pixels: np.ndarray,
    logits: np.ndarray,
    reading: Reading,
    truth: np.ndarray | None = None,
    metrics: Mapping[str, float | None] | None = None,
) -> Card:
    """What the page stores of one picture, some 100 kB, ready for JSON.

    Args:
        name: as in every table.
        scene: to sort by; "" if there is none.
        pixels: (H, W, 3) uint8, RGB, the picture as the depth map covers it.
        logits: (V, K, h, w) float32: `MonoCLIP.logits` of the picture and, if V is 2, of its mirror (not turned back).
        reading: what the logits were computed with.
        truth: (H, W) float32 [m], 0 where nothing was measured.
        metrics: shown beside the name and to sort by; the same names for every picture of a page.

    Raises ValueError: shapes that do not fit, or logits that are not finite.
    """
    views, classes, h, w = logits.shape
    if classes != len(reading.depth_classes) or views not in (1, 2):
        raise ValueError(f"expected logits (1 or 2, {len(reading.depth_classes)}, h, w), got {logits.shape}")
    if not np.isfinite(logits).all():
        raise ValueError(f"{name}: logits that are not finite")
    # Relative to each patch's best word, which softmax does not notice and half precision does: what matters is near 0.
    similarity = (logits - logits.max(axis=1, keepdims=True)) * reading.temperature
    similarity[1:] = similarity[1:, ..., ::-1]
    jpeg, small = io.BytesIO(), Image.fromarray(pixels)
    small.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BICUBIC, reducing_gap=3.0)
    small.save(jpeg, "JPEG", quality=80, optimize=True)
    stored: Card = {
        "name": name,
        "scene": scene,
        "size": list(pixels.shape[:2]),
        "grid": [h, w],
        "views": views,
        "jpeg": encoded(jpeg.getvalue()),
        "similarity": encoded(similarity.clip(-60000, 0).astype("<f2").tobytes()),
        "truth": None,
        "metrics": {key: None if value is None else float(value) for key, value in (metrics or {}).items()},
    }
    if truth is not None:
        if truth.shape != pixels.shape[:2]:
            raise ValueError(f"{name}: true depth of {truth.shape}, but a picture of {pixels.shape[:2]}")
        step = -(-max(truth.shape) // TRUTH_SIDE)
        sparse = to_millimetres(truth[::step, ::step])
        stored["truth"] = {
            "size": list(sparse.shape),
            "map": encoded(sparse.astype("<u2").tobytes()),
            "patches": encoded(to_millimetres(patch_means(truth, h, w)).astype("<u2").tobytes()),
        }
    return stored


def encoded(content: bytes) -> str:
    """The bytes in base64, as JSON can hold them."""
    return base64.b64encode(content).decode()


def patch_means(truth: np.ndarray, h: int, w: int) -> np.ndarray:
    """Mean of the measured depths in each of h x w patches, (h, w) [m]; 0 where there is none."""
    height, width = truth.shape
    rows, columns = np.arange(height) * h // height, np.arange(width) * w // width
    patch = (rows[:, None] * w + columns).ravel()
    total = np.bincount(patch, truth.ravel().astype(np.float64), h * w)
    count = np.bincount(patch, truth.ravel() > 0, h * w)
    return (total / np.maximum(count, 1)).reshape(h, w)


def build(
    title: str,
    cards: Sequence[Card],
    reading: Reading,
    metrics: Mapping[str, Mapping[str, float | None]] | None = None,
    notes: Sequence[str] = (),
) -> str:
    """The page as text; everything that came from a user stands in it as data, never as markup.

    The sliders start at the words, bins and temperature of `reading`. `metrics` is the table at the top: for each named
    row, the value of each column; all rows name the same columns. `notes` are short statements below the title.
    """
    style, script, page = ((SOURCES / f"page.{end}").read_text(encoding="utf-8") for end in ("css", "js", "html"))
    template, obj = reading.depth_templates[0], reading.obj_classes[0]
    prompts = [f"“{template.format(obj, word)}”" for word in reading.depth_classes]
    if (others := len(reading.depth_templates) * len(reading.obj_classes) - 1) > 0:
        prompts.append(f"and each word in {others} more sentences")
    columns = list(next(iter(metrics.values()))) if metrics else []
    content: dict[str, Any] = {
        "title": title,
        "notes": notes,
        "reading": {"words": reading.depth_classes, "bins": reading.bin_list, "prompts": prompts}
        | {"temperature": reading.temperature},
        "metrics": metrics
        and {"columns": columns, "rows": [[name, [row[c] for c in columns]] for name, row in metrics.items()]},
        "colours": encoded(colour_table().tobytes()),
        "images": cards,
    }
    data = json.dumps(content, allow_nan=False, separators=(",", ":"))
    parts = {
        "title": html.escape(title),
        "style": style,
        "style_hash": policy_hash(style),
        "script": script,
        "script_hash": policy_hash(script),
        "data": data.replace("<", "\\u003c"),  # so that nothing in it ends the script element or begins another
    }
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page)


def policy_hash(text: str) -> str:
    """The source expression that lets a content security policy accept exactly this inline text."""
    return "sha256-" + encoded(hashlib.sha256(text.encode()).digest())
