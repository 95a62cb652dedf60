"""Farthest point sampling in plain PyTorch. See :mod:`pyops.ops.fps` for shapes and conventions."""

from __future__ import annotations

import torch
from torch import Tensor

from ._pixels import arithmetic_dtype


def farthest_point_sample(
    points: Tensor, m: int, *, lengths: Tensor | None = None, start: int | Tensor = 0
) -> Tensor:
    """The definition of :func:`pyops.farthest_point_sample`: every distance after every sample."""
    x = points.detach().to(arithmetic_dtype(points))
    batch, count, _ = x.shape
    if count == 0 or m == 0:
        return torch.full((batch, m), -1, dtype=torch.int64, device=x.device)
    place = torch.arange(count, device=x.device)
    candidates = ~x.isnan().any(-1)
    if lengths is not None:
        candidates &= place < lengths[:, None]
    # -1: no candidate, or a sample already.
    distances = torch.where(candidates, torch.inf, -1.0).to(x.dtype)
    first = start[:, None] if isinstance(start, Tensor) else start
    samples = []
    for i in range(m):
        ranks = distances if i > 0 else torch.where(place == first, 2, 1).where(candidates, -1)
        best = ranks.argmax(1, keepdim=True)  # the first of equals
        samples.append(torch.where(ranks.gather(1, best) < 0, -1, best))
        sample = x.gather(1, best[..., None].expand(-1, -1, x.shape[2]))
        squares = torch.zeros_like(distances)
        for axis in range(x.shape[2]):  # in this order, and rounded after every step
            squares = squares + (x[..., axis] - sample[..., axis]).square()
        distances = torch.where(squares < distances, squares, distances).scatter(1, best, -1)
    return torch.cat(samples, 1)
