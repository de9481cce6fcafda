"""benchmarks: they measure the same work, and their arithmetic is right. Nothing here asserts a speed."""

import copy
import json
import sys

import pytest
import torch
from torch.testing import assert_close

import clip
import eval as evaluation
from benchmarks import children, peak, plain, speed, variants, workload
from benchmarks.speed import Timing
from benchmarks.variants import Variant
from calculate_error import NYU_CROP, NYU_FIGURES, errors_NYU
from datasets.nyu import NYUDepthV2, scan_folder
from monoclip import PAPER, MonoCLIP

CPU = torch.device("cpu")


def nothing() -> None:
    """A variant's work."""


@pytest.fixture
def forms(tiny_clip) -> dict[str, clip.CLIP]:
    return {"fp32": clip.optimize_for_inference(copy.deepcopy(tiny_clip))}


def test_rows_by_hand():
    variants = [
        Variant("plain", "fp32", 1, nothing),
        Variant("fast", "bf16", 4, nothing),
        Variant("absent", "fp32", 1, None),
    ]
    seconds = {"plain": [0.5, 0.25, 1.0], "fast": [0.125, 0.125, 0.5]}  # quotients 1/4, 1/2, 1/2
    rows = speed.summarised(variants, seconds, gflop=100, peak={"fp32": 400})
    assert rows == [
        Timing("plain", "fp32", 1, ms=500, ratio=1, gflops=200, share=0.5),
        Timing("fast", "bf16", 4, ms=125, ratio=0.5, gflops=800, share=None),
        Timing("absent", "fp32", 1),
    ]
    lines = speed.table(rows).splitlines()
    assert lines[2] == "| plain | fp32 | 1 | 500.0 | 1.000 | 200 | 50% |  |"
    assert lines[3] == "| fast | bf16 | 4 | 125.0 | 0.500 | 800 | not measured |  |"
    assert "not installed" in lines[4]


def test_variants_take_turns_and_the_first_round_is_not_measured():
    calls = []
    variants = [
        Variant(name, "fp32", images, lambda name=name: calls.append(name)) for name, images in (("a", 1), ("b", 2))
    ]
    seconds = speed.take_turns([*variants, Variant("absent", "fp32", 1, None)], 3, CPU)
    assert calls == ["a", "b"] * 4
    assert {name: len(times) for name, times in seconds.items()} == {"a": 3, "b": 3}


def test_peaks_of_several_cores_add_up_and_zero_is_not_measured():
    assert peak.summed(["fp32 100.0\nbf16 0.0\n", "fp32 120.5\nbf16 0.0\n"]) == {"fp32": 220.5}


def test_without_a_compiler_there_is_no_peak(monkeypatch):
    monkeypatch.setattr(peak.shutil, "which", lambda name: None)
    assert peak.machine_peak(CPU, threads=2) == {}


def test_gflop_of_a_tiny_network_are_those_of_its_convolutions(tiny_clip):
    expected = 0

    def count(module, inputs, output):
        nonlocal expected
        expected += 2 * output.numel() * module.in_channels * module.kernel_size[0] * module.kernel_size[1]

    network = copy.deepcopy(tiny_clip)
    for module in network.visual.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.register_forward_hook(count)
    network.encode_patches(torch.zeros(2, 3, 64, 96))
    assert variants.encoder_gflop(tiny_clip, (64, 96)) == pytest.approx(expected / 1e9)


def test_plain_implementation_predicts_what_the_suite_predicts(tiny_clip, golden_inputs):
    model, image = MonoCLIP(tiny_clip), golden_inputs["x"][:1]
    with torch.inference_mode():
        pred = plain.predict(tiny_clip, model.text_features, model.bin_list, image)
        assert_close(pred, model.predict(image), rtol=0, atol=1e-5)
        errors = errors_NYU(golden_inputs["gt"][:1], pred)
    figures = plain.figures(golden_inputs["gt"][0, 0].clamp(0, 10), pred[0, 0])
    assert figures == pytest.approx([errors.figures[name].item() for name in NYU_FIGURES], abs=1e-6)


def test_encoders_that_are_compared_compute_the_same(tiny_clip, forms, tmp_path):
    compared = variants.encoder_variants(tiny_clip, forms, CPU, [1, 2], False, tmp_path)
    names = [variant.name for variant in compared]
    assert names[:4] == [
        "plain: image, then mirror",
        "plain network, image with mirror",
        "eval.py, fp32, 1 at once",
        "eval.py, fp32, 2 at once",
    ]
    with torch.inference_mode():
        assert [len(variant.run()) for variant in compared[:4]] == [2, 2, 2, 4]
        differences = variants.deviations(MonoCLIP(tiny_clip), compared[:4])
    assert differences["plain: image, then mirror"] == 0
    assert max(differences.values()) < 5e-5  # of single patches of noise


def test_runs_that_are_compared_give_the_same_figures(tiny_clip, forms, tmp_path):
    workload.write_images(tmp_path, 2)
    pairs = scan_folder(tmp_path)
    dataset = NYUDepthV2(pairs, NYU_CROP, PAPER.image_mean, PAPER.image_std)
    compared = variants.end_to_end_variants(tiny_clip, forms, CPU, dataset, pairs, 2)
    flags = ("", " --paper", " --paper --controls")
    assert [variant.name for variant in compared] == ["plain", *(f"eval.py{f}, fp32" for f in flags)]
    with torch.inference_mode():
        expected, *runs = (variant.run() for variant in compared)
        for records in runs:
            assert variants.mean_figures(records) == pytest.approx(expected, abs=1e-5)
        assert 0 < variants.encoder_share(forms["fp32"], dataset, CPU, 1) < 1


def test_new_words_on_cached_features(tiny_checkpoint, forms, tmp_path):
    workload.write_images(tmp_path / "two", 2)
    workload.link_images(tmp_path / "five", scan_folder(tmp_path / "two"), 5)
    cache = tmp_path / "features.h5"
    workload.write_cache(cache, tiny_checkpoint, forms["fp32"], tmp_path / "five", CPU)
    assert variants.cached_seconds(forms["fp32"], cache, 5, CPU) > 0
    flags = ["--data_path", tmp_path / "five", "--clip_path", tiny_checkpoint, "--device", "cpu"]
    assert evaluation.main([*map(str, flags), "--feature_cache", str(cache)]) == 0  # and eval.py takes it for its own


def test_a_process_is_measured_alone():
    ballast = torch.ones(2**26)  # 256 MiB in this process
    small = children.process("small", [sys.executable, "-S", "-c", "pass"])
    large = children.process("large", [sys.executable, "-S", "-c", "bytearray(b'x' * 10**8)"])
    assert len(ballast)
    assert small.peak_gb < 0.1 < large.peak_gb < 0.3


def test_one_command_writes_the_report(tiny_checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(speed, "machine_peak", lambda device, threads: {"fp32": 100.0})
    monkeypatch.setattr(speed, "processes", lambda *args: [children.process("python", [sys.executable, "-c", "pass"])])
    output = tmp_path / "speed"
    arguments = ["--clip_path", str(tiny_checkpoint), "--device", "cpu", "--images", "2", "--rounds", "1"]
    arguments += ["--cached_images", "2", "--batch_sizes", "1", "--output", str(output)]
    assert speed.main(arguments) == 0
    results = json.loads((output / "speed.json").read_text())
    assert [row["ratio"] for row in (results["encoder"][0], results["end_to_end"][0])] == [1, 1]
    assert results["gpu"] == "not run"
    assert results["facts"]["largest difference of a mean figure to the plain run's, fp32"] < 1e-5
    assert (output / "speed.png").read_bytes().startswith(b"\x89PNG")
    assert "| plain: image, then mirror | fp32 | 1 |" in capsys.readouterr().out


def test_a_missing_checkpoint_is_one_sentence(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(speed, "machine_peak", lambda device, threads: {})
    assert speed.main(["--device", "cpu", "--clip_path", str(tmp_path / "none.pt")]) == 1
    assert "none.pt" in capsys.readouterr().err
