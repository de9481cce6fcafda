"""Reads the weights in a checkpoint file into CPU tensors, and runs nothing that is in the file.

Three kinds of file, told apart by their content and never by trying one reader after the other:

- OpenAI's TorchScript archives: a zip with `{name}/data.pkl`, one entry `{name}/data/{i}` for each storage, and code.
  torch.jit would run that code and does not notice a flipped bit. Here `data.pkl` goes through an unpickler that knows
  tensors and modules' attributes and nothing else; the code is not looked at, and nothing is unpacked to the disk.
- what torch.save writes from a state dict, a zip or the bare pickles of old versions: `torch.load(weights_only=True)`,
  after a look at the pickle, because one that is nested deeply enough would end the process.
- `.safetensors`: the package of that name.

A zip's checksums are compared, so damage to one is an error. Bare pickles and `.safetensors` have no checksum: there,
only the caller's check of names, shapes and values stands against damage.
"""

import io
import math
import pickle
import pickletools
import re
import stat
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import IO, Any, NamedTuple

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from download import file_sha256

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
# The instructions that torch's own writer uses. Left out is every other way to name, make or call something.
OPCODES = frozenset(
    {"PROTO", "STOP", "MARK", "NONE", "NEWTRUE", "NEWFALSE", "BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"}
    | {"BINUNICODE", "EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "EMPTY_LIST", "APPEND", "APPENDS"}
    | {"EMPTY_DICT", "SETITEM", "SETITEMS", "BINPUT", "LONG_BINPUT", "BINGET", "LONG_BINGET"}
    | {"GLOBAL", "REDUCE", "NEWOBJ", "BUILD", "BINPERSID"}
)
MAX_PICKLE = 16 * 2**20  # [bytes]; RN50's is about 50 KB
# Tuples and calls in a pickle, six for a tensor. The hash of 200,000 tuples in each other overruns the stack.
MAX_TUPLES = 30_000
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


def require_file(path: Path) -> None:
    """Raises CheckpointError unless `path` is a regular file: a pipe or a device might be read for ever."""
    try:
        mode = path.stat().st_mode
    except (FileNotFoundError, NotADirectoryError) as error:
        raise CheckpointError(path, "there is no such file") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(path, f"it cannot be read ({getattr(error, 'strerror', error)})") from error
    if stat.S_ISDIR(mode):
        raise CheckpointError(path, "it is a directory; name the file in it")
    if not stat.S_ISREG(mode):
        raise CheckpointError(path, "it is not a regular file")


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file on the CPU, by OpenAI's names, in the dtypes of the file.

    The three sizes of OpenAI's archives are dropped. A state dict may lie under the key `state_dict` and its names may
    all begin with `module.`, as training scripts write them. Whether it is a CLIP, and which, is for the caller.

    Raises:
        CheckpointError: the file is missing, damaged, of another format, or asks for anything but tensors.
    """
    path = Path(path)
    require_file(path)
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
        with path.open("rb") as file:
            for _ in range(5):  # torch's magic number, its version, the machine, the state dict, the storages' names
                if file.peek(1):
                    _check_pickle(file)
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


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file  # optional: only the hub's copy of RN50 needs it
    except ImportError as error:
        raise _FormatError("it is a .safetensors file, which needs a package: pip install safetensors") from error
    return load_file(path)


def _check_pickle(file: IO[bytes]) -> None:
    """Reads one pickle, to its end, and runs nothing: only torch's own instructions, and not too many, may be in it."""
    start, tuples = file.tell(), 0
    for opcode, argument, _ in pickletools.genops(file):
        if opcode.name not in OPCODES or (opcode.name == "LONG_BINPUT" and (argument or 0) > MAX_PICKLE):
            raise _FormatError(f"its pickle holds the instruction {opcode.name}, which torch does not write")
        tuples += opcode.name in ("TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "REDUCE")
        if tuples > MAX_TUPLES or file.tell() - start > MAX_PICKLE:
            raise _FormatError("its pickle is far larger than that of any CLIP")


def _load_weights(path: Path, mmap: bool) -> object:
    """`torch.load(weights_only=True)`, and no second try without it; `mmap` maps a zip's tensors from the file."""
    try:
        with path.open("rb") as file:
            return torch.load(str(path) if mmap else file, map_location="cpu", weights_only=True, mmap=mmap)
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"GLOBAL (\S+)", str(error))
        if unsafe:
            raise _FormatError(f"it asks to run {unsafe[1]}, which no state dict needs; nothing was run") from error
        raise _FormatError("it is a damaged pickle, or one that holds more than tensors; nothing was run") from error


def _read_zip(path: Path, archive: zipfile.ZipFile) -> object:
    """What a zip holds: tensors by name (TorchScript), or whatever was saved."""
    names = archive.namelist()
    if len(set(names)) != len(names):
        raise _FormatError("its zip holds two entries of one name")
    # Only code is compressed in these files. More than that is a bomb, or entries that lie on top of each other.
    if sum(info.file_size for info in archive.infolist()) > 2 * path.stat().st_size + MAX_PICKLE:
        raise _FormatError("its zip unpacks to far more than its own size")
    roots = [name.removesuffix("/data.pkl") for name in names if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(roots) != 1:
        raise _FormatError("it is a zip without a data.pkl, so not written by torch")
    root = roots[0]
    if f"{root}/byteorder" in names and archive.read(f"{root}/byteorder") != b"little":
        raise _FormatError("its numbers are big-endian; save it on a little-endian machine")
    if archive.getinfo(f"{root}/data.pkl").file_size > MAX_PICKLE:
        raise _FormatError("its pickle is far larger than that of any CLIP")
    data = archive.read(f"{root}/data.pkl")
    _check_pickle(io.BytesIO(data))
    if f"{root}/constants.pkl" in names or any(name.startswith(f"{root}/code/") for name in names):
        return _read_torchscript(archive, root, data)
    if damaged := archive.testzip():
        raise _FormatError(f"its entry {damaged} is damaged (bad CRC-32); fetch it again")
    return _load_weights(path, mmap=path.suffix != ".safetensors")  # torch would believe that suffix


class _Module:
    """Stands for any class of the archive's code; its attributes are those that were saved."""


class _TensorInfo(NamedTuple):
    """A tensor as the pickle describes it; offset and stride count elements. Nothing in it is checked yet."""

    storage: Any  # its name in the zip and its dtype
    offset: Any
    size: Any
    stride: Any


class _ModuleUnpickler(pickle.Unpickler):
    """Unpickles a tree of `_Module` and `_TensorInfo`; any other class or function is refused.

    What `find_class` hands out is new each time or a type of C, so a pickle cannot change it for a later file.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return type("Module", (_Module,), {})
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *arguments: _TensorInfo(*arguments[:4])
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" or (module, name) == ("torch", "device"):
            return lambda *_: None  # lists of numbers and devices among the attributes of modules
        raise _FormatError(f"it asks to run {module}.{name}, which no weights need; nothing was run")

    def persistent_load(self, pid: Any) -> tuple[str, torch.dtype]:
        _kind, dtype, key, _device, _count = pid
        return key, dtype


def _read_torchscript(archive: zipfile.ZipFile, root: str, data: bytes) -> dict[str, Tensor]:
    """All tensors among the attributes of the modules in data.pkl, whose bytes are `data`.

    These are the parameters and buffers, which torch.jit calls the state dict, and, if a module has any, tensors that
    are neither; the caller finds those to be unexpected.
    """
    top = _ModuleUnpickler(io.BytesIO(data)).load()
    if not isinstance(top, _Module):
        raise _FormatError("its data.pkl does not hold a module")
    storages: dict[tuple[str, torch.dtype], Tensor] = {}  # flat; kept, so that tied tensors stay tied

    def build(name: str, info: _TensorInfo) -> Tensor:
        (key, dtype), offset, size, stride = info
        if any(type(number) is not int or number < 0 for number in (offset, *size, *stride)) or len(size) > 8:
            raise _FormatError(f"the description of {name} makes no sense")
        if (key, dtype) not in storages:  # BadZipFile where the checksum does not agree
            content = bytearray(archive.read(f"{root}/data/{key}"))  # torch wants memory that may be written to
            storages[key, dtype] = torch.frombuffer(content, dtype=dtype, count=len(content) // dtype.itemsize)
        flat = storages[key, dtype]
        end = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True)) + 1
        if max(math.prod(size), end) > len(flat):
            raise _FormatError(f"{name} reaches beyond its storage")
        return flat.as_strided(size, stride, offset)

    found: dict[str, Tensor] = {}
    pending: list[tuple[str, _Module]] = [("", top)]
    for prefix, module in pending:
        for name, value in vars(module).items():
            if isinstance(value, _Module):
                pending.append((f"{prefix}{name}.", value))
            elif isinstance(value, _TensorInfo):
                if f"{prefix}{name}" in found:
                    raise _FormatError(f"it has two tensors of the name {prefix}{name}")
                found[f"{prefix}{name}"] = build(f"{prefix}{name}", value)
        if len(pending) + len(found) > MAX_ENTRIES or len(prefix) > 1000:
            raise _FormatError("its modules hold each other, or far more of them than any CLIP")
    return found
