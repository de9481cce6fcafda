"""Reads the weights in a checkpoint file into CPU tensors, and runs nothing that is in the file.

Its first bytes tell the kind of a file. Zips are OpenAI's TorchScript archives and what torch.save writes; both hold
`{name}/data.pkl` and, for each storage, an entry `{name}/data/{i}`. torch.jit would run the code in an archive, and
torch.load refuses it; neither notices a flipped bit. Here `data.pkl` goes through an unpickler that knows tensors and
modules' attributes and nothing else, and zipfile compares checksums. Bare pickles, of torch before 1.6, go through
`torch.load(weights_only=True)` and `.safetensors` through their package; they have no checksum, so the caller's check
of names, shapes and values is all that stands against damage.
"""

import io
import pickle
import pickletools
import re
import zipfile
from collections import OrderedDict
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor
from torch.torch_version import TorchVersion

from download import file_sha256

MIN_TORCH = "2.10"  # before, a file made for it gets past weights_only=True (CVE-2025-32434, CVE-2026-24747)
MAX_TUPLES = 50_000  # in a pickle: RN50x64 has 5,412; the hash of 400,000 in each other overruns the stack
# OpenAI's archives hold these sizes beside the weights; `clip.model` infers them from the shapes.
SIZES = ("input_resolution", "context_length", "vocab_size")
# What training scripts put around weights and before names, and what they keep beside them.
WRAPPINGS = ("state_dict", "model_state_dict", "model", "clip")
PREFIXES = ("module.", "model.", "clip_model.", "_orig_mod.")
BUFFERS = ("attn_mask", "position_ids")
OTHER_LAYOUTS = {  # by the beginning of names
    "vision_model.": "Hugging Face's transformers",
    "text_model.": "Hugging Face's transformers",
    "visual.trunk.": "a timm tower, as SigLIP's, which is no CLIP of OpenAI's design",
}
NUMBERS = ("Half", "BFloat16", "Float", "Double", "Int", "Long", "Short", "Bool")
STORAGES = {f"{number}Storage": getattr(torch, number.lower()) for number in NUMBERS}  # "HalfStorage": torch.half, ...
STORAGES |= {"ByteStorage": torch.uint8, "CharStorage": torch.int8}


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


class _FormatError(Exception):
    """What is wrong with a file, as the reason of a CheckpointError."""


def require_file(path: Path) -> None:
    """Raises CheckpointError unless `path` is a regular file: a pipe or a device might be read for ever."""
    try:
        if path.is_file():
            return
        reason = "it is not a regular file" if path.exists() else "there is no such file"
        if path.is_dir():
            reason = "it is a directory; name the file in it"
    except OSError as error:
        reason = f"it cannot be read ({error.strerror})"
    raise CheckpointError(path, reason)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file on the CPU, by OpenAI's names, in the dtypes of the file.

    A state dict may lie under one of `WRAPPINGS`, nested once, and its names may all begin with one or two of
    `PREFIXES`, as training scripts write them. `BUFFERS` and the three sizes of OpenAI's archives are dropped.

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
    except Exception as error:  # damaged bytes can raise nearly anything in a reader of zips or pickles
        what = " ".join(f"{type(error).__name__}: {error}".split())
        reason = f"it is truncated, damaged or was not written by torch ({what}); fetch it again"
        raise CheckpointError(path, reason, file_sha256(path)) from error
    return {name: tensor for name, tensor in state_dict.items() if name not in SIZES}


def is_torchscript(path: Path) -> bool:
    """Whether a file that `read_state_dict` takes is a TorchScript archive, as OpenAI ships, with its constants."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read(path: Path) -> dict[str, Tensor]:
    """The tensors in a file, by name; its first bytes decide the reader."""
    with path.open("rb") as file:
        start = file.read(1024)
    if not start:
        raise _FormatError("it is empty; fetch it again")
    if start.startswith(b"PK\x03\x04"):
        return _read_zip(path)
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
    return _state_dict(load_file(path))


def _read_bare_pickle(path: Path) -> dict[str, Tensor]:
    try:
        return _state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except pickle.UnpicklingError as error:
        unsafe = re.search(r"GLOBAL (\S+)", str(error))
        asks = f"asks to run {unsafe[1]}" if unsafe else "is damaged or holds more than tensors"
        raise _FormatError(f"it {asks}; nothing was run") from error


def _state_dict(loaded: object) -> dict[str, Tensor]:
    """`loaded` as a flat mapping from names to tensors, without the wrappings of training scripts."""
    for _ in range(2):
        inner = [loaded[key] for key in WRAPPINGS if isinstance(loaded, dict) and isinstance(loaded.get(key), dict)]
        known = [
            one for one in inner if any(isinstance(v, Tensor) for v in one.values()) or set(WRAPPINGS) & one.keys()
        ]
        loaded = known[0] if known else loaded
    if not isinstance(loaded, dict) or not loaded:
        raise _FormatError(f"it holds a {type(loaded).__name__}, not a state dict")
    found = {name: value for name, value in loaded.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not found:
        name, value = next(iter(loaded.items()))
        raise _FormatError(f"it holds a {type(value).__name__} under {name!r}, so it is not a state dict")
    for name, value in found.items():
        if value.layout != torch.strided or value.device.type != "cpu" or value.is_quantized:
            raise _FormatError(f"{name} is not a plain tensor")
    for _ in range(2):
        prefix = next((each for each in PREFIXES if all(name.startswith(each) for name in found)), "")
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    if theirs := next(
        (layout for start, layout in OTHER_LAYOUTS.items() if any(n.startswith(start) for n in found)), ""
    ):
        raise _FormatError(f"it has the keys of {theirs}; bring the same model's file from OpenAI or open_clip")
    return {name: value for name, value in found.items() if name.rpartition(".")[2] not in BUFFERS}


def _read_zip(path: Path) -> dict[str, Tensor]:
    """The tensors in a zip: the attributes of the modules in its data.pkl, or of a state dict."""
    with zipfile.ZipFile(path) as archive:
        if len(set(archive.namelist())) < len(archive.namelist()):
            raise _FormatError("it is a zip that holds one name twice, so it is not as torch wrote it")
        roots = [root for root, _, file in (name.partition("/") for name in archive.namelist()) if file == "data.pkl"]
        if len(roots) != 1:
            raise _FormatError("it is a zip without a data.pkl, so not written by torch")
        unpickler = _Unpickler(archive, roots[0])
        top = unpickler.load()
    if isinstance(top, SimpleNamespace):
        return dict(_tensors(top))
    try:
        return _state_dict(top)
    except _FormatError as error:
        if not unpickler.ignored:
            raise
        raise _FormatError(f"it asks to run {unpickler.ignored[0]}; nothing was run, and {error}") from error


def _tensors(module: SimpleNamespace, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Names and tensors among the attributes of modules: parameters, buffers, and others that no CLIP has."""
    for name, value in vars(module).items():
        if isinstance(value, SimpleNamespace):
            yield from _tensors(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor):
            yield f"{prefix}{name}", value


class _Ignored:
    """Stands for whatever a pickle asks for beside weights, and does nothing."""

    def __init__(self, *_: object) -> None: ...

    def nothing(self, *_: object) -> None:
        """Takes a state, an item or a member."""

    __setstate__ = __setitem__ = append = extend = nothing


class _Unpickler(pickle.Unpickler):
    """Unpickles modules, as bare attributes, or dicts, with tensors in them; any other class or function is `_Ignored`.

    What `find_class` hands out is new each time or a type of C, so a pickle cannot change it for a later file. torch
    itself refuses to let a tensor leave its storage, in `as_strided` and where a pickle sets the state of one.
    """

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        pickled = archive.read(f"{root}/data.pkl")  # BadZipFile where a checksum does not agree
        if sum(opcode.name.startswith("TUPLE") for opcode, _, _ in pickletools.genops(pickled)) > MAX_TUPLES:
            raise _FormatError("its pickle holds far more tuples than that of any CLIP")
        super().__init__(io.BytesIO(pickled))
        self.ignored: list[str] = []  # names of what was asked for
        # Tensors may share a storage; torch wants memory that may be written to.
        self.storage = cache(lambda key: bytearray(archive.read(f"{root}/data/{key}")))

    def persistent_load(self, pid: Any) -> Tensor:
        _kind, dtype, key, _device, _count = pid
        if not isinstance(dtype, torch.dtype) or not self.storage(key):  # of no weights, or empty
            return torch.empty(0)
        return torch.frombuffer(self.storage(key), dtype=dtype)

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return SimpleNamespace
        if module == "torch" and name in STORAGES:
            return STORAGES[name]
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return lambda flat, offset, size, stride, *_: flat.as_strided(size, stride, offset) if len(flat) else flat
        if (module, name) == ("torch._utils", "_rebuild_parameter"):
            return lambda data, *_: data
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        if module == "torch.jit._pickle" or (module, name) == ("torch", "device"):
            return lambda *_: None  # lists of numbers and devices among the attributes of modules
        self.ignored.append(f"{module}.{name}")
        return type("Ignored", (_Ignored,), {})
