"""experiments.published: every published number against the tables as they are printed, written out a second time."""

import math
from dataclasses import replace

import numpy as np
import pytest

from datasets.readings import READINGS
from experiments import published
from experiments.published import AUTY, COLUMNS, KITTI_ROWS, LOG_BINS
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
SCENES = (None, "bathroom", "classroom")
BINS = """
1 1.5 2 2.25 2.5 2.75 3: 394 683 851 388 156 1167: 333 631 814 549 175 922: 308 533 742 372 193 1826
1 2 2.25 2.5 2.75 3 4: 373 653 828 467 166 1228: 248 490 699 754 219 1237: 312 565 820 383 179 1694
1 1.5 2 2.5 3 3.5 4: 366 641 819 496 170 1248: 236 460 675 801 229 1308: 310 583 830 397 175 1636
1 1.25 1.5 1.75 2 2.25 2.5: 333 621 818 353 176 1290: 425 723 893 373 141 745: 231 452 600 407 246 2138
2 2.5 3 3.25 3.5 3.75 4: 288 548 752 663 201 1439: 129 302 535 1072 287 1682: 276 637 844 461 173 1544
"""  # of which each line has the bins, and metrics in thousandths over all images and two scenes


def lines(text: str) -> list[list[str]]:
    return [line.split(": ") for line in text.strip().splitlines()]


def metrics(text: str) -> dict[str, float | None]:
    return dict(zip(COLUMNS, (None if cell == "-" else float(cell) for cell in text.split()), strict=True))


def test_every_number_and_reading_of_the_paper():
    found: dict[str, list[published.Published]] = {}
    for row in published.published_rows():
        found.setdefault("later" if "not in the paper" in row.note else row.table, []).append(row)
        known = [value for metric, value in row.metrics.items() if metric.startswith("delta") and value]
        assert known == sorted(known)
    assert (len(found["later"]), len(found[KITTI_ROWS])) == (3, 7)
    for title, text in ((published.TABLE_1, METHODS), (published.PROMPTS, PROMPTS)):
        assert [(row.name, row.metrics) for row in found[title]] == [(n, metrics(m)) for n, *_, m in lines(text)]
    for row, (_, words, _) in zip(found[published.PROMPTS], lines(PROMPTS), strict=True):
        assert row.reading == replace(PAPER, depth_classes=tuple(words.split(", ")))
    expected = []
    for i, (bins, *each) in enumerate(lines(BINS)):
        reading = replace(PAPER, bin_list=tuple(map(float, bins.split())))
        name = f"class-dependent {i}" if i else "original"
        for scene, text in zip(SCENES, each, strict=True):
            values = dict(zip(COLUMNS, (int(cell) / 1000 for cell in text.split()), strict=True))
            expected.append(published.Published(published.BINS, name, values, reading, scene, "", "NYU"))
    assert found[published.BINS] == sorted(expected, key=lambda row: SCENES.index(row.scene))
    others = {row.name: row.reading for title in (published.TABLE_1, KITTI_ROWS) for row in found[title] if row.reading}
    assert others == {"DepthCLIP": PAPER, "Auty, depth words": AUTY}
    prompt_3, bins_1 = found[published.PROMPTS][3].reading, found[published.BINS][1].reading
    assert replace(prompt_3, bin_list=bins_1.bin_list) == published.BIN_RESPONSE
    assert published.BIN_RESPONSE_DEPTHS == ((3.117, 3.567), (1.502, 1.328))


def test_rows_beside_a_run():
    adabins, bts = (published.beside(f"KITTI, {name}") for name in ("AdaBins", "BTS"))
    assert adabins == bts
    assert len(bts) == 7
    assert bts["Auty, size words (KITTI, AdaBins)"] == metrics(".048 .103 .171 3.363 .568 33.978")
    assert bts["DepthCLIP, as run in MfH (KITTI, protocol not said)"] == metrics(".281 - - .473 - 12.96")
    assert published.beside("NYU") == {"paper, DepthCLIP": metrics(".394 .683 .851 .388 .156 1.167")}
    assert published.beside("own pairs") == {}
    named = [published.named_by("a", protocol) for protocol in ("NYU", "KITTI, BTS", "own pairs")]
    assert named == ["a", "a (KITTI, BTS)", "a"]
    assert published.table({"a": dict.fromkeys(COLUMNS), "b": dict.fromkeys(COLUMNS, 12.96)}).count("12.960") == 6


def test_numbers_of_the_readings_for_outdoors():
    assert READINGS == {"paper": PAPER, "auty": AUTY, "log": LOG_BINS}
    words = "very close|close|slightly close|neither close nor distant|slightly distant|distant|very distant"
    bins = (5.715, 17.144, 28.572, 40.0, 51.429, 62.857, 74.286)
    own = {"depth_templates": ("This object appears to be {}",), "depth_classes": tuple(words.split("|"))}
    assert replace(PAPER, **own, bin_list=bins) == AUTY  # all else is the paper's
    assert replace(LOG_BINS, bin_list=PAPER.bin_list) == PAPER
    assert (LOG_BINS.bin_list[0], LOG_BINS.bin_list[-1]) == (5, 60)
    assert np.diff(np.log(LOG_BINS.bin_list)) == pytest.approx([math.log(60 / 5) / 6] * 6, abs=2e-3)  # of centimetres
