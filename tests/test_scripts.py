"""test.sh and environment.sh: what runs with which arguments, what is fetched, and a sentence where something lacks."""

import os
import shlex
import shutil
import subprocess
import sys

import pytest
import torch

import eval as evaluation
from clip.checkpoint import CHECKPOINTS
from datasets.prepare_nyu import MAT_NAME, MAT_SHA256, MAT_SIZE, MAT_URLS
from experiments import __main__ as experiments
from tests.conftest import ROOT, TEN_MINUTES

REAL = f'exec "{sys.executable}" "$@"'
# A Python that lacks nothing, and only tells what it is to run, with $CLIP_OFFLINE before it.
TELLS = '[ "$1" = - ] || { printf "%s|" "${CLIP_OFFLINE:-0}" "$@"; echo; }'
FETCH = ["0", "-P", "-m", "datasets.prepare_nyu", "--download_only", "--output", "@/nyu_depth_v2"]
TOY = "--clip_path @/demo/rooms_clip.pt --data_path @/demo/sample --figures --output"
RN50, MAT = "RN50.pt to @/cache", f"{MAT_NAME} to @/nyu_depth_v2"
BRING = "bring {} (docs/data.md), or see it work now: sh test.sh --demo"


@pytest.fixture
def run(tmp_path):
    """`run(line, python)` runs two lines of shell, the other where $PYTHON is called; "@" is a copy of the clone."""
    copy, fake = tmp_path / "a clone", tmp_path / "python3"
    copy.mkdir()
    for path in ROOT.glob("[a-z]*"):
        (copy / path.name).symlink_to(path) if path.is_dir() else shutil.copy(path, copy)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "PYTHON": str(fake), "PIP_NO_INDEX": "1"}
    env |= {"HOME": str(tmp_path), "CLIP_CACHE": f"{copy}/cache", "OMP_NUM_THREADS": "1"}

    def shell(line: str, python: str = TELLS) -> subprocess.CompletedProcess[str]:
        fake.write_text(f"#!/bin/sh\n{python}\n")
        fake.chmod(0o755)
        command = ["sh", "-c", line.replace("@", shlex.quote(str(copy)))]
        done = subprocess.run(command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=TEN_MINUTES)
        done.stdout, done.stderr = (text.replace(str(copy), "@") for text in (done.stdout, done.stderr))
        done.calls = [line.split("|")[:-1] for line in done.stdout.splitlines() if "|" in line]
        return done

    return shell


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("sh @/test.sh --demo", f"{TOY} @/results_demo"),
        ("sh @/test.sh --output 'X Y' --demo", f"{TOY} 'X Y'"),
        ("CLIP_PATH=F NYU_PATH=D sh @/test.sh --demo --paper --output=X", f"{TOY} X"),
        ("sh @/test.sh --paper --clip_path F --data_path D", "--clip_path F --data_path D --output @/results_paper"),
        ("CLIP_PATH=F NYU_PATH=D sh @/test.sh --data_path=E", "--clip_path F --data_path E --output @/results"),
        ("sh @/test.sh --dataset KITTI --data_path D", "--dataset KITTI --data_path D --output @/results"),
        ("NYU_PATH=D sh @/test.sh --obj_classes 'a b' c", "--data_path D --obj_classes 'a b' c --output @/results"),
    ],
)
def test_arguments_are_handed_on(run, line, expected):
    start, more, module = ["0", "@/eval.py"], "--evaluate ", evaluation
    if "--paper" in line:
        start, more, module = ["0", "-P", "-m", "experiments"], "--controls --figures --html ", experiments
    (call,), parse = run(line).calls, module.build_parser().parse_args
    assert call[: len(start)] == start
    assert parse(call[len(start) :]) == parse(shlex.split(more + expected))


@pytest.mark.parametrize(
    ("there", "line", "code", "message"),
    [
        ("", "sh @/test.sh", 0, f"fetches {RN50} and {MAT}"),
        ("cache/RN50.safetensors", "NO_DOWNLOAD=0 sh @/test.sh --dataset NYU", 0, f"fetches {MAT}"),
        ("nyu_depth_v2/official_splits/test/a", "CLIP_PATH=F sh @/test.sh --no_download", 0, ""),
        ("", "sh @/test.sh --limit 1 --no_download", 1, BRING.format(f"{RN50} and {MAT}")),
        ("", "sh @/test.sh --no_download --clip_path /none", 1, f"{BRING.format(MAT)}; /none is not there"),
        ("", "sh @/test.sh --no_download --clip_path=ViT-B/32", 1, BRING.format(MAT)),
        (f"nyu_depth_v2/{MAT_NAME}", "NO_DOWNLOAD=1 sh @/test.sh", 1, BRING.format(RN50)),
        ("cache/RN50.pt", "CLIP_OFFLINE=1 sh @/test.sh --paper", 1, BRING.format(MAT)),
        ("", "sh @/test.sh --dataset KITTI", 2, "--dataset needs --data_path: only NYU's data are fetched"),
        ("", "sh @/test.sh --data_path=D --demo", 2, "--demo brings its own weights and data; drop --data_path"),
    ],
)
def test_what_is_missing_is_fetched_or_to_be_brought(run, tmp_path, there, line, code, message):
    place = tmp_path / "a clone" / there
    place.parent.mkdir(parents=True, exist_ok=True)
    place.touch()
    done = run(line)
    assert (done.returncode, done.stderr) == (code, f"test.sh: {message}\n" if message else "")
    assert done.calls[:-1] == [FETCH] * (code == 0 and MAT in message)
    assert [call[0] for call in done.calls[-1:]] == ["01"["--no_download" in line]] * (code == 0)


def test_a_failed_download_is_told_with_what_to_bring_and_with_verbose_from_where(run):
    done, told = (run(f"sh @/test.sh {flag}", '[ "$1" = - ]') for flag in ("", "--verbose"))  # all else fails
    message = f"test.sh: fetches {RN50} and {MAT}\ntest.sh: {BRING.format(f'{RN50} and {MAT}')}\n"
    assert (done.returncode, done.stdout, done.stderr) == (1, "", message)
    pinned = CHECKPOINTS["RN50"]
    for text in (*pinned.urls, pinned.sha256, pinned.hub, *MAT_URLS, MAT_SHA256, f"{MAT_SIZE:,}", f"{pinned.size:,}"):
        assert text in told.stderr


@pytest.mark.parametrize(
    ("flags", "text"),
    [
        ("--help", "The paper's evaluation with one command:  sh test.sh\n"),
        ("--demo --limit 1", "true and their predicted depth: qualitative.png in @/results_demo\n"),
        ("--paper --demo --limit 1", "words: depth.html in @/results_demo_paper\n"),
    ],
)
def test_the_demo_runs(run, flags, text):
    done = run(f"sh @/test.sh {flags}", REAL)
    assert done.returncode == 0, done.stderr
    assert text in done.stdout


TORCH = torch.__version__.partition("+")[0]


@pytest.mark.parametrize("lacking", ["", f"torch=={TORCH}.1", "numpy>=999.0", "no-such-package>=1", "-r other.txt"])
def test_requirements_are_compared_with_what_is_installed(run, tmp_path, lacking):
    (tmp_path / "requirements.txt").write_text(f"# nothing\ntorch=={TORCH}\nnumpy>=1.0  # a reason\n{lacking}\n")
    (tmp_path / "other.txt").write_text("torch>=999\n")
    done = run('. @/environment.sh; has_requirements "$PYTHON" requirements.txt', REAL)
    assert (done.returncode, done.stderr) == (bool(lacking), "")


@pytest.mark.parametrize(("new", "message"), [("false", "not Python 3.11 or"), ("true", "could not be installed")])
def test_a_python_that_lacks_something_is_not_taken(run, new, message):
    done = run("sh @/test.sh --demo", f'[ "$1" = -c ] && {new}')  # -c asks for its version
    assert (done.returncode, done.stdout) == (1, "")
    assert message in done.stderr
