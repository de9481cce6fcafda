"""clip.archive and clip.checkpoint: each kind of file gives the same tensors, a hostile one nothing but an error."""

import argparse
import enum
import io
import os
import pickle
import struct
import sys
import warnings
import zipfile
from collections import Counter, defaultdict
from collections.abc import Iterator
from functools import partial
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import open_clip
import pytest
import torch
from safetensors.torch import save
from torch import Tensor, nn

import clip
import download
from clip.archive import CheckpointError, is_torchscript, read_state_dict
from clip.checkpoint import CHECKPOINTS, Weights, activation_of, locate_checkpoint
from download import file_sha256
from tests.conftest import CONTENT, FLIPPED, PAPER_MODELS, SHA256, SIZE, TINY, child, random_clip

SIZES = {"input_resolution": 64, "context_length": 77, "vocab_size": 49408}


def script(tensors: dict[str, Tensor], path: Path) -> None:
    """Saves a TorchScript archive whose modules hold these tensors."""
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


def test_strides_offsets_and_tied_storages(tmp_path: Path) -> None:
    whole, path = torch.arange(24.0).view(4, 6), tmp_path / "x.pt"
    want = {"whole": whole, "transposed": whole.T, "column": whole[1:3, 2], "empty": torch.zeros(0, 4)}
    for save_it in (script, torch.save, partial(torch.save, _use_new_zipfile_serialization=False)):
        save_it(want, path)
        got = read_state_dict(path)
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


@pytest.mark.parametrize("kind", ["torchscript", "zip", "legacy", "safetensors"])
def test_every_kind_of_file_gives_what_was_saved_and_a_cut_one_an_error(tmp_path, archive, weights, kind: str) -> None:
    path = tmp_path / "anything.bin"  # the content decides, not the suffix
    path.write_bytes(content := archive.read_bytes() if kind == "torchscript" else saved(weights, kind))
    assert_same(read_state_dict(path), weights)
    assert is_torchscript(path) == (kind == "torchscript")
    model, _ = clip.load(path, device="cpu", activation="quickgelu")
    assert_same(model.state_dict(), {k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    for share in (0.001, 0.5, 0.99):
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(CheckpointError, match=r"^cannot use the checkpoint .*; fetch it again .*$"):
            read_state_dict(path)


class Bomb(str):
    """Unpickles to the run of this command. People have classes within classes, too."""

    State = enum.Enum("State", ["DONE"], module=__name__, qualname="Bomb.State")

    def __reduce__(self) -> tuple[object, ...]:
        return os.system, (str(self),)


BOMB = Bomb("touch executed")


@pytest.mark.filterwarnings("ignore:.*non-standard.*|.*Validating sparse")
@pytest.mark.parametrize("kind", ["zip", "legacy"])
def test_wrappings_and_foreign_objects_of_training_scripts(tmp_path, weights, kind, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": [{"betas": (0.9, 0.98)}]}
    module = {f"module.{name}": tensor for name, tensor in weights.items()}
    named = {f"model._orig_mod.{name}": tensor for name, tensor in weights.items()}
    beside = {"best": np.float64(0.5), "args": argparse.Namespace(lr=1), "steps": Counter("ab"), "set": {1}}
    beside |= {"state": Bomb.State.DONE, "lists": defaultdict(list, {1: [2]}), "bomb": BOMB}
    beside |= {"net": nn.Linear(2, 3), "sparse": torch.eye(2).to_sparse(), "mask": torch.ones(2, dtype=torch.complex64)}
    for content in (
        {"epoch": 3, "name": "a run", "optimizer": optimizer, "state_dict": module},
        weights | {name: torch.tensor(value) for name, value in SIZES.items()},
        {"model": {"clip": named}},  # nested once, two prefixes
        {"model_state_dict": weights | {"attn_mask": torch.zeros(7, 7), "text.position_ids": torch.zeros(7)}},
        {"clip": weights} | beside,
    ):
        (tmp_path / "x.pt").write_bytes(saved(content, kind))
        assert_same(read_state_dict(tmp_path / "x.pt"), weights)
    assert not (tmp_path / "executed").exists()
    pickle.loads(pickle.dumps(BOMB))  # it is a real one
    assert (tmp_path / "executed").exists()


def zipped(*entries: tuple[str, bytes]) -> bytes:
    """A zip as torch writes it, with a storage of four fp16 numbers."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # which says that a name is there
        for name, each in (("data/0", struct.pack("<4e", 1, 2, 3, 4)), *entries):
            file.writestr(f"x/{name}", each)
    return content.getvalue()


def bare(code: bytes) -> bytes:
    """A file as before torch 1.6, with such a storage."""
    before = [pickle.dumps(each) for each in (0x1950A86A20F9469CFC6C, 1001, {})]
    return b"".join([*before, code, pickle.dumps(["0"]), struct.pack("<q4e", 4, 1, 2, 3, 4)])


def storage_and_place(offset: int, size: int, stride: int, key: str, count: int) -> str:
    """Code of a pickle: the storage of fp16 numbers in the entry `key`, and where a tensor of rank 1 lies in it."""
    return f"(Vstorage\nctorch\nHalfStorage\nV{key}\nVcpu\nI{count}\nNtQI{offset}\n(I{size}\nt(I{stride}\nt"


def tensor(offset: int, size: int, stride: int, key: str = "0", then: str = "", count: int = 4) -> bytes:
    """A pickle of one tensor, to which it does something `then`."""
    place = storage_and_place(offset, size, stride, key, count)
    return f"}}Vw\nctorch._utils\n_rebuild_tensor_v2\n({place}I00\nNtR{then}s.".encode()


NUMBERS = torch.arange(100.0)
EVAL, ITSELF = b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.", b"c__torch__.M\nM\n)\x81q\x00}Va\nh\x00sb."
DAMAGED = {
    "a web page": (b"<!DOCTYPE html><html>not found</html>", "it is a web page"),
    "git-lfs": (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "it is a git-lfs pointer"),
    "text": (b"weights", "it is no TorchScript archive"),
    "a list": (saved([torch.zeros(2)]), "it holds a list, so it is not a state dict"),
    "a number": (saved({"a": 1}), "it holds a int, so"),
    "no CLIP": (saved({"a": torch.ones(1)}), "not a CLIP checkpoint: it has no entry visual"),
    "bomb": (saved({"a": BOMB}), r"it asks to run (posix|nt|os).system \(nothing was run\), so"),
    "bomb, bare": (saved({"a": BOMB}, "legacy"), r"it asks to run (posix|nt|os).system \(nothing"),
    "bomb, pickle": (pickle.dumps(BOMB), "not written by torch"),
    "a module": (saved(nn.Linear(1, 1), "legacy"), r"it asks to run torch.nn.*Linear \(nothing was run\), so"),
    "another zip": (zipped(("data.txt", b"")), "zip without a data.pkl"),
    "Hugging Face's": (saved({"text_model.a": torch.ones(1)}), "it has the keys of Hugging Face's transformers; bring"),
    "SigLIP's": (saved({"visual.trunk.a": torch.ones(1)}), "it has the keys of a timm tower"),
    "one name twice": (zipped(("data.pkl", b""), ("data.pkl", b"")), "it is a zip that holds one name twice"),
    "flipped": (saved({"a": NUMBERS}).replace(NUMBERS.numpy().tobytes(), bytes(400)), "CRC"),  # torch.load takes it
    "eval": (zipped(("data.pkl", EVAL)), "asks to run builtins.eval"),
    "holds itself": (zipped(("data.pkl", ITSELF)), "RecursionError"),
    "another entry": (zipped(("data.pkl", tensor(0, 1, 1, key="../x"))), "no item named 'x/data/../x'"),
    "other storages": (bare(tensor(0, 1, 1, key="1")), "KeyError: '0'"),
    "too large": (bare(tensor(0, 1, 1, count=1000)), "a storage is cut off"),
}
for name, code, problem in (
    ("nested", b"})" + b"\x85" * 400_000 + b"Ns.", "far more tuples"),  # it would end the process
    ("outside", tensor(2, 3, 1), "out of bounds"),
    ("before", tensor(-1, 2, 1), "invalid storage offset"),
    ("moved outside", tensor(0, 1, 1, then=f"({storage_and_place(2, 30, 1, '0', 4)}tb"), "not resizable"),
    ("moved out of nothing", tensor(0, 0, 1, then=f"({storage_and_place(0, 30, 1, '0', 0)}tb"), "not resizable"),
):
    DAMAGED |= {name: (zipped(("data.pkl", code)), problem), f"{name}, bare": (bare(code), problem)}


@pytest.mark.parametrize("kind", DAMAGED)
def test_unusable_files_are_refused_in_one_sentence(tmp_path, monkeypatch, kind: str) -> None:
    monkeypatch.chdir(tmp_path)
    path, (content, problem) = tmp_path / "x.pt", DAMAGED[kind]
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=rf"^cannot use the checkpoint .*x\.pt: .*{problem}.*$") as caught:
        clip.load(path, "cpu", activation="quickgelu")
    assert (caught.value.path, caught.value.sha256) == (path, file_sha256(path))
    assert not (tmp_path / "executed").exists()


def test_not_everything_under_a_path_is_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").touch()  # as /proc/kmsg seems to be
    problems = {"no": "there is no such", "": "it is a directory", "pipe": "not a regular", "empty": "it is empty"}
    for reader, name in product((read_state_dict, locate_checkpoint), problems):
        with pytest.raises(CheckpointError, match=problems[name]):
            reader(tmp_path / name)
    with pytest.raises(CheckpointError, match=r"RN51: there is no such file .*available models, .*ViT-L/14@336px"):
        locate_checkpoint("RN51")


def test_what_tells_the_activation(tmp_path: Path, archive: Path, weights, monkeypatch) -> None:
    path = tmp_path / "mine.pt"
    torch.save(weights, path)
    says = r'.*--activation quickgelu \(OpenAI\'s, .* or gelu \(LAION-2B, .*; in Python, activation="quickgelu"'
    with pytest.raises(CheckpointError, match=f"a state dict does not tell QuickGELU from GELU{says}") as caught:
        activation_of(path, path)
    assert caught.value.sha256 == file_sha256(path)
    assert activation_of(archive, archive) == "quickgelu"
    assert activation_of(archive, archive, "gelu") == activation_of(path, path, "gelu") == "gelu"
    for length in (64, 8):  # a known name or hash decides, and is not contradicted
        known = {"Z": Weights("z.pt", "0" * 64), "A": Weights("a.pt", caught.value.sha256[:length])}
        monkeypatch.setattr(clip.checkpoint, "CHECKPOINTS", known)
        for given in (path, "Z"):  # the hub's copy of RN50 has another SHA-256
            assert activation_of(given, path) == activation_of(given, path, "quickgelu") == "quickgelu"
            with pytest.raises(CheckpointError, match="these weights were trained with QuickGELU"):
                activation_of(given, path, "gelu")


HUB = "https://hub.example/w"
W, H, DIGITS = Weights("w.pt", SHA256, SIZE), Weights("h.pt", "0" * 64, None, HUB), Weights("w.pt", SHA256[:8])


@pytest.fixture
def network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> SimpleNamespace:
    """`files`: what there is at each address; `asked`: those that were asked for it."""
    network = SimpleNamespace(files={}, asked=[])

    def blocks(url: str, *_: object) -> Iterator[bytes]:
        network.asked.append(url)
        if url not in network.files:
            raise download._RefusedError("HTTP 404")
        yield network.files[url]

    for name in ("CLIP_CACHE", "CLIP_MIRRORS", "CLIP_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr(clip.checkpoint, "CHECKPOINTS", {"W": W, "H": H, "digits": DIGITS})
    monkeypatch.setattr(clip.checkpoint, "RN50", TINY)
    monkeypatch.setattr(download, "_blocks", blocks)
    return network


def test_the_cache_and_the_order_of_addresses(network, tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("CLIP_MIRRORS", "https://a.example/b/ http://c.example/w.pt")
    network.files[W.urls[1]] = CONTENT
    for _ in range(2):
        assert locate_checkpoint("W") == tmp_path / "home" / ".cache" / "clip" / "w.pt"
    assert network.asked == ["https://a.example/b/w.pt", "http://c.example/w.pt", *W.urls]
    monkeypatch.setenv("CLIP_CACHE", "~/weights")
    assert locate_checkpoint("W") == tmp_path / "home" / "weights" / "w.pt"
    assert locate_checkpoint("W", tmp_path / "root") == tmp_path / "root" / "w.pt"


@pytest.mark.parametrize("name", ["W", "digits"])
def test_a_damaged_file_is_not_used_and_offline_nothing_is_asked_for(network, tmp_path, monkeypatch, name) -> None:
    target, first = tmp_path / "w.pt", clip.checkpoint.CHECKPOINTS[name].urls[0]
    bring = r"bring w\.pt there \(docs/data\.md\), name your file, or see it work now"
    for offline, at_the_address, before, problem in (
        ("1", CONTENT, None, "it is not there, and CLIP_OFFLINE forbids fetching it"),
        ("1", CONTENT, FLIPPED, "it has other bytes, and CLIP_OFFLINE"),
        ("0", None, FLIPPED, "no address gave it: HTTP 404"),
        ("0", FLIPPED, FLIPPED, "no address gave it: sent a file with sha256"),
        ("0", CONTENT, b"", ""),
        ("1", None, CONTENT, ""),
    ):
        monkeypatch.setenv("CLIP_OFFLINE", offline)
        network.files = {first: at_the_address} if at_the_address else {}
        network.asked.clear()
        if before is not None:
            target.write_bytes(before)
        if problem:
            with pytest.raises(CheckpointError, match=rf"w\.pt: {problem}.*; {bring}") as caught:
                locate_checkpoint(name, tmp_path)
            assert caught.value.sha256 == (before and file_sha256(target))
            assert before is None or target.read_bytes() == before
        else:
            assert locate_checkpoint(name, tmp_path).read_bytes() == CONTENT
        assert bool(network.asked) == (offline == "0")


def test_the_hubs_file_is_the_last_source_and_has_its_own_name(network, tmp_path, weights, monkeypatch) -> None:
    good, cache = save(weights), tmp_path / "cache"
    nan = weights["text_projection"] * torch.nan
    for reason, content in {
        "weights of another model: .*vocab_size=65": save(weights | {"token_embedding.weight": torch.zeros(65, 32)}),
        "text_projection holds values that are not finite": save(weights | {"text_projection": nan}),
        "sent a file that cannot be used: ": good[:-4],
    }.items():
        network.files[HUB] = content
        with pytest.raises(CheckpointError, match=reason):
            locate_checkpoint("H", cache)
        assert list(cache.iterdir()) == []
    network.files[HUB] = good
    for _ in range(2):
        assert locate_checkpoint("H", cache) == cache / "h.safetensors"
    assert network.asked == [*H.urls, HUB] * 4  # and nothing for the last call
    monkeypatch.setitem(sys.modules, "safetensors.torch", None)
    with pytest.raises(CheckpointError, match="needs: pip install safetensors"):
        read_state_dict(cache / "h.safetensors")


def test_table_of_checkpoints_is_complete() -> None:
    assert len({bytes.fromhex(checkpoint.sha256) for checkpoint in CHECKPOINTS.values()}) == 11
    assert [name for name, checkpoint in CHECKPOINTS.items() if len(checkpoint.sha256) == 64] == list(PAPER_MODELS)
    for name in ("cc12m", "yfcc15m"):  # the digits of the SHA-256 are those in the file's name
        checkpoint, address = CHECKPOINTS[f"RN50-{name}"], open_clip.get_pretrained_url("RN50", name)
        assert checkpoint.file == f"rn50-quickgelu-{name}-{checkpoint.sha256}.pt" == Path(address).name
        assert address in checkpoint.urls
    address = f"https://openaipublic.azureedge.net/clip/models/{CHECKPOINTS['RN50'].sha256}/RN50.pt"
    assert CHECKPOINTS["RN50"].urls[0] == address == open_clip.get_pretrained_url("RN50", "openai")
    assert PAPER_MODELS["RN50"] == clip.checkpoint.RN50  # which the hub's copy is compared with


def test_an_old_torch_is_refused() -> None:
    code = "import torch; torch.__version__ = torch.torch_version.TorchVersion('2.9.1+cu126'); import clip"
    assert "torch 2.9.1+cu126 is too old; install torch>=2.10" in child("-c", code).stderr
