"""experiments.plots: which patches and values are drawn, that they can be read, and that any name can be drawn."""

import re
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from matplotlib.text import Text
from PIL import Image

from datasets import printable
from experiments.plots import draw_certainty, draw_ladder, draw_question, draw_readouts, draw_response, near_and_far
from experiments.published import BIN_RESPONSE, PAPER_ROW, RUNGS, THIS_RUN, UNIFORM, beside
from experiments.statistics import Case, Contrast
from experiments.tables import Report
from tests.conftest import HOSTILE, asked, report_of, with_findings
from viewer.strip import Example, draw_strip

GRID = (4, 5)  # patches of 32 px
TRUTH = np.kron(np.arange(1.0, 21).reshape(GRID), np.ones((32, 32)))
WEIGHTS = np.random.default_rng(0).dirichlet(np.ones(7), GRID).transpose(2, 0, 1)  # (7, 4, 5)
PATCHES = [np.array([[1.21, 2.5], [0.8, 3.9]]), np.array([[1.21], [0.8]]), np.array([[1.3], [1.01]])]  # of three images
CAPTION = "Over 3 images of sample; a toy"


def draw_all(folder: Path, report: Report, caption: str = CAPTION, name: str = "classroom/rgb_00001.jpg") -> None:
    example = Example(name, np.zeros((128, 160, 3), dtype=np.uint8), TRUTH, TRUTH, 0.5)
    low = 0.01 if report.results.has_intervals else -0.01
    gain = Contrast(THIS_RUN, UNIFORM, "aurg", 0.05, (low, 0.095), 9, 12, 1.0)
    cases = [Case(b, "clip", r, 0.1, (b, r) == (name, "raw")) for b in (name, "B") for r in ("raw", "clear")]
    cases.append(Case(name, "clip", "raw", None, False))
    ends = [None, *((i - 0.25, i + 0.5) for i in range(1, 5))]
    found = {case: [Contrast("", "", "", i, ends[i], 1, 1, 1.0)] for i, case in enumerate(cases)}
    draw_strip(folder / "strip.png", [example] * 2, caption)
    draw_response(folder / "response.png", example, WEIGHTS, caption)
    draw_ladder(folder / "ladder.png", report.results, caption, beside("NYU")[PAPER_ROW])
    draw_question(folder / "question.png", report.verdict, report.primary, report.findings, (1.0, 3.0), caption)
    draw_certainty(folder / "certainty.png", np.linspace(0.1, 0.4, 20), gain, caption)
    draw_readouts(folder / "readouts.png", found, caption)


@pytest.fixture(scope="module", params=[12, 9])
def drawn(request, tmp_path_factory):
    """A report of 12 images, or of 9 and so without intervals and p, and all drawings of it."""
    report, found = with_findings(asked(request.param), patches=PATCHES), {}
    report = report if request.param == 12 else with_findings(report, permuted=None)
    del report.results.metrics[RUNGS[2]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Figure, "savefig", lambda figure, file, **_: found.setdefault(Path(file.name).name, figure))
        draw_all(tmp_path_factory.mktemp("drawn"), report)
    return report, *found.values()


def test_letters_are_large_enough_and_nothing_overlaps(drawn):
    for figure in drawn[1:]:
        assert figure.get_figwidth() == 8  # inches, so that points are points at 800 px
        assert (bool(figure.get_suptitle()), figure.get_supxlabel()) == (True, CAPTION)
        figure.draw_without_rendering()
        for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
            for tick in axis.get_major_ticks():
                if not min(axis.get_view_interval()) <= tick.get_loc() <= max(axis.get_view_interval()):
                    tick.label1.set_text("")  # which is not drawn
        texts = [text for text in figure.findobj(Text) if text.get_text() and text.get_visible()]
        assert min(text.get_fontsize() for text in texts) >= 9
        shown = [(text.get_text(), text.get_window_extent()) for text in texts]
        for text, box in shown:
            assert figure.bbox.x0 <= box.x0 <= box.x1 <= figure.bbox.x1, text
        for (text, box), (other, second) in combinations(shown, 2):
            assert not box.padded(-1).overlaps(second.padded(-1)), (text, other)


def test_drawings_of_any_name_are_pictures(tmp_path):
    name = printable("".join(HOSTILE) + "$x^$")
    draw_all(tmp_path, with_findings(report_of(own=name), patches=PATCHES), "$y_$" * 99, name)
    assert len(list(tmp_path.iterdir())) == 6
    for path in tmp_path.iterdir():
        assert np.asarray(Image.open(path)).shape[1] == 1600


def test_near_and_far_by_hand():
    # quantiles .15 and .85 of 20 patches: the 4th and the 17th (of 0 ... 19, 2.85 and 16.15)
    assert near_and_far(TRUTH, GRID) == [("near", 0, 3, 4), ("far", 3, 1, 17)]
    truth = np.zeros((128, 160))
    truth[:16, :32], truth[32:47, :32] = 3.0, 9.0  # half of the first patch, less than half of another
    assert near_and_far(truth, GRID) == [("near", 0, 0, 3)]
    assert near_and_far(truth * 0, GRID) == []


def test_bars_are_the_weights_of_the_two_patches(drawn):
    _, _, figure, *_ = drawn
    image, *charts = figure.axes
    assert [square.get_xydata()[0].tolist() for square in image.lines] == [[96, 0], [32, 96]]
    for chart, row, column, said in zip(charts, (0, 3), (3, 1), ("true 1.328", "true 3.567"), strict=True):
        shares = WEIGHTS[:, row, column]
        assert [bar.get_width() for bar in chart.patches] == pytest.approx(shares.tolist())
        depth = f"depth {shares @ np.array(BIN_RESPONSE.bin_list):.3f} m, true {5 * row + column + 1:.3f} m\n"
        assert re.search(f"{depth}.*{said}", chart.get_title())  # said of the paper's near and far patch
        assert BIN_RESPONSE.depth_classes[shares.argmax()] in figure.get_suptitle()


def test_the_ladder_is_drawn_in_its_order_beside_the_published_row(drawn):
    report, _, _, figure, *_ = drawn
    rungs = [row for row in RUNGS if row != RUNGS[2]]
    assert [label.get_text() for label in figure.axes[0].get_yticklabels()] == rungs
    for axis, metric in zip(figure.axes, ("delta1", "abs_rel"), strict=True):
        means = [report.results.mean(row)[metric] for row in rungs]
        assert [bar.get_width() for bar in axis.patches] == pytest.approx(means)
        assert [bar.get_facecolor()[0] > 0.9 for bar in axis.patches] == [row == THIS_RUN for row in rungs]  # orange
        assert axis.lines[-1].get_xdata()[0] == beside("NYU")[PAPER_ROW][metric]
        whiskers = [part[:, 0] for part in axis.collections[0].get_segments() if len(part)]
        intervals = [report.results.intervals(row)[0][metric] for row in rungs]
        both = [(mean, each) for mean, each in zip(means, intervals, strict=True) if each]
        reach = [(low, max(high, 2 * mean - high)) for mean, (low, high) in both]  # deltas of this report go above 1
        np.testing.assert_allclose(whiskers, reach, atol=1e-9)


def test_the_question_is_drawn_image_by_image_with_all_assignments_and_patches(drawn):
    report, _, _, _, figure, *_ = drawn
    permuted, count = report.findings.permuted, len(report.results.images)
    assert figure.get_suptitle().startswith("cannot tell: ")
    axes = {axis.get_label(): axis for axis in figure.axes}
    delta1 = [-0.1] * ((count + 1) // 2) + [0.2] * (count // 2)
    for row, (contrast, expected) in enumerate(zip(report.primary, (delta1, [-0.25] * count), strict=True)):
        axis = axes[f"differences {row}"]
        assert [bar.get_height() for bar in axis.containers[0]] == pytest.approx(expected)
        assert [line.get_ydata()[0] for line in axis.lines] == pytest.approx([0, np.mean(expected)])
        spans = [(span.get_y(), span.get_y() + span.get_height()) for span in axis.patches[count:]]
        assert spans == ([] if count == 9 else [pytest.approx(contrast.interval_95)])
        assert axis.get_xlabel().endswith(("above 0 is better", "below 0 is better")[row])
        assert (f"assignments {row}" in axes) == (permuted is not None)
        if axis := axes.get(f"assignments {row}"):
            others = sorted(bar.get_x() + bar.get_width() / 2 for bar in axis.containers[0] if bar.get_height())
            assert others == pytest.approx(sorted(permuted[1:, row]), abs=0.01)  # without this run
            assert axis.get_title() == f"this run {axis.lines[0].get_xdata()[0]:.3f}, p = 0.5000"
    cells = np.nan_to_num(np.ma.filled(axes["patches"].collections[0].get_array().reshape(60, 60), 0))  # of 4 m / 60
    assert {(y, x): cells[y, x] for y, x in np.argwhere(cells).tolist()} == {(18, 12): 2, (37, 58): 1, (19, 15): 1}
    assert axes["patches"].lines[0].get_xydata().tolist() == [[0.8, 1.21], [3.9, 2.5]]  # of the worst picture
    assert axes["patches"].get_xlabel().endswith("\nbathroom/rgb_00000.jpg")


def test_certainty_is_drawn_over_a_random_order(drawn):
    report, *_, figure, _ = drawn
    low, answer = ("+0.010", "Yes") if report.results.has_intervals else ("-0.010", "Cannot tell")
    own, random = figure.axes[0].lines
    np.testing.assert_allclose(own.get_xydata()[[0, 9, 19]], [(5, 0.1), (50, 0.1 + 0.3 * 9 / 19), (100, 0.4)])
    assert list(random.get_ydata()) == [0.4, 0.4]
    assert f"is wrong? {answer}" in figure.get_suptitle()
    assert f" +0.050 [{low}, +0.095]" in figure.axes[0].get_legend().get_texts()[0].get_text()


def test_read_outs_are_drawn_in_groups_with_the_released_and_probes_in_their_places(drawn):
    axis = drawn[-1].axes[0]
    labels = [label.get_text().removeprefix("classroom/") for label in axis.get_yticklabels()]
    both = ["rgb_00001.jpg, clip, 0.1", "B, clip, 0.1"]
    assert labels == ["", "raw:", *both, "rgb_00001.jpg, clip, linear probe", "", "clear:", *both]
    points = {(y, x): line.get_marker() for line in axis.lines[:3] for x, y in line.get_xydata().tolist()}
    assert points == {(2, 0.0): "D", (3, 2.0): "o", (4, 4.0): "o", (7, 1.0): "o", (8, 3.0): "o"}
    segments = [part for each in axis.collections for part in each.get_segments() if len(part)]
    bars = sorted([*part[:, 0].tolist(), part[0, 1]] for part in segments)
    assert bars == [[i - 0.25, i + 0.5, y] for i, y in ((1, 7), (2, 3), (3, 8), (4, 4))]
    legend = [text.get_text() for text in axis.get_legend().get_texts()]
    assert [text.partition(",")[0] for text in legend] == ["the released setting", "words", "linear probe"]
