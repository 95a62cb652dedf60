"""Temporal patches of sequences of point clouds: chains of nearest neighbours, all frames in one launch."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _op
from ..reference.tpatches import TPatches, _known
from ._validate import _require_device, _require_float, _require_int
from .gather import gather_points


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
    """Follows points through a sequence of clouds without correspondences, and finds their neighbours in each frame.

    Convention:
        A chain starts at a point q of the first frame. In every frame its patch is the k nearest neighbours of q by
        squared Euclidean distance, formed from differences, nearest first, ties by lowest index. Its centre is the
        nearest one, and ``q = centers[:, t] + noise[:, t]`` is sought in the next frame. With ``reverse`` the chain
        starts in the last frame and walks back; noise and results stay in the order of time.
        With ``max_radius``, neighbours farther than that are replaced by the first one, at distance 0; the first one
        itself stays. A point whose squared distance is not finite, and in the arithmetic of float32 that means
        above 3.4e38 too, is never a neighbour. A patch lacking neighbours ends with index -1 at distance inf. In a
        frame without any, the centre is q itself, so that the chain goes on. A chain that starts at no point, or at
        one that is not finite, has NaN as centres and no neighbours.

    Args:
        points: ``[B, T, N, 3]``, T frames; float32, float16, bfloat16 or float64 (CPU); any strides.
        query_indices: ``[B, M]`` int64, points of the frame where the chains start.
        k: neighbours in a patch, at least 1; may exceed N.
        noise: ``[B, T, M, 3]``, dtype of points; the network is trained with Gaussian noise of 0.005.
        max_radius: at least 0; None: no limit.
        reverse: from the last frame to the first.
        lengths: ``[B]`` or ``[B, T]`` int64, from 0 to N: how many points of a frame count; None: all.

    Returns:
        ``TPatches(indices [B, T, M, k] int64, squared_distances [B, T, M, k], centers [B, T, M, 3])``.
        Arithmetic is float32, or float64 for float64. For given indices, distances and centres are differentiable
        (any number of times) with respect to points and noise; gradients are bitwise repeatable.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, size, device or value is wrong. Values on other devices than the CPU are not read: indices
            out of range start no chain, lengths are clamped.

    Example:
        >>> import torch, pyops
        >>> points = torch.rand(1, 50, 3) + 0.01 * torch.arange(8.0)[:, None, None]  # a cloud that drifts
        >>> patches = pyops.extract_tpatches(points[None], torch.arange(50)[None], 16)
        >>> patches.indices.shape, patches.centers.shape
        (torch.Size([1, 8, 50, 16]), torch.Size([1, 8, 50, 3]))
        >>> bool((patches.indices[0, :, :, 0] == torch.arange(50)).float().mean() > 0.9)  # points keep their place
        True

    Cost:
        ``T * M * N`` distances. Writes ``12 k + 12`` bytes a query and frame. CUDA: one launch, a warp a chain.

    Source:
        Ben-Shabat, Shrout, Gould, 3DInAction: Understanding Human Actions in 3D Point Clouds, CVPR 2024, section 3.
    """
    _validate(points, {"query_indices": query_indices}, k, noise, max_radius, lengths)
    if not isinstance(reverse, bool):
        raise TypeError(f"reverse must be a bool, got {type(reverse).__name__}")
    forward = 0 if reverse else query_indices.shape[1]
    return _extract(points, query_indices, k, forward, noise, max_radius, lengths)


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
    """Temporal patches of both directions at once: chains from the first frame on, then chains from the last one back.

    Convention:
        The same as ``extract_tpatches`` for ``first_indices`` and, with ``reverse``, for ``last_indices``, side by side
        along M. All chains run at the same time.

    Args:
        points: ``[B, T, N, 3]``, as there.
        first_indices: ``[B, M1]`` int64, points of the first frame.
        last_indices: ``[B, M2]`` int64, points of the last frame.
        k: neighbours in a patch.
        noise: ``[B, T, M1 + M2, 3]``, dtype of points.
        max_radius: as there.
        lengths: as there.

    Returns:
        ``TPatches`` with ``M = M1 + M2``, the chains of the first frame first.

    Raises:
        TypeError: an argument is of the wrong type or dtype.
        ValueError: a shape, size, device or value is wrong.

    Example:
        >>> import torch, pyops
        >>> points = torch.rand(2, 6, 40, 3)
        >>> start = torch.arange(10).expand(2, 10)
        >>> pyops.bidirectional_tpatches(points, start, start + 20, 4).centers.shape
        torch.Size([2, 6, 20, 3])

    Cost:
        As ``extract_tpatches`` with M1 + M2 queries; one launch.

    Source:
        Ben-Shabat, Shrout, Gould, 3DInAction: Understanding Human Actions in 3D Point Clouds, CVPR 2024, section 3.
    """
    both = {"first_indices": first_indices, "last_indices": last_indices}
    _validate(points, both, k, noise, max_radius, lengths)
    queries = torch.cat([first_indices, last_indices], 1)
    return _extract(points, queries, k, first_indices.shape[1], noise, max_radius, lengths)


def _extract(
    points: Tensor,
    queries: Tensor,
    k: int,
    forward: int,
    noise: Tensor | None,
    max_radius: float | None,
    lengths: Tensor | None,
) -> TPatches:
    """The first ``forward`` of the queries are of the first frame, the others of the last."""
    if lengths is not None and lengths.dim() == 1:
        lengths = lengths[:, None].expand(points.shape[:2])
    radius = math.inf if max_radius is None else max_radius
    constant = None if noise is None else noise.detach()
    found = torch.ops.pyops.extract_tpatches(points.detach(), queries, k, forward, constant, lengths, radius)
    patches = TPatches(*found)
    if torch.is_grad_enabled() and any(t is not None and _op.wants_gradient(t) for t in (points, noise)):
        return _differentiable(points, queries, forward, noise, lengths, radius, patches.indices)
    return patches


def _validate(
    points: Tensor,
    queries: dict[str, Tensor],
    k: int,
    noise: Tensor | None,
    max_radius: float | None,
    lengths: Tensor | None,
) -> None:
    _require_float("points", points)
    if points.dim() != 4 or points.shape[3] != 3:
        raise ValueError(f"points must be [B, T, N, 3], got shape {list(points.shape)}")
    batch, frames, size, _ = points.shape
    for name, indices in queries.items():
        _require_indices(name, indices)
        if indices.dim() != 2 or indices.shape[0] != batch:
            raise ValueError(
                f"{name} must be [B, M] with the B of points, {batch}, got shape {list(indices.shape)}"
            )
        _require_device(name, indices, points, "points")
        _require_range(name, indices, size - 1)
    _require_int("k", k)
    if k < 1:
        raise ValueError(f"k must be at least 1, got {k}")
    if noise is not None:
        _require_float("noise", noise)
        shape = [batch, frames, sum(indices.shape[1] for indices in queries.values()), 3]
        if list(noise.shape) != shape:
            raise ValueError(f"noise must be [B, T, M, 3], {shape} here, got shape {list(noise.shape)}")
        if noise.dtype != points.dtype:
            raise TypeError(f"noise must have the dtype of points, {points.dtype}, got {noise.dtype}")
        _require_device("noise", noise, points, "points")
    if max_radius is not None:
        if isinstance(max_radius, bool) or not isinstance(max_radius, (int, float)):
            raise TypeError(f"max_radius must be a float or None, got {type(max_radius).__name__}")
        if not max_radius >= 0:
            raise ValueError(f"max_radius must be at least 0, got {max_radius}")
    if lengths is not None:
        _require_indices("lengths", lengths)
        if list(lengths.shape) not in ([batch], [batch, frames]):
            raise ValueError(
                f"lengths must be [B] or [B, T], {[batch, frames]} here, got shape {list(lengths.shape)}"
            )
        _require_device("lengths", lengths, points, "points")
        _require_range("lengths", lengths, size)


def _require_indices(name: str, t: Tensor) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor, got {type(t).__name__}")
    if t.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {t.dtype}")


def _require_range(name: str, t: Tensor, most: int) -> None:
    if _op.values_visible(t) and t.numel():
        low, high = (int(value) for value in t.aminmax())
        if low < 0 or high > most:
            raise ValueError(f"{name} must be from 0 to {most}, got values from {low} to {high}")


def _differentiable(
    points: Tensor,
    queries: Tensor,
    forward: int,
    noise: Tensor | None,
    lengths: Tensor | None,
    radius: float,
    indices: Tensor,
) -> TPatches:
    """Distances and centres once more, from the indices that were found: these are constants, no chain is walked."""
    dtype = torch.float64 if points.dtype == torch.float64 else torch.float32
    batch, frames, size, _ = points.shape
    clouds, jitter = points.to(dtype), None if noise is None else noise.to(dtype)
    found = indices >= 0
    neighbours = gather_points(clouds.flatten(0, 1), indices.flatten(0, 1)).unflatten(0, (batch, frames))
    parts = []
    for part, first, back in ((slice(forward), 0, False), (slice(forward, None), -1, True)):
        exists = torch.arange(size, device=points.device) < (
            size if lengths is None else lengths[:, first, None]
        )
        start = _known(queries[:, part], exists.expand(batch, size))
        moves = None if jitter is None else jitter[:, :, part]
        chain = (neighbours[:, :, part, 0], found[:, :, part, 0], moves)
        ordered: list = [t if t is None or not back else t.flip(1) for t in chain]
        query = gather_points(clouds[:, first], start).where((start >= 0)[..., None], math.nan)
        parts.append([t.flip(1) if back else t for t in _walk(query, *ordered)])
    query, centers = (torch.cat(pair, 2) for pair in zip(*parts, strict=True))
    x, y, z = (neighbours - query[:, :, :, None]).where(found[..., None], 0).square().unbind(-1)
    distances = (x + y + z).where(found, math.inf)
    # Where the first one took the place of another, its index comes again.
    again = (indices == indices[..., :1]) & found
    again = torch.cat([torch.zeros_like(again[..., :1]), again[..., 1:]], -1)
    distances = distances.where(~again, 0)
    return TPatches(indices, distances.to(points.dtype), centers.to(points.dtype))


def _walk(start: Tensor, nearest: Tensor, found: Tensor, noise: Tensor | None) -> tuple[Tensor, Tensor]:
    """Queries and centres of chains from ``start [B, M, 3]``, in the order of the walk.

    A centre is the nearest point of the latest frame that had one, and the noise since then.
    """
    base = torch.cat([start[:, None], nearest], 1)
    steps = torch.arange(base.shape[1], device=base.device)[:, None]
    known = torch.cat([torch.ones_like(found[:, :1]), found], 1)
    at = (known * steps).cummax(1).values.transpose(1, 2).flatten(0, 1)

    def latest(t: Tensor) -> Tensor:
        rows = gather_points(t.transpose(1, 2).flatten(0, 1), at)
        return rows.unflatten(0, (t.shape[0], t.shape[2])).transpose(1, 2)

    centers = latest(base)
    if noise is not None:
        nothing = torch.zeros_like(noise[:, :1])
        moved = torch.cat([nothing, nothing, noise[:, :-1]], 1).cumsum(1)
        centers = centers + (moved - latest(moved))
    centers = centers[:, 1:]
    query = torch.cat([start[:, None], (centers if noise is None else centers + noise)[:, :-1]], 1)
    return query, centers


# ---- what PyTorch needs to know of the operator ----------------------------------------------------------------------


def _fake(points, queries, k, forward, noise, lengths, radius):
    batch, frames, _, _ = points.shape
    shape = batch, frames, queries.shape[1]
    return queries.new_empty(*shape, k), points.new_empty(*shape, k), points.new_empty(*shape, 3)


def _save(ctx, inputs, output):
    ctx.mark_non_differentiable(*output)  # see _differentiable


def _backward(ctx, *grads):
    return (None,) * 7


_op.declare(
    "extract_tpatches", stem="tpatches", fake=_fake, setup_context=_save, backward=_backward, batched=True
)
