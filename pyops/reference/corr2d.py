"""All-pairs correlation of images in plain PyTorch. See :mod:`pyops.ops.corr2d` for shapes and conventions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ._pixels import arithmetic_dtype

_FAR = 2.0**30  # taps; nothing is there


def corr2d_pyramid(
    first: Tensor, second: Tensor, levels: int = 4, *, scale: float | None = None
) -> list[Tensor]:
    return [level.to(first.dtype) for level in _pyramid(first, second, levels, scale)]


def corr2d_lookup(pyramid: Sequence[Tensor], coords: Tensor, radius: int) -> Tensor:
    """The definition of :func:`pyops.corr2d_lookup`: one level after the other."""
    dtype = arithmetic_dtype(*pyramid)
    found = [_window(level.to(dtype), coords.to(dtype) / 2**i, radius) for i, level in enumerate(pyramid)]
    return torch.cat(found, -1).movedim(-1, 1).to(pyramid[0].dtype)


def corr2d_lookup_on_demand(
    first: Tensor, second: Tensor, coords: Tensor, radius: int, levels: int = 4, *, scale: float | None = None
) -> Tensor:
    """The definition of :func:`pyops.corr2d_lookup_on_demand`, which does build the volume."""
    return corr2d_lookup(_pyramid(first, second, levels, scale), coords, radius).to(first.dtype)


def _pyramid(first: Tensor, second: Tensor, levels: int, scale: float | None) -> list[Tensor]:
    dtype = arithmetic_dtype(first, second)
    volume = torch.einsum("bchw,bcuv->bhwuv", first.to(dtype), second.to(dtype))
    pyramid = [volume * (first.shape[1] ** -0.5 if scale is None else scale)]
    for _ in range(levels - 1):
        pyramid.append(F.avg_pool2d(pyramid[-1].flatten(1, 2), 2).unflatten(1, volume.shape[1:3]))
    return pyramid


def _window(planes: Tensor, place: Tensor, radius: int) -> Tensor:
    """``planes [B, H, W, U, V]`` around ``place [B, 2, H, W]`` (x, y), ``[B, H, W, (2 * radius + 1)**2]``, x-major."""
    height, width = planes.shape[3:]
    x, y = place.clamp(-_FAR, _FAR).unsqueeze(-1).unbind(1)
    (column, right), (row, below) = ((v.detach().floor(), v - v.detach().floor()) for v in (x, y))
    steps = torch.arange(-radius, radius + 2, device=planes.device)
    column, row = column.nan_to_num(0).long() + steps, row.nan_to_num(0).long() + steps
    index = row.clamp(0, height - 1).unsqueeze(-2) * width + column.clamp(0, width - 1).unsqueeze(-1)
    inside = ((row >= 0) & (row < height)).unsqueeze(-2) & ((column >= 0) & (column < width)).unsqueeze(-1)
    value = planes.flatten(3).gather(-1, index.flatten(3)).view(index.shape).where(inside, 0)
    value = (1 - below).unsqueeze(-2) * value[..., :-1] + below.unsqueeze(-2) * value[..., 1:]
    return ((1 - right).unsqueeze(-2) * value[..., :-1, :] + right.unsqueeze(-2) * value[..., 1:, :]).flatten(
        3
    )
