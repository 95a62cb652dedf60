"""Min-plus products and shortest distances in plain PyTorch. Shapes and conventions: :mod:`pyops.ops.minplus`."""

from __future__ import annotations

import torch
from torch import Tensor

from ._pixels import arithmetic_dtype


def min_plus_matmul(a: Tensor, b: Tensor) -> Tensor:
    """The definition of :func:`pyops.min_plus_matmul`: one k after the other."""
    dtype = arithmetic_dtype(a, b)
    left, right = a.to(dtype), b.to(dtype)
    batch = torch.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    least = left.new_full((*batch, a.shape[-2], b.shape[-1]), torch.inf)
    if a.shape[-1] == 0:  # a graph for autograd all the same
        least = least + left.sum(-1, keepdim=True) + right.sum(-2, keepdim=True)
    for k in range(a.shape[-1]):
        sums = left[..., k, None] + right[..., None, k, :]
        least = torch.where((sums < least) | (sums.isnan() & ~least.isnan()), sums, least)
    return least.to(a.dtype)


def floyd_warshall(weights: Tensor) -> Tensor:
    """The definition of :func:`pyops.floyd_warshall`: paths through one more node after the other."""
    nodes = weights.shape[-1]
    distances = weights.to(arithmetic_dtype(weights))
    distances = distances.masked_fill(distances == torch.inf, torch.inf)  # no edge, no gradient
    distances = distances.masked_fill(torch.eye(nodes, dtype=torch.bool, device=weights.device), 0)
    for k in range(nodes):
        sums = distances[..., :, k, None] + distances[..., None, k, :]
        distances = torch.where(sums < distances, sums, distances)
    return distances.to(weights.dtype)
