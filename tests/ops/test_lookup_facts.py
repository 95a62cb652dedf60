"""What is true of lookups in volumes of costs alone."""

from __future__ import annotations

import gc
import math

import pytest
import torch
from memory import peak_allocated
from torch.testing import assert_close

import pyops


def draw(*shape, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def by_grid_sample(level, place, radius):
    """One level as in the code of the papers: the lines of all pixels as a batch of one-row images."""
    size = level.shape[-1]
    x = (place.unsqueeze(-1) + torch.arange(-radius, radius + 1)).flatten(0, 2)
    grid = torch.stack([2 * x / (size - 1) - 1, torch.zeros_like(x)], -1).unsqueeze(1)
    found = torch.nn.functional.grid_sample(level.reshape(-1, 1, 1, size), grid, align_corners=True)
    return found.view(*place.shape, -1).permute(0, 3, 1, 2)


def test_equals_grid_samples():
    pyramid = [draw(2, 6, 30, 48 >> i, dtype=torch.float64) for i in range(4)]
    x = torch.rand(2, 6, 30, dtype=torch.float64) * 60 - 6
    expected = torch.cat([by_grid_sample(level, x / 2**i, 4) for i, level in enumerate(pyramid)], 1)
    assert_close(pyops.corr1d_lookup(pyramid, x, 4), expected, rtol=0, atol=1e-11)


def test_order_of_channels():
    """Level by level; of a level first the volume's channels, each with its window, then the correlations."""
    volumes = [draw(1, 3, 9 >> i, 2, 5) for i in range(2)]
    pyramid = [draw(1, 2, 5, 8 >> i) for i in range(2)]
    disparity = torch.full((1, 2, 5), 2.5)
    found = pyops.geometry_lookup(volumes, pyramid, disparity, 1).unflatten(1, (2, 4, 3))
    assert_close(found[0, 0, 2, 0, 1, 3], (volumes[0][0, 2, 1, 1, 3] + volumes[0][0, 2, 2, 1, 3]) / 2)
    assert_close(found[0, 0, 3, 1, 0, 4], (pyramid[0][0, 0, 4, 1] + pyramid[0][0, 0, 4, 2]) / 2)
    at = volumes[1][0, 0, :, 1, 2]
    assert_close(found[0, 1, 0, 1, 1, 2], 0.75 * at[1] + 0.25 * at[2])
    line = pyramid[1][0, 1, 4]
    assert_close(found[0, 1, 3, 2, 1, 4], 0.25 * line[1] + 0.75 * line[2])


@pytest.mark.parametrize("x", (-1e30, -40.0, 40.0, 3e38, math.inf, -math.inf))
def test_far_outside(x):
    pyramid = [draw(1, 2, 9, 16)]
    position = torch.full((1, 2, 9), x, requires_grad=True)
    found = pyops.corr1d_lookup(pyramid, position, 4)
    assert (found == 0).all()
    assert (torch.autograd.grad(found.sum(), position)[0] == 0).all()


def test_nan():
    pyramid = [draw(1, 2, 9, 16), draw(1, 2, 9, 8)]
    x = torch.full((1, 2, 9), 4.0)
    x[0, 1, 5] = math.nan
    found = pyops.corr1d_lookup(pyramid, x, 2)
    assert torch.equal(found.isnan(), x.isnan().unsqueeze(1).expand_as(found))


@pytest.mark.parametrize("seed", range(3))
def test_smooth_and_torn_disparities(seed):
    """Neighbours in one row of taps, in two, and far from each other."""
    generator = torch.Generator().manual_seed(seed)
    volumes, pyramid = (
        [draw(1, 2, 20, 3, 64), draw(1, 2, 10, 3, 64)],
        [draw(1, 3, 64, 64), draw(1, 3, 64, 32)],
    )
    flat = torch.full((1, 1, 64), 7.3)
    slanted = torch.linspace(4, 9, 64).view(1, 1, 64)
    torn = torch.randint(-3, 24, (1, 1, 64), generator=generator) + 0.5
    disparity = torch.cat([flat, slanted, torn], 1)
    leaves = [t.requires_grad_() for t in (*volumes, *pyramid, disparity)]
    upstream = torch.randn(1, 54, 3, 64, generator=generator)
    results = []
    for library in (pyops, pyops.reference):
        out = library.geometry_lookup(leaves[:2], leaves[2:4], leaves[4], 4)
        results.append((out, *torch.autograd.grad(out, leaves, upstream)))
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs, rtol=1e-5, atol=2e-5)


# ---- one buffer for all gradients ------------------------------------------------------------------------


def losses(function, pyramid, x, count):
    return sum(((i + 1) * function(pyramid, x + i, 2).square()).sum() for i in range(count))


def test_many_lookups_add_up():
    pyramid = [draw(1, 4, 9, 12).requires_grad_(), draw(1, 4, 9, 6).requires_grad_()]
    x = (torch.rand(1, 4, 9) * 12).requires_grad_()
    ours = torch.autograd.grad(losses(pyops.corr1d_lookup, pyramid, x, 5), [*pyramid, x])
    theirs = torch.autograd.grad(losses(pyops.reference.corr1d_lookup, pyramid, x, 5), [*pyramid, x])
    for a, b in zip(ours, theirs, strict=True):
        assert_close(a, b, rtol=1e-5, atol=1e-4)


def test_other_uses_and_other_passes():
    """Of the same levels: another use beside lookups, a pass for a part of the graph, a pass that fails."""
    level, x = draw(1, 4, 9, 12).requires_grad_(), torch.rand(1, 4, 9) * 12
    x.requires_grad_()
    first, second = (pyops.corr1d_lookup([level], x + i, 2) for i in (0, 1))
    expected = [torch.autograd.grad(f.sum(), level, retain_graph=True)[0] for f in (first, second)]
    torch.autograd.grad(first.sum(), x, retain_graph=True)  # leaves something in a buffer that nobody takes
    assert_close(
        torch.autograd.grad(second.sum() + 3 * level.sum(), level, retain_graph=True)[0], expected[1] + 3
    )

    def fail(_):
        raise RuntimeError("broken")

    handle = level.register_hook(fail)
    with pytest.raises(RuntimeError, match="broken"):
        first.sum().backward(retain_graph=True)
    handle.remove()
    (first.sum() + second.sum()).backward()
    assert_close(level.grad, expected[0] + expected[1])


def test_changed_in_between():
    """A level that is written to between two lookups is another one."""
    source = draw(1, 4, 9, 12).requires_grad_()
    level, x = source * 1, torch.rand(1, 4, 9) * 12
    first = pyops.corr1d_lookup([level], x, 2)
    level.mul_(2)
    second = pyops.corr1d_lookup([level], x, 2)
    assert_close(second, 2 * first)
    found = torch.autograd.grad(second.sum(), source)[0]
    expected = torch.autograd.grad(pyops.reference.corr1d_lookup([source * 2], x, 2).sum(), source)[0]
    assert_close(found, expected)


def test_leaves_nothing_behind():
    from pyops.ops import _accumulate

    level = draw(1, 4, 9, 12).requires_grad_()
    pyops.corr1d_lookup([level], torch.rand(1, 4, 9), 2).sum().backward()
    gc.collect()
    assert len(_accumulate._known) == 0


def test_memory_of_many_lookups():
    """22 lookups and their backward need one gradient of the pyramid, and not much more."""
    pyramid = [torch.randn(1, 48, 156, 156 >> i) for i in range(4)]
    bytes_of_pyramid = sum(level.nbytes for level in pyramid)
    for level in pyramid:
        level.requires_grad_()

    def iterate():
        total = torch.zeros((), requires_grad=True)
        for i in range(22):
            total = total + pyops.corr1d_lookup(pyramid, torch.full((1, 48, 156), 30.0 + i), 4).sum()
        total.backward()

    assert bytes_of_pyramid < peak_allocated(iterate) < 1.3 * bytes_of_pyramid
