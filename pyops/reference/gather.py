"""Gathering from point clouds in plain PyTorch. See :mod:`pyops.ops.gather` for shapes and conventions."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ._pixels import arithmetic_dtype
from .knn import knn


def gather_points(values: Tensor, indices: Tensor) -> Tensor:
    """The definition of :func:`pyops.gather_points`: a row of zeros behind the others stands for what is missing."""
    count, channels = values.shape[1:]
    missing = (indices < 0) | (indices >= count)
    places = indices.masked_fill(missing, count).flatten(1)[..., None].expand(-1, -1, channels)
    found = F.pad(values, (0, 0, 0, 1)).gather(1, places)
    return found.reshape(*indices.shape, channels)


def blend_points(values: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """The definition of :func:`pyops.blend_points`: gathered, weighted, summed."""
    dtype = arithmetic_dtype(values, weights)
    missing = (indices < 0) | (indices >= values.shape[1])
    rows = gather_points(values.to(dtype), indices)
    return (rows * weights.to(dtype).masked_fill(missing, 0)[..., None]).sum(2).to(values.dtype)


def three_interpolate(
    query: Tensor,
    points: Tensor,
    values: Tensor,
    *,
    query_lengths: Tensor | None = None,
    lengths: Tensor | None = None,
    eps: float = 1e-8,
) -> Tensor:
    """The definition of :func:`pyops.three_interpolate`."""
    dtype = arithmetic_dtype(query, points)
    distances, indices = knn(
        query.to(dtype), points.to(dtype), 3, query_lengths=query_lengths, lengths=lengths
    )
    weights = inverse_distances(distances, indices, eps)
    return blend_points(values, indices, weights.to(arithmetic_dtype(values)))


def inverse_distances(distances: Tensor, indices: Tensor, eps: float) -> Tensor:
    """Weights ``1 / (distance + eps)`` that sum to 1, and 0 for neighbours that are missing."""
    missing = indices < 0
    nearness = (distances.masked_fill(missing, 0) + eps).reciprocal().masked_fill(missing, 0)
    total = nearness.sum(-1, keepdim=True)
    return nearness / total.masked_fill(total == 0, 1)
