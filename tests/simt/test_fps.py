"""What is special to the CUDA kernels: points in registers or read again, distances in shared or global memory, more
points than a thread holds, the order of threads."""

from __future__ import annotations

import shutil

import pytest
import torch

from pyops import reference

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")


def cloud(*shape, steps=None):
    points = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    return points if steps is None else (points * steps).round()


def assert_follows_the_definition(points, m, lengths=None, start=None):
    found = torch.ops.pyops_simt.farthest_point_sample(points, m, lengths, start)
    expected = reference.farthest_point_sample(
        points, m, lengths=lengths, start=0 if start is None else start
    )
    assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "shape",
    (
        (2, 31, 3),  # a warp in part
        (1, 128, 3),  # four points a thread
        (1, 129, 2),
        (1, 4200, 3),  # eight points a thread
        (1, 200, 8),
        (1, 8300, 1),  # distances in shared memory
        (1, 150, 9),
        (1, 70, 64),
    ),
    ids=str,
)
def test_places_of_points(emulator, shape):
    for points in (cloud(*shape), cloud(*shape, steps=3)):
        assert_follows_the_definition(points, 6)
    batch, count, _ = shape
    lengths, start = torch.full((batch,), count - 7), torch.full((batch,), count // 2)
    assert_follows_the_definition(points.half(), 6, lengths, start)


def test_distances_in_global_memory(emulator):
    emulator.pyops_simt_set_shared_limit(49152)
    points = cloud(2, 13000, 2, steps=40)
    assert_follows_the_definition(points, 4, torch.tensor([13000, 12001]))


def test_all_points_and_more(emulator):
    for points in (cloud(2, 40, 3), cloud(2, 40, 9)):
        points[0, 3:9, 0] = torch.nan
        assert_follows_the_definition(points, 45)


@pytest.mark.parametrize("dims", (3, 9))
def test_order_of_threads(emulator, dims):
    points = cloud(2, 300, dims, steps=2)
    for seed in (1, 2, 3):
        emulator.pyops_simt_set_seed(seed)
        assert_follows_the_definition(points, 12)
