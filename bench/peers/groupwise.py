"""Other ways to make the volume of a group-wise correlation."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from ..case import Inputs, Peers
from ..ops.groupwise import Groupwise

PEERS = Peers()


def directions(features: Tensor, groups: int) -> Tensor:
    """Scaled such that the mean of products is the cosine."""
    grouped = features.unflatten(1, (groups, -1))
    return (F.normalize(grouped, dim=2) * grouped.shape[2] ** 0.5).flatten(1, 2)


def slices(
    left: Tensor, right: Tensor, max_disparity: int, groups: int = 1, *, normalize: bool = False
) -> Tensor:
    """As in the code of GwcNet and of IGEV: a volume of zeros, and one disparity after the other written into it."""
    if normalize:
        left, right = directions(left, groups), directions(right, groups)
    batch, _, height, width = left.shape
    volume = left.new_zeros(batch, groups, max_disparity, height, width)
    for d in range(max_disparity):
        cost = left[..., d:] * right[..., : width - d]
        volume[:, :, d, :, d:] = cost.unflatten(1, (groups, -1)).mean(2)
    return volume


def windows(
    left: Tensor, right: Tensor, max_disparity: int, groups: int = 1, *, normalize: bool = False
) -> Tensor:
    """All partners of a pixel side by side, as a view, and one contraction with them."""
    if normalize:
        left, right = directions(left, groups), directions(right, groups)
    left, right = (t.unflatten(1, (groups, -1)) for t in (left, right))
    partners = F.pad(right, (max_disparity - 1, 0)).unfold(-1, max_disparity, 1)
    return torch.einsum("bgchw,bgchwd->bgdhw", left, partners).flip(2) / left.shape[2]


@cache
def _compiled(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """Once, or every copy of the inputs would compile anew."""
    return torch.compile(function, dynamic=False)


@PEERS.peer("torch slices", stock=True)
def stock(case: Groupwise, x: Inputs):
    return case.task(slices, x)


@PEERS.peer("torch unfold, einsum", when=lambda case: not case.overhead)
def unfolded(case: Groupwise, x: Inputs):
    return case.task(windows, x)


@PEERS.peer(
    "torch.compile slices",
    when=lambda case: not case.overhead,
    slow_start=True,
    cpu_headlines_only=True,
)
def compiled(case: Groupwise, x: Inputs):
    return case.task(_compiled(slices), x)
