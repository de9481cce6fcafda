"""test.sh and environment.sh: from any directory, every step skippable, and a clear word when something is missing."""

import html
import os
import re
import shutil
import subprocess
import sys

import pytest
import torch

from clip.checkpoint import CHECKPOINTS
from datasets.prepare_nyu import MAT_SHA256, MAT_SIZE, MAT_URLS
from tests.conftest import QUICKGELU, ROOT, TEN_MINUTES

# What decides from where files come, which each test says itself.
OURS = re.compile("CLIP_.*|NYU_PATH|NO_DOWNLOAD|VENV|(?i:.*_proxy)")


@pytest.fixture
def script(tmp_path):
    """`script(*flags, **variables)` runs a copy of test.sh, so that nothing is found or left beside the real one."""
    copy = tmp_path / "clone with a space"
    copy.mkdir()
    for entry in ROOT.iterdir():
        if entry.suffix in (".sh", ".txt", ".py"):
            shutil.copy(entry, copy)
    for package in ("clip", "datasets", "demo", "docs", "experiments", "viewer"):
        (copy / package).symlink_to(ROOT / package)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()

    def run(*flags: str, **variables: str) -> subprocess.CompletedProcess:
        environment = {
            **{name: value for name, value in os.environ.items() if not OURS.fullmatch(name)},
            "PIP_NO_INDEX": "1",  # it would take minutes
            "HOME": str(tmp_path / "home"),
            "PYTHON": sys.executable,
            "OMP_NUM_THREADS": str(torch.get_num_threads()),
            **variables,
        }
        command = ["sh", str(copy / "test.sh"), *flags]
        return subprocess.run(
            command, cwd=elsewhere, env=environment, capture_output=True, text=True, timeout=TEN_MINUTES
        )

    run.copy, run.elsewhere = copy, elsewhere
    return run


def test_from_weights_and_data_to_the_figures(script, tiny_checkpoint, nyu_folder):
    (script.elsewhere / "nyu").symlink_to(nyu_folder(2))  # relative to where the user stands
    flags = ("--limit", "1", "--data_path", "nyu", "--obj_classes", "large object", *QUICKGELU)
    done = script(*flags, CLIP_PATH=str(tiny_checkpoint))
    assert done.returncode == 0, done.stderr
    assert " * Avg abs_diff : " in done.stdout
    assert "1 image in the layout of NYU Depth V2" in done.stdout
    assert (script.copy / "results" / "results.json").is_file()
    assert '"large object"' in (script.copy / "results" / "results.json").read_text()
    assert [path.name for path in script.elsewhere.iterdir()] == ["nyu"]


def test_the_whole_paper_on_the_demo(script):
    done = script("--demo", "--paper", "--limit", "1")
    assert done.returncode == 0, done.stderr
    assert "it says nothing about the real CLIP or the paper's claim" in done.stdout
    assert "Prompt ablation" in done.stdout
    assert "Table 1" not in done.stdout
    output = script.copy / "results_demo_paper"
    assert f"The pictures, their true and their predicted depth: {output}/qualitative.png" in done.stdout
    assert {"results.json", "tables.md", "qualitative.png", "depth.html"} <= {path.name for path in output.iterdir()}
    assert "random channels, unsorted 0" in (output / "results.json").read_text()
    for name in ("tables.md", "depth.html"):
        text = html.unescape((output / name).read_text())
        assert "1 image of the demo's rendered rooms, not NYU Depth V2" in text
        assert "a toy CLIP that was taught distance on rendered rooms" in text
        assert str(script.copy.parent) not in text
        assert "1 images" not in text


def test_the_mat_beside_the_script_is_evaluated_as_it_is(script, tiny_checkpoint):
    (script.copy / "nyu_depth_v2").mkdir()
    (script.copy / "nyu_depth_v2" / "nyu_depth_v2_labeled.mat").write_text("no HDF5")
    done = script("--clip_path", str(tiny_checkpoint), *QUICKGELU, "--no_download")
    assert done.returncode == 2
    assert "nyu_depth_v2_labeled.mat: not a readable MATLAB v7.3 (HDF5) file" in done.stderr


@pytest.mark.parametrize("flags", [["--no_download"], []])
def test_who_is_offline_hears_in_one_line_what_to_bring_or_to_see(script, tmp_path, flags):
    """Either nothing is tried, or a proxy stands before every address whose name is none, and no resolver is asked."""
    dead = dict.fromkeys(("https_proxy", "http_proxy", "HTTPS_PROXY"), f"http://{'x' * 64}:1")
    done, told = script(*flags, **dead), script(*flags, "--verbose", **dead)
    assert (done.returncode, done.stdout, told.returncode) == (1, "", 1)
    *lines, last = done.stderr.splitlines()
    folder = script.copy / "nyu_depth_v2"
    bring = f"RN50.pt to ~/.cache/clip and nyu_depth_v2_labeled.mat to {folder} (docs/data.md)"
    assert last == f"test.sh: bring {bring}, or see it work now: sh test.sh --demo"
    assert len(lines) <= 3
    assert not re.search("https?://|[0-9a-f]{64}|Traceback", done.stderr)
    pinned = CHECKPOINTS["RN50"]
    for text in (*pinned.urls, pinned.sha256, pinned.hub, *MAT_URLS, MAT_SHA256, f"{MAT_SIZE:,}", f"{pinned.size:,}"):
        assert text in told.stderr
    assert not folder.exists()
    assert not (tmp_path / "home" / ".cache" / "clip").exists()


def test_other_data_than_nyu_is_not_fetched(script):
    done = script("--dataset", "KITTI", "--preset", "log")
    message = "test.sh: --dataset needs --data_path: only NYU's data are fetched; see sh test.sh --help\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", message)


def test_flags_may_be_written_with_an_equals_sign(script, tmp_path):
    done = script(f"--data_path={tmp_path}/nowhere", f"--clip_path={tmp_path}/none.pt", NO_DOWNLOAD="1")
    assert done.returncode == 2
    assert "nowhere: no such folder" in done.stderr


@pytest.mark.parametrize(
    ("lines", "satisfied"),
    [
        ("# nothing\n", True),
        ("numpy>=1.0  # a reason\npillow>=9\n", True),
        ("-r other.txt\n", False),
        ("numpy>=999.0\n", False),
        ("no-such-package>=1\n", False),
    ],
)
def test_requirements_are_compared_with_what_is_installed(tmp_path, lines, satisfied):
    (tmp_path / "requirements.txt").write_text(lines)
    (tmp_path / "other.txt").write_text("torch>=999\n")
    command = f'. "{ROOT}/environment.sh"; has_requirements "{sys.executable}" "{tmp_path}/requirements.txt"'
    assert (subprocess.run(["sh", "-c", command], timeout=TEN_MINUTES).returncode == 0) == satisfied


def test_an_old_python_is_refused(tmp_path):
    old = tmp_path / "python"
    old.write_text("#!/bin/sh\nexit 1\n")
    old.chmod(0o755)
    command = f'root="{tmp_path}"; . "{ROOT}/environment.sh"; choose_python "{ROOT}/requirements.txt"'
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHON": str(old)}
    shutil.copy(old, tmp_path / "python3")
    done = subprocess.run(["sh", "-c", command], env=environment, capture_output=True, text=True, timeout=TEN_MINUTES)
    assert done.returncode == 1
    assert "is not Python 3.11 or newer" in done.stderr
