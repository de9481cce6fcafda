"""KITTI and one's own pairs through experiments, the feature store and predict.py, from end to end."""

import csv
import json
import re
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch

import eval as evaluation
import predict
from calculate_error import KITTI_METRICS, MIN_DEPTH, NYU_METRICS, Protocol
from datasets import kitti
from datasets.kitti import split_frames
from experiments import __main__ as experiments
from experiments import score
from experiments.published import AUTY, KITTI_ROWS, OUTDOORS, PROMPTS
from experiments.score import histogram, metrics_of
from monoclip import MonoCLIP
from options import PROTOCOLS
from tests.conftest import QUICKGELU, SIZES, lines_of, picture_of, save, sparse_depth, write_pair, write_tree

DRAWINGS = {"qualitative.png", "ladder.png", "question.png", "certainty.png"}
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
    """The commands in this process on the tiny CLIP, with one store; `encoded` counts a run's images."""

    def __init__(self, folder: Path, weights: Path) -> None:
        self.folder, self.weights, self.store, self.encoded = folder, weights, folder / "store", 0

    def arguments(self, dataset: str, *flags: object) -> list[str]:
        usual = ["--dataset", dataset, "--data_path", self.folder / dataset, "--clip_path", self.weights]
        return list(map(str, [*usual, "--device", "cpu", *QUICKGELU, "--batch_size", 4, *flags]))

    def __call__(self, dataset: str, out: str, *flags: object) -> int:
        real, seen = MonoCLIP.trunk, []
        places = ("--output", self.folder / out, "--store", self.store)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MonoCLIP, "trunk", lambda model, x: seen.append(len(x)) or real(model, x))
            patch.setattr(score, "SWEPT", 40)
            code = experiments.main(self.arguments(dataset, *places, *flags))
        self.encoded = sum(seen)
        return code

    def json(self, out: str, name: str = "results.json") -> dict:
        return json.loads((self.folder / out / name).read_text())

    def lines(self, out: str) -> list[dict[str, str]]:
        return list(csv.DictReader((self.folder / out / "per_image.csv").read_text("utf-8").splitlines()))

    def page(self, out: str) -> dict:
        text = (self.folder / out / "depth.html").read_text()
        return json.loads(re.search(r"<script[^>]*application/json[^>]*>(.*?)</script>", text, re.DOTALL)[1])


@pytest.fixture(scope="module")
def command(tmp_path_factory, tiny_checkpoint) -> Command:
    """KITTI with everything by BTS, in "bts", and without controls by AdaBins, in "adabins"; own pairs in "own".

    Data are twelve frames of KITTI (all sizes, both halves, both kinds), one image of NYU, two own pairs of odd sizes.
    """
    folder = tmp_path_factory.mktemp("outdoors")
    write_tree(folder / "KITTI", frames=FRAMES)
    (folder / "list.txt").write_text("\n".join(lines_of(FRAMES)))
    write_pair(folder / "NYU" / "official_splits" / "test" / "kitchen", 0)
    for i, size in enumerate(((131, 173), (97, 131))):
        rng = np.random.default_rng(i)
        for part, values in (("rgb", rng.integers(0, 256, (*size, 3), np.uint8)), ("depth", sparse_depth(size, i))):
            save(folder / "rgbd" / part / f"{i}.png", values)
    command, listed = Command(folder, tiny_checkpoint), ("--list_file", folder / "list.txt", *LOG_SOFT)
    assert (command("KITTI", "bts", *listed, "--controls", "--figures", "--html", 3), command.encoded) == (0, 12)
    adabins = command("KITTI", "adabins", *listed, "--protocol", "adabins", "--no_paper"), command.encoded
    assert adabins == (0, 0)  # the window is the same
    assert (command("rgbd", "own", *OWN, "--figures", "--html"), command.encoded) == (0, 2)
    return command


# ---- KITTI


@pytest.mark.parametrize("out", [*PROTOCOLS, "own"])
def test_this_run_is_that_of_eval(command, out):
    kitti = ("KITTI", "--list_file", command.folder / "list.txt", "--protocol", out, *LOG_SOFT)
    dataset, *flags = ("rgbd", *OWN) if out == "own" else kitti
    assert evaluation.main(command.arguments(dataset, "--output", command.folder / "eval", *flags)) == 0
    ours, theirs = command.json(out), command.json("eval")
    for row in ("this run", "uniform weights"):
        expected, found = theirs["rows"][row]["metrics"], ours["rows"][row]["metrics"]
        assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6, abs=2e-5)  # five pixels
    counts = [{tuple(line[key] for key in SHARED) for line in command.lines(folder)} for folder in (out, "eval")]
    assert (counts[0], ours["protocol"]) == (counts[1], theirs["protocol"])
    if dataset == "KITTI":
        assert {ours["protocol_name"]} == {line["protocol"] for line in command.lines(out)} == {PROTOCOLS[out].name}
        assert ours["rows"]["this run"]["metrics"].keys() == set(metrics_of(PROTOCOLS[out])) > {*KITTI_METRICS, "log10"}


def test_files_rows_tables_and_page_are_those_of_kitti(command):
    results, folder, lines = command.json("bts"), command.folder / "bts", command.lines("bts")
    assert {path.name for path in folder.iterdir()} == DRAWINGS | {
        "results.json",
        "per_image.csv",
        "tables.md",
        "depth.html",
    }
    assert (results["images"], results["clustered_by"]) == (12, "drives")
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
    stores = {store: len(list(store.glob("*.npz"))) for store in command.store.iterdir()}
    assert sorted(stores.values()) == [2, 12]  # own pairs; KITTI by both protocols
    flags = ("--list_file", command.folder / "list.txt", "--preset", "auty", "--no_paper", "--limit", 2)
    assert (command("KITTI", "again", *flags), command.encoded) == (0, 0)
    assert (command("NYU", "nyu", "--no_paper"), command.encoded) == (0, 1)
    assert len(list(command.store.iterdir())) == 3


@pytest.mark.parametrize("name", PROTOCOLS)
def test_the_whole_split_stands_beside_published_rows_of_its_protocol_only(command, monkeypatch, name):
    monkeypatch.setattr(kitti, "split_frames", lambda: iter([frame[:2] for frame in FRAMES]))
    assert command("KITTI", f"whole {name}", *LOG_SOFT, "--protocol", name) == 0
    text, ours = (command.folder / f"whole {name}" / "tables.md").read_text(), PROTOCOLS[name].name
    main = text[text.index(f"## This run ({ours})") :].split("\n## ")[0]
    assert "| Auty, size words (KITTI, AdaBins) |" in main
    assert "| DepthCLIP, as run in MfH (KITTI, protocol not said) |" in main
    table = text[text.index(f"## {KITTI_ROWS}") :].split("\n## ")[0]
    assert re.search(rf"\| Auty, depth words \({ours}\) \| ours .*\n\| KITTI, AdaBins \| published ", table)
    assert ("| difference |" in table) == (name == "adabins")


# ---- one's own pairs


def test_own_pairs_of_two_odd_sizes_and_the_room_for_their_features(command, monkeypatch, capsys):
    ours = command.json("own")
    assert (ours["clustered_by"].partition(",")[0], ours["published"]) == ("images", {})
    assert ours["rows"]["uniform weights"]["metrics"]["spearman"] is None
    assert [card["size"] for card in command.page("own")["images"]] == [[131, 173], [97, 131]]
    (store,) = (path for path in command.store.iterdir() if len(list(path.glob("*.npz"))) == 2)
    needed = sum(file[part].nbytes for file in map(np.load, store.glob("*.npz")) for part in ("patches", "cls"))
    usage = namedtuple("usage", "total used free")
    for free, code in ((needed - 1, 1), (needed, 0)):
        monkeypatch.setattr(shutil, "disk_usage", lambda _, free=free: usage(10**9, 10**9, free))
        assert command("rgbd", "tight", *OWN, "--no_paper", "--store", command.folder / "tight") == code
        assert ("the features need" in capsys.readouterr().err) == (code == 1)


# ---- predict.py


def test_predict_passes_by_depth_maps(command, tmp_path):
    pictures = tmp_path / "in"
    shutil.copytree(command.folder / "KITTI", pictures / "KITTI")
    shutil.copytree(command.folder / "rgbd", pictures / "pairs")
    for part in ("color", "depth"):
        shutil.copytree(pictures / "pairs/depth", pictures / "scenes" / part / "den")
    shutil.copytree(pictures / "pairs/depth", pictures / "drive/proj_depth/velodyne_raw/image_02")
    shutil.copytree(pictures / "pairs/rgb", pictures / "depth")  # without rgb/ beside it, a folder like any other
    usual = ("--clip_path", command.weights, *QUICKGELU, "--device", "cpu", "--preset", "auty", "--save", "npy")
    assert predict.main(list(map(str, ["-i", pictures, "-o", tmp_path / "out", *usual]))) == 0
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*.npy")}
    frames = {f"KITTI/{picture_of(*frame[:2])}".replace(".png", "_depth.npy"): frame[2] for frame in FRAMES}
    own = {f"{folder}/{i}_depth.npy" for folder in ("depth", "pairs/rgb", "scenes/color/den") for i in (0, 1)}
    assert found == {*own, *frames}
    for name, size in frames.items():
        depth = np.load(tmp_path / "out" / name)
        assert depth.shape == size
        assert min(AUTY.bin_list) <= depth.min() <= depth.max() <= max(AUTY.bin_list)


# ---- depth as a histogram, beyond 10 m


@pytest.mark.parametrize(("units", "scale", "cap"), [(80 * 256 - 1, 256, 80), (555, 100, 5.5504), (10, 1, 10.4)])
def test_the_deepest_that_counts_is_in_the_histogram(units, scale, cap):
    protocol = Protocol("own pairs", NYU_METRICS, cap)
    shares = histogram(torch.tensor([units, units, 3, 1]) / scale, protocol, scale)
    assert np.flatnonzero(shares).tolist() == [1, 3, units]
    assert shares[units] == 0.5
