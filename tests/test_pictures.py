"""datasets.pictures: which files, which pixels, at which size."""

import os
import struct
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile, PngImagePlugin
from torch.testing import assert_close

from datasets import DataError
from datasets.pictures import find_files, read_picture, resized, working_size


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    """A picture of random 16 px squares, (height, width, 3) uint8."""
    colours = np.random.default_rng(seed).integers(0, 256, (height // 16 + 1, width // 16 + 1, 3), dtype=np.uint8)
    return colours.repeat(16, axis=0).repeat(16, axis=1)[:height, :width]


def save(path: Path, pixels: np.ndarray | Image.Image, **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(path, **options)
    return path


@pytest.mark.parametrize(
    ("size", "patch", "expected"),
    [
        ((416, 544), 32, (416, 544)),
        ((1, 2000), 32, (32, 2016)),
        ((47, 80), 32, (32, 96)),  # a half is rounded up
        ((4000, 5000), 32, (480, 608)),  # shrunk by sqrt(307200 / 20e6) = 0.124 to 495.7 x 619.7
        ((480, 640), 14, (476, 644)),
    ],
)
def test_working_sizes_by_hand(size, patch, expected):
    assert working_size(*size, patch) == expected


def test_resizing_keeps_flat_colours_and_leaves_fitting_pictures_alone():
    flat = np.full((70, 50, 3), 200, dtype=np.uint8)
    assert (resized(flat, (64, 96)) == np.full((64, 96, 3), 200)).all()
    assert resized(flat, (70, 50)) is flat


def test_every_mode_becomes_the_same_rgb(tmp_path):
    grey = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
    expected = np.repeat(grey[..., None], 3, axis=2)
    image, black = Image.fromarray(grey), Image.new("L", (8, 8))
    files = {
        "grey.png": image,
        "rgb.png": image.convert("RGB"),
        "rgba.png": image.convert("RGBA"),
        "alpha.png": image.convert("LA"),
        "palette.gif": image.convert("P"),
        "sixteen.png": Image.fromarray(grey.astype(np.uint16) * 257),
        "sixteen.tif": Image.fromarray(grey.astype(np.uint16) * 257),
        "cmyk.tif": Image.merge("CMYK", [black, black, black, image.point(lambda v: 255 - v)]),
    }
    for name, content in files.items():
        pixels = read_picture(save(tmp_path / name, content))
        assert_close(pixels.astype(int), expected.astype(int), atol=1, rtol=0, msg=name)
    assert_close(read_picture(Image.fromarray(grey.astype(np.int32) * 257)), expected)  # mode I
    floats = Image.fromarray(grey.astype(np.float32) / 252)
    assert_close(read_picture(floats), (expected / 252 * 255).round().astype(np.uint8))
    assert read_picture(Image.new("F", (2, 1))).tolist() == [[[0] * 3] * 2]


def test_arrays_and_tensors_of_every_form_become_the_same_rgb():
    rgb = noise(20, 30)
    grey = rgb[..., :1].repeat(3, axis=2)
    clear = np.concatenate([rgb, np.full((20, 30, 1), 255, np.uint8)], axis=2)
    tensor = torch.from_numpy(rgb).permute(2, 0, 1)
    assert read_picture(rgb) is rgb
    for same in (rgb / 255, (rgb / 255).astype(np.float16), clear, clear / 255, tensor, tensor / 255):
        assert_close(read_picture(same), rgb, atol=0, rtol=0)
    for same in (grey[..., 0], grey[..., :1] / 255):
        assert_close(read_picture(same), grey, atol=0, rtol=0)
    for same in (rgb[..., ::-1] / 255, clear[..., [2, 1, 0, 3]], tensor.flip(0), rgb[..., ::-1]):
        assert_close(read_picture(same, color="bgr"), rgb, atol=0, rtol=0)
    assert read_picture(np.zeros((1, 1, 4)))[0, 0].tolist() == [255] * 3  # wholly transparent: white


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((64, 64, 2)), r"\(H, W, 4\) of uint8 or float, got \(64, 64, 2\)"),
        (np.zeros((4, 4), np.uint16), "got .* uint16"),
        (np.zeros((0, 64, 3)), "at least one pixel"),
        (np.full((2, 2, 3), 255.0), r"floats in \[0, 1\], got 255 to 255"),
        (np.full((2, 2), np.nan), r"floats in \[0, 1\], got nan"),
        (torch.zeros(1, 3, 4, 4), r"a tensor \(3, H, W\)"),
    ],
)
def test_arrays_that_are_no_picture_are_refused(source, message):
    with pytest.raises(ValueError, match=message):
        read_picture(source)


def test_transparent_is_white_and_half_transparent_half(tmp_path):
    pixels = np.zeros((1, 3, 4), dtype=np.uint8)
    pixels[0, :, 3] = 0, 128, 255
    assert read_picture(save(tmp_path / "a.png", pixels))[0, :, 0].tolist() == [255, 127, 0]
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    assert read_picture(save(tmp_path / "b.png", palette, transparency=0))[0, :, 0].tolist() == [255, 1]


@pytest.mark.parametrize("orientation", [2, 5, 6])
def test_exif_turns_the_picture_upright(tmp_path, orientation):
    upright = np.arange(6, dtype=np.uint8).reshape(2, 3) * 40
    turned = {  # how the sensor stored what stands upright
        2: upright[:, ::-1],
        5: upright.T,
        6: np.rot90(upright),
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
        with pytest.raises(DataError, match=f"half{suffix}: (cannot be read|not a picture)"):
            read_picture(half)


def test_a_bomb_is_not_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    for source in (save(tmp_path / "bomb.png", Image.new("1", (12_000, 10_001))), Image.new("RGB", (0, 5))):
        with pytest.raises(DataError, match=r"claims .* pixels; 1 to 120,000,000 are decoded"):
            read_picture(source)


def test_what_is_no_picture_is_said_and_special_files_are_not_opened(tmp_path, monkeypatch):
    (tmp_path / "text.jpg").write_text("not a picture")
    os.mkfifo(tmp_path / "pipe.png")
    monkeypatch.chdir(tmp_path)
    for name, problem in (
        ("text.jpg", "not a picture"),
        ("pipe.png", "not a regular file"),
        ("/dev/zero", "not a regular file"),
        ("n" * 300, r"cannot be read as a picture \(File name too long\)"),
        ("a\n\x1b[31m\udcff.png", r"cannot be read as a picture \((No such file or directory|Illegal byte sequence)\)"),
    ):
        with pytest.raises(DataError, match=f"^.*: {problem}$"):
            read_picture(name)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("a.jpg", b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf", "HEIC, which needs the package pillow-heif: pip install"),
        ("a.MOV", b"\0\0\0\x20ftypqt  ", "a video; take a frame, e.g. ffmpeg -i FILE"),
        ("a.avif", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "(not a picture|cannot be read)"),
    ],
)
def test_heic_and_video_are_told_what_they_need(tmp_path, monkeypatch, name, content, problem):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as where it is not installed
    (tmp_path / name).write_bytes(content + bytes(100))
    with pytest.raises(DataError, match=f"{name}: {problem}"):
        read_picture(tmp_path / name)


def test_heic_is_read_upright(tmp_path):
    heif = pytest.importorskip("pillow_heif", reason="reading HEIC needs the package pillow-heif")
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = np.full((64, 96, 3), 30, dtype=np.uint8)
    pixels[:, :48] = 220
    heif.from_pillow(Image.fromarray(pixels)).save(tmp_path / "a.heic", exif=exif.tobytes())
    assert_close(read_picture(tmp_path / "a.heic").astype(int), np.rot90(pixels, -1).astype(int).copy(), atol=9, rtol=0)


def test_twelve_bits_in_sixteen_are_noted(tmp_path, caplog):
    for brightest, notes in ((1, 1), (8191, 1), (8192, 0), (0, 0)):
        caplog.clear()
        read_picture(save(tmp_path / "dark.png", Image.fromarray(np.full((4, 4), brightest, dtype=np.uint16))))
        assert len(caplog.messages) == notes
        assert all("dark.png: its 16-bit values are all below 1/8" in message for message in caplog.messages)
    with (tmp_path / "rgb.png").open("wb") as file:  # colours of 16 bits, which Pillow does not write
        file.write(b"\x89PNG\r\n\x1a\n")
        PngImagePlugin.putchunk(file, b"IHDR", struct.pack(">IIBBBBB", 4, 4, 16, 2, 0, 0, 0))
        PngImagePlugin.putchunk(file, b"IDAT", zlib.compress((b"\0" + struct.pack(">H", 4095) * 12) * 4))
        PngImagePlugin.putchunk(file, b"IEND", b"")
    assert read_picture(tmp_path / "rgb.png").max() == 15
    read_picture(save(tmp_path / "eight.png", np.full((4, 4, 3), 15, dtype=np.uint8)))
    assert ["rgb.png: its 16-bit values" in message for message in caplog.messages] == [True]


# Which files


@pytest.fixture
def relatives(tmp_path, monkeypatch):
    """`relatives(*inputs)`: paths, below the shared folder, of what is found from a folder that holds `in/`."""
    names = ["a.jpg", "kitchen/a.jpg", "kitchen/b.png", "office/deep/a.jpg", "office/.hidden.jpg", ".git/c.jpg"]
    for name in names:
        (tmp_path / "in" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "in" / name).touch()
    for loop in ("loop", "office/loop", "office/deep/loop"):
        (tmp_path / "in" / loop).symlink_to(tmp_path / "in")
    monkeypatch.chdir(tmp_path)
    return lambda *inputs: [relative.as_posix() for relative in find_files(inputs).values()]


def test_relative_paths_are_those_below_the_shared_folder(relatives):
    everything = ["a.jpg", "kitchen/a.jpg", "kitchen/b.png", "office/deep/a.jpg"]
    assert relatives("in") == everything
    assert relatives("in/a.jpg") == ["a.jpg"]
    assert relatives("in/kitchen", "in/office") == ["kitchen/a.jpg", "kitchen/b.png", "office/deep/a.jpg"]
    assert relatives("in/k*/a.jpg", "in/kitchen/b.png") == ["a.jpg", "b.png"]
    assert relatives("in/a.jpg", "in", "in/a.jpg") == everything
    Path("in/office/names.txt").write_text("deep/a.jpg\n\n../kitchen/b.png\n")
    assert relatives("in/office/names.txt") == ["office/deep/a.jpg", "kitchen/b.png"]


def test_patterns_end_in_a_folder_with_links_to_itself(relatives):
    everywhere = ["a.jpg", "kitchen/a.jpg", "office/deep/a.jpg"]
    assert relatives("in/**/a.jpg") == relatives(f"{Path.cwd()}/in/**/**/a.jpg") == everywhere
    assert relatives("in/**") == relatives("in/**/*.*") == relatives("in")
    assert relatives("in/*/a.jpg") == ["kitchen/a.jpg", "loop/a.jpg"]  # `*` takes a link for a folder, once


def test_a_list_may_begin_with_a_mark_and_name_what_is_no_utf8(relatives):
    Path("in/names.txt").write_bytes(b"\xef\xbb\xbfa.jpg\r\n\xff.jpg\r\nkitchen/b\xe2\x80\xa8.png\r\n")
    assert relatives("in/names.txt") == ["a.jpg", "\udcff.jpg", "kitchen/b\u2028.png"]


def test_an_input_that_is_nothing_is_said(relatives):
    Path("wide.txt").write_text("a.jpg\n", encoding="utf-16")
    for text, problem in (
        ("", "an empty name"),
        ("no\x1bthing/**/*.jpg", r"no\\x1bthing/\*\*/\*\.jpg: no such file or folder"),
        ("~nobody-of-this-name/a", "no such file or folder"),
        ("wide.txt", "wide.txt: not UTF-8; save the list as that"),
    ):
        with pytest.raises(DataError, match=problem):
            relatives(text)
    os.mkfifo("pipe.txt")
    assert relatives("pipe.txt") == ["pipe.txt"]  # it is not opened; `read_picture` refuses it


def test_what_may_not_be_entered_does_not_end_the_search(relatives, monkeypatch, capsys):
    def scandir(path, real=os.scandir):
        if str(path).endswith("kitchen"):
            raise PermissionError(13, "Permission denied", path)
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)  # because root, who may run the tests, may enter everything
    assert relatives("in") == ["a.jpg", "office/deep/a.jpg"]
    said = f"skipped: {Path.cwd()}/in/kitchen: cannot be searched (Permission denied)\n"
    assert capsys.readouterr().err == said
