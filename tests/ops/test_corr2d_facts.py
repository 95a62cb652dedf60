"""What is true of all-pairs correlation of images alone."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from memory import LAYOUTS, peak_allocated, relayout
from torch.testing import assert_close

import pyops


def images(*shape, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(shape, generator=generator).to(dtype) for _ in range(2)]


def test_equals_products_and_pools():
    """As in the code of RAFT: products of all pairs, then pools of the volume."""
    first, second = images(2, 16, 9, 17)
    volume = (first.flatten(2).mT @ second.flatten(2) / 4).view(2 * 9 * 17, 1, 9, 17)
    for level in pyops.corr2d_pyramid(first, second):
        assert_close(level.flatten(0, 2).unsqueeze(1), volume)
        assert level.is_contiguous()
        volume = F.avg_pool2d(volume, 2) if min(volume.shape[2:]) > 1 else volume


def by_grid_sample(level, places, radius):
    """One level as in the code of RAFT: the planes of all pixels as a batch of images."""
    rows, columns = level.shape[3:]
    steps = torch.arange(-radius, radius + 1, dtype=level.dtype)
    delta = torch.stack(torch.meshgrid(steps, steps, indexing="ij"), -1)
    place = places.permute(0, 2, 3, 1).reshape(-1, 1, 1, 2) + delta
    grid = 2 * place / torch.tensor([columns - 1, rows - 1], dtype=level.dtype) - 1
    found = F.grid_sample(level.reshape(-1, 1, rows, columns), grid, align_corners=True)
    return found.view(*level.shape[:3], -1).permute(0, 3, 1, 2)


def test_equals_grid_samples():
    levels = [torch.randn(2, 6, 11, 24 >> i, 40 >> i, dtype=torch.float64) for i in range(4)]
    coords = torch.rand(2, 2, 6, 11, dtype=torch.float64) * 50 - 8
    expected = torch.cat([by_grid_sample(level, coords / 2**i, 4) for i, level in enumerate(levels)], 1)
    assert_close(pyops.corr2d_lookup(levels, coords, 4), expected, rtol=0, atol=1e-11)


def test_order_of_channels():
    """Level by level; of a level column by column."""
    levels = [torch.randn(1, 2, 3, 8 >> i, 12 >> i) for i in range(2)]
    coords = torch.tensor([6.5, 4.0]).view(1, 2, 1, 1).expand(1, 2, 2, 3)
    found = pyops.corr2d_lookup(levels, coords, 1).unflatten(1, (2, 3, 3))
    plane = levels[0][0, 1, 2]
    assert_close(found[0, 0, 0, 2, 1, 2], (plane[5, 5] + plane[5, 6]) / 2)
    plane = levels[1][0, 0, 1]
    assert_close(found[0, 1, 2, 0, 0, 1], 0.75 * plane[1, 4] + 0.25 * plane[1, 5])


@pytest.mark.parametrize("layout", LAYOUTS)
def test_layouts(layout):
    first, second = images(2, 5, 4, 12)
    coords = torch.rand(2, 2, 4, 12) * 12

    def run(first, second, coords):
        found = pyops.corr2d_lookup_on_demand(first, second, coords, 2, 2)
        return [*pyops.corr2d_pyramid(first, second, 2), found]

    expected = run(first, second, coords)
    assert_close(run(*(relayout(t, layout) for t in (first, second, coords))), expected)


@pytest.mark.parametrize("radius", (0, 1, 3, 4, 8))
def test_on_demand_equals_the_volume(radius):
    first, second = images(1, 48, 10, 14)
    coords = torch.rand(1, 2, 10, 14) * 24 - 6
    expected = pyops.corr2d_lookup(pyops.corr2d_pyramid(first, second), coords, radius)
    assert_close(pyops.corr2d_lookup_on_demand(first, second, coords, radius), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("axis", (0, 1))
@pytest.mark.parametrize("far", (-1e30, -400.0, 400.0, 3e38, math.inf, -math.inf))
def test_far_outside(far, axis):
    first, second = (t.requires_grad_() for t in images(1, 4, 8, 9))
    coords = torch.full((1, 2, 8, 9), 4.0)
    coords[:, axis] = far
    coords.requires_grad_()
    levels = pyops.corr2d_pyramid(first, second, 3)
    for found in (
        pyops.corr2d_lookup(levels, coords, 4),
        pyops.corr2d_lookup_on_demand(first, second, coords, 4, 3),
    ):
        assert (found == 0).all()
        grads = torch.autograd.grad(found.sum(), [first, second, coords], retain_graph=True)
        assert all((g == 0).all() for g in grads)


def test_nan():
    first, second = images(1, 4, 8, 9)
    coords = torch.full((1, 2, 8, 9), 4.0)
    coords[0, 0, 1, 5] = coords[0, 1, 2, 6] = math.nan
    expected = coords.isnan().any(1, keepdim=True)
    coords.requires_grad_()
    for found in (
        pyops.corr2d_lookup(pyops.corr2d_pyramid(first, second, 3), coords, 2),
        pyops.corr2d_lookup_on_demand(first, second, coords, 2, 3),
    ):
        assert torch.equal(found.isnan(), expected.expand_as(found))
        (slope,) = torch.autograd.grad(found.sum(), coords)
        assert (slope[coords.isnan()] == 0).all()


def test_float16_sums_do_not_overflow():
    first = second = torch.full((1, 256, 8, 8), 16.0, dtype=torch.float16)  # products sum to 65536
    for level in pyops.corr2d_pyramid(first, second):
        assert (level == 4096).all()
    coords = torch.full((1, 2, 8, 8), 4.0)
    assert (pyops.corr2d_lookup_on_demand(first, second, coords, 1, 1) == 4096).all()


def test_gradient_of_a_gradient():
    first, second = (t.requires_grad_() for t in images(1, 3, 2, 4, dtype=torch.float64))
    assert torch.autograd.gradgradcheck(lambda a, b: tuple(pyops.corr2d_pyramid(a, b, 2)), (first, second))


def test_gradients_for_any_number_of_threads():
    first, second = (t.requires_grad_() for t in images(1, 96, 30, 40))
    coords = (torch.rand(1, 2, 30, 40) * 40).requires_grad_()

    def grads():
        found = pyops.corr2d_lookup_on_demand(first, second, coords, 4)
        return torch.autograd.grad(found.square().sum(), [first, second, coords])

    threads, expected = torch.get_num_threads(), grads()
    try:
        for count in (1, 2, 3):
            torch.set_num_threads(count)
            assert all(torch.equal(a, b) for a, b in zip(grads(), expected, strict=True))
    finally:
        torch.set_num_threads(threads)


def test_on_demand_needs_memory_for_features_only():
    first, second = (t.requires_grad_() for t in images(1, 128, 48, 64))
    coords = torch.rand(1, 2, 48, 64) * 48
    features = first.nbytes + second.nbytes

    def there_and_back():
        pyops.corr2d_lookup_on_demand(first, second, coords, 3).sum().backward()

    result = 4 * 49 * 48 * 64 * 4
    assert peak_allocated(there_and_back) < 4 * features + 2 * result
    assert 4 * (48 * 64) ** 2 > 2 * (4 * features + 2 * result)  # what the volume would need


# ---- one buffer for all gradients ------------------------------------------------------------------------


def test_many_lookups_add_up():
    levels = [torch.randn(1, 4, 5, 9 >> i, 12 >> i).requires_grad_() for i in range(2)]
    coords = (torch.rand(1, 2, 4, 5) * 10).requires_grad_()
    results = []
    for library in (pyops, pyops.reference):
        loss = sum(((i + 1) * library.corr2d_lookup(levels, coords + i, 2).square()).sum() for i in range(4))
        results.append(torch.autograd.grad(loss, [*levels, coords]))
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_memory_of_many_lookups():
    """12 lookups and their backward need one gradient of the pyramid, and not much more."""
    levels = [torch.randn(1, 24, 40, 24 >> i, 40 >> i).requires_grad_() for i in range(3)]
    bytes_of_pyramid = sum(level.nbytes for level in levels)

    def iterate():
        total = torch.zeros((), requires_grad=True)
        for i in range(12):
            total = total + pyops.corr2d_lookup(levels, torch.full((1, 2, 24, 40), 3.0 + i), 2).sum()
        total.backward()

    assert bytes_of_pyramid < peak_allocated(iterate) < 1.5 * bytes_of_pyramid
