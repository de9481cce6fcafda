"""experiments.plots: which patches and values are drawn, and that any name can be."""

import numpy as np
import pytest
from PIL import Image

from datasets import printable
from experiments import plots
from experiments.plots import draw_certainty, draw_ladder, draw_question, draw_readouts, draw_response, near_and_far
from experiments.published import BIN_RESPONSE, PAPER_ROW, RUNGS, THIS_RUN, UNIFORM, beside
from experiments.statistics import Case, Contrast
from tests.conftest import HOSTILE, PERMUTED, asked, report_of, with_findings
from viewer.strip import Example

GRID = (4, 5)  # patches of 32 px


def example(name: str = "classroom/rgb_00001.jpg") -> Example:
    truth = np.kron(np.arange(1.0, 21).reshape(GRID), np.ones((32, 32)))
    return Example(name, np.zeros((128, 160, 3), dtype=np.uint8), truth, truth)


@pytest.fixture
def figures(monkeypatch):
    kept = []
    monkeypatch.setattr(plots, "save_figure", lambda figure, path, caption: kept.append(figure))
    return kept


def test_near_and_far_by_hand():
    # quantiles .15 and .85 of 20 patches: the 4th and the 17th (of 0 ... 19, 2.85 and 16.15)
    assert near_and_far(example().truth, GRID) == [(0, 3, 4), (3, 1, 17)]
    truth = np.zeros((128, 160))
    truth[:16, :32], truth[32:47, :32] = 3.0, 9.0  # half of the first patch, less than half of another
    assert near_and_far(truth, GRID) == [(0, 0, 3)]
    truth = np.arange(1.0, 8)[:, None] @ np.ones((1, 5))  # 7 x 5 px in 2 x 3 patches: rows 0-3 and 4-6
    assert near_and_far(truth, (2, 3)) == [(0, 1, 2.5), (1, 1, 6)]


def test_bars_are_the_weights_of_the_two_patches(figures, tmp_path):
    weights = np.random.default_rng(0).dirichlet(np.ones(7), GRID).transpose(2, 0, 1)  # (7, 4, 5)
    draw_response(tmp_path / "response.png", example(), weights, "Over 3 images.")
    image, *charts = figures[0].axes
    assert [rectangle.get_xy() for rectangle in image.patches] == [(96, 0), (32, 96)]
    for chart, (row, column, true) in zip(charts, [(0, 3, 4), (3, 1, 17)], strict=True):
        heights = [bar.get_height() for bar in chart.patches]
        assert heights == pytest.approx(weights[:, row, column].tolist())
        depth = weights[:, row, column] @ np.array(BIN_RESPONSE.bin_list)
        assert f"predicted {depth:.3f} m, true {true:.3f} m" in chart.get_title()


def test_the_ladder_is_drawn_in_its_order_beside_the_published_row(figures, tmp_path):
    report = asked()  # has intervals
    del report.results.metrics[RUNGS[2]]
    rungs = [row for row in RUNGS if row != RUNGS[2]]
    draw_ladder(tmp_path / "ladder.png", report.results, "Over 12 images.", beside("NYU")[PAPER_ROW])
    assert [label.get_text() for label in figures[0].axes[0].get_yticklabels()] == rungs
    for axis, metric in zip(figures[0].axes, ("delta1", "abs_rel"), strict=True):
        means = [report.results.mean(row)[metric] for row in rungs]
        assert [bar.get_width() for bar in axis.patches] == pytest.approx(means)
        orange = [row for row, bar in zip(rungs, axis.patches, strict=True) if bar.get_facecolor()[0] > 0.9]
        assert orange == [THIS_RUN]
        assert [line.get_xdata()[0] for line in axis.lines] == [beside("NYU")[PAPER_ROW][metric]]
    interval = report.results.intervals(THIS_RUN)[0]["delta1"]
    ends = [whisker.get_segments()[0][:, 0].tolist() for whisker in figures[0].axes[0].collections[::2]]
    assert list(interval) in ends
    draw_ladder(tmp_path / "ladder.png", report_of().results, "Over 3 images.")  # three images have no interval
    assert not any((*axis.lines, *axis.collections) for axis in figures[1].axes)


@pytest.mark.parametrize(("count", "permuted"), [(9, None), (12, PERMUTED)])
def test_the_question_is_drawn_image_by_image_with_all_assignments_and_patches(figures, tmp_path, count, permuted):
    patches = np.array([[1.21, 1.21, 2.5], [1.01, 1.01, 3.9]])
    report = with_findings(asked(count), permuted=permuted, patches=patches)
    draw_question(tmp_path / "q.png", report.primary, report.findings, "Over them.")
    axes = {axis.get_label(): axis for axis in figures[0].axes}
    delta1 = [-0.1] * ((count + 1) // 2) + [0.2] * (count // 2)
    for row, (contrast, expected) in enumerate(zip(report.primary, (delta1, [-0.25] * count), strict=True)):
        axis = axes[f"differences {row}"]
        assert [bar.get_height() for bar in axis.containers[0]] == pytest.approx(expected)
        assert [line.get_ydata()[0] for line in axis.lines] == pytest.approx([0, np.mean(expected)])
        spans = [(span.get_y(), span.get_y() + span.get_height()) for span in axis.patches[count:]]
        assert spans == ([] if count == 9 else [pytest.approx(contrast.interval_95)])
        assert axis.get_xlabel().endswith(("above 0 is better", "below 0 is better")[row])
        assert (f"assignments {row}" in axes) == (permuted is not None)
        if permuted is not None:
            axis = axes[f"assignments {row}"]
            others = sorted(bar.get_x() + bar.get_width() / 2 for bar in axis.containers[0] if bar.get_height())
            assert others == pytest.approx(sorted(permuted[1:, row]), abs=0.01)  # without this run
            assert axis.lines[0].get_xdata()[0] == permuted[0, row]
            assert axis.get_title() == f"this run over patches {permuted[0, row]:.3f}, p = {(0.5, 0.5)[row]:.4f}"
    cells = np.ma.filled(axes["patches"].collections[0].get_array().reshape(60, 60), 0)  # of 4 m / 60, row by row
    assert {(y, x): cells[y, x] for y, x in np.argwhere(np.nan_to_num(cells)).tolist()} == {(18, 15): 2, (37, 58): 1}


def test_certainty_is_drawn_over_a_random_order(figures, tmp_path):
    gain = Contrast(THIS_RUN, UNIFORM, "aurg", 0.05, (0.01, 0.095), 9, 12, 1.0)
    draw_certainty(tmp_path / "c.png", np.linspace(0.1, 0.4, 20), gain, "Over 3 images.")
    own, random = figures[0].axes[0].lines
    np.testing.assert_allclose(own.get_xydata()[[0, 9, 19]], [(5, 0.1), (50, 0.1 + 0.3 * 9 / 19), (100, 0.4)])
    assert list(random.get_ydata()) == [0.4, 0.4]
    assert ": +0.050, 95 % [+0.010, +0.095]; above 0" in figures[0].get_suptitle()


def test_read_outs_are_drawn_in_groups_with_the_released_and_probes_in_their_places(figures, tmp_path):
    cases = [Case(b, "imagenet", r, 0.1, (b, r) == ("A", "raw")) for b in ("A", "B") for r in ("raw", "maskclip")]
    cases.append(Case("A", "imagenet", "raw", None, False))
    found = {}
    for i, case in enumerate(cases):
        interval = (i - 0.25, i + 0.5) if i else None
        found[case] = [Contrast(case.name, UNIFORM, "delta1", float(i), interval, 1, 1, 1.0)]
    draw_readouts(tmp_path / "r.png", found, "Over 3 images.")
    axis = figures[0].axes[0]
    labels = [label.get_text() for label in axis.get_yticklabels()]
    raw = ["raw", "A, imagenet, 0.1 (released)", "B, imagenet, 0.1", "A, imagenet, linear probe", ""]
    assert labels[:8] == [*raw, "maskclip", "A, imagenet, 0.1", "B, imagenet, 0.1"]
    points = {(line.get_ydata()[0], line.get_xdata()[0]): line.get_marker() for line in axis.lines[:5]}
    assert points == {(1, 0.0): "D", (2, 2.0): "o", (3, 4.0): "o", (6, 1.0): "o", (7, 3.0): "o"}
    bars = [each.get_segments()[0].tolist() for each in axis.collections]
    assert bars == [[[i - 0.25, y], [i + 0.5, y]] for i, y in ((2, 2), (4, 3), (1, 6), (3, 7))]


def test_drawings_of_any_name_are_pictures(tmp_path):
    name = "".join(HOSTILE) + "$x^$"
    draw_response(tmp_path / "response.png", example(printable(name)), np.full((7, *GRID), 1 / 7), "$y_$")
    draw_ladder(tmp_path / "ladder.png", report_of(own=name).results, "$y_$")
    report = with_findings(asked(), patches=np.array([[1.0, 2.0], [1.5, 9.5]]))
    draw_question(tmp_path / "question.png", report.primary, report.findings, "$y_$")
    contrast = Contrast(THIS_RUN, UNIFORM, "aurg", 0.1, None, 1, 1, None)
    draw_certainty(tmp_path / "certainty.png", np.ones(20), contrast, "$y_$")
    draw_readouts(tmp_path / "readouts.png", {Case(name, "clip", "raw", 1, True): [contrast]}, "$y_$")
    for path in tmp_path.iterdir():
        with Image.open(path) as picture:
            picture.load()
            assert picture.width > 500
