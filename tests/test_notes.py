"""viewer/notes: what is said beside results, and the commit that made them."""

import os
import re
import shutil
import subprocess
from dataclasses import replace

import pytest

import clip
from calculate_error import KITTI_BTS, NYU
from experiments.published import LOG_BINS
from monoclip import PAPER, MonoCLIP
from tests.conftest import TINY_VIT, random_clip
from viewer import notes

OTHER = notes.OTHER_IMAGES["NYU"]


def test_what_is_not_the_papers_is_said(tiny_clip):
    vit = random_clip(TINY_VIT)
    other = "{}: not the paper's setting"
    resized = "images of 416x544 px are resized to 420x546, whole patches of 14 px"
    for official, clip_model, changes, said in (
        (True, tiny_clip, {}, []),
        (False, tiny_clip, {}, [OTHER]),
        (True, tiny_clip, {"readout": "attnpool"}, [other.format("patch features by attnpool")]),
        (True, tiny_clip, {"image_mean": clip.CLIP_MEAN}, [other.format("image statistics of other")]),
        (True, vit, {}, [notes.INVERTED]),
        (
            True,
            vit,
            {"readout": "clearclip", "image_mean": clip.CLIP_MEAN, "image_std": clip.CLIP_STD},
            [other.format("patch features by clearclip and image statistics of clip")],
        ),
        (False, random_clip(replace(TINY_VIT, vision_patch_size=14)), {"readout": "maskclip"}, None),
    ):
        model = MonoCLIP(clip_model, replace(PAPER, **changes))
        expected = [OTHER, other.format("patch features by maskclip"), resized] if said is None else said
        assert notes.caveats(official, NYU, "0" * 64, model, (416, 544)) == expected
        assert notes.readout_notes(model) == [n for n in expected if n not in (OTHER, resized)]


@pytest.mark.parametrize(
    ("bins", "protocol", "said"),
    [
        ((7.9,), KITTI_BTS, "no bin is beyond 7.9 m, where ground truth goes to 80 m"),
        ((8.0,), KITTI_BTS, None),
        ((80.0,), KITTI_BTS, None),
        ((81.0,), KITTI_BTS, "bins beyond 80 m, to which depth is clamped"),
        ((10.5,), NYU, "bins beyond 10 m, to which depth is clamped"),
        ((0.5,), NYU, None),
        (LOG_BINS.bin_list, KITTI_BTS, "bins that are ours, spread in log depth, and published nowhere"),
    ],
)
def test_bins_that_do_not_fit_the_data_and_ours_are_said(tiny_clip, bins, protocol, said):
    reading = replace(PAPER, bin_list=bins, depth_classes=PAPER.depth_classes[: len(bins)])
    found = notes.caveats(True, protocol, "0" * 64, MonoCLIP(tiny_clip, reading))
    assert len(found) == (said is not None)
    assert all(said in note for note in found)


@pytest.mark.skipif(shutil.which("git") is None, reason="needs git")
def test_results_name_the_commit_of_this_checkout_and_of_no_other(tmp_path, monkeypatch):
    for name in os.environ:
        if name.startswith("GIT_"):  # another repository, as in a hook
            monkeypatch.delenv(name)
    for name in ("HOME", "XDG_CONFIG_HOME"):  # no hooks, signatures and names of branches of somebody's
        monkeypatch.setenv(name, str(tmp_path / "home"))
    monkeypatch.setenv("GIT_CONFIG_NOSYSTEM", "1")

    def git(*command: str) -> str:
        who = ("-c", "user.name=a", "-c", "user.email=a@b.example")
        return subprocess.run(
            ["git", "-C", tmp_path, *who, *command], check=True, capture_output=True, text=True
        ).stdout

    def found_in(folder: str) -> str:
        monkeypatch.setattr(notes, "__file__", str(tmp_path / folder / "viewer" / "notes.py"))
        assert list(notes.identified(NYU)) == ["schema", "protocol", "protocol_name", "commit"]
        return notes.identified(NYU)["commit"]

    (tmp_path / "options.py").write_text("")
    (tmp_path / "unpacked").mkdir()
    assert found_in("") == "unknown"
    for command in (
        ("init", "--template="),
        ("add", "options.py"),
        ("commit", "-m", "one"),
        ("tag", "-a", "v1", "-m", "one"),
    ):
        git(*command)
    head = git("rev-parse", "HEAD").strip()
    assert re.fullmatch("[0-9a-f]{40}", head)
    assert found_in("") == head  # unpacked/ is not tracked
    assert found_in("unpacked") == "unknown"  # a zip, unpacked in somebody's repository
    (tmp_path / "options.py").write_text("changed")
    assert found_in("") == f"{head}-dirty"
    monkeypatch.setenv("PATH", "")
    assert found_in("") == "unknown"
