"""options: readings from flags, the device, streams that break, and how a command ends."""

import argparse
import errno
import io
import shutil
import sys
from dataclasses import replace

import pytest
import torch

import clip
import options
from calculate_error import UnscorableError
from clip import CheckpointError
from datasets import DataError
from datasets.readings import IMAGE_STATISTICS, READINGS, checked_reading, statistics_of, with_statistics
from monoclip import PAPER, Reading
from viewer.terminal import ForgivingStream


def test_a_checked_reading_is_the_papers_but_for_what_is_given():
    assert checked_reading({}) == PAPER
    given = {"depth_classes": ["near", "far"], "bin_list": [1, 3.5], "temperature": 1}
    assert checked_reading(given) == Reading(depth_classes=("near", "far"), bin_list=(1, 3.5), temperature=1)


def test_readings_of_flags_are_a_presets_but_for_what_is_given(capsys):
    parser = argparse.ArgumentParser()
    options.add_reading_arguments(parser)

    def reading(*flags: str) -> Reading:
        return options.reading_of(parser.parse_args(flags))

    assert [reading("--preset", name) for name in READINGS] == list(READINGS.values())
    words, bins = ("--depth_classes", "near", "far"), ("--bin_list", "3", "30")
    assert reading("--preset", "auty", *words, *bins) == replace(
        READINGS["auty"], depth_classes=("near", "far"), bin_list=(3, 30)
    )
    flags = ("--temperature", "1", "--readout", "attnpool", "--image_statistics", "clip", "--obj_classes", "car")
    clips = with_statistics(READINGS["log"], "clip")
    expected = replace(clips, temperature=1, readout="attnpool", obj_classes=("car",))
    assert reading("--preset", "log", *flags) == expected
    assert [statistics_of(r) for r in (PAPER, clips, replace(clips, image_mean=PAPER.image_mean))] == [
        *IMAGE_STATISTICS,
        "other",
    ]
    with pytest.raises(options.UsageError, match="7 depth classes and 2 bins"):
        reading("--preset", "auty", *bins)
    for flag in ("--preset", "--readout", "--image_statistics"):
        with pytest.raises(SystemExit):
            parser.parse_args([flag, "nonsense"])
        assert f"{flag}: invalid choice: 'nonsense'" in capsys.readouterr().err


def test_the_demos_checkpoint_needs_no_activation_whatever_its_name(tmp_path, tiny_checkpoint):
    copy = shutil.copy(options.DEMO_WEIGHTS, tmp_path / "mine.pt")
    for path in (options.DEMO_WEIGHTS, copy):
        assert clip.load(path, "cpu")[0].activation == "quickgelu"
        model, _, made = options.load_model(options.Setup(path))
        assert model.activation == made["activation"] == "quickgelu"
    with pytest.raises(CheckpointError, match="the demo's CLIP was trained with QuickGELU"):
        options.load_model(options.Setup(copy, activation="gelu"))
    with pytest.raises(CheckpointError, match="does not tell QuickGELU from GELU"):
        options.load_model(options.Setup(tiny_checkpoint))
    assert options.load_model(options.Setup(tiny_checkpoint, activation="gelu"))[0].activation == "gelu"


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
        ({"obj_classes": ["caf\udce9"]}, "obj_classes has a word whose bytes are no text"),
    ],
)
def test_a_reading_that_makes_no_depth_is_refused(values, message):
    with pytest.raises(ValueError, match=message) as error:
        checked_reading(values)
    assert "truncate" not in str(error.value)  # which is no flag


@pytest.mark.parametrize("name", ["cuda:99", "abacus", "meta"])
def test_a_device_that_is_not_here_is_refused(name):
    with pytest.raises(options.UsageError, match=f"--device {name}: not available here; use --device cpu or auto"):
        options.choose_device(name)


def test_devices_and_precisions(monkeypatch):
    assert options.choose_device("cpu", gpu=7) == torch.device("cpu")
    for flag, device, expected in (("auto", "cpu", "fp32"), ("auto", "cuda", "fp16"), ("bf16", "cpu", "bf16")):
        args = argparse.Namespace(clip_path="RN50", precision=flag, exact=False, activation="auto")
        setup = options.setup_of(args, PAPER, torch.device(device))
        assert str(setup) == f"RN50 on {device} in {expected}"
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
        assert ForgivingStream(Broken(BrokenPipeError(), file), needed=True).write("text") == 4
        assert ForgivingStream(Broken(full, file), needed=False).write("text") == 4
        with pytest.raises(OSError, match="standard output"):
            ForgivingStream(Broken(full, file), needed=True).write("text")
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
