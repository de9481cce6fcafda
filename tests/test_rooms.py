"""demo/render.py and demo/rooms.py: geometry by hand, what is rendered, the official layout."""

import numpy as np
import pytest
from PIL import Image, JpegImagePlugin

from calculate_error import NYU
from datasets.nyu import TEST_INDICES, open_nyu
from demo import render, rooms
from demo.render import FOCAL_PX, Material, Room, Solid

GREY = Material("plain", np.full(3, 0.5), np.full(3, 0.5), 0.1, 0.0, 0.0, np.zeros(2))
CENTRE = (240, 320)  # the pixel half a pixel to the right of and below the optical axis
EYE_HEIGHT = 1.2


def empty_room(*solids, yaw=0.0):
    """4 m wide, 2.5 m high, the far wall 3 m in front of the camera."""
    low, high, eye, lamp = np.array([[-2.0, 0.0, 0.0], [2.0, 2.5, 3.3], [0.0, EYE_HEIGHT, 0.3], [0.0, 2.3, 1.5]])
    return Room(low, high, GREY, GREY, GREY, solids, eye, yaw, 0.0, lamp, (0.2, 0.4, 0.8))


def solid(kind, distance, half, yaw=0.0):
    """A solid whose centre is `distance` in front of `empty_room`'s camera."""
    return Solid(kind, np.array([0.0, EYE_HEIGHT, 0.3 + distance]), np.array(half), yaw, GREY)


def depth_of(room):
    return render.trace(room, render.camera_rays(room.yaw, room.pitch))[0]


def test_walls_floor_and_ceiling():
    depth = depth_of(empty_room())
    np.testing.assert_allclose(depth[100:400, 10:630], 3.0, atol=1e-5)  # not the length of the slanted rays
    assert depth[479, 320] == pytest.approx(EYE_HEIGHT * FOCAL_PX / 239.5, rel=1e-5)
    assert depth[0, 320] == pytest.approx((2.5 - EYE_HEIGHT) * FOCAL_PX / 239.5, rel=1e-5)
    turned = depth_of(empty_room(yaw=np.pi / 2))  # looks at the wall on the right
    np.testing.assert_allclose(turned[140:340, 320], 2.0, atol=1e-5)


def test_a_box_a_turned_box_and_a_ball():
    front, ball = solid("box", 2.0, (0.3, 0.3, 0.5)), solid("ball", 2.0, (0.4, 0.4, 0.4))
    edge = solid("box", 2.0, (0.3, 0.3, 0.3), yaw=np.pi / 4)  # half a pixel beside the centre
    for item, expected in ((front, 1.5), (edge, 2.0 - 0.3 * np.sqrt(2)), (ball, 1.6)):
        assert depth_of(empty_room(item))[CENTRE] == pytest.approx(expected, abs=2e-3)
    x, y = (360 - 319.5) / FOCAL_PX, (239.5 - 200) / FOCAL_PX
    a, b, c = x * x + y * y + 1, -2 * 2.0, 2.0**2 - 0.4**2  # |t (x, y, 1) - (0, 0, 2)|^2 = 0.4^2
    expected = (-b - np.sqrt(b * b - 4 * a * c)) / (2 * a)
    assert depth_of(empty_room(ball))[200, 360] == pytest.approx(expected, abs=1e-4)
    for solids in ((edge, front), (front, edge)):  # the nearer hides the farther
        assert depth_of(empty_room(*solids))[CENTRE] == pytest.approx(1.5, abs=1e-5)


def test_official_layout_black_border_and_depths_that_fit_the_bins(tmp_path):
    assert rooms.main(["--output", str(tmp_path), "--count", "3", "--seed", "3"]) == 0
    pairs = sorted(open_nyu(tmp_path, NYU).pairs, key=lambda pair: pair.index)
    assert [pair.index for pair in pairs] == sorted(TEST_INDICES[:3])
    (scene, image, depth), pair = rooms.render_scene(3, 2), pairs[2]
    assert pair.rgb == tmp_path / "official_splits" / "test" / scene / "rgb_00008.jpg"
    with Image.open(pair.depth) as file:
        assert file.mode == "I;16"
        np.testing.assert_array_equal(np.array(file), np.floor(depth * np.float32(1000)))
    with Image.open(pair.rgb) as file:
        assert JpegImagePlugin.get_sampling(file) == 2  # 4:2:0
        assert np.abs(np.array(file).astype(int) - image).mean() < 4
    assert (image.shape, image[:7].any(), image[7:474, 7:632].any()) == ((480, 640, 3), False, True)
    near, inside, holes = depth[depth > 0].min(), (depth > 0.8) & (depth < 3.5), depth == 0
    assert (near >= render.NEAREST_MEASURED, inside.mean() > 0.8, 0.005 < holes.mean() < 0.1) == (True, True, True)
