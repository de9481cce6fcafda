"""The image encoder made ready for inference: the same features from fewer passes over the activations."""

import ctypes
import os
import signal
import sys

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from clip.model import CLIP, ModifiedResNet, convert_weights

# Names of a convolution and of the batch norm after it, in the stem and in blocks, and where a residual changes width.
PAIRS = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("0", "1"))


def optimize_for_inference(model: CLIP, dtype: torch.dtype | None = None) -> CLIP:
    """`model` itself, its image encoder changed in place into the form that is fastest to evaluate, and into `dtype`.

    Batch norms are folded in fp32 into the convolutions before them, whose weights get channels-last. The text encoder
    stays as it is: in bf16 its error would be in every patch's answer.
    """
    if model.training:
        raise ValueError("a model in training mode cannot be optimised for inference; call model.eval() first")
    dtype = dtype or model.dtype
    if isinstance(model.visual, ModifiedResNet):
        for module in model.visual.modules():
            for conv, bn in PAIRS:
                if isinstance(norm := getattr(module, bn, None), nn.BatchNorm2d):
                    setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv).float(), norm))
                    setattr(module, bn, nn.Identity())
        model.visual.to(memory_format=torch.channels_last)
    convert_weights(model.visual, dtype)
    return model


def start_program() -> None:
    """Sets what concerns a whole process, so only programs call it, before all else: fp32 is fp32 on a GPU, too."""
    torch.backends.cudnn.allow_tf32 = False
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: nothing is lost
    os.environ["MPLBACKEND"] = "agg"  # a notebook names one that is not there; nothing opens a window
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Makes malloc keep what is freed, or each layer's tens of MB are faulted in anew; whether it could (glibc)."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None  # musl has none
    return bool(mallopt and mallopt(-4, 0) and mallopt(-1, 2**31 - 1))  # M_MMAP_MAX, M_TRIM_THRESHOLD
