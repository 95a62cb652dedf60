"""Min-plus products and shortest distances in plain PyTorch. Shapes and conventions: :mod:`pyops.ops.minplus`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
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


def min_plus_gather(lengths: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    """The definition of :func:`pyops.min_plus_gather`: one j after the other, a row of inf for what is missing."""
    dtype = arithmetic_dtype(lengths, rows)
    (*_, queries, each), (*_, points, columns) = lengths.shape, rows.shape
    batch = torch.broadcast_shapes(lengths.shape[:-2], rows.shape[:-2])
    missing = (indices < 0) | (indices >= points)
    places = indices.masked_fill(missing, points).expand(*batch, queries, each)
    near = lengths.to(dtype).masked_fill(missing, 0)
    table = F.pad(rows.to(dtype), (0, 0, 0, 1), value=torch.inf).expand(*batch, points + 1, columns)
    least = near.new_full((*batch, queries, columns), torch.inf)
    if each == 0:  # a graph for autograd all the same
        least = least + near.sum(-1, keepdim=True) + table[..., :0, :].sum(-2, keepdim=True)
    for j in range(each):
        found = table.gather(-2, places[..., j, None].expand(*batch, queries, columns))
        sums = near[..., j, None] + found
        least = torch.where((sums < least) | (sums.isnan() & ~least.isnan()), sums, least)
    return least.to(rows.dtype)


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
