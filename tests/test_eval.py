"""eval: the command line from files to figures, its outputs, and every input that it refuses."""

import csv
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import clip
import eval as evaluation
from calculate_error import NYU_CROP, NYU_FIGURES, compute_errors_NYU
from datasets.nyu import TEST_INDICES, NYUDepthV2, scan_folder
from evaluation.controls import Predictor
from monoclip import PAPER, MonoCLIP, Reading
from tests.conftest import GOLDEN, TINY, random_clip, write_pair
from tests.test_nyu import FAULTS, spoil

RELEASED_COMMAND = "--evaluate --batch_size 1 --dataset NYU --gpu_num 0 --encoder AST --other_method MonoCLIP"
RELEASED = RELEASED_COMMAND.split()
PROMPT_2 = ("extremely close", "very close", "close", "a little close", "a little far", "far", "unseen")
BINS_3 = ("1.00", "1.25", "1.50", "1.75", "2.00", "2.25", "2.50")


@pytest.fixture
def run(tiny_checkpoint, nyu_folder, tmp_path, capsys):
    """`run(*flags)` evaluates the tiny CLIP on five images and returns exit code, standard output and error."""
    root = nyu_folder(5)

    def call(*flags: str, data: Path = root, weights: Path | str = tiny_checkpoint) -> tuple[int, str, str]:
        usual = ["--data_path", str(data), "--clip_path", str(weights), "--device", "cpu", "--batch_size", "1"]
        code = evaluation.main([*usual, *flags])
        return code, *capsys.readouterr()

    call.root = root
    call.split = root / "official_splits" / "test"
    call.output = tmp_path / "out"
    return call


def rows_of(folder: Path, reading: str = "this run") -> list[dict[str, str]]:
    """The CSV's rows of one reading."""
    with (folder / "per_image.csv").open(newline="") as file:
        return [row for row in csv.DictReader(file) if row["reading"] == reading]


def journal_of(folder: Path) -> list[dict]:
    """The images that a run has finished so far."""
    return [json.loads(line) for line in (folder / "per_image.jsonl").read_text().splitlines()[1:]]


def results_of(folder: Path) -> dict:
    return json.loads((folder / "results.json").read_text())


def test_released_command_line_prints_the_released_line_and_the_papers_row(run):
    code, out, _ = run(*RELEASED)
    assert code == 0
    number = r"\d\.\d{3}"
    line = ", ".join(f"{name} : {number}" for name in ("abs_diff", "a1", "a2", "a3", "abs_rel", "log10", "rmse"))
    assert re.search(rf"^ \* Avg {line}$", out, re.MULTILINE)
    assert re.search(r"delta1 +delta2 +delta3 +abs_rel +log10 +rmse\nthis run .*\npaper, DepthCLIP +0\.394", out)
    assert "5 images: 5 of the 654 of the official test split" in out
    assert "they do not compare" in out


def test_figures_are_those_of_the_method(run, tiny_clip):
    assert run("--output", str(run.output), "--exact")[0] == 0
    model = MonoCLIP(clip.build_model(tiny_clip.state_dict()))
    dataset = NYUDepthV2(scan_folder(run.root), NYU_CROP, PAPER.image_mean, PAPER.image_std)
    rows, means = rows_of(run.output), []
    assert [row["image"] for row in rows] == [pair.name for pair in dataset.pairs]
    for row, sample in zip(rows, (dataset[i] for i in range(5)), strict=True):
        with torch.inference_mode():
            expected = compute_errors_NYU(sample.depth[None], model.predict(sample.image[None]))
        # One pixel in 220,000 at the very threshold is 5e-6.
        assert {name: float(row[name]) for name in NYU_FIGURES} == pytest.approx(expected, abs=1e-5)
        assert (row["scene"], int(row["index"])) == (sample.scene, sample.index)
        means.append(expected)
    results = results_of(run.output)
    assert results["figures"] == pytest.approx({n: np.mean([m[n] for m in means]) for n in NYU_FIGURES}, abs=1e-5)


def test_results_say_what_they_were_made_with(run, tiny_checkpoint):
    assert run("--output", str(run.output), "--batch_size", "2", "--limit", "3")[0] == 0
    results, rows = results_of(run.output), rows_of(run.output)
    assert results["images"] == len(rows) == 3
    assert results["valid_pixels"] == sum(int(row["valid_pixels"]) for row in rows)
    assert results["configuration"]["batch_size"] == 2
    assert results["configuration"]["precision"] == "fp32"
    assert results["configuration"]["clip_sha256"] == clip.checkpoint.file_sha256(tiny_checkpoint)
    assert results["configuration"]["reading"]["bin_list"] == list(PAPER.bin_list)
    assert results["versions"]["torch"] == torch.__version__
    assert results["device"]["type"] == "cpu"
    assert json.loads((run.output / "timing.json").read_text())["images_per_second"] > 0
    assert results["paper"]["a1"] == 0.394
    assert "commit" in results
    files = {"results.json", "timing.json", "per_image.csv", "per_image.jsonl", "tables.md", "tables.tex"}
    assert {path.name for path in run.output.iterdir()} == files


@pytest.mark.parametrize("flags", [("--batch_size", "2"), ("--batch_size", "5", "--workers", "2"), ("--workers", "1")])
def test_batch_size_and_workers_change_nothing(run, flags):
    assert run("--output", str(run.output))[0] == 0
    assert run("--output", str(run.output / "other"), *flags)[0] == 0
    for one, other in zip(rows_of(run.output), rows_of(run.output / "other"), strict=True):
        assert one["image"] == other["image"]
        for name in NYU_FIGURES:
            assert float(one[name]) == pytest.approx(float(other[name]), abs=1e-5)


@pytest.mark.parametrize("name", ["prompt 1", "reversed bins", "permutation 3", "bin 1 m alone"])
def test_a_reading_may_not_take_the_name_of_another_row(run, no_model, tmp_path, name):
    readings = tmp_path / "readings.json"
    readings.write_text(json.dumps([{"name": name, "depth_classes": ["far", "close"], "bin_list": [9, 8]}]))
    code, _, err = run("--readings", str(readings), "--paper", "--controls")
    assert code == 2
    assert f"--readings: {name} is the name of another row of this run" in err


def test_controls_of_three_words_have_three_colours(run):
    flags = ["--depth_classes", "close", "a little far", "far", "--bin_list", "1", "2", "3", "--controls"]
    assert run("--output", str(run.output), "--limit", "1", *flags)[0] == 0
    assert {"colour words", "unrelated words"} <= results_of(run.output)["rows"].keys()


def test_own_words_and_bins_equal_the_same_reading(run, tiny_clip):
    flags = ["--depth_classes", "near", "far away", "--bin_list", "1", "4", "--temperature", "0.5"]
    flags += ["--depth_templates", "a {} which is {}", "This {} is {}", "--obj_classes", "thing"]
    assert run("--output", str(run.output), *flags)[0] == 0
    reading = results_of(run.output)["configuration"]["reading"]
    assert reading["depth_classes"] == ["near", "far away"]
    assert reading["depth_templates"] == ["a {} which is {}", "This {} is {}"]
    assert run("--output", str(run.output / "paper"))[0] == 0
    assert results_of(run.output)["figures"] != results_of(run.output / "paper")["figures"]


def test_list_file_chooses_the_images(run, tmp_path):
    list_file = tmp_path / "list.txt"
    list_file.write_text("kitchen/rgb_00013.jpg kitchen/sync_depth_00013.png 518.8\n")
    assert run("--list_file", str(list_file), "--output", str(run.output))[0] == 0
    assert [row["image"] for row in rows_of(run.output)] == ["kitchen/rgb_00013.jpg"]


def test_without_output_nothing_is_written(run, tmp_path, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.chdir(tmp_path)
    assert run()[0] == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


@pytest.fixture
def no_model(monkeypatch):
    """Fails the test if a model is built."""

    def built(*_):
        raise AssertionError("the model was built before the input was checked")

    for module in ("clip.model", "clip"):
        monkeypatch.setattr(f"{module}.build_model", built)


@pytest.mark.parametrize("kind", FAULTS)
def test_spoiled_data_are_one_sentence_before_the_model_is_built(run, no_model, kind):
    pair = scan_folder(run.root)[2]
    spoil(kind, pair.rgb, pair.depth)
    code, out, err = run("--output", str(run.output))
    assert (code, out) == (2, "")
    assert re.fullmatch(rf"eval\.py: .*{FAULTS[kind]}.*\n", err)
    assert not run.output.exists()


def test_missing_data_are_one_sentence(run, no_model, tmp_path):
    (tmp_path / "empty").mkdir()
    pair = scan_folder(run.root)[0]
    for folder, message in ((tmp_path / "nowhere", "no such folder"), (tmp_path / "empty", "no <scene>/rgb")):
        code, _, err = run(data=folder)
        assert code == 2
        assert message in err
        assert err.count("\n") == 1
    pair.depth.unlink()
    code, _, err = run()
    assert code == 2
    assert "its depth map sync_depth_00000.png is missing" in err
    write_pair(pair.depth.parent, 0)
    pair.rgb.unlink()
    code, _, err = run()
    assert code == 2
    assert "its image rgb_00000.jpg is missing" in err


def test_duplicate_and_mismatched_pairs_are_refused(run, no_model, tmp_path):
    write_pair(run.split / "office", 13)
    code, _, err = run()
    assert code == 2
    assert "index 13 occurs 2 times, in kitchen, office" in err
    list_file = tmp_path / "list.txt"
    list_file.write_text("kitchen/rgb_00013.jpg bathroom/sync_depth_00008.png\n")
    code, _, err = run("--list_file", str(list_file))
    assert code == 2
    assert "do not carry the same index" in err


def test_unusable_checkpoints_are_one_sentence(run, tiny_clip, tmp_path):
    good = tmp_path / "good.pt"
    torch.save(tiny_clip.state_dict(), good)
    torch.save({"weight": torch.zeros(3)}, tmp_path / "other.pt")
    (tmp_path / "truncated.pt").write_bytes(good.read_bytes()[:100_000])
    lacking = {k: v for k, v in tiny_clip.state_dict().items() if k != "visual.bn2.weight"}
    torch.save(lacking, tmp_path / "lacking.pt")
    (tmp_path / "page.pt").write_text("<html>404 Not Found</html>")
    for name, message in (
        ("other.pt", "not a CLIP checkpoint"),
        ("truncated.pt", "truncated.pt"),
        ("lacking.pt", "visual.bn2.weight"),
        ("page.pt", "page.pt"),
        ("missing.pt", "missing.pt"),
    ):
        code, _, err = run("--output", str(run.output), weights=tmp_path / name)
        assert code == 2, name
        assert message in err
        assert str(tmp_path / name) in err
        assert err.startswith("eval.py: ")
        assert "Traceback" not in err
        assert not run.output.exists()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vision_layers": 1, "vision_width": 64, "vision_patch_size": 14, "image_resolution": 28}, "patches of 14 px"),
        ({"vocab_size": 600}, "a text encoder of 600 tokens"),
        ({"embed_dim": 60}, "128 patch channels cannot be thinned evenly to 60"),
    ],
)
def test_models_that_do_not_fit_are_one_sentence(run, tmp_path, change, message):
    torch.save(random_clip(replace(TINY, **change)).state_dict(), tmp_path / "other.pt")
    code, _, err = run("--output", str(run.output), weights=tmp_path / "other.pt")
    assert code == 2
    assert f"eval.py: --clip_path {tmp_path / 'other.pt'}: {message}" in err
    assert err.count("\n") == 1


def test_a_model_that_is_not_there_says_what_to_bring(run, monkeypatch, tmp_path):
    monkeypatch.setenv("CLIP_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CLIP_OFFLINE", "1")
    code, _, err = run(weights="RN50")
    assert code in (1, 2)
    assert str(tmp_path / "cache" / "RN50.pt") in err
    assert "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762" in err
    assert "--clip_path" in err


def beyond_range(pair) -> None:
    """Depth that is there, but at 11 m everywhere: outside what counts."""
    Image.fromarray(np.full((480, 640), 11000, dtype=np.uint16)).save(pair.depth)


def test_an_image_without_a_valid_pixel_ends_the_run_and_keeps_its_rows(run):
    beyond_range(scan_folder(run.root)[3])
    code, out, err = run("--output", str(run.output))
    assert code == 1
    assert "Avg" not in out
    assert "eval.py: kitchen/rgb_00001.jpg: no valid pixel, so no figures; remove it or pass --empty skip" in err
    assert len(journal_of(run.output)) == 3
    assert not (run.output / "results.json").exists()


@pytest.mark.parametrize("batch_size", ["1", "4"])
def test_images_without_a_valid_pixel_can_be_left_out(run, batch_size):
    pairs = scan_folder(run.root)
    beyond_range(pairs[3])
    spoil("no depth", pairs[1].rgb, pairs[1].depth)
    code, out, _ = run("--empty", "skip", "--output", str(run.output), "--batch_size", batch_size)
    assert code == 0
    assert "left out: 2 images without a valid pixel: bathroom/rgb_00008.jpg, kitchen/rgb_00001.jpg" in out
    rows, results = rows_of(run.output), results_of(run.output)
    assert [row["a1"] == "" for row in rows] == [False, True, False, True, False]
    assert results["images_without_valid_pixel"] == ["bathroom/rgb_00008.jpg", "kitchen/rgb_00001.jpg"]
    means = np.mean([[float(row[n]) for n in NYU_FIGURES] for row in rows if row["a1"]], axis=0)
    assert list(results["figures"].values()) == pytest.approx(list(means), abs=1e-9)


def test_no_image_with_a_valid_pixel_is_an_error_even_if_skipped(run):
    for pair in scan_folder(run.root):
        beyond_range(pair)
    code, out, err = run("--empty", "skip")
    assert code == 1
    assert "Avg" not in out
    assert "no image has a valid pixel" in err


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_predictions_that_are_not_finite_are_an_error_with_the_images_name(run, monkeypatch, value):
    def spoiled(self, features, names):
        depth = predict(self, features, names)
        depth[[name == target for name in names]] = value
        return depth

    predict = Predictor.__call__
    pairs = scan_folder(run.root)
    target = pairs[1].name
    assert run("--output", str(run.output / "honest"))[0] == 0
    monkeypatch.setattr(Predictor, "__call__", spoiled)
    code, out, err = run("--output", str(run.output))
    assert code == 1
    assert "Avg" not in out
    assert f"NaN or infinite depth predicted for {pairs[1].name} (this run: 226,304 pixels)" in err
    assert run("--output", str(run.output), "--nonfinite", "worst")[0] == 0
    honest, worst = results_of(run.output / "honest")["figures"], results_of(run.output)["figures"]
    assert worst["a1"] <= honest["a1"]
    assert worst["rmse"] > honest["rmse"]


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_file_damaged_after_the_check_ends_the_run_with_its_name(run, monkeypatch, workers):
    pair = scan_folder(run.root)[4]
    spoil("half JPEG", pair.rgb, pair.depth)
    monkeypatch.setattr(evaluation, "check_files", lambda *_, **__: None)
    code, _, err = run("--workers", workers, "--output", str(run.output))
    assert code == 1
    assert "Traceback" not in err
    assert re.search(r"eval\.py: .*kitchen/rgb_00013\.jpg: truncated or damaged", err)
    assert len(journal_of(run.output)) == 4


def test_pixels_dropped_for_a_prediction_of_zero_are_reported(run, monkeypatch):
    half = torch.zeros(1, 1, 13, 17).index_fill(3, torch.arange(9, 17), 2.0)  # 0 m on the left
    monkeypatch.setattr(Predictor, "__call__", lambda *_: half)
    code, out, _ = run("--limit", "1")
    assert code == 0
    assert re.search(r"warning: \d\d\d,\d\d\d more pixels were not counted", out)


def test_interrupted_run_says_how_far_it_came(run, monkeypatch):
    calls = []

    def interrupted(self, features, names):
        calls.append(names)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return torch.full((1, 1, 13, 17), 2.0)

    monkeypatch.setattr(Predictor, "__call__", interrupted)
    code, out, err = run("--output", str(run.output))
    assert code == 130
    assert "interrupted: 2 of 5 images done" in err
    assert "Avg" not in out
    assert len(journal_of(run.output)) == 2
    assert not (run.output / "results.json").exists()


def test_results_of_an_earlier_run_do_not_outlive_a_new_one(run):
    assert run("--output", str(run.output))[0] == 0
    beyond_range(scan_folder(run.root)[0])
    assert run("--output", str(run.output))[0] == 1
    assert not (run.output / "results.json").exists()


def test_output_that_cannot_be_written_is_one_sentence(run, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run("--output", str(tmp_path / "file" / "out"))
    assert code in (1, 2)
    assert str(tmp_path / "file") in err
    assert "Traceback" not in err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--batch_size", "0"), "0 is not 1 or more"),
        (("--workers", "-1"), "-1 is not 0 or more"),
        (("--limit", "0"), "0 is not 1 or more"),
        (("--dataset", "KITTI"), "invalid choice: 'KITTI'"),
        (("--other_method", "DORN"), "invalid choice: 'DORN'"),
        (("--precision", "int8"), "invalid choice: 'int8'"),
        (("--bin_list", "one"), "invalid float value: 'one'"),
    ],
)
def test_wrong_arguments_exit_with_2(flags, message, capsys):
    with pytest.raises(SystemExit) as error:
        evaluation.main(list(flags))
    assert error.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--bin_list", "1", "2"), "7 depth classes and 2 bins"),
        (("--temperature", "0"), "temperature must be positive"),
        (("--depth_templates", "far"), "must hold {} twice"),
        (("--device", "cuda:99"), "--device cuda:99: not available here"),
        (("--device", "abacus"), "--device abacus: not available here"),
        (("--device", "meta"), "--device meta: not available here"),
        (("--obj_classes", "far " * 80), "a prompt is too long: text 'This far far"),
        (("--nonfinite", "worst", "--figures", "--output", "x"), "--nonfinite worst cannot be drawn"),
        (("--readings", "/nowhere.json"), "--readings /nowhere.json: cannot be read (No such file or directory)"),
        (("--feature_cache", "/proc/version/x.h5"), "--feature_cache /proc/version: /proc/version is no folder"),
        (("--output", "/proc/version/out"), "/proc/version is no folder that can be written"),
    ],
)
def test_arguments_that_cannot_be_followed_are_one_sentence(run, no_model, flags, message):
    code, _, err = run(*flags)
    assert code == 2
    assert message in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_other_precisions_stay_close(run, precision):
    soft = ("--temperature", "10")  # so that a patch's depth is not one bin, whatever the precision
    assert run("--output", str(run.output), *soft)[0] == 0
    assert run("--output", str(run.output / precision), "--precision", precision, *soft)[0] == 0
    exact, rough = results_of(run.output)["figures"], results_of(run.output / precision)["figures"]
    assert exact != rough
    assert rough == pytest.approx(exact, abs=0.05)


def test_as_a_program_from_another_folder(run, tiny_checkpoint, tmp_path):
    command = [sys.executable, "-W", "error", str(Path(evaluation.__file__).resolve()), "--device", "cpu"]
    command += ["--data_path", str(run.root), "--clip_path", str(tiny_checkpoint), "--limit", "1", "--workers", "1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert " * Avg abs_diff : " in done.stdout
    assert re.search(r"\d images/s", done.stderr)


@pytest.mark.parametrize("batch_size", ["1", "4", "9"])
@pytest.mark.parametrize(
    ("expected", "flags"),
    [
        ("nyu_mini_expected.json", []),
        ("nyu_mini_expected.json", ["--exact"]),
        ("nyu_mini_expected_prompt2_bins3.json", ["--depth_classes", *PROMPT_2, "--bin_list", *BINS_3]),
    ],
)
def test_released_evaluation(nyu_mini, seed0, tmp_path, expected, flags, batch_size):
    torch.save(seed0, tmp_path / "seed0.pt")
    flags = [*RELEASED, "--data_path", str(nyu_mini), "--clip_path", str(tmp_path / "seed0.pt"), *flags]
    flags += ["--device", "cpu", "--output", str(tmp_path), "--batch_size", batch_size]
    assert evaluation.main(flags) == 0
    released = json.loads((GOLDEN / expected).read_text())
    for row, image in zip(rows_of(tmp_path), released["images"], strict=True):
        assert row["image"] == image["image"]
        assert {n: float(row[n]) for n in NYU_FIGURES} == pytest.approx({n: image[n] for n in NYU_FIGURES}, abs=1e-4)
    assert results_of(tmp_path)["figures"] == pytest.approx(released["mean"], abs=1e-4)


def test_released_depth_maps(nyu_mini, rn50):
    dataset = NYUDepthV2(scan_folder(nyu_mini), NYU_CROP, PAPER.image_mean, PAPER.image_std)
    with np.load(GOLDEN / "nyu_mini_expected_depth.npz") as file:
        expected = np.concatenate([file[name] for name in file.files])
    model = MonoCLIP(rn50)
    with torch.inference_mode():
        maps = [(model(s.image[None]) + model(s.image[None].flip(-1)).flip(-1)) / 2 for s in (dataset[0], dataset[8])]
    for ours, released in zip(maps, expected.reshape(-1, 13, 17)[[0, 8]], strict=True):
        assert np.abs(ours[0, 0].numpy() - released).max() < 1e-3


def test_paper_controls_and_figures_in_one_pass(run, monkeypatch):
    passes = []
    channel_features = MonoCLIP.channel_features
    monkeypatch.setattr(
        MonoCLIP, "channel_features", lambda self, x: passes.append(len(x)) or channel_features(self, x)
    )
    code, out, err = run("--paper", "--controls", "--figures", "--output", str(run.output))
    assert code == 0, err
    assert passes == [2] * 5  # each image and its mirror, once
    for title in (
        "Table 1: methods",
        "Prompt ablation",
        "Depth-bin ablation",
        "Controls",
        "What a constant cannot fake",
    ):
        assert title in out
    tables = (run.output / "tables.md").read_text()
    assert "DORN (depth) | as published, not measured here | 0.828 | 0.965 | 0.992 | 0.115 | 0.051 | 0.509" in tables
    assert "| prompt 1 | ours |" in tables
    assert "not the official test split of 654: the paper's figures are over other images and do not compare" in tables
    assert "bathroom only, 3 images" in tables
    assert "classroom only, 0 images" in tables
    assert r"\begin{tabular}{llrrrrrr}" in (run.output / "tables.tex").read_text()
    for name in ("qualitative.png", "bin_response.png", "rows.png"):
        with Image.open(run.output / name) as image:
            assert min(image.size) > 300
            assert image.convert("L").getextrema()[0] < 100
    results = results_of(run.output)
    assert (
        results["groups"]["word-to-bin permutations"]["min"]["a1"] <= results["rows"]["permutation 3"]["figures"]["a1"]
    )
    bathroom = results["scenes"]["bathroom"]["bins class-dependent 3"]["figures"]
    there = rows_of(run.output, "bins class-dependent 3")
    mean = {n: np.mean([float(r[n]) for r in there if r["scene"] == "bathroom"]) for n in ("a1", "rmse")}
    assert {n: bathroom[n] for n in mean} == pytest.approx(mean, abs=1e-9)
    assert bathroom["rmse"] != pytest.approx(np.mean([float(r["rmse"]) for r in there]), abs=1e-4)
    tables = (run.output / "tables.md").read_text()
    scene_table = tables[tables.index("## Depth-bin ablation (original prompts), bathroom") :]
    assert f"| class-dependent 3 | ours | {mean['a1']:.3f} |" in scene_table
    prompt_2 = results["rows"]["prompt 2"]
    assert prompt_2["interval_95"]["rmse"][0] <= prompt_2["figures"]["rmse"] <= prompt_2["interval_95"]["rmse"][1]
    alone = run("--depth_classes", *PROMPT_2, "--output", str(run.output / "alone"))[0]
    assert alone == 0
    single = results_of(run.output / "alone")["figures"]
    assert {name: prompt_2["figures"][name] for name in NYU_FIGURES} == pytest.approx(single, abs=1e-5)


def test_own_readings_from_a_file(run, tmp_path):
    path = tmp_path / "readings.json"
    path.write_text('[{"name": "near or far", "depth_classes": ["near", "far"], "bin_list": [1, 3], "temperature": 1}]')
    code, out, _ = run("--readings", str(path), "--output", str(run.output))
    assert code == 0
    assert re.search(r"^near or far +\d\.\d{3}", out, re.MULTILINE)
    flags = ["--depth_classes", "near", "far", "--bin_list", "1", "3", "--temperature", "1"]
    assert run(*flags, "--output", str(run.output / "alone"))[0] == 0
    for one, other in zip(rows_of(run.output, "near or far"), rows_of(run.output / "alone"), strict=True):
        for name in NYU_FIGURES:
            assert float(one[name]) == pytest.approx(float(other[name]), abs=1e-5)
    path.write_text("[]")
    code, _, err = run("--readings", str(path))
    assert code == 2
    assert f"{path}: expected a list of objects" in err


def test_scenes_can_be_chosen(run):
    assert run("--scene", "kitchen", "--output", str(run.output))[0] == 0
    assert {row["scene"] for row in rows_of(run.output)} == {"kitchen"}
    code, _, err = run("--scene", "attic", "kitchen")
    assert code == 2
    assert "--scene attic: no such scene here; there are bathroom, kitchen" in err


def test_a_prediction_that_is_not_finite_names_image_and_reading(run, monkeypatch):
    def spoiled(self, features, names):
        depth = predict(self, features, names)
        depth[:, 2, 0, 0] = float("nan")
        return depth

    predict = Predictor.__call__
    monkeypatch.setattr(Predictor, "__call__", spoiled)
    code, _, err = run("--paper")
    assert code == 1
    assert re.search(r"NaN or infinite depth predicted for bathroom/rgb_00000\.jpg \(prompt 2: \d[\d,]* pixels\)", err)


def test_rows_of_one_pass_equal_the_golden_evaluations(nyu_mini, seed0, tmp_path):
    torch.save(seed0, tmp_path / "seed0.pt")
    own = [{"name": "prompt 2, bins 3", "depth_classes": PROMPT_2, "bin_list": [float(b) for b in BINS_3]}]
    (tmp_path / "own.json").write_text(json.dumps(own))
    flags = ["--data_path", str(nyu_mini), "--clip_path", str(tmp_path / "seed0.pt"), "--device", "cpu", "--paper"]
    assert evaluation.main([*flags, "--readings", str(tmp_path / "own.json"), "--output", str(tmp_path)]) == 0
    for reading, file in (
        ("this run", "nyu_mini_expected.json"),
        ("prompt 2, bins 3", "nyu_mini_expected_prompt2_bins3.json"),
    ):
        released = json.loads((GOLDEN / file).read_text())
        for row, image in zip(rows_of(tmp_path, reading), released["images"], strict=True):
            assert {n: float(row[n]) for n in NYU_FIGURES} == pytest.approx(
                {n: image[n] for n in NYU_FIGURES}, abs=1e-4
            )
    model = clip.build_model(seed0)
    dataset = NYUDepthV2(scan_folder(nyu_mini), NYU_CROP, PAPER.image_mean, PAPER.image_std)
    single = MonoCLIP(model, Reading(depth_classes=PROMPT_2))
    with torch.inference_mode():
        expected = compute_errors_NYU(dataset[0].depth[None], single.predict(dataset[0].image[None]))
    row = rows_of(tmp_path, "prompt 2")[0]
    assert {n: float(row[n]) for n in NYU_FIGURES} == pytest.approx(expected, abs=1e-5)


@pytest.mark.weights
@pytest.mark.nyu
def test_the_papers_row(tmp_path):
    data, weights = os.environ.get("NYU_PATH"), os.environ.get("CLIP_PATH")
    if not data or not weights:
        pytest.skip("needs the real RN50 and NYU Depth V2: CLIP_PATH and NYU_PATH name them")
    assert len(scan_folder(Path(data))) == len(TEST_INDICES)
    assert evaluation.main(["--data_path", data, "--clip_path", weights, "--output", str(tmp_path)]) == 0
    figures = results_of(tmp_path)["figures"]
    # an independent run of the release (MoA-DepthCLIP, arXiv 2604.01118)
    published = {"a1": 0.390, "a2": 0.680, "a3": 0.848, "abs_rel": 0.393, "log10": 0.158, "rmse": 1.176}
    assert {name: figures[name] for name in published} == pytest.approx(published, abs=0.01)


def test_scoring_does_not_depend_on_the_number_of_threads(run, tmp_path):
    threads = torch.get_num_threads()
    rows = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            cache = ("--feature_cache", str(tmp_path / "features.h5"), "--workers", "0")  # the encoder runs once
            assert run(*cache, "--controls", "--limit", "2", "--output", str(tmp_path / str(count)))[0] == 0
            assert torch.get_num_threads() == count
            rows.append((tmp_path / str(count) / "per_image.csv").read_bytes())
    finally:
        torch.set_num_threads(threads)
    assert rows[0] == rows[1]
