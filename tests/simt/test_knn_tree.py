"""Nearest neighbours by trees on CUDA: the bits of the definition for clouds of any kind, and how little is read."""

from __future__ import annotations

import ctypes
import math
import shutil

import pytest
import torch

from pyops import reference

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


@pytest.fixture
def trees(emulator):
    """Trees whatever the size."""
    emulator.pyops_simt_set_knn_tree(1)
    emulator.pyops_simt_knn_leaves.restype = ctypes.c_int64
    emulator.pyops_simt_knn_leaves()
    yield emulator
    emulator.pyops_simt_set_knn_tree(0)


def points_of(kind, count, dims):
    generator = torch.Generator().manual_seed(count + dims)
    uniform = torch.rand(count, dims, generator=generator)
    if kind == "clustered":
        centers = torch.randn(8, dims, generator=generator).mul(9)
        return centers.repeat(count // 8 + 1, 1)[:count] + uniform / 50
    if kind == "outlier":
        uniform[count // 3] = 1e9
    if kind == "duplicated":
        return uniform[:37][torch.randint(0, min(37, count), (count,), generator=generator)]
    if kind == "collinear":
        return uniform[:, :1] * torch.linspace(-1, 2, dims)
    if kind == "equal":
        return torch.full((count, dims), 0.3)
    if kind == "lattice":
        return torch.randint(0, 9, (count, dims), generator=generator).float() - 4
    if kind == "extremes":
        return (uniform - 0.5) * torch.tensor([1e-42, 1.0, 6e38] * 3)[:dims]
    if kind == "not finite":
        uniform[::5], uniform[1::7], uniform[2::11, 0] = math.nan, math.inf, -math.inf
    return uniform


KINDS = (
    "uniform",
    "clustered",
    "outlier",
    "duplicated",
    "collinear",
    "equal",
    "lattice",
    "extremes",
    "not finite",
)


def queries_of(points, count):
    """Points of the cloud, others around it, and none that are finite."""
    generator = torch.Generator().manual_seed(0)
    others = torch.rand(count // 3 + 1, points.shape[1], generator=generator) * 3 - 1
    query = torch.cat([points[:: max(1, 3 * len(points) // (2 * count))], others])
    query[1], query[-1, 0] = math.nan, math.inf
    return query


def assert_same_bits(query, points, k, counts=(None, None), limit=math.inf):
    found = torch.ops.pyops_simt.knn(query, points, k, *counts, limit * limit)
    expected = reference.knn(query, points, k, query_lengths=counts[0], lengths=counts[1], max_radius=limit)
    assert torch.equal(found[1], expected.indices) and torch.equal(found[0], expected.squared_distances)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ((150, 3), (2500, 3), (600, 2), (70, 1), (1300, 5), (400, 8)), ids=str)
def test_bits_of_the_definition(trees, kind, shape):
    points = points_of(kind, *shape)
    query = queries_of(points, 9)
    for k in (1, 16, 32, 40):
        assert_same_bits(query[None], points[None], k)
    assert_same_bits(query[None], points[None], 7, limit=0.2)
    assert_same_bits(query[None], points[None], 40, limit=0.0)


@pytest.mark.parametrize("kind", ("uniform", "clustered", "equal", "duplicated", "not finite"))
@pytest.mark.parametrize(
    "shape",
    (
        (9000, 3),  # three chunks, one division of the cloud
        (40_000, 2),  # ten chunks, two divisions, three levels of nodes
        (5000, 4),  # smaller chunks
    ),
    ids=str,
)
def test_clouds_of_many_chunks(trees, kind, shape):
    points = points_of(kind, *shape)
    clouds = torch.stack([points, points.flip(0)])
    query = queries_of(points, 7).expand(2, -1, -1)
    assert_same_bits(query, clouds, 5)
    lengths = torch.tensor([shape[0] // 3, shape[0]])
    assert_same_bits(query, clouds, 33, (None, lengths))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
def test_lengths_layouts_and_own_queries(trees, dtype):
    """As many queries as points come in the order of the tree, each to its own place; clouds of any strides."""
    clouds = torch.randn(3, 3, 230).to(dtype).mT
    clouds[0, 7] = math.nan
    counts = torch.tensor([230, 0, 119]), torch.tensor([41, 230, 1])
    assert_same_bits(clouds, clouds, 4)
    assert_same_bits(clouds, clouds.flip(1), 3, counts)
    assert_same_bits(clouds[:, :40], clouds, 230, (None, counts[1]))  # k beyond the clouds
    assert_same_bits(clouds[:, :4], clouds[:, :1], 2)


def test_many_queries_have_an_order_of_their_own(trees):
    query, points = torch.rand(1, 4100, 2), torch.rand(1, 90, 2)
    query[0, ::9] = math.nan
    assert_same_bits(query, points, 2, (torch.tensor([4099]), None))


@pytest.mark.parametrize("k", (5, 1024))
def test_order_of_threads(trees, k):
    points = points_of("clustered", 1500, 3)[None]
    for seed in (1, 2):
        trees.pyops_simt_set_seed(seed)
        assert_same_bits(points[:, :3], points, k)
        assert_same_bits(points[:, :3] * 0, points * 0, k)


@pytest.mark.parametrize("kind", KINDS)
def test_few_leaves_are_looked_at(trees, kind):
    """Of 1024 in all, for 15 queries. Without the indices in the keys of boxes, equal points would be looked at all."""
    points = points_of(kind, 32_768, 3)[None]
    assert_same_bits(points[:, ::2185], points, 16)
    assert trees.pyops_simt_knn_leaves() < 15 * (60 if kind == "outlier" else 25)


def test_small_clouds_have_no_tree(emulator):
    emulator.pyops_simt_knn_leaves.restype = ctypes.c_int64
    emulator.pyops_simt_knn_leaves()
    assert_same_bits(torch.rand(1, 3, 3), torch.rand(1, 5000, 3), 4)
    assert emulator.pyops_simt_knn_leaves() == 0
