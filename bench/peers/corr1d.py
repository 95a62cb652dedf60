"""Other ways to correlate rows with rows."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..case import Contestant, Inputs, Peers
from ..ops.corr1d import Corr1d
from .lookup import _sample, _window

PEERS = Peers()


def products_and_pools(left: Tensor, right: Tensor, levels: int) -> list[Tensor]:
    """As in the code of RAFT-Stereo."""
    batch, channels, height, width = left.shape
    volume = torch.einsum("bchw,bchv->bhwv", left, right) / channels**0.5
    level = volume.reshape(batch * height * width, 1, 1, right.shape[3])
    pyramid = [volume]
    for _ in range(levels - 1):
        level = F.avg_pool2d(level, (1, 2), stride=(1, 2))
        pyramid.append(level.view(batch, height, width, -1))
    return pyramid


def one_tap_after_the_other(left: Tensor, right: Tensor, x: Tensor, radius: int, levels: int) -> Tensor:
    """As in the code of RAFT-Stereo that keeps no volume: right moved to each place of the window, then multiplied."""
    found, rows = [], torch.arange(x.shape[1], device=x.device, dtype=x.dtype).view(1, -1, 1).expand_as(x)
    y = 2 * rows / max(x.shape[1] - 1, 1) - 1
    for level in range(levels):
        for d in range(-radius, radius + 1):
            column = 2 * (x / 2**level + d) / max(right.shape[3] - 1, 1) - 1
            grid = torch.stack([column, y], -1).to(right.dtype)
            found.append((left * F.grid_sample(right, grid, align_corners=True)).sum(1))
        right = F.avg_pool2d(right, (1, 2), stride=(1, 2))
    return torch.stack(found, 1) / left.shape[1] ** 0.5


def volume_and_lookup(left: Tensor, right: Tensor, x: Tensor, radius: int, levels: int) -> Tensor:
    """The whole pyramid for one lookup."""
    found = []
    for level, lines in enumerate(products_and_pools(left, right, levels)):
        rows = lines.reshape(-1, 1, 1, lines.shape[-1])
        found.append(_sample(rows, _window(x / 2**level, radius)).view(*x.shape, -1))
    return torch.cat(found, -1).permute(0, 3, 1, 2).contiguous()


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Once, or every copy of the inputs would compile anew."""
    return torch.compile(function, dynamic=False)


def _plain(case: Corr1d) -> Callable[..., Any]:
    return one_tap_after_the_other if case.on_demand else products_and_pools


@PEERS.peer("torch", stock=True)
def stock(case: Corr1d, x: Inputs):
    return case.task(_plain(case), x)


@PEERS.peer(
    "torch matmul, no pyramid (a part)",
    when=lambda case: not (case.on_demand or case.backward or case.overhead),
    part=True,
)
def product(case: Corr1d, x: Inputs):
    """The vendor's GEMM alone, from operands in the order that it likes best; pooled outside the clock."""
    left, right = x["left"][0].permute(1, 2, 0).contiguous(), x["right"][0].permute(1, 0, 2).contiguous()
    left = left / case.channels**0.5

    def view(volume: Tensor) -> list[Tensor]:
        levels = [volume[None]]
        for _ in range(case.levels - 1):
            levels.append(F.avg_pool1d(levels[-1].flatten(0, 1), 2).unflatten(0, levels[-1].shape[:2]))
        return levels

    return Contestant(lambda: left @ right, view)


@PEERS.peer("torch, by the volume", when=lambda case: case.on_demand)
def by_volume(case: Corr1d, x: Inputs):
    return case.task(volume_and_lookup, x)


@PEERS.peer(
    "torch.compile",
    when=lambda case: not case.overhead,
    slow_start=True,
    cpu_headlines_only=True,
)
def compiled(case: Corr1d, x: Inputs):
    return case.task(_compiled(_plain(case)), x)
