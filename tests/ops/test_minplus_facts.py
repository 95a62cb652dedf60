"""What is true of min-plus products and of shortest distances alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

import pyops


def matrix(*shape, seed=0, dtype=torch.float32):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def graph(*shape, seed=0, missing=0.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(shape, generator=generator, dtype=torch.float64) + 0.05
    weights[torch.rand(shape, generator=generator) < missing] = math.inf
    return weights.to(dtype)


# ---- products --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.float16))
@pytest.mark.parametrize("shape", ((7, 300, 17), (97, 33, 515), (1, 1, 1), (6, 257, 16)), ids=str)
def test_every_bit_is_that_of_the_definition(shape, dtype):
    rows, inner, columns = shape
    a, b = matrix(rows, inner, dtype=dtype), matrix(inner, columns, seed=1, dtype=dtype)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    expected = (a.to(wide)[:, :, None] + b.to(wide)[None]).amin(1).to(dtype)
    assert torch.equal(pyops.min_plus_matmul(a, b), expected)


def test_batches_broadcast_as_of_matmul():
    a, b = matrix(2, 1, 4, 5), matrix(3, 5, 6, seed=1)
    product = pyops.min_plus_matmul(a, b)
    assert product.shape == (a @ b).shape == (2, 3, 4, 6)
    for i in range(2):
        for j in range(3):
            assert torch.equal(product[i, j], pyops.min_plus_matmul(a[i, 0], b[j]))
    leaves = [a.requires_grad_(), b.requires_grad_()]
    pyops.min_plus_matmul(*leaves).sum().backward()
    assert a.grad.sum() == b.grad.sum() == 2 * 3 * 4 * 6


def test_identity_and_associativity():
    a, b, c = (matrix(2, 9, 9, seed=seed, dtype=torch.float64) for seed in range(3))
    identity = torch.full((9, 9), math.inf, dtype=torch.float64).fill_diagonal_(0)
    assert torch.equal(pyops.min_plus_matmul(a, identity), a)
    assert torch.equal(pyops.min_plus_matmul(identity, a), a)
    left = pyops.min_plus_matmul(pyops.min_plus_matmul(a, b), c)
    assert_close(left, pyops.min_plus_matmul(a, pyops.min_plus_matmul(b, c)))
    transposed = pyops.min_plus_matmul(b.mT, a.mT).mT
    assert torch.equal(transposed, pyops.min_plus_matmul(a, b))


def test_infinities():
    a = torch.tensor([[1.0, math.inf], [-math.inf, 2.0], [math.inf, math.inf], [math.nan, 0.0]])
    b = torch.tensor([[3.0, math.inf], [0.0, 1.0]])
    expected = torch.tensor(
        [[4.0, math.inf], [-math.inf, math.nan], [math.inf, math.inf], [math.nan, math.nan]]
    )
    assert_close(pyops.min_plus_matmul(a, b), expected, rtol=0, atol=0, equal_nan=True)
    assert (pyops.min_plus_matmul(torch.ones(2, 0), torch.ones(0, 3)) == math.inf).all()


def test_gradient_goes_to_the_lowest_index_and_not_along_no_way():
    a = torch.tensor([[1.0, 0.0, 1.0], [math.inf, math.inf, math.inf]], requires_grad=True)
    b = torch.tensor([[1.0], [2.0], [1.0]], requires_grad=True)
    pyops.min_plus_matmul(a, b).backward(torch.tensor([[3.0], [5.0]]))
    assert a.grad.tolist() == [[3, 0, 0], [0, 0, 0]] and b.grad.tolist() == [[3], [0], [0]]


@pytest.mark.parametrize("threads", (1, 2, 3))
def test_gradients_do_not_depend_on_threads(threads):
    a, b = (matrix(300, 300, seed=s).round(decimals=1).requires_grad_() for s in range(2))
    product = pyops.min_plus_matmul(a, b)
    upstream = matrix(300, 300, seed=2)
    expected = torch.autograd.grad(product, (a, b), upstream, retain_graph=True)
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert torch.equal(pyops.min_plus_matmul(a, b), product)
        found = torch.autograd.grad(product, (a, b), upstream)
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(f, e) for f, e in zip(found, expected, strict=True))


# ---- shortest distances ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nodes", (1, 2, 31, 96, 97, 128, 129, 200, 300))
@pytest.mark.parametrize("missing", (0.0, 0.97))
def test_agrees_with_scipy(nodes, missing):
    csgraph = pytest.importorskip("scipy.sparse.csgraph")
    weights = graph(nodes, nodes, seed=nodes, missing=missing)
    dense = csgraph.csgraph_from_dense(weights.numpy(), null_value=math.inf)
    expected = torch.from_numpy(csgraph.floyd_warshall(dense))
    assert_close(pyops.floyd_warshall(weights), expected)
    assert_close(pyops.floyd_warshall(weights.float()), expected.float(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("nodes", (20, 150))
def test_distances_are_a_metric_that_closes(nodes):
    weights = graph(3, nodes, nodes, missing=0.9)
    weights = torch.minimum(weights, weights.mT)
    distances = pyops.floyd_warshall(weights)
    assert_close(distances, distances.mT)
    assert (distances.diagonal(dim1=1, dim2=2) == 0).all()
    assert (distances <= pyops.min_plus_matmul(distances, distances) * (1 + 1e-12)).all()
    assert_close(pyops.floyd_warshall(distances), distances)
    assert_close(pyops.floyd_warshall(4 * weights), 4 * distances)


def test_a_node_on_an_edge_changes_nothing():
    weights = graph(12, 12, missing=0.6)
    i, j = (weights.isfinite() & ~torch.eye(12, dtype=torch.bool)).nonzero()[5].tolist()
    larger = torch.full((13, 13), math.inf, dtype=torch.float64)
    larger[:12, :12] = weights
    larger[i, 12], larger[12, j] = 0.25 * weights[i, j], 0.75 * weights[i, j]
    larger[i, j] = math.inf
    assert_close(pyops.floyd_warshall(larger)[:12, :12], pyops.floyd_warshall(weights))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.float16, torch.bfloat16))
@pytest.mark.parametrize("nodes", (7, 140))
def test_gradient_counts_paths(dtype, nodes):
    """Multiplied by the lengths of the edges, it adds up to the distances; as along any path."""
    weights = graph(2, nodes, nodes, missing=0.5, dtype=dtype).requires_grad_()
    distances = pyops.floyd_warshall(weights)
    finite = distances.isfinite()
    (grad,) = torch.autograd.grad(distances, weights, finite.to(dtype))
    used = grad != 0
    total = (grad.double()[used] * weights.detach().double()[used]).sum()
    exact = pyops.reference.floyd_warshall(weights.detach().double())
    assert_close(total, exact[exact.isfinite()].sum(), rtol=64 * torch.finfo(dtype).eps, atol=0)
    assert (grad >= 0).all() and (grad.diagonal(dim1=1, dim2=2) == 0).all()


def test_edges_of_no_length():
    """Several nodes in one place: paths among them must not run in circles."""
    place = torch.tensor([0.0, 0, 0, 1, 1, 3, 3, 3])
    weights = (place[:, None] - place).abs().requires_grad_()
    distances = pyops.floyd_warshall(weights)
    assert torch.equal(distances, weights)
    upstream = torch.rand(8, 8)
    (grad,) = torch.autograd.grad(distances, weights, upstream)
    assert grad.isfinite().all() and (grad >= 0).all()
    assert_close((grad * weights).sum(), (upstream * distances).sum())
    chain = torch.full((5, 5), math.inf)
    chain[0, 1], chain[1, 2], chain[2, 1], chain[2, 3], chain[3, 4], chain[4, 3] = 1.0, 0, 0, 0, 0, 0
    chain.requires_grad_()
    (grad,) = torch.autograd.grad(pyops.floyd_warshall(chain)[0, 4], chain)
    assert grad.nonzero().tolist() == [[0, 1], [1, 2], [2, 3], [3, 4]]


def test_edges_below_rounding():
    weights = torch.full((4, 4), math.inf)
    weights[0, 1], weights[1, 2], weights[2, 1], weights[2, 3] = 1.0, 1e-12, 1e-12, 1e-12
    weights.requires_grad_()
    (grad,) = torch.autograd.grad(pyops.floyd_warshall(weights)[0, 3], weights)
    assert grad.nonzero().tolist() == [[0, 1], [1, 2], [2, 3]]


def test_what_is_out_of_reach_has_no_gradient():
    weights = graph(9, 9, missing=0.2)
    weights[:, 4], weights[6] = math.inf, math.inf
    weights.requires_grad_()
    distances = pyops.floyd_warshall(weights)
    (grad,) = torch.autograd.grad(distances, weights, torch.ones_like(distances))
    assert grad.isfinite().all() and (grad[:, 4] == 0).all() and (grad[6] == 0).all()


def test_operator_checks_memory_itself():
    a, b, square = torch.ones(2, 3, 4), torch.ones(2, 4, 5), torch.ones(2, 3, 3)
    operators = torch.ops.pyops
    for words, call in (
        ("a", lambda: operators.min_plus_matmul(a[0], b)),
        ("a", lambda: operators.min_plus_matmul(a.int(), b.int())),
        ("b", lambda: operators.min_plus_matmul(a, b.double())),
        ("b", lambda: operators.min_plus_matmul(a, b[:, 1:])),
        ("b", lambda: operators.min_plus_matmul(a, b[:1])),
        ("grad", lambda: operators.min_plus_matmul_backward(a, a, b, True, True)),
        ("weights", lambda: operators.floyd_warshall(a)),
        ("weights", lambda: operators.floyd_warshall(-square)),
        ("weights", lambda: operators.floyd_warshall(square * math.nan)),
        ("grad", lambda: operators.floyd_warshall_backward(square[:1], square, square)),
        ("distances", lambda: operators.floyd_warshall_backward(square, square, square.double())),
    ):
        with pytest.raises(RuntimeError, match=words):
            call()
