"""The image encoder made ready for inference: the same features from fewer passes over the activations.

`optimize_for_inference` folds the batch norms of a ModifiedResNet into the convolutions before them and keeps
activations channels last. `keep_freed_memory` stops glibc from giving them back to the kernel after every layer.
"""

import ctypes
import os
import signal
import sys

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from clip.model import CLIP, ModifiedResNet, convert_weights

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h
LARGEST_INT = 2**31 - 1
# Names of a convolution and of the batch norm after it, in the stem and in blocks, and where a residual changes width.
PAIRS = (("conv1", "bn1"), ("conv2", "bn2"), ("conv3", "bn3"), ("0", "1"))


def optimize_for_inference(model: CLIP, dtype: torch.dtype | None = None) -> CLIP:
    """`model` itself, its image encoder changed in place into the form that is fastest to evaluate.

    A ModifiedResNet loses its batch norms, folded in fp32, and gets channels-last weights; a vision transformer only
    changes its dtype. The text encoder stays as it is: in bf16 its error would be in every patch's answer. The batch
    norms' entries leave the state dict. A second call changes the dtype only.

    Args:
        model: in evaluation mode.
        dtype: of the image encoder's matrices, as in `convert_weights`; None keeps the present one.

    Raises ValueError: the model is in training mode, where batch norms depend on the batch.
    """
    if model.training:
        raise ValueError("a model in training mode cannot be optimised for inference; call model.eval() first")
    dtype = dtype or model.dtype
    if isinstance(model.visual, ModifiedResNet):
        fold_batch_norms(model.visual)
        model.visual.to(memory_format=torch.channels_last)
    convert_weights(model.visual, dtype)
    return model


def fold_batch_norms(resnet: ModifiedResNet) -> None:
    """Puts every batch norm of `resnet` into the convolution before it, in place; an identity stands where it was."""
    for module in resnet.modules():
        for conv, bn in PAIRS:
            if isinstance(norm := getattr(module, bn, None), nn.BatchNorm2d):
                setattr(module, conv, fuse_conv_bn_eval(getattr(module, conv).float(), norm))
                setattr(module, bn, nn.Identity())


def start_program() -> None:
    """Sets what concerns a whole process, so only programs call it, before all else: fp32 is fp32 on a GPU, too."""
    torch.backends.cudnn.allow_tf32 = False
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: nothing is lost
    os.environ["MPLBACKEND"] = "agg"  # a notebook names one that is not there; nothing opens a window
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Makes malloc keep what is freed instead of returning it to the kernel; says whether it could (Linux with glibc).

    Activations of tens of MB are freed after every layer; glibc unmaps them, and the next layer's are faulted in page
    by page, up to 120,000 for each image.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:  # musl
        return False
    return bool(mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, LARGEST_INT))
