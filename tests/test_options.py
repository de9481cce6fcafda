"""options: readings from flags, the device, streams that break, and how a command ends."""

import argparse
import errno
import shutil
from contextlib import nullcontext
from dataclasses import replace
from unittest.mock import Mock

import pytest
import torch

import options
from calculate_error import UnscorableError
from clip import CheckpointError
from datasets import DataError
from datasets.readings import IMAGE_STATISTICS, READINGS, checked_reading, statistics_of, with_statistics
from monoclip import PAPER, Reading
from viewer.terminal import ForgivingStream


def test_readings_of_flags_are_a_presets_but_for_what_is_given():
    parser = argparse.ArgumentParser()
    options.add_reading_arguments(parser)

    def reading(line: str) -> Reading:
        return options.reading_of(parser.parse_args(line.split()))

    assert [reading(f"--preset {name}") for name in READINGS] == list(READINGS.values())
    two = {"depth_classes": ("near", "far"), "bin_list": (3, 30)}
    assert reading("--depth_classes near far --bin_list 3 30") == checked_reading(two) == Reading(**two)
    assert reading("--preset auty --depth_classes near far --bin_list 3 30") == replace(READINGS["auty"], **two)
    flags = "--preset log --temperature 1 --readout attnpool --image_statistics clip --obj_classes car"
    clips = with_statistics(READINGS["log"], "clip")
    assert reading(flags) == replace(clips, temperature=1, readout="attnpool", obj_classes=("car",))
    named = [statistics_of(each) for each in (PAPER, clips, replace(clips, image_mean=PAPER.image_mean))]
    assert named == [*IMAGE_STATISTICS, "other"]
    with pytest.raises(options.UsageError, match="7 depth classes and 2 bins"):
        reading("--preset auty --bin_list 3 30")


def test_the_demos_checkpoint_needs_no_activation_whatever_its_name(tmp_path, tiny_checkpoint):
    copy = shutil.copy(options.DEMO_WEIGHTS, tmp_path / "mine.pt")
    for path, flag, said in (
        (copy, "auto", "quickgelu"),
        (tiny_checkpoint, "gelu", "gelu"),
        (copy, "gelu", "these weights were trained with QuickGELU"),
        (tiny_checkpoint, "auto", "does not tell QuickGELU from GELU"),
    ):
        with pytest.raises(CheckpointError, match=said) if " " in said else nullcontext():
            model, _, made = options.load_model(options.Setup(path, activation=flag))
            assert model.activation == made["activation"] == said


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bins": [1], "words": ["a"]}, "unknown field bins, words; known are depth_templates, obj_classes"),
        ({"bin_list": [1, 2]}, "7 depth classes and 2 bins"),
        ({"bin_list": ("1", 2, 3, 4, 5, 6, 7)}, "bin_list: expected a list of numbers, got"),
        ({"depth_classes": "near"}, "depth_classes: expected a list of words, got 'near'"),
        ({"depth_classes": (*PAPER.depth_classes[:6], " ")}, "depth_classes has an empty word"),
        ({"temperature": "1"}, "temperature: expected a number, got '1'"),
        ({"obj_classes": ()}, "obj_classes has no word or number"),
        ({"bin_list": (1, 2, 3, 4, 5, float("nan"), 10**400)}, "bin_list must be positive and finite"),
        ({"temperature": 0}, "temperature must be positive and finite"),
        ({"depth_templates": ["{0.__class__} {}"]}, "must hold {} twice"),
        ({"obj_classes": ["caf\udce9"]}, "obj_classes has a word whose bytes are no text"),
    ],
)
def test_a_reading_that_makes_no_depth_is_refused(values, message):
    with pytest.raises(ValueError, match=message):
        checked_reading(values)


def test_devices_and_precisions(monkeypatch):
    parser = argparse.ArgumentParser()
    for add in (options.add_model_arguments, options.add_reading_arguments, options.add_run_arguments):
        add(parser)
    for flags, expected in (("", "fp32"), ("--precision bf16 --gpu_num 7 --exact", "bf16")):
        setup, rank, count = options.setup_of(parser.parse_args(["--device", "cpu", *flags.split()]))
        assert (str(setup), setup.exact, rank, count) == (f"RN50 on cpu in {expected}", bool(flags), 0, 1)
        monkeypatch.setenv("WORLD_SIZE", "4")  # without RANK, it is some other program's
    for name in ("cuda:99", "abacus", "meta"):
        with pytest.raises(options.UsageError, match=f"--device {name}: not available here; use --device cpu or auto"):
            options.setup_of(parser.parse_args(["--device", name]))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch, "empty", Mock())
    assert str(options.setup_of(parser.parse_args(["--gpu_num", "1"]))[0]) == "RN50 on cuda:1 in fp16"


def test_a_reader_who_goes_away_ends_nothing_and_a_full_disk_is_said(tmp_path):
    full = OSError(errno.ENOSPC, "No space left on device")
    with (tmp_path / "file").open("w") as file:
        for error, needed in ((BrokenPipeError(), True), (full, False), (full, True)):
            stream = ForgivingStream(Mock(write=Mock(side_effect=error), fileno=file.fileno), needed)
            with pytest.raises(OSError, match="standard output") if error is full and needed else nullcontext():
                assert stream.write("text") == 4
        file.write("what is left in the buffer")
    assert (tmp_path / "file").read_text() == ""


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (options.UsageError("--x: no; use --y"), 2, "--x: no; use --y"),
        (DataError("caf\udce9.jpg: damaged\n  b.jpg: too"), 2, "caf\\xe9.jpg: damaged\n  b.jpg: too"),
        (CheckpointError("a.pt", "no checkpoint"), 2, "cannot use the checkpoint a.pt: no checkpoint"),
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

    assert options.run_command("prog", work) == code
    out, err = capsys.readouterr()
    assert (out, err.startswith(f"prog: {message}")) == ("so far\n", True)


def test_a_mistake_of_ours_is_not_hidden():
    for mistake in (ZeroDivisionError, RuntimeError, NotImplementedError):
        with pytest.raises(mistake):
            options.run_command("prog", Mock(side_effect=mistake()))
