"""CLIP: an image encoder and a text encoder with one joint space (Radford et al., ICML 2021, arXiv 2103.00020).

The paper's ModifiedResNets and vision transformers, under the keys of OpenAI's state dicts, which tell every size. An
image encoder gives its pooled embedding or, by `forward_trunk`, what it has of each patch. Left out: training.

Shapes: B images or texts, H x W pixels, h x w patches, C channels of the trunk, D joint dimension, L text tokens.
"""

import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from textwrap import shorten
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

HEAD_WIDTH = 64  # every transformer of the paper has heads of 64 channels, so that a state dict tells their number
FLOATS = (torch.float32, torch.float16, torch.bfloat16)  # what a checkpoint may hold
RESNET_STRIDE = 32  # pixels from one cell of layer4's map to the next: stem 4, layers 2, 3 and 4 two each
# Statistics of CLIP's training images, RGB in [0, 1] (Radford et al. 2021, released preprocessing).
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Architecture:
    """The sizes of one CLIP; the names are those of OpenAI's constructor."""

    embed_dim: int
    image_resolution: int
    vision_layers: Any  # four numbers of blocks, a tuple, for a ModifiedResNet, else one
    vision_width: int
    vision_patch_size: Any  # an int [px]; None for a ModifiedResNet
    context_length: int
    vocab_size: int
    transformer_width: int
    transformer_layers: int


class Trunk(NamedTuple):
    """What an image encoder has of B images: a ResNet's layer4, or the input of a vision transformer's last block."""

    patches: Tensor  # (B, C, h, w)
    cls: Tensor  # (B, C), the token of the whole image: the mean of the patches, or the class token

    def tokens(self) -> Tensor:
        """As a sequence, the image's token first: (B, 1 + h w, C)."""
        return torch.cat([self.cls[:, None], self.patches.flatten(2).transpose(1, 2)], dim=1)


def drawn(*shape: int, std: float) -> Tensor:
    """Random start of a parameter: uniform, as normal numbers on the meta device load torch's compiler for a second."""
    bound = std * 3**0.5
    return torch.empty(shape).uniform_(-bound, bound)


def resized_positions(embedding: Tensor, h: int, w: int) -> Tensor:
    """A positional embedding (1 + grid^2, width) for h x w patches: (1 + h w, width); the first row stays."""
    grid = int((len(embedding) - 1) ** 0.5)
    if (h, w) == (grid, grid):
        return embedding
    patches = embedding[1:].float().T.unflatten(1, (grid, grid))[None]  # (1, width, grid, grid)
    patches = F.interpolate(patches, (h, w), mode="bilinear", align_corners=True)
    return torch.cat([embedding[:1], patches[0].flatten(1).T.to(embedding.dtype)])


def attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k' / sqrt d) v in each head of d channels: (B, Q, C), (B, L, C), (B, L, C) -> (B, Q, C)."""
    shape = (max(1, query.shape[2] // HEAD_WIDTH), -1)
    heads = [x.unflatten(2, shape).transpose(1, 2) for x in (query, key, value)]  # (B, heads, Q or L, d)
    return F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)


def conv_bn(inputs: int, outputs: int, size: int, stride: int = 1) -> tuple[nn.Conv2d, nn.BatchNorm2d]:
    """A convolution that loses no pixels at the edges, and its batch norm."""
    return nn.Conv2d(inputs, outputs, size, stride, size // 2, bias=False), nn.BatchNorm2d(outputs)


class Bottleneck(nn.Module):
    """Residual block of a ModifiedResNet: 1x1, 3x3, 1x1 convolutions; strides are average pools (anti-aliased)."""

    def __init__(self, inplanes: int, planes: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1, self.bn1 = conv_bn(inplanes, planes, 1)
        self.conv2, self.bn2 = conv_bn(planes, planes, 3)
        self.avgpool = nn.AvgPool2d(stride) if stride > 1 else nn.Identity()
        self.conv3, self.bn3 = conv_bn(planes, planes * 4, 1)
        self.downsample = nn.Sequential()  # the identity
        if stride > 1 or inplanes != planes * 4:
            conv, bn = conv_bn(inplanes, planes * 4, 1)
            self.downsample = nn.Sequential(OrderedDict({"-1": nn.AvgPool2d(stride), "0": conv, "1": bn}))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inplanes, H, W) -> (B, 4 planes, H/stride, W/stride)."""
        out = F.relu_(self.bn1(self.conv1(x)))
        out = F.relu_(self.bn2(self.conv2(out)))
        return F.relu_(self.bn3(self.conv3(self.avgpool(out))) + self.downsample(x))


class AttentionPool2d(nn.Module):
    """Takes a map into the joint space by attention; the mean of all patches is one more token, the image's."""

    def __init__(self, grid: int, width: int, output_dim: int) -> None:
        super().__init__()
        self.positional_embedding = nn.Parameter(drawn(grid**2 + 1, width, std=width**-0.5))
        self.k_proj, self.q_proj, self.v_proj = (nn.Linear(width, width) for _ in range(3))
        self.c_proj = nn.Linear(width, output_dim)

    def forward(self, trunk: Trunk, to_queries: bool = False) -> Tensor:
        """CLIP's pooled embedding, then each patch's, of keys or `to_queries`: (B, C, h, w) -> (B, 1 + h w, D)."""
        x = trunk.tokens().to(self.c_proj.weight.dtype)
        x = x + resized_positions(self.positional_embedding, *trunk.patches.shape[2:]).to(x.dtype)
        query = self.q_proj(x)
        key = query if to_queries else self.k_proj(x)
        return self.c_proj(attention(query, key, self.v_proj(x)))


class ModifiedResNet(nn.Module):
    """CLIP's ResNet: three-convolution stem with an average pool, anti-aliased strides, an attention pool."""

    def __init__(self, a: Architecture) -> None:
        super().__init__()
        width, layers = a.vision_width, a.vision_layers
        self.input_resolution, self.patch_size = a.image_resolution, RESNET_STRIDE  # [px]
        self.patch_dim, self.joint_dim = width * 32, a.embed_dim  # C, D
        self.conv1, self.bn1 = conv_bn(3, width // 2, 3, stride=2)
        self.conv2, self.bn2 = conv_bn(width // 2, width // 2, 3)
        self.conv3, self.bn3 = conv_bn(width // 2, width, 3)

        def layer(inplanes: int, planes: int, blocks: int, stride: int) -> nn.Sequential:
            rest = [Bottleneck(planes * 4, planes) for _ in range(blocks - 1)]
            return nn.Sequential(Bottleneck(inplanes, planes, stride), *rest)

        self.layer1 = layer(width, width, layers[0], stride=1)
        self.layer2 = layer(width * 4, width * 2, layers[1], stride=2)
        self.layer3 = layer(width * 8, width * 4, layers[2], stride=2)
        self.layer4 = layer(width * 16, width * 8, layers[3], stride=2)
        self.attnpool = AttentionPool2d(a.image_resolution // RESNET_STRIDE, self.patch_dim, a.embed_dim)

    def forward_trunk(self, image: Tensor) -> Trunk:
        """Output of layer4, so NOT in the joint space: (B, 3, H, W), divisible by 32 -> patches (B, C, H/32, W/32)."""
        x = F.relu_(self.bn1(self.conv1(checked(image, self))))
        x = F.relu_(self.bn2(self.conv2(x)))
        x = F.avg_pool2d(F.relu_(self.bn3(self.conv3(x))), 2)  # (B, width, H/4, W/4)
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))  # (B, C, H/32, W/32)
        return Trunk(x, x.mean(dim=(2, 3)))

    def forward(self, image: Tensor) -> Tensor:
        """The pooled joint embedding: (B, 3, R, R) of the model's own resolution R -> (B, D)."""
        return self.attnpool(self.forward_trunk(image))[:, 0]


class LayerNorm(nn.LayerNorm):
    """Layer norm computed in fp32 whatever the dtype of its input."""

    def forward(self, input: Tensor) -> Tensor:
        """(..., width) -> the same shape and dtype."""
        return super().forward(input.float()).to(input.dtype)


class QuickGELU(nn.Module):
    """x * sigmoid(1.702 x), the approximation of GELU that CLIP was trained with."""

    def forward(self, x: Tensor) -> Tensor:
        """Any shape -> the same shape."""
        return x * torch.sigmoid(1.702 * x)


ACTIVATIONS = {"quickgelu": QuickGELU, "gelu": nn.GELU}  # in transformers; a state dict does not tell them apart


class ResidualAttentionBlock(nn.Module):
    """Pre-norm transformer block: x + attention(norm(x)), to no later token if `causal`, then x + mlp(norm(x))."""

    def __init__(self, width: int, activation: str, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.attn = nn.MultiheadAttention(width, max(1, width // HEAD_WIDTH), batch_first=True)
        self.ln_1 = LayerNorm(width)
        c_fc, c_proj = nn.Linear(width, width * 4), nn.Linear(width * 4, width)
        self.mlp = nn.Sequential(OrderedDict(c_fc=c_fc, gelu=ACTIVATIONS[activation](), c_proj=c_proj))
        self.ln_2 = LayerNorm(width)

    def forward(self, x: Tensor) -> Tensor:
        """(B, L, width) -> (B, L, width)."""
        y, length = self.ln_1(x), x.shape[1]
        mask = x.new_full((length, length), -math.inf).triu(1) if self.causal else None
        x = x + self.attn(y, y, y, need_weights=False, attn_mask=mask)[0]
        return x + self.mlp(self.ln_2(x))


class Transformer(nn.Module):
    """A stack of residual attention blocks."""

    def __init__(self, width: int, layers: int, activation: str, causal: bool = False) -> None:
        super().__init__()
        self.resblocks = nn.Sequential(*(ResidualAttentionBlock(width, activation, causal) for _ in range(layers)))


class VisionTransformer(nn.Module):
    """ViT with a class token, a norm before the transformer, and a projection into the joint space."""

    def __init__(self, a: Architecture, activation: str) -> None:
        super().__init__()
        width, patch_size = a.vision_width, a.vision_patch_size
        self.input_resolution, self.patch_size = a.image_resolution, patch_size  # [px]
        self.patch_dim, self.joint_dim = width, a.embed_dim  # C, D
        self.conv1 = nn.Conv2d(3, width, patch_size, stride=patch_size, bias=False)
        self.class_embedding = nn.Parameter(drawn(width, std=width**-0.5))
        positions = (a.image_resolution // patch_size) ** 2 + 1
        self.positional_embedding = nn.Parameter(drawn(positions, width, std=width**-0.5))
        self.ln_pre = LayerNorm(width)
        self.transformer = Transformer(width, a.vision_layers, activation)
        self.ln_post = LayerNorm(width)
        self.proj = nn.Parameter(drawn(width, a.embed_dim, std=width**-0.5))

    def forward_trunk(self, image: Tensor) -> Trunk:
        """Input of the last block: (B, 3, H, W), H and W divisible by the patch size P -> patches (B, C, H/P, W/P)."""
        x = self.conv1(checked(image, self))  # (B, C, h, w)
        h, w = x.shape[2:]
        x = Trunk(x, self.class_embedding.to(x.dtype).expand(len(x), -1)).tokens()  # (B, 1 + h w, C)
        x = self.ln_pre(x + resized_positions(self.positional_embedding, h, w).to(x.dtype))
        x = self.transformer.resblocks[:-1](x)
        return Trunk(x[:, 1:].transpose(1, 2).unflatten(2, (h, w)), x[:, 0])

    def forward(self, image: Tensor) -> Tensor:
        """The projected class token: (B, 3, R, R) of the model's own resolution R -> (B, D)."""
        x = self.transformer.resblocks[-1](self.forward_trunk(image).tokens())
        return self.ln_post(x[:, 0]) @ self.proj


class CLIP(nn.Module):
    """Image and text encoder; `activation` is that of the transformers."""

    def __init__(self, architecture: Architecture, activation: str = "quickgelu") -> None:
        super().__init__()
        a, width = architecture, architecture.transformer_width
        self.activation, self.context_length = activation, a.context_length
        self.visual = VisionTransformer(a, activation) if a.vision_patch_size else ModifiedResNet(a)
        self.transformer = Transformer(width, a.transformer_layers, activation, causal=True)
        self.token_embedding = nn.Embedding.from_pretrained(drawn(a.vocab_size, width, std=0.02), freeze=False)
        self.positional_embedding = nn.Parameter(drawn(a.context_length, width, std=0.01))
        self.ln_final = LayerNorm(width)
        self.text_projection = nn.Parameter(drawn(width, a.embed_dim, std=width**-0.5))
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))

    @property
    def dtype(self) -> torch.dtype:
        """What the image encoder computes in: the dtype of its weights."""
        return self.visual.conv1.weight.dtype

    def encode_image(self, image: Tensor) -> Tensor:
        """Pooled joint embedding, not normalised: (B, 3, R, R) -> (B, D), R = `visual.input_resolution`."""
        side = self.visual.input_resolution
        if image.shape[1:] != (3, side, side):
            raise ValueError(f"expected (B, 3, {side}, {side}), got {tuple(image.shape)}")
        return self.visual(image)

    def encode_text(self, text: Tensor) -> Tensor:
        """Joint embedding, not normalised, read at the end-of-text token (the largest id): (B, L) int -> (B, D)."""
        if text.ndim != 2 or text.shape[1] != self.context_length:
            raise ValueError(f"expected tokens of shape (B, {self.context_length}), got {tuple(text.shape)}")
        if text.numel() and int(text.max()) >= (known := self.token_embedding.num_embeddings):
            raise ValueError(f"a text encoder of {known} tokens, where CLIP's tokenizer has more")
        dtype, ends = self.text_projection.dtype, text.argmax(dim=-1)
        text = text[:, : int(ends.max()) + 1]  # nothing behind the ends is looked at
        x = self.token_embedding(text).to(dtype) + self.positional_embedding[: text.shape[1]].to(dtype)  # (B, l, width)
        x = self.ln_final(self.transformer.resblocks(x))
        return x[torch.arange(len(x), device=x.device), ends] @ self.text_projection

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        """Scaled cosine similarities: `(logits_per_image (B_image, B_text), logits_per_text (B_text, B_image))`."""
        image_features = F.normalize(self.encode_image(image), dim=-1)
        text_features = F.normalize(self.encode_text(text), dim=-1)
        logits_per_image = self.logit_scale.exp() * image_features @ text_features.T
        return logits_per_image, logits_per_image.T


def checked(image: Tensor, visual: Any) -> Tensor:
    """The image in the dtype of the encoder. Raises ValueError unless H and W are positive multiples of a patch."""
    unit, sizes = visual.patch_size, tuple(image.shape)
    if len(sizes) != 4 or sizes[1] != 3 or any(size == 0 or size % unit for size in sizes[2:]):
        raise ValueError(f"expected (B, 3, H, W) with H and W divisible by {unit}, got {sizes}")
    return image.to(visual.conv1.weight.dtype)


def infer_architecture(state_dict: Mapping[str, Tensor]) -> Architecture:
    """The sizes of the CLIP whose state dict this is. Raises ValueError: it is none, or wider than ViT-L."""

    def shape(key: str, rank: int) -> tuple[int, ...]:
        found = tuple(state_dict[key].shape) if key in state_dict else ()
        if len(found) != rank or 0 in found:
            raise ValueError(f"not a CLIP checkpoint: it has no entry {key} of rank {rank}, or an empty one")
        return found

    def blocks(prefix: str) -> int:
        return len({key.removeprefix(prefix).split(".")[0] for key in state_dict if key.startswith(prefix)})

    if "visual.proj" in state_dict:
        vision_width, _, _, patch_size = shape("visual.conv1.weight", 4)
        vision_layers: Any = blocks("visual.transformer.resblocks.")
        positions, stride = shape("visual.positional_embedding", 2)[0], patch_size
        if vision_width > 1024:  # ViT-L's
            raise ValueError(f"it is a ViT {vision_width} wide, so its heads have over 64 channels; use ViT-B or -L")
    else:
        vision_width, patch_size = shape("visual.layer1.0.conv1.weight", 4)[0], None
        vision_layers = tuple(blocks(f"visual.layer{i}.") for i in (1, 2, 3, 4))
        positions, stride = shape("visual.attnpool.positional_embedding", 2)[0], RESNET_STRIDE
    (context_length, text_width), vocab_size = shape("positional_embedding", 2), shape("token_embedding.weight", 2)[0]
    image = (round((positions - 1) ** 0.5) * stride, vision_layers, vision_width, patch_size)
    text = (context_length, vocab_size, text_width, blocks("transformer.resblocks."))
    return Architecture(shape("text_projection", 2)[1], *image, *text)


def convert_weights(model: nn.Module, dtype: torch.dtype) -> None:
    """Puts convolutions, linear layers, attention and projections into `dtype` and all else into fp32, as OpenAI's."""
    for module in model.modules():
        matrices = isinstance(module, (nn.Conv2d, nn.Linear, nn.MultiheadAttention))
        for name, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            if tensor.is_floating_point():
                half = matrices or name in ("proj", "text_projection")
                tensor.data = tensor.data.to(dtype if half else torch.float32)


def build_model(state: Mapping[str, Tensor], dtype: torch.dtype = torch.float32, activation: str = "quickgelu") -> CLIP:
    """The CLIP of these weights in evaluation mode. Raises ValueError: they are not exactly a CLIP's, or not usable."""
    with torch.device("meta"):  # without storage: the tensors of the state dict are taken over
        model = CLIP(infer_architecture(state), activation)
    try:
        model.load_state_dict(state, assign=True)
    except RuntimeError as error:  # in torch's words, which may fill pages
        raise ValueError(shorten(str(error).partition("CLIP:")[2], 300).rstrip(".")) from error
    for key, value in model.state_dict().items():
        if value.dtype not in FLOATS and not key.endswith("num_batches_tracked"):
            raise ValueError(f"{key} has dtype {value.dtype}, expected float32, float16 or bfloat16")
    del state  # if the caller kept no reference, each tensor is freed as soon as it is converted
    # Official quirk: OpenAI's package rounds these weights to fp16 whatever the file holds, then computes in fp32 on a
    # CPU. Its own files hold fp16, so only an fp32 file shows it; the usual thing would be to use the file's values.
    convert_weights(model, torch.float16)
    for key, value in model.state_dict().items():
        if value.is_floating_point() and not torch.stack(value.aminmax()).isfinite().all():
            raise ValueError(f"{key} holds values that are not finite, or not in fp16; fetch the checkpoint again")
        if key.endswith("running_var") and (value < 0).any():
            raise ValueError(f"{key} holds negative variances")
    convert_weights(model, dtype)
    return model.eval().requires_grad_(False)
