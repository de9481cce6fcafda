"""Rows of results, and what is said beside them: which code made them, why they do not compare with others."""

import csv
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from calculate_error import NYU, Protocol
from clip.checkpoint import TOY_SHA256
from clip.dense import fitted_size
from clip.model import VisionTransformer
from datasets import csv_text
from datasets.pairs import DepthPairs
from datasets.readings import READINGS, statistics_of
from monoclip import MonoCLIP

Size = tuple[int, int]  # (H, W) [px]
SCHEMA = 4  # of results.json: raised whenever a key changes its meaning
TOY = "a toy CLIP that was taught distance on rendered rooms: no evidence about the real CLIP or the paper"
TOY_BRIEFLY = "a toy CLIP: no evidence about the real one"
TOY_ON_PHOTOGRAPHS = "the toy was taught on rendered rooms; of a photograph its depth means nothing"
INVERTED = "raw patch tokens of a vision transformer, whose maps are reported as inverted (arXiv 2304.05653)"
ABOUT = {  # protocols in a sentence, by their names
    "NYU": "as the release evaluates it: 416 x 544 crop, mirror average, 1e-3 < gt < 10 m, mean over images",
    "KITTI, BTS": "352 x 1216 crop seen, Garg's region of the frame, 1e-3 < gt < 80 m, mean over images",
    "KITTI, AdaBins": "Garg's region of the 352 x 1216 crop, 1e-3 < gt < 80 m, mean over images",
}
OTHER_IMAGES = {  # said where images are not those of published metrics, by data set
    "NYU": "the paper's metrics are over the official test split: they do not compare with these",
    "KITTI": "published metrics are over the whole Eigen test split: they do not compare with these",
}


def append_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Append rows of names and metrics to a CSV file. Raises OSError, which names it, unlike that of a full disk."""
    if not rows:
        return
    try:
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, rows[0], lineterminator="\n")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerows([row | {k: csv_text(row[k]) for k in ("image", "scene")} for row in rows])
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def identified(dataset: DepthPairs, protocol: Protocol) -> dict[str, Any]:
    """What a results.json is: the version of its form, protocol, commit (`-dirty` if files are changed), and data."""
    about = ABOUT.get(protocol.name, f"every pixel that is measured, 1e-3 < gt < {protocol.cap:g} m, mean over images")
    root = Path(__file__).resolve().parents[1]
    git = ["git", f"--git-dir={root / '.git'}", f"--work-tree={root}"]  # not a folder's above, or the environment's
    git += ["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        commit = subprocess.run(git, capture_output=True, text=True).stdout.strip()
    except OSError:  # no git
        commit = ""
    code = {"schema": SCHEMA, "protocol": about, "protocol_name": protocol.name, "commit": commit or "unknown"}
    return code | {"data": dataset.title, "data_sha256": dataset.sha256, "images": len(dataset)}


def toy_notes(sha256: str, photographs: bool = False) -> list[str]:
    """What is said beside every result of the embedded checkpoint, under whatever name."""
    return [TOY, TOY_ON_PHOTOGRAPHS][: 1 + photographs] if sha256 == TOY_SHA256 else []


def caveats(
    official: bool, protocol: Protocol, sha256: str = "", model: MonoCLIP | None = None, seen: Size | None = None
) -> list[str]:
    """Reasons why metrics do not compare with published ones: other images, the toy CLIP, the read-out, resizing.

    `sha256` is the checkpoint's, `model` None for maps of another method, `seen` the one (H, W) that the method sees.
    """
    other = OTHER_IMAGES.get(protocol.name.partition(",")[0], "no published metric is over these images")
    notes = [] if official else [other]
    if model is None:
        return notes
    notes += toy_notes(sha256) + readout_notes(model)
    farthest, largest, patch = max(model.reading.bin_list), protocol.cap, model.clip_vis.patch_size
    if seen and (size := fitted_size(*seen, patch)) != seen:
        notes.append("images of {}x{} px are resized to {}x{}, whole patches of {} px".format(*seen, *size, patch))
    if farthest > largest:
        notes.append(f"bins beyond {largest:g} m, to which depth is clamped: see --preset and --bin_list")
    if protocol is not NYU and farthest < largest / 10:
        notes.append(f"no bin is beyond {farthest:g} m, where ground truth goes to {largest:g} m: see --preset")
    if model.reading.bin_list == READINGS["log"].bin_list:
        notes.append("bins that are ours, spread in log depth, and published nowhere")
    return notes


def readout_notes(model: MonoCLIP) -> list[str]:
    """What is not the paper's in how patch features are read, or must be known of it."""
    readout, statistics = model.reading.readout, statistics_of(model.reading)
    others = [f"patch features by {readout}"] * (readout != "raw")
    others += [f"image statistics of {statistics}"] * (statistics != "imagenet")
    notes = [f"{' and '.join(others)}: not the paper's setting"] * bool(others)
    if len({word.casefold() for word in model.reading.depth_classes}) < len(model.reading.depth_classes):
        notes.append("words that differ in case only, which CLIP does not see")
    return notes + [INVERTED] * (readout == "raw" and isinstance(model.clip_vis, VisionTransformer))


def caption(title: str, warnings: Sequence[str]) -> str:
    """What stands in every table and drawing: over which data set it is, and its `caveats`."""
    return "; ".join([f"Over {title}", *warnings]) + "."


def short_caption(title: str, warnings: Sequence[str]) -> str:
    """The `caption` in a line: over which data set, and whether a toy made it."""
    return "; ".join([f"Over {title}"] + [TOY_BRIEFLY] * any(TOY in note for note in warnings))
