"""Furnished rooms, written in the file layout of NYU Depth V2's official test split.

A room is drawn at random: its size, what stands in it, of which material, where the camera is and how it is lit.
`render.py` makes the picture and the depth map of it.

    python -m demo.rooms --output DIR --count 64 --seed 1
"""

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.nyu import TEST_INDICES
from demo.render import PATTERN_SIZE, PATTERNS, Material, Room, Solid, render, turn

NYU_IMAGES = 1449  # pictures beyond the test split's 654 are numbered from here on
Piece = tuple[list[Solid], tuple[float, float]]  # solids in the piece's own frame (back towards +z), (width, depth) [m]


def random_material(rng: np.random.Generator, patterns: tuple[str, ...] = tuple(PATTERNS)) -> Material:
    """A material with one of the patterns and colours drawn at random."""
    pattern = str(rng.choice(patterns))
    colour = rng.uniform(0.3, 0.8) * (1 - rng.uniform(0, 0.6) * rng.random(3))
    return Material(
        pattern=pattern,
        colour=colour,
        second_colour=np.clip(colour * rng.uniform(0.35, 0.75) * rng.uniform(0.85, 1.15, size=3), 0, 1),
        size=PATTERN_SIZE[pattern] * rng.uniform(0.9, 1.1),
        grain=rng.uniform(0.25, 0.5),
        shiny=rng.choice([0.0, 0.0, 0.0, 0.12]),
        offset=rng.uniform(0, 50, size=2),
    )


class Furnisher:
    """Puts furniture into a room, piece after piece, where nothing stands yet.

    Args:
        rng: the source of all randomness.
        low, high: (3,) corners of the room [m].
        eye: (3,) where the camera is [m]; the space around it stays empty.
    """

    def __init__(self, rng: np.random.Generator, low: np.ndarray, high: np.ndarray, eye: np.ndarray) -> None:
        self.rng, self.low, self.high, self.eye = rng, low, high, eye
        self.solids: list[Solid] = []
        self.taken: list[tuple[float, float, float]] = []  # (x, z, radius) of each piece's footprint [m]

    def place(self, piece: str) -> None:
        """Adds a piece of PIECES with its back to a wall, or free in the room; leaves it out if there is no space."""
        build, against_wall = PIECES[piece]
        parts, (width, deep) = build(self.rng)
        for _ in range(20):
            if against_wall:
                x, z, yaw = self._wall_spot(width, deep)
            else:
                x, z = self.rng.uniform(self.low[[0, 2]] + 0.5, self.high[[0, 2]] - 0.5)
                yaw = self.rng.uniform(-np.pi, np.pi)
            radius = 0.45 * np.hypot(width, deep)
            clear = all(np.hypot(x - tx, z - tz) > radius + tr for tx, tz, tr in self.taken)
            if clear and np.hypot(x - self.eye[0], z - self.eye[2]) > radius + 0.75:
                self.taken.append((x, z, radius))
                for part in parts:
                    centre = turn(part.centre, yaw) + np.array([x, self.low[1], z])
                    self.solids.append(Solid(part.kind, centre, part.half, yaw + part.yaw, part.material))
                return

    def _wall_spot(self, width: float, deep: float) -> tuple[float, float, float]:
        """Where (x, z) and with which yaw a piece of this width and depth stands against the far or a side wall."""
        wall = self.rng.choice(["far", "far", "left", "right"])
        margin = width / 2 + 0.05
        if wall == "far":
            return self.rng.uniform(self.low[0] + margin, self.high[0] - margin), self.high[2] - deep / 2, 0.0
        z = self.rng.uniform(self.low[2] + 0.9, self.high[2] - margin)
        return (self.low[0] + deep / 2, z, -np.pi / 2) if wall == "left" else (self.high[0] - deep / 2, z, np.pi / 2)


def body(kind: str, at: tuple[float, float, float], size: tuple[float, float, float], material: Material) -> Solid:
    """A solid standing on height at[1], of full size (width, height, depth) [m]."""
    centre = np.array([at[0], at[1] + size[1] / 2, at[2]], dtype=np.float64)
    return Solid(kind, centre, np.array(size, dtype=np.float64) / 2, 0.0, material)


def cabinet(rng: np.random.Generator) -> Piece:
    """A box with two handles; a low one carries something."""
    width, height, deep = rng.uniform(0.5, 1.0), rng.uniform(0.8, 2.0), rng.uniform(0.35, 0.6)
    front, handle = random_material(rng), random_material(rng, ("plain",))
    parts = [body("box", (0, 0, 0), (width, height, deep), front)]
    for side in (-1, 1):
        parts.append(body("box", (side * 0.05, height * 0.5, -deep / 2), (0.02, 0.15, 0.04), handle))
    if height < 1.3:
        parts.append(trinket(rng, (rng.uniform(-0.1, 0.1), height, 0)))
    return parts, (width, deep)


def trinket(rng: np.random.Generator, at: tuple[float, float, float]) -> Solid:
    """One small thing that stands on something."""
    size, kind = rng.uniform(0.12, 0.3), str(rng.choice(["ball", "cylinder", "box"]))
    height = size if kind != "cylinder" else size * rng.uniform(0.8, 1.8)
    return body(kind, at, (size, height, size), random_material(rng))


def shelf(rng: np.random.Generator) -> Piece:
    """An open rack of four boards with books."""
    width, height, deep = rng.uniform(0.7, 1.1), rng.uniform(1.2, 1.9), 0.3
    wood = random_material(rng, ("planks", "plain", "mottled"))
    parts = [body("box", (0, 0, deep / 2 - 0.01), (width, height, 0.02), wood)]
    parts += [body("box", (side * width / 2, 0, 0), (0.03, height, deep), wood) for side in (-1, 1)]
    levels = np.linspace(0.05, height - 0.03, 5)
    for level in levels:
        parts.append(body("box", (0, level, 0), (width, 0.03, deep), wood))
    for level in levels[:-1]:
        left = -width / 2 + 0.03
        while left < width / 2 - 0.25:
            books = rng.uniform(0.1, 0.22)
            size = (books, rng.uniform(0.6, 0.85) * (levels[1] - levels[0]), 0.2)
            parts.append(body("box", (left + books / 2, level + 0.03, 0.02), size, random_material(rng)))
            left += books + rng.uniform(0, 0.2)
    return parts, (width, deep)


def table(rng: np.random.Generator) -> Piece:
    """A round or a rectangular table, often with things on it."""
    width, deep, height = rng.uniform(0.7, 1.3), rng.uniform(0.6, 0.9), rng.uniform(0.45, 0.78)
    wood = random_material(rng)
    if rng.random() < 0.3:
        parts = [body("cylinder", (0, height - 0.04, 0), (width, 0.04, width), wood)]
        parts.append(body("cylinder", (0, 0, 0), (0.12, height, 0.12), wood))
        deep = width
    else:
        parts = [body("box", (0, height - 0.04, 0), (width, 0.04, deep), wood)]
        for x in (-1, 1):
            for z in (-1, 1):
                leg = (x * (width / 2 - 0.05), 0, z * (deep / 2 - 0.05))
                parts.append(body("box", leg, (0.06, height - 0.04, 0.06), wood))
    for side in (-0.25, 0.2):
        if rng.random() < 0.7:
            parts.append(trinket(rng, (side * width, height, rng.uniform(-0.15, 0.15))))
    return parts, (width, deep)


def chair(rng: np.random.Generator) -> Piece:
    """A seat, a back and four legs."""
    wood, seat, size = random_material(rng), random_material(rng), rng.uniform(0.4, 0.48)
    parts = [body("box", (0, 0.42, 0), (size, 0.06, size), seat)]
    parts.append(body("box", (0, 0.48, size / 2 - 0.02), (size, 0.45, 0.04), seat))
    for x in (-1, 1):
        for z in (-1, 1):
            parts.append(body("cylinder", (x * (size / 2 - 0.03), 0, z * (size / 2 - 0.03)), (0.04, 0.42, 0.04), wood))
    return parts, (size, size)


def sofa(rng: np.random.Generator) -> Piece:
    """Seat, back, arms and a cushion."""
    width, deep, cloth = rng.uniform(1.1, 1.9), 0.8, random_material(rng)
    parts = [body("box", (0, 0, 0), (width, 0.42, deep), cloth)]
    parts.append(body("box", (0, 0.42, deep / 2 - 0.1), (width, 0.4, 0.2), cloth))
    parts += [body("box", (side * (width / 2 - 0.08), 0.42, 0), (0.16, 0.2, deep), cloth) for side in (-1, 1)]
    parts.append(body("box", (rng.uniform(-0.3, 0.3), 0.42, 0.15), (0.4, 0.35, 0.15), random_material(rng)))
    return parts, (width, deep)


def bed(rng: np.random.Generator) -> Piece:
    """Frame, mattress, headboard and two pillows."""
    width, deep, frame = rng.uniform(1.0, 1.6), 1.9, random_material(rng, ("planks", "plain"))
    parts = [body("box", (0, 0, 0), (width, 0.25, deep), frame)]
    parts.append(body("box", (0, 0.25, -0.02), (width - 0.04, 0.25, deep - 0.08), random_material(rng)))
    parts.append(body("box", (0, 0, deep / 2 - 0.03), (width, rng.uniform(0.8, 1.1), 0.06), frame))
    pillow = random_material(rng)
    parts += [body("box", (s * width / 4, 0.5, deep / 2 - 0.3), (width / 2.6, 0.14, 0.35), pillow) for s in (-1, 1)]
    return parts, (width, deep)


def counter(rng: np.random.Generator) -> Piece:
    """A counter with a worktop, a wall cabinet above it, and things on it."""
    width, deep = rng.uniform(1.2, 2.0), 0.6
    parts = [body("box", (0, 0, 0), (width, 0.86, deep), random_material(rng))]
    parts.append(body("box", (0, 0.86, 0), (width + 0.04, 0.04, deep + 0.04), random_material(rng)))
    parts.append(body("box", (0, 1.45, deep / 2 - 0.16), (width, 0.6, 0.32), random_material(rng)))
    parts += [trinket(rng, (side * width, 0.9, 0)) for side in (-0.3, 0.0, 0.3) if rng.random() < 0.6]
    return parts, (width, deep)


def desk(rng: np.random.Generator) -> Piece:
    """A table with a screen."""
    parts, (width, deep) = table(rng)
    top = max(float(part.centre[1] + part.half[1]) for part in parts[:1])
    dark = random_material(rng, ("plain",))
    parts.append(body("box", (0, top + 0.08, 0.1), (0.5, 0.32, 0.04), dark))
    parts.append(body("box", (0, top, 0.1), (0.12, 0.08, 0.1), dark))
    return parts, (width, deep)


def lamp(rng: np.random.Generator) -> Piece:
    """A standing lamp."""
    height, pole = rng.uniform(1.3, 1.7), random_material(rng, ("plain",))
    parts = [
        body("cylinder", (0, 0, 0), (0.3, 0.03, 0.3), pole),
        body("cylinder", (0, 0, 0), (0.04, height, 0.04), pole),
    ]
    parts.append(body("cylinder", (0, height - 0.3, 0), (0.4, 0.3, 0.4), random_material(rng)))
    return parts, (0.4, 0.4)


def plant(rng: np.random.Generator) -> Piece:
    """A pot and a round crown."""
    size = rng.uniform(0.3, 0.45)
    parts = [body("cylinder", (0, 0, 0), (size, size, size), random_material(rng))]
    parts.append(body("ball", (0, size + 0.05, 0), (2 * size, 2 * size, 2 * size), random_material(rng, ("mottled",))))
    return parts, (1.6 * size, 1.6 * size)


def stool(rng: np.random.Generator) -> Piece:
    """A cylinder to sit on."""
    size, height = rng.uniform(0.3, 0.5), rng.uniform(0.4, 0.6)
    return [body("cylinder", (0, 0, 0), (size, height, size), random_material(rng))], (size, size)


def big_ball(rng: np.random.Generator) -> Piece:
    """A ball."""
    size = rng.uniform(0.35, 0.75)
    return [body("ball", (0, 0, 0), (size, size, size), random_material(rng))], (size, size)


def crates(rng: np.random.Generator) -> Piece:
    """A crate, often with a smaller one on it."""
    size = rng.uniform(0.4, 0.6)
    parts = [body("box", (0, 0, 0), (size, size, size), random_material(rng))]
    if rng.random() < 0.6:
        parts.append(body("box", (0.03, size, 0.02), (0.7 * size, 0.6 * size, 0.7 * size), random_material(rng)))
    return parts, (size, size)


PIECES: dict[str, tuple[Callable[[np.random.Generator], Piece], bool]] = {  # builder, stands against a wall
    "cabinet": (cabinet, True),
    "shelf": (shelf, True),
    "sofa": (sofa, True),
    "bed": (bed, True),
    "counter": (counter, True),
    "desk": (desk, True),
    "table": (table, False),
    "chair": (chair, False),
    "lamp": (lamp, False),
    "plant": (plant, False),
    "stool": (stool, False),
    "ball": (big_ball, False),
    "crates": (crates, False),
}
SCENES: dict[str, tuple[str, ...]] = {  # NYU's scene names, and the furniture that is tried in this order
    "bedroom": ("bed", "cabinet", "lamp", "stool", "plant", "ball", "crates"),
    "living_room": ("sofa", "shelf", "table", "plant", "lamp", "ball", "stool"),
    "kitchen": ("counter", "counter", "table", "chair", "chair", "stool", "crates"),
    "bathroom": ("counter", "cabinet", "stool", "crates", "plant", "ball"),
    "dining_room": ("table", "cabinet", "chair", "chair", "chair", "plant", "lamp"),
    "office": ("desk", "shelf", "chair", "cabinet", "crates", "plant", "stool"),
    "classroom": ("desk", "table", "chair", "table", "chair", "shelf", "chair"),
    "playroom": ("shelf", "ball", "ball", "crates", "table", "stool", "ball"),
}


def wall_hangings(rng: np.random.Generator, low: np.ndarray, high: np.ndarray) -> list[Solid]:
    """Up to three pictures or doors, thin boxes on the far wall and the side walls."""
    solids = []
    for wall in ("far", "left", "right"):
        if rng.random() < 0.3:
            continue
        is_door = rng.random() < 0.35
        width, height = (0.85, 2.0) if is_door else tuple(rng.uniform(0.4, 0.9, size=2))
        bottom = 0.0 if is_door else rng.uniform(1.1, 1.4)
        part = body("box", (0, bottom, 0), (width, height, 0.05), random_material(rng))
        if wall == "far":
            yaw, spot = 0.0, (rng.uniform(low[0] + 0.5, high[0] - 0.5), 0, high[2])
        else:
            yaw, spot = np.pi / 2, (low[0] if wall == "left" else high[0], 0, rng.uniform(low[2] + 1, high[2] - 0.5))
        solids.append(Solid("box", part.centre + spot, part.half, yaw, part.material))
    return solids


def furnished_room(scene: str, rng: np.random.Generator) -> Room:
    """A room of a scene type, with furniture, camera and light drawn at random.

    Raises:
        ValueError: the scene is not one of SCENES.
    """
    if scene not in SCENES:
        raise ValueError(f"unknown scene {scene!r}, choose one of {', '.join(SCENES)}")
    width, height, length = rng.uniform(2.6, 4.2), rng.uniform(2.3, 2.7), rng.uniform(2.6, 4.0)
    low, high = np.array([-width / 2, 0, 0]), np.array([width / 2, height, length])
    eye = np.array([rng.uniform(-0.2, 0.2) * width, rng.uniform(1.0, 1.55), rng.uniform(0.15, 0.4)])
    furnisher = Furnisher(rng, low, high, eye)
    for piece in SCENES[scene]:
        furnisher.place(piece)
    return Room(
        low=low,
        high=high,
        floor=random_material(rng, ("planks", "tiles", "checks", "mottled")),
        ceiling=random_material(rng, ("plain", "mottled", "tiles")),
        wall=random_material(rng, ("plain", "mottled", "stripes", "tiles", "bricks", "dots")),
        solids=(*furnisher.solids, *wall_hangings(rng, low, high)),
        eye=eye,
        yaw=rng.uniform(-0.5, 0.5),
        pitch=rng.uniform(-0.45, -0.1),
        lamp=np.array([rng.uniform(-0.3, 0.3) * width, height - 0.15, rng.uniform(0.35, 0.75) * length]),
        lights=(rng.uniform(0.18, 0.26), rng.uniform(0.35, 0.55), rng.uniform(0.75, 0.95)),
    )


def render_scene(seed: int, number: int) -> tuple[str, np.ndarray, np.ndarray]:
    """The `number`-th picture of a seed: scene name, image (480, 640, 3) uint8, depth (480, 640) float32 [m].

    Each picture has a generator of its own, so it does not depend on how many others are rendered, or in which order.
    """
    scene = tuple(SCENES)[number % len(SCENES)]
    rng = np.random.default_rng((seed, number))
    return scene, *render(furnished_room(scene, rng), rng)


# ------------------------------------------------------------------------------------------------------ official layout


def split_index(number: int) -> int:
    """The file index of the `number`-th picture: NYU's test indices first, then counting on after NYU's last image."""
    beyond = number - len(TEST_INDICES)
    return TEST_INDICES[number] if beyond < 0 else NYU_IMAGES + beyond


def write_pair(folder: Path, index: int, image: np.ndarray, depth: np.ndarray) -> None:
    """Writes `rgb_{index:05d}.jpg` and `sync_depth_{index:05d}.png` (16 bit, millimetres, 0 = hole) into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(folder / f"rgb_{index:05d}.jpg", quality=95, subsampling="4:2:0")
    millimetres = (depth * 1000).astype(np.uint16)
    Image.fromarray(millimetres).save(folder / f"sync_depth_{index:05d}.png", optimize=True)


def write_split(output: Path, count: int, seed: int) -> None:
    """Renders `count` pictures into `output/official_splits/test/<scene>/`, the layout of NYU's official test split."""
    for number in range(count):
        scene, image, depth = render_scene(seed, number)
        write_pair(output / "official_splits" / "test" / scene, split_index(number), image, depth)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m demo.rooms",
        description="Render furnished rooms with exact depth in the layout of NYU Depth V2's official test split.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--output", type=Path, required=True, help="folder that gets official_splits/test/<scene>/")
    parser.add_argument("--count", type=int, default=64, help="how many pictures")
    parser.add_argument("--seed", type=int, default=1, help="source of all randomness, 0 or more")
    return parser


def main(argv: list[str] | None = None) -> int:
    """Renders and writes."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.count < 1 or args.seed < 0:
        parser.error("--count must be at least 1 and --seed at least 0")
    try:
        write_split(args.output, args.count, args.seed)
    except OSError as error:
        print(f"{args.output}: cannot write the pictures ({error.strerror}); choose another --output", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
