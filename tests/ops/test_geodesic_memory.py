"""Geodesic distances: wrong options, and operators that keep to their memory whatever they are given."""

from __future__ import annotations

import math

import pytest
import torch

import pyops

inf = math.inf


def drawn(count, edges, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(count, (edges,), generator=generator)
    indptr = torch.cat([rows.new_zeros(1), rows.bincount(minlength=count).cumsum(0)])
    weights = torch.rand(edges, generator=generator, dtype=dtype)
    return pyops.Graph(indptr, torch.randint(count, (edges,), generator=generator), weights)


def test_wrong_options():
    graph = drawn(5, 9)
    for options, error, words in (
        (dict(cutoff=-1.0), ValueError, ("cutoff", "-1.0")),
        (dict(cutoff=math.nan), ValueError, ("cutoff", "nan")),
        (dict(cutoff="1"), TypeError, ("cutoff", "str")),
        (dict(cutoff=True), TypeError, ("cutoff", "bool")),
        (dict(method="best"), ValueError, ("method", "best", "dijkstra")),
    ):
        with pytest.raises(error) as caught:
            pyops.geodesic_distances(graph, **options)
        assert all(word in str(caught.value) for word in words)
    with pytest.raises(TypeError, match="indptr, indices, weights"):
        pyops.geodesic_distances(graph.weights)


def wild_arguments():
    """Rows, targets, weights and sources that no caller may give, and none may read or write elsewhere."""
    indptr = torch.tensor([-5, 4, 2, 99, 6])
    indices = torch.tensor([1, -1, 7, 2, 3, 1 << 40])
    weights = torch.tensor([1.0, 1.0, 1.0, -1.0, math.nan, 2.0])
    return [t[None] for t in (indptr, indices, weights, torch.tensor([0, -3, 4, 1 << 50]))]


def test_operators_keep_to_their_memory():
    given = wild_arguments()
    for method in ("auto", "sweeps", "dijkstra"):
        found = torch.ops.pyops.geodesic_distances(*given, inf, method)
        assert found[0].tolist() == [[0, 1, inf, inf], [inf] * 4, [inf] * 4, [inf] * 4]
    for distances in (found, torch.rand(1, 4, 4), torch.full((1, 4, 4), math.nan), torch.zeros(1, 4, 4)):
        before = torch.ops.pyops.geodesic_predecessors(*given, distances, False)
        assert (before >= -1).all() and (before < 4).all()
        grad = torch.ops.pyops.geodesic_distances_backward(torch.ones(1, 4, 4), *given, distances)
        assert grad.isfinite().all()
    assert grad[0, 2:5].tolist() == [0, 0, 0]


def test_operators_check_their_arguments():
    graph = drawn(5, 9)
    indptr, indices, weights = (t[None] for t in graph)
    sources = torch.arange(2)[None]
    search = torch.ops.pyops.geodesic_distances
    for name, args in (
        ("indptr", (graph.indptr, indices, weights, sources, inf, "auto")),
        ("indptr", (indptr[:, :0], indices, weights, sources, inf, "auto")),
        ("indices", (indptr, indices.int(), weights, sources, inf, "auto")),
        ("weights", (indptr, indices, weights.half(), sources, inf, "auto")),
        ("weights", (indptr, indices, weights[:, 1:], sources, inf, "auto")),
        ("sources", (indptr, indices, weights, sources.expand(2, 2), inf, "auto")),
        ("cutoff", (indptr, indices, weights, sources, -1.0, "auto")),
        ("method", (indptr, indices, weights, sources, inf, "none")),
    ):
        with pytest.raises(RuntimeError, match=name):
            search(*args)
    distances = search(indptr, indices, weights, sources, inf, "auto")
    with pytest.raises(RuntimeError, match="distances"):
        torch.ops.pyops.geodesic_predecessors(indptr, indices, weights, sources, distances[:, 1:], False)
    with pytest.raises(RuntimeError, match="grad"):
        torch.ops.pyops.geodesic_distances_backward(
            distances.double(), indptr, indices, weights, sources, distances
        )
