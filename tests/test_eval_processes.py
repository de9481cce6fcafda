"""eval.py: the fast form of the network and the plain one, and several processes that share the images."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import eval as evaluation
from datasets.nyu import scan_folder
from evaluation.distributed import Processes
from tests.conftest import torchrun

ROOT = Path(__file__).parents[1]
SOFT = ("--temperature", "2")  # so that a tiny CLIP's depth is not one bin


@pytest.fixture
def flags(tiny_checkpoint, nyu_folder) -> list[str]:
    """What every run here shares: five images on a CPU."""
    return ["--data_path", str(nyu_folder(5)), "--clip_path", str(tiny_checkpoint), "--device", "cpu", *SOFT]


def figures_of(folder: Path) -> dict[str, float]:
    return json.loads((folder / "results.json").read_text())["figures"]


def rows_of(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "per_image.jsonl").read_text().splitlines()[1:]]


@pytest.mark.parametrize(("form", "tolerance"), [((), 2e-5), (("--precision", "bf16"), 0.01)])
def test_the_fast_forms_give_the_plain_figures(flags, tmp_path, form, tolerance):
    for name, more in (("plain", ("--exact",)), ("fast", form)):
        assert evaluation.main([*flags, *more, "--output", str(tmp_path / name)]) == 0
    expected = figures_of(tmp_path / "plain")
    assert figures_of(tmp_path / "fast") == {key: pytest.approx(v, abs=tolerance) for key, v in expected.items()}


def test_rows_of_another_form_of_the_network_are_not_resumed(flags, tmp_path, capsys):
    assert evaluation.main([*flags, "--output", str(tmp_path)]) == 0
    assert evaluation.main([*flags, "--output", str(tmp_path), "--resume", "--exact"]) == 2
    assert "made with another form of the network (--exact, --compile)" in capsys.readouterr().err


def test_exact_and_compile_exclude_each_other(flags, capsys):
    assert evaluation.main([*flags, "--exact", "--compile"]) == 2
    assert "drop one" in capsys.readouterr().err


@pytest.mark.parametrize(("count", "batch_size"), [(2, 2), (3, 1)])
def test_processes_give_the_figures_of_one(flags, tmp_path, count, batch_size):
    flags += ["--batch_size", str(batch_size)]
    assert evaluation.main([*flags, "--output", str(tmp_path / "one")]) == 0
    run = torchrun(count, ROOT / "eval.py", *flags, "--output", tmp_path / "several")
    assert run.returncode == 0
    assert run.stdout.count(" * Avg ") == 1
    assert f"shared by {count} processes" in run.stdout
    assert [row["image"] for row in rows_of(tmp_path / "several")] == [
        row["image"] for row in rows_of(tmp_path / "one")
    ]
    expected = figures_of(tmp_path / "one")
    assert figures_of(tmp_path / "several") == {key: pytest.approx(v, abs=1e-6) for key, v in expected.items()}


def test_an_image_that_cannot_be_scored_ends_all_processes_with_one_sentence(flags, tmp_path):
    pair = scan_folder(Path(flags[1]))[3]  # of the second process
    Image.fromarray(np.full((480, 640), 12000, dtype=np.uint16)).save(pair.depth)  # beyond the range of 10 m
    run = torchrun(2, ROOT / "eval.py", *flags, "--batch_size", "1", "--output", tmp_path / "out")
    assert run.returncode != 0
    assert run.stderr.count("no valid pixel") == 1
    assert len(rows_of(tmp_path / "out")) == 3
    assert not (tmp_path / "out" / "results.json").exists()


DIES = """
import os, signal, sys
sys.path.insert(0, sys.argv.pop(1))
import eval as evaluation
from evaluation import scoring

real, done = scoring.score, []

def score(*args, **kwargs):
    if os.environ["RANK"] == "1" and done:
        os.kill(os.getpid(), signal.SIGKILL)
    done.append(1)
    return real(*args, **kwargs)

scoring.score = score
sys.exit(evaluation.main(sys.argv[1:]))
"""


def test_a_process_that_dies_ends_the_run_and_resume_goes_on(flags, tmp_path):
    flags += ["--batch_size", "1"]
    script = tmp_path / "dies.py"
    script.write_text(DIES)
    run = torchrun(2, script, ROOT, *flags, "--output", tmp_path / "died")
    assert run.returncode != 0
    assert "SIGKILL" in run.stderr
    assert len(rows_of(tmp_path / "died")) == 2
    assert not (tmp_path / "died" / "results.json").exists()
    run = torchrun(2, ROOT / "eval.py", *flags, "--output", tmp_path / "died", "--resume")
    assert (run.returncode, "resuming: 2 of 5 images are done" in run.stdout) == (0, True)
    assert evaluation.main([*flags, "--output", str(tmp_path / "one")]) == 0
    assert rows_of(tmp_path / "died") == rows_of(tmp_path / "one")


def test_a_wrong_checkpoint_is_named_once(flags, tmp_path):
    run = torchrun(2, ROOT / "eval.py", *flags, "--clip_path", tmp_path / "none.pt")
    assert run.returncode != 0
    assert run.stderr.count("eval.py: ") == 1
    assert "none.pt" in run.stderr


def test_a_feature_cache_is_for_a_single_process(flags, tmp_path):
    run = torchrun(2, ROOT / "eval.py", *flags, "--feature_cache", tmp_path / "features.h5")
    assert run.returncode != 0
    assert run.stderr.count("--feature_cache is written and read by a single process") == 1


def test_more_processes_than_images_and_other_numbers_of_them_on_resume(flags, tmp_path):
    flags += ["--batch_size", "2"]
    assert torchrun(4, ROOT / "eval.py", *flags, "--output", tmp_path / "out").returncode == 0  # 3 batches
    whole = (tmp_path / "out" / "per_image.jsonl").read_bytes()
    lines = whole.splitlines(keepends=True)
    (tmp_path / "out" / "per_image.jsonl").write_bytes(b"".join(lines[:4]))  # one batch, and an image of the next
    run = torchrun(2, ROOT / "eval.py", *flags, "--output", tmp_path / "out", "--resume")
    assert run.returncode == 0
    assert "resuming: 2 of 5 images are done" in run.stdout
    assert (tmp_path / "out" / "per_image.jsonl").read_bytes() == whole


def test_a_journal_that_cannot_be_written_ends_all_processes(flags, tmp_path):
    script = tmp_path / "full.py"
    script.write_text(
        f"""
import errno, sys
sys.path.insert(0, {str(ROOT)!r})
import eval as evaluation
from evaluation.journal import Journal

def write(self, records):
    raise OSError(errno.ENOSPC, "No space left on device", str(self.path))

Journal.write = write
sys.exit(evaluation.main(sys.argv[1:]))
"""
    )
    run = torchrun(2, script, *flags, "--output", tmp_path / "out")
    assert run.returncode != 0
    assert "per_image.jsonl: No space left on device; make room" in run.stderr
    assert not run.stderr.count('eval.py", line')  # no traceback of ours


def test_a_gpu_cannot_be_chosen_for_all_processes(flags):
    run = torchrun(2, ROOT / "eval.py", *flags, "--device", "cuda:0")
    assert run.returncode != 0
    assert "every process takes a GPU of its own; leave out its number" in run.stderr


def test_a_gpu_for_each_process_is_needed(flags, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    args = evaluation.build_parser().parse_args([])
    with pytest.raises(evaluation.UsageError, match="4 processes need a GPU each, but there are 2"):
        evaluation.own_device(args, Processes(4, 3, 3, 4))
