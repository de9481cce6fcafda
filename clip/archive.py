"""Reads the weights in a checkpoint file into CPU tensors, and runs nothing that is in the file.

Three kinds of file, told apart by their content and never by trying one reader after the other:

- OpenAI's TorchScript archives: a zip with `{name}/data.pkl`, one entry `{name}/data/{i}` for each storage, and code.
  torch.jit would run that code and does not notice a flipped bit. Here `data.pkl` goes through an unpickler that knows
  tensors and modules' attributes and nothing else; the code is not looked at, and nothing is unpacked to the disk.
- what torch.save writes from a state dict (a zip, or the bare pickle of old versions): `torch.load(weights_only=True)`.
- `.safetensors`: a length, a JSON header, and the raw tensors.

A zip's checksums are compared while its tensors are read, so damage to one is an error. The bare pickle and
`.safetensors` have no checksum: there, only the caller's check of names, shapes and values stands against damage.
Memory: one copy of the tensors and at most one storage more; a state dict in a zip is mapped from its file.
"""

import hashlib
import io
import json
import math
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

MIN_TORCH = "2.10"  # before, a file made for it gets past weights_only=True (CVE-2025-32434, CVE-2026-24747)
# OpenAI's archives hold these sizes beside the weights; `clip.model` infers them from the shapes.
SIZES = ("input_resolution", "context_length", "vocab_size")
STORAGES = {
    "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16,
    "FloatStorage": torch.float32,
    "DoubleStorage": torch.float64,
    "IntStorage": torch.int32,
    "LongStorage": torch.int64,
}
SAFETENSORS_DTYPES = {
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "I32": torch.int32,
    "I64": torch.int64,
}
# The instructions that torch's own writer uses. Left out is every other way to name, make or call something.
OPCODES = frozenset(
    {"PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
    | {"BINUNICODE", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS"}
    | {"EMPTY_DICT", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"}
    | {"GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID"}
)
MAX_HEADER = 16 * 2**20  # bytes of data.pkl or of a JSON header; RN50's are about 50 KB
MAX_TUPLES = (
    30_000  # tuples and calls in data.pkl, six for a tensor; the hash of 200,000 in each other overruns the stack
)
MAX_ENTRIES = 10_000  # tensors and modules in one file; the largest CLIP has about 2,000


def check_torch(version: str) -> None:
    """Raises ImportError if this version of torch is too old to read files from strangers."""
    if TorchVersion(version) < MIN_TORCH:
        raise ImportError(
            f"torch {version} is too old: before {MIN_TORCH} a checkpoint can run code while it is read "
            f"(CVE-2025-32434, CVE-2026-24747); install torch>={MIN_TORCH}"
        )


check_torch(torch.__version__)


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used.

    Attributes:
        path: the file in question.
        reason: what is wrong with it and, where something helps, what to do.
        sha256: of the bytes that were found there, or None.
    """

    def __init__(self, path: str | Path, reason: str, sha256: str | None = None) -> None:
        self.path, self.reason, self.sha256 = Path(path), reason, sha256
        found = f" (the file there has sha256 {sha256})" if sha256 else ""
        super().__init__(f"cannot use the checkpoint {path}: {reason}{found}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.path, self.reason, self.sha256)


class _FormatError(Exception):
    """What is wrong with a file, as the reason of a CheckpointError."""


def file_sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file, read in pieces (0.16 s for RN50's 256 MB)."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file on the CPU, by OpenAI's names, in the dtypes of the file.

    The three sizes of OpenAI's archives are dropped. A state dict may lie under the key `state_dict` and its names may
    all begin with `module.`, as training scripts write them. Whether it is a CLIP, and which, is for the caller.

    Raises:
        CheckpointError: the file is missing, damaged, of another format, or asks for anything but tensors.
    """
    path = Path(path)
    if path.is_dir():
        raise CheckpointError(path, "it is a directory; name the file in it")
    if not path.exists():
        raise CheckpointError(path, "there is no such file")
    try:
        state_dict = _as_state_dict(_read(path))
    except _FormatError as error:
        raise CheckpointError(path, str(error), file_sha256(path)) from error
    except OSError as error:
        raise CheckpointError(path, f"it cannot be read: {error.strerror or error}") from error
    # Bytes that were damaged or made to harm can raise nearly anything in a reader of zips or pickles.
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(path, f"it is damaged or was not written by torch ({what})", file_sha256(path)) from error
    return {name: tensor for name, tensor in state_dict.items() if name not in SIZES}


def _read(path: Path) -> object:
    """What a file holds; its first bytes decide the reader."""
    with path.open("rb") as file:
        start = file.read(1024)
    if not start:
        raise _FormatError("it is empty; fetch it again")
    if start.startswith(b"PK\x03\x04"):
        try:
            with zipfile.ZipFile(path) as archive:
                return _read_zip(path, archive)
        except zipfile.BadZipFile as error:
            raise _FormatError(f"it is truncated or damaged ({error}); fetch it again") from error
    if start.startswith(b"\x80"):
        return _load_weights(path, mmap=False)
    if start[8:9] == b"{":
        return _read_safetensors(path)
    if start.lstrip()[:1] == b"<":
        raise _FormatError("it is a web page, not weights; fetch the file itself")
    if start.startswith(b"version https://git-lfs"):
        raise _FormatError("it is a git-lfs pointer, not the weights; run `git lfs pull` where it came from")
    raise _FormatError("it is no TorchScript archive, state dict or .safetensors file")


def _as_state_dict(loaded: object) -> dict[str, Tensor]:
    """`loaded` as a flat mapping from names to CPU tensors, without the wrappings of training scripts."""
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not loaded:
        raise _FormatError(f"it holds a {type(loaded).__name__}, not a state dict")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, Tensor):
            raise _FormatError(f"it holds a {type(value).__name__} under {name!r}, so it is not a state dict")
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise _FormatError(f"{name} is not a plain tensor")
    if all(name.startswith("module.") for name in loaded):
        return {name.removeprefix("module."): value for name, value in loaded.items()}
    return dict(loaded)


def _load_weights(path: Path, mmap: bool) -> object:
    """`torch.load` with `weights_only=True`, and no second try without it."""
    try:
        if path.suffix == ".safetensors":  # torch.load would believe the name
            with path.open("rb") as file:
                return torch.load(file, map_location="cpu", weights_only=True)
        return torch.load(str(path), map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"GLOBAL (\S+)", str(error))
        if unsafe:
            raise _FormatError(f"it asks to run {unsafe[1]}, which no state dict needs; nothing was run") from error
        raise _FormatError("it is a damaged pickle, or one that holds more than tensors; nothing was run") from error


# --- zip files: TorchScript archives and state dicts


def _read_zip(path: Path, archive: zipfile.ZipFile) -> object:
    """What a zip holds: tensors by name (TorchScript), or whatever was saved."""
    names = archive.namelist()
    if len(set(names)) != len(names):
        raise _FormatError("its zip holds two entries of one name")
    for name in names:
        if re.match(r"/|[A-Za-z]:", name) or "\\" in name or ".." in name.split("/"):
            raise _FormatError(f"its zip holds an entry that points out of it, {name!r}")
    # Only code is compressed in these files. More than that is a bomb, or entries that lie on top of each other.
    if sum(info.file_size for info in archive.infolist()) > 2 * path.stat().st_size + MAX_HEADER:
        raise _FormatError("its zip unpacks to far more than its own size")
    roots = [name.removesuffix("/data.pkl") for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(roots) != 1:
        raise _FormatError("it is a zip without a data.pkl, so not written by torch")
    root = roots[0]
    if f"{root}/byteorder" in names and archive.read(f"{root}/byteorder") != b"little":
        raise _FormatError("its numbers are big-endian; save it on a little-endian machine")
    if f"{root}/constants.pkl" in names or any(name.startswith(f"{root}/code/") for name in names):
        return _read_torchscript(archive, root)
    if damaged := archive.testzip():
        raise _FormatError(f"its entry {damaged} is damaged (bad CRC-32); fetch it again")
    return _load_weights(path, mmap=True)


class _Module:
    """Stands for any class of the archive's code; its attributes are those that were saved."""


class _Storage(NamedTuple):
    key: str
    dtype: torch.dtype


class _TensorInfo(NamedTuple):
    """A tensor as the pickle describes it; offset and stride count elements. Nothing in it is checked yet."""

    storage: object
    offset: Any
    size: Any
    stride: Any


class _ModuleUnpickler(pickle.Unpickler):
    """Unpickles a tree of `_Module` and `_TensorInfo`; any other class or function is refused.

    What `find_class` hands out cannot be changed by the pickle for a later file: bound methods, types of C, and a new
    placeholder class each time.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return type("Module", (_Module,), {})
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._rebuild_tensor
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return self._rebuild_parameter
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" or (module, name) == ("torch", "device"):
            return self._not_a_weight
        raise _FormatError(f"it asks to run {module}.{name}, which no weights need; nothing was run")

    def persistent_load(self, pid: Any) -> _Storage:
        kind, dtype, key, _device, _count = pid
        if kind != "storage" or not isinstance(dtype, torch.dtype) or not isinstance(key, str):
            raise _FormatError("its pickle refers to something that is no storage")
        return _Storage(key, dtype)

    def _rebuild_tensor(self, storage: object, offset: object, size: object, stride: object, *_: object) -> _TensorInfo:
        return _TensorInfo(storage, offset, size, stride)

    def _rebuild_parameter(self, data: object, *_: object) -> object:
        return data

    def _not_a_weight(self, *_: object) -> None:
        """Lists of numbers and devices among the attributes of modules."""


def _read_torchscript(archive: zipfile.ZipFile, root: str) -> dict[str, Tensor]:
    """All tensors among the attributes of the archive's modules.

    These are the parameters and buffers, which torch.jit calls the state dict, and, if a module has any, tensors that
    are neither; the caller finds those to be unexpected.
    """
    if archive.getinfo(f"{root}/data.pkl").file_size > MAX_HEADER:
        raise _FormatError("its data.pkl is far larger than that of any CLIP")
    data = archive.read(f"{root}/data.pkl")
    tuples = 0
    for opcode, argument, _ in pickletools.genops(data):
        if opcode.name not in OPCODES or (opcode.name == "LONG_BINPUT" and (argument or 0) > len(data)):
            raise _FormatError(f"its data.pkl holds the instruction {opcode.name}, which torch does not write")
        tuples += opcode.name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE")
    if tuples > MAX_TUPLES:
        raise _FormatError("its data.pkl holds far more tuples than that of any CLIP")
    top = _ModuleUnpickler(io.BytesIO(data)).load()
    if not isinstance(top, _Module):
        raise _FormatError("its data.pkl does not hold a module")

    found: dict[str, _TensorInfo] = {}
    pending: list[tuple[str, _Module]] = [("", top)]
    for prefix, module in pending:
        for name, value in vars(module).items():
            if isinstance(value, _Module):
                pending.append((f"{prefix}{name}.", value))
            elif isinstance(value, _TensorInfo) and found.setdefault(f"{prefix}{name}", value) is not value:
                raise _FormatError(f"it has two tensors of the name {prefix}{name}")
        if len(pending) + len(found) > MAX_ENTRIES or len(prefix) > 1000:
            raise _FormatError("its modules hold each other, or far more of them than any CLIP")
    storages: dict[_Storage, Tensor] = {}
    return {name: _build_tensor(archive, root, name, info, storages) for name, info in found.items()}


def _build_tensor(
    archive: zipfile.ZipFile, root: str, name: str, info: _TensorInfo, storages: dict[_Storage, Tensor]
) -> Tensor:
    """The tensor that `info` describes; `storages` (flat tensors) is filled on the way, and keeps tied tensors tied."""
    storage, offset, size, stride = info
    numbers = (offset, *size, *stride)
    if not isinstance(storage, _Storage) or any(type(n) is not int or n < 0 for n in numbers) or len(size) > 8:
        raise _FormatError(f"the description of {name} makes no sense")
    if storage not in storages:
        entry = archive.getinfo(f"{root}/data/{storage.key}")
        with archive.open(entry) as file:  # raises BadZipFile where the checksum does not agree
            content = _read_bytes(file, entry.file_size)  # type: ignore[arg-type]
        whole = len(content) // storage.dtype.itemsize * storage.dtype.itemsize
        storages[storage] = content[:whole].view(storage.dtype)
    flat = storages[storage]
    end = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
    if math.prod(size) > len(flat) or (math.prod(size) and end > len(flat)):
        raise _FormatError(f"{name} reaches beyond its storage")
    return flat.as_strided(size, stride, offset)


# --- safetensors


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Tensors of a `.safetensors` file, each in memory of its own; the header must account for every byte."""
    size = path.stat().st_size
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if length > min(size - 8, MAX_HEADER):
            raise _FormatError("it is no .safetensors file, or a truncated one: its header is longer than it may be")
        try:
            header = json.loads(file.read(length), object_pairs_hook=_unique)
            header.pop("__metadata__", None)
            entries = sorted((*entry["data_offsets"], name, entry) for name, entry in header.items())
            layout = [(begin, end, name, SAFETENSORS_DTYPES[e["dtype"]], e["shape"]) for begin, end, name, e in entries]
        except (KeyError, TypeError, AttributeError, ValueError, RecursionError) as error:
            raise _FormatError(f"its .safetensors header makes no sense ({type(error).__name__}: {error})") from error
        position = 0
        for begin, end, name, dtype, shape in layout:
            if any(type(n) is not int or n < 0 for n in (begin, end, *shape)):
                raise _FormatError(f"its .safetensors header gives {name} sizes that are no counts")
            if begin != position or end - begin != math.prod(shape) * dtype.itemsize:
                raise _FormatError(f"its .safetensors header gives {name} the wrong place or length")
            position = end
        if position != size - 8 - length:
            raise _FormatError(f"it has {size - 8 - length} bytes of tensors where its header says {position}")
        return {
            name: _read_bytes(file, end - begin).view(dtype).view(shape) for begin, end, name, dtype, shape in layout
        }


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object as a dict; two values under one name are refused."""
    result = dict(pairs)
    if len(result) != len(pairs):
        raise ValueError("a name occurs twice")
    return result


def _read_bytes(file: io.BufferedIOBase, count: int) -> Tensor:
    """The next `count` bytes of a file, (count,) uint8."""
    content = torch.empty(count, dtype=torch.uint8, device="cpu")
    if file.readinto(content.numpy().data) != count:
        raise _FormatError("it ends early; fetch it again")
    return content
