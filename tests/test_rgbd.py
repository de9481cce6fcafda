"""One's own pairs: every measured pixel by a naive loop, all forms of files and lists, and what is refused."""

import csv
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.Image import Transpose

import eval as evaluation
import options
from calculate_error import NYU_METRICS, Protocol
from datasets import DataError
from datasets.pairs import DepthPairs
from datasets.readings import checked_reading
from datasets.rgbd import open_rgbd
from monoclip import MonoCLIP
from tests.conftest import QUICKGELU, naive_metrics, noise, save, spoil

# In the order of their names: (H, W) and suffix of the picture. No size but 64 x 96 is one of whole patches.
PAIRS = {"a": ((70, 101), "png"), "b": ((64, 96), "jpg"), "c": ((64, 96), "png"), "d": ((97, 50), "JPEG")}
SCALE, FARTHEST = 500.0, 20.0  # units in a metre, and [m]
OWN = Protocol("own pairs", NYU_METRICS, FARTHEST)


def depth_units(size: tuple[int, int], seed: int) -> np.ndarray:
    """Depth of 1 to 25 m in units of 2 mm, with a hole and a row of 1 unit."""
    depth = np.random.default_rng(seed).integers(500, 12500, size).astype(np.uint16)
    depth[10 : 20 + seed, 10:20], depth[0] = 0, 1
    return depth


def write(path: Path, values: np.ndarray | Image.Image, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    np.save(path, values) if path.suffix == ".npy" else save(path, values, **options)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`PAIRS` in rgb/ and depth/."""
    for seed, (name, (size, suffix)) in enumerate(PAIRS.items()):
        write(tmp_path / "pairs" / "rgb" / f"{name}.{suffix}", noise(*size, seed))
        write(tmp_path / "pairs" / "depth" / f"{name}.png", depth_units(size, seed))
    return tmp_path / "pairs"


def of(root: Path, *lines: str) -> DepthPairs:
    """The data set of a folder, or of some lines of a list."""
    (root / "list.txt").write_bytes("\r\n".join(lines).encode("utf-8", "surrogateescape"))
    return open_rgbd(root, OWN, SCALE, root / "list.txt" if lines else None)


@pytest.fixture
def model(tiny_checkpoint: Path) -> MonoCLIP:
    reading = checked_reading({"temperature": 2})
    return options.load_model(options.Setup(tiny_checkpoint, reading, activation="quickgelu"))[1]


@pytest.fixture
def run(folder, tiny_checkpoint, capsys):
    """`run(*flags)` evaluates the tiny CLIP on the folder: exit code, standard output, standard error."""

    def call(*flags: object) -> tuple[int, str, str]:
        usual = ["--dataset", "rgbd", "--data_path", folder, "--clip_path", tiny_checkpoint, "--device", "cpu"]
        usual += ["--depth_scale", SCALE, "--max_depth", FARTHEST, *QUICKGELU, "--temperature", 2]
        return evaluation.main(list(map(str, [*usual, *flags]))), *capsys.readouterr()

    return call


def rows_of(output: Path) -> list[dict[str, str]]:
    with (output / "per_image.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_every_measured_pixel_counts_at_every_size(run, folder, tmp_path, model):
    code, out, err = run("--output", tmp_path / "out")
    assert code == 0, err
    assert "data: 4 images of pairs\n" in out
    assert re.search(r"\nthis run .*\nuniform weights \(2\.143 m\)", out)  # and nothing published
    line = r"true depth: 5 % nearer than 1\.87 m, .*; 4,\d{3} of 23,748 measured pixels lie beyond --max_depth 20 m"
    assert re.search(line, out)
    assert re.search(r"\nwarning: \d\d% of the measured depth does not count; is --depth_scale right\?\n", out)
    assert "warning" not in run("--depth_scale", 2000)[1]
    rows = rows_of(tmp_path / "out")
    for place, (name, (size, suffix)) in enumerate(PAIRS.items()):
        pixels = np.array(Image.open(folder / "rgb" / f"{name}.{suffix}"))
        gt = depth_units(size, place).astype(np.float32) / np.float32(SCALE)
        counts = (gt > 1e-3) & (gt < FARTHEST)
        assert counts[0].all()  # 2 mm count
        with torch.inference_mode():  # resized to whole patches, and back
            depth = model.predict(model.prepare(pixels)[None], size)[0, 0].numpy()
        for row, pred in zip(rows[place :: len(PAIRS)], (depth, np.full(size, 15 / 7, np.float32)), strict=True):
            found = naive_metrics(gt[counts], pred[counts], FARTHEST)
            expected = {metric: found[metric] for metric in NYU_METRICS}
            expected |= {"valid_pixels": counts.sum(), "dropped_pixels": 0}
            assert {key: float(row[key]) for key in expected} == pytest.approx(expected, rel=1e-4, abs=1e-4)
            assert (row["image"], row["protocol"]) == (f"rgb/{name}.{suffix}", "own pairs")
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert ("1e-3 < gt < 20 m" in results["protocol"], results["published"]) == (True, {})


def test_one_picture_has_one_depth_whatever_its_size_in_eval_and_in_predict(run, tmp_path, model):
    large = noise(30, 40).repeat(32, 0).repeat(32, 1)  # 960 x 1280, seen as 480 x 640
    write(tmp_path / "large" / "rgb" / "a.png", large)
    write(tmp_path / "large" / "depth" / "a.png", np.full(large.shape[:2], 2 * SCALE, np.uint16))
    assert model.prepare(large).shape == (3, 480, 640)
    assert run("--data_path", tmp_path / "large", "--output", tmp_path / "out", "--figures")[0] == 0
    expected = np.abs(model.infer_image(large) - 2).mean()
    assert float(rows_of(tmp_path / "out")[0]["abs_diff"]) == pytest.approx(expected, abs=1e-5)


def test_all_forms_of_a_pair_give_its_pixels(tmp_path):
    pixels, units = noise(70, 101, 5), depth_units((70, 101), 5)
    metres, grey = units.astype(np.float32) / np.float32(SCALE), pixels[..., :1].repeat(3, axis=2)
    lying = Image.fromarray(pixels).transpose(Transpose.ROTATE_90)
    lying.getexif()[0x0112] = 6
    big_end_first = Image.frombytes("I;16B", (101, 70), units.astype(">u2").tobytes())
    holes = np.where(metres == 0, np.nan, metres).astype(np.float64)
    holes[20, 20:30] = np.inf
    measured = np.nan_to_num(holes, posinf=0)
    plain = ("a.png", units, metres)
    forms = {  # picture, how it is saved, what it looks like; depth, what it is [m]
        "lying": (("rgb/a.png", lying, {"exif": lying.getexif()}, pixels), plain),
        "grey": (("image/a.png", pixels[..., 0].copy(), {}, grey), plain),
        "npy": (("color/a.webp", pixels, {"lossless": True}, pixels), ("a.npy", holes, measured)),
        "tif": (("rgb/a.bmp", pixels, {}, pixels), ("a.TIFF", big_end_first, metres)),
        "half": (("rgb/a.tiff", pixels, {}, pixels), ("a.png", units[::2, ::2].copy(), metres[::2, ::2])),
        "nested": (("color/one/two/a.png", pixels, {}, pixels), ("one/two/a.png", units, metres)),
    }
    for form, ((picture, stored, how, seen), (depth, values, gt)) in forms.items():
        write(tmp_path / form / picture, stored, **how)
        write(tmp_path / form / "depth" / depth, values)
        dataset = of(tmp_path / form)
        np.testing.assert_array_equal(dataset.pixels(0), seen, form)
        np.testing.assert_allclose(dataset.depth(0)[0], gt.clip(max=FARTHEST), rtol=1e-6, err_msg=form)
        assert dataset.sizes == [(seen.shape[:2], gt.shape)]


def test_of_a_line_the_first_picture_and_the_first_depth_after_it_count(folder):
    (root := folder.parent / "link").symlink_to(folder)
    for line in (
        "rgb/a.png depth/a.png dense/a.png",
        "rgb/a.png depth/a.png 518.8579",
        "1305031102.175304 rgb/a.png 1305031102.160407 depth/a.png  # a comment",
        "\ufeff./rgb/./a.png ./depth/a.png",
        f"{root}/rgb/a.png {root}/depth/a.png",
        f"{root.resolve()}/rgb/a.png depth/a.png",
    ):
        (pair,) = of(root, line, "# picture depth", "", "rgb/b.jpg None").pairs
        assert (pair.rgb, pair.depth) == (root / "rgb/a.png", root / "depth/a.png")
        assert (pair.name, pair.origin) == ("rgb/a.png", f"{root / 'list.txt'}, line 1")


def test_a_wrong_line_is_named_with_its_number(folder):
    (folder / "loop").symlink_to("loop")
    (folder / "alias").symlink_to("rgb")
    bad = {
        "rgb/a.png depth/b.png": "a.png stands in line 1 already",
        "rgb/c.png depth/../depth/a.png": "'depth/../depth/a.png' is not a plain path",
        "alias/a.png depth/c.png": "a.png stands in line 1 already",
        "rgb/c.png": "expected a picture and its depth map, such as rgb/a.jpg depth/a.png",
        '"rgb/c.png" depth/c.png rgb/a.png': "expected a picture and its depth map",  # or the depth were a picture
        "/etc/x.png depth/c.png": "'/etc/x.png' is not in ",
        r"rgb\c.png depth/c.png": r"'rgb\\c.png' is not a plain path",
        "loop/c.png depth/c.png": "loop",
        "x\udcff.png depth/c.png": r"x\xff.png: no such file",
        "x" * 300 + ".png depth/c.png": "x.png: no such file",
    }
    for line, message in bad.items():
        with pytest.raises(DataError, match=rf"list\.txt, line 2: .*{re.escape(message)}"):
            of(folder, "rgb/a.png depth/a.png", line)


def test_links_are_followed_by_folder_and_by_list_and_what_they_lead_to_counts_once(folder, tmp_path):
    for part in ("rgb", "depth"):
        (tmp_path / "linked" / part).mkdir(parents=True)
        (tmp_path / "linked" / part / "den").symlink_to(folder / part)
        (folder / part / "z.png").symlink_to("a.png")
        (folder / part / "again").symlink_to(".")
    by_folder = of(tmp_path / "linked")
    listed = [f"rgb/den/{name}.{suffix} depth/den/{name}.png" for name, (_, suffix) in PAIRS.items()]
    by_list = of(tmp_path / "linked", *listed)
    assert by_folder.names == [f"den/{name}.{suffix}" for name, (_, suffix) in PAIRS.items()]
    assert [(pair.rgb, pair.depth) for pair in by_list.pairs] == [(pair.rgb, pair.depth) for pair in by_folder.pairs]
    assert by_list.sha256 == by_folder.sha256


def test_folders_of_pictures_are_clusters_if_there_are_several(folder):
    flat = of(folder)
    assert (flat.clusters, flat.indices) == (flat.names, [0, 1, 2, 3])
    assert flat.parts([2, 1, 1, 3, 0, 0], 2) == [[2, 1], [1], [3], [0, 0]]  # of one size
    assert flat.clustered_by.startswith("images, as if independent; frames of a video are not: a folder for each scene")
    for name in ("one\n/a", "one\n/b", "two/deep/a"):
        for part in ("rgb", "depth"):
            write(folder.parent / "nested" / part / f"{name}.png", depth_units((64, 96), len(name)))
    scenes = [r"one\n", r"one\n", "two/deep"]
    nested = of(folder.parent / "nested")
    assert (nested.scenes, nested.clusters, nested.clustered_by) == (scenes, scenes, "folders")
    assert (nested.names, nested.indices) == ([r"one\n/a.png", r"one\n/b.png", "two/deep/a.png"], [0, 1, 2])
    listed = of(folder.parent, "pairs/rgb/a.png pairs/depth/a.png", "nested/rgb/two/deep/a.png pairs/depth/b.png")
    assert listed.names == ["pairs/rgb/a.png", "nested/rgb/two/deep/a.png"]


WRONG = {
    "small picture": r"depth/c\.png: is 96x64 where its picture is 64x48, another shape; write it again",
    "no depth map": r"rgb/c\.png: its depth map is missing in depth/, which has a\.png, b\.png, d\.png; name your",
    "no picture": r"depth/c\.png: its picture is missing in rgb/, which has a\.png, b\.jpg, d\.JPEG; name your",
    "depth in metres": r"depth/c\.png: its largest depth is 0\.0\d+ m, so it does not hold units of 1/500 m",
    "too far": r"depth/c\.png: no valid pixel, no depth of up to 20 m .* or see its unit",
    ("--depth_scale", 0): "--depth_scale must be positive, --max_depth above 0.001 m, and both finite",
    ("--data_path", "/nowhere"): "/nowhere: no such folder; name that of your pairs",
}


@pytest.mark.parametrize(("kind", "message"), WRONG.items())
def test_what_cannot_be_used_is_one_sentence_before_the_model_is_built(run, no_model, folder, kind, message):
    if isinstance(kind, str):
        spoil(kind, folder / "rgb" / "c.png", folder / "depth" / "c.png")
    code, out, err = run(*(() if isinstance(kind, str) else kind))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.fullmatch(rf"eval\.py: .*{message}.*\n", err), err


def test_npy_that_holds_no_metres_is_refused(tmp_path):
    write(tmp_path / "rgb" / "a.png", noise(64, 96))
    for content, message in (
        (np.full((64, 96), -1.0), "holds depths below 0 m"),
        (np.full((64, 96), np.nan), "no valid pixel"),
        (np.full((64, 96), 2, np.uint16), r"holds uint16 \(64, 96\), expected \(H, W\) floats"),
        (np.full((64, 96), 0.02), "its largest depth is 0.02 m, so it does not hold metres"),
        (np.array({}), "no depth map, or truncated or damaged"),
    ):
        write(tmp_path / "depth" / "a.npy", content)
        with pytest.raises(DataError, match=rf"depth/a\.npy: {message}"):
            of(tmp_path)
    (tmp_path / "depth" / "a.npy").write_bytes(b"")
    with pytest.raises(DataError, match=r"depth/a\.npy: is empty"):
        of(tmp_path)


def test_files_that_make_no_pairs_are_said_once_and_no_folder_is_left_out(folder, tmp_path, monkeypatch):
    def refusing(path):
        if str(path).endswith("den"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", refusing)
    for i in range(5):
        write(tmp_path / "prefixed" / "rgb" / f"rgb_{i}.png", noise(64, 96))
        write(tmp_path / "prefixed" / "depth" / f"depth_{i}.png", noise(64, 96))
    for name in ("twice/rgb/c.jpeg", "twice/rgb/c.png", "two/rgb/a.png", "two/image/b.png", "closed/rgb/den/a.png"):
        write(tmp_path / name, noise(64, 96))
    for name, message in (
        ("prefixed", r"(?s)10 problems .* map is missing in depth/, .*5 times, first .*with --list_file$"),
        ("twice", r"rgb/c\.png: a second file of this name"),
        ("", r"with depth/NAME.png, but closed, list.txt, pairs, ...; name your files with --list_file"),
        ("two", r"two: rgb/ and image/ stand beside one depth/; name your files with --list_file"),
        ("closed", r"rgb/den: cannot be read \(Permission denied\); name your files with --list_file"),
    ):
        with pytest.raises(DataError, match=message):
            of(tmp_path / name)
