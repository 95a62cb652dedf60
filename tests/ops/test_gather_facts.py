"""Gathering from point clouds: what is true of these operators alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

import pyops

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def test_element_by_element():
    values, indices = torch.rand(2, 5, 3), torch.tensor([[[4, 0], [-1, 2]], [[1, 1], [3, -1]]])
    found = pyops.gather_points(values, indices)
    for b, m, k in torch.cartesian_prod(*(torch.arange(2),) * 3).tolist():
        index = int(indices[b, m, k])
        assert torch.equal(found[b, m, k], values[b, index] if index >= 0 else torch.zeros(3))
    weights = torch.rand(2, 2, 2)
    assert_close(pyops.blend_points(values, indices, weights), (found * weights[..., None]).sum(2))


@pytest.mark.parametrize("dtype", FLOATS)
def test_gathering_copies_bits(dtype):
    values = torch.randn(2, 30, 9, generator=seeded()).to(dtype)
    values[0, 3], values[1, 4, 2] = math.nan, -0.0
    indices = torch.randint(0, 30, (2, 80), generator=seeded())
    found = pyops.gather_points(values, indices)
    expected = torch.stack([v[i] for v, i in zip(values, indices, strict=True)])
    assert torch.equal(found.view(torch.uint8), expected.view(torch.uint8))


def test_gradient_counts_uses():
    values = torch.zeros(2, 6, 4, requires_grad=True)
    indices = torch.randint(-1, 6, (2, 50), generator=seeded())
    pyops.gather_points(values, indices).sum().backward()
    uses = torch.stack([torch.bincount(row[row >= 0], minlength=6) for row in indices])
    assert torch.equal(values.grad, uses[..., None].expand(-1, -1, 4).float())


def test_gradients_add_up_in_the_order_of_entries():
    """Also where each order gives other bits, and with any number of threads."""
    indices = torch.randint(0, 5, (3, 4000), generator=seeded())
    upstream = torch.randn(3, 4000, 2, generator=seeded()) * 10.0 ** torch.randint(-4, 4, (3, 4000, 1))
    expected = torch.zeros(3, 5, 2)
    for entry in range(4000):
        for b in range(3):
            expected[b, indices[b, entry]] += upstream[b, entry]
    for threads in (1, 2):
        before = torch.get_num_threads()
        try:
            torch.set_num_threads(threads)
            found = torch.ops.pyops.gather_points_backward(upstream, indices, 5)
        finally:
            torch.set_num_threads(before)
        assert torch.equal(found, expected)


def test_third_derivative_is_that_of_a_linear_function():
    values = torch.rand(1, 4, 2, dtype=torch.float64, requires_grad=True)
    indices = torch.tensor([[3, 1, 1, -1]])

    def cube(v):
        return pyops.gather_points(v, indices).pow(3).sum()

    (first,) = torch.autograd.grad(cube(values), values, create_graph=True)
    (second,) = torch.autograd.grad(first.sum(), values, create_graph=True)
    (third,) = torch.autograd.grad(second.sum(), values)
    uses = torch.tensor([0.0, 2, 0, 1], dtype=torch.float64)[:, None]
    assert_close(third[0], 6 * uses.expand(4, 2))


def test_what_is_missing_adds_nothing():
    values, indices = torch.rand(1, 3, 2), torch.tensor([[[0, -1], [-1, -1]]])
    weights = torch.tensor([[[2.0, math.nan], [math.inf, 1.0]]])
    values.requires_grad_(), weights.requires_grad_()
    found = pyops.blend_points(values, indices, weights)
    assert_close(found, torch.stack([2 * values[0, 0], torch.zeros(2)])[None])
    to_values, to_weights = torch.autograd.grad(found.sum(), (values, weights))
    assert_close(to_values[0, :, 0], torch.tensor([2.0, 0, 0]))
    assert (to_weights[0, :, 1] == 0).all() and to_weights[0, 1, 0] == 0


def test_wild_indices_reach_no_memory_where_they_are_not_looked_at():
    values, wild = torch.rand(1, 3, 2), torch.tensor([[0, 3, -2, 2**40, -(2**40)]])
    expected = torch.cat([values[:, :1], torch.zeros(1, 4, 2)], 1)
    assert torch.equal(torch.ops.pyops.gather_points(values, wild), expected)
    assert torch.equal(torch.vmap(pyops.gather_points)(values[None], wild[None])[0], expected)
    grad = torch.ops.pyops.gather_points_backward(torch.ones(1, 5, 2), wild, 3)
    assert torch.equal(grad, torch.tensor([1.0, 0, 0])[None, :, None].expand(1, 3, 2))
    weights = torch.ones(1, 1, 5)
    assert torch.equal(torch.ops.pyops.blend_points(values, wild[None], weights), values[:, :1])


@pytest.mark.parametrize("dtype", (torch.float16, torch.bfloat16))
def test_halves_with_wide_weights(dtype):
    values = torch.randn(2, 20, 40, generator=seeded()).to(dtype).requires_grad_()
    indices = torch.randint(-1, 20, (2, 30, 3), generator=seeded())
    weights = torch.rand(2, 30, 3, generator=seeded()).requires_grad_()
    found = pyops.blend_points(values, indices, weights)
    plain = pyops.reference.blend_points(values, indices, weights)
    assert found.dtype == dtype
    assert_close(found, plain)
    grads = torch.autograd.grad(found.float().sum(), (values, weights))
    assert [g.dtype for g in grads] == [dtype, torch.float32]
    for ours, theirs in zip(grads, torch.autograd.grad(plain.float().sum(), (values, weights)), strict=True):
        assert_close(ours, theirs)


def test_interpolation_at_the_points_gives_their_values():
    points, values = torch.rand(2, 50, 3, generator=seeded()), torch.randn(2, 50, 7, generator=seeded())
    assert_close(pyops.three_interpolate(points, points, values), values, rtol=0, atol=1e-3)


def test_interpolation_keeps_constants_and_bounds():
    query, points = torch.rand(1, 200, 3, generator=seeded(1)), torch.rand(1, 30, 3, generator=seeded())
    assert_close(
        pyops.three_interpolate(query, points, torch.full((1, 30, 2), 3.0)), torch.full((1, 200, 2), 3.0)
    )
    values = torch.rand(1, 30, 2, generator=seeded())
    found = pyops.three_interpolate(query, points, values)
    assert found.min() >= values.min() - 1e-6 and found.max() <= values.max() + 1e-6


def test_interpolation_with_few_points():
    query = torch.tensor([[[0.0], [5.0]]])
    points, values = torch.tensor([[[0.0], [1.0], [7.0]]]), torch.tensor([[[2.0], [4.0], [9.0]]])
    one = pyops.three_interpolate(query, points, values, lengths=torch.tensor([1]))
    assert_close(one, torch.full((1, 2, 1), 2.0))
    none = pyops.three_interpolate(query, points, values, lengths=torch.tensor([0]))
    assert torch.equal(none, torch.zeros(1, 2, 1))
    short = pyops.three_interpolate(query, points, values, query_lengths=torch.tensor([1]))
    assert short[0, 1] == 0 and short[0, 0] != 0
    leaves = [t.clone().requires_grad_() for t in (query, points, values)]
    found = pyops.three_interpolate(*leaves, lengths=torch.tensor([2]))
    assert all(g.isfinite().all() for g in torch.autograd.grad(found.sum(), leaves))


def test_operators_check_memory_themselves():
    values, indices, weights = (
        torch.rand(2, 5, 3),
        torch.zeros(2, 4, 2, dtype=torch.int64),
        torch.rand(2, 4, 2),
    )
    ops, flat = torch.ops.pyops, indices.flatten(1)
    for name, call in (
        ("values", lambda: ops.gather_points(values[0], flat)),
        ("values", lambda: ops.gather_points(values.int(), flat)),
        ("indices", lambda: ops.gather_points(values, flat.int())),
        ("indices", lambda: ops.gather_points(values, flat[:1])),
        ("grad", lambda: ops.gather_points_backward(values, flat, 5)),
        ("points", lambda: ops.gather_points_backward(torch.rand(2, 8, 3), flat, -1)),
        ("weights", lambda: ops.blend_points(values, indices, weights[..., 1:])),
        ("weights", lambda: ops.blend_points(values, indices, weights.double())),
        ("grad", lambda: ops.blend_points_backward(values, values, indices, weights, True, True)),
    ):
        with pytest.raises(RuntimeError, match=name):
            call()
