"""Lookups in volumes of costs: what a recurrent stereo network reads around its disparities, all levels at once."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _op
from .. import reference as _reference
from ._accumulate import Lookup
from ._validate import _require_device, _require_float, _require_int

_MOST_LEVELS, _MOST_RADIUS = 16, 1 << 16


def corr1d_lookup(pyramid: Sequence[Tensor], x: Tensor, radius: int) -> Tensor:
    """Reads a window of correlations around a column of the other view, for every pixel and from every level.

    Convention:
        Channel ``l * (2 * radius + 1) + radius + d`` of the result is level l of the pixel's correlations at
        ``x / 2**l + d`` for ``d = -radius .. radius``: linear between the two nearest columns, 0 outside of the level.

    Args:
        pyramid: from 1 to 16 levels ``[B, H, W, D_l]`` of one dtype, as :func:`pyops.corr1d_pyramid` makes them, or
            any others; float32, float16, bfloat16 or float64 (CPU); any strides.
        x: ``[B, H, W]``, columns in units of pixels of level 0, 0 being the first; a float dtype. Far outside all is 0,
            and NaN gives NaN.
        radius: from 0 to 65536.

    Returns:
        ``[B, levels * (2 * radius + 1), H, W]``, contiguous; dtype of the pyramid. Arithmetic is float32, or float64
        for float64. Differentiable (twice) with respect to the levels and to x; gradients are bitwise repeatable.
        Lookups in the same pyramid add their gradients to one buffer of its size, however many there are.

    Raises:
        TypeError: an argument is no tensor, or no sequence of tensors, of a supported dtype, or radius is no int.
        ValueError: a shape, a size, a device or the radius is wrong.

    Example:
        >>> import torch, pyops
        >>> left, right = torch.rand(2, 1, 32, 24, 80).unbind()
        >>> x = torch.arange(80.0).expand(1, 24, 80) - 5  # disparity 5 everywhere
        >>> pyops.corr1d_lookup(pyops.corr1d_pyramid(left, right), x, 4).shape
        torch.Size([1, 36, 24, 80])

    Cost:
        One pass for all levels: ``2 * radius + 2`` numbers read and ``2 * radius + 1`` written a pixel and level.

    Source:
        Lipson et al., RAFT-Stereo, 3DV 2021, section 3.3.
    """
    _validate_pyramid(pyramid)
    _validate_position("x", x, pyramid[0], radius)
    return _lookups[0](pyramid, x, radius)


def geometry_lookup(
    volumes: Sequence[Tensor], pyramid: Sequence[Tensor], disparity: Tensor, radius: int
) -> Tensor:
    """Reads windows around each disparity from a filtered cost volume and from all-pairs correlations, level by level.

    Convention:
        Of level l come first the C channels of its volume at ``disparity / 2**l + d``, ``2 * radius + 1`` values of
        ``d = -radius .. radius`` for each, then the correlations at ``(w - disparity) / 2**l + d`` of the pixel in
        column w. Linear between the two nearest entries, 0 outside.

    Args:
        volumes: from 1 to 16 levels ``[B, C, D_l, H, W]`` of one dtype, where entry k of level l stands for a disparity
            of ``k * 2**l``; float32, float16, bfloat16 or float64 (CPU); any strides.
        pyramid: as many levels ``[B, H, W, W_l]`` of the same dtype, see :func:`pyops.corr1d_pyramid`.
        disparity: ``[B, H, W]`` in pixels, a float dtype. Far outside all is 0, and NaN gives NaN.
        radius: from 0 to 65536.

    Returns:
        ``[B, levels * (C + 1) * (2 * radius + 1), H, W]``, contiguous; dtype of the volumes. Arithmetic is float32, or
        float64 for float64. Differentiable (twice) with respect to all levels and to the disparity; gradients are
        bitwise repeatable. Lookups in the same levels add their gradients to one buffer of their size.

    Raises:
        TypeError: an argument is no tensor, or no sequence of tensors, of a supported dtype, or radius is no int.
        ValueError: a shape, a size, a device or the radius is wrong.

    Example:
        >>> import torch, pyops
        >>> left, right = torch.rand(2, 1, 32, 24, 80).unbind()
        >>> volume = pyops.groupwise_correlation(left, right, 16, groups=8)
        >>> volumes = [volume, torch.nn.functional.avg_pool3d(volume, (2, 1, 1))]
        >>> pyramid = pyops.corr1d_pyramid(left, right, levels=2)
        >>> pyops.geometry_lookup(volumes, pyramid, torch.full((1, 24, 80), 3.5), 4).shape
        torch.Size([1, 162, 24, 80])

    Cost:
        One pass for all: ``2 * radius + 2`` numbers read and ``2 * radius + 1`` written a pixel, level and channel
        (C of the volume, one of the correlations). Nothing is permuted or copied before.

    Source:
        Xu et al., Iterative Geometry Encoding Volume for Stereo Matching, CVPR 2023, section 3.2; Chen et al.,
        MoCha-Stereo, CVPR 2024.
    """
    _validate_pyramid(pyramid)
    _validate_volumes(volumes, pyramid)
    _validate_position("disparity", disparity, pyramid[0], radius)
    return _lookups[len(volumes)]([*volumes, *pyramid], disparity, radius)


# ---- validation ------------------------------------------------------------------------------------------------------


def _validate_levels(name: str, levels: Sequence[Tensor], shape: str, rank: int) -> None:
    if isinstance(levels, Tensor) or not isinstance(levels, Sequence):
        raise TypeError(f"{name} must be a list of tensors, got {type(levels).__name__}")
    if not 1 <= len(levels) <= _MOST_LEVELS:
        raise ValueError(f"{name} must have from 1 to {_MOST_LEVELS} levels, got {len(levels)}")
    for i, level in enumerate(levels):
        _require_float(f"{name}[{i}]", level)
        if level.dim() != rank or 0 in level.shape[1:]:
            raise ValueError(f"{name}[{i}] must be {shape} with sizes above 0, got shape {list(level.shape)}")


def _validate_same(name: str, level: Tensor, first_name: str, first: Tensor) -> None:
    if level.dtype != first.dtype:
        raise TypeError(f"{name} must have the dtype of {first_name}, {first.dtype}, got {level.dtype}")
    _require_device(name, level, first, first_name)


def _validate_pyramid(pyramid: Sequence[Tensor]) -> None:
    _validate_levels("pyramid", pyramid, "[B, H, W, D]", 4)
    for i, level in enumerate(pyramid):
        _validate_same(f"pyramid[{i}]", level, "pyramid[0]", pyramid[0])
        if level.shape[:3] != pyramid[0].shape[:3]:
            raise ValueError(
                f"pyramid[{i}] must have B, H and W of pyramid[0], {list(pyramid[0].shape[:3])}, "
                f"got shape {list(level.shape)}"
            )


def _validate_volumes(volumes: Sequence[Tensor], pyramid: Sequence[Tensor]) -> None:
    _validate_levels("volumes", volumes, "[B, C, D, H, W]", 5)
    if len(volumes) != len(pyramid):
        raise ValueError(f"volumes must have the {len(pyramid)} levels of pyramid, got {len(volumes)}")
    batch, height, width = pyramid[0].shape[:3]
    channels = volumes[0].shape[1]
    for i, volume in enumerate(volumes):
        _validate_same(f"volumes[{i}]", volume, "pyramid[0]", pyramid[0])
        if (volume.shape[0], volume.shape[1], *volume.shape[3:]) != (batch, channels, height, width):
            raise ValueError(
                f"volumes[{i}] must be [{batch}, {channels}, D, {height}, {width}], as pyramid and volumes[0] are, "
                f"got shape {list(volume.shape)}"
            )


def _validate_position(name: str, position: Tensor, level: Tensor, radius: int) -> None:
    _require_float(name, position)
    if position.shape != level.shape[:3]:
        raise ValueError(
            f"{name} must be [B, H, W] = {list(level.shape[:3])} like pyramid, got {list(position.shape)}"
        )
    _require_device(name, position, level, "pyramid")
    _require_int("radius", radius)
    if not 0 <= radius <= _MOST_RADIUS:
        raise ValueError(f"radius must be from 0 to {_MOST_RADIUS}, got {radius}")


# ---- what PyTorch needs to know of the operators ---------------------------------------------------------------------


def _lookup_in(volumes: int) -> Lookup:
    """The operators for so many volumes, and levels of the pyramid behind them in the list."""
    ops = torch.ops.pyops

    def parts(costs: Sequence[Tensor]) -> tuple[Sequence[Tensor], Sequence[Tensor]]:
        return costs[:volumes], costs[volumes:]

    def accumulate(grad, buffers, costs, *rest):
        return ops.lookup_accumulate(grad, *parts(buffers), *parts(costs), *rest)

    def backward(grad, costs, *rest):
        return ops.lookup_backward(grad, *parts(costs), *rest)

    if not volumes:
        return Lookup(ops.corr1d_lookup, backward, accumulate, _reference.corr1d_lookup)
    return Lookup(
        lambda costs, *rest: ops.geometry_lookup(*parts(costs), *rest),
        backward,
        accumulate,
        lambda costs, *rest: _reference.geometry_lookup(*parts(costs), *rest),
    )


_lookups = [_lookup_in(volumes) for volumes in range(_MOST_LEVELS + 1)]


def _fake_pyramid(pyramid, x, radius):
    return _fake((), pyramid, x, radius)


def _fake(volumes, pyramid, position, radius):
    lines = len(pyramid) + sum(volume.shape[1] for volume in volumes)
    batch, height, width = position.shape
    return pyramid[0].new_empty(batch, lines * (2 * radius + 1), height, width)


def _save_pyramid(ctx, inputs, output):
    _save(ctx, ((), *inputs), output)


def _save(ctx, inputs, output):
    volumes, pyramid, position, ctx.radius = inputs
    ctx.count = len(volumes)
    ctx.save_for_backward(position, *volumes, *pyramid)


def _backward_pyramid(ctx, grad):
    position, *pyramid = ctx.saved_tensors
    return *_lookups[0].gradients(grad, pyramid, position, ctx.radius, *ctx.needs_input_grad[:2]), None


def _backward(ctx, grad):
    position, *costs = ctx.saved_tensors
    need_volumes, need_pyramid, need = ctx.needs_input_grad[:3]
    grads, slope = _lookups[ctx.count].gradients(
        grad, costs, position, ctx.radius, [*need_volumes, *need_pyramid], need
    )
    return grads[: ctx.count], grads[ctx.count :], slope, None


def _fake_backward(grad, volumes, pyramid, position, radius, need_costs, need_position):
    costs = [t.new_empty(t.shape if need_costs else 0) for t in (*volumes, *pyramid)]
    return [*costs, position.new_empty(position.shape if need_position else 0)]


def _save_backward(ctx, inputs, output):
    grad, volumes, pyramid, position, ctx.radius, ctx.need_costs, ctx.need_position = inputs
    ctx.count = len(volumes)
    ctx.save_for_backward(grad, *volumes, *pyramid, position)


def _double_backward(ctx, upstream):
    *costs, position = upstream
    needed = [*(g if ctx.need_costs else None for g in costs), position if ctx.need_position else None]
    grad, grads, slope = _lookups[ctx.count].second_derivative(ctx.saved_tensors, ctx.radius, needed)
    return grad, grads[: ctx.count], grads[ctx.count :], slope, None, None, None


def _fake_accumulate(grad, to_volumes, to_pyramid, volumes, pyramid, position, radius, need_position):
    return position.new_empty(position.shape if need_position else 0)


_op.declare(
    "corr1d_lookup",
    stem="lookup",
    fake=_fake_pyramid,
    setup_context=_save_pyramid,
    backward=_backward_pyramid,
    batched=True,
)
_op.declare(
    "geometry_lookup", stem="lookup", fake=_fake, setup_context=_save, backward=_backward, batched=True
)
_op.declare(
    "lookup_backward",
    stem="lookup",
    fake=_fake_backward,
    setup_context=_save_backward,
    backward=_double_backward,
    batched=True,
)
_op.declare("lookup_accumulate", stem="lookup", fake=_fake_accumulate)
