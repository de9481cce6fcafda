"""monoclip: the method against values worked by hand, naive loops, the golden figures, and what holds for any image."""

import copy
import math
import re
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from torch.testing import assert_close

import clip
from clip import dense
from datasets.pictures import resized
from monoclip import (
    PAPER,
    MonoCLIP,
    Reading,
    depth_of,
    logits_of,
    mirror_average,
    patch_features,
    prompt,
    upsampled,
    with_mirror,
    zeroshot_classifier,
)
from tests.conftest import TINY, TINY_VIT, noise, random_clip, save


@pytest.fixture(scope="module")
def model(tiny_clip):
    return MonoCLIP(tiny_clip)


def normal(shape: tuple[int, ...], seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


IMAGE = normal((2, 3, 64, 96), 3)


@pytest.fixture(autouse=True)
def without_gradients():
    with torch.inference_mode():
        yield


# ---- worked by hand


def test_numbers_of_the_paper():
    assert PAPER.depth_templates == ("This {} is {}",)
    assert PAPER.obj_classes == ("object",)
    words = "giant | extremely close | close | not in distance | a little remote | far | unseen"
    assert " | ".join(PAPER.depth_classes) == words
    assert PAPER.bin_list == (1.0, 1.5, 2.0, 2.25, 2.5, 2.75, 3.0)
    assert PAPER.logit_scale / PAPER.temperature == pytest.approx(1000)
    # Official quirk: ImageNet's statistics, not those that CLIP was trained with
    assert (PAPER.image_mean, PAPER.image_std) == ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
    assert (clip.CLIP_MEAN[0], clip.CLIP_STD[0]) == (0.48145466, 0.26862954)


def test_a_prompt_has_both_words_or_the_depth_word_alone(tiny_clip):
    templates = {"This {} is {}": "This car is far", "{}, a {}": "car, a far", "It appears {}": "It appears far"}
    for template, text in templates.items():
        assert prompt(template, "car", "far") == text
        found = zeroshot_classifier(tiny_clip, ["far"], ["car"], [template])[:, 0]
        expected = tiny_clip.encode_text(clip.tokenize([text])).float()[0]
        assert_close(found, expected / expected.norm(), atol=1e-6, rtol=0)


def test_patch_features_by_hand():
    layer4 = torch.tensor([3.0, 1.0, 0.0, 1.0, 4.0, 3.0]).view(1, 6, 1, 1)  # of length 6
    assert patch_features(layer4, 3).flatten().tolist() == pytest.approx([3 / 6, 0, 4 / 6])
    assert patch_features(layer4, 2).flatten().tolist() == pytest.approx([3 / 6, 1 / 6])


def test_depth_by_hand(tiny_clip, monkeypatch):
    # two words, T = (e0, e1); a patch with f = (0.001 ln 3, 0, ...) has logits (ln 3, 0), weights (3/4, 1/4)
    model = MonoCLIP(tiny_clip, Reading(depth_classes=("near", "far"), bin_list=(1.0, 5.0)))
    model.text_features = torch.eye(64)[:, :2]
    features = torch.zeros(2, 64, 1, 2)  # of one image of two patches, and of its mirror
    features[0, 0, 0, 0] = 0.001 * math.log(3)
    monkeypatch.setattr(model, "features", lambda trunk: features)
    logits = logits_of(features, model.text_features, model.reading)
    assert_close(logits[0, :, 0], torch.tensor([[math.log(3), 0.0], [0.0, 0.0]]), atol=1e-5, rtol=0)
    weights = model.weights(None)  # the left patch is the mirror's right one: (3/4 + 1/2) / 2
    assert_close(weights, torch.tensor([[[[5 / 8, 1 / 2]], [[3 / 8, 1 / 2]]]]), atol=1e-5, rtol=0)
    assert_close(depth_of(weights, model.bin_list[None]), torch.tensor([[[[2.5, 3.0]]]]), atol=1e-5, rtol=0)
    assert_close(depth_of(weights, torch.tensor([[1.0, 5.0], [2.0, 2.0]]))[0, 1], torch.full((1, 2), 2.0))
    predicted = model.predict(torch.zeros(1, 3, 32, 64), (1, 3))
    assert_close(predicted, torch.tensor([[[[2.5, 2.75, 3.0]]]]), atol=1e-5, rtol=0)  # corners on corners


def test_pixels_are_normalised_by_hand():
    x = PAPER.normalised(np.array([[[255, 0, 51]]], dtype=np.uint8))
    expected = [(1 - 0.485) / 0.229, -0.456 / 0.224, (0.2 - 0.406) / 0.225]
    assert x.shape == (3, 1, 1)
    assert x.flatten().tolist() == pytest.approx(expected, abs=1e-6)


def test_a_mirrored_half_is_mirrored_back_and_averaged():
    image = torch.arange(6.0).view(1, 1, 2, 3)
    assert with_mirror(image).tolist() == [[[[0, 1, 2], [3, 4, 5]]], [[[2, 1, 0], [5, 4, 3]]]]
    assert torch.equal(mirror_average(with_mirror(image)), image)


def test_classifier_by_hand():
    asked: list[Tensor] = []

    def encode_text(tokens: Tensor) -> Tensor:  # whose answers are known, one for each prompt
        asked.append(tokens)
        return torch.tensor([[3.0, 4.0], [0.0, 2.0], [5.0, 0.0], [1.0, 0.0]]).half()

    sizes = {"context_length": 77, "token_embedding": SimpleNamespace(num_embeddings=49408)}
    stub = SimpleNamespace(text_projection=torch.zeros(2, 2), encode_text=encode_text, **sizes)
    features = zeroshot_classifier(stub, ("close", "far"), ("thing",), ("This {} is {}", "{}: {}"))
    # normalise: (.6, .8) and (0, 1); mean (.3, .9); normalise again. The second class has two equal prompts.
    root = math.sqrt(0.9)
    assert_close(features, torch.tensor([[0.3 / root, 1.0], [0.9 / root, 0.0]]), atol=1e-6, rtol=0)
    assert features.dtype == torch.float32
    prompts = ["This thing is close", "thing: close", "This thing is far", "thing: far"]  # one batch
    assert torch.equal(torch.stack(asked), clip.tokenize(prompts)[None])


# ---- the golden figures, and naive loops


def test_the_golden_figures(rn50, golden, golden_inputs, golden_prediction):
    model = MonoCLIP(rn50)
    trunk = model.trunk(golden_inputs["x"])
    assert trunk.patches.shape == (4, 2048, 13, 17)  # of the two images, then of their mirrors
    patches = trunk.patches[:2].flatten(2).permute(2, 0, 1)  # (221, 2, 2048)
    for name, ours in (("text_features", model.text_features), ("features_slice", patches[::20, :, ::64])):
        scale = np.abs(golden[name]).max()
        np.testing.assert_allclose(ours, golden[name], atol=1e-4 * scale, rtol=0, err_msg=name)
    views = logits_of(model.features(trunk), model.text_features, PAPER).softmax(1)  # of image and mirror
    upright, mirrored = depth_of(views, model.bin_list[None]).chunk(2)
    average = upsampled(depth_of(model.weights(trunk), model.bin_list[None]), (416, 544))
    assert_close(golden_prediction, average, atol=1e-5, rtol=0)
    for name, ours in (("depth", upright), ("depth_flip", mirrored.flip(-1)), ("avg_slice", average[:, :, ::13, ::17])):
        np.testing.assert_allclose(ours, golden[name], atol=1e-3, rtol=0, err_msg=name)


def test_a_naive_loop_gives_the_same_depth(tiny_clip, model):
    layer4 = tiny_clip.visual.forward_trunk(torch.cat([IMAGE, IMAGE.flip(-1)])).patches.double()
    features, text = model.features(model.trunk(IMAGE)).double(), model.text_features.double()
    weights = np.zeros((4, 7, 2, 3))
    for b, y, x in np.ndindex(4, 2, 3):
        # Official quirks: layer4's features without the attention pool, thinned to D channels, not normalised again
        vector = layer4[b, :, y, x]
        thinned = (vector / vector.norm())[0::2]
        assert thinned.norm() < 0.999
        assert_close(features[b, :, y, x], thinned, atol=1e-6, rtol=0)
        logits = [100 * float(thinned @ text[:, k]) / 0.1 for k in range(7)]
        terms = [math.exp(value - max(logits)) for value in logits]
        weights[b, :, y, x] = np.array(terms) / sum(terms)
    expected = (weights[:2] + weights[2:, ..., ::-1]) / 2
    np.testing.assert_allclose(model(IMAGE), expected, atol=1e-3, rtol=0)  # fp32 times the scale of 1000
    depth = torch.from_numpy(np.einsum("bkhw,k->bhw", expected, PAPER.bin_list))[:, None]
    large = F.interpolate(depth, IMAGE.shape[2:], mode="bilinear", align_corners=True)
    np.testing.assert_allclose(model.predict(IMAGE), large, atol=1e-3, rtol=0)


# ---- what holds for any image


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), scale=st.sampled_from([0.1, 3.0, 1000.0]), sets=st.integers(1, 4))
def test_many_sets_of_bins_equal_one_by_one_and_depth_lies_within_them(seed, scale, sets):
    rng = np.random.default_rng(seed)
    logits = torch.from_numpy(rng.normal(0, scale, (2, 5, 3, 4)).astype(np.float32))
    bins = torch.from_numpy(rng.uniform(0.1, 9, (sets, 5)).astype(np.float32))
    # [m] fp32: five products of at most 9 m, whose weights are within 4 ulp, summed in any order
    close = partial(assert_close, atol=2e-5, rtol=0)
    weights = logits.softmax(1)
    depth = depth_of(weights, bins)
    assert depth.shape == (2, sets, 3, 4)
    for m in range(sets):
        close(depth[:, m : m + 1], depth_of(weights, bins[m : m + 1]))
        close(depth[:, m].double(), (logits.double().softmax(1) * bins[m].double()[:, None, None]).sum(1))
        assert bins[m].min() - 2e-5 <= depth[:, m].min() <= depth[:, m].max() <= bins[m].max() + 2e-5
    close(depth_of(weights, bins.flip(1)), depth_of(weights.flip(1), bins))
    mean = (weights + weights.flip(0)) / 2  # depth of a mean is the mean of depths: that is why weights are averaged
    close(depth_of(mean, bins), (depth + depth.flip(0)) / 2)


def test_mirrored_image_gives_the_mirrored_prediction(model):
    assert_close(model.predict(IMAGE.flip(-1)), model.predict(IMAGE).flip(-1), atol=1e-4, rtol=0)
    assert not model.predict(IMAGE).allclose(model.predict(IMAGE).flip(-1), atol=1e-2)


def test_a_batch_equals_its_singles(model):
    images = normal((4, 3, 96, 64), 5)
    singles = torch.cat([model.predict(one[None]) for one in images])
    assert_close(model.predict(images), singles, atol=1e-4, rtol=0)


def test_text_features_and_bins_are_buffers(model):
    moved = copy.deepcopy(model).to("meta")
    assert moved.text_features.is_meta
    assert moved.bin_list.is_meta


def test_vision_transformer_features_are_used_whole():
    model, x = MonoCLIP(random_clip(TINY_VIT)), normal((1, 3, 64, 96), 0)
    trunk = model.trunk(x)
    assert torch.equal(model.features(trunk), dense.read(model.clip_vis, trunk, "raw"))
    assert model(x).shape == (1, 7, 4, 6)


# ---- pictures


@pytest.mark.parametrize(("size", "seen"), [((416, 544), (416, 544)), ((70, 101), (64, 96))])
def test_a_picture_of_any_size_gets_depth_of_its_own_size(model, tmp_path, size, seen):
    pixels = noise(*size)
    view = PAPER.normalised(resized(pixels, seen))
    assert torch.equal(model.prepare(pixels), view)
    expected = upsampled(depth_of(model(view[None]), model.bin_list[None]), size)[0, 0]
    path = save(tmp_path / "room.png", pixels)
    for picture in (pixels, Image.open(path), path, str(path)):
        depth = model.infer_image(picture)
        assert depth.dtype == np.float32
        assert depth.std() > 0.01
        assert_close(torch.from_numpy(depth), expected, atol=1e-5, rtol=0)


# ---- errors


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        ("a.jpg", TypeError, 'expected images, got str; for a photo call model.infer_image("a.jpg")'),
        (noise(64, 64), TypeError, "expected images, got ndarray; for a photo"),
        (torch.zeros(3, 64, 64), ValueError, "expected images (B, 3, H, W), got (3, 64, 64)"),
        (torch.zeros(1, 1, 64, 64), ValueError, "expected images (B, 3, H, W), got (1, 1, 64, 64)"),
        (torch.zeros(1, 3, 0, 64), ValueError, "expected images (B, 3, H, W), got (1, 3, 0, 64)"),
    ],
)
def test_what_is_not_a_batch_of_images_is_refused(model, images, error, message):
    for call in (model, model.predict, model.trunk):
        with pytest.raises(error, match=re.escape(message)):
            call(images)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bin_list": (1.0, 2.0)}, "7 depth classes and 2 bins: every depth class needs one bin"),
        ({"depth_classes": (), "bin_list": ()}, "0 depth classes and 0 bins"),
        ({"bin_list": (1, 2, 3, 4, 5, 6, 0)}, "bins .* must be positive and finite"),
        ({"temperature": 0}, "temperature must be positive and finite"),
        ({"depth_templates": ("This is far",)}, "template 'This is far' must hold {} twice, .*or once"),
        ({"depth_templates": ("{} {} {}",)}, "template '{} {} {}' must hold {} twice"),
        ({"depth_templates": ("{} is {0}",)}, r"template '\{\} is \{0\}' must hold \{\} twice"),
    ],
)
def test_readings_that_make_no_depth_are_refused(change, message):
    with pytest.raises(ValueError, match=message):
        replace(PAPER, **change)


def test_a_clip_that_cannot_be_read_as_depth_is_refused(tiny_clip):
    narrow, few_words = (random_clip(replace(TINY, **change)) for change in ({"embed_dim": 48}, {"vocab_size": 1000}))
    nonsense = replace(PAPER, readout="nonsense")
    for model, reading, error, message in (
        ("RN50", PAPER, TypeError, r'expected a CLIP, got str; call MonoCLIP\(clip.load\("RN50"\)\[0\]\)'),
        ((tiny_clip, None), PAPER, TypeError, "expected a CLIP, got tuple"),  # all that clip.load returns
        (narrow, PAPER, ValueError, "128 patch channels cannot be thinned evenly to 48 joint dimensions"),
        (few_words, PAPER, ValueError, "a text encoder of 1000 tokens"),
        (tiny_clip, nonsense, ValueError, "^read-out 'nonsense': there is none of this name; there are raw, "),
    ):
        with pytest.raises(error, match=message):
            MonoCLIP(model, reading)
