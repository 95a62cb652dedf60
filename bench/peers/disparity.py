"""Other ways to upsample a disparity by context, and to warp an image by one."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..case import Inputs, Peers
from ..ops.disparity import Stereo, Upsample, Warp
from .sampling import decoded

PEERS = Peers()


def interpolated(disparity: Tensor, weights: Tensor) -> Tensor:
    """As in the code of IGEV and of MoCha-Stereo: the nine neighbours as channels, replicated to the fine image."""
    batch, _, height, width = disparity.shape
    near = F.unfold(disparity, 3, padding=1).view(batch, 9, height, width)
    near = F.interpolate(near, weights.shape[2:], mode="nearest")
    return (near * weights).sum(1, keepdim=True)


def broadcast(disparity: Tensor, weights: Tensor) -> Tensor:
    """As in the code of RAFT: the weights of a coarse pixel meet its neighbours, and nothing is replicated."""
    batch, _, height, width = disparity.shape
    scale = weights.shape[2] // height
    near = F.unfold(disparity, 3, padding=1).view(batch, 9, height, 1, width, 1)
    fine = (near * weights.view(batch, 9, height, scale, width, scale)).sum(1)
    return fine.view(batch, 1, height * scale, width * scale)


def grid_sample(image: Tensor, disparity: Tensor) -> Tensor:
    """As in the code of MoCha-Stereo: a grid of both coordinates. It wants one floating dtype for all."""
    _, _, height, width = image.shape
    x = torch.arange(width, device=image.device) - disparity[:, 0]
    y = torch.arange(height, device=image.device)[:, None].expand_as(x)
    grid = torch.stack([2 * x / max(width - 1, 1) - 1, 2 * y / max(height - 1, 1) - 1], -1)
    out = F.grid_sample(decoded(image), grid, padding_mode="border", align_corners=True)
    if image.is_floating_point():
        return out.to(image.dtype)
    return (out * torch.iinfo(image.dtype).max).round().to(image.dtype)


def gathered(image: Tensor, disparity: Tensor) -> Tensor:
    """The careful user's way: two gathers along the rows."""
    width = image.shape[3]
    x = (torch.arange(width, device=image.device) - disparity).clamp(0, width - 1)
    left = x.floor()
    fraction = x - left
    first, second = (
        decoded(image).gather(3, index.clamp(max=width - 1).long().expand_as(image))
        for index in (left, left + 1)
    )
    out = first + fraction * (second - first)
    if image.is_floating_point():
        return out.to(image.dtype)
    return (out * torch.iinfo(image.dtype).max).round().to(image.dtype)


def _upsample(case: Stereo) -> bool:
    return isinstance(case, Upsample)


def _warp(case: Stereo) -> bool:
    return isinstance(case, Warp)


@PEERS.peer("torch unfold, interpolate", when=_upsample, stock=True)
def unfold_interpolate(case: Stereo, x: Inputs):
    return case.task(interpolated, x)


@PEERS.peer("torch unfold, broadcast", when=lambda case: _upsample(case) and not case.overhead)
def unfold_broadcast(case: Stereo, x: Inputs):
    return case.task(broadcast, x)


@PEERS.peer("torch grid_sample", when=_warp, stock=True)
def by_grid(case: Stereo, x: Inputs):
    return case.task(grid_sample, x)


@PEERS.peer("torch gather", when=lambda case: _warp(case) and not case.overhead)
def by_gather(case: Stereo, x: Inputs):
    return case.task(gathered, x)


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Once, or every copy of the inputs would compile anew."""
    return torch.compile(function, dynamic=False)


@PEERS.peer(
    "torch.compile unfold, interpolate",
    when=lambda case: _upsample(case) and not case.overhead,
    slow_start=True,
    cpu_headlines_only=True,
)
def compiled_upsample(case: Stereo, x: Inputs):
    return case.task(_compiled(interpolated), x)


@PEERS.peer(
    "torch.compile grid_sample",
    when=lambda case: _warp(case) and not case.overhead,
    slow_start=True,
    cpu_headlines_only=True,
)
def compiled_warp(case: Stereo, x: Inputs):
    return case.task(_compiled(grid_sample), x)
