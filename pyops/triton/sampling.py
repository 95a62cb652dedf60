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

from .lut3d import divide

_BLOCK, _WARPS = 256, 16
_HELD = 1024  # vertices that a program can hold beside its tile
_LEVELS = {torch.uint8: 255, torch.uint16: 65535}

# ---- vertices -------------------------------------------------------------------------------------------


@triton.jit
def softmax_terms(logits, step, length, A: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    """Of rows: the greatest logit, the sum of exponentials, and 0, or NaN if any logit is not finite."""
    i, zeros = tl.arange(0, BLOCK).to(tl.int64)[None, :], tl.zeros((ROWS, BLOCK), A)
    greatest, total, taint = zeros - float("inf"), zeros, zeros
    for start in range(0, length, BLOCK):
        value = tl.load(logits + (start + i) * step, start + i < length, -float("inf")).to(A)
        greatest = tl.where(value > greatest, value, greatest)
    greatest = tl.max(greatest, 1)[:, None]
    for start in range(0, length, BLOCK):
        value = tl.load(logits + (start + i) * step, start + i < length, 0).to(A)
        total += tl.where(start + i < length, tl.exp(value - greatest), 0.0)
        taint += 0 * value
    return greatest, tl.sum(total, 1)[:, None], tl.sum(taint, 1)[:, None]


@triton.jit
def vertices_at(i, logits, step, length, terms, before, A: tl.constexpr):
    """Vertices `i` of rows, and the sums of exponentials up to them, which were `before`."""
    greatest, total, taint = terms
    inside = (i > 0) & (i <= length)
    part = tl.exp(tl.load(logits + (i - 1).to(tl.int64) * step, inside, 0).to(A) - greatest)
    part = tl.where(inside, part, 0.0)
    inner = tl.clamp(divide(before + tl.cumsum(part, 1), total), 0.0, 1.0)
    return taint + tl.where(i == 0, 0.0, tl.where(i == length, 1.0, inner)), before + tl.sum(part, 1)[:, None]


@triton.jit
def vertices_kernel(
    logits, strides, out, length, rows, A: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):
    row, i = (
        (tl.program_id(0) * ROWS + tl.arange(0, ROWS).to(tl.int64))[:, None],
        tl.arange(0, BLOCK)[None, :],
    )
    logits, out = logits + tl.minimum(row, rows - 1) * strides[0], out + row * (length + 1)
    terms = softmax_terms(logits, strides[1], length, A, ROWS, BLOCK)
    before = tl.zeros((ROWS, 1), A)
    for start in range(0, length + 1, BLOCK):
        value, before = vertices_at(start + i, logits, strides[1], length, terms, before, A)
        tl.store(out + start + i, value.to(out.dtype.element_ty), (row < rows) & (start + i <= length))


@triton.jit
def vertices_backward_kernel(
    logits, strides, out, length, rows, grad, grad_strides, A: tl.constexpr, ROWS: tl.constexpr, BLOCK: tl.constexpr
):  # fmt: skip
    row, i = (
        (tl.program_id(0) * ROWS + tl.arange(0, ROWS).to(tl.int64))[:, None],
        tl.arange(0, BLOCK)[None, :],
    )
    inside, out = row < rows, out + row * length
    row = tl.minimum(row, rows - 1)
    logits, grad = logits + row * strides[0], grad + row * grad_strides[0]
    greatest, total, _ = softmax_terms(logits, strides[1], length, A, ROWS, BLOCK)
    mean, blocks = tl.zeros((ROWS, 1), A), tl.cdiv(length, BLOCK)
    for second in tl.static_range(2):
        after, products = tl.zeros((ROWS, 1), A), tl.zeros((ROWS, 1), A)
        for block in range(blocks):
            j = (blocks - 1 - block) * BLOCK + i.to(tl.int64)
            g = tl.load(grad + (j + 1) * grad_strides[1], j + 1 < length, 0).to(
                A
            )  # the ends stay where they are
            p = tl.exp(tl.load(logits + j * strides[1], j < length, 0).to(A) - greatest)
            p, later = divide(p, total), after + tl.cumsum(g, 1, reverse=True)
            after += tl.sum(g, 1)[:, None]
            if second:
                tl.store(out + j, (p * (later - mean)).to(out.dtype.element_ty), inside & (j < length))
            products += tl.sum(tl.where(j < length, p * later, 0.0), 1)[:, None]
        mean += products


def interval_vertices(logits: Tensor) -> Tensor:
    out = logits.new_empty(*logits.shape[:-1], logits.shape[-1] + 1)
    return _by_rows(vertices_kernel, out, logits)


def interval_vertices_backward(grad: Tensor, logits: Tensor) -> Tensor:
    return _by_rows(vertices_backward_kernel, logits.new_empty(logits.shape), logits, grad)


def _by_rows(kernel: triton.JITFunction, out: Tensor, *inputs: Tensor) -> Tensor:
    if out.numel():
        logits, *others = (t.reshape(-1, t.shape[-1]) for t in inputs)
        rows, length = logits.shape
        block = min(_HELD, triton.next_power_of_2(length + 1))
        together = max(1, min(_HELD // block, triton.next_power_of_2(rows)))
        arguments = [logits, logits.stride(), out, length, rows]
        for t in others:
            arguments += [t, t.stride()]
        constants = {"A": _arithmetic(logits)[1], "ROWS": together, "BLOCK": block, "enable_fp_fusion": False}
        with torch.cuda.device_of(logits):
            kernel[(triton.cdiv(rows, together),)](*arguments, **constants)
    return out


def _arithmetic(*tensors: Tensor) -> tuple[torch.dtype, tl.dtype]:
    double = any(t.dtype == torch.float64 for t in tensors)
    return (torch.float64, tl.float64) if double else (torch.float32, tl.float32)


# ---- mathematics ----------------------------------------------------------------------------------------


@triton.jit
def position(axis, k, HOW: tl.constexpr, A: tl.constexpr):
    """In pixels, 0 being the centre of the first. Beyond the outermost samples that of the outermost."""
    source, step, count, size = axis
    k = tl.minimum(tl.maximum(k, 0), count - 1)
    x = (tl.load(source + k.to(tl.int64) * step) if source.dtype.is_ptr() else tl.gather(source, k, 0)).to(A)
    p = (x + 1) * 0.5 * (size - 1) if HOW[0] else ((x + 1) * size - 1) * 0.5
    far: tl.constexpr = 1099511627776.0  # 2^40, as good as infinite, with a square that float32 can hold
    return tl.where(p < -far, -far, tl.where(p > far, far, p))


@triton.jit
def cells_of(axis, k, HOW: tl.constexpr, A: tl.constexpr):
    """Begin, end and 1 / width of the cells of samples `k`, the width negative where coordinates fall."""
    here, size = position(axis, k, HOW, A), axis[3]
    if HOW[2]:
        a, b = (position(axis, k - 1, HOW, A) + here) * 0.5, (here + position(axis, k + 1, HOW, A)) * 0.5
        a, b = a + 0 * b, b + 0 * a  # NaN at one end is NaN at both
        width = tl.where(a == b, 1.0, b - a)
        return tl.where(b < a, b, a), tl.where(b < a, a, b), divide(tl.full(width.shape, 1, A), width)
    else:
        if HOW[1]:  # from the outermost pixels on there is no slope
            here = tl.where(here <= 0, -1.0, tl.where(here >= size - 1, size - 1, here))
        return here, here, 1 + 0 * here  # NaN stays


@triton.jit
def pixel_below(v, size):
    return tl.floor(tl.clamp(tl.where(v == v, v, 0.0), -2.0, size)).to(tl.int32)


@triton.jit
def pixels_of(begin, end, size, HOW: tl.constexpr):
    """The first and the last pixel that cells look at. Of points outside there may be none."""
    first, last = pixel_below(begin, size), pixel_below(end, size)
    if HOW[2]:
        first, last = tl.minimum(first, size - 1), tl.maximum(last, 0)
    return tl.maximum(first, 0), tl.minimum(last + 1, size - 1)


@triton.jit
def part_of(begin, end, inverse, s, size, SLOPES: tl.constexpr, HOW: tl.constexpr):
    """The share of cells in segment `s`, the place of its middle, and with SLOPES its shares of d cell and d end."""
    left = s.to(begin.dtype)
    right = left + 1
    if HOW[1]:  # beyond an outermost pixel everything has its value
        before, after = s < 0, s >= size - 1
        left, right = tl.where(before, -float("inf"), left), tl.where(after, float("inf"), right)
    low, high, empty = tl.clamp(begin, left, right), tl.clamp(end, left, right), begin == end
    place, inside = (low + high) * 0.5 - s, ((begin >= left) & (begin < right)).to(begin.dtype)
    share = tl.where(empty, inside, (high - low) * inverse)
    if HOW[1]:
        place = tl.where(before, 1.0, tl.where(after, 0.0, place))
    slope, by_end = share, share
    if SLOPES:
        slope = tl.where(before | after, 0.0, share) if HOW[1] else share
        # Differences to the bounds are exact, while the middle of a narrow cell may round to one of them.
        by_end = slope * tl.where(empty, 0.5, ((low - begin) + (high - begin)) * 0.5 * inverse)
    return share, place, slope, by_end


@triton.jit
def tap_at(taps, n, SLOPES: tl.constexpr, BACK: tl.constexpr, HOW: tl.constexpr):
    """Index of taps `n`, whether they count, weight, and if SLOPES d weight / d begin and d weight / d end."""
    _, last, begin, end, inverse, size = taps
    valid = n <= last
    index = tl.where(valid, n, 0)
    j = index
    if BACK:
        order, cell, j = begin, end + 3 * index, inverse
        index, begin, end, inverse = (
            tl.load(order + index),
            tl.load(cell),
            tl.load(cell + 1),
            tl.load(cell + 2),
        )
    share, place, slope, by_end = part_of(begin, end, inverse, j - 1, size, SLOPES, HOW)
    next_share, next_place, next_slope, next_by_end = part_of(begin, end, inverse, j, size, SLOPES, HOW)
    weight = tl.where(valid, share * place + next_share * (1 - next_place), 0.0)
    by_begin, by_end = slope - next_slope - (by_end - next_by_end), by_end - next_by_end
    if SLOPES:
        by_begin, by_end = tl.where(valid, by_begin, 0.0), tl.where(valid, by_end, 0.0)
    if BACK:
        valid &= weight != 0
    return index.to(tl.int64), valid, weight, by_begin, by_end


@triton.jit
def weighted_sums(
    image, start, mask, x, y, SLOPES: tl.constexpr, BACK: tl.constexpr, HOW: tl.constexpr, A: tl.constexpr,
    TAPS: tl.constexpr
):  # fmt: skip
    """Sums over the taps of planes, and if SLOPES their derivatives by begin and end of x and of y."""
    zero, zeros = tl.zeros(mask.shape, A), tl.zeros((mask.shape[0], TAPS), A)
    total, x_begin, x_end, y_begin, y_end = zero, zero, zero, zero, zero
    columns = (x[0][:, None], x[1][:, None], x[2][:, None], x[3][:, None], x[4][:, None], x[5])
    for t in range(0, tl.max(x[1] - x[0]) + 1, TAPS):
        column, valid, wx, wx_begin, wx_end = tap_at(
            columns, columns[0] + t + tl.arange(0, TAPS)[None, :], SLOPES, BACK, HOW
        )
        line, sums, sums_begin, sums_end = start[:, None] + column * image[4], zeros, zeros, zeros
        for m in range(tl.max(y[1] - y[0]) + 1):
            row, exists, wy, wy_begin, wy_end = tap_at(y, y[0] + m, SLOPES, BACK, HOW)
            live = valid & (mask & exists)[:, None]
            value = tl.load(line + (row * image[3])[:, None], live, 0).to(A)
            if HOW[2] and not BACK:  # what is not finite spoils all cells that look at it
                value = tl.where(tl.abs(value) < float("inf"), value, float("nan"))
            sums += wy[:, None] * value
            if SLOPES:
                sums_begin += wy_begin[:, None] * value
                sums_end += wy_end[:, None] * value
        total += tl.sum(wx * sums, 1)
        if SLOPES:
            x_begin += tl.sum(wx_begin * sums, 1)
            x_end += tl.sum(wx_end * sums, 1)
            y_begin += tl.sum(wx * sums_begin, 1)
            y_end += tl.sum(wx * sums_end, 1)
    return total, x_begin, x_end, y_begin, y_end


# ---- kernels --------------------------------------------------------------------------------------------


@triton.jit
def tile(size, channels, planes, TILE: tl.constexpr):
    """Image, channel, row and column of this program's elements, and which there are. `planes` follow each other."""
    e, program = tl.arange(0, TILE[0] * TILE[1] * TILE[2]), tl.program_id(0)
    high, wide, deep = tl.cdiv(size[0], TILE[0]), tl.cdiv(size[1], TILE[1]), tl.cdiv(planes, TILE[2])
    column = program % wide * TILE[1] + e // TILE[2] % TILE[1]
    row = program // wide % high * TILE[0] + e // (TILE[2] * TILE[1])
    plane = program // (wide * high) % deep * TILE[2] + e % TILE[2]
    mask = (row < size[0]) & (column < size[1]) & (plane < planes)
    plane = tl.minimum(plane, planes - 1)
    b = program // (wide * high * deep) + plane // channels
    return b.to(tl.int64), plane % channels, row, column, mask


@triton.jit
def plane_of(image, b, channel):
    return image[0] + b * image[1] + channel.to(tl.int64) * image[2]


@triton.jit
def axis_of(x, b, count, size, HELD: tl.constexpr, A: tl.constexpr):
    """From coordinates `x`, or from logits of one image if HELD is no 0 but a power of two above their number."""
    if HELD:
        start = x[0] + tl.max(b) * x[1]
        terms = softmax_terms(start, x[2], count - 1, A, 1, HELD)
        vertices, _ = vertices_at(tl.arange(0, HELD)[None, :], start, x[2], count - 1, terms, 0, A)
        return tl.reshape(2 * vertices - 1, (HELD,)), 0, count, size
    else:
        return x[0] + b * x[1], x[2], count, size


@triton.jit
def taps_of(x, b, k, count, size, HELD: tl.constexpr, HOW: tl.constexpr, A: tl.constexpr):
    begin, end, inverse = cells_of(axis_of(x, b, count, size, HELD, A), k, HOW, A)
    first, last = pixels_of(begin, end, size, HOW)
    return (first, last, begin, end, tl.abs(inverse), size), inverse < 0


@triton.jit
def taps_back(touch, b, j, count, size):
    order, cells, ranges = touch
    at = ranges + 2 * (b * size + tl.minimum(j, size - 1))
    return tl.load(at), tl.load(at + 1), order + b * count, cells + 3 * b * count, j, size


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
    fused = max(x.shape[1], y.shape[1]) < _HELD
    if not fused:
        x, y = _vertices(image, x, y)
    return _forward(image, x, y, (align_corners, border, antialias), as_float, fused)


def _forward(image: Tensor, x: Tensor, y: Tensor, how: tuple, as_float: bool, fused: bool) -> Tensor:
    rows, columns = y.shape[1] + fused, x.shape[1] + fused
    out = _empty(image, (*image.shape[:2], rows, columns), torch.float32 if as_float else image.dtype)
    X, Y = (triton.next_power_of_2(count) if fused else 0 for count in (columns, rows))
    constants = dict(X=X, Y=Y, LEVELS=_LEVELS.get(image.dtype, 0), BACK=False)
    _gather(image, out, _view(x), _view(y), how, _arithmetic(image, x, y)[1], constants)
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
    dtype, _ = _arithmetic(image, *logits)
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
        dtype, A = _arithmetic(image, x, y)
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
    dtype, A = _arithmetic(image, x, y)
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
