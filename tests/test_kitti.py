"""KITTI: the split and its lists, frames as tensors, what is refused, and eval.py from end to end."""

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
from calculate_error import KITTI_ADABINS, KITTI_BTS, KITTI_METRICS
from datasets import DataError, kitti
from datasets.kitti import open_kitti, split_frames
from experiments.published import AUTY, LOG_BINS, beside
from tests.conftest import (
    FRAMES,
    SIZES,
    depth_of,
    lines_of,
    naive_metrics,
    picture_of,
    sparse_depth,
    spoil,
    window_of,
    write_tree,
)

SCORED = (*KITTI_METRICS, "log10")


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


# ---- the split, and lists


def test_652_of_697_frames_are_counted_in_a_whole_tree_with_and_without_the_fields_list(tmp_path, monkeypatch):
    with kitti.SPLIT_FILE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 697
    assert {frame[:2] for frame in FRAMES} <= set(split_frames())
    val, lines = sorted({row["drive"] for row in rows})[::4], []  # a quarter of the drives
    for row in rows:
        drive, number, has_depth = row["drive"], row["frame"], row["depth"] == "1"
        picture, depth = picture_of(drive, number), depth_of(drive, number)
        lines.append(f"{picture} {depth if has_depth else None} 721.5377\n")
        for name in (picture, *([f"{'val' if drive in val else 'train'}/{depth}"] * has_depth)):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
    (tmp_path / "list.txt").write_text("".join(lines))
    less = [line for line in lines if picture_of(*FRAMES[0][:2]) not in line]
    (tmp_path / "less.txt").write_text("".join(less))
    title = "all 652 images with depth of the Eigen test split of KITTI (KITTI, AdaBins)"
    with monkeypatch.context() as patch:
        patch.setattr(kitti, "check_files", lambda *_: [])  # all are empty
        for list_file in (None, tmp_path / "list.txt"):
            dataset = open_kitti(tmp_path, KITTI_ADABINS, list_file)
            assert (len(dataset), dataset.official, dataset.title) == (652, True, title)
            assert list(zip(dataset.scenes, dataset.indices, strict=True)) == list(split_frames())
            assert len(set(dataset.clusters)) == 28
        dataset = open_kitti(tmp_path, KITTI_BTS, tmp_path / "less.txt")
        assert (dataset.official, dataset.title) == (False, f"651 images of {tmp_path.name} (KITTI, BTS)")
    shutil.rmtree(tmp_path / "train")
    lacking = r"(?s)no such file: 488 times, first \S+, \S+, \S+\n.*; link .* \(docs/data\.md\)"
    with pytest.raises(DataError, match=lacking):
        open_kitti(tmp_path, KITTI_BTS)


@pytest.mark.parametrize("raw", kitti.RAW)
@pytest.mark.parametrize("annotated", kitti.ANNOTATED)
def test_files_are_found_in_every_layout(tmp_path, raw, annotated):
    drive, number, size, *_ = FRAMES[2]
    raw, annotated = (tmp_path / layout.format(date=drive[:10], drive=drive) for layout in (raw, annotated))
    picture = raw / f"image_02/data/{number:010d}.png"
    depth = annotated / f"proj_depth/groundtruth/image_02/{number:010d}.png"
    for path, pixels in ((picture, np.zeros((*size, 3), np.uint8)), (depth, sparse_depth(size, 0))):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (tmp_path / "list.txt").write_text(lines_of(FRAMES[2:3])[0])
    (pair,) = open_kitti(tmp_path, KITTI_BTS, tmp_path / "list.txt").pairs
    assert (pair.rgb, pair.depth) == (picture, depth)


def test_a_list_may_be_padded_or_not_with_none_and_any_line_ends(tree, tmp_path):
    lines = [line.split() for line in lines_of()]
    plain = [[re.sub(r"/0+(\d+\.(png|jpg))", r"/\1", path) for path in line[:2]] for line in lines]
    lines[1][0] = lines[1][0].replace(".jpg", ".png")  # as in the field's list, whatever the files are
    none = [picture_of("2011_09_26_drive_0009_sync", 1), "None", "721.5"]  # which need not be there
    text = "\r\n".join(" ".join(line) for line in (plain[5], none, [], lines[1], plain[2]))
    (tmp_path / "list.txt").write_bytes(b"\xef\xbb\xbf" + text.encode())
    dataset = open_kitti(tree, KITTI_BTS, tmp_path / "list.txt")
    assert [pair.origin.split(", ")[-1] for pair in dataset.pairs] == ["line 1", "line 4", "line 5"]
    frames = [FRAMES[i] for i in (5, 1, 2)]
    drives = [frame[0] for frame in frames]
    assert (dataset.scenes, dataset.clusters, dataset.clustered_by) == (drives, drives, "drives")
    assert dataset.indices == [543, 9, 12]
    assert dataset.names == [f"{drive}/{number:010d}.{suffix}" for drive, number, _, _, suffix in frames]
    for item, (seed, (drive, number, size, _, suffix)) in enumerate(zip((5, 1, 2), frames, strict=True)):
        expected = torch.from_numpy(sparse_depth(size, seed).astype(np.float32) / 256).clamp(max=80)
        assert torch.equal(dataset.depth(item)[0], expected)
        np.testing.assert_array_equal(dataset.truth(item), expected.numpy()[window_of(*size)])
        seen = np.asarray(Image.open(tree / picture_of(drive, number, suffix)))[window_of(*size)]
        np.testing.assert_array_equal(dataset.pixels(item), seen)


# ---- what is refused: kind of damage to the files of line 3, or what stands in it

DRIVE, NUMBER, SIZE = FRAMES[2][:3]
PICTURE, DEPTH = picture_of(DRIVE, NUMBER), depth_of(DRIVE, NUMBER)
FILES = {
    "no picture": r"0000000012\.png: no such file; link KITTI's folders into",
    "no depth map": r"kitti/\S+groundtruth/image_02/0000000012\.png: no such file; link KITTI's folders into",
    "small picture": r"0000000012\.png: is 64x48, expected 1224x370 or .* or 1241x376; do not resize",
    "another drive's size": r"0000000012\.png: is 1242x375 where its picture is 1224x370",
    "no depth": r"0000000012\.png: no valid pixel, no depth of up to 80 m in the region that counts",
    "only above the region or beyond 80 m": r"0000000012\.png: no valid pixel",
}
LINES = {
    lines_of()[0].replace("/000000000", "/"): r"0000000006\.png stands in line 1 already",
    f"{PICTURE} {depth_of(DRIVE, 13)} 707.0912": "picture and depth are of different frames",
    f"{DEPTH} {PICTURE} 707.0912": "expected DATE/DRIVE_sync/image_02/data/FRAME.png and DRIVE_sync/proj_depth/",
    f"{PICTURE.replace('image_02', 'image_03')} {DEPTH}": "expected DATE/DRIVE_sync/image_02/data/FRAME.png and ",
    "kitchen/rgb_00045.jpg kitchen/sync_depth_00045.png": "expected DATE/DRIVE_sync/image_02/data/FRAME.png and ",
    f"{PICTURE} 707.0912": "expected a picture and its depth map",
}


@pytest.mark.parametrize(("kind", "message"), {**FILES, **LINES}.items())
def test_what_is_wrong_with_a_line_is_one_sentence_before_the_model_is_built(run, no_model, own_tree, kind, message):
    lines, depth = lines_of(), own_tree / DEPTH
    if kind in LINES:
        lines[2] = kind
    elif kind == "another drive's size":
        Image.fromarray(sparse_depth(SIZES[3], 0)).save(depth)
    elif kind == "only above the region or beyond 80 m":
        far = np.full(SIZE, 90 * 256, np.uint16)
        far[:150] = 256
        Image.fromarray(far).save(depth)
    else:
        spoil(kind, own_tree / PICTURE, depth)
    (own_tree / "list.txt").write_text("\n".join(lines))
    code, out, err = run("--list_file", own_tree / "list.txt", root=own_tree)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.fullmatch(rf"eval\.py: .*list\.txt, line 3: .*{message}.*\n", err), err


def test_other_wrong_input_is_one_sentence(run, no_model, tree, tmp_path):
    (tmp_path / "none.txt").write_text(f"{picture_of(*FRAMES[0][:2])} None 721.5377\n")
    for flags, root, message in (
        (("--list_file", tmp_path / "none.txt"), tree, "none.txt: names no pair"),
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
    assert not any(row in out for row in beside(protocol.name))  # which are over the whole split

    _, model, _ = options.load_model(options.Setup(options.DEMO_WEIGHTS, reading))
    with (tmp_path / "out" / "per_image.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    head = ("image", "scene", "index", "protocol", "reading")
    assert list(rows[0]) == [*head, *SCORED, "valid_pixels", "dropped_pixels"]
    means = dict.fromkeys(KITTI_METRICS, 0.0)
    for place, (drive, number, size, half, suffix) in enumerate(FRAMES):
        window = window_of(*size)
        pixels = np.asarray(Image.open(tree / picture_of(drive, number, suffix)))[window]
        gt = np.asarray(Image.open(tree / half / depth_of(drive, number))).astype(np.float32) / 256
        with torch.inference_mode():
            depth = model.predict(reading.normalised(pixels)[None])[0, 0].numpy()
        counts = protocol.counted(torch.from_numpy(gt)).numpy()  # by naive versions in test_calculate_error.py
        mean_bin = np.full_like(depth, sum(reading.bin_list) / 7)
        for row, pred in zip(rows[place :: len(FRAMES)], (depth, mean_bin), strict=True):
            errors = naive_metrics(gt[window][counts], pred[counts], 80)
            errors = {name: errors[name] for name in SCORED}
            assert {name: float(row[name]) for name in SCORED} == pytest.approx(errors, rel=1e-3, abs=1e-4)
            expected = (f"{drive}/{number:010}.{suffix}", drive, str(number), protocol.name, str(counts.sum()))
            assert tuple(row[key] for key in (*head[:4], "valid_pixels")) == expected
            if row["reading"] == "this run":
                means = {name: means[name] + errors[name] / len(FRAMES) for name in means}
    assert list(map(float, found.groups())) == pytest.approx(list(means.values()), rel=1e-3, abs=1e-3)
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert (results["protocol_name"], results["published"]) == (protocol.name, {})
    assert {n: results["rows"]["this run"]["metrics"][n] for n in means} == pytest.approx(means, rel=1e-3, abs=1e-4)
    assert results["made_with"]["reading"]["depth_classes"] == list(reading.depth_classes)


def test_the_whole_split_needs_no_list_and_has_the_published_rows_beside_it(run, own_tree, tmp_path, monkeypatch):
    monkeypatch.setattr(kitti, "split_frames", lambda: iter([frame[:2] for frame in FRAMES]))
    code, out, err = run("--output", tmp_path / "out", root=own_tree)
    assert code == 0, err
    assert "data: all 6 images with depth of the Eigen test split of KITTI (KITTI, BTS)\n" in out
    mfh = r"DepthCLIP, as run in MfH \(KITTI, protocol not said\) +0\.281 +- +- +0\.473 +- +12\.960"
    assert re.search(rf"\nthis run \(KITTI, BTS\) .*\n{mfh}\n", out)
    assert "they do not compare" not in out
    published = json.loads((tmp_path / "out" / "results.json").read_text())["published"]
    assert published == beside("KITTI, BTS")
    code, out, _ = run("--scene", FRAMES[0][0], FRAMES[2][0], "--limit", 2, root=own_tree)
    assert (code, "data: 2 images of kitti (" in out, "MfH" in out) == (0, True, False)
    assert "they do not compare" in out
