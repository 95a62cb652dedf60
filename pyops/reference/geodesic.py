"""Shortest paths in weighted graphs, in plain PyTorch. See :mod:`pyops.ops.geodesic` for shapes and conventions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor


@overload
def geodesic_distances(
    graph: Sequence[Tensor],
    sources: Tensor | None = None,
    *,
    cutoff: float | None = None,
    return_predecessors: Literal[False] = False,
    method: str = "auto",
) -> Tensor: ...


@overload
def geodesic_distances(
    graph: Sequence[Tensor],
    sources: Tensor | None = None,
    *,
    cutoff: float | None = None,
    return_predecessors: bool,
    method: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]: ...


def geodesic_distances(
    graph: Sequence[Tensor],
    sources: Tensor | None = None,
    *,
    cutoff: float | None = None,
    return_predecessors: bool = False,
    method: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """The definition of :func:`pyops.geodesic_distances`: all edges at once, until nothing changes."""
    indptr, indices, weights = graph
    count = len(indptr) - 1
    if sources is None:
        sources = torch.arange(count, device=indptr.device)
    rows = rows_of_edges(indptr, len(indices))
    limit = torch.tensor(math.inf if cutoff is None else cutoff, dtype=weights.dtype, device=weights.device)
    with torch.no_grad():
        distances = torch.full(
            (len(sources), count), math.inf, dtype=weights.dtype, device=weights.device
        ).scatter(1, sources[:, None], 0.0)
        while True:
            found = torch.where(weights >= 0, distances[:, rows] + weights, math.inf)
            found = found.masked_fill(found > limit, math.inf)
            lower = distances.scatter_reduce(1, indices.expand_as(found), found, "amin")
            if torch.equal(lower, distances):
                break
            distances = lower
        edges = tree_edges(indptr, indices, weights, sources, distances)
    sums = path_sums(weights, edges, rows)
    result = distances + (sums - sums.detach())  # the values from the search, the gradient from the trees
    if not return_predecessors:
        return result
    return result, predecessors_of(edges, rows)


def rows_of_edges(indptr: Tensor, edges: int) -> Tensor:
    """The vertex that each edge leaves, ``[E]``."""
    return torch.searchsorted(indptr, torch.arange(edges, device=indptr.device), right=True) - 1


def predecessors_of(edges: Tensor, rows: Tensor) -> Tensor:
    return torch.where(edges < 0, -1, rows[edges.clamp(min=0)]) if len(rows) else edges


def tree_edges(
    indptr: Tensor, indices: Tensor, weights: Tensor, sources: Tensor, distances: Tensor
) -> Tensor:
    """The last edge of the shortest path to each vertex, ``[S, N]``, -1 at sources and where there is no path.

    Of the edges that attain the distance, the first that begins nearer to the source; where none does, because edges
    have no length, the first of those with the fewest edges to a vertex that has one, or to the source.
    """
    none = len(weights)
    rows = rows_of_edges(indptr, none)
    before, after = distances[:, rows], distances[:, indices]
    tight = (weights >= 0) & (before + weights == after) & after.isfinite()
    tight &= indices != sources[:, None]
    place = torch.arange(none, device=indptr.device).expand_as(tight)
    edges = torch.full(distances.shape, none, dtype=torch.int64, device=indptr.device)

    def first_of(some: Tensor) -> Tensor:
        return edges.scatter_reduce(1, indices.expand_as(some), torch.where(some, place, none), "amin")

    edges = first_of(tight & (before < after))
    settled = (edges < none).scatter(1, sources[:, None], True)
    while True:
        more = first_of(tight & settled[:, rows] & ~settled[:, indices])
        if torch.equal(more, edges):
            return edges.masked_fill(edges == none, -1)
        edges = more
        settled = settled | (edges < none)


def path_sums(values: Tensor, edges: Tensor, rows: Tensor) -> Tensor:
    """Sum of ``values`` ``[E]`` along the path to each vertex, ``[S, N]``: paths of twice the length in every round."""
    if len(values) == 0:
        return values.sum() + values.new_zeros(edges.shape)
    missing = edges < 0
    sums = values[edges.clamp(min=0)].masked_fill(missing, 0)
    own = torch.arange(edges.shape[1], device=edges.device)
    upwards = torch.where(missing, own, predecessors_of(edges, rows))
    for _ in range(max(edges.shape[1] - 1, 0).bit_length()):
        sums = sums + sums.gather(1, upwards)  # nothing at sources, nor where no path is
        upwards = upwards.gather(1, upwards)
    return sums
