"""Nearest neighbours in plain PyTorch. See :mod:`pyops.ops.knn` for shapes and conventions."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from ._pixels import arithmetic_dtype


class Neighbors(NamedTuple):
    """For every query its neighbours; where there are fewer than asked for, the rest has distance inf and index -1."""

    squared_distances: Tensor
    """``[B, M, k]``, dtype of the points."""
    indices: Tensor
    """``[B, M, k]``, int64: places in the cloud of the same batch."""


def knn(
    query: Tensor,
    points: Tensor,
    k: int,
    *,
    query_lengths: Tensor | None = None,
    lengths: Tensor | None = None,
    max_radius: float | None = None,
) -> Neighbors:
    """The definition of :func:`pyops.knn`: all distances, and a stable sort."""
    distances = _distances(
        query, points, query_lengths, lengths, math.inf if max_radius is None else max_radius
    )
    nearest, order = distances.sort(stable=True)
    return _neighbors(query, points, order.where(nearest.isfinite(), -1), k)


def ball_query(
    query: Tensor,
    points: Tensor,
    radius: float,
    k: int,
    *,
    query_lengths: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Neighbors:
    """The definition of :func:`pyops.ball_query`: all distances, and what lies within the radius, in order."""
    inside = _distances(query, points, query_lengths, lengths, radius).isfinite()
    first, order = (~inside).sort(stable=True)
    return _neighbors(query, points, order.where(~first, -1), k)


def chamfer_distance(
    x: Tensor,
    y: Tensor,
    *,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """The definition of :func:`pyops.chamfer_distance`."""
    total = _mean_nearest(x, y, x_lengths, y_lengths) + _mean_nearest(y, x, y_lengths, x_lengths)
    if reduction == "none":
        return total
    return total.mean() if reduction == "mean" else total.sum()


def _mean_nearest(x: Tensor, y: Tensor, x_lengths: Tensor | None, y_lengths: Tensor | None) -> Tensor:
    distances, indices = knn(x, y, 1, query_lengths=x_lengths, lengths=y_lengths)
    return mean_found(distances.squeeze(-1), indices.squeeze(-1))


def mean_found(distances: Tensor, indices: Tensor) -> Tensor:
    """Mean over the last axis of the distances that were found, ``[B]``; 0 where there is none."""
    found = indices >= 0
    wide = distances.to(arithmetic_dtype(distances))
    total = wide.where(found, 0).sum(-1) / found.sum(-1).clamp(min=1)
    return total.to(distances.dtype)


def pair_distances(query: Tensor, points: Tensor, indices: Tensor) -> Tensor:
    """Squared distances ``[B, M, k]`` of queries to the points of these indices, inf where they are -1.

    The sum goes coordinate by coordinate, each operation rounded, as in every kernel.
    """
    dtype = arithmetic_dtype(query, points)
    missing = indices < 0
    count, dims = points.shape[1:]
    places = indices.masked_fill(missing, count).flatten(1)[..., None].expand(-1, -1, dims)
    found = F.pad(points.to(dtype), (0, 0, 0, 1)).gather(1, places).unflatten(1, indices.shape[1:])
    offsets = (query.to(dtype)[:, :, None] - found).masked_fill(missing[..., None], 0)
    total = offsets[..., 0].square()
    for d in range(1, dims):
        total = total + offsets[..., d].square()
    return total.masked_fill(missing, math.inf).to(query.dtype)


@torch.no_grad()
def _distances(
    query: Tensor, points: Tensor, query_lengths: Tensor | None, lengths: Tensor | None, radius: float
) -> Tensor:
    """``[B, M, N]``; inf for what is no neighbour."""
    dtype = arithmetic_dtype(query, points)
    total = query.new_zeros((*query.shape[:2], points.shape[1]), dtype=dtype)
    for q, p in zip(query.to(dtype).unbind(-1), points.to(dtype).unbind(-1), strict=True):
        total += (q[:, :, None] - p[:, None]).square_()
    within = total <= torch.tensor(radius * radius, dtype=dtype, device=total.device)  # false for NaN
    within &= _inside(points, lengths)[:, None] & _inside(query, query_lengths)[:, :, None]
    return total.masked_fill_(~within, math.inf)


def _inside(cloud: Tensor, lengths: Tensor | None) -> Tensor:
    place = torch.arange(cloud.shape[1], device=cloud.device)
    if lengths is None:
        return torch.ones_like(place, dtype=torch.bool).expand(cloud.shape[:2])
    return place < lengths[:, None]


def _neighbors(query: Tensor, points: Tensor, order: Tensor, k: int) -> Neighbors:
    """The first k of an order of all points, in which -1 stands for none."""
    indices = F.pad(order[..., :k], (0, max(0, k - order.shape[-1])), value=-1)
    return Neighbors(pair_distances(query, points, indices), indices)
