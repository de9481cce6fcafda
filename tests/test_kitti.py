"""KITTI: the split and its lists, frames as tensors, what is refused, and eval.py from end to end."""

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
from calculate_error import KITTI_ADABINS, KITTI_BTS, KITTI_METRICS
from datasets import DataError, kitti
from datasets.kitti import open_kitti, split_frames
from experiments.published import AUTY, beside
from tests.conftest import FRAMES, depth_of, lines_of, naive_metrics, picture_of, sparse_depth, window_of, write_tree


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """`FRAMES`, and list.txt, which names them."""
    root = write_tree(tmp_path / "kitti")
    (root / "list.txt").write_text("\n".join(lines_of()))
    return root


@pytest.fixture
def run(tree, capsys):
    """`run(*flags)` evaluates the demo's CLIP on the tree: exit code, standard output, standard error."""

    def call(*flags: object) -> tuple[int, str, str]:
        usual = ["--dataset", "KITTI", "--data_path", tree, "--clip_path", options.DEMO_WEIGHTS, "--device", "cpu"]
        code = evaluation.main(list(map(str, [*usual, *flags])))
        return code, *capsys.readouterr()

    return call


def test_652_of_697_frames_are_counted_with_and_without_the_fields_list(tmp_path, monkeypatch):
    with kitti.SPLIT_FILE.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 697
    assert {frame[:2] for frame in FRAMES} <= set(split_frames())
    lines = []
    for row in rows:
        depth = depth_of(row["drive"], row["frame"]) if row["depth"] == "1" else None
        lines.append(f"{picture_of(row['drive'], row['frame'])} {depth} 721.5377")
    (tmp_path / "list.txt").write_text("\n".join(lines))
    with pytest.raises(DataError, match=r"no such file: 1,304 times, first \S+, \S+, \S+; link .* \(docs/data\.md\)"):
        open_kitti(tmp_path, KITTI_BTS)
    monkeypatch.setattr(kitti, "check_files", lambda *_: [])  # there are none
    title = "all 652 images with depth of the Eigen test split of KITTI (KITTI, AdaBins)"
    for list_file in (None, tmp_path / "list.txt"):
        dataset = open_kitti(tmp_path, KITTI_ADABINS, list_file)
        assert (len(dataset), dataset.official, dataset.title) == (652, True, title)
        assert list(zip(dataset.scenes, dataset.indices, strict=True)) == list(split_frames())
        assert len(set(dataset.clusters)) == 28
    assert not open_kitti(tmp_path, KITTI_BTS, limit=651).official


@pytest.mark.parametrize("raw", kitti.RAW)
@pytest.mark.parametrize("annotated", kitti.TRUTH)
def test_files_are_found_in_every_layout(tmp_path, raw, annotated):
    drive, number, size, *_ = FRAMES[2]
    raw, annotated = (tmp_path / layout.format(date=drive[:10]) / drive for layout in (raw, annotated))
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
    drives = [FRAMES[i][0] for i in (5, 1, 2)]
    assert (dataset.scenes, dataset.clusters, dataset.clustered_by) == (drives, drives, "drives")
    assert dataset.indices == [543, 9, 12]
    for item, seed in enumerate((5, 1, 2)):
        drive, number, size, _, suffix = FRAMES[seed]
        assert dataset.names[item] == f"{drive}/{number:010d}.{suffix}"
        expected = torch.from_numpy(sparse_depth(size, seed).astype(np.float32) / 256).clamp(max=80)
        assert torch.equal(dataset.depth(item)[0], expected)
        np.testing.assert_array_equal(dataset.truth(item), expected.numpy()[window_of(*size)])
        seen = np.asarray(Image.open(tree / picture_of(drive, number, suffix)))[window_of(*size)]
        np.testing.assert_array_equal(dataset.pixels(item), seen)


# ---- what is refused: kind of damage to the files of line 3, or what stands in it

DRIVE, NUMBER, SIZE, HALF, _ = FRAMES[2]
PICTURE, DEPTH = picture_of(DRIVE, NUMBER), depth_of(DRIVE, NUMBER)
FILES = {
    "no depth map": r"train/\S+groundtruth/image_02/0000000012\.png: no such file; link KITTI's folders into",
    "another drive's size": r"0000000012\.png: is 1242x375 where its picture is 1224x370",
    "only above the region or beyond 80 m": r"0000000012\.png: no valid pixel, no depth of up to 80 m in the region",
}
LINES = {
    lines_of()[0].replace("/000000000", "/"): r"0000000006\.png stands in line 1 already",
    f"{PICTURE} {depth_of(DRIVE, 13)} 707.0912": "picture and depth are of different frames",
    f"{PICTURE.replace('image_02', 'image_03')} {DEPTH}": "expected DATE/DRIVE_sync/image_02/data/FRAME.png and ",
}


@pytest.mark.parametrize(("kind", "message"), {**FILES, **LINES}.items())
def test_what_is_wrong_with_a_line_is_one_sentence_before_the_model_is_built(run, no_model, tree, kind, message):
    lines, depth = lines_of(), tree / HALF / DEPTH
    if kind in LINES:
        lines[2] = kind
    elif kind == "another drive's size":
        Image.fromarray(sparse_depth(FRAMES[0][2], 0)).save(depth)
    elif kind == "no depth map":
        depth.unlink()
    else:
        far = np.full(SIZE, 90 * 256, np.uint16)
        far[:150] = 256
        Image.fromarray(far).save(depth)
    (tree / "list.txt").write_text("\n".join(lines))
    code, out, err = run("--list_file", tree / "list.txt")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.fullmatch(rf"eval\.py: .*list\.txt, line 3: .*{message}.*\n", err), err


def test_other_wrong_input_is_one_sentence(run, no_model, tmp_path):
    (tmp_path / "none.txt").write_text(f"{picture_of(*FRAMES[0][:2])} None 721.5377\n")
    for flags, message in (
        (("--list_file", tmp_path / "none.txt"), "none.txt: names no pair"),
        (("--data_path", "/nowhere"), "/nowhere: no such folder; name KITTI's with --data_path"),
        (("--scene", FRAMES[0][0], "attic"), "--scene attic: no such scene here; there are 2011_09_26_drive_0002_"),
    ):
        code, _, err = run(*flags)
        assert (code, err.count("\n"), message in err) == (2, 1, True)


def test_rows_are_those_of_the_method_by_hand(run, tree, tmp_path):
    protocol, flags = KITTI_ADABINS, ("--protocol", "adabins", "--preset", "auty")
    code, out, err = run("--list_file", tree / "list.txt", "--output", tmp_path / "out", *flags)
    assert code == 0, err
    names = ("abs_diff", "abs_rel", "sq_rel", "a1", "a2", "a3", "rmse", "rmse_log")  # the release's order for KITTI
    found = re.search(r"^ \* Avg " + ", ".join(rf"{name} : (\d+\.\d{{3}})" for name in names) + "$", out, re.M)
    _, model, _ = options.load_model(options.Setup(options.DEMO_WEIGHTS, AUTY))
    with (tmp_path / "out" / "per_image.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    means = dict.fromkeys(KITTI_METRICS, 0.0)
    for row, (drive, number, size, half, suffix) in zip(rows, FRAMES, strict=False):  # then uniform weights
        pixels = np.asarray(Image.open(tree / picture_of(drive, number, suffix)))[window_of(*size)]
        gt = np.asarray(Image.open(tree / half / depth_of(drive, number))).astype(np.float32) / 256
        with torch.inference_mode():
            depth = model.predict(AUTY.normalised(pixels)[None])[0, 0].numpy()
        counts = protocol.counted(torch.from_numpy(gt)).numpy()  # by naive versions in test_calculate_error.py
        errors = naive_metrics(gt[window_of(*size)][counts], depth[counts], 80)
        errors = {name: errors[name] for name in (*KITTI_METRICS, "log10")}
        assert {name: float(row[name]) for name in errors} == pytest.approx(errors, rel=1e-3, abs=1e-4)
        expected = (f"{drive}/{number:010}.{suffix}", drive, str(number), protocol.name, str(counts.sum()))
        assert tuple(row[key] for key in ("image", "scene", "index", "protocol", "valid_pixels")) == expected
        means = {name: means[name] + errors[name] / len(FRAMES) for name in means}
    assert list(map(float, found.groups())) == pytest.approx(list(means.values()), rel=1e-3, abs=1e-3)


def test_the_whole_split_needs_no_list_and_has_the_published_rows_beside_it(run, tmp_path, monkeypatch):
    monkeypatch.setattr(kitti, "split_frames", lambda: [frame[:2] for frame in FRAMES])
    code, out, err = run("--output", tmp_path / "out")
    assert code == 0, err
    assert "data: all 6 images with depth of the Eigen test split of KITTI (KITTI, BTS)\n" in out
    mfh = r"DepthCLIP, as run in MfH \(KITTI, protocol not said\) +0\.281 +- +- +0\.473 +- +12\.960"
    assert re.search(rf"\nthis run \(KITTI, BTS\) .*\n{mfh}\n", out)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["published"] == beside("KITTI, BTS")
    code, out, _ = run("--scene", FRAMES[0][0], FRAMES[2][0], "--limit", 2)
    assert (code, "data: 2 images of kitti (" in out, "MfH" in out) == (0, True, False)
    assert "they do not compare" in out
