"""groupwise for GPU users without a compiler: the mathematics of `csrc/groupwise/groupwise.h` in Triton.

A program serves a block of columns of one row of a group. Every gradient is gathered by the program that writes it, so
all results are repeatable to the bit. A view is given as (data, four strides, factors), where factors are None or what
to multiply its features by, [B, groups, H, W]. `A` is the type of arithmetic.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_COLUMNS, _DISPARITIES, _CHANNELS = 128, 16, 8  # of a tile

_LEAST_SQUARE = tl.constexpr(1e-24)


@triton.jit
def place(sizes, tiles, COLUMNS: tl.constexpr):
    """Row of a group, which tile of it, image, group, row of the image, columns; all 64 bits wide."""
    groups, _, height, width = sizes
    across = tl.cdiv(width, COLUMNS)
    program = tl.program_id(0).to(tl.int64)
    column, tile, row = program % across, program // across % tiles, program // across // tiles
    b, g, y = row // height // groups, row // height % groups, row % height
    return row, tile, b, g, y, column * COLUMNS + tl.arange(0, COLUMNS)


@triton.jit
def start_of(view, sizes, b, g, y):
    return view[0] + b * view[1] + g * sizes[1] * view[2] + y * view[3]


@triton.jit
def feature(view, start, row, channel, column, width, mask, A: tl.constexpr):
    inside = mask & (column >= 0) & (column < width)
    value = tl.load(start + channel * view[2] + column * view[4], inside, 0).to(A)
    if view[5] is not None:
        value *= tl.load(view[5] + row * width + column, inside, 0)
    return value


@triton.jit
def lengths_kernel(view, sizes, out, A: tl.constexpr, COLUMNS: tl.constexpr):
    row, _, b, g, y, x = place(sizes, 1, COLUMNS)
    width, start = sizes[3], start_of(view, sizes, b, g, y)
    square = tl.zeros((COLUMNS,), A)
    for c in range(0, sizes[1]):
        value = feature(view, start, row, tl.cast(c, tl.int64), x, width, True, A)
        square += value * value
    nothing = square < _LEAST_SQUARE
    inverse = tl.where(nothing, 0.0, 1.0 / tl.sqrt(tl.where(nothing, 1.0, square)))
    tl.store(out + row * width + x, inverse, x < width)


@triton.jit
def correlate_kernel(
    left,
    right,
    sizes,
    out,
    disparities,
    scale: tl.constexpr,
    A: tl.constexpr,
    COLUMNS: tl.constexpr,
    COUNT: tl.constexpr,
):
    row, tile, b, g, y, x = place(sizes, tl.cdiv(disparities, COUNT), COLUMNS)
    width = sizes[3]
    d = (tile * COUNT + tl.arange(0, COUNT))[:, None]
    x = x[None, :]
    left_start, right_start = start_of(left, sizes, b, g, y), start_of(right, sizes, b, g, y)
    total = tl.zeros((COUNT, COLUMNS), A)
    for c in range(0, sizes[1]):
        channel = tl.cast(c, tl.int64)
        value = feature(left, left_start, row, channel, x, width, True, A)
        total += value * feature(right, right_start, row, channel, x - d, width, x < width, A)
    total = tl.where(x >= d, total * scale, 0.0)  # others have no partner
    target = out + (((b * sizes[0] + g) * disparities + d) * sizes[2] + y) * width + x
    tl.store(target, total.to(out.dtype.element_ty), (d < disparities) & (x < width))


@triton.jit
def gather_kernel(
    grad, other, sizes, out, disparities, scale: tl.constexpr,
    RIGHT: tl.constexpr, A: tl.constexpr, COLUMNS: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """`grad` is (data, five strides), `out` (data, four strides)."""
    row, tile, b, g, y, x = place(sizes, tl.cdiv(sizes[1], COUNT), COLUMNS)
    width = sizes[3]
    channel = (tile * COUNT + tl.arange(0, COUNT))[:, None]
    x, exists = x[None, :], channel < sizes[1]
    start, grad_start = start_of(other, sizes, b, g, y), grad[0] + b * grad[1] + g * grad[2] + y * grad[4]
    total = tl.zeros((COUNT, COLUMNS), A)
    for i in range(0, disparities):
        d = tl.cast(i, tl.int64)
        at = x + d if RIGHT else x  # the column of the result
        partners = (at >= d) & (at < width)
        upstream = tl.load(grad_start + d * grad[3] + at * grad[5], partners, 0).to(A)
        total += upstream * feature(other, start, row, channel, x + d if RIGHT else x - d, width, exists, A)
    target = start_of(out, sizes, b, g, y) + channel * out[2] + x * out[4]
    tl.store(target, (total * scale).to(out[0].dtype.element_ty), exists & (x < width))


@triton.jit
def project_kernel(view, directions, sizes, out, A: tl.constexpr, COLUMNS: tl.constexpr):
    """From the gradient of directions, a view without factors, to that of the vectors."""
    row, _, b, g, y, x = place(sizes, 1, COLUMNS)
    width, mask = sizes[3], x < sizes[3]
    start, source = start_of(view, sizes, b, g, y), start_of(directions, sizes, b, g, y)
    inverse = tl.load(view[5] + row * width + x, mask, 0)
    along = tl.zeros((COLUMNS,), A)
    for c in range(0, sizes[1]):
        channel = tl.cast(c, tl.int64)
        unit = feature(view, start, row, channel, x, width, True, A)
        along += unit * feature(directions, source, row, channel, x, width, True, A)
    target = start_of(out, sizes, b, g, y) + x * out[4]
    for c in range(0, sizes[1]):
        channel = tl.cast(c, tl.int64)
        unit = feature(view, start, row, channel, x, width, True, A)
        slope = feature(directions, source, row, channel, x, width, True, A) - unit * along
        tl.store(target + channel * out[2], (slope * inverse).to(out[0].dtype.element_ty), mask)


class _Job:
    """What all launches of a call have in common."""

    def __init__(self, left: Tensor, right: Tensor, groups: int, normalize: bool) -> None:
        batch, channels, height, width = left.shape
        self.sizes = (groups, channels // groups, height, width)
        self.rows, self.across = batch * groups * height, triton.cdiv(width, _COLUMNS)
        self.scale = 1.0 if normalize else groups / channels
        double = left.dtype == torch.float64
        self.dtype = torch.float64 if double else torch.float32
        self.options = {"A": tl.float64 if double else tl.float32, "COLUMNS": _COLUMNS}
        self.views = [(t, *t.stride(), None) for t in (left, right)]
        if not normalize:
            return
        factors = left.new_empty((2, batch, groups, height, width), dtype=self.dtype)
        for view, inverse in zip(self.views, factors, strict=True):
            lengths_kernel[self.grid(1)](view, self.sizes, inverse, **self.options)
        self.views = [(*view[:-1], inverse) for view, inverse in zip(self.views, factors, strict=True)]

    def grid(self, tiles: int) -> tuple[int]:
        return (self.rows * tiles * self.across,)


def groupwise_correlation(
    left: Tensor, right: Tensor, max_disparity: int, groups: int, normalize: bool
) -> Tensor:
    batch, _, height, width = left.shape
    out = left.new_empty(batch, groups, max_disparity, height, width)
    if out.numel() == 0:
        return out
    with torch.cuda.device_of(left):
        job = _Job(left, right, groups, normalize)
        correlate_kernel[job.grid(triton.cdiv(max_disparity, _DISPARITIES))](
            *job.views, job.sizes, out, max_disparity, job.scale, COUNT=_DISPARITIES, **job.options
        )
    return out


def groupwise_correlation_backward(
    grad: Tensor, left: Tensor, right: Tensor, normalize: bool, need_left: bool, need_right: bool
) -> tuple[Tensor, Tensor]:
    grads = tuple(
        _empty_like(t) if need else t.new_empty(0) for t, need in ((left, need_left), (right, need_right))
    )
    if grad.numel() == 0:
        return grads[0], grads[1]
    with torch.cuda.device_of(left):
        job = _Job(left, right, grad.shape[1], normalize)
        for side, (out, need) in enumerate(zip(grads, (need_left, need_right), strict=True)):
            if not need:
                continue
            to = torch.empty(left.shape, dtype=job.dtype, device=left.device) if normalize else out
            gather_kernel[job.grid(triton.cdiv(job.sizes[1], _CHANNELS))](
                (grad, *grad.stride()), job.views[1 - side], job.sizes, (to, *to.stride()),
                grad.shape[2], job.scale, RIGHT=side == 1, COUNT=_CHANNELS, **job.options,
            )  # fmt: skip
            if normalize:
                project_kernel[job.grid(1)](
                    job.views[side], (to, *to.stride(), None), job.sizes, (out, *out.stride()), **job.options
                )
    return grads[0], grads[1]


def _empty_like(t: Tensor) -> Tensor:
    """The memory format of gradients: channels_last if the view is, and is not contiguous as well."""
    last = not t.is_contiguous() and t.is_contiguous(memory_format=torch.channels_last)
    return torch.empty_like(t, memory_format=torch.channels_last if last else torch.contiguous_format)
