"""What is true of neighbours: the bits of the definition, ties, awkward clouds, what is missing, gradients."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

import pyops
from pyops import reference, testing
from pyops.testing import gradients

BACKENDS = pytest.mark.parametrize("backend", ("native", "triton"))
DTYPES = pytest.mark.parametrize("dtype", (torch.float32, torch.float64, torch.float16, torch.bfloat16))


def points_of(kind, count, dims):
    generator = torch.Generator().manual_seed(count + dims)
    uniform = torch.rand(count, dims, generator=generator)
    if kind == "uniform":
        return uniform
    if kind == "clustered":
        return (
            torch.randn(8, dims, generator=generator).mul(9).repeat(count // 8 + 1, 1)[:count] + uniform / 50
        )
    if kind == "duplicated":
        return uniform[:37][torch.randint(0, min(37, count), (count,), generator=generator)]
    if kind == "collinear":
        return uniform * torch.eye(dims)[0]
    if kind == "equal":
        return torch.full((count, dims), 0.3)
    if kind == "lattice":
        return torch.randint(0, 9, (count, dims), generator=generator).float()
    if kind == "offset":
        return uniform + torch.tensor([100.0, 200, 30] * 4)[:dims]
    uniform[::5], uniform[1::7], uniform[2::11, 0] = math.nan, math.inf, -math.inf
    return uniform


KINDS = ("uniform", "clustered", "duplicated", "collinear", "equal", "lattice", "offset", "not finite")


def assert_equals_definition(query, points, k, **options):
    found, expected = (library.knn(query, points, k, **options) for library in (pyops, reference))
    assert torch.equal(found.indices, expected.indices)
    assert torch.equal(found.squared_distances, expected.squared_distances)


def available(backend):
    if backend not in testing.backends():
        pytest.skip(f"no {backend} here")
    return testing.backend(backend)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "shape", ((60, 3), (700, 3), (2500, 3), (1300, 2), (900, 1), (1100, 5), (90, 12)), ids=str
)
def test_bits_of_the_definition(kind, shape):
    """By rows and by the tree, for neighbours that are kept sorted and for those that are not."""
    points = points_of(kind, *shape)
    generator = torch.Generator().manual_seed(0)
    query = torch.cat([points[:: shape[0] // 25], torch.rand(9, shape[1], generator=generator) * 3 - 1])
    query[3] = math.nan
    for k in (1, 2, 16, 31, 70):
        assert_equals_definition(query[None], points[None], k)
    clouds = torch.stack([points, points.flip(0)])
    lengths = torch.tensor([shape[0] // 2, shape[0]])
    assert_equals_definition(query.expand(2, -1, -1), clouds, 5, lengths=lengths, max_radius=0.2)


@DTYPES
@pytest.mark.parametrize(
    "shape", ((40, 9, 3, 5), (3, 7, 64, 7), (1500, 20, 3, 16), (2100, 3, 80, 1000)), ids=str
)
def test_dtypes_and_sizes(shape, dtype):
    count, queries, dims, k = shape
    points, query = (torch.randn(1, n, dims).to(dtype) for n in (count, queries))
    assert_equals_definition(query, points, k)


@pytest.mark.parametrize("offset", (0, 200))
def test_every_number_of_dimensions(offset):
    for dims in (*range(1, 65), 128, 1024, 4096):
        generator = torch.Generator().manual_seed(dims)
        points = torch.randn(1, 90 if dims < 65 else 400, dims, generator=generator) + offset
        assert_equals_definition(points[:, ::29] + 0.1, points, 7)


@BACKENDS
def test_ties_go_to_the_lowest_index(backend):
    points = torch.tensor([[[1.0, 0], [0, 1], [-1, 0], [0, -1], [0, 0], [1, 0], [0, 0]]])
    with available(backend):
        found = pyops.knn(torch.zeros(1, 1, 2), points, 6)
    assert found.indices.tolist() == [[[4, 6, 0, 1, 2, 3]]]
    assert found.squared_distances.tolist() == [[[0, 0, 1, 1, 1, 1]]]


@BACKENDS
@pytest.mark.parametrize("kind", KINDS)
def test_other_kernels_find_the_same_bits(kind, backend):
    points = points_of(kind, 40, 3)
    query = points[::13][None]
    with available(backend):
        assert_equals_definition(query, points[None], 5, max_radius=0.8)
        found = pyops.ball_query(query, points[None], 0.8, 5)
    assert torch.equal(found.indices, reference.ball_query(query, points[None], 0.8, 5).indices)


@BACKENDS
def test_what_is_missing(backend):
    points = torch.tensor([[[0.0], [2], [math.nan], [5]], [[1.0], [1], [1], [1]]])
    query = torch.tensor([[[0.0], [math.nan]], [[0.0], [1]]])
    with available(backend):
        few = pyops.knn(query, points, 5)
        none = pyops.knn(query, points, 2, lengths=torch.tensor([0, 4]), query_lengths=torch.tensor([2, 1]))
        near = pyops.knn(query, points, 3, max_radius=2)
        touching = pyops.knn(query, points, 3, max_radius=0)
        empty = pyops.knn(query, points[:, :0], 2)
    inf = math.inf
    assert few.indices.tolist() == [[[0, 1, 3, -1, -1], [-1] * 5], [[0, 1, 2, 3, -1], [0, 1, 2, 3, -1]]]
    assert few.squared_distances[0].tolist() == [[0, 4, 25, inf, inf], [inf] * 5]
    assert none.indices.tolist() == [[[-1, -1], [-1, -1]], [[0, 1], [-1, -1]]]
    assert near.indices[0, 0].tolist() == [0, 1, -1]
    assert touching.indices.tolist() == [[[0, -1, -1], [-1] * 3], [[-1] * 3, [0, 1, 2]]]
    assert (empty.indices == -1).all() and (empty.squared_distances == inf).all()


def test_far_from_the_origin_nothing_is_lost():
    """Recall 1 against float64, which a product of matrices does not reach."""
    points = (torch.rand(1, 2000, 3) + torch.tensor([100.0, 200, 30])).float()
    found = pyops.knn(points, points, 16).indices
    exact = (points.double()[:, :, None] - points.double()[:, None]).square().sum(-1)
    assert_close(exact.gather(2, found), exact.sort(-1).values[..., :16], rtol=1e-6, atol=0)


def test_clouds_of_equal_points_are_not_slow():
    """Every subtree is at the same distance: without the order of indices each query would visit all."""
    for kind in ("equal", "duplicated"):
        points = points_of(kind, 60_000, 3)[None]
        found = pyops.knn(points, points, 8)
        rows = torch.arange(0, 60_000, 4001)
        assert torch.equal(found.indices[:, rows], reference.knn(points[:, rows], points, 8).indices)


@pytest.mark.parametrize("kind", ("uniform", "duplicated", "not finite"))
def test_queries_of_large_clouds(kind):
    """They are taken leaf by leaf, each to its own place, those that are not finite too."""
    points = points_of(kind, 5000, 2)
    query = torch.stack([points, points.flip(0)])
    query[:, ::7, 1], query[:, 1::7, 0], query[0, 2::7] = -math.inf, math.inf, math.nan
    clouds, counts = torch.stack([points.flip(0), points]), torch.tensor([5000, 4400])
    found = pyops.knn(query, clouds, 3, lengths=counts, query_lengths=counts)
    for rows in (torch.arange(0, 40), torch.arange(4380, 5000, 13)):
        alone = reference.knn(query[:, rows], clouds, 3, lengths=counts)
        for b in range(2):
            inside = rows < counts[b]
            assert torch.equal(found.indices[b, rows][inside], alone.indices[b][inside])
            assert (found.indices[b, rows][~inside] == -1).all()


def test_ball_query_takes_the_first_not_the_nearest():
    points = torch.tensor([[[3.0], [0.9], [-0.9], [0], [1], [1.1]]])
    found = pyops.ball_query(torch.zeros(1, 1, 1), points, 1, 3)
    assert found.indices.tolist() == [[[1, 2, 3]]]
    assert pyops.ball_query(torch.zeros(1, 1, 1), points, 1, 6).indices.tolist() == [[[1, 2, 3, 4, -1, -1]]]
    assert pyops.ball_query(torch.zeros(1, 1, 1), points, 0, 2).indices.tolist() == [[[3, -1]]]


@BACKENDS
def test_gradients_by_hand(backend):
    query, points = torch.tensor([[[0.0], [3]]]), torch.tensor([[[1.0], [2], [9]]])

    def function(query, points):
        found = pyops.knn(query, points, 2, max_radius=2).squared_distances
        return found.masked_fill(found.isinf(), 0)

    with available(backend):
        _, grads = gradients(
            function,
            dict(query=query, points=points),
            ["query", "points"],
            torch.tensor([[[1.0, 10], [100, 1000]]]),
        )
    # Pairs: (0, 1) by 1, (0, 2) by 10, (3, 2) by 100, (3, 1) by 1000.
    assert grads["query"].flatten().tolist() == [-2 - 40, 200 + 4000]
    assert grads["points"].flatten().tolist() == [2 - 4000, 40 - 200, 0]


def test_missing_neighbours_have_no_gradient():
    query, points = torch.rand(1, 3, 2).requires_grad_(), torch.rand(1, 2, 2)
    points[0, 1] = math.nan
    points.requires_grad_()
    found = pyops.knn(query, points, 4)
    grads = torch.autograd.grad(found.squared_distances, (query, points), torch.full((1, 3, 4), math.nan).index_fill(
        2, torch.tensor(0), 1.0
    ))  # fmt: skip
    assert all(g.isfinite().all() for g in grads) and (grads[1][0, 1] == 0).all()


def test_gradients_do_not_depend_on_threads():
    points = torch.rand(2, 3000, 3)
    inputs, upstream = dict(query=points, points=points), torch.randn(2, 3000, 7)

    def function(query, points):
        return pyops.knn(query, points, 7).squared_distances

    before, runs = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            runs.append(gradients(function, inputs, ["query", "points"], upstream)[1])
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(run[name], runs[0][name]) for run in runs for name in run)


@pytest.mark.parametrize("reduction", ("mean", "sum", "none"))
def test_chamfer_distance(reduction):
    x, y = torch.rand(3, 20, 3, dtype=torch.float64), torch.rand(3, 30, 3, dtype=torch.float64)
    lengths = torch.tensor([20, 0, 5])
    inputs = dict(x=x, y=y, x_lengths=lengths, reduction=reduction)
    every = (x[0][:, None] - y[0]).square().sum(-1)
    value = pyops.chamfer_distance(**dict(inputs, reduction="none"))
    assert_close(value[0], every.amin(0).mean() + every.amin(1).mean())
    assert value[1] == 0
    upstream = torch.randn(value.shape if reduction == "none" else ())
    ours, theirs = (
        gradients(library.chamfer_distance, inputs, ["x", "y"], upstream) for library in (pyops, reference)
    )
    assert_close(ours, theirs)
    leaves = [x[:1, :3].clone().requires_grad_(), y[:1, :4].clone().requires_grad_()]
    assert torch.autograd.gradgradcheck(pyops.chamfer_distance, leaves)


def test_chamfer_distance_names_what_is_wrong():
    x = torch.rand(1, 4, 3)
    with pytest.raises(ValueError, match="reduction"):
        pyops.chamfer_distance(x, x, reduction="max")
    with pytest.raises(TypeError, match="y must"):
        pyops.chamfer_distance(x, x.int())
    with pytest.raises(ValueError, match="y_lengths"):
        pyops.chamfer_distance(x, x, y_lengths=torch.tensor([5]))


def test_operator_checks_memory_itself():
    query, points = torch.rand(2, 4, 3), torch.rand(2, 6, 3)
    forward, backward = torch.ops.pyops.knn, torch.ops.pyops.knn_backward
    for word, args in (
        ("query", (query[0], points, 2, None, None, 1.0)),
        ("points", (query, points[:1], 2, None, None, 1.0)),
        ("points", (query, points.double(), 2, None, None, 1.0)),
        ("k must", (query, points, 0, None, None, 1.0)),
        ("lengths", (query, points, 2, None, torch.ones(3, dtype=torch.int64), 1.0)),
        ("query_lengths", (query, points, 2, torch.ones(2), None, 1.0)),
    ):
        with pytest.raises(RuntimeError, match=word):
            forward(*args)
    wild = torch.tensor([-9, 2**40, 6, 5]).expand(2, 4, 4)  # only 5 is a point
    grads = backward(torch.ones(2, 4, 4), query, points, wild, True, True)
    assert_close(grads[0], 2 * (query - points[:, 5:]))
    assert (grads[1][:, :5] == 0).all()
    lengths = torch.tensor([-3, 99])
    found = forward(query, points, 6, None, lengths, math.inf)[1]
    assert (found[0] == -1).all() and (found[1] >= 0).all()
    with pytest.raises(RuntimeError, match="indices"):
        backward(torch.ones(2, 4, 4), query, points, wild[:1], True, True)
