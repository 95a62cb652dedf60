"""Other ways to gather values of points, and to interpolate between them."""

from __future__ import annotations

import torch
from torch import Tensor

from ..case import Inputs, Peers
from ..ops.gather import Gather, Interpolate

PEERS = Peers()


def gathers(case: Gather | Interpolate) -> bool:
    return isinstance(case, Gather)


def expanded(values: Tensor, indices: Tensor) -> Tensor:
    """torch.gather with an index for every channel."""
    places = indices.flatten(1)[..., None].expand(-1, -1, values.shape[2])
    return values.gather(1, places).unflatten(1, indices.shape[1:])


def selected(values: Tensor, indices: Tensor) -> Tensor:
    """All clouds as one, and its rows by number."""
    first = torch.arange(len(values), device=values.device) * values.shape[1]
    places = (indices.flatten(1) + first[:, None]).flatten()
    return values.flatten(0, 1).index_select(0, places).view(*indices.shape, values.shape[2])


def indexed(values: Tensor, indices: Tensor) -> Tensor:
    """As in the PyTorch code of PointNet++: advanced indexing."""
    batch = torch.arange(len(values), device=values.device).view(-1, *[1] * (indices.dim() - 1))
    return values[batch, indices]


def interpolated(query: Tensor, points: Tensor, values: Tensor) -> Tensor:
    """As in the PyTorch code of PointNet++: all distances, their three least, and the rows of these blended."""
    squares = (query.square().sum(-1)[..., None] + points.square().sum(-1)[:, None]).sub(
        2 * query @ points.transpose(1, 2)
    )
    distances, indices = squares.topk(3, largest=False)
    nearness = 1 / (distances.clamp(min=0) + 1e-8)
    weights = nearness / nearness.sum(-1, keepdim=True)
    return (indexed(values, indices) * weights[..., None]).sum(2)


def searched(query: Tensor, points: Tensor, values: Tensor) -> Tensor:
    distances, indices = torch.cdist(query, points).topk(3, largest=False)
    nearness = 1 / (distances.square() + 1e-8)
    weights = nearness / nearness.sum(-1, keepdim=True)
    return (selected(values, indices) * weights[..., None]).sum(2)


@PEERS.peer("torch gather", stock=True, when=gathers)
def stock(case: Gather, x: Inputs):
    return case.task(expanded, x)


@PEERS.peer("torch index_select", when=gathers)
def rows(case: Gather, x: Inputs):
    return case.task(selected, x)


@PEERS.peer("torch indexing", when=gathers)
def advanced(case: Gather, x: Inputs):
    return case.task(indexed, x)


@PEERS.peer("torch, as PointNet++", stock=True, when=lambda case: not gathers(case))
def stock_interpolation(case: Interpolate, x: Inputs):
    return case.task(interpolated, x)


@PEERS.peer("torch.cdist, topk", when=lambda case: not gathers(case))
def cdist(case: Interpolate, x: Inputs):
    return case.task(searched, x)
