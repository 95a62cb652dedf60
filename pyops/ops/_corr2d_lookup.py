"""Lookups in the correlations of images: what a recurrent network of optical flow reads around its places."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _op
from .. import reference as _reference
from ._accumulate import Lookup
from ._validate import _require_device, _require_float, _require_int
from .lookup import _validate_levels

_MOST_RADIUS = 1 << 10


def corr2d_lookup(pyramid: Sequence[Tensor], coords: Tensor, radius: int) -> Tensor:
    """Reads a square of correlations around a place in the other image, for every pixel and from every level.

    Convention:
        With ``n = 2 * radius + 1``, channel ``l * n**2 + (radius + dx) * n + radius + dy`` of the result is level l of
        the pixel's correlations at column ``x / 2**l + dx`` and row ``y / 2**l + dy``, dx and dy from -radius to
        radius: bilinear between the four nearest entries, 0 outside of the level. The order is that of RAFT.

    Args:
        pyramid: from 1 to 16 levels ``[B, H, W, U_l, V_l]`` of one dtype, as :func:`pyops.corr2d_pyramid` makes them,
            or any others; float32, float16, bfloat16 or float64 (CPU); any strides.
        coords: ``[B, 2, H, W]``, x and y in units of pixels of level 0, 0 being the first; a float dtype. Far outside
            all is 0, and NaN gives NaN.
        radius: from 0 to 1024.

    Returns:
        ``[B, levels * (2 * radius + 1)**2, H, W]``, contiguous; dtype of the pyramid. Arithmetic is float32, or float64
        for float64. Differentiable (twice) with respect to the levels and to coords; gradients are bitwise repeatable.
        Lookups in the same pyramid add their gradients to one buffer of its size, however many there are.

    Raises:
        TypeError: an argument is no tensor, or no sequence of tensors, of a supported dtype, or radius is no int.
        ValueError: a shape, a size, a device or the radius is wrong.

    Example:
        >>> import torch, pyops
        >>> first, second = torch.rand(2, 1, 32, 24, 40).unbind()
        >>> coords = torch.rand(1, 2, 24, 40) * 24
        >>> pyops.corr2d_lookup(pyops.corr2d_pyramid(first, second), coords, 4).shape
        torch.Size([1, 324, 24, 40])

    Cost:
        One pass for all levels: ``(2 * radius + 2)**2`` numbers read and ``(2 * radius + 1)**2`` written a pixel and
        level.

    Source:
        Teed and Deng, RAFT, ECCV 2020, section 3.2.
    """
    _validate_levels("pyramid", pyramid, "[B, H, W, U, V]", 5)
    for i, level in enumerate(pyramid[1:], 1):
        if level.dtype != pyramid[0].dtype:
            raise TypeError(
                f"pyramid[{i}] must have the dtype of pyramid[0], {pyramid[0].dtype}, got {level.dtype}"
            )
        _require_device(f"pyramid[{i}]", level, pyramid[0], "pyramid[0]")
        if level.shape[:3] != pyramid[0].shape[:3]:
            raise ValueError(
                f"pyramid[{i}] must have B, H and W of pyramid[0], {list(pyramid[0].shape[:3])}, "
                f"got shape {list(level.shape)}"
            )
    _validate_coords(coords, pyramid[0], "pyramid", pyramid[0].shape[:3], radius)
    return _lookup(pyramid, coords, radius)


def _validate_coords(
    coords: Tensor, other: Tensor, other_name: str, sizes: Sequence[int], radius: int
) -> None:
    _require_float("coords", coords)
    batch, height, width = sizes
    if coords.shape != (batch, 2, height, width):
        raise ValueError(
            f"coords must be [B, 2, H, W] = {[batch, 2, height, width]} like {other_name}, "
            f"got shape {list(coords.shape)}"
        )
    _require_device("coords", coords, other, other_name)
    _require_int("radius", radius)
    if not 0 <= radius <= _MOST_RADIUS:
        raise ValueError(f"radius must be from 0 to {_MOST_RADIUS}, got {radius}")


# ---- what PyTorch needs to know of the operators ---------------------------------------------------------------------


def _fake(pyramid, coords, radius):
    batch, _, height, width = coords.shape
    return pyramid[0].new_empty(batch, len(pyramid) * (2 * radius + 1) ** 2, height, width)


def _save(ctx, inputs, output):
    pyramid, coords, ctx.radius = inputs
    ctx.save_for_backward(coords, *pyramid)


def _backward(ctx, grad):
    coords, *pyramid = ctx.saved_tensors
    return *_lookup.gradients(grad, pyramid, coords, ctx.radius, *ctx.needs_input_grad[:2]), None


def _fake_backward(grad, pyramid, coords, radius, need_pyramid, need_coords):
    levels = [t.new_empty(t.shape if need_pyramid else 0) for t in pyramid]
    return [*levels, coords.new_empty(coords.shape if need_coords else 0)]


def _save_backward(ctx, inputs, output):
    grad, pyramid, coords, ctx.radius, ctx.need_pyramid, ctx.need_coords = inputs
    ctx.save_for_backward(grad, *pyramid, coords)


def _double_backward(ctx, upstream):
    *levels, coords = upstream
    needed = [*(g if ctx.need_pyramid else None for g in levels), coords if ctx.need_coords else None]
    return *_lookup.second_derivative(ctx.saved_tensors, ctx.radius, needed), None, None, None


def _fake_accumulate(grad, buffers, pyramid, coords, radius, need_coords):
    return coords.new_empty(coords.shape if need_coords else 0)


_lookup = Lookup(
    forward=torch.ops.pyops.corr2d_lookup,
    backward=torch.ops.pyops.corr2d_lookup_backward,
    accumulate=torch.ops.pyops.corr2d_lookup_accumulate,
    definition=_reference.corr2d_lookup,
)
_op.declare("corr2d_lookup", stem="corr2d", fake=_fake, setup_context=_save, backward=_backward, batched=True)
_op.declare(
    "corr2d_lookup_backward",
    stem="corr2d",
    fake=_fake_backward,
    setup_context=_save_backward,
    backward=_double_backward,
    batched=True,
)
_op.declare("corr2d_lookup_accumulate", stem="corr2d", fake=_fake_accumulate)
