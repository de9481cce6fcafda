"""viewer.page: what it stores, and how it behaves in a browser, where nothing is drawn that Python would not draw."""

import base64
import io
import json
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import predict
from monoclip import PAPER, Reading, mirror_average
from tests.browser import Browser, find_browser
from tests.test_pictures import noise, save
from viewer import page
from viewer.colour import coloured

HOSTILE = "</script><script>window.attacked = 1</script><img src=http://127.0.0.1:9/x onerror=window.attacked=1>"
GRID = (3, 4)
WORDS = Reading(depth_classes=("ünder “1 m” & <b>", "遠い", *PAPER.depth_classes[2:]))


def logits_of(seed: int, classes: int = 7, views: int = 2, grid: tuple[int, int] = GRID) -> np.ndarray:
    """Random logits with a spread like the method's, (V, K, h, w) float32."""
    return np.random.default_rng(seed).normal(200, 3, (views, classes, *grid)).astype(np.float32)


def depth_of(logits: np.ndarray, bins: tuple[float, ...]) -> Tensor:
    """The patches' depth by definition, (h, w) [m]."""
    depth = torch.einsum("vkhw,k->vhw", torch.from_numpy(logits).double().softmax(1), torch.tensor(bins).double())
    return (mirror_average(depth[:, None]) if len(logits) == 2 else depth[:, None])[0, 0]


def true_depth() -> np.ndarray:
    """(96, 128) float32 [m]: one depth for each patch, the first not measured, the last beyond the bins."""
    patches = np.linspace(0, 4.4, 12, dtype=np.float32).reshape(GRID)
    return patches.repeat(32, axis=0).repeat(32, axis=1)


@pytest.fixture(scope="module")
def cards() -> list[page.Card]:
    names = [("b/2.jpg", "b", 0.3), ("a/10.jpg", "a", None), ("a/9.jpg", "a", 0.1), (HOSTILE, HOSTILE, 0.2)]
    return [
        page.card(name, scene, noise(96, 128, i), logits_of(i), WORDS, true_depth() if i < 3 else None, {"abs_rel": v})
        for i, (name, scene, v) in enumerate(names)
    ]


@pytest.fixture(scope="module")
def html(cards) -> str:
    rows = {"this run": {"delta1": 0.5, "rmse": None}, HOSTILE: {"delta1": 0.394, "rmse": 1.167}}
    return page.build(f"Rooms {HOSTILE}", cards, WORDS, rows, [page.subset_note(4, 654), HOSTILE])


# What is stored


def test_spread_by_hand():
    assert page.spread(10, 3) == [1, 5, 8]
    assert page.spread(3, 5) == [0, 1, 2]
    assert page.spread(5, 0) == page.spread(0, 5) == []
    assert page.spread(654, 24)[0] == 13


def test_patch_means_by_hand():
    truth = np.array([[0, 2, 1, 1], [0, 4, 1, 2], [0, 0, 5, 5]], dtype=np.float32)
    assert page.patch_means(truth, 1, 2).tolist() == [[3.0, 2.5]]
    assert page.patch_means(truth, 3, 2).tolist() == [[2, 1], [4, 1.5], [0, 5]]
    assert page.patch_means(truth[:1, :1] + 1, 2, 2).sum() == 1  # fewer pixels than patches: the rest is unknown


def test_a_card_stays_small_also_in_the_worst_case():
    pixels = np.random.default_rng(0).integers(0, 256, (3000, 4000, 3), dtype=np.uint8)  # JPEG can't do much for noise
    truth = np.random.default_rng(0).uniform(0, 10, (3000, 4000)).astype(np.float32)
    assert len(json.dumps(page.card("a", "", pixels, logits_of(0, grid=(15, 20)), PAPER, truth))) <= 250_000


def test_a_card_holds_the_picture_its_truth_and_its_logits():
    pixels, truth, logits = np.full((96, 128, 3), 90, dtype=np.uint8), true_depth(), logits_of(0)
    stored = page.card("kitchen/1.jpg", "kitchen", pixels, logits, PAPER, truth, {"abs_rel": 0.5, "rmse": None})
    assert (stored["name"], stored["scene"], stored["size"]) == ("kitchen/1.jpg", "kitchen", [96, 128])
    assert stored["metrics"] == {"abs_rel": 0.5, "rmse": None}
    with Image.open(io.BytesIO(base64.b64decode(stored["jpeg"]))) as image:
        assert np.abs(np.asarray(image).astype(int) - pixels).max() <= 1
    patches, small = (np.frombuffer(base64.b64decode(stored["truth"][key]), "<u2") for key in ("patches", "map"))
    assert patches.tolist() == (truth[::32, ::32] * 1000).round().ravel().tolist()
    assert (small.reshape(96, 128) == (truth * 1000).round()).all()
    values = np.frombuffer(base64.b64decode(stored["similarity"]), "<f2").astype(np.float64).reshape(logits.shape)
    back = values / PAPER.temperature  # relative to the best word, where half precision is finest
    back[1] = back[1, ..., ::-1]
    np.testing.assert_allclose(back, logits - logits.max(axis=1, keepdims=True), rtol=1e-3, atol=1e-4)


def test_shapes_that_do_not_fit_are_refused():
    for arguments in (
        (noise(96, 128), logits_of(0, classes=6), PAPER),
        (noise(96, 128), logits_of(0, views=2).repeat(2, axis=0), PAPER),
        (noise(96, 128), logits_of(0), PAPER, np.zeros((480, 640), np.float32)),
        (noise(96, 128), logits_of(0) * np.nan, PAPER),
    ):
        with pytest.raises(ValueError, match=r"expected|true depth|not finite"):
            page.card("a", "", *arguments)


def test_words_and_names_are_data_and_nothing_leaves_the_page(html):
    assert "<script>window.attacked" not in html
    assert html.count("<script") == 2
    assert html.count("</script>") == 2
    assert "default-src 'none'" in html
    assert re.findall(r"<[^>]*(?:src|href|action)=[^>]*>", html.split('id="data"')[0]) == [
        '<link rel="icon" href="data:,">'
    ]


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    executable = find_browser()
    if executable is None:
        pytest.skip("no Chromium or Chrome on this machine; install one, or name it in $CHROME")
    opened = Browser(executable, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def opened(browser, html, tmp_path):
    """The browser with the page open; afterwards, nothing may have gone wrong or been asked for."""
    path = tmp_path / "page.html"
    path.write_text(html, encoding="utf-8")
    browser.errors.clear()
    browser.requests.clear()
    browser.show(1280, 900)
    browser.open(path.as_uri())
    yield browser
    assert browser.errors == []
    assert {url for url in browser.requests if not url.startswith("data:")} == {path.as_uri()}
    assert browser.js("window.attacked === undefined")


def texts(browser: Browser, selector: str) -> list[str]:
    """What the elements say."""
    return browser.js(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => e.textContent)")


def test_maps_equal_pythons_also_after_moving_the_sliders(opened):
    def expected(bins: tuple[float, ...], temperature: float) -> list[np.ndarray]:
        return [depth_of(logits_of(i) * PAPER.temperature / temperature, bins).flatten().numpy() for i in range(4)]

    maps = "depthclip.cards.map(c => [...c.depth])"
    changed = (*PAPER.bin_list[:-1], 7.5)
    for bins, exponent in ((PAPER.bin_list, -1.0), (PAPER.bin_list, -2.5), (changed, -0.3)):
        for number, value in ((0, exponent), (7, bins[-1])):  # the temperature's decimal logarithm, the last bin
            move = f"e.value = {value}; e.dispatchEvent(new Event('input', {{bubbles: true}}))"
            opened.js(f"(e => {{ {move} }})(document.querySelectorAll('#sliders input')[{number}])")
            opened.settle()
        np.testing.assert_allclose(opened.js(maps), expected(bins, 10**exponent), atol=1e-3)
    assert texts(opened, "#far") == ["7.50 m"]
    assert "those of the run" in texts(opened, "#changed")[0]
    opened.js("document.getElementById('reset').click()")
    opened.settle()
    np.testing.assert_allclose(opened.js(maps), expected(PAPER.bin_list, 0.1), atol=1e-3)
    assert texts(opened, "#changed") == [""]


def test_pixels_of_the_map_are_pythons(opened):
    height, width = opened.js("(c => [c.mapCanvas.height, c.mapCanvas.width])(depthclip.cards[0])")
    depth = depth_of(logits_of(0), PAPER.bin_list)[None, None]
    full = F.interpolate(depth, (height, width), mode="bilinear", align_corners=True)[0, 0].numpy()
    got = np.array(opened.js("[...depthclip.cards[0].map]")).reshape(height, width)
    np.testing.assert_allclose(got, full, atol=1e-3)
    image = "(c => [...c.getContext('2d').getImageData(0, 0, c.width, c.height).data])(depthclip.cards[0].mapCanvas)"
    drawn = np.array(opened.js(image)).reshape(height, width, 4)[..., :3]
    assert np.abs(drawn - coloured(full, 1.0, 3.0).astype(int)).max() <= 3  # one step of the colours


def test_hover_and_keys_choose_the_patch_whose_answers_are_shown(opened):
    depth = depth_of(logits_of(0), PAPER.bin_list)
    both = torch.from_numpy(logits_of(0)).softmax(1)
    probabilities = (both[0] + both[1].flip(-1)) / 2  # (K, h, w)

    def check(row: int, column: int, truth: str) -> None:
        text = texts(opened, ".card .key")[0]
        assert f"row {row + 1}, column {column + 1}" in text
        assert f"predicted {depth[row, column]:.2f} m" in text
        assert f"true{truth}" in text
        bars = opened.js(
            "[...document.querySelector('.card').querySelectorAll('.bar')].map(e => e.height.baseVal.value)"
        )
        np.testing.assert_allclose(np.array(bars) / 138, probabilities[:, row, column], atol=1e-3)

    opened.hover(".card .frame canvas", 0.01, 0.01)
    check(0, 0, ": not measured")
    opened.hover(".card .frame img", 0.99, 0.99)
    check(2, 3, " 4.40 m")
    assert "beyond" in texts(opened, ".card .chart svg")[0]
    opened.hover(".card .frame img", 0.3, 0.5)
    check(1, 1, " 2.00 m")
    boxes = "[...document.querySelector('.card').querySelectorAll('.box')].map(e => [e.style.left, e.style.width])"
    assert opened.js(boxes) == [["25%", "25%"]] * 3

    opened.js("document.querySelector('.card [tabindex]').focus()")
    moves = {"ArrowRight": "2, column 3", "ArrowUp": "1, column 3", "End": "1, column 4", "ArrowDown": "2, column 4"}
    for key, place in (moves | {"Home": "2, column 1", "ArrowLeft": "2, column 1"}).items():
        opened.press(key)
        assert f"row {place}" in texts(opened, ".card .key")[0]
    assert "true" not in texts(opened, ".card .key")[3]


def test_sorting(opened):
    def sort(key: str) -> list[str]:
        choose = f"e.value = {json.dumps(key)}; e.dispatchEvent(new Event('change'))"
        opened.js(f"(e => {{ {choose} }})(document.getElementById('sort'))")
        return texts(opened, ".card h2")

    assert texts(opened, ".card h2") == ["b/2.jpg", "a/10.jpg", "a/9.jpg", HOSTILE]
    assert sort("name") == [HOSTILE, "a/9.jpg", "a/10.jpg", "b/2.jpg"]
    assert sort("metric:abs_rel") == ["a/9.jpg", HOSTILE, "b/2.jpg", "a/10.jpg"]
    opened.js("document.getElementById('direction').click()")
    assert texts(opened, ".card h2") == ["b/2.jpg", HOSTILE, "a/9.jpg", "a/10.jpg"]


def test_everything_is_reached_by_the_tab_key(opened):
    reached = set()
    opened.js("document.activeElement.blur()")
    for _ in range(16):
        opened.press("Tab")
        reached.add(opened.js("(e => e.id || e.type || e.getAttribute('role') || e.tagName)(document.activeElement)"))
    assert {"sort", "direction", "SUMMARY", "slider-0", "slider-7", "application"} <= reached


@pytest.mark.parametrize(("width", "dark", "phone"), [(1280, False, False), (320, True, True)])
def test_it_fits_the_window(opened, width, dark, phone):
    opened.show(width, 800, dark, phone)
    assert opened.js("document.documentElement.scrollWidth") <= width
    background = opened.js("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, re.findall(r"\d+", background)[:3])) < 3 * 128) is dark, background


def test_the_page_of_predict_begins_and_ends_like_its_arrays(browser, tiny_checkpoint, tmp_path, capsys):
    for i in range(5):
        save(tmp_path / "in" / f"scene{i % 2}" / f"{i}.jpg", noise(100, 140, i))
    flags = f"-i {tmp_path}/in -o {tmp_path}/out --clip_path {tiny_checkpoint} --device cpu".split()
    path = tmp_path / "out" / "depth.html"
    assert predict.main([*flags, "--html", "2"]) == 0
    assert "2 of the run's 5 pictures" in capsys.readouterr().out
    first = path.read_bytes()
    assert predict.main([*flags, "--html"]) == 0
    assert path.read_bytes() == first
    assert predict.main([*flags, "--html", "--overwrite", "--no_mirror"]) == 0
    browser.errors.clear()
    browser.open(path.as_uri())
    names = texts(browser, ".card h2")
    assert names == [f"scene{i % 2}/{i}.jpg" for i in (0, 2, 4, 1, 3)]
    got = browser.js("depthclip.cards.map(c => [c.map[0], c.map.at(-1)])")
    arrays = [np.load(path.parent / name.replace(".jpg", "_depth.npy")) for name in names]
    np.testing.assert_allclose(got, [[array[0, 0], array[-1, -1]] for array in arrays], atol=1e-3)
    assert browser.errors == []


def test_table_sliders_and_notes_show_what_they_were_given(opened):
    table = opened.js("[...document.querySelectorAll('#metrics tr')].map(r => [...r.cells].map(c => c.textContent))")
    assert table == [["", "delta1", "rmse"], ["this run", "0.500", "\u2013"], [HOSTILE, "0.394", "1.167"]]
    assert texts(opened, ".slider span") == ["temperature", *WORDS.depth_classes]
    assert "4 of the run's 654 pictures" in texts(opened, "#notes")[0]
