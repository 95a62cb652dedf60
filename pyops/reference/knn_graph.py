"""Graphs of nearest neighbours in plain PyTorch. See :mod:`pyops.ops.knn_graph` for shapes and conventions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._pixels import arithmetic_dtype
from .knn import knn


class Graph(NamedTuple):
    """A directed graph in compressed sparse rows: row ``u`` holds the edges that leave ``u``."""

    indptr: Tensor
    """``[N + 1]`` int64, where each row begins; the last entry is E."""
    indices: Tensor
    """``[E]`` int64, where each edge leads; in any order within a row."""
    weights: Tensor
    """``[E]``, the length of each edge."""


def knn_graph(x: Tensor, k: int) -> Graph:
    """The definition of :func:`pyops.knn_graph`: who is a neighbour of whom as a matrix."""
    points = x.detach()[None]
    rows, ends = others(knn(points, points, k + 1).indices[0])
    related = torch.zeros(len(x), len(x), dtype=torch.bool, device=x.device)
    related[rows, ends] = True
    related |= related.T.clone()
    indptr = torch.nn.functional.pad(related.sum(1).cumsum(0), (1, 0))
    indices = related.nonzero()[:, 1]
    return Graph(indptr, indices, edge_lengths(x, indptr, indices))


def others(neighbours: Tensor) -> tuple[Tensor, Tensor]:
    """Both ends of all edges from a point to its k nearest others, of the k + 1 nearest, ``[N, k + 1]``.

    A point that coincides with more than k others may not be among them: then the last is one too many.
    """
    count = len(neighbours)
    own = torch.arange(count, device=neighbours.device)[:, None]
    wanted = neighbours != own
    wanted[:, -1] &= ~wanted[:, :-1].all(1)
    wanted &= (neighbours >= 0) & (neighbours < count)
    return own.expand_as(neighbours)[wanted], neighbours[wanted]


def edge_lengths(x: Tensor, indptr: Tensor, indices: Tensor) -> Tensor:
    """Euclidean lengths ``[E]`` of edges between rows of ``x``; an edge of length 0 has no gradient."""
    rows = rows_of(indptr, indices)
    wide = x.to(arithmetic_dtype(x))
    total = wide.new_zeros(indices.shape[0])
    for d in range(x.shape[1]):
        coordinate = wide[:, d]
        total = total + (coordinate[rows] - coordinate[indices]).square()
    apart = total > 0
    return torch.where(apart, torch.where(apart, total, 1).sqrt(), 0 * total.detach()).to(x.dtype)


def rows_of(indptr: Tensor, indices: Tensor) -> Tensor:
    """The row that each edge leaves, ``[E]``."""
    return torch.searchsorted(indptr, torch.arange(indices.shape[0], device=indptr.device), right=True) - 1
