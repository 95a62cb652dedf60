"""Other ways to find shortest paths."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from ..case import Inputs, Peers
from ..ops.geodesic import Geodesic, by_neighbours

PEERS = Peers()

_MOST = 5 * 10**7  # pairs of sources and edges that rounds over all of them can serve


def forward_only(case: Geodesic) -> bool:
    return not case.backward


def matrix(graph: tuple[Tensor, Tensor, Tensor]):
    """As scipy has it."""
    from scipy.sparse import csr_matrix

    indptr, indices, weights = (t.numpy() for t in graph)
    return csr_matrix((weights.astype("float64"), indices, indptr), shape=(len(indptr) - 1,) * 2)


@PEERS.peer("torch, all edges in rounds", stock=True, when=lambda case: case.rows * case.edges <= _MOST)
def rounds(case: Geodesic, x: Inputs):
    from pyops import reference

    def search(graph, sources):
        return reference.geodesic_distances(graph, sources, return_predecessors=case.predecessors)

    return case.task(search, x)


@PEERS.peer(
    "torch, a neighbour at a time",
    devices=("cuda",),
    when=lambda case: forward_only(case) and not case.predecessors and not case.overhead and case.k <= 40,
)
def neighbours(case: Geodesic, x: Inputs):
    return replace(case.task(by_neighbours, x), graph=False)


@PEERS.peer("scipy dijkstra", needs="scipy", devices=("cpu",), when=forward_only)
def scipy_dijkstra(case: Geodesic, x: Inputs):
    from scipy.sparse.csgraph import dijkstra

    given = matrix((x["indptr"], x["indices"], x["weights"]))

    def search(graph, sources):
        return dijkstra(given, indices=sources.numpy(), return_predecessors=case.predecessors)

    return case.task(search, x)


@PEERS.peer(
    "scipy floyd_warshall",
    needs="scipy",
    devices=("cpu",),
    when=lambda case: forward_only(case) and case.points <= 400 and not case.sources,
)
def scipy_floyd_warshall(case: Geodesic, x: Inputs):
    from scipy.sparse.csgraph import floyd_warshall

    given = matrix((x["indptr"], x["indices"], x["weights"]))

    def search(graph, sources):
        found = floyd_warshall(given, return_predecessors=case.predecessors)
        parts = found if case.predecessors else (found,)
        return tuple(torch.as_tensor(part)[sources] for part in parts)

    return case.task(search, x)
