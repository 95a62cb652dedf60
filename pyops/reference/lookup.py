"""Linear interpolation in volumes of costs in plain PyTorch. See :mod:`pyops.ops.lookup` for shapes and conventions."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ._pixels import arithmetic_dtype

_FAR = 2.0**30  # taps; nothing is there


def corr1d_lookup(pyramid: Sequence[Tensor], x: Tensor, radius: int) -> Tensor:
    """The definition of :func:`pyops.corr1d_lookup`: one level after the other."""
    dtype = arithmetic_dtype(*pyramid)
    found = [_window(level.to(dtype), x.to(dtype) / 2**i, radius) for i, level in enumerate(pyramid)]
    return torch.cat(found, -1).movedim(-1, 1).to(pyramid[0].dtype)


def geometry_lookup(
    volumes: Sequence[Tensor], pyramid: Sequence[Tensor], disparity: Tensor, radius: int
) -> Tensor:
    """The definition of :func:`pyops.geometry_lookup`: one level after the other."""
    dtype = arithmetic_dtype(*volumes, *pyramid)
    near = disparity.to(dtype)
    x = torch.arange(near.shape[2], dtype=dtype, device=near.device) - near
    found = []
    for i, (volume, level) in enumerate(zip(volumes, pyramid, strict=True)):
        lines = volume.to(dtype).permute(0, 3, 4, 1, 2)  # [B, H, W, C, D]
        place = (near / 2**i).unsqueeze(-1).expand(lines.shape[:-1])
        found += [_window(lines, place, radius).flatten(3), _window(level.to(dtype), x / 2**i, radius)]
    return torch.cat(found, -1).movedim(-1, 1).to(volumes[0].dtype)


def _window(lines: Tensor, place: Tensor, radius: int) -> Tensor:
    """``lines [..., D]`` at ``place [...]`` + d for d = -radius..radius, ``[..., 2 * radius + 1]``; zeros outside."""
    size, place = lines.shape[-1], place.clamp(-_FAR, _FAR).unsqueeze(-1)
    below = place.detach().floor()
    fraction = place - below
    tap = below.nan_to_num(0).long() + torch.arange(-radius, radius + 2, device=lines.device)
    value = lines.gather(-1, tap.clamp(0, size - 1)).where((tap >= 0) & (tap < size), 0)
    return (1 - fraction) * value[..., :-1] + fraction * value[..., 1:]
