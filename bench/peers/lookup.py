"""Other ways to look up windows of costs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..case import Inputs, Peers
from ..ops.lookup import Lookup

PEERS = Peers()


def _sample(lines: Tensor, place: Tensor) -> Tensor:
    """``lines [N, C, 1, D]`` at ``place [N, 1, K]``, as images of one row."""
    x = 2 * place / max(lines.shape[-1] - 1, 1) - 1
    grid = torch.stack([x, torch.zeros_like(x)], -1)  # in float32: half of it does not reach all columns
    return F.grid_sample(lines.to(grid.dtype), grid, align_corners=True).to(lines.dtype)


def _window(position: Tensor, radius: int) -> Tensor:
    return torch.arange(-radius, radius + 1, device=position.device).view(1, 1, -1) + position.view(-1, 1, 1)


def grid_samples(pyramid: Sequence[Tensor], x: Tensor, radius: int) -> Tensor:
    """As in the code of RAFT-Stereo: of each level the lines of all pixels as a batch, and one grid_sample."""
    found = []
    for level, lines in enumerate(pyramid):
        place = _window(x / 2**level, radius)
        found.append(_sample(lines.reshape(-1, 1, 1, lines.shape[-1]), place).view(*x.shape, -1))
    return torch.cat(found, -1).permute(0, 3, 1, 2).contiguous()


def geometry_grid_samples(
    volumes: Sequence[Tensor], pyramid: Sequence[Tensor], disparity: Tensor, radius: int
) -> Tensor:
    """As in the code of IGEV-Stereo, from volumes whose lines are brought together first."""
    return geometry_of_lines([lines_of(volume) for volume in volumes], pyramid, disparity, radius)


def lines_of(volume: Tensor) -> Tensor:
    """``[B * H * W, C, 1, D]``."""
    return volume.permute(0, 3, 4, 1, 2).flatten(0, 2).unsqueeze(2)


def geometry_of_lines(
    lines: Sequence[Tensor], pyramid: Sequence[Tensor], disparity: Tensor, radius: int
) -> Tensor:
    columns = torch.arange(disparity.shape[2], device=disparity.device, dtype=disparity.dtype)
    found = []
    for level, (volume, correlations) in enumerate(zip(lines, pyramid, strict=True)):
        place = _window(disparity / 2**level, radius)
        found.append(_sample(volume, place).view(*disparity.shape, -1))
        place = _window((columns - disparity) / 2**level, radius)
        rows = correlations.reshape(-1, 1, 1, correlations.shape[-1])
        found.append(_sample(rows, place).view(*disparity.shape, -1))
    return torch.cat(found, -1).permute(0, 3, 1, 2).contiguous()


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Once, or every copy of the inputs would compile anew."""
    return torch.compile(function, dynamic=False)


def _plain(case: Lookup) -> Callable[..., Tensor]:
    return geometry_grid_samples if case.geometry else grid_samples


@PEERS.peer("torch grid_samples", stock=True)
def stock(case: Lookup, x: Inputs):
    if not case.geometry or case.backward:
        return case.task(_plain(case), x)
    lines = {f"volume{level}": lines_of(x[f"volume{level}"]).contiguous() for level in range(case.levels)}
    return case.task(geometry_of_lines, {**x, **lines})  # brought together once, before the iterations


@PEERS.peer(
    "torch.compile grid_samples",
    when=lambda case: not case.overhead,
    slow_start=True,
    cpu_headlines_only=True,
)
def compiled(case: Lookup, x: Inputs):
    return case.task(_compiled(_plain(case)), x)
