"""What is true of geodesic distances alone: what a metric is, paths, scipy's results, methods, memory."""

from __future__ import annotations

import math

import pytest
import torch

import pyops
from pyops import Graph

inf = math.inf


def graph_of(edges, count, dtype=torch.float32):
    """A graph of (from, to, weight)."""
    edges = sorted(edges, key=lambda edge: edge[0])
    degrees = torch.tensor([u for u, _, _ in edges], dtype=torch.int64).bincount(minlength=count)
    indices = torch.tensor([v for _, v, _ in edges], dtype=torch.int64)
    weights = torch.tensor([w for _, _, w in edges], dtype=dtype)
    return Graph(torch.cat([degrees.new_zeros(1), degrees.cumsum(0)]), indices, weights)


def drawn(count, edges, *, levels=None, seed=0, symmetric=False, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    u, v = torch.randint(count, (2, edges), generator=generator)
    w = torch.rand(edges, generator=generator, dtype=torch.float64)
    w = w if levels is None else (w * levels).floor()
    if symmetric:
        u, v, w = torch.cat([u, v]), torch.cat([v, u]), torch.cat([w, w])
    return graph_of(list(zip(u.tolist(), v.tolist(), w.tolist(), strict=True)), count, dtype)


def cloud_graph(count, k, dims=3, seed=0):
    """Neighbours in a cloud, both ways, with their distances."""
    points = torch.rand(count, dims, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    distances = torch.cdist(points, points)
    near = distances <= distances.topk(k + 1, largest=False).values[:, -1:]
    near = (near | near.T).fill_diagonal_(False)
    u, v = near.nonzero().T
    indptr = torch.cat([u.new_zeros(1), near.sum(1).cumsum(0)])
    return Graph(indptr, v, distances[u, v].float())


METHODS = pytest.mark.parametrize("method", ("auto", "sweeps", "dijkstra"))
KINDS = {
    "sparse": lambda: cloud_graph(400, 6),
    "dense": lambda: cloud_graph(150, 70),
    "directed": lambda: drawn(300, 900),
    "components": lambda: drawn(300, 200, symmetric=True),
    "ties": lambda: drawn(120, 500, levels=3),
    "no lengths": lambda: drawn(90, 400, levels=1),
    "single": lambda: drawn(200, 900, dtype=torch.float32),
}


@METHODS
@pytest.mark.parametrize("kind", KINDS)
def test_every_method_finds_the_same_bits(kind, method):
    graph = KINDS[kind]()
    count = len(graph.indptr) - 1
    for cutoff in (None, 0.3, 0.0):
        expected = pyops.reference.geodesic_distances(graph, cutoff=cutoff, return_predecessors=True)
        for sources in (None, torch.arange(0, count, 2), torch.tensor([3, 1, 3])):
            found = pyops.geodesic_distances(
                graph, sources, cutoff=cutoff, return_predecessors=True, method=method
            )
            for ours, theirs in zip(found, expected, strict=True):
                assert torch.equal(ours, theirs if sources is None else theirs[sources])


@pytest.mark.parametrize("kind", KINDS)
def test_against_scipy(kind):
    sparse, csgraph = pytest.importorskip("scipy.sparse"), pytest.importorskip("scipy.sparse.csgraph")
    indptr, indices, weights = KINDS[kind]()
    # scipy takes zeros for missing edges and adds parallel ones.
    rows = torch.arange(len(indptr) - 1).repeat_interleave(indptr.diff())
    least = {}
    for u, v, w in zip(rows.tolist(), indices.tolist(), (weights + 1e-3).tolist(), strict=True):
        least[u, v] = min(w, least.get((u, v), inf))
    u, v = zip(*least, strict=True)
    matrix = sparse.csr_matrix((list(least.values()), (u, v)), shape=(len(indptr) - 1,) * 2)
    expected = torch.from_numpy(csgraph.dijkstra(matrix))
    found = pyops.geodesic_distances((indptr, indices, weights + 1e-3))
    torch.testing.assert_close(found.double(), expected, rtol=2e-6, atol=0)


def test_against_networkx():
    networkx = pytest.importorskip("networkx")
    graph = drawn(60, 200)
    other = networkx.MultiDiGraph()
    other.add_nodes_from(range(60))
    rows = torch.arange(60).repeat_interleave(graph.indptr.diff())
    other.add_weighted_edges_from(
        zip(rows.tolist(), graph.indices.tolist(), graph.weights.tolist(), strict=True)
    )
    found = pyops.geodesic_distances(graph)
    for source in range(60):
        lengths = networkx.single_source_dijkstra_path_length(other, source)
        assert found[source].tolist() == [lengths.get(v, inf) for v in range(60)]


def test_metric():
    """On a symmetric graph: zero to itself, the same both ways, and no way round is shorter."""
    distances = pyops.geodesic_distances(drawn(80, 200, symmetric=True))
    assert (distances.diagonal() == 0).all()
    torch.testing.assert_close(distances, distances.T, rtol=1e-14, atol=0)
    detours = (distances[:, :, None] + distances[None]).amin(1)
    assert (distances <= detours * (1 + 1e-14)).all()


def test_a_vertex_on_an_edge_changes_nothing():
    edges = [(0, 1, 1.0), (1, 2, 4.0), (0, 2, 6.0), (2, 0, 2.0)]
    split = [*edges[:1], (1, 3, 1.5), (3, 2, 2.5), *edges[2:]]
    before, after = pyops.geodesic_distances(graph_of(edges, 3)), pyops.geodesic_distances(graph_of(split, 4))
    assert torch.equal(after[:3, :3], before)


def test_order_of_rows_and_names_of_vertices_change_nothing():
    graph = drawn(100, 500)
    rows = torch.arange(100).repeat_interleave(graph.indptr.diff())
    names = torch.randperm(100, generator=torch.Generator().manual_seed(1))
    edges = list(
        zip(names[rows].tolist(), names[graph.indices].tolist(), graph.weights.tolist(), strict=True)
    )
    other = graph_of(edges[::-1], 100, torch.float64)
    found = pyops.geodesic_distances(other)
    assert torch.equal(found[names][:, names], pyops.geodesic_distances(graph))


@pytest.mark.parametrize("kind", KINDS)
def test_predecessors_walk_back_to_the_source(kind):
    """Along edges of the graph, without circles, and the sum of their weights is the distance, bit by bit."""
    graph = KINDS[kind]()
    count = len(graph.indptr) - 1
    sources = torch.arange(0, count, 7)
    distances, before = pyops.geodesic_distances(graph, sources, return_predecessors=True)
    rows = torch.arange(count).repeat_interleave(graph.indptr.diff())
    shortest = torch.full((count, count), inf, dtype=graph.weights.dtype)
    shortest = shortest.flatten().scatter_reduce(0, rows * count + graph.indices, graph.weights, "amin")
    shortest = shortest.view(count, count)
    for i, source in enumerate(sources.tolist()):
        assert before[i, source] == -1
        for v in range(count):
            path = [v]
            while before[i, path[-1]] >= 0:
                path.append(int(before[i, path[-1]]))
                assert len(path) <= count
            if distances[i, v] == inf:
                assert path == [v] and v != source
                continue
            assert path[-1] == source
            length = torch.zeros((), dtype=graph.weights.dtype)
            for to, at in zip(path[-2::-1], path[:0:-1], strict=True):
                length = length + shortest[at, to]
            assert length == distances[i, v]


def test_ties_go_to_the_lowest_predecessor_and_edges_without_length_make_no_circle():
    edges = [
        (0, 2, 1.0),
        (0, 1, 1.0),
        (2, 3, 1.0),
        (1, 3, 1.0),
        (3, 4, 0.0),
        (4, 5, 0.0),
        (5, 4, 0.0),
        (5, 3, 0.0),
    ]
    _, before = pyops.geodesic_distances(graph_of(edges, 7), return_predecessors=True)
    assert before[0].tolist() == [-1, 0, 0, 1, 3, 4, -1]
    assert before[4].tolist() == [-1, -1, -1, 5, -1, 4, -1]
    tiny = graph_of(
        [(0, 1, 1.0), (1, 2, 1e-30), (2, 1, 1e-30), (2, 3, 1e-30)], 4
    )  # too short to change a sum
    found, before = pyops.geodesic_distances(tiny, return_predecessors=True)
    assert found[0].tolist() == [0, 1, 1, 1] and before[0].tolist() == [-1, 0, 1, 2]


def test_cutoff():
    graph = drawn(200, 700)
    everything = pyops.geodesic_distances(graph)
    for cutoff in (0.5, float(everything[0, 17]), 0, inf):
        found, before = pyops.geodesic_distances(graph, cutoff=cutoff, return_predecessors=True)
        assert torch.equal(found, everything.masked_fill(everything > cutoff, inf))
        assert (before[found == inf] == -1).all()


def test_isolated_vertices_loops_and_infinite_weights():
    graph = graph_of([(0, 0, 1.0), (0, 1, inf), (1, 0, 2.0)], 4)
    found = pyops.geodesic_distances(graph)
    assert found.tolist() == [
        [0, inf, inf, inf],
        [2, 0, inf, inf],
        [inf, inf, 0, inf],
        [inf, inf, inf, 0],
    ]
    assert pyops.geodesic_distances(graph_of([], 1)).tolist() == [[0]]
    assert pyops.geodesic_distances(graph_of([], 0)).shape == (0, 0)
    assert pyops.geodesic_distances(graph, torch.tensor([], dtype=torch.int64)).shape == (0, 4)


def test_long_paths():
    """A path visited against the order of its vertices: as many rounds as edges, were it not for the order."""
    count = 3000
    names = torch.randperm(count, generator=torch.Generator().manual_seed(0)).tolist()
    edges = [(names[i], names[i + 1], 1.0) for i in range(count - 1)]
    for method in ("sweeps", "dijkstra"):
        found = pyops.geodesic_distances(graph_of(edges, count), torch.tensor(names[:9]), method=method)
        for i in range(9):
            expected = torch.arange(count, dtype=torch.float32) - i
            assert torch.equal(found[i, names], expected.masked_fill(expected < 0, inf))


def test_gradient_counts_the_paths_of_an_edge():
    edges = [(0, 1, 1.0), (1, 2, 1.0), (2, 3, 1.0), (0, 3, 9.0)]
    indptr, indices, weights = graph_of(edges, 4, torch.float64)
    weights.requires_grad_()
    found = pyops.geodesic_distances((indptr, indices, weights), torch.tensor([0, 0, 1]))
    (grad,) = torch.autograd.grad(found[:, 1:].sum(), weights)
    rows = torch.arange(4).repeat_interleave(indptr.diff()).tolist()
    count = dict(zip(zip(rows, indices.tolist(), strict=True), grad.tolist(), strict=True))
    assert count == {(0, 1): 6, (1, 2): 6, (2, 3): 3, (0, 3): 0}


@pytest.mark.parametrize("kind", ("sparse", "dense", "ties", "components"))
def test_gradient_follows_the_definition(kind):
    indptr, indices, weights = KINDS[kind]()
    weights = weights.double().requires_grad_()
    grads = []
    for library in (pyops, pyops.reference):
        found = library.geodesic_distances((indptr, indices, weights))
        upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        grads.append(torch.autograd.grad(found, weights, upstream)[0])
    torch.testing.assert_close(*grads, rtol=1e-11, atol=1e-11)


def test_gradient_does_not_depend_on_threads_nor_on_what_is_out_of_reach():
    indptr, indices, weights = KINDS["components"]()
    weights.requires_grad_()
    found = pyops.geodesic_distances((indptr, indices, weights))
    upstream = torch.randn_like(found)
    wild = upstream.masked_fill(found == inf, math.nan)
    threads, grads = torch.get_num_threads(), []
    try:
        for count, given in ((1, upstream), (2, upstream), (2, wild)):
            torch.set_num_threads(count)
            grads.append(torch.autograd.grad(found, weights, given, retain_graph=True)[0])
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(grads[0], grads[1]) and torch.equal(grads[0], grads[2])


def test_second_derivative_of_a_function_of_distances():
    indptr, indices, weights = drawn(8, 20)
    sources = torch.tensor([0, 3])

    def energy(values):
        found = pyops.geodesic_distances((indptr, indices, values), sources)
        return found[found.isfinite()].square()

    assert torch.autograd.gradgradcheck(energy, weights.requires_grad_())
