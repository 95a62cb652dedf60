"""Products of a sparse matrix with a dense one, where sums are minima and products are sums."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import _op
from .. import reference as _reference
from ._validate import _require_device, _require_float
from .minplus import _as_batch, _validate_matrix


def min_plus_gather(lengths: Tensor, indices: Tensor, rows: Tensor) -> Tensor:
    """Multiplies a sparse matrix, some entries a row, with a dense one in the min-plus semiring.

    Such are the distances of new points, which lead through their neighbours: with the lengths of the edges to these,
    and the rows of their own distances to all landmarks.

    Convention:
        ``out[m, l]`` is the least of ``lengths[m, j] + rows[indices[m, j], l]`` over all j, inf where there is none.
        An index of -1 stands for no edge, whatever its length. Each sum is rounded once, so all backends find the same
        values. Infinities are numbers like others; NaN, also of inf - inf, makes NaN of the results whose sums it is
        in, and of no others.

        The gradient of a result goes to the two numbers of its least sum; of equal ones, to those of the lowest j (of
        the first NaN, if the result is one). A result of inf stands for "no way", and has no gradient.

    Args:
        lengths: ``[..., M, k]``; float32, float16, bfloat16 or float64 (CPU), any strides.
        indices: ``[..., M, k]`` int64, from -1 to N - 1; the shape of ``lengths``, any strides.
        rows: ``[..., N, L]``; dtype and device of ``lengths``, any strides; fastest where a row lies in one piece.
            Batch dimensions broadcast with those of ``lengths``.

    Returns:
        ``[..., M, L]``, contiguous, in the dtype of the inputs; halves are added in float32. Differentiable (twice)
        with respect to lengths and rows; gradients are bitwise repeatable.

    Raises:
        TypeError: an argument is no tensor or has an unsupported dtype, or the dtypes differ.
        ValueError: a shape or a device is wrong.
        IndexError: an index is below -1, or N or more. On a GPU, and inside compiled or transformed functions, it is
            not looked for: such an index stands for no edge, and nothing outside of ``rows`` is read or written.

    Example:
        >>> import torch, pyops
        >>> rows = torch.tensor([[0.0, 1, 2], [1, 0, 1], [2, 1, 0]])  # distances along a line of three points
        >>> pyops.min_plus_gather(torch.tensor([[0.5, 0.5]]), torch.tensor([[1, 2]]), rows)  # between the last two
        tensor([[1.5000, 0.5000, 0.5000]])

    Cost:
        ``M * k * L`` additions and as many minima, and as many numbers read; on a CPU most of them from the cache,
        since blocks of columns are done one after the other. The gradients first find where the minima were, which
        takes as long, and then read ``M * L`` numbers, and write ``N * L``.

    Source:
        Bengio et al., Out-of-Sample Extensions for LLE, Isomap, MDS, Eigenmaps, and Spectral Clustering, NeurIPS 2003.
    """
    _validate_matrix("lengths", lengths)
    if not isinstance(indices, Tensor):
        raise TypeError(f"indices must be a torch.Tensor, got {type(indices).__name__}")
    if indices.dtype != torch.int64:
        raise TypeError(f"indices must be int64, got {indices.dtype}")
    if indices.shape != lengths.shape:
        raise ValueError(
            f"indices must have the shape of lengths, {list(lengths.shape)}, got shape {list(indices.shape)}"
        )
    _require_device("indices", indices, lengths, "lengths")
    _require_float("rows", rows)
    if rows.dtype != lengths.dtype:
        raise TypeError(f"rows must have the dtype of lengths, {lengths.dtype}, got {rows.dtype}")
    _validate_matrix("rows", rows)
    _require_device("rows", rows, lengths, "lengths")
    try:
        batch = torch.broadcast_shapes(lengths.shape[:-2], rows.shape[:-2])
    except RuntimeError:
        raise ValueError(
            f"rows must have batch dimensions that broadcast with those of lengths, {list(lengths.shape[:-2])}, "
            f"got shape {list(rows.shape)}"
        ) from None
    points = rows.shape[-2]
    if _op.values_visible(indices) and indices.numel() > 0:
        low, high = (int(value) for value in indices.aminmax())
        if low < -1 or high >= points:
            raise IndexError(f"indices must be from -1 to N - 1 = {points - 1}, got {low} to {high}")
    found = torch.ops.pyops.min_plus_gather(*(_as_batch(t, batch) for t in (lengths, indices, rows)))
    return found if len(batch) == 1 else found.reshape(*batch, *found.shape[1:])


# ---- what PyTorch needs to know of the operators ---------------------------------------------------------------------


def _fake(lengths, indices, rows):
    return rows.new_empty(lengths.shape[0], lengths.shape[1], rows.shape[2])


def _save(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _backward(ctx, grad):
    need = ctx.needs_input_grad[0], ctx.needs_input_grad[2]
    lengths, rows = torch.ops.pyops.min_plus_gather_backward(grad, *ctx.saved_tensors, *need)
    return lengths if need[0] else None, None, rows if need[1] else None


def _fake_backward(grad, lengths, indices, rows, need_lengths, need_rows):
    pairs = ((lengths, need_lengths), (rows, need_rows))
    return tuple(t.new_empty(t.shape if need else 0) for t, need in pairs)


def _save_backward(ctx, inputs, output):
    ctx.save_for_backward(*inputs[:4])
    ctx.need = inputs[4:]


def _double_backward(ctx, *upstream):
    """Where the minima are does not change, so that only the gradient of the result has one in turn."""
    grad, lengths, indices, rows = ctx.saved_tensors
    needed = [g if n else None for g, n in zip(upstream, ctx.need, strict=True)]
    to_grad, to_lengths, to_rows = _op.second_derivative(
        lambda near, table: _reference.min_plus_gather(near, indices, table), (grad, lengths, rows), needed
    )
    return to_grad, to_lengths, None, to_rows, None, None


_op.declare(
    "min_plus_gather", stem="minplus", fake=_fake, setup_context=_save, backward=_backward, batched=True
)
_op.declare(
    "min_plus_gather_backward",
    stem="minplus",
    fake=_fake_backward,
    setup_context=_save_backward,
    backward=_double_backward,
    batched=True,
)
