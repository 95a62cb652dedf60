"""Nearest neighbours by products on CUDA: the bits of the definition, whatever the bounds say, and how little is
computed where they say much."""

from __future__ import annotations

import ctypes
import math
import shutil

import pytest
import torch

from pyops import reference

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")

BLOCK = 2000  # numbers of a block of products, hence many blocks
FLOAT32, TF32 = 1, 2


def set_products(emulator, always, numbers=BLOCK):
    emulator.pyops_simt_set_knn_products(always, ctypes.c_int64(numbers))


def distances_computed(emulator):
    emulator.pyops_simt_knn_distances.restype = ctypes.c_int64
    return emulator.pyops_simt_knn_distances()


@pytest.fixture(params=(FLOAT32, TF32), ids=("float32", "tf32"))
def products(emulator, request):
    """Products whatever the size, of factors as they are or cut like tensor cores do."""
    set_products(emulator, request.param)
    distances_computed(emulator)
    yield emulator
    set_products(emulator, 0, 1 << 25)


def points_of(kind, count, dims):
    generator = torch.Generator().manual_seed(count + dims)
    points = torch.randn(count, dims, generator=generator)
    if kind == "far":  # bounds say nothing about what is within a cluster
        centers = torch.randn(5, dims, generator=generator) * 1000
        return centers.repeat(count // 5 + 1, 1)[:count] + points / 50
    if kind == "duplicated":
        return points[torch.randint(0, min(37, count), (count,), generator=generator)]
    if kind == "equal":
        return torch.full((count, dims), 0.3)
    if kind == "lattice":
        return torch.randint(0, 2, (count, dims), generator=generator).float()
    if kind == "offset":
        return points / 100 + 1000
    if kind == "small":
        return points * 1e-21
    if kind == "extremes":
        points[::3] *= 1e-42
        points[1::7] *= 1e18
        points[3], points[5, ::2] = 3e38, -3e38
    if kind == "not finite":
        points[::5], points[1::7], points[2::11, 0] = math.nan, math.inf, -math.inf
    return points


KINDS = ("random", "far", "duplicated", "equal", "lattice", "offset", "small", "extremes", "not finite")


def queries_of(points, count):
    """Points of the cloud, others beside them, and none that are finite."""
    generator = torch.Generator().manual_seed(0)
    own = points[:: max(1, len(points) // count)]
    beside = own + own.abs().nan_to_num(0).clamp(max=1e30) * torch.rand(own.shape, generator=generator) / 9
    query = torch.cat([own, beside])
    query[1], query[-1, 0] = math.nan, math.inf
    return query


def assert_same_bits(query, points, k, counts=(None, None), limit=math.inf):
    found = torch.ops.pyops_simt.knn(query, points, k, *counts, limit * limit)
    expected = reference.knn(query, points, k, query_lengths=counts[0], lengths=counts[1], max_radius=limit)
    assert torch.equal(found[1], expected.indices) and torch.equal(found[0], expected.squared_distances)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", ((150, 64), (300, 130), (70, 515), (40, 3)), ids=str)
def test_bits_of_the_definition(products, kind, shape):
    points = points_of(kind, *shape)
    query = queries_of(points, 7)
    for k in (1, 16, 40):
        assert_same_bits(query[None], points[None], k)
    nearest = reference.knn(query[None, :1], points[None], 6).squared_distances[0, 0, 5]
    assert_same_bits(query[None], points[None], 12, limit=float(nearest.nan_to_num(1, 1)) ** 0.5)
    assert_same_bits(query[None], points[None], 33, limit=0.0)


@pytest.mark.parametrize("dtype", (torch.float32, torch.float16, torch.bfloat16))
def test_lengths_and_layouts(products, dtype):
    """Blocks of queries that are not full, clouds of any strides, k beyond the clouds."""
    clouds = torch.randn(3, 70, 110).to(dtype).mT
    clouds[0, 7] = math.nan
    counts = torch.tensor([110, 0, 59]), torch.tensor([41, 110, 1])
    assert_same_bits(clouds, clouds, 4)
    assert_same_bits(clouds, clouds.flip(1), 3, counts)
    assert_same_bits(clouds[:, :40], clouds, 150, (None, counts[1]))
    assert_same_bits(clouds[:, :4], clouds[:, :1], 2)
    assert_same_bits(clouds[:, ::9, ::2], clouds[:, ::2, 1::2], 33, (counts[0] // 9, None))


@pytest.mark.parametrize("k", (5, 1024))
def test_order_of_threads(products, k):
    points = points_of("random", 1300, 40)[None]
    for seed in (1, 2):
        products.pyops_simt_set_seed(seed)
        assert_same_bits(points[:, :3], points, k)
        assert_same_bits(points[:, :3] * 0, points * 0, k)


def test_close_calls(products):
    """Neighbours that differ by less than what rounding does to products, far from the centre of the cloud."""
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(400, 96, generator=generator)
    points[::3] = 300 + torch.randn(134, 96, generator=generator) / 3
    query = 300 + torch.randn(12, 96, generator=generator) / 3
    for k in (1, 10, 50):
        assert_same_bits(query[None], points[None], k)


def test_few_distances_are_computed(products):
    """Of 3000 a query: what TF32 cannot tell from the neighbours."""
    points = points_of("random", 3000, 256)[None]
    assert_same_bits(points[:, ::300] + 0.1, points, 10)
    assert distances_computed(products) <= 10 * 20


def test_all_distances_are_computed_where_bounds_say_nothing(products):
    points = points_of("far", 200, 64)[None]
    assert_same_bits(points[:, :3], points, 4)
    assert 3 * 32 <= distances_computed(products) <= 3 * 96  # the cluster of each, 40 points, by 32
    assert_same_bits(points[:, :3] * 1e18, points * 1e18, 4)
    assert distances_computed(products) == 3 * 200


def test_problems_have_products_by_size(emulator):
    """A matrix of products pays where it is large."""
    distances_computed(emulator)
    query, points = torch.rand(1, 64, 1024), torch.rand(1, 4096, 1024)
    for queries, computed in ((3, False), (64, True)):
        found = torch.ops.pyops_simt.knn(query[:, :queries], points, 4, None, None, math.inf)
        expected = torch.ops.pyops.knn(query[:, :queries], points, 4, None, None, math.inf)
        assert all(map(torch.equal, found, expected))
        assert (distances_computed(emulator) > 0) == computed


def test_autocast_leaves_products_alone(products):
    points = points_of("offset", 90, 64)[None]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = torch.ops.pyops_simt.knn(points[:, :9], points, 5, None, None, math.inf)
    expected = reference.knn(points[:, :9], points, 5)
    assert torch.equal(found[1], expected.indices) and torch.equal(found[0], expected.squared_distances)
