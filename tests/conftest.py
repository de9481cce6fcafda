"""What several test files need: CLIPs, pictures, a server, folders in the layouts of NYU and KITTI, and results."""

import hashlib
import math
import os
import resource
import runpy
import struct
import subprocess
import sys
import threading
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import h5py
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
from experiments.published import BEST, PROMPT_SETS, RUNGS, THIS_RUN, UNIFORM
from experiments.score import Rows, Setting, metrics_of
from experiments.statistics import COUNTS, PRIMARY, Findings, Results
from experiments.tables import Report
from monoclip import PAPER, MonoCLIP
from tests.browser import TEN_MINUTES

ROOT = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "golden"
METRICS = metrics_of(NYU)  # of every row of the experiments on NYU
QUICKGELU = ("--activation", "quickgelu")  # of every checkpoint here; a state dict does not tell it
SOFT = ("--temperature", "2")  # so that a tiny CLIP's depth is not one bin
ANY_BYTES_IN_NAMES = pytest.mark.skipif(sys.platform == "darwin", reason="macOS takes only UTF-8 in names of files")

for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
    os.environ.pop(name, None)  # of a torchrun that started this shell: commands would join it

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
    return runpy.run_path(str(GOLDEN / "make_weights.py"))["rn50_state_dict"](0)


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
    maps = {"gt": (11, 480, 640), "gk": (100, 352, 1216), "pk": (90, 352, 1216)}
    inputs = {name: torch.from_numpy(rng.uniform(0, far, (2, 1, *size))).float() for name, (far, *size) in maps.items()}
    inputs["gt"][inputs["gt"] < 0.3] = 0
    inputs["gk"][inputs["gk"] < 20] = 0
    return {"x": x, **inputs}


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


# embed_dim, image_resolution, vision_layers, vision_width, vision_patch_size, context_length, vocab_size, and the text
# transformer's width and layers
TINY = Architecture(64, 64, (1, 1, 1, 1), 4, None, 77, 49408, 32, 2)
TINY_VIT = replace(TINY, vision_layers=2, vision_width=64, vision_patch_size=16)
PAPER_MODELS = {
    "RN50": Architecture(1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 12),
    "RN101": Architecture(512, 224, (3, 4, 23, 3), 64, None, 77, 49408, 512, 12),
    "RN50x4": Architecture(640, 288, (4, 6, 10, 6), 80, None, 77, 49408, 640, 12),
    "RN50x16": Architecture(768, 384, (6, 8, 18, 8), 96, None, 77, 49408, 768, 12),
    "RN50x64": Architecture(1024, 448, (3, 15, 36, 10), 128, None, 77, 49408, 1024, 12),
    "ViT-B/32": Architecture(512, 224, 12, 768, 32, 77, 49408, 512, 12),
    "ViT-B/16": Architecture(512, 224, 12, 768, 16, 77, 49408, 512, 12),
    "ViT-L/14": Architecture(768, 224, 24, 1024, 14, 77, 49408, 768, 12),
    "ViT-L/14@336px": Architecture(768, 336, 24, 1024, 14, 77, 49408, 768, 12),
}


@pytest.fixture(scope="session")
def tiny_clip() -> CLIP:
    return random_clip(TINY, seed=1)  # others saturate the softmax, so that every image has the same depth


@pytest.fixture(scope="session")
def tiny_checkpoint(tiny_clip: CLIP, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.pt"
    torch.save(tiny_clip.state_dict(), path)
    return path


def write_pair(folder: Path, index: int, seed: int | None = None) -> tuple[Path, Path]:
    """Writes one image of noise in 40 px squares and its depth (0.6 to 9 m, with a hole) in NYU's layout."""
    seed = index if seed is None else seed
    squares = np.random.default_rng(seed).integers(600, 9000, (12, 16), dtype=np.uint16)
    millimetres = squares.repeat(40, axis=0).repeat(40, axis=1)
    millimetres[100 : 120 + 10 * (index % 17), 200:300] = 0  # so that images differ in their number of valid pixels
    rgb = save(folder / f"rgb_{index:05d}.jpg", noise(480, 640, seed, side=40), quality=95)
    return rgb, save(folder / f"sync_depth_{index:05d}.png", millimetres)


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
    for module in ("clip.model", "clip"):
        monkeypatch.setattr(f"{module}.build_model", lambda *_: pytest.fail("a model was built before the checks"))


@pytest.fixture(scope="session")
def nyu_mini() -> Path:
    """The nine photographs behind the golden evaluation; they may not be distributed, so they lie elsewhere."""
    missing = "the nine photographs of nyu_mini are not in the repository; NYU_MINI names their folder"
    return Path(os.environ.get("NYU_MINI") or pytest.skip(missing))


def child(*command: object, **options: Any) -> subprocess.CompletedProcess[str]:
    """A run of this Python to its end, with the threads of this process; `import eval` works in it."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads()), "PYTHONPATH": str(ROOT)}
    options = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "env": environment, "cwd": ROOT} | options
    return subprocess.run([sys.executable, *map(str, command)], text=True, timeout=TEN_MINUTES, **options)


def torchrun(count: int, *command: object) -> subprocess.CompletedProcess[str]:
    """A script, or `-m` and a module, run by `count` processes."""
    here = ("--rdzv_backend=c10d", "--rdzv_endpoint=127.0.0.1:0", "--local_addr=127.0.0.1")  # no host has to resolve
    return child("-m", "torch.distributed.run", *here, f"--nproc_per_node={count}", *command)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A disk that is full after so many bytes of each file."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def assert_same(one: dict, other: dict) -> None:
    """The same metrics but for the last bits, which may change the order of all but equal depths: a tiny CLIP's."""
    assert one.keys() == other.keys()
    for row, metrics in one.items():
        for name, value in metrics.items():
            tolerance = 5e-3 if name in ("spearman", "aurg") else 1e-4
            assert other[row][name] == pytest.approx(value, abs=tolerance), (row, name)


# ---- pictures


def noise(height: int, width: int, seed: int = 0, side: int = 16) -> np.ndarray:
    """A picture of random squares, (height, width, 3) uint8."""
    size = (height // side + 1, width // side + 1, 3)
    colours = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8)
    return colours.repeat(side, axis=0).repeat(side, axis=1)[:height, :width]


def save(path: Path, pixels: np.ndarray | Image.Image, **options: object) -> Path:
    """Writes a picture and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


# ---- a server of files

CONTENT = np.random.default_rng(1).bytes(3 * 2**17)
SIZE, HALF = len(CONTENT), len(CONTENT) // 2
SHA256 = hashlib.sha256(CONTENT).hexdigest()
FLIPPED = CONTENT[:HALF] + bytes([CONTENT[HALF] ^ 1]) + CONTENT[HALF + 1 :]
WHOLE, PAGE = {"Content-Length": SIZE}, b"<html>please log in</html>"
ANSWERS: dict[str, tuple[int, dict[str, Any], bytes]] = {  # status, headers and body, whatever range is asked for
    "all": (200, WHOLE, CONTENT),
    "no_length": (200, {}, CONTENT),
    "half": (200, WHOLE, CONTENT[:HALF]),
    "half_no_length": (200, {}, CONTENT[:HALF]),
    "longer": (200, {"Content-Length": SIZE + 10}, CONTENT + bytes(10)),
    "page": (200, {"Content-Type": "text/html; charset=utf-8"}, PAGE),
    "missing": (404, {"Content-Length": len(PAGE)}, PAGE),
    "busy": (503, {}, b""),
    "moved": (302, {"Location": "/half_then_good/w.bin"}, b""),
    "together": (200, WHOLE, CONTENT[:HALF]),  # and the rest when four clients are there
}


def answer_in_ranges(name: str, start: int) -> tuple[int, dict[str, Any], bytes]:
    """What "good" answers to who asks for the bytes from `start` on; "sixths" hangs up after a sixth of the file."""
    if start >= SIZE:
        return 416, {}, b""
    start -= 100 if name == "elsewhere" else 0
    rest = (FLIPPED if name == "flipped" else CONTENT)[start:]
    headers = {"Content-Length": len(rest), "Content-Range": f"bytes {start}-{SIZE - 1}/{SIZE}"}
    return 206 if start else 200, headers, rest[: SIZE // 6] if name == "sixths" else rest


class Handler(BaseHTTPRequestHandler):
    server: "Server"

    def do_GET(self) -> None:
        mode, start = self.path.split("/")[1], int(self.headers.get("Range", "bytes=0-")[6:-1])
        names, seen = mode.split("_then_"), [mode for mode, _ in self.server.hits].count(mode)
        self.server.hits.append((mode, start))
        name = names[min(seen, len(names) - 1)]
        status, headers, body = ANSWERS.get(name) or answer_in_ranges(name, start)
        self.send_response(status)
        for header, value in headers.items():
            self.send_header(header, str(value))
        self.end_headers()
        self.wfile.write(body)
        if name == "together":
            self.server.four.wait()
            self.wfile.write(CONTENT[HALF:])

    def log_message(self, *args: object) -> None:
        """Nothing is printed."""


class Server(ThreadingHTTPServer):
    """`with Server()` sends CONTENT from `/{mode}/w.bin`, or misbehaves; "half_then_good" only the first time."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.hits: list[tuple[str, int]] = []  # mode, first byte that was asked for
        self.four = threading.Barrier(4)
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}).start()

    def server_close(self) -> None:
        self.four.abort()
        self.shutdown()
        super().server_close()

    def url(self, mode: str) -> str:
        return f"http://127.0.0.1:{self.server_port}/{mode}/w.bin"

    def handle_error(self, *args: object) -> None:
        """A client that hangs up is what several tests are about."""


# ---- data


def naive_metrics(gt: np.ndarray, pred: np.ndarray, cap: float) -> dict[str, float]:
    """All metrics over counted pixels, (N,) each, pixel by pixel in double precision.

    But for ratios, which are those of the nearest fp32: a ratio that is just below 1.25 may round to it, and be no hit.
    """
    pixels = []
    low, high = np.float32(1e-3), np.float32(cap)
    for g32, p32 in zip(gt.astype(np.float32).clip(low, high), pred.astype(np.float32).clip(low, high), strict=True):
        g, p, ratio = float(g32), float(p32), max(g32 / p32, p32 / g32)
        s = math.log(p) - math.log(g)
        errors = {f"delta{i}": bool(ratio < 1.25**i) for i in (1, 2, 3)}
        errors |= {"abs_diff": abs(g - p), "abs_rel": abs(g - p) / g, "sq_rel": (g - p) ** 2 / g, "rmse": (g - p) ** 2}
        pixels.append(errors | {"log10": abs(math.log10(g) - math.log10(p)), "rmse_log": s**2, "s": s})
    mean = {name: math.fsum(errors[name] for errors in pixels) / len(pixels) for name in pixels[0]}
    spread = math.fsum((errors["s"] - mean["s"]) ** 2 for errors in pixels) / len(pixels)
    return mean | {"rmse": math.sqrt(mean["rmse"]), "rmse_log": math.sqrt(mean["rmse_log"]), "silog": math.sqrt(spread)}


def naive_mask_NYU(gt: np.ndarray, pred: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The pixels that count, and the prediction on the frame, (480, 640) each, as the release places and masks them."""
    canvas = np.zeros((480, 640), dtype=np.float32)
    canvas[56:472, 60:604] = pred
    crop = np.zeros((480, 640), dtype=bool)
    crop[45:471, 46:601] = True
    return crop & (gt > 1e-3) & (gt < 10) & (canvas > 1e-3), canvas


def spoil(kind: str, rgb: Path, depth: Path) -> None:
    """Does to a pair what `kind` says."""
    units = np.asarray(Image.open(depth))
    maps = {"small depth": units[::2, ::2], "turned depth": units.T, "depth in metres": units // 1000}
    maps |= {"8-bit depth": (units // 256).astype(np.uint8), "no depth": units * 0, "too far": units * 0 + 60_000}
    if kind in maps:
        save(depth, maps[kind].copy())
    elif "megapixels" in kind:  # that a small PNG claims
        png, side = bytearray(depth.read_bytes()), {"9 megapixels": 3_000, "400 megapixels": 20_000}[kind]
        png[16:24] = struct.pack(">II", side, side)
        png[29:33] = struct.pack(">I", zlib.crc32(png[12:29]))
        depth.write_bytes(png)
    elif kind == "no image":
        rgb.write_text("<html>404</html>")
    elif kind == "small picture":
        Image.open(rgb).resize((64, 48)).save(rgb)
    elif kind.startswith("half"):
        os.truncate(half := {"half JPEG": rgb, "half PNG": depth}[kind], half.stat().st_size // 2)
    else:
        {"no picture": rgb, "not a file": rgb, "no depth map": depth}[kind].unlink()
        if kind == "not a file":
            os.mkfifo(rgb)


# nyu_depth_v2_labeled.mat as published: 1449 entries, transposed arrays, object references, MATLAB's user block. A few
# images have content; all others are HDF5's fill value.
WITH_CONTENT = (0, 1, 2, 8)  # 2 belongs to the train split
TOO_FAR, NOT_A_NUMBER, NEGATIVE, LARGEST = 3, 4, 5, 6  # train images with such a depth
SCENES = [("bedroom", "living_room", "study")[index % 3] for index in range(1449)]
CAPTURES = [f"walk_{index // 5:04d}" for index in range(1449)]


def mat_content(index: int) -> dict[str, np.ndarray]:
    """Arrays of one image as they stand in the .mat: images (3, 640, 480), rawDepths and depths (640, 480)."""
    rng = np.random.default_rng(index)
    dense = rng.uniform(0.6, 9.9, (640, 480)).astype(np.float32)
    raw = np.where(rng.random((640, 480)) < 0.1, np.float32(0), dense)
    images = rng.integers(0, 256, (3, 16, 12), dtype=np.uint8).repeat(40, axis=1).repeat(40, axis=2)
    return {"images": images, "rawDepths": raw, "depths": dense}


def write_mat(path: Path, types: list[str], captures: list[str] = CAPTURES, **replaced: tuple) -> Path:
    """Writes a .mat; `replaced` gives arrays another (shape, dtype)."""
    usual = dict.fromkeys(("rawDepths", "depths"), ((1449, 640, 480), "float32"))
    usual["images"] = (1449, 3, 640, 480), "uint8"
    with h5py.File(path, "w", userblock_size=512) as file:
        for name, fill in {"images": 120, "rawDepths": 2.5, "depths": 2.625}.items():
            shape, dtype = replaced.get(name, usual[name])
            array = file.create_dataset(name, shape, dtype, chunks=(1, *shape[1:]), compression=1, fillvalue=fill)
            for index in () if name in replaced else WITH_CONTENT:
                array[index] = mat_content(index)[name]
        odd = {} if replaced else {TOO_FAR: 70.0, NOT_A_NUMBER: np.nan, NEGATIVE: -0.5, LARGEST: 65.535}
        for index, depth in odd.items():
            file["rawDepths"][index] = np.where(np.arange(480) == 479, np.float32(depth), np.float32(1))
        for array, names in (("sceneTypes", types), ("scenes", captures)):
            codes = {name: np.array([[ord(c)] for c in name], dtype=np.uint16) for name in names}
            refs = {n: file.create_dataset(f"#refs#/{array} {i}", data=codes[n]).ref for i, n in enumerate(codes)}
            file.create_dataset(array, data=np.array([[refs[name] for name in names]], h5py.ref_dtype))
    with path.open("r+b") as file:
        file.write(b"MATLAB 7.3 MAT-file")
    return path


# KITTI: sizes of its frames, and frames of the split: drive, number, size, half of the annotated set, picture's suffix.
SIZES = ((370, 1224), (370, 1226), (374, 1238), (375, 1242), (376, 1241))
FRAMES = (
    ("2011_09_26_drive_0002_sync", 6, SIZES[3], "val", "png"),
    ("2011_09_26_drive_0002_sync", 9, SIZES[3], "val", "jpg"),
    ("2011_09_28_drive_0002_sync", 12, SIZES[0], "train", "png"),
    ("2011_09_29_drive_0071_sync", 108, SIZES[2], "train", "jpg"),
    ("2011_09_30_drive_0016_sync", 22, SIZES[1], "val", "png"),
    ("2011_10_03_drive_0027_sync", 543, SIZES[4], "train", "png"),
)


def picture_of(drive: str, number: int | str, suffix: str = "png") -> str:
    return f"{drive[:10]}/{drive}/image_02/data/{number:0>10}.{suffix}"


def depth_of(drive: str, number: int | str) -> str:
    return f"{drive}/proj_depth/groundtruth/image_02/{number:0>10}.png"


def lines_of(frames: Sequence[tuple] = FRAMES) -> list[str]:
    return [f"{picture_of(f[0], f[1], f[4])} {depth_of(f[0], f[1])} 721.5377" for f in frames]


def window_of(height: int, width: int) -> tuple[slice, slice]:
    """What the method sees of a frame: 352 x 1216 px at the bottom, in the middle."""
    left = (width - 1216) // 2
    return slice(height - 352, height), slice(left, left + 1216)


def sparse_depth(size: tuple[int, int], seed: int) -> np.ndarray:
    """Depth of 2 to 110 m at one pixel in 12, as the PNGs hold it, and none elsewhere: (H, W) uint16."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(size) < 1 / 12, rng.integers(2 * 256, 110 * 256, size), 0).astype(np.uint16)


def write_tree(root: Path, halves: bool = True, frames: Sequence[tuple] = FRAMES) -> Path:
    """Writes the frames below `root`; without `halves`, annotated drives directly there."""
    for seed, (drive, number, size, half, suffix) in enumerate(frames):
        save(root / picture_of(drive, number, suffix), noise(*size, seed))
        save(root / (half if halves else "") / depth_of(drive, number), sparse_depth(size, seed))
    return root


# ---- results that tables and drawings are made of

RANDOM, LESS = ("random a", "random b"), f"{UNIFORM}, 1.75 m"
CONSTANTS = {UNIFORM: 15 / 7, LESS: 1.75}
FITTED = [row for row in RUNGS if row not in (UNIFORM, BEST, THIS_RUN)]
ROWS = (THIS_RUN, "mine", "prompt 1", *RANDOM, "colour words", *FITTED, *CONSTANTS)
PERMUTED = np.array([[0.5, 0.3], [0.5, 0.4], [0.4, 0.3], [0.3, 0.35]])  # as good as the first: 1 of 3, by ties
HOSTILE = ("a | b", "<script>alert(1)</script>", "two\nlines", "=1+1", "\t@größer, 部屋", "'quoted', \"twice\"")
HOSTILE += ("[2ex]", "100 % of $5 & {x_1} #2 ~ ^ \\end{tabular}", "\x1b[31mred\x1b[0m\r\a", "not UTF-8 \udcff\udce9")


@dataclass(frozen=True)
class Images:
    """What `Results` asks of a data set."""

    names: Sequence[str]
    scenes: Sequence[str]
    clusters: Sequence[str]
    indices: Sequence[int]
    clustered_by: str = "images"

    def __len__(self) -> int:
        return len(self.names)


CLUSTERS = ("den_1", "=den_2", "den_1")


def report_of(own: str = "mine", caption: str = "Over 3 images.", clusters: Sequence[str] = CLUSTERS) -> Report:
    """An image for each of `clusters`; row r of image i has r + i / 10 in every metric, but for baselines 1 and 2."""
    names, count = [own if row == "mine" else row for row in ROWS], len(clusters)
    scenes = [("bathroom", "den")[i % 2] for i in range(count)]
    images = [f"{scene}/rgb_{i:05d}.jpg" for i, scene in enumerate(scenes)]
    errors = []
    for i in range(count):
        values = {row: r + i / 10 for r, row in enumerate(names)} | {UNIFORM: 1.0, LESS: 2.0}
        errors.append({row: dict.fromkeys(METRICS, v) | dict.fromkeys(COUNTS, 100 + i) for row, v in values.items()})
    baselines = {THIS_RUN: UNIFORM, own: LESS, "prompt 1": UNIFORM}
    results = Results(Images(images, scenes, clusters, range(7, 7 + count), "captures"), errors, baselines)
    results.add_constant(BEST, {"rmse": np.full(count, 0.5)})
    read = {THIS_RUN: PAPER, own: replace(PAPER, temperature=7), "prompt 1": PROMPT_SETS["prompt 1"]}
    rows = Rows(tuple(Setting(*each) for each in read.items()), RANDOM, CONSTANTS, baselines)
    findings = Findings(results, None, np.empty((2, 0)), None, [])
    groups = {"Must the words be about distance?": ["colour words"]}
    return Report(findings, rows, NYU, "Title", caption, official=True, as_released=True, own=[own], groups=groups)


def with_findings(report: Report, **changes: Any) -> Report:
    """The report with other findings."""
    return replace(report, findings=report.findings._replace(**changes))


def asked(count: int = 12) -> Report:
    """A cluster for each image: delta1 .1 below uniform weights or .2 above, in turn, abs_rel .25 below, others .3."""
    report = report_of(clusters=[f"den_{i:04d}" for i in range(count)])
    values = report.results.metrics[THIS_RUN]
    values[:] = 1.3
    values[:, [METRICS.index(metric) for metric in PRIMARY]] = [(1.2 if i % 2 else 0.9, 0.75) for i in range(count)]
    return with_findings(report, permuted=PERMUTED)
