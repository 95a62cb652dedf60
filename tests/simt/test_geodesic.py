"""What is special to the CUDA kernels: shared and global memory, rows of one thread and of many, many rounds, the order
of threads, gradients that are not finite."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from torch.testing import assert_close

from pyops import reference

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


def drawn(count, edges, sources, levels=None):
    generator = torch.Generator().manual_seed(0)
    rows = torch.randint(count, (edges,), generator=generator)
    indptr = torch.cat([rows.new_zeros(1), rows.bincount(minlength=count).cumsum(0)])
    weights = torch.rand(edges, generator=generator)
    weights = weights if levels is None else (weights * levels).floor()
    return indptr, torch.randint(count, (edges,), generator=generator), weights, torch.arange(sources)


def assert_follows_the_definition(indptr, indices, weights, sources, cutoff=None):
    ops = torch.ops.pyops_simt
    given = [t[None] for t in (indptr, indices, weights, sources)]
    graph = indptr, indices, weights.detach().requires_grad_()
    expected = reference.geodesic_distances(graph, sources, cutoff=cutoff, return_predecessors=True)
    found = ops.geodesic_distances(*given, math.inf if cutoff is None else cutoff, "auto")
    assert torch.equal(found[0], expected[0])
    assert torch.equal(ops.geodesic_predecessors(*given, found, False)[0], expected[1])
    upstream = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    (grad,) = torch.autograd.grad(expected[0], graph[2], upstream[0])
    assert_close(ops.geodesic_distances_backward(upstream, *given, found)[0], grad, rtol=1e-5, atol=1e-5)


SIZES = pytest.mark.parametrize(
    "size",
    (
        (40, 100, 3),  # a thread a row
        (30, 900, 3),  # several
        (12, 4000, 2),  # a warp
        (700, 1400, 2),  # rows in turns
    ),
    ids=str,
)


@SIZES
@pytest.mark.parametrize("limit", (232448, 1024), ids=("shared", "global"))
def test_memory(emulator, size, limit):
    emulator.pyops_simt_set_shared_limit(limit)
    for levels in (None, 2):
        assert_follows_the_definition(*drawn(*size, levels=levels))
    assert_follows_the_definition(*drawn(*size), cutoff=0.3)


@pytest.mark.parametrize("limit", (232448, 4096), ids=("shared", "global"))
def test_more_vertices_at_a_time_than_the_queue_holds(emulator, limit):
    """A star, from whose ends ways of many lengths lead to one more vertex."""
    emulator.pyops_simt_set_shared_limit(limit)
    ends = 1100
    lengths = torch.rand(ends, generator=torch.Generator().manual_seed(0))
    indptr = torch.cat([torch.tensor([0]), torch.arange(ends, 2 * ends + 1), torch.tensor([2 * ends])])
    indices = torch.cat([torch.arange(1, ends + 1), torch.full((ends,), ends + 1)])
    graph = indptr, indices, torch.cat([torch.ones(ends), lengths])
    assert_follows_the_definition(*graph, torch.tensor([0]))


def test_a_source_that_is_none(emulator):
    """Beyond the vertices, but within the last word of bits."""
    indptr, indices, weights, _ = drawn(40, 100, 1)
    given = [t[None] for t in (indptr, indices, weights, torch.tensor([40, 63, -1, 2**40]))]
    assert torch.ops.pyops_simt.geodesic_distances(*given, math.inf, "auto").isinf().all()


@pytest.mark.parametrize("scale", (0.0, 1e-40, 1e30))
def test_edges_of_any_length(emulator, scale):
    """None, too short to be normal numbers, and too long to be added up."""
    indptr, indices, weights, sources = drawn(60, 200, 3)
    weights[::7] = 0
    weights[1::7] *= 1e8
    assert_follows_the_definition(indptr, indices, weights * scale, sources)


def test_many_rounds(emulator):
    """A path against the order of threads."""
    count = 600
    indptr = (torch.arange(count + 1) - 1).clamp(min=0)  # each vertex leads to the one before it
    graph = indptr, torch.arange(count - 1), torch.ones(count - 1)
    assert_follows_the_definition(*graph, torch.tensor([count - 1, 5]))


def test_more_sources_than_blocks(emulator):
    emulator.pyops_simt_set_multiprocessors(1)
    try:
        assert_follows_the_definition(*drawn(25, 60, 25))
        batch = [torch.stack([t, t.flip(0) if t.is_floating_point() else t]) for t in drawn(25, 60, 25)]
        found = torch.ops.pyops_simt.geodesic_distances(*batch, math.inf, "auto")
        for b in range(2):
            assert torch.equal(found[b], reference.geodesic_distances([t[b] for t in batch[:3]]))
    finally:
        emulator.pyops_simt_set_multiprocessors(2)


def test_order_of_threads(emulator):
    for seed in (1, 2, 3):
        emulator.pyops_simt_set_seed(seed)
        assert_follows_the_definition(*drawn(50, 300, 3, levels=2))


def test_gradients_that_are_not_finite(emulator):
    given = [t[None] for t in drawn(40, 90, 4)]
    found = torch.ops.pyops_simt.geodesic_distances(*given, math.inf, "auto")
    upstream = torch.ones_like(found).masked_fill(found == math.inf, math.nan)
    backward = torch.ops.pyops_simt.geodesic_distances_backward
    assert backward(upstream, *given, found).isfinite().all(), "what is out of reach has no gradient"
    farthest = int(found[0, 1].masked_fill(found[0, 1] == math.inf, 0).argmax())
    upstream[0, 1, farthest] = math.nan
    expected = torch.ops.pyops.geodesic_distances_backward(upstream, *given, found)
    assert expected.isnan().any()
    assert_close(backward(upstream, *given, found), expected, rtol=1e-5, atol=1e-5, equal_nan=True)


def test_wild_arguments(emulator):
    """Rows, targets, weights and sources that nobody has looked at."""
    indptr = torch.tensor([-5, 4, 2, 99, 6])
    indices = torch.tensor([1, -1, 7, 2, 3, 1 << 40])
    weights = torch.tensor([1.0, 1.0, 1.0, -1.0, math.nan, 2.0])
    given = [t[None] for t in (indptr, indices, weights, torch.tensor([0, -3, 4, 1 << 50]))]
    ops = torch.ops.pyops_simt
    found = ops.geodesic_distances(*given, math.inf, "auto")
    assert found[0].tolist() == [[0, 1, math.inf, math.inf], *[[math.inf] * 4] * 3]
    for distances in (found, torch.rand(1, 4, 4), torch.full((1, 4, 4), math.nan), torch.zeros(1, 4, 4)):
        before = ops.geodesic_predecessors(*given, distances, False)
        assert (before >= -1).all() and (before < 4).all()
        assert ops.geodesic_distances_backward(torch.ones(1, 4, 4), *given, distances).isfinite().all()
