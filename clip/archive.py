"""Reads the weights in a checkpoint file into CPU tensors, and runs nothing that is in the file.

Zips are OpenAI's TorchScript archives and what torch.save writes: `{name}/data.pkl` and a `{name}/data/{i}` for each
storage, with checksums. Bare pickles, of torch before 1.6, have the storages behind them, without any. torch.jit would
run the code in an archive, and torch.load refuses what training scripts keep beside weights.
"""

import io
import os
import pickle
import pickletools
import zipfile
from collections import OrderedDict
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, BinaryIO

import torch
from torch import Tensor
from torch.serialization import StorageType

from download import file_sha256

if torch.__version__ < "2.10":
    raise ImportError(f"torch {torch.__version__} is too old; install torch>=2.10")

MAX_TUPLES = 50_000  # in a pickle: RN50x64 has 5,412; the hash of 400,000 in each other overruns the stack
# What training scripts put around weights and before names.
WRAPPINGS = ("state_dict", "model_state_dict", "model", "clip")
PREFIXES = ("module.", "model.", "clip_model.", "_orig_mod.")
# Buffers beside the weights, and the sizes in OpenAI's archives, which `clip.model` infers from the shapes.
NO_WEIGHTS = ("attn_mask", "position_ids", "input_resolution", "context_length", "vocab_size")
HUGGING_FACE, TIMM = "Hugging Face's transformers", "a timm tower, as SigLIP's, which is no CLIP of OpenAI's design"
OTHER_LAYOUTS = {"vision_model.": HUGGING_FACE, "text_model.": HUGGING_FACE, "visual.trunk.": TIMM}  # by first names


class CheckpointError(RuntimeError):
    """The checkpoint `path` cannot be used: `reason` says why and what to do; `sha256` is of what was found, if any."""

    def __init__(self, path: str | Path, reason: str, sha256: str | None = None) -> None:
        self.path, self.reason, self.sha256 = Path(path), reason, sha256
        found = f" (the file there has sha256 {sha256})" if sha256 else ""
        super().__init__(f"cannot use the checkpoint {path}: {reason}{found}")


class _FormatError(Exception):
    """What is wrong with a file, as the reason of a CheckpointError."""


def require_file(path: Path, hint: str = "") -> None:
    """Raises CheckpointError unless `path` is a regular file and not empty: what is neither might be read for ever."""
    try:
        if path.is_file() and path.stat().st_size:
            return
        reason = "it is not a regular file" if path.exists() else "there is no such file"
        reason = "it is a directory; name the file in it" if path.is_dir() else reason
        reason = "it is empty; fetch it again" if path.is_file() else reason
    except OSError as error:
        reason = f"it cannot be read ({error.strerror})"
    raise CheckpointError(path, reason + hint)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file on the CPU, by OpenAI's names, without `WRAPPINGS` and `PREFIXES`.

    Raises CheckpointError: the file is missing, damaged, of another format, or holds no tensors.
    """
    require_file(path)
    try:
        return _state_dict(_read(path))
    except OSError as error:
        raise CheckpointError(path, f"it cannot be read: {error.strerror or error}") from error
    except ImportError as error:
        raise CheckpointError(path, "it is a .safetensors file, which needs: pip install safetensors") from error
    except Exception as error:  # damaged bytes can raise nearly anything in a reader of zips or pickles
        reason = " ".join(str(error).split())
        if not isinstance(error, _FormatError):
            reason = f"it is damaged or not written by torch ({type(error).__name__}: {reason}); fetch it again"
        raise CheckpointError(path, reason, file_sha256(path)) from error


def is_torchscript(path: Path) -> bool:
    """Whether a file that `read_state_dict` takes is a TorchScript archive, as OpenAI ships, with its constants."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _read(path: Path) -> object:
    with path.open("rb") as file:
        start = file.read(1024)
        if start.startswith(b"PK\x03\x04"):
            return _read_zip(file)
        if start.startswith(b"\x80"):
            file.seek(0)
            return _read_bare_pickle(file)
    if start[8:9] == b"{":
        from safetensors.torch import load_file  # here, because torch.hub does not install it

        return load_file(path)
    if start.lstrip()[:1] == b"<":
        raise _FormatError("it is a web page, not weights; fetch the file itself")
    if start.startswith(b"version https://git-lfs"):
        raise _FormatError("it is a git-lfs pointer, not the weights; run `git lfs pull` where it came from")
    raise _FormatError("it is no TorchScript archive, state dict or .safetensors file")


def _read_zip(file: BinaryIO) -> object:
    with zipfile.ZipFile(file) as archive:
        names = archive.namelist()
        if len(set(names)) < len(names):
            raise _FormatError("it is a zip that holds one name twice, so it is not as torch wrote it")
        roots = [root for root, _, entry in (name.partition("/") for name in names) if entry == "data.pkl"]
        if len(roots) != 1:
            raise _FormatError("it is a zip without a data.pkl, so not written by torch")
        # Tensors may share a storage, in memory that may be written to. BadZipFile where a checksum does not agree.
        storage = cache(lambda key, _length: bytearray(archive.read(f"{roots[0]}/data/{key}")))
        return _Unpickler(io.BytesIO(archive.read(f"{roots[0]}/data.pkl")), storage).load()


def _read_bare_pickle(file: BinaryIO) -> object:
    """The fourth of five pickles: magic number, version, system, content, and the keys of the storages behind them."""
    storages: dict[str, bytearray] = {}
    readers = (_Unpickler(file, lambda key, size: storages.setdefault(key, bytearray(size))) for _ in range(5))
    _, _, _, content, keys = (reader.load() for reader in readers)
    for key in keys:
        file.seek(8, os.SEEK_CUR)  # the number of elements
        if file.readinto(storages[key]) < len(storages[key]):  # type: ignore[attr-defined]
            raise EOFError("a storage is cut off")
    return content


def _state_dict(loaded: object) -> dict[str, Tensor]:
    """The flat mapping in `loaded` from names to tensors, without the wrappings of training scripts."""
    levels = [loaded]
    for _ in range(2):  # a wrapping may be in another
        levels += [level[key] for level in levels if isinstance(level, dict) for key in WRAPPINGS if key in level]
    found = max((dict(_tensors(level)) for level in levels), key=len)
    if not found:
        value = next(iter(loaded.values()), loaded) if isinstance(loaded, dict) else loaded
        asks = f"asks to run {value.__name__} (nothing was run)" if isinstance(value, _Ignored) else ""
        raise _FormatError(f"it {asks or f'holds a {type(value).__name__}'}, so it is not a state dict")
    for _ in range(2):
        prefix = next((each for each in PREFIXES if all(name.startswith(each) for name in found)), "")
        found = {name.removeprefix(prefix): value for name, value in found.items()}
    for start, layout in OTHER_LAYOUTS.items():
        if any(name.startswith(start) for name in found):
            raise _FormatError(f"it has the keys of {layout}; bring the same model's file from OpenAI or open_clip")
    return {name: value for name, value in found.items() if name.rpartition(".")[2] not in NO_WEIGHTS}


def _tensors(loaded: object, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Names and tensors in a dict, or among the attributes of modules: parameters, buffers, and others."""
    entries = vars(loaded) if isinstance(loaded, SimpleNamespace) else loaded
    for name, value in entries.items() if isinstance(entries, dict) else ():
        if isinstance(value, SimpleNamespace):
            yield from _tensors(value, f"{prefix}{name}.")
        elif isinstance(value, Tensor) and isinstance(name, str):
            yield f"{prefix}{name}", value


class _Ignored(type):
    """Stands for whatever is asked for beside weights, as a class, which new objects need; it is its own instance."""

    def __call__(cls, *_: object) -> "_Ignored":
        return cls

    __setstate__ = __setitem__ = append = extend = add = as_strided = __call__


class _Unpickler(pickle.Unpickler):
    """Unpickles modules, as bare attributes, or dicts, with tensors in them; any other class or function is `_Ignored`.

    What `find_class` hands out is new each time or a type of C, so a pickle cannot change it for a later file. torch
    itself refuses to let a tensor leave its storage, in `as_strided` and where a pickle sets the state of one.
    """

    def __init__(self, file: BinaryIO, storage: Callable[[str, int], bytearray]) -> None:
        start = file.tell()
        if sum(opcode.name.startswith("TUPLE") for opcode, _, _ in pickletools.genops(file)) > MAX_TUPLES:
            raise _FormatError("its pickle holds far more tuples than that of any CLIP")
        file.seek(start)
        super().__init__(file)
        self.storage = storage  # memory by key and length

    def persistent_load(self, pid: Any) -> Any:
        _, dtype, *place = pid
        if not isinstance(dtype, torch.dtype):  # a storage of no weights, or a class with its source
            return dtype
        key, _, count = place[:3]
        memory = self.storage(key, count * dtype.itemsize) or bytearray(16)  # torch takes no empty buffer
        return torch.frombuffer(memory, dtype=dtype)

    def find_class(self, module: str, name: str) -> Any:
        if module.split(".")[0] == "__torch__":
            return SimpleNamespace
        if module == "torch" and name.endswith("Storage"):
            return StorageType(name).dtype
        known = {
            "collections.OrderedDict": OrderedDict,
            "torch.storage.UntypedStorage": torch.uint8,
            "torch._utils._rebuild_tensor_v2": lambda flat, at, size, stride, *_: flat.as_strided(size, stride, at),
            "torch._utils._rebuild_parameter": lambda data, *_: data,
        }
        ignored = _Ignored(f"{module}.{name}", (), {"__new__": lambda kind, *_, **__: kind})
        return known.get(f"{module}.{name}", ignored)
