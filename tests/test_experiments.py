"""experiments: its command line, the rows and files that it leaves, and the feature store."""

import csv
import itertools
import json
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from calculate_error import NYU, NYU_METRICS, compute_errors_per_image
from datasets.nyu import TEST_INDICES, open_nyu
from experiments import __main__ as experiments
from experiments import score, tables
from experiments.features import FeatureStore
from experiments.published import BIN_SETS, PROMPT_SETS, RUNGS
from experiments.score import RANDOM_ROWS
from monoclip import MonoCLIP
from tests.conftest import GOLDEN, METRICS, QUICKGELU, SOFT, TINY, assert_same, random_clip, torchrun, write_pair
from viewer.notes import ABOUT, SCHEMA

FILES = {"results.json", "per_image.csv", "tables.md"}
DRAWINGS = ("qualitative.png", "bin_response.png", "ladder.png", "question.png", "certainty.png")


class Command:
    """`python -m experiments` in this process, on the tiny CLIP, with fewer constants than take most of the time."""

    def __init__(self, data: Path, weights: Path, output: Path) -> None:
        self.data, self.output = data, output
        usual = ["--data_path", data, "--clip_path", weights, "--device", "cpu", "--output", output]
        self.usual = [*map(str, usual), *QUICKGELU, *SOFT]
        self.encoded: list[int] = []  # images of each call of `MonoCLIP.trunk`

    def __call__(self, *flags: object) -> int:
        real = MonoCLIP.trunk
        self.encoded.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MonoCLIP, "trunk", lambda model, x: self.encoded.append(len(x)) or real(model, x))
            patch.setattr(score, "SWEPT", 20)
            return experiments.main([*self.usual, *map(str, flags)])

    def features(self) -> list[Path]:
        return sorted(self.output.glob("features/*/*.npz"))


@pytest.fixture
def run(tiny_checkpoint, nyu_folder, tmp_path):
    return Command(nyu_folder(5), tiny_checkpoint, tmp_path / "out")


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def metrics_of(folder: Path) -> dict[str, dict[str, float]]:
    return {row: values["metrics"] for row, values in results_of(folder)["rows"].items()}


# Everything at once


@pytest.fixture(scope="module")
def whole(tiny_checkpoint, tmp_path_factory):
    """A run with everything, of five images in two scenes. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("whole")
    for i, index in enumerate(TEST_INDICES[:5]):
        write_pair(folder / "nyu" / "official_splits" / "test" / ("bathroom", "kitchen")[i % 2], index)
    own = [{"name": "=near|far_*<b>", "depth_classes": ["near", "far"], "bin_list": [1, 3], "temperature": 2}]
    own += [{"name": r"50 % & $x$ #1 {a}~^\b", "bin_list": [1, 1.5, 2, 2.5, 3, 3.5, 4], "temperature": 2}]
    (folder / "own.json").write_text(json.dumps(own))
    command = Command(folder / "nyu", tiny_checkpoint, folder / "out")
    flags = ("--controls", "--figures", "--html", "3", "--readings", folder / "own.json", "--batch_size", "2")
    assert command(*flags) == 0
    assert command.encoded == [2, 2, 1]  # each image once
    return command


def test_rows_are_the_papers_and_the_controls(whole):
    rows, results = metrics_of(whole.output), results_of(whole.output)
    readings = results["readings"].keys()  # this run, two of one's own, the paper's nine, 18 controls
    assert len(readings) == 1 + 2 + 9 + 18
    uniform = {f"uniform weights, {mean} m" for mean in (1.75, 2, 2.5, 3.14286)}
    assert rows.keys() == {*readings, *RANDOM_ROWS, *RUNGS, *uniform}
    assert all(set(metrics) == set(METRICS) for metrics in rows.values())
    assert (results["schema"], results["protocol"]) == (SCHEMA, ABOUT["NYU"])
    why = "No intervals: fewer than 10 clusters (5: runs of consecutive indices of one room type)."
    assert results["intervals"] == why
    question = results["question"]
    assert (question["other_assignments"], question["all_assignments"]) == (5039, True)
    assert all(1 <= round(contrast["p"] * 5040, 6) <= 5040 for contrast in question["primary"])


def test_the_best_constant_is_that_of_the_other_images(whole):
    dataset, rows = open_nyu(whole.data, NYU), metrics_of(whole.output)
    constants = torch.tensor([k * 0.5 + 0.0011 for k in range(20)]).view(1, -1, 1, 1).expand(1, -1, 416, 544)
    each = [compute_errors_per_image([dataset.depth(i)], constants, NYU) for i in range(5)]
    for metric in NYU_METRICS:
        values = torch.cat([one[metric] for one in each])  # (5, 20)
        means = (values.sum(0) - values) / 4  # of the other images
        best = means.argmax(1) if metric.startswith("delta") else means.argmin(1)
        expected = values[torch.arange(5), best].mean().item()
        assert rows["best constant"][metric] == pytest.approx(expected, abs=2e-5), metric


def test_files_hold_what_the_means_are_of(whole):
    output, rows = whole.output, metrics_of(whole.output)
    with (output / "per_image.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 5 * len(rows)
    clusters = {f"{('bathroom', 'kitchen')[i % 2]} from {index}" for i, index in enumerate(TEST_INDICES[:5])}
    assert {line["cluster"] for line in lines} == clusters
    own = [line for line in lines if line["reading"] == "prompt 2"]
    assert rows["prompt 2"] == pytest.approx({m: np.mean([float(line[m]) for line in own]) for m in METRICS}, abs=1e-9)
    curve = results_of(output)["certainty"]["most_certain_abs_rel"]
    assert curve[-1] - np.mean(curve) == pytest.approx(rows["this run"]["aurg"], abs=1e-9)
    markdown = (output / "tables.md").read_text()
    assert markdown.startswith("# MonoCLIP on 5 images of nyu\n")
    assert "DORN" not in markdown  # nothing is ranked over other images than the paper's
    assert r"| =near\|far\_\*&lt;b> | ours |" in markdown
    assert {path.name for path in output.iterdir()} == {*FILES, *DRAWINGS, "depth.html", "features"}
    page = (output / "depth.html").read_text()
    assert '"paper, DepthCLIP"' not in page  # over other images
    assert page.count('"similarity":') == 3
    assert "3 of the run's 5 pictures" in page


def test_what_cannot_be_printed_is_written_and_what_was_drawn_before_is_gone(run, monkeypatch):
    run.output.mkdir()
    (run.output / "ladder.png").write_bytes(b"of another run")
    monkeypatch.setattr(tables, "as_text", lambda *_: Path("/no/terminal").read_text())
    assert run("--no_paper", "--limit", "1") == 1
    assert {path.name for path in run.output.iterdir()} == {*FILES, "features"}


def test_rows_equal_the_released_evaluation(nyu_mini, seed0, tmp_path):
    torch.save(seed0, tmp_path / "seed0.pt")
    words, bins = PROMPT_SETS["prompt 2"].depth_classes, BIN_SETS["class-dependent 3"].bin_list
    (tmp_path / "own.json").write_text(json.dumps([{"name": "mine", "depth_classes": words, "bin_list": bins}]))
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
    assert_same(metrics_of(run.output), first)
    for path in run.features()[:2]:  # of a run that was killed: files are written whole, then renamed
        path.rename(path.with_suffix(".part"))
    assert run() == 0
    assert run.encoded == [2]
    assert_same(metrics_of(run.output), first)
    assert run("--depth_classes", "near", "far", "--bin_list", "1", "3", "--controls") == 0
    assert run.encoded == []
    assert metrics_of(run.output)["this run"] != first["this run"]
    write_pair(run.data / "official_splits" / "test" / "bathroom", 0, seed=77)
    assert run() == 0
    assert run.encoded == [1]  # another picture under the same name
    torch.save(random_clip(TINY, seed=7).state_dict(), tmp_path / "other.pt")
    for i, flags in enumerate((("--exact",), ("--clip_path", tmp_path / "other.pt")), 2):
        assert run(*flags) == 0
        assert sum(run.encoded) == 5
        assert len(list((run.output / "features").iterdir())) == i


def test_damaged_features_are_computed_again_and_said(run, capsys):
    assert run("--no_paper") == 0
    before = metrics_of(run.output)
    zeroed, cut, empty, pipe, _ = run.features()
    content = zeroed.read_bytes()
    zeroed.write_bytes(content[:4096] + bytes(4096) + content[2 * 4096 :])
    cut.write_bytes(cut.read_bytes()[:-1000])
    empty.write_bytes(b"")
    pipe.unlink()
    os.mkfifo(pipe)
    assert run("--no_paper") == 0
    assert sum(run.encoded) == 4
    err = capsys.readouterr().err
    assert all(f"{path}: damaged (" in err for path in (zeroed, cut, empty))
    assert_same(metrics_of(run.output), before)


def test_no_damaged_byte_gives_other_features(tiny_clip, nyu_folder, tmp_path, capsys):
    store = FeatureStore(tmp_path / "store", MonoCLIP(tiny_clip), open_nyu(nyu_folder(1), NYU), {})
    trunk = store.get(0)
    path, content = store.paths[0], store.paths[0].read_bytes()
    places = [*range(200), *range(len(content) - 120, len(content)), 1000, len(content) // 2]
    for place, change in itertools.product(places, (1, 6, 8, 58, 255)):
        path.write_bytes(content[:place] + bytes([content[place] ^ change]) + content[place + 1 :])
        found = store.read(0)
        assert found is None or all(map(torch.equal, found, trunk)), (place, change)


def test_features_of_another_image_or_form_are_computed_again(tiny_clip, nyu_folder, tmp_path, capsys):
    data = open_nyu(nyu_folder(2), NYU)
    store = FeatureStore(tmp_path / "store", MonoCLIP(tiny_clip), data, {})
    patches, cls = (part.numpy() for part in store.get(0))
    store.get(1)
    store.paths[1].write_bytes(store.paths[0].read_bytes())
    assert store.read(1) is None
    for others in ((0 * patches, cls), (patches[:, :, 1:], cls), (patches.astype(np.float64), cls), (patches, cls[:1])):
        np.savez(store.paths[0], patches=others[0], cls=others[1], key=store.key(0))
        assert store.read(0) is None
    assert capsys.readouterr().err.count("damaged (it is not of this image and store") == 5
    (store.folder / "made_with.json").write_text("{}")
    with pytest.raises(OSError, match="remove the folder"):
        FeatureStore(tmp_path / "store", MonoCLIP(tiny_clip), data, {})


def test_two_processes_encode_what_is_their_own(run, tmp_path):
    alone = ("--no_paper", "--batch_size", "1")
    assert run(*alone) == 0
    done = torchrun(2, "-m", "experiments", *run.usual, *alone, "--output", tmp_path / "two")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\nThis run\n") == 1
    rows = ("this run", "uniform weights")  # where the sweep is not shortened, the best constant is another
    one, two = ({row: metrics_of(folder)[row] for row in rows} for folder in (run.output, tmp_path / "two"))
    assert_same(one, two)


# What it refuses


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[" * 100_000, "as JSON: "),
        ("[1]", "expected a list of objects"),
        ('[{"name": "a\\nb"}]', "entry 1 ('a\\nb'): needs a printable"),
        ('[{"name": "x"}, {"name": "x"}]', "entry 2"),
        ('[{"name": "x", "bins": [1]}]', "entry 1 ('x'): unknown field bins"),
        ('[{"name": "x", "bin_list": [1, 2]}]', "entry 1 ('x'): 7 depth classes and 2 bins"),
        ('[{"name": "prompt 1"}]', "'prompt 1' is the name of another row; choose another name"),
        ('[{"name": "linear probe"}]', "'linear probe' is the name of another row"),
    ],
)
def test_a_readings_file_is_refused_in_one_sentence(run, tmp_path, capsys, text, message):
    (tmp_path / "own.json").write_text(text)
    assert run("--readings", tmp_path / "own.json", "--controls") == 2
    err = capsys.readouterr().err.split("\n")[-2:]
    assert f"{tmp_path / 'own.json'}" in err[0]
    assert message in err[0]
    assert not run.output.exists()


def test_features_that_are_not_finite_name_the_image_and_keep_earlier_results(run, capsys):
    assert run("--limit", "2") == 0
    before = {name: (run.output / name).read_bytes() for name in FILES}
    for path in run.features():
        trunk = dict(np.load(path))
        trunk["patches"][0, 0, 0, 0] = float("nan")
        np.savez(path, **trunk)
    assert run("--limit", "2") == 1
    assert re.search(r"bathroom/rgb_000\d\d\.jpg: [\d,]+ of [\d,]+ predicted depths", capsys.readouterr().err)
    assert {name: (run.output / name).read_bytes() for name in FILES} == before
