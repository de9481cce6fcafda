"""options: readings from flags and files, the device, streams that break, and how a command ends."""

import argparse
import errno
import io
import os
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pytest
import torch

import clip
import options
from calculate_error import KITTI_BTS, NYU, UnscorableError
from clip import CheckpointError
from datasets import DataError
from experiments.published import AUTY, LOG_BINS
from monoclip import PAPER, MonoCLIP, Reading
from tests.conftest import random_clip
from tests.test_model import TINY_VIT


def test_a_checked_reading_is_the_papers_but_for_what_is_given():
    assert options.checked_reading({}) == PAPER
    given = {"depth_classes": ["near", "far"], "bin_list": [1, 3.5], "temperature": 1}
    assert options.checked_reading(given) == Reading(depth_classes=("near", "far"), bin_list=(1, 3.5), temperature=1)


def test_read_out_and_image_statistics_come_from_the_flags(capsys):
    parser = argparse.ArgumentParser()
    options.add_reading_arguments(parser)
    assert options.reading_of(parser.parse_args([])) == PAPER
    args = parser.parse_args(["--readout", "maskclip", "--image_statistics", "clip", "--temperature", "1"])
    clips = replace(PAPER, image_mean=clip.CLIP_MEAN, image_std=clip.CLIP_STD)
    assert options.reading_of(args) == replace(clips, readout="maskclip", temperature=1)
    assert options.with_statistics(clips, "imagenet") == PAPER
    assert [options.statistics_of(reading) for reading in (PAPER, clips)] == ["imagenet", "clip"]
    assert options.statistics_of(replace(clips, image_mean=PAPER.image_mean)) == "other"
    for flag in ("--readout", "--image_statistics"):
        with pytest.raises(SystemExit):
            parser.parse_args([flag, "nonsense"])
        assert f"{flag}: invalid choice: 'nonsense'" in capsys.readouterr().err


def test_a_preset_is_what_is_not_given(capsys):
    parser = argparse.ArgumentParser()
    options.add_reading_arguments(parser)

    def reading(*flags: str) -> Reading:
        return options.reading_of(parser.parse_args(flags))

    assert (reading(), reading("--preset", "paper")) == (PAPER, PAPER)
    assert (reading("--preset", "auty"), reading("--preset", "log")) == (AUTY, LOG_BINS)
    words, bins = ("--depth_classes", "near", "far"), ("--bin_list", "3", "30")
    own = replace(AUTY, depth_classes=("near", "far"), bin_list=(3, 30))
    assert reading("--preset", "auty", *words, *bins) == own
    assert reading(*bins, *words) == replace(PAPER, depth_classes=("near", "far"), bin_list=(3, 30))
    flags = ("--temperature", "1", "--readout", "attnpool", "--image_statistics", "clip", "--obj_classes", "car")
    clips = options.with_statistics(LOG_BINS, "clip")
    expected = replace(clips, temperature=1, readout="attnpool", obj_classes=("car",))
    assert reading("--preset", "log", *flags) == expected
    assert reading("--preset", "auty", "--depth_templates", "a {} {}").depth_templates == ("a {} {}",)
    with pytest.raises(options.UsageError, match="7 depth classes and 2 bins"):
        reading("--preset", "auty", *bins)
    with pytest.raises(SystemExit):
        parser.parse_args(["--preset", "nonsense"])
    assert "--preset: invalid choice: 'nonsense'" in capsys.readouterr().err


def test_what_is_not_the_papers_is_said(tiny_clip):
    vit = random_clip(TINY_VIT)
    other = "{}: not the paper's setting"
    resized = "images of 416x544 px are resized to 420x546, whole patches of 14 px"
    for official, clip_model, changes, notes in (
        (True, tiny_clip, {}, []),
        (False, tiny_clip, {}, [NYU.whole_split]),
        (True, tiny_clip, {"readout": "attnpool"}, [other.format("patch features by attnpool")]),
        (True, tiny_clip, {"image_mean": clip.CLIP_MEAN}, [other.format("image statistics of other")]),
        (True, vit, {}, [options.INVERTED]),
        (
            True,
            vit,
            {"readout": "clearclip", "image_mean": clip.CLIP_MEAN, "image_std": clip.CLIP_STD},
            [other.format("patch features by clearclip and image statistics of clip")],
        ),
        (False, random_clip(replace(TINY_VIT, vision_patch_size=14)), {"readout": "maskclip"}, None),
    ):
        model = MonoCLIP(clip_model, replace(PAPER, **changes))
        expected = [NYU.whole_split, other.format("patch features by maskclip"), resized] if notes is None else notes
        assert options.caveats(official, "0" * 64, model) == expected
        assert options.readout_notes(model) == [n for n in expected if n not in (NYU.whole_split, resized)]


@pytest.mark.parametrize(
    ("bins", "protocol", "said"),
    [
        ((7.9,), KITTI_BTS, "no bin is beyond 7.9 m, where ground truth goes to 80 m"),
        ((8.0,), KITTI_BTS, None),
        ((80.0,), KITTI_BTS, None),
        ((81.0,), KITTI_BTS, "bins beyond 80 m, to which depth is clamped"),
        ((10.5,), NYU, "bins beyond 10 m, to which depth is clamped"),
        ((0.5,), NYU, None),
        (LOG_BINS.bin_list, KITTI_BTS, "bins that are ours, spread in log depth, and published nowhere"),
    ],
)
def test_bins_that_do_not_fit_the_data_and_ours_are_said(tiny_clip, bins, protocol, said):
    reading = replace(PAPER, bin_list=bins, depth_classes=PAPER.depth_classes[: len(bins)])
    notes = options.caveats(True, "0" * 64, MonoCLIP(tiny_clip, reading), protocol)
    assert len(notes) == (said is not None)
    assert all(said in note for note in notes)


def test_the_demos_checkpoint_needs_no_activation_whatever_its_name(tmp_path, tiny_checkpoint):
    copy = shutil.copy(options.DEMO_WEIGHTS, tmp_path / "mine.pt")
    for path in (options.DEMO_WEIGHTS, copy):
        model, _ = options.load_model(path, torch.device("cpu"), "fp32", PAPER)
        assert model.activation == "quickgelu"
    with pytest.raises(CheckpointError, match="does not tell QuickGELU from GELU"):
        options.load_model(tiny_checkpoint, torch.device("cpu"), "fp32", PAPER)
    model, _ = options.load_model(tiny_checkpoint, torch.device("cpu"), "fp32", PAPER, activation="gelu")
    assert model.activation == "gelu"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bins": [1], "words": ["a"]}, "unknown field bins, words; known are depth_templates, obj_classes"),
        ({"bin_list": ["1"]}, r"bin_list: expected a list of numbers, got \['1'\]"),
        ({"bin_list": [1, 2]}, "7 depth classes and 2 bins"),
        ({"bin_list": ("1", 2, 3, 4, 5, 6, 7)}, "bin_list: expected a list of numbers, got"),
        ({"depth_classes": "near"}, "depth_classes: expected a list of words, got 'near'"),
        ({"depth_classes": (*PAPER.depth_classes[:6], " ")}, "depth_classes has an empty word"),
        ({"temperature": "1"}, "temperature: expected a number, got '1'"),
        ({"obj_classes": ()}, "obj_classes has no word or number"),
        ({"bin_list": (1, 2, 3, 4, 5, 6, float("nan"))}, "bin_list must be positive and finite"),
        ({"temperature": 10**400}, "temperature must be positive and finite"),
        ({"temperature": 0}, "temperature must be positive"),
        ({"depth_templates": ["{0.__class__} {}"]}, "must hold {} twice"),
        ({"obj_classes": ["far " * 80]}, "has 85 tokens .*more than the context length of 77"),
    ],
)
def test_a_reading_that_makes_no_depth_is_refused(values, message):
    with pytest.raises(options.UsageError, match=f"^here: .*{message}") as error:
        options.checked_reading(values, where="here: ")
    assert "truncate" not in str(error.value)  # which is no flag


@pytest.mark.parametrize("name", ["cuda:99", "abacus", "meta"])
def test_a_device_that_is_not_here_is_refused(name):
    with pytest.raises(options.UsageError, match=f"--device {name}: not available here; use --device cpu or auto"):
        options.choose_device(name)


def test_devices_and_precisions(monkeypatch):
    assert options.choose_device("cpu", gpu=7) == torch.device("cpu")
    assert options.choose_precision("auto", torch.device("cpu")) == "fp32"
    assert options.choose_precision("auto", torch.device("cuda")) == "fp16"
    assert options.choose_precision("bf16", torch.device("cpu")) == "bf16"
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert options.own_device("cpu") == (torch.device("cpu"), 0, 1)
    monkeypatch.setenv("WORLD_SIZE", "4")  # without RANK, it is some other program's
    assert options.own_device("cpu") == (torch.device("cpu"), 0, 1)


def test_an_output_that_cannot_be_is_refused_and_nothing_is_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(options.UsageError, match=r"--output .*: .*file is no folder that can be written"):
        options.check_output(tmp_path / "file" / "a" / "b")
    options.check_output(tmp_path / "new" / "folder")
    options.check_output(None)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_results_name_the_commit_of_this_checkout_and_of_no_other(tmp_path, monkeypatch):
    for name in os.environ:
        if name.startswith("GIT_"):  # another repository, as in a hook
            monkeypatch.delenv(name)
    for name in ("HOME", "XDG_CONFIG_HOME"):  # no hooks, signatures and names of branches of somebody's
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")

    def git(*command: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.example")
        return subprocess.run(
            ["git", "-C", tmp_path, *who, *command], check=True, capture_output=True, text=True
        ).stdout

    def found_in(folder: str) -> str:
        monkeypatch.setattr(options, "__file__", str(tmp_path / folder / "options.py"))
        assert list(options.identified(NYU)) == ["schema", "protocol", "protocol_name", "commit"]
        return options.identified(NYU)["commit"]

    (tmp_path / "options.py").write_text("")
    (tmp_path / "unpacked").mkdir()
    assert found_in("") == "unknown"
    for command in (
        ("init", "--template="),
        ("add", "options.py"),
        ("commit", "-m", "one"),
        ("tag", "-a", "v1", "-m", "one"),
    ):
        git(*command)
    head = git("rev-parse", "HEAD").strip()
    assert re.fullmatch("[0-9a-f]{40}", head)
    assert found_in("") == head  # unpacked/ is not tracked
    assert found_in("unpacked") == "unknown"  # a zip, unpacked in somebody's repository
    (tmp_path / "options.py").write_text("changed")
    assert found_in("") == f"{head}-dirty"
    monkeypatch.setenv("PATH", "")
    assert found_in("") == "unknown"


class Broken(io.StringIO):
    """A stream on which every write fails."""

    def __init__(self, error: OSError, file: io.IOBase) -> None:
        super().__init__()
        self.error, self.file = error, file

    def write(self, text: str) -> int:
        raise self.error

    def fileno(self) -> int:
        return self.file.fileno()


def test_a_reader_who_goes_away_ends_nothing_and_a_full_disk_is_said(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    with (tmp_path / "file").open("w") as file:
        assert options.ForgivingStream(Broken(BrokenPipeError(), file), needed=True).write("text") == 4
        assert options.ForgivingStream(Broken(full, file), needed=False).write("text") == 4
        with pytest.raises(OSError, match="standard output"):
            options.ForgivingStream(Broken(full, file), needed=True).write("text")
        file.write("what is left in the buffer")
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (options.UsageError("--x: no; use --y"), 2, "--x: no; use --y"),
        (DataError("a.jpg: damaged\n  b.jpg: too"), 2, "a.jpg: damaged\n  b.jpg: too"),
        (DataError("caf\udce9.jpg: damaged"), 2, r"caf\xe9.jpg: damaged"),
        (CheckpointError("a.pt", "no checkpoint"), 2, "a.pt"),
        (UnscorableError("a.jpg: no valid pixel"), 1, "a.jpg: no valid pixel"),
        (options.WorkError("too small"), 1, "too small"),
        (MemoryError(), 1, "not enough memory; use smaller batches"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), 1, "not enough memory"),
        (OSError(errno.ENOSPC, "No space left on device", "a.csv"), 1, "a.csv: No space left on device; make room"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_a_command_ends_in_one_sentence_and_an_exit_code(error, code, message, capsys):
    def work() -> None:
        print("so far")
        raise error

    streams = sys.stdout, sys.stderr
    assert options.run_command("prog", work) == code
    assert (sys.stdout, sys.stderr) == streams
    out, err = capsys.readouterr()
    assert out == "so far\n"
    assert err.startswith("prog: ")
    assert message in err
    assert options.run_command("prog", lambda: None) == 0


def test_a_mistake_of_ours_is_not_hidden():
    with pytest.raises(ZeroDivisionError):
        options.run_command("prog", lambda: 1 / 0)
