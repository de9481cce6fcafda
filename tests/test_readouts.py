"""experiments.readouts: each row is what eval.py and a run of the experiments say of it."""

import csv
import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch

import eval as evaluation
from calculate_error import NYU_METRICS
from clip.model import Architecture
from datasets.nyu import TEST_INDICES
from datasets.readings import IMAGE_STATISTICS, with_statistics
from experiments import __main__ as experiments
from experiments import readouts, score
from experiments.readouts import FILES, cases_of
from experiments.statistics import PRIMARY, Case
from monoclip import PAPER, MonoCLIP
from tests.conftest import QUICKGELU, TINY, random_clip, save, write_pair
from viewer.notes import INVERTED, OTHER_IMAGES

RESNET = replace(TINY, image_resolution=224)
VIT = replace(RESNET, vision_layers=2, vision_width=64, vision_patch_size=32)
WORDS = ("--depth_classes", "near", "far", "unseen", "--bin_list", 1, 2, 4)
OF = {"resnet.pt": ("raw", "maskclip", "attnpool", "clearclip"), "vit.pt": ("raw", "maskclip", "clearclip")}
CASES = ("resnet.pt, raw, imagenet, 0.1", "resnet.pt, attnpool, clip, 1", "vit.pt, clearclip, imagenet, 0.1")


class Command:
    """`python -m experiments.readouts`, or another command, in this process."""

    def __init__(self, folder: Path, images: int, **models: Architecture) -> None:
        self.folder = folder
        for name, architecture in (models or {"resnet": RESNET, "vit": VIT}).items():
            torch.save(random_clip(architecture, seed=1).state_dict(), folder / f"{name}.pt")
        for i, index in enumerate(TEST_INDICES[:images]):
            write_pair(folder / "nyu" / "official_splits" / "test" / ("bathroom", "kitchen")[i % 2], index)

    def __call__(self, *flags, weights=tuple(OF), out="out", store=True, main=readouts.main) -> tuple[int, int]:
        """The exit code, and how many images were encoded."""
        real, seen = MonoCLIP.trunk, []
        paths = [self.folder / name for name in weights]
        usual = ["--data_path", self.folder / "nyu", "--clip_path", *paths, "--device", "cpu", *QUICKGELU, *WORDS]
        usual += ["--output", self.folder / out, *(["--store", self.folder / "store"] if store else [])]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MonoCLIP, "trunk", lambda model, x: seen.append(len(x)) or real(model, x))
            patch.setattr(score, "SWEPT", 20)
            return main(list(map(str, [*usual, *flags]))), sum(seen)

    def rows(self) -> dict[str, dict]:
        return {Case(*(row[key] for key in Case.__annotations__)).name: row for row in self.json()["readouts"]}

    def json(self, name: str = "out/readouts.json") -> dict:
        return json.loads((self.folder / name).read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A comparison over ten images, each of which is a cluster. Tests leave it as it is."""
    command = Command(tmp_path_factory.mktemp("readouts"), 10)
    assert command() == (0, 10 * 2 * 2)  # images, backbones, statistics
    return command


def test_every_row_and_file_is_there(whole):
    rows, results, folder = whole.rows(), whole.json(), whole.folder / "out"
    names = {}
    for statistics, how in product(("imagenet", "clip"), ("0.1", "1", "linear probe")):
        names |= {f"{model}, {readout}, {statistics}, {how}": model for model in OF for readout in OF[model]}
    assert rows.keys() == names.keys()
    assert not any(row["released"] for row in rows.values())  # with these words
    assert {path.name for path in folder.iterdir()} == {*FILES.values()}
    assert results["warnings"] == [OTHER_IMAGES["NYU"], f"vit.pt: {INVERTED}"]
    assert ", over 10 clusters (runs of consecutive indices" in results["intervals"]
    for row in rows.values():
        assert [contrast["metric"] for contrast in row["less_uniform"]] == list(PRIMARY)
        assert {contrast["p"] is None for contrast in row["less_uniform"]} == {row["temperature"] is None}
    names["uniform weights"] = "uniform weights"
    lines = list(csv.DictReader((folder / "readouts.csv").read_text("utf-8").splitlines()))
    assert len(lines) == 10 * len(names)
    assert {line["reading"]: line["group"] for line in lines} == names
    table = (folder / "readouts.md").read_text()
    assert all(f"| {name} | " in table for name in names)
    assert "all n = 5 other assignments" in table


@pytest.mark.parametrize("name", CASES)
def test_a_row_is_what_other_commands_say_of_it(whole, name):
    backbone, readout, statistics, temperature = name.split(", ")
    row, probe = (whole.rows()[f"{backbone}, {readout}, {statistics}, {how}"] for how in (temperature, "linear probe"))
    flags = ["--readout", readout, "--image_statistics", statistics, "--temperature", temperature]
    assert whole(*flags, weights=(backbone,), out="eval", store=False, main=evaluation.main)[0] == 0
    evals = whole.json("eval/results.json")["rows"]
    for own, metrics in (("this run", row["metrics"]), ("uniform weights", whole.json()["uniform weights"])):
        assert evals[own]["metrics"] == pytest.approx({m: metrics[m] for m in NYU_METRICS}, abs=1e-5)
    flags += ["--no_paper", "--controls"]
    assert whole(*flags, weights=(backbone,), out="usual", main=experiments.main) == (0, 0)
    usual = whole.json("usual/results.json")
    for own, theirs in ((row, "this run"), (probe, "linear probe")):
        assert own["metrics"] == pytest.approx(usual["rows"][theirs]["metrics"], abs=2e-5)
    for ours, theirs in zip(row["less_uniform"], usual["question"]["primary"], strict=True):
        for key in ("difference", "interval_95", "wins", "images", "dz", "p"):
            assert ours[key] == pytest.approx(theirs[key], abs=1e-5, rel=1e-3), key


def test_only_the_papers_reading_by_rn50_is_the_released_setting():
    found, model = [], random_clip(RESNET)
    for name in IMAGE_STATISTICS:
        reading = with_statistics(PAPER, name)
        assert not any(case.released for case in cases_of("one", model, name, reading))
        found += cases_of("one", model, name, reading, rn50=True)
    assert [case.name for case in found if case.released] == ["one, raw, imagenet, 0.1"]


def test_patches_of_14_pixels_and_no_measured_patch(tmp_path):
    command = Command(tmp_path, 2, fourteen=replace(VIT, vision_patch_size=14))
    depth = np.pad(np.full((7, 7), 2000, np.uint16), ((100, 373), (100, 533)))
    for path in tmp_path.rglob("sync_depth_*.png"):
        save(path, depth)
    assert command(weights=("fourteen.pt",)) == (0, 4)
    assert len(command.rows()) == 12  # no probe, which had nothing to be fitted on
    resized = "fourteen.pt: images of 416x544 px are resized to 420x546, whole patches of 14 px"
    assert command.json()["warnings"] == [OTHER_IMAGES["NYU"], f"fourteen.pt: {INVERTED}", resized]
    assert command.json()["intervals"].startswith("No intervals")
    with np.load(next(tmp_path.glob("store/*/*.npz"))) as file:
        assert file["patches"].shape == (2, 64, 30, 39)


def test_what_cannot_be_compared_is_refused_before_any_encodes_and_activations_are_of_each(tmp_path, capsys):
    command, both = Command(tmp_path, 1), tuple(OF)
    for weights, flags, message in (
        (("a/x.pt", "b/x.pt"), (), "--clip_path: two checkpoints have one name; give each its own"),
        (("resnet.pt", "none.pt"), (), "none.pt: "),
        (both, ("--activation", "gelu", "gelu", "gelu"), "--activation: give one for all checkpoints, or one for each"),
        (both, ("--activation", "gelu", "auto"), "vit.pt: a state dict does not tell QuickGELU"),
    ):
        assert command(*flags, weights=weights) == (2, 0)
        last = capsys.readouterr().err.splitlines()[-1]
        assert last.startswith("experiments.readouts: ")
        assert message in last
    assert command("--activation", "gelu", "quickgelu") == (0, 2 * 2)
    made = command.json()["made_with"]
    assert [made[name]["activation"] for name in OF] == ["gelu", "quickgelu"]
    assert command("--activation", "quickgelu") == (0, 2)  # the first's features are others
