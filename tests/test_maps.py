"""Saved depth maps: read, aligned and scored by eval.py as the method's own, and kept by it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import eval as evaluation
from calculate_error import NYU
from datasets import DataError
from datasets.alignment import ALIGNMENTS, alignment
from datasets.maps import stems_of
from datasets.nyu import FORM, open_nyu
from datasets.pairs import DepthPairs, Pair
from tests.conftest import QUICKGELU, SOFT


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
            gt, (rows, columns) = dataset.depth(i)[0], NYU.window(480, 640)
            values = (gt.numpy() * rng.uniform(0.8, 1.3, (12, 16)).repeat(40, 0).repeat(40, 1) + 0.3).astype(np.float32)
            values = 9 - values / 2 if kind == "relative" else values
            path = tmp_path / "maps" / pair.scene / pair.rgb.stem
            path.parent.mkdir(parents=True, exist_ok=True)
            if kind == "png":
                Image.fromarray((values * 1000).round().astype(np.uint16)).save(f"{path}.png")
            else:
                np.save(f"{path}.npy", values[rows, columns] if kind == "window" else values)
            counts = NYU.counted(gt).numpy()
            pairs.append([m[rows, columns][counts].astype(float) for m in (gt.numpy(), values)])
        return root, tmp_path / "maps", pairs

    return make


def score(root, folder, output, *flags) -> dict[str, float]:
    command = ["--data_path", root, "--predictions", folder, "--output", output, *flags]
    assert evaluation.main(list(map(str, command))) == 0
    return json.loads((output / "results.json").read_text())


@pytest.mark.parametrize("align", ALIGNMENTS)
@pytest.mark.parametrize("kind", ["npy", "png", "window", "relative"])
def test_maps_are_scored_as_numpy_scores_them(maps, no_model, tmp_path, kind, align):
    root, folder, pairs = maps(kind)
    results = score(root, folder, tmp_path / "out", "--align", align)
    expected = [metrics(gt, fitted(gt, pred, align)) for gt, pred in pairs]
    tolerance = 2e-3 if kind == "png" else 1e-4
    for name, value in results["rows"]["this run"]["metrics"].items():
        assert value == pytest.approx(np.mean([each[name] for each in expected]), abs=tolerance), name
    assert list(results["rows"]) == ["this run"]
    towards = kind == "relative" and align == "scale_shift"
    away = kind != "relative" and align == "disparity"
    assert any("maps grow towards the camera" in text for text in results["warnings"]) == towards
    assert any("maps grow away from the camera" in text for text in results["warnings"]) == away


def test_kept_maps_give_the_runs_own_rows_and_are_not_overwritten(nyu_folder, tiny_checkpoint, tmp_path, capsys):
    root, files = nyu_folder(3), ("--clip_path", tiny_checkpoint, *QUICKGELU, *SOFT, "--device", "cpu")
    flags = ["--data_path", root, *files, "--save_predictions", tmp_path / "kept", "--output", tmp_path / "run"]
    assert evaluation.main(list(map(str, flags))) == 0
    score(root, tmp_path / "kept", tmp_path / "again")
    rows = [(tmp_path / name / "per_image.csv").read_text().splitlines() for name in ("run", "again")]
    assert rows[1] == [row for row in rows[0] if "uniform weights" not in row]
    (tmp_path / "kept" / "kitchen" / "rgb_00001.npy").rename(tmp_path / "kept" / "kitchen" / "rgb_00001.png")
    assert evaluation.main(list(map(str, flags))) == 2
    err = capsys.readouterr().err
    assert "3 problems" in err
    assert "kitchen/rgb_00001.png: is there already; choose a new folder for --save_predictions\n" in err


def test_alignment_by_hand():
    gt, pred = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([[2.0, 4.0, 8.0], [3.0, 3.0, 3.0]])
    for how, expected in (("median", (0.5, 0)), ("scale_shift", (0.5, 0))):
        scale, shift = alignment(gt, pred, how)
        assert (scale[0].item(), shift[0].item()) == pytest.approx(expected, abs=1e-6)
    assert (scale[1].item(), shift[1].item()) == pytest.approx((0, 7 / 3), abs=1e-6)  # a constant gets the mean
    scale, shift = alignment(gt, 1e-6 * pred[:1], "scale_shift")  # whatever the unit
    assert (scale.item(), shift.item()) == (pytest.approx(0.5e6), pytest.approx(0, abs=1e-6))
    scale, _ = alignment(torch.tensor([4.0, 1.0, 3.0, 2.0]), torch.tensor([[5.0, 4.0, 6.0, 7.0]]), "median")
    assert scale.item() == pytest.approx(2 / 5)  # of an even number, the lower median


def test_a_map_that_cannot_be_scored_is_named(maps, capsys):
    root, folder, _ = maps("npy")
    path = folder / "bathroom" / "rgb_00000.npy"
    for content, code, message in (
        (np.ones((240, 320)), 2, "is 320x240, expected 640x480 or 544x416"),
        (np.ones((480, 640), dtype=int), 2, "holds int64 (480, 640), expected (H, W) floats"),
        (np.array({}), 2, "no depth map, or truncated or damaged; write it again"),
        (np.full((480, 640), np.nan), 1, "predicted depths are NaN or infinite"),
    ):
        np.save(path, content)
        assert evaluation.main(["--data_path", str(root), "--predictions", str(folder)]) == code
        assert re.search(rf"rgb_00000\.\w+: .*{re.escape(message)}", capsys.readouterr().err)


def test_all_maps_that_are_missing_or_doubled_are_said_at_once(nyu_folder, tmp_path, capsys):
    root = nyu_folder(7)
    (tmp_path / "bathroom").mkdir()
    for name in ("rgb_00000.npy", "rgb_00000.png", "rgb_00008.npy"):
        (tmp_path / "bathroom" / name).touch()
    assert evaluation.main(["--data_path", str(root), "--predictions", str(tmp_path)]) == 2
    text = capsys.readouterr().err
    assert text.startswith("eval.py: 6 problems in the data:\n")
    assert "bathroom/rgb_00000: two maps, .npy and .png; keep one\n" in text
    three = [f"{tmp_path}/{name}" for name in ("bathroom/rgb_00014", "bathroom/rgb_00016", "kitchen/rgb_00001")]
    assert f"no map: neither .npy nor .png: 5 times, first {', '.join(three)}\n" in text
    pairs = [Pair(Path(place, "a.png"), Path(), "den", i) for i, place in enumerate(("x", "y"))]
    with pytest.raises(DataError, match="den/a: the maps of several images would have this name"):
        stems_of(DepthPairs(pairs, FORM, NYU, "rooms"), tmp_path)
