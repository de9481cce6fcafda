"""The reader of nyu_depth_v2_labeled.mat, MATLAB's v7.3 format, which is HDF5.

    images (1449, 3, 640, 480) uint8        rawDepths (1449, 640, 480) float32 [m], 0 = hole
    sceneTypes (1, 1449) object references  depths    (1449, 640, 480) float32 [m], holes filled in
    scenes     (1, 1449) object references: the capture, one walk of the Kinect, that each image is taken from

All arrays stand transposed against (H, W). `LabelledMat` reads one image at a time and follows the field's extraction:
RGB is black outside rows 7:474, columns 7:632 and goes through a JPEG; depth stays whole, in millimetres.
"""

import io
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from datasets import DataError

FRAME = (480, 640)  # (H, W) of every RGB and depth image
UNITS_PER_METRE = 1000  # of depth maps in 16 bits
MAT_NAME = "nyu_depth_v2_labeled.mat"
NUM_IMAGES = 1449
BORDER_FREE = (slice(7, 474), slice(7, 632))  # rows, columns of the RGB image outside of which it is made black
JPEG_QUALITY = 95  # with 4:2:0, Pillow's pixels equal OpenCV's, which the field's folders were written with
LARGEST_DEPTH = np.float32(65.535)  # [m] that 16 bits of millimetres hold; more would wrap round
CHUNK_CACHE = 32 * 2**20  # [bytes] for each array, so that neighbouring images that share chunks unpack them once
CHUNK_SLOTS = 100_003  # hash slots of that cache: a prime well above the number of chunks it holds

LAYOUT = {
    "images": ((NUM_IMAGES, 3, *FRAME[::-1]), "uint8"),
    "rawDepths": ((NUM_IMAGES, *FRAME[::-1]), "float32"),
    "depths": ((NUM_IMAGES, *FRAME[::-1]), "float32"),
}
# What h5py raises on damaged files, and what other kinds of object in them lead to.
UNREADABLE = (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError, OverflowError)


class LabelledMat:
    """The open file, for one process. Raises DataError: missing, truncated, no HDF5 file or laid out otherwise."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if path.exists() and not path.is_file():
            raise DataError(f"{path}: not a regular file; give the path of {MAT_NAME}")
        try:  # Without file locking: nobody writes here, and network file systems often lack it.
            self.file = h5py.File(path, "r", locking=False, rdcc_nbytes=CHUNK_CACHE, rdcc_nslots=CHUNK_SLOTS)
        except FileNotFoundError as error:
            raise DataError(f"{path}: no such file") from error
        except UNREADABLE as error:
            reason = "truncated" if "truncated" in str(error) else "not a readable MATLAB v7.3 (HDF5) file"
            raise DataError(f"{path}: {reason} ({error}); bring {MAT_NAME} again") from error
        self.arrays: dict[str, h5py.Dataset] = {}
        try:
            for name, (shape, dtype) in LAYOUT.items():
                with self._damage(name):
                    self.arrays[name] = self.file[name]
                    found = f"{self.arrays[name].shape} {self.arrays[name].dtype}"
                    if found != f"{shape} {dtype}":
                        raise ValueError(f"{found}, expected {shape} {dtype}")
        except DataError:
            self.file.close()  # else it stays open for as long as the error is looked at
            raise

    def __enter__(self) -> "LabelledMat":
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()

    @contextmanager
    def _damage(self, what: str) -> Iterator[None]:
        """Makes a DataError that names the file of whatever reading `what` raises."""
        try:
            yield
        except UNREADABLE as error:
            raise DataError(f"{self.path}: {what} cannot be used ({error}); bring {MAT_NAME} again") from error

    def names(self, array: str) -> list[str]:
        """The names of the 1449 images in an array of references: `sceneTypes` (bedroom), `scenes` (bedroom_0034).

        Raises DataError: it is laid out otherwise or holds something that is not a name.
        """
        with self._damage(array):
            characters = [self.file[reference][()] for reference in self.file[array][()].ravel()]
            names = ["".join(map(chr, codes.ravel().tolist())) for codes in characters]  # uint16, one column
            wrong = [name for name in names if not re.fullmatch(r"[A-Za-z0-9_]+", name)]
            if len(names) != NUM_IMAGES or wrong:
                raise ValueError(f"{len(names)} names, {wrong[:3]} among them; expected {NUM_IMAGES} like living_room")
        return names

    def jpeg(self, index: int) -> bytes:
        """The RGB image, black outside `BORDER_FREE`, as the bytes of its JPEG file.

        Raises DataError: it cannot be read.
        """
        with self._damage(f"images of image {index}"):
            rgb = self.arrays["images"][index].transpose(2, 1, 0)  # (480, 640, 3)
        framed = np.zeros_like(rgb, order="C")
        framed[BORDER_FREE] = rgb[BORDER_FREE]
        buffer = io.BytesIO()
        Image.fromarray(framed).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
        return buffer.getvalue()

    def millimetres(self, index: int, name: str = "rawDepths") -> np.ndarray:
        """The depth map of `rawDepths` or `depths`, (480, 640) uint16 [mm], fractions cut off; 0 = no measurement.

        Raises DataError: it cannot be read, or a depth is NaN, negative or beyond 16 bits.
        """
        with self._damage(f"{name} of image {index}"):
            metres = self.arrays[name][index].T  # (480, 640)
            low, high = metres.min(), metres.max()
            if not (low >= 0 and high <= LARGEST_DEPTH):  # NaN fails both
                raise ValueError(f"it spans {low:g} to {high:g} m, expected 0 to {LARGEST_DEPTH:g} m")
        return np.ascontiguousarray(metres * np.float32(UNITS_PER_METRE)).astype(np.uint16)

    def png(self, index: int, name: str = "rawDepths", compress_level: int = 6) -> bytes:
        """`millimetres` as the bytes of its 16-bit PNG file."""
        buffer = io.BytesIO()
        Image.fromarray(self.millimetres(index, name)).save(buffer, "PNG", compress_level=compress_level)
        return buffer.getvalue()

    def files(self, index: int) -> tuple[str, str]:
        """The names of an image's files in the field's layout, of RGB and depth, which `read` takes."""
        return f"rgb_{index:05d}.jpg", f"sync_depth_{index:05d}.png"

    def read(self, path: Path) -> bytes:
        """The bytes of one of `files`, in whatever folder. Raises DataError: it cannot be read."""
        index = int(path.stem[-5:])
        return self.jpeg(index) if path.suffix == ".jpg" else self.png(index, compress_level=0)
