"""sampling for GPU users without a compiler: the mathematics of `csrc/sampling/sampling.h` in Triton.

Along an axis a sample is the mean of the line through the pixels over a cell; that of a point is empty. Segment s of
the line reaches from pixel s to pixel s + 1. So a result is a sum over taps of weights of rows and of columns: those of
a sample are pixels, and those of a pixel's gradient are the samples that look at it, in the order of coordinates.
Gradients of coordinates are sums of fixed order.

Tuples: `HOW` is (align_corners, border, antialias), an `image` (data, four strides), an `axis` (coordinates, their
stride, their count, count of pixels), `taps` (first, last, three more, count of pixels). `A` is the type of arithmetic.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
import triton
import triton.language as tl
from torch import Tensor

from ._taps import plane_of, taps_back, taps_of, tile, weighted_sums
from ._vertices import HELD, arithmetic, interval_vertices, interval_vertices_backward
from .lut3d import divide

_BLOCK, _WARPS = 256, 16
_LEVELS = {torch.uint8: 255, torch.uint16: 65535}


@triton.jit
def gather_kernel(
    source, size, out, out_size, channels, planes, x, y, X: tl.constexpr, Y: tl.constexpr, LEVELS: tl.constexpr,
    BACK: tl.constexpr, HOW: tl.constexpr, A: tl.constexpr, TILE: tl.constexpr, TAPS: tl.constexpr
):  # fmt: skip
    b, channel, row, column, mask = tile(out_size, channels, planes, TILE)
    if BACK:
        x_taps = taps_back(x, b, column, size[1], out_size[1])
        y_taps = taps_back(y, b, row, size[0], out_size[0])
    else:
        x_taps, _ = taps_of(x, b, column, out_size[1], size[1], X, HOW, A)
        y_taps, _ = taps_of(y, b, row, out_size[0], size[0], Y, HOW, A)
    start = plane_of(source, b, channel)
    value, _, _, _, _ = weighted_sums(source, start, mask, x_taps, y_taps, False, BACK, HOW, A, TAPS)
    dtype: tl.constexpr = out[0].dtype.element_ty
    if dtype.is_int():
        magic: tl.constexpr = 12582912.0 if A == tl.float32 else 6755399441055744.0  # 1.5 * 2^mantissa
        value = tl.where(value > 0, tl.where(value < LEVELS, value, LEVELS), 0.0)  # NaN becomes 0
        value = ((value + magic) - magic).to(tl.int32)  # adding `magic` rounds half to even
    elif LEVELS:
        value = divide(value, tl.full(value.shape, LEVELS, A))
    target = plane_of(out, b, channel) + row.to(tl.int64) * out[3] + column.to(tl.int64) * out[4]
    tl.store(target, value.to(dtype), mask)


@triton.jit
def touch_kernel(x, touch, count, size, HOW: tl.constexpr, A: tl.constexpr, BLOCK: tl.constexpr):
    """Cells in order; for each pixel the first place there and the last of one that looks at it."""
    order, cells, ranges = touch
    blocks, lanes = tl.cdiv(size, BLOCK), tl.arange(0, BLOCK)
    b, j = (tl.program_id(0) // blocks).to(tl.int64), tl.program_id(0) % blocks * BLOCK + lanes
    low, high = tl.full((BLOCK,), count, tl.int32), tl.full((BLOCK,), -1, tl.int32)
    for start in range(0, count, BLOCK):
        n = start + lanes
        taps, _ = taps_of(x, b, tl.load(order + b * count + n, n < count, 0), count, size, 0, HOW, A)
        target, writes = cells + 3 * (b * count + n), (n < count) & (tl.program_id(0) % blocks == 0)
        tl.store(target, taps[2], writes)
        tl.store(target + 1, taps[3], writes)
        tl.store(target + 2, taps[4], writes)
        sees = (taps[0][None, :] <= j[:, None]) & (j[:, None] <= taps[1][None, :]) & (n < count)[None, :]
        low = tl.minimum(low, tl.min(tl.where(sees, n[None, :], count), 1))
        high = tl.maximum(high, tl.max(tl.where(sees, n[None, :], -1), 1))
    tl.store(ranges + 2 * (b * size + j), low, j < size)
    tl.store(ranges + 2 * (b * size + j) + 1, high, j < size)


@triton.jit
def store_sums(
    sums, falls, begin, end, b, batch, block, start, count, AXIS: tl.constexpr, TILE: tl.constexpr
):
    """Sums over all of a tile but the axis, for the earlier and the later edge of each sample."""
    earlier = tl.reshape(tl.where(falls, end, begin), (TILE[0], TILE[1], TILE[2]))
    later = tl.reshape(tl.where(falls, begin, end), (TILE[0], TILE[1], TILE[2]))
    k = start * TILE[AXIS] + tl.arange(0, TILE[AXIS])
    target = sums + ((block * batch + b) * 2 * count + k)
    tl.store(target, tl.sum(tl.sum(earlier, 2), 1 - AXIS), k < count)
    tl.store(target + count, tl.sum(tl.sum(later, 2), 1 - AXIS), k < count)


@triton.jit
def coordinates_kernel(
    grad, grad_size, image, size, channels, batch, x, y, x_sums, y_sums,
    HOW: tl.constexpr, A: tl.constexpr, TILE: tl.constexpr, TAPS: tl.constexpr
):  # fmt: skip
    b, lane, row, column, inside = tile(grad_size, TILE[2], TILE[2], TILE)
    x_taps, x_falls = taps_of(x, b, column, grad_size[1], size[1], 0, HOW, A)
    y_taps, y_falls = taps_of(y, b, row, grad_size[0], size[0], 0, HOW, A)
    zero = tl.zeros((TILE[0] * TILE[1] * TILE[2],), A)
    x_begin, x_end, y_begin, y_end = zero, zero, zero, zero
    for start in range(0, channels, TILE[2]):
        mask, channel = inside & (start + lane < channels), tl.minimum(start + lane, channels - 1)
        value, by_x_begin, by_x_end, by_y_begin, by_y_end = weighted_sums(
            image, plane_of(image, b, channel), mask, x_taps, y_taps, True, False, HOW, A, TAPS
        )
        at = plane_of(grad, b, channel) + row.to(tl.int64) * grad[3] + column.to(tl.int64) * grad[4]
        g = tl.load(at, mask, 0).to(A)
        if HOW[2]:
            mask &= value == value  # like the definition, where NaN is no sum
        x_begin += tl.where(mask, g * by_x_begin, 0.0)
        x_end += tl.where(mask, g * by_x_end, 0.0)
        y_begin += tl.where(mask, g * by_y_begin, 0.0)
        y_end += tl.where(mask, g * by_y_end, 0.0)
    high, wide = tl.cdiv(grad_size[0], TILE[0]), tl.cdiv(grad_size[1], TILE[1])
    i, j, first = tl.program_id(0) // wide % high, tl.program_id(0) % wide, tl.program_id(0) // (wide * high)
    if x_sums is not None:
        store_sums(x_sums, x_falls, x_begin, x_end, first, batch, i, j, grad_size[1], 1, TILE)
    if y_sums is not None:
        store_sums(y_sums, y_falls, y_begin, y_end, first, batch, j, i, grad_size[0], 0, TILE)


# ---- operators ------------------------------------------------------------------------------------------


def separable_grid_sample(
    image: Tensor, x: Tensor, y: Tensor, align_corners: bool, border: bool, antialias: bool, as_float: bool
) -> Tensor:
    return _forward(image, x, y, (align_corners, border, antialias), as_float, fused=False)


def adaptive_grid_sample(
    image: Tensor, x: Tensor, y: Tensor, align_corners: bool, border: bool, antialias: bool, as_float: bool
) -> Tensor:
    fused = max(x.shape[1], y.shape[1]) < HELD
    if not fused:
        x, y = _vertices(image, x, y)
    return _forward(image, x, y, (align_corners, border, antialias), as_float, fused)


def _forward(image: Tensor, x: Tensor, y: Tensor, how: tuple, as_float: bool, fused: bool) -> Tensor:
    rows, columns = y.shape[1] + fused, x.shape[1] + fused
    out = _empty(image, (*image.shape[:2], rows, columns), torch.float32 if as_float else image.dtype)
    X, Y = (triton.next_power_of_2(count) if fused else 0 for count in (columns, rows))
    constants = dict(X=X, Y=Y, LEVELS=_LEVELS.get(image.dtype, 0), BACK=False)
    _gather(image, out, _view(x), _view(y), how, arithmetic(image, x, y)[1], constants)
    return out


def _gather(
    source: Tensor, out: Tensor, x: tuple, y: tuple, how: tuple, A: tl.dtype, constants: dict
) -> None:
    if out.numel():
        planes = out.shape[1] * (1 if constants["X"] else len(out))
        options = _tiles(out, source.shape[3], how[2] or constants["BACK"])
        steps = zip((*out.shape[2:], planes), options["TILE"], strict=True)
        programs = (
            out.shape[0] * out.shape[1] // planes * math.prod(triton.cdiv(n, step) for n, step in steps)
        )
        with torch.cuda.device_of(out):
            gather_kernel[(programs,)](
                _view(source), source.shape[2:], _view(out), out.shape[2:], out.shape[1], planes, x, y,
                HOW=how, A=A, **constants, **options,
            )  # fmt: skip


def _vertices(image: Tensor, *logits: Tensor) -> list[Tensor]:
    dtype, _ = arithmetic(image, *logits)
    return [2 * interval_vertices(t.to(dtype)) - 1 for t in logits]


def _empty(image: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """channels_last if the image is, and is not contiguous as well."""
    channels_last = not image.is_contiguous() and image.is_contiguous(memory_format=torch.channels_last)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    return torch.empty(shape, dtype=dtype, device=image.device, memory_format=memory_format)


def _view(t: Tensor) -> tuple:
    return (t, *t.stride())


def _tiles(t: Tensor, width: int, many: bool) -> dict:
    """Rows, columns and planes of a tile of `t`, the taps it takes at once from rows of `width`, and options."""
    lanes = min(32, triton.next_power_of_2(t.shape[1])) if t.stride(1) == 1 else 1
    columns = min(64, _BLOCK // lanes, triton.next_power_of_2(t.shape[3]))
    rows = min(_BLOCK // lanes // columns, triton.next_power_of_2(t.shape[2]))
    tile, taps = (rows, columns, _BLOCK // rows // columns), 2 if not many else 4 if width < t.shape[3] else 8
    # fused multiply-adds would move positions, and so at pixels choose other segments than the definition does
    return {"TILE": tile, "TAPS": taps, "num_warps": _WARPS, "enable_fp_fusion": False}


def separable_grid_sample_backward(
    grad: Tensor, image: Tensor, x: Tensor, y: Tensor, align_corners: bool, border: bool, antialias: bool,
    need_image: bool, need_x: bool, need_y: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    x, y = x.contiguous(), y.contiguous()
    grad_image = _empty(image, image.shape, image.dtype) if need_image else image.new_empty(0)
    grads = [t.new_zeros(t.shape if need else 0) for t, need in ((x, need_x), (y, need_y))]
    if grad.numel() == 0:
        return grad_image.zero_(), grads[0], grads[1]
    how = (align_corners, border, antialias)
    if need_image:
        dtype, A = arithmetic(image, x, y)
        columns, rows = (_touch(t, n, how, dtype, A) for t, n in ((x, image.shape[3]), (y, image.shape[2])))
        _gather(grad, grad_image, columns, rows, how, A, dict(X=0, Y=0, LEVELS=0, BACK=True))
    if need_x or need_y:
        _coordinate_gradients(grad, image, x, y, how, grads)
    return grad_image, grads[0], grads[1]


def _touch(
    x: Tensor, size: int, how: tuple, dtype: torch.dtype, A: tl.dtype
) -> tuple[Tensor, Tensor, Tensor]:
    order = x.argsort(dim=1, stable=True)
    cells = x.new_empty(*x.shape, 3, dtype=dtype)
    touch = (order, cells, order.new_empty(len(x), size, 2, dtype=torch.int32))
    with torch.cuda.device_of(x):
        touch_kernel[(len(x) * triton.cdiv(size, 64),)](
            _view(x), touch, x.shape[1], size, HOW=how, A=A, BLOCK=64, enable_fp_fusion=False
        )
    return touch


def _coordinate_gradients(
    grad: Tensor, image: Tensor, x: Tensor, y: Tensor, how: tuple, grads: list[Tensor]
) -> None:
    dtype, A = arithmetic(image, x, y)
    options = _tiles(grad, image.shape[3], how[2])
    blocks = [triton.cdiv(n, step) for n, step in zip(grad.shape[2:], options["TILE"], strict=False)]
    sums = [
        image.new_empty(n, len(image), 2, *t.shape[1:], dtype=dtype) if t.numel() else None
        for n, t in zip(blocks, grads, strict=True)
    ]
    with torch.cuda.device_of(image):
        coordinates_kernel[(len(image) * math.prod(blocks),)](
            _view(grad), grad.shape[2:], _view(image), image.shape[2:], image.shape[1], len(image),
            _view(x), _view(y), *sums, HOW=how, A=A, **options,
        )  # fmt: skip
    for target, parts, t, size in zip(grads, sums, (x, y), (image.shape[3], image.shape[2]), strict=True):
        if parts is not None:
            earlier, later = parts.sum(0).unbind(1)
            if how[2]:  # inner edges are midpoints
                edges = F.pad(earlier, (0, 1)) + F.pad(later, (1, 0))
                edges[:, 1:-1] *= 0.5
                earlier, later = edges[:, :-1], edges[:, 1:]
            scale = (size - how[0]) / 2 / _LEVELS.get(image.dtype, 1)
            target.copy_(torch.where(t.abs() < 2.0**41 / size, (earlier + later) * scale, 0.0))


def adaptive_grid_sample_backward(
    grad: Tensor, image: Tensor, x_logits: Tensor, y_logits: Tensor, align_corners: bool, border: bool,
    antialias: bool, need_image: bool, need_x: bool, need_y: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    x, y = _vertices(image, x_logits, y_logits)
    how, needs = (align_corners, border, antialias), (need_image, need_x, need_y)
    grad_image, *grads = separable_grid_sample_backward(grad, image, x, y, *how, *needs)
    for i, logits in enumerate((x_logits, y_logits)):
        if needs[i + 1]:
            grads[i] = interval_vertices_backward(2 * grads[i], logits.to(x.dtype))
        grads[i] = grads[i].to(logits.dtype)
    return grad_image, grads[0], grads[1]
