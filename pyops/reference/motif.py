"""Motif channel attention in plain PyTorch. See :mod:`pyops.ops.motif` for shapes and conventions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ._pixels import arithmetic_dtype


def constant_highpass(features: Tensor) -> Tensor:
    z, channels = features.to(arithmetic_dtype(features)), features.shape[1]
    kernel = z.new_full((channels, channels, 3, 3), 1 / 9)
    return (z - F.conv2d(z, kernel, padding=1)).to(features.dtype)


def camp_conv(motif: Tensor, features: Tensor, kernel: Tensor) -> Tensor:
    dtype = arithmetic_dtype(motif, features, kernel)
    product = motif.to(dtype)[:, :, None] * features.to(dtype)[:, None]
    return F.conv3d(product, kernel.to(dtype)[None], padding=1)[:, 0].to(features.dtype)
