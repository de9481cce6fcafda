"""Reads the weights in a checkpoint file into CPU tensors, and runs nothing that is in the file.

Its first bytes tell the kind of a file. Zips are OpenAI's TorchScript archives and what torch.save writes; both hold
`{name}/data.pkl` and, for each storage, an entry `{name}/data/{i}`. torch.jit would run the code in an archive and does
not notice a flipped bit: here `data.pkl` goes through an unpickler that knows tensors and modules' attributes and
nothing else, and checksums are compared. Bare pickles, of torch before 1.6, go through `torch.load(weights_only=True)`
and `.safetensors` through their package; they have no checksum, so the caller's check of names, shapes and values is
all that stands against damage.
"""

import io
import math
import pickle
import pickletools
import re
import stat
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from download import file_sha256

MIN_TORCH = "2.10"  # before, a file made for it gets past weights_only=True (CVE-2025-32434, CVE-2026-24747)
ZIP = b"PK\x03\x04"  # how such a file begins
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
# The largest CLIP has about 2,000 tensors and modules, each with four or five tuples in the pickle.
MAX_ENTRIES = 10_000
MAX_TUPLES = 50_000
MAX_MEMO = 1_000_000  # objects that a pickle refers back to


def check_torch(version: str) -> None:
    """Raises ImportError if this version of torch is too old to read files from strangers."""
    if TorchVersion(version) < MIN_TORCH:
        why = f"before {MIN_TORCH} a checkpoint can run code while it is read (CVE-2025-32434, CVE-2026-24747)"
        raise ImportError(f"torch {version} is too old: {why}; install torch>={MIN_TORCH}")


check_torch(torch.__version__)


class CheckpointError(RuntimeError):
    """The checkpoint `path` cannot be used: `reason` says why and what to do; `sha256` is of what was found, if any."""

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

    A state dict may lie under the key `state_dict` and its names may all begin with `module.`, as training scripts
    write them. The three sizes of OpenAI's archives are dropped.

    Raises CheckpointError: the file is missing, damaged, of another format, or asks for anything but tensors.
    """
    path = Path(path)
    require_file(path)
    try:
        state_dict = _read(path)
    except _FormatError as error:
        raise CheckpointError(path, str(error), file_sha256(path)) from error
    except OSError as error:
        raise CheckpointError(path, f"it cannot be read: {error.strerror or error}") from error
    # Bytes that were damaged or made to harm can raise nearly anything in a reader of zips or pickles.
    except Exception as error:
        what = " ".join(f"{type(error).__name__}: {error}".split())
        raise CheckpointError(path, f"it is damaged or was not written by torch ({what})", file_sha256(path)) from error
    return {name: tensor for name, tensor in state_dict.items() if name not in SIZES}


def is_torchscript(path: Path) -> bool:
    """Whether a file that `read_state_dict` takes is a TorchScript archive, as OpenAI ships: modules, not a dict."""
    with path.open("rb") as file:
        if file.read(4) != ZIP:
            return False
    with zipfile.ZipFile(path) as archive:
        return isinstance(_saved(archive)[1], _Module)


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors in a file, by name; its first bytes decide the reader."""
    with path.open("rb") as file:
        start = file.read(1024)
    if not start:
        raise _FormatError("it is empty; fetch it again")
    if start.startswith(ZIP):
        try:
            with zipfile.ZipFile(path) as archive:
                return _read_zip(archive, path.stat().st_size)
        except zipfile.BadZipFile as error:
            raise _FormatError(f"it is truncated or damaged ({error}); fetch it again") from error
    if start.startswith(b"\x80"):
        return _read_bare_pickle(path)
    if start[8:9] == b"{":
        return _read_safetensors(path)
    if start.lstrip()[:1] == b"<":
        raise _FormatError("it is a web page, not weights; fetch the file itself")
    if start.startswith(b"version https://git-lfs"):
        raise _FormatError("it is a git-lfs pointer, not the weights; run `git lfs pull` where it came from")
    raise _FormatError("it is no TorchScript archive, state dict or .safetensors file")


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        from safetensors.torch import load_file  # torch.hub does not install it
    except ImportError as error:
        raise _FormatError("it is a .safetensors file, which needs a package: pip install safetensors") from error
    return load_file(path)


def _read_bare_pickle(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        for _ in range(5):  # torch's magic number, its version, the machine, the state dict, the storages' names
            if file.peek(1):
                _check_pickle(file)
        file.seek(0)
        try:
            found = _state_dict(torch.load(file, map_location="cpu", weights_only=True), Tensor)
        except pickle.UnpicklingError as error:
            unsafe = re.search(r"GLOBAL (\S+)", str(error))
            asks = f"asks to run {unsafe[1]}" if unsafe else "is damaged or holds more than tensors"
            raise _FormatError(f"it {asks}; nothing was run") from error
    for name, tensor in found.items():
        if tensor.layout != torch.strided or tensor.device.type != "cpu" or tensor.is_quantized:
            raise _FormatError(f"{name} is not a plain tensor")
    return found


def _state_dict(loaded: object, kind: type) -> dict[str, Any]:
    """`loaded` as a flat mapping from names to values of this kind, without the wrappings of training scripts."""
    if isinstance(loaded, dict) and isinstance(loaded.get("state_dict"), dict):
        loaded = loaded["state_dict"]
    if not isinstance(loaded, dict) or not loaded:
        raise _FormatError(f"it holds a {type(loaded).__name__}, not a state dict")
    for name, value in loaded.items():
        if not isinstance(name, str) or not isinstance(value, kind):
            raise _FormatError(f"it holds a {type(value).__name__} under {name!r}, so it is not a state dict")
    wrapped = all(name.startswith("module.") for name in loaded)
    return {name.removeprefix("module.") if wrapped else name: value for name, value in loaded.items()}


def _check_pickle(file: IO[bytes]) -> None:
    """Reads one pickle, to its end, and runs nothing; what would overrun the stack or fill the memory is refused.

    The hash of 200,000 tuples in each other overruns the stack, and a memo is as long as the largest place in it.
    """
    tuples = 0
    for opcode, argument, _ in pickletools.genops(file):
        tuples += opcode.name.startswith("TUPLE")
        if tuples > MAX_TUPLES or ("PUT" in opcode.name and (argument or 0) > MAX_MEMO):
            raise _FormatError("its pickle is far larger than that of any CLIP")


def _read_zip(archive: zipfile.ZipFile, size: int) -> dict[str, Tensor]:
    """The tensors in a zip of `size` bytes: the attributes of the modules in its data.pkl, or of a state dict."""
    # Only code is compressed in these files. More than that is a bomb, or entries that lie on top of each other.
    if sum(info.file_size for info in archive.infolist()) > 2 * size + 2**24:
        raise _FormatError("its zip unpacks to far more than its own size")
    root, top = _saved(archive)
    saved = dict(_attributes(top)) if isinstance(top, _Module) else _state_dict(top, _SavedTensor)
    storages = {key: bytearray(archive.read(f"{root}/data/{key}")) for key in {v.key for v in saved.values()}}
    return {name: value.on(storages[value.key]) for name, value in saved.items()}


def _saved(archive: zipfile.ZipFile) -> tuple[str, Any]:
    """The folder in a zip that holds data.pkl, and what that holds: a `_Module`, or a dict; no storage is read."""
    roots = [name.removesuffix("/data.pkl") for name in archive.namelist() if re.fullmatch(r"[^/]+/data\.pkl", name)]
    if len(roots) != 1:
        raise _FormatError("it is a zip without a data.pkl, so not written by torch")
    data = io.BytesIO(archive.read(f"{roots[0]}/data.pkl"))  # BadZipFile where a checksum does not agree
    _check_pickle(data)
    data.seek(0)
    return roots[0], _Unpickler(data).load()


class _Module:
    """Stands for any class of the archive's code; its attributes are those that were saved."""


@dataclass(eq=False)  # so that a pickle's tensors in each other cannot overrun the stack when they are hashed
class _SavedTensor:
    """A tensor as the pickle describes it; offset, size and stride count elements. Nothing in it is checked yet."""

    storage: Any  # its name in the zip and its dtype
    offset: Any
    size: Any
    stride: Any

    @property
    def key(self) -> str:
        """Name of the storage."""
        return self.storage[0]

    def on(self, content: bytearray) -> Tensor:
        """The tensor, on the bytes of its storage. torch raises RuntimeError where it would reach beyond them."""
        flat = torch.frombuffer(content, dtype=self.storage[1])  # torch wants memory that may be written to
        if math.prod(self.size) > len(flat):  # one number, a terabyte of them
            raise _FormatError("one of its tensors reaches beyond its storage")
        return flat.as_strided(self.size, self.stride, self.offset)


class _Unpickler(pickle.Unpickler):
    """Unpickles a tree of `_Module`, or dicts, with `_SavedTensor` in it; any other class or function is refused.

    What `find_class` hands out is new each time or a type of C, so a pickle cannot change it for a later file.
    """

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return type("Module", (_Module,), {})
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda *arguments: _SavedTensor(*arguments[:4])
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


def _attributes(top: _Module) -> Iterator[tuple[str, _SavedTensor]]:
    """All tensors among the attributes of modules, with their names.

    These are the parameters and buffers, which torch.jit calls the state dict, and, if a module has any, tensors that
    are neither; the caller finds those to be unexpected.
    """
    pending = [("", top)]
    for prefix, module in pending:
        for name, value in vars(module).items():
            if isinstance(value, _Module):
                pending.append((f"{prefix}{name}.", value))
            elif isinstance(value, _SavedTensor):
                yield f"{prefix}{name}", value
        if len(pending) > MAX_ENTRIES or len(prefix) > 1000:
            raise _FormatError("its modules hold each other, or far more of them than any CLIP")
