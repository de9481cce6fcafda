"""Saved depth maps: read, aligned and scored by eval.py as the method's own, and kept by it."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

import eval as evaluation
from calculate_error import NYU
from datasets.alignment import ALIGNMENTS, alignment, lower_median
from datasets.nyu import open_nyu
from tests.conftest import QUICKGELU, SOFT

SCORED = ("delta1", "delta2", "delta3", "abs_rel", "log10", "rmse", "abs_diff")


def fitted(gt: np.ndarray, pred: np.ndarray, how: str) -> np.ndarray:
    """A map aligned as the documentation says, by numpy alone."""
    if how == "none":
        return pred
    if how == "median":
        middle = (len(gt) - 1) // 2
        return pred * np.sort(gt)[middle] / np.sort(pred)[middle]
    matrix = np.stack([pred, np.ones_like(pred)], axis=1)
    scale, shift = np.linalg.lstsq(matrix, 1 / gt if how == "disparity" else gt, rcond=None)[0]
    fit = scale * pred + shift
    return 1 / np.maximum(fit, 1 / 10) if how == "disparity" else fit


def metrics(gt: np.ndarray, pred: np.ndarray) -> dict[str, float]:
    pred = pred.clip(1e-3, 10)
    ratio, error = np.maximum(gt / pred, pred / gt), np.abs(gt - pred)
    found = {f"delta{i}": (ratio < 1.25**i).mean() for i in (1, 2, 3)}
    found |= {"abs_rel": (error / gt).mean(), "log10": np.abs(np.log10(gt / pred)).mean()}
    return found | {"rmse": np.sqrt((error**2).mean()), "abs_diff": error.mean()}


@pytest.fixture
def maps(nyu_folder, tmp_path):
    """`maps(kind)`: a folder of noisy maps of three images; the images' folder and their counted truth and maps."""

    def make(kind: str):
        root, rng = nyu_folder(3), np.random.default_rng(0)
        dataset, pairs = open_nyu(root, NYU), []
        for i, pair in enumerate(dataset.pairs):
            gt = dataset.depth(i)[0]
            values = (gt.numpy() * rng.uniform(0.8, 1.3, (12, 16)).repeat(40, 0).repeat(40, 1) + 0.3).astype(np.float32)
            values = 9 - values / 2 if kind == "relative" else values
            path = tmp_path / "maps" / pair.scene / pair.rgb.stem
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "png":
                Image.fromarray((values * 1000).round().astype(np.uint16)).save(f"{path}.png")
            elif kind == "window":  # what the method sees of the frame
                np.save(f"{path}.npy", values[56:472, 60:604])
            else:
                np.save(f"{path}.npy", values)
            counts = NYU.counted(gt).numpy()
            pairs.append(
                (gt.numpy()[56:472, 60:604][counts].astype(float), values[56:472, 60:604][counts].astype(float))
            )
        return root, tmp_path / "maps", pairs

    return make


def score(root, folder, output, *flags) -> dict[str, float]:
    command = ["--data_path", root, "--predictions", folder, "--output", output, *flags]
    assert evaluation.main(list(map(str, command))) == 0
    return json.loads((output / "results.json").read_text())["rows"]["this run"]["metrics"]


@pytest.mark.parametrize("align", ALIGNMENTS)
@pytest.mark.parametrize("kind", ["npy", "png", "window", "relative"])
def test_maps_are_scored_as_numpy_scores_them(maps, no_model, tmp_path, kind, align):
    root, folder, pairs = maps(kind)
    found = score(root, folder, tmp_path / "out", "--align", align)
    expected = [metrics(gt, fitted(gt, pred, align)) for gt, pred in pairs]
    tolerance = 2e-3 if kind == "png" else 1e-4
    for name in SCORED:
        assert found[name] == pytest.approx(np.mean([each[name] for each in expected]), abs=tolerance), name
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    assert list(results["rows"]) == ["this run"]
    assert results["made_with"] == {"predictions": "maps", "align": align}
    towards = kind == "relative" and align == "scale_shift"
    away = kind != "relative" and align == "disparity"
    assert any("maps grow towards the camera" in text for text in results["warnings"]) == towards
    assert any("maps grow away from the camera" in text for text in results["warnings"]) == away


def test_kept_maps_give_the_runs_own_line(nyu_folder, tiny_checkpoint, tmp_path, capsys):
    root, files = nyu_folder(3), ("--clip_path", tiny_checkpoint, *QUICKGELU, *SOFT, "--device", "cpu")
    flags = ["--data_path", root, *files, "--save_predictions", tmp_path / "kept", "--output", tmp_path / "run"]
    assert evaluation.main(list(map(str, flags))) == 0
    first = capsys.readouterr().out
    score(root, tmp_path / "kept", tmp_path / "again")
    lines = [[line for line in out.splitlines() if " * Avg" in line] for out in (first, capsys.readouterr().out)]
    assert lines[0] == lines[1]
    rows = []
    for name in ("run", "again"):
        with (tmp_path / name / "per_image.csv").open(newline="") as file:
            rows.append([row for row in csv.DictReader(file) if row["reading"] == "this run"])
    assert rows[0] == rows[1]


def test_maps_and_true_depth_are_not_overwritten(nyu_folder, tmp_path, capsys):
    root = nyu_folder(1)
    (picture,) = root.rglob("rgb_*.jpg")
    (tmp_path / "maps" / picture.parent.name).mkdir(parents=True)
    path = tmp_path / "maps" / picture.parent.name / f"{picture.stem}.png"
    path.write_bytes(b"another method's")
    flags = ["--data_path", root, "--clip_path", "demo/rooms_clip.pt", "--save_predictions", tmp_path / "maps"]
    assert evaluation.main([*map(str, flags)]) == 2
    assert "is there already; choose a new folder for --save_predictions" in capsys.readouterr().err
    assert path.read_bytes() == b"another method's"


def test_alignment_by_hand():
    gt, pred = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([[2.0, 4.0, 8.0], [3.0, 3.0, 3.0]])
    for how, expected in (("none", (1, 0)), ("median", (0.5, 0)), ("scale_shift", (0.5, 0))):
        scale, shift = alignment(gt, pred, how)
        assert (scale[0].item(), shift[0].item()) == pytest.approx(expected, abs=1e-6)
    assert (scale[1].item(), shift[1].item()) == pytest.approx((0, 7 / 3), abs=1e-6)  # a constant gets the mean
    scale, shift = alignment(gt, 1e-6 * pred[:1], "scale_shift")  # whatever the unit
    assert (scale.item(), shift.item()) == (pytest.approx(0.5e6), pytest.approx(0, abs=1e-6))
    assert lower_median(torch.tensor([[4.0, 1.0, 3.0, 2.0]])).tolist() == [2.0]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda path: path.unlink(), "no map: neither .npy nor .png"),
        (lambda path: path.with_suffix(".png").write_bytes(b""), "two maps, .npy and .png; keep one"),
        (lambda path: np.save(path, np.ones((240, 320))), "is 320x240, expected 640x480 or 544x416"),
        (lambda path: np.save(path, np.ones((480, 640), dtype=int)), "holds int64 (480, 640), expected (H, W) floats"),
        (lambda path: path.write_bytes(b"no npy"), "not a readable .npy; write it again"),
        (lambda path: np.save(path, np.full((480, 640), np.nan)), "predicted depths are NaN or infinite"),
    ],
)
def test_a_map_that_cannot_be_scored_is_named(maps, tmp_path, capsys, spoil, message):
    root, folder, _ = maps("npy")
    path = next(iter(sorted(folder.rglob("*.npy"))))
    spoil(path)
    code = evaluation.main(["--data_path", str(root), "--predictions", str(folder)])
    err = capsys.readouterr().err
    assert (code, path.stem in err) == (1 if "NaN" in message else 2, True)
    assert message in err
    assert "Traceback" not in err
