"""Sampling on separable grids: coordinates along x and along y, given or made by a network, and back again."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .. import _op
from .. import reference as _reference
from ._validate import _require_device, _require_float, _require_pixels

_PADDING_MODES = ("zeros", "border")


def interval_vertices(logits: Tensor) -> Tensor:
    """Divides [0, 1] into intervals as long as the softmax of ``logits``: the ends of all of them, in order.

    Args:
        logits: ``[..., K - 1]``, K at least 2; any float dtype. That they are finite is checked for CPU tensors in
            eager mode; elsewhere a NaN or an infinity among them makes all vertices of its row NaN.

    Returns:
        ``[..., K]``, rising from 0 to exactly 1; dtype of ``logits``. Arithmetic is float32, or float64 for float64.
        Differentiable (twice); gradients are bitwise repeatable.

    Raises:
        TypeError: ``logits`` is no tensor or not floating point.
        ValueError: ``logits`` has no last axis, an empty one, or values that are not finite.

    Example:
        >>> interval_vertices(torch.zeros(4))
        tensor([0.0000, 0.2500, 0.5000, 0.7500, 1.0000])

    Cost:
        Reads and writes each number once; one exponential each.

    Source:
        Yang et al., AdaInt: Learning Adaptive Intervals for 3D Lookup Tables, CVPR 2022, section 3.2; Li et al.,
        Real-Time Exposure Correction via Collaborative Transformations and Adaptive Sampling, CVPR 2024, section 3.4.
    """
    _require_float("logits", logits)
    if logits.dim() == 0 or logits.shape[-1] == 0:
        raise ValueError(f"logits must be [..., K - 1] with K at least 2, got shape {list(logits.shape)}")
    _require_finite("logits", logits)
    return torch.ops.pyops.interval_vertices(logits)


def separable_grid_sample(
    image: Tensor,
    x: Tensor,
    y: Tensor,
    *,
    align_corners: bool = False,
    padding_mode: str = "zeros",
    antialias: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Samples an image at every pair of a column of ``x`` and a row of ``y``: `F.grid_sample` on the product grid.

    Convention:
        Coordinates run from -1 to 1 over the image as in ``F.grid_sample``, need no order, and may lie outside. Without
        ``antialias`` a sample is the bilinear interpolation at its place. With it, it is the mean of the interpolated
        image over the cell around its place, which reaches half-way to its neighbours and, at either end of ``x`` or
        ``y``, no farther than the place itself; nothing of a shrunken image is skipped. A NaN coordinate gives NaN
        samples (0 in an integer image). Integer images scale by 255 or 65535 and round to nearest, ties to even.

    Args:
        image: ``[B, C, H, W]``; float32, float16, bfloat16, float64 (CPU), uint8 or uint16; any strides. Contiguous and
            channels_last images are read without a copy.
        x: ``[B, Kx]``, coordinates of the columns of the result; any float dtype.
        y: ``[B, Ky]``, coordinates of its rows.
        align_corners: whether -1 and 1 are the centres of the outermost pixels, not the edges of the image.
        padding_mode: what lies outside: ``"zeros"`` or ``"border"``, the nearest pixel.
        antialias: means over cells instead of samples at points.
        dtype: of the result: None for that of ``image``, or ``torch.float32``, which spares the samples of an integer
            or half image their rounding and gives the coordinates gradients.

    Returns:
        ``[B, C, Ky, Kx]``, channels_last if ``image`` is, else contiguous. Arithmetic is float32, or float64 if any
        input is. Differentiable (twice) with respect to ``image``, ``x`` and ``y``; gradients are bitwise repeatable.
        Without ``antialias``, ``padding_mode="border"`` gives coordinates beyond the outermost pixels no gradient.

    Raises:
        TypeError: an argument is no tensor or has an unsupported dtype.
        ValueError: a shape, size, device or padding mode is wrong.

    Example:
        >>> image = torch.rand(1, 3, 64, 96)
        >>> x, y = torch.linspace(-1, 1, 12)[None], torch.linspace(-1, 1, 8)[None]
        >>> separable_grid_sample(image, x, y).shape
        torch.Size([1, 3, 8, 12])
        >>> grid = torch.stack(torch.meshgrid(x[0], y[0], indexing="xy"), -1)[None]
        >>> theirs = torch.nn.functional.grid_sample(image, grid, align_corners=False)
        >>> torch.allclose(separable_grid_sample(image, x, y), theirs, atol=1e-5)
        True

    Cost:
        Points read four pixels a sample, cells each pixel about once; the gradient to the image is written once.

    Source:
        Jaderberg et al., Spatial Transformer Networks, NeurIPS 2015, section 3.3 (bilinear sampling); Li et al.,
        CVPR 2024, section 3.4 (separable grids). The mean over a cell is the exact integral of the interpolant.
    """
    _validate(image, padding_mode, dtype)
    _validate_axis("x", "Kx", x, image, 0)
    _validate_axis("y", "Ky", y, image, 0)
    border, as_float = padding_mode == "border", dtype is not None
    return torch.ops.pyops.separable_grid_sample(image, x, y, align_corners, border, antialias, as_float)


def adaptive_grid_sample(
    image: Tensor,
    x_logits: Tensor,
    y_logits: Tensor,
    *,
    align_corners: bool = False,
    padding_mode: str = "zeros",
    antialias: bool = False,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Samples an image densely where logits say so: `separable_grid_sample` at ``2 * interval_vertices(logits) - 1``.

    Args:
        image: ``[B, C, H, W]``, as `separable_grid_sample` takes it.
        x_logits: ``[B, Kx - 1]``, Kx at least 2; any float dtype. That they are finite is checked for CPU tensors in
            eager mode; elsewhere a NaN or an infinity among them makes all samples of its image NaN.
        y_logits: ``[B, Ky - 1]``, likewise.
        align_corners, padding_mode, antialias, dtype: as in `separable_grid_sample`.

    Returns:
        ``[B, C, Ky, Kx]``, channels_last if ``image`` is, else contiguous. Differentiable (twice) with respect to
        ``image``, ``x_logits`` and ``y_logits``; gradients are bitwise repeatable.

    Raises:
        TypeError: an argument is no tensor or has an unsupported dtype.
        ValueError: a shape, size, device or padding mode is wrong, or logits are not finite.

    Example:
        >>> image, even = torch.rand(1, 3, 64, 96), torch.zeros(1, 31)
        >>> small = adaptive_grid_sample(image, even, even, antialias=True)
        >>> small.shape
        torch.Size([1, 3, 32, 32])

    Cost:
        That of `separable_grid_sample`; vertices and coordinates are never stored as tensors.

    Source:
        Li et al., Real-Time Exposure Correction via Collaborative Transformations and Adaptive Sampling, CVPR 2024,
        section 3.4.
    """
    _validate(image, padding_mode, dtype)
    for name, count, logits in (("x_logits", "Kx", x_logits), ("y_logits", "Ky", y_logits)):
        _validate_axis(name, count, logits, image, 1)
        _require_finite(name, logits)
    border, as_float = padding_mode == "border", dtype is not None
    return torch.ops.pyops.adaptive_grid_sample(
        image, x_logits, y_logits, align_corners, border, antialias, as_float
    )


def inverse_vertices(vertices: Tensor, size: int, *, align_corners: bool = False) -> Tensor:
    """Where to sample a warped image so that it is put back: the inverse of the piecewise linear map through vertices.

    Args:
        vertices: ``[..., K]``, K at least 2, rising from -1 to 1: the coordinates the warped image was sampled at, such
            as ``2 * interval_vertices(logits) - 1``; any float dtype. The order is checked for CPU tensors in eager
            mode; elsewhere a wrong order gives wrong coordinates.
        size: how many pixels the axis had before, and shall have again.
        align_corners: the convention of the coordinates, before and after.

    Returns:
        ``[..., size]``, coordinates in the warped image; dtype of ``vertices``. Differentiable.

    Raises:
        TypeError: ``vertices`` is no tensor or not floating point.
        ValueError: ``vertices`` has fewer than two elements or is not strictly increasing, or ``size`` is below 1.

    Example:
        >>> even = torch.linspace(-1, 1, 5)
        >>> inverse_vertices(even, 3, align_corners=True)
        tensor([-1.,  0.,  1.])

    Cost:
        ``size`` binary searches among K vertices, in PyTorch.

    Source:
        Thavamani et al., Learning to Zoom and Unzoom, CVPR 2023 (inverses of warps that are linear piece by piece).
    """
    _require_float("vertices", vertices)
    if vertices.dim() == 0 or vertices.shape[-1] < 2:
        raise ValueError(f"vertices must be [..., K] with K at least 2, got shape {list(vertices.shape)}")
    if size < 1:
        raise ValueError(f"size must be at least 1, got {size}")
    if _op.values_visible(vertices) and not bool((vertices.detach().diff(dim=-1) > 0).all()):
        raise ValueError("vertices must be strictly increasing along the last axis")
    return _reference.inverse_vertices(vertices, size, align_corners=align_corners)


# ---- validation ------------------------------------------------------------------------------------------------------


def _require_finite(name: str, logits: Tensor) -> None:
    if _op.values_visible(logits) and not bool(logits.detach().isfinite().all()):
        raise ValueError(f"{name} must be finite, got NaN or an infinity")


def _validate(image: Tensor, padding_mode: str, dtype: torch.dtype | None) -> None:
    _require_pixels("image", image)
    if image.dim() != 4 or 0 in image.shape[1:]:
        raise ValueError(f"image must be [B, C, H, W] with C, H and W above 0, got shape {list(image.shape)}")
    if padding_mode not in _PADDING_MODES:
        raise ValueError(f"padding_mode must be 'zeros' or 'border', got {padding_mode!r}")
    if dtype not in (None, torch.float32):
        raise TypeError(f"dtype must be None or torch.float32, got {dtype}")


def _validate_axis(name: str, count: str, t: Tensor, image: Tensor, fewer: int) -> None:
    _require_float(name, t)
    batch = image.shape[0]
    if t.dim() != 2 or t.shape[0] != batch or t.shape[1] < fewer:
        shape = f"[B={batch}, {count} - 1] with {count} at least 2" if fewer else f"[B={batch}, {count}]"
        raise ValueError(f"{name} must be {shape} like image, got shape {list(t.shape)}")
    _require_device(name, t, image, "image")


# ---- what PyTorch needs to know of the operators ---------------------------------------------------------------------


def _fake_vertices(logits):
    return logits.new_empty((*logits.shape[:-1], logits.shape[-1] + 1))


def _fake_vertices_backward(grad, logits):
    return logits.new_empty(logits.shape)


def _backward_of_vertices(ctx, grad):
    return torch.ops.pyops.interval_vertices_backward(grad, *ctx.saved_tensors)


def _double_backward_of_vertices(ctx, upstream):
    return tuple(_op.second_derivative(_reference.interval_vertices, ctx.saved_tensors, [upstream]))


def _save_all(ctx, inputs, output):
    ctx.save_for_backward(*inputs)


def _vmap_all(op, info, in_dims, *tensors):
    return op(*(_op.fold(t, dim, info.batch_size) for t, dim in zip(tensors, in_dims, strict=True))), 0


def _fake_samples(extra, image, x, y, align_corners, border, antialias, as_float):
    layout = torch.channels_last if _op.is_channels_last(image) else torch.contiguous_format
    shape = (*image.shape[:2], y.shape[1] + extra, x.shape[1] + extra)
    dtype = torch.float32 if as_float else image.dtype
    return torch.empty(shape, dtype=dtype, device=image.device, memory_format=layout)


def _fake_gradients(grad, image, x, y, align_corners, border, antialias, need_image, need_x, need_y):
    return (
        _op.empty_like_image(image) if need_image else image.new_empty(0),
        x.new_empty(x.shape if need_x else 0),
        y.new_empty(y.shape if need_y else 0),
    )


def _save_samples(ctx, inputs, output):
    *tensors, align_corners, border, antialias, _as_float = inputs
    ctx.flags = (align_corners, border, antialias)
    ctx.save_for_backward(*tensors)


def _backward_of_samples(op, ctx, grad):
    need = ctx.needs_input_grad[:3]
    grads = op(grad, *ctx.saved_tensors, *ctx.flags, *need)
    return *(g if n else None for g, n in zip(grads, need, strict=True)), None, None, None, None


def _save_gradients(ctx, inputs, output):
    *tensors, align_corners, border, antialias, need_image, need_x, need_y = inputs
    ctx.flags, ctx.need = (align_corners, border, antialias), (need_image, need_x, need_y)
    ctx.save_for_backward(*tensors)


def _double_backward_of_samples(reference, ctx, *upstream):
    align_corners, border, antialias = ctx.flags
    grad, image = ctx.saved_tensors[:2]
    definition = partial(
        reference,
        align_corners=align_corners,
        padding_mode=_PADDING_MODES[int(border)],
        antialias=antialias,
        dtype=None if grad.dtype == image.dtype else grad.dtype,
    )
    needed = [g if n else None for g, n in zip(upstream, ctx.need, strict=True)]
    return *_op.second_derivative(definition, ctx.saved_tensors, needed), *(None,) * 6


_declare = partial(_op.declare, stem="sampling")
_declare(
    "interval_vertices",
    fake=_fake_vertices,
    vmap=partial(_vmap_all, torch.ops.pyops.interval_vertices),
    setup_context=_save_all,
    backward=_backward_of_vertices,
)
_declare(
    "interval_vertices_backward",
    fake=_fake_vertices_backward,
    vmap=partial(_vmap_all, torch.ops.pyops.interval_vertices_backward),
    setup_context=_save_all,
    backward=_double_backward_of_vertices,
)


def _declare_sampling(name: str, extra: int, definition: Callable[..., Tensor]) -> None:
    backward = getattr(torch.ops.pyops, f"{name}_backward")
    _declare(
        name,
        fake=partial(_fake_samples, extra),
        batched=True,
        setup_context=_save_samples,
        backward=partial(_backward_of_samples, backward),
    )
    _declare(
        f"{name}_backward",
        fake=_fake_gradients,
        batched=True,
        setup_context=_save_gradients,
        backward=partial(_double_backward_of_samples, definition),
    )


_declare_sampling("separable_grid_sample", 0, _reference.separable_grid_sample)
_declare_sampling("adaptive_grid_sample", 1, _reference.adaptive_grid_sample)
