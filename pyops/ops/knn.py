"""Nearest neighbours in point clouds: exact, with ties by the lowest index on every backend."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .. import _op
from ..reference.knn import Neighbors, mean_found, pair_distances
from ._validate import _require_device, _require_float, _require_int

_MOST = 1024  # neighbours
_REDUCTIONS = ("mean", "sum", "none")


def knn(
    query: Tensor,
    points: Tensor,
    k: int,
    *,
    query_lengths: Tensor | None = None,
    lengths: Tensor | None = None,
    max_radius: float | None = None,
) -> Neighbors:
    """Finds the k nearest points of a cloud for every query, exactly, nearest first.

    Convention:
        The squared distance is the sum over the coordinates, in their order, of ``(query - point) ** 2``, each
        operation rounded to the type of arithmetic: differences come before squares, so a cloud far from the origin
        loses nothing, and all backends find the same bits. Of points at the same distance the one of lowest index
        comes first. A point at a distance that is no finite number (NaN in it or in the query, infinities) is never a
        neighbour. Missing neighbours have distance inf and index -1.

    Args:
        query: ``[B, M, D]``; float32, float16, bfloat16 or float64 (CPU), any strides.
        points: ``[B, N, D]``; dtype and device of ``query``, any strides. N may be 0.
        k: how many neighbours, from 1 to 1024; N may be less.
        query_lengths: int64 ``[B]``: of each batch the first so many queries count; the others have no neighbours.
        lengths: int64 ``[B]``: of each cloud the first so many points count; the others are never read.
        max_radius: neighbours farther than this are missing; None for no limit.

    Returns:
        ``Neighbors(squared_distances, indices)``, both ``[B, M, k]`` and contiguous: distances in the dtype of
        ``points``, computed in float32 (float64 for float64), and int64. Distances are differentiable (twice) with
        respect to ``query`` and ``points``; gradients are bitwise repeatable.

    Raises:
        TypeError: an argument is no tensor or has an unsupported dtype, the dtypes differ, or a number is of another
            type.
        ValueError: a shape, size or device is wrong, a length is negative or beyond its cloud, or the radius is
            negative or NaN.

    Example:
        >>> import torch, pyops
        >>> points = torch.tensor([[[0.0, 0, 0], [3, 0, 0], [1, 0, 0], [1, 0, 0]]])
        >>> found = pyops.knn(points[:, :1], points, 3)
        >>> found.indices, found.squared_distances
        (tensor([[[0, 2, 3]]]), tensor([[[0., 1., 1.]]]))

    Cost:
        ``3 * M * N * D`` operations; no matrix of all distances is stored. On a CPU large clouds of few dimensions go
        into a tree first, which leaves some hundred distances a query, also where points coincide; of clouds of many
        dimensions a product of matrices, whose rounding is bounded, leaves little more than k distances a query. On a
        GPU clouds of 4096 points or more of up to 3 dimensions go into trees too, of 8192 with 4, and so on up to
        131,072 with 8, where there are ``8 * k`` points or more and ``B * M * N`` is 2^26 or more; a tree takes
        ``4 * (D + 2)`` bytes a point and is built at every call. Products come there with 64 dimensions or more, where
        ``M * N * D`` is 2^28 or more and N from ``8 * k`` to 2^21; they take ``4 * N * D`` bytes and 128 MB for blocks
        of queries, and are as exact where TF32 is allowed. The Triton kernels compare all pairs at every size.

    Source:
        Bentley, Multidimensional Binary Search Trees Used for Associative Searching, Communications of the ACM 18(9),
        1975; as used in Ben-Shabat et al., 3DInAction: Understanding Human Actions in 3D Point Clouds, CVPR 2024.
    """
    _validate_clouds(query=query, points=points)
    _validate_k(k)
    _validate_lengths("query_lengths", query_lengths, query, "query")
    _validate_lengths("lengths", lengths, points, "points")
    limit = math.inf if max_radius is None else _squared("max_radius", max_radius)
    return Neighbors(*torch.ops.pyops.knn(query, points, k, query_lengths, lengths, limit))


def ball_query(
    query: Tensor,
    points: Tensor,
    radius: float,
    k: int,
    *,
    query_lengths: Tensor | None = None,
    lengths: Tensor | None = None,
) -> Neighbors:
    """Finds for every query the first k points within a radius, in the order of the cloud.

    Convention:
        Distances are those of :func:`pyops.knn`; a point exactly at the radius is inside. Missing neighbours have
        distance inf and index -1.

    Args:
        query: ``[B, M, D]``; float32, float16, bfloat16 or float64 (CPU), any strides.
        points: ``[B, N, D]``; dtype and device of ``query``, any strides. N may be 0.
        radius: at least 0.
        k: how many neighbours, from 1 to 1024.
        query_lengths: int64 ``[B]``: of each batch the first so many queries count.
        lengths: int64 ``[B]``: of each cloud the first so many points count.

    Returns:
        ``Neighbors(squared_distances, indices)``, both ``[B, M, k]``, indices ascending. Distances are differentiable
        (twice) with respect to ``query`` and ``points``; gradients are bitwise repeatable.

    Raises:
        TypeError: an argument is no tensor or has an unsupported dtype, the dtypes differ, or a number is of another
            type.
        ValueError: a shape, size, device, length or radius is wrong.

    Example:
        >>> import torch, pyops
        >>> points = torch.tensor([[[0.0, 0, 0], [3, 0, 0], [1, 0, 0], [1, 0, 0]]])
        >>> pyops.ball_query(points[:, 2:3], points, 1.0, 2).indices
        tensor([[[0, 2]]])

    Cost:
        At most ``3 * M * N * D`` operations; a query is done once it has k points.

    Source:
        Qi et al., PointNet++: Deep Hierarchical Feature Learning on Point Sets in a Metric Space, NeurIPS 2017,
        section 3.2.
    """
    _validate_clouds(query=query, points=points)
    limit = _squared("radius", radius)
    _validate_k(k)
    _validate_lengths("query_lengths", query_lengths, query, "query")
    _validate_lengths("lengths", lengths, points, "points")
    return Neighbors(*torch.ops.pyops.ball_query(query, points, limit, k, query_lengths, lengths))


def chamfer_distance(
    x: Tensor,
    y: Tensor,
    *,
    x_lengths: Tensor | None = None,
    y_lengths: Tensor | None = None,
    reduction: str = "mean",
) -> Tensor:
    """Measures how far two clouds are from each other: the mean squared distance to the nearest point, both ways.

    Convention:
        For each pair of clouds, the mean over the points of ``x`` of the squared distance to the nearest point of
        ``y``, plus the same with the clouds exchanged. Points without a neighbour (NaN, or an empty other cloud) do
        not count; a mean over nothing is 0.

    Args:
        x: ``[B, N, D]``; float32, float16, bfloat16 or float64 (CPU), any strides.
        y: ``[B, M, D]``; dtype and device of ``x``, any strides.
        x_lengths: int64 ``[B]``: of each cloud of ``x`` the first so many points count.
        y_lengths: int64 ``[B]``: of each cloud of ``y`` the first so many points count.
        reduction: "mean" or "sum" over the batch, or "none" for ``[B]``.

    Returns:
        A scalar, or ``[B]``; dtype of the clouds. Differentiable (twice) with respect to both.

    Raises:
        TypeError: an argument is no tensor or has an unsupported dtype, or the dtypes differ.
        ValueError: a shape, size, device, length or the reduction is wrong.

    Example:
        >>> import torch, pyops
        >>> x = torch.rand(2, 100, 3)
        >>> pyops.chamfer_distance(x, x + torch.tensor([0.0, 0, 10])) > 100
        tensor(True)

    Cost:
        Two searches for one neighbour each.

    Source:
        Fan et al., A Point Set Generation Network for 3D Object Reconstruction from a Single Image, CVPR 2017,
        section 3.2, with means in place of sums.
    """
    _validate_clouds(x=x, y=y)
    _validate_lengths("x_lengths", x_lengths, x, "x")
    _validate_lengths("y_lengths", y_lengths, y, "y")
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction must be one of {', '.join(_REDUCTIONS)}, got {reduction!r}")
    there, back = (
        torch.ops.pyops.knn(own, other, 1, own_lengths, other_lengths, math.inf)
        for own, other, own_lengths, other_lengths in (
            (x, y, x_lengths, y_lengths),
            (y, x, y_lengths, x_lengths),
        )
    )
    first, second = (
        mean_found(squared.squeeze(-1), indices.squeeze(-1)) for squared, indices in (there, back)
    )
    total = first + second
    if reduction == "none":
        return total
    return total.mean() if reduction == "mean" else total.sum()


def _validate_clouds(**clouds: Tensor) -> None:
    (first, query), (second, points) = clouds.items()
    for name, t in clouds.items():
        _require_float(name, t)
        if t.dim() != 3 or t.shape[2] == 0:
            raise ValueError(f"{name} must be [B, points, D] with D above 0, got shape {list(t.shape)}")
    if points.dtype != query.dtype:
        raise TypeError(f"{second} must have the dtype of {first}, {query.dtype}, got {points.dtype}")
    if points.shape[0] != query.shape[0] or points.shape[2] != query.shape[2]:
        raise ValueError(
            f"{second} must have the batch and the dimensions of {first}, "
            f"[{query.shape[0]}, points, {query.shape[2]}], got shape {list(points.shape)}"
        )
    _require_device(second, points, query, first)
    if query.dtype == torch.float64 and query.device.type == "cuda":
        raise TypeError(f"{first} must be float32, float16 or bfloat16 on {query.device}, got {query.dtype}")


def _validate_k(k: int) -> None:
    _require_int("k", k)
    if not 1 <= k <= _MOST:
        raise ValueError(f"k must be from 1 to {_MOST}, got {k}")


def _validate_lengths(name: str, lengths: Tensor | None, cloud: Tensor, cloud_name: str) -> None:
    if lengths is None:
        return
    if not isinstance(lengths, Tensor):
        raise TypeError(f"{name} must be a torch.Tensor or None, got {type(lengths).__name__}")
    if lengths.dtype != torch.int64:
        raise TypeError(f"{name} must be int64, got {lengths.dtype}")
    batch, most = cloud.shape[:2]
    if lengths.shape != (batch,):
        raise ValueError(
            f"{name} must be [{batch}], one for each batch of {cloud_name}, got {list(lengths.shape)}"
        )
    _require_device(name, lengths, cloud, cloud_name)
    # Elsewhere the kernels clamp: looking would cost a synchronisation, or break a trace.
    if batch and _op.values_visible(lengths):
        low, high = (int(value) for value in lengths.aminmax())
        if low < 0 or high > most:
            raise ValueError(
                f"{name} must be from 0 to {most}, the size of {cloud_name}, got {lengths.tolist()}"
            )


def _squared(name: str, radius: float) -> float:
    if isinstance(radius, bool) or not isinstance(radius, (int, float, torch.SymFloat, torch.SymInt)):
        raise TypeError(f"{name} must be a number, got {type(radius).__name__}")
    if not radius >= 0:
        raise ValueError(f"{name} must be at least 0, got {radius}")
    return float(radius) * float(radius)


# ---- what PyTorch needs to know of the operators ---------------------------------------------------------------------


def _fake(query, points, k, query_lengths, lengths, limit):
    shape = (*query.shape[:2], k)
    return query.new_empty(shape), query.new_empty(shape, dtype=torch.int64)


def _fake_ball(query, points, limit, k, query_lengths, lengths):
    return _fake(query, points, k, query_lengths, lengths, limit)


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:2], output[1])
    ctx.others = len(inputs) - 2


def _backward(ctx, grad, _):
    query, points, indices = ctx.saved_tensors
    need = ctx.needs_input_grad[:2]
    grads = torch.ops.pyops.knn_backward(grad, query, points, indices, *need)
    return *(g if n else None for g, n in zip(grads, need, strict=True)), *(None for _ in range(ctx.others))


def _fake_backward(grad, query, points, indices, need_query, need_points):
    pairs = ((query, need_query), (points, need_points))
    return tuple(t.new_empty(t.shape if need else 0) for t, need in pairs)


def _save_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:4])
    ctx.need = inputs[4:]


def _double_backward(ctx, *upstream):
    *tensors, indices = ctx.saved_tensors
    needed = [g if n else None for g, n in zip(upstream, ctx.need, strict=True)]
    grads = _op.second_derivative(lambda q, p: pair_distances(q, p, indices), tensors, needed)
    return *grads, None, None, None


_op.declare("knn", stem="knn", fake=_fake, setup_context=_save, backward=_backward, batched=True)
_op.declare("ball_query", stem="knn", fake=_fake_ball, setup_context=_save, backward=_backward, batched=True)
_op.declare(
    "knn_backward",
    stem="knn",
    fake=_fake_backward,
    setup_context=_save_backward,
    backward=_double_backward,
    batched=True,
)
