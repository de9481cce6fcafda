"""experiments: its command line, the rows and files that it leaves, and the feature store."""

import csv
import itertools
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections import namedtuple
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import eval as evaluation
import options
from calculate_error import NYU, NYU_CROP, NYU_METRICS, Protocol, compute_errors_NYU
from datasets.nyu import TEST_INDICES, open_nyu, training_depths
from experiments import __main__ as experiments
from experiments import settings
from experiments.features import FeatureStore
from monoclip import PAPER, MonoCLIP
from tests.conftest import (
    GOLDEN,
    METRICS,
    QUICKGELU,
    ROOT,
    SOFT,
    TEN_MINUTES,
    TINY,
    assert_same,
    random_clip,
    torchrun,
    write_pair,
)

PROMPT_2 = ("extremely close", "very close", "close", "a little close", "a little far", "far", "unseen")
BINS_3 = (1.00, 1.25, 1.50, 1.75, 2.00, 2.25, 2.50)
PAPER_ROWS = ["prompt 1", "prompt 2", "prompt 3", *(f"bins class-dependent {i}" for i in (1, 2, 3, 4))]
PAPER_ROWS += ["prompt 3, bins class-dependent 1"]
RANDOM = ["random, each pixel", "random, each patch", "random, each patch, mirror average"]
FILES = {"results.json", "per_image.csv", "tables.md"}
DRAWINGS = ("qualitative.png", "bin_response.png", "rows.png", "question.png", "certainty.png")


def one_constant(shares: torch.Tensor, protocol: Protocol = NYU) -> dict[str, np.ndarray]:
    """In place of `swept_constants`, whose sweep takes most of a small run's time."""
    return {name: np.ones((1, shares.shape[1])) for name in protocol.scored}


class Command:
    """`python -m experiments` in this process, on the tiny CLIP; `quick`: without what takes long for few images."""

    def __init__(self, data: Path, weights: Path, output: Path, quick: bool = True) -> None:
        self.data, self.weights, self.output, self.quick = data, weights, output, quick
        self.encoded: list[int] = []  # images of each call of `MonoCLIP.trunk`

    def arguments(self, *flags: object) -> list[str]:
        usual = ["--data_path", self.data, "--clip_path", self.weights, "--device", "cpu", "--output", self.output]
        return list(map(str, [*usual, *QUICKGELU, *SOFT, *flags]))

    def __call__(self, *flags: object) -> int:
        real = MonoCLIP.trunk
        self.encoded.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MonoCLIP, "trunk", lambda model, x: self.encoded.append(len(x)) or real(model, x))
            if self.quick:
                patch.setattr(experiments, "swept_constants", one_constant)
                patch.setattr(experiments, "sweep_of", lambda protocol: (2.0,))
            return experiments.main(self.arguments(*flags))

    def features(self) -> list[Path]:
        return sorted(self.output.glob("features/*/*.npz"))


@pytest.fixture
def run(tiny_checkpoint, nyu_folder, tmp_path):
    return Command(nyu_folder(5), tiny_checkpoint, tmp_path / "out")


def test_results_are_there_before_anything_is_printed(run, monkeypatch):
    monkeypatch.setattr(experiments.tables, "as_text", lambda table: Path("/no/terminal").read_text())
    assert run("--no_paper", "--limit", "1") == 1
    assert {path.name for path in run.output.iterdir()} == {*FILES, "features"}


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def metrics_of(folder: Path) -> dict[str, dict[str, float]]:
    return {row: values["metrics"] for row, values in results_of(folder)["rows"].items()}


# Everything at once


@pytest.fixture(scope="module")
def whole(tiny_checkpoint, tmp_path_factory):
    """A run with everything, of five images in two scenes, and the same images by eval.py. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("whole")
    for i, index in enumerate(TEST_INDICES[:5]):
        write_pair(folder / "nyu" / "official_splits" / "test" / ("bathroom", "kitchen")[i % 2], index)
    for index in (2, 3):
        write_pair(folder / "nyu" / "official_splits" / "train" / "den", index)
    own = [{"name": "=near|far_*<b>", "depth_classes": ["near", "far"], "bin_list": [1, 3], "temperature": 2}]
    own += [{"name": r"50 % & $x$ #1 {a}~^\b", "bin_list": [1, 1.5, 2, 2.5, 3, 3.5, 4], "temperature": 2}]
    (folder / "own.json").write_text(json.dumps(own))
    command = Command(folder / "nyu", tiny_checkpoint, folder / "out", quick=False)
    flags = ("--controls", "--figures", "--html", "3", "--readings", folder / "own.json", "--batch_size", "2")
    assert command(*flags) == 0
    assert command.encoded == [2, 2, 1]  # each image once
    assert evaluation.main([*command.arguments(), "--output", str(folder / "eval"), "--batch_size", "2"]) == 0
    return command, folder


def test_rows_are_the_papers_and_the_controls(whole):
    command, _ = whole
    rows = metrics_of(command.output)
    expected = ["this run", "=near|far_*<b>", r"50 % & $x$ #1 {a}~^\b", "the paper's words and bins", *PAPER_ROWS]
    expected += ["colour words", "unrelated words", "mean training depth image"]
    expected += ["uniform weights", *(f"uniform weights, {mean} m" for mean in ("1.75", "2", "2.5", "3.14286"))]
    expected += [f"best constant {which}" for which in ("for each metric", "of the other clusters")]
    expected += ["best constant of the training split", *(f"random channels, unsorted {i}" for i in range(5))]
    expected += [f"{kind}, seed 0" for kind in RANDOM]
    assert sorted(rows) == sorted(expected)
    assert all(set(metrics) == set(METRICS) for metrics in rows.values())


def test_the_training_split_gives_an_image_and_constants(whole):
    command, _ = whole
    rows, results = metrics_of(command.output), results_of(command.output)
    dataset = open_nyu(command.data, PAPER.normalised)
    depths = torch.cat(list(training_depths(command.data)))[:, *NYU_CROP]  # (2, 416, 544)
    count = (depths > 0).sum(0)
    image = torch.where(count > 0, depths.sum(0) / count.clamp(min=1), depths.sum() / count.sum())
    best = torch.full_like(image, results["best_constants"]["of the training split"]["rmse"])
    for row, pred, metrics in (
        ("mean training depth image", image, NYU_METRICS),
        ("best constant of the training split", best, ("rmse",)),
    ):
        found = [compute_errors_NYU(dataset.depth(i)[None], pred[None, None]) for i in range(5)]
        for metric in metrics:
            assert rows[row][metric] == pytest.approx(np.mean([each[metric] for each in found]), abs=1e-5)
        contrasts = [c for c in results["question"]["exploratory"] if c["minus"] == row]
        assert [(c["row"], c["metric"]) for c in contrasts] == [("this run", "delta1"), ("this run", "abs_rel")]
        for c in contrasts:
            assert c["difference"] == pytest.approx(rows["this run"][c["metric"]] - rows[row][c["metric"]], abs=1e-9)


def test_the_question_is_answered_from_the_rows_and_the_assignments(whole):
    command, _ = whole
    results, rows = results_of(command.output), metrics_of(command.output)
    assert (results["schema"], results["protocol"]) == (options.SCHEMA, NYU.about)
    assert re.fullmatch("unknown|[0-9a-f]{40}(-dirty)?", results["commit"])
    assert results["intervals"].startswith(
        "No intervals: fewer than 10 clusters (5: runs of consecutive indices of one room type)"
    )
    assert (results["question"]["other_assignments"], results["question"]["all_assignments"]) == (5039, True)
    for contrast in results["question"]["primary"]:
        metric = contrast["metric"]
        assert contrast["difference"] == pytest.approx(rows["this run"][metric] - rows["uniform weights"][metric])
        assert 1 <= contrast["p"] * 5040 <= 5040
        assert contrast["p"] * 5040 == pytest.approx(round(contrast["p"] * 5040))
        assert contrast["interval_95"] is None


def test_an_image_without_a_measured_patch_is_not_among_the_assignments(run, monkeypatch):
    monkeypatch.setattr(settings, "CHANNEL_SUBSETS", 1)
    depth = np.zeros((480, 640), dtype=np.uint16)
    depth[100:110, 100:110] = 2000  # an image has metrics, but none of its patches
    Image.fromarray(depth).save(next(run.data.rglob("sync_depth_*.png")))
    assert run("--controls", "--no_paper", "--figures", "--limit", "2") == 0
    primary = results_of(run.output)["question"]["primary"]
    assert [0 < contrast["p"] <= 1 for contrast in primary] == [True, True]
    assert all(map(np.isfinite, results_of(run.output)["certainty"]["most_certain_abs_rel"]))
    for path in run.data.rglob("sync_depth_*.png"):
        Image.fromarray(depth).save(path)
    assert run("--no_paper", "--figures", "--limit", "2") == 0
    assert results_of(run.output)["certainty"]["most_certain_abs_rel"] is None
    assert not (run.output / "certainty.png").exists()


def test_this_run_and_uniform_weights_are_those_of_eval(whole):
    command, folder = whole
    ours, evals = metrics_of(command.output), metrics_of(folder / "eval")
    for row in ("this run", "uniform weights"):
        assert {name: ours[row][name] for name in NYU_METRICS} == pytest.approx(evals[row], abs=1e-5)  # pixels of delta
    assert ours["this run"]["rmse"] != ours["the paper's words and bins"]["rmse"]  # the temperature is another


def test_the_csv_holds_what_the_means_are_of(whole):
    command, _ = whole
    with (command.output / "per_image.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    rows, scenes = metrics_of(command.output), results_of(command.output)["scenes"]
    assert len(lines) == 5 * len(rows)
    assert "'=near|far_*<b>" in {line["reading"] for line in lines}
    clusters = {f"{('bathroom', 'kitchen')[i % 2]} from {index}" for i, index in enumerate(TEST_INDICES[:5])}
    assert {line["cluster"] for line in lines} == clusters
    for row in ("this run", "prompt 2"):
        for scene, mean in ((None, rows[row]), ("bathroom", scenes["bathroom"][row]["metrics"])):
            own = [line for line in lines if line["reading"] == row and scene in (None, line["scene"])]
            assert len(own) == (5 if scene is None else 3)
            expected = {name: np.mean([float(line[name]) for line in own]) for name in METRICS}
            assert mean == pytest.approx(expected, abs=1e-9)


def test_the_curve_of_certainty_is_that_of_this_run(whole):
    command, _ = whole
    curve = results_of(command.output)["certainty"]["most_certain_abs_rel"]
    assert len(curve) == 20
    aurg = metrics_of(command.output)["this run"]["aurg"]
    assert curve[-1] - np.mean(curve) == pytest.approx(aurg, abs=1e-9)
    assert abs(aurg) > 1e-4
    assert metrics_of(command.output)["uniform weights"]["aurg"] == 0


def test_tables_hold_names_that_their_readers_would_take_for_code(whole):
    command, _ = whole
    markdown = (command.output / "tables.md").read_text()
    assert markdown.startswith("# MonoCLIP on 5 images in the layout of NYU Depth V2\n")
    assert "DORN" not in markdown  # nothing is ranked over other images than the paper's
    assert "they do not compare with these. Of these, only bathroom: 3 images. A scene" in markdown
    assert r"| =near\|far\_\*&lt;b> | ours |" in markdown


def test_pictures_and_page_are_there(whole):
    command, _ = whole
    assert {path.name for path in command.output.iterdir()} == {
        *FILES,
        *DRAWINGS,
        "depth.html",
        "features",
    }
    for name in DRAWINGS:
        with Image.open(command.output / name) as image:
            assert min(image.size) > 300
            assert image.convert("L").getextrema()[0] < 100
    page = (command.output / "depth.html").read_text()
    assert '"paper, DepthCLIP"' not in page  # over other images
    assert page.count('"similarity":') == 3
    assert "3 of the run's 5 pictures" in page


def test_rows_equal_the_released_evaluation(nyu_mini, seed0, tmp_path):
    torch.save(seed0, tmp_path / "seed0.pt")
    own = [{"name": "mine", "depth_classes": PROMPT_2, "bin_list": BINS_3}]
    (tmp_path / "own.json").write_text(json.dumps(own))
    flags = ["--data_path", nyu_mini, "--clip_path", tmp_path / "seed0.pt", "--device", "cpu", "--output", tmp_path]
    assert experiments.main([*map(str, flags), *QUICKGELU, "--readings", str(tmp_path / "own.json")]) == 0
    for row, file in (("this run", "nyu_mini_expected.json"), ("mine", "nyu_mini_expected_prompt2_bins3.json")):
        released, ours = json.loads((GOLDEN / file).read_text())["mean"], metrics_of(tmp_path)[row]
        for name in NYU_METRICS:
            assert ours[name] == pytest.approx(released[name.replace("delta", "a")], abs=1e-4)


# The store


def test_what_is_stored_is_not_encoded_again(run, tmp_path):
    assert run() == 0
    assert run.encoded == [4, 1]
    first = metrics_of(run.output)
    assert run("--batch_size", "1") == 0
    assert run.encoded == []
    for row, metrics in metrics_of(run.output).items():
        assert metrics == pytest.approx(first[row], abs=1e-5), row
    assert run("--depth_classes", "near", "far", "--bin_list", "1", "3", "--controls") == 0
    assert run.encoded == []
    assert metrics_of(run.output)["this run"] != first["this run"]
    assert len(list((run.output / "features").iterdir())) == 1
    write_pair(run.data / "official_splits" / "test" / "bathroom", 0, seed=77)
    assert run() == 0
    assert run.encoded == [1]  # another picture under the same name
    torch.save(random_clip(TINY, seed=7).state_dict(), tmp_path / "other.pt")
    for i, flags in enumerate((("--exact",), ("--clip_path", tmp_path / "other.pt")), 2):
        assert run(*flags) == 0
        assert sum(run.encoded) == 5
        assert len(list((run.output / "features").iterdir())) == i


def test_a_vision_transformers_trunk_is_stored_whole_for_each_statistics(nyu_folder, tmp_path):
    clip_model = random_clip(
        replace(TINY, vision_layers=2, vision_width=64, vision_patch_size=14, image_resolution=224)
    )
    folders, data = [], nyu_folder(2)
    for statistics_name in options.IMAGE_STATISTICS:
        reading = options.with_statistics(replace(PAPER, readout="raw"), statistics_name)
        model, dataset = MonoCLIP(clip_model, reading), open_nyu(data, reading.normalised)
        store = FeatureStore(tmp_path / "store", model, dataset, {})
        folders.append(store.folder)
        store.fill([0, 1], 2, 1, True)
        for item in (0, 1):
            with torch.inference_mode():
                expected = model.trunk(dataset[item][0][None])
            assert expected.patches.shape == (2, 64, 30, 39)
            for own, stored in zip(expected, store.get(item), strict=True):
                torch.testing.assert_close(stored, own, atol=1e-5, rtol=0)
        other = MonoCLIP(clip_model, replace(reading, readout="maskclip"))
        assert FeatureStore(tmp_path / "store", other, dataset, {}).missing([0, 1]) == []  # read-outs share a file
    assert len(set(folders)) == 2


def test_damaged_features_are_computed_again_and_said(run, capsys):
    assert run() == 0
    before = metrics_of(run.output)
    flipped, zeroed, cut, empty, pipe = run.features()
    content = bytearray(flipped.read_bytes())
    content[len(content) // 2] ^= 1
    flipped.write_bytes(content)
    content = zeroed.read_bytes()
    zeroed.write_bytes(content[:4096] + bytes(4096) + content[2 * 4096 :])
    cut.write_bytes(cut.read_bytes()[:-1000])
    empty.write_bytes(b"")
    pipe.unlink()
    os.mkfifo(pipe)
    capsys.readouterr()
    assert run() == 0
    assert sum(run.encoded) == 5
    err = capsys.readouterr().err
    assert all(f"{path}: damaged (" in err for path in (flipped, zeroed, cut, empty))
    assert_same(metrics_of(run.output), before)
    assert run() == 0
    assert run.encoded == []


def test_no_damaged_byte_gives_other_features(tiny_clip, nyu_folder, tmp_path, capsys):
    dataset = open_nyu(nyu_folder(1), PAPER.normalised)
    store = FeatureStore(tmp_path / "store", MonoCLIP(tiny_clip), dataset, {})
    trunk = store.get(0)
    path, content = store.paths[0], store.paths[0].read_bytes()
    places = [*range(200), *range(len(content) - 120, len(content)), 1000, len(content) // 2]
    for place, change in itertools.product(places, (1, 6, 8, 58, 255)):
        path.write_bytes(content[:place] + bytes([content[place] ^ change]) + content[place + 1 :])
        found = store.read(0)
        assert found is None or all(map(torch.equal, found, trunk)), (place, change)


def test_a_killed_run_goes_on_with_the_same_command(run, tmp_path):
    code = (
        "import os, sys; from experiments import __main__ as experiments, features\n"
        "def write(path, write_file, real=features.write_whole, paths=[]):\n"
        "    paths.append(path)\n"
        "    real(path, write_file if len(paths) < 4 else stop)\n"  # the third after the store's description
        "def stop(file): file.write(b'half'); file.flush(); os.write(1, b'half a file\\n'); sys.stdin.read()\n"
        "features.write_whole = write\n"
        "sys.exit(experiments.main())"
    )
    command = [sys.executable, "-c", code, *run.arguments("--batch_size", "1")]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert b"half a file\n" in process.stdout
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert len(run.features()) == (stored := 2)
    assert [path.read_bytes() for path in run.output.rglob("*.part")] == [b"half"]
    assert not (run.output / "results.json").exists()
    assert run("--batch_size", "1") == 0
    assert len(run.encoded) == 5 - stored
    after = metrics_of(run.output)
    assert run("--batch_size", "1", "--output", tmp_path / "uninterrupted") == 0
    assert_same(after, metrics_of(tmp_path / "uninterrupted"))


def test_several_at_once_share_a_store(run, tmp_path):
    """Two runs at the same time, and then one of two processes, of which each encodes what is its own."""
    command = [sys.executable, "-m", "experiments", *run.arguments("--store", tmp_path / "store", "--batch_size", "1")]
    processes = [
        subprocess.Popen([*command, "--output", str(tmp_path / name)], cwd=ROOT, stdout=subprocess.DEVNULL)
        for name in ("one", "two")
    ]
    try:
        assert [process.wait(TEN_MINUTES) for process in processes] == [0, 0]
    finally:
        for process in processes:
            process.kill()
    assert_same(metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two"))
    flags = run.arguments("--batch_size", "1", "--output", tmp_path / "three")
    done = torchrun(2, "-m", "experiments", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\nThis run\n") == 1
    assert_same(metrics_of(tmp_path / "three"), metrics_of(tmp_path / "one"))


def test_too_small_a_disk_is_said_before_the_first_image(run, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    assert run() == 1
    err = capsys.readouterr().err
    assert re.fullmatch(r"experiments: .*features/\w+: the features need .* MB are free; make room.*\n", err)
    assert run.encoded == []
    monkeypatch.undo()
    assert run() == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 0))
    assert run() == 0  # nothing is missing


# What it refuses


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "no JSON"),
        ("[1]", "expected a list of objects"),
        ('[{"name": "a\\nb"}]', "entry 1: needs a printable"),
        ('[{"name": "x"}, {"name": "x"}]', "entry 2"),
        ('[{"name": "x", "bins": [1]}]', "'x': unknown field bins"),
        ('[{"name": "x", "bin_list": [1, 2]}]', "'x': 7 depth classes and 2 bins"),
        ('[{"name": "prompt 1"}]', "'prompt 1' is the name of another row; choose another name"),
        ('[{"name": "best constant of the training split"}]', "split' is the name of another row"),
        ('[{"name": "random channels, unsorted 3"}]', "unsorted 3' is the name of another row; choose another name"),
    ],
)
def test_a_readings_file_is_refused_in_one_sentence(run, tmp_path, capsys, text, message):
    (tmp_path / "own.json").write_text(text)
    assert run("--readings", tmp_path / "own.json", "--controls") == 2
    err = capsys.readouterr().err
    assert f"{tmp_path / 'own.json'}" in err
    assert message in err
    assert err.count("\n") == 1
    assert not run.output.exists()


def test_features_that_are_not_finite_name_the_image_and_keep_earlier_results(run, monkeypatch, capsys):
    assert run("--limit", "2") == 0
    before = {name: (run.output / name).read_bytes() for name in FILES}
    for path in run.features():
        trunk = dict(np.load(path))
        trunk["patches"][0, 0, 0, 0] = float("nan")
        np.savez(path, **trunk)
    assert run("--limit", "2") == 1
    assert re.search(r"bathroom/rgb_000\d\d\.jpg: [\d,]+ of [\d,]+ predicted depths", capsys.readouterr().err)
    assert {name: (run.output / name).read_bytes() for name in FILES} == before


def test_scoring_does_not_depend_on_the_number_of_threads(run, tmp_path):
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert run("--store", tmp_path / "store", "--limit", "2", "--output", tmp_path / str(count)) == 0
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert_same(metrics_of(tmp_path / "1"), metrics_of(tmp_path / "2"))
