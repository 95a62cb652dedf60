"""All-pairs correlation along rows: the volume with its pyramid, or only what is looked up in it."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from .. import _op
from .. import reference as _reference
from ._pooling import Pooling, arithmetic, scale_of
from ._validate import _require_device, _require_float, _require_int

_MOST_LEVELS, _MOST_RADIUS = 16, 1 << 16


def corr1d_pyramid(
    left: Tensor, right: Tensor, levels: int = 4, *, scale: float | None = None
) -> list[Tensor]:
    """Correlates every pixel with every pixel of the same row of another view, and averages the result in pairs.

    Convention:
        Level 0 is ``out[b, h, w, v] = scale * sum of left[b, c, h, w] * right[b, c, h, v] over c``. Level l is level
        l - 1 averaged in pairs along its last axis; an odd last entry is dropped.

    Args:
        left: ``[B, C, H, W]``, features of the view to match; float32, float16, bfloat16 or float64 (CPU); any strides.
        right: ``[B, C, H, V]``, features of the other view, rectified; dtype and device of ``left``.
        levels: from 1 to 16, and no more than leave the last one an entry.
        scale: a number; None for ``1 / sqrt(C)``.

    Returns:
        A list of ``[B, H, W, V // 2**l]``, contiguous; dtype of the inputs. Sums are float32, or float64 for float64.
        Differentiable (any number of times) with respect to both views.

    Raises:
        TypeError: a view is no tensor or has an unsupported dtype, the dtypes differ, or levels is no integer.
        ValueError: a shape, a size, a device or the number of levels is wrong.

    Example:
        >>> import torch, pyops
        >>> left, right = torch.rand(2, 1, 32, 24, 80).unbind()
        >>> [list(level.shape) for level in pyops.corr1d_pyramid(left, right, levels=3)]
        [[1, 24, 80, 80], [1, 24, 80, 40], [1, 24, 80, 20]]

    Cost:
        ``C * V`` multiply-adds a pixel, by the matrix product of torch; ``2 * V`` numbers written. The gradient is two
        such products, after one pass over the gradients of all levels. float16 and bfloat16 on the CPU are computed
        through a float32 volume.

    Source:
        Lipson et al., RAFT-Stereo, 3DV 2021, section 3.2.
    """
    _validate(left, right, levels)
    return torch.ops.pyops.corr1d_pyramid(left, right, levels, scale)


def corr1d_lookup_on_demand(
    left: Tensor, right: Tensor, x: Tensor, radius: int, levels: int = 4, *, scale: float | None = None
) -> Tensor:
    """What :func:`pyops.corr1d_lookup` reads from the pyramid of two views, without the pyramid.

    Only the correlations that are looked up are computed, again in the backward: memory is that of the features,
    however wide the image. With few lookups of a large image it is faster too.

    Args:
        left: ``[B, C, H, W]``, features of the view to match; float32, float16, bfloat16 or float64 (CPU); any strides.
        right: ``[B, C, H, V]``, features of the other view, rectified; dtype and device of ``left``.
        x: ``[B, H, W]``, columns of ``right`` in pixels, 0 being the first; a float dtype. Far outside all is 0, and
            NaN gives NaN.
        radius: from 0 to 65536.
        levels: from 1 to 16, and no more than leave the last one an entry.
        scale: a number; None for ``1 / sqrt(C)``.

    Returns:
        ``[B, levels * (2 * radius + 1), H, W]``, contiguous; dtype of the inputs; see :func:`pyops.corr1d_lookup`.
        Differentiable (twice) with respect to both views and x; gradients are bitwise repeatable.

    Raises:
        TypeError: an argument is no tensor of a supported dtype, the dtypes of the views differ, or a number is no int.
        ValueError: a shape, a size, a device, the radius or the number of levels is wrong.

    Example:
        >>> import torch, pyops
        >>> left, right = torch.rand(2, 1, 32, 24, 80).unbind()
        >>> x = torch.arange(80.0).expand(1, 24, 80) - 5
        >>> found = pyops.corr1d_lookup_on_demand(left, right, x, 4)
        >>> torch.allclose(found, pyops.corr1d_lookup(pyops.corr1d_pyramid(left, right), x, 4), atol=1e-4)
        True

    Cost:
        ``C * levels * (2 * radius + 2)`` multiply-adds a pixel; the gradients twice as many, and once more for x.
        Memory besides the result: a few rows of features for each thread (CPU), or the averaged right view (CUDA).

    Source:
        Teed and Deng, RAFT, ECCV 2020, section 3.2, in the one dimension of Lipson et al., RAFT-Stereo, 3DV 2021.
    """
    _validate(left, right, levels)
    _require_float("x", x)
    expected = [left.shape[0], *left.shape[2:]]
    if list(x.shape) != expected:
        raise ValueError(f"x must be [B, H, W] = {expected} like left, got shape {list(x.shape)}")
    _require_device("x", x, left, "left")
    _require_int("radius", radius)
    if not 0 <= radius <= _MOST_RADIUS:
        raise ValueError(f"radius must be from 0 to {_MOST_RADIUS}, got {radius}")
    return torch.ops.pyops.corr1d_lookup_on_demand(left, right, x, radius, levels, scale)


def _validate(left: Tensor, right: Tensor, levels: int) -> None:
    _require_float("left", left)
    _require_float("right", right)
    for name, t in (("left", left), ("right", right)):
        if t.dim() != 4 or 0 in t.shape[1:]:
            raise ValueError(
                f"{name} must be [B, C, H, W] with C, H and W above 0, got shape {list(t.shape)}"
            )
    if right.shape[:3] != left.shape[:3]:
        raise ValueError(
            f"right must have B, C and H of left, {list(left.shape[:3])}, got shape {list(right.shape)}"
        )
    if right.dtype != left.dtype:
        raise TypeError(f"right must have the dtype of left, {left.dtype}, got {right.dtype}")
    _require_device("right", right, left, "left")
    _require_int("levels", levels)
    if not 1 <= levels <= _MOST_LEVELS or right.shape[3] >> (levels - 1) == 0:
        raise ValueError(
            f"levels must be from 1 to {_MOST_LEVELS}, and right wide enough for that many halvings; "
            f"got {levels} for a width of {right.shape[3]}"
        )


# ---- the pyramid: products by torch, and one pass for all levels ----------------------------------------------------


def _rows(left: Tensor) -> Tensor:
    return left.permute(0, 2, 3, 1)


def _columns(right: Tensor) -> Tensor:
    return right.permute(0, 2, 1, 3)


def _pyramid(left: Tensor, right: Tensor, levels: int, scale: float | None) -> list[Tensor]:
    dtype = arithmetic(left)
    rows, columns = _rows(left.to(dtype)), _columns(right.to(dtype))
    volume = _op.new_large(rows, (*rows.shape[:3], columns.shape[3]))
    for out, row, column in zip(volume, rows, columns, strict=True):
        torch.baddbmm(out, row, column, beta=0, alpha=scale_of(left, scale), out=out)
    return [level.to(left.dtype) for level in (volume, *_pooling.pool(volume, levels))]


def _fake_pyramid(left, right, levels, scale):
    batch, _, height, width = left.shape
    return [left.new_empty(batch, height, width, right.shape[3] >> level) for level in range(levels)]


def _save_pyramid(ctx, inputs, output):
    left, right, _, ctx.scale = inputs
    ctx.save_for_backward(left, right)


def _backward_pyramid(ctx, grads):
    left, right = ctx.saved_tensors
    dtype, factor = arithmetic(left), scale_of(left, ctx.scale)
    grad = _pooling.spread([g.to(dtype) for g in grads])
    need_left, need_right = ctx.needs_input_grad[:2]
    # Transposed, so that rows of the results are rows of images.
    to_left = _columns(right.to(dtype) * factor) @ grad.mT if need_left else None
    to_right = _columns(left.to(dtype) * factor) @ grad if need_right else None
    return *(None if g is None else _columns(g).to(left.dtype) for g in (to_left, to_right)), None, None


# ---- what PyTorch needs to know of the operators ---------------------------------------------------------------------


def _fake(left, right, x, radius, levels, scale):
    batch, height, width = x.shape
    return left.new_empty(batch, levels * (2 * radius + 1), height, width)


def _save(ctx, inputs, output):
    left, right, x, ctx.radius, ctx.levels, ctx.scale = inputs
    ctx.save_for_backward(left, right, x)


def _backward(ctx, grad):
    need_left, need_right, need_x = need = ctx.needs_input_grad[:3]
    grads = torch.ops.pyops.corr1d_lookup_on_demand_backward(
        grad, *ctx.saved_tensors, ctx.radius, ctx.levels, ctx.scale, need_left or need_right, need_x
    )
    return *(g if n else None for g, n in zip(grads, need, strict=True)), None, None, None


def _fake_backward(grad, left, right, x, radius, levels, scale, need_features, need_x):
    need = (need_features, need_features, need_x)
    return tuple(t.new_empty(t.shape if n else 0) for t, n in zip((left, right, x), need, strict=True))


def _save_backward(ctx, inputs, output):
    grad, left, right, x, ctx.radius, ctx.levels, ctx.scale, need_features, need_x = inputs
    ctx.need = need_features, need_features, need_x
    ctx.save_for_backward(grad, left, right, x)


def _double_backward(ctx, *upstream):
    definition = partial(
        _reference.corr1d_lookup_on_demand, radius=ctx.radius, levels=ctx.levels, scale=ctx.scale
    )
    needed = [g if n else None for g, n in zip(upstream, ctx.need, strict=True)]
    return *_op.second_derivative(definition, ctx.saved_tensors, needed), *(None,) * 5


_pooling = Pooling("pool_pairs", "spread_pairs", stem="corr1d", axes=1)
_op.declare(
    "corr1d_pyramid",
    stem="corr1d",
    fake=_fake_pyramid,
    setup_context=_save_pyramid,
    backward=_backward_pyramid,
    composed=("(Tensor left, Tensor right, SymInt levels, float? scale) -> Tensor[]", _pyramid),
    batched=True,
)
_op.declare(
    "corr1d_lookup_on_demand",
    stem="corr1d",
    fake=_fake,
    setup_context=_save,
    backward=_backward,
    batched=True,
)
_op.declare(
    "corr1d_lookup_on_demand_backward",
    stem="corr1d",
    fake=_fake_backward,
    setup_context=_save_backward,
    backward=_double_backward,
    batched=True,
)
