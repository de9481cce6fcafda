"""monoclip: the method against values worked by hand, naive loops and the released figures."""

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

import clip
from monoclip import PAPER, MonoCLIP, Reading, mirror_average, with_mirror, zeroshot_classifier
from tests.conftest import TINY, random_clip


@pytest.fixture(scope="module")
def model(tiny_clip):
    return MonoCLIP(tiny_clip)


@pytest.fixture(scope="module")
def image():
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(3))


def test_numbers_of_the_paper():
    assert PAPER.depth_classes[0] == "giant"
    assert PAPER.depth_classes[-1] == "unseen"
    assert PAPER.bin_list == (1.0, 1.5, 2.0, 2.25, 2.5, 2.75, 3.0)
    assert math.isclose(sum(PAPER.bin_list) / 7, 15 / 7)
    assert PAPER.logit_scale / PAPER.temperature == pytest.approx(1000)
    # Official quirk: ImageNet's statistics, not those that CLIP was trained with
    assert (PAPER.image_mean, PAPER.image_std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (PAPER.image_mean, PAPER.image_std) != (clip.CLIP_MEAN, clip.CLIP_STD)


def test_depth_by_hand(tiny_clip):
    # two words, T = (e0, e1); a patch with f = (0.001 ln 3, 0, ...) has logits (ln 3, 0), weights (3/4, 1/4)
    model = MonoCLIP(tiny_clip, Reading(depth_classes=("near", "far"), bin_list=(1.0, 5.0)))
    model.text_features = torch.eye(64)[:, :2]
    features = torch.zeros(1, 64, 1, 2)
    features[0, 0, 0, 0] = 0.001 * math.log(3)
    assert_close(model.logits(features)[0, :, 0], torch.tensor([[math.log(3), 0.0], [0.0, 0.0]]), atol=1e-5, rtol=0)
    assert_close(model.probs(features)[0, :, 0, 0], torch.tensor([0.75, 0.25]), atol=1e-5, rtol=0)
    assert_close(model.depth(features), torch.tensor([[[[2.0, 3.0]]]]), atol=1e-5, rtol=0)


def test_released_figures(rn50, golden, golden_inputs, golden_prediction):
    model, x = MonoCLIP(rn50), golden_inputs["x"]
    with torch.inference_mode():
        depth, mirrored = model(x), model(x.flip(-1)).flip(-1)
    scale = np.abs(golden["text_features"]).max()
    assert np.abs(model.text_features.numpy() - golden["text_features"]).max() <= 1e-4 * scale
    sampled = golden_prediction[:, :, ::13, ::17]
    for ours, name in ((depth, "depth"), (mirrored, "depth_flip"), (sampled, "avg_slice")):
        assert ours.shape == golden[name].shape
        assert np.abs(ours.numpy() - golden[name]).max() <= 1e-3, name


def test_features_are_every_second_channel_of_unit_vectors(tiny_clip, model, image):
    # Official quirks: layer4's features, thinned to D channels, not normalised again
    with torch.inference_mode():
        features, layer4 = model.patch_features(image), tiny_clip.encode_patches(image)
    assert features.shape == (2, 64, 2, 3)
    for b in range(2):
        for y in range(2):
            for x in range(3):
                vector = layer4[b, :, y, x]
                assert_close(features[b, :, y, x], (vector / vector.norm())[0::2], atol=1e-6, rtol=0)
    assert (features.norm(dim=1) < 0.999).all()


def test_classifier_is_the_normalised_mean_of_normalised_prompts(tiny_clip):
    templates, objects = ("This {} is {}", "a photo of a {} that is {}"), ("object", "thing")
    features = zeroshot_classifier(tiny_clip, ("close", "far away", "unseen"), objects, templates)
    assert features.shape == (64, 3)
    for k, word in enumerate(("close", "far away", "unseen")):
        vectors = []
        for template in templates:
            for thing in objects:
                vector = tiny_clip.encode_text(clip.tokenize(template.format(thing, word)))[0]
                vectors.append(vector / vector.norm())
        mean = torch.stack(vectors).mean(dim=0)
        assert_close(features[:, k], mean / mean.norm(), atol=1e-6, rtol=0)


def test_the_default_reading_is_the_papers(tiny_clip, model):
    assert_close(zeroshot_classifier(tiny_clip), model.text_features, atol=0, rtol=0)
    assert model.reading is PAPER


def test_a_naive_loop_gives_the_same_depth(model, image):
    with torch.inference_mode():
        features, depth = model.patch_features(image), model(image)
    for b in range(2):
        for y in range(2):
            for x in range(3):
                logits = [100 * float(features[b, :, y, x] @ model.text_features[:, k]) / 0.1 for k in range(7)]
                weights = [math.exp(value - max(logits)) for value in logits]
                expected = sum(w * d for w, d in zip(weights, PAPER.bin_list, strict=True)) / sum(weights)
                assert depth[b, 0, y, x].item() == pytest.approx(expected, abs=1e-3)


def test_weights_sum_to_one_and_depth_lies_within_the_bins(model, image):
    with torch.inference_mode():
        probs, depth = model.probs(model.patch_features(image)), model.predict(image)
    assert probs.shape == (2, 7, 2, 3)
    assert_close(probs.sum(dim=1), torch.ones(2, 2, 3))
    assert depth.shape == (2, 1, 64, 96)
    assert depth.dtype == torch.float32
    assert depth.min() >= 1.0
    assert depth.max() <= 3.0


def test_prediction_is_the_mirror_average_resized_with_aligned_corners(model, image):
    with torch.inference_mode():
        one, other, predicted = model(image), model(image.flip(-1)).flip(-1), model.predict(image)
    average = (one + other) / 2
    assert_close(mirror_average(model(with_mirror(image))), average, atol=1e-5, rtol=0)
    assert_close(predicted[..., ::63, ::95], average[..., ::1, ::2], atol=1e-5, rtol=0)  # corners stay corners
    row = average[0, 0, 0]  # 3 cells over 96 pixels: pixel x lies at cell x * 2 / 95
    position = 30 * 2 / 95
    assert predicted[0, 0, 0, 30].item() == pytest.approx((row[0] + (row[1] - row[0]) * position).item(), abs=1e-5)


def test_mirrored_image_gives_the_mirrored_prediction(model, image):
    with torch.inference_mode():
        assert_close(model.predict(image.flip(-1)), model.predict(image).flip(-1), atol=1e-5, rtol=0)


def test_a_batch_equals_its_singles(model):
    image = torch.randn(4, 3, 96, 64, generator=torch.Generator().manual_seed(5))
    with torch.inference_mode():
        singles = torch.cat([model.predict(one[None]) for one in image])
        assert_close(model.predict(image), singles, atol=1e-4, rtol=0)


def test_order_of_words_and_bins_together_changes_nothing(tiny_clip, image):
    reading = replace(PAPER, depth_classes=PAPER.depth_classes[::-1], bin_list=PAPER.bin_list[::-1])
    with torch.inference_mode():
        assert_close(MonoCLIP(tiny_clip, reading)(image), MonoCLIP(tiny_clip)(image), atol=1e-4, rtol=0)


def test_infinite_temperature_gives_the_mean_of_the_bins(tiny_clip, image):
    with torch.inference_mode():
        depth = MonoCLIP(tiny_clip, replace(PAPER, temperature=1e9))(image)
    assert_close(depth, torch.full_like(depth, 15 / 7), atol=1e-5, rtol=0)


def test_text_features_and_bins_are_buffers(model):
    assert {"text_features", "bin_list"} <= {name for name, _ in model.named_buffers()}
    assert isinstance(model, nn.Module)
    moved = copy.deepcopy(model).to("meta")
    assert moved.text_features.is_meta
    assert moved.bin_list.is_meta


def test_vision_transformer_features_are_used_whole():

    vit = random_clip(replace(TINY, vision_layers=2, vision_width=64, vision_patch_size=16))
    model = MonoCLIP(vit)
    x = torch.randn(1, 3, 64, 96, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        assert model(x).shape == (1, 1, 4, 6)
        assert_close(model.patch_features(x), F.normalize(vit.encode_patches(x), dim=1))


@pytest.mark.parametrize("shape", [(1, 3, 60, 64), (3, 64, 64)])
def test_images_of_other_shapes_are_refused(tiny_clip, shape):
    with pytest.raises(ValueError, match="divisible by 32"):
        MonoCLIP(tiny_clip)(torch.zeros(shape))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bin_list": (1.0, 2.0)}, "7 depth classes and 2 bins"),
        ({"depth_classes": (), "bin_list": ()}, "0 depth classes and 0 bins"),
        ({"bin_list": (1, 2, 3, 4, 5, 6, -1)}, "bins must be positive"),
        ({"bin_list": (1, 2, 3, 4, 5, 6, math.nan)}, "bins must be positive"),
        ({"temperature": 0}, "temperature must be positive"),
        ({"depth_templates": ("This is {}",)}, r"must hold \{\} twice"),
        ({"depth_templates": ("{} {} {0}",)}, r"must hold \{\} twice"),
        ({"depth_templates": ("{} {} {x",)}, r"must hold \{\} twice"),
        ({"obj_classes": ()}, "at least one template"),
    ],
)
def test_readings_that_make_no_depth_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(PAPER, **change)
