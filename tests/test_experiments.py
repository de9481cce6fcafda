"""experiments: its command line, the rows and files that it leaves, and the feature store."""

import csv
import hashlib
import itertools
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import eval as evaluation
from calculate_error import NYU_CROP, NYU_METRICS
from datasets.nyu import TEST_INDICES, open_nyu, scan_folder
from experiments import __main__ as experiments
from experiments import statistics
from experiments.features import FeatureStore
from experiments.score import METRICS
from monoclip import PAPER, MonoCLIP, Reading
from options import UsageError
from tests.conftest import GOLDEN, ROOT, TINY, child, random_clip, torchrun, write_pair
from tests.test_eval import BINS_3, PROMPT_2, SOFT

PAPER_ROWS = ["prompt 1", "prompt 2", "prompt 3", *(f"bins class-dependent {i}" for i in (1, 2, 3, 4))]
PAPER_ROWS += ["prompt 3, bins class-dependent 1"]
RANDOM = ["random, each pixel", "random, each patch", "random, each patch, mirror average"]
FILES = {"results.json", "per_image.csv", "tables.md", "tables.tex"}
PICTURES = {"qualitative.png", "bin_response.png", "rows.png", "depth.html"}


def one_constant(shares: torch.Tensor) -> tuple[dict, dict]:
    """In place of `best_constants`, whose sweep takes most of a small run's time."""
    return dict.fromkeys(NYU_METRICS, 2.0), {name: np.ones(shares.shape[1]) for name in NYU_METRICS}


class Command:
    """`python -m experiments` in this process, on the tiny CLIP; `quick`: without what takes long for few images."""

    def __init__(self, data: Path, weights: Path, output: Path, quick: bool = True) -> None:
        self.data, self.weights, self.output, self.quick = data, weights, output, quick
        self.encoded: list[int] = []  # images of each call of `MonoCLIP.trunk`

    def arguments(self, *flags: object) -> list[str]:
        usual = ["--data_path", self.data, "--clip_path", self.weights, "--device", "cpu", "--output", self.output]
        return list(map(str, [*usual, *SOFT, *flags]))

    def __call__(self, *flags: object) -> int:
        real = MonoCLIP.trunk
        self.encoded.clear()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MonoCLIP, "trunk", lambda model, x: self.encoded.append(len(x)) or real(model, x))
            if self.quick:
                patch.setattr(experiments, "best_constants", one_constant)
                patch.setattr(statistics, "RESAMPLES", 100)
            return experiments.main(self.arguments(*flags))

    def features(self) -> list[Path]:
        return sorted(self.output.glob("features/*/*.npz"))


@pytest.fixture
def run(tiny_checkpoint, nyu_folder, tmp_path):
    return Command(nyu_folder(5), tiny_checkpoint, tmp_path / "out")


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def metrics_of(folder: Path) -> dict[str, dict[str, float]]:
    return {row: values["metrics"] for row, values in results_of(folder)["rows"].items()}


def sha256_of(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def assert_same(one: dict, other: dict) -> None:
    """Metrics of the same rows, up to the last bits of features, which may change the order of patches."""
    assert one.keys() == other.keys()
    for row, metrics in one.items():
        for name, value in metrics.items():
            tolerance = 5e-3 if name in ("spearman", "pearson") else 1e-4
            assert other[row][name] == pytest.approx(value, abs=tolerance), (row, name)


# Everything at once


@pytest.fixture(scope="module")
def whole(tiny_checkpoint, tmp_path_factory):
    """A run with everything, of five images in two scenes, and the same images by eval.py. Tests leave it as it is."""
    folder = tmp_path_factory.mktemp("whole")
    for i, index in enumerate(TEST_INDICES[:5]):
        write_pair(folder / "nyu" / "official_splits" / "test" / ("bathroom", "kitchen")[i % 2], index)
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
    groups = results_of(command.output)["groups"]
    prefixes = {
        "word-to-bin permutations": 100,
        "shuffled patches": 5,
        "random channels": 20,
        **dict.fromkeys(RANDOM, 5),
    }
    assert groups.keys() == prefixes.keys()
    expected = ["this run", "=near|far_*<b>", r"50 % & $x$ #1 {a}~^\b", "the paper's reading", *PAPER_ROWS]
    expected += ["reversed bins", "colour words", "unrelated words", "uniform weights", "best constant for each figure"]
    expected += [f"bin {depth:g} m alone" for depth in PAPER.bin_list]
    expected += [f"permutation {i}" for i in range(100)] + [f"shuffled patches {i}" for i in range(5)]
    expected += [f"random channels {i}" for i in range(20)]
    expected += [f"{kind}, seed {seed}" for kind in RANDOM for seed in range(5)]
    assert sorted(rows) == sorted(expected)
    assert all(set(metrics) == set(METRICS) for metrics in rows.values())
    permutations = [rows[f"permutation {i}"]["delta1"] for i in range(100)]
    spread = groups["word-to-bin permutations"]
    assert [spread[kind]["delta1"] for kind in ("min", "median", "max")] == pytest.approx(
        [min(permutations), float(np.median(permutations)), max(permutations)]
    )


def test_this_run_and_uniform_weights_are_those_of_eval(whole):
    command, folder = whole
    ours, evals = metrics_of(command.output), metrics_of(folder / "eval")
    for row in ("this run", "uniform weights"):
        assert {name: ours[row][name] for name in NYU_METRICS} == pytest.approx(evals[row], abs=1e-6)
    assert ours["this run"]["rmse"] != ours["the paper's reading"]["rmse"]  # the temperature is another


def test_the_csv_holds_what_the_means_are_of(whole):
    command, _ = whole
    with (command.output / "per_image.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    rows, scenes = metrics_of(command.output), results_of(command.output)["scenes"]
    assert len(lines) == 5 * len(rows)
    assert "'=near|far_*<b>" in {line["reading"] for line in lines}
    for row in ("this run", "prompt 2"):
        for scene, mean in ((None, rows[row]), ("bathroom", scenes["bathroom"][row]["metrics"])):
            own = [line for line in lines if line["reading"] == row and scene in (None, line["scene"])]
            assert len(own) == (5 if scene is None else 3)
            expected = {name: np.mean([float(line[name]) for line in own]) for name in METRICS}
            assert mean == pytest.approx(expected, abs=1e-9)
    both = results_of(command.output)["rows"]["prompt 2"]
    low, high = both["interval_95"]["rmse"]
    assert low <= both["metrics"]["rmse"] <= high
    assert both["less_uniform_weights"]["rmse"] == pytest.approx(
        both["metrics"]["rmse"] - rows["uniform weights"]["rmse"]
    )


def test_tables_hold_names_that_their_readers_would_take_for_code(whole):
    command, _ = whole
    markdown, latex = ((command.output / name).read_text() for name in ("tables.md", "tables.tex"))
    assert "DORN (depth) | as published, not measured here | 0.828 | 0.965 | 0.992 | 0.115 | 0.051 | 0.509" in markdown
    assert "bathroom only, 3 images; Over 5 images, not the official test split of 654" in markdown
    assert "classroom only, 0 images" in markdown
    for section in markdown.split("\n## ")[1:]:
        table = [line.replace(r"\|", "") for line in section.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in table}) == 1, section
    assert r"| =near\|far\_\*&lt;b> | ours |" in markdown
    rows = [line for line in latex.splitlines() if line.endswith(r"\\")]
    assert any(r"50 \% \& \$x\$ \#1 \{a\}\textasciitilde{}\textasciicircum{}\textbackslash{}b" in line for line in rows)
    assert {len(re.findall(r"(?<!\\)&", line)) for line in rows} == {7, 10}  # the paper's six metrics, or nine more
    assert not re.search(r"(?<!\\)[%#]", latex)


def test_pictures_and_page_are_there(whole):
    command, _ = whole
    assert {path.name for path in command.output.iterdir()} == FILES | PICTURES | {"features"}
    for name in ("qualitative.png", "bin_response.png", "rows.png"):
        with Image.open(command.output / name) as image:
            assert min(image.size) > 300
            assert image.convert("L").getextrema()[0] < 100
    page = (command.output / "depth.html").read_text()
    assert page.count('"similarity":') == 3
    assert "3 of the run's 5 pictures" in page


def test_a_row_of_many_equals_a_run_of_its_own(whole, tmp_path):
    command, _ = whole
    rows = metrics_of(command.output)
    own = ("--depth_classes", "near", "far", "--bin_list", "1", "3")
    flags = command.arguments("--batch_size", "2", *own, "--output", tmp_path)
    assert evaluation.main(flags) == 0
    alone = metrics_of(tmp_path)["this run"]
    assert {name: rows["=near|far_*<b>"][name] for name in NYU_METRICS} == pytest.approx(alone, abs=1e-6)


@pytest.mark.parametrize(
    ("row", "expected"),
    [("this run", "nyu_mini_expected.json"), ("mine", "nyu_mini_expected_prompt2_bins3.json")],
)
def test_rows_equal_the_released_evaluation(nyu_mini, seed0, tmp_path, row, expected):
    torch.save(seed0, tmp_path / "seed0.pt")
    own = [{"name": "mine", "depth_classes": PROMPT_2, "bin_list": [float(b) for b in BINS_3]}]
    (tmp_path / "own.json").write_text(json.dumps(own))
    flags = ["--data_path", nyu_mini, "--clip_path", tmp_path / "seed0.pt", "--device", "cpu", "--output", tmp_path]
    assert experiments.main([*map(str, flags), "--readings", str(tmp_path / "own.json")]) == 0
    released = json.loads((GOLDEN / expected).read_text())["mean"]
    ours = metrics_of(tmp_path)[row]
    assert {n: ours[n] for n in NYU_METRICS} == pytest.approx(
        {n: released[n.replace("delta", "a")] for n in NYU_METRICS}, abs=1e-4
    )


# The store


def test_what_is_stored_is_not_encoded_again(run, tmp_path):
    assert run() == 0
    assert run.encoded == [4, 1]
    first = metrics_of(run.output)
    assert run("--batch_size", "1") == 0
    assert run.encoded == []
    assert metrics_of(run.output) == first
    assert run("--depth_classes", "near", "far", "--bin_list", "1", "3", "--controls") == 0
    assert run.encoded == []
    assert metrics_of(run.output)["this run"] != first["this run"]
    assert len(list((run.output / "features").iterdir())) == 1
    write_pair(run.data / "official_splits" / "test" / "bathroom", 0, seed=77)
    assert run() == 0
    assert run.encoded == [1]  # another picture under the same name
    torch.save(random_clip(TINY, seed=7).state_dict(), tmp_path / "other.pt")
    for i, flags in enumerate((("--exact",), ("--precision", "bf16"), ("--clip_path", tmp_path / "other.pt")), 2):
        assert run(*flags) == 0
        assert sum(run.encoded) == 5
        assert len(list((run.output / "features").iterdir())) == i
    shutil.rmtree(run.output / "features")
    assert run() == 0
    assert sum(run.encoded) == 5


def damage(kind: str, path: Path) -> None:
    """Does to a stored file what `kind` says."""
    content = bytearray(path.read_bytes())
    places = {"first byte": 0, "header": 80, "middle": len(content) // 2, "last bytes": len(content) - 30}
    if kind in places:
        content[places[kind]] ^= 1
    elif kind == "zeroed block":
        content[4096 : 2 * 4096] = bytes(4096)
    elif kind == "cut":
        del content[-1000:]
    elif kind == "empty":
        content.clear()
    path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    else:
        path.write_bytes(content)


@pytest.mark.parametrize(
    "kinds",
    [("first byte", "header", "middle", "zeroed block"), ("last bytes", "cut", "empty", "pipe")],
    ids=lambda kinds: ", ".join(kinds),
)
def test_damaged_features_are_computed_again_and_said(run, capsys, kinds):
    assert run() == 0
    before = metrics_of(run.output)
    files = run.features()
    for kind, path in zip(kinds, files, strict=False):
        damage(kind, path)
    capsys.readouterr()
    assert run() == 0
    assert sum(run.encoded) == len(kinds)
    err = capsys.readouterr().err
    for kind, path in zip(kinds, files, strict=False):
        assert kind == "pipe" or f"{path}: damaged (" in err
    assert_same(metrics_of(run.output), before)
    assert run() == 0
    assert run.encoded == []


def test_no_damaged_byte_gives_other_features(tiny_clip, nyu_folder, tmp_path, capsys):
    dataset = open_nyu(nyu_folder(1), NYU_CROP, PAPER.normalised)
    store = FeatureStore(tmp_path / "store", MonoCLIP(tiny_clip), dataset, {})
    features = store.get(0)
    path, content = store.paths[0], store.paths[0].read_bytes()
    with zipfile.ZipFile(path) as file:
        assert file.namelist() == ["trunk.npy"]
    places = [*range(200), *range(len(content) - 120, len(content)), 1000, len(content) // 2]
    for place, change in itertools.product(places, (1, 6, 8, 58, 255)):
        path.write_bytes(content[:place] + bytes([content[place] ^ change]) + content[place + 1 :])
        found = store.read(0)
        assert found is None or found.equal(features), (place, change)


def test_a_killed_run_goes_on_with_the_same_command(run, tmp_path):
    script = tmp_path / "slow.py"
    script.write_text(
        "import sys, time, monoclip\nfrom experiments.__main__ import main\n"
        "real = monoclip.MonoCLIP.trunk\n"
        "monoclip.MonoCLIP.trunk = lambda self, x: time.sleep(0.3) or real(self, x)\n"
        "sys.exit(main())\n"
    )
    flags = run.arguments("--batch_size", "1")
    process = subprocess.Popen(
        [sys.executable, str(script), *flags],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while not run.features() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.uniform(0, 0.8))
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    stored = len(run.features())
    assert 1 <= stored < 5
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
    assert [process.wait(200) for process in processes] == [0, 0]
    assert_same(metrics_of(tmp_path / "one"), metrics_of(tmp_path / "two"))
    assert {path.name for path in (tmp_path / "one").iterdir()} == FILES
    flags = run.arguments("--batch_size", "1", "--output", tmp_path / "three")
    done = torchrun(2, "-m", "experiments", *flags)
    assert done.returncode == 0, done.stderr
    assert "encode: 100%" in done.stderr
    assert "3/3 [" in done.stderr  # of the first process: the other one has two
    assert done.stdout.count("This run (") == 1
    assert_same(metrics_of(tmp_path / "three"), metrics_of(tmp_path / "one"))


def test_an_error_in_one_process_ends_all(run):
    assert run("--limit", "2") == 0
    (second,) = [path for path in run.features() if path.stem == sha256_of(scan_folder(run.data)[1].rgb)]
    second.unlink()
    second.mkdir()  # so that the second process cannot write
    done = torchrun(2, "-m", "experiments", *run.arguments("--limit", "2"))
    assert done.returncode != 0
    assert done.stderr.count(f"experiments: {second}: Is a directory") == 1
    assert "This run" not in done.stdout


def test_too_small_a_disk_is_said_before_the_first_image(run, monkeypatch, capsys):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 1000))
    assert run() == 1
    err = capsys.readouterr().err
    assert re.fullmatch(
        r"experiments: .*features/\w+: the features need 0\.0 GB and 0\.0 GB are free; make room.*\n", err
    )
    assert run.encoded == []
    monkeypatch.undo()
    assert run() == 0
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 10**9, 0))
    assert run() == 0  # nothing is missing


# What it refuses, and how it may end


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "no JSON"),
        ("[" * 100_000, "no JSON"),
        ("{}", "expected a list of objects"),
        ("[]", "expected a list of objects"),
        ("[1]", "expected a list of objects"),
        ('[{"depth_classes": ["a"]}]', "entry 1: needs a printable"),
        ('[{"name": ""}]', "entry 1: needs a printable"),
        ('[{"name": 3}]', "entry 1: needs a printable"),
        ('[{"name": "a\\nb"}]', "entry 1: needs a printable"),
        ('[{"name": "\\ud800"}]', "entry 1: needs a printable"),
        ('[{"name": "x"}, {"name": "x"}]', "entry 2"),
        ('[{"name": "x", "bins": [1]}]', "'x': unknown field bins"),
        ('[{"name": "x", "bin_list": [1, 2]}]', "'x': 7 depth classes and 2 bins"),
        ('[{"name": "x", "temperature": NaN}]', "'x': the temperature must be positive"),
    ],
)
def test_a_readings_file_is_refused_in_one_sentence(tmp_path, text, message):
    path = tmp_path / "readings.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as error:
        experiments.load_readings(path)
    assert str(error.value).startswith(str(path))


def test_a_readings_file(tmp_path):
    path = tmp_path / "readings.json"
    text = '[{"name": "mine", "depth_classes": ["near", "far"], "bin_list": [1, 3.5], "temperature": 1}, {"name": "b"}]'
    path.write_text("\ufeff" + text)
    mine = Reading(depth_classes=("near", "far"), bin_list=(1, 3.5), temperature=1)
    assert experiments.load_readings(path) == {"mine": mine, "b": PAPER}


@pytest.mark.parametrize("name", ["this run", "prompt 1", "uniform weights", "reversed bins", "permutation 3",
                                  "bin 1 m alone", "best constant for each figure"])  # fmt: skip
def test_a_reading_may_not_take_the_name_of_another_row(run, tmp_path, capsys, name):
    (tmp_path / "own.json").write_text(
        json.dumps([{"name": name, "depth_classes": ["far", "close"], "bin_list": [9, 8]}])
    )
    assert run("--readings", tmp_path / "own.json", "--controls") == 2
    assert f"own.json: {name!r} is the name of another row; choose another name" in capsys.readouterr().err
    assert not run.output.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ("--output", "/proc/version/out"),
            "--output /proc/version/out: /proc/version is no folder that can be written",
        ),
        (("--readings", "{pipe}"), "pipe: not a regular file"),
        (("--readings", "/nowhere.json"), "/nowhere.json: cannot be read"),
        (("--data_path", "/nowhere"), "/nowhere: no such folder"),
        (("--temperature", "0"), "temperature must be positive"),
    ],
)
def test_what_cannot_be_followed_is_one_sentence(run, no_model, tmp_path, capsys, flags, message):
    os.mkfifo(tmp_path / "pipe")
    assert run(*(flag.replace("{pipe}", str(tmp_path / "pipe")) for flag in flags)) == 2
    err = capsys.readouterr().err
    assert err.startswith("experiments: ")
    assert message in err
    assert err.count("\n") == 1


def test_features_that_are_not_finite_name_the_image_and_keep_earlier_results(run, monkeypatch, capsys):
    assert run("--limit", "2") == 0
    before = {name: (run.output / name).read_bytes() for name in FILES}
    for path in run.features():
        features = np.load(path)["trunk"]
        features[0, 0, 0, 0] = float("nan")
        np.savez(path, trunk=features)
    assert run("--limit", "2") == 1
    assert re.search(
        r"experiments: bathroom/rgb_000\d\d\.jpg: [\d,]+ of [\d,]+ predicted depths", capsys.readouterr().err
    )
    assert {name: (run.output / name).read_bytes() for name in FILES} == before


def test_an_interrupt_while_scoring_exits_with_130_and_loses_no_features(run, monkeypatch, capsys):
    calls = itertools.count()

    def interrupted(*args):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return real(*args)

    real = experiments.score_image
    monkeypatch.setattr(experiments, "score_image", interrupted)
    assert run() == 130
    assert "experiments: interrupted" in capsys.readouterr().err
    assert not (run.output / "results.json").exists()
    monkeypatch.undo()
    assert run() == 0
    assert run.encoded == []


def test_scoring_does_not_depend_on_the_number_of_threads(run, tmp_path):
    threads = torch.get_num_threads()
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            assert (
                run("--store", tmp_path / "store", "--controls", "--limit", "2", "--output", tmp_path / str(count)) == 0
            )
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert_same(metrics_of(tmp_path / "1"), metrics_of(tmp_path / "2"))


def test_closed_streams_lose_nothing(run):
    reader, writer = os.pipe()
    os.close(reader)
    done = child("-W", "error", "-m", "experiments", *run.arguments("--limit", "1"), stdout=writer, stderr=writer)
    os.close(writer)
    assert done.returncode == 0
    assert (run.output / "results.json").is_file()
