"""One self-contained HTML page to look into a run: what each patch answers to each word, and what follows from it.

The page opens from the disk and asks for nothing from anywhere (its content security policy forbids it). It stores the
similarity of each patch to the run's words and to some 70 phrases more, and the true depth if there is one: so words,
bins and temperature can be changed in the page, and every map and metric follows.
"""

import hashlib
import html
import io
import json
import math
import re
import zlib
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from calculate_error import MIN_DEPTH, NYU, Protocol
from clip.tokenizer import tokenize
from datasets import DataError, printable, text_of
from datasets.presets import PRESETS
from monoclip import PAPER, Reading, prompt
from viewer.colour import COLOUR_MAP, LARGEST_MM, NO_DEPTH_MAP, colour_table, to_millimetres

PAGE_FILE = "depth.html"
PAGE_IMAGES = 24  # on a page unless the user says otherwise: NYU's, with their truth, then take less than 12 MB
SOURCES = Path(__file__).parent
PICTURE_SIDE = 544  # px at most: NYU's crop as it is
MOST_PHRASES = 200  # of one's own: 24 pictures of NYU with their truth then take 15 MB
COLOUR_MAPS = {"depth": COLOUR_MAP, "share": NO_DEPTH_MAP, "error": "RdBu_r"}
COLOUR_WORDS = ("very red", "red", "a little red", "not in colour", "a little green", "green", "very green")

Card = dict[str, Any]
Metrics = Mapping[str, float | None]
Rows = Mapping[str, Metrics]
Truth = tuple[np.ndarray, np.ndarray] | None  # (H, W) float32 [m], 0: not measured; (H, W) bool: counted by metrics


def spread(total: int, count: int) -> list[int]:
    """Return `count` of the indices 0 ... total - 1, evenly spread and in order; all of them if there are no more."""
    count = min(total, count)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def spread_words(words: Sequence[str], count: int) -> tuple[str, ...]:
    """Return `count` of the words, evenly spread from first to last; none for fewer than 2, or too many."""
    places = range(count) if 1 < count <= len(words) else ()
    return tuple(words[round(i * (len(words) - 1) / (count - 1))] for i in places)


def subset_note(shown: int, total: int) -> str:
    """Return what the page says about its choice of pictures."""
    return "all pictures of the run" if shown == total else f"{shown} of the run's {total} pictures, evenly spread"


def presets_for(reading: Reading, protocol: Protocol) -> dict[str, Reading]:
    """Return the readings offered as buttons: those with bins within what the run's go to, or the protocol."""
    largest = max(*reading.bin_list, protocol.cap)
    readings = {"paper": PAPER} | {name: replace(PAPER, **fields) for name, fields in PRESETS.items()}
    return {name: known for name, known in readings.items() if max(known.bin_list) <= largest}


def phrases_for(
    reading: Reading, path: Path | None = None, count: int | None = PAGE_IMAGES, protocol: Protocol = NYU
) -> tuple[str, ...]:
    """Return what a page of `count` pictures offers besides the reading's words: presets', colours, and a text file's.

    The file, phrases.txt or `path`, has a phrase a line, and headings after `#`. What of ours makes too long a prompt
    is left out. Raises DataError: `path` cannot be used.
    """
    name = printable(str(path))
    if path and not count:
        raise DataError(f"--phrases {name}: only a page has phrases; add --html")
    text = text_of(path or SOURCES / "phrases.txt")
    if re.search("[\0\udc80-\udcff]", text):
        raise DataError(f"{name}: no text that can be read; save the file as UTF-8")
    own = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    if not 0 < len(own) <= MOST_PHRASES:
        raise DataError(f"{name}: {len(own)} phrases, but 1 to {MOST_PHRASES} are needed, one a line")
    presets = [word for known in presets_for(reading, protocol).values() for word in known.depth_classes]
    found = []
    for phrase in dict.fromkeys((*presets, *COLOUR_WORDS, *own)):
        try:
            tokenize([prompt(t, o, phrase) for t in reading.depth_templates for o in reading.obj_classes])
            found.append(phrase)
        except RuntimeError as error:
            if path and phrase in own:
                raise DataError(f"{name}: {error}") from error
    return tuple(phrase for phrase in found if phrase not in reading.depth_classes) if count else ()


def card(
    name: str, pixels: np.ndarray, logits: np.ndarray, reading: Reading, metrics: Metrics, truth: Truth = None
) -> Card:
    """Return what the page stores of one picture, ready for JSON: some 200 kB, and the truth, as much again.

    `pixels` (H, W, 3) uint8, RGB, are the picture as its depth covers it. `logits` (V, K + P, h, w) float32, of the
    reading's K words and the page's P phrases, are for the picture and, if V is 2, for its mirror (not turned back).
    """
    views, _, h, w = logits.shape
    # Fixed point above each patch's least similar word, in steps of 2e-5. Half precision would cost mm of depth.
    similarity = logits.astype(np.float64) * reading.temperature
    similarity -= similarity.min(axis=1, keepdims=True)
    similarity[1:] = similarity[1:, ..., ::-1]
    step = float(similarity.max()) / (2**16 - 1) or 1.0
    jpeg, small = io.BytesIO(), Image.fromarray(pixels)
    small.thumbnail((PICTURE_SIDE, PICTURE_SIDE), Image.Resampling.BICUBIC, reducing_gap=3.0)
    small.save(jpeg, "JPEG", quality=80, optimize=True)
    stored: Card = {"name": name, "scene": name.rpartition("/")[0], "size": pixels.shape[:2], "grid": (h, w)}
    stored |= {"views": views, "jpeg": b64encode(jpeg.getvalue()).decode(), "step": step, "truth": None}
    stored |= {"similarity": packed((similarity / step).round().reshape(-1, w)), "metrics": dict(metrics)}
    if truth:
        depth, counted = truth
        unit = max(1, math.ceil(depth.max(initial=0) * 1000 / LARGEST_MM))  # [mm] of the stored map: 2 beyond 65.535 m
        millimetres = to_millimetres(depth / unit)
        span = np.percentile(depth[depth > 0], (2, 98)).tolist() if depth.any() else []  # [m]
        left_out = packed((millimetres > 0) & ~counted)
        stored["truth"] = {"unit": unit, "map": packed(millimetres), "left_out": left_out, "span": span}
    return stored


def packed(values: np.ndarray) -> str:
    """Return (N, W) whole numbers of 16 bit in three quarters of zlib's size, as `unpacked` in page.js reads them.

    Differences along each row, of which small ones of either sign become small numbers; low bytes before high ones.
    """
    difference = np.diff(values.astype(np.uint16), axis=1, prepend=np.uint16(0)).astype(np.int16)  # modulo 2 ** 16
    folded = ((difference << 1) ^ (difference >> 15)).astype("<i2").tobytes()
    return b64encode(zlib.compress(folded[::2] + folded[1::2])).decode()


def build(
    cards: Sequence[Card], reading: Reading, phrases: Sequence[str], rows: Rows, protocol: Protocol = NYU, **texts: str
) -> str:
    """Return the page as text; what came from a user stands in it as data or escaped, never as markup.

    The controls start at `reading`; `phrases` are the cards'; `rows`, of the same columns, the table at the top.
    `protocol` says how metrics are computed and where colours end; `texts` are title, notes and warning.
    """
    words, bins = spread_words(COLOUR_WORDS, len(reading.bin_list)), reading.bin_list  # as `experiments` has them
    colour = replace(reading, depth_classes=words or COLOUR_WORDS, bin_list=bins if words else PAPER.bin_list)
    presets = {"run": reading, **presets_for(reading, protocol), "colour": colour}
    depths = [*bins, *(depth for stored in cards if stored["truth"] for depth in stored["truth"]["span"])]
    content = {
        "phrases": [*reading.depth_classes, *phrases],
        "presets": {name: asdict(known) for name, known in presets.items()},
        "prompt": prompt(reading.depth_templates[0], reading.obj_classes[0], "{}").split("{}"),  # around the word
        "more_prompts": len(reading.depth_templates) * len(reading.obj_classes) - 1,
        "scale": [min(depths), min(max(depths), protocol.cap)],
        "limits": [MIN_DEPTH, protocol.cap],
        "drops_tiny": protocol.drops_tiny,
        "metrics": rows,
        "colours": {name: b64encode(colour_table(known).tobytes()).decode() for name, known in COLOUR_MAPS.items()},
        "images": cards,
    }
    data = json.dumps(content, allow_nan=False, separators=(",", ":"))
    parts = {name: html.escape(text, quote=False) for name, text in texts.items()}
    parts["data"] = data.replace("<", "\\u003c")  # so that nothing in it ends the script element or begins another
    for name, end in (("style", "css"), ("script", "js")):  # the page's security policy accepts exactly these texts
        parts[name] = (SOURCES / f"page.{end}").read_text(encoding="utf-8")
        parts[f"{name}_hash"] = "sha256-" + b64encode(hashlib.sha256(parts[name].encode()).digest()).decode()
    page = (SOURCES / "page.html").read_text(encoding="utf-8")
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page)
