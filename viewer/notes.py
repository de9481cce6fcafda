"""Rows of results, and what is said beside them: with what they were made, why they do not compare with others."""

import csv
import platform
import subprocess
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from calculate_error import NYU, Protocol
from clip.checkpoint import TOY_SHA256, locate_checkpoint
from clip.dense import fitted_size
from clip.model import VisionTransformer
from datasets import csv_text
from datasets.readings import READINGS, statistics_of
from download import file_sha256
from monoclip import MonoCLIP, Reading

VERSION = "2.2"
SCHEMA = 4  # of results.json: raised whenever a key changes its meaning
TOY = "a toy CLIP that was taught distance on rendered rooms: no evidence about the real CLIP or the paper"
INVERTED = "raw patch tokens of a vision transformer, whose maps are reported as inverted (arXiv 2304.05653)"
# Protocols in a sentence, by their names.
ABOUT = {
    "NYU": "as the release evaluates it: 416 x 544 crop, mirror average, 1e-3 < gt < 10 m, mean over images",
    "KITTI, BTS": "352 x 1216 crop seen, Garg's region of the frame, 1e-3 < gt < 80 m, mean over images",
    "KITTI, AdaBins": "Garg's region of the 352 x 1216 crop, 1e-3 < gt < 80 m, mean over images",
}
# Said where images are not those of published metrics, by data set.
OTHER_IMAGES = {
    "NYU": "the paper's metrics are over the official test split: they do not compare with these",
    "KITTI": "published metrics are over the whole Eigen test split: they do not compare with these",
}
NOT_PUBLISHED = "no published metric is over these images"
FAR = 10  # a largest bin below this part of the largest depth is worth a word


def made_with(
    clip_path: str | Path,
    device: torch.device,
    precision: str,
    reading: Reading,
    exact: bool,
    activation: str,
) -> dict[str, Any]:
    """What the results of a run depend on besides its images, as JSON can hold it."""
    path = locate_checkpoint(clip_path)
    return {
        "reading": asdict(reading),
        "checkpoint": path.name,
        "checkpoint_sha256": file_sha256(path),
        "activation": activation,
        "precision": precision,
        "network": "plain" if exact else "fast",
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else device.type,
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "depthclip": VERSION,
    }


def code_commit() -> str:
    """The commit of this checkout, with `-dirty` if tracked files are changed; `unknown` where it is none."""
    root = Path(__file__).resolve().parents[1]
    git = ["git", f"--git-dir={root / '.git'}", f"--work-tree={root}"]  # not a folder's above, or the environment's
    command = [*git, "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=30).stdout
    except (OSError, subprocess.TimeoutExpired):
        found = ""
    return found.strip() or "unknown"


def append_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Appends rows of names and metrics to a CSV file. Raises OSError."""
    if not rows:
        return
    try:
        with path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
            if file.tell() == 0:
                writer.writeheader()
            writer.writerows([row | {k: csv_text(row[k]) for k in ("image", "scene")} for row in rows])
    except OSError as error:  # that of a full disk does not name the file
        raise OSError(error.errno, error.strerror, str(path)) from error


def identified(protocol: Protocol) -> dict[str, Any]:
    """What a results.json is: the version of its form, the protocol, the code."""
    about = ABOUT.get(protocol.name, f"every pixel that is measured, 1e-3 < gt < {protocol.cap:g} m, mean over images")
    return {"schema": SCHEMA, "protocol": about, "protocol_name": protocol.name, "commit": code_commit()}


def toy_note(checkpoint_sha256: str) -> str:
    """What is said beside every result of the embedded checkpoint, under whatever name; empty for any other."""
    return TOY if checkpoint_sha256 == TOY_SHA256 else ""


def caveats(
    official: bool,
    protocol: Protocol,
    checkpoint_sha256: str = "",
    model: MonoCLIP | None = None,
    seen: tuple[int, int] | None = None,
) -> list[str]:
    """Reasons why metrics do not compare with published ones: other images, the toy CLIP, the read-out, resizing.

    `model` is None for maps of another method; `seen` is the size (H, W) of what the method sees, if all images have
    the same.
    """
    notes = [
        "" if official else OTHER_IMAGES.get(protocol.name.partition(",")[0], NOT_PUBLISHED),
        toy_note(checkpoint_sha256),
    ]
    if model is None:
        return [text for text in notes if text]
    notes += readout_notes(model)
    patch, size = model.clip_vis.patch_size, seen or (0, 0)
    rows, columns = fitted_size(*size, patch)
    if seen and (rows, columns) != seen:
        notes.append(f"images of {seen[0]}x{seen[1]} px are resized to {rows}x{columns}, whole patches of {patch} px")
    farthest, largest = max(model.reading.bin_list), protocol.cap
    if farthest > largest:
        notes.append(f"bins beyond {largest:g} m, to which depth is clamped: see --preset and --bin_list")
    if protocol is not NYU and farthest < largest / FAR:
        notes.append(f"no bin is beyond {farthest:g} m, where ground truth goes to {largest:g} m: see --preset")
    if model.reading.bin_list == READINGS["log"].bin_list:
        notes.append("bins that are ours, spread in log depth, and published nowhere")
    return [text for text in notes if text]


def readout_notes(model: MonoCLIP) -> list[str]:
    """What is not the paper's in how patch features are read, or must be known of it."""
    readout, statistics = model.reading.readout, statistics_of(model.reading)
    others = [f"patch features by {readout}"] * (readout != "raw")
    others += [f"image statistics of {statistics}"] * (statistics != "imagenet")
    notes = [f"{' and '.join(others)}: not the paper's setting"] if others else []
    if len({word.casefold() for word in model.reading.depth_classes}) < len(model.reading.depth_classes):
        notes.append("words that differ in case only, which CLIP does not see")
    if readout == "raw" and isinstance(model.clip_vis, VisionTransformer):
        notes.append(INVERTED)
    return notes


def short_caption(title: str, warnings: Sequence[str]) -> str:
    """The same in a line: over which data set, and whether a toy made it."""
    return f"Over {title}" + "; a toy CLIP: no evidence about the real one" * any(TOY in note for note in warnings)


def caption(title: str, warnings: Sequence[str]) -> str:
    """What stands in every table and drawing: over which data set it is, and its `caveats`."""
    return "; ".join([f"Over {title}", *warnings]) + "."
