"""What the paper publishes, as data: "Can Language Understand Depth?", ACM MM 2022, arXiv 2207.01077."""

from collections.abc import Mapping
from types import MappingProxyType

# The paper's columns, by the names of calculate_error.
COLUMNS = ("a1", "a2", "a3", "abs_rel", "log10", "rmse")
COLUMN_TITLES = ("delta1", "delta2", "delta3", "abs_rel", "log10", "rmse")

# Table 1, row DepthCLIP: NYU Depth V2, official test split, 654 images.
DEPTHCLIP: Mapping[str, float] = MappingProxyType(
    {"a1": 0.394, "a2": 0.683, "a3": 0.851, "abs_rel": 0.388, "log10": 0.156, "rmse": 1.167}
)
