"""Temporal patches in plain PyTorch. See :mod:`pyops.ops.tpatches` for shapes and conventions."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from ._pixels import arithmetic_dtype


class TPatches(NamedTuple):
    """The neighbours of chains of queries in every frame of a sequence."""

    indices: Tensor
    """``[B, T, M, k]`` int64, -1 where a frame has fewer points."""
    squared_distances: Tensor
    """``[B, T, M, k]`` from the query, ascending; inf where a frame has fewer points."""
    centers: Tensor
    """``[B, T, M, 3]``, the nearest point."""


def extract_tpatches(
    points: Tensor,
    query_indices: Tensor,
    k: int,
    *,
    noise: Tensor | None = None,
    max_radius: float | None = None,
    reverse: bool = False,
    lengths: Tensor | None = None,
) -> TPatches:
    """The definition of :func:`pyops.extract_tpatches`: frame by frame, all distances, a stable sort."""
    dtype, (batch, frames, size, _) = arithmetic_dtype(points), points.shape
    cloud, radius = points.to(dtype), math.inf if max_radius is None else max_radius
    noise = None if noise is None else noise.to(dtype)
    if lengths is None:
        lengths = torch.full((batch,), size, device=points.device)
    lengths = lengths[:, None] if lengths.dim() == 1 else lengths
    exists = torch.arange(size, device=points.device) < lengths[..., None].expand(batch, frames, 1)
    order = range(frames)[:: -1 if reverse else 1]
    query, found = cloud.new_empty(0), dict[int, TPatches]()
    for t in order:
        if not found:
            query = _pick(cloud[:, t], _known(query_indices, exists[:, t]), math.nan)
        found[t] = _neighbours(cloud[:, t], query, exists[:, t], k, radius)
        center = found[t].centers
        query = center if noise is None else center + noise[:, t]
    if not found:
        shape = batch, 0, query_indices.shape[1], k
        return TPatches(
            query_indices.new_empty(shape), points.new_empty(shape), points.new_empty(*shape[:3], 3)
        )
    indices, *values = (torch.stack([found[t][i] for t in range(frames)], 1) for i in range(3))
    return TPatches(indices, *(v.to(points.dtype) for v in values))


def bidirectional_tpatches(
    points: Tensor,
    first_indices: Tensor,
    last_indices: Tensor,
    k: int,
    *,
    noise: Tensor | None = None,
    max_radius: float | None = None,
    lengths: Tensor | None = None,
) -> TPatches:
    """The definition of :func:`pyops.bidirectional_tpatches`: one direction after the other."""
    forward = first_indices.shape[1]
    parts = [
        extract_tpatches(
            points,
            indices,
            k,
            noise=None if noise is None else noise[:, :, part],
            max_radius=max_radius,
            reverse=reverse,
            lengths=lengths,
        )
        for indices, part, reverse in (
            (first_indices, slice(forward), False),
            (last_indices, slice(forward, None), True),
        )
    ]
    return TPatches(*(torch.cat(pair, 2) for pair in zip(*parts, strict=True)))


def _known(indices: Tensor, exists: Tensor) -> Tensor:
    """-1 for indices ``[B, M]`` of no point of a frame."""
    inside = (indices >= 0) & (indices < exists.shape[1])
    if exists.shape[1] == 0:
        return torch.full_like(indices, -1)
    return indices.where(inside & exists.gather(1, indices.where(inside, 0)), -1)


def _pick(cloud: Tensor, indices: Tensor, otherwise: float) -> Tensor:
    """Points ``[B, ..., 3]`` of ``cloud [B, N, 3]``, and ``otherwise`` where the index is -1."""
    if cloud.shape[1] == 0:
        return cloud.new_full((*indices.shape, 3), otherwise)
    at = indices.clamp(min=0).flatten(1)[..., None].expand(-1, -1, 3)
    return cloud.gather(1, at).unflatten(1, indices.shape[1:]).where((indices >= 0)[..., None], otherwise)


def _neighbours(cloud: Tensor, query: Tensor, exists: Tensor, k: int, radius: float) -> TPatches:
    """Those of ``query [B, M, 3]`` in one frame ``[B, N, 3]``. Gradients flow through what was found, by its index."""
    with torch.no_grad():
        x, y, z = (query[:, :, None] - cloud[:, None]).square().unbind(-1)
        distance = x + y + z
        near = (distance < math.inf) & exists[:, None]  # false for NaN
        distance, indices = distance.where(near, math.inf).sort(stable=True)
        indices = indices.where(distance < math.inf, -1)[..., :k]
        indices = torch.nn.functional.pad(indices, (0, k - indices.shape[-1]), value=-1)
    found = indices >= 0
    offset = (_pick(cloud, indices, 0) - query[:, :, None]).where(found[..., None], 0)
    x, y, z = offset.square().unbind(-1)
    distance, first = x + y + z, indices[..., :1]
    far = found & (distance > radius * radius)
    far[..., 0] = False
    indices = first.where(far, indices)
    distance = distance.where(found, math.inf).where(~far, 0)
    return TPatches(indices, distance, _pick(cloud, first[..., 0], 0).where(found[..., :1], query))
