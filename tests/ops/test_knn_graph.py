"""Graphs of nearest neighbours: the contract, on the matrix of all lengths, and what is true of them alone."""

from __future__ import annotations

import contract
import pytest
import torch
from torch.testing import assert_close
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pyops
from pyops import reference, testing
from pyops.ops import knn_graph as layer
from pyops.testing import Invalid, OpCase


def matrix(library):
    """Lengths as a matrix, whose shape does not depend on values."""

    def dense_graph(x, k):
        indptr, indices, weights = library.knn_graph(x, k)
        rows = torch.searchsorted(indptr, torch.arange(indices.shape[0], device=x.device), right=True) - 1
        return weights.new_zeros(x.shape[0], x.shape[0]).index_put((rows, indices), weights)

    return dense_graph


def make_inputs(shape, dtype, device, generator):
    points, dims, k = shape
    if dtype in (torch.float16, torch.bfloat16):  # on a lattice, so that distances are exact
        x = (torch.randint(-128, 128, (points, dims), generator=generator) / 64).to(dtype)
    else:
        x = torch.randn(points, dims, generator=generator, dtype=dtype)
    return dict(x=x.to(device), k=k)


def invalid(inputs):
    x = inputs["x"]
    bad = x.clone()
    bad[3, 1] = float("nan")
    far = x.clone()
    far[4, 0] = float("inf")

    def wrong(label, error, *words, **change):
        return Invalid(label, change, error, words)

    return [
        wrong("no tensor", TypeError, "x", "torch.Tensor", "list", x=[1.0]),
        wrong("dtype", TypeError, "x", "float32", "int32", x=x.int()),
        wrong("rank", ValueError, "x", "[N, D]", str([1, *x.shape]), x=x[None]),
        wrong("no dimensions", ValueError, "x", "above 0", x=x[:, :0]),
        wrong("empty", ValueError, "x", "at least 2", "0", x=x[:0]),
        wrong("one point", ValueError, "x", "at least 2", "1", x=x[:1], k=1),
        wrong("no neighbours", ValueError, "k", "from 1", "0", k=0),
        wrong("all points", ValueError, "k", "below", str(len(x)), k=len(x)),
        wrong("too many", ValueError, "k", "1023", x=torch.zeros(2000, 1), k=1024),
        wrong("fraction", TypeError, "k", "float", k=2.0),
        wrong("NaN", ValueError, "x", "finite", "row 3", x=bad),
        wrong("infinity", ValueError, "x", "finite", "row 4", x=far),
    ]


CASES = [
    OpCase(
        name="knn-graph",
        function=matrix(pyops),
        reference=matrix(reference),
        make_inputs=make_inputs,
        differentiable=("x",),
        dtypes=(torch.float32, torch.float16, torch.bfloat16, torch.float64),
        shapes=((60, 3, 5), (2, 1, 1), (300, 40, 12), (20, 9, 19)),
        small=((12, 3, 3), (17, 4, 3)),
        tiny=(6, 2, 2),
        invalid=invalid,
        capturable=False,  # how many edges there are depends on the points
    )
]


class TestContract(contract.Contract):
    cases = CASES

    def test_vmap(self, case, device):
        """Graphs differ in their numbers of edges."""
        with pytest.raises(RuntimeError, match="vmap"):
            torch.vmap(lambda x: case.function(x, 2))(torch.randn(3, 6, 2))

    def test_compile(self, case, device):
        with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
            super().test_compile(case, device)


def points_of(kind, count, dims):
    generator = torch.Generator().manual_seed(count + dims)
    x = torch.randn(count, dims, generator=generator)
    if kind == "duplicated":
        return x[torch.randint(0, max(2, count // 9), (count,), generator=generator)]
    if kind == "equal":
        return torch.ones(count, dims)
    return torch.randint(0, 2, (count, dims), generator=generator).float() if kind == "lattice" else x


@pytest.mark.parametrize("kind", ("normal", "duplicated", "equal", "lattice"))
@pytest.mark.parametrize("shape", ((50, 3, 5), (40, 2, 39), (700, 40, 9), (2100, 2, 1)), ids=str)
def test_graph_of_the_definition(kind, shape):
    """The CPU's, and what a GPU runs; neighbours by index among points that coincide."""
    *size, k = shape
    x = points_of(kind, *size)
    found, expected = pyops.knn_graph(x, k), reference.knn_graph(x, k)
    plain = layer._union(pyops.knn(x[None], x[None], k + 1).indices[0])
    assert torch.equal(found.indptr, expected.indptr) and torch.equal(found.indices, expected.indices)
    assert torch.equal(plain[0], expected.indptr) and torch.equal(plain[1], expected.indices)
    assert_close(
        found.weights, expected.weights, rtol=1.2e-7, atol=0
    )  # square roots may differ in the last bit


@pytest.mark.parametrize("kind", ("normal", "duplicated"))
def test_what_every_graph_is(kind):
    x = points_of(kind, 900, 3)
    indptr, indices, weights = pyops.knn_graph(x, 7)
    rows = torch.repeat_interleave(indptr.diff())
    pairs, turned = rows * 900 + indices, indices * 900 + rows
    assert (pairs.diff() > 0).all()  # ascending, none twice
    assert (rows != indices).all()
    assert torch.equal(turned.sort().values, pairs)  # symmetric, lengths too
    assert torch.equal(weights[turned.argsort()], weights)
    assert (indptr.diff() >= 7).all() and len(indices) <= 2 * 7 * 900


def test_points_that_coincide():
    """A point is left out by its index, not by its distance, also where it is not among its own nearest."""
    graph = pyops.knn_graph(torch.zeros(5, 2), 2)
    dense = torch.zeros(5, 5).index_put(
        (torch.repeat_interleave(graph.indptr.diff()), graph.indices), torch.ones(1)
    )
    assert dense.tolist() == [
        [0, 1, 1, 1, 1],
        [1, 0, 1, 1, 1],
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
        [1, 1, 0, 0, 0],
    ]
    assert (graph.weights == 0).all()


def test_gradients_by_hand():
    """Edges 0-1 of length 5 and 2-3 of length 0, each in both directions."""
    x = torch.tensor([[0.0, 0], [3, 4], [50, 0], [50, 0]], requires_grad=True)
    weights = pyops.knn_graph(x, 1).weights
    assert weights.tolist() == [5, 5, 0, 0]
    (grad,) = torch.autograd.grad(weights, x, torch.tensor([1.0, 10, 100, 1000]))
    assert_close(grad, torch.tensor([[-6.6, -8.8], [6.6, 8.8], [0, 0], [0, 0]]))


@pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.float16))
def test_gradients_on_a_gpu_are_the_same(dtype):
    x = points_of("duplicated", 200, 5).to(dtype)
    graph = pyops.knn_graph(x, 6)
    grad = torch.randn(len(graph.weights)).to(dtype)
    args = grad, x, graph.indptr, graph.indices
    tolerance = {torch.float16: 2e-3, torch.float64: 1e-12}.get(dtype, 1e-5)
    expected = torch.ops.pyops.edge_lengths_backward(*args)
    assert_close(layer._lengths_backward(*args), expected, rtol=tolerance, atol=tolerance)
    assert_close(layer._lengths(*args[1:]), graph.weights, rtol=torch.finfo(dtype).eps, atol=0)


class Largest(TorchDispatchMode):
    """The most elements that a result of any operator has."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for t in tree_leaves(result):
            if isinstance(t, torch.Tensor):
                self.elements = max(self.elements, t.untyped_storage().nbytes() // t.element_size())
        return result


def test_no_matrix_of_all_pairs_on_a_gpu():
    """What a GPU runs holds some numbers for each edge, 2 k of which a point has at most."""
    count, k = 3000, 6
    x = torch.rand(count, 3)
    graph = pyops.knn_graph(x, k)
    with Largest() as largest:
        neighbours = torch.ops.pyops.knn(x[None], x[None], k + 1, None, None, float("inf"))[1][0]
        indptr, indices = layer._union(neighbours)
        layer._lengths(x, indptr, indices)
        layer._lengths_backward(torch.ones(len(indices)), x, indptr, indices)
    assert torch.equal(indices, graph.indices)
    assert 2 * k * count <= largest.elements <= 6 * k * count


def test_gradients_do_not_depend_on_threads():
    x = points_of("duplicated", 3000, 4)
    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            leaf = x.clone().requires_grad_()
            graph = pyops.knn_graph(leaf, 6)
            (grad,) = torch.autograd.grad(graph.weights.square().sum(), leaf)
            runs.append([*graph, grad])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(a, b) for run in runs[1:] for a, b in zip(run, runs[0], strict=True))


def test_operators_keep_their_contract():
    x = torch.randn(7, 2, requires_grad=True)
    neighbours = pyops.knn(x[None], x[None], 3).indices[0]
    indptr, indices = torch.ops.pyops.knn_graph(neighbours)
    torch.library.opcheck(torch.ops.pyops.knn_graph, (neighbours,))
    torch.library.opcheck(torch.ops.pyops.edge_lengths, (x, indptr, indices))
    grad = torch.randn(len(indices), requires_grad=True)
    torch.library.opcheck(torch.ops.pyops.edge_lengths_backward, (grad, x, indptr, indices))


def test_operators_check_memory_themselves():
    x, graph = torch.rand(6, 2), torch.ops.pyops.knn_graph
    wild = torch.tensor([[0, -1, 2**40], [1, 5, 6], [5, 4, 3], [0, 1, 2], [4, 4, 4], [-9, 0, 1]])
    indptr, indices = graph(wild)
    assert indptr[-1] == len(indices) and ((indices >= 0) & (indices < 6)).all()
    lengths, backward = torch.ops.pyops.edge_lengths, torch.ops.pyops.edge_lengths_backward
    outside = torch.full_like(indices, 99)
    assert (lengths(x, indptr, outside) == 0).all()
    assert (backward(torch.ones(len(indices)), x, indptr, outside) == 0).all()
    for word, args in (
        ("x must", (x[0], indptr, indices)),
        ("indptr", (x, indptr[1:], indices)),
        ("rise", (x, indptr.flip(0), indices)),
        ("rise", (x, indptr, indices[1:])),
        ("int64", (x, indptr.int(), indices)),
    ):
        with pytest.raises(RuntimeError, match=word):
            lengths(*args)
    with pytest.raises(RuntimeError, match="grad"):
        backward(torch.ones(1), x, indptr, indices)
    with pytest.raises(RuntimeError, match="neighbours"):
        graph(wild[0])


def test_self_check_knows_it():
    assert "knn_graph" in testing.SAMPLES
