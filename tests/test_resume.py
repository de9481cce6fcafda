"""Stopped, repeated and cached runs of eval.py: nothing is lost, nothing is mixed, every byte is the same."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import h5py
import pytest
import torch

import eval as evaluation
from datasets.nyu import scan_folder
from evaluation import encode, fingerprint, scoring
from tests.conftest import TINY, random_clip, write_pair

TABLES = ("results.json", "per_image.csv", "tables.md", "tables.tex", "per_image.jsonl")
SOFT = ("--temperature", "2")  # so that a tiny CLIP's depth is not one bin


@pytest.fixture
def run(tiny_checkpoint, nyu_folder, tmp_path, capsys):
    """`run(*flags)` evaluates the tiny CLIP on five images and returns exit code, standard output and error."""
    root = nyu_folder(5)

    def arguments(*flags: str, weights: Path = tiny_checkpoint) -> list[str]:
        usual = ["--data_path", str(root), "--clip_path", str(weights), "--device", "cpu", "--batch_size", "1"]
        return [*usual, *SOFT, *map(str, flags)]

    def call(*flags: str, **kwargs: Path) -> tuple[int, str, str]:
        code = evaluation.main(arguments(*flags, **kwargs))
        return code, *capsys.readouterr()

    call.arguments, call.root, call.output = arguments, root, tmp_path / "out"
    return call


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in TABLES}


@pytest.fixture
def stops_after(monkeypatch):
    """`stops_after(k)` makes the next run end with an interrupt when k batches are scored."""

    def arrange(count: int) -> None:
        real, done = scoring.score, []

        def score(*args, **kwargs):
            if len(done) == count:
                monkeypatch.setattr(scoring, "score", real)
                raise KeyboardInterrupt
            done.append(1)
            return real(*args, **kwargs)

        monkeypatch.setattr(scoring, "score", score)

    return arrange


@pytest.mark.parametrize("batch_size", ["1", "2"])
def test_interrupted_and_resumed_is_byte_identical(run, stops_after, tmp_path, batch_size):
    flags = ("--batch_size", batch_size, "--paper")
    assert run("--output", tmp_path / "whole", *flags)[0] == 0
    stops_after(1)
    code, out, err = run("--output", run.output, *flags)
    assert code == 130
    assert f"interrupted: {batch_size} of 5 images done; resume with the same command and --resume" in err
    assert "Avg" not in out
    assert not (run.output / "results.json").exists()
    assert not (run.output / ".lock").exists()
    code, out, _ = run("--output", run.output, *flags, "--resume")
    assert code == 0
    assert f"resuming: {batch_size} of 5 images are done" in out
    assert contents(run.output) == contents(tmp_path / "whole")
    code, out, _ = run("--output", run.output, *flags, "--resume")  # once more: nothing is left to do
    assert code == 0
    assert "resuming: 5 of 5" in out
    assert contents(run.output) == contents(tmp_path / "whole")


def test_killed_and_resumed_is_byte_identical(run, tmp_path):
    assert run("--output", tmp_path / "whole")[0] == 0
    command = [sys.executable, str(Path(evaluation.__file__)), *run.arguments("--output", run.output)]
    slow = (
        "import sys, time, runpy; from evaluation import scoring; real = scoring.score\n"
        "def score(*a, **k):\n    time.sleep(0.5); return real(*a, **k)\n"
        "scoring.score = score; sys.argv = sys.argv[1:]; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(evaluation.__file__).parent)}
    process = subprocess.Popen([sys.executable, "-c", slow, *command[1:]], env=environment, stderr=subprocess.DEVNULL)
    journal = run.output / "per_image.jsonl"
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not (journal.exists() and journal.read_bytes().count(b"\n") >= 3):
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    done = journal.read_bytes().count(b"\n") - 1
    assert 2 <= done < 5
    assert (run.output / ".lock").exists()  # left behind; its process has ended
    torch_threads = json.loads(journal.read_text().splitlines()[0])["fingerprint"][
        "number of threads (OMP_NUM_THREADS)"
    ]
    assert torch_threads == torch.get_num_threads()
    code, out, _ = run("--output", run.output, "--resume")
    assert code == 0
    assert f"resuming: {done} of 5" in out
    assert contents(run.output) == contents(tmp_path / "whole")


def test_a_line_that_was_being_written_is_computed_again(run, tmp_path):
    assert run("--output", run.output)[0] == 0
    whole = contents(run.output)
    journal = run.output / "per_image.jsonl"
    journal.write_bytes(whole["per_image.jsonl"][:-200])
    code, out, _ = run("--output", run.output, "--resume")
    assert code == 0
    assert "resuming: 4 of 5" in out
    assert contents(run.output) == whole


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--temperature", "3"), "set of readings"),
        (("--batch_size", "3"), "--batch_size"),
        (("--limit", "4"), "data"),
        (("--precision", "bf16"), "precision"),
        (("--empty", "skip"), "--empty"),
    ],
)
def test_resume_refuses_other_settings_and_keeps_the_results(run, flags, message):
    assert run("--output", run.output)[0] == 0
    before = contents(run.output)
    code, _, err = run("--output", run.output, "--resume", *flags)
    assert code == 2
    assert f"made with another {message}" in err
    assert contents(run.output) == before


def test_resume_refuses_other_weights_and_other_data(run, tmp_path):
    assert run("--output", run.output)[0] == 0
    other = tmp_path / "other.pt"
    torch.save(random_clip(TINY, seed=7).state_dict(), other)
    code, _, err = run("--output", run.output, "--resume", weights=other)
    assert code == 2
    assert "made with another weights" in err
    write_pair(run.root / "official_splits" / "test" / "bathroom", 0, seed=77)
    code, _, err = run("--output", run.output, "--resume")
    assert code == 2
    assert "made with another data" in err


def test_a_failing_preflight_keeps_finished_results(run, tmp_path):
    assert run("--output", run.output)[0] == 0
    before = contents(run.output)
    assert run("--output", run.output, weights=tmp_path / "missing.pt")[0] == 2
    assert run("--output", run.output, "--scene", "attic")[0] == 2
    assert contents(run.output) == before


def test_starting_anew_over_an_unfinished_run_says_so(run, stops_after):
    stops_after(2)
    assert run("--output", run.output)[0] == 130
    code, out, _ = run("--output", run.output)
    assert code == 0
    assert "starting anew: the rows of an unfinished run" in out
    assert len((run.output / "per_image.jsonl").read_text().splitlines()) == 6


def test_a_second_process_in_the_same_folder_is_refused(run):
    run.output.mkdir()
    lock = run.output / ".lock"
    lock.write_text(json.dumps({"pid": os.getpid(), "host": os.uname().nodename}))
    code, _, err = run("--output", run.output)
    assert code == 2
    assert f"process {os.getpid()} on {os.uname().nodename} is writing here" in err
    assert f"delete {lock}" in err
    lock.write_text(json.dumps({"pid": os.getpid(), "host": "another-machine"}))
    assert run("--output", run.output)[0] == 2
    lock.write_text("")
    assert run("--output", run.output)[0] == 2
    assert not (run.output / "per_image.jsonl").exists()


def test_resume_and_figures_need_an_output(run):
    for flag in ("--resume", "--figures"):
        code, _, err = run(flag)
        assert code == 2
        assert f"{flag} needs --output" in err


def test_stdout_closed_early_loses_nothing(run):
    command = [sys.executable, "-W", "error", str(Path(evaluation.__file__)), *run.arguments("--output", run.output)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    process.stdout.readline()
    process.stdout.close()
    err = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 0, err
    assert "Error" not in err
    assert (run.output / "results.json").exists()


@pytest.mark.parametrize(("size", "file"), [(2_000, "per_image.jsonl"), (40_000, "results.json")])
def test_a_full_disk_is_one_sentence_with_the_file(run, size, file):
    limit = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}));"
    code = f"{limit} import sys, eval; sys.exit(eval.main(sys.argv[1:]))"
    environment = os.environ | {"PYTHONPATH": str(Path(evaluation.__file__).parent)}
    command = [sys.executable, "-c", code, *run.arguments("--output", run.output, "--paper")]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert str(run.output / file) in done.stderr
    assert "File too large" in done.stderr
    assert not (run.output / "results.json").exists()


def test_feature_cache_gives_the_same_figures_without_the_images(run, tmp_path, monkeypatch):
    cache = tmp_path / "features.h5"
    code, out, _ = run("--output", tmp_path / "first", "--feature_cache", cache, "--batch_size", "2")
    assert code == 0
    assert f"features: to be kept in {cache}" in out
    assert [path.name for path in tmp_path.glob("features*")] == ["features.h5"]

    def encoded(*_):
        raise AssertionError("an image was encoded again")

    monkeypatch.setattr(encode, "with_mirror", encoded)
    code, out, _ = run("--output", tmp_path / "second", "--feature_cache", cache, "--batch_size", "5")
    assert code == 0
    assert f"features: read from {cache}" in out
    first, second = (json.loads((tmp_path / n / "results.json").read_text())["figures"] for n in ("first", "second"))
    assert second == pytest.approx(first, abs=1e-6)
    assert run("--feature_cache", cache, "--depth_classes", "near", "far", "--bin_list", "1", "3")[0] == 0


def test_feature_cache_of_other_weights_or_data_is_refused(run, tmp_path):
    cache = tmp_path / "features.h5"
    assert run("--feature_cache", cache)[0] == 0
    before = cache.read_bytes()
    other = tmp_path / "other.pt"
    torch.save(random_clip(TINY, seed=7).state_dict(), other)
    code, out, err = run("--feature_cache", cache, weights=other)
    assert (code, "Avg" in out) == (2, False)
    assert f"eval.py: {cache}: made with another weights, so its features are not those of this run" in err
    assert err.count("\n") == 1
    code, _, err = run("--feature_cache", cache, "--precision", "bf16")
    assert code == 2
    assert "made with another precision" in err
    code, _, err = run("--feature_cache", cache, "--controls")
    assert code == 2
    assert "every second channel only" in err
    code, _, err = run("--feature_cache", cache, "--limit", "2")
    assert code == 2
    assert "made with another data" in err
    cache.write_bytes(before[:5000])
    code, _, err = run("--feature_cache", cache)
    assert code == 2
    assert "no feature cache, or a damaged one" in err


def test_a_file_that_went_away_is_named_with_a_feature_cache(run, tmp_path):
    cache = tmp_path / "features.h5"
    assert run("--feature_cache", cache)[0] == 0
    listed = [
        f"{pair.rgb.relative_to(pair.rgb.parents[1])} {pair.depth.relative_to(pair.rgb.parents[1])}"
        for pair in scan_folder(run.root)
    ]
    (tmp_path / "list.txt").write_text("\n".join([*listed[:-1], "office/rgb_09999.jpg office/sync_depth_09999.png"]))
    code, _, err = run("--feature_cache", cache, "--list_file", tmp_path / "list.txt")
    assert code == 2
    assert "rgb_09999.jpg" in err


def test_a_stopped_run_leaves_no_feature_cache(run, stops_after, tmp_path):
    cache = tmp_path / "features.h5"
    stops_after(2)
    assert run("--output", run.output, "--feature_cache", cache)[0] == 130
    assert list(tmp_path.glob("features*")) == []
    code, out, _ = run("--output", run.output, "--feature_cache", cache, "--resume")
    assert code == 0
    assert "not kept" in out
    assert not cache.exists()


def test_controls_from_a_cache_of_all_channels(run, tmp_path):
    cache = tmp_path / "features.h5"
    flags = ("--limit", "1", "--feature_cache", cache)
    assert run(*flags, "--controls", "--output", tmp_path / "one")[0] == 0
    assert run(*flags, "--controls", "--output", tmp_path / "two")[0] == 0
    assert run(*flags)[0] == 0
    one, two = (json.loads((tmp_path / name / "results.json").read_text())["groups"] for name in ("one", "two"))
    assert one == two


@pytest.mark.parametrize("workers", [0, 2])
def test_cached_features_are_scored_by_processes(run, tmp_path, workers):
    flags = ("--feature_cache", tmp_path / "features.h5", "--batch_size", "2", "--workers", workers)
    assert run(*flags, "--output", tmp_path / "one")[0] == 0
    assert run(*flags, "--output", tmp_path / "two")[0] == 0
    one, two = (json.loads((tmp_path / name / "results.json").read_text())["figures"] for name in ("one", "two"))
    assert one == {name: pytest.approx(value, abs=1e-6) for name, value in two.items()}
    with h5py.File(tmp_path / "features.h5", "r+") as file:
        file["features"][3] = float("nan")
    code, _, err = run(*flags, "--output", tmp_path / "three")
    assert code == 1
    assert err.count("NaN or infinite depth predicted") == 1
    assert "Traceback" not in err
    assert len((tmp_path / "three" / "per_image.jsonl").read_text().splitlines()) == 1 + 2


def test_the_code_that_the_rows_depend_on_is_found():
    for pattern in fingerprint.CODE:
        assert list(Path(evaluation.__file__).parent.glob(pattern)), pattern
