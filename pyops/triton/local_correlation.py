"""local_correlation for GPU users without a compiler: the mathematics of `csrc/local_correlation/local_correlation.h`.

A program serves a block of columns of one row of an image. Every gradient is gathered by the program that writes it, so
all results are repeatable to the bit. An image is given as (data, four strides). `A` is the type of arithmetic.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_COLUMNS, _DISPLACEMENTS, _CHANNELS = 64, 16, 16  # of a tile


@triton.jit
def place(sizes, tiles, COLUMNS: tl.constexpr):
    """Which tile of a row, image, row of the image, columns; all 64 bits wide."""
    _, height, width = sizes
    across = tl.cdiv(width, COLUMNS)
    program = tl.program_id(0).to(tl.int64)
    column, tile, row = program % across, program // across % tiles, program // across // tiles
    return tile, row // height, row % height, column * COLUMNS + tl.arange(0, COLUMNS)


@triton.jit
def correlate_kernel(
    first,
    second,
    sizes,
    out,
    radius,
    dilation,
    A: tl.constexpr,
    COLUMNS: tl.constexpr,
    COUNT: tl.constexpr,
):
    side = 2 * tl.cast(radius, tl.int64) + 1
    tile, b, y, x = place(sizes, tl.cdiv(side * side, COUNT), COLUMNS)
    _, height, width = sizes
    x = x[None, :]
    plane = (tile * COUNT + tl.arange(0, COUNT))[:, None]
    row, column = y + dilation * (plane // side - radius), x + dilation * (plane % side - radius)
    mask = (plane < side * side) & (x < width)
    partners = mask & (row >= 0) & (row < height) & (column >= 0) & (column < width)
    own = first[0] + b * first[1] + y * first[3] + x * first[4]
    other = second[0] + b * second[1] + row * second[3] + column * second[4]
    total = tl.zeros((COUNT, COLUMNS), A)
    for c in range(0, sizes[0], 64):
        part = tl.zeros((COUNT, COLUMNS), A)  # so that rounding stays small
        for i in range(c, tl.minimum(c + 64, sizes[0])):
            channel = tl.cast(i, tl.int64)
            value = tl.load(own + channel * first[2], x < width, 0).to(A)
            part += value * tl.load(other + channel * second[2], partners, 0).to(A)
        total += part
    total = tl.where(partners, total, 0.0)
    target = out + ((b * side * side + plane) * height + y) * width + x
    tl.store(target, total.to(out.dtype.element_ty), mask)


@triton.jit
def gather_kernel(
    grad, other, sizes, out, radius, dilation,
    SECOND: tl.constexpr, A: tl.constexpr, COLUMNS: tl.constexpr, COUNT: tl.constexpr,
):  # fmt: skip
    """The second image looks the other way, and reads the gradients of its partners."""
    channels, height, width = sizes
    tile, b, y, x = place(sizes, tl.cdiv(channels, COUNT), COLUMNS)
    side = 2 * tl.cast(radius, tl.int64) + 1
    channel = (tile * COUNT + tl.arange(0, COUNT))[:, None]
    x, exists = x[None, :], channel < channels
    total = tl.zeros((COUNT, COLUMNS), A)
    for i in range(0, side * side):
        plane = tl.cast(i, tl.int64)
        row, column = y + dilation * (plane // side - radius), x + dilation * (plane % side - radius)
        partners = (x < width) & (row >= 0) & (row < height) & (column >= 0) & (column < width)
        if SECOND:
            source = grad[0] + (side * side - 1 - plane) * grad[2] + row * grad[3] + column * grad[4]
        else:
            source = grad[0] + plane * grad[2] + y * grad[3] + x * grad[4]
        upstream = tl.load(source + b * grad[1], partners, 0).to(A)
        feature = other[0] + b * other[1] + channel * other[2] + row * other[3] + column * other[4]
        total += upstream * tl.load(feature, partners & exists, 0).to(A)
    target = out[0] + b * out[1] + channel * out[2] + y * out[3] + x * out[4]
    tl.store(target, total.to(out[0].dtype.element_ty), exists & (x < width))


def _options(image: Tensor, dilation: int, tiles: int) -> tuple[tuple[int], tuple[int, int, int], int, dict]:
    """Grid, sizes, a dilation that leaves the image no farther than it must, types."""
    batch, channels, height, width = image.shape
    grid = batch * height * tiles * triton.cdiv(width, _COLUMNS)
    double = image.dtype == torch.float64
    options = {"A": tl.float64 if double else tl.float32, "COLUMNS": _COLUMNS}
    return (grid,), (channels, height, width), min(dilation, max(height, width)), options


def local_correlation(first: Tensor, second: Tensor, radius: int, dilation: int) -> Tensor:
    batch, _, height, width = first.shape
    planes = (2 * radius + 1) ** 2
    out = first.new_empty(batch, planes, height, width)
    if out.numel() == 0:
        return out
    grid, sizes, dilation, options = _options(first, dilation, triton.cdiv(planes, _DISPLACEMENTS))
    with torch.cuda.device_of(first):
        correlate_kernel[grid](
            (first, *first.stride()), (second, *second.stride()), sizes, out, radius, dilation,
            COUNT=_DISPLACEMENTS, **options,
        )  # fmt: skip
    return out


def local_correlation_backward(
    grad: Tensor,
    first: Tensor,
    second: Tensor,
    radius: int,
    dilation: int,
    need_first: bool,
    need_second: bool,
) -> tuple[Tensor, Tensor]:
    grads = tuple(
        _empty_like(t) if need else t.new_empty(0) for t, need in ((first, need_first), (second, need_second))
    )
    if grad.numel() == 0:
        return grads[0], grads[1]
    grid, sizes, dilation, options = _options(first, dilation, triton.cdiv(first.shape[1], _CHANNELS))
    with torch.cuda.device_of(first):
        for side, (out, other, need) in enumerate(
            zip(grads, (second, first), (need_first, need_second), strict=True)
        ):
            if need:
                gather_kernel[grid](
                    (grad, *grad.stride()), (other, *other.stride()), sizes, (out, *out.stride()),
                    radius, dilation, SECOND=side == 1, COUNT=_CHANNELS, **options,
                )  # fmt: skip
    return grads[0], grads[1]


def _empty_like(t: Tensor) -> Tensor:
    """The memory format of gradients: channels_last if the image is, and is not contiguous as well."""
    last = not t.is_contiguous() and t.is_contiguous(memory_format=torch.channels_last)
    return torch.empty_like(t, memory_format=torch.channels_last if last else torch.contiguous_format)
