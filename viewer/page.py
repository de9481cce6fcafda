"""One self-contained HTML page to look into a run: what each patch answers to each word, and what follows from it.

The page holds its style, its script and its data, asks for nothing from anywhere (its content security policy forbids
it), and opens from the disk. For each picture it stores the similarity of each patch to the run's words and to some 70
phrases more, and the true depth if there is one: so words, bins and temperature can be changed in the page, and every
map and metric follows. Its parts are `page.html`, `page.css` and `page.js`; `phrases.txt` has the phrases.
"""

import base64
import hashlib
import html
import io
import json
import math
import re
import zlib
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


def spread(total: int, count: int) -> list[int]:
    """`count` of the indices 0 ... total - 1, evenly spread and in order; all of them if there are no more."""
    count = min(total, count)
    return [(2 * i + 1) * total // (2 * count) for i in range(count)]


def spread_words(words: Sequence[str], count: int) -> tuple[str, ...]:
    """`count` of the words, from the first to the last and evenly spread; none for fewer than 2, or too many."""
    if not 1 < count <= len(words):
        return ()
    return tuple(words[round(i * (len(words) - 1) / (count - 1))] for i in range(count))


def subset_note(shown: int, total: int) -> str:
    """What the page says about its choice of pictures."""
    if shown == total:
        return f"all {total} pictures of the run" if total > 1 else "the one picture of the run"
    return f"{shown} of the run's {total} pictures" + (", spread evenly over it" if shown > 1 else "")


def presets_for(reading: Reading, protocol: Protocol) -> dict[str, Reading]:
    """Return the readings offered as buttons: those with bins within what the run's go to, or the protocol."""
    largest = max(*reading.bin_list, protocol.cap)
    readings = {"paper": PAPER} | {name: replace(PAPER, **fields) for name, fields in PRESETS.items()}
    return {name: known for name, known in readings.items() if max(known.bin_list) <= largest}


def phrases_for(
    reading: Reading, path: Path | None = None, count: int | None = PAGE_IMAGES, protocol: Protocol = NYU
) -> tuple[str, ...]:
    """Return what the page offers besides the reading's words: its presets', the colour words, and a text file's.

    The file, phrases.txt unless `path` names another, has a phrase a line, and headings after `#`. What of ours makes
    too long a prompt in the reading's sentences is left out. Without pictures, by --html's `count`, there are none.
    Raises DataError: the file cannot be read, or has no phrase, too many or too long ones; or there is no page.
    """
    if not count:
        if path:
            raise DataError(f"--phrases {printable(str(path))}: only a page has phrases; add --html")
        return ()
    text, name = text_of(path or SOURCES / "phrases.txt"), printable(str(path))
    if re.search("[\0\udc80-\udcff]", text):
        raise DataError(f"{name}: no text that can be read; save the file as UTF-8")
    own = [line for line in map(str.strip, text.splitlines()) if line and not line.startswith("#")]
    if not 0 < len(own) <= MOST_PHRASES:
        raise DataError(f"{name}: {len(own)} phrases, but 1 to {MOST_PHRASES} are needed, one a line")
    found = []
    presets = [word for known in presets_for(reading, protocol).values() for word in known.depth_classes]
    for phrase in dict.fromkeys((*presets, *COLOUR_WORDS, *own)):
        try:
            tokenize([prompt(t, o, phrase) for t in reading.depth_templates for o in reading.obj_classes])
            found.append(phrase)
        except RuntimeError as error:
            if path and phrase in own:
                raise DataError(f"{name}: {error}") from error
    return tuple(phrase for phrase in found if phrase not in reading.depth_classes)


def card(
    name: str,
    scene: str,
    pixels: np.ndarray,
    logits: np.ndarray,
    reading: Reading,
    phrases: Sequence[str],
    truth: np.ndarray | None = None,
    metrics: Mapping[str, float | None] | None = None,
    counted: np.ndarray | None = None,
) -> Card:
    """Return what the page stores of one picture, ready for JSON: some 200 kB, and the truth, as much again.

    Args:
        name: as in every table.
        scene: to sort by; "" if there is none.
        pixels: (H, W, 3) uint8, RGB, the picture as the depth map covers it.
        logits: (V, K + P, h, w) float32 by `logits_of`: of the reading's K words and then of the P phrases, for the
            picture and, if V is 2, for its mirror (not turned back).
        reading: what the logits were computed with.
        phrases: from `phrases_for`.
        truth: (H, W) float32 [m], 0 where nothing was measured.
        metrics: shown below the name and to sort by; the same names for every picture of a page.
        counted: (H, W) bool, which pixels count in the metrics; needed with `truth`.

    Raises ValueError: logits of another number of words.
    """
    views, classes, h, w = logits.shape
    if classes != (count := len(reading.depth_classes) + len(phrases)):
        raise ValueError(f"expected logits (V, {count}, h, w), got {logits.shape}")
    # Fixed point, above each patch's least similar word, which softmax does not notice: steps of 2e-5 where the words
    # of a patch differ by 1.5. Half precision has steps of 1e-3 there: at the temperature 0.1, several mm of depth.
    similarity = logits.astype(np.float64) * reading.temperature
    similarity -= similarity.min(axis=1, keepdims=True)
    similarity[1:] = similarity[1:, ..., ::-1]
    step = float(similarity.max()) / (2**16 - 1) or 1.0
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
        "similarity": packed((similarity / step).round().reshape(-1, w)),
        "step": step,
        "truth": None,
        "metrics": {key: None if value is None else float(value) for key, value in (metrics or {}).items()},
    }
    if truth is not None and counted is not None:
        unit = max(1, math.ceil(truth.max(initial=0) * 1000 / LARGEST_MM))  # [mm] of the stored map: 2 beyond 65.535 m
        millimetres = to_millimetres(truth / unit)
        span = np.percentile(truth[truth > 0], (2, 98)).tolist() if truth.any() else []  # [m]
        left_out = packed((millimetres > 0) & ~counted)
        stored["truth"] = {"unit": unit, "map": packed(millimetres), "left_out": left_out, "span": span}
    return stored


def packed(values: np.ndarray) -> str:
    """Return (N, W) whole numbers of 16 bit, without loss, in the form that `unpacked` in page.js undoes.

    Differences along each row, of which small ones of either sign become small numbers; all their low bytes before all
    their high ones; zlib; base64. Noisy depth then takes three quarters of what it does with zlib alone.
    """
    difference = np.diff(values.astype(np.uint16), axis=1, prepend=np.uint16(0)).astype(np.int16)  # modulo 2 ** 16
    folded = ((difference << 1) ^ (difference >> 15)).astype("<i2").tobytes()
    return encoded(zlib.compress(folded[::2] + folded[1::2]))


def encoded(content: bytes) -> str:
    """Return the bytes in base64, as JSON can hold them."""
    return base64.b64encode(content).decode()


def build(
    title: str,
    cards: Sequence[Card],
    reading: Reading,
    phrases: Sequence[str],
    metrics: Mapping[str, Mapping[str, float | None]] | None = None,
    notes: Sequence[str] = (),
    warning: str = "",
    protocol: Protocol = NYU,
) -> str:
    """Return the page as text; what came from a user stands in it as data or escaped, never as markup.

    The controls start at the words, bins and temperature of `reading`; `phrases` are those of the cards. `metrics` is
    the table at the top: for each named row, the value of each column; all rows name the same columns. `notes` are
    short statements below the title, `warning` one above all else; `protocol` says how metrics are computed, and which
    depths the colours span.
    """
    style, script, page = ((SOURCES / f"page.{end}").read_text(encoding="utf-8") for end in ("css", "js", "html"))
    asked = prompt(reading.depth_templates[0], reading.obj_classes[0], "{}").split("{}")  # before and after the word
    # As the control of `experiments`; where that has no colour words, with the paper's bins.
    words, bins = spread_words(COLOUR_WORDS, len(reading.bin_list)), reading.bin_list
    colour = replace(reading, depth_classes=words or COLOUR_WORDS, bin_list=bins if words else PAPER.bin_list)
    presets = {"run": reading, **presets_for(reading, protocol), "colour": colour}
    depths = [*reading.bin_list, *(depth for stored in cards if stored["truth"] for depth in stored["truth"]["span"])]
    # The 256 colours of each map as a canvas has them: red, green, blue, and 255 for opaque.
    tables = {k: np.pad(colour_table(v), ((0, 0), (0, 1)), constant_values=255) for k, v in COLOUR_MAPS.items()}
    content: dict[str, Any] = {
        "title": title,
        "notes": notes,
        "phrases": [*reading.depth_classes, *phrases],
        "presets": {name: asdict(known) for name, known in presets.items()},
        "prompt": asked,
        "more_prompts": len(reading.depth_templates) * len(reading.obj_classes) - 1,
        "scale": [min(depths), min(max(depths), protocol.cap)],
        "limits": [MIN_DEPTH, protocol.cap],
        "drops_tiny": protocol.drops_tiny,
        "metrics": {name: dict(row) for name, row in (metrics or {}).items()},
        "colours": {name: encoded(table.tobytes()) for name, table in tables.items()},
        "images": cards,
    }
    data = json.dumps(content, allow_nan=False, separators=(",", ":"))
    parts = {
        "title": html.escape(title),
        "warning": html.escape(warning),
        "style": style,
        "script": script,
        "data": data.replace("<", "\\u003c"),  # so that nothing in it ends the script element or begins another
    }
    for name in ("style", "script"):  # the page's content security policy accepts exactly these inline texts
        parts[f"{name}_hash"] = "sha256-" + encoded(hashlib.sha256(parts[name].encode()).digest())
    return re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], page)
