"""clip.archive and clip.checkpoint: each kind of file gives the same tensors, a hostile one nothing but an error."""

import argparse
import io
import os
import pickle
import struct
import sys
import warnings
import zipfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

import clip
import download
from clip.archive import CheckpointError, check_torch, is_torchscript, read_state_dict
from clip.checkpoint import CHECKPOINTS, Checkpoint, activation_of, locate_checkpoint
from download import file_sha256
from tests.conftest import CONTENT, FLIPPED, PAPER_MODELS, SHA256, SIZE, TINY, random_clip

SIZES = {"input_resolution": 64, "context_length": 77, "vocab_size": 49408}


def script(tensors: dict[str, Tensor], path: Path) -> None:
    """Saves a TorchScript archive whose modules hold these tensors under these names."""
    root = nn.Module()
    for name, tensor in tensors.items():
        *folders, last = name.split(".")
        module = root
        for folder in folders:
            module = module._modules.setdefault(folder, nn.Module())
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


def saved(content: object, kind: str = "zip") -> bytes:
    """What torch.save, or the package safetensors, writes."""
    if kind == "safetensors":
        return save(content)
    file = io.BytesIO()
    torch.save(content, file, _use_new_zipfile_serialization=kind == "zip")
    return file.getvalue()


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_round_trip(tmp_path: Path, weights: dict[str, Tensor], kind: str, dtype: torch.dtype) -> None:
    want = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    path = tmp_path / "anything.bin"  # the content decides, not the suffix
    path.write_bytes(saved(want, kind))
    assert_same(read_state_dict(path), want)
    assert not is_torchscript(path)


def test_wrappings_of_training_scripts_and_sizes_are_dropped(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"betas": (0.9, 0.98)}]}
    wrapped = {"epoch": 3, "name": "a run", "optimizer": optimizer, "scaler": {"scale": 65536.0}}
    wrapped["state_dict"] = {f"module.{name}": tensor for name, tensor in weights.items()}
    sized = weights | {name: torch.tensor(value) for name, value in SIZES.items()}
    named = {f"model._orig_mod.{name}": tensor for name, tensor in weights.items()}
    others = [
        {"model": {"clip": named}},  # nested once, two prefixes
        {"model_state_dict": weights | {"attn_mask": torch.zeros(7, 7), "text.position_ids": torch.zeros(7)}},
        {"clip": weights, "best": np.float64(0.5), "arguments": argparse.Namespace(lr=1), "steps": Counter("ab")},
    ]
    for content, kind in ((wrapped, "zip"), (wrapped, "legacy"), (sized, "zip"), *((one, "zip") for one in others)):
        (tmp_path / "x.pt").write_bytes(saved(content, kind))
        assert_same(read_state_dict(tmp_path / "x.pt"), weights)


class Bomb(str):
    """Unpickles to the run of this command."""

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (str(self),)


def rewrite(archive: Path, changes: dict[str, bytes]) -> bytes:
    """A copy of an archive with entries added or replaced; their names are relative to its folder."""
    changes, copy = {f"{archive.stem}/{name}": content for name, content in changes.items()}, io.BytesIO()
    with zipfile.ZipFile(archive) as old, zipfile.ZipFile(copy, "w") as new:
        for name in old.namelist():
            if name not in changes:
                new.writestr(name, old.read(name))
        for name, content in changes.items():
            new.writestr(name, content)
    return copy.getvalue()


@pytest.mark.parametrize("kind", ["torchscript", "zip", "legacy"])
def test_a_pickle_bomb_is_refused_by_name_and_does_not_go_off(tmp_path: Path, archive: Path, kind: str) -> None:
    marker, path = tmp_path / "executed", tmp_path / "bomb.pt"
    hostile = {"visual.proj": Bomb(f"touch '{marker}'")}
    content = pickle.dumps(hostile, protocol=2)
    path.write_bytes(rewrite(archive, {"data.pkl": content}) if kind == "torchscript" else saved(hostile, kind))
    with pytest.raises(CheckpointError, match=r"(posix|nt|os)\.system.*nothing was run"):
        read_state_dict(path)
    assert not marker.exists()
    pickle.loads(content)  # the bomb is a real one
    assert marker.exists()


def pickled(code: bytes) -> Callable[[Path], bytes]:
    return lambda archive: rewrite(archive, {"data/0": struct.pack("<4e", 1, 2, 3, 4), "data.pkl": code})


def storage_and_place(offset: int, size: int, stride: int, key: str) -> str:
    """Code of a pickle: the storage of fp16 numbers in the entry `key`, and where a tensor of rank 1 lies in it."""
    return f"(Vstorage\nctorch\nHalfStorage\nV{key}\nVcpu\nI4\ntQI{offset}\n(I{size}\nt(I{stride}\nt"


def tensor(offset: int, size: int, stride: int, key: str = "0", then: str = "") -> Callable[[Path], bytes]:
    """An archive of one tensor, to which the pickle does something `then`."""
    place = storage_and_place(offset, size, stride, key)
    return pickled(f"}}Vw\nctorch._utils\n_rebuild_tensor_v2\n({place}I00\nNtR{then}s.".encode())


def flipped(entry: str) -> Callable[[Path], bytes]:
    """The archive with one bit of an entry wrong."""

    def flip(archive: Path) -> bytes:
        with zipfile.ZipFile(archive) as file:
            content = file.read(f"{archive.stem}/{entry}")
        assert archive.read_bytes().count(content) == 1
        return archive.read_bytes().replace(content, content[:-1] + bytes([content[-1] ^ 1]))

    return flip


def twice(archive: Path) -> bytes:
    """The archive with a second data.pkl at its end."""
    content = io.BytesIO(archive.read_bytes())
    with zipfile.ZipFile(content, "a") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which says that the name is there
        file.writestr(f"{archive.stem}/data.pkl", b"")
    return content.getvalue()


DAMAGED: dict[str, tuple[bytes | Callable[[Path], bytes], str]] = {  # content, or how to make it of an archive
    "empty": (b"", "it is empty"),
    "a web page": (b"<!DOCTYPE html><html>not found</html>", "it is a web page"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "it is a git-lfs pointer"),
    "text": (b"weights", "it is no TorchScript archive"),
    "a list": (saved([torch.zeros(2)]), "it holds a list, not a state dict"),
    "a list, legacy": (saved([torch.zeros(2)], "legacy"), "it holds a list, not a state dict"),
    "a number": (saved({"a": 1}), "it holds a int under 'a'"),
    "sparse": (saved({"a": torch.eye(2).to_sparse()}, "legacy"), "a is not a plain tensor"),
    "meta": (saved({"a": torch.empty(2, device="meta")}, "legacy"), "a is not a plain tensor"),
    "another zip": (lambda archive: archive.read_bytes().replace(b"data.pkl", b"none.pkl"), "zip without a data.pkl"),
    "Hugging Face's": (saved({"text_model.a": torch.ones(1)}), "it has the keys of Hugging Face's transformers; bring"),
    "SigLIP's": (saved({"visual.trunk.a": torch.ones(1)}), "it has the keys of a timm tower"),
    "one name twice": (twice, "it is a zip that holds one name twice"),
    "flipped weight": (flipped("data/5"), "CRC"),  # torch.load and torch.jit take it
    "flipped pickle": (flipped("data.pkl"), "CRC"),
    "eval": (pickled(b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R."), "asks to run builtins.eval"),
    "load": (pickled(b"ctorch.serialization\nload\n."), "asks to run torch.serialization.load"),
    "holds itself": (pickled(b"c__torch__.M\nM\n)\x81q\x00}Va\nh\x00sb."), "RecursionError"),
    "nested": (pickled(b"})" + b"\x85" * 400_000 + b"Ns."), "far more tuples"),  # it would end the process
    "another entry": (tensor(0, 1, 1, key="/etc/passwd"), "no item named 'RN50/data//etc/passwd'"),
    "outside": (tensor(2, 3, 1), "out of bounds"),
    "before": (tensor(-1, 2, 1), "invalid storage offset"),
    "moved outside": (tensor(0, 1, 1, then=f"({storage_and_place(2, 3, 1, '0')}tb"), "storage that is not resizable"),
}


@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
@pytest.mark.parametrize("kind", DAMAGED)
def test_unusable_files_are_refused_in_one_sentence(tmp_path: Path, archive: Path, kind: str) -> None:
    path, (content, problem) = tmp_path / "x.pt", DAMAGED[kind]
    path.write_bytes(content if isinstance(content, bytes) else content(archive))
    with pytest.raises(CheckpointError, match=rf"^cannot use the checkpoint .*x\.pt: .*{problem}.*$") as caught:
        read_state_dict(path)
    assert (caught.value.path, caught.value.sha256) == (path, file_sha256(path))


@pytest.mark.parametrize("kind", ["torchscript", "zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.001, 0.5, 0.99])
def test_truncated_files(tmp_path: Path, archive: Path, weights: dict[str, Tensor], kind: str, share: float) -> None:
    content = archive.read_bytes() if kind == "torchscript" else saved(weights, kind)
    (tmp_path / "x.pt").write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match=r"^cannot use the checkpoint .*; fetch it again .*$"):
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


def test_the_form_tells_openais_archives_from_state_dicts(tmp_path: Path, archive: Path, weights) -> None:
    path = tmp_path / "x.pt"
    torch.save(weights, path)
    assert is_torchscript(archive)
    assert activation_of(archive, archive) == "quickgelu"
    with pytest.raises(CheckpointError, match="a state dict does not tell QuickGELU from GELU") as caught:
        activation_of(path, path)
    assert caught.value.sha256 == file_sha256(path)
    assert caught.value.reason.endswith(
        "this file is not OpenAI's by its hash or its form; pass --activation quickgelu (OpenAI's, MetaCLIP, DFN, "
        "RN50 and RN101 yfcc15m, RN50 cc12m, ViT-B/32 laion400m) or gelu (LAION-2B, DataComp, "
        'ViT-B/16 laion400m); in Python, activation="quickgelu"'
    )
    for file, given in ((archive, "gelu"), (path, "quickgelu"), (path, "gelu")):
        assert activation_of(file, file, given) == given


def test_a_known_name_or_hash_decides_and_is_not_contradicted(tmp_path, weights, monkeypatch) -> None:
    path = tmp_path / "mine.pt"
    torch.save(weights, path)
    known = {"A": Checkpoint("a.pt", file_sha256(path)), "B": Checkpoint("b.pt", file_sha256(path)[:8])}
    for name, checkpoint in known.items():
        monkeypatch.setattr(clip.checkpoint, "CHECKPOINTS", {"Z": Checkpoint("z.pt", "0" * 64), name: checkpoint})
        assert activation_of(path, path) == activation_of(path, path, "quickgelu") == "quickgelu"
        with pytest.raises(CheckpointError, match=f"{name} was trained with QuickGELU; use --activation auto"):
            activation_of(path, path, "gelu")
    assert activation_of("Z", path) == "quickgelu"  # the hub's copy of RN50 has another SHA-256
    with pytest.raises(CheckpointError, match="Z was trained with QuickGELU"):
        activation_of("Z", path, "gelu")


HUB = "https://hub.example/w"
W, H, DIGITS = Checkpoint("w.pt", SHA256, SIZE), Checkpoint("h.pt", "0" * 64, None, HUB), Checkpoint("w.pt", SHA256[:8])


class Network(dict[str, bytes]):
    """What there is at each address; `asked` are those that were asked for it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def blocks(self, url: str, received: Path, start: int, size: int | None) -> Iterator[bytes]:
        self.asked.append(url)
        if url not in self:
            raise download._RefusedError("HTTP 404")
        yield self[url]


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Network:
    for name in ("CLIP_CACHE", "CLIP_MIRRORS", "CLIP_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(clip.checkpoint, "CHECKPOINTS", {"W": W, "H": H, "digits": DIGITS})
    monkeypatch.setattr(clip.checkpoint, "RN50", TINY)
    network = Network()
    monkeypatch.setattr(download, "_blocks", network.blocks)
    return network


def test_the_cache_and_the_order_of_addresses(network, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CLIP_MIRRORS", "https://a.example/b/ http://c.example/w.pt")
    network[W.urls[1]] = CONTENT
    assert locate_checkpoint("W") == tmp_path / "home" / ".cache" / "clip" / "w.pt"
    locate_checkpoint("W")  # it is there now
    assert network.asked == ["https://a.example/b/w.pt", "http://c.example/w.pt", *W.urls]
    monkeypatch.setenv("CLIP_CACHE", "~/weights")
    assert locate_checkpoint("W") == tmp_path / "home" / "weights" / "w.pt"
    assert locate_checkpoint("W", tmp_path / "root") == tmp_path / "root" / "w.pt"


@pytest.mark.parametrize(("name", "checkpoint"), [("W", W), ("digits", DIGITS)])
def test_a_damaged_file_is_not_used(network: Network, tmp_path: Path, name: str, checkpoint: Checkpoint) -> None:
    target = tmp_path / "w.pt"
    target.write_bytes(FLIPPED)
    advice = r"bring w\.pt there \(docs/data\.md\), name yours with --clip_path, or see it work now"
    with pytest.raises(CheckpointError, match=rf"w\.pt: no address gave it: HTTP 404; {advice}") as caught:
        locate_checkpoint(name, tmp_path)
    assert caught.value.sha256 == file_sha256(target)
    assert target.read_bytes() == FLIPPED
    assert caught.value.__cause__.failures == [f"{url}: HTTP 404" for url in checkpoint.urls]
    network[checkpoint.urls[0]] = FLIPPED
    with pytest.raises(CheckpointError, match="sent a file with sha256"):
        locate_checkpoint(name, tmp_path)
    network[checkpoint.urls[1]] = CONTENT
    assert locate_checkpoint(name, tmp_path).read_bytes() == CONTENT


@pytest.mark.parametrize("name", ["W", "digits"])
def test_offline_nothing_is_asked_for(network: Network, tmp_path: Path, monkeypatch, name: str) -> None:
    monkeypatch.setenv("CLIP_OFFLINE", "1")
    with pytest.raises(CheckpointError, match=r"w\.pt: it is not there, and CLIP_OFFLINE forbids .*--clip_path"):
        locate_checkpoint(name, tmp_path)
    (tmp_path / "w.pt").write_bytes(FLIPPED)
    with pytest.raises(CheckpointError, match="the file there has other bytes"):
        locate_checkpoint(name, tmp_path)
    (tmp_path / "w.pt").write_bytes(CONTENT)
    assert locate_checkpoint(name, tmp_path) == tmp_path / "w.pt"
    assert network.asked == []


def test_the_hubs_file_is_the_last_source_and_has_its_own_name(network, tmp_path, weights, monkeypatch) -> None:
    good, cache = save(weights), tmp_path / "cache"
    nan = weights["text_projection"] * torch.nan
    for content, reason in (
        (save(weights | {"token_embedding.weight": torch.zeros(65, 32)}), "weights of another model: .*vocab_size=65"),
        (save(weights | {"text_projection": nan}), "text_projection holds values that are not finite"),
        (good[:-4], "sent a file that cannot be used: "),
    ):
        network[HUB] = content
        with pytest.raises(CheckpointError, match=reason):
            locate_checkpoint("H", cache)
        assert not cache.exists()
    network[HUB] = good
    for _ in range(2):
        assert locate_checkpoint("H", cache) == cache / "h.safetensors"
    assert network.asked == [*H.urls, HUB] * 4  # and nothing for the last call
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(CheckpointError, match="needs a package: pip install safetensors"):
        read_state_dict(cache / "h.safetensors")


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
