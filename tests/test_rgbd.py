"""One's own pairs: folders and lists of any sizes, every measured pixel by a naive loop, and what is refused."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import eval as evaluation
import options
from calculate_error import NYU_METRICS
from datasets import DataError
from datasets.rgbd import folder_pairs, listed_pairs, open_rgbd, own_protocol
from monoclip import PAPER
from tests.conftest import QUICKGELU
from tests.test_calculate_error import naive_metrics
from tests.test_nyu import huge_png

# In the order of their names: (H, W) and suffix of the picture. No size but 64 x 96 is one of whole patches.
PAIRS = {"a": ((70, 101), "png"), "b": ((64, 96), "jpg"), "c": ((64, 96), "png"), "d": ((97, 50), "JPEG")}
SCALE, FARTHEST = 500.0, 20.0  # units in a metre, and [m]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """`PAIRS` in rgb/ and depth/: depth of 1 to 25 m in units of 2 mm, a hole and a row of 1 unit, 2 mm."""
    root = tmp_path / "pairs"
    for part in ("rgb", "depth"):
        (root / part).mkdir(parents=True)
    for seed, (name, (size, suffix)) in enumerate(PAIRS.items()):
        rng = np.random.default_rng(seed)
        Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(root / "rgb" / f"{name}.{suffix}")
        depth = rng.integers(500, 12500, size).astype(np.uint16)
        depth[10 : 20 + seed, 10:20], depth[0] = 0, 1
        Image.fromarray(depth).save(root / "depth" / f"{name}.png")
    return root


def list_of(root: Path, *lines: str) -> Path:
    (root / "list.txt").write_bytes("\r\n".join(lines).encode())
    return root / "list.txt"


@pytest.fixture
def run(folder, tiny_checkpoint, capsys):
    """`run(*flags)` evaluates the tiny CLIP on the folder: exit code, standard output, standard error."""

    def call(*flags: object) -> tuple[int, str, str]:
        usual = ["--dataset", "rgbd", "--data_path", folder, "--clip_path", tiny_checkpoint, "--device", "cpu"]
        code = evaluation.main(list(map(str, [*usual, *QUICKGELU, "--temperature", 2, *flags])))
        return code, *capsys.readouterr()

    return call


def rows_of(output: Path) -> list[dict[str, str]]:
    with (output / "per_image.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_protocol_is_every_pixel_of_any_size():
    protocol = own_protocol()
    assert (protocol.units_per_metre, protocol.max_depth, protocol.metrics) == (1000, 10, NYU_METRICS)
    assert (protocol.frames, protocol.seen, protocol.drops_tiny) == ((), None, False)
    for crop in (protocol.window(70, 101), protocol.counted_region(70, 101)):
        assert crop == (slice(0, 70), slice(0, 101))
    assert "1e-3 < gt < 20 m" in own_protocol(max_depth=20).about


def test_every_measured_pixel_counts_at_every_size(run, folder, tmp_path, tiny_checkpoint):
    scale = ("--depth_scale", SCALE, "--max_depth", FARTHEST)
    code, out, err = run(*scale, "--output", tmp_path / "out")
    assert code == 0, err
    assert "data: 4 images of your own\n" in out
    assert re.search(r"^ \* Avg abs_diff : .*, a1 : .*, abs_rel : .*, rmse : \d+\.\d{3}$", out, re.MULTILINE)
    assert re.search(r"\nthis run .*\nuniform weights \(2\.143 m\)", out)  # and nothing published
    reading = options.checked_reading({"temperature": 2})
    _, model = options.load_model(tiny_checkpoint, torch.device("cpu"), "fp32", reading, activation="quickgelu")
    rows, means = rows_of(tmp_path / "out"), dict.fromkeys(NYU_METRICS, 0.0)
    assert len(rows) == 2 * len(PAIRS)
    for place, (name, (size, suffix)) in enumerate(PAIRS.items()):
        pixels = np.array(Image.open(folder / "rgb" / f"{name}.{suffix}"))
        gt = np.asarray(Image.open(folder / "depth" / f"{name}.png")).astype(np.float32) / np.float32(SCALE)
        with torch.inference_mode():  # resized to whole patches, and back
            depth = model.predict(model.prepare(pixels)[None], size)[0, 0].numpy()
        counts = (gt > 1e-3) & (gt < FARTHEST)
        assert counts[0].all()  # 2 mm count
        assert (gt >= FARTHEST).any()
        for row, pred in zip(rows[place :: len(PAIRS)], (depth, np.full(size, 15 / 7, np.float32)), strict=False):
            expected = naive_metrics(gt[counts], pred[counts], FARTHEST)
            expected = {metric: expected[metric] for metric in NYU_METRICS}
            assert {metric: float(row[metric]) for metric in NYU_METRICS} == pytest.approx(expected, rel=1e-4, abs=1e-4)
            assert (row["image"], row["protocol"]) == (f"rgb/{name}.{suffix}", "own pairs")
            assert (int(row["valid_pixels"]), row["dropped_pixels"]) == (counts.sum(), "0")
            if row["reading"] == "this run":
                means = {metric: means[metric] + expected[metric] / 4 for metric in NYU_METRICS}
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["protocol"], results["published"]) == (own_protocol(SCALE, FARTHEST).about, {})
    found = results["rows"]["this run"]["metrics"]
    assert {metric: found[metric] for metric in means} == pytest.approx(means, rel=1e-4, abs=1e-4)

    listed = list_of(folder, "rgb/a.png depth/a.png", "rgb/b.jpg depth/b.png", "", "rgb/c.png depth/c.png")
    assert run(*scale, "--list_file", listed, "--batch_size", 1, "--output", tmp_path / "list")[0] == 0
    for one, other in zip(rows_of(tmp_path / "list"), [*rows[:3], *rows[4:7]], strict=True):
        for metric in NYU_METRICS:
            assert float(one.pop(metric)) == pytest.approx(float(other.pop(metric)), abs=1e-4)
        assert one == other


def test_a_batch_has_one_size(folder):
    protocol = own_protocol(SCALE, FARTHEST)
    dataset = open_rgbd(folder, protocol, PAPER.normalised)
    for items, batch_size, parts in (
        ([0, 1, 2, 3], 4, [[0], [1, 2], [3]]),
        ([2, 1, 1, 3, 0, 0], 2, [[2, 1], [1], [3], [0, 0]]),
    ):
        batches = list(dataset.batches(dataset.parts(items, batch_size), workers=2))
        assert [batch.items for batch in batches] == parts
        for batch in batches:
            for item, image, depth in zip(batch.items, batch.image, batch.depth, strict=True):
                assert torch.equal(image, dataset[item][0])
                assert torch.equal(depth, dataset[item][1])
    raw = np.asarray(Image.open(folder / "depth" / "d.png")).astype(np.float32)
    np.testing.assert_allclose(dataset.truth(3), np.minimum(raw / SCALE, FARTHEST), rtol=1e-6)
    assert len(open_rgbd(folder, protocol, PAPER.normalised, limit=2)) == 2
    (folder / "name.txt").write_text("my garden")
    assert open_rgbd(folder, protocol, PAPER.normalised).title == "4 images of my garden"


def test_pictures_may_have_50_million_pixels_and_no_more(tmp_path):
    for part in ("rgb", "depth"):
        (tmp_path / part).mkdir()
    Image.new("RGB", (2600, 2500)).save(tmp_path / "rgb" / "a.png")  # more than an image of NYU may claim
    Image.fromarray(np.full((2500, 2600), 2000, np.uint16)).save(tmp_path / "depth" / "a.PNG")
    assert len(open_rgbd(tmp_path, own_protocol(), PAPER.normalised)) == 1
    huge_png(tmp_path / "depth" / "a.PNG", 7100)
    with pytest.raises(DataError, match=r"a\.PNG: claims 7100x7100 pixels, so it is not decoded"):
        open_rgbd(tmp_path, own_protocol(), PAPER.normalised)


# ---- what is refused


def spoil(kind: str, root: Path) -> None:
    """Does to the pair c what `kind` says."""
    if kind == "another size":
        Image.fromarray(np.full((96, 64), 2000, np.uint16)).save(root / "depth" / "c.png")
    elif kind == "no depth map":
        (root / "depth" / "c.png").unlink()
    elif kind == "no picture":
        (root / "rgb" / "c.png").unlink()
    elif kind == "two pictures":
        (root / "rgb" / "c.jpeg").write_bytes((root / "rgb" / "b.jpg").read_bytes())
        (root / "rgb" / "c.png").rename(root / "rgb" / "c.jpg")
    elif kind == "8-bit depth":
        Image.fromarray(np.ones((64, 96), np.uint8)).save(root / "depth" / "c.png")
    elif kind == "all too far":
        Image.fromarray(np.full((64, 96), 60_000, np.uint16)).save(root / "depth" / "c.png")
    elif kind == "metres":
        Image.fromarray(np.full((64, 96), 3, np.uint16)).save(root / "depth" / "c.png")


@pytest.mark.parametrize(
    ("kind", "flags", "message"),
    [
        ("another size", (), r"depth/c\.png: is 64x96 where its picture is 96x64; write it again"),
        ("no depth map", (), r"rgb/c\.png: its depth map depth/c\.png is missing"),
        ("no picture", (), r"depth/c\.png: its picture in rgb/ is missing"),
        ("8-bit depth", (), r"depth/c\.png: has mode L and format PNG, expected a 16-bit PNG of one channel"),
        ("metres", (), r"depth/c\.png: its largest depth is 0\.003 m, so it does not hold millimetres"),
        ("metres", ("--depth_scale", 50), r"depth/c\.png: its largest depth is 0\.06 m, so .* hold units of 1/50 m"),
        ("", ("--depth_scale", 0), "--depth_scale must be positive, --max_depth above 0.001 m, and both finite"),
        ("", ("--depth_scale", "nan"), "--depth_scale must be positive, --max_depth above 0.001 m, and both finite"),
        ("", ("--max_depth", "-1"), "--depth_scale must be positive, --max_depth above 0.001 m, and both finite"),
        ("", ("--max_depth", "inf"), "--depth_scale must be positive, --max_depth above 0.001 m, and both finite"),
        ("", ("--max_depth", "0.001"), "--depth_scale must be positive, --max_depth above 0.001 m, and both finite"),
        ("all too far", (), r"depth/c\.png: no valid pixel, no depth of 0\.001 to 10 m .* or see its unit"),
        ("", ("--scene", "rgb"), "--scene: one's own pairs have no scenes"),
        ("", ("--data_path", "/nowhere"), "/nowhere: no such folder; name that of your pairs"),
    ],
)
def test_what_cannot_be_used_is_one_sentence_before_the_model_is_built(run, no_model, folder, kind, flags, message):
    spoil(kind, folder)
    code, out, err = run(*flags)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.fullmatch(rf"eval\.py: .*{message}.*\n", err), err


def test_one_picture_has_one_depth_whatever_its_size_in_eval_and_in_predict(run, folder, tiny_checkpoint, tmp_path):
    for name in ("a", "b", "c", "d"):
        for path in folder.glob(f"*/{name}.*"):
            path.unlink()
    large = np.random.default_rng(0).integers(0, 256, (30, 40, 3), np.uint8).repeat(32, 0).repeat(32, 1)  # 960 x 1280
    Image.fromarray(large).save(folder / "rgb" / "a.png")
    Image.fromarray(np.full(large.shape[:2], 2 * SCALE, np.uint16)).save(folder / "depth" / "a.png")
    reading = options.checked_reading({"temperature": 2})
    _, model = options.load_model(tiny_checkpoint, torch.device("cpu"), "fp32", reading, activation="quickgelu")
    dataset = open_rgbd(folder, own_protocol(SCALE), reading.normalised)
    assert model.prepare(large).shape == (3, 480, 640)
    drawn = evaluation.example(model, dataset, 0).depth
    np.testing.assert_allclose(drawn, model.infer_image(folder / "rgb" / "a.png"), atol=1e-5)
    (row,), _ = evaluation.evaluate(model, dataset, [[0]])
    assert row["abs_diff"] == pytest.approx(np.abs(drawn - 2).mean(), abs=1e-5)


def test_two_pictures_of_a_name_and_empty_folders_are_refused(folder, tmp_path):
    spoil("two pictures", folder)
    with pytest.raises(DataError, match=r"2 problems in the data:\n.*c\.jpeg: a second picture.*\n.*c\.jpg: a second"):
        folder_pairs(folder)
    with pytest.raises(DataError, match=r"no rgb/NAME\.png or \.jpg with depth/NAME\.png in it"):
        folder_pairs(tmp_path)


def test_every_wrong_line_is_named(folder):
    lines = ("rgb/a.png depth/a.png", "rgb/a.png depth/b.png", "rgb/c.png", "../x.png depth/c.png", "rgb/d.JPEG 1 2")
    with pytest.raises(DataError) as error:
        listed_pairs(list_of(folder, *lines), folder)
    head, *found = str(error.value).split("\n")
    assert head == "4 problems in the data:"
    for line, text in zip(
        found,
        (
            "line 2: rgb/a.png stands in line 1 already",
            "line 3: 1 columns, expected picture and depth",
            "line 4: '../x.png' is not a plain relative path",
            "line 5: 3 columns, expected picture and depth",
        ),
        strict=True,
    ):
        assert line == f"  {folder / 'list.txt'}, {text}"
    with pytest.raises(DataError, match="names no pair"):
        listed_pairs(list_of(folder, "", " "), folder)
    spoil("no depth map", folder)
    with pytest.raises(DataError, match=r"list\.txt, line 1: .*depth/c\.png: no such file"):
        open_rgbd(folder, own_protocol(SCALE), PAPER.normalised, list_of(folder, "rgb/c.png depth/c.png"))
