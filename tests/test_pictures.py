"""datasets.pictures: which files, which pixels, at which size."""

import io
import os
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFile
from torch.testing import assert_close

from datasets import DataError
from datasets.pictures import find_files, read_picture, resized, working_size
from tests.conftest import noise, save


def test_sizes_by_hand():
    for size, patch, expected in (
        ((416, 544), 32, (416, 544)),
        ((1, 2000), 32, (32, 2016)),
        ((47, 80), 32, (32, 96)),  # a half is rounded up
        ((4000, 5000), 32, (480, 608)),  # shrunk by sqrt(307200 / 20e6) = 0.124 to 495.7 x 619.7
        ((480, 640), 14, (476, 644)),
    ):
        assert working_size(*size, patch) == expected
    assert (resized(np.full((70, 50, 3), 200, dtype=np.uint8), (64, 96)) == np.full((64, 96, 3), 200)).all()
    assert (resized(picture := noise(70, 50), (70, 50)) == picture).all()


GREY = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)


def test_every_mode_becomes_the_same_rgb(tmp_path):
    grey, deep, black = Image.fromarray(GREY), GREY.astype(np.uint16) * 257, Image.new("L", (8, 8))
    files = {
        "rgb.png": grey.convert("RGB"),
        "alpha.png": grey.convert("LA"),
        "palette.gif": grey.convert("P"),
        "sixteen.png": Image.fromarray(deep),
        "cmyk.tif": Image.merge("CMYK", [black, black, black, Image.fromarray(255 - GREY)]),
    }
    sources = [save(tmp_path / name, image) for name, image in files.items()]
    for source in (*sources, deep, deep.astype(">u2"), Image.fromarray(GREY.astype(np.int32) * 257)):
        assert_close(read_picture(source).astype(int), GREY.astype(int)[..., None].repeat(3, 2), atol=1, rtol=0)
    largest_is_white = read_picture(Image.fromarray(GREY.astype(np.float32) / 252 * 1.01))  # it has none of its own
    assert_close(largest_is_white[..., 0].astype(int), (GREY * (255 / 252)).round().astype(int), atol=1, rtol=0)


def test_arrays_and_tensors_of_every_form_become_the_same_rgb():
    rgb = noise(20, 30)
    grey, deep = rgb[..., :1].repeat(3, axis=2), rgb.astype(np.uint16) * 257
    clear = np.concatenate([rgb, np.full((20, 30, 1), 255, np.uint8)], axis=2)
    tensor = torch.from_numpy(rgb).permute(2, 0, 1)
    assert read_picture(rgb) is rgb
    for same in (
        rgb / 255,
        (rgb / 255).astype(np.float16),
        clear,
        clear / 255,
        tensor,
        tensor / 255,
        deep,
        deep // 2 * 2,
    ):
        assert_close(read_picture(same), rgb, atol=0, rtol=0)
    for same in (grey[..., 0], grey[..., :1] / 255, deep[..., 0]):
        assert_close(read_picture(same), grey, atol=0, rtol=0)
    for same in (rgb[..., ::-1] / 255, clear[..., [2, 1, 0, 3]], tensor.flip(0), deep[..., ::-1]):
        assert_close(read_picture(same, color="bgr"), rgb, atol=0, rtol=0)


def test_what_is_not_one_picture_is_refused():
    for source, message in (
        (np.zeros((64, 64, 2)), r"\(H, W, 4\) of uint8, uint16 or float .*, got \(64, 64, 2\)"),
        (np.zeros((4, 4), np.int32), "got .* int32"),
        (np.zeros((0, 64, 3)), "at least one pixel"),
        (np.full((2, 2, 3), 255.0), r"floats in \[0, 1\], got 255 to 255"),
        (np.full((2, 2), np.nan), r"floats in \[0, 1\], got nan"),
        (torch.zeros(1, 4, 4), r"a tensor \(3, H, W\), got \(1, 4, 4\)"),
        (torch.zeros(1, 3, 4, 4), "got a list of pictures: call it for each one"),
        (["a.jpg", "b.jpg"], "got a list of pictures: call it for each one"),
    ):
        with pytest.raises(ValueError, match=message):
            read_picture(source)


def test_transparent_is_white_and_half_transparent_half(tmp_path):
    pixels = np.zeros((1, 3, 4), dtype=np.uint8)
    pixels[0, :, 3] = 0, 128, 255
    for source in (pixels, save(tmp_path / "a.png", pixels)):
        assert read_picture(source)[0, :, 0].tolist() == [255, 127, 0]


def test_exif_turns_the_picture_upright(tmp_path):
    upright = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, np.ones((32, 32), dtype=np.uint8))
    stored = {2: upright[:, ::-1], 5: upright.T, 6: np.rot90(upright)}  # by the sensor
    for orientation, suffix in ((2, ".png"), (5, ".tif"), (6, ".jpg")):
        exif = Image.Exif()
        exif[0x0112] = orientation
        path = save(tmp_path / f"a{suffix}", np.ascontiguousarray(stored[orientation]), exif=exif)
        for source in (path, io.BytesIO(path.read_bytes())):
            assert_close(read_picture(source)[..., 0].astype(int), upright.astype(int), atol=9, rtol=0)


def test_half_a_picture_is_no_picture_whatever_others_set(tmp_path, monkeypatch):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    for suffix in (".jpg", ".png", ".tif", ".webp"):
        content = save(tmp_path / f"a{suffix}", noise(64, 64)).read_bytes()
        with pytest.raises(DataError, match=r"in the archive: (cannot be read|not a picture)"):
            read_picture(io.BytesIO(content[: len(content) // 2]), name="in the archive")


def test_what_is_no_picture_is_said_and_special_files_are_not_opened(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as where it is not installed
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    save(Path("bomb.png"), Image.new("1", (12_000, 10_001)))
    os.mkfifo("pipe.png")
    Path("empty.png").touch()
    for name, content, problem in (
        ("text.jpg", b"no picture", "text.jpg: not a picture"),
        ("bomb.png", b"", "bomb.png: claims 12000x10001 pixels; 1 to 120,000,000 are decoded"),
        ("pipe.png", b"", "pipe.png: not a regular file"),
        ("empty.png", b"", "empty.png: is empty"),  # as the files of /proc say, of which some never end
        ("n" * 300, b"", r"nn: cannot be read as a picture \(File name too long\)"),
        ("\n\x1b\udcff", b"", r"\\n\\x1b\\xff: cannot be read as a picture \((No such file|Illegal byte).*\)"),
        (
            "a.jpg",
            b"\0\0\0\x1cftypheic\0\0\0\0mif1heic",
            "a.jpg: HEIC, which needs the package pillow-heif: pip install",
        ),
        ("a.MOV", b"\0\0\0\x20ftypqt  ", "a.MOV: a video; take a frame, e.g. ffmpeg -i FILE"),
    ):
        if content:
            Path(name).write_bytes(content)
        with pytest.raises(DataError, match=problem):
            read_picture(name)


@pytest.fixture
def relatives(tmp_path, monkeypatch):
    """`relatives(*inputs)`: paths, below the shared folder, of what is found from a folder that holds `in/`."""
    for name in ["a.jpg", "kitchen/a.jpg", "kitchen/b.png", "office/deep/a.jpg", "office/.hidden.jpg", ".git/c.jpg"]:
        save(tmp_path / "in" / name, noise(1, 1))
    for loop in ("loop", "office/loop", "office/deep/loop"):
        (tmp_path / "in" / loop).symlink_to(tmp_path / "in")
    (tmp_path / "in/office/names.txt").write_text("deep/a.jpg\n\n../kitchen/b.png\n")
    lines = b"\xef\xbb\xbfa.jpg\r\n\xff.jpg\r\nkitchen/b\xe2\x80\xa8.png\r\n"  # with a mark; one is no UTF-8
    (tmp_path / "in/office/bytes.txt").write_bytes(lines)
    monkeypatch.chdir(tmp_path)
    return lambda *inputs: [relative.as_posix() for relative in find_files(inputs).values()]


EVERYTHING = ["a.jpg", "kitchen/a.jpg", "kitchen/b.png", "office/bytes.txt", "office/deep/a.jpg", "office/names.txt"]


def test_relative_paths_are_those_below_the_shared_folder(relatives):
    for inputs, expected in (
        (["in/kitchen", "in/office"], EVERYTHING[1:]),
        (["in/k*/a.jpg", "in/kitchen/b.png"], ["a.jpg", "b.png"]),
        (["in/a.jpg", "in", "in/a.jpg"], EVERYTHING),
        (["in/**/**/a.jpg"], ["a.jpg", "kitchen/a.jpg", "office/deep/a.jpg"]),
        (["in/**"], EVERYTHING),
        (["in/*/a.jpg"], ["kitchen/a.jpg", "loop/a.jpg"]),  # `*` takes a link for a folder, once
        (["in/.git/*"], ["c.jpg"]),
        (["in/office/names.txt"], ["office/deep/a.jpg", "kitchen/b.png"]),
        (["in/office/bytes.txt"], ["a.jpg", "\udcff.jpg", "kitchen/b\u2028.png"]),
    ):
        assert relatives(*inputs) == expected


def test_an_input_that_is_nothing_is_said(relatives):
    Path("wide.txt").write_text("a.jpg\n", encoding="utf-16")
    Path("empty.txt").touch()
    for text, problem in (
        ("", "an empty name"),
        ("no\x1bthing/**/*.jpg", r"no\\x1bthing/\*\*/\*\.jpg: no such file or folder"),
        ("a**", "no such file or folder"),
        ("~nobody-of-this-name/a", "no such file or folder"),
        ("wide.txt", "wide.txt: not UTF-8; save the list as that"),
        ("empty.txt", "empty.txt: is empty"),
    ):
        with pytest.raises(DataError, match=problem):
            relatives(text)


def test_a_folder_that_cannot_be_searched_is_not_passed_by(relatives, monkeypatch):
    def refusing(path):
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", refusing)
    assert relatives("in/office") == ["bytes.txt", "deep", "names.txt"]
    assert relatives("in/**/*.jpg") == ["a.jpg", "kitchen/a.jpg", "office/deep"]
    for read in (read_picture, relatives):
        with pytest.raises(DataError, match="in/office/deep: a folder, which cannot be read"):
            read("in/office/deep")
