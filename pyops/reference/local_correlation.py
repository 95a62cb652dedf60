"""Local correlation in plain PyTorch. See :mod:`pyops.ops.local_correlation` for shapes and conventions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._pixels import arithmetic_dtype


def local_correlation(first: Tensor, second: Tensor, radius: int, *, dilation: int = 1) -> Tensor:
    """The definition of :func:`pyops.local_correlation`: one displacement after the other."""
    dtype, (height, width) = arithmetic_dtype(first, second), first.shape[2:]
    f, s = first.to(dtype), second.to(dtype)
    planes = []
    for dy in range(-radius * dilation, radius * dilation + 1, dilation):
        top, bottom = _with_partner(height, dy)
        for dx in range(-radius * dilation, radius * dilation + 1, dilation):
            left, right = _with_partner(width, dx)
            product = f[..., top:bottom, left:right] * s[..., top + dy : bottom + dy, left + dx : right + dx]
            planes.append(F.pad(product.sum(1), (left, width - right, top, height - bottom)))
    return torch.stack(planes, 1).to(first.dtype)


def _with_partner(size: int, shift: int) -> tuple[int, int]:
    """From where to where positions stay inside when they are shifted; the same number twice where none does."""
    if abs(shift) >= size:
        return 0, 0
    return max(0, -shift), min(size, size - shift)
