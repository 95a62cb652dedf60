"""The greatest eigenpairs of a squared, doubly centred matrix, and their gradient, by products with thin blocks.

Eigenpairs: a basis grows by the residuals of its best vectors, block by block, and starts again from those when it is
full (Davidson's method without a preconditioner: what it spans is a block Krylov space). Products read the matrix; all
else is thin, and in float64.

Gradient: for the pairs (l_i, v_i) of B with upstream gradients h_i of vectors and g_i of values,

    dL = sum_i g_i <v_i, dB v_i> + <h_i, (l_i - B)^+ dB v_i>.

In the complement of the found vectors l_i - B is positive definite, so that conjugate gradients give the part
z_i = (l_i - B)^-1 h_i there; each step is one product with all columns. Among the found vectors, the two terms of a
pair i, j add up to <v_j, dB v_i> times

    (p_ji + p_ij) / 2 + (p_ji - p_ij) / 2 * (l_i + l_j) / (l_i - l_j),   p_ji = <v_j, h_i> / l_i.

A function of V diag(l) V', which no rotation of vectors of equal values changes, has p_ji = p_ij: its gradient never
divides by a difference. For others the second term is left out where l_i and l_j are equal but for rounding. The
gradient of B is then symmetric, and that of a distance is -d_ij times the one of b_ij.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..reference import mds as _reference

_DENSE = 192  # points up to which all eigenpairs of the whole matrix are found sooner
_GUARD, _BLOCKS, _ROUNDS = 4, 10, 300  # more vectors than asked for; blocks of a basis; products at most
_PATIENCE = 30  # products in which the residual may fail to halve: then it is rounding
_STEPS, _LOOK = 1000, 4  # of conjugate gradients; steps between looks at the residual


def _multiply(distances: Tensor, vectors: Tensor) -> Tensor:
    """In the dtype of the matrix."""
    return torch.ops.pyops.double_centered_matmul(distances, vectors.to(distances.dtype)).to(vectors.dtype)


def _thin(distances: Tensor) -> torch.dtype:
    """Of everything but the matrix; float64 on a GPU as well."""
    return torch.float64


def tolerance(dtype: torch.dtype) -> float:
    """Of a residual, as a share of the greatest eigenvalue."""
    return 1e-12 if dtype == torch.float64 else 1e-6


def find(distances: Tensor, count: int) -> Tensor:
    """Of ``[B, N, N]``: ``[B, N + 1, count]``, values below vectors."""
    if distances.shape[1] <= max(_DENSE, 4 * count) or distances.shape[0] == 0:
        return _reference.eigenpairs(distances, count)
    return torch.cat([_find_one(matrix, count) for matrix in distances.split(1)])


def _find_one(distances: Tensor, count: int) -> Tensor:
    points, dtype = distances.shape[1], _thin(distances)
    width = count + _GUARD
    start = torch.randn(points, width, dtype=dtype, generator=torch.Generator().manual_seed(0))
    basis = _orthonormal(start.to(distances.device), None)
    image = _multiply(distances, basis[None])[0]
    most = min(_BLOCKS * width, points - 1)
    best, waited = torch.inf, 0
    for _ in range(_ROUNDS):
        values, rotation = _small_eigenpairs(basis.mT @ image)
        values, vectors = values[:width], rotation[:, :width]
        found, found_image = basis @ vectors, image @ vectors
        rest = found_image - found * values
        error = (rest[:, :count].norm(dim=0).max() / values.abs().max().clamp(min=1e-300)).item()
        waited = 0 if error < best / 2 else waited + 1
        if error <= best:
            best, pairs = error, torch.cat([found, values[None]])
        if not error > tolerance(distances.dtype) or waited > _PATIENCE:
            break
        if basis.shape[1] + width > most:
            keep = max(count, min(2 * width, most - width))
            basis, image = basis @ rotation[:, :keep], image @ rotation[:, :keep]
        block = _orthonormal(rest, basis)
        basis = torch.cat([basis, block], 1)
        image = torch.cat([image, _multiply(distances, block[None])[0]], 1)
    pairs = pairs[:, :count]
    pairs = torch.cat([pairs[:-1] * _reference.signs(pairs[:-1]), pairs[-1:]])
    return pairs[None].to(distances.dtype)


def _small_eigenpairs(projected: Tensor) -> tuple[Tensor, Tensor]:
    """In descending order. A GPU has too little to do with so few numbers, and waits for the residual anyway."""
    values, vectors = torch.linalg.eigh(((projected + projected.mT) / 2).cpu())
    return values.flip(0).to(projected.device), vectors.flip(1).to(projected.device)


def _orthonormal(block: Tensor, basis: Tensor | None) -> Tensor:
    """Twice: what is left of a small residual is no longer orthogonal after once."""
    for _ in range(2):
        block = block / block.norm(dim=0).clamp(min=1e-300)
        if basis is not None:
            block = block - basis @ (basis.mT @ block)
        block = torch.linalg.qr(block).Q
    return block


def gradient(grad: Tensor, distances: Tensor, pairs: Tensor) -> Tensor:
    """With respect to ``distances``; ``grad`` is like ``pairs``."""
    square = distances.square()
    both_ways = ((square + square.mT) / 2).sqrt() if distances.shape[1] <= _DENSE else distances
    left, right = _factors(grad, both_ways, pairs, _solve)
    return (left @ right.mT).mul_(distances).mul_(-0.5)


def second_gradient(
    upstream: Tensor, grad: Tensor, distances: Tensor, count: int
) -> tuple[Tensor | None, ...]:
    """Of the gradient, with respect to ``grad`` and ``distances``; systems are solved by whole matrices."""
    with torch.enable_grad():
        leaves = [grad.detach().requires_grad_(), distances.detach().requires_grad_()]
        pairs = torch.ops.pyops.mds_eigenpairs(leaves[1], count)
        left, right = _factors(leaves[0], leaves[1], pairs, _solve_dense)
        found = -0.5 * (left @ right.mT) * leaves[1]
        return torch.autograd.grad(found, leaves, upstream, allow_unused=True)


def _factors(
    grad: Tensor, distances: Tensor, pairs: Tensor, solve: Callable[..., Tensor]
) -> tuple[Tensor, Tensor]:
    """Thin ones, whose product is twice the gradient of B, in the dtype of the matrix."""
    dtype = _thin(distances)
    vectors, values = pairs[:, :-1].to(dtype), pairs[:, -1:].to(dtype)
    upstream, of_values = grad[:, :-1].to(dtype), grad[:, -1].to(dtype)
    scale = values.abs().amax(-1, keepdim=True)
    limit = 64 * torch.finfo(distances.dtype).eps * scale

    upstream = upstream - upstream.mean(1, keepdim=True)
    shares = vectors.mT @ upstream  # of column i, along vector j
    inside = shares / torch.where(values.abs() > limit, values, 1)
    inside = torch.where(values.abs() > limit, inside, 0)
    difference = values - values.mT
    turned = difference.abs() > limit
    rotation = torch.where(turned, (values + values.mT) / torch.where(turned, difference, 1), 0)
    pair = (inside + inside.mT) / 4 + (inside - inside.mT) / 4 * rotation
    itself = torch.eye(pair.shape[-1], dtype=torch.bool, device=pair.device)
    pair = torch.where(itself, of_values[..., None], pair)  # a vector does not turn towards itself
    outside = solve(distances, values, vectors, upstream - vectors @ shares)

    left = vectors @ pair + outside
    both = torch.cat([left, vectors], -1), torch.cat([vectors, left], -1)
    return both[0].to(distances.dtype), both[1].to(distances.dtype)


def _solve(distances: Tensor, values: Tensor, vectors: Tensor, right: Tensor) -> Tensor:
    """(values - B)^-1 right in the complement of the vectors, for all columns at once."""
    # Vectors come rounded to the dtype of the matrix. What that leaves of them in a direction has no curvature, and
    # would be all that is left of it.
    vectors = torch.linalg.qr(vectors).Q
    solution, residual = torch.zeros_like(right), right - vectors @ (vectors.mT @ right)
    direction, square = residual, residual.square().sum(1, keepdim=True)
    least = square * tolerance(distances.dtype) ** 2
    for step in range(_STEPS):
        if step % _LOOK == 0 and bool((square <= least).all()):
            break
        image = values * direction - _multiply(distances, direction)
        image = image - vectors @ (vectors.mT @ image)
        curvature = (direction * image).sum(1, keepdim=True)
        active = (square > least) & (
            curvature > 0
        )  # at an equal value outside there is none, and no solution
        rate = torch.where(active, square / torch.where(active, curvature, 1), 0)
        solution = solution + rate * direction
        residual = residual - rate * image
        before, square = square, residual.square().sum(1, keepdim=True)
        direction = residual + torch.where(active, square / torch.where(active, before, 1), 0) * direction
        square = torch.where(active, square, 0)
    return solution


def _solve_dense(distances: Tensor, values: Tensor, vectors: Tensor, right: Tensor) -> Tensor:
    """The same, differentiable: without the found pairs, what is left of B is below their values."""
    square = distances.to(values.dtype).square()
    square = (square + square.mT) / 2
    rows = square - square.mean(-1, keepdim=True)
    rest = -0.5 * (rows - rows.mean(-2, keepdim=True)) - (vectors * values) @ vectors.mT
    any_right = (right != 0).any(1, keepdim=True)  # a value of 0, which has no coordinate, asks for nothing
    shift = torch.where(any_right, values, values.detach().abs().amax(-1, keepdim=True) + 1)
    whole = torch.diag_embed(shift.mT.expand(-1, -1, rest.shape[-1])) - rest[:, None]
    return torch.linalg.solve(whole, right.mT[..., None])[..., 0].mT
