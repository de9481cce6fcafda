"""What several test files need: a tiny CLIP, the released weights' stand-in, and folders in NYU's layout."""

import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image
from torch import Tensor

import clip
from calculate_error import NYU
from clip.model import CLIP, Architecture
from datasets.nyu import TEST_INDICES
from experiments.published import BEST, BEST_ELSEWHERE, PUBLISHED, THIS_RUN, UNIFORM
from experiments.score import metrics_of
from experiments.statistics import COUNTS, PRIMARY, Images, Results
from experiments.tables import Report
from monoclip import MonoCLIP
from tests.browser import TEN_MINUTES

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
METRICS = metrics_of(NYU)  # of every row of the experiments on NYU
QUICKGELU = ("--activation", "quickgelu")  # of every checkpoint here; a state dict does not tell it
SOFT = ("--temperature", "2")  # so that a tiny CLIP's depth is not one bin
ANY_BYTES_IN_NAMES = pytest.mark.skipif(sys.platform == "darwin", reason="macOS takes only UTF-8 in names of files")

for name in (
    "RANK",
    "WORLD_SIZE",
    "LOCAL_RANK",
):  # of a torchrun that this shell was started by: commands would join it
    os.environ.pop(name, None)

# The same examples on every machine and in every run, none of them kept from an earlier one.
settings.register_profile("same everywhere", derandomize=True, database=None, deadline=None)
settings.load_profile("same everywhere")


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    """What the released implementation computes with the seed-0 weights."""
    with np.load(GOLDEN / "rn50_seed0.npz") as file:
        return dict(file)


@pytest.fixture(scope="session")
def seed0() -> dict[str, Tensor]:
    """RN50's state dict, random, of seed 0 (fp32)."""
    spec = importlib.util.spec_from_file_location("make_weights", GOLDEN / "make_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.rn50_state_dict(0)


@pytest.fixture(scope="session")
def rn50(seed0: dict[str, Tensor]) -> CLIP:
    return clip.build_model(seed0)


@pytest.fixture(scope="session")
def golden_inputs() -> dict[str, Tensor]:
    """The inputs of the golden figures: image x, NYU ground truth gt, KITTI ground truth gk and prediction pk."""
    rng = np.random.default_rng(1000)
    x = torch.from_numpy(rng.integers(0, 256, (2, 3, 416, 544)).astype(np.float32) / 255)
    x = torch.nn.functional.avg_pool2d(x, 9, stride=1, padding=4)
    x = (x - torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)) / torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)
    gt = rng.uniform(0, 11, (2, 1, 480, 640)).astype(np.float32)
    gt[gt < 0.3] = 0
    gk = rng.uniform(0, 100, (2, 1, 352, 1216)).astype(np.float32)
    gk[gk < 20] = 0
    pk = rng.uniform(0, 90, (2, 1, 352, 1216)).astype(np.float32)
    return {"x": x, **{name: torch.from_numpy(v) for name, v in (("gt", gt), ("gk", gk), ("pk", pk))}}


@pytest.fixture(scope="session")
def golden_prediction(rn50: CLIP, golden_inputs: dict[str, Tensor]) -> Tensor:
    """Mirror-averaged prediction of the golden image, (2, 1, 416, 544)."""
    with torch.inference_mode():
        return MonoCLIP(rn50).predict(golden_inputs["x"])


def random_clip(architecture: Architecture, seed: int = 0) -> CLIP:
    """A CLIP of random weights that fp16 can hold, with batch-norm statistics that are not those of a new layer."""
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = CLIP(architecture)
    state_dict = model.state_dict()
    for key, value in state_dict.items():
        if key.endswith("running_mean"):
            value.normal_(0, 0.1, generator=generator)
        elif key.endswith("running_var"):
            value.uniform_(0.5, 1.5, generator=generator)
        elif value.ndim == 4:
            value *= 6**0.5  # from the standard deviation of nn.Conv2d's start to He's, which keeps the signal's size
        if value.is_floating_point():
            value.copy_(value.half())
    return model.eval().requires_grad_(False)


TINY = Architecture(
    embed_dim=64,
    image_resolution=64,
    vision_layers=(1, 1, 1, 1),
    vision_width=4,
    vision_patch_size=None,
    context_length=77,
    vocab_size=49408,
    transformer_width=32,
    transformer_layers=2,
)


@pytest.fixture(scope="session")
def tiny_clip() -> CLIP:
    """A ModifiedResNet of width 4 (C = 128, D = 64) with a text transformer of width 32."""
    model = random_clip(TINY, seed=1)  # others saturate the softmax, so that every image has the same depth
    images = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))
    one, other = MonoCLIP(model).predict(images)
    assert (one - other).abs().max() > 0.1, "tests need a model that gives different images different depths"
    return model


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_clip: CLIP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pt"
    torch.save(tiny_clip.state_dict(), path)
    return path


def write_pair(folder: Path, index: int, seed: int | None = None) -> tuple[Path, Path]:
    """Writes one image of noise in 40 px squares and its depth (0.6 to 9 m, with a hole) in NYU's layout."""
    rng = np.random.default_rng(index if seed is None else seed)
    folder.mkdir(parents=True, exist_ok=True)
    rgb, depth = folder / f"rgb_{index:05d}.jpg", folder / f"sync_depth_{index:05d}.png"
    squares = np.ones((40, 40), dtype=np.uint8)
    colours = rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)
    Image.fromarray(np.stack([np.kron(colours[..., c], squares) for c in range(3)], axis=-1)).save(rgb, quality=95)
    millimetres = np.kron(rng.integers(600, 9000, (12, 16)), np.ones((40, 40))).astype(np.uint16)
    millimetres[100 : 120 + 10 * (index % 17), 200:300] = 0  # so that images differ in their number of valid pixels
    Image.fromarray(millimetres).save(depth)
    return rgb, depth


@pytest.fixture
def nyu_folder(tmp_path: Path) -> Callable[..., Path]:
    """`nyu_folder(n)` writes n pairs in two scenes, in the official layout, and returns the folder."""

    def make(count: int = 5) -> Path:
        for i, index in enumerate(TEST_INDICES[:count]):
            write_pair(tmp_path / "nyu" / "official_splits" / "test" / ("bathroom", "kitchen")[i % 2], index)
        return tmp_path / "nyu"

    return make


@pytest.fixture
def no_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails the test if a model is built."""

    def built(*_: object) -> None:
        raise AssertionError("a model was built before the input was checked")

    for module in ("clip.model", "clip"):
        monkeypatch.setattr(f"{module}.build_model", built)


@pytest.fixture(scope="session")
def nyu_mini() -> Path:
    """The nine photographs behind the golden evaluation; they may not be distributed, so they lie elsewhere."""
    folder = os.environ.get("NYU_MINI")
    if not folder:
        pytest.skip("the nine photographs of nyu_mini are not in the repository; NYU_MINI names their folder")
    return Path(folder)


def child(*command: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """A run of this Python to its end, with the threads of this process; `import eval` works in it."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment, "cwd": ROOT} | options
    return subprocess.run([sys.executable, *map(str, command)], text=True, timeout=TEN_MINUTES, **options)


def torchrun(count: int, *command: object) -> subprocess.CompletedProcess[str]:
    """A script, or `-m` and a module, run by `count` processes. No name of a host has to resolve."""
    here = ("--rdzv_backend=c10d", "--rdzv_endpoint=127.0.0.1:0", "--local_addr=127.0.0.1")
    return child("-m", "torch.distributed.run", *here, f"--nproc_per_node={count}", *command)


def assert_same(one: dict, other: dict) -> None:
    """Metrics of the same rows, up to the last bits of features and words, which may change the order of depths that
    are all but equal: of a tiny CLIP's saturated softmax, those of many pixels.
    """
    assert one.keys() == other.keys()
    for row, metrics in one.items():
        for name, value in metrics.items():
            tolerance = 5e-3 if name in ("spearman", "aurg") else 1e-4
            assert other[row][name] == pytest.approx(value, abs=tolerance), (row, name)


# ---- results that tables and drawings are made of

RANDOM = ("random a", "random b")
LESS = f"{UNIFORM}, 1.75 m"
CONSTANTS = {UNIFORM: 15 / 7, LESS: 1.75}
ROWS = (THIS_RUN, "mine", "prompt 1", *RANDOM, "colour words", "random 0", "random 1", *CONSTANTS)
PERMUTED = np.array([[0.5, 0.3], [0.5, 0.4], [0.4, 0.3], [0.3, 0.35]])  # as good as the first: 1 of 3, by ties
HOSTILE = (
    "a | b",
    "<script>alert(1)</script>",
    "two\nlines",
    "=1+1",
    "100 % of $5 & {x_1} #2 ~ ^ \\end{tabular}",
    "[2ex]",
    "\x1b[31mred\x1b[0m\r\a",
    "not UTF-8 \udcff\udce9",
    "\t@größer, 部屋",
    "'quoted', \"twice\"",
)


def report_of(
    own: str = "mine", caption: str = "Over 3 images.", clusters: Sequence[str] = ("den_1", "=den_2", "den_1")
) -> Report:
    """An image for each of `clusters`; row r of image i has r + i / 10 in every metric, but for baselines 1 and 2."""
    rows, count = [own if row == "mine" else row for row in ROWS], len(clusters)
    scenes = [("bathroom", "den")[i % 2] for i in range(count)]
    images = [f"{scene}/rgb_{i:05d}.jpg" for i, scene in enumerate(scenes)]
    errors = []
    for i in range(count):
        values = np.array([*(r + i / 10 for r in range(len(rows) - 2)), 1.0, 2.0])
        errors.append({**dict.fromkeys(METRICS, values), **{c: np.full(len(rows), 100 + i) for c in COUNTS}})
    baselines = {THIS_RUN: UNIFORM, own: LESS, "prompt 1": UNIFORM}
    results = Results(Images(images, scenes, clusters, range(7, 7 + count), "captures"), rows, errors, baselines)
    results.add_constant(BEST, {"rmse": np.full(count, 0.5)})
    results.add_constant(BEST_ELSEWHERE, {"rmse": np.full(count, 0.6)})
    by = {row: THIS_RUN for row in PUBLISHED if row.name in ("original", "DepthCLIP")}
    by |= {row: "prompt 1" if row.name == "prompt 1" else own for row in PUBLISHED if row.name.startswith("prompt ")}
    return Report(results, by, RANDOM, True, True, "Title", caption, controls=True, own=[own])


def asked(count: int = 12) -> Report:
    """A cluster for each image. This run's delta1 is .1 below uniform weights for every second image and .2 above for
    all others; abs_rel is .25 below for all of them, and every other metric .3 above.
    """
    report = report_of(clusters=[f"den_{i:04d}" for i in range(count)])
    values = report.results.metrics[THIS_RUN]
    values[:] = 1.3
    values[:, [METRICS.index(metric) for metric in PRIMARY]] = [(1.2 if i % 2 else 0.9, 0.75) for i in range(count)]
    return replace(report, permuted=PERMUTED)
