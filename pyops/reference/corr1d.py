"""All-pairs correlation along rows in plain PyTorch. See :mod:`pyops.ops.corr1d` for shapes and conventions."""

from __future__ import annotations

from torch import Tensor

from ._pixels import arithmetic_dtype
from .lookup import corr1d_lookup


def corr1d_pyramid(
    left: Tensor, right: Tensor, levels: int = 4, *, scale: float | None = None
) -> list[Tensor]:
    return [level.to(left.dtype) for level in _pyramid(left, right, levels, scale)]


def corr1d_lookup_on_demand(
    left: Tensor, right: Tensor, x: Tensor, radius: int, levels: int = 4, *, scale: float | None = None
) -> Tensor:
    """The definition of :func:`pyops.corr1d_lookup_on_demand`, which does build the volume."""
    return corr1d_lookup(_pyramid(left, right, levels, scale), x, radius).to(left.dtype)


def _pyramid(left: Tensor, right: Tensor, levels: int, scale: float | None) -> list[Tensor]:
    dtype = arithmetic_dtype(left, right)
    rows, columns = left.to(dtype).permute(0, 2, 3, 1), right.to(dtype).permute(0, 2, 1, 3)
    pyramid = [rows @ columns * (left.shape[1] ** -0.5 if scale is None else scale)]
    for _ in range(levels - 1):
        pairs = pyramid[-1].shape[-1] // 2
        pyramid.append(pyramid[-1][..., : 2 * pairs].unflatten(-1, (pairs, 2)).mean(-1))
    return pyramid
