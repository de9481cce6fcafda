"""eval: from the command line to the metrics, what it leaves behind, and every way in which it may end."""

import csv
import json
import os
import re
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import clip
import eval as evaluation
from calculate_error import NYU, NYU_METRICS, compute_errors_NYU
from datasets import nyu
from datasets.nyu import TEST_INDICES, open_nyu, scan_folder
from datasets.nyu_mat import LabelledMat
from experiments.published import beside, table
from monoclip import PAPER, MonoCLIP, Reading, depth_of
from tests.conftest import (
    ANY_BYTES_IN_NAMES,
    GOLDEN,
    QUICKGELU,
    ROOT,
    TEN_MINUTES,
    child,
    spoil,
    torchrun,
    write_mat,
    write_pair,
)
from viewer import notes

RELEASED = ["--evaluate", "--batch_size", "1", "--dataset", "NYU", "--gpu_num", "0", "--encoder", "AST"]
RELEASED += ["--other_method", "MonoCLIP"]
PROMPT_2 = ("extremely close", "very close", "close", "a little close", "a little far", "far", "unseen")
BINS_3 = ("1.00", "1.25", "1.50", "1.75", "2.00", "2.25", "2.50")
SOFT = ("--temperature", "2")  # so that a tiny CLIP's depth is not one bin


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


def one_sentence(err: str) -> str:
    """The error of a command, which begins with its name; progress bars may stand before it."""
    last = err.rstrip("\n").split("\n")[-1].split("\r")[-1]
    assert last.startswith("eval.py: "), err
    assert "Traceback" not in err
    return last


# The released implementation


@pytest.mark.parametrize("batch_size", [1, 4, 9])
@pytest.mark.parametrize(
    ("expected", "flags"),
    [
        ("nyu_mini_expected.json", []),
        ("nyu_mini_expected.json", ["--exact"]),
        ("nyu_mini_expected_prompt2_bins3.json", ["--depth_classes", *PROMPT_2, "--bin_list", *BINS_3]),
    ],
)
def test_released_evaluation(nyu_mini, seed0, run, tmp_path, expected, flags, batch_size):
    torch.save(seed0, tmp_path / "seed0.pt")
    flags = [*RELEASED, *flags, "--output", run.output, "--batch_size", batch_size]
    assert run(*flags, data=nyu_mini, weights=tmp_path / "seed0.pt")[0] == 0
    released = json.loads((GOLDEN / expected).read_text())

    def renamed(metrics: dict[str, float]) -> dict[str, float]:
        return {name: metrics[name.replace("delta", "a")] for name in NYU_METRICS}

    for row, image in zip(rows_of(run.output), released["images"], strict=True):
        assert row["image"] == image["image"]
        assert metrics_of(row) == pytest.approx(renamed(image), abs=1e-4)
    assert means_of(run.output) == pytest.approx(renamed(released["mean"]), abs=1e-4)


def test_released_depth_maps(nyu_mini, rn50):
    dataset = open_nyu(nyu_mini, NYU)
    with np.load(GOLDEN / "nyu_mini_expected_depth.npz") as file:
        expected = np.concatenate([file[name] for name in file.files]).reshape(-1, 13, 17)
    with torch.inference_mode():
        weights = MonoCLIP(rn50)(torch.stack([PAPER.normalised(dataset.pixels(i)) for i in (0, 8)]))
    depth = depth_of(weights, torch.tensor([PAPER.bin_list]))
    assert np.abs(depth[:, 0].numpy() - expected[[0, 8]]).max() < 1e-3


def test_released_command_line_prints_the_released_line_and_the_papers_row_where_it_compares(run):
    code, out, _ = run(*RELEASED)
    assert code == 0
    names = ("abs_diff", "a1", "a2", "a3", "abs_rel", "log10", "rmse")
    line = ", ".join(rf"{name} : \d\.\d{{3}}" for name in names)
    assert re.search(rf"^ \* Avg {line}$", out, re.MULTILINE)
    assert re.search(r"delta1 .* abs_rel +log10 +rmse\nthis run .*\nuniform weights \(2\.143 m\) +0\.", out)
    lines = {"this run": dict.fromkeys(NYU_METRICS, 0.5), **beside("NYU"), "uniform": dict.fromkeys(NYU_METRICS, 0.1)}
    assert re.search(r"this run +0\.500.*\npaper, DepthCLIP +0\.394.*\nuniform", table(lines))
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


# What it computes


def test_metrics_are_those_of_the_method_by_a_plain_loop(run, tiny_clip):
    own = Reading(
        depth_templates=("a {} which is {}", "This {} is {}"),
        obj_classes=("thing",),
        depth_classes=("near", "far away"),
        bin_list=(1.0, 4.0),
        temperature=0.5,
    )
    words = ["--depth_classes", *own.depth_classes, "--obj_classes", *own.obj_classes, "--bin_list", 1, 4]
    words += ["--depth_templates", *own.depth_templates, "--temperature", 0.5]
    plain = clip.build_model(tiny_clip.state_dict())
    for reading, flags in ((PAPER, ["--exact"]), (own, ["--exact", *words])):
        assert run("--output", run.output, *flags)[0] == 0
        model = MonoCLIP(plain, reading)
        dataset = open_nyu(run.root, NYU)
        expected: dict[str, list] = {"this run": [], "uniform weights": []}
        for i in range(len(dataset)):
            image, gt = PAPER.normalised(dataset.pixels(i)), dataset.depth(i)
            with torch.inference_mode():
                depth = model.predict(image[None])
            uniform = torch.full_like(depth, sum(reading.bin_list) / len(reading.bin_list))
            for row, pred in (("this run", depth), ("uniform weights", uniform)):
                expected[row].append(compute_errors_NYU(gt[None], pred))
        for row, errors in expected.items():
            got = rows_of(run.output, row)
            assert [each["image"] for each in got] == dataset.names
            assert [int(each["index"]) for each in got] == dataset.indices
            for one, other in zip(got, errors, strict=True):
                # One pixel in 220,000 at the very threshold is 5e-6.
                assert metrics_of(one) == pytest.approx(other, abs=1e-5)
            means = {name: np.mean([each[name] for each in errors]) for name in NYU_METRICS}
            assert means_of(run.output, row) == pytest.approx(means, abs=1e-5)
        assert results_of(run.output)["made_with"]["reading"]["bin_list"] == list(reading.bin_list)


def test_batch_size_and_workers_change_nothing(run):
    assert run("--output", run.output, *SOFT)[0] == 0
    assert run("--output", run.output / "other", *SOFT, "--batch_size", 2, "--workers", 3)[0] == 0
    for one, other in zip(rows_of(run.output), rows_of(run.output / "other"), strict=True):
        assert one["image"] == other["image"]
        assert metrics_of(one) == pytest.approx(metrics_of(other), abs=1e-5)


@pytest.mark.parametrize(("count", "limit"), [(2, 5), (3, 2)])
def test_processes_share_the_images_and_give_the_means_of_one(run, count, limit):
    assert run("--output", run.output / "one", "--limit", limit, *SOFT)[0] == 0
    flags = run.arguments("--output", run.output / "several", "--limit", limit, *SOFT)
    done = torchrun(count, ROOT / "eval.py", *flags)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count(" * Avg ") == 1
    assert f"{-(-limit // count)}/{-(-limit // count)} [" in done.stderr  # progress is that of the first process
    one, several = (rows_of(run.output / name) for name in ("one", "several"))
    assert [row["image"] for row in several] == [row["image"] for row in one]
    assert means_of(run.output / "several") == pytest.approx(means_of(run.output / "one"), abs=1e-5)


FAILING = """
import os, sys
sys.path.insert(0, {root!r})
import eval as evaluation
from calculate_error import UnscorableError

def spoiled(gt, pred, protocol, names, real=evaluation.compute_errors_per_image):
    if os.environ["RANK"] == "1":
        raise UnscorableError(f"{{names[0]}}: no metrics")
    return real(gt, pred, protocol, names)

evaluation.compute_errors_per_image = spoiled
sys.exit(evaluation.main())
"""


def test_an_image_without_metrics_is_named_and_ends_all_processes(run, tmp_path):
    (tmp_path / "failing.py").write_text(FAILING.format(root=str(ROOT)))
    done = torchrun(2, tmp_path / "failing.py", *run.arguments("--output", run.output))
    assert done.returncode != 0
    assert len(re.findall(r"eval\.py: \w+/rgb_\d+\.jpg: no metrics\n", done.stderr)) == 1
    assert "Avg" not in done.stdout
    assert not (run.output / "results.json").exists()


def test_another_precision_stays_close(run):
    soft = ("--temperature", "10", "--limit", 2)  # so that a patch's depth is not one bin, whatever the precision
    assert run("--output", run.output, *soft)[0] == 0
    assert run("--output", run.output / "bf16", "--precision", "bf16", *soft)[0] == 0
    exact, rough = means_of(run.output), means_of(run.output / "bf16")
    assert exact != rough
    assert rough == pytest.approx(exact, abs=0.05)


# Which images


def test_the_mat_and_the_folder_written_from_it_give_the_same_rows(run, tmp_path):
    images = [0, 1, 8]
    (tmp_path / "given").mkdir()
    write_mat(tmp_path / "given" / "nyu_depth_v2_labeled.mat", ["attic"] * 1449)
    folder = tmp_path / "folder" / "official_splits" / "test" / "attic"
    folder.mkdir(parents=True)
    with LabelledMat(tmp_path / "given" / "nyu_depth_v2_labeled.mat") as mat:
        for index in images:
            (folder / f"rgb_{index:05d}.jpg").write_bytes(mat.jpeg(index))
            (folder / f"sync_depth_{index:05d}.png").write_bytes(mat.png(index))
    for name, workers in (("given", 2), ("folder", 1)):
        flags = ("--limit", 3, "--workers", workers, "--scene", "attic", "--output", tmp_path / f"of {name}")
        assert run(*flags, *SOFT, data=tmp_path / name)[0] == 0
    given, folder = rows_of(tmp_path / "of given"), rows_of(tmp_path / "of folder")
    assert given == folder
    assert len({row["rmse"] for row in given}) == 3


def test_list_scene_and_limit_choose_the_images(run, tmp_path):
    lines = [f"{pair.scene}/{pair.rgb.name} {pair.scene}/{pair.depth.name}" for pair in scan_folder(run.root)]
    (tmp_path / "list.txt").write_text("\ufeff" + "\n".join(lines[:0:-1]))
    for flags, expected in (
        (("--list_file", tmp_path / "list.txt"), ["bathroom/8", "bathroom/14", "kitchen/1", "kitchen/13"]),
        (("--list_file", tmp_path / "list.txt", "--scene", "kitchen", "--limit", 1), ["kitchen/1"]),
        (("--scene", "kitchen", "bathroom", "--limit", 4), ["bathroom/0", "bathroom/8", "bathroom/14", "kitchen/1"]),
    ):
        assert run("--output", run.output, *flags)[0] == 0
        assert [f"{row['scene']}/{row['index']}" for row in rows_of(run.output)] == expected
    code, _, err = run("--scene", "attic", "kitchen")
    assert code == 2
    assert one_sentence(err) == "eval.py: --scene attic: no such scene here; there are bathroom, kitchen"


# What it leaves behind


def test_without_output_nothing_is_written(run, tmp_path, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    monkeypatch.chdir(tmp_path)
    assert run("--limit", 1)[0] == 0
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before


def test_results_say_what_they_were_made_with_and_the_strip_shows_them(run, tiny_checkpoint):
    assert run("--output", run.output, "--limit", 3, "--figures")[0] == 0
    assert {path.name for path in run.output.iterdir()} == {"results.json", "per_image.csv", "qualitative.png"}
    results = results_of(run.output)
    assert results["images"] == 3
    assert (results["schema"], results["protocol"]) == (4, notes.ABOUT["NYU"])
    assert re.fullmatch("unknown|[0-9a-f]{40}(-dirty)?", results["commit"])
    assert results["published"] == {}  # three images are not the split
    assert {row["protocol"] for row in rows_of(run.output)} == {"NYU"}
    made = results["made_with"]
    assert made["checkpoint_sha256"] == clip.checkpoint.file_sha256(tiny_checkpoint)
    assert (made["precision"], made["network"], made["torch"]) == ("fp32", "fast", torch.__version__)
    with Image.open(run.output / "qualitative.png") as strip:
        assert min(strip.size) > 700
        assert strip.convert("L").getextrema()[0] < 100
    assert run("--output", run.output, "--limit", 1)[0] == 0
    assert not (run.output / "qualitative.png").exists()  # it does not belong to the new rows
    assert "--figures needs --output" in one_sentence(run("--figures")[2])


def test_the_toy_and_the_demos_rooms_are_called_so_under_any_name(run, tmp_path, monkeypatch):
    captions = []
    monkeypatch.setattr(evaluation, "draw_strip", lambda path, examples, caption: captions.append(caption))
    (tmp_path / "RN50.pt").write_bytes((ROOT / "demo" / "rooms_clip.pt").read_bytes())
    rooms = ROOT / "demo" / "sample"
    flags = ("--output", run.output, "--figures", "--limit", 1)
    code, out, _ = run(*flags, data=rooms, weights=tmp_path / "RN50.pt")
    assert (code, results_of(run.output)["data"]) == (0, "1 image of sample")
    assert "counted: 1 image, " in out
    assert "\nA toy CLIP that was taught distance on rendered rooms: no evidence about the real CLIP" in out
    other, toy = results_of(run.output)["warnings"]
    assert captions == [f"Over 1 image of sample; {other}; {toy}."]
    assert str(tmp_path) not in captions[0] + json.dumps(results_of(run.output))
    assert "toy" not in run("--limit", 1, data=rooms)[1]  # another CLIP


@ANY_BYTES_IN_NAMES
def test_names_that_people_chose_stay_readable_and_lose_nothing(run, tmp_path):
    scenes = [b"caf\xe9", b"two\nlines", b"=1+1", b"\x1b[31mred", b"-x", b"@a", "\u4e2d".encode(), b"x" * 200]
    for i, scene in enumerate(scenes):
        write_pair(tmp_path / "odd" / os.fsdecode(scene), i)
    code, out, err = run("--output", run.output, "--figures", data=tmp_path / "odd")
    assert code == 0
    content = (run.output / "per_image.csv").read_bytes().decode()
    assert all(letter.isprintable() or letter == "\n" for letter in content)
    assert len(content.split("\n")) == 1 + 2 * len(scenes) + 1
    there = {row["scene"] for row in rows_of(run.output)}
    assert there == {r"caf\xe9", r"two\nlines", "'=1+1", r"\x1b[31mred", "'-x", "'@a", "\u4e2d", "x" * 200}
    (tmp_path / "odd" / os.fsdecode(scenes[3]) / "sync_depth_00003.png").write_bytes(b"none")
    again = run("--scene", r"\x1b[31mred", data=tmp_path / "odd")
    assert again[0] == 2
    assert r"\x1b[31mred/sync_depth_00003.png: no depth map, or truncated or damaged" in again[2]
    assert "\x1b" not in out + err + "".join(again[1:])


# What it refuses before a model is built


def test_all_problems_of_a_list_are_named_before_the_model_is_built(run, no_model, tmp_path):
    pairs = scan_folder(run.root)
    for kind, pair in zip(("half JPEG", "8-bit depth", "small depth", "no depth"), pairs, strict=False):
        spoil(kind, pair.rgb, pair.depth)
    pairs[4].depth.unlink()
    lines = [f"{pair.scene}/{pair.rgb.name} {pair.scene}/{pair.depth.name}" for pair in pairs]
    (tmp_path / "list.txt").write_text("\n\n".join(lines))
    code, out, err = run("--list_file", tmp_path / "list.txt", "--output", run.output)
    assert (code, out) == (2, "")
    assert err.startswith("eval.py: 5 problems in the data:\n")
    assert [int(re.match(r"  .*list\.txt, line (\d+): ", line)[1]) for line in err.splitlines()[1:]] == [9, 1, 3, 5, 7]
    assert not run.output.exists()


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--bin_list", "1", "2"), "7 depth classes and 2 bins"),
        (("--device", "abacus"), "--device abacus: not available here"),
        (("--data_path", "/nowhere"), "/nowhere: no such folder; bring nyu_depth_v2_labeled.mat there"),
        (("--list_file", "{pipe}"), "pipe: not a regular file"),
        (("--clip_path", "{pipe}"), "pipe: it is not a regular file"),
        (("--clip_path", "{text}"), "text: it is a web page, not weights"),
        (("--list_file", "/nowhere.txt"), "/nowhere.txt: cannot be read"),
    ],
)
def test_what_cannot_be_followed_is_one_sentence(run, no_model, tmp_path, flags, message):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "text").write_text("<html>404</html>")
    code, out, err = run(*(flag.format(pipe=tmp_path / "pipe", text=tmp_path / "text") for flag in flags))
    assert (code, "Avg" in out) == (2, False)
    assert message in one_sentence(err)
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--batch_size", "0"), "0 is not 1 or more"),
        (("--lim", "1"), "unrecognized arguments: --lim"),
    ],
)
def test_wrong_arguments_exit_with_2(flags, message, capsys):
    with pytest.raises(SystemExit) as error:
        evaluation.main(list(flags))
    assert error.value.code == 2
    assert message in capsys.readouterr().err


# How it may end in between


@pytest.fixture
def predicting(monkeypatch):
    """`predicting(change, call)` has the given call of `MonoCLIP.predict` (0, 1, ...) return change(depth)."""

    def arrange(change, call: int) -> None:
        calls = []

        def predict(self, *arguments):
            calls.append(arguments)
            depth = real(self, *arguments)
            return change(depth) if len(calls) == call + 1 else depth

        real = MonoCLIP.predict
        monkeypatch.setattr(MonoCLIP, "predict", predict)

    return arrange


def ended(run, code: int, message: str, done: int, *flags: str) -> None:
    """Asserts that a run ends with one sentence, keeps the rows of `done` images, and has no results."""
    run.output.mkdir(exist_ok=True)
    (run.output / "results.json").write_text("of an earlier run")
    got, out, err = run("--output", run.output, *flags)
    assert (got, "Avg" in out) == (code, False)
    assert message in one_sentence(err)
    (unfinished,) = run.output.glob("unfinished-*")
    rows = rows_of(unfinished)
    assert [row["image"] for row in rows] == [pair.name for pair in scan_folder(run.root)[:done]]
    assert (run.output / "results.json").read_text() == "of an earlier run"


@pytest.mark.parametrize(
    ("change", "code", "message"),
    [
        (
            lambda depth: depth.index_fill(2, torch.tensor(100), float("nan")),
            1,
            "eval.py: bathroom/rgb_00014.jpg: 544 of 226,304 predicted depths are NaN or infinite",
        ),
        (lambda _: torch.empty(2**60, dtype=torch.uint8), 1, "not enough memory; use smaller batches"),
        (lambda _: signal.default_int_handler(signal.SIGINT, None), 130, "eval.py: interrupted"),
    ],
    ids=("NaN", "memory", "Ctrl-C"),
)
def test_a_run_that_ends_early_says_why_and_keeps_its_rows(run, predicting, change, code, message):
    predicting(change, 2)
    ended(run, code, message, 2)


def test_a_file_damaged_after_the_check_is_named(run, monkeypatch):
    pair = scan_folder(run.root)[4]
    spoil("half JPEG", pair.rgb, pair.depth)
    monkeypatch.setattr(nyu, "check_files", lambda *_: [])
    ended(run, 2, "kitchen/rgb_00013.jpg: cannot be read as a picture", 4, "--workers", "3")


def test_a_full_disk_is_one_sentence_with_the_file(run):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (400, hard))  # the second image's row is cut
    try:
        ended(run, 1, "per_image.csv: File too large; make room", 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_rows_are_on_the_disk_before_the_next_image(run, predicting):
    def change(depth):
        assert len(rows_of(next(run.output.glob("unfinished-*")))) == 3
        return depth

    predicting(change, 3)
    assert run("--output", run.output)[0] == 0


def test_pixels_dropped_for_a_prediction_of_zero_are_reported(run, predicting):
    predicting(lambda depth: depth.index_fill(3, torch.arange(272), 0.0), 0)
    code, out, _ = run("--limit", "1")
    assert code == 0
    assert re.search(r"warning: 1\d\d,\d\d\d more pixels do not count", out)


def test_from_another_folder_without_a_home_and_with_closed_streams(run, tmp_path):
    """A reader of both streams that goes away, as `2>&1 | head -1` is; closed error."""
    environment = {key: value for key, value in os.environ.items() if key != "HOME"}
    command = ("-W", "error", ROOT / "eval.py", *run.arguments("--limit", 2, "--output", run.output))
    results = run.output / "results.json"
    reader, writer = os.pipe()
    os.close(reader)
    done = child(*command, cwd=tmp_path, env=environment, stdout=writer, stderr=writer)
    os.close(writer)
    assert (done.returncode, results.is_file()) == (0, True)
    results.unlink()
    closing = ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, *map(str, command)]
    done = subprocess.run(
        closing, cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True, timeout=TEN_MINUTES
    )
    assert (done.returncode, results.is_file()) == (0, True)
    assert " * Avg abs_diff : " in done.stdout
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs Linux's /dev/full, a device that is always full")
def test_a_full_standard_output_is_one_sentence(run):
    with open("/dev/full", "w") as full:
        done = child(ROOT / "eval.py", *run.arguments("--limit", 1, "--output", run.output), stdout=full)
    assert done.returncode == 1
    sentence = "eval.py: standard output: No space left on device; make room or choose another folder"
    assert one_sentence(done.stderr) == sentence
    assert not (run.output / "results.json").is_file()  # it ends at its first line, before the first image
