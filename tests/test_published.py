"""paper: every published number against the tables as they are printed, written out here a second time."""

import paper
from monoclip import PAPER

METHODS = """
Make3D: .447 .745 .897 .349 - 1.214
DORN: .828 .965 .992 .115 .051 .509
ASTransformer: .902 .985 .997 .103 .044 .374
DepthFormer: .921 .989 .998 .096 .041 .339
RPSF: .952 .989 .997 .072 .029 .267
Lower Bound: .140 .297 .471 1.327 .323 2.934
vid2depth: .268 .507 .695 .572 - 1.637
Zhang et al.: .350 .617 .799 .513 .529 1.457
DepthCLIP: .394 .683 .851 .388 .156 1.167
"""
PROMPTS = """
original: giant, extremely close, close, not in distance, a little remote, far, unseen: .394 .683 .851 .388 .156 1.167
prompt 1: extremely close, close, middle, a little far, far, quite far, unseen: .341 .623 .816 .379 .175 1.274
prompt 2: extremely close, very close, close, a little close, a little far, far, unseen: .377 .667 .845 .385 .161 1.196
prompt 3: giant, close, a little close, not in distance, a bit remote, far, unseen: .380 .670 .846 .375 .160 1.196
"""
BINS = """
original: 1.00 1.50 2.00 2.25 2.50 2.75 3.00: all: .394 .683 .851 .388 .156 1.167
class-dependent 1: 1.00 2.00 2.25 2.50 2.75 3.00 4.00: all: .373 .653 .828 .467 .166 1.228
class-dependent 2: 1.00 1.50 2.00 2.50 3.00 3.50 4.00: all: .366 .641 .819 .496 .170 1.248
class-dependent 3: 1.00 1.25 1.50 1.75 2.00 2.25 2.50: all: .333 .621 .818 .353 .176 1.290
class-dependent 4: 2.00 2.50 3.00 3.25 3.50 3.75 4.00: all: .288 .548 .752 .663 .201 1.439
original: 1.00 1.50 2.00 2.25 2.50 2.75 3.00: bathroom: .333 .631 .814 .549 .175 .922
class-dependent 1: 1.00 2.00 2.25 2.50 2.75 3.00 4.00: bathroom: .248 .490 .699 .754 .219 1.237
class-dependent 2: 1.00 1.50 2.00 2.50 3.00 3.50 4.00: bathroom: .236 .460 .675 .801 .229 1.308
class-dependent 3: 1.00 1.25 1.50 1.75 2.00 2.25 2.50: bathroom: .425 .723 .893 .373 .141 .745
class-dependent 4: 2.00 2.50 3.00 3.25 3.50 3.75 4.00: bathroom: .129 .302 .535 1.072 .287 1.682
original: 1.00 1.50 2.00 2.25 2.50 2.75 3.00: classroom: .308 .533 .742 .372 .193 1.826
class-dependent 1: 1.00 2.00 2.25 2.50 2.75 3.00 4.00: classroom: .312 .565 .820 .383 .179 1.694
class-dependent 2: 1.00 1.50 2.00 2.50 3.00 3.50 4.00: classroom: .310 .583 .830 .397 .175 1.636
class-dependent 3: 1.00 1.25 1.50 1.75 2.00 2.25 2.50: classroom: .231 .452 .600 .407 .246 2.138
class-dependent 4: 2.00 2.50 3.00 3.25 3.50 3.75 4.00: classroom: .276 .637 .844 .461 .173 1.544
"""


def figures(text: str) -> tuple[float | None, ...]:
    return tuple(None if cell == "-" else float(cell) for cell in text.split())


def published(table: str) -> list[paper.Published]:
    return [row for row in paper.PUBLISHED if row.table == table and "not in the paper" not in row.note]


def test_methods():
    lines = [line.split(": ") for line in METHODS.strip().splitlines()]
    assert [(row.name, row.figures) for row in published(paper.TABLE_1)] == [(n, figures(f)) for n, f in lines]


def test_prompts():
    lines = [line.split(": ") for line in PROMPTS.strip().splitlines()]
    rows = published(paper.PROMPTS)
    assert [(r.name, r.figures) for r in rows] == [(name, figures(f)) for name, _, f in lines]
    assert [r.reading.depth_classes for r in rows] == [tuple(words.split(", ")) for _, words, _ in lines]
    assert all(r.reading.bin_list == PAPER.bin_list for r in rows)


def test_bins():
    lines = [line.split(": ") for line in BINS.strip().splitlines()]
    rows = published(paper.BINS)
    assert [(r.name, r.scene, r.figures) for r in rows] == [
        (name, None if scene == "all" else scene, figures(f)) for name, _, scene, f in lines
    ]
    assert [r.reading.bin_list for r in rows] == [figures(metres) for _, metres, _, _ in lines]
    assert all(r.reading.depth_classes == PAPER.depth_classes for r in rows)


def test_other_work_and_the_bin_response():
    others = {row.name: row.figures for row in paper.PUBLISHED if "not in the paper" in row.note}
    assert list(others.values()) == [figures(".390 .680 .848 .393 .158 1.176"), figures(".418 .711 .874 .408 - 1.244")]
    assert paper.BIN_RESPONSE_DEPTHS == ((3.117, 3.567), (1.502, 1.328))
    assert paper.BIN_RESPONSE.bin_list == (1.00, 2.00, 2.25, 2.50, 2.75, 3.00, 4.00)
    assert paper.BIN_RESPONSE.depth_classes[2] == "a little close"
    assert paper.DEPTHCLIP["a1"] == 0.394
