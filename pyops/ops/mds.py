"""Classical multidimensional scaling: coordinates from distances, by products with the matrix as it is."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _op
from ..reference.mds import ClassicalMDS, embed
from . import _eigenpairs
from ._validate import _require_device, _require_float, _require_int

_ROUNDING = 1e-3  # by which distances may fail to be symmetric or positive, as a share of the greatest
_SIDE = 256  # of blocks that are compared with their counterparts


def classical_mds(distances: Tensor, n_components: int) -> ClassicalMDS:
    """Finds points whose Euclidean distances are as near as possible to given ones, differentiably.

    Convention:
        With ``J = I - 1 1' / N``, B is ``-1/2 J (distances ** 2) J``. A coordinate is an eigenvector of B times the
        square root of its eigenvalue, for the greatest ``n_components`` eigenvalues, in descending order. The entry
        of largest size of each coordinate is positive, the first one of equal ones. Where an eigenvalue is negative, or
        below ``N`` units of rounding of the greatest, the coordinate is 0 and has no gradient.

        ``distances`` must be symmetric but for rounding; what counts is the mean square of both directions.

        Coordinates of equal eigenvalues are determined only up to a rotation. A loss that no rotation changes has the
        right gradient there all the same. For others, the part of the gradient that would turn these coordinates among
        themselves is left out; it is always finite. Where the last eigenvalue equals the first one that is left out,
        there is no gradient, and what is returned is finite too.

    Args:
        distances: ``[N, N]``, finite and at least 0; float32 or float64 (CPU), any strides.
        n_components: how many coordinates, from 1 to N.

    Returns:
        ``ClassicalMDS(embedding, eigenvalues)``: ``[N, n_components]``, and the eigenvalues ``[n_components]`` as they
        are, in the dtype of ``distances``. Residuals are at most 1e-12 (float32: 1e-6) of the greatest eigenvalue, or
        what rounding leaves. Differentiable (twice) with respect to ``distances``; bitwise repeatable.

    Raises:
        TypeError: ``distances`` is no tensor or has an unsupported dtype, or ``n_components`` is no integer.
        ValueError: the shape or ``n_components`` is wrong, or (on a CPU, outside of compiled graphs) a distance is
            infinite or NaN, or is negative, or differs in the two directions, by more than 0.1% of the greatest one.

    Example:
        >>> import torch, pyops
        >>> points = torch.tensor([[0.0, 0], [4, 0], [4, 3], [0, 3]], dtype=torch.float64)
        >>> embedding, eigenvalues = pyops.classical_mds(torch.cdist(points, points), 2)
        >>> torch.allclose(torch.cdist(embedding, embedding), torch.cdist(points, points))
        True
        >>> eigenvalues.round(decimals=6)
        tensor([16.,  9.], dtype=torch.float64)

    Cost:
        Some ten products of :func:`pyops.double_centered_matmul` with ``n_components + 4`` columns; up to some hundred
        points all eigenpairs of the whole matrix. The gradient solves linear systems in the complement of the
        coordinates by conjugate gradients, all at once, and writes one matrix. It waits for the device now and then,
        so that it cannot be captured in a CUDA graph. Second derivatives solve the same systems by whole matrices.

    Source:
        Torgerson, Multidimensional Scaling: I. Theory and Method, Psychometrika 17(4), 1952; Davidson, The Iterative
        Calculation of a Few of the Lowest Eigenvalues, Journal of Computational Physics 17(1), 1975.
    """
    _require_float("distances", distances)
    if distances.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"distances must be float32 or float64, got {distances.dtype}")
    _validate_matrix("distances", distances, 2)
    _require_int("n_components", n_components)
    points = distances.shape[0]
    if not 1 <= n_components <= points:
        raise ValueError(f"n_components must be from 1 to the {points} points, got {n_components}")
    if _op.values_visible(distances):
        _validate_distances(distances.detach())
    return embed(torch.ops.pyops.mds_eigenpairs(distances[None], n_components)[0])


def double_centered_matmul(distances: Tensor, vectors: Tensor) -> Tensor:
    """Multiplies the squared, doubly centred matrix of distances by a thin block of vectors, without making it.

    Convention:
        ``-1/2 J (distances ** 2) J vectors`` with ``J = I - 1 1' / N``.

    Args:
        distances: ``[..., N, N]``; float32, float16, bfloat16 or float64 (CPU), any strides.
        vectors: ``[..., N, K]`` with the same batch; dtype and device of ``distances``.

    Returns:
        Like ``vectors``, contiguous. Arithmetic is float32, or float64 for float64. Differentiable (any number of
        times) with respect to both; bitwise repeatable.

    Raises:
        TypeError: an argument is no tensor or has an unsupported dtype, or the dtypes differ.
        ValueError: a shape or a device is wrong.

    Example:
        >>> import torch, pyops
        >>> points = torch.tensor([[-2.0], [1], [1]])
        >>> pyops.double_centered_matmul(torch.cdist(points, points), points)  # points @ (points.T @ points)
        tensor([[-12.],
                [  6.],
                [  6.]])

    Cost:
        Reads ``distances`` once, ``(K + 1) * N ** 2`` multiply-adds.

    Source:
        Young and Householder, Discussion of a Set of Points in Terms of their Mutual Distances, Psychometrika 3(1),
        1938.
    """
    _require_float("distances", distances)
    _require_float("vectors", vectors)
    _validate_matrix("distances", distances, None)
    if vectors.dtype != distances.dtype:
        raise TypeError(f"vectors must have the dtype of distances, {distances.dtype}, got {vectors.dtype}")
    if vectors.dim() != distances.dim() or vectors.shape[:-1] != distances.shape[:-1]:
        raise ValueError(
            f"vectors must be [..., N, K] like distances, {list(distances.shape)}, got shape {list(vectors.shape)}"
        )
    _require_device("vectors", vectors, distances, "distances")
    if distances.dim() == 3:
        return torch.ops.pyops.double_centered_matmul(distances, vectors)
    batch = distances.shape[:-2].numel()
    flat = (t.reshape(batch, *t.shape[-2:]) for t in (distances, vectors))
    return torch.ops.pyops.double_centered_matmul(*flat).reshape(vectors.shape)


def _validate_matrix(name: str, t: Tensor, dims: int | None) -> None:
    if t.dim() < 2 or dims not in (None, t.dim()) or t.shape[-1] != t.shape[-2]:
        shape = "[N, N]" if dims else "[..., N, N]"
        raise ValueError(f"{name} must be {shape}, got shape {list(t.shape)}")
    if t.dtype == torch.float64 and t.device.type == "cuda":
        raise TypeError(f"{name} must not be float64 on {t.device}")


def _validate_distances(distances: Tensor) -> None:
    least, most = (t.item() for t in distances.aminmax())
    if not -_ROUNDING * most <= least <= most < torch.inf:
        raise ValueError(f"distances must be finite and at least 0, got values from {least} to {most}")
    points, limit = distances.shape[0], _ROUNDING * most
    for i in range(0, points, _SIDE):
        for j in range(i, points, _SIDE):
            there, back = (
                distances[i : i + _SIDE, j : j + _SIDE],
                distances[j : j + _SIDE, i : i + _SIDE].mT,
            )
            difference = (there - back).abs_().amax().item()
            if difference > limit:
                raise ValueError(
                    f"distances must be symmetric, got two directions that differ by {difference}"
                )


# ---- what PyTorch needs to know of the operators ---------------------------------------------------------------------


def _fake_product(distances, vectors):
    return vectors.new_empty(vectors.shape)


def _save_product(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _product_backward(ctx, grad):
    distances, vectors = ctx.saved_tensors
    to_distances = to_vectors = None
    if ctx.needs_input_grad[0]:
        dtype = torch.float64 if distances.dtype == torch.float64 else torch.float32
        given, inner, own = (t.to(dtype) for t in (grad, vectors, distances))
        given, inner = (t - t.mean(1, keepdim=True) for t in (given, inner))
        to_distances = (-own * (given @ inner.mT)).to(distances.dtype)
    if ctx.needs_input_grad[1]:
        to_vectors = torch.ops.pyops.double_centered_matmul(distances.mT, grad)
    return to_distances, to_vectors


def _fake_pairs(distances, count):
    return distances.new_empty(distances.shape[0], distances.shape[1] + 1, count)


def _save_pairs(ctx, inputs, output):
    ctx.save_for_backward(inputs[0], output)


def _pairs_backward(ctx, grad):
    return torch.ops.pyops.mds_eigenpairs_backward(grad, *ctx.saved_tensors), None


def _fake_pairs_backward(grad, distances, pairs):
    return distances.new_empty(distances.shape)


def _save_pairs_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2])


def _pairs_double_backward(ctx, upstream):
    grad, distances = ctx.saved_tensors
    return *_eigenpairs.second_gradient(upstream, grad, distances, grad.shape[2]), None


_op.declare(
    "double_centered_matmul",
    stem="mds",
    fake=_fake_product,
    setup_context=_save_product,
    backward=_product_backward,
    batched=True,
)
_op.declare(
    "mds_eigenpairs",
    stem="mds",
    fake=_fake_pairs,
    setup_context=_save_pairs,
    backward=_pairs_backward,
    composed=("(Tensor distances, SymInt count) -> Tensor", _eigenpairs.find),
    batched=True,
)
_op.declare(
    "mds_eigenpairs_backward",
    stem="mds",
    fake=_fake_pairs_backward,
    setup_context=_save_pairs_backward,
    backward=_pairs_double_backward,
    composed=("(Tensor grad, Tensor distances, Tensor pairs) -> Tensor", _eigenpairs.gradient),
    batched=True,
)
