"""What the paper publishes, as data: "Can Language Understand Depth?", ACM MM 2022, arXiv 2207.01077.

Every row of its tables with the reading behind it, so that an evaluation can print its own metrics beside them. All are
over NYU Depth V2, official test split, 654 images. Metrics are in the order of `COLUMNS`; None where none is published.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from datasets.kitti import PRESETS
from monoclip import PAPER, Reading

AUTY, LOG_BINS = (replace(PAPER, **PRESETS[name]) for name in ("auty", "log"))
COLUMNS = ("delta1", "delta2", "delta3", "abs_rel", "log10", "rmse")  # of the paper's tables

PAPER_ROW = "paper, DepthCLIP"
# Rows of ours: the reading of a run; what says nothing; the constant that is best for a metric, of those in sample, of
# all images outside an image's own cluster, of the training split.
THIS_RUN, UNIFORM = "this run", "uniform weights"
BEST, BEST_ELSEWHERE = "best constant for each metric", "best constant of the other clusters"
BEST_TRAINED = "best constant of the training split"

TABLE_1 = "Table 1: methods"
PROMPTS = "Prompt ablation (original bins)"
BINS = "Depth-bin ablation (original prompts)"
SCENES = ("bathroom", "classroom")  # that the bin ablation is repeated on
# The paper has no row on KITTI, and its bins for KITTI are published nowhere; these are zero-shot rows of later papers.
# MfH, table 1, does not say whose bins and protocol. Auty and Mikolajczyk, ICCV-W 2023, table 3, untrained: ground
# truth cropped to the window first, as AdaBins does. Their "RMSE log" is no root, and left out.
KITTI_ROWS = "KITTI, Eigen test split: zero-shot rows of other papers"
NOT_SAID, AS_ADABINS = "protocol not said", "KITTI, AdaBins"
LOWER_BOUND = "Lower Bound"
MEAN_IMAGE = "mean training depth image"


def shown(value: float | None) -> str:
    """A metric in a table."""
    return "-" if value is None else f"{value:.3f}"


def named_by(name: str, protocol: str) -> str:
    """A row's name with its protocol in brackets, if it has one."""
    return f"{name} ({protocol})" if protocol else name


@dataclass(frozen=True)
class Published:
    """One published row."""

    table: str  # that it stands in
    name: str  # as the table calls it
    metrics: tuple[float | None, ...]  # in the order of `COLUMNS`, None where none is published
    reading: Reading | None = None  # what makes the row here; None for other methods and random depth
    scene: str | None = None  # the images of one scene only
    note: str = ""  # supervision, or where the row comes from
    data_set: str = "NYU"  # that it is over
    protocol: str = ""  # the name of its `Protocol`, where a data set has several

    @property
    def by_protocol(self) -> str:
        """Its name, and its protocol where a data set has several."""
        return named_by(self.name, self.protocol)

    def by_column(self) -> dict[str, float | None]:
        """Metric -> value."""
        return dict(zip(COLUMNS, self.metrics, strict=True))


def _words(text: str) -> Reading:
    return replace(PAPER, depth_classes=tuple(text.split(", ")))


def _metres(*bins: float) -> Reading:
    return replace(PAPER, bin_list=bins)


PROMPT_SETS: Mapping[str, Reading] = MappingProxyType(
    {
        "original": PAPER,
        "prompt 1": _words("extremely close, close, middle, a little far, far, quite far, unseen"),
        "prompt 2": _words("extremely close, very close, close, a little close, a little far, far, unseen"),
        "prompt 3": _words("giant, close, a little close, not in distance, a bit remote, far, unseen"),
    }
)

BIN_SETS: Mapping[str, Reading] = MappingProxyType(
    {
        "original": PAPER,
        "class-dependent 1": _metres(1.00, 2.00, 2.25, 2.50, 2.75, 3.00, 4.00),
        "class-dependent 2": _metres(1.00, 1.50, 2.00, 2.50, 3.00, 3.50, 4.00),
        "class-dependent 3": _metres(1.00, 1.25, 1.50, 1.75, 2.00, 2.25, 2.50),
        "class-dependent 4": _metres(2.00, 2.50, 3.00, 3.25, 3.50, 3.75, 4.00),
    }
)

# Outdoors: published words and bins, and ours.
OUTDOORS: Mapping[str, Reading] = MappingProxyType(
    {"Auty's words and bins": AUTY, "the paper's words, bins in log depth (ours)": LOG_BINS}
)

# The paper's drawing "semantic bin response": prompt 3 with class-dependent bins 1.
BIN_RESPONSE = replace(PROMPT_SETS["prompt 3"], bin_list=BIN_SETS["class-dependent 1"].bin_list)
BIN_RESPONSE_DEPTHS = ((3.117, 3.567), (1.502, 1.328))  # [m] predicted and true, of its two patches

_ORIGINAL = (0.394, 0.683, 0.851, 0.388, 0.156, 1.167)
_OTHER = "other work, not in the paper"

PUBLISHED: tuple[Published, ...] = (
    Published(TABLE_1, "Make3D", (0.447, 0.745, 0.897, 0.349, None, 1.214), note="depth"),
    Published(TABLE_1, "DORN", (0.828, 0.965, 0.992, 0.115, 0.051, 0.509), note="depth"),
    Published(TABLE_1, "ASTransformer", (0.902, 0.985, 0.997, 0.103, 0.044, 0.374), note="depth"),
    Published(TABLE_1, "DepthFormer", (0.921, 0.989, 0.998, 0.096, 0.041, 0.339), note="depth"),
    Published(TABLE_1, "RPSF", (0.952, 0.989, 0.997, 0.072, 0.029, 0.267), note="depth"),
    Published(TABLE_1, LOWER_BOUND, (0.140, 0.297, 0.471, 1.327, 0.323, 2.934), note="random 0-10 m"),
    Published(TABLE_1, "vid2depth", (0.268, 0.507, 0.695, 0.572, None, 1.637), note="video, KITTI"),
    Published(TABLE_1, "Zhang et al.", (0.350, 0.617, 0.799, 0.513, 0.529, 1.457), note="video, KITTI"),
    Published(TABLE_1, "DepthCLIP", _ORIGINAL, PAPER, note="language"),
    # An independent run of the release: MoA-DepthCLIP, arXiv 2604.01118.
    Published(TABLE_1, "DepthCLIP, run by MoA-DepthCLIP", (0.390, 0.680, 0.848, 0.393, 0.158, 1.176), note=_OTHER),
    # Eigen et al. 2014: no input at all; other crop, filled ground truth.
    Published(
        TABLE_1,
        MEAN_IMAGE,
        (0.418, 0.711, 0.874, 0.408, None, 1.244),
        note=f"{_OTHER}: Eigen et al. 2014, over another crop and filled ground truth",
    ),
    Published(
        TABLE_1,
        "Hu et al., one image of training",
        (0.428, 0.732, 0.898, 0.347, None, 1.049),
        note=f"{_OTHER}: one image of training",
    ),
    Published(PROMPTS, "original", _ORIGINAL, PROMPT_SETS["original"]),
    Published(PROMPTS, "prompt 1", (0.341, 0.623, 0.816, 0.379, 0.175, 1.274), PROMPT_SETS["prompt 1"]),
    Published(PROMPTS, "prompt 2", (0.377, 0.667, 0.845, 0.385, 0.161, 1.196), PROMPT_SETS["prompt 2"]),
    Published(PROMPTS, "prompt 3", (0.380, 0.670, 0.846, 0.375, 0.160, 1.196), PROMPT_SETS["prompt 3"]),
    *(
        Published(BINS, name, metrics, BIN_SETS[name], scene)
        for scene, rows in {
            None: (
                _ORIGINAL,
                (0.373, 0.653, 0.828, 0.467, 0.166, 1.228),
                (0.366, 0.641, 0.819, 0.496, 0.170, 1.248),
                (0.333, 0.621, 0.818, 0.353, 0.176, 1.290),
                (0.288, 0.548, 0.752, 0.663, 0.201, 1.439),
            ),
            "bathroom": (
                (0.333, 0.631, 0.814, 0.549, 0.175, 0.922),
                (0.248, 0.490, 0.699, 0.754, 0.219, 1.237),
                (0.236, 0.460, 0.675, 0.801, 0.229, 1.308),
                (0.425, 0.723, 0.893, 0.373, 0.141, 0.745),
                (0.129, 0.302, 0.535, 1.072, 0.287, 1.682),
            ),
            "classroom": (
                (0.308, 0.533, 0.742, 0.372, 0.193, 1.826),
                (0.312, 0.565, 0.820, 0.383, 0.179, 1.694),
                (0.310, 0.583, 0.830, 0.397, 0.175, 1.636),
                (0.231, 0.452, 0.600, 0.407, 0.246, 2.138),
                (0.276, 0.637, 0.844, 0.461, 0.173, 1.544),
            ),
        }.items()
        for name, metrics in zip(BIN_SETS, rows, strict=True)
    ),
    *(
        Published(KITTI_ROWS, name, metrics, reading, None, note, "KITTI", protocol)
        for protocol, note, rows in (
            (
                NOT_SAID,
                "MfH, table 1",
                (
                    ("DepthCLIP, as run in MfH", (0.281, None, None, 0.473, None, 12.96), None),
                    ("Hu et al., one image of training", (0.312, None, None, 0.384, None, 12.29), None),
                ),
            ),
            (
                AS_ADABINS,
                "Auty and Mikolajczyk, table 3, untrained",
                (
                    ("Auty, depth words", (0.094, 0.193, 0.297, 2.353, 0.454, 25.518), AUTY),
                    ("Auty, size words", (0.048, 0.103, 0.171, 3.363, 0.568, 33.978), None),
                    ("Auty, colour words", (0.077, 0.163, 0.267, 2.177, 0.446, 23.470), None),
                    ("Auty, random words", (0.119, 0.251, 0.400, 1.664, 0.370, 19.279), None),
                    ("Auty, random text vectors", (0.046, 0.098, 0.161, 2.887, 0.535, 29.553), None),
                ),
            ),
        )
        for name, metrics, reading in rows
    ),
)

# Table 1, row DepthCLIP.
DEPTHCLIP: Mapping[str, float] = MappingProxyType(dict(zip(COLUMNS, _ORIGINAL, strict=True)))


def published_over(data_set: str) -> list[Published]:
    """What is published over a data set, by the name that its protocols give it."""
    return [row for row in PUBLISHED if row.data_set == data_set]


def beside(data_set: str) -> dict[str, dict[str, float | None]]:
    """What stands beside a run over a whole split: of NYU the paper's row, else all rows, by name."""
    rows = {row.by_protocol: row.by_column() for row in published_over(data_set)}
    return {PAPER_ROW: dict(DEPTHCLIP)} if data_set == "NYU" else rows
