"""Other ways to correlate images with images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..case import Inputs, Peers
from ..ops.corr2d import Corr2d

PEERS = Peers()


def products_and_pools(first: Tensor, second: Tensor, levels: int) -> list[Tensor]:
    """As in the code of RAFT and in torchvision."""
    batch, channels, height, width = first.shape
    volume = first.flatten(2).mT @ second.flatten(2) / channels**0.5
    level = volume.view(batch * height * width, 1, *second.shape[2:])
    pyramid = [level]
    for _ in range(levels - 1):
        pyramid.append(F.avg_pool2d(pyramid[-1], 2, stride=2))
    return [level.view(batch, height, width, *level.shape[2:]) for level in pyramid]


def grid_samples(pyramid: Sequence[Tensor], coords: Tensor, radius: int) -> Tensor:
    """As in the code of RAFT and in torchvision: of each level the planes of all pixels as a batch of images, and one
    grid_sample with a window for each; in float32, since half of a coordinate does not reach all columns."""
    batch, _, height, width = coords.shape
    steps = torch.arange(-radius, radius + 1, device=coords.device, dtype=coords.dtype)
    window = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1)
    places = coords.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2)
    found = []
    for i, level in enumerate(pyramid):
        rows, columns = level.shape[3:]
        sizes = torch.tensor([max(columns - 1, 1), max(rows - 1, 1)], device=coords.device)
        grid = 2 * (places / 2**i + window) / sizes - 1
        planes = level.reshape(-1, 1, rows, columns).to(grid.dtype)
        sampled = F.grid_sample(planes, grid, align_corners=True)
        found.append(sampled.view(batch, height, width, -1).to(level.dtype))
    return torch.cat(found, -1).permute(0, 3, 1, 2).contiguous()


def volume_and_lookup(first: Tensor, second: Tensor, coords: Tensor, radius: int, levels: int) -> Tensor:
    """The whole pyramid for one lookup."""
    return grid_samples(products_and_pools(first, second, levels), coords, radius)


@cache
def _compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """Once, or every copy of the inputs would compile anew."""
    return torch.compile(function, dynamic=False)


def _plain(case: Corr2d) -> Callable[..., Any]:
    plain: dict[str, Callable[..., Any]] = {
        "lookup": grid_samples,
        "pyramid": products_and_pools,
        "on demand": volume_and_lookup,
    }
    return plain[case.kind]


@PEERS.peer("torch", stock=True)
def stock(case: Corr2d, x: Inputs):
    return case.task(_plain(case), x)


@PEERS.peer(
    "torch.compile",
    when=lambda case: not case.overhead,
    slow_start=True,
    cpu_headlines_only=True,
)
def compiled(case: Corr2d, x: Inputs):
    return case.task(_compiled(_plain(case)), x)
