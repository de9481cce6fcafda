"""clip.archive: every kind of file is read to the same tensors; damaged and hostile files do nothing but an error."""

import io
import json
import pickle
import struct
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import clip
from clip.archive import CheckpointError, check_torch, file_sha256, read_state_dict
from clip.checkpoint import CHECKPOINTS, locate_checkpoint
from clip.model import CLIP, Architecture, build_model

TINY = Architecture(
    embed_dim=16,
    image_resolution=32,
    vision_layers=(1, 1, 1, 1),
    vision_width=8,
    vision_patch_size=None,
    context_length=77,
    vocab_size=64,
    transformer_width=64,
    transformer_layers=1,
)
SIZES = {"input_resolution": 32, "context_length": 77, "vocab_size": 64}


def tree_of(module: nn.Module) -> nn.Module:
    """The parameters and buffers of a module under the same names, in modules that torch.jit can script."""
    copy = nn.Module()
    for name, parameter in module.named_parameters(recurse=False):
        copy.register_parameter(name, parameter)
    for name, buffer in module.named_buffers(recurse=False):
        copy.register_buffer(name, buffer)
    for name, child in module.named_children():
        if child.state_dict():
            copy.add_module(name, tree_of(child))
    return copy


def script(module: nn.Module, path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(module).save(str(path))


@pytest.fixture(scope="module")
def weights() -> dict[str, Tensor]:
    torch.manual_seed(0)
    model = CLIP(TINY)
    for name, buffer in model.named_buffers():
        if name.endswith("running_var"):
            buffer.uniform_(0.5, 2)
    return {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, weights: dict[str, Tensor]) -> Path:
    """A TorchScript archive with OpenAI's layout: fp16 weights, the three sizes, code."""
    model = CLIP(TINY)
    model.load_state_dict(weights)
    tree = tree_of(model.half())
    for name, value in SIZES.items():
        tree.register_buffer(name, torch.tensor(value))
    path = tmp_path_factory.mktemp("archive") / "RN50.pt"
    script(tree, path)
    return path


def save_safetensors(state_dict: dict[str, Tensor], path: Path) -> None:
    from safetensors.torch import save_file

    save_file(state_dict, path)


def assert_same(got: dict[str, Tensor], want: dict[str, Tensor]) -> None:
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert got[name].dtype == tensor.dtype, name
        assert torch.equal(got[name], tensor), name


# --- values


def test_torchscript_gives_what_torch_jit_gives(archive: Path, weights: dict[str, Tensor]) -> None:
    got = read_state_dict(archive)
    assert_same(got, weights)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        want = torch.jit.load(str(archive)).state_dict()
    assert SIZES.keys() <= want.keys()
    assert_same(got, {name: tensor for name, tensor in want.items() if name not in SIZES})


def test_torchscript_is_read_without_torch_jit(
    archive: Path, weights: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("torch.jit or torch.load was called")

    monkeypatch.setattr(torch.jit, "load", refuse)
    monkeypatch.setattr(torch, "load", refuse)
    assert_same(read_state_dict(archive), weights)


def test_strides_offsets_and_tied_storages(tmp_path: Path) -> None:
    base = torch.arange(24.0)
    module = nn.Module()
    module.register_buffer("whole", base.view(4, 6))
    module.register_buffer("transposed", base.view(4, 6).T)
    module.register_buffer("column", base.view(4, 6)[1:3, 2])
    module.register_buffer("scalar", base[5])
    module.register_buffer("empty", torch.empty(0, 3))
    module.register_buffer("counter", torch.tensor(7))
    module.register_buffer("brain", torch.tensor([1.5, -2], dtype=torch.bfloat16))
    script(module, tmp_path / "m.pt")
    got = read_state_dict(tmp_path / "m.pt")
    assert got["column"].tolist() == [8.0, 14.0]
    assert got["scalar"].item() == 5
    assert_same(got, module.state_dict())
    assert got["transposed"].stride() == (1, 6)
    assert got["whole"].data_ptr() == got["transposed"].data_ptr()
    assert got["column"].data_ptr() == got["whole"].data_ptr() + 8 * 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
@pytest.mark.parametrize("kind", ["zip", "legacy", "safetensors"])
def test_round_trip(tmp_path: Path, weights: dict[str, Tensor], kind: str, dtype: torch.dtype) -> None:
    want = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    path = tmp_path / "anything.bin"  # the content decides, not the suffix
    if kind == "safetensors":
        save_safetensors(want, path)
    else:
        torch.save(want, path, _use_new_zipfile_serialization=kind == "zip")
    assert_same(read_state_dict(path), want)


def test_safetensors_whose_header_is_not_aligned(tmp_path: Path) -> None:
    path = tmp_path / "odd.safetensors"
    header = (
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"F16","shape":[],"data_offsets":[8,10]}}'
    )
    header += b" " * (1 - len(header) % 2)  # odd, so that the numbers begin at an odd address
    path.write_bytes(struct.pack("<Q", len(header)) + header + struct.pack("<ffe", 1.5, -2, 0.25))
    got = read_state_dict(path)
    assert got["a"].tolist() == [1.5, -2]
    assert got["b"].shape == ()
    assert got["b"].item() == 0.25


def test_wrappings_of_training_scripts_and_sizes_are_dropped(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    wrapped = {"epoch": 3, "state_dict": {f"module.{name}": tensor for name, tensor in weights.items()}}
    torch.save(wrapped, tmp_path / "wrapped.pt")
    assert_same(read_state_dict(tmp_path / "wrapped.pt"), weights)
    torch.save(weights | {name: torch.tensor(value) for name, value in SIZES.items()}, tmp_path / "sizes.pt")
    assert_same(read_state_dict(tmp_path / "sizes.pt"), weights)


def test_load_builds_the_model_that_is_in_the_archive(archive: Path, weights: dict[str, Tensor]) -> None:
    model, _ = clip.load(archive, device="cpu")
    assert model.visual.input_resolution == 32
    assert not any(tensor.is_meta for tensor in model.state_dict().values())
    assert_same(model.state_dict(), {k: v.float() if v.is_floating_point() else v for k, v in weights.items()})
    plain = CLIP(TINY)
    plain.load_state_dict(weights)
    text, image = torch.tensor([[1, 5, 63] + [0] * 74]), torch.linspace(-1, 1, 3 * 32 * 32).view(1, 3, 32, 32)
    torch.testing.assert_close(model.encode_text(text), plain.eval().encode_text(text), atol=0, rtol=0)
    torch.testing.assert_close(model.encode_image(image), plain.encode_image(image), atol=0, rtol=0)


def test_memory_of_reading_an_archive(tmp_path: Path) -> None:
    """Python's share (torch's own is one copy of the tensors) is one storage at a time, not the file."""
    module = nn.Module()
    for i in range(8):
        module.register_buffer(f"part{i}", torch.full((2**18,), float(i)))  # 1 MiB each
    script(module, tmp_path / "m.pt")
    tracemalloc.start()
    try:
        got = read_state_dict(tmp_path / "m.pt")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert got["part7"][-1] == 7
    assert peak < 4 * 2**20  # of a file of 8 MiB


# --- hostile files


class Bomb:
    """Unpickles to a call that leaves a file behind."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[object, ...]:
        import os

        return os.system, (f"touch {self.marker}",)


def rewrite(source: Path, target: Path, changes: dict[str, bytes], compress: bool = False) -> None:
    """Copies a zip with entries added or replaced; the names in `changes` are relative to the archive's folder."""
    with zipfile.ZipFile(source) as old:
        root = old.namelist()[0].split("/")[0]
        changes = {f"{root}/{name}" if not name.startswith(("/", "..")) else name: v for name, v in changes.items()}
        method = zipfile.ZIP_DEFLATED if compress else zipfile.ZIP_STORED
        with zipfile.ZipFile(target, "w", method) as new:
            for info in old.infolist():
                if info.filename not in changes:
                    new.writestr(info.filename, old.read(info))
            for name, content in changes.items():
                new.writestr(name, content)


@pytest.mark.parametrize("kind", ["torchscript", "zip", "legacy", "bare pickle"])
def test_a_pickle_bomb_is_refused_by_name_and_does_not_go_off(tmp_path: Path, archive: Path, kind: str) -> None:
    marker, path = tmp_path / "executed", tmp_path / "bomb.pt"
    content = pickle.dumps({"visual.proj": Bomb(marker)}, protocol=2)
    if kind == "torchscript":
        rewrite(archive, path, {"data.pkl": content})
    elif kind == "bare pickle":
        path.write_bytes(content)
    else:
        torch.save({"visual.proj": Bomb(marker)}, path, _use_new_zipfile_serialization=kind == "zip")
    with pytest.raises(CheckpointError, match=r"(posix|nt|os)\.system") as caught:
        read_state_dict(path)
    assert "nothing was run" in str(caught.value)
    assert caught.value.sha256 == file_sha256(path)
    assert not marker.exists()
    pickle.loads(content)  # the bomb is a real one
    assert marker.exists()


@pytest.mark.parametrize(
    "opcodes",
    [
        b"cbuiltins\neval\n(S'1'\ntR.",  # a string in quotes, which pickle would evaluate
        b"\x80\x04\x8c\x08builtins\x8c\x04eval\x93\x8c\x011\x85R.",  # STACK_GLOBAL
        b"\x80\x02(ibuiltins\neval\n.",  # INST
        b"\x80\x02\x82\x01.",  # the registry of extensions
        b"\x80\x02Nr\xff\xff\xff\x7f.",  # a memo of 2**31 entries
        b"\x80\x02})" + b"\x85" * 300_000 + b"Ns.",  # a key so deep that its hash overruns the stack
        b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n.",  # not a module
        b"\x80\x02c__torch__.M\nM\n)\x81}(X\x01\x00\x00\x00ah\x00ubq\x00.",  # reads a memo that is not there
        b"\x80\x02c__torch__.M\nM\n)\x81q\x00}X\x01\x00\x00\x00ah\x00sb.",  # a module that holds itself
        b"\x80\x02",
        b"",
    ],
)
def test_other_instructions_in_an_archive_are_refused(tmp_path: Path, archive: Path, opcodes: bytes) -> None:
    rewrite(archive, tmp_path / "x.pt", {"data.pkl": opcodes})
    with pytest.raises(CheckpointError):
        read_state_dict(tmp_path / "x.pt")


def tensor_pickle(offset: int, size: tuple[int, ...], stride: tuple[int, ...], key: str = "0") -> bytes:
    """A data.pkl, written by hand, of one module with one fp16 tensor `w`."""

    def number(n: int) -> bytes:
        raw = n.to_bytes(9, "little", signed=True)
        return b"\x8a" + bytes([len(raw)]) + raw

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(number(n) for n in values) + b"t"

    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    storage = b"(" + text("storage") + b"ctorch\nHalfStorage\n" + text(key) + text("cuda:0") + number(1) + b"tQ"
    hooks = b"\x89ccollections\nOrderedDict\n)R"
    tensor = (
        b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset) + numbers(size) + numbers(stride) + hooks
    )
    return b"\x80\x02c__torch__.M\nM\n)\x81}" + text("w") + tensor + b"tRsb."


@pytest.mark.parametrize(
    ("offset", "size", "stride", "problem"),
    [
        (0, (5,), (1,), "beyond its storage"),
        (2, (3,), (1,), "beyond its storage"),
        (0, (2, 2), (3, 1), "beyond its storage"),
        (0, (2**40,), (0,), "beyond its storage"),  # one number, a terabyte of them
        (-1, (2,), (1,), "makes no sense"),
        (3, (4,), (-1,), "makes no sense"),
        (0, (2, 2), (1,), "damaged"),
        (2**62, (2,), (2**62,), "beyond its storage"),
    ],
)
def test_a_tensor_outside_its_storage_is_refused(
    tmp_path: Path, archive: Path, offset: int, size: tuple[int, ...], stride: tuple[int, ...], problem: str
) -> None:
    storage = struct.pack("<4e", 1, 2, 3, 4)
    path = tmp_path / "x.pt"
    rewrite(archive, path, {"data/0": storage, "data.pkl": tensor_pickle(1, (3,), (1,))})
    assert read_state_dict(path)["w"].tolist() == [2, 3, 4]
    rewrite(archive, path, {"data/0": storage, "data.pkl": tensor_pickle(offset, size, stride)})
    with pytest.raises(CheckpointError, match=problem):
        read_state_dict(path)


def test_a_storage_that_is_not_there_is_refused(tmp_path: Path, archive: Path) -> None:
    rewrite(archive, tmp_path / "x.pt", {"data.pkl": tensor_pickle(0, (1,), (1,), key="../../../etc/passwd")})
    with pytest.raises(CheckpointError, match="etc/passwd"):
        read_state_dict(tmp_path / "x.pt")


@pytest.mark.parametrize("name", ["../outside", "/outside", "..\\outside"])
@pytest.mark.parametrize("kind", ["torchscript", "zip"])
def test_a_zip_entry_that_points_outside_is_refused(
    tmp_path: Path, archive: Path, weights: dict[str, Tensor], kind: str, name: str
) -> None:
    source, folder = archive, tmp_path / "folder"
    folder.mkdir()
    if kind == "zip":
        source = tmp_path / "plain.pt"
        torch.save(weights, source)
    rewrite(source, folder / "x.pt", {name: b"something"})
    with pytest.raises(CheckpointError, match="points out of it"):
        read_state_dict(folder / "x.pt")
    assert not list(tmp_path.rglob("*outside*"))


def test_zip_bombs_are_refused(tmp_path: Path, archive: Path) -> None:
    rewrite(archive, tmp_path / "x.pt", {"data/0": bytes(64 * 2**20)}, compress=True)
    assert (tmp_path / "x.pt").stat().st_size < 2**20
    with pytest.raises(CheckpointError, match="far more than its own size"):
        read_state_dict(tmp_path / "x.pt")


def test_two_entries_of_one_name_are_refused(tmp_path: Path, archive: Path) -> None:
    rewrite(archive, tmp_path / "x.pt", {})
    with zipfile.ZipFile(tmp_path / "x.pt", "a") as file, pytest.warns(UserWarning, match="Duplicate"):
        file.writestr(file.namelist()[0], b"again")
    with pytest.raises(CheckpointError, match="two entries"):
        read_state_dict(tmp_path / "x.pt")


# --- damaged files and files of another kind


@pytest.fixture
def plain(tmp_path: Path, weights: dict[str, Tensor]) -> Path:
    torch.save(weights, tmp_path / "plain.pt")
    return tmp_path / "plain.pt"


@pytest.mark.parametrize("kind", ["torchscript", "zip", "legacy", "safetensors"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_truncated_files(tmp_path: Path, archive: Path, weights: dict[str, Tensor], kind: str, share: float) -> None:
    path = tmp_path / "x.pt"
    if kind == "torchscript":
        path.write_bytes(archive.read_bytes())
    elif kind == "safetensors":
        save_safetensors(weights, path)
    else:
        torch.save(weights, path, _use_new_zipfile_serialization=kind == "zip")
    read_state_dict(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(CheckpointError, match="cannot use the checkpoint") as caught:
        read_state_dict(path)
    assert "\n" not in str(caught.value)
    assert caught.value.path == path
    assert caught.value.sha256 == file_sha256(path)


@pytest.mark.parametrize("kind", ["torchscript", "zip"])
@pytest.mark.parametrize("entry", ["data/0", "data/5", "data.pkl"])
def test_one_flipped_bit(tmp_path: Path, archive: Path, plain: Path, kind: str, entry: str) -> None:
    source = archive if kind == "torchscript" else plain
    content = bytearray(source.read_bytes())
    with zipfile.ZipFile(source) as file:
        info = next(info for info in file.infolist() if info.filename.endswith("/" + entry))
    lengths = struct.unpack_from("<HH", content, info.header_offset + 26)  # of the name and the padding
    content[info.header_offset + 30 + sum(lengths) + info.file_size // 2] ^= 1
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match="CRC") as caught:
        read_state_dict(tmp_path / "x.pt")
    assert caught.value.sha256 == file_sha256(tmp_path / "x.pt")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "empty"),
        (b"<!DOCTYPE html><html>not found</html>", "web page"),
        (b"\n  <html>", "web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n", "git-lfs"),
        (b"weights", "no TorchScript archive"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "no TorchScript archive"),
        (pickle.dumps([1, 2]), "holds a list|pickle|not written by torch"),
    ],
)
def test_files_of_another_kind(tmp_path: Path, content: bytes, problem: str) -> None:
    (tmp_path / "x.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=problem):
        read_state_dict(tmp_path / "x.pt")


def test_a_zip_that_torch_did_not_write(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w") as file:
        file.writestr("readme.txt", "hello")
    with pytest.raises(CheckpointError, match=r"without a data\.pkl"):
        read_state_dict(tmp_path / "x.zip")


@pytest.mark.parametrize(
    "saved", [[torch.zeros(2)], {}, {"a": 1}, {3: torch.zeros(2)}, torch.zeros(2), {"a": torch.zeros(2, device="meta")}]
)
def test_saved_things_that_are_no_state_dict(tmp_path: Path, saved: object) -> None:
    torch.save(saved, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match=r"state dict|plain tensor"):
        read_state_dict(tmp_path / "x.pt")


GOOD = {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}


@pytest.mark.parametrize(
    ("header", "problem"),
    [
        ({"a": GOOD["a"] | {"dtype": "U8"}}, "makes no sense"),
        ({"a": GOOD["a"] | {"shape": [3]}}, "wrong place or length"),
        ({"a": GOOD["a"] | {"shape": [-1, -2]}}, "no counts"),
        ({"a": GOOD["a"] | {"shape": [2.0]}}, "no counts"),
        ({"a": GOOD["a"] | {"data_offsets": [0, 4]}}, "wrong place or length"),
        ({"a": GOOD["a"] | {"data_offsets": [8, 16]}}, "wrong place or length"),
        ({"a": GOOD["a"] | {"data_offsets": [0]}}, "makes no sense"),
        (GOOD | {"b": GOOD["a"]}, "wrong place or length"),  # on top of each other
        ({"a": GOOD["a"] | {"shape": [1], "data_offsets": [0, 4]}}, "has 8 bytes of tensors"),
        ({"a": {"shape": [2]}}, "makes no sense"),
        ({"a": 3}, "makes no sense"),
    ],
)
def test_safetensors_headers_that_lie(tmp_path: Path, header: object, problem: str) -> None:
    def write(head: bytes) -> None:
        (tmp_path / "x.safetensors").write_bytes(struct.pack("<Q", len(head)) + head + struct.pack("<ff", 1, 2))

    write(json.dumps(GOOD).encode())
    assert read_state_dict(tmp_path / "x.safetensors")["a"].tolist() == [1, 2]
    write(json.dumps(header).encode())
    with pytest.raises(CheckpointError, match=problem):
        read_state_dict(tmp_path / "x.safetensors")


@pytest.mark.parametrize("head", [b"{not json", b"{" * 100_000, b'{"a": 1, "a": 2}'])
def test_safetensors_headers_that_are_no_json(tmp_path: Path, head: bytes) -> None:
    (tmp_path / "x").write_bytes(struct.pack("<Q", len(head)) + head)
    with pytest.raises(CheckpointError, match="header makes no sense"):
        read_state_dict(tmp_path / "x")


def test_missing_file_directory_and_unknown_name(tmp_path: Path) -> None:
    for reader in (read_state_dict, locate_checkpoint):
        with pytest.raises(CheckpointError, match="there is no such file"):
            reader(tmp_path / "missing.pt")
        with pytest.raises(CheckpointError, match="directory"):
            reader(tmp_path)
    with pytest.raises(CheckpointError, match=r"RN51.*available models \(RN50, RN101, .*ViT-L/14@336px\)"):
        locate_checkpoint("RN51")


def test_a_local_file_is_taken_as_it_is(archive: Path) -> None:
    assert locate_checkpoint(archive) == archive
    assert locate_checkpoint(str(archive)) == archive


# --- the schema


def test_four_faults_of_a_state_dict_have_four_errors(tmp_path: Path, weights: dict[str, Tensor]) -> None:
    def message_of(changed: dict[str, Tensor]) -> str:
        torch.save(changed, tmp_path / "x.pt")
        with pytest.raises(CheckpointError) as caught:
            clip.load(tmp_path / "x.pt", device="cpu")
        return str(caught.value)

    key = "visual.layer1.0.conv2.weight"
    name = "visual.attnpool.c_proj.weight"
    assert f"missing: {key}" in message_of({k: v for k, v in weights.items() if k != key})
    assert "unexpected: visual.extra" in message_of(weights | {"visual.extra": torch.zeros(1)})
    assert f"{name} has shape (256, 16)" in message_of(weights | {name: weights[name].T.contiguous()})
    broken = weights[key].clone()
    broken[0, 0, 0, 0] = float("nan")
    assert f"{key} holds values that are not finite" in message_of(weights | {key: broken})
    variance = "visual.bn1.running_var"
    assert f"{variance} holds negative variances" in message_of(weights | {variance: -weights[variance]})
    assert f"{key} has dtype torch.int64" in message_of(weights | {key: weights[key].long()})


def test_building_without_storage_leaves_nothing_out(weights: dict[str, Tensor]) -> None:
    built = build_model(weights)
    tensors = [*built.parameters(), *built.buffers()]
    assert len(tensors) == len(weights)
    assert not any(tensor.is_meta for tensor in tensors)


# --- the rest


def test_table_of_checkpoints_is_complete_and_read_only() -> None:
    assert clip.available_models() == [
        *("RN50", "RN101", "RN50x4", "RN50x16", "RN50x64"),
        *("ViT-B/32", "ViT-B/16", "ViT-L/14", "ViT-L/14@336px"),
    ]
    assert len({checkpoint.sha256 for checkpoint in CHECKPOINTS.values()}) == 9
    for checkpoint in CHECKPOINTS.values():
        assert len(bytes.fromhex(checkpoint.sha256)) == 32
        assert all(url.endswith(f"/clip/models/{checkpoint.sha256}/{checkpoint.file}") for url in checkpoint.urls)
    assert CHECKPOINTS["RN50"].size == 255_827_503
    with pytest.raises(TypeError):
        CHECKPOINTS["RN50"] = CHECKPOINTS["RN101"]  # type: ignore[index]


def test_the_hubs_architecture_is_that_of_rn50() -> None:
    hub = CHECKPOINTS["RN50"].hub
    assert hub is not None
    with torch.device("meta"):
        state_dict = CLIP(hub.architecture).state_dict()
    assert len(state_dict) == 489
    assert state_dict["visual.attnpool.positional_embedding"].shape == (50, 2048)
    assert state_dict["text_projection"].shape == (512, 1024)
    assert sum(tensor.numel() for name, tensor in state_dict.items() if "running" not in name) == 102_007_192


@pytest.mark.parametrize("version", ["1.13.1", "2.6.0", "2.9.1+cu126"])
def test_an_old_torch_is_refused(version: str) -> None:
    with pytest.raises(ImportError, match=f"torch {version.split('+')[0]}.* is too old.*install torch>=2.10"):
        check_torch(version)


def test_a_new_torch_is_accepted() -> None:
    for version in ("2.10.0", "2.10.0+cpu", "2.15.0", "3.0"):
        check_torch(version)


def test_the_error_survives_a_process_boundary() -> None:
    error = pickle.load(io.BytesIO(pickle.dumps(CheckpointError("a.pt", "it is empty", "ab" * 32))))
    assert (error.path, error.reason, error.sha256) == (Path("a.pt"), "it is empty", "ab" * 32)
    assert str(error) == f"cannot use the checkpoint a.pt: it is empty (the file there has sha256 {'ab' * 32})"
