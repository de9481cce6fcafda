"""viewer/notes: what is said beside results, and the commit that made them."""

import os
import shutil
import subprocess
from dataclasses import replace

import pytest

import clip
from calculate_error import KITTI_BTS, NYU
from clip.checkpoint import TOY_SHA256
from datasets.nyu import FORM
from datasets.pairs import DepthPairs
from experiments.published import LOG_BINS
from monoclip import PAPER, MonoCLIP
from tests.conftest import TINY_VIT, random_clip
from viewer import notes

OTHER = notes.OTHER_IMAGES["NYU"]
CLIPS = {"image_mean": clip.CLIP_MEAN, "image_std": clip.CLIP_STD}
TWICE = {"depth_classes": ("far", "Far", *PAPER.depth_classes[:5])}


def test_what_is_not_the_papers_is_said(tiny_clip):
    vit, vit14 = (random_clip(replace(TINY_VIT, vision_patch_size=patch)) for patch in (16, 14))
    resized = "images of 416x544 px are resized to 420x546, whole patches of 14 px"
    both = "patch features by clearclip and image statistics of clip: not the paper's setting"
    for clip_model, changes, said in (
        (tiny_clip, {}, []),
        (tiny_clip, {"image_mean": clip.CLIP_MEAN}, ["image statistics of other: not the paper's setting"]),
        (tiny_clip, TWICE, ["words that differ in case only, which CLIP does not see"]),
        (vit, {}, [notes.INVERTED]),
        (vit, {"readout": "clearclip", **CLIPS}, [both]),
    ):
        model = MonoCLIP(clip_model, replace(PAPER, **changes))
        assert notes.readout_notes(model) == said
        assert notes.caveats(True, NYU, "0" * 64, model, (416, 544)) == said
        assert notes.caveats(False, NYU, TOY_SHA256, model, (416, 544)) == [OTHER, notes.TOY, *said]
    assert notes.caveats(True, NYU, "", MonoCLIP(vit14), (416, 544)) == [notes.INVERTED, resized]
    assert (notes.caveats(True, NYU), notes.caveats(False, NYU)) == ([], [OTHER])


def test_bins_that_do_not_fit_the_data_and_ours_are_said(tiny_clip):
    for farthest, protocol, said in (
        (7.9, KITTI_BTS, ["no bin is beyond 7.9 m, where ground truth goes to 80 m: see --preset"]),
        (8.0, KITTI_BTS, []),
        (80.0, KITTI_BTS, []),
        (81.0, KITTI_BTS, ["bins beyond 80 m, to which depth is clamped: see --preset and --bin_list"]),
        (0.5, NYU, []),
    ):
        model = MonoCLIP(tiny_clip, replace(PAPER, bin_list=(farthest,), depth_classes=("far",)))
        assert notes.caveats(True, protocol, "", model) == said
    ours = ["bins that are ours, spread in log depth, and published nowhere"]
    assert notes.caveats(True, KITTI_BTS, "", MonoCLIP(tiny_clip, LOG_BINS)) == ours


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_results_name_the_commit_of_this_checkout_and_of_no_other(tmp_path, monkeypatch):
    for name in [name for name in os.environ if name.startswith("GIT_")]:  # another repository, as in a hook
        monkeypatch.delenv(name)
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", os.devnull)  # no hooks, signatures and names of somebody's

    def found_in(folder: str) -> str:
        monkeypatch.setattr(notes, "__file__", str(tmp_path / folder / "viewer" / "notes.py"))
        return notes.identified(DepthPairs([], FORM, NYU, "none"), NYU)["commit"]

    (tmp_path / "options.py").write_text("")
    (tmp_path / "unpacked").mkdir()
    assert found_in("") == "unknown"
    commit = "git init -q --template= && git config user.name a && git config user.email a@b && git add options.py"
    commit += " && git commit -qm one && git tag -am one v1 && git rev-parse HEAD"
    head = subprocess.run(commit, shell=True, cwd=tmp_path, check=True, capture_output=True, text=True).stdout.strip()
    assert found_in("") == head  # unpacked/ is not tracked
    assert found_in("unpacked") == "unknown"  # a zip, unpacked in somebody's repository
    (tmp_path / "options.py").write_text("changed")
    assert found_in("") == f"{head}-dirty"
    monkeypatch.setenv("PATH", "")
    assert found_in("") == "unknown"
