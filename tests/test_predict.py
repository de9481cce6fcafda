"""predict, pictures and depth_images: from any picture to depth in metres, and nothing written anywhere else."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torch.testing import assert_close

import predict
from calculate_error import NYU_CROP
from datasets.nyu import NYUDepthV2, Pair
from depth_images import coloured, side_by_side, to_millimetres, with_legend
from monoclip import PAPER, MonoCLIP, Reading
from pictures import PictureError, find_files, read_picture, resized, working_size
from tests.conftest import write_pair

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="session")
def model(tiny_checkpoint):
    clip_model, _ = predict.clip.load(tiny_checkpoint, device="cpu")
    return MonoCLIP(clip_model)


@pytest.fixture
def run(tiny_checkpoint, tmp_path, capsys):
    """`run(*flags)` predicts with the tiny CLIP into `run.out` and returns exit code, standard output and error."""

    def call(*flags: object, out: Path | None = None) -> tuple[int, str, str]:
        arguments = ["-o", str(out or call.out), "--clip_path", str(tiny_checkpoint), "--device", "cpu"]
        code = predict.main([*arguments, *map(str, flags)])
        return code, *capsys.readouterr()

    call.out = tmp_path / "out"
    return call


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture of random 16 px squares, (height, width, 3) uint8."""
    colours = np.random.default_rng(seed).integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    return colours.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]


def save(path: Path, pixels: np.ndarray | Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


def written(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# Pictures


@pytest.mark.parametrize(
    ("size", "patch", "expected"),
    [
        ((416, 544), 32, (416, 544)),
        ((480, 640), 32, (480, 640)),
        ((1, 1), 32, (32, 32)),
        ((1, 2000), 32, (32, 2016)),
        ((47, 48), 32, (32, 64)),
        ((4000, 5000), 32, (480, 608)),  # shrunk by sqrt(307200 / 20e6) = 0.124 to 495.7 x 619.7
        ((1, 300_000), 32, (32, 9600)),
        ((480, 640), 14, (476, 644)),
    ],
)
def test_working_sizes_by_hand(size, patch, expected):
    assert working_size(*size, patch) == expected


def test_working_sizes_are_bounded_multiples():
    generator = np.random.default_rng(0)
    for height, width in np.exp(generator.uniform(0, 9.5, (500, 2))).astype(int).tolist():
        rows, columns = working_size(height, width, 32)
        assert rows % 32 == columns % 32 == 0
        assert rows * columns <= 480 * 640 * 1.6
        assert max(rows, columns) <= 9600 + 16


def test_every_mode_becomes_the_same_rgb(tmp_path):
    grey = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
    expected = np.repeat(grey[..., None], 3, axis=2)
    image = Image.fromarray(grey)
    files = {
        "grey.png": image,
        "rgb.png": image.convert("RGB"),
        "rgba.png": image.convert("RGBA"),
        "alpha.png": image.convert("LA"),
        "palette.png": image.convert("P"),
        "palette.gif": image.convert("P"),
        "sixteen.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "sixteen.tif": Image.fromarray(grey.astype(np.uint16) * 257),
        "cmyk.tif": Image.merge(
            "CMYK", [Image.new("L", (8, 8)), *[Image.new("L", (8, 8))] * 2, image.point(lambda v: 255 - v)]
        ),
    }
    for name, content in files.items():
        assert_close(
            read_picture(save(tmp_path / name, content)).astype(int), expected.astype(int), atol=1, rtol=0, msg=name
        )
    wide = Image.fromarray((grey.astype(np.int32) * 257).astype(np.int32))  # mode I, as old versions of Pillow give
    assert_close(read_picture(wide), expected)
    assert_close(
        read_picture(Image.fromarray(grey.astype(np.float32) / 252)), (expected / 252 * 255).round().astype(np.uint8)
    )
    assert read_picture(Image.new("F", (2, 1))).tolist() == [[[0] * 3] * 2]


def test_transparent_is_white_and_half_transparent_half(tmp_path):
    pixels = np.zeros((1, 3, 4), dtype=np.uint8)
    pixels[0, :, 3] = 0, 128, 255
    assert read_picture(save(tmp_path / "a.png", pixels))[0, :, 0].tolist() == [255, 127, 0]
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8), "L").convert("P")
    path = save(tmp_path / "b.png", palette, transparency=0)
    assert read_picture(path)[0, :, 0].tolist() == [255, 1]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_turns_the_picture_upright(tmp_path, orientation):
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    turned = {  # how the sensor stored what stands upright
        1: upright,
        2: upright[:, ::-1],
        3: upright[::-1, ::-1],
        4: upright[::-1],
        5: upright.T,
        6: np.rot90(upright),
        7: upright[::-1, ::-1].T,
        8: np.rot90(upright, -1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    for suffix in (".png", ".tif"):
        path = save(tmp_path / f"a{suffix}", np.ascontiguousarray(turned), exif=exif)
        assert read_picture(path)[..., 0].tolist() == upright.tolist()


def test_half_a_picture_is_no_picture_whatever_others_set(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for suffix in (".jpg", ".png", ".tif", ".webp"):
        whole = save(tmp_path / f"whole{suffix}", noise(64, 64)).read_bytes()
        half = tmp_path / f"half{suffix}"
        half.write_bytes(whole[: len(whole) // 2])
        with pytest.raises(PictureError, match=f"half{suffix}"):
            read_picture(half)


def test_a_bomb_is_not_decoded(tmp_path, monkeypatch):
    path = save(tmp_path / "bomb.png", Image.new("1", (12_000, 10_001)))
    with pytest.raises(PictureError, match="more than 120,000,000 pixels"):
        read_picture(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # Pillow's own error, for twice as many
    with pytest.raises(PictureError, match="more than 120,000,000 pixels"):
        read_picture(path)


def test_what_is_no_picture_is_said(tmp_path):
    (tmp_path / "text.jpg").write_text("not a picture")
    (tmp_path / "empty.png").touch()
    os.mkfifo(tmp_path / "pipe.png")
    for name, reason in (
        ("text.jpg", "not a picture"),
        ("empty.png", "not"),
        ("pipe.png", "not a file"),
        ("none", "no such"),
    ):
        with pytest.raises(PictureError, match=f"{name}: {reason}"):
            read_picture(tmp_path / name)
    for array in (
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 3)),
        np.zeros((0, 4, 3), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
    ):
        with pytest.raises(ValueError, match="expected an array"):
            read_picture(array)


# Which files


def test_relative_paths_are_those_below_the_shared_folder(tmp_path, monkeypatch):
    names = ["a.jpg", "kitchen/a.jpg", "kitchen/b.png", "office/deep/a.jpg", "office/.hidden.jpg", ".git/c.jpg"]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    (tmp_path / "in" / "loop").symlink_to(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "office" / "names.txt").write_text("deep/a.jpg\n\n../kitchen/b.png\n")

    def relatives(*inputs: str) -> list[str]:
        return [found.relative.as_posix() for found in find_files(inputs, ["*.txt"])]

    assert relatives("in") == ["a.jpg", "kitchen/a.jpg", "kitchen/b.png", "office/deep/a.jpg"]
    assert relatives("in/a.jpg") == ["a.jpg"]
    assert relatives("in/kitchen", "in/office") == ["kitchen/a.jpg", "kitchen/b.png", "office/deep/a.jpg"]
    assert relatives("in/k*/a.jpg", "in/kitchen/b.png") == ["a.jpg", "b.png"]
    assert relatives("in/**/a.jpg") == ["a.jpg", "kitchen/a.jpg", "office/deep/a.jpg"]
    assert relatives("in/office/names.txt") == ["office/deep/a.jpg", "kitchen/b.png"]
    assert relatives("in/a.jpg", "in", "in/a.jpg").count("a.jpg") == 1
    with pytest.raises(PictureError, match=r"nothing\.jpg: no such file"):
        relatives("nothing.jpg")


def test_equal_stems_keep_their_suffix(tmp_path):
    names = ["a.jpg", "a.png", "a.jpg.png", "b/a.jpg", "B.jpg", "b.JPG", "c", "c.png", "d.e.png"]
    found = [predict.Found(tmp_path / name, Path(name)) for name in names]
    stems = [job.stem for job in predict.plan(found, Path("out"))]
    assert stems == [f"out/{s}" for s in ["a.jpg", "a.png", "a.jpg.png", "b/a", "B.jpg", "b.JPG", "c", "c.png", "d.e"]]


# Depth


def test_a_picture_of_nyus_crop_gives_what_the_evaluation_computes(model, tmp_path):
    rgb, depth = write_pair(tmp_path / "kitchen", 0)
    sample = NYUDepthV2([Pair(rgb, depth, "kitchen", 0)], NYU_CROP, PAPER.image_mean, PAPER.image_std)[0]
    with torch.inference_mode():
        expected = model.predict(sample.image[None])[0, 0].numpy()
    crop = save(tmp_path / "crop.png", read_picture(rgb)[NYU_CROP])
    assert_close(model.infer_image(crop), expected, atol=0, rtol=0)


def test_infer_image_takes_files_images_and_arrays(model, tmp_path):
    pixels = noise(96, 130)
    path = save(tmp_path / "a.png", pixels)
    expected = model.infer_image(pixels)
    assert expected.dtype == np.float32
    assert expected.shape == (96, 130)
    pixels.setflags(write=False)
    for source in (path, str(path), Image.open(path), pixels, pixels[:, ::-1][:, ::-1]):
        assert_close(model.infer_image(source), expected, atol=0, rtol=0)
    with pytest.raises(PictureError, match="no such file"):
        model.infer_image(tmp_path / "b.png")


def test_mirrored_picture_gives_the_mirrored_map(model):
    pixels = noise(100, 170)
    mirrored = model.infer_image(pixels[:, ::-1])[:, ::-1]
    np.testing.assert_allclose(mirrored, model.infer_image(pixels), atol=1e-5)


@pytest.mark.parametrize("size", [(1, 1), (1, 2000), (2000, 1), (33, 31), (700, 500)])
def test_the_map_has_the_pictures_size_and_stays_within_the_bins(model, size):
    depth = model.infer_image(noise(*size))
    assert depth.shape == size
    assert depth.min() >= min(PAPER.bin_list) - 1e-6
    assert depth.max() <= max(PAPER.bin_list) + 1e-6


# Images of depth


def test_millimetres_by_hand():
    depth = np.array([[1.0004, 1.0006, 65.534, 65.6, 80.0]], dtype=np.float32)
    assert to_millimetres(depth).tolist() == [[1000, 1001, 65534, 65535, 65535]]


def test_colours_follow_the_range_and_the_legend_covers_nothing():
    ramp = np.linspace(0.5, 3.5, 300, dtype=np.float32)[None].repeat(3, axis=0)
    colours = coloured(ramp, 1.0, 3.0)
    luminance = colours[0] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(luminance) <= 1).all()  # near is bright, monotonically
    assert (colours[:, :40] == colours[0, 0]).all()
    assert (colours[:, -40:] == colours[0, -1]).all()
    for size in ((3, 300), (1, 1), (400, 2), (480, 640)):
        image = noise(*size)
        canvas = np.array(with_legend(image, 1.0, 3.0))
        assert (canvas[: size[0], : size[1]] == image).all()
        assert len(np.unique(canvas[size[0] :].reshape(-1, 3), axis=0)) > 50
    assert coloured(np.full((2, 2), 1.5), 1.5, 1.5).shape == (2, 2, 3)
    assert side_by_side(noise(4, 6), noise(4, 6, 1)).shape == (4, 12, 3)
    assert side_by_side(noise(4, 20), noise(4, 20, 1)).shape == (8, 20, 3)


# The command line


@pytest.fixture
def album(tmp_path):
    """A folder of everything that people have."""
    folder = tmp_path / "album"
    exif = Image.Exif()
    exif[0x0112] = 6
    save(folder / "rotated.jpg", noise(60, 90), exif=exif)
    save(folder / "hall" / "a.jpg", noise(64, 96, 1))
    save(folder / "attic" / "a.jpg", noise(64, 96, 2))
    save(folder / "attic" / "a.png", noise(64, 96, 3))
    save(folder / "pixel.png", noise(1, 1))
    save(folder / "strip.png", noise(1, 2000))
    save(folder / "sixteen.png", Image.fromarray(noise(64, 64)[..., 0].astype(np.uint16) * 200))
    save(folder / "palette.gif", Image.fromarray(noise(64, 64)).convert("P"))
    save(folder / "cmyk.jpg", Image.fromarray(noise(64, 64)).convert("CMYK"))
    save(folder / "constant.png", np.full((64, 64, 3), 127, dtype=np.uint8))
    (folder / "notes.txt").write_text("no picture")
    whole = save(folder / "half.jpg", noise(200, 200), quality=95).read_bytes()
    (folder / "half.jpg").write_bytes(whole[: len(whole) // 2])
    return folder


STEMS = ["rotated", "hall/a", "attic/a.jpg", "attic/a.png", "pixel", "strip", "sixteen", "palette", "cmyk", "constant"]
KINDS = ["_depth.npy", "_depth_mm.png", "_depth.png"]


def test_a_folder_of_everything(run, album, model, tmp_path):
    before = written(tmp_path)
    code, out, err = run("-i", album, "--batch_size", 3, "--exact")  # as `model`
    assert code == 0
    assert written(tmp_path) - before == {f"out/{stem}{kind}" for stem in STEMS for kind in KINDS}
    assert "Traceback" not in err
    for name, reason in (("notes.txt", "not a picture"), ("half.jpg", "truncated")):
        assert f"skipped: {album / name}: {reason}" in err
    assert "rotated.jpg: 60x90, " in out
    assert "metres (.npy, float32) and millimetres (16-bit .png)" in out
    for stem in STEMS:
        depth = np.load(run.out / f"{stem}_depth.npy")
        assert depth.dtype == np.float32
        with Image.open(run.out / f"{stem}_depth_mm.png") as image:
            assert image.mode == "I;16"
            assert np.abs(np.asarray(image) / 1000 - depth.astype(np.float64)).max() <= 0.0005 + 1e-9
        with Image.open(run.out / f"{stem}_depth.png") as image:
            assert (np.asarray(image)[: depth.shape[0], : depth.shape[1]] == coloured(depth, 1.0, 3.0)).all()
    for stem, name in (("rotated", "rotated.jpg"), ("attic/a.png", "attic/a.png"), ("strip", "strip.png")):
        depth = np.load(run.out / f"{stem}_depth.npy")
        assert_close(depth, model.infer_image(album / name), atol=1e-5, rtol=0)


def test_a_large_picture(run, tmp_path):
    large = save(tmp_path / "large.jpg", np.full((4000, 5000, 3), 90, dtype=np.uint8))
    code, out, _ = run("-i", large)
    assert code == 0
    assert "large.jpg: 5000x4000, " in out
    assert np.load(run.out / "large_depth.npy", mmap_mode="r").shape == (4000, 5000)


def test_what_is_there_is_kept_without_overwrite(run, album):
    inputs = ["-i", album / "hall", album / "half.jpg"]
    assert run(*inputs)[0] == 0
    npy, colours = (run.out / f"hall/a{kind}" for kind in ("_depth.npy", "_depth.png"))
    npy.write_bytes(b"mine")
    colours.unlink()
    code, out, _ = run(*inputs, "--side_by_side")
    assert code == 0
    assert npy.read_bytes() == b"mine"
    assert colours.is_file()  # what was missing is added
    with Image.open(run.out / "hall/a_side_by_side.png") as image:
        assert (np.asarray(image)[:64, :96] == read_picture(album / "hall/a.jpg")).all()
    code, out, _ = run("-i", album / "hall/a.jpg", out=run.out / "hall")
    assert code == 0
    assert "kept: the files of 1 pictures" in out
    assert "model:" not in out
    assert run(*inputs, "--overwrite")[0] == 0
    assert np.load(npy).shape == (64, 96)


def test_output_inside_or_on_the_input_is_not_taken_for_pictures(run, album):
    inside = album / "attic" / "depth"
    for out in (inside, album / "attic"):
        assert run("-i", album / "attic", "--side_by_side", "--html", out=out)[0] == 0
        before = written(album)
        assert run("-i", album / "attic", "--side_by_side", "--html", out=out)[0] == 0
        assert written(album) == before
        for path in inside.glob("*"):
            path.unlink()


def test_nothing_is_written_outside_the_output_folder(run, album, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    run.out.mkdir()
    (run.out / "hall").symlink_to(elsewhere)
    code, _, err = run("-i", album)
    assert code == 1
    assert "a link leads out of" in err
    assert not written(elsewhere)
    (run.out / "hall").unlink()
    (elsewhere / "names.txt").write_text("../album/hall/a.jpg\n../album/attic/a.jpg\n")
    assert run("-i", elsewhere / "names.txt")[0] == 0
    assert written(elsewhere) == {"names.txt"}
    assert {"hall/a_depth.npy", "attic/a_depth.npy"} <= written(run.out)


def test_a_linked_output_file_is_replaced_not_followed(run, album, tmp_path):
    target = tmp_path / "precious.npy"
    target.write_text("precious")
    run.out.mkdir()
    (run.out / "a_depth.npy").symlink_to(target)
    picture = album / "hall" / "a.jpg"
    assert run("-i", picture)[0] == 0
    assert (run.out / "a_depth.npy").is_symlink()
    assert run("-i", picture, "--overwrite")[0] == 0
    assert not (run.out / "a_depth.npy").is_symlink()
    assert target.read_text() == "precious"


def test_errors_are_one_sentence(run, album, tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "void").mkdir()
    picture = album / "hall" / "a.jpg"
    cases = [
        (1, "cannot be written to", ["-i", picture], tmp_path / "file" / "out"),
        (1, "none of the files is a usable picture", ["-i", album / "half.jpg"], None),
        (1, "no file there", ["-i", tmp_path / "void"], None),
        (2, "no such file or folder", ["-i", "nowhere.jpg"], None),
        (2, "names no picture", ["-i", save_text(tmp_path / "list.txt", "\n")], None),
        (2, "-i is missing", [], None),
        (2, "every depth class needs one bin", ["-i", picture, "--bin_list", 1, 2], None),
        (2, "temperature must be positive", ["-i", picture, "--temperature", 0], None),
        (2, "not available here", ["-i", picture, "--device", "gpu"], None),
    ]
    for code, message, flags, out in cases:
        got, _, err = run(*flags, out=out)
        assert (got, message in err) == (code, True), err
        assert err.strip().splitlines()[-1].startswith("predict.py: ")
        assert "Traceback" not in err


def save_text(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


def test_a_full_disk_is_one_sentence_and_leaves_nothing_half(run, album, monkeypatch):
    def full(file, depth):
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(predict.np, "save", full)
    code, _, err = run("-i", album / "hall")
    assert code == 1
    assert "a_depth.npy: cannot be written (No space left on device)" in err
    assert not written(run.out)


def test_words_temperature_and_mirror_are_those_of_the_reading(run, album, tiny_clip):
    flags = ["--depth_classes", "near", "very far away", "--bin_list", 1, 9, "--temperature", 0.5, "--no_mirror"]
    picture = album / "hall" / "a.jpg"
    assert run("-i", picture, *flags)[0] == 0
    reading = Reading(depth_classes=("near", "very far away"), bin_list=(1.0, 9.0), temperature=0.5)
    other = MonoCLIP(tiny_clip, reading)
    with torch.inference_mode():
        expected = other(other.prepare(read_picture(picture)))
        expected = torch.nn.functional.interpolate(expected, (64, 96), mode="bilinear", align_corners=True)[0, 0]
    assert_close(torch.from_numpy(np.load(run.out / "a_depth.npy")), expected, atol=1e-5, rtol=0)


def test_resizing_keeps_flat_colours_and_leaves_fitting_pictures_alone():
    flat = np.full((70, 50, 3), 200, dtype=np.uint8)
    assert (resized(flat, (64, 64)) == 200).all()
    assert resized(flat, (70, 50)) is flat


def test_demo_needs_nothing_but_itself(tmp_path):
    command = [sys.executable, str(ROOT / "predict.py"), "--demo", "-i", "demo/sample/official_splits/test/kitchen"]
    done = subprocess.run(
        [*command, "-o", str(tmp_path / "out"), "--device", "cpu"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    names = {path.stem for path in (ROOT / "demo/sample/official_splits/test/kitchen").glob("rgb_*.jpg")}
    assert written(tmp_path / "out") == {f"{name}{kind}" for name in names for kind in KINDS}


def test_help_names_every_flag():
    text = predict.build_parser().format_help()
    for flag in (
        "--device",
        "--precision",
        "--batch_size",
        "--depth_classes",
        "--bin_list",
        "--temperature",
        "--clip_path",
    ):
        assert flag in text
    evaluation = vars(predict.build_parser().parse_args(["-o", "out"]))
    import eval as release

    shared = {"clip_path", "device", "precision", "exact", "depth_classes", "bin_list", "temperature"}
    defaults = vars(release.build_parser().parse_args([]))
    assert {name: evaluation[name] for name in shared} == {name: defaults[name] for name in shared}


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["-i", ""], "-i: an empty name"),
        (["--demo", "--depth_classes", "very " * 100, "far", "--bin_list", "1", "2"], "a prompt is too long"),
    ],
)
def test_unusable_names_and_words_are_one_sentence(tmp_path, capsys, flags, message):
    assert predict.main([*flags, "-o", str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert error.startswith(f"predict.py: {message}")
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_a_reader_that_goes_early_loses_nothing(tmp_path):
    script = Path(predict.__file__)
    command = f'"{sys.executable}" -u "{script}" --demo -o "{tmp_path}" | head -1'
    done = subprocess.run(command, shell=True, capture_output=True, text=True, timeout=300)
    assert "Traceback" not in done.stderr
    assert len(list(tmp_path.glob("**/*_depth.npy"))) == 16
