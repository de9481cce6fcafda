"""experiments.readouts: each row is what eval.py, a run of the experiments and a direct computation say of it."""

import csv
import itertools
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import clip
import eval as evaluation
import options
from calculate_error import NYU, NYU_CROP, NYU_METRICS
from datasets.nyu import TEST_INDICES, open_nyu
from experiments import __main__ as experiments
from experiments import readouts
from experiments.readouts import FILES, RELEASED, cases_of, readout_table
from experiments.statistics import COUNTS, PRIMARY, Contrast, Images, Results
from monoclip import PAPER, MonoCLIP, logits_of
from tests.conftest import METRICS, QUICKGELU, TINY, random_clip, write_pair
from tests.test_calculate_error import naive_metrics

RESNET = replace(TINY, image_resolution=224)
VIT = replace(RESNET, vision_layers=2, vision_width=64, vision_patch_size=32)
BINS = (1.0, 2.0, 4.0)
WORDS = ("--depth_classes", "near", "far", "unseen", "--bin_list", *BINS)
OF = {"resnet.pt": ("raw", "maskclip", "attnpool", "clearclip")}
OF["vit.pt"] = tuple(name for name in OF["resnet.pt"] if name != "attnpool")


class Command:
    """`python -m experiments.readouts`, or another command, in this process; counts the images that it encodes."""

    def __init__(self, folder: Path, images: int) -> None:
        self.folder, self.encoded = folder, 0
        for i, index in enumerate(TEST_INDICES[:images]):
            write_pair(folder / "nyu" / "official_splits" / "test" / ("bathroom", "kitchen")[i % 2], index)

    def arguments(self, *flags: object, weights: tuple[str, ...] = ("resnet.pt", "vit.pt")) -> list[str]:
        paths = [self.folder / name for name in weights]
        usual = ["--data_path", self.folder / "nyu", "--clip_path", *paths, "--device", "cpu", *QUICKGELU, *WORDS]
        return list(map(str, [*usual, *flags]))

    def __call__(
        self,
        *flags: object,
        weights: tuple[str, ...] = ("resnet.pt", "vit.pt"),
        out: str = "out",
        main: Callable[[list[str]], int] = readouts.main,
    ) -> int:
        real, self.encoded = MonoCLIP.trunk, 0

        def counted(model: MonoCLIP, image: torch.Tensor) -> object:
            self.encoded += len(image)
            return real(model, image)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MonoCLIP, "trunk", counted)
            patch.setattr(experiments, "sweep_of", lambda protocol: (2.0,))
            ones = lambda s, protocol=None: {m: np.ones((1, s.shape[1])) for m in NYU_METRICS}  # noqa: E731
            patch.setattr(experiments, "swept_constants", ones)
            output = ("--output", self.folder / out, "--store", self.folder / "store")
            return main(self.arguments(*output, *flags, weights=weights))

    def rows(self) -> dict[str, dict]:
        found = self.json()["readouts"]
        names = [f"{r['backbone']}, {r['readout']}, {r['statistics']}, {r['temperature']:g}" for r in found]
        return dict(zip(names, found, strict=True))

    def json(self, out: str = "out", name: str = "readouts.json") -> dict:
        return json.loads((self.folder / out / name).read_text())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A comparison over ten images, each of which is a cluster. Tests leave it as it is."""
    command = Command(tmp_path_factory.mktemp("readouts"), 10)
    for name, architecture in (("resnet.pt", RESNET), ("vit.pt", VIT)):
        torch.save(random_clip(architecture, seed=1).state_dict(), command.folder / name)
    assert command() == 0
    assert command.encoded == 10 * 2 * 2  # images, backbones, statistics
    return command


def test_every_row_and_file_is_there(whole):
    rows, results = whole.rows(), whole.json()
    combinations = [
        f"{backbone}, {readout}, {statistics}, {temperature}"
        for backbone in ("resnet.pt", "vit.pt")
        for statistics in ("imagenet", "clip")
        for readout in OF[backbone]
        for temperature in ("0.1", "1")
    ]
    assert list(rows) == combinations
    assert not any(row["released"] for row in rows.values())  # with these words
    assert {path.name for path in (whole.folder / "out").iterdir()} == {*FILES.values()}
    assert len(list((whole.folder / "store").iterdir())) == 4
    warnings = [NYU.whole_split, f"vit.pt: {options.INVERTED}"]
    assert (results["images"], results["schema"], results["warnings"]) == (10, options.SCHEMA, warnings)
    assert results["made_with"]["vit.pt"]["activation"] == "quickgelu"
    assert ", over 10 clusters (runs of consecutive indices" in results["intervals"]
    with (whole.folder / "out" / "readouts.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 10 * (len(rows) + 1)
    for name in (*rows, "uniform weights"):
        metrics = rows[name]["metrics"] if name in rows else results["uniform weights"]
        for metric in METRICS:
            of_images = [float(line[metric]) for line in lines if line["reading"] == name and line[metric]]
            assert metrics[metric] == (pytest.approx(np.mean(of_images), abs=1e-9) if of_images else None)
    assert results["uniform weights"]["spearman"] is None
    for row in rows.values():
        assert [contrast["metric"] for contrast in row["less_uniform"]] == list(PRIMARY)
        for contrast in row["less_uniform"]:
            less = row["metrics"][contrast["metric"]] - results["uniform weights"][contrast["metric"]]
            assert contrast["difference"] == pytest.approx(less, abs=1e-9)
            low, high = contrast["interval_95"]
            assert low < contrast["difference"] < high
    table = (whole.folder / "out" / "readouts.md").read_text()
    assert all(f"| {name} | " in table for name in (*rows, "uniform weights"))
    assert "all n = 5 other assignments" in table
    with Image.open(whole.folder / "out" / "readouts.png") as picture:
        assert min(picture.size) > 700
        assert picture.convert("L").getextrema()[0] < 100


@pytest.mark.parametrize(
    ("backbone", "readout", "image_statistics", "temperature"),
    [
        ("resnet.pt", "raw", "imagenet", 0.1),
        ("resnet.pt", "attnpool", "clip", 1),
        ("resnet.pt", "maskclip", "clip", 0.1),
        ("vit.pt", "raw", "clip", 1),
        ("vit.pt", "clearclip", "imagenet", 0.1),
    ],
)
def test_a_row_is_what_other_commands_say_of_it(whole, backbone, readout, image_statistics, temperature):
    row = whole.rows()[f"{backbone}, {readout}, {image_statistics}, {temperature:g}"]
    flags = ["--readout", readout, "--image_statistics", image_statistics, "--temperature", temperature]
    weights = (backbone,)
    assert evaluation.main(whole.arguments(*flags, "--output", whole.folder / "eval", weights=weights)) == 0
    evals = whole.json("eval", "results.json")
    for name, metrics in (("this run", row["metrics"]), ("uniform weights", whole.json()["uniform weights"])):
        assert evals["rows"][name]["metrics"] == pytest.approx({m: metrics[m] for m in NYU_METRICS}, abs=1e-5)
    assert whole(*flags, "--no_paper", "--controls", weights=weights, out="usual", main=experiments.main) == 0
    assert whole.encoded == 0
    usual = whole.json("usual", "results.json")
    assert usual["rows"]["this run"]["metrics"] == pytest.approx(row["metrics"], abs=2e-5)
    for ours, theirs in zip(row["less_uniform"], usual["question"]["primary"], strict=True):
        for key in ("difference", "interval_95", "wins", "dz", "p"):
            assert ours[key] == pytest.approx(theirs[key], abs=1e-5, rel=1e-3), key


def test_p_is_that_of_a_direct_computation(whole):
    reading = options.with_statistics(replace(PAPER, temperature=1, readout="maskclip"), "clip")
    reading = replace(reading, depth_classes=("near", "far", "unseen"), bin_list=BINS)
    dataset = open_nyu(whole.folder / "nyu", reading.normalised)
    model = MonoCLIP(clip.load(whole.folder / "vit.pt", "cpu", activation="quickgelu")[0], reading)
    found: dict[tuple[float, ...], list[list[float]]] = {bins: [] for bins in itertools.permutations(BINS)}
    for i in range(10):
        image, truth = dataset[i][0][None], dataset.depth(i)[0][NYU_CROP].numpy()
        with torch.inference_mode():
            both = logits_of(model.features(model.trunk(image)), model.text_features, reading).softmax(1).double()
        weights = ((both[0] + both[1].flip(-1)) / 2).numpy()
        tiles = truth.reshape(13, 32, 17, 32).swapaxes(1, 2).reshape(221, -1)
        counted = (tiles > 1e-3) & (tiles < 10)
        counted.reshape(13, 17, 32, 32)[12, :, 30:] = counted.reshape(13, 17, 32, 32)[:, 16, :, 29:] = False
        for bins, metrics in found.items():
            depth = np.tensordot(weights, bins, (0, 0)).ravel()
            kept = [k for k in range(221) if 2 * counted[k].sum() >= 1024]
            means = np.array([tiles[k][counted[k]].astype(float).mean() for k in kept])
            of_image = naive_metrics(means, depth[kept], 10)
            metrics.append([of_image["delta1"], of_image["abs_rel"]])
    means = {bins: np.mean(metrics, axis=0) for bins, metrics in found.items()}
    own = means.pop(BINS)
    for place, sign in enumerate((1, -1)):
        as_good = sum(sign * other[place] >= sign * own[place] - 1e-5 for other in means.values())
        contrast = whole.rows()["vit.pt, maskclip, clip, 1"]["less_uniform"][place]
        assert contrast["p"] == pytest.approx((1 + as_good) / 6)


def test_a_second_run_encodes_nothing_and_says_the_same(whole, capsys):
    assert whole(out="again") == 0
    assert whole.encoded == 0
    first, again = whole.json(), whole.json("again")
    assert first.pop("seconds") >= 0
    assert again.pop("seconds") >= 0
    assert again == first
    out = capsys.readouterr().out
    assert "Read-outs and backbones" in out
    assert RELEASED not in out


def test_only_the_papers_reading_by_rn50_is_the_released_setting():
    found, model = [], random_clip(RESNET)
    for name in options.IMAGE_STATISTICS:
        reading = options.with_statistics(PAPER, name)
        assert not any(case.released for case in cases_of("one", model, name, reading))
        found += cases_of("one", model, name, reading, rn50=True)
    assert [case.name for case in found if case.released] == ["one, raw, imagenet, 0.1"]
    contrast = Contrast("", "", "delta1", 0.1, None, 1, None)
    values = {metric: np.ones(1) for metric in (*METRICS, *COUNTS)}
    rows = {case.name: "uniform weights" for case in found}
    errors = [{metric: np.ones(len(rows) + 1) for metric in values}]
    results = Results(Images(["a"], ["b"], ["c"], [0]), [*rows, "uniform weights"], errors, rows)
    table = readout_table({case: [contrast, contrast] for case in found}, results, "p: a note.")
    assert [line.name for line in table.lines if line.kind == RELEASED] == ["one, raw, imagenet, 0.1"]


def test_patches_of_14_pixels_are_said_to_see_resized_images(tmp_path):
    command = Command(tmp_path, 1)
    torch.save(random_clip(replace(VIT, vision_patch_size=14), seed=1).state_dict(), tmp_path / "14.pt")
    assert command(weights=("14.pt",)) == 0
    assert len(command.rows()) == 12
    resized = "14.pt: images of 416x544 px are resized to 420x546, whole patches of 14 px"
    assert command.json()["warnings"] == [NYU.whole_split, f"14.pt: {options.INVERTED}", resized]
    assert resized in (tmp_path / "out" / "readouts.md").read_text()
    assert command.json()["intervals"].startswith("No intervals")
    with np.load(next(tmp_path.glob("store/*/*.npz"))) as file:
        assert file["patches"].shape == (2, 64, 30, 39)


@pytest.mark.parametrize("flag", ["readout", "image_statistics", "temperature", "controls", "figures", "html"])
def test_what_differs_between_rows_is_no_flag(tmp_path, capsys, flag):
    with pytest.raises(SystemExit, match="2"):
        Command(tmp_path, 1)(f"--{flag}")
    assert "unrecognized arguments" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        (("a/x.pt", "b/x.pt"), "--clip_path: two checkpoints have one name; give each its own"),
        (("a.pt",), "a.pt: "),
    ],
)
def test_checkpoints_that_cannot_be_compared_are_refused(tmp_path, no_model, capsys, weights, message):
    assert Command(tmp_path, 1)(weights=weights) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("experiments.readouts: ")
    assert message in last


def test_activations_are_of_each_checkpoint_and_none_fails_late(tmp_path, capsys):
    command = Command(tmp_path, 1)
    for name in ("resnet.pt", "vit.pt"):
        torch.save(random_clip(RESNET if name == "resnet.pt" else VIT).state_dict(), tmp_path / name)
    assert command("--activation", "gelu", "quickgelu", "gelu") == 2
    assert "--activation: give one for all checkpoints, or one for each" in capsys.readouterr().err
    assert command("--activation", "gelu", "auto") == 2
    assert "vit.pt: a state dict does not tell QuickGELU from GELU" in capsys.readouterr().err
    assert command.encoded == 0, "the second checkpoint is looked at before the first one encodes"
    assert command("--activation", "gelu", "quickgelu") == 0
    assert command.encoded == 2 * 2
    made = command.json()["made_with"]
    assert [made[name]["activation"] for name in ("resnet.pt", "vit.pt")] == ["gelu", "quickgelu"]
    assert command("--activation", "quickgelu") == 0
    assert command.encoded == 2, "another activation is another folder, so that the first one encodes again"
