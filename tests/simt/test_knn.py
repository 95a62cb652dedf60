"""What is special to the CUDA kernels: tiles of points, parts of dimensions, networks in registers and in shared
memory, segments longer than a warp, the order of threads."""

from __future__ import annotations

import math
import shutil

import pytest
import torch
from torch.testing import assert_close

from pyops import reference

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


def assert_same_bits(query, points, k, limit=math.inf):
    found = torch.ops.pyops_simt.knn(query, points, k, None, None, limit * limit)
    expected = reference.knn(query, points, k, max_radius=limit)
    assert torch.equal(found[1], expected.indices) and torch.equal(found[0], expected.squared_distances)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16))
@pytest.mark.parametrize(
    "shape",
    (
        (9, 2100, 3, 16),  # three tiles, two blocks of queries
        (3, 90, 2, 32),
        (2, 300, 7, 33),  # in shared memory
        (1, 700, 3, 300),
        (2, 70, 130, 4),  # two parts of dimensions
        (2, 40, 128, 40),
        (1, 5, 3, 40),
    ),
    ids=str,
)
def test_bits_of_the_definition(emulator, shape, dtype):
    queries, count, dims, k = shape
    query, points = (torch.randn(1, n, dims).to(dtype) for n in (queries, count))
    assert_same_bits(query, points, k)
    assert_same_bits(query, points, k, 1.0)
    assert_same_bits(query.round(), points.round(), k)


@pytest.mark.parametrize("k", (5, 40))
def test_order_of_threads(emulator, k):
    query, points = torch.rand(1, 3, 3), torch.rand(1, 150, 3)
    for seed in (1, 2):
        emulator.pyops_simt_set_seed(seed)
        assert_same_bits(query, points, k)
        assert_same_bits(query * 0, points * 0, k)


@pytest.mark.parametrize("dims", (3, 40))
def test_points_in_many_pairs(emulator, dims):
    """Segments of none, some, a warp and many pairs; the same bits whatever order the pairs have come in."""
    query, points = torch.randn(2, 100, dims), torch.randn(2, 5, dims)
    indices = torch.randint(2, 4, (2, 100, 3))
    indices[:, :32, 0], indices[:, 40:, 1] = 1, -1
    grad = torch.randn(2, 100, 3)
    runs = []
    for seed in (0, 1, 2):
        emulator.pyops_simt_set_seed(seed)
        runs.append(torch.ops.pyops_simt.knn_backward(grad, query, points, indices, True, True))
    for run in runs[1:]:
        assert all(torch.equal(a, b) for a, b in zip(run, runs[0], strict=True))
    expected = torch.ops.pyops.knn_backward(*(t.double() for t in (grad, query, points)), indices, True, True)
    for ours, exact in zip(runs[0], expected, strict=True):
        assert_close(ours.double(), exact, rtol=0, atol=1e-5 * float(exact.abs().max()))


def test_balls(emulator):
    query, points = torch.rand(1, 9, 3), torch.rand(1, 1500, 3)
    for k, radius in ((3, 0.4), (40, 0.4), (5, 0.01), (33, 3.0)):
        found = torch.ops.pyops_simt.ball_query(query, points, radius * radius, k, None, None)
        expected = reference.ball_query(query, points, radius, k)
        assert torch.equal(found[1], expected.indices) and torch.equal(found[0], expected.squared_distances)
