"""Words, bins and temperatures that people give, and the presets: the door at which a person's mistakes are caught."""

from dataclasses import replace
from numbers import Real
from typing import Any

import torch

from clip.dense import READOUTS
from clip.model import CLIP_MEAN, CLIP_STD
from datasets.presets import PRESETS
from monoclip import PAPER, Reading

# What --preset names: the paper's reading, and those for outdoors.
READINGS = {"paper": PAPER} | {name: replace(PAPER, **fields) for name, fields in PRESETS.items()}
# What images are normalised with: mean and standard deviation, RGB in [0, 1].
IMAGE_STATISTICS = {"imagenet": (PAPER.image_mean, PAPER.image_std), "clip": (CLIP_MEAN, CLIP_STD)}
SMALLEST, LARGEST = torch.finfo(torch.float32).tiny, torch.finfo(torch.float32).max  # that fp32 holds fully


def with_statistics(reading: Reading, name: str) -> Reading:
    """The reading of images that are normalised with one of `IMAGE_STATISTICS`."""
    mean, std = IMAGE_STATISTICS[name]
    return replace(reading, image_mean=mean, image_std=std)


def statistics_of(reading: Reading) -> str:
    """Which of `IMAGE_STATISTICS` a reading has; "other" for none of them."""
    own = (reading.image_mean, reading.image_std)
    return next((name for name, known in IMAGE_STATISTICS.items() if known == own), "other")


def checked_reading(values: dict[str, Any], default: Reading = PAPER) -> Reading:
    """The reading of the fields that a person gave, others being `default`'s. Raises ValueError: it makes no depth."""
    if unknown := sorted(values.keys() - set(PAPER.__dataclass_fields__)):
        raise ValueError(f"unknown field {', '.join(unknown)}; known are {', '.join(PAPER.__dataclass_fields__)}")
    return replace(default, **{name: field_of(name, value) for name, value in values.items()})


def field_of(name: str, value: Any) -> Any:
    """A field of a `Reading` from what a person gave: words as they are, numbers as floats, lists as tuples."""
    example = getattr(PAPER, name)
    if name == "readout" and (not isinstance(value, str) or value not in READOUTS):
        raise ValueError(f"read-out {value!r}: there is none of this name; there are {', '.join(READOUTS)}")
    many = isinstance(example, tuple)
    kind = str if isinstance(example[0] if many else example, str) else Real
    items = value if many else [value]
    if not isinstance(items, list | tuple) or not all(isinstance(v, kind) and not isinstance(v, bool) for v in items):
        wanted = "a list of " * many + ("words" if kind is str else "numbers" if many else "a number")
        raise ValueError(f"{name}: expected {wanted}, got {value!r}")
    if not items or (name.startswith("image_") and len(items) != 3):
        raise ValueError(f"{name} has {'three numbers, not so many' if items else 'no word or number'}")
    if kind is str:
        if not all(v.strip() for v in items):
            raise ValueError(f"{name} has an empty word: {value!r}")
        if any("\ud800" <= c <= "\udfff" for v in items for c in v):
            raise ValueError(f"{name} has a word whose bytes are no text in this terminal's encoding: {value!r}")
        return tuple(items) if many else items[0]
    if not all((-LARGEST if name == "image_mean" else SMALLEST) < v <= LARGEST for v in items):
        raise ValueError(f"{name} must be positive and finite, as fp32 holds it, got {value!r}")
    return tuple(map(float, items)) if many else float(items[0])
