"""KITTI and one's own pairs through experiments, the feature store and predict.py, from end to end."""

import csv
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import eval as evaluation
import predict
from calculate_error import KITTI_METRICS, MIN_DEPTH, NYU_METRICS, Protocol
from datasets.kitti import split_frames
from experiments import __main__ as experiments
from experiments import score
from experiments.published import AUTY, KITTI_ROWS, OUTDOORS, PROMPTS
from experiments.score import histogram, metrics_of
from monoclip import MonoCLIP
from options import PROTOCOLS
from tests.conftest import QUICKGELU, SIZES, lines_of, noise, picture_of, save, sparse_depth, write_pair, write_tree

FILES = {"results.json", "per_image.csv", "tables.md", "depth.html"}
FILES |= {"qualitative.png", "ladder.png", "question.png", "certainty.png"}
SHARED = ("image", "scene", "index", "protocol", "valid_pixels", "dropped_pixels")
LOG_SOFT = ("--preset", "log", "--temperature", 2)  # so that a tiny CLIP's depth is not one bin
SPLIT = list(split_frames())
DRIVES = dict(reversed(SPLIT))  # each one's first frame
FRAMES = [  # of eleven drives, as those of conftest
    (*frame, SIZES[i % 11 % 5], ("train", "val")[i % 11 % 2], ("png", "jpg")[i % 2])
    for i, frame in enumerate([*[(drive, DRIVES[drive]) for drive in dict(SPLIT)][:11], SPLIT[1]])
]
OWN = ("--depth_scale", 256, "--max_depth", 80, *LOG_SOFT)


class Command:
    """The commands in this process on the tiny CLIP, with one store."""

    def __init__(self, folder: Path, weights: Path) -> None:
        self.folder, self.weights, self.store = folder, weights, folder / "store"

    def arguments(self, dataset: str, *flags: object) -> list[str]:
        usual = ["--dataset", dataset, "--data_path", self.folder / dataset, "--clip_path", self.weights]
        return list(map(str, [*usual, "--device", "cpu", *QUICKGELU, "--batch_size", 4, *flags]))

    def __call__(self, dataset: str, out: str, *flags: object) -> tuple[int, int]:
        """The exit code, and how many images were encoded."""
        real, seen = MonoCLIP.trunk, []
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MonoCLIP, "trunk", lambda model, x: seen.append(len(x)) or real(model, x))
            patch.setattr(score, "SWEPT", 40)
            places = ("--output", self.folder / out, "--store", self.store)
            return experiments.main(self.arguments(dataset, *places, *flags)), sum(seen)

    def json(self, out: str) -> dict:
        return json.loads((self.folder / out / "results.json").read_text())

    def lines(self, out: str) -> list[dict[str, str]]:
        return list(csv.DictReader((self.folder / out / "per_image.csv").read_text("utf-8").splitlines()))

    def page(self, out: str) -> dict:
        text = (self.folder / out / "depth.html").read_text()
        return json.loads(re.search(r"<script[^>]*application/json[^>]*>(.*?)</script>", text, re.DOTALL)[1])


@pytest.fixture(scope="module")
def command(tmp_path_factory, tiny_checkpoint) -> Command:
    """KITTI with everything by BTS, in "bts", and without controls by AdaBins, in "adabins"; own pairs in "own"."""
    folder = tmp_path_factory.mktemp("outdoors")
    write_tree(folder / "KITTI", frames=FRAMES)
    (folder / "list.txt").write_text("\n".join(lines_of(FRAMES)))
    write_pair(folder / "NYU" / "official_splits" / "test" / "kitchen", 0)
    for i, size in enumerate(((131, 173), (97, 131))):
        save(folder / "rgbd" / "rgb" / f"{i}.png", noise(*size, i, side=1))
        save(folder / "rgbd" / "depth" / f"{i}.png", sparse_depth(size, i))
    command, listed = Command(folder, tiny_checkpoint), ("--list_file", folder / "list.txt", *LOG_SOFT)
    assert command("KITTI", "bts", *listed, "--controls", "--figures", "--html", 3) == (0, 12)
    assert command("KITTI", "adabins", *listed, "--protocol", "adabins", "--no_paper") == (0, 0)  # with the same window
    assert command("rgbd", "own", *OWN, "--figures", "--html") == (0, 2)
    return command


@pytest.mark.parametrize("out", [*PROTOCOLS, "own"])
def test_this_run_is_that_of_eval(command, out):
    kitti = ("KITTI", "--list_file", command.folder / "list.txt", "--protocol", out, *LOG_SOFT)
    dataset, *flags = ("rgbd", *OWN) if out == "own" else kitti
    assert evaluation.main(command.arguments(dataset, "--output", command.folder / "eval", *flags)) == 0
    ours, theirs = command.json(out), command.json("eval")
    for row in ("this run", "uniform weights"):
        expected, found = theirs["rows"][row]["metrics"], ours["rows"][row]["metrics"]
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6, abs=2e-5)  # five pixels
    ours_of, theirs_of = ({tuple(line[key] for key in SHARED) for line in command.lines(f)} for f in (out, "eval"))
    assert (ours_of, ours["protocol"]) == (theirs_of, theirs["protocol"])
    if dataset == "KITTI":
        assert {ours["protocol_name"]} == {line["protocol"] for line in command.lines(out)} == {PROTOCOLS[out].name}
        assert ours["rows"]["this run"]["metrics"].keys() == set(metrics_of(PROTOCOLS[out])) > {*KITTI_METRICS, "log10"}


def test_files_rows_tables_and_page_are_those_of_kitti(command):
    results, folder, lines = command.json("bts"), command.folder / "bts", command.lines("bts")
    assert {path.name for path in folder.iterdir()} == FILES
    assert results["images"] == 12
    assert "over 11 clusters (drives)" in results["intervals"]
    assert {*OUTDOORS, "this run", "colour words"} <= results["rows"].keys()
    assert not any(row.startswith(("prompt", "bins class", "mean training")) for row in results["rows"])
    assert len(lines) == 12 * len(results["rows"])
    found = {(line["scene"], line["cluster"], int(line["index"])) for line in lines}
    assert found == {(drive, drive, number) for drive, number, *_ in FRAMES}
    assert {line["reading"] for line in lines if line["group"] == "outdoors"} == set(OUTDOORS)
    text, content = (folder / "tables.md").read_text(), command.page("bts")
    assert not any(title in text for title in (KITTI_ROWS, PROMPTS, "size words"))  # which are over the whole split
    assert (content["limits"], content["drops_tiny"], content["scale"][1]) == ([MIN_DEPTH, 80], False, 80)
    assert list(content["presets"]) == ["run", "paper", "auty", "log", "colour"]
    assert {word for preset in content["presets"].values() for word in preset["depth_classes"]} <= {*content["phrases"]}
    assert {(*card["size"], *card["grid"]) for card in content["images"]} == {(352, 1216, 11, 38)}
    stored = sorted(len(list(store.glob("*.npz"))) for store in command.store.iterdir())
    assert stored == [2, 12]  # own pairs; KITTI by both protocols
    flags = ("--list_file", command.folder / "list.txt", "--preset", "auty", "--no_paper", "--limit", 2)
    assert command("KITTI", "again", *flags) == (0, 0)
    assert command("NYU", "nyu", "--no_paper") == (0, 1)
    assert len(list(command.store.iterdir())) == 3


def test_own_pairs_of_two_odd_sizes_and_the_room_for_their_features(command, monkeypatch, capsys):
    ours = command.json("own")
    assert (ours["clustered_by"].partition(",")[0], ours["published"]) == ("images", {})
    assert ours["rows"]["uniform weights"]["metrics"]["spearman"] is None
    assert [card["size"] for card in command.page("own")["images"]] == [[131, 173], [97, 131]]
    (store,) = (path for path in command.store.iterdir() if len(list(path.glob("*.npz"))) == 2)
    needed = sum(file[part].nbytes for file in map(np.load, store.glob("*.npz")) for part in ("patches", "cls"))
    for free, code in ((needed - 1, 1), (needed, 0)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: SimpleNamespace(free=free))
        assert command("rgbd", "tight", *OWN, "--no_paper", "--store", command.folder / "tight")[0] == code
        assert ("the features need" in capsys.readouterr().err) == (code == 1)


def test_predict_passes_by_depth_maps(command, tmp_path):
    pictures = tmp_path / "in"
    shutil.copytree(command.folder / "KITTI", pictures / "KITTI")
    shutil.copytree(command.folder / "rgbd", pictures / "pairs")
    for folder in ("scenes/color/den", "scenes/depth/den", "drive/proj_depth/velodyne_raw/image_02"):
        shutil.copytree(pictures / "pairs/depth", pictures / folder)
    shutil.copytree(pictures / "pairs/rgb", pictures / "depth")  # without rgb/ beside it, a folder like any other
    usual = ("--clip_path", command.weights, *QUICKGELU, "--device", "cpu", "--preset", "auty", "--save", "npy")
    assert predict.main(list(map(str, ["-i", pictures, "-o", tmp_path / "out", *usual]))) == 0
    found = {path.relative_to(tmp_path / "out").as_posix(): path for path in (tmp_path / "out").rglob("*.npy")}
    frames = {f"KITTI/{picture_of(*frame[:2])}".replace(".png", "_depth.npy"): frame[2] for frame in FRAMES}
    own = {f"{folder}/{i}_depth.npy" for folder in ("depth", "pairs/rgb", "scenes/color/den") for i in (0, 1)}
    assert found.keys() == {*own, *frames}
    assert {name: np.load(found[name]).shape for name in frames} == frames
    depth = np.load(found[next(iter(frames))])
    assert min(AUTY.bin_list) <= depth.min() <= depth.max() <= max(AUTY.bin_list)


@pytest.mark.parametrize(("units", "scale", "cap"), [(80 * 256 - 1, 256, 80), (555, 100, 5.5504), (10, 1, 10.4)])
def test_the_deepest_that_counts_is_in_the_histogram(units, scale, cap):
    protocol = Protocol("own pairs", NYU_METRICS, cap)
    shares = histogram(torch.tensor([units, units, 3, 1]) / scale, protocol, scale)
    assert np.flatnonzero(shares).tolist() == [1, 3, units]
    assert shares[units] == 0.5
