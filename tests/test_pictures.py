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


# Which pixels

GREY = np.arange(0, 256, 4, dtype=np.uint8).reshape(8, 8)
BLACK = Image.new("L", (8, 8))


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("grey.png", Image.fromarray(GREY)),
        ("rgb.png", Image.fromarray(GREY).convert("RGB")),
        ("rgba.png", Image.fromarray(GREY).convert("RGBA")),
        ("alpha.png", Image.fromarray(GREY).convert("LA")),
        ("palette.gif", Image.fromarray(GREY).convert("P")),
        ("sixteen.png", Image.fromarray(GREY.astype(np.uint16) * 257)),
        ("sixteen.tif", Image.fromarray(GREY.astype(np.uint16) * 257)),
        ("cmyk.tif", Image.merge("CMYK", [BLACK, BLACK, BLACK, Image.fromarray(255 - GREY)])),
        ("", Image.fromarray(GREY.astype(np.int32) * 257)),  # no files: modes I and F
        ("", Image.fromarray(GREY.astype(np.float32) / 252 * 1.01)),
    ],
)
def test_every_mode_becomes_the_same_rgb(tmp_path, name, content):
    source = save(tmp_path / name, content) if name else content
    scale = 255 / 252 if content.mode == "F" else 1  # without a white of its own, the largest value is
    expected = (GREY * scale).round().astype(int)[..., None].repeat(3, axis=2)
    assert_close(read_picture(source).astype(int), expected, atol=1, rtol=0)


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


@pytest.mark.parametrize(
    ("source", "message"),
    [
        (np.zeros((64, 64, 2)), r"\(H, W, 4\) of uint8 or float .*, got \(64, 64, 2\)"),
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
    for source in (pixels, save(tmp_path / "a.png", pixels)):
        assert read_picture(source)[0, :, 0].tolist() == [255, 127, 0]
    palette = Image.fromarray(np.array([[0, 1]], dtype=np.uint8)).convert("P")
    assert read_picture(save(tmp_path / "b.png", palette, transparency=0))[0, :, 0].tolist() == [255, 1]


@pytest.mark.parametrize(("orientation", "suffix"), [(2, ".png"), (5, ".tif"), (6, ".jpg"), (6, ".heic")])
def test_exif_turns_the_picture_upright(tmp_path, orientation, suffix):
    upright = np.kron(np.arange(6, dtype=np.uint8).reshape(2, 3) * 40, np.ones((32, 32), dtype=np.uint8))
    turned = {2: upright[:, ::-1], 5: upright.T, 6: np.rot90(upright)}[orientation]  # as the sensor stored it
    image, exif, path = Image.fromarray(np.ascontiguousarray(turned)), Image.Exif(), tmp_path / f"a{suffix}"
    exif[0x0112] = orientation
    if suffix == ".heic":
        heif = pytest.importorskip("pillow_heif", reason="reading HEIC needs the package pillow-heif")
        heif.from_pillow(image.convert("RGB")).save(path, exif=exif.tobytes())
    else:
        image.save(path, exif=exif)
    for source in (path, io.BytesIO(path.read_bytes())):
        assert_close(read_picture(source)[..., 0].astype(int), upright.astype(int), atol=9, rtol=0)


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif", ".webp"])
def test_half_a_picture_is_no_picture_whatever_others_set(tmp_path, monkeypatch, suffix):
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    whole = save(tmp_path / f"whole{suffix}", noise(64, 64)).read_bytes()
    half = tmp_path / f"half{suffix}"
    half.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DataError, match=f"half{suffix}: (cannot be read|not a picture)"):
        read_picture(half)
    with pytest.raises(DataError, match=r"in the archive: (cannot be read|not a picture)"):
        read_picture(io.BytesIO(half.read_bytes()), name="in the archive")


def test_a_bomb_is_not_decoded(tmp_path, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    for source in (save(tmp_path / "bomb.png", Image.new("1", (12_000, 10_001))), Image.new("RGB", (0, 5))):
        with pytest.raises(DataError, match=r"claims .* pixels; 1 to 120,000,000 are decoded"):
            read_picture(source)


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("text.jpg", b"no picture", "not a picture"),
        ("pipe.png", None, "not a regular file"),
        ("/dev/zero", None, "not a regular file"),
        ("n" * 300, None, r"cannot be read as a picture \(File name too long\)"),
        (
            "\n\x1b\udcff",
            None,
            r"\\n\\x1b\\xff: cannot be read as a picture \((No such file|Illegal byte sequence).*\)",
        ),
        ("a.jpg", b"\0\0\0\x1cftypheic\0\0\0\0mif1heicmiaf", "HEIC, which needs the package pillow-heif: pip install"),
        ("a.MOV", b"\0\0\0\x20ftypqt  ", "a video; take a frame, e.g. ffmpeg -i FILE"),
        ("a.avif", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf", "(not a picture|cannot be read)"),
    ],
)
def test_what_is_no_picture_is_said_and_special_files_are_not_opened(tmp_path, monkeypatch, name, content, problem):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)  # as where it is not installed
    monkeypatch.chdir(tmp_path)
    os.mkfifo("pipe.png")
    if content:
        Path(name).write_bytes(content + bytes(100))
    with pytest.raises(DataError, match=f"^.*: {problem}" if name.isprintable() else f"^{problem}"):
        read_picture(name)


# Which files


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


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        (["in"], EVERYTHING),
        (["in/a.jpg"], ["a.jpg"]),
        (["in/kitchen", "in/office"], EVERYTHING[1:]),
        (["in/k*/a.jpg", "in/kitchen/b.png"], ["a.jpg", "b.png"]),
        (["in/a.jpg", "in", "in/a.jpg"], EVERYTHING),
        (["in/**/**/a.jpg"], ["a.jpg", "kitchen/a.jpg", "office/deep/a.jpg"]),
        (["in/**"], EVERYTHING),
        (["in/**/*.*"], EVERYTHING),
        (["in/*/a.jpg"], ["kitchen/a.jpg", "loop/a.jpg"]),  # `*` takes a link for a folder, once
        (["in/.git/*"], ["c.jpg"]),
        (["in/office/names.txt"], ["office/deep/a.jpg", "kitchen/b.png"]),
        (["in/office/bytes.txt"], ["a.jpg", "\udcff.jpg", "kitchen/b\u2028.png"]),
    ],
)
def test_relative_paths_are_those_below_the_shared_folder(relatives, inputs, expected):
    assert relatives(*inputs) == expected


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "an empty name"),
        ("no\x1bthing/**/*.jpg", r"no\\x1bthing/\*\*/\*\.jpg: no such file or folder"),
        ("a**", "no such file or folder"),
        ("~nobody-of-this-name/a", "no such file or folder"),
        ("wide.txt", "wide.txt: not UTF-8; save the list as that"),
        ("pipe.txt", "pipe.txt: not a regular file"),
    ],
)
def test_an_input_that_is_nothing_is_said(relatives, text, problem):
    Path("wide.txt").write_text("a.jpg\n", encoding="utf-16")
    os.mkfifo("pipe.txt")
    with pytest.raises(DataError, match=problem):
        relatives(text)
