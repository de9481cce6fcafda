"""clip.archive and clip.checkpoint: each kind of file gives the same tensors, a hostile one nothing but an error."""

import hashlib
import io
import os
import pickle
import re
import socket
import struct
import sys
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

import clip
from clip.archive import CheckpointError, check_torch, is_torchscript, read_state_dict
from clip.checkpoint import CHECKPOINTS, Checkpoint, activation_of, locate_checkpoint
from download import DownloadError, file_sha256
from tests.conftest import TINY, random_clip
from tests.test_model import PAPER_MODELS

SIZES = {"input_resolution": 64, "context_length": 77, "vocab_size": 49408}


def script(tensors: dict[str, Tensor], path: Path) -> None:
    """Saves a TorchScript archive whose modules hold these tensors under these names."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *folders, last = name.split(".")
        module = root
        for folder in folders:
            if folder not in dict(module.named_children()):
                module.add_module(folder, nn.Module())
            module = module.get_submodule(folder)
        module.register_buffer(last, tensor)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(root).save(str(path))


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    return {k: v.half() if v.is_floating_point() else v for k, v in random_clip(TINY).state_dict().items()}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, Tensor]) -> Path:
    """A TorchScript archive with OpenAI's layout: fp16 weights, the three sizes, code."""
    path = tmp_path_factory.mktemp("archive") / "RN50.pt"
    script(weights | {name: torch.tensor(value) for name, value in SIZES.items()}, path)
    return path


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype, name
        assert torch.equal(got[name], tensor), name


def test_torchscript_gives_what_torch_jit_gives(archive: Path, weights: dict[str, Tensor]) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = torch.jit.load(str(archive)).state_dict()
    assert_same({name: tensor for name, tensor in want.items() if name not in SIZES}, weights)
    assert_same(read_state_dict(archive), weights)
    model, _ = clip.load(archive, device="cpu")
    assert_same(model.state_dict(), {k: v.float() if v.is_floating_point() else v for k, v in weights.items()})


def test_strides_offsets_and_tied_storages(tmp_path: Path) -> None:
    whole = torch.arange(24.0).view(4, 6)
    want = {"whole": whole, "transposed": whole.T, "column": whole[1:3, 2]}
    script(want, tmp_path / "script.pt")
    torch.save(want, tmp_path / "dict.pt")
    for name in ("script.pt", "dict.pt"):
        got = read_state_dict(tmp_path / name)
        assert_same(got, want)
        assert got["transposed"].stride() == (1, 6)
        assert got["whole"].data_ptr() == got["transposed"].data_ptr() == got["column"].data_ptr() - 8 * 4


def write(kind: str, path: Path, archive: Path, weights: dict[str, Tensor]) -> bytearray:
    """Writes the weights as a file of this kind; returns its bytes."""
    if kind == "torchscript":
        path.write_bytes(archive.read_bytes())
    elif kind == "safetensors":
        save_file(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=kind == "zip")
    return bytearray(path.read_bytes())


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_round_trip(tmp_path: Path, archive: Path, weights: dict[str, Tensor], kind: str, dtype: torch.dtype) -> None:
    want = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    write(kind, tmp_path / "anything.bin", archive, want)  # the content decides, not the suffix
    assert_same(read_state_dict(tmp_path / "anything.bin"), want)


def test_wrappings_of_training_scripts_and_sizes_are_dropped(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"betas": (0.9, 0.98)}]}
    wrapped = {"epoch": 3, "name": "a run", "optimizer": optimizer, "scaler": {"scale": 65536.0}}
    wrapped["state_dict"] = {f"module.{name}": tensor for name, tensor in weights.items()}
    sized = weights | {name: torch.tensor(value) for name, value in SIZES.items()}
    for content, new in ((wrapped, True), (wrapped, False), (sized, True)):
        torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
        assert_same(read_state_dict(tmp_path / "x.pt"), weights)


class Bomb(str):
    """Unpickles to the run of this command."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (str(self),)


def rewrite(source: Path, target: Path, changes: dict[str, bytes]) -> None:
    """Copies a zip with entries added or replaced; the names in `changes` are relative to the archive's folder."""
    with zipfile.ZipFile(source) as old:
        root = old.namelist()[0].split("/")[0]
        changes = {f"{root}/{name}": content for name, content in changes.items()}
        with zipfile.ZipFile(target, "w") as new:
            for info in old.infolist():
                if info.filename not in changes:
                    new.writestr(info.filename, old.read(info))
            for name, content in changes.items():
                new.writestr(name, content)


@pytest.mark.parametrize("kind", ["torchscript", "zip", "legacy"])
def test_a_pickle_bomb_is_refused_by_name_and_does_not_go_off(tmp_path: Path, archive: Path, kind: str) -> None:
    marker, path = tmp_path / "executed", tmp_path / "bomb.pt"
    hostile = {"visual.proj": Bomb(f"touch '{marker}'")}
    content = pickle.dumps(hostile, protocol=2)
    if kind == "torchscript":
        rewrite(archive, path, {"data.pkl": content})
    else:
        torch.save(hostile, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(CheckpointError, match=r"(posix|nt|os)\.system.*nothing was run") as caught:
        read_state_dict(path)
    assert caught.value.sha256 == file_sha256(path)
    assert not marker.exists()
    pickle.loads(content)  # the bomb is a real one
    assert marker.exists()


@pytest.mark.parametrize(
    ("opcodes", "problem"),
    [
        (b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.", "asks to run builtins.eval"),  # STACK_GLOBAL
        (b"\x80\x02ctorch.serialization\nload\n.", "asks to run torch.serialization.load"),
        (b"\x80\x02\x82\x01.", "damaged"),  # the registry of extensions
        (b"\x80\x02c__torch__.M\nM\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb.", "RecursionError"),  # holds itself
    ],
)
def test_other_pickles_in_an_archive_are_refused(tmp_path: Path, archive: Path, opcodes: bytes, problem: str) -> None:
    rewrite(archive, tmp_path / "x.pt", {"data.pkl": opcodes})
    with pytest.raises(CheckpointError, match=problem):
        read_state_dict(tmp_path / "x.pt")


class Described(tuple):
    """Pickles as torch's tensors do."""

    state: tuple[object, ...] | None

    def __reduce__(self) -> tuple[object, ...]:
        return torch._utils._rebuild_tensor_v2, (*self, False, OrderedDict()), self.state


class TensorPickler(pickle.Pickler):
    def persistent_id(self, obj: object) -> tuple[object, ...] | None:
        return ("storage", torch.HalfStorage, obj.name, "cuda:0", 4) if isinstance(obj, Path) else None


def tensor_pickle(*described: object, state: tuple[object, ...] | None = None) -> bytes:
    """A data.pkl of one fp16 tensor `w`: storage, offset, size, stride; `state` is what the pickle then sets it to."""
    tensor, file = Described(described), io.BytesIO()
    tensor.state = state
    TensorPickler(file, protocol=2).dump({"w": tensor})
    return file.getvalue()


@pytest.mark.parametrize(
    ("offset", "size", "stride", "problem", "problem_of_state"),
    [
        (2, (3,), (1,), "out of bounds", "resize storage that is not resizable"),
        (-1, (2,), (1,), "invalid storage offset", "invalid storage offset"),
        (3, (4,), (-1,), "Negative strides", "overflowed"),
        (2**62, (2,), (2**62,), "overflowed", "overflowed"),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(
    tmp_path, archive, offset, size, stride, problem, problem_of_state
) -> None:
    storage, path, key = struct.pack("<4e", 1, 2, 3, 4), tmp_path / "x.pt", Path("0")
    rewrite(archive, path, {"data/0": storage, "data.pkl": tensor_pickle(key, 1, (3,), (1,))})
    assert read_state_dict(path)["w"].tolist() == [2, 3, 4]
    outside = (key, offset, size, stride)
    moved = tensor_pickle(key, 0, (1,), (1,), state=outside)
    for content, reason in ((tensor_pickle(*outside), problem), (moved, problem_of_state)):
        rewrite(archive, path, {"data/0": storage, "data.pkl": content})
        with pytest.raises(CheckpointError, match=reason):
            read_state_dict(path)


def test_an_entry_that_is_not_there_is_refused(tmp_path: Path, archive: Path) -> None:
    rewrite(archive, tmp_path / "x.pt", {"data.pkl": tensor_pickle(Path("/etc/passwd"), 0, (1,), (1,))})
    with pytest.raises(CheckpointError, match="data/passwd"):
        read_state_dict(tmp_path / "x.pt")


@pytest.mark.parametrize("kind", ["torchscript", "zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.99])
def test_truncated_files(tmp_path: Path, archive: Path, weights: dict[str, Tensor], kind: str, share: float) -> None:
    path = tmp_path / "x.pt"
    content = write(kind, path, archive, weights)
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"^cannot use the checkpoint .*$") as caught:
        read_state_dict(path)
    assert (caught.value.path, caught.value.sha256) == (path, file_sha256(path))


@pytest.mark.parametrize("kind", ["torchscript", "zip"])
@pytest.mark.parametrize("entry", ["data/5", "data.pkl"])
def test_one_flipped_bit(tmp_path: Path, archive: Path, weights: dict[str, Tensor], kind: str, entry: str) -> None:
    content = write(kind, tmp_path / "x.pt", archive, weights)
    with zipfile.ZipFile(tmp_path / "x.pt") as file:
        info = next(info for info in file.infolist() if info.filename.endswith("/" + entry))
    lengths = struct.unpack_from("<HH", content, info.header_offset + 26)  # of the name and the padding
    content[info.header_offset + 30 + sum(lengths) + info.file_size // 2] ^= 1
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="CRC"):
        read_state_dict(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>not found</html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git-lfs"),
        (b"weights", "no TorchScript archive"),
        ([torch.zeros(2)], "holds a list, not a state dict"),
        ({"a": 1}, "holds a int under 'a'"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, content: object, problem: str) -> None:
    for new in (True, False):
        if isinstance(content, bytes):
            (tmp_path / "x.pt").write_bytes(content)
        else:
            torch.save(content, tmp_path / "x.pt", _use_new_zipfile_serialization=new)
        with pytest.raises(CheckpointError, match=problem):
            read_state_dict(tmp_path / "x.pt")


def test_not_everything_under_a_path_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for reader in (read_state_dict, locate_checkpoint):
        for path, problem in (
            (tmp_path / "missing.pt", "there is no such file"),
            (tmp_path, "it is a directory"),
            (tmp_path / "pipe", "it is not a regular file"),
        ):
            with pytest.raises(CheckpointError, match=problem):
                reader(path)
    with pytest.raises(CheckpointError, match=r"RN51: there is no such file .*available models, .*ViT-L/14@336px"):
        locate_checkpoint("RN51")


def test_what_is_not_clip_has_the_files_name_and_hash_in_its_error(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    torch.save(weights | {"extra": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"x\.pt: 1 entries are unexpected: extra") as caught:
        clip.load(tmp_path / "x.pt", device="cpu", activation="quickgelu")
    assert caught.value.sha256 == file_sha256(tmp_path / "x.pt")


@pytest.mark.parametrize("kind", ["torchscript", "zip", "legacy", "safetensors"])
def test_the_form_tells_openais_archives_from_state_dicts(tmp_path, archive, weights, kind) -> None:
    path = tmp_path / "x.pt"
    write(kind, path, archive, weights)
    assert is_torchscript(path) == (kind == "torchscript")
    if kind == "torchscript":
        assert activation_of(path, path) == "quickgelu"
    else:
        with pytest.raises(CheckpointError, match="a state dict does not tell QuickGELU from GELU") as caught:
            activation_of(path, path)
        assert caught.value.sha256 == file_sha256(path)
        assert caught.value.reason.endswith(
            "this file is not OpenAI's by its hash or its form; pass --activation quickgelu (OpenAI's, MetaCLIP, DFN, "
            "RN50 and RN101 yfcc15m, RN50 cc12m, ViT-B/32 laion400m) or --activation gelu (LAION-2B, DataComp, "
            "ViT-B/16 laion400m)"
        )
    for given in ("quickgelu", "gelu"):
        assert activation_of(path, path, given) == given


def test_a_known_name_or_hash_decides_and_is_not_contradicted(tmp_path, weights, monkeypatch) -> None:
    path = tmp_path / "mine.pt"
    torch.save(weights, path)
    known = {"A": Checkpoint("a.pt", file_sha256(path)), "B": Checkpoint("b.pt", file_sha256(path)[:8])}
    for name, checkpoint in known.items():
        monkeypatch.setattr(clip.checkpoint, "CHECKPOINTS", {"Z": Checkpoint("z.pt", "0" * 64), name: checkpoint})
        for asked in (path, str(path)):
            assert activation_of(asked, path) == activation_of(asked, path, "quickgelu") == "quickgelu"
            with pytest.raises(CheckpointError, match=f"{name} was trained with QuickGELU; use --activation auto"):
                activation_of(asked, path, "gelu")
    assert activation_of("Z", path) == "quickgelu"  # the hub's copy of RN50 has another SHA-256
    with pytest.raises(CheckpointError, match="Z was trained with QuickGELU"):
        activation_of("Z", path, "gelu")


CONTENT = b"weights of a model"
KNOWN = Checkpoint("w.pt", hashlib.sha256(CONTENT).hexdigest(), len(CONTENT))
HUB = "https://hub.example/w"


class Network(list):
    """Stands for `download`: every call's urls are remembered, and a target gets what `files` hold for a url."""

    def __init__(self) -> None:
        self.files: dict[str, bytes] = {}

    def __call__(self, urls: list[str], target: Path, sha256: str | None, size: int | None = None, check=None) -> Path:
        self.append(urls)
        for url in urls:
            if url in self.files:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(self.files[url])
                try:
                    check and check(target)
                except ValueError as error:
                    target.unlink()
                    raise DownloadError([f"{url}: {error}"]) from error
                return target
        raise DownloadError([f"{url}: HTTP 404" for url in urls])


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Network:
    for name in ("CLIP_CACHE", "CLIP_MIRRORS", "CLIP_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(clip.checkpoint, "CHECKPOINTS", {"W": KNOWN, "H": Checkpoint("h.pt", "0" * 64, None, HUB)})
    monkeypatch.setattr(clip.checkpoint, "RN50", TINY)
    network = Network()
    monkeypatch.setattr(clip.checkpoint, "download", network)
    return network


def test_the_cache_and_the_order_of_addresses(network, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CLIP_MIRRORS", "https://a.example/b/ http://c.example/w.pt")
    network.files[KNOWN.urls[1]] = CONTENT
    assert locate_checkpoint("W") == tmp_path / "home" / ".cache" / "clip" / "w.pt"
    assert network == [["https://a.example/b/w.pt", "http://c.example/w.pt", *KNOWN.urls]]
    locate_checkpoint("W")
    assert len(network) == 1  # it was there
    monkeypatch.setenv("CLIP_CACHE", "~/weights")
    assert locate_checkpoint("W") == tmp_path / "home" / "weights" / "w.pt"
    assert locate_checkpoint("W", tmp_path / "root") == tmp_path / "root" / "w.pt"


def test_a_damaged_file_in_the_cache_is_not_used(network: Network, tmp_path: Path) -> None:
    target = tmp_path / "w.pt"
    target.write_bytes(b"junk")
    with pytest.raises(CheckpointError) as caught:
        locate_checkpoint("W", tmp_path)
    assert caught.value.sha256 == hashlib.sha256(b"junk").hexdigest()
    assert target.read_bytes() == b"junk"
    advice = r"bring w\.pt there \(docs/data\.md\), name yours with --clip_path, or see it work now"
    assert re.search(rf"{re.escape(str(target))}: no address gave it: HTTP 404; {advice}", str(caught.value))
    assert caught.value.__cause__.failures == [f"{url}: HTTP 404" for url in KNOWN.urls]
    network.files[KNOWN.urls[0]] = CONTENT
    assert locate_checkpoint("W", tmp_path).read_bytes() == CONTENT


def test_offline_no_socket_is_opened(network: Network, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("a socket was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    monkeypatch.setenv("CLIP_OFFLINE", "1")
    with pytest.raises(CheckpointError, match="it is not there, and CLIP_OFFLINE forbids") as caught:
        locate_checkpoint("W", tmp_path)
    for part in (f"{tmp_path / 'w.pt'}: ", "; bring w.pt there (docs/data.md)", "--clip_path"):
        assert part in str(caught.value)
    monkeypatch.setattr(clip.checkpoint, "CHECKPOINTS", {"W": KNOWN, "P": Checkpoint("w.pt", KNOWN.sha256[:8])})
    for name in ("W", "P"):  # of the one the whole SHA-256 is known, of the other its first digits
        (tmp_path / "w.pt").write_bytes(CONTENT + b" ")
        with pytest.raises(CheckpointError, match="the file there has other bytes"):
            locate_checkpoint(name, tmp_path)
        (tmp_path / "w.pt").write_bytes(CONTENT)
        assert locate_checkpoint(name, tmp_path) == tmp_path / "w.pt"
    assert network == []


def test_the_hubs_file_is_the_last_source_and_has_its_own_name(network, tmp_path, weights, monkeypatch) -> None:
    save_file(weights, tmp_path / "good")
    save_file(weights | {"token_embedding.weight": torch.zeros(65, 32)}, tmp_path / "other")
    cache = tmp_path / "cache"
    for content, reason in (
        ((tmp_path / "other").read_bytes(), "sent the weights of another model: .*vocab_size=65"),
        ((tmp_path / "good").read_bytes()[:-4], "sent a file that cannot be used: "),
    ):
        network.files[HUB] = content
        with pytest.raises(CheckpointError, match=reason):
            locate_checkpoint("H", cache)
        assert list(cache.iterdir()) == []
    network.files[HUB] = (tmp_path / "good").read_bytes()
    for _ in range(2):
        assert locate_checkpoint("H", cache) == cache / "h.safetensors"
    assert len(network) == 6  # 2 for every file, and none for the last call
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(CheckpointError, match="needs a package: pip install safetensors"):
        read_state_dict(tmp_path / "good")


def test_table_of_checkpoints_is_complete() -> None:
    assert len({bytes.fromhex(checkpoint.sha256) for checkpoint in CHECKPOINTS.values()}) == 11
    whole = [name for name, checkpoint in CHECKPOINTS.items() if len(checkpoint.sha256) == 64]
    assert whole == list(PAPER_MODELS)
    for name in ("cc12m", "yfcc15m"):  # the digits of the SHA-256 are those in the file's name
        checkpoint = CHECKPOINTS[f"RN50-{name}"]
        file = f"rn50-quickgelu-{name}-{checkpoint.sha256}.pt"
        assert (checkpoint.file, len(checkpoint.sha256)) == (file, 8)
        address = open_clip.get_pretrained_url("RN50", name)
        assert Path(address).name == file
        assert address in checkpoint.urls
        assert f"https://github.com/mlfoundations/open_clip/releases/download/v1.0/{file}" in checkpoint.urls
    sha256 = "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762"
    assert CHECKPOINTS["RN50"].urls[0] == f"https://openaipublic.azureedge.net/clip/models/{sha256}/RN50.pt"
    assert PAPER_MODELS["RN50"] == clip.checkpoint.RN50  # which the hub's copy is compared with


def test_an_old_torch_is_refused() -> None:
    for version in ("1.13.1", "2.6.0", "2.9.1+cu126"):
        with pytest.raises(ImportError, match=f"torch {version.split('+')[0]}.* is too old.*install torch>=2.10"):
            check_torch(version)
    for version in ("2.10.0", "2.10.0+cpu", "2.15.0", "3.0"):
        check_torch(version)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize("value", [torch.eye(2).to_sparse(), torch.empty(2, device="meta")], ids=("sparse", "meta"))
def test_tensors_of_other_kinds_are_refused(tmp_path: Path, value: Tensor) -> None:
    path = tmp_path / "w.pt"
    torch.save({"visual.proj": value}, path, _use_new_zipfile_serialization=False)
    with pytest.raises(CheckpointError, match=r"w\.pt: .*visual\.proj is not a plain tensor"):
        read_state_dict(path)
