"""The reader of nyu_depth_v2_labeled.mat, MATLAB's v7.3 format, which is HDF5.

    images (1449, 3, 640, 480) uint8        rawDepths (1449, 640, 480) float32 [m], 0 = hole
    sceneTypes (1, 1449) object references  depths    (1449, 640, 480) float32 [m], holes filled in
    scenes     (1, 1449) object references: the capture, one walk of the Kinect, that each image is taken from

All arrays stand transposed against (H, W). `LabelledMat` follows the field's extraction: RGB is black outside of rows
7:474 and columns 7:632 and goes through a JPEG; depth stays whole, in millimetres.
"""

import io
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import h5py
import numpy as np
from PIL import Image

from datasets import DataError, check_regular

FRAME = (480, 640)  # (H, W) of every RGB and depth image
UNITS_PER_METRE = 1000  # of depth maps in 16 bits
MAT_NAME = "nyu_depth_v2_labeled.mat"
NUM_IMAGES = 1449
BORDER_FREE = (slice(7, 474), slice(7, 632))  # rows, columns of the RGB image outside of which it is made black
JPEG_QUALITY = 95  # with 4:2:0, Pillow's pixels equal OpenCV's, which the field's folders were written with
LARGEST_DEPTH = np.float32(65.535)  # [m] that 16 bits of millimetres hold; more would wrap round
CHUNK_CACHE = 32 * 2**20  # [bytes] for each array, so that neighbouring images that share chunks unpack them once
CHUNK_SLOTS = 100_003  # hash slots of that cache: a prime well above the number of chunks it holds
LAYOUT = {"images": "(1449, 3, 640, 480) uint8"}
LAYOUT |= dict.fromkeys(("rawDepths", "depths"), "(1449, 640, 480) float32")


class LabelledMat(AbstractContextManager):
    """The open file, for one process. Raises DataError, as what it reads: missing, damaged or laid out otherwise."""

    def __init__(self, path: Path) -> None:
        self.path = path
        with self._damage("its HDF5"):
            check_regular(path)
            # Without file locking: nobody writes here, and network file systems often lack it.
            self.file = h5py.File(path, "r", locking=False, rdcc_nbytes=CHUNK_CACHE, rdcc_nslots=CHUNK_SLOTS)
        self.arrays: dict[str, h5py.Dataset] = {}  # open, as each has a cache of its own
        for name, expected in LAYOUT.items():
            with self._damage(name):
                array = self.arrays[name] = self.file[name]
                if f"{array.shape} {array.dtype}" != expected:
                    raise ValueError(f"{array.shape} {array.dtype}, expected {expected}")

    def __exit__(self, *_: object) -> None:
        self.file.close()

    @contextmanager
    def _damage(self, what: str) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # h5py raises whatever the damage leads it to
            raise DataError(f"{self.path}: {what} cannot be used ({error}); bring {MAT_NAME} again") from error

    def names(self, array: str) -> list[str]:
        """The names of the 1449 images in an array of references: `sceneTypes` (bedroom), `scenes` (bedroom_0034)."""
        with self._damage(array):
            characters = [self.file[reference][()] for reference in self.file[array][()].ravel()]
            names = ["".join(map(chr, codes.ravel().tolist())) for codes in characters]  # uint16, one column
            wrong = [name for name in names if not re.fullmatch(r"[A-Za-z0-9_]+", name)]
            if len(names) != NUM_IMAGES or wrong:
                raise ValueError(f"{len(names)} names, {wrong[:3]} among them; expected {NUM_IMAGES} like living_room")
        return names

    def jpeg(self, index: int) -> bytes:
        """The RGB image, black outside `BORDER_FREE`, as the bytes of its JPEG file."""
        with self._damage(f"images of image {index}"):
            rgb = self.arrays["images"][index].transpose(2, 1, 0)  # (480, 640, 3)
        framed = np.zeros_like(rgb, order="C")
        framed[BORDER_FREE] = rgb[BORDER_FREE]
        Image.fromarray(framed).save(file := io.BytesIO(), "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
        return file.getvalue()

    def png(self, index: int, name: str = "rawDepths", compress_level: int = 6) -> bytes:
        """The depth map of `rawDepths` or `depths` as the bytes of its PNG file, 16 bits [mm], fractions cut off."""
        with self._damage(f"{name} of image {index}"):
            metres = self.arrays[name][index].T  # (480, 640)
            low, high = metres.min(), metres.max()
            if not (low >= 0 and high <= LARGEST_DEPTH):  # NaN fails both
                raise ValueError(f"it spans {low:g} to {high:g} m, expected 0 to {LARGEST_DEPTH:g} m")
        millimetres = np.ascontiguousarray(metres * np.float32(UNITS_PER_METRE)).astype(np.uint16)
        Image.fromarray(millimetres).save(file := io.BytesIO(), "PNG", compress_level=compress_level)
        return file.getvalue()

    def read(self, path: Path) -> bytes:
        """The bytes of rgb_00045.jpg or sync_depth_00045.png, in whatever folder."""
        index = int(path.stem[-5:])
        return self.jpeg(index) if path.suffix == ".jpg" else self.png(index, compress_level=0)
