"""eval: from the command line to the metrics, what it leaves behind, and every way in which it may end."""

import csv
import json
import os
import re
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image

import clip
import eval as evaluation
from calculate_error import NYU, NYU_METRICS, compute_errors_NYU
from datasets.nyu import TEST_INDICES, open_nyu, scan_folder
from experiments.published import BIN_SETS, PROMPT_SETS
from monoclip import PAPER, MonoCLIP, Reading, depth_of
from tests.conftest import ANY_BYTES_IN_NAMES, GOLDEN, QUICKGELU, ROOT, SOFT, largest_file, spoil, torchrun, write_pair
from viewer import notes

RELEASED = ["--evaluate", "--batch_size", "1", "--dataset", "NYU", "--gpu_num", "0", "--encoder", "AST"]
RELEASED += ["--other_method", "MonoCLIP"]
WORDS_2, BINS_3 = PROMPT_SETS["prompt 2"].depth_classes, BIN_SETS["class-dependent 3"].bin_list


@pytest.fixture
def run(tiny_checkpoint, nyu_folder, tmp_path, capsys):
    """`run(*flags)` evaluates the tiny CLIP on five images: exit code, standard output, standard error."""

    def arguments(*flags: object, data: Path | None = None, weights: Path | str = tiny_checkpoint) -> list[str]:
        usual = ["--data_path", data or call.root, "--clip_path", weights, "--device", "cpu", "--batch_size", "1"]
        return list(map(str, [*usual, *QUICKGELU, *flags]))

    def call(*flags: object, **places: Path) -> tuple[int, str, str]:
        code = evaluation.main(arguments(*flags, **places))
        return code, *capsys.readouterr()

    call.arguments, call.root, call.output = arguments, nyu_folder(5), tmp_path / "out"
    return call


def rows_of(folder: Path, reading: str = "this run") -> list[dict[str, str]]:
    """The CSV's rows of one reading."""
    with (folder / "per_image.csv").open(newline="", encoding="utf-8") as file:
        return [row for row in csv.DictReader(file) if row["reading"] == reading]


def metrics_of(row: dict) -> dict[str, float]:
    return {name: float(row[name]) for name in NYU_METRICS}


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def means_of(folder: Path, row: str = "this run") -> dict[str, float]:
    return results_of(folder)["rows"][row]["metrics"]


@pytest.mark.parametrize("batch_size", [1, 4, 9])
@pytest.mark.parametrize(
    ("expected", "flags"),
    [
        ("nyu_mini_expected.json", []),
        ("nyu_mini_expected.json", ["--exact"]),
        ("nyu_mini_expected_prompt2_bins3.json", ["--depth_classes", *WORDS_2, "--bin_list", *BINS_3]),
    ],
)
def test_released_evaluation(nyu_mini, seed0, run, tmp_path, expected, flags, batch_size):
    torch.save(seed0, tmp_path / "seed0.pt")
    flags = [*RELEASED, *flags, "--output", run.output, "--batch_size", batch_size]
    assert run(*flags, data=nyu_mini, weights=tmp_path / "seed0.pt")[0] == 0
    released = json.loads(re.sub(r'"a(\d)":', r'"delta\1":', (GOLDEN / expected).read_text()))
    for row, image in zip(rows_of(run.output), released["images"], strict=True):
        assert row["image"] == image["image"]
        assert metrics_of(row) == pytest.approx(metrics_of(image), abs=1e-4)
    assert means_of(run.output) == pytest.approx(metrics_of(released["mean"]), abs=1e-4)


def test_released_depth_maps(nyu_mini, rn50):
    dataset = open_nyu(nyu_mini, NYU)
    with np.load(GOLDEN / "nyu_mini_expected_depth.npz") as file:
        expected = np.concatenate([file[name] for name in file.files]).reshape(-1, 13, 17)
    with torch.inference_mode():
        weights = MonoCLIP(rn50)(torch.stack([PAPER.normalised(dataset.pixels(i)) for i in (0, 8)]))
    depth = depth_of(weights, torch.tensor([PAPER.bin_list]))
    assert np.abs(depth[:, 0].numpy() - expected[[0, 8]]).max() < 1e-3


def test_released_command_line_prints_the_released_line_and_whether_the_papers_row_compares(run):
    code, out, _ = run(*RELEASED)
    assert code == 0
    line = ", ".join(rf"{n} : \d\.\d{{3}}" for n in ("abs_diff", "a1", "a2", "a3", "abs_rel", "log10", "rmse"))
    assert re.search(rf"^ \* Avg {line}$", out, re.MULTILINE)
    assert re.search(r"delta1 .* abs_rel +log10 +rmse\nthis run .*\nuniform weights \(2\.143 m\) +0\.", out)
    assert "data: 5 images of nyu\n" in out
    assert out.endswith("The paper's metrics are over the official test split: they do not compare with these.\n")


@pytest.mark.weights
@pytest.mark.nyu
def test_the_papers_row(run):
    data, weights = os.environ.get("NYU_PATH"), os.environ.get("CLIP_PATH")
    if not data or not weights:
        pytest.skip("needs the real RN50 and NYU Depth V2: CLIP_PATH and NYU_PATH name them")
    code, out, _ = run("--output", run.output, data=Path(data), weights=weights)
    assert code == 0
    assert f"all {len(TEST_INDICES)} images" in out
    assert "do not compare" not in out
    # An independent run of the release (MoA-DepthCLIP, arXiv 2604.01118).
    published = {"delta1": 0.390, "delta2": 0.680, "delta3": 0.848, "abs_rel": 0.393, "log10": 0.158, "rmse": 1.176}
    assert {name: means_of(run.output)[name] for name in published} == pytest.approx(published, abs=0.01)


OWN = Reading(("a {} which is {}", "This {} is {}"), ("thing",), ("near", "far away"), (1.0, 4.0), 0.5)
OWN_WORDS = ["--depth_templates", *OWN.depth_templates, "--obj_classes", "thing", "--depth_classes", "near", "far away"]
OWN_WORDS += ["--bin_list", 1, 4, "--temperature", 0.5]


@pytest.mark.parametrize(("reading", "flags"), [(PAPER, []), (OWN, OWN_WORDS)], ids=["paper", "own"])
def test_metrics_are_those_of_the_method_by_a_plain_loop(run, tiny_clip, reading, flags):
    assert run("--output", run.output, "--exact", *flags)[0] == 0
    model, dataset = MonoCLIP(clip.build_model(tiny_clip.state_dict()), reading), open_nyu(run.root, NYU)
    expected: dict[str, list] = {"this run": [], "uniform weights": []}
    for i in range(len(dataset)):
        with torch.inference_mode():
            depth = model.predict(PAPER.normalised(dataset.pixels(i))[None])
        uniform = torch.full_like(depth, sum(reading.bin_list) / len(reading.bin_list))
        for row, pred in (("this run", depth), ("uniform weights", uniform)):
            expected[row].append(compute_errors_NYU(dataset.depth(i)[None], pred))
    for row, errors in expected.items():
        got = rows_of(run.output, row)
        assert [each["image"] for each in got] == dataset.names
        assert [int(each["index"]) for each in got] == dataset.indices
        for one, other in zip(got, errors, strict=True):
            assert metrics_of(one) == pytest.approx(other, abs=1e-5)  # a pixel at the threshold, of 220,000, is 5e-6
        means = {name: np.mean([each[name] for each in errors]) for name in NYU_METRICS}
        assert means_of(run.output, row) == pytest.approx(means, abs=1e-5)
    assert results_of(run.output)["made_with"]["reading"]["bin_list"] == list(reading.bin_list)


@pytest.mark.parametrize(("count", "limit"), [(2, 5), (3, 2)])
def test_batches_workers_and_processes_change_nothing(run, tmp_path, count, limit):
    assert run("--output", run.output, "--limit", limit, *SOFT)[0] == 0
    flags = run.arguments("--output", tmp_path / "other", "--limit", limit, *SOFT, "--batch_size", 2, "--workers", 3)
    done = torchrun(count, ROOT / "eval.py", *flags)
    assert (done.returncode, done.stdout.count(" * Avg ")) == (0, 1), done.stderr
    for one, other in zip(rows_of(run.output), rows_of(tmp_path / "other"), strict=True):
        assert one["image"] == other["image"]
        assert metrics_of(one) == pytest.approx(metrics_of(other), abs=1e-5)


def test_an_image_without_metrics_is_named_and_ends_all_processes(run):
    tiny = ("--bin_list", *[0.0005] * 7)
    done = torchrun(2, ROOT / "eval.py", *run.arguments("--output", run.output, *tiny))
    assert re.search(r"eval\.py: \w+/rgb_\d+\.jpg: every predicted depth is at most 1 mm", done.stderr)
    assert (done.returncode == 0, "Avg" in done.stdout, (run.output / "results.json").exists()) == (False,) * 3


def test_list_scene_and_limit_choose_the_images(run, tmp_path):
    lines = [f"{pair.scene}/{pair.rgb.name} {pair.scene}/{pair.depth.name}" for pair in scan_folder(run.root)]
    (some := tmp_path / "list.txt").write_text("\ufeff" + "\n".join(lines[:0:-1]))
    for flags, expected in (
        (("--list_file", some), ["bathroom/8", "bathroom/14", "kitchen/1", "kitchen/13"]),
        (("--list_file", some, "--scene", "kitchen", "--limit", 1), ["kitchen/1"]),
        (("--scene", "kitchen", "bathroom", "--limit", 4), ["bathroom/0", "bathroom/8", "bathroom/14", "kitchen/1"]),
    ):
        assert run("--output", run.output, *flags)[0] == 0
        assert [f"{row['scene']}/{row['index']}" for row in rows_of(run.output)] == expected


def test_results_say_what_they_were_made_with_and_the_strip_shows_them(run, tiny_checkpoint, tmp_path, monkeypatch):
    assert run("--output", run.output, "--limit", 3, "--figures", "--precision", "bf16")[0] == 0
    assert {path.name for path in run.output.iterdir()} == {"results.json", "per_image.csv", "qualitative.png"}
    results, made = results_of(run.output), results_of(run.output)["made_with"]
    assert (results["schema"], results["protocol"], results["images"]) == (4, notes.ABOUT["NYU"], 3)
    assert results["data_sha256"] == open_nyu(run.root, NYU, limit=3).sha256
    assert re.fullmatch("unknown|[0-9a-f]{40}(-dirty)?", results["commit"])
    assert results["published"] == {}  # three images are not the split
    assert {row["protocol"] for row in rows_of(run.output)} == {"NYU"}
    assert made["checkpoint_sha256"] == clip.checkpoint.file_sha256(tiny_checkpoint)
    assert (made["precision"], made["network"], made["torch"]) == ("bf16", "fast", torch.__version__)
    with Image.open(run.output / "qualitative.png") as strip:
        assert min(strip.size) > 700
        assert strip.convert("L").getextrema()[0] < 100
    assert run("--output", run.output, "--limit", 1)[0] == 0
    assert not (run.output / "qualitative.png").exists()  # it does not belong to the new rows
    monkeypatch.chdir(tmp_path)
    before = set(tmp_path.rglob("*"))
    assert run("--limit", 1)[0] == 0
    assert set(tmp_path.rglob("*")) == before  # without --output


def test_the_toy_and_the_demos_rooms_are_called_so_under_any_name(run, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation, "draw_strip", drawn := Mock())
    (tmp_path / "RN50.pt").write_bytes((ROOT / "demo" / "rooms_clip.pt").read_bytes())
    rooms = ROOT / "demo" / "sample"
    flags = ("--output", run.output, "--figures", "--limit", 1)
    code, out, _ = run(*flags, data=rooms, weights=tmp_path / "RN50.pt")
    results = results_of(run.output)
    assert (code, results["data"], len(results["warnings"])) == (0, "1 image of sample", 2)
    assert "\nA toy CLIP that was taught distance on rendered rooms: no evidence about the real CLIP" in out
    assert drawn.call_args.args[-1] == "Over 1 image of sample; a toy CLIP: no evidence about the real one"
    assert str(tmp_path) not in json.dumps(results)
    assert "toy" not in run("--limit", 1, data=rooms)[1]  # another CLIP


@ANY_BYTES_IN_NAMES
def test_names_that_people_chose_stay_readable_and_lose_nothing(run, tmp_path):
    for i, scene in enumerate([b"caf\xe9", b"two\nlines", b"=1+1", b"\x1b[31mred", "\u4e2d".encode(), b"x" * 200]):
        write_pair(tmp_path / "odd" / os.fsdecode(scene), i)
    code, out, err = run("--output", run.output, "--figures", data=tmp_path / "odd")
    assert (code, "\x1b" in out + err) == (0, False)
    there = {row["scene"] for row in rows_of(run.output)}
    assert there == {r"caf\xe9", r"two\nlines", "'=1+1", r"\x1b[31mred", "\u4e2d", "x" * 200}


def test_all_problems_of_the_data_are_named_before_the_model_is_built(run, no_model):
    pairs = scan_folder(run.root)
    for kind, pair in zip(("half JPEG", "8-bit depth", "small depth", "no depth", "no image"), pairs, strict=True):
        spoil(kind, pair.rgb, pair.depth)
    code, out, err = run("--output", run.output)
    assert (code, out) == (2, "")
    assert err.startswith("eval.py: 5 problems in the data:\n")
    assert all(pair.scene in err and f"{pair.index:05d}." in err for pair in pairs)
    assert not run.output.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--batch_size", "0"), "--batch_size: 0 is not 1 or more"),
        (("--lim", "1"), "unrecognized arguments: --lim"),
        (("--figures",), "--figures needs --output, the folder that it draws into"),
        (("--scene", "attic", "kitchen"), "--scene attic: no such scene here; there are bathroom, kitchen"),
        (("--data_path", "/nowhere"), "/nowhere: no such folder; bring nyu_depth_v2_labeled.mat there"),
        (("--list_file", "{pipe}"), "pipe: not a regular file"),
        (("--clip_path", "{pipe}"), "pipe: it is not a regular file"),
        (("--clip_path", "{text}"), "text: it is a web page, not weights"),
    ],
)
def test_what_cannot_be_followed_is_one_sentence(run, no_model, tmp_path, capsys, flags, message):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("<html>404</html>")
    try:
        code, out, err = run(*(flag.format(pipe=tmp_path / "pipe", text=tmp_path / "text") for flag in flags))
    except SystemExit as error:  # argparse's own
        code, out, err = error.code, *capsys.readouterr()
    assert (code, "Avg" in out, err.count("\n")) == (2, False, 1)
    assert message in err


def ended(run, code: int, message: str) -> None:
    """Asserts that a run ends with one sentence, keeps the rows of two images, and an earlier run's results."""
    run.output.mkdir(exist_ok=True)
    (run.output / "results.json").write_text("of an earlier run")
    got, out, err = run("--output", run.output)
    assert (got, "Avg" in out, "Traceback" in err) == (code, False, False)
    assert re.search(rf"(^|\r)eval\.py: .*{re.escape(message)}", err, re.MULTILINE)
    (unfinished,) = run.output.glob("unfinished-*")
    assert [row["image"] for row in rows_of(unfinished)] == [pair.name for pair in scan_folder(run.root)[:2]]
    assert (run.output / "results.json").read_text() == "of an earlier run"


@pytest.mark.parametrize(
    ("third", "code", "message"),
    [
        (torch.full((1, 1, 416, 544), torch.nan), 1, "bathroom/rgb_00014.jpg: 226,304 of 226,304 predicted depths"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_run_that_ends_early_says_why_and_keeps_its_rows(run, monkeypatch, third, code, message):
    depth = torch.ones(1, 1, 416, 544)
    monkeypatch.setattr(MonoCLIP, "predict", Mock(side_effect=[depth, depth, third]))
    ended(run, code, message)


def test_a_full_disk_is_one_sentence_with_the_file(run):
    with largest_file(400):  # the second image's row is cut
        ended(run, 1, "per_image.csv: File too large; make room")


def test_pixels_dropped_for_a_prediction_of_zero_are_reported(run, monkeypatch):
    monkeypatch.setattr(MonoCLIP, "predict", lambda *_: torch.ones(1, 1, 416, 544).index_fill(3, torch.arange(272), 0))
    code, out, _ = run("--limit", "1")
    assert (code, bool(re.search(r"warning: 1\d\d,\d\d\d more pixels do not count", out))) == (0, True)
