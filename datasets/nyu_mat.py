"""The reader of nyu_depth_v2_labeled.mat, MATLAB's v7.3 format, which is HDF5.

    images (1449, 3, 640, 480) uint8        rawDepths (1449, 640, 480) float32 [m], 0 = hole
    sceneTypes (1, 1449) object references  depths    (1449, 640, 480) float32 [m], holes filled in

All arrays stand transposed against (H, W). `LabelledMat` reads one image at a time and follows the field's extraction:
RGB is black outside rows 7:474, columns 7:632 and goes through a JPEG; depth stays whole, in millimetres.
"""

import io
import re
from pathlib import Path
from types import TracebackType

import h5py
import numpy as np
from PIL import Image

from datasets import DataError

FRAME = (480, 640)  # (H, W) of every RGB and depth image
DEPTH_UNITS_PER_METRE = 1000  # the PNGs hold millimetres
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
UNREADABLE = (OSError, RuntimeError, KeyError, ValueError)  # what h5py raises on damaged files


class LabelledMat:
    """The open file. Use it in a `with` statement, in one process only.

    Args:
        path: the .mat.

    Raises:
        DataError: it is missing, truncated, no HDF5 file or laid out otherwise.
    """

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
        try:
            self.arrays = {name: self._array(name) for name in LAYOUT}
        except DataError:
            self.file.close()
            raise

    def __enter__(self) -> "LabelledMat":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file."""
        self.file.close()

    def _array(self, name: str) -> h5py.Dataset:
        array = self._member(name)
        shape, dtype = LAYOUT[name]
        if array.shape != shape or array.dtype != dtype:
            raise DataError(
                f"{self.path}: {name} is {array.shape} {array.dtype}, expected {shape} {dtype}; bring {MAT_NAME} again"
            )
        return array

    def _member(self, name: str) -> h5py.Dataset:
        try:
            member = self.file.get(name)
        except UNREADABLE as error:
            raise DataError(f"{self.path}: {name} cannot be read ({error}); bring {MAT_NAME} again") from error
        if not isinstance(member, h5py.Dataset):
            raise DataError(f"{self.path}: holds no array {name}, so it is not {MAT_NAME}; bring that file")
        return member

    def scenes(self) -> list[str]:
        """The scene of each of the 1449 images: bedroom, kitchen, ...

        Raises:
            DataError: sceneTypes is laid out otherwise or holds something that is not a name.
        """
        references = self._member("sceneTypes")
        if h5py.check_ref_dtype(references.dtype) is not h5py.Reference or references.size != NUM_IMAGES:
            raise DataError(
                f"{self.path}: sceneTypes is {references.shape} {references.dtype}, expected {NUM_IMAGES} object "
                f"references; bring {MAT_NAME} again"
            )
        return [self._scene(reference, index) for index, reference in enumerate(references[()].ravel())]

    def _scene(self, reference: h5py.Reference, index: int) -> str:
        try:
            characters = np.asarray(self.file[reference][()])  # uint16, one column
            scene = "".join(chr(code) for code in characters.ravel().tolist())
        except (*UNREADABLE, TypeError, OverflowError) as error:
            raise DataError(f"{self.path}: scene type of image {index} cannot be read ({error})") from error
        if not re.fullmatch(r"[A-Za-z0-9_]+", scene):
            raise DataError(f"{self.path}: scene type of image {index} is {scene!r}, expected a name like living_room")
        return scene

    def _read(self, name: str, index: int) -> np.ndarray:
        try:
            return self.arrays[name][index]
        except UNREADABLE as error:
            raise DataError(
                f"{self.path}: {name} of image {index} is damaged ({error}); bring {MAT_NAME} again"
            ) from error

    def jpeg(self, index: int) -> bytes:
        """The RGB image, black outside `BORDER_FREE`, as the bytes of its JPEG file.

        Raises:
            DataError: it cannot be read.
        """
        rgb = self._read("images", index).transpose(2, 1, 0)  # (480, 640, 3)
        framed = np.zeros_like(rgb, order="C")
        framed[BORDER_FREE] = rgb[BORDER_FREE]
        buffer = io.BytesIO()
        Image.fromarray(framed).save(buffer, "JPEG", quality=JPEG_QUALITY, subsampling="4:2:0")
        return buffer.getvalue()

    def millimetres(self, index: int, name: str = "rawDepths") -> np.ndarray:
        """The depth map of `rawDepths` or `depths`, (480, 640) uint16 [mm], fractions cut off; 0 = no measurement.

        Raises:
            DataError: it cannot be read, or a depth is NaN, negative or beyond 16 bits.
        """
        metres = self._read(name, index).T  # (480, 640)
        low, high = metres.min(), metres.max()
        if not (low >= 0 and high <= LARGEST_DEPTH):  # NaN fails both
            raise DataError(
                f"{self.path}: {name} of image {index} spans {low:g} to {high:g} m, "
                f"expected 0 to {LARGEST_DEPTH:g} m; bring {MAT_NAME} again"
            )
        return np.ascontiguousarray(metres * np.float32(DEPTH_UNITS_PER_METRE)).astype(np.uint16)

    def png(self, index: int, name: str = "rawDepths") -> bytes:
        """`millimetres` as the bytes of its 16-bit PNG file."""
        buffer = io.BytesIO()
        Image.fromarray(self.millimetres(index, name)).save(buffer, "PNG")
        return buffer.getvalue()
