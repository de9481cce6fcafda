"""viewer.page: what it stores, and how it behaves in a browser, where nothing is drawn that Python would not draw."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import predict
from calculate_error import KITTI_BTS, NYU, NYU_METRICS, Protocol, mean_errors
from datasets import DataError
from experiments import __main__ as experiments
from monoclip import PAPER, Reading, mirror_average, upsampled
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
TRUTH = np.linspace(0, 4.4, 12, dtype=np.float32).reshape(GRID).repeat(32, axis=0).repeat(32, axis=1)  # [m], by patch
MEASURED = TRUTH > 0  # not the first patch
COUNTED = np.indices(SIZE).sum(axis=0) > 40  # not the corner at the top left
RIGHT = MEASURED & COUNTED
NEAR, FAR = 0.4, 4.4  # of the colours: the 2nd and the 98th percentile of TRUTH
NAMES = ("b/2.jpg", "a/10.jpg", "a/9.jpg", HOSTILE)


def logits_of(seed: int, classes: int = len(ALL)) -> np.ndarray:
    """Random logits of a picture and its mirror, (2, K + P, h, w) float32."""
    return np.random.default_rng(seed).normal(200, 3, (2, classes, *GRID)).astype(np.float32)


def answers_of(seed: int, words: tuple, bins: tuple = PAPER.bin_list, temperature: float = 0.1) -> list[torch.Tensor]:
    """The patches' depth (h, w) [m] and the words' shares (K, h, w), by definition."""
    logits = torch.from_numpy(logits_of(seed)[:, [ALL.index(word) for word in words]]).double()
    shares = mirror_average((logits * PAPER.temperature / temperature).softmax(1))[0]
    return [torch.einsum("khw,k->hw", shares, torch.tensor(bins).double()), shares]


def pythons(truth: object, pred: object, protocol: Protocol = NYU) -> dict[str, float]:
    """The metrics of N pixels' prediction, by calculate_error.py."""
    true, depth = torch.as_tensor(truth), torch.as_tensor(pred)
    kept = depth > (1e-3 if protocol.drops_tiny else -1)
    return {k: v.item() for k, v in mean_errors(true[kept], depth[None, kept], protocol.cap, COLUMNS).items()}


@pytest.fixture(scope="module")
def html() -> str:
    cards = []
    for i, (name, value) in enumerate(zip(NAMES, (0.3, None, 0.1, 0.2), strict=True)):
        truth, metrics = ((TRUTH, COUNTED) if i < 3 else None), {"delta1": value, "rmse": i, "spearman": None}
        cards.append(page.card(name, noise(*SIZE, i), logits_of(i), WORDS, metrics, truth))
    rows = {"this run": {"delta1": 0.5, "rmse": None}, HOSTILE: {"delta1": 0.394, "rmse": 1.167}}
    texts = {"title": f"Rooms {HOSTILE}", "notes": f"{page.subset_note(4, 654)} {HOSTILE}", "warning": HOSTILE}
    return page.build(cards, WORDS, PHRASES, rows, **texts)


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
    assert page.phrases_for(PAPER, count=None) == ()
    long = Reading(depth_templates=("{} {}" + " x" * 71,), depth_classes=("a",), bin_list=(1,))
    assert set(page.phrases_for(long)) < {*PHRASES, *PAPER.depth_classes}  # ours that do not fit are left out
    for text in (b"# none\n", b"long " * 80, b"\n".join(b"%d" % i for i in range(201)), b"caf\xe9", b"a\0b"):
        file.write_bytes(text)
        with pytest.raises(DataError, match=r"own\.txt: .*(1 to 200|shorten|save the file as UTF-8)"):
            page.phrases_for(PAPER, file)


def test_words_and_names_are_data_and_nothing_leaves_the_page(html):
    assert html.count("<script") == html.count("</script>") == 2
    assert "default-src 'none'" in html
    assert html.count("&lt;/script&gt;") == 8  # in both titles, the notes and the warning
    links = re.findall(r"<[^>]*?(?:src|href|action)=\"?([^\" >]+)", html.split('id="data"')[0])
    assert links == ["data:,", "https://arxiv.org/abs/2207.01077", "https://github.com/Adonis-galaxy/DepthCLIP"]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    executable = find_browser() or pytest.skip("no Chromium or Chrome here; install one, or name it in $CHROME")
    yield (opened := Browser(executable, tmp_path_factory.mktemp("profile")))
    opened.close()


@pytest.fixture
def opened(browser, html, tmp_path):
    """The browser with the page open; afterwards, nothing may have gone wrong or been asked for."""
    browser.errors, browser.requests = [], []
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
    act(browser, "ready")


def act(browser: Browser, step: str) -> None:
    """Runs some JavaScript and waits until every card shows the settings."""
    browser.js(step)
    browser.settle()
    browser.js("(async () => { while (cards.some(c => c.stale)) await new Promise(requestAnimationFrame) })()")


def use(browser: Browser, element: str, value: object = None) -> None:
    """Clicks the control of this id or gives it a value, as its user would."""
    fill = f"e.value = {json.dumps(value)}, ['input', 'change'].forEach(n => e.dispatchEvent(new Event(n)))"
    act(browser, f"(e => {{ {'e.click()' if value is None else fill} }})(byId('{element}'))")


def each(browser: Browser, selector: str, value: str = "e.textContent") -> list:
    """What the elements say, or another JavaScript expression for each element `e`."""
    return browser.js(f"[...document.querySelectorAll({json.dumps(selector)})].map(e => {value})")


def check(browser: Browser, words: tuple[str, ...], bins: tuple[float, ...], temperature: float = 0.1) -> None:
    """Compares every card's patches [m] with what monoclip.py says, and its metrics with calculate_error's."""
    for i, (patches, live) in enumerate(browser.js("cards.map(c => [[...c.depth], c.live])")):
        depth, _ = answers_of(i, words, bins, temperature)
        np.testing.assert_allclose(patches, depth.flatten(), atol=1e-3)
        if i < 3:
            pred = upsampled(depth[None, None], SIZE)[0, 0].float()
            assert live == pytest.approx(pythons(TRUTH[RIGHT], pred[RIGHT]), abs=1e-3)


def check_first_screens(browser: Browser) -> None:
    """On a desk and on a phone: a picture, its depth and its words before one scrolls, help closed, nothing cut."""
    assert not any(each(browser, "details", "e.open"))
    for width, height, phone in ((1400, 1000, False), (390, 844, True)):
        browser.show(width, height, phone)
        parts = ".card:first-child :is(.answer, .maps > :nth-child(-n + 2) .frame)"
        bottoms = each(browser, parts, "e.getBoundingClientRect().bottom")
        assert len(bottoms) == 2 + len(PAPER.depth_classes)
        assert max(bottoms) < height - phone * browser.js("byId('controls').offsetHeight")
        assert browser.js("document.documentElement.scrollWidth") <= width


def test_numbers_by_hand(opened):
    extremes = np.array([[0, 65535, 0, 32768, 1], [65535, 32767, 32768, 0, 9]])
    assert opened.js(f"unpacked('{page.packed(extremes)}', 5).then(v => [...v])") == extremes.flatten().tolist()
    assert opened.js("[[5, 0, 3, 0], [5, 0, NaN, 0], [5, 0, 3, 1]].map(isSparse)") == [True, True, False]
    points = [9, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 7]  # three rows; each reaches two pixels, not round the end of a row
    assert opened.js(f"[...spread(Float32Array.of(...{points}), 4)]") == [9, 9, 9, 7] * 3


def test_maps_and_metrics_equal_pythons_at_all_settings(opened):
    run, bins, paper, colours = WORDS.depth_classes, PAPER.bin_list, PAPER.depth_classes, page.COLOUR_WORDS
    own = (*run[:2], "touching my nose", *run[3:])
    more = (*own[:3], *own[4:], "out of reach"), (*bins[:3], *bins[4:], 5.0)
    assert each(opened, "button:disabled") == ["The run's"]
    check(opened, run, bins)
    steps = [  # what a user does, and the words, bins and temperature that he should see
        ([("temperature", -0.3), ("bin-6", 7.5)], run, (*bins[:-1], 7.5), 10**-0.3),
        ([("preset-paper",)], paper, bins),
        ([("preset-colour",), ("reversed",)], colours, bins[::-1]),
        ([("equal",)], colours, bins, 1e9),
        ([("temperature", -2)], colours, bins[::-1], 0.01),
        ([("preset-run",), ("word-2", "touching my nose")], own, bins),
        ([("remove-3",), ("add",), ("word-6", "out of reach"), ("bin-6", 5)], *more),
        ([("remove-0",)] * 6, ("out of reach",), (5.0,)),
    ]
    for uses, *settings in steps:
        for control in uses:
            use(opened, *control)
        check(opened, *settings)
        means = opened.js("cards.slice(0, 3).map(c => c.live.rmse).reduce((a, b) => a + b) / 3")
        assert each(opened, "#metrics tr.live td:last-child") == [f"{means:.3f}"]
    assert each(opened, "#near, #far") == ["near ≤ 0.40 m", "≥ 4.40 m far"]  # as before: the colours are locked
    use(opened, "preset-run")
    tiny = (*[1e-4] * 6, 11.0)  # below 1 mm, which does not count, and beyond the cap of 10 m
    act(opened, f"state.bins = {list(tiny)}, schedule()")
    check(opened, run, tiny)
    assert set(each(opened, "#phrases option", "e.value")) == set(ALL)
    use(opened, "word-2", "touching my nose")
    use(opened, "word-0", "no such phrase")
    assert f"“no such phrase” is none of the {len(ALL)} phrases" in each(opened, "#message")[0]
    assert f"“This object is {ALL[0]}”, “This object is 遠い”, “This object is touching" in each(opened, "#prompt")[0]


def test_pixels_of_the_maps_are_pythons_and_what_was_not_measured_is_clear(opened):
    depth, _ = answers_of(0, ALL[:7])
    full = upsampled(depth[None, None], SIZE)[0, 0].numpy()
    opened.js("(picture = cards[0].mapCanvas.cloneNode()).getContext('2d').drawImage(document.images[0], 0, 0)")
    pixels = "[...c.getContext('2d').getImageData(0, 0, c.width, c.height).data]"
    canvases = "(({mapCanvas: a, truthCanvas: b, errorCanvas: d}) => [picture, a, b, d])(cards[0])"
    picture, pred, true, error = np.array(opened.js(f"{canvases}.map(c => {pixels})")).reshape(4, *SIZE, 4)
    assert np.abs(picture[..., :3] - noise(*SIZE).astype(int)).mean() < 5  # a JPEG
    assert np.abs(pred[..., :3] - colourise(full, NEAR, FAR).astype(int)).max() <= 3  # one step of the colours
    assert np.abs(true[..., :3] - colourise(TRUTH, NEAR, FAR).astype(int))[MEASURED].max() <= 3
    assert ((true[..., 3] == 255) == MEASURED).all()
    assert ((error[..., 3] == 255) == RIGHT).all()
    red = error[..., 0] - error[..., 2]
    assert red[RIGHT & (full > 1.1 * TRUTH)].min() > 0 > red[RIGHT & (full < 0.9 * TRUTH)].max()
    bar = each(opened, ".ramp.errors", "getComputedStyle(e).backgroundImage.match(/rgb[^)]*/g)")[0]
    ends = colourise(np.array([[0.0, 1.0]]), 0, 1, "RdBu_r")[0]
    assert [bar[0], bar[-1]] == [f"rgb({r}, {g}, {b}" for r, g, b in ends]


def test_hover_and_keys_choose_the_patch_whose_answers_are_shown(opened):
    depth, shares = answers_of(0, ALL[:7])
    for place, row, column, truth in [
        ((".card .frame canvas", 0.01, 0.01), 0, 0, ": not measured"),
        ((".card .frame img", 0.97, 0.97), 2, 3, " 4.40 m"),  # inside its round corner
        ((".card .small canvas", 0.3, 0.5), 1, 1, " 2.00 m"),
    ]:
        opened.hover(*place)
        apart = float((shares[:, row, column] * (torch.tensor(PAPER.bin_list) - depth[row, column]) ** 2).sum()) ** 0.5
        wanted = f"row {row + 1}, column {column + 1}predicted {depth[row, column]:.2f} m ± {apart:.2f} mtrue{truth}"
        assert each(opened, ".card .key")[0].startswith(wanted)
        bars = each(opened, ".card:first-child .bar", "parseFloat(e.style.width)")
        np.testing.assert_allclose(np.array(bars) / 100, shares[:, row, column], atol=1e-3)
    opened.js("document.querySelector('.card [tabindex]').focus()")
    for key, name in {"ArrowRight": "2, column 3", "ArrowUp": "1, column 3", "Home": "1, column 1"}.items():
        opened.call("Input.dispatchKeyEvent", type="keyDown", key=key)
        assert f"row {name}" in each(opened, ".card .key")[0]


def test_order_table_and_notes(opened):
    orders = {
        "best and worst first": (0, 2, 1, 3),  # as it is at first; then the others in the order of the run
        "best first": (0, 3, 2, 1),
        "order of the run": (0, 1, 2, 3),
        "name": (3, 2, 1, 0),
        "delta1": (2, 3, 0, 1),
    }
    assert each(opened, ".card header > span", "e.textContent.split(' ')[0]") == ["best", "worst", "", ""]
    for name, order in orders.items():
        use(opened, "sort", name)
        assert each(opened, ".card h2") == [NAMES[i] for i in order]
    use(opened, "direction")
    assert each(opened, ".card h2") == [NAMES[i] for i in (0, 3, 2, 1)]  # without a value: last, in both directions

    table = opened.js("[...document.querySelectorAll('#metrics tr')].map(r => [...r.cells].map(c => c.textContent))")
    assert table[:3] == [["", "delta1↑", "rmse↓"], ["this run", "0.500", "\u2013"], [HOSTILE, "0.394", "1.167"]]
    assert table[3] == ["this run, the 3 on this page", "\u2013", "1.000"]
    assert ("4 of the run's 654 pictures" in each(opened, "#notes")[0], each(opened, "#warning")) == (True, [HOSTILE])
    opened.js("document.querySelectorAll('#metrics button')[1].click()")
    assert [t[:11] for t in each(opened, "#explained:popover-open")] == ["rmse: root "]
    assert all("is better" in title for title in each(opened, "#metrics button", "e.title"))


def test_the_page_of_predict_begins_and_ends_like_its_arrays(opened, tiny_checkpoint, tmp_path):
    for i in range(5):
        save(tmp_path / "in" / f"scene{i % 2}" / f"{i}.jpg", noise(100, 140, i))
    out = tmp_path / "out"
    flags = ["-i", f"{tmp_path}/in", "-o", str(out), "--clip_path", str(tiny_checkpoint), "--device", "cpu", *QUICKGELU]
    assert predict.main([*flags, "--html", "--no_mirror"]) == 0
    show(opened, out / "depth.html")
    names = each(opened, ".card h2")
    assert names == [f"scene{i % 2}/{i}.jpg" for i in (0, 2, 4, 1, 3)]
    got = opened.js("cards.map(c => [c.map[0], c.map.at(-1)])")
    arrays = [np.load(out / name.replace(".jpg", "_depth.npy")) for name in names]
    np.testing.assert_allclose(got, [[array[0, 0], array[-1, -1]] for array in arrays], atol=1e-3)
    check_first_screens(opened)
    assert not re.search(r"(?i)\btrue|metric|these settings|measured|delta", "".join(each(opened, "header, main")))


def test_the_page_of_experiments_gives_the_runs_own_metrics(opened, tmp_path):
    flags = ["--data_path", str(DEMO_DATA), "--clip_path", str(DEMO_WEIGHTS), "--output", str(tmp_path / "out")]
    assert experiments.main([*flags, "--device", "cpu", "--no_paper", "--limit", "3", "--html", "2"]) == 0
    show(opened, tmp_path / "out" / "depth.html")
    for live, run in opened.js("cards.map(c => [c.live, c.image.metrics])"):
        assert live == pytest.approx({name: run[name] for name in COLUMNS}, abs=1e-4)
    assert str(tmp_path) not in (tmp_path / "out" / "depth.html").read_text()
    assert "toy" in each(opened, "#warning")[0]
    check_first_screens(opened)


@pytest.mark.parametrize("protocol", [NYU, KITTI_BTS])
def test_metrics_at_ties_and_beyond_the_cap(opened, tmp_path, protocol):
    depths, predictions = (3.0, 1.0, 2.75, 1.28, 12.0), (2.4, 0.8, 2.2, 1.024, 9.0)
    if protocol is KITTI_BTS:
        depths, predictions = (12.0, 75.0, 0.002, 264.0), (1e-4, 9.0, 90.0)  # none is dropped: all are clamped
    one = Reading(depth_classes=("near",), bin_list=(2.4,))
    phrases, truths = page.phrases_for(one, protocol=protocol), [np.full(SIZE, depth, np.float32) for depth in depths]
    logits, texts = logits_of(0, 1 + len(phrases)), {"title": "", "notes": "", "warning": ""}
    cards = [page.card("", noise(*SIZE), logits, one, {}, (truth, truth > 0)) for truth in truths]
    show(opened, tmp_path / "page.html", page.build(cards, one, phrases, {}, protocol, **texts))
    assert opened.js("cards.map(c => c.image.measured[0] / 1000)") == list(depths)  # also beyond 65.535 m
    opened.js("byId('bin-0').min = 0")
    for predicted in predictions:
        use(opened, "bin-0", predicted)
        for i, depth in enumerate(depths):
            wanted = pythons(np.float32([depth]), np.float32([predicted]), protocol)
            assert opened.js(f"cards[{i}].live") == pytest.approx(wanted, rel=1e-5, abs=1e-6)
    assert each(opened, "[id^=preset][hidden]", "e.id") == ["preset-auty", "preset-log"] * (protocol is NYU)
    use(opened, "preset-colour")  # for one word there is no choice of colours: all seven, with the paper's bins
    assert opened.js("[...state.words.map(w => phrases[w]), ...state.bins]") == [*page.COLOUR_WORDS, *PAPER.bin_list]
    assert each(opened, "#far") == [f"≥ {protocol.cap:.2f} m far"]
