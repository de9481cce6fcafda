"""The image encoder made ready for inference: the same features from fewer passes over the activations.

`optimize_for_inference` folds the batch norms of a ModifiedResNet into the convolutions before them, has additions and
ReLUs done while a convolution writes its output (oneDNN, on a CPU), and keeps activations channels last. All of `CLIP`
is used as before. `keep_freed_memory` is for programs: it stops glibc from giving activations back to the kernel after
every layer.
"""

import ctypes
import sys
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from clip.model import CLIP, Bottleneck, ModifiedResNet, convert_weights

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h
LARGEST_INT = 2**31 - 1


def optimize_for_inference(model: CLIP, dtype: torch.dtype | None = None) -> CLIP:
    """`model` itself, its image encoder changed in place into the form that is fastest to evaluate.

    A ModifiedResNet gets folded batch norms and fused ReLUs, in channels-last memory; a vision transformer has nothing
    to fold and only changes its dtype. Weights are folded in fp32 and then rounded to `dtype`. The text encoder, which
    runs once for each set of prompts, stays as it is: in bf16 its error would be in every patch's answer. The batch
    norms' entries leave the state dict, so save or copy the model before. A second call changes the dtype only.

    Args:
        model: in evaluation mode.
        dtype: of the image encoder's matrices, as in `convert_weights`; None keeps the present one.

    Raises:
        ValueError: the model is in training mode, where batch norms depend on the batch.
    """
    if model.training:
        raise ValueError("a model in training mode cannot be optimised for inference; call model.eval() first")
    dtype = dtype or model.dtype
    if isinstance(model.visual, ModifiedResNet):
        fuse_resnet(model.visual)
    convert_weights(model.visual, dtype)
    return model


def fuse_resnet(resnet: ModifiedResNet) -> None:
    """Folds and fuses the stem and every block of `resnet`, in place."""
    for i in (1, 2, 3):
        conv, bn = getattr(resnet, f"conv{i}"), getattr(resnet, f"bn{i}")
        if isinstance(bn, nn.BatchNorm2d):
            setattr(resnet, f"conv{i}", FusedConv2d(conv, bn, relu=True))
            setattr(resnet, f"bn{i}", nn.Identity())
    resnet.relu = nn.Identity()  # type: ignore[assignment]  # each convolution has its own
    for layer in (resnet.layer1, resnet.layer2, resnet.layer3, resnet.layer4):
        for i, block in enumerate(layer):
            if isinstance(block, Bottleneck):
                layer[i] = FusedBottleneck(block)


class FusedConv2d(nn.Module):
    """A convolution with a batch norm folded in, an optional addition and an optional ReLU: act(conv(x) + other).

    One oneDNN kernel on a CPU that has it for the dtype; elsewhere, and where a gradient is wanted, several.
    """

    def __init__(self, conv: nn.Conv2d, bn: nn.BatchNorm2d, relu: bool) -> None:
        super().__init__()
        self.conv = fuse_conv_bn_eval(conv.float(), bn).to(memory_format=torch.channels_last)
        self.relu = relu

    @property
    def weight(self) -> Tensor:
        """(C_out, C_in, kernel, kernel)."""
        return self.conv.weight

    def forward(self, x: Tensor, other: Tensor | None = None) -> Tensor:
        """(B, C_in, H, W) -> (B, C_out, H', W'), channels last; `other`, of that shape, may be overwritten."""
        x = x.contiguous(memory_format=torch.channels_last)
        if has_onednn_kernel(x):
            conv, onednn = self.conv, torch.ops.mkldnn
            layer = (conv.weight, conv.bias, conv.padding, conv.stride, conv.dilation, conv.groups)
            if other is None:
                return onednn._convolution_pointwise(x, *layer, "relu" if self.relu else "none", [], "")
            return onednn._convolution_pointwise_(other, x, *layer, "add", 1.0, "relu" if self.relu else None, [], "")
        y = self.conv(x)
        if other is not None:
            y += other
        return F.relu(y, inplace=True) if self.relu else y


class FusedBottleneck(nn.Module):
    """What a `Bottleneck` computes, of fused convolutions."""

    def __init__(self, block: Bottleneck) -> None:
        super().__init__()
        self.conv1 = FusedConv2d(block.conv1, block.bn1, relu=True)
        self.conv2 = FusedConv2d(block.conv2, block.bn2, relu=True)
        self.avgpool = block.avgpool
        self.conv3 = FusedConv2d(block.conv3, block.bn3, relu=True)
        self.downsample: nn.Sequential | None = None
        if block.downsample is not None:
            pool, conv, bn = cast(tuple[nn.AvgPool2d, nn.Conv2d, nn.BatchNorm2d], tuple(block.downsample))
            self.downsample = nn.Sequential(pool, FusedConv2d(conv, bn, relu=False))

    def forward(self, x: Tensor) -> Tensor:
        """(B, inplanes, H, W) -> (B, 4 planes, H/stride, W/stride); `x` may be overwritten."""
        identity = x if self.downsample is None else self.downsample(x)
        return self.conv3(self.avgpool(self.conv2(self.conv1(x))), identity)


def has_onednn_kernel(x: Tensor) -> bool:
    """Whether oneDNN has the fused convolution for this tensor on this machine.

    The operator is the one that torch.compile emits for a CPU; it has no derivative.
    """
    if (
        x.device.type != "cpu"
        or torch.compiler.is_compiling()
        or not torch.backends.mkldnn.is_available()
        or (x.requires_grad and torch.is_grad_enabled())
    ):
        return False
    onednn = torch.ops.mkldnn
    if not hasattr(onednn, "_convolution_pointwise_"):
        return False
    if x.dtype == torch.bfloat16:
        return onednn._is_mkldnn_bf16_supported()
    if x.dtype == torch.float16:
        return onednn._is_mkldnn_fp16_supported()
    return x.dtype == torch.float32


def keep_freed_memory() -> bool:
    """Makes malloc keep what is freed instead of returning it to the kernel; says whether it could (Linux with glibc).

    Activations of tens of MB are freed after every layer. By default glibc unmaps them, and the next layer's are
    faulted in page by page: up to 120,000 page faults for each image. It concerns the whole process, so only programs
    call it, best before anything large is allocated; what is freed stays resident until it is used again.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, LARGEST_INT))
