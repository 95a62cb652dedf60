"""Two steps of stereo matching in plain PyTorch. See :mod:`pyops.ops.disparity` for shapes and conventions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._pixels import arithmetic_dtype, decode, encode


def context_upsample(disparity: Tensor, weights: Tensor) -> Tensor:
    dtype, (height, width) = arithmetic_dtype(disparity, weights), disparity.shape[2:]
    scale = weights.shape[2] // height
    near = F.unfold(disparity.to(dtype), 3, padding=1).unflatten(2, (height, width))
    near = near.repeat_interleave(scale, 2).repeat_interleave(scale, 3)
    return (near * weights.to(dtype)).sum(1, keepdim=True).to(disparity.dtype)


def disparity_warp(image: Tensor, disparity: Tensor) -> Tensor:
    dtype, width = arithmetic_dtype(image, disparity), image.shape[3]
    position = torch.arange(width, dtype=dtype, device=image.device) - disparity.to(dtype)
    known = ~position.isnan()
    # Beyond the outermost pixels nothing moves with the disparity.
    inside = (position > 0) & (position < width - 1)
    position = torch.where(inside, position, position.detach().nan_to_num(0).clamp(0, width - 1))
    below = position.detach().floor()
    fraction, left = position - below, below.to(torch.int64)
    right = (left + 1).clamp(max=width - 1)
    value = decode(image, dtype)
    first, second = (value.gather(3, pixel.expand(value.shape)) for pixel in (left, right))
    second = torch.where(left < width - 1, second, 0)
    return encode(torch.where(known, (1 - fraction) * first + fraction * second, torch.nan), image.dtype)
