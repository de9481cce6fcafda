"""KITTI: both protocols by a naive version, the split and its lists, what is refused, and eval.py from end to end."""

import csv
import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import eval as evaluation
import options
from calculate_error import (
    KITTI_ADABINS,
    KITTI_BTS,
    KITTI_METRICS,
    Protocol,
    compute_errors,
    compute_errors_per_image,
    counted_pixels,
)
from datasets import DataError, kitti
from datasets.kitti import KITTI, Frame, listed_frames, open_kitti, split_frames
from datasets.pairs import FilePair
from experiments.published import AUTY, LOG_BINS, beside
from monoclip import PAPER
from tests.test_calculate_error import naive_metrics

SIZES = ((370, 1224), (370, 1226), (374, 1238), (375, 1242), (376, 1241))
SCORED = (*KITTI_METRICS, "log10")
# Frames of the split: drive, number, size, half of the annotated set, suffix of the picture.
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


def sparse_depth(size: tuple[int, int], seed: int) -> np.ndarray:
    """Depth of 2 to 110 m at one pixel in 12, as the PNGs hold it, and none elsewhere: (H, W) uint16."""
    rng = np.random.default_rng(seed)
    return np.where(rng.random(size) < 1 / 12, rng.integers(2 * 256, 110 * 256, size), 0).astype(np.uint16)


def write_tree(root: Path, halves: bool = True) -> Path:
    """Writes `FRAMES` below `root`; without `halves`, the drives of the annotated set directly there."""
    for seed, (drive, number, size, half, suffix) in enumerate(FRAMES):
        picture = root / picture_of(drive, number, suffix)
        depth = root / (half if halves else "") / depth_of(drive, number)
        for path in (picture, depth):
            path.parent.mkdir(parents=True, exist_ok=True)
        colours = np.random.default_rng(seed).integers(0, 256, (10, 32, 3), dtype=np.uint8)
        Image.fromarray(np.kron(colours, np.ones((40, 40, 1), np.uint8))[: size[0], : size[1]]).save(picture)
        Image.fromarray(sparse_depth(size, seed)).save(depth)
    return root


def lines_of(frames: tuple = FRAMES) -> list[str]:
    return [f"{picture_of(f[0], f[1], f[4])} {depth_of(f[0], f[1])} 721.5377" for f in frames]


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`FRAMES` in train/ and val/, and list.txt, which names them."""
    root = write_tree(tmp_path_factory.mktemp("kitti"))
    (root / "list.txt").write_text("\n".join(lines_of()))
    return root


@pytest.fixture
def own_tree(tmp_path: Path) -> Path:
    """A tree to spoil, its drives directly below the root."""
    return write_tree(tmp_path / "kitti", halves=False)


@pytest.fixture
def run(tree, capsys):
    """`run(*flags)` evaluates the demo's CLIP on the tree: exit code, standard output, standard error."""

    def call(*flags: object, root: Path = tree) -> tuple[int, str, str]:
        usual = ["--dataset", "KITTI", "--data_path", root, "--clip_path", options.DEMO_WEIGHTS, "--device", "cpu"]
        code = evaluation.main(list(map(str, [*usual, *flags])))
        return code, *capsys.readouterr()

    return call


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "per_image.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# ---- the protocols


def window_of(height: int, width: int) -> tuple[slice, slice]:
    left = (width - 1216) // 2
    return slice(height - 352, height), slice(left, left + 1216)


def naive_errors(gt: np.ndarray, pred: np.ndarray, adabins: bool) -> tuple[dict[str, float], int]:
    """Metrics of a frame (H, W) and a prediction (352, 1216) as BTS or AdaBins writes them, and how many pixels count.

    BTS pastes the prediction into a frame; AdaBins crops the ground truth as the picture.
    """
    window = window_of(*gt.shape)
    if adabins:
        gt, canvas = gt[window], pred
    else:
        canvas = np.zeros(gt.shape, np.float32)
        canvas[window] = pred
    (height, width), region = gt.shape, np.zeros(gt.shape, bool)
    region[int(0.40810811 * height) : int(0.99189189 * height), int(0.03594771 * width) : int(0.96405229 * width)] = (
        True
    )
    mask = (gt > 1e-3) & (gt < 80) & region
    return naive_metrics(gt[mask], canvas[mask], 80), int(mask.sum())


def test_regions_by_hand():
    assert KITTI_BTS.frames == SIZES
    assert KITTI_BTS.seen == KITTI_ADABINS.seen == (352, 1216)
    assert KITTI_BTS.window(375, 1242) == (slice(23, 375), slice(13, 1229))
    assert KITTI_BTS.counted_region(375, 1242) == (slice(153, 371), slice(44, 1197))
    assert KITTI_ADABINS.counted_region(375, 1242) == (slice(166, 372), slice(56, 1185))
    for protocol in (KITTI_BTS, KITTI_ADABINS):
        assert (protocol.max_depth, protocol.units_per_metre, protocol.metrics) == (80, 256, KITTI_METRICS)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("protocol", [KITTI_BTS, KITTI_ADABINS], ids=("bts", "adabins"))
def test_a_protocol_is_the_naive_version_at_every_size(protocol: Protocol, size: tuple[int, int]):
    window = protocol.window(*size)
    assert window == window_of(*size)
    for part, whole in zip(protocol.counted_region(*size), window, strict=True):  # so that every counted pixel is seen
        assert whole.start <= part.start < part.stop <= whole.stop
    gt = sparse_depth(size, 3).astype(np.float32) / 256
    pred = np.random.default_rng(4).uniform(-1, 100, (352, 1216)).astype(np.float32)  # clamped to [1e-3, 80]
    expected, count = naive_errors(gt, pred, protocol is KITTI_ADABINS)
    whole, maps = torch.from_numpy(gt)[None], torch.from_numpy(pred)[None, None]
    errors = compute_errors_per_image([whole], maps, protocol)
    assert {name: errors[name].item() for name in SCORED} == pytest.approx(
        {name: expected[name] for name in SCORED}, rel=1e-4, abs=1e-5
    )
    assert (errors["valid_pixels"].item(), errors["dropped_pixels"].item()) == (count, 0)
    places, depth = counted_pixels(whole, protocol)
    assert torch.equal(whole[0][window].flatten()[places], depth)
    # `compute_errors` has no window: the prediction on the frame for BTS, the cropped ground truth for AdaBins.
    on_frame = torch.zeros(1, 1, *size)
    on_frame[..., window[0], window[1]] = maps
    straight = (whole[None], on_frame) if protocol is KITTI_BTS else (whole[None][..., window[0], window[1]], maps)
    direct = compute_errors(*straight)
    assert {name: errors[name].item() for name in KITTI_METRICS} == pytest.approx(direct, abs=1e-9)


def test_frames_of_other_sizes_and_predictions_of_the_frame_are_refused():
    with pytest.raises(ValueError, match=r"expected gt of shape \(B, 1, 370, 1224\), got \(1, 1, 375, 1240\)"):
        compute_errors_per_image([torch.ones(1, 375, 1240)], torch.ones(1, 1, 352, 1216), KITTI_BTS)
    with pytest.raises(ValueError, match=r"expected pred of shape \(1, R, 352, 1216\), got \(1, 1, 375, 1242\)"):
        compute_errors_per_image([torch.ones(1, 375, 1242)], torch.ones(1, 1, 375, 1242), KITTI_BTS)


# ---- the split, and lists


def test_the_shipped_split_and_a_list_in_the_fields_form_have_652_frames(tmp_path):
    with kitti.SPLIT_FILE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 697
    lines = [
        f"{picture_of(row['drive'], row['frame'])} "
        + (f"{depth_of(row['drive'], row['frame'])} 721.5377" if row["depth"] == "1" else "None 721.5377")
        for row in rows
    ]
    assert sum(" None " in line for line in lines) == 45
    (tmp_path / "eigen_test_files_with_gt.txt").write_text("\n".join(lines) + "\n")
    listed, shipped = listed_frames(tmp_path / "eigen_test_files_with_gt.txt"), list(split_frames())
    assert len(shipped) == len(set(shipped)) == 652
    assert [frame[:2] for frame in listed] == [frame[:2] for frame in shipped]
    assert len({frame.drive for frame in shipped}) == 28
    assert {Frame(drive, number) for drive, number, *_ in FRAMES} <= set(shipped)


def test_652_are_counted_in_a_whole_tree_with_and_without_the_fields_list(tmp_path):
    with kitti.SPLIT_FILE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    val = sorted({row["drive"] for row in rows})[::4]  # a quarter of the drives
    for i, size in enumerate(SIZES):
        Image.new("RGB", size[::-1]).save(tmp_path / f"rgb{i}.png")
        Image.fromarray(np.full(size, 2560, np.uint16)).save(tmp_path / f"depth{i}.png")
    for row in rows:
        drive, number = row["drive"], row["frame"]
        kinds = {"rgb": picture_of(drive, number)}
        if row["depth"] == "1":
            kinds["depth"] = f"{'val' if drive in val else 'train'}/{depth_of(drive, number)}"
        for kind, name in kinds.items():
            path = tmp_path / "kitti" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.symlink_to(tmp_path / f"{kind}{int(drive[8:10]) % 5}.png")
    lines = [f"{picture_of(r['drive'], int(r['frame']))} " for r in rows]
    depths = [depth_of(r["drive"], r["frame"]) if r["depth"] == "1" else "None" for r in rows]
    listed = "".join(f"{line}{depth} 721.5377\n" for line, depth in zip(lines, depths, strict=True))
    (tmp_path / "list.txt").write_text(listed)
    title = "all 652 images with depth of the Eigen test split of KITTI (KITTI, ADABINS)".replace("ADABINS", "AdaBins")
    for list_file in (None, tmp_path / "list.txt"):
        dataset = open_kitti(tmp_path / "kitti", KITTI_ADABINS, PAPER.normalised, list_file)
        assert (len(dataset), dataset.official, dataset.title) == (652, True, title)
        assert len(set(dataset.clusters()[0])) == 28
    shutil.rmtree(tmp_path / "kitti" / "train")
    with pytest.raises(DataError) as error:
        open_kitti(tmp_path / "kitti", KITTI_BTS, PAPER.normalised)
    lacks = (
        r".*kitti: of 652 frames it lacks \d+ depth maps \(in train/, val/ or here\), .*\d{10}\.png the first; [^\n]*"
    )
    assert re.fullmatch(lacks, str(error.value))


def test_only_all_frames_of_the_split_are_called_so():
    pairs = [FilePair(Path(), Path(), drive, number) for drive, number, _ in split_frames()]
    for some, kind, title in (
        (pairs[::-1], "in the layout of KITTI", "all 652 images with depth of the Eigen test split of KITTI"),
        (pairs, "of streets", "652 images of streets"),
        (pairs[1:], "in the layout of KITTI", "651 images in the layout of KITTI"),
        ([*pairs, pairs[0]], "in the layout of KITTI", "653 images in the layout of KITTI"),
    ):
        dataset = KITTI(some, KITTI_BTS, PAPER.normalised, kind)
        assert (dataset.title, dataset.official) == (f"{title} (KITTI, BTS)", title.startswith("all 652"))


@pytest.mark.parametrize("layout", ["tree", "own_tree"])
def test_a_list_may_be_padded_or_not_with_none_and_any_line_ends(request, layout, tmp_path):
    root = request.getfixturevalue(layout)
    lines = [line.split() for line in lines_of()]
    plain = [
        [re.sub(r"/0+(\d+\.(png|jpg))", r"/\1", path) for path in line[:2]] for line in lines
    ]  # unpadded, no focal
    lines[1][0] = lines[1][0].replace(".jpg", ".png")  # as in the field's list, whatever the files are
    none = [picture_of("2011_09_26_drive_0009_sync", 1), "None", "721.5"]  # which need not be there
    text = "\r\n".join(" ".join(line) for line in (plain[5], none, [], lines[1], plain[2]))
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    dataset = open_kitti(root, KITTI_BTS, PAPER.normalised, tmp_path / "list.txt")
    assert [pair.origin.split(", ")[-1] for pair in dataset.pairs] == ["line 1", "line 4", "line 5"]
    drives = [FRAMES[i][0] for i in (5, 1, 2)]
    assert (dataset.scenes, dataset.indices, dataset.clusters()) == (drives, [543, 9, 12], (drives, "drives"))
    names = ("0000000543.png", "0000000009.jpg", "0000000012.png")
    assert dataset.names == [f"{drive}/{name}" for drive, name in zip(drives, names, strict=True)]
    for item, seed in enumerate((5, 1, 2)):
        size = FRAMES[seed][2]
        image, gt = dataset[item]
        expected = torch.from_numpy(sparse_depth(size, seed).astype(np.float32) / 256).clamp(max=80)
        torch.testing.assert_close(gt[0], expected, atol=0, rtol=0)
        seen = np.asarray(Image.open(root / picture_of(*FRAMES[seed][:2], FRAMES[seed][4])))[window_of(*size)]
        torch.testing.assert_close(image, PAPER.normalised(seen), atol=0, rtol=0)
        np.testing.assert_array_equal(dataset.truth(item), expected.numpy()[window_of(*size)])


# ---- what is refused


def spoil(kind: str, root: Path) -> list[str]:
    """Does to the tree and its list what `kind` says of line 3; the lines."""
    lines, (drive, number, size, *_) = lines_of(), FRAMES[2]
    picture, depth = root / picture_of(drive, number), root / depth_of(drive, number)
    if kind == "missing picture":
        picture.unlink()
    elif kind == "missing depth":
        depth.unlink()
    elif kind == "another size":
        Image.fromarray(np.zeros((480, 640, 3), np.uint8)).save(picture)
    elif kind == "another drive's size":
        Image.fromarray(sparse_depth(SIZES[3], 0)).save(depth)
    elif kind == "8-bit depth":
        Image.fromarray(np.ones(size, np.uint8)).save(depth)
    elif kind == "no depth":
        Image.fromarray(np.zeros(size, np.uint16)).save(depth)
    elif kind == "no counted depth":  # only above Garg's region, and beyond 80 m
        far = np.full(size, 90 * 256, np.uint16)
        far[:150] = 256
        Image.fromarray(far).save(depth)
    elif kind == "no focal length":
        lines[2] = lines[2].replace("721.5377", "f=721")
    elif kind == "right camera":
        lines[2] = lines[2].replace("image_02", "image_03")
    elif kind == "swapped":
        lines[2] = f"{depth_of(drive, number)} {picture_of(drive, number)} 707.0912"
    elif kind == "4 columns":
        lines[2] += " 4"
    elif kind == "duplicate":
        lines[2] = lines[0].replace("/000000000", "/")
    elif kind == "different frames":
        lines[2] = f"{picture_of(drive, number)} {depth_of(drive, 13)} 707.0912"
    elif kind == "no drive":
        lines[2] = "kitchen/rgb_00045.jpg kitchen/sync_depth_00045.png 518.8579"
    return lines


REFUSED = {
    "missing picture": r"0000000012\.png: no such file",
    "missing depth": r"kitti/2011\S+groundtruth/image_02/0000000012\.png: no such file",
    "another size": r"0000000012\.png: is 640x480, expected 1224x370 or .* or 1241x376; do not resize",
    "another drive's size": r"0000000012\.png: is 1242x375 where its picture is 1224x370",
    "8-bit depth": r"0000000012\.png: has mode L and format PNG, expected a 16-bit PNG of one channel",
    "no depth": r"0000000012\.png: no valid pixel, no depth of 0\.001 to 80 m in the region that counts",
    "no counted depth": r"0000000012\.png: no valid pixel",
    "4 columns": "4 columns, expected RGB path, depth path or None",
    "duplicate": "this frame stands in line 1 already",
    "different frames": "picture and depth are of different frames",
    "no drive": "expected DATE/DRIVE_sync/image_02/data/FRAME.png and DRIVE_sync/proj_depth/",
    "right camera": "expected DATE/DRIVE_sync/image_02/data/FRAME.png and ",
    "swapped": "expected DATE/DRIVE_sync/image_02/data/FRAME.png and ",
    "no focal length": "'f=721' is no focal length; expected RGB path, depth path or None, and focal length",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_is_wrong_with_a_line_is_one_sentence_before_the_model_is_built(run, no_model, own_tree, kind):
    (own_tree / "list.txt").write_text("\n".join(spoil(kind, own_tree)))
    code, out, err = run("--list_file", own_tree / "list.txt", root=own_tree)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.fullmatch(rf"eval\.py: .*list\.txt, line 3: .*{REFUSED[kind]}.*\n", err), err


def test_all_problems_are_listed_and_other_wrong_input_is_one_sentence(run, no_model, own_tree, tree, tmp_path):
    (own_tree / "list.txt").write_text("\n".join(["a b", *spoil("4 columns", own_tree)[1:], "c"]))
    code, _, err = run("--list_file", own_tree / "list.txt", root=own_tree)
    assert (code, err.splitlines()[0]) == (2, "eval.py: 3 problems in the data:")
    assert [re.search(r"line (\d+): ", line)[1] for line in err.splitlines()[1:]] == ["1", "3", "7"]
    (tmp_path / "none.txt").write_text(f"{picture_of(*FRAMES[0][:2])} None 721.5377\n")
    for flags, root, message in (
        (("--list_file", tmp_path / "none.txt"), tree, "none.txt: names no frame that has depth"),
        ((), tmp_path / "nowhere", "nowhere: no such folder; name KITTI's with --data_path"),
        (("--scene", FRAMES[0][0], "attic"), tree, "--scene attic: no such drive among the frames"),
    ):
        code, _, err = run(*flags, root=root)
        assert (code, err.count("\n")) == (2, 1)
        assert message in err


# ---- eval.py from end to end


@pytest.mark.parametrize(
    ("flags", "protocol", "reading"),
    [
        (("--preset", "auty"), KITTI_BTS, AUTY),
        (("--protocol", "adabins", "--preset", "log"), KITTI_ADABINS, LOG_BINS),
    ],
    ids=("bts", "adabins"),
)
def test_rows_are_those_of_the_method_by_hand(run, tree, tmp_path, flags, protocol, reading):
    code, out, err = run("--list_file", tree / "list.txt", "--output", tmp_path / "out", *flags)
    assert code == 0, err
    names = ("abs_diff", "abs_rel", "sq_rel", "a1", "a2", "a3", "rmse", "rmse_log")  # the release's order for KITTI
    found = re.search(r"^ \* Avg " + ", ".join(rf"{name} : (\d+\.\d{{3}})" for name in names) + "$", out, re.M)
    mean_bin = sum(reading.bin_list) / 7
    head = r"delta1 +delta2 +delta3 +abs_rel +log10 +rmse"
    assert re.search(rf"{head}\nthis run .*\nuniform weights \({mean_bin:.3f} m\) .*\n", out)
    assert f"data: 6 images in the layout of KITTI ({protocol.name})\n" in out
    assert not any(row in out for row in beside("KITTI"))  # which are over the whole split

    _, model = options.load_model(options.DEMO_WEIGHTS, torch.device("cpu"), "fp32", reading)
    rows, expected = rows_of(tmp_path / "out"), {"this run": [], "uniform weights": []}
    columns = ["image", "scene", "index", "protocol", "reading", *SCORED, "valid_pixels", "dropped_pixels"]
    assert list(rows[0]) == columns
    for place, (drive, number, size, half, suffix) in enumerate(FRAMES):
        pixels = np.asarray(Image.open(tree / picture_of(drive, number, suffix)))[window_of(*size)]
        gt = np.asarray(Image.open(tree / half / depth_of(drive, number))).astype(np.float32) / 256
        with torch.inference_mode():
            depth = model.predict(reading.normalised(pixels)[None])[0, 0].numpy()
        for row, pred in zip(rows[place :: len(rows) // 2], (depth, np.full_like(depth, mean_bin)), strict=False):
            errors, count = naive_errors(gt, pred, protocol is KITTI_ADABINS)
            expected[row["reading"]].append(errors)
            assert {name: float(row[name]) for name in SCORED} == pytest.approx(
                {name: errors[name] for name in SCORED}, rel=1e-3, abs=1e-4
            )
            assert (row["image"], row["scene"]) == (f"{drive}/{number:010}.{suffix}", drive)
            assert (int(row["index"]), int(row["valid_pixels"]), row["protocol"]) == (number, count, protocol.name)
    means = {name: np.mean([errors[name] for errors in expected["this run"]]) for name in KITTI_METRICS}
    assert list(map(float, found.groups())) == pytest.approx(list(means.values()), rel=1e-3, abs=1e-3)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["schema"], results["protocol"], results["published"]) == (options.SCHEMA, protocol.about, {})
    assert protocol.name.split(", ")[1] in results["protocol"]
    assert {n: results["rows"]["this run"]["metrics"][n] for n in means} == pytest.approx(means, rel=1e-3, abs=1e-4)
    assert results["made_with"]["reading"]["depth_classes"] == list(reading.depth_classes)


def test_the_whole_split_needs_no_list_and_has_the_published_rows_beside_it(run, own_tree, tmp_path, monkeypatch):
    monkeypatch.setattr(kitti, "split_frames", lambda: iter([Frame(*frame[:2]) for frame in FRAMES]))
    code, out, err = run("--output", tmp_path / "out", root=own_tree)
    assert code == 0, err
    assert "data: all 6 images with depth of the Eigen test split of KITTI (KITTI, BTS)\n" in out
    mfh = r"DepthCLIP, as run in MfH \(protocol not said\) +0\.281 +- +- +0\.473 +- +12\.960"
    assert re.search(rf"\nthis run \(KITTI, BTS\) .*\n{mfh}\n", out)
    assert "they do not compare" not in out
    published = json.loads((tmp_path / "out" / "results.json").read_text())["published"]
    assert published == beside("KITTI")
    code, out, _ = run("--scene", FRAMES[0][0], FRAMES[2][0], "--limit", 2, root=own_tree)
    assert (code, "data: 2 images in the layout of KITTI (" in out, "MfH" in out) == (0, True, False)
    assert "they do not compare" in out
