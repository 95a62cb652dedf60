"""Taps of samples and of pixels along an axis, for `sampling`, whose tuples these are."""

from __future__ import annotations

import triton
import triton.language as tl

from ._vertices import softmax_terms, vertices_at
from .lut3d import divide


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
