"""benchmarks: what is compared computes the same, and the printed ratios are right. Nothing here asserts a speed."""

from functools import partial

import pytest
import torch
from torch.testing import assert_close

import clip
import eval as evaluation
import options
from benchmarks import plain, speed
from calculate_error import NYU, NYU_METRICS
from datasets.nyu import open_nyu
from monoclip import PAPER, MonoCLIP

CPU = torch.device("cpu")


def test_plain_implementation_predicts_what_the_method_predicts(tiny_clip, golden_inputs):
    image = golden_inputs["x"][:1]
    with torch.inference_mode():
        text_features, model = plain.words(tiny_clip), MonoCLIP(tiny_clip)
        assert_close(text_features, model.text_features, rtol=0, atol=1e-5)
        assert_close(plain.predict(tiny_clip, text_features, image), model.predict(image), rtol=0, atol=1e-4)


def test_plain_implementation_has_the_metrics_of_an_evaluation(tiny_checkpoint, nyu_folder):
    folder = nyu_folder(3)
    _, model, _ = options.load_model(options.Setup(tiny_checkpoint, activation="quickgelu"))
    dataset = open_nyu(folder, NYU, limit=2)
    batches = dataset.batches([[0], [1]], PAPER.normalised)
    rows, _ = evaluation.evaluate(partial(evaluation.predict_depth, model, NYU), batches, dataset, NYU)
    found = plain.evaluate(clip.load(tiny_checkpoint, CPU, activation="quickgelu")[0], folder, limit=2)
    assert tuple(found) == NYU_METRICS
    assert found == pytest.approx(evaluation.mean(rows), abs=1e-4)


def test_ratios_by_hand():
    seconds = {name: [1.0, 1.0, 1.0] for name in speed.COMMANDS}
    seconds |= {"plain": [10.0, 20.0, 40.0], "eval.py, fp32": [5.0, 16.0, 28.0]}
    _, line, *_ = speed.result_lines(seconds)  # within rounds .5, .8 and .7
    assert line == "eval.py, fp32: 16.0 s; 0.700 of plain; 1.000 of eval.py, fp32"


def test_images_are_new_to_the_store_and_a_command_that_fails_is_one_sentence(tmp_path):
    speed.write_images(tmp_path, 20, 18)
    dataset = open_nyu(tmp_path, NYU)
    assert (len(dataset), len({dataset.image_sha256(item) for item in range(20)})) == (20, 18)
    with pytest.raises(options.WorkError, match=r"eval\.py --nothing failed: .*unrecognized arguments: --nothing"):
        speed.seconds_of(["eval.py", "--nothing"], tmp_path)
