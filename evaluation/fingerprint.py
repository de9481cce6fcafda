"""What the features and the rows of a run depend on: two runs may share them only if all of it is equal."""

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from calculate_error import NYU_CROP
from clip.checkpoint import file_sha256, locate_checkpoint
from datasets.nyu import DataError, NYUDepthV2, NYUMat
from evaluation.controls import Suite

# The files that features, and rows, depend on, relative to the repository.
FEATURE_CODE = ("evaluation/encode.py", "loading.py", "monoclip.py", "clip/*.py", "datasets/nyu*.py")
CODE = (
    *FEATURE_CODE,
    "evaluation/scoring.py",
    "evaluation/batch_error.py",
    "evaluation/constant_error.py",
    "evaluation/controls.py",
    "calculate_error.py",
)


def names_and_scenes(dataset: NYUDepthV2 | NYUMat) -> tuple[list[str], list[str]]:
    """Name and scene of every image, in the order of `dataset`."""
    if isinstance(dataset, NYUMat):
        return dataset.names, dataset.scenes
    return [pair.name for pair in dataset.pairs], [pair.scene for pair in dataset.pairs]


def choose_shown(names: Sequence[str], scenes: Sequence[str], count: int = 4) -> list[str]:
    """Images for the figures: the first of each scene, a classroom before all others, then any."""
    first = {scene: name for name, scene in reversed(list(zip(names, scenes, strict=True)))}
    order = sorted(first, key=lambda scene: (scene != "classroom", list(scenes).index(scene)))
    return list(dict.fromkeys([*(first[scene] for scene in order), *names]))[:count]


def features_fingerprint(clip_path: str, dataset: NYUDepthV2 | NYUMat, precision: str, network: str) -> dict[str, Any]:
    """What the encoder's features depend on; `network` says in which form it is.

    Raises:
        DataError: a file cannot be read.
    """
    data = hashlib.sha256(repr(names_and_scenes(dataset)).encode())
    if isinstance(dataset, NYUMat):
        stat = dataset.path.stat()
        data.update(repr((stat.st_size, stat.st_mtime_ns)).encode())
    else:
        for pair in dataset.pairs:
            for path in (pair.rgb, pair.depth):
                try:
                    data.update(hashlib.sha256(path.read_bytes()).digest())
                except OSError as error:
                    raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    return {
        "code of the encoder": code_sha256(FEATURE_CODE),
        "weights": file_sha256(locate_checkpoint(clip_path)),
        "data": data.hexdigest(),
        "precision": precision,
        "form of the network (--exact, --compile)": network,
        "geometry": repr((NYU_CROP, dataset.mean, dataset.std)),
    }


def code_sha256(patterns: Sequence[str]) -> str:
    """SHA-256 of the files that match `patterns` below the repository."""
    folder = Path(__file__).parents[1]
    code = hashlib.sha256()
    for path in sorted(path for pattern in patterns for path in folder.glob(pattern)):
        code.update(path.read_bytes())
    return code.hexdigest()


def run_fingerprint(
    args: argparse.Namespace, suite: Suite, device: torch.device, shown: Sequence[str], paged: Sequence[str] = ()
) -> dict[str, Any]:
    """What the rows depend on besides the features."""
    rows = hashlib.sha256(repr((suite.settings, suite.randoms)).encode())
    for name, depth in suite.maps.items():
        rows.update(name.encode() + depth.numpy().tobytes())
    return {
        "set of readings": rows.hexdigest(),
        "code": code_sha256(CODE),
        "torch version": torch.__version__,
        "device": str(device),
        "number of threads (OMP_NUM_THREADS)": torch.get_num_threads() if device.type == "cpu" else None,
        "--batch_size": args.batch_size,
        "--nonfinite": args.nonfinite,
        "--empty": args.empty,
        "--figures": list(shown),
        "--html": list(paged),
    }
