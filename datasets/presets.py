"""Words and bins for KITTI, as fields of a `Reading`."""

from typing import Any

# Words and bins for outdoors, where the paper's own bins are published nowhere: Auty and Mikolajczyk's (ICCV-W 2023),
# and ours, declared as such: the paper's words, with bins spread evenly in log depth over 5 to 60 m.
PRESETS: dict[str, dict[str, Any]] = {
    "auty": {
        "depth_templates": ("This object appears to be {}",),
        "depth_classes": (
            *("very close", "close", "slightly close", "neither close nor distant"),
            *("slightly distant", "distant", "very distant"),
        ),
        "bin_list": (5.715, 17.144, 28.572, 40.0, 51.429, 62.857, 74.286),
    },
    "log": {"bin_list": tuple(round(5 * 12 ** (i / 6), 2) for i in range(7))},
}
