"""Group-wise correlation in plain PyTorch. See :mod:`pyops.ops.groupwise` for shapes and conventions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ._pixels import arithmetic_dtype

_LEAST_SQUARE = 1e-24  # of the length of a vector that has a direction


def groupwise_correlation(
    left: Tensor, right: Tensor, max_disparity: int, groups: int = 1, *, normalize: bool = False
) -> Tensor:
    """The definition of :func:`pyops.groupwise_correlation`: one disparity after the other."""
    dtype, width = arithmetic_dtype(left, right), left.shape[3]
    l, r = (t.to(dtype).unflatten(1, (groups, -1)) for t in (left, right))  # noqa: E741
    if normalize:
        l, r = _directions(l), _directions(r)  # noqa: E741
    reduce = torch.sum if normalize else torch.mean
    slices = [reduce(l[..., d:] * r[..., : width - d], 2) for d in range(max_disparity)]
    volume = torch.stack([F.pad(s, (d, 0)) for d, s in enumerate(slices)], 2)
    return volume.to(left.dtype)


def _directions(vectors: Tensor) -> Tensor:
    """``[B, groups, channels, H, W]`` by length over the channels; 0, without a gradient, where there is none."""
    square = vectors.square().sum(2, keepdim=True)
    nothing = square < _LEAST_SQUARE
    return vectors * torch.where(nothing, 0, torch.where(nothing, 1, square).rsqrt())
