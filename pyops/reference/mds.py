"""Classical multidimensional scaling in plain PyTorch. See :mod:`pyops.ops.mds` for shapes and conventions."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ._pixels import arithmetic_dtype


class ClassicalMDS(NamedTuple):
    """What :func:`pyops.classical_mds` finds."""

    embedding: Tensor  # [N, d]
    eigenvalues: Tensor  # [d], descending


def double_centered_matmul(distances: Tensor, vectors: Tensor) -> Tensor:
    """The definition of :func:`pyops.double_centered_matmul`: centred before and after."""
    dtype = arithmetic_dtype(distances, vectors)
    square, inner = distances.to(dtype).square(), vectors.to(dtype)
    product = square @ (inner - inner.mean(-2, keepdim=True))
    return (-0.5 * (product - product.mean(-2, keepdim=True))).to(vectors.dtype)


def classical_mds(distances: Tensor, n_components: int) -> ClassicalMDS:
    """The definition of :func:`pyops.classical_mds`: all eigenpairs of the whole matrix."""
    return embed(eigenpairs(distances[None], n_components)[0])


def eigenpairs(distances: Tensor, count: int) -> Tensor:
    """The greatest ``count`` eigenvalues of centred matrices ``[B, N, N]``, below their vectors."""
    square = distances.square()
    square = (square + square.mT) / 2
    rows = square - square.mean(-1, keepdim=True)
    values, vectors = torch.linalg.eigh(-0.5 * (rows - rows.mean(-2, keepdim=True)))
    values, vectors = values.flip(-1)[..., :count], vectors.flip(-1)[..., :count]
    return torch.cat([vectors * signs(vectors), values[..., None, :]], -2)


def signs(vectors: Tensor) -> Tensor:
    """What makes the largest entry of every column positive, the first of equal ones."""
    largest = vectors.detach().gather(-2, vectors.detach().abs().argmax(-2, keepdim=True))
    return torch.where(largest < 0, -1.0, 1.0).to(vectors.dtype)


def embed(pairs: Tensor) -> ClassicalMDS:
    """Coordinates from eigenpairs ``[N + 1, d]``: 0 where an eigenvalue is 0 but for rounding, or negative."""
    vectors, values = pairs[:-1], pairs[-1]
    limit = pairs.shape[-2] * torch.finfo(pairs.dtype).eps * values.detach().abs().amax(-1, keepdim=True)
    real = values.detach() > limit
    length = torch.where(real, values, 1).sqrt()
    return ClassicalMDS(torch.where(real, vectors * length, 0), values)
