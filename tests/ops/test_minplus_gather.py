"""Min-plus products of a sparse matrix: the contract, and what is true of them alone."""

from __future__ import annotations

import math

import contract
import pytest
import torch
from torch.testing import assert_close

import pyops
from pyops.testing import Invalid, OpCase

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


def edges(shape, dtype, device, generator):
    """Some edges are missing, and the first query has none, but of the smallest, where differences are taken."""
    *batch, queries, each, points, columns = shape
    lengths = torch.randn((*batch, queries, each), generator=generator)
    rows = torch.randn((*batch, points, columns), generator=generator)
    indices = torch.randint(points, (*batch, queries, each), generator=generator)
    if queries > 3:
        indices[torch.rand(indices.shape, generator=generator) < 0.3] = -1
        indices[..., 0, :] = -1
        indices[..., 1, -1:] = 0
    return dict(lengths=lengths.to(device, dtype), indices=indices.to(device), rows=rows.to(device, dtype))


def poison(inputs, value):
    """One length, on which a row of results hangs, and one of no edge, on which none does."""
    lengths = inputs["lengths"].clone()
    lengths[0, 1, -1] = lengths[0, 0, 0] = value
    touched = torch.zeros(*lengths.shape[:2], inputs["rows"].shape[2], dtype=torch.bool)
    touched[0, 1] = True
    return {**inputs, "lengths": lengths}, touched


def invalid(inputs):
    lengths, indices, rows = inputs["lengths"], inputs["indices"], inputs["rows"]
    points = rows.shape[1]

    def with_index(value):
        changed = indices.clone()
        changed[0, 1, 2] = value
        return changed

    def wrong(label, error, *words, **change):
        return Invalid(label, change, error, words)

    return [
        wrong("no tensor", TypeError, "lengths", "torch.Tensor", "list", lengths=[1.0]),
        wrong("no tensor", TypeError, "indices", "torch.Tensor", "list", indices=[1]),
        wrong("no tensor", TypeError, "rows", "torch.Tensor", "NoneType", rows=None),
        wrong("dtype", TypeError, "lengths", "float32", "int64", lengths=lengths.long()),
        wrong("dtype", TypeError, "indices", "int64", "int32", indices=indices.int()),
        wrong("dtypes differ", TypeError, "rows", "float32", "float64", rows=rows.double()),
        wrong("vector", ValueError, "lengths", "2 dimensions", lengths=lengths[0, 0]),
        wrong("vector", ValueError, "rows", "2 dimensions", rows=rows[0, 0]),
        wrong("shape", ValueError, "indices", "shape of lengths", indices=indices[:, 1:]),
        wrong("batch", ValueError, "rows", "broadcast", rows=rows[:1].expand(7, -1, -1)),
        wrong("device", ValueError, "rows", "device", "meta", rows=rows.to("meta")),
        wrong("device", ValueError, "indices", "device", "meta", indices=indices.to("meta")),
        wrong("index", IndexError, "indices", str(points - 1), str(points), indices=with_index(points)),
        wrong("index", IndexError, "indices", "-1", "-2", indices=with_index(-2)),
    ]


CASES = [
    OpCase(
        name="min-plus-gather",
        function=pyops.min_plus_gather,
        reference=pyops.reference.min_plus_gather,
        make_inputs=edges,
        differentiable=("lengths", "rows"),
        dtypes=FLOATS,
        shapes=(
            *((2, 7, 5, 6, 37), (1, 1, 1, 1, 1), (0, 3, 4, 5, 6), (2, 0, 3, 4, 5), (2, 3, 0, 4, 5)),
            *((2, 3, 4, 5, 0), (1, 130, 4, 40, 600)),
        ),
        small=((2, 7, 3, 6, 37), (3, 5, 4, 9, 6)),
        tiny=(2, 3, 3, 4, 5),
        poison=poison,
        invalid=invalid,
    ),
]


class TestContract(contract.Contract):
    cases = CASES


# ---- facts -----------------------------------------------------------------------------------------------------------


def given(queries, each, points, columns, dtype=torch.float32):
    return edges((queries, each, points, columns), dtype, "cpu", torch.Generator().manual_seed(0)).values()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("shape", ((130, 7, 40, 1100), (9, 3, 70000, 33), (5, 300, 2, 70)), ids=str)
def test_is_the_product_with_a_matrix_of_inf_elsewhere(shape, dtype):
    lengths, indices, rows = given(*shape, dtype=dtype)
    if shape[2] < 1000:
        dense = torch.full((shape[0], shape[2] + 1), math.inf, dtype=torch.float64)
        dense.scatter_reduce_(1, indices % (shape[2] + 1), lengths.double(), "amin")
        dense = dense[:, : shape[2]].to(dtype)
        assert torch.equal(pyops.min_plus_gather(lengths, indices, rows), pyops.min_plus_matmul(dense, rows))
    assert torch.equal(
        pyops.min_plus_gather(lengths, indices, rows), pyops.reference.min_plus_gather(lengths, indices, rows)
    )


def test_all_rows_are_the_dense_product():
    a, b = torch.randn(20, 30), torch.randn(30, 50)
    every = torch.arange(30).expand(20, 30)
    leaves = [a.requires_grad_(), b.requires_grad_()]
    upstream = torch.randn(20, 50)
    dense, sparse = pyops.min_plus_matmul(a, b), pyops.min_plus_gather(a, every, b)
    assert torch.equal(dense, sparse)
    expected = torch.autograd.grad(dense, leaves, upstream)
    for ours, other in zip(torch.autograd.grad(sparse, leaves, upstream), expected, strict=True):
        assert_close(ours, other)


def test_rows_of_parts_and_transposes():
    """What a map does with distances: blocks of columns, and distances to landmarks turned round."""
    lengths, indices, rows = given(40, 6, 30, 700)
    whole = pyops.min_plus_gather(lengths, indices, rows)
    assert torch.equal(pyops.min_plus_gather(lengths, indices, rows.mT.contiguous().mT), whole)
    assert torch.equal(pyops.min_plus_gather(lengths, indices, rows[:, 100:613]), whole[:, 100:613])
    assert torch.equal(pyops.min_plus_gather(lengths, indices, rows[:, ::3]), whole[:, ::3])


def test_batches_broadcast():
    lengths, indices, rows = (
        t for t in edges((3, 4, 5, 6, 7), torch.float32, "cpu", torch.Generator()).values()
    )
    one = rows[0].clone().requires_grad_()
    found = pyops.min_plus_gather(lengths[:, None], indices[:, None], one.expand(2, 6, 7))
    assert found.shape == (3, 2, 4, 7)
    for i in range(3):
        assert torch.equal(found[i, 1], pyops.min_plus_gather(lengths[i], indices[i], one))
    found.masked_fill(found.isinf(), 0).sum().backward()
    assert one.grad.sum() == found.isfinite().sum()


def test_values_without_a_way():
    rows = torch.tensor([[1.0, math.inf, math.nan], [-math.inf, 2.0, 3.0]])
    lengths = torch.tensor([[0.5, math.nan], [math.inf, 1.0], [1.0, math.nan], [math.nan, 1.0]])
    indices = torch.tensor([[0, -1], [1, 0], [-1, -1], [1, 0]])
    expected = torch.tensor(
        [[1.5, math.inf, math.nan], [math.nan, math.inf, math.nan], [math.inf] * 3, [math.nan] * 3]
    )
    assert_close(pyops.min_plus_gather(lengths, indices, rows), expected, rtol=0, atol=0, equal_nan=True)
    nothing = pyops.min_plus_gather(torch.ones(2, 3), torch.full((2, 3), -1), torch.ones(0, 4))
    assert (nothing == math.inf).all() and nothing.shape == (2, 4)


def test_gradient_goes_to_the_first_least_sum_and_not_along_no_way():
    lengths = torch.tensor([[1.0, 0.0, 1.0], [math.inf, 7.0, math.nan]], requires_grad=True)
    indices = torch.tensor([[2, 1, 2], [0, 3, -1]])
    rows = torch.tensor([[1.0, 1.0], [2.0, 0.5], [1.0, 5.0], [math.inf, math.inf]], requires_grad=True)
    pyops.min_plus_gather(lengths, indices, rows).backward(torch.tensor([[3.0, 4.0], [5.0, 6.0]]))
    assert lengths.grad.tolist() == [[3, 4, 0], [0, 0, 0]]
    assert rows.grad.tolist() == [[0, 0], [0, 4], [3, 0], [0, 0]]


@pytest.mark.parametrize("threads", (1, 2, 3))
def test_gradients_do_not_depend_on_threads(threads):
    lengths, indices, rows = given(200, 8, 50, 1500)
    leaves = [t.round(decimals=1).requires_grad_() for t in (lengths, rows)]
    upstream = torch.randn(200, 1500)

    def run():
        found = pyops.min_plus_gather(leaves[0], indices, leaves[1])
        return [found, *torch.autograd.grad(found, leaves, upstream)]

    expected, before = run(), torch.get_num_threads()
    try:
        torch.set_num_threads(threads)
        assert all(torch.equal(ours, other) for ours, other in zip(run(), expected, strict=True))
    finally:
        torch.set_num_threads(before)


def test_operator_checks_memory_itself():
    lengths, indices, rows = torch.ones(2, 3, 4), torch.zeros(2, 3, 4).long(), torch.ones(2, 5, 6)
    forward = torch.ops.pyops.min_plus_gather
    backward = torch.ops.pyops.min_plus_gather_backward
    for words, call in (
        ("lengths", lambda: forward(lengths[0], indices, rows)),
        ("lengths", lambda: forward(lengths.int(), indices, rows.int())),
        ("indices", lambda: forward(lengths, indices[:, 1:], rows)),
        ("indices", lambda: forward(lengths, indices.int(), rows)),
        ("rows", lambda: forward(lengths, indices, rows[:1])),
        ("rows", lambda: forward(lengths, indices, rows.double())),
        ("grad", lambda: backward(rows, lengths, indices, rows, True, True)),
    ):
        with pytest.raises(RuntimeError, match=words):
            call()
    for outside in (-2, 5, 1 << 40, -(1 << 62)):  # what the public function refuses where it can see it
        found = forward(lengths, indices + outside, rows)
        assert (found == math.inf).all()
        grads = backward(torch.ones_like(found), lengths, indices + outside, rows, True, True)
        assert all((grad == 0).all() for grad in grads)
