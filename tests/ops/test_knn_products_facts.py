"""What is true of neighbours in clouds of many dimensions, which products of matrices bound: the bits of the definition
wherever bounds are weak, say nothing, or must not be trusted."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

import pyops
from pyops import reference

KINDS = (
    "uniform",
    "clustered",
    "duplicated",
    "collinear",
    "equal",
    "lattice",
    "offset",
    "outlier",
    "descending",
    "squares overflow",
    "squares vanish",
    "not finite",
)


def points_of(kind, count, dims):
    generator = torch.Generator().manual_seed(count + dims)
    uniform = torch.rand(count, dims, generator=generator)
    some = torch.arange(count)[:, None]
    if kind == "clustered":
        return torch.randn(8, dims, generator=generator).mul(9)[some[:, 0] % 8] + uniform / 5000
    if kind == "duplicated":
        return uniform[:37][torch.randint(0, 37, (count,), generator=generator)]
    if kind == "collinear":
        return uniform * torch.eye(dims)[0]
    if kind == "equal":
        return torch.full((count, dims), 0.3)
    if kind == "lattice":
        return torch.randint(0, 3, (count, dims), generator=generator).float()
    if kind == "offset":
        return uniform + 1000
    if kind == "outlier":
        return uniform.where(some % 300 != 7, 1e6)
    if kind == "descending":  # each is nearer to the first query than all before it
        return uniform[0] + torch.linspace(9, 1, count)[:, None] * (uniform[1] - 0.5)
    if kind == "squares overflow":
        return uniform.where(some % 9 > 0, uniform * 3e19).where(some % 17 > 0, uniform * 1e18)
    if kind == "squares vanish":
        return uniform * 1e-22
    if kind == "not finite":
        uniform[::5], uniform[1::7], uniform[2::11, 0] = math.nan, math.inf, -math.inf
    return uniform


def queries_of(points, count):
    """Points of the cloud, others, and some that are awkward themselves."""
    generator = torch.Generator().manual_seed(0)
    query = points[torch.randint(0, len(points), (count,), generator=generator)]
    query[::3] = torch.rand(query[::3].shape, generator=generator) * 3 - 1
    query[0], query[2], query[4, 0], query[6] = points.nanmean(0), math.nan, math.inf, query[6] * 1e20
    return query


def assert_equals_definition(query, points, k, **options):
    found, expected = (library.knn(query, points, k, **options) for library in (pyops, reference))
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.squared_distances, expected.squared_distances)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ((2300, 29), (300, 150), (90, 600)), ids=str)
def test_bits_of_the_definition(kind, shape):
    """Below and beyond the points that are looked at together, one part of the coordinates and three."""
    points = points_of(kind, *shape)
    query = queries_of(points, 35)
    for k in (1, 3, 14):
        assert_equals_definition(query[None], points[None], k)
    clouds = torch.stack([points, points.flip(0), points])
    options = dict(
        lengths=torch.tensor([shape[0] // 2, shape[0], 0]), query_lengths=torch.tensor([35, 20, 35])
    )
    assert_equals_definition(query.expand(3, -1, -1), clouds, 2, **options, max_radius=0.4 * shape[1] ** 0.5)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.float16, torch.bfloat16))
@pytest.mark.parametrize("kind", ("uniform", "lattice", "not finite"))
def test_dtypes(dtype, kind):
    points = points_of(kind, 1400, 40).to(dtype)
    assert_equals_definition(points[None, ::40], points[None], 5)


@pytest.mark.parametrize("kind", ("uniform", "equal", "outlier"))
def test_many_neighbours(kind):
    points = points_of(kind, 4200, 520)
    for k in (300, 1024):
        assert_equals_definition(points[None, ::200], points[None], k)


@pytest.mark.parametrize(
    "sizes", ((15, 1000, 24, 2), (16, 1000, 24, 2), (16, 833, 24, 2), (16, 1000, 23, 2)), ids=str
)
def test_where_searches_part(sizes):
    queries, count, dims, k = sizes
    points = points_of("duplicated", count, dims)
    assert_equals_definition(points[None, :queries], points[None], k)


def test_any_strides():
    points = points_of("uniform", 700, 128)
    for cloud in (points[:, ::2], points[::2], points.t().contiguous().t(), points[:1].expand(700, 128)):
        assert_equals_definition(cloud[None, 3:40], cloud[None], 2)


def test_neighbours_that_products_cannot_tell_apart():
    """Differences of 1e-6 about a point at 1000: products round to 1, the definition orders them all."""
    generator = torch.Generator().manual_seed(3)
    near = torch.rand(900, 64, generator=generator, dtype=torch.float64)
    points = torch.cat([near / 2**13 + 1000, near[:300] * 1e6]).float()
    query = points[:32]
    assert_equals_definition(query[None], points[None], 8)
    exact = (query.double()[:, None] - points.double()).square().sum(-1)
    found = pyops.knn(query[None], points[None], 8)
    assert_close(exact.gather(1, found.indices[0]), exact.sort(-1).values[:, :8], rtol=1e-5, atol=0)


def test_threads_and_tasks():
    points = points_of("uniform", 1100, 64)
    query = torch.stack([points, points.flip(0)])
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(pyops.knn(query, points.expand(2, -1, -1), 4))
    finally:
        torch.set_num_threads(before)
    for run in runs:
        assert torch.equal(run.indices, runs[0].indices)
        assert torch.equal(run.squared_distances, runs[0].squared_distances)
    assert_equals_definition(query[:1, ::9], points[None], 4)
    assert runs[0].indices[0, :, 0].tolist() == list(range(1100))


@pytest.mark.gpu
@pytest.mark.parametrize("tf32", (False, True))
@pytest.mark.parametrize("kind", ("uniform", "clustered", "offset", "not finite"))
def test_products_of_a_gpu(kind, tf32, monkeypatch):
    """The bits of the CPU in whatever precision torch may multiply; nothing waits, so that a graph can hold it."""
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", tf32)
    points = points_of(kind, 5000, 256)
    clouds = queries_of(points, 300)[None], points[None]
    on_gpu, expected = [cloud.cuda() for cloud in clouds], pyops.knn(*clouds, 10)
    runs, graph = [pyops.knn(*on_gpu, 10)], torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        runs.append(pyops.knn(*on_gpu, 10))
    graph.replay()
    for run in runs:
        assert all(torch.equal(ours.cpu(), theirs) for ours, theirs in zip(run, expected, strict=True))
