"""Rows of a point cloud's values by index: as they are, blended, or interpolated between the nearest points."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _op
from .. import reference as _reference
from ..reference._pixels import arithmetic_dtype
from ..reference.gather import inverse_distances
from ._validate import _require_device, _require_float
from .knn import knn


def gather_points(values: Tensor, indices: Tensor) -> Tensor:
    """Gathers the values of points by index, such as the features of neighbours.

    Convention:
        ``out[b, ..., :]`` is ``values[b, indices[b, ...], :]``, and zeros where the index is -1, a missing neighbour.

    Args:
        values: ``[B, N, C]``; float32, float16, bfloat16 or float64 (CPU); any strides.
        indices: ``[B, ...]`` int64 of any number of axes, from -1 to N - 1; any strides.

    Returns:
        ``[B, ..., C]``, contiguous; dtype of ``values``. Differentiable (any number of times) with respect to
        ``values``: each point sums the gradients of its entries in their order, so that gradients are bitwise
        repeatable; sums are float32, or float64 for float64.

    Raises:
        TypeError: an argument is no tensor or has an unsupported dtype.
        ValueError: a shape or device is wrong.
        IndexError: an index is below -1, or N or more. On a GPU, and inside compiled or transformed functions, it is
            not looked for: such an index counts as missing, and nothing outside of ``values`` is read or written.

    Example:
        >>> import torch, pyops
        >>> values = torch.tensor([[[1.0, 10], [2, 20], [3, 30]]])
        >>> pyops.gather_points(values, torch.tensor([[2, -1, 0]]))
        tensor([[[ 3., 30.],
                 [ 0.,  0.],
                 [ 1., 10.]]])

    Cost:
        Reads and writes each gathered row once. The gradient sorts the indices by counting and reads each row once.

    Source:
        Qi et al., PointNet++: Deep Hierarchical Feature Learning on Point Sets in a Metric Space, NeurIPS 2017,
        section 3.2 (grouping layer).
    """
    _validate(values, indices)
    if indices.dim() < 2:
        raise ValueError(f"indices must be [B, ...] with at least two axes, got shape {list(indices.shape)}")
    found = torch.ops.pyops.gather_points(values, indices.flatten(1))
    return found.unflatten(1, indices.shape[1:]) if indices.dim() > 2 else found


def blend_points(values: Tensor, indices: Tensor, weights: Tensor) -> Tensor:
    """Blends the values of points by index: a weighted sum for every query, without the gathered rows in between.

    Convention:
        ``out[b, m, :]`` is the sum over k of ``weights[b, m, k] * values[b, indices[b, m, k], :]``. Where the index is
        -1 nothing is added, whatever the weight is, and the weight gets no gradient.

    Args:
        values: ``[B, N, C]``; float32, float16, bfloat16 or float64 (CPU); any strides.
        indices: ``[B, M, K]`` int64, from -1 to N - 1; any strides.
        weights: ``[B, M, K]``; dtype of ``values``, or float32 for values of 16 bits; any strides.

    Returns:
        ``[B, M, C]``, contiguous; dtype of ``values``. Sums are float32, or float64 for float64. Differentiable (twice)
        with respect to values and weights; gradients are bitwise repeatable.

    Raises:
        TypeError: an argument is no tensor or has an unsupported dtype.
        ValueError: a shape or device is wrong.
        IndexError: as for :func:`gather_points`.

    Example:
        >>> import torch, pyops
        >>> values = torch.tensor([[[1.0], [2], [3]]])
        >>> pyops.blend_points(values, torch.tensor([[[0, 2], [1, -1]]]), torch.tensor([[[0.5, 0.5], [2, 7]]]))
        tensor([[[2.],
                 [4.]]])

    Cost:
        Reads K rows and writes one for every query; the gradients read them once more, and each incoming row K times.

    Source:
        Qi et al., PointNet++, NeurIPS 2017, section 3.4 (the sum of equation 2).
    """
    _validate(values, indices)
    if indices.dim() != 3:
        raise ValueError(f"indices must be [B, M, K], got shape {list(indices.shape)}")
    _require_float("weights", weights)
    halves = values.dtype in (torch.float16, torch.bfloat16)
    if weights.dtype != values.dtype and not (halves and weights.dtype == torch.float32):
        wanted = f"{values.dtype} or torch.float32" if halves else f"{values.dtype}"
        raise TypeError(f"weights must be {wanted}, for values of {values.dtype}, got {weights.dtype}")
    if weights.shape != indices.shape:
        raise ValueError(
            f"weights must have the shape of indices, {list(indices.shape)}, got shape {list(weights.shape)}"
        )
    _require_device("weights", weights, values, "values")
    return torch.ops.pyops.blend_points(values, indices, weights)


def three_interpolate(
    query: Tensor,
    points: Tensor,
    values: Tensor,
    *,
    query_lengths: Tensor | None = None,
    lengths: Tensor | None = None,
    eps: float = 1e-8,
) -> Tensor:
    """Interpolates the values of a point cloud at other places, from the three nearest points of each.

    Convention:
        A query is the mean of the values of its three nearest points (:func:`pyops.knn`), weighted by
        ``1 / (d + eps)`` with d the squared distance: the weights of the paper, p = 2 and k = 3 in its equation 2.
        Where fewer than three points are found, the mean is over these; where none is, the result is 0.

    Args:
        query: ``[B, M, D]``; float32, float16, bfloat16 or float64 (CPU); any strides.
        points: ``[B, N, D]``; dtype and device of ``query``.
        values: ``[B, N, C]``, of any of these dtypes.
        query_lengths: int64 ``[B]``: of each batch the first so many queries count; the others are 0.
        lengths: int64 ``[B]``: of each cloud the first so many points count.
        eps: above 0; what keeps the weight of a point at the place of the query finite.

    Returns:
        ``[B, M, C]``, contiguous; dtype of ``values``. Distances and weights are float32, or float64 for float64.
        Differentiable (twice) with respect to values and, through the distances, to query and points; gradients are
        bitwise repeatable.

    Raises:
        TypeError: an argument is no tensor or has an unsupported dtype.
        ValueError: a shape, size, device or length is wrong, or ``eps`` is not above 0.

    Example:
        >>> import torch, pyops
        >>> points, values = torch.rand(2, 128, 3), torch.rand(2, 128, 64)
        >>> pyops.three_interpolate(torch.rand(2, 1024, 3), points, values).shape
        torch.Size([2, 1024, 64])

    Cost:
        A search for three neighbours, then three rows read and one written for every query.

    Source:
        Qi et al., PointNet++: Deep Hierarchical Feature Learning on Point Sets in a Metric Space, NeurIPS 2017,
        section 3.4, equation 2.
    """
    _require_float("query", query)
    _require_float("points", points)
    _require_float("values", values)
    if values.dim() != 3 or values.shape[:2] != points.shape[:2]:
        raise ValueError(
            f"values must be [B, N, C] with B and N of points, {list(points.shape[:2])}, "
            f"got shape {list(values.shape)}"
        )
    _require_device("values", values, points, "points")
    if not eps > 0:
        raise ValueError(f"eps must be above 0, got {eps}")
    if query.dtype == points.dtype:  # else knn says so
        query, points = (t.to(arithmetic_dtype(t)) for t in (query, points))
    distances, indices = knn(query, points, 3, query_lengths=query_lengths, lengths=lengths)
    weights = inverse_distances(distances, indices, eps).to(arithmetic_dtype(values))
    return torch.ops.pyops.blend_points(values, indices, weights)


def _validate(values: Tensor, indices: Tensor) -> None:
    _require_float("values", values)
    if values.dim() != 3:
        raise ValueError(f"values must be [B, N, C], got shape {list(values.shape)}")
    if values.dtype == torch.float64 and values.device.type == "cuda":
        raise TypeError(f"values must be float32, float16 or bfloat16 on {values.device}, got torch.float64")
    if not isinstance(indices, Tensor):
        raise TypeError(f"indices must be a torch.Tensor, got {type(indices).__name__}")
    if indices.dtype != torch.int64:
        raise TypeError(f"indices must be int64, got {indices.dtype}")
    if indices.dim() == 0 or indices.shape[0] != values.shape[0]:
        raise ValueError(
            f"indices must begin with the batch of values, {values.shape[0]}, got shape {list(indices.shape)}"
        )
    _require_device("indices", indices, values, "values")
    count = values.shape[1]
    if _op.values_visible(indices) and indices.numel() > 0:
        low, high = (int(value) for value in indices.aminmax())
        if low < -1 or high >= count:
            raise IndexError(f"indices must be from -1 to N - 1 = {count - 1}, got {low} to {high}")


# ---- what PyTorch needs to know of the operators ---------------------------------------------------------------------


def _fake(values, indices):
    return values.new_empty((*indices.shape, values.shape[2]))


def _save(ctx, inputs, output):
    values, indices = inputs
    ctx.points = values.shape[1]
    ctx.save_for_backward(indices)


def _backward(ctx, grad):
    return torch.ops.pyops.gather_points_backward(grad, *ctx.saved_tensors, ctx.points), None


def _fake_backward(grad, indices, points):
    return grad.new_empty((grad.shape[0], points, grad.shape[2]))


def _save_backward(ctx, inputs, output):
    ctx.save_for_backward(inputs[1])


def _double_backward(ctx, upstream):
    return torch.ops.pyops.gather_points(upstream, *ctx.saved_tensors), None, None  # it is linear


def _fake_blend(values, indices, weights):
    return values.new_empty((*indices.shape[:2], values.shape[2]))


def _save_blend(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward_blend(ctx, grad):
    need = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
    values, weights = torch.ops.pyops.blend_points_backward(grad, *ctx.saved_tensors, *need)
    return values if need[0] else None, None, weights if need[1] else None


def _fake_backward_blend(grad, values, indices, weights, need_values, need_weights):
    pairs = ((values, need_values), (weights, need_weights))
    return tuple(t.new_empty(t.shape if need else 0) for t, need in pairs)


def _save_backward_blend(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:4])
    ctx.need = inputs[4:]


def _double_backward_blend(ctx, *upstream):
    grad, values, indices, weights = ctx.saved_tensors
    needed = [g if n else None for g, n in zip(upstream, ctx.need, strict=True)]
    to_grad, to_values, to_weights = _op.second_derivative(
        lambda v, w: _reference.blend_points(v, indices, w), (grad, values, weights), needed
    )
    return to_grad, to_values, None, to_weights, None, None


for _name, _known in {
    "gather_points": (_fake, _save, _backward),
    "gather_points_backward": (_fake_backward, _save_backward, _double_backward),
    "blend_points": (_fake_blend, _save_blend, _backward_blend),
    "blend_points_backward": (_fake_backward_blend, _save_backward_blend, _double_backward_blend),
}.items():
    _op.declare(
        _name, stem="gather", fake=_known[0], setup_context=_known[1], backward=_known[2], batched=True
    )
