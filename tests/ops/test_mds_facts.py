"""What is true of classical multidimensional scaling alone."""

from __future__ import annotations

import math

import pytest
import torch
from torch.testing import assert_close

import pyops
from pyops.ops import _eigenpairs

SIZES = pytest.mark.parametrize("points", (40, 350))  # all eigenpairs, and a few of them by blocks


def cloud(points, dims, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(points, dims, generator=generator, dtype=torch.float64).to(dtype)


def distances_of(x):
    return torch.cdist(x, x, compute_mode="donot_use_mm_for_euclid_dist")


def curved(points, dtype=torch.float64):
    """Distances that are those of no points: some eigenvalues are negative."""
    x = cloud(points, 6) * torch.tensor([3.0, 2.2, 1.6, 1, 1, 1], dtype=torch.float64)
    return distances_of(x).pow(0.8).to(dtype)


def double_centered(distances):
    n = distances.shape[0]
    j = torch.eye(n, dtype=distances.dtype) - 1 / n
    return -0.5 * j @ distances.square() @ j


@SIZES
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_points_are_recovered(points, dtype):
    x = cloud(points, 3) * torch.tensor([3.0, 2, 1])
    embedding, eigenvalues = pyops.classical_mds(distances_of(x).to(dtype), 3)
    tolerance = 1e-5 if dtype == torch.float32 else 1e-11
    assert_close(distances_of(embedding.double()), distances_of(x), rtol=0, atol=10 * tolerance)
    assert_close(embedding.mean(0), torch.zeros(3, dtype=dtype), rtol=0, atol=tolerance)
    assert_close(
        embedding.mT @ embedding, torch.diag(eigenvalues), rtol=tolerance, atol=20 * points * tolerance
    )


@SIZES
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_agrees_with_all_eigenpairs(points, dtype):
    distances = curved(points)
    embedding, eigenvalues = pyops.classical_mds(distances.to(dtype), 4)
    values, vectors = torch.linalg.eigh(double_centered(distances))
    values, vectors = values.flip(0)[:4], vectors.flip(1)[:, :4]
    expected = vectors * values.sqrt()
    expected = expected * (expected * embedding).sum(0).sign()
    limit = 2e-5 if dtype == torch.float32 else 1e-9
    assert_close(eigenvalues.double(), values, rtol=limit, atol=0)
    assert_close(embedding.double(), expected, rtol=0, atol=limit * float(expected.abs().max()))


@SIZES
def test_agrees_with_scikit_learn(points):
    decomposition = pytest.importorskip("sklearn.decomposition")
    distances = curved(points)
    pca = decomposition.KernelPCA(n_components=3, kernel="precomputed")
    expected = torch.from_numpy(pca.fit_transform((-0.5 * distances.square()).numpy()))
    embedding, eigenvalues = pyops.classical_mds(distances, 3)
    assert_close(eigenvalues, torch.from_numpy(pca.eigenvalues_))
    assert_close(embedding, expected * (expected * embedding).sum(0).sign(), rtol=0, atol=1e-8)


@SIZES
def test_signs(points):
    embedding = pyops.classical_mds(curved(points), 4).embedding
    assert (embedding.gather(0, embedding.abs().argmax(0, keepdim=True)) > 0).all()
    order = torch.randperm(points)
    again = pyops.classical_mds(curved(points)[order][:, order], 4).embedding
    assert_close(again, embedding[order], rtol=0, atol=1e-9)
    square = torch.tensor([[0.0, 2], [2, 0]], dtype=torch.float64)
    assert_close(pyops.classical_mds(square, 1).embedding.flatten(), torch.tensor([1.0, -1]).double())


@SIZES
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_fewer_dimensions_than_coordinates(points, dtype):
    x = cloud(points, 2) * torch.tensor([2.0, 1])
    distances = distances_of(x).to(dtype).requires_grad_()
    embedding, eigenvalues = pyops.classical_mds(distances, 5)
    assert_close(distances_of(embedding[:, :2].detach()), distances.detach(), rtol=0, atol=1e-4)
    if dtype == torch.float64:
        assert (embedding[:, 2:] == 0).all()
    assert (eigenvalues[2:].abs() < 1e-4 * eigenvalues[0]).all()
    (grad,) = torch.autograd.grad(embedding[:, :2].square().sum(), distances)
    assert grad.isfinite().all() and grad.abs().max() > 0


def test_nothing_to_place():
    for points in (1, 4, 250):
        distances = torch.zeros(points, points, requires_grad=True)
        embedding, eigenvalues = pyops.classical_mds(distances, 1)
        assert (embedding == 0).all() and (eigenvalues == 0).all()
        (grad,) = torch.autograd.grad(embedding.sum() + eigenvalues.sum(), distances)
        assert (grad == 0).all()


@SIZES
def test_negative_eigenvalues_give_no_coordinate(points):
    """On a circle with arcs for distances; all coordinates of few points are asked for."""
    angle = torch.linspace(0, 2 * math.pi, points + 1, dtype=torch.float64)[:-1]
    arcs = (angle[:, None] - angle).abs()
    arcs = torch.minimum(arcs, 2 * math.pi - arcs)
    found = pyops.classical_mds(arcs, points if points < 100 else 3)
    values = torch.linalg.eigvalsh(double_centered(arcs)).flip(0)
    assert_close(found.eigenvalues, values[: len(found.eigenvalues)], rtol=0, atol=1e-9 * points)
    if points < 100:
        assert (found.eigenvalues < -1e-3).any()
        assert (found.embedding[:, found.eigenvalues <= 0] == 0).all()


def symmetric(t):
    return (t + t.mT) / 2


@pytest.mark.parametrize("dense", (True, False))
def test_gradient_of_both_ways(dense, monkeypatch):
    monkeypatch.setattr(_eigenpairs, "_DENSE", 10**9 if dense else 0)
    distances = curved(30).requires_grad_()

    def function(t):
        return tuple(pyops.classical_mds(symmetric(t), 2))

    assert torch.autograd.gradcheck(function, (distances,), atol=1e-5, fast_mode=True)


@SIZES
@pytest.mark.parametrize("dtype", (torch.float32, torch.float64))
def test_gradient_agrees_with_that_of_all_eigenpairs(points, dtype):
    given, upstream = curved(points), cloud(points, 3, seed=5)
    found = []
    for function, t in ((pyops.classical_mds, given.to(dtype)), (pyops.reference.classical_mds, given)):
        t.requires_grad_()
        embedding, eigenvalues = function(t, 3)
        found.append(
            torch.autograd.grad((embedding * upstream).sum() + eigenvalues.log().sum(), t)[0].double()
        )
    limit = 1e-4 if dtype == torch.float32 else 1e-9
    assert (found[0] - found[1]).norm() < limit * found[1].norm()
    assert_close(found[0], found[0].mT, rtol=0, atol=limit * float(found[0].abs().max()))


@SIZES
def test_gradient_along_found_vectors_is_not_amplified(points):
    """Vectors in single precision are not quite orthogonal to what is left of a gradient without them."""
    x = cloud(points, 6) * torch.tensor([11.0, 7, 2, 1, 0.5, 0.1], dtype=torch.float64)
    for seed in range(4):
        found = []
        for dtype in (torch.float32, torch.float64):
            distances = distances_of(x).to(dtype).requires_grad_()
            embedding = pyops.classical_mds(distances, 3).embedding
            # Almost a motion and a scaling of the whole, to which nothing outside of the found vectors answers.
            upstream = embedding.detach() @ cloud(3, 3, seed, dtype) + 1e-3 * cloud(points, 3, seed, dtype)
            found.append(torch.autograd.grad((embedding * upstream).sum(), distances)[0].double())
        assert (found[0] - found[1]).norm() < 1e-4 * found[1].norm()


@SIZES
def test_equal_eigenvalues(points):
    """Points in pairs on the axes. What no rotation changes has its gradient, all gradients are finite."""
    axis = torch.arange(points, dtype=torch.float64)
    x = torch.zeros(3 * (points // 3), 3, dtype=torch.float64)
    x[torch.arange(len(x)), torch.arange(len(x)) % 3] = 1 - 2 * (axis[: len(x)] // 3 % 2)
    x = x[: len(x) // 6 * 6]
    distances = distances_of(x).requires_grad_()
    embedding, eigenvalues = pyops.classical_mds(distances, 3)
    assert_close(eigenvalues, eigenvalues[:1].expand(3), rtol=1e-9, atol=0)
    weights = symmetric(cloud(len(x), len(x), seed=3))
    (grad,) = torch.autograd.grad((embedding @ embedding.mT * weights).sum(), distances, retain_graph=True)
    # As the gradient of -1/2 J D^2 J projected on three dimensions: exact up to second order where the rest is zero.
    projection = embedding @ embedding.mT / eigenvalues[0]
    projection = projection.detach()
    inner = weights @ projection + projection @ weights - projection @ weights @ projection
    j = torch.eye(len(x), dtype=torch.float64) - 1 / len(x)
    assert_close(grad, -distances.detach() * (j @ inner @ j), rtol=0, atol=1e-8)
    (turned,) = torch.autograd.grad((embedding * cloud(len(x), 3, seed=4)).sum(), distances)
    assert turned.isfinite().all()


@SIZES
def test_repeatable_for_any_number_of_threads(points):
    distances, upstream = curved(points).requires_grad_(), cloud(points, 3, seed=1)
    before, results = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            embedding = pyops.classical_mds(distances, 3).embedding
            results.append((embedding, torch.autograd.grad((embedding * upstream).sum(), distances)[0]))
    finally:
        torch.set_num_threads(before)
    # Small products of matrices are torch's, whose bits depend on the threads.
    for found in results[1:]:
        for ours, first in zip(found, results[0], strict=True):
            assert_close(ours, first, rtol=0, atol=1e-10 * float(first.detach().abs().max()))


def test_product_does_not_see_what_centring_takes_away():
    distances, vectors = curved(70), cloud(70, 3)
    product = pyops.double_centered_matmul(distances, vectors)
    assert_close(product, double_centered(distances) @ vectors)
    assert_close(pyops.double_centered_matmul(distances, vectors + 5), product)
    assert_close(product.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-13)
    single = pyops.double_centered_matmul(distances[:5, :5], vectors[:5])  # a view, without a batch
    assert_close(single, double_centered(distances[:5, :5]) @ vectors[:5])


def test_operator_checks_memory_itself():
    distances, vectors = torch.ones(2, 5, 5), torch.ones(2, 5, 3)
    operator = torch.ops.pyops.double_centered_matmul
    for words, args in (
        ("distances", (distances[..., 1:], vectors)),
        ("distances", (distances[0], vectors)),
        ("distances", (distances.int(), vectors.int())),
        ("vectors", (distances, vectors.half())),
        ("vectors", (distances, vectors[:1])),
        ("vectors", (distances, vectors[:, 1:])),
    ):
        with pytest.raises(RuntimeError, match=words):
            operator(*args)
