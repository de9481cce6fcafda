"""predict: from any picture to depth in metres, whatever one picture, name, stream or disk does to the others."""

import json
import os
import shutil
import subprocess
import sys
from html import unescape
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch.testing import assert_close

import options
import predict
from clip.dense import encode
from datasets import pictures
from datasets.pictures import read_picture, resized
from download import file_sha256
from monoclip import MonoCLIP, Reading, logits_of, upsampled
from tests.conftest import ANY_BYTES_IN_NAMES, QUICKGELU, ROOT, TEN_MINUTES, child, largest_file, noise, save
from viewer import notes
from viewer.colour import colourise
from viewer.outputs import SAVED

OTHER_WORDS = ["--depth_classes", "near", "far", "--bin_list", 1, 90]
KINDS = ["_depth.npy", "_depth_mm.png", "_depth.png"]


@pytest.fixture
def run(tiny_checkpoint, tmp_path, capsys):
    """`run(*flags)` predicts with the tiny CLIP into `run.out` and returns exit code, standard output and error."""

    def call(*flags: object, out: object = None) -> tuple[int, str, str]:
        usual = ["-o", out or call.out, "--clip_path", tiny_checkpoint, "--device", "cpu", *QUICKGELU]
        code = predict.main([*map(str, (*usual, *flags))])
        output, error = capsys.readouterr()
        assert "Traceback" not in error
        assert all(line.isprintable() for line in (output + error).replace("\r", "").splitlines())
        return code, output, error

    call.out = tmp_path / "out"
    return call


def written(folder: Path) -> set[str]:
    """All files but the record."""
    files = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return {file for file in files if not file.endswith("predict.json")}


def contents(folder: Path) -> dict[str, bytes]:
    return {file: (folder / file).read_bytes() for file in {*written(folder), "predict.json"}}


@pytest.fixture
def album(tmp_path):
    """A folder of much that people have."""
    folder = tmp_path / "album"
    exif = Image.Exif()
    exif[0x0112] = 6
    save(folder / "rotated.jpg", noise(60, 90), exif=exif)
    for seed, name in enumerate(("hall/a.jpg", "attic/a.jpg", "attic/a.png")):
        save(folder / name, noise(64, 96, seed))
    (folder / "notes.txt").write_text("no picture")
    os.mkfifo(folder / "pipe.jpg")
    (folder / "loop.jpg").symlink_to("loop.jpg")
    os.truncate(half := save(folder / "half.jpg", noise(200, 200), quality=95), half.stat().st_size // 2)
    return folder


def test_equal_stems_keep_their_suffix(monkeypatch):
    names = ["a.jpg", "a.png", "a.jpg.png", "b/a.jpg", "B.jpg", "b.JPG", "c", "c.png", "d.e.png"]
    monkeypatch.setattr(predict, "find_files", lambda _: {Path("/in", name): Path(name) for name in names})
    stems = ["a.jpg", "a.png", "a.jpg.png", "b/a", "B.jpg", "b.JPG", "c", "c.png", "d.e"]
    assert [job.files for job in predict.plan([], ["npy"])] == [{f"{stem}_depth.npy": "_depth.npy"} for stem in stems]


def test_a_folder_of_everything(run, album, tiny_clip, tmp_path):
    before = written(tmp_path)
    code, out, err = run("-i", album, "--exact")
    assert (code, f"done: 4 of 8 images in {run.out}, depth in metres" in out) == (0, True)
    stems = {"rotated.jpg": "rotated", "hall/a.jpg": "hall/a"}
    stems |= {name: name for name in ("attic/a.jpg", "attic/a.png")}  # equal stems keep their suffix
    assert written(tmp_path) - before == {f"out/{stem}{kind}" for stem in stems.values() for kind in KINDS}
    for problem in ("notes.txt: not a picture", "half.jpg: cannot be read", "pipe.jpg: not a regular file"):
        assert f"skipped: {album}/{problem}" in err
    for name, stem in stems.items():
        depth = np.load(run.out / f"{stem}_depth.npy")
        assert_close(depth, MonoCLIP(tiny_clip).infer_image(album / name), atol=1e-4, rtol=0)
        units, colours = (np.asarray(Image.open(run.out / f"{stem}_depth{end}.png")) for end in ("_mm", ""))
        assert units.dtype == np.uint16
        assert np.abs(units / 1000 - depth.astype(np.float64)).max() <= 0.0005 + 1e-9
        assert np.array_equal(colours, colourise(depth, 1.0, 3.0))  # can be laid over the picture


def test_every_kind_of_other_words_at_a_smaller_size(run, album, tiny_clip):
    flags = ["-i", album / "rotated.jpg", *OTHER_WORDS, "--temperature", 0.5, "--no_mirror", "--exact"]
    flags += ["--max_side", 45]  # of 60x90, turned
    code, out, _ = run(*flags, "--save", *SAVED)
    assert (code, "warning: 16 bits of millimetres end at 65.535 m" in out) == (0, True)
    assert "rotated.jpg: 30x45, " in out
    assert written(run.out) == {f"rotated{kind}" for kinds in SAVED.values() for kind in kinds}
    reading, pixels = Reading(depth_classes=("near", "far"), bin_list=(1, 90), temperature=0.5), read_picture(flags[1])
    model = MonoCLIP(tiny_clip, reading)
    with torch.inference_mode():
        features = model.features(encode(model.clip_vis, model.prepare(pixels)[None]))  # no mirror
        far = logits_of(features, model.text_features, reading).softmax(1)[:, 1:].double()
    depth, sigma = (np.load(run.out / f"rotated_{kind}.npy") for kind in ("depth", "sigma"))
    for found, expected in ((depth, 1 + 89 * far), (sigma, 89 * (far * (1 - far)).sqrt())):
        assert_close(found, upsampled(expected, (45, 30))[0, 0].float().numpy(), atol=1e-3, rtol=0)
    drawn = {kind: read_picture(run.out / f"rotated_{kind}.png") for kind in ("side_by_side", "sigma", "depth")}
    colours, row = colourise(depth, 1, 90), drawn["side_by_side"][22:67]  # below the titles
    assert (row[:, :30] == resized(pixels, (45, 30))).all()
    assert any(np.array_equal(row[:, x : x + 30], colours) for x in range(31, 90))
    assert (drawn["sigma"][:45, :30] == colourise(sigma, 0, 44.5, "magma")).all()
    assert np.array_equal(drawn["depth"], colours)
    look = ["--range", "picture", "--color_map", "turbo", "--legend", "--save", "color"]
    assert run(*flags, *look)[0] == 0
    with_legend = read_picture(run.out / "rotated_depth.png")
    assert len(with_legend) > 45
    assert np.array_equal(with_legend[:45, :30], colourise(depth, colour_map="turbo"))


def test_other_words_are_computed_and_never_skipped(run, album):
    inputs = ["-i", album / "hall", album / "attic" / "a.jpg"]
    assert run(*inputs, "--save", "npy", "words")[0] == 0
    first = np.load(npy := run.out / "hall/a_depth.npy")
    assert run(*inputs, *OTHER_WORDS, "--save", "npy")[0] == 0
    assert np.abs(np.load(npy) - first).max() > 1
    record = json.loads((run.out / "predict.json").read_text())
    assert record["files"] == {f"{a}_depth.npy": file_sha256(album / f"{a}.jpg") for a in ("hall/a", "attic/a")}
    assert str(album) not in json.dumps(record)
    before = contents(run.out)
    for flags, problem in (
        ([], f"{run.out} has other bin_list, depth_classes; choose another folder"),
        ([*OTHER_WORDS, "--no_mirror"], "has other mirror;"),
        ([*OTHER_WORDS, "--max_side", 9, "--legend"], "has other legend, max_side;"),
        ([*OTHER_WORDS, "--precision", "bf16", "--exact"], "has other network, precision;"),
    ):
        code, _, err = run(*inputs, *flags, "--save", "npy", "--skip_existing")
        assert (code, problem in err) == (2, True), err
    assert contents(run.out) == before
    for content in (None, "[]", '{"made_with": {"reading": [1]}, "files": {}}'):
        (run.out / "predict.json").unlink() if content is None else (run.out / "predict.json").write_text(content)
        assert "has other files and no predict.json" in run(*inputs, "--save", "npy", "--skip_existing")[2]


def test_a_stopped_run_goes_on_where_it_was(run, album, monkeypatch):
    inputs = ["-i", album / "attic", *OTHER_WORDS]
    assert run(*inputs)[0] == 0
    expected = contents(run.out)
    assert run("-i", album / "attic")[0] == 0  # files of the paper's words, for all pictures
    with monkeypatch.context() as patched:
        stopped = Mock(side_effect=[read_picture(album / "attic" / "a.jpg"), KeyboardInterrupt()])
        patched.setattr(predict, "read_picture", stopped)
        code, _, err = run(*inputs)
    assert (code, "what was written is whole, and --skip_existing goes on" in err) == (130, True)
    first, second = run.out / "a.jpg_depth.npy", run.out / "a.png_depth.npy"
    assert not second.exists()  # that of the paper's words does not pass for this run's
    first.write_bytes(mine := first.read_bytes()[:-4] + b"mine")
    code, out, _ = run(*inputs, "--skip_existing")
    assert (code, "kept: the files of 1 image" in out, first.read_bytes() == mine) == (0, True, True)
    del expected["a.jpg_depth.npy"]
    assert {file: content for file, content in contents(run.out).items() if file in expected} == expected
    save(album / "attic" / "a.jpg", noise(40, 50))  # another picture of that name
    assert run(*inputs, "--skip_existing", "--save", "npy", "words")[0] == 0
    assert np.load(first).shape == (40, 50)
    assert (run.out / "a.png_words.png").is_file()  # what was missing is added


@ANY_BYTES_IN_NAMES
def test_the_page_has_pictures_that_could_be_read_whatever_their_names(run, tmp_path):
    for i in range(5):
        save(tmp_path / "in" / f"{i}.png", noise(40, 50, i))
    (tmp_path / "in/1.png").rename(tmp_path / "in" / os.fsdecode(b"1 \xff\n\x1b[31m.png"))
    for name in ("0.jpg", "00.jpg", "000.jpg", "寝室.jpg"):
        (tmp_path / "in" / name).touch()
    inputs = ["-i", tmp_path / "in", "--html", 2]
    code, out, err = run(*inputs)  # which sees that the terminal gets nothing odd
    assert (code, "2 of the run's 5 pictures" in out, r"1 \xff\n\x1b[31m.png: 50x40" in out) == (0, True, True)
    assert "寝室.jpg: is empty" in err
    text = (run.out / "depth.html").read_text(encoding="utf-8")
    assert [f'"name":"{name}.png"' in text for name in ("0", r"1 \\xff\\n\\x1b[31m", "2")] == [True, True, False]
    assert ("4 images could not be used" in text, str(tmp_path) in text) == (True, False)
    (run.out / "depth.html").unlink()
    code, out, _ = run(*inputs, "--skip_existing")
    again = (run.out / "depth.html").read_text(encoding="utf-8")
    assert (code, "kept: the files of 5 images" in out, again == text) == (0, True, True)


def test_output_on_the_input_is_not_taken_for_pictures(run, album):
    save(album / "attic" / "magic_words.png", noise(40, 50))  # but what is named is, whatever its name
    inputs = ["-i", album / "attic", album / "attic/magic_words.png", "--save", *SAVED, "--html"]
    assert run(*inputs, out=album / "attic")[0] == 0
    before = written(album)
    assert "attic/magic_words_depth.npy" in before
    code, out, _ = run(*inputs, out=album / "attic")
    assert (code, "passed by: " in out, written(album)) == (0, True, before)


@pytest.mark.parametrize(
    ("code", "message", "flags"),
    [
        (2, "file is no folder that can be written", ["-i", "a.jpg", "-o", "file/out"]),
        (2, r"no\nwhere.jpg: no such file or folder", ["-i", "no\nwhere.jpg"]),
        (2, "-i is missing", []),
        (2, "viridi: matplotlib has none of this name; try viridis,", ["-i", "a.jpg", "--color_map", "viridi"]),
        (2, "leave out --demo or --clip_path", ["--demo"]),
        (2, "nowhere.pt: there is no such file", ["-i", "a.jpg", "--clip_path", "nowhere.pt"]),
        (2, "tokens", ["-i", "a.jpg", "--obj_classes", "very " * 100]),
        (1, "no file there", ["-i", "*_1.png"]),
    ],
)
def test_errors_are_one_sentence(run, tmp_path, monkeypatch, code, message, flags):
    monkeypatch.chdir(tmp_path)
    for name in ("file", "sync_depth_1.png"):
        Path(name).touch()
    save(Path("a.jpg"), noise(64, 96))
    got, _, err = run(*flags, out="none")
    assert (got, message in err) == (code, True), err
    assert (err.startswith("predict.py: "), err.count("\n"), Path("none").exists()) == (True, 1, False)


def test_a_picture_whose_files_cannot_be_written_does_not_end_the_others(run, tmp_path):
    for name in ("n" * 246 + ".png", "fine.png", "gone/a.png"):
        save(tmp_path / "in" / name, noise(40, 50))
    run.out.mkdir()
    (run.out / "gone").touch()  # where a folder is needed
    code, _, err = run("-i", tmp_path / "in")
    assert (code, "_depth.npy: File name too long" in err, "skipped: gone/a.png: " in err) == (0, True, True)
    assert written(run.out) == {"gone", *(f"fine{kind}" for kind in KINDS)}
    assert [*json.loads((run.out / "predict.json").read_text())["files"]] == [f"fine{kind}" for kind in KINDS]


def test_a_full_disk_ends_the_run_and_what_is_whole_stays(run, tmp_path):
    for name, side in (("a", 50), ("b", 300), ("c", 50)):  # of depth, b has 360 kB
        save(tmp_path / "in" / f"{name}.png", noise(side, side))
    with largest_file(100_000):
        code, _, err = run("-i", tmp_path / "in")
    assert (code, err.startswith(f"predict.py: {run.out}/b_depth.npy: File too large")) == (1, True)
    assert written(run.out) == {f"a{kind}" for kind in KINDS}


def test_depth_that_is_not_finite_is_an_error_and_want_of_memory_skips_a_picture(run, album, monkeypatch):
    with monkeypatch.context() as patched:
        patched.setattr(predict, "depth_of", lambda weights, bins: weights[:, :1] * torch.nan)
        code, _, err = run("-i", album / "hall" / "a.jpg", "--precision", "bf16")
    message = "predict.py: a.jpg: NaN or infinite depth predicted; use --precision fp32\n"
    assert (code, err.endswith(message), written(run.out)) == (1, True, set())
    monkeypatch.setattr(pictures, "to_rgb", Mock(side_effect=MemoryError()))
    code, _, err = run("-i", album / "hall")
    assert (code, "needs more memory than there is" in err, "no picture has its depth" in err) == (1, True, True)


@pytest.mark.parametrize("script", ["predict.py --demo -o out -i in --save npy", "eval.py --output out --limit 1"])
def test_a_script_finds_its_own_modules_from_anywhere(tmp_path, script):
    save(tmp_path / "in" / "a.png", noise(40, 50))
    (tmp_path / "datasets.py").write_text("raise ImportError('of another package')")
    name, *flags = script.split()
    flags += ["--clip_path", options.DEMO_WEIGHTS, "--data_path", options.DEMO_DATA] * (name == "eval.py")
    env = os.environ | {"PYTHONSAFEPATH": "1", "PYTHONPATH": str(tmp_path)}
    done = child(ROOT / name, *flags, cwd=tmp_path, env=env)
    assert (done.returncode, (tmp_path / "out").is_dir()) == (0, True), done.stderr


@pytest.mark.parametrize("streams", ["2>&1 | head -n 1", ">&- 2>&-"])
def test_streams_that_close_early_lose_nothing(tmp_path, streams):
    for i in range(3):
        save(tmp_path / "in" / f"{i}.png", noise(40, 50, i))
    (tmp_path / "in" / "0.jpg").touch()  # is skipped, which is said on standard error
    command = f"'{sys.executable}' '{ROOT}/predict.py' --demo -i '{tmp_path}/in' -o '{tmp_path}/out' --device cpu"
    script = f"({command}; echo $? > '{tmp_path}/code') {streams}"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=TEN_MINUTES)
    assert ("Traceback" in done.stderr + done.stdout, (tmp_path / "code").read_text()) == (False, "0\n")
    assert len(written(tmp_path / "out")) == 9


def test_the_demo_needs_nothing_but_itself_and_says_what_it_is(run, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(predict, "content_of", content := Mock(wraps=predict.content_of))
    assert predict.main(["--demo", "-o", str(tmp_path / "out"), "--device", "cpu", "--html"]) == 0
    rooms = [f"{path.parent.name}/{path.stem}" for path in predict.DEMO_PICTURES.glob("*/rgb_*.jpg")]
    assert written(tmp_path / "out") == {"depth.html", *(room + kind for room in rooms for kind in KINDS)}
    for text in (capsys.readouterr().out, unescape((tmp_path / "out" / "depth.html").read_text("utf-8"))):
        assert (notes.TOY in text, notes.TOY_ON_PHOTOGRAPHS in text) == (True, False)
    other = shutil.copy(options.DEMO_WEIGHTS, tmp_path / "RN50.pt")  # known by its content
    picture = save(tmp_path / "mine.png", noise(64, 96))
    assert f"note: {notes.TOY}\nnote: {notes.TOY_ON_PHOTOGRAPHS}\n" in run("-i", picture, "--clip_path", other)[1]
    assert "note: " not in run("-i", picture)[1]
    said = [call.args[-1].note for call in content.call_args_list]
    assert said == [notes.TOY_BRIEFLY] * 16 * 3 + [notes.TOY_ON_PHOTOGRAPHS] * 3 + [""] * 3
