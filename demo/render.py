"""Renders a room: its picture, and the depth map that a Kinect would measure of it.

A pinhole camera with the Kinect's size and focal length looks into a box-shaped room that holds boxes, cylinders and
balls. Every ray is written as `origin + depth * direction` with the direction's component along the optical axis equal
to one, so that the ray parameter of a hit IS the depth along the optical axis, not the ray's length.

World: x to the right, y up, z away from the camera's wall, in metres. Image arrays are (H, W) = (480, 640), N chosen
pixels. Left out: reflections, lens distortion, light that bounces, noise of the depth sensor (its holes are there).
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

HEIGHT, WIDTH = 480, 640  # the Kinect's image size [px]
FOCAL_PX = 519.0  # the focal length of NYU's colour camera, rounded
PROJECTOR_BASELINE = 0.075  # between the Kinect's infrared projector and its camera [m]
NEAREST_MEASURED = 0.5  # nearer than this the Kinect measures nothing [m]
BORDER_ROWS, BORDER_COLUMNS = slice(7, 474), slice(7, 632)  # NYU's extraction leaves RGB black outside of these
EPSILON = 1e-6  # keeps divisions by a direction's component finite


@dataclass(frozen=True)
class Material:
    """How a surface looks.

    Args:
        pattern: one of PATTERNS.
        colour, second_colour: (3,) linear RGB reflectances in [0, 1]; the pattern mixes them.
        size: the pattern's period [m].
        grain: how strong the fine noise is.
        shiny: share of the surface where the depth sensor finds nothing.
        offset: (2,) where the pattern begins [m].
    """

    pattern: str
    colour: np.ndarray
    second_colour: np.ndarray
    size: float
    grain: float
    shiny: float
    offset: np.ndarray


@dataclass(frozen=True)
class Solid:
    """A convex body: "box", "cylinder" (upright) or "ball".

    Args:
        kind: the shape.
        centre: (3,) [m].
        half: (3,) half extents [m]; a cylinder's are (radius, half height, radius), a ball's its radius three times.
        yaw: turn about the vertical axis [rad].
        material: how it looks.
    """

    kind: str
    centre: np.ndarray
    half: np.ndarray
    yaw: float
    material: Material


@dataclass(frozen=True)
class Room:
    """A scene: the room's corners, what stands in it, the camera and the light.

    Args:
        low, high: (3,) opposite corners of the room [m].
        floor, ceiling, wall: the materials of the room itself.
        solids: what stands in it.
        eye: (3,) the camera's position [m].
        yaw, pitch: the camera's direction [rad]; yaw turns to the right, pitch looks up.
        lamp: (3,) position of the lamp [m].
        lights: strength of (ambient light, lamp, light beside the camera).
    """

    low: np.ndarray
    high: np.ndarray
    floor: Material
    ceiling: Material
    wall: Material
    solids: tuple[Solid, ...]
    eye: np.ndarray
    yaw: float
    pitch: float
    lamp: np.ndarray
    lights: tuple[float, float, float]


# ---------------------------------------------------------------------------------------------------------- geometry


def turn(vectors: np.ndarray, yaw: float) -> np.ndarray:
    """Vectors (..., 3) turned by `yaw` about the vertical axis; positive yaw takes +z towards +x."""
    c, s = np.float32(np.cos(yaw)), np.float32(np.sin(yaw))
    x, y, z = vectors[..., 0], vectors[..., 1], vectors[..., 2]
    return np.stack([c * x + s * z, y, c * z - s * x], axis=-1)


def camera_rays(yaw: float, pitch: float) -> np.ndarray:
    """Directions (H, W, 3) of the pixels' rays, each of length one ALONG THE OPTICAL AXIS."""
    right = (np.arange(WIDTH, dtype=np.float32) - (WIDTH - 1) / 2) / FOCAL_PX
    down = (np.arange(HEIGHT, dtype=np.float32) - (HEIGHT - 1) / 2) / FOCAL_PX
    x, y = np.meshgrid(right, -down)
    c, s = np.float32(np.cos(pitch)), np.float32(np.sin(pitch))
    return turn(np.stack([x, c * y + s, c - s * y], axis=-1), yaw).astype(np.float32)


def dot(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Sum of products over the last axis, (..., n) and (..., n) -> (...)."""
    return np.einsum("...i,...i->...", a, b)


def slab(origin: np.ndarray, direction: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Where rays enter and leave |x_i| <= half_i for each of the axes: two arrays (n, ...), axes first."""
    enter, leave = [], []
    for i in range(direction.shape[-1]):
        inverse = 1 / np.where(np.abs(direction[..., i]) < EPSILON, EPSILON, direction[..., i])
        middle, reach = -origin[..., i] * inverse, half[i] * np.abs(inverse)
        enter.append(middle - reach)
        leave.append(middle + reach)
    return np.stack(enter), np.stack(leave)


def quadric(origin: np.ndarray, direction: np.ndarray, radius: float) -> tuple[np.ndarray, np.ndarray]:
    """Where rays enter and leave |x| <= radius over the last axis: two arrays (...); enter > leave means a miss."""
    a = np.maximum(dot(direction, direction), EPSILON)
    b = dot(origin, direction)
    square = b * b - a * (dot(origin, origin) - radius * radius)
    root = np.sqrt(np.maximum(square, 0))
    missed = square < 0
    return np.where(missed, np.inf, (-b - root) / a), np.where(missed, -np.inf, (-b + root) / a)


def enter_leave(solid: Solid, origin: np.ndarray, direction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Ray parameters (...) at which rays enter and leave a solid; enter > leave means a miss.

    Args:
        solid: the body.
        origin: (3,) or (..., 3), world coordinates [m].
        direction: (..., 3).
    """
    origin, direction = turn(origin - solid.centre.astype(np.float32), -solid.yaw), turn(direction, -solid.yaw)
    half = solid.half.astype(np.float32)
    if solid.kind == "ball":
        return quadric(origin, direction, half[0])
    if solid.kind == "box":
        enter, leave = slab(origin, direction, half)
        return enter.max(0), leave.min(0)
    caps_enter, caps_leave = slab(origin[..., 1:2], direction[..., 1:2], half[1:2])
    round_enter, round_leave = quadric(origin[..., ::2], direction[..., ::2], half[0])
    return np.maximum(round_enter, caps_enter[0]), np.minimum(round_leave, caps_leave[0])


def surface(solid: Solid, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Outward normals (N, 3) and texture coordinates (N, 2) [m] at points (N, 3) on a solid's surface."""
    local = turn(points - solid.centre, -solid.yaw)
    if solid.kind == "ball":
        normal = local / solid.half[0]
        angles = np.stack([np.arctan2(local[:, 0], local[:, 2]), np.arcsin(np.clip(normal[:, 1], -1, 1))], axis=1)
        return turn(normal, solid.yaw), angles * solid.half[0]
    if solid.kind == "cylinder":
        on_cap = np.abs(local[:, 1]) > solid.half[1] - 1e-4
        side = local * (1, 0, 1) / solid.half[0]
        normal = np.where(on_cap[:, None], np.sign(local) * (0, 1, 0), side)
        round_side = np.stack([np.arctan2(local[:, 0], local[:, 2]) * solid.half[0], local[:, 1]], axis=1)
        return turn(normal, solid.yaw), np.where(on_cap[:, None], local[:, ::2], round_side)
    axis = np.abs(local / solid.half).argmax(1)
    normal, coordinates = face(local, axis)
    return turn(normal, solid.yaw), coordinates


def face(local: np.ndarray, axis: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Outward normals (N, 3) and texture coordinates (N, 2) [m] on a box around zero; axis (N,): which faces."""
    normal = np.zeros_like(local)
    rows = np.arange(len(local))
    normal[rows, axis] = np.sign(local[rows, axis])
    across = np.where(axis == 0, local[:, 2], local[:, 0])
    along = np.where(axis == 1, local[:, 2], local[:, 1])
    return normal, np.stack([across, along], axis=1)


def window(solid: Solid, eye: np.ndarray, yaw: float, pitch: float) -> tuple[slice, slice]:
    """Rows and columns of the image that a solid can touch (its bounding box projected; all if it reaches behind)."""
    signs = np.array([[i, j, k] for i in (-1, 1) for j in (-1, 1) for k in (-1, 1)])
    seen = turn(turn(signs * solid.half, solid.yaw) + solid.centre - eye, -yaw)
    c, s = np.cos(pitch), np.sin(pitch)
    depth, up = c * seen[:, 2] + s * seen[:, 1], c * seen[:, 1] - s * seen[:, 2]
    if depth.min() < 0.05:
        return slice(0, HEIGHT), slice(0, WIDTH)
    row = (HEIGHT - 1) / 2 - FOCAL_PX * up / depth
    column = (WIDTH - 1) / 2 + FOCAL_PX * seen[:, 0] / depth
    rows = np.clip([np.floor(row.min()), np.ceil(row.max()) + 1], 0, HEIGHT).astype(int)
    columns = np.clip([np.floor(column.min()), np.ceil(column.max()) + 1], 0, WIDTH).astype(int)
    return slice(*rows), slice(*columns)


def trace(room: Room, rays: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Depth (H, W) [m] along the optical axis, and what is seen (H, W): the solid's number, -1 for the room itself."""
    middle = ((room.low + room.high) / 2).astype(np.float32)
    _, leave = slab((room.eye - middle).astype(np.float32), rays, ((room.high - room.low) / 2).astype(np.float32))
    depth = leave.min(0)
    seen = np.full((HEIGHT, WIDTH), -1, dtype=np.int32)
    for number, solid in enumerate(room.solids):
        part = window(solid, room.eye, room.yaw, room.pitch)
        enter, leave = enter_leave(solid, room.eye.astype(np.float32), rays[part])
        nearer = (enter <= leave) & (enter > 0.05) & (enter < depth[part])
        depth[part][nearer] = enter[nearer]
        seen[part][nearer] = number
    return depth, seen


# --------------------------------------------------------------------------------------------------- look and sensor


def value_noise(table: np.ndarray, coordinates: np.ndarray) -> np.ndarray:
    """Smooth noise (N,) in [0, 1] at coordinates (N, 2), of period one; table (256, 256) of uniform numbers."""
    cell = np.floor(coordinates)
    u, v = ((coordinates - cell) ** 2 * (3 - 2 * (coordinates - cell))).T
    i, j = cell.astype(np.int32).T & 255
    i1, j1 = (i + 1) & 255, (j + 1) & 255
    first = table[i, j] * (1 - u) + table[i1, j] * u
    second = table[i, j1] * (1 - u) + table[i1, j1] * u
    return first * (1 - v) + second * v


def bricks(u: np.ndarray, v: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Running bond: joints between bricks three times as long as high, every second row shifted."""
    row = np.floor(3 * v)
    u = u + 0.5 * (row % 2)
    joint = ((u % 1) < 0.06) | ((3 * v % 1) < 0.18)
    tint = table[np.floor(u).astype(np.int32) & 255, row.astype(np.int32) & 255]
    return np.where(joint, 1, 0.35 * tint)


def planks(u: np.ndarray, v: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Floor boards eight times as long as wide, each with a tint of its own."""
    row = np.floor(u)
    along = v / 8 + table[row.astype(np.int32) & 255, 0]
    joint = ((u % 1) < 0.07) | ((along % 1) < 0.01)
    return np.where(joint, 1, 0.6 * table[row.astype(np.int32) & 255, np.floor(along).astype(np.int32) & 255])


# Each takes coordinates in units of the material's size and returns how much of the second colour shows, in [0, 1].
PATTERNS: dict[str, Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]] = {
    "plain": lambda u, v, table: np.zeros_like(u),
    "mottled": lambda u, v, table: value_noise(table, np.stack([u, v], axis=1) * 2),
    "stripes": lambda u, v, table: ((u % 1) < 0.4).astype(np.float32),
    "checks": lambda u, v, table: (np.floor(u) + np.floor(v)) % 2,
    "tiles": lambda u, v, table: (((u % 1) < 0.05) | ((v % 1) < 0.05)).astype(np.float32),
    "dots": lambda u, v, table: (((u % 1) - 0.5) ** 2 + ((v % 1) - 0.5) ** 2 < 0.05).astype(np.float32),
    "bricks": bricks,
    "planks": planks,
}
# A pattern has nearly the same size [m] everywhere, as bricks and boards have: this is what shows distance.
PATTERN_SIZE = {
    "plain": 0.10,
    "mottled": 0.16,
    "stripes": 0.11,
    "checks": 0.12,
    "tiles": 0.16,
    "dots": 0.10,
    "bricks": 0.22,
    "planks": 0.11,
}


def albedo(material: Material, coordinates: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Reflectance (N, 3) of a material at texture coordinates (N, 2) [m]."""
    moved = coordinates + material.offset
    u, v = (moved / material.size).T
    mix = PATTERNS[material.pattern](u, v, table)[:, None]
    noise = 0.6 * value_noise(table, moved / 0.05) + 0.4 * value_noise(table, moved / 0.015)
    colour = material.colour * (1 - mix) + material.second_colour * mix
    return colour * (1 + material.grain * (noise[:, None] - 0.5))


def lit(room: Room, points: np.ndarray, normals: np.ndarray, shadow: np.ndarray) -> np.ndarray:
    """Light (N,) that arrives at points (N, 3) with normals (N, 3); shadow (N,): share of the lamp that is hidden."""

    def lambert(source: np.ndarray, reach: float) -> np.ndarray:
        towards = source.astype(np.float32) - points
        square = dot(towards, towards)
        cosine = np.maximum(dot(towards, normals), 0) / np.sqrt(square)
        return cosine / (0.3 + square / reach**2)

    ambient, lamp, beside_camera = room.lights
    wall_distance = np.minimum(points - room.low, room.high - points)
    wall_distance.sort(axis=1)
    corner = 1 - 0.35 * np.exp(-np.maximum(wall_distance[:, 1], 0) / 0.2)  # less sky light where two faces meet
    return (
        ambient * corner * (0.8 + 0.2 * normals[:, 1])
        + lamp * lambert(room.lamp, 2.5) * (1 - shadow)
        + beside_camera * lambert(room.eye + np.array([0.0, 0.15, 0.0]), 1.2)
    )


def lamp_shadow(room: Room, points: np.ndarray) -> np.ndarray:
    """Share (H, W) of the lamp hidden by solids at points (H, W, 3); found on every second pixel, then smoothed."""
    coarse = np.ascontiguousarray(points[::2, ::2])
    towards = (room.lamp - coarse).astype(np.float32)
    hidden = np.zeros(coarse.shape[:2], dtype=np.float32)
    for solid in room.solids:
        enter, leave = enter_leave(solid, coarse, towards)
        # Along `towards` the point lies at 0 and the lamp at 1: a solid starts between them, but not with the point's
        # own surface, nor right at the lamp.
        hidden[(enter <= leave) & (enter > 0.005) & (enter < 0.97)] = 1
    for axis in (0, 1):  # what rolls over the image's edge lands in the black border
        hidden = np.mean([np.roll(hidden, shift, axis) for shift in range(-2, 3)], axis=0)
    return hidden.repeat(2, axis=0).repeat(2, axis=1)


def sensor_holes(depth: np.ndarray, facing: np.ndarray, shiny: np.ndarray, noise: np.ndarray) -> np.ndarray:
    """Where the sensor measures nothing, bool (H, W).

    Args:
        depth: (H, W) [m].
        facing: (H, W) cosine between the surface's normal and the direction to the camera.
        shiny: (H, W) share of the surface that swallows the projected pattern.
        noise: (H, W) in [0, 1], smooth; makes shiny and slanted places fail in patches.
    """
    # The projector stands to the left of the camera: to the right of an edge, it does not see what lies behind.
    column_px = np.arange(depth.shape[1]) + FOCAL_PX * PROJECTOR_BASELINE / depth  # in the projector's view
    hidden = column_px < np.maximum.accumulate(column_px, axis=1) - 1
    return hidden | (depth < NEAREST_MEASURED) | (noise < shiny) | (facing < 0.22 * noise)


def render(room: Room, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Picture and depth map of a room.

    Returns:
        image: (480, 640, 3) uint8, black outside rows 7:474 and columns 7:632.
        depth: (480, 640) float32 [m] along the optical axis, 0 where the sensor measures nothing.
    """
    table = rng.random((256, 256), dtype=np.float32)
    rays = camera_rays(room.yaw, room.pitch)
    depth, seen = trace(room, rays)
    points = room.eye.astype(np.float32) + depth[..., None] * rays
    shadow = lamp_shadow(room, points)
    radiance = np.zeros((HEIGHT, WIDTH, 3), dtype=np.float32)
    facing, shiny = np.ones((HEIGHT, WIDTH), np.float32), np.zeros((HEIGHT, WIDTH), np.float32)

    def paint(mask: np.ndarray, material: Material, normals: np.ndarray, coordinates: np.ndarray) -> None:
        light = lit(room, points[mask], normals, shadow[mask])
        radiance[mask] = albedo(material, coordinates, table) * light[:, None]
        back = -rays[mask]
        facing[mask] = dot(back, normals) / np.sqrt(dot(back, back))
        shiny[mask] = material.shiny

    middle, half = (room.low + room.high) / 2, (room.high - room.low) / 2
    room_mask = seen == -1
    local = points[room_mask] - middle
    axis = np.abs(local / half).argmax(1)
    normals, coordinates = face(local, axis)
    surface_number = np.where(axis == 1, np.where(local[:, 1] < 0, 0, 1), 2)
    for number, material in enumerate((room.floor, room.ceiling, room.wall)):
        chosen = surface_number == number
        mask = np.zeros_like(room_mask)
        mask[room_mask] = chosen
        paint(mask, material, -normals[chosen], coordinates[chosen])
    for number, solid in enumerate(room.solids):
        mask = seen == number
        if mask.any():
            paint(mask, solid.material, *surface(solid, points[mask]))

    balance = rng.uniform(0.93, 1.07, size=3)
    image = np.clip(radiance * balance, 0, 1) ** (1 / 2.2) + rng.normal(0, 0.008, size=(HEIGHT, WIDTH, 1))
    image = (np.clip(image, 0, 1) * 255 + 0.5).astype(np.uint8)
    framed = np.zeros_like(image)
    framed[BORDER_ROWS, BORDER_COLUMNS] = image[BORDER_ROWS, BORDER_COLUMNS]

    rows, columns = np.mgrid[0:HEIGHT, 0:WIDTH].reshape(2, -1).astype(np.float32)
    patches = value_noise(table, np.stack([rows, columns], axis=1) / 14).reshape(HEIGHT, WIDTH)
    depth[sensor_holes(depth, facing, shiny, patches)] = 0
    return framed, depth
