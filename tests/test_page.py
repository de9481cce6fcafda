"""viewer.page: what it stores, and how it behaves in a browser, where nothing is drawn that Python would not draw."""

import base64
import io
import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

import predict
from calculate_error import KITTI_BTS, NYU, NYU_METRICS, Protocol, mean_errors
from datasets import DataError
from experiments import __main__ as experiments
from experiments.published import AUTY, LOG_BINS
from monoclip import PAPER, Reading, mirror_average
from options import DEMO_DATA, DEMO_WEIGHTS
from tests.browser import Browser, find_browser
from tests.conftest import QUICKGELU, noise, save
from viewer import page
from viewer.colour import colourise

HOSTILE = "</script><script>window.attacked = 1</script><img src=http://127.0.0.1:9/x onerror=window.attacked=1>"
GRID, SIZE = (3, 4), (96, 128)
WORDS = Reading(depth_classes=("ünder “1 m” & <b>", "遠い", *PAPER.depth_classes[2:]))
PHRASES = page.phrases_for(WORDS)
ALL = (*WORDS.depth_classes, *PHRASES)
COLUMNS = NYU_METRICS[1:]  # those of the paper's tables
COUNTED = np.indices(SIZE).sum(axis=0) > 40  # not the corner at the top left
NEAR, FAR = 0.4, 4.4  # of the colours: the 2nd and the 98th percentile of `true_depth`


def logits_of(seed: int, classes: int = len(ALL), views: int = 2, grid: tuple[int, int] = GRID) -> np.ndarray:
    """Random logits with a spread like the method's, (V, K + P, h, w) float32."""
    return np.random.default_rng(seed).normal(200, 3, (views, classes, *grid)).astype(np.float32)


def shares_of(seed: int, words: tuple[str, ...], temperature: float = 0.1) -> Tensor:
    """The words' probabilities by definition, (K, h, w)."""
    logits = torch.from_numpy(logits_of(seed)[:, [ALL.index(word) for word in words]]).double()
    return mirror_average((logits * PAPER.temperature / temperature).softmax(1))[0]


def depth_of(seed: int, bins: tuple[float, ...], words: tuple[str, ...], temperature: float = 0.1) -> Tensor:
    """The patches' depth by definition, (h, w) [m]."""
    return torch.einsum("khw,k->hw", shares_of(seed, words, temperature), torch.tensor(bins).double())


def pythons(truth: object, pred: object, protocol: Protocol = NYU) -> dict[str, float]:
    """The metrics of N pixels' prediction, by calculate_error.py."""
    true, depth = torch.as_tensor(truth), torch.as_tensor(pred)
    kept = depth > (1e-3 if protocol.drops_tiny else -1)
    errors = mean_errors(true[kept], depth[None, kept], protocol.cap, COLUMNS)
    return {name: errors[name].item() for name in COLUMNS}


def true_depth() -> np.ndarray:
    """(96, 128) float32 [m]: one depth for each patch, the first not measured, the last beyond the bins."""
    patches = np.linspace(0, 4.4, 12, dtype=np.float32).reshape(GRID)
    return patches.repeat(32, axis=0).repeat(32, axis=1)


@pytest.fixture(scope="module")
def html() -> str:
    names = [("b/2.jpg", "b", 0.3), ("a/10.jpg", "a", None), ("a/9.jpg", "a", 0.1), (HOSTILE, HOSTILE, 0.2)]
    cards = []
    for i, (name, scene, v) in enumerate(names):
        truth, counted = (true_depth(), COUNTED) if i < 3 else (None, None)
        picture, metrics = noise(*SIZE, i), {"abs_rel": v, "rmse": i, "spearman": None}
        cards.append(page.card(name, scene, picture, logits_of(i), WORDS, PHRASES, truth, metrics, counted))
    rows = {"this run": {"delta1": 0.5, "rmse": None}, HOSTILE: {"delta1": 0.394, "rmse": 1.167}}
    return page.build(f"Rooms {HOSTILE}", cards, WORDS, PHRASES, rows, [page.subset_note(4, 654), HOSTILE], HOSTILE)


# What is stored


def test_choices_by_hand():
    assert (page.spread(10, 3), page.spread(3, 5), page.spread(654, 24)[0]) == ([1, 5, 8], [0, 1, 2], 13)
    assert page.spread(5, 0) == page.spread(0, 5) == []
    assert page.spread_words("abcdefg", 3) == ("a", "d", "g")
    assert page.spread_words("abc", 1) == page.spread_words("abc", 4) == ()


def test_phrases_are_the_files_and_those_the_buttons_need(tmp_path):
    assert len(ALL) == len(set(ALL)) >= 70
    assert {*PAPER.depth_classes, *page.COLOUR_WORDS, "touching my nose", "out of reach"} <= set(ALL)
    file = tmp_path / "own.txt"
    file.write_text("# mine\n\n near \nfar\n遠い\nnear\nمی\u200cخواهم\n", encoding="utf-8")
    assert page.phrases_for(PAPER, file) == (*page.COLOUR_WORDS, "near", "遠い", "می\u200cخواهم")
    long = Reading(depth_templates=("{} {}" + " x" * 71,), depth_classes=("a",), bin_list=(1,))
    assert set(page.phrases_for(long)) < {*PHRASES, *PAPER.depth_classes}  # ours that do not fit are left out
    for text in (b"# none\n", b"long " * 80, b"\n".join(b"%d" % i for i in range(201)), b"caf\xe9", b"a\0b"):
        file.write_bytes(text)
        with pytest.raises(DataError, match=r"own\.txt: .*(1 to 200|shorten|save the file as UTF-8)"):
            page.phrases_for(PAPER, file)


def test_a_card_holds_the_picture_and_no_logits_of_other_words():
    pixels = np.full((*SIZE, 3), 90, dtype=np.uint8)
    stored = page.card("k/1.jpg", "k", pixels, logits_of(0), WORDS, PHRASES)
    with Image.open(io.BytesIO(base64.b64decode(stored["jpeg"]))) as image:
        assert np.abs(np.asarray(image).astype(int) - pixels).max() <= 1
    with pytest.raises(ValueError, match=r"expected logits \(V, \d+, h, w\), got \(2, 6, 3, 4\)"):
        page.card("k/1.jpg", "k", pixels, logits_of(0, classes=6), WORDS, PHRASES)


def test_words_and_names_are_data_and_nothing_leaves_the_page(html):
    assert "<script>window.attacked" not in html
    assert html.count("<script") == html.count("</script>") == 2
    assert "default-src 'none'" in html
    assert '<p id="warning" role="note">&lt;/script&gt;' in html
    links = re.findall(r"<[^>]*(?:src|href|action)=[^>]*>", html.split('id="data"')[0])
    assert links == ['<link rel="icon" href="data:,">']


# In a browser


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    executable = find_browser() or pytest.skip("no Chromium or Chrome here; install one, or name it in $CHROME")
    opened = Browser(executable, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()


@pytest.fixture
def opened(browser, html, tmp_path):
    """The browser with the page open; afterwards, nothing may have gone wrong or been asked for."""
    browser.errors.clear()
    browser.requests.clear()
    browser.show(1280, 900)
    show(browser, tmp_path / "page.html", html)
    yield browser
    browser.settle()  # reads what it has still to say
    assert browser.errors == []
    assert {url for url in browser.requests if not url.startswith("data:")} <= {p.as_uri() for p in tmp_path.rglob("*")}
    assert browser.js("window.attacked === undefined")


def show(browser: Browser, path: Path, text: str = "") -> None:
    """Opens the page, after writing it if there is a text."""
    if text:
        path.write_text(text, encoding="utf-8")
    browser.open(path.as_uri())
    browser.js("ready")
    drawn(browser)


def drawn(browser: Browser) -> None:
    """Waits until every card shows the settings."""
    browser.settle()
    browser.js("(async () => { while (cards.some(c => c.stale)) await new Promise(requestAnimationFrame) })()")


def put(browser: Browser, element: str, value: object, event: str = "input") -> None:
    """Gives the control of this id a value, as its user would."""
    browser.js(f"byId('{element}').value = {json.dumps(value)}, byId('{element}').dispatchEvent(new Event('{event}'))")
    drawn(browser)


def click(browser: Browser, *elements: str) -> None:
    for element in elements:
        browser.js(f"byId('{element}').click()")
        drawn(browser)


def each(browser: Browser, selector: str, value: str = "e.textContent") -> list:
    """What the elements say, or another JavaScript expression for each element `e`."""
    return browser.js(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => {value})")


def check(browser: Browser, bins: tuple[float, ...], words: tuple[str, ...], temperature: float = 0.1) -> None:
    """Compares every card's patches [m] with what monoclip.py says, and its metrics with calculate_error's."""
    maps, live = browser.js("[cards.map(c => [...c.depth]), cards.map(c => c.live)]")
    depths = [depth_of(i, bins, words, temperature) for i in range(4)]
    np.testing.assert_allclose(maps, [depth.flatten() for depth in depths], atol=1e-3)
    counted = COUNTED & (true_depth() > 0)
    for depth, got in zip(depths[:3], live[:3], strict=True):
        pred = F.interpolate(depth[None, None], SIZE, mode="bilinear", align_corners=True)[0, 0].float()
        assert got == pytest.approx(pythons(true_depth()[counted], pred[counted]), abs=1e-3)


def test_nothing_is_lost_on_the_way_into_the_page(opened):
    extremes = np.array([[0, 65535, 0, 32768, 1], [65535, 32767, 32768, 0, 9]])
    assert opened.js(f"unpacked('{page.packed(extremes)}', 5).then(v => [...v])") == extremes.flatten().tolist()
    similarity, *truth = opened.js("(i => [i.similarity, i.measured, i.counted].map(v => [...v]))(data.images[0])")
    assert truth == [(true_depth() * c * 1000).round().flatten().tolist() for c in (1, COUNTED)]
    logits = logits_of(0) - logits_of(0).min(axis=1, keepdims=True)
    logits[1] = logits[1, ..., ::-1]
    np.testing.assert_allclose(np.array(similarity) / PAPER.temperature, logits.flatten(), atol=2e-4)


def test_maps_and_metrics_equal_pythons_at_all_settings(opened):
    words, bins = WORDS.depth_classes, PAPER.bin_list
    check(opened, bins, words)
    put(opened, "temperature", -2)
    check(opened, bins, words, 0.01)
    put(opened, "temperature", -0.3)
    put(opened, "bin-6", 7.5)
    check(opened, (*bins[:-1], 7.5), words, 10**-0.3)
    assert each(opened, "#near, #far") == ["near ≤ 0.40 m", "≥ 4.40 m far"]  # as before: the colours are locked
    means = opened.js("cards.slice(0, 3).map(c => c.live.rmse).reduce((a, b) => a + b) / 3")
    assert each(opened, "#metrics tr.live td:last-child") == [f"{means:.3f}"]
    click(opened, "preset-run")
    check(opened, bins, words)
    quirk = (*[1e-4] * 6, 11.0)  # below 1 mm, which does not count, and beyond the cap of 10 m
    opened.js(f"state.bins = {list(quirk)}")
    put(opened, "temperature", -1.3)
    check(opened, quirk, words, 10**-1.3)


def test_buttons_and_own_words(opened):
    bins, disabled = PAPER.bin_list, "button:disabled"
    assert each(opened, disabled) == ["The run's"]
    click(opened, "preset-paper")
    assert each(opened, disabled) == ["The paper's"]
    check(opened, bins, PAPER.depth_classes)
    click(opened, "preset-colour", "reversed")
    check(opened, bins[::-1], page.COLOUR_WORDS)
    click(opened, "equal")
    check(opened, bins, page.COLOUR_WORDS, 1e9)
    put(opened, "temperature", -2)
    check(opened, bins[::-1], page.COLOUR_WORDS, 0.01)
    click(opened, "preset-run")
    values = each(opened, ".word input", "e.value")
    assert (*values[::2], *map(float, values[1::2])) == (*WORDS.depth_classes, *bins)

    put(opened, "word-2", "touching my nose")
    words = (*WORDS.depth_classes[:2], "touching my nose", *WORDS.depth_classes[3:])
    check(opened, bins, words)
    assert "“This object is touching my nose”" in each(opened, "#prompt")[0]
    put(opened, "word-0", "no such phrase", "change")
    assert f"“no such phrase” is none of the {len(ALL)} phrases" in each(opened, "#message")[0]
    assert opened.js("byId('word-0').value") == words[0]
    click(opened, "add")
    put(opened, "word-7", "out of reach")
    put(opened, "bin-7", 5)
    click(opened, "remove-3")
    check(opened, (*bins[:3], *bins[4:], 5.0), (*words[:3], *words[4:], "out of reach"))
    click(opened, *["remove-0"] * 6)
    check(opened, (5.0,), ("out of reach",))
    assert set(each(opened, "#phrases option", "e.value")) == set(ALL)


def test_pixels_of_the_maps_are_pythons_and_what_was_not_measured_is_clear(opened):
    depth = depth_of(0, PAPER.bin_list, WORDS.depth_classes)[None, None]
    full = F.interpolate(depth, SIZE, mode="bilinear", align_corners=True)[0, 0].numpy()
    np.testing.assert_allclose(opened.js("[...cards[0].map]"), full.flatten(), atol=1e-3)
    pixels = "[...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    canvases = "(({mapCanvas: a, truthCanvas: b, errorCanvas: d}) => [a, b, d])(cards[0])"
    pred, true, error = np.array(opened.js(f"{canvases}.map(c => {pixels})")).reshape(3, *SIZE, 4)
    truth, measured = true_depth(), true_depth() > 0
    assert np.abs(pred[..., :3] - colourise(full, NEAR, FAR).astype(int)).max() <= 3  # one step of the colours
    assert np.abs(true[..., :3] - colourise(truth, NEAR, FAR).astype(int))[measured].max() <= 3
    assert ((true[..., 3] == 255) == measured).all()
    assert ((error[..., 3] == 255) == (measured & COUNTED)).all()
    red, right = error[..., 0] - error[..., 2], measured & COUNTED
    assert red[right & (full > 1.1 * truth)].min() > 0 > red[right & (full < 0.9 * truth)].max()


def test_hover_and_keys_choose_the_patch_whose_answers_are_shown(opened):
    depth, shares = depth_of(0, PAPER.bin_list, ALL[:7]), shares_of(0, ALL[:7])

    def check(row: int, column: int, truth: str) -> None:
        text = each(opened, ".card .key")[0]
        assert f"row {row + 1}, column {column + 1}" in text
        apart = float((shares[:, row, column] * (torch.tensor(PAPER.bin_list) - depth[row, column]) ** 2).sum()) ** 0.5
        assert f"predicted {depth[row, column]:.2f} m ± {apart:.2f} m" in text
        assert f"true{truth}" in text
        bars = each(opened, ".card:first-child .bar", "parseFloat(e.style.width)")
        np.testing.assert_allclose(np.array(bars) / 100, shares[:, row, column], atol=1e-3)

    opened.hover(".card .frame canvas", 0.01, 0.01)
    check(0, 0, ": not measured")
    opened.hover(".card .frame img", 0.97, 0.97)  # inside its round corner
    check(2, 3, " 4.40 m")
    opened.hover(".card .small canvas", 0.3, 0.5)
    check(1, 1, " 2.00 m")

    opened.js("document.querySelector('.card [tabindex]').focus()")
    for key, place in {"ArrowRight": "2, column 3", "ArrowUp": "1, column 3", "Home": "1, column 1"}.items():
        opened.press(key)
        assert f"row {place}" in each(opened, ".card .key")[0]


def test_sorting(opened):
    names = ["b/2.jpg", "a/10.jpg", "a/9.jpg", HOSTILE]
    for key, order in {"run": (0, 1, 2, 3), "name": (3, 2, 1, 0), "metric:abs_rel": (2, 3, 0, 1)}.items():
        put(opened, "sort", key, "change")
        assert each(opened, ".card h2") == [names[i] for i in order]
    click(opened, "direction")
    assert each(opened, ".card h2") == [names[i] for i in (0, 3, 2, 1)]


@pytest.mark.parametrize(("width", "height", "phone"), [(320, 800, True), (844, 390, True), (820, 1180, False)])
def test_it_fits_the_screen(opened, tmp_path, width, height, phone):
    crowd = Reading(depth_classes=ALL[:12], bin_list=(2, *[2.1] * 11))  # and a tall picture
    card = page.card("tall", "", noise(544, 224), logits_of(0, grid=(17, 7)), crowd, ALL[12:])
    opened.show(width, height, phone=phone)
    show(opened, tmp_path / "page.html", page.build("Tall", [card], crowd, ALL[12:]))
    assert opened.js("document.documentElement.scrollWidth") <= width
    assert max(each(opened, ".maps .frame", "e.offsetHeight")) < height - 60
    rows = each(opened, ".card:first-child .answer", "[e.offsetTop, e.offsetHeight]")
    assert all(row[0] + row[1] <= after[0] + 1 for row, after in pairwise(rows))  # no label over another


def test_the_page_of_predict_begins_and_ends_like_its_arrays(opened, tiny_checkpoint, tmp_path):
    for i in range(5):
        save(tmp_path / "in" / f"scene{i % 2}" / f"{i}.jpg", noise(100, 140, i))
    path = tmp_path / "out" / "depth.html"
    flags = ["-i", f"{tmp_path}/in", "-o", str(path.parent), "--clip_path", str(tiny_checkpoint), "--device", "cpu"]
    flags += QUICKGELU
    assert predict.main([*flags, "--html", "--no_mirror"]) == 0
    show(opened, path)
    names = each(opened, ".card h2")
    assert names == [f"scene{i % 2}/{i}.jpg" for i in (0, 2, 4, 1, 3)]
    got = opened.js("cards.map(c => [c.map[0], c.map.at(-1)])")
    arrays = [np.load(path.parent / name.replace(".jpg", "_depth.npy")) for name in names]
    np.testing.assert_allclose(got, [[array[0, 0], array[-1, -1]] for array in arrays], atol=1e-3)


def test_the_page_of_experiments_gives_the_runs_own_metrics(opened, tmp_path):
    flags = ["--data_path", str(DEMO_DATA), "--clip_path", str(DEMO_WEIGHTS), "--output", str(tmp_path / "out")]
    flags += ["--device", "cpu", "--no_paper", "--limit", "3", "--html", "2"]
    assert experiments.main(flags) == 0
    show(opened, tmp_path / "out" / "depth.html")
    for live, run in opened.js("cards.map(c => [c.live, c.image.metrics])"):
        assert live == pytest.approx({name: run[name] for name in COLUMNS}, abs=1e-4)
    assert str(tmp_path) not in (tmp_path / "out" / "depth.html").read_text()
    assert "toy" in each(opened, "#warning")[0]


def test_table_and_notes_show_what_they_were_given(opened):
    table = opened.js("[...document.querySelectorAll('#metrics tr')].map(r => [...r.cells].map(c => c.textContent))")
    assert table[:3] == [["", "delta1", "rmse"], ["this run", "0.500", "\u2013"], [HOSTILE, "0.394", "1.167"]]
    assert table[3] == ["this run, the 3 pictures on this page", "\u2013", "1.000"]
    assert "4 of the run's 654 pictures" in each(opened, "#notes")[0]
    assert each(opened, "#warning") == [HOSTILE]


def test_one_word_and_metrics_at_ties_and_beyond_the_cap(opened, tmp_path):
    one = Reading(depth_classes=("near",), bin_list=(2.4,))
    pairs = [(3.0, 2.4), (1.0, 0.8), (2.75, 2.2), (1.28, 1.024), (12.0, 9.0)]  # true and predicted [m]
    truths, metrics = [np.full(SIZE, depth, np.float32) for depth, _ in pairs], {"rmse": 1.5}
    cards = [page.card("", "", noise(*SIZE), logits_of(0), one, ALL[1:], t, metrics, t > 0) for t in truths]
    show(opened, tmp_path / "page.html", page.build("One word", cards, one, ALL[1:], {"this run": metrics}))
    for i, (depth, predicted) in enumerate(pairs):
        put(opened, "bin-0", predicted)
        assert opened.js(f"cards[{i}].live") == pytest.approx(pythons([depth], [predicted]), abs=1e-6)
    click(opened, "preset-colour")
    assert opened.js("[...state.words.map(w => phrases[w]), ...state.bins]") == [*page.COLOUR_WORDS, *PAPER.bin_list]


def test_a_page_of_another_protocol(opened, tmp_path):
    words = Reading(depth_classes=("near",), bin_list=(2.4,))
    phrases = page.phrases_for(words, protocol=KITTI_BTS)
    truths = [np.full(SIZE, depth, np.float32) for depth in (12.0, 75.0, 0.002, 264.0)]  # two beyond 65.535 m
    logits = logits_of(0, 1 + len(phrases))
    cards = [page.card("", "", noise(*SIZE), logits, words, phrases, t, {"rmse": 1.5}, t > 0) for t in truths]
    show(opened, tmp_path / "page.html", page.build("KITTI", cards, words, phrases, protocol=KITTI_BTS))
    assert each(opened, "#near, #far") == ["near ≤ 0.00 m", "≥ 80.00 m far"]
    assert opened.js("cards.map(c => c.image.measured[0])") == [12000, 75000, 2, 264000]
    assert opened.js("[[5, 0, 3, 0], [5, 0, NaN, 0]].map(isSparse)") == [True, True]
    assert opened.js("[isSparse([5, 0, 3, 1]), cards.map(c => c.image.sparse)]") == [False, [False] * 4]
    points = [9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]  # three rows; each reaches two pixels, not round the end of a row
    assert opened.js(f"[...spread(Float32Array.of(...{points}), 4)]") == [9, 9, 9, 7] * 3
    opened.js("byId('bin-0').min = 0")
    for predicted in (1e-4, 9.0, 90.0):  # none is dropped: all are clamped
        put(opened, "bin-0", predicted)
        for i, truth in enumerate(truths):
            wanted = pythons(truth[0, :1], [predicted], KITTI_BTS)
            assert opened.js(f"cards[{i}].live") == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    for name, preset in (("auty", AUTY), ("log", LOG_BINS)):
        click(opened, f"preset-{name}")
        assert opened.js("state.words.map(w => phrases[w])") == list(preset.depth_classes)
        assert opened.js("state.bins") == list(preset.bin_list)
