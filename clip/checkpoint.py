"""Where CLIP's weights come from, and which activation they were trained with: names, hashes, the cache, addresses.

A file gets its final name in the cache only after its SHA-256 was compared with the one pinned here, so a mirror needs
no trust; it is hashed whenever it is used. Of open_clip's two RN50s, on CC12M and YFCC15M, only the first 8 digits are
known, from their names, which is no help against an attack. Of the last source of RN50, the hub's copy in fp32, none
is: https vouches for it, and a check that its entries are exactly RN50's in name and shape, and finite.

Environment: `CLIP_CACHE` (folder), `CLIP_MIRRORS` (addresses separated by spaces, tried first), `CLIP_OFFLINE=1`.
"""

import os
from dataclasses import dataclass
from pathlib import Path

from clip.archive import CheckpointError, is_torchscript, read_state_dict, require_file
from clip.model import Architecture, build_model, infer_architecture
from download import DownloadError, download, file_sha256

HUB = "https://huggingface.co/timm/resnet50_clip.openai/resolve/main/open_clip_model.safetensors"
OPENAI = (
    "https://openaipublic.azureedge.net/clip/models/{sha256}/{file}",
    "https://openaipublic.blob.core.windows.net/clip/models/{sha256}/{file}",
)
OPEN_CLIP = (
    "https://github.com/mlfoundations/open_clip/releases/download/v1.0/{file}",
    "https://github.com/mlfoundations/open_clip/releases/download/v0.2-weights/{file}",  # open_clip 3 names this one
)
QUICKGELU = "OpenAI's, MetaCLIP, DFN, RN50 and RN101 yfcc15m, RN50 cc12m, ViT-B/32 laion400m"
GELU = "LAION-2B, DataComp, ViT-B/16 laion400m"
TOY_SHA256 = "0f6d7a2a248e261456810795eee073429167ae6d83379d2ef26e1c4756a4c344"  # of demo/rooms_clip.pt: QuickGELU
RN50 = Architecture(1024, 224, (3, 4, 6, 3), 64, None, 77, 49408, 512, 12)  # what the hub's copy has to be


@dataclass(frozen=True)
class Weights:
    """A file of weights, all of them trained with QuickGELU."""

    file: str  # its name
    sha256: str  # or its first digits
    size: int | None = None  # [bytes], if known
    hub: str | None = None  # address of the hub's copy, if there is one
    addresses: tuple[str, ...] = OPENAI  # of those who trained it

    @property
    def urls(self) -> list[str]:
        """The addresses of the file."""
        return [address.format(sha256=self.sha256, file=self.file) for address in self.addresses]

    def matches(self, sha256: str) -> bool:
        """Whether a file with this SHA-256 is this one, as far as its digits are known."""
        return sha256.startswith(self.sha256)


CHECKPOINTS = {
    "RN50": Weights("RN50.pt", "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762", 255827503, HUB),
    "RN101": Weights("RN101.pt", "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599"),
    "RN50x4": Weights("RN50x4.pt", "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd"),
    "RN50x16": Weights("RN50x16.pt", "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa"),
    "RN50x64": Weights("RN50x64.pt", "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c"),
    "ViT-B/32": Weights("ViT-B-32.pt", "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af"),
    "ViT-B/16": Weights("ViT-B-16.pt", "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f"),
    "ViT-L/14": Weights("ViT-L-14.pt", "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836"),
    "ViT-L/14@336px": Weights("ViT-L-14-336px.pt", "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02"),
    "RN50-cc12m": Weights("rn50-quickgelu-cc12m-f000538c.pt", "f000538c", addresses=OPEN_CLIP),
    "RN50-yfcc15m": Weights("rn50-quickgelu-yfcc15m-455df137.pt", "455df137", addresses=OPEN_CLIP),
}


def locate_checkpoint(name_or_path: str | Path, download_root: str | Path | None = None) -> Path:
    """A local file as it is, or a known model's, fetched into the cache if need be. Raises CheckpointError: neither."""
    checkpoint = CHECKPOINTS.get(str(name_or_path))
    if checkpoint is None:
        path = Path(os.path.expanduser(name_or_path))
        require_file(path, f" (nor is it one of the available models, {', '.join(CHECKPOINTS)})")
        return path
    cache = download_root or os.environ.get("CLIP_CACHE") or "~/.cache/clip"
    target, found = Path(os.path.expanduser(cache), checkpoint.file), None
    hub_target = target.with_suffix(".safetensors")
    bring = f"bring {checkpoint.file} there (docs/data.md), name your file, or see it work now: sh test.sh --demo"
    try:
        if target.parts[0] == "~":
            raise OSError(0, "the home folder is not known, as $HOME is not set")
        # An empty file is fetched like a missing one.
        if target.is_file() and target.stat().st_size and checkpoint.matches(found := file_sha256(target)):
            return target
        if checkpoint.hub and hub_target.exists():
            return hub_target
        if os.environ.get("CLIP_OFFLINE", "0") not in ("", "0"):
            state = f"{'it has other bytes' if found else 'it is not there'}, and CLIP_OFFLINE forbids fetching it"
            raise CheckpointError(target, f"{state}; {bring}", found)
        return _fetch(checkpoint, target, hub_target)
    except DownloadError as error:
        raise CheckpointError(target, f"{error}; {bring}", found) from error
    except OSError as error:
        how = f"make room, choose another folder with $CLIP_CACHE, or {bring}"
        raise CheckpointError(target, f"it cannot be read or stored ({error.strerror}); {how}") from error


def _fetch(checkpoint: Weights, target: Path, hub_target: Path) -> Path:
    """The new file, from the first that has it: mirrors, its own addresses, the hub. Raises DownloadError, OSError."""
    file = "/" + checkpoint.file
    mirrors = [url.removesuffix(file).rstrip("/") + file for url in os.environ.get("CLIP_MIRRORS", "").split()]
    try:
        return download([*mirrors, *checkpoint.urls], target, checkpoint.sha256, checkpoint.size)
    except DownloadError as error:
        if checkpoint.hub is None:
            raise
        try:
            return download([checkpoint.hub], hub_target, "", check=check_rn50)
        except DownloadError as last:
            raise DownloadError([*error.failures, *last.failures]) from last


def check_rn50(path: Path) -> None:
    """Raises ValueError unless the file holds exactly the weights of an RN50, all finite."""
    try:
        state_dict = read_state_dict(path)
    except CheckpointError as error:
        raise ValueError(f"sent a file that cannot be used: {error.reason}") from error
    if (found := infer_architecture(state_dict)) != RN50:
        raise ValueError(f"sent the weights of another model: {found}")
    build_model(state_dict)


def activation_of(name_or_path: str | Path, path: Path, given: str | None = None) -> str:
    """The activation that the checkpoint in the file `path` was trained with, a key of `clip.model.ACTIVATIONS`.

    A known name or SHA-256 tells it; else the user's word, `given`; else a TorchScript archive is taken for OpenAI's.
    Raises CheckpointError: nothing tells it, or `given` contradicts what is known.
    """
    named = str(name_or_path) in CHECKPOINTS  # the hub's copy has another hash
    sha256 = "" if named else file_sha256(path)
    known = named or sha256 == TOY_SHA256 or any(each.matches(sha256) for each in CHECKPOINTS.values())
    if known and given == "gelu":
        raise CheckpointError(path, "these weights were trained with QuickGELU; use --activation auto")
    if given or known or is_torchscript(path):
        return given or "quickgelu"
    why = "a state dict does not tell QuickGELU from GELU, and this file is not OpenAI's by its hash or its form"
    how = f'pass --activation quickgelu ({QUICKGELU}) or gelu ({GELU}); in Python, activation="quickgelu"'
    raise CheckpointError(path, f"{why}; {how}", sha256)
